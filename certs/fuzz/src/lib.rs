//! What is fuzzed: certificates, as they come from a peer or a file. The same function runs on stable, in
//! `tests/corpus.rs` of the crate above.
//!
//! `cargo +nightly fuzz run certificate` in the crate's folder.

use certs::{Identity, Summary};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

/// Whatever a certificate holds, who it is of is a name that could have been issued, or an error.
pub fn certificate(data: &[u8]) {
    check(&CertificateDer::from(data));
    for cert in CertificateDer::pem_slice_iter(data).take(16).flatten() {
        check(&cert);
    }
}

fn check(cert: &CertificateDer<'_>) {
    let (identity, summary) = (Identity::of(cert), Summary::of(cert));
    match (&identity, &summary) {
        (Ok(identity), Ok(summary)) => {
            assert_eq!(Identity::new(identity.role, identity.name.clone()).ok().as_ref(), Some(identity));
            assert_eq!(summary.identity.as_ref(), Some(identity));
        }
        (Ok(identity), Err(error)) => panic!("it is of {identity}, and cannot be read: {error}"),
        (Err(error), Ok(summary)) => {
            assert!(!error.to_string().is_empty());
            assert_eq!(summary.identity, None);
        }
        (Err(error), Err(_)) => assert!(!error.to_string().is_empty()),
    }
}
