//! The one table from what went wrong to what a system call answers.

use quorumfs_api::client::ClientError;
use quorumfs_api::key::KeyError;
use quorumfs_api::outcome::Refusal;

/// A number of `errno(3)`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Errno(pub i32);

/// What file system operations answer.
pub type Result<T> = std::result::Result<T, Errno>;

macro_rules! names {
    ($($name:ident),* $(,)?) => {
        #[allow(missing_docs)]
        impl Errno {
            $(pub const $name: Errno = Errno(libc::$name);)*
            fn name(self) -> Option<&'static str> {
                match self.0 { $(libc::$name => Some(stringify!($name)),)* _ => None }
            }
        }
    };
}
names!(
    EPERM,
    ENOENT,
    EINTR,
    EIO,
    EBADF,
    EAGAIN,
    EDEADLK,
    EACCES,
    EBUSY,
    EEXIST,
    EXDEV,
    ENOTDIR,
    EISDIR,
    EINVAL,
    EFBIG,
    ENOSPC,
    EROFS,
    ERANGE,
    ENAMETOOLONG,
    ENOLCK,
    ENOSYS,
    ENOTEMPTY,
    ENODATA,
    EOPNOTSUPP,
    ETIMEDOUT,
    ESTALE,
    E2BIG,
    EPROTO,
    ENXIO,
);

impl std::fmt::Debug for Errno {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "errno {}", self.0),
        }
    }
}
impl std::fmt::Display for Errno {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Debug::fmt(self, f)
    }
}

impl From<&Refusal> for Errno {
    fn from(refusal: &Refusal) -> Errno {
        match refusal {
            Refusal::NotFound(_) => Errno::ENOENT,
            Refusal::Stale(_) => Errno::ESTALE,
            Refusal::Exists(_) => Errno::EEXIST,
            Refusal::NotDirectory(_) => Errno::ENOTDIR,
            Refusal::IsDirectory(_) => Errno::EISDIR,
            Refusal::NotFile(..) | Refusal::Invalid(_) => Errno::EINVAL,
            Refusal::NotEmpty(_) => Errno::ENOTEMPTY,
            Refusal::NameTooLong(_) => Errno::ENAMETOOLONG,
            Refusal::ValueTooLarge { .. } => Errno::EFBIG,
            Refusal::StoreFull { .. } => Errno::ENOSPC,
            // The session went while the request was under way: the caller may try again.
            Refusal::NoLease(_) | Refusal::NoSession(_) | Refusal::Forgotten(_) => Errno::EAGAIN,
            Refusal::Locked(_) => Errno::EAGAIN,
            Refusal::Deadlock(_) => Errno::EDEADLK,
            Refusal::TooMany(_) => Errno::E2BIG,
            Refusal::NoAttribute => Errno::ENODATA,
            Refusal::Denied(_) => Errno::EACCES,
            Refusal::BadPolicy(_) => Errno::EINVAL,
        }
    }
}

impl From<&ClientError> for Errno {
    fn from(error: &ClientError) -> Errno {
        match error {
            ClientError::Refused(refusal) => refusal.into(),
            ClientError::Denied(_) | ClientError::Certificate { .. } | ClientError::Credentials(_) => {
                Errno::EACCES
            }
            ClientError::SessionLost { .. } | ClientError::NoLease(_) => Errno::EAGAIN,
            ClientError::BadRequest(_) | ClientError::Settings(_) => Errno::EINVAL,
            ClientError::Protocol { .. } => Errno::EPROTO,
            ClientError::Unreachable { .. }
            | ClientError::Lost(_)
            | ClientError::NoLeader { .. }
            | ClientError::NoQuorum { .. }
            | ClientError::Unknown { .. }
            | ClientError::Busy(_)
            | ClientError::Closed => Errno::ETIMEDOUT,
        }
    }
}

impl From<&KeyError> for Errno {
    fn from(error: &KeyError) -> Errno {
        if error.is_length() { Errno::ENAMETOOLONG } else { Errno::EINVAL }
    }
}
