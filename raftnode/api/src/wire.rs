//! Messages between a client and a node.
//!
//! A client opens one QUIC connection with ALPN [`ALPN_CLIENT`](crate::transport::ALPN_CLIENT). Every
//! stream on it is opened by the client, and begins with a [`Hello`] that says what it is for:
//!
//! - **calls** (one long-lived stream is enough): the client sends [`Request`]s, the node answers each
//!   with a [`Reply`] of the same id, in any order;
//! - **watch** (one stream each): the node sends [`WatchFrame`]s until either side ends it.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::command::{Command, HeldLock, RequestId};
use crate::event::Event;
use crate::key::{Key, Name};
use crate::outcome::Outcome;
use crate::record::{Ino, LeaseId, Record, Revision};
use crate::rights::Rights;

/// First frame of each stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Hello {
    /// Requests and replies.
    Calls,
    /// A watch.
    Watch(WatchStart),
}

/// What to watch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatchStart {
    /// The subtree: this key and all below it.
    pub prefix: Key,
    /// `Some(r)`: events with revisions greater than `r`, or `Compacted`. `None`: first a copy of the
    /// subtree, then the events after it.
    pub after: Option<Revision>,
    /// With `after`: send a copy instead of `Compacted` when the event log no longer reaches back
    /// (what a mirror wants), whenever something outside was renamed into the subtree, and when the
    /// directory that is watched came or went. Without it, that is an event.
    pub copy_when_behind: bool,
}

/// What a node sends on a watch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum WatchFrame {
    /// A copy of the subtree as of this revision begins. All of it replaces what the watcher had.
    /// `root` is the watched key's own record, `None` if it does not exist now.
    CopyBegin {
        /// The revision.
        revision: Revision,
        /// Record of the watched key.
        root: Option<Record>,
    },
    /// Part of the copy: parents come before their children, siblings in order of their names.
    CopyPart(Vec<Node>),
    /// The copy is whole: it may be shown from here on.
    CopyEnd,
    /// Whole revisions in order; events without a change in the subtree are left out.
    Events(Vec<Event>),
    /// Everything up to this revision has been sent. Sent when idle, and after revisions that hold
    /// nothing for this watcher, so that a reader can wait for a revision.
    Progress(Revision),
    /// `after` is older than what the event log keeps; the watch ends. The oldest revision from which
    /// a watch can resume is given.
    Compacted(Revision),
    /// What the watcher may do from here on: what it may not see is left out. Sent first, and whenever
    /// the policy changes it; then, if it asked for copies, a copy follows.
    Rights(Rights),
}

/// One object of a copy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Its directory.
    pub parent: Ino,
    /// Its name there.
    pub name: Name,
    /// All of it.
    pub record: Record,
}

/// A question.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Chosen by the client; unique among those under way on the stream.
    pub id: u64,
    /// Time in milliseconds after which the client no longer waits.
    pub timeout_ms: u32,
    /// What is asked.
    pub call: Call,
}

/// What can be asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Call {
    /// A change, through the log. Leader only.
    Write {
        /// For exactly-once; `None` only for what may be repeated (granting a lease).
        session: Option<RequestId>,
        /// The change.
        command: Command,
    },
    /// One key, without resolving symlinks.
    Get {
        /// Which.
        key: Key,
        /// Linearizable (through the leader, by ReadIndex) or from what this node has.
        consistency: Consistency,
    },
    /// The keys in a subtree, parents first, in order of their paths' components.
    Range {
        /// Where to look.
        prefix: Prefix,
        /// Leave values out.
        keys_only: bool,
        /// Go on after this key.
        after: Option<Key>,
        /// Most keys wanted; the node may send fewer.
        limit: u32,
        /// As in `Get`.
        consistency: Consistency,
    },
    /// Waits for a quorum and answers the revision that is linearizable now. Leader only.
    Barrier,
    /// About this node and the cluster. Any node.
    Status,
    /// Renews a lease. Leader only.
    KeepAlive(LeaseId),
    /// One lease, with its keys; or all of them without.
    Leases(Option<LeaseId>),
    /// The locks that are held on a file.
    Locks(Ino),
    /// A change of the cluster. Leader only.
    Admin(Admin),
    /// What the one who asks may do. Any node.
    Rights,
}

/// How fresh an answer has to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Consistency {
    /// At least as new as everything that was committed when the request came.
    Linearizable,
    /// What this node has applied: never goes back on one connection.
    Serializable,
}

