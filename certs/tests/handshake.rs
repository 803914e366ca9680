//! Real handshakes, in memory: the good ones succeed, each bad one is refused by the side that
//! has to refuse it, and both sides can say why.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::path::Path;
use std::sync::Arc;

use certs::{Authority, Credentials, Identity, Paths, Request, Role, Validity, explain, peer_identity};
use rcgen::{CertificateParams, Issuer, KeyPair, SanType};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{
    ClientConfig, ClientConnection, ConnectionCommon, RootCertStore, ServerConfig, ServerConnection,
};
use time::{Duration, OffsetDateTime};

const ALPN: &[&[u8]] = &[b"quorumfs-test"];

/// How one side of a handshake ended: with the peer's identity, or an error.
type End = Result<Identity, rustls::Error>;

/// Runs a handshake to its end: both sides, because a client finishes before the server has seen
/// its certificate, and learns of a refusal only afterwards.
fn handshake(client: ClientConfig, server: ServerConfig, dialled: &str) -> (End, End) {
    let name = ServerName::try_from(dialled.to_owned()).unwrap();
    let mut client = ClientConnection::new(Arc::new(client), name).unwrap();
    let mut server = ServerConnection::new(Arc::new(server)).unwrap();
    let (mut client_error, mut server_error) = (None, None);
    while client.wants_write() || server.wants_write() {
        pump(&mut client, &mut server, &mut server_error);
        pump(&mut server, &mut client, &mut client_error);
    }
    if client_error.is_none() && server_error.is_none() {
        assert!(!client.is_handshaking() && !server.is_handshaking(), "stuck");
        assert_eq!(client.alpn_protocol(), Some(ALPN[0]));
        assert_eq!(server.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
        assert_eq!(client.tls13_tickets_received(), 0);
        assert_eq!(client.handshake_kind(), Some(rustls::HandshakeKind::Full));
    }
    (end(client.peer_certificates(), client_error), end(server.peer_certificates(), server_error))
}

fn pump<A, B>(from: &mut ConnectionCommon<A>, to: &mut ConnectionCommon<B>, error: &mut Option<rustls::Error>)
where
    A: rustls::SideData,
    B: rustls::SideData,
{
    let mut wire = Vec::new();
    while from.wants_write() {
        from.write_tls(&mut wire).unwrap();
    }
    let mut rest = &wire[..];
    while !rest.is_empty() && error.is_none() {
        to.read_tls(&mut rest).unwrap();
        *error = to.process_new_packets().err();
    }
}

fn end(chain: Option<&[CertificateDer<'_>]>, error: Option<rustls::Error>) -> End {
    error.map_or_else(|| Ok(peer_identity(chain.unwrap()).unwrap()), Err)
}

/// A handshake of whole credentials, as all parts of quorumfs make them.
fn meet(client: &Credentials, server: &Credentials, dialled: &str) -> (End, End) {
    handshake(client.client_config(ALPN).unwrap(), server.server_config(ALPN).unwrap(), dialled)
}

fn says(end: &End, expected: &str) {
    let text = explain(end.as_ref().expect_err("refused"));
    assert!(text.contains(expected), "{text:?} does not say {expected:?}");
}

struct World {
    dir: tempfile::TempDir,
    ca: Authority,
}

impl World {
    fn new() -> World {
        let dir = tempfile::tempdir().unwrap();
        let ca = Authority::create(&dir.path().join("ca"), Validity::days(10), false).unwrap();
        World { dir, ca }
    }

    fn load(&self, request: &Request) -> Credentials {
        Credentials::load(&self.ca.issue(request).unwrap().paths).unwrap()
    }

    fn node(&self, name: &str) -> Credentials {
        self.load(&Request::node(name, ["kv.example", "127.0.0.1", "::1"]).unwrap())
    }

    fn client(&self, name: &str) -> Credentials {
        self.load(&Request::client(name).unwrap())
    }

    /// Configurations that present whatever is in the files, as a careless or hostile peer would,
    /// and trust this world's CA.
    fn careless(&self, paths: &Paths) -> (ClientConfig, ServerConfig) {
        let (chain, key) = read(paths);
        careless(roots(&paths.ca), chain, key)
    }

    /// A certificate that this world's CA signs but `certs` would never issue.
    fn forge(&self, change: impl FnOnce(&mut CertificateParams)) -> (ClientConfig, ServerConfig) {
        let dir = self.dir.path().join("ca");
        let ca_key = KeyPair::from_pem(&std::fs::read_to_string(dir.join("ca.key")).unwrap()).unwrap();
        let ca_pem = std::fs::read_to_string(dir.join("ca.crt")).unwrap();
        let mut params = CertificateParams::new(["kv.example".to_owned()]).unwrap();
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let cert = params.signed_by(&key, &Issuer::from_ca_cert_pem(&ca_pem, ca_key).unwrap()).unwrap();
        careless(
            roots(&dir.join("ca.crt")),
            vec![cert.der().clone()],
            PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
        )
    }
}

fn read(paths: &Paths) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let chain = CertificateDer::pem_file_iter(&paths.cert).unwrap().map(Result::unwrap).collect();
    (chain, PrivateKeyDer::from_pem_file(&paths.key).unwrap())
}

fn roots(ca: &Path) -> Arc<RootCertStore> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(ca).unwrap()).unwrap();
    Arc::new(roots)
}

