//! Reading PEM files with a limit, and writing files whole or not at all.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;

use rustls_pki_types::pem::{self, PemObject};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::error::Error;

/// The most that is read of a file, in bytes. A chain of certificates takes a few KiB: anything
/// near this is a wrong path, and reading it whole could take all memory.
pub(crate) const MAX_BYTES: u64 = 1 << 20;

/// The mode of what everybody may read.
pub(crate) const PUBLIC: u32 = 0o644;
/// The mode of a private key.
pub(crate) const SECRET: u32 = 0o600;

/// Reads a file of at most [`MAX_BYTES`].
pub(crate) fn read(path: &Path) -> Result<Vec<u8>, Error> {
    let failed = |cause| Error::Read { path: path.into(), cause };
    let too_large = || Error::TooLarge { path: path.into(), limit: MAX_BYTES };
    // Asked before opening: to open a FIFO would wait for its writer.
    let meta = fs::metadata(path).map_err(failed)?;
    if !meta.is_file() {
        return Err(Error::NotAFile { path: path.into() });
    }
    if meta.len() > MAX_BYTES {
        return Err(too_large());
    }
    let mut contents = Vec::new();
    // The file may have grown since, or (as in /proc) not tell its size.
    File::open(path).map_err(failed)?.take(MAX_BYTES + 1).read_to_end(&mut contents).map_err(failed)?;
    if contents.len() as u64 > MAX_BYTES { Err(too_large()) } else { Ok(contents) }
}

/// All the certificates of a PEM file: at least one.
pub(crate) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let wrong = |error| Error::Pem { path: path.into(), what: "certificate", reason: pem_reason(error) };
    let certs: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&read(path)?).collect();
    match certs {
        Ok(certs) if certs.is_empty() => Err(wrong(pem::Error::NoItemsFound)),
        other => other.map_err(wrong),
    }
}

/// The private key of a PEM file.
pub(crate) fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, Error> {
    let key = PrivateKeyDer::from_pem_slice(&read(path)?).map_err(|error| Error::Pem {
        path: path.into(),
        what: "private key",
        reason: pem_reason(error),
    })?;
    if let Ok(meta) = fs::metadata(path)
        && meta.permissions().mode() & 0o007 != 0
    {
        tracing::warn!(key = %path.display(), "every user of this machine can reach this private key: chmod o= it");
    }
    Ok(key)
}

fn pem_reason(error: pem::Error) -> String {
    // The library prints lines of the file as lists of byte values, which helps nobody.
    match error {
        pem::Error::MissingSectionEnd { .. } => "it is cut short (an -----END line is missing)".into(),
        pem::Error::IllegalSectionStart { .. } => "a -----BEGIN line is damaged".into(),
        pem::Error::Base64Decode(_) => "its base64 is damaged".into(),
        pem::Error::NoItemsFound => "there is none in the file (encrypted ones are not supported)".into(),
        other => other.to_string(),
    }
}

/// Writes a file under a temporary name, and gives it its own name when it is on disk: a reader
/// sees the old file or the new one. Without `overwrite`, an existing file stays, even if it
/// appeared a moment ago.
pub(crate) fn write(path: &Path, contents: &[u8], mode: u32, overwrite: bool) -> Result<(), Error> {
    let failed = |cause| Error::Write { path: path.into(), cause };
    let dir = parent(path);
    let permissions = Permissions::from_mode(mode);
    let mut file = tempfile::Builder::new()
        .prefix(".certs-")
        .permissions(Permissions::from_mode(SECRET))
        .tempfile_in(dir)
        .map_err(failed)?;
    file.write_all(contents).map_err(failed)?;
    file.as_file().set_permissions(permissions).map_err(failed)?;
    file.as_file().sync_all().map_err(failed)?;
    if overwrite {
        file.persist(path).map_err(|error| failed(error.error))?;
    } else {
        file.persist_noclobber(path).map_err(|error| match error.error.kind() {
            io::ErrorKind::AlreadyExists => Error::Exists { path: path.into() },
            _ => failed(error.error),
        })?;
    }
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed)
}

/// Refuses a path where something is, symlinks that lead nowhere included.
pub(crate) fn refuse_existing(path: &Path) -> Result<(), Error> {
    match fs::symlink_metadata(path) {
        Ok(_) => Err(Error::Exists { path: path.into() }),
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(cause) => Err(Error::Read { path: path.into(), cause }),
    }
}

/// Makes a directory that only its owner can enter, or takes one in which no one else can write.
///
/// An existing directory keeps its mode, because other services may live in it; an empty one is
/// taken for freshly made, and closed.
pub(crate) fn private_dir(dir: &Path) -> Result<(), Error> {
    let failed = |cause| Error::Write { path: dir.into(), cause };
    // `recursive` does not mind an existing directory, and leaves its mode alone.
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed)?;
    if fs::read_dir(dir).map_err(failed)?.next().is_none() {
        return fs::set_permissions(dir, Permissions::from_mode(0o700)).map_err(failed);
    }
    match fs::metadata(dir).map_err(failed)?.permissions().mode() & 0o022 {
        0 => Ok(()),
        _ => Err(Error::Exposed { dir: dir.into() }),
    }
}

/// The directory of a file, `.` for a bare name.
pub(crate) fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    }
}
