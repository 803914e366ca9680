//! What came of a command. A refusal is a value like any other: it is computed by the state machine,
//! the same on every node, and remembered for a retry.

use serde::{Deserialize, Serialize};

use crate::command::HeldLock;
use crate::record::{Ino, Kind, LeaseId, Revision};

/// Result of one proposal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// The store's revision after the command: its own, if it changed anything.
    pub revision: Revision,
    /// What was done, or why not.
    pub result: Result<Done, Refusal>,
}

/// What a command did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Done {
    /// Nothing needs to be said; also when there was nothing to change.
    Ok,
    /// An object was written or made.
    Written {
        /// Its number.
        ino: Ino,
        /// Whether this command made it.
        created: bool,
        /// Its version afterwards.
        version: u64,
    },
    /// So many keys were taken away.
    Deleted(u64),
    /// A lease was granted.
    Lease {
        /// Its id.
        id: LeaseId,
        /// Its time to live in milliseconds.
        ttl_ms: u64,
    },
    /// A lock was granted, with its fencing number.
    Locked(Revision),
    /// A transaction ran.
    Txn {
        /// Whether the comparisons held.
        succeeded: bool,
        /// The results of the branch that ran.
        results: Vec<Done>,
    },
    /// The lock is held by somebody else, this one first of all; the store has noted who waits for it.
    Waiting(HeldLock),
}

/// Why the state machine did nothing. The text is for people; `fsd` maps each to an errno.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// No such key, or no such directory on the way.
    #[error("no such key: {0}")]
    NotFound(String),
    /// The inode is gone.
    #[error("inode {0} is gone: it was deleted or replaced")]
    Stale(Ino),
    /// The name is taken.
    #[error("{0} exists already")]
    Exists(String),
    /// A directory is needed here.
    #[error("{0} is not a directory")]
    NotDirectory(String),
    /// A file is needed here.
    #[error("{0} is a directory")]
    IsDirectory(String),
    /// Only a file has a value.
    #[error("{0} is a {1:?}, not a file")]
    NotFile(String, Kind),
    /// The directory has something in it.
    #[error("the directory {0} is not empty")]
    NotEmpty(String),
    /// A directory cannot move into itself; the root cannot move or go.
    #[error("invalid: {0}")]
    Invalid(String),
    /// A key would be too long.
    #[error("too long: {0}")]
    NameTooLong(String),
    /// The value is over the limit.
    #[error("the value has {size} bytes; {limit} is the most (value-max in the node's configuration)")]
    ValueTooLarge {
        /// Its size in bytes.
        size: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// The store is full; deletes work.
    #[error("the store is full: {used} of {limit} bytes; delete something, or raise store-max")]
    StoreFull {
        /// In use, in bytes.
        used: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// No such lease.
    #[error("lease {0} does not exist: it ended, or it never was")]
    NoLease(LeaseId),
    /// The session ended, so whether the request was applied before cannot be known.
    #[error("session {0} has ended; what it had under way may or may not have been done")]
    NoSession(LeaseId),
    /// The result of the request was forgotten: the client had said that it has it.
    #[error("request {0} was answered before, and its answer is forgotten")]
    Forgotten(u64),
    /// Somebody else holds a conflicting lock.
    #[error("locked by process {} of session {}", .0.pid, .0.owner.session)]
    Locked(HeldLock),
    /// Too many of something.
    #[error("too many: {0}")]
    TooMany(String),
    /// No such extended attribute.
    #[error("no such attribute")]
    NoAttribute,
    /// Whoever holds the lock waits, directly or through others, for one of the asker's own.
    #[error("deadlock: process {} of session {} holds the lock and waits for the asker", .0.pid, .0.owner.session)]
    Deadlock(HeldLock),
    /// The policy does not allow it.
    #[error("denied: {0}")]
    Denied(String),
    /// What was to become the policy is none, or not a good one.
    #[error("the policy is refused: {0}")]
    BadPolicy(String),
}