/// Where a range looks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Prefix {
    /// All below this directory, itself left out, to any depth.
    Tree(Key),
    /// Only the names in this directory.
    Children(Key),
    /// All keys whose path begins with these bytes, as etcd means it: the directory, and the beginning
    /// of a name in it (which may be empty).
    Text(Key, Bytes),
}

/// A change of the cluster's membership.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Admin {
    /// Adds a member that receives the log but does not vote. Its node must be running.
    AddLearner(Member),
    /// Makes a learner a voter, once it has caught up.
    Promote(u64),
    /// Takes a member out, voter or learner.
    Remove(u64),
    /// Hands leadership to this member, or (`None`) to the most up to date one.
    Transfer(Option<u64>),
    /// Builds a snapshot now, and purges the log behind it.
    Snapshot,
}

/// A member of the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its Raft id, never reused.
    pub id: u64,
    /// Its name, which its certificate must carry.
    pub name: String,
    /// `host:port` for peers and clients.
    pub addr: String,
    /// Whether it votes. Ignored in `AddLearner`.
    pub voter: bool,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    /// The request's id.
    pub id: u64,
    /// What it is.
    pub answer: Result<Answer, Failure>,
}

/// What can be answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// To `Write`.
    Written(Outcome),
    /// To `Get`.
    Got {
        /// Revision of the answer.
        revision: Revision,
        /// The record, or `None`.
        record: Option<Record>,
    },
    /// To `Range`.
    Range {
        /// Revision of the answer.
        revision: Revision,
        /// Keys with their records.
        items: Vec<(Key, Record)>,
        /// There is more after the last of them.
        more: bool,
    },
    /// To `Barrier`.
    Barrier(Revision),
    /// To `Status`.
    Status(Box<Status>),
    /// To `KeepAlive`: time to live in milliseconds, from when the request was sent.
    KeptAlive(u64),
    /// To `Leases`.
    Leases(Vec<LeaseInfo>),
    /// To `Locks`.
    Locks(Vec<HeldLock>),
    /// To `Admin`.
    Done,
    /// To `Rights`.
    Rights {
        /// Revision that wrote the policy; 0 where there is none.
        policy: Revision,
        /// The rights.
        rights: Rights,
    },
}

/// About a lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseInfo {
    /// Its id.
    pub id: LeaseId,
    /// Time to live in milliseconds.
    pub ttl_ms: u64,
    /// Who was granted it.
    pub author: String,
    /// What is left of it in milliseconds, as the leader counts; `None` if this node does not lead.
    pub remaining_ms: Option<u64>,
    /// Its keys, when one lease was asked for.
    pub keys: Vec<Key>,
}

/// About a node and the cluster as it sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Id of the node that answers.
    pub id: u64,
    /// Its name.
    pub name: String,
    /// Version of its program.
    pub version: String,
    /// The leader, if it knows one.
    pub leader: Option<u64>,
    /// The current term.
    pub term: u64,
    /// Last log index in its log.
    pub last_log_index: u64,
    /// Last log index that it has applied.
    pub applied_index: u64,
    /// Log index of its last snapshot.
    pub snapshot_index: u64,
    /// The store's revision here.
    pub revision: Revision,
    /// Oldest revision after which a watch can resume here.
    pub compacted: Revision,
    /// Number of keys.
    pub keys: u64,
    /// Bytes that count against the quota.
    pub store_bytes: u64,
    /// The quota in bytes.
    pub store_max: u64,
    /// Watches that are open on this node.
    pub watches: u64,
    /// All members.
    pub members: Vec<Member>,
}

/// Why a request was not answered. Nothing was changed unless it says so.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Failure {
    /// This node does not lead; try the one that does, if it is known.
    #[error("this node is not the leader ({})", .0.as_ref().map_or_else(|| "there is none now".to_string(), |m| format!("{} at {} is", m.name, m.addr)))]
    NotLeader(Option<Member>),
    /// No quorum answered in time. A write may still be done later.
    #[error("no quorum answered within the time limit")]
    NoQuorum,
    /// Too many requests are under way: try again.
    #[error("the node is busy: {0}")]
    Busy(String),
    /// The request makes no sense; trying again does not help.
    #[error("bad request: {0}")]
    BadRequest(String),
    /// Not allowed for this identity.
    #[error("denied: {0}")]
    Denied(String),
    /// The node is stopping or broken; another may do better.
    #[error("the node cannot serve this: {0}")]
    Unavailable(String),
    /// A lease that does not exist.
    #[error("lease {0} does not exist")]
    NoLease(LeaseId),
}
