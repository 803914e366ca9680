//! The node's one UDP socket: peers and clients, incoming and outgoing, told apart by ALPN.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use certs::{Credentials, Identity, Role};
use parking_lot::RwLock;
use quinn::VarInt;
use quinn::crypto::rustls::{HandshakeData, QuicClientConfig, QuicServerConfig};
use quorumfs_api::transport::{self, ALPN_CLIENT, ALPN_PEER, SOCKET_BUFFER, close};
use rustls::pki_types::CertificateDer;

/// Close code: the node stops.
pub const CLOSE_STOPPING: VarInt = VarInt::from_u32(close::STOPPING);
/// Close code: this identity may not speak this protocol, or not to this node.
pub const CLOSE_DENIED: VarInt = VarInt::from_u32(close::DENIED);
/// Close code: too many connections.
pub const CLOSE_BUSY: VarInt = VarInt::from_u32(close::BUSY);
/// Close code: what came is not the protocol.
pub const CLOSE_PROTOCOL: VarInt = VarInt::from_u32(close::PROTOCOL);
/// Close code: another connection took its place.
pub const CLOSE_REPLACED: VarInt = VarInt::from_u32(close::REPLACED);
/// Close code: the other side does not answer, or does not read.
pub const CLOSE_SILENT: VarInt = VarInt::from_u32(close::SILENT);

/// Handshakes that the endpoint holds before they are taken up; more are dropped, and the other side
/// tries again.
const INCOMING_MAX: usize = 1024;
/// Bytes that one handshake, and all together, may buffer before they are taken up.
const INCOMING_BYTES: u64 = 64 << 10;
const INCOMING_BYTES_TOTAL: u64 = 16 << 20;
/// File in the data directory with the key for stateless resets.
const RESET_KEY_FILE: &str = "reset.key";
/// Bytes of that key.
const RESET_KEY_BYTES: usize = 32;

/// Why the socket cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// The address cannot be bound.
    #[error("cannot listen on {addr} (UDP): {error}")]
    Bind {
        /// Which.
        addr: SocketAddr,
        /// Why.
        error: io::Error,
    },
    /// The reset key cannot be kept.
    #[error("cannot read or write the reset key {path}: {error}")]
    ResetKey {
        /// Where.
        path: std::path::PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The credentials do not make a TLS configuration.
    #[error(transparent)]
    Certs(#[from] certs::Error),
    /// The TLS configuration does not do for QUIC.
    #[error("no QUIC with this TLS configuration: {0}")]
    Quic(#[from] quinn::crypto::rustls::NoInitialCipherSuite),
}

/// Why a peer was not connected.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// It cannot be dialled.
    #[error("{0}")]
    Connect(#[from] quinn::ConnectError),
    /// The handshake failed.
    #[error("{}", explain(.0))]
    Connection(#[from] quinn::ConnectionError),
    /// It is somebody else.
    #[error("{0}")]
    Identity(String),
}

/// What went wrong with a connection, in words that an operator can act on.
pub fn explain(error: &quinn::ConnectionError) -> String {
    use quinn::ConnectionError as E;
    match error {
        // This side refused; the reason says why.
        E::TransportError(e) if alert_of(e.code).is_some() && !e.reason.is_empty() => e.reason.clone(),
        E::ConnectionClosed(close) => match alert_of(close.error_code) {
            Some(alert) => certs::explain_alert(alert),
            None => error.to_string(),
        },
        E::ApplicationClosed(close) => String::from_utf8_lossy(&close.reason).into_owned(),
        E::TimedOut => "no answer".into(),
        _ => error.to_string(),
    }
}

/// The TLS alert in a transport error code, as QUIC carries it.
fn alert_of(code: quinn::TransportErrorCode) -> Option<u8> {
    let code = u64::from(code);
    u8::try_from(code.checked_sub(0x100)?).ok()
}

/// Which of the two protocols a connection speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Members among each other.
    Peer,
    /// Clients.
    Client,
}

/// The socket. Clones share it.
#[derive(Clone)]
pub struct Endpoint {
    quic: quinn::Endpoint,
    local: SocketAddr,
    dial: Arc<RwLock<Dial>>,
}

/// Configurations for outgoing connections, as of the newest credentials.
struct Dial {
    peer: quinn::ClientConfig,
    client: quinn::ClientConfig,
}

impl Dial {
    fn new(credentials: &Credentials) -> Result<Dial, EndpointError> {
        let config = |alpn| {
            let tls = QuicClientConfig::try_from(credentials.client_config(&[alpn])?)?;
            let mut config = quinn::ClientConfig::new(Arc::new(tls));
            config.transport_config(transport::config());
            Ok::<_, EndpointError>(config)
        };
        Ok(Dial { peer: config(ALPN_PEER)?, client: config(ALPN_CLIENT)? })
    }
}

fn server_config(credentials: &Credentials) -> Result<quinn::ServerConfig, EndpointError> {
    let tls = QuicServerConfig::try_from(credentials.server_config(&[ALPN_PEER, ALPN_CLIENT])?)?;
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(tls));
    config
        .transport_config(transport::config())
        .max_incoming(INCOMING_MAX)
        .incoming_buffer_size(INCOMING_BYTES)
        .incoming_buffer_size_total(INCOMING_BYTES_TOTAL);
    Ok(config)
}

impl Endpoint {
    /// Binds `listen`. `data` is where the key for stateless resets is kept: with it, a node that was
    /// restarted can tell the other side of an old connection that it is gone, which otherwise notices
    /// only when nothing came for the idle time-out.
    pub fn bind(
        listen: SocketAddr,
        credentials: &Credentials,
        data: &Path,
    ) -> Result<Endpoint, EndpointError> {
        let bind = |error| EndpointError::Bind { addr: listen, error };
        let socket = UdpSocket::bind(listen).map_err(bind)?;
        // Best effort: what the kernel grants depends on net.core.rmem_max and wmem_max.
        let _ = rustix::net::sockopt::set_socket_recv_buffer_size(&socket, SOCKET_BUFFER);
        let _ = rustix::net::sockopt::set_socket_send_buffer_size(&socket, SOCKET_BUFFER);
        let key = reset_key(data)?;
        let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &key);
        // Packets with connection ids that another process made up are dropped without an answer, so
        // the ids have to be recognised across a restart too.
        let ids = ring::hmac::sign(&key, b"connection ids");
        let seed = ids.as_ref().first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        let mut config = quinn::EndpointConfig::new(Arc::new(key));
        config.cid_generator(move || Box::new(quinn_proto::HashedConnectionIdGenerator::from_key(seed)));
        let server = server_config(credentials)?;
        let quic = quinn::Endpoint::new(config, Some(server), socket, Arc::new(quinn::TokioRuntime))
            .map_err(bind)?;
        let local = quic.local_addr().map_err(bind)?;
        Ok(Endpoint { quic, local, dial: Arc::new(RwLock::new(Dial::new(credentials)?)) })
    }

    /// Uses `credentials` for all connections from now on.
    pub fn reload(&self, credentials: &Credentials) -> Result<(), EndpointError> {
        let (server, dial) = (server_config(credentials)?, Dial::new(credentials)?);
        self.quic.set_server_config(Some(server));
        *self.dial.write() = dial;
        Ok(())
    }

    /// The address that is bound.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// Whether the socket can send to this address at all.
    pub fn can_reach(&self, addr: &SocketAddr) -> bool {
        addr.is_ipv4() == self.local.is_ipv4()
    }

    /// The next connection that comes; `None` when the endpoint was closed.
    pub async fn accept(&self) -> Option<quinn::Incoming> {
        self.quic.accept().await
    }

    /// Takes no more connections.
    pub fn refuse_new(&self) {
        self.quic.set_server_config(None);
    }

    /// Closes all connections, and waits until the other sides were told.
    pub async fn close(&self) {
        self.quic.close(CLOSE_STOPPING, b"the node is stopping");
        self.quic.wait_idle().await;
    }

    /// Connects to a member, and makes sure that it is the one with this name.
    pub async fn connect_peer(
        &self,
        addr: SocketAddr,
        host: &str,
        name: &str,
    ) -> Result<quinn::Connection, PeerError> {
        let config = self.dial.read().peer.clone();
        let connection = self.quic.connect_with(config, addr, host)?.await?;
        match identity_of(&connection) {
            Ok(Identity { role: Role::Node, name: found }) if found == name => Ok(connection),
            Ok(found) => {
                connection.close(CLOSE_DENIED, b"this is not the node that was dialled");
                Err(PeerError::Identity(format!("{addr} is {found}, and not node/{name}")))
            }
            Err(why) => {
                connection.close(CLOSE_DENIED, why.as_bytes());
                Err(PeerError::Identity(why))
            }
        }
    }

    /// Connects to a node as a client does, with this node's certificate.
    pub async fn connect_client(&self, addr: SocketAddr, host: &str) -> Result<quinn::Connection, PeerError> {
        let config = self.dial.read().client.clone();
        Ok(self.quic.connect_with(config, addr, host)?.await?)
    }
}

