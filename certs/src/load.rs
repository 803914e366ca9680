//! Files to [`Credentials`]: loaded together, and refused unless they fit together.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, InconsistentKeys, RootCertStore};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use time::OffsetDateTime;

use crate::error::Error;
use crate::files;
use crate::identity::{Identity, Role};
use crate::inspect::Summary;
use crate::tls;

/// Where the files of one identity are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths {
    /// The CA certificates to trust. While a CA is being replaced, both the old and the new one.
    pub ca: PathBuf,
    /// The identity's certificate, followed by intermediate ones if there are any.
    pub cert: PathBuf,
    /// The identity's private key.
    pub key: PathBuf,
}

impl Paths {
    /// The files as `certs issue` names them: `DIR/ca.crt`, `DIR/NAME.crt`, `DIR/NAME.key`.
    pub fn in_dir(dir: &Path, name: &str) -> Paths {
        Paths {
            ca: dir.join("ca.crt"),
            cert: dir.join(format!("{name}.crt")),
            key: dir.join(format!("{name}.key")),
        }
    }

    pub(crate) fn all(&self) -> [&Path; 3] {
        [&self.ca, &self.cert, &self.key]
    }
}

/// One identity with its key, and the CAs that it trusts.
///
/// A value of this type is known to work: the key belongs to the certificate, the certificate
/// chains to the CA for what its role does, all were valid when loaded, and it has an identity.
pub struct Credentials {
    pub(crate) roots: Arc<RootCertStore>,
    pub(crate) certified: Arc<CertifiedKey>,
    identity: Identity,
    summary: Summary,
    authorities: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl Credentials {
    /// Loads and checks the files.
    pub fn load(paths: &Paths) -> Result<Credentials, Error> {
        let (authorities, roots) = load_roots(&paths.ca)?;
        let chain = files::certificates(&paths.cert)?;
        let leaf = chain.first().ok_or_else(|| Error::Malformed("empty chain".into()).within(&paths.cert))?;
        let identity = Identity::of(leaf).map_err(|error| error.within(&paths.cert))?;
        let summary = Summary::of(leaf).map_err(|error| error.within(&paths.cert))?;
        summary.check_now(&paths.cert)?;

        let key = files::private_key(&paths.key)?;
        let certified = CertifiedKey::from_der(chain, key.clone_key(), &tls::provider()).map_err(
            |error| match error {
                rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
                    Error::KeyMismatch { cert: paths.cert.clone(), key: paths.key.clone() }
                }
                rustls::Error::InvalidCertificate(_) => Error::from(error).within(&paths.cert),
                other => Error::Key { path: paths.key.clone(), reason: other.to_string() },
            },
        )?;
        verify_chain(&certified.cert, &roots, identity.role).map_err(|error| Error::Untrusted {
            cert: paths.cert.clone(),
            ca: paths.ca.clone(),
            why: untrusted_reason(error, &summary),
        })?;
        Ok(Credentials { roots, certified: Arc::new(certified), identity, summary, authorities, key })
    }

    /// Who these credentials are of.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The host names and addresses that the certificate is good for.
    pub fn names(&self) -> &[String] {
        &self.summary.names
    }

    /// The beginning of the certificate's validity.
    pub fn not_before(&self) -> OffsetDateTime {
        self.summary.not_before
    }

    /// The end of the certificate's validity. Worth a metric: no connection is made after it.
    pub fn not_after(&self) -> OffsetDateTime {
        self.summary.not_after
    }

    /// The certificate chain as it is presented to peers, leaf first.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.certified.cert
    }

    /// Whether both come from files with the same contents.
    pub(crate) fn same_as(&self, other: &Credentials) -> bool {
        self.certified.cert == other.certified.cert
            && self.authorities == other.authorities
            && self.key == other.key
    }
}

impl fmt::Debug for Credentials {
    // By hand, so that the key never reaches a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("identity", &self.identity)
            .field("names", &self.summary.names)
            .field("not_after", &self.summary.not_after)
            .finish_non_exhaustive()
    }
}

type Roots = (Vec<CertificateDer<'static>>, Arc<RootCertStore>);

fn load_roots(path: &Path) -> Result<Roots, Error> {
    let certs = files::certificates(path)?;
    let mut store = RootCertStore::empty();
    let mut stale = None;
    for cert in &certs {
        let summary = Summary::of(cert).map_err(|error| error.within(path))?;
        if !summary.is_authority {
            return Err(Error::NotAuthority { path: path.into() });
        }
        // TLS verification does not look at the dates of a root, so that is done here. One that
        // has expired is left out rather than refused: during a change of CA the next is beside it.
        match summary.check_now(path) {
            Ok(()) => store.add(cert.clone()).map_err(|error| Error::from(error).within(path))?,
            Err(error) => stale = Some(error),
        }
    }
    match stale {
        Some(error) if store.is_empty() => Err(error),
        _ => Ok((certs, Arc::new(store))),
    }
}

/// Verifies the chain as a peer would: every identity dials, and a node serves too.
fn verify_chain(
    chain: &[CertificateDer<'_>],
    roots: &Arc<RootCertStore>,
    role: Role,
) -> Result<(), rustls::Error> {
    let Some((leaf, intermediates)) = chain.split_first() else {
        return Err(rustls::Error::NoCertificatesPresented);
    };
    let (now, provider) = (UnixTime::now(), tls::provider());
    WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone())
        .build()
        .map_err(|error| rustls::Error::General(error.to_string()))?
        .verify_client_cert(leaf, intermediates, now)?;
    if role == Role::Node {
        let leaf = ParsedCertificate::try_from(leaf)?;
        let algorithms = provider.signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&leaf, roots, intermediates, now, algorithms)?;
    }
    Ok(())
}

fn untrusted_reason(error: rustls::Error, summary: &Summary) -> String {
    use rustls::Error::InvalidCertificate;
    match error {
        InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature) => format!(
            "it was signed by another CA ({}); use the ca.crt of that CA, or issue the identity again",
            summary.issuer
        ),
        other => crate::explain(&other),
    }
}
