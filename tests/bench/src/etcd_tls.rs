//! etcd with mutual TLS, for its members among each other and for its clients: what quorumfs always does.
//! The certificates are made as those of a quorumfs cluster are.

use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::Command;
use std::sync::Arc;
use std::task::{Context, Poll};

use anyhow::Context as _;
use certs::authority::IDENTITY_DAYS;
use certs::{Authority, Credentials, Paths, Request, Validity};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::codegen::Service;
use tonic::codegen::http::Uri;

/// The address of every member.
const HOST: &str = "127.0.0.1";
/// What is spoken inside.
const ALPN: &[u8] = b"h2";
/// Whose certificate the clients present.
const CLIENT: &str = "bench";

/// An authority, and the identities that it has signed.
pub struct Pki {
    authority: Authority,
    dir: PathBuf,
}

impl Pki {
    /// A new one, in a directory of its own.
    pub fn create(dir: &Path) -> anyhow::Result<Pki> {
        let authority = Authority::create(dir, Validity::days(IDENTITY_DAYS), false)?;
        authority.issue(&Request::client(CLIENT)?)?;
        Ok(Pki { authority, dir: dir.to_path_buf() })
    }

    /// Gives a member its identity, by the flags of its command.
    pub fn member(&self, name: &str, command: &mut Command) -> anyhow::Result<()> {
        let paths = self.authority.issue(&Request::node(name, [HOST])?)?.paths;
        command.arg("--client-cert-auth").arg("--peer-client-cert-auth");
        for side in ["", "peer-"] {
            for (what, file) in [("trusted-ca", &paths.ca), ("cert", &paths.cert), ("key", &paths.key)] {
                command.arg(format!("--{side}{what}-file")).arg(file);
            }
        }
        Ok(())
    }

    /// What clients dial with.
    pub fn client(&self) -> anyhow::Result<Tls> {
        let credentials = Credentials::load(&Paths::in_dir(&self.dir, CLIENT))?;
        Ok(Tls(Arc::new(credentials.client_config(&[ALPN])?)))
    }
}

/// Dials with TLS, as tonic wants it.
#[derive(Clone)]
pub struct Tls(Arc<ClientConfig>);

impl Service<Uri> for Tls {
    type Response = TokioIo<TlsStream<TcpStream>>;
    type Error = anyhow::Error;
    type Future = Pin<Box<dyn Future<Output = anyhow::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<anyhow::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connector = TlsConnector::from(self.0.clone());
        Box::pin(async move {
            let port = uri.port_u16().context("an address without a port")?;
            let stream = TcpStream::connect((HOST, port)).await?;
            stream.set_nodelay(true)?;
            let name = ServerName::try_from(HOST)?;
            Ok(TokioIo::new(connector.connect(name, stream).await?))
        })
    }
}
