//! Who is let in, and what those who are not are told.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::net::SocketAddr;

use certs::{Authority, Credentials, Paths, Request, Validity};
use common::client::{Client, endpoint};
use common::{Cluster, within};
use quinn::crypto::rustls::QuicClientConfig;
use quorumfs_api::codec::{self, FrameKind};
use quorumfs_api::transport::{ALPN_CLIENT, ALPN_PEER};
use quorumfs_api::wire::{Answer, Call};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// Connects with whatever certificate, as a program that is not ours could, and tells why the node
/// ended the connection.
async fn refused(addr: SocketAddr, trust: &Paths, certificate: Option<&Paths>, alpn: &[u8]) -> String {
    let mut roots = rustls::RootCertStore::empty();
    for root in CertificateDer::pem_file_iter(&trust.ca).unwrap() {
        roots.add(root.unwrap()).unwrap();
    }
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots);
    let mut tls = match certificate {
        None => builder.with_no_client_auth(),
        Some(paths) => {
            let chain = CertificateDer::pem_file_iter(&paths.cert).unwrap().map(Result::unwrap).collect();
            builder.with_client_auth_cert(chain, PrivateKeyDer::from_pem_file(&paths.key).unwrap()).unwrap()
        }
    };
    tls.alpn_protocols = vec![alpn.to_vec()];
    let config = quinn::ClientConfig::new(std::sync::Arc::new(QuicClientConfig::try_from(tls).unwrap()));
    let endpoint = endpoint();
    // In TLS 1.3 the client is done before the server has looked at its certificate.
    let error = match within("a handshake", endpoint.connect_with(config, addr, "127.0.0.1").unwrap()).await {
        Ok(connection) => within("the refusal", connection.closed()).await,
        Err(error) => error,
    };
    match &error {
        quinn::ConnectionError::ConnectionClosed(close) => {
            let code = u64::from(close.error_code);
            assert!((0x100..0x200).contains(&code), "{error:?}");
            certs::explain_alert((code - 0x100) as u8)
        }
        quinn::ConnectionError::ApplicationClosed(close) => {
            String::from_utf8_lossy(&close.reason).into_owned()
        }
        other => panic!("{other:?}"),
    }
}

