//! What can go wrong with certificates, each error with the file it is about and what to do.

use std::io;
use std::path::PathBuf;

use time::OffsetDateTime;

use crate::identity::Identity;
use crate::inspect::date;

/// An error about certificates or keys.
///
/// The text is complete by itself (causes are part of it, and `source()` is empty), because it is
/// read in logs and terminals by someone who has to repair something.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read.
    #[error("cannot read {}: {cause}{}", .path.display(), read_hint(.cause))]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },

    /// A file or directory could not be written.
    #[error("cannot write {}: {cause}", .path.display())]
    Write {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },

    /// A file is far larger than any certificate or key, and was not read.
    #[error("{} is larger than {limit} bytes, so it is no certificate or key: check the path", .path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The most that is read, in bytes.
        limit: u64,
    },

    /// A path names something else than a regular file.
    #[error("{} is not a regular file: give the path of a PEM file", .path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
    },

    /// A file is not the PEM that it should be.
    #[error("{} holds no usable {what} in PEM: {reason}", .path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// What was looked for.
        what: &'static str,
        /// What is wrong with it.
        reason: String,
    },

    /// An error about one certificate, with the file that holds it.
    #[error("{}: {cause}", .path.display())]
    InFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        cause: Box<Error>,
    },

    /// Bytes that are not an X.509 certificate.
    #[error("not a valid X.509 certificate: {0}")]
    Malformed(String),

    /// A certificate does not say who its holder is.
    #[error("no quorumfs identity: {0}; issue the certificate with `certs issue`")]
    NoIdentity(String),

    /// A name cannot be used for an identity.
    #[error("name {name:?} cannot be used: {reason}")]
    Name {
        /// The name as given.
        name: String,
        /// Which rule it breaks.
        reason: String,
    },

    /// A host name or address cannot be put into a certificate.
    #[error("{san:?} is not a host name or IP address (without port, scheme or wildcard)")]
    San {
        /// What was given.
        san: String,
    },

    /// The private key belongs to another certificate.
    #[error(
        "the key {} does not belong to the certificate {}: put the pair in place that was issued together",
        .key.display(), .cert.display()
    )]
    KeyMismatch {
        /// The certificate file.
        cert: PathBuf,
        /// The key file.
        key: PathBuf,
    },

    /// A private key cannot be used.
    #[error("the private key {} cannot be used: {reason}; it must be unencrypted PKCS #8", .path.display())]
    Key {
        /// The key file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },

    /// A CA file holds a certificate that is not a CA's.
    #[error("{} is not the certificate of a CA: give the ca.crt that `certs init` made", .path.display())]
    NotAuthority {
        /// The file.
        path: PathBuf,
    },

    /// A certificate is past its validity.
    #[error("the certificate {} expired on {}: issue it again, or check this machine's clock", .path.display(), date(*.not_after))]
    Expired {
        /// The file.
        path: PathBuf,
        /// When it ended.
        not_after: OffsetDateTime,
    },

    /// A certificate is before its validity.
    #[error("the certificate {} is not valid before {}: check this machine's clock", .path.display(), date(*.not_before))]
    NotYetValid {
        /// The file.
        path: PathBuf,
        /// When it begins.
        not_before: OffsetDateTime,
    },

    /// A certificate does not chain to the CA beside it.
    #[error("the certificate {} is not good under the CA {}: {why}", .cert.display(), .ca.display())]
    Untrusted {
        /// The certificate file.
        cert: PathBuf,
        /// The CA file.
        ca: PathBuf,
        /// Why the chain does not hold.
        why: String,
    },

    /// Something is in place already, and overwriting was not asked for.
    #[error("{} exists already and is left as it is: use --force to replace it", .path.display())]
    Exists {
        /// The file that is in the way.
        path: PathBuf,
    },

    /// A directory holds no CA.
    #[error("{} holds no CA (ca.crt and ca.key): make one with `certs init`, or name its directory with --dir", .dir.display())]
    NoAuthority {
        /// The directory.
        dir: PathBuf,
    },

    /// A directory in which others could replace the CA.
    #[error("others may write to {}, and so replace the CA: use a directory of your own, or `chmod go-w` it", .dir.display())]
    Exposed {
        /// The directory.
        dir: PathBuf,
    },

    /// A period of validity that no certificate can have.
    #[error("validity from {} to {} cannot be used: {reason}", date(*.not_before), date(*.not_after))]
    Validity {
        /// The beginning.
        not_before: OffsetDateTime,
        /// The end.
        not_after: OffsetDateTime,
        /// Which rule it breaks.
        reason: &'static str,
    },

    /// New files are somebody else's, which a running process cannot become.
    #[error(
        "the new certificate is of {new}, but this process runs as {old}: restart it to change who it is"
    )]
    IdentityChanged {
        /// Who the process is.
        old: Identity,
        /// Who the new files say.
        new: Identity,
    },

    /// The thread that watches the files could not be started.
    #[error("cannot start the thread that watches certificates: {0}")]
    Watch(io::Error),

    /// A key or certificate could not be made.
    #[error("cannot make the certificate: {0}")]
    Generate(String),

    /// The TLS library refused a configuration.
    #[error("TLS: {0}")]
    Tls(String),
}

impl Error {
    /// Says in which file the error is.
    pub(crate) fn within(self, path: impl Into<PathBuf>) -> Error {
        Error::InFile { path: path.into(), cause: Box::new(self) }
    }
}

impl From<rcgen::Error> for Error {
    fn from(cause: rcgen::Error) -> Error {
        Error::Generate(cause.to_string())
    }
}

impl From<rustls::Error> for Error {
    fn from(cause: rustls::Error) -> Error {
        Error::Tls(crate::explain(&cause))
    }
}

fn read_hint(cause: &io::Error) -> &'static str {
    match cause.kind() {
        io::ErrorKind::NotFound => " (check the path, or make it with `certs init` and `certs issue`)",
        io::ErrorKind::PermissionDenied => " (a private key is for its owner alone: run as that user)",
        _ => "",
    }
}
