//! Errors of opening the data directory, and how errors of the parts become errors of I/O, which is
//! what openraft understands.

use std::io;
use std::path::PathBuf;

/// Why a data directory could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process uses it.
    #[error(
        "the data directory {dir} is in use by process {holder}: stop it first, or give this node a directory of its own"
    )]
    InUse {
        /// The directory.
        dir: PathBuf,
        /// Its pid, or "unknown".
        holder: String,
    },
    /// It belongs to another node.
    #[error(
        "the data directory {dir} belongs to node {found_id} ({found_name}), not to node {id} ({name}): \
         start with --id {found_id} --name {found_name}, or give this node a directory of its own"
    )]
    Identity {
        /// The directory.
        dir: PathBuf,
        /// Who wants to open it.
        id: u64,
        /// Their name.
        name: String,
        /// Whose it is.
        found_id: u64,
        /// Their name.
        found_name: String,
    },
    /// The identity file cannot be read.
    #[error(
        "{path} cannot be read: {reason}; restore it from a backup, or write `id = N` and `name = \"NAME\"` again"
    )]
    IdentityFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A database cannot be opened.
    #[error("the database {path} cannot be opened: {source}")]
    Database {
        /// The file.
        path: PathBuf,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A file operation failed.
    #[error("{what} {path}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// With what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

impl OpenError {
    pub(crate) fn io(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> OpenError {
        let path = path.into();
        move |source| OpenError::Io { what, path, source }
    }

    pub(crate) fn database<E>(path: impl Into<PathBuf>) -> impl FnOnce(E) -> OpenError
    where
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let path = path.into();
        move |source| OpenError::Database { path, source: source.into() }
    }
}

/// Any error as one of I/O.
pub(crate) fn to_io<E: Into<Box<dyn std::error::Error + Send + Sync>>>(error: E) -> io::Error {
    io::Error::other(error)
}