/// Who is on the other side.
pub fn identity_of(connection: &quinn::Connection) -> Result<Identity, String> {
    let chain =
        connection.peer_identity().and_then(|any| any.downcast::<Vec<CertificateDer<'static>>>().ok());
    let chain = chain.ok_or_else(|| "the other side presented no certificate".to_owned())?;
    certs::peer_identity(&chain).map_err(|error| error.to_string())
}

/// Which protocol was agreed on.
pub fn protocol_of(connection: &quinn::Connection) -> Option<Protocol> {
    let data = connection.handshake_data()?.downcast::<HandshakeData>().ok()?;
    match data.protocol?.as_slice() {
        ALPN_PEER => Some(Protocol::Peer),
        ALPN_CLIENT => Some(Protocol::Client),
        _ => None,
    }
}

/// The key for stateless resets, made where there is none.
fn reset_key(data: &Path) -> Result<[u8; RESET_KEY_BYTES], EndpointError> {
    let path = data.join(RESET_KEY_FILE);
    let fail = |error| EndpointError::ResetKey { path: path.clone(), error };
    match std::fs::read(&path) {
        // A damaged key is only worth a slower restart: it is made anew.
        Ok(bytes) => {
            if let Ok(key) = bytes.try_into() {
                return Ok(key);
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(fail(error)),
    }
    let key: [u8; RESET_KEY_BYTES] = rand::random();
    let write = || {
        use std::io::Write;
        let mut file =
            std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path)?;
        file.write_all(&key)
    };
    write().map_err(fail)?;
    Ok(key)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_reset_key_stays_the_same_and_is_private() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let first = reset_key(dir.path()).unwrap();
        assert_eq!(reset_key(dir.path()).unwrap(), first);
        let mode = std::fs::metadata(dir.path().join(RESET_KEY_FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        std::fs::write(dir.path().join(RESET_KEY_FILE), b"short").unwrap();
        assert_ne!(reset_key(dir.path()).unwrap(), first);
    }
}