fn hours_ago(from: i64, to: i64) -> Validity {
    let now = time::OffsetDateTime::now_utc();
    Validity { not_before: now - time::Duration::hours(from), not_after: now - time::Duration::hours(to) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_bad_identity_is_refused_on_both_protocols_and_told_why() {
    let cluster = Cluster::one().await;
    let addr = cluster.addr(1);
    let site = &cluster.site;
    let trust = Paths::in_dir(&site.certs(), "tester");
    let issue = |mut request: Request, name: &str, validity: Option<Validity>| {
        request.out = Some(site.dir.path().join(name));
        request.overwrite = true;
        if let Some(validity) = validity {
            request.validity = validity;
        }
        site.authority.issue(&request).unwrap().paths
    };
    let node = || Request::node("n7", ["127.0.0.1"]).unwrap();
    let expired = issue(node(), "expired", Some(hours_ago(5, 1)));
    let early = issue(node(), "early", Some(hours_ago(-1, -5)));
    let other = Authority::create(&site.dir.path().join("other"), Validity::days(1), false).unwrap();
    let stranger = other.issue(&node()).unwrap().paths;

    for alpn in [ALPN_CLIENT, ALPN_PEER] {
        let why = refused(addr, &trust, None, alpn).await;
        assert!(why.contains("requires a certificate"), "{why}");
        let why = refused(addr, &trust, Some(&stranger), alpn).await;
        assert!(why.contains("another CA"), "{why}");
        for paths in [&expired, &early] {
            let why = refused(addr, &trust, Some(paths), alpn).await;
            assert!(why.contains("expired or not yet valid"), "{why}");
        }
    }
    let why = refused(addr, &trust, Some(&trust), ALPN_PEER).await;
    assert!(why.contains("client/tester may not speak the protocol of nodes"), "{why}");
    let why = refused(addr, &trust, Some(&trust), b"h3").await;
    assert!(!why.is_empty());
    // A good one still gets in.
    assert!(matches!(cluster.client(1).await.call(Call::Status).await, Ok(Answer::Status(_))));
    cluster.end().await;
}

/// First frame of a peer's stream, as the node's own code writes it: id, name, whom it wants, a vote.
#[derive(serde::Serialize)]
struct PeerHello {
    from: u64,
    name: String,
    to: u64,
    purpose: u8,
}

async fn hello_refused(addr: SocketAddr, who: &Credentials, hello: PeerHello) -> String {
    let client = Client::connect_as(addr, who, ALPN_PEER).await.unwrap();
    let (mut send, _recv) = client.connection.open_bi().await.unwrap();
    send.write_all(&codec::encode(FrameKind::Peer, &hello).unwrap()).await.unwrap();
    match within("the refusal", client.connection.closed()).await {
        quinn::ConnectionError::ApplicationClosed(close) => {
            String::from_utf8_lossy(&close.reason).into_owned()
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_speaks_only_for_itself_and_to_whom_it_means() {
    let cluster = Cluster::of(2).await;
    let addr = cluster.addr(1);
    let load = |name: &str| Credentials::load(&Paths::in_dir(&cluster.site.certs(), name)).unwrap();
    cluster.site.node(9);
    let hello = |from, name: &str, to| PeerHello { from, name: name.into(), to, purpose: 1 };
    let why = hello_refused(addr, &load("n9"), hello(2, "n2", 1)).await;
    assert!(why.contains("certificate is for \"n9\""), "{why}");
    let why = hello_refused(addr, &load("n9"), hello(2, "n9", 1)).await;
    assert!(why.contains("node 2, which is \"n2\""), "{why}");
    let why = hello_refused(addr, &load("n2"), hello(2, "n2", 5)).await;
    assert!(why.contains("looking for node 5"), "{why}");
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_does_not_start_with_somebody_elses_certificate() {
    let site = common::Site::new();
    let mut config = site.node(1);
    config.name = "tester".into();
    let error = raftnode::Node::start(config).await.err().unwrap().to_string();
    assert!(error.contains("client/tester") && error.contains("certs issue --node"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_certificates_are_taken_up_while_running() {
    let cluster = Cluster::of(3).await;
    // Another CA, trusted beside the old one: the way to replace one without a stop.
    let other = Authority::create(&cluster.site.dir.path().join("next"), Validity::days(2), false).unwrap();
    let newcomer = other.issue(&Request::client("newcomer").unwrap()).unwrap().paths;
    let ca = cluster.site.certs().join("ca.crt");
    let old = std::fs::read_to_string(&ca).unwrap();
    let both = old.clone() + &std::fs::read_to_string(&newcomer.ca).unwrap();
    let trust = Paths::in_dir(&cluster.site.certs(), "tester");
    let why = refused(cluster.addr(1), &trust, Some(&newcomer), ALPN_CLIENT).await;
    assert!(why.contains("another CA"), "{why}");

    std::fs::write(&ca, both).unwrap();
    for id in 1..=3 {
        // It may have seen the change by itself already.
        let _ = cluster.node(id).reload_certificates().unwrap();
    }
    let who = {
        let paths = Paths { ca: ca.clone(), ..newcomer.clone() };
        Credentials::load(&paths).unwrap()
    };
    common::eventually("the newcomer is let in", || async {
        let client = Client::connect_as(cluster.addr(1), &who, ALPN_CLIENT).await.ok()?;
        tokio::select! {
            status = client.call(Call::Status) => status.ok().map(drop),
            _ = client.connection.closed() => None,
        }
    })
    .await;
    // The cluster goes on meanwhile, on the connections that it has.
    cluster.leader().await.put("/x", b"1").await.unwrap();
    cluster.end().await;
}
