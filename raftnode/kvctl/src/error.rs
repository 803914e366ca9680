//! Errors, and the exit code of each.

use std::process::ExitCode;

use quorumfs_api::client::ClientError;
use quorumfs_api::{KeyError, Refusal};

/// The store did not do it: no such key, compare failed ...
const REFUSED: u8 = 1;
/// The command line, the settings or the input make no sense.
const USAGE: u8 = 2;
/// The cluster cannot be reached, or did not answer in time.
const UNREACHABLE: u8 = 3;
/// A certificate is refused, or the identity may not do that.
const DENIED: u8 = 4;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Of the client.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The store refused, or a key is not there.
    #[error("{0}")]
    Refused(String),
    /// Something on the command line or in the input makes no sense.
    #[error("{0}")]
    Usage(String),
    /// Standard input or output failed.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// A command was run and ended with this code.
    #[error("the command ended with code {0}")]
    Child(u8),
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Error {
        match refusal {
            Refusal::Denied(why) => Error::Client(ClientError::Denied(why)),
            other => Error::Refused(other.to_string()),
        }
    }
}

impl From<KeyError> for Error {
    fn from(error: KeyError) -> Error {
        Error::Usage(error.to_string())
    }
}

impl Error {
    fn code(&self) -> u8 {
        match self {
            Error::Client(ClientError::Settings(_) | ClientError::BadRequest(_)) | Error::Usage(_) => USAGE,
            Error::Client(error) if error.is_denied() => DENIED,
            Error::Client(ClientError::Refused(_) | ClientError::NoLease(_)) => REFUSED,
            Error::Client(_) => UNREACHABLE,
            Error::Refused(_) | Error::Io(_) => REFUSED,
            Error::Child(code) => *code,
        }
    }

    /// Tells the user, and gives the exit code.
    pub fn report(&self) -> ExitCode {
        match self {
            // Who reads our output has enough: `kvctl get --prefix / | head`.
            Error::Io(error) if error.kind() == std::io::ErrorKind::BrokenPipe => return ExitCode::SUCCESS,
            Error::Child(_) => {}
            other => eprintln!("kvctl: {other}"),
        }
        ExitCode::from(self.code())
    }
}
