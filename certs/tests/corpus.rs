//! The fuzz target of this crate, on stable: see `raftnode/api/fuzz/src/replay.rs`.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../../raftnode/api/fuzz/src/replay.rs"]
mod replay;
#[path = "../fuzz/src/lib.rs"]
mod target;

use std::path::Path;

use certs::{Authority, Request, Validity};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

/// `QUORUMFS_WRITE_CORPUS=1` writes certificates as this version makes them. Without their keys.
#[test]
fn the_corpus_holds_certificates_of_each_kind() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/certificate");
    if std::env::var_os("QUORUMFS_WRITE_CORPUS").is_some() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::create(&dir.path().join("certs"), Validity::days(10), false).unwrap();
        let node = authority.issue(&Request::node("n1", ["127.0.0.1", "n1.example"]).unwrap()).unwrap().paths;
        let client = authority.issue(&Request::client("alice").unwrap()).unwrap().paths;
        for (name, path) in [("authority", &node.ca), ("node", &node.cert), ("client", &client.cert)] {
            let der = CertificateDer::from_pem_file(path).unwrap();
            std::fs::write(corpus.join(name), &der).unwrap();
        }
        std::fs::copy(&node.cert, corpus.join("node-pem")).unwrap();
    }
    for name in ["authority", "node", "client", "node-pem"] {
        assert!(corpus.join(name).exists(), "{name} is missing from {}", corpus.display());
    }
}

#[test]
fn certificate() {
    replay::replay(env!("CARGO_MANIFEST_DIR"), "certificate", target::certificate);
}
