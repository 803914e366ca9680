//! What can be asked of the replicated state machine. Enums only ever grow at their end: a committed
//! entry is read by every later version.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::key::{Key, Name};
use crate::record::{Device, Ino, Kind, LeaseId, Revision, Timestamp};

/// A name in a directory, which need not exist yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum At {
    /// By path from the root of the store.
    Key(Key),
    /// By the number of its directory, which keeps its meaning when the directory is renamed.
    Entry(Ino, Name),
}

/// An object, by its name or by its number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Target {
    /// Whatever has this name.
    At(At),
    /// This inode, wherever it is now. Refused with `Stale` when it is gone.
    Ino(Ino),
}

impl From<Key> for Target {
    fn from(key: Key) -> Target {
        Target::At(At::Key(key))
    }
}
impl From<Key> for At {
    fn from(key: Key) -> At {
        At::Key(key)
    }
}
impl From<Ino> for Target {
    fn from(ino: Ino) -> Target {
        Target::Ino(ino)
    }
}

/// Mode, owner and group of what a command makes. Ignored where the key exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// Permission bits (07777). Parents that are made along with it get 0755 whatever this says.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

impl Owner {
    /// What a client that is no mount gives to files: root's, 0644.
    pub const FILE: Owner = Owner { mode: 0o644, uid: 0, gid: 0 };
    /// What a client that is no mount gives to directories: root's, 0755.
    pub const DIR: Owner = Owner { mode: 0o755, uid: 0, gid: 0 };
}

/// Whether a write may make the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CreateMode {
    /// Make it or replace its value.
    Allow,
    /// It has to be there.
    Never,
    /// It must not be there (`O_EXCL`).
    Exclusive,
}

/// What a write does to the key's lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LeaseChange {
    /// Leave it.
    Keep,
    /// Bind the key to this lease, which must exist.
    Bind(LeaseId),
    /// Make the key permanent.
    Clear,
}

/// The flags of `renameat2(2)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RenameMode {
    /// Replace what has the new name, as `rename(2)` does.
    Replace,
    /// Refuse if the new name is taken.
    NoReplace,
    /// Swap the two, atomically.
    Exchange,
}

/// Attributes to change; `None` leaves one alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttrChange {
    /// Permission bits (07777).
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Access time.
    pub atime: Option<TimeChange>,
    /// Modification time.
    pub mtime: Option<TimeChange>,
}

/// What `mknod(2)` makes beside plain files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Special {
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
    /// A character device.
    CharDevice(Device),
    /// A block device.
    BlockDevice(Device),
}

impl Special {
    /// The kind that it gets.
    pub fn kind(self) -> Kind {
        match self {
            Special::Fifo => Kind::Fifo,
            Special::Socket => Kind::Socket,
            Special::CharDevice(_) => Kind::CharDevice,
            Special::BlockDevice(_) => Kind::BlockDevice,
        }
    }

    /// The value of its record.
    pub fn value(self) -> Bytes {
        match self {
            Special::Fifo | Special::Socket => Bytes::new(),
            Special::CharDevice(device) | Special::BlockDevice(device) => device.to_value(),
        }
    }
}

/// A time that a caller sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TimeChange {
    /// The time that the leader stamps into the command.
    Now,
    /// This time.
    At(Timestamp),
}

/// Whether `setxattr(2)` may create or replace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum XattrMode {
    /// Either.
    Set,
    /// `XATTR_CREATE`: refuse with `Exists`.
    Create,
    /// `XATTR_REPLACE`: refuse with `NoAttribute`.
    Replace,
}

/// A byte range, both ends included; `end == u64::MAX` is "to the end of the file, however long".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Range {
    /// First byte.
    pub start: u64,
    /// Last byte.
    pub end: u64,
}

impl Range {
    /// The whole file, as flock takes it.
    pub const WHOLE: Range = Range { start: 0, end: u64::MAX };
    /// Whether the two share a byte.
    pub fn overlaps(&self, other: &Range) -> bool {
        self.start <= other.end && other.start <= self.end
    }
}

/// Shared or exclusive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LockKind {
    /// Many may hold it.
    Shared,
    /// One may hold it.
    Exclusive,
}

/// Who holds a lock: a session (it ends with it), and within it what the kernel calls the lock owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LockOwner {
    /// The session.
    pub session: LeaseId,
    /// The kernel's owner of the lock on that host.
    pub owner: u64,
}

/// One lock that is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldLock {
    /// Who holds it.
    pub owner: LockOwner,
    /// Its bytes.
    pub range: Range,
    /// Shared or exclusive.
    pub kind: LockKind,
    /// Process on the owner's host, for `F_GETLK`.
    pub pid: u32,
    /// Revision at which it was granted: a fencing number that only grows from holder to holder.
    pub revision: Revision,
}

/// One comparison of a transaction. A key that does not exist compares as revision 0, version 0.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Compare {
    /// The key exists, or it does not.
    Exists(Key, bool),
    /// The key is a file with this value, or (false) it is not.
    Value(Key, Bytes, bool),
    /// The key's version.
    Version(Key, Relation, u64),
    /// The revision that made the key.
    CreateRevision(Key, Relation, Revision),
    /// The revision that last changed the key.
    ModRevision(Key, Relation, Revision),
    /// The kind of the key.
    Kind(Key, Kind),
}

/// How two numbers compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Relation {
    /// =
    Equal,
    /// !=
    NotEqual,
    /// <
    Less,
    /// >
    Greater,
}

