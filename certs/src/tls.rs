//! `rustls` configurations: TLS 1.3 and nothing older, certificates on both sides, no shortcuts.
//!
//! There are no tickets, no resumption and no early data anywhere: a resumed session is not
//! verified again, so that a certificate which was replaced or has expired would go on working.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::CryptoProvider;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::sign::SingleCertAndKey;
use rustls::version::TLS13;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, OtherError, ServerConfig,
    SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use crate::error::Error;
use crate::identity::{Identity, Role};
use crate::load::Credentials;

/// The only cryptography in use. Named everywhere, so that the process-wide default (which any
/// dependency could install) never matters.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

impl Credentials {
    /// The configuration of a listener: every peer must present a certificate of the CA that
    /// carries an identity. What that identity may do is for the caller, with
    /// [`peer_identity`](crate::peer_identity).
    pub fn server_config(&self, alpn: &[&[u8]]) -> Result<ServerConfig, Error> {
        let verifier = WebPkiClientVerifier::builder_with_provider(self.roots.clone(), provider())
            .build()
            .map_err(|error| Error::Tls(error.to_string()))?;
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])?
            .with_client_cert_verifier(Arc::new(AnyIdentity { inner: verifier }))
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(self.certified.clone())));
        config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.max_early_data_size = 0;
        Ok(config)
    }

    /// The configuration of a dialler: the server's certificate must be of the CA, be good for
    /// the host name or address that is dialled, and be a node's. Without the last, any client's
    /// certificate could be used to pose as a node.
    pub fn client_config(&self, alpn: &[&[u8]]) -> Result<ClientConfig, Error> {
        let verifier = WebPkiServerVerifier::builder_with_provider(self.roots.clone(), provider())
            .build()
            .map_err(|error| Error::Tls(error.to_string()))?;
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])?
            .dangerous() // It only adds to what is verified.
            .with_custom_certificate_verifier(Arc::new(OnlyNodes { inner: verifier }))
            .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(self.certified.clone())));
        config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
        config.resumption = Resumption::disabled();
        config.enable_early_data = false;
        Ok(config)
    }
}

fn refuse(reason: String) -> rustls::Error {
    // `Other` becomes the alert `certificate_unknown`, and its text stays readable here.
    rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::from(Box::<
        dyn std::error::Error + Send + Sync,
    >::from(reason)))))
}

/// Verifies a server as `rustls` does, and that it is a node.
#[derive(Debug)]
struct OnlyNodes {
    inner: Arc<WebPkiServerVerifier>,
}

impl ServerCertVerifier for OnlyNodes {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        use CertificateError::{InvalidPurpose, InvalidPurposeContext};
        let verdict =
            self.inner.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        match &verdict {
            // A client's certificate says already in its key usage that it cannot serve: in that
            // case too, the reason to give is whose it is.
            Ok(_) | Err(rustls::Error::InvalidCertificate(InvalidPurpose | InvalidPurposeContext { .. })) => {
                match Identity::of(end_entity) {
                    Ok(Identity { role: Role::Node, .. }) => verdict,
                    Ok(identity) => Err(refuse(format!(
                        "the server presented the certificate of {identity}, and only a node may serve; \
                         start it with a certificate from `certs issue --node`"
                    ))),
                    Err(error) => Err(refuse(format!("the server's certificate has {error}"))),
                }
            }
            Err(_) => verdict,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

/// Verifies a dialling peer as `rustls` does, and that it has an identity, so that a connection
/// without one ends in the handshake and never reaches code that would have to ask.
#[derive(Debug)]
struct AnyIdentity {
    inner: Arc<dyn ClientCertVerifier>,
}

impl ClientCertVerifier for AnyIdentity {
    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verdict = self.inner.verify_client_cert(end_entity, intermediates, now)?;
        Identity::of(end_entity).map_err(|error| refuse(format!("the peer's certificate has {error}")))?;
        Ok(verdict)
    }

    fn offer_client_auth(&self) -> bool {
        true
    }

    fn client_auth_mandatory(&self) -> bool {
        true
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.root_hint_subjects()
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}
