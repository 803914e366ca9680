//! Dials nodes: resolves, connects, makes sure that the node serves us, and says in a sentence why not.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use certs::{Credentials, Paths, Reloader};
use futures::future::{FutureExt, select_ok};
use parking_lot::Mutex;
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ClientConfig, ConnectionError};
use rustls::CertificateError;
use tokio::sync::watch;

use super::ClientError;
use super::connection::Connection;
use super::pool::DIAL_TIMEOUT;
use super::settings::{Settings, format_duration};
use crate::transport::{self, ALPN_CLIENT, close};
use crate::wire::Status;

/// Most addresses of one host name that are tried.
const ADDRESSES_MAX: usize = 8;
/// The next address of a name is tried beside the one before after this long.
const STAGGER: Duration = Duration::from_millis(80);
/// How long the goodbyes at the end may take.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(10);

/// Why a node could not be reached.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{text}")]
pub(super) struct DialError {
    text: String,
    refusal: bool,
}

impl DialError {
    pub fn other(text: String) -> DialError {
        DialError { text, refusal: false }
    }
    pub fn silent(waited: Duration) -> DialError {
        DialError::other(format!(
            "no answer within {}: is the node up, and its UDP port open?",
            format_duration(waited)
        ))
    }
    /// Whether one side refuses the other's certificate, or the policy denies its name: trying again
    /// does not help.
    pub fn is_refusal(&self) -> bool {
        self.refusal
    }
    fn from_quic(error: &ConnectionError) -> DialError {
        let denied = matches!(error, ConnectionError::ApplicationClosed(closed)
            if closed.error_code.into_inner() == u64::from(close::DENIED));
        DialError { text: explain_lost(error), refusal: denied || alert_of(error).is_some() }
    }
}

/// The sockets and the credentials.
pub(super) struct Endpoint {
    /// One socket for each family, made when it is first needed.
    v4: Mutex<Option<quinn::Endpoint>>,
    v6: Mutex<Option<quinn::Endpoint>>,
    credentials: watch::Receiver<Arc<Credentials>>,
    reloader: Reloader,
}

impl Endpoint {
    pub fn new(settings: &Settings) -> Result<Endpoint, ClientError> {
        let paths = Paths::in_dir(&settings.certs, &settings.name);
        let (reloader, credentials) = Reloader::start(paths).map_err(|error| {
            ClientError::Credentials(format!(
                "the identity {:?} cannot be loaded from {}: {error}",
                settings.name,
                settings.certs.display()
            ))
        })?;
        Ok(Endpoint { v4: Mutex::new(None), v6: Mutex::new(None), credentials, reloader })
    }

    /// Loads the credentials at once. True if there was something new.
    pub fn reload(&self) -> Result<bool, ClientError> {
        self.reloader.reload_now().map_err(|error| ClientError::Credentials(error.to_string()))
    }

    /// The credentials of now.
    pub fn credentials(&self) -> Arc<Credentials> {
        self.credentials.borrow().clone()
    }

    /// Connects to `host:port` and asks the node about itself: only an answer proves that it accepts
    /// us, because in TLS 1.3 a client is done before the server has seen its certificate.
    pub async fn dial(&self, addr: &str) -> Result<(Arc<Connection>, Box<Status>), DialError> {
        let credentials = self.credentials();
        let config = config(&credentials)?;
        let host = host_of(addr);
        let found = tokio::net::lookup_host(addr)
            .await
            .map_err(|e| DialError::other(format!("the name {host:?} cannot be resolved: {e}")))?;
        let tries: Vec<_> = found
            .take(ADDRESSES_MAX)
            .enumerate()
            .map(|(n, socket)| {
                let config = config.clone();
                async move {
                    // `localhost` is ::1 first on many hosts, and a silent address must not use up the time.
                    tokio::time::sleep(STAGGER * n as u32).await;
                    let endpoint = self.socket(socket)?;
                    let connecting = endpoint
                        .connect_with(config, socket, host)
                        .map_err(|e| DialError::other(format!("{host:?} cannot be dialled: {e}")))?;
                    connecting.await.map_err(|e| DialError::from_quic(&e))
                }
                .boxed()
            })
            .collect();
        if tries.is_empty() {
            return Err(DialError::other(format!("the name {host:?} has no address")));
        }
        let (quic, _others) = select_ok(tries).await?;
        let refused = |text: String| match quic.close_reason() {
            Some(reason) => DialError::from_quic(&reason),
            None => DialError::other(text),
        };
        let connection = match Connection::start(addr.to_string(), quic.clone(), credentials).await {
            Ok(connection) => connection,
            Err(text) => return Err(refused(text)),
        };
        match connection.status(DIAL_TIMEOUT).await {
            Ok(status) => Ok((connection, status)),
            Err(text) => Err(refused(text)),
        }
    }

