//! Who a peer is: a role and a name, carried by its certificate.

use std::fmt;

use rustls_pki_types::CertificateDer;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

use crate::error::Error;

/// What every identity's URI begins with. Other URIs in a certificate are ignored, so that
/// certificates of an existing PKI (SPIFFE for example) can carry ours beside theirs.
const SCHEME: &str = "quorumfs://";

/// The longest name, in bytes. X.509 allows a common name no more than this.
pub const MAX_NAME: usize = 64;

/// What a peer may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// A Raft member: may serve, and may speak the peer protocol.
    Node,
    /// A mount or a tool: may only ask.
    Client,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Role::Node => "node",
            Role::Client => "client",
        })
    }
}

/// A role and a name. In a certificate it is the URI `quorumfs://ROLE/NAME`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Identity {
    /// What the holder may do.
    pub role: Role,
    /// Who the holder is, unique within its role.
    pub name: String,
}

impl Identity {
    /// An identity with a checked name: 1 to 64 of `A-Z a-z 0-9 . _ -`.
    pub fn new(role: Role, name: impl Into<String>) -> Result<Identity, Error> {
        let name = name.into();
        let reason = if name.is_empty() {
            "it is empty".to_owned()
        } else if name.len() > MAX_NAME {
            format!("it is longer than {MAX_NAME} characters")
        } else if let Some(bad) = name.chars().find(|c| !is_name_char(*c)) {
            format!("it holds {bad:?}, and only letters, digits and . _ - are allowed")
        } else {
            return Ok(Identity { role, name });
        };
        Err(Error::Name { name, reason })
    }

    /// The URI that carries this identity in a certificate.
    pub fn uri(&self) -> String {
        format!("{SCHEME}{}/{}", self.role, self.name)
    }

    /// The identity that a certificate carries.
    ///
    /// Exactly one, because with two of them it would depend on the reader who the holder is.
    /// This reads and does not verify: ask it only about certificates that TLS has accepted.
    pub fn of(cert: &CertificateDer<'_>) -> Result<Identity, Error> {
        let parsed = parse(cert)?;
        let uris = general_names(&parsed)?.iter().filter_map(|name| match name {
            GeneralName::URI(uri) => uri.strip_prefix(SCHEME).map(|rest| (*uri, rest)),
            _ => None,
        });
        let mut found = None;
        for (uri, rest) in uris {
            if found.replace(Identity::from_path(uri, rest)?).is_some() {
                return Err(Error::NoIdentity(format!("the certificate has several {SCHEME} URIs, not one")));
            }
        }
        found.ok_or_else(|| Error::NoIdentity(format!("the certificate has no {SCHEME} URI")))
    }

    fn from_path(uri: &str, rest: &str) -> Result<Identity, Error> {
        let (role, name) = match rest.split_once('/') {
            Some(("node", name)) => (Role::Node, name),
            Some(("client", name)) => (Role::Client, name),
            _ => return Err(Error::NoIdentity(format!("{uri:?} is neither of a node nor of a client"))),
        };
        Identity::new(role, name).map_err(|error| Error::NoIdentity(format!("in {uri:?}, {error}")))
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.role, self.name)
    }
}

/// The identity of a connection's peer, from the chain that TLS has verified (leaf first).
pub fn peer_identity(chain: &[CertificateDer<'_>]) -> Result<Identity, Error> {
    let leaf = chain.first().ok_or_else(|| Error::NoIdentity("the peer presented no certificate".into()))?;
    Identity::of(leaf)
}

fn is_name_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-')
}

/// Parses one DER certificate, and refuses anything behind it.
pub(crate) fn parse<'a>(cert: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, Error> {
    match X509Certificate::from_der(cert.as_ref()) {
        Ok(([], parsed)) => Ok(parsed),
        Ok(_) => Err(Error::Malformed("bytes follow the certificate".into())),
        Err(error) => Err(Error::Malformed(error.to_string())),
    }
}

/// The subject alternative names, empty where there are none.
pub(crate) fn general_names<'c>(cert: &'c X509Certificate<'_>) -> Result<&'c [GeneralName<'c>], Error> {
    match cert.subject_alternative_name() {
        Ok(Some(extension)) => Ok(&extension.value.general_names),
        Ok(None) => Ok(&[]),
        Err(error) => Err(Error::Malformed(format!("subject alternative names: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use rcgen::{CertificateParams, KeyPair, SanType};

    fn certificate(uris: &[&str]) -> CertificateDer<'static> {
        let mut params = CertificateParams::new(["host".to_owned()]).unwrap();
        for uri in uris {
            params.subject_alt_names.push(SanType::URI((*uri).try_into().unwrap()));
        }
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().clone()
    }

    #[test]
    fn round_trips_through_a_certificate() {
        for (role, name) in [(Role::Node, "n1"), (Role::Client, "web-7.example_X"), (Role::Node, "..")] {
            let identity = Identity::new(role, name).unwrap();
            let cert = certificate(&["spiffe://elsewhere/x", &identity.uri()]);
            assert_eq!(Identity::of(&cert).unwrap(), identity);
            assert_eq!(peer_identity(&[cert]).unwrap(), identity);
        }
    }

    #[test]
    fn refuses_what_is_not_exactly_one_identity() {
        for (uris, why) in [
            (&[][..], "no quorumfs:// URI"),
            (&["spiffe://node/a"], "no quorumfs:// URI"),
            (&["quorumfs://node/a", "quorumfs://node/b"], "several"),
            (&["quorumfs://node/a", "quorumfs://node/a"], "several"),
            (&["quorumfs://admin/a"], "neither of a node nor of a client"),
            (&["quorumfs://node"], "neither"),
            (&["quorumfs://node/"], "empty"),
            (&["quorumfs://node/a/b"], "'/'"),
            (&["quorumfs://client/a%20b"], "'%'"),
        ] {
            let error = Identity::of(&certificate(uris)).unwrap_err().to_string();
            assert!(error.contains(why), "{uris:?}: {error}");
        }
        assert!(peer_identity(&[]).unwrap_err().to_string().contains("presented no certificate"));
    }

    #[test]
    fn checks_names() {
        assert!(Identity::new(Role::Node, "a".repeat(64)).is_ok());
        for bad in ["", "a b", "é", "a\0", "a/b", &"a".repeat(65)] {
            assert!(matches!(Identity::new(Role::Node, bad), Err(Error::Name { .. })), "{bad:?}");
        }
    }

    #[test]
    fn damaged_certificates_are_errors() {
        let cert = certificate(&["quorumfs://node/a"]);
        for end in 0..cert.len() {
            assert!(Identity::of(&CertificateDer::from(&cert[..end])).is_err());
        }
        let mut longer = cert.to_vec();
        longer.push(0);
        assert!(matches!(Identity::of(&longer.into()), Err(Error::Malformed(_))));
        for at in 0..cert.len() {
            let mut flipped = cert.to_vec();
            flipped[at] ^= 0x55;
            let _ = Identity::of(&flipped.into());
        }
    }
}
