//! What the store knows of one key.

use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// Inode number: assigned by the state machine, the same on every host, never reused. 1 is the root
/// (as FUSE wants it).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Ino(pub u64);

impl Ino {
    /// The root directory.
    pub const ROOT: Ino = Ino(1);
}

impl std::fmt::Display for Ino {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// The store's counter: +1 for each committed command that changes anything.
pub type Revision = u64;

/// A lease, and so a session: the revision at which it was granted, never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LeaseId(pub u64);

impl std::fmt::Display for LeaseId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:x}", self.0)
    }
}

/// Nanoseconds since 1970, UTC. The leader stamps it into a proposal; nothing else reads a clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Timestamp(pub i64);

/// What a key is; it never changes for one inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Kind {
    /// A file: a key with a value.
    File,
    /// A directory: a prefix.
    Dir,
    /// A symbolic link; its target is the record's value.
    Symlink,
    /// A named pipe: a meeting point for the processes of one host, as on any network file system.
    Fifo,
    /// A socket of the local domain, for the processes of one host.
    Socket,
    /// A character device; its record's value is its [`Device`].
    CharDevice,
    /// A block device; its record's value is its [`Device`].
    BlockDevice,
}

/// The number of a device, as `mknod(1)` takes it. In a record it stands as the text `MAJOR:MINOR`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// Which driver.
    pub major: u32,
    /// Which of its devices.
    pub minor: u32,
}

impl Device {
    /// As it stands in a record.
    pub fn to_value(self) -> Bytes {
        format!("{}:{}", self.major, self.minor).into()
    }

    /// From a record's value.
    pub fn from_value(value: &[u8]) -> Option<Device> {
        let (major, minor) = std::str::from_utf8(value).ok()?.split_once(':')?;
        Some(Device { major: major.parse().ok()?, minor: minor.parse().ok()? })
    }
}

/// One key's metadata and value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The number of this object.
    pub ino: Ino,
    /// File, directory or symlink.
    pub kind: Kind,
    /// Permission bits (07777).
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// When somebody last said that it was read (`utimensat(2)`), or when it was made: reading leaves no trace.
    pub atime: Timestamp,
    /// When the value (of a directory: the set of names in it) last changed.
    pub mtime: Timestamp,
    /// When anything of the record last changed.
    pub ctime: Timestamp,
    /// Revision that made this inode.
    pub create_revision: Revision,
    /// Revision that last changed this record. A change of names inside a directory leaves the
    /// directory's own revision alone.
    pub mod_revision: Revision,
    /// 1 when made, +1 with every change of the value.
    pub version: u64,
    /// The lease whose end deletes this key.
    pub lease: Option<LeaseId>,
    /// Name in the certificate of who last changed the record.
    pub author: Arc<str>,
    /// Extended attributes in order of their names.
    pub xattrs: Vec<(Bytes, Bytes)>,
    /// A file's content or a symlink's target; empty for a directory.
    pub value: Bytes,
}

impl Record {
    /// One that no revision has made yet: nobody's, without permissions, times and value.
    pub fn unmade(ino: Ino, kind: Kind) -> Record {
        Record {
            ino,
            kind,
            mode: 0,
            uid: 0,
            gid: 0,
            atime: Timestamp(0),
            mtime: Timestamp(0),
            ctime: Timestamp(0),
            create_revision: 0,
            mod_revision: 0,
            version: 0,
            lease: None,
            author: "".into(),
            xattrs: Vec::new(),
            value: Bytes::new(),
        }
    }
}
