//! What a mount says of itself: the files of `/.quorumfs`, and `fsd status`. Pure: facts in, text out.
//!
//! The directory is found by its name and is not listed, so that whoever copies, searches or removes all that
//! is in a mount does not meet it. Its files are made anew for each `open`. Nothing fires events for them.

mod files;
mod text;

use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

pub use files::{DIR, DIR_NAME, File, attr, is_own};

/// Milliseconds since 1970, UTC.
pub type UnixMs = u64;

/// A time for the report; what was before 1970 is 1970.
pub fn unix_ms(time: SystemTime) -> UnixMs {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// What is known of a mount at one moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Report {
    /// Version of fsd.
    pub version: String,
    /// When this was found out.
    pub at: UnixMs,
    /// How it was mounted.
    pub mount: Mounted,
    /// The daemon.
    pub daemon: Daemon,
    /// From where the mirror gets its news.
    pub link: Link,
    /// The cluster.
    pub cluster: Cluster,
    /// The tree as this mount has it.
    pub mirror: Mirror,
    /// What waits to be shown as events.
    pub replay: Replay,
    /// The session that owns this mount's locks.
    pub session: Option<Session>,
    /// What programs have open.
    pub open: Open,
}

/// How the mount was made: what does not change while it lasts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Mounted {
    /// Where, in the mount namespace of the daemon.
    pub mountpoint: String,
    /// Key of the directory that is mounted.
    pub prefix: String,
    /// Name in the certificate.
    pub identity: String,
    /// The nodes that were named.
    pub nodes: Vec<String>,
    /// Every change is refused.
    pub read_only: bool,
    /// Each `write` commits.
    pub sync: bool,
    /// How long a system call may wait for the cluster, in milliseconds.
    pub timeout_ms: u64,
    /// Since when.
    pub since: UnixMs,
}

/// The process behind the mount.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Daemon {
    /// Its number.
    pub pid: u32,
    /// Memory that it holds, in bytes; 0 where the system does not say.
    pub memory: u64,
    /// Number of the process that would start another one in its place; `None` if nobody would.
    pub supervisor: Option<u32>,
}

/// The watch stream.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Link {
    /// Address of the node that is followed; `None` while there is none.
    pub node: Option<String>,
    /// Since when that is so.
    pub since: UnixMs,
    /// Why there is none.
    pub problem: Option<String>,
}

/// One member of the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Member {
    /// Number.
    pub id: u64,
    /// Name.
    pub name: String,
    /// Address for clients.
    pub addr: String,
    /// Whether it votes.
    pub voter: bool,
    /// Whether it leads.
    pub leader: bool,
}

/// The cluster, as the node sees it that answered.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Cluster {
    /// Whether a quorum confirmed the leader just now.
    pub quorum: bool,
    /// Without a quorum: when the leader was last heard of, as far as this mount can tell. `None` if never.
    pub without_quorum_since: Option<UnixMs>,
    /// What stands in the way.
    pub problem: Option<String>,
    /// The node that was asked, and what it said; `None` if none answers.
    pub said: Option<Said>,
}

/// What one node said of the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Said {
    /// The node's name.
    pub by: String,
    /// The term.
    pub term: u64,
    /// Its revision.
    pub revision: u64,
    /// Keys in the store.
    pub keys: u64,
    /// What counts against the quota, in bytes.
    pub bytes: u64,
    /// The quota in bytes.
    pub bytes_max: u64,
    /// All members.
    pub members: Vec<Member>,
}

/// The mirror.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Mirror {
    /// Its revision.
    pub revision: u64,
    /// How many revisions it is behind of what is committed; of what one node has, if there is no quorum.
    /// `None` if no node answers.
    pub lag: Option<u64>,
    /// Files, directories and symlinks below the mount point.
    pub keys: u64,
}

/// The queue of changes that become events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Replay {
    /// Waiting.
    pub waiting: u64,
    /// Done since the mount began.
    pub done: u64,
}

/// A session.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Session {
    /// Its number, as `kvctl lease list` shows it.
    pub id: String,
    /// How long it lives on if nothing is heard any more, in milliseconds.
    pub valid_ms: u64,
}

/// Counts of what is open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Open {
    /// Open files and directories.
    pub handles: u64,
    /// Files locked through this mount, each once for each owner.
    pub locks: u64,
}

impl Cluster {
    /// The leader, if one is known.
    pub fn leader(&self) -> Option<&Member> {
        self.said.as_ref()?.members.iter().find(|member| member.leader)
    }
}

#[cfg(test)]
mod tests;