fn careless(
    roots: Arc<RootCertStore>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> (ClientConfig, ServerConfig) {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut client = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(chain.clone(), key.clone_key())
        .unwrap();
    let mut server = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    client.alpn_protocols = vec![ALPN[0].to_vec()];
    server.alpn_protocols = vec![ALPN[0].to_vec()];
    (client, server)
}

#[test]
fn good_identities_meet_and_know_each_other() {
    let world = World::new();
    let (node, peer, client) = (world.node("n1"), world.node("n2"), world.client("web"));
    for dialled in ["n1", "N1", "kv.example", "127.0.0.1", "::1"] {
        let (at_client, at_server) = meet(&client, &node, dialled);
        assert_eq!(at_client.unwrap(), Identity::new(Role::Node, "n1").unwrap());
        assert_eq!(at_server.unwrap(), Identity::new(Role::Client, "web").unwrap());
    }
    let (at_peer, at_node) = meet(&peer, &node, "n1");
    assert_eq!((at_peer.unwrap().role, at_node.unwrap().name.as_str()), (Role::Node, "n2"));
}

#[test]
fn another_ca_is_refused_by_either_side() {
    let (here, elsewhere) = (World::new(), World::new());
    let (at_client, at_server) = meet(&here.client("web"), &elsewhere.node("n1"), "n1");
    says(&at_client, "the peer's certificate was signed by another CA");
    says(&at_server, "the peer refused this side's certificate because it was signed by another CA");

    // The client knows both CAs, so that now it is the server who has to refuse.
    let paths = elsewhere.ca.issue(&Request::client("web").unwrap()).unwrap().paths;
    let bundle =
        [&paths.ca, &here.ca.certificate_path()].map(|ca| std::fs::read_to_string(ca).unwrap()).concat();
    std::fs::write(&paths.ca, bundle).unwrap();
    let (at_client, at_server) = meet(&Credentials::load(&paths).unwrap(), &here.node("n1"), "n1");
    says(&at_server, "the peer's certificate was signed by another CA");
    says(&at_client, "signed by another CA than the peer trusts");
}

#[test]
fn dates_are_refused_by_either_side() {
    let now = OffsetDateTime::now_utc();
    let past = Validity { not_before: now - Duration::days(3), not_after: now - Duration::days(1) };
    let future = Validity { not_before: now + Duration::days(1), not_after: now + Duration::days(3) };
    let world = World::new();
    let (node, client) = (world.node("good"), world.client("good-client"));
    for (name, validity, why) in
        [("old", past, "the peer's certificate expired on 2"), ("new", future, "is not valid before 2")]
    {
        let mut request = Request::node(name, ["kv.example"]).unwrap();
        request.validity = validity;
        let paths = world.ca.issue(&request).unwrap().paths;
        let local = Credentials::load(&paths).unwrap_err().to_string();
        assert!(local.contains(&why.replace("the peer's certificate ", "")), "{local}");

        let (bad_client, bad_server) = world.careless(&paths);
        let (at_client, at_server) = handshake(client.client_config(ALPN).unwrap(), bad_server, name);
        says(&at_client, why);
        says(&at_client, "check the clock");
        says(&at_server, "expired or not yet valid");
        let (at_client, at_server) = handshake(bad_client, node.server_config(ALPN).unwrap(), "good");
        says(&at_server, why);
        says(&at_client, "expired or not yet valid");
    }
}

#[test]
fn a_client_cannot_serve() {
    let world = World::new();
    let (client, poser) = (world.client("web"), world.client("poser"));
    let (at_client, at_server) = meet(&client, &poser, "poser");
    says(&at_client, "presented the certificate of client/poser, and only a node may serve");
    says(&at_server, "because of its identity");

    // Not even with a certificate that is good for the name, and allows to serve TLS.
    let uri = Identity::new(Role::Client, "poser").unwrap().uri();
    let (_, server) =
        world.forge(|params| params.subject_alt_names.push(SanType::URI(uri.try_into().unwrap())));
    let (at_client, _) = handshake(client.client_config(ALPN).unwrap(), server, "kv.example");
    says(&at_client, "presented the certificate of client/poser, and only a node may serve");
}

#[test]
fn a_certificate_without_an_identity_is_refused_by_either_side() {
    let world = World::new();
    let (bad_client, bad_server) = world.forge(|_| ());
    let (at_client, _) =
        handshake(world.client("web").client_config(ALPN).unwrap(), bad_server, "kv.example");
    says(&at_client, "the server's certificate has no quorumfs identity");
    let (at_client, at_server) = handshake(bad_client, world.node("n1").server_config(ALPN).unwrap(), "n1");
    says(&at_server, "the peer's certificate has no quorumfs identity");
    says(&at_client, "because of its identity");
}

#[test]
fn a_wrong_name_is_refused_and_the_right_ones_are_told() {
    let world = World::new();
    let (client, node) = (world.client("web"), world.node("n1"));
    for dialled in ["n2", "other.example", "10.0.0.9"] {
        let (at_client, at_server) = meet(&client, &node, dialled);
        says(
            &at_client,
            &format!("not good for {dialled}, which was dialled, but only for n1, kv.example, 127.0.0.1"),
        );
        says(&at_client, &format!("--san {dialled}"));
        says(&at_server, "not good for the name that the peer dialled");
    }
}

#[test]
fn a_client_without_a_certificate_is_refused() {
    let world = World::new();
    let mut config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots(&world.ca.certificate_path()))
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN[0].to_vec()];
    let (at_client, at_server) = handshake(config, world.node("n1").server_config(ALPN).unwrap(), "n1");
    says(&at_server, "the peer presented no certificate");
    says(&at_client, "this side presented none");
}

#[test]
fn other_protocols_are_refused() {
    let world = World::new();
    let (client, node) = (world.client("web"), world.node("n1"));
    let (at_client, at_server) =
        handshake(client.client_config(&[b"else"]).unwrap(), node.server_config(ALPN).unwrap(), "n1");
    says(&at_server, "no protocol in common");
    says(&at_client, "no protocol in common");
}
