//! What a certificate says, for people and for checks.

use std::net::IpAddr;
use std::path::Path;

use rustls_pki_types::CertificateDer;
use time::{OffsetDateTime, UtcOffset};
use x509_parser::extensions::GeneralName;

use crate::error::Error;
use crate::files;
use crate::identity::{Identity, general_names, parse};

/// The parts of one certificate that matter to an operator.
#[derive(Clone, Debug)]
pub struct Summary {
    /// Who it is of, where it carries exactly one valid identity (a CA carries none).
    pub identity: Option<Identity>,
    /// The host names and IP addresses that it is good for.
    pub names: Vec<String>,
    /// Whether it may sign other certificates.
    pub is_authority: bool,
    /// Its subject, for example `CN=n1`.
    pub subject: String,
    /// Who signed it.
    pub issuer: String,
    /// Its serial number, in hexadecimal.
    pub serial: String,
    /// The beginning of its validity.
    pub not_before: OffsetDateTime,
    /// The end of its validity.
    pub not_after: OffsetDateTime,
}

impl Summary {
    /// Reads one certificate, without verifying it.
    pub fn of(cert: &CertificateDer<'_>) -> Result<Summary, Error> {
        let parsed = parse(cert)?;
        let names = general_names(&parsed)?.iter().filter_map(host_name).collect();
        Ok(Summary {
            identity: Identity::of(cert).ok(),
            names,
            is_authority: parsed.is_ca(),
            subject: parsed.subject().to_string(),
            issuer: parsed.issuer().to_string(),
            serial: parsed.raw_serial_as_string(),
            not_before: parsed.validity().not_before.to_datetime(),
            not_after: parsed.validity().not_after.to_datetime(),
        })
    }

    /// Reads all the certificates of a PEM file.
    pub fn read(path: &Path) -> Result<Vec<Summary>, Error> {
        let certs = files::certificates(path)?;
        certs.iter().map(|cert| Summary::of(cert).map_err(|error| error.within(path))).collect()
    }

    /// Refuses a certificate (which is in `path`) that is not valid at this moment.
    pub(crate) fn check_now(&self, path: &Path) -> Result<(), Error> {
        let now = OffsetDateTime::now_utc();
        if now > self.not_after {
            Err(Error::Expired { path: path.into(), not_after: self.not_after })
        } else if now < self.not_before {
            Err(Error::NotYetValid { path: path.into(), not_before: self.not_before })
        } else {
            Ok(())
        }
    }
}

fn host_name(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(dns) => Some((*dns).to_owned()),
        GeneralName::IPAddress(bytes) => {
            let address = <[u8; 4]>::try_from(*bytes)
                .map(IpAddr::from)
                .or_else(|_| <[u8; 16]>::try_from(*bytes).map(IpAddr::from));
            address.ok().map(|address| address.to_string())
        }
        _ => None,
    }
}

/// A moment as people read it, always in UTC: `2026-11-27 09:30:00 UTC`.
pub fn date(moment: OffsetDateTime) -> String {
    let utc = moment.to_offset(UtcOffset::UTC);
    format!(
        "{:04}-{:02}-{:02} {:02}:{:02}:{:02} UTC",
        utc.year(),
        u8::from(utc.month()),
        utc.day(),
        utc.hour(),
        utc.minute(),
        utc.second()
    )
}