    fn socket(&self, to: SocketAddr) -> Result<quinn::Endpoint, DialError> {
        let (slot, any) = match to {
            SocketAddr::V4(_) => (&self.v4, SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0))),
            SocketAddr::V6(_) => (&self.v6, SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0))),
        };
        let mut slot = slot.lock();
        if let Some(endpoint) = &*slot {
            return Ok(endpoint.clone());
        }
        let endpoint = quinn::Endpoint::client(any)
            .map_err(|e| DialError::other(format!("no UDP socket can be opened: {e}")))?;
        Ok(slot.insert(endpoint).clone())
    }

    /// Gives what was said last a moment to go out.
    pub async fn close(&self) {
        let endpoints = [self.v4.lock().take(), self.v6.lock().take()];
        for endpoint in endpoints.into_iter().flatten() {
            endpoint.close(quinn::VarInt::from_u32(0), b"");
            let _ = tokio::time::timeout(CLOSE_TIMEOUT, endpoint.wait_idle()).await;
        }
    }
}

fn config(credentials: &Credentials) -> Result<ClientConfig, DialError> {
    let tls = credentials.client_config(&[ALPN_CLIENT]).map_err(|e| DialError::other(e.to_string()))?;
    let quic = QuicClientConfig::try_from(tls).map_err(|e| DialError::other(e.to_string()))?;
    let mut config = ClientConfig::new(Arc::new(quic));
    config.transport_config(transport::config());
    Ok(config)
}

/// The host of `host:port`, without the brackets of IPv6.
fn host_of(addr: &str) -> &str {
    let host = addr.rsplit_once(':').map_or(addr, |(host, _)| host);
    host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host)
}

/// The TLS alert that ended a connection, whichever side sent it.
fn alert_of(error: &ConnectionError) -> Option<u8> {
    let code = match error {
        ConnectionError::TransportError(error) => u64::from(error.code),
        ConnectionError::ConnectionClosed(close) => u64::from(close.error_code),
        _ => return None,
    };
    // RFC 9001: 0x100 + alert.
    (0x100..0x200).contains(&code).then_some(code as u8)
}

/// Says why a connection ended.
pub(super) fn explain_lost(error: &ConnectionError) -> String {
    match (error, alert_of(error)) {
        (ConnectionError::TransportError(error), Some(alert)) => explain_ours(alert, &error.reason),
        (ConnectionError::ConnectionClosed(close), Some(alert)) => {
            let detail = String::from_utf8_lossy(&close.reason);
            let sentence = certs::explain_alert(alert);
            if detail.is_empty() { sentence } else { format!("{sentence} (it says: {detail})") }
        }
        (ConnectionError::ApplicationClosed(close), _) if !close.reason.is_empty() => {
            format!("the node ended the connection: {}", String::from_utf8_lossy(&close.reason))
        }
        (ConnectionError::ApplicationClosed(_), _) => "the node ended the connection".into(),
        (ConnectionError::TimedOut, _) => {
            format!("nothing was heard of the node for {}", format_duration(transport::IDLE_TIMEOUT))
        }
        (ConnectionError::Reset, _) => "the node was started again".into(),
        (ConnectionError::LocallyClosed, _) => "the connection was closed on this side".into(),
        (ConnectionError::VersionMismatch, _) => {
            "what listens there speaks another version of QUIC: check the address and port".into()
        }
        (other, _) => other.to_string(),
    }
}

/// We refused the node's certificate. QUIC keeps only the alert and a text of the reason, so the reason
/// is put together again from these.
fn explain_ours(alert: u8, reason: &str) -> String {
    let text = reason.strip_prefix("invalid peer certificate: ").unwrap_or(reason);
    let cause = match alert {
        48 => CertificateError::UnknownIssuer,
        45 if text.contains("not valid before") || text.contains("NotValidYet") => {
            CertificateError::NotValidYet
        }
        45 => CertificateError::Expired,
        51 => CertificateError::BadSignature,
        // A wrong name or a wrong role: the text says which, and what would be right.
        _ if !text.is_empty() => return format!("this side refused the node's certificate: {text}"),
        other => return format!("the handshake failed with alert {other}"),
    };
    let detail = match &cause {
        CertificateError::Expired | CertificateError::NotValidYet => format!(" ({text})"),
        _ => String::new(),
    };
    format!("{}{detail}", certs::explain(&rustls::Error::InvalidCertificate(cause)))
}
