//! TLS errors as sentences that an operator can act on.
//!
//! TLS tells the side that refuses why, and the other side only a code. Both are put into words
//! here, so that whichever log is open names the certificate to look at.

use rustls::{AlertDescription, CertificateError, Error};
use rustls_pki_types::UnixTime;
use time::OffsetDateTime;

use crate::inspect::date;

/// Says what a TLS error means here, and what to do about it.
pub fn explain(error: &Error) -> String {
    match error {
        Error::InvalidCertificate(cause) => certificate(cause),
        Error::AlertReceived(alert) => explain_alert(*alert),
        Error::NoCertificatesPresented => {
            "the peer presented no certificate: every quorumfs connection needs one on both sides; make it with \
             `certs issue`"
                .into()
        }
        Error::NoApplicationProtocol => no_protocol(),
        Error::PeerIncompatible(why) => {
            format!("the peer cannot speak TLS as it is required here, which is 1.3 only ({why:?})")
        }
        Error::InvalidMessage(_) => {
            "what the peer sent is not TLS: check that the address and port are those of a quorumfs node".into()
        }
        other => other.to_string(),
    }
}

/// Says what an alert from the peer means here. Takes the code of the alert too: QUIC carries it
/// as transport error `0x100 + code`.
pub fn explain_alert(alert: impl Into<AlertDescription>) -> String {
    use AlertDescription as A;
    match alert.into() {
        A::UnknownCA => {
            "the peer refused this side's certificate because it was signed by another CA than the peer \
                         trusts: give both sides the same ca.crt"
                .into()
        }
        A::CertificateExpired => {
            "the peer refused this side's certificate as expired or not yet valid: check its \
                                  dates with `certs show`, and the clocks of both machines"
                .into()
        }
        A::CertificateRequired => "the peer requires a certificate and this side presented none".into(),
        A::BadCertificate => {
            "the peer refused this side's certificate because it is not good for the name that the \
                              peer dialled (or is damaged): issue it again with that name as --san"
                .into()
        }
        A::UnsupportedCertificate => {
            "the peer refused this side's certificate because it was not issued for this role".into()
        }
        A::CertificateUnknown => {
            "the peer refused this side's certificate because of its identity (a client's where \
                                  a node's is needed, or none at all): the peer's log says which"
                .into()
        }
        A::CertificateRevoked => "the peer refused this side's certificate because it was revoked".into(),
        A::DecryptError => {
            "the peer could not verify a signature of this side: its certificate was signed by another \
                            CA of the same name, or is damaged"
                .into()
        }
        A::AccessDenied => "the peer knows this side's certificate and denies access to it".into(),
        A::NoApplicationProtocol => no_protocol(),
        A::ProtocolVersion | A::HandshakeFailure => {
            "the peer has no TLS version or cipher in common with this side, which speaks 1.3 only".into()
        }
        other => format!("the peer ended the connection with the TLS alert {other:?}"),
    }
}

fn no_protocol() -> String {
    "the two sides have no protocol in common: they run incompatible versions, or a client dialled a peer port".into()
}

fn certificate(cause: &CertificateError) -> String {
    use CertificateError as C;
    match cause {
        C::UnknownIssuer => "the peer's certificate was signed by another CA than this side trusts: give both sides \
                             the same ca.crt, or issue the certificate again"
            .into(),
        C::BadSignature => "a signature of the peer does not verify: its certificate was signed by another CA of the \
                            same name, or is damaged"
            .into(),
        C::ExpiredContext { not_after, .. } => {
            format!("the peer's certificate expired on {}: issue it again, or check the clock", moment(*not_after))
        }
        C::Expired => "the peer's certificate has expired: issue it again, or check the clock".into(),
        C::NotValidYetContext { not_before, .. } => {
            format!("the peer's certificate is not valid before {}: check the clock", moment(*not_before))
        }
        C::NotValidYet => "the peer's certificate is not yet valid: check the clock".into(),
        C::NotValidForNameContext { expected, presented } => format!(
            "the server's certificate is not good for {}, which was dialled, but only for {}: dial it by one of these, \
             or issue the certificate again with --san {0}",
            expected.to_str(),
            list(presented),
        ),
        C::NotValidForName => {
            "the server's certificate is not good for the name that was dialled: issue it again with that as --san".into()
        }
        C::InvalidPurpose | C::InvalidPurposeContext { .. } => {
            "the peer's certificate was not issued for this role (clients cannot serve)".into()
        }
        C::BadEncoding => "the peer's certificate is damaged: issue it again".into(),
        C::Revoked => "the peer's certificate was revoked".into(),
        C::Other(reason) => reason.0.to_string(),
        other => format!("the peer's certificate cannot be used: {other}"),
    }
}

/// The names that can be dialled, of all that a certificate holds.
fn list(presented: &[String]) -> String {
    // webpki writes `DnsName("n1")`, `IpAddress(10.0.0.1)` and `UniformResourceIdentifier("...")`.
    let dialled = presented.iter().filter_map(|name| match name.split_once('(')? {
        ("DnsName" | "IpAddress", inner) => Some(inner.trim_end_matches(')').trim_matches('"')),
        _ => None,
    });
    let names: Vec<&str> = dialled.collect();
    if names.is_empty() { "nothing that can be dialled".into() } else { names.join(", ") }
}

fn moment(at: UnixTime) -> String {
    let known =
        i64::try_from(at.as_secs()).ok().and_then(|secs| OffsetDateTime::from_unix_timestamp(secs).ok());
    known.map_or_else(|| format!("second {} of the epoch", at.as_secs()), date)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_the_code_of_an_alert_as_quic_carries_it() {
        assert_eq!(explain_alert(48u8), explain_alert(AlertDescription::UnknownCA));
        assert!(explain_alert(48u8).contains("another CA"));
        assert!(explain_alert(200u8).contains("alert"));
    }

    #[test]
    fn lists_only_what_can_be_dialled() {
        let presented =
            ["UniformResourceIdentifier(\"quorumfs://node/n1\")", "DnsName(\"n1\")", "IpAddress(10.0.0.1)"];
        assert_eq!(list(&presented.map(String::from)), "n1, 10.0.0.1");
        assert_eq!(list(&[]), "nothing that can be dialled");
    }
}