/// A change of the store. `parents` makes missing directories on the way, like `mkdir -p`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// Replaces the whole value of a file, or makes it. The inode stays.
    Put {
        /// The file.
        target: Target,
        /// Its new content.
        value: Bytes,
        /// Whether it may be made.
        create: CreateMode,
        /// Make missing directories.
        parents: bool,
        /// What it gets if it is made.
        owner: Owner,
        /// What happens to its lease.
        lease: LeaseChange,
    },
    /// Adds to the end of a file, atomically.
    Append {
        /// The file.
        target: Target,
        /// What is added.
        data: Bytes,
        /// Whether it may be made.
        create: CreateMode,
        /// Make missing directories.
        parents: bool,
        /// What it gets if it is made.
        owner: Owner,
    },
    /// Cuts a file, or fills it with NULs, to `size` bytes.
    Truncate {
        /// The file.
        target: Target,
        /// Its new length in bytes.
        size: u64,
    },
    /// Takes away a file or symlink; with `recursive`, a directory and all in it (at most
    /// [`DELETE_TREE_MAX`](crate::limits::DELETE_TREE_MAX) keys; the root itself stays and is emptied).
    Delete {
        /// What goes.
        at: At,
        /// Directories too.
        recursive: bool,
    },
    /// Makes a directory. With `parents`, one that is there already is no error.
    Mkdir {
        /// Its name.
        at: At,
        /// Make missing directories.
        parents: bool,
        /// Its attributes.
        owner: Owner,
    },
    /// Takes away an empty directory.
    Rmdir {
        /// Its name.
        at: At,
    },
    /// Renames a file, symlink or whole directory: one event, one revision.
    Rename {
        /// The old name.
        from: At,
        /// The new name.
        to: At,
        /// What happens to what has the new name.
        mode: RenameMode,
    },
    /// Makes a symbolic link.
    Symlink {
        /// Its name.
        at: At,
        /// What it points to, 1 to [`SYMLINK_MAX`](crate::limits::SYMLINK_MAX) bytes.
        to: Bytes,
        /// Make missing directories.
        parents: bool,
        /// Its attributes (the mode is 0777 whatever this says).
        owner: Owner,
    },
    /// Changes attributes.
    SetAttr {
        /// Whose.
        target: Target,
        /// Which.
        set: AttrChange,
    },
    /// Sets (`Some`) or removes (`None`) an extended attribute.
    SetXattr {
        /// Whose.
        target: Target,
        /// Name, for example `user.note`. `user.kv.*` is refused, because those are computed, but for
        /// [`style::ATTRIBUTE`](crate::style::ATTRIBUTE) of a directory.
        name: Bytes,
        /// Value.
        value: Option<Bytes>,
        /// Whether it may or must exist.
        mode: XattrMode,
    },
    /// Takes a lock, if nobody holds a conflicting one. Ranges of the same owner are replaced, split and
    /// merged as POSIX says. The command itself never waits: with `wait`, the store notes who waits for
    /// whom, answers [`Done::Waiting`](crate::outcome::Done::Waiting), and refuses with `Deadlock` where
    /// the wait would never end. The caller asks again when a lock on the file was given up.
    Lock {
        /// Of which file.
        ino: Ino,
        /// For whom.
        owner: LockOwner,
        /// Which bytes.
        range: Range,
        /// Shared or exclusive.
        kind: LockKind,
        /// Process of the owner, for `F_GETLK`.
        pid: u32,
        /// The owner waits until it has the lock. Not in a transaction.
        wait: bool,
    },
    /// Gives up locks.
    Unlock {
        /// Of which file.
        ino: Ino,
        /// Whose.
        owner: LockOwner,
        /// Which bytes.
        range: Range,
    },
    /// Grants a lease, which is a session too.
    LeaseGrant {
        /// Time to live in milliseconds.
        ttl_ms: u64,
    },
    /// Ends a lease now: its keys, locks and remembered results go.
    LeaseRevoke {
        /// Which.
        lease: LeaseId,
    },
    /// Proposed by the leader for leases whose time is up. Unknown ones are passed over.
    LeaseExpire {
        /// Which.
        leases: Vec<LeaseId>,
    },
    /// All of `then` if every comparison holds, else all of `otherwise`; all or nothing. A refusal of
    /// one command refuses the whole. Leases and transactions cannot be inside.
    Txn {
        /// What has to hold.
        compare: Vec<Compare>,
        /// What happens then.
        then: Vec<Command>,
        /// What happens otherwise.
        otherwise: Vec<Command>,
    },
    /// Makes a fifo, a socket or a device node.
    Mknod {
        /// Its name.
        at: At,
        /// What is made.
        special: Special,
        /// Make missing directories.
        parents: bool,
        /// Its attributes.
        owner: Owner,
    },
    /// The owner no longer waits for locks on a file.
    CancelWait {
        /// Of which file.
        ino: Ino,
        /// Who.
        owner: LockOwner,
    },
}

/// A command as it stands in the Raft log: with everything that applying it needs from outside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proposal {
    /// The leader's clock.
    pub time: Timestamp,
    /// Name in the certificate of who asked.
    pub author: String,
    /// Whether that is a node's certificate: nothing is denied to nodes.
    pub node: bool,
    /// The session that asked, with the number of the request in it (from 1), and the number below
    /// which the client has seen all results. `None` for what is harmless to repeat.
    pub session: Option<RequestId>,
    /// The leader's limit for a value, in bytes.
    pub value_max: u64,
    /// The leader's limit for the store, in bytes.
    pub store_max: u64,
    /// What to do.
    pub command: Command,
}

/// Which request of which session, so that a retry is applied exactly once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestId {
    /// The session.
    pub session: LeaseId,
    /// 1, 2, 3 ... A retry has the number of the first try.
    pub number: u64,
    /// The client has the results of all requests with smaller numbers: they may be forgotten.
    pub done_below: u64,
}
