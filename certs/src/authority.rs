//! The certificate authority of a cluster: a key and a certificate in a directory, and what it issues.

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose as Purpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose as Usage, PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType,
};
use rustls_pki_types::DnsName;
use time::{Duration, OffsetDateTime};

use crate::error::Error;
use crate::files::{self, PUBLIC, SECRET};
use crate::identity::{Identity, Role, parse};
use crate::inspect::Summary;
use crate::load::Paths;

/// How long a CA is good for by default, in days.
pub const AUTHORITY_DAYS: u32 = 3650;
/// How long an identity is good for by default, in days.
pub const IDENTITY_DAYS: u32 = 365;
/// How far before now a certificate begins, so that hosts whose clocks are behind accept it at once.
const BACKDATE: Duration = Duration::minutes(5);
/// The name of the CA's own files, which no identity can have.
const AUTHORITY: &str = "ca";

/// From when until when a certificate is good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// The beginning.
    pub not_before: OffsetDateTime,
    /// The end. An identity ends with its CA at the latest, whatever is asked for.
    pub not_after: OffsetDateTime,
}

impl Validity {
    /// From now (five minutes earlier, for clocks that are behind) for so many days.
    pub fn days(days: u32) -> Validity {
        let now = OffsetDateTime::now_utc();
        let end = now.checked_add(Duration::days(days.into()));
        Validity {
            not_before: now - BACKDATE,
            not_after: end.unwrap_or(time::PrimitiveDateTime::MAX.assume_utc()),
        }
    }

    fn check(&self) -> Result<(), Error> {
        let Validity { not_before, not_after } = *self;
        let wrong = |reason| Error::Validity { not_before, not_after, reason };
        if not_before >= not_after {
            return Err(wrong("it ends before it begins"));
        }
        if not_before.year() < 1950 || not_after.year() > 9999 {
            return Err(wrong("X.509 knows the years 1950 to 9999"));
        }
        Ok(())
    }
}

/// What to issue.
#[derive(Clone, Debug)]
pub struct Request {
    /// Who the certificate is of.
    pub identity: Identity,
    /// The host names and IP addresses to be good for, beside a node's own name.
    pub sans: Vec<String>,
    /// When it is good.
    pub validity: Validity,
    /// Where to put the files, with a copy of `ca.crt`; the CA's own directory if `None`.
    pub out: Option<PathBuf>,
    /// Whether to replace files that exist.
    pub overwrite: bool,
}

impl Request {
    /// A node that is dialled by its name or by `sans`, for a year.
    pub fn node<S: Into<String>>(name: &str, sans: impl IntoIterator<Item = S>) -> Result<Request, Error> {
        let identity = Identity::new(Role::Node, name)?;
        Ok(Request { sans: sans.into_iter().map(Into::into).collect(), ..Request::new(identity) })
    }

    /// A client, for a year.
    pub fn client(name: &str) -> Result<Request, Error> {
        Ok(Request::new(Identity::new(Role::Client, name)?))
    }

    fn new(identity: Identity) -> Request {
        Request {
            identity,
            sans: vec![],
            validity: Validity::days(IDENTITY_DAYS),
            out: None,
            overwrite: false,
        }
    }
}

/// What was issued, and where it is.
#[derive(Clone, Debug)]
pub struct Issued {
    /// The files.
    pub paths: Paths,
    /// What the certificate says.
    pub summary: Summary,
}

/// A CA that can issue identities.
pub struct Authority {
    dir: PathBuf,
    issuer: Issuer<'static, KeyPair>,
    summary: Summary,
}

