//! What the store knows of one key.

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
    pub author: String,
    /// Extended attributes in order of their names.
    pub xattrs: Vec<(Bytes, Bytes)>,
    /// A file's content or a symlink's target; empty for a directory.
    pub value: Bytes,
}