impl Authority {
    /// Makes a CA in a directory, which is made for its owner alone if it does not exist.
    /// With `overwrite` an existing CA is replaced, and all that it issued becomes useless.
    pub fn create(dir: &Path, validity: Validity, overwrite: bool) -> Result<Authority, Error> {
        validity.check()?;
        files::private_dir(dir)?;
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = CertificateParams::default();
        // Two CAs never share a name: where both are known, a peer would try the wrong key and
        // report a damaged signature in place of another CA.
        let id: String =
            params.key_identifier(&key).iter().take(4).map(|byte| format!("{byte:02x}")).collect();
        params.distinguished_name = common_name(&format!("quorumfs CA {id}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![Usage::KeyCertSign, Usage::CrlSign];
        params.not_before = validity.not_before;
        params.not_after = validity.not_after;
        let pem = params.self_signed(&key)?.pem();
        let paths = Paths::in_dir(dir, AUTHORITY);
        write_pair(&paths, &pem, &key.serialize_pem(), overwrite)?;
        Authority::open(dir)
    }

    /// Opens the CA in a directory.
    pub fn open(dir: &Path) -> Result<Authority, Error> {
        let paths = Paths::in_dir(dir, AUTHORITY);
        if !paths.ca.exists() && !paths.key.exists() {
            return Err(Error::NoAuthority { dir: dir.into() });
        }
        let key = files::private_key(&paths.key)?;
        let key = KeyPair::try_from(&key)
            .map_err(|error| Error::Key { path: paths.key.clone(), reason: error.to_string() })?;
        // There are several while a CA is being replaced: the one to use is the one of the key.
        for cert in files::certificates(&paths.ca)? {
            let parsed = parse(&cert).map_err(|error| error.within(&paths.ca))?;
            if parsed.public_key().subject_public_key.data.as_ref() != key.der_bytes() {
                continue;
            }
            let summary = Summary::of(&cert).map_err(|error| error.within(&paths.ca))?;
            if !summary.is_authority {
                return Err(Error::NotAuthority { path: paths.ca });
            }
            summary.check_now(&paths.ca)?;
            return Ok(Authority { dir: dir.into(), issuer: Issuer::from_ca_cert_der(&cert, key)?, summary });
        }
        Err(Error::KeyMismatch { cert: paths.ca, key: paths.key })
    }

    /// Where the CA's certificate is: the file that every node and client needs.
    pub fn certificate_path(&self) -> PathBuf {
        Paths::in_dir(&self.dir, AUTHORITY).ca
    }

    /// What the CA's certificate says.
    pub fn summary(&self) -> &Summary {
        &self.summary
    }

    /// Makes a key and a certificate, and writes them.
    pub fn issue(&self, request: &Request) -> Result<Issued, Error> {
        let params = self.params(request)?;
        let dir = request.out.as_deref().unwrap_or(&self.dir);
        let paths = Paths::in_dir(dir, &request.identity.name);
        if dir != self.dir {
            files::private_dir(dir)?;
            self.copy_certificate(&paths.ca, request.overwrite)?;
        }
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let cert = params.signed_by(&key, &self.issuer)?;
        write_pair(&paths, &cert.pem(), &key.serialize_pem(), request.overwrite)?;
        Ok(Issued { summary: Summary::of(cert.der())?, paths })
    }

    fn params(&self, request: &Request) -> Result<CertificateParams, Error> {
        // Checked again, because the fields are open.
        let Identity { role, name } = Identity::new(request.identity.role, &request.identity.name)?;
        if name.eq_ignore_ascii_case(AUTHORITY) {
            return Err(Error::Name { name, reason: "its files would replace those of the CA".into() });
        }
        let mut params = CertificateParams::default();
        let uri = request.identity.uri();
        params.subject_alt_names.push(SanType::URI(uri.try_into()?));
        if role == Role::Node {
            let own = san(&name).map_err(|_| Error::Name {
                name: name.clone(),
                reason:
                    "a node is also dialled by its name, so it must be a possible host name (`n1`, not `1`)"
                        .into(),
            })?;
            params.subject_alt_names.push(own);
        }
        for wanted in &request.sans {
            let wanted = san(wanted)?;
            if !params.subject_alt_names.contains(&wanted) {
                params.subject_alt_names.push(wanted);
            }
        }
        params.distinguished_name = common_name(&name);
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![Usage::DigitalSignature];
        // A node dials its peers too. A client never serves, and here that is said a second time
        // in terms that any TLS library enforces.
        params.extended_key_usages = match role {
            Role::Node => vec![Purpose::ServerAuth, Purpose::ClientAuth],
            Role::Client => vec![Purpose::ClientAuth],
        };
        // TLS does not look at the dates of a root, so what it signed must not outlive it.
        let not_after = request.validity.not_after.min(self.summary.not_after);
        let validity = Validity { not_after, ..request.validity };
        validity.check()?;
        params.not_before = validity.not_before;
        params.not_after = validity.not_after;
        Ok(params)
    }

    fn copy_certificate(&self, to: &Path, overwrite: bool) -> Result<(), Error> {
        let ours = files::read(&self.certificate_path())?;
        if files::read(to).is_ok_and(|theirs| theirs == ours) {
            return Ok(());
        }
        files::write(to, &ours, PUBLIC, overwrite)
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority")
            .field("dir", &self.dir)
            .field("summary", &self.summary)
            .finish_non_exhaustive()
    }
}

fn common_name(name: &str) -> DistinguishedName {
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, name);
    subject
}

/// A host name or address as a certificate carries it.
fn san(text: &str) -> Result<SanType, Error> {
    let wrong = || Error::San { san: text.into() };
    if let Ok(address) = text.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
        return Ok(SanType::IpAddress(address));
    }
    let name = DnsName::try_from(text).map_err(|_| wrong())?.to_lowercase_owned();
    // `n1.` and `n1` are the same host, but a certificate can hold only the latter.
    let name = name.as_ref().trim_end_matches('.').to_owned();
    Ok(SanType::DnsName(name.try_into().map_err(|_| wrong())?))
}

/// Writes the key first: a certificate in place then always has its key.
fn write_pair(paths: &Paths, cert: &str, key: &str, overwrite: bool) -> Result<(), Error> {
    if !overwrite {
        files::refuse_existing(&paths.key)?;
        files::refuse_existing(&paths.cert)?;
    }
    files::write(&paths.key, key.as_bytes(), SECRET, overwrite)?;
    files::write(&paths.cert, cert.as_bytes(), PUBLIC, overwrite).inspect_err(|_| {
        if !overwrite {
            // Ours since a moment ago, of no use alone, and in the way of the next attempt.
            let _ = std::fs::remove_file(&paths.key);
        }
    })
}
