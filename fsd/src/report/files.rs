//! Names and numbers of the files.

use quorumfs_api::record::Kind;

use super::Report;
use crate::attr::{Attr, Overrides};
use crate::kernel::NodeId;

/// Name of the directory in the root of a mount.
pub const DIR_NAME: &[u8] = b".quorumfs";
/// Its number, and the first of those that are kept for it: the store counts from 1 and never comes so far,
/// and the numbers of files that only one mount has begin above.
pub const DIR: NodeId = 1 << 62;
/// How many numbers are kept.
const KEPT: u64 = 1 << 16;

/// Whether a number is one of ours.
pub fn is_own(node: NodeId) -> bool {
    (DIR..DIR + KEPT).contains(&node)
}

/// A file of the directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum File {
    /// Everything, for a person.
    Status,
    /// Everything, for a program.
    StatusJson,
    /// The members of the cluster, one a line: id, name, address, role.
    Members,
    /// Name and address of the leader, or `none`.
    Leader,
    /// Revision of the mirror.
    Revision,
    /// How many revisions it is behind, or `unknown`.
    Lag,
    /// What is mounted.
    Prefix,
    /// Version of fsd.
    Version,
    /// Number of the session, or `none`.
    Session,
    /// How many changes wait to become events.
    Queue,
}

impl File {
    /// All of them, in the order of their numbers, which is kept: a kernel may hold them.
    pub const ALL: [File; 10] = [
        File::Status,
        File::StatusJson,
        File::Members,
        File::Leader,
        File::Revision,
        File::Lag,
        File::Prefix,
        File::Version,
        File::Session,
        File::Queue,
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            File::Status => "status",
            File::StatusJson => "status.json",
            File::Members => "members",
            File::Leader => "leader",
            File::Revision => "revision",
            File::Lag => "lag",
            File::Prefix => "prefix",
            File::Version => "version",
            File::Session => "session",
            File::Queue => "queue",
        }
    }

    /// Its number.
    pub fn node(self) -> NodeId {
        DIR + 1 + self as u64
    }

    /// The file of a name.
    pub fn named(name: &[u8]) -> Option<File> {
        File::ALL.into_iter().find(|file| file.name().as_bytes() == name)
    }

    /// The file of a number.
    pub fn numbered(node: NodeId) -> Option<File> {
        File::ALL.into_iter().find(|file| file.node() == node)
    }

    /// Whether its content needs a word from the cluster.
    pub fn asks_the_cluster(self) -> bool {
        matches!(self, File::Status | File::StatusJson | File::Members | File::Leader | File::Lag)
    }

    /// Its content.
    pub fn content(self, report: &Report) -> String {
        let or = |value: Option<String>, otherwise: &str| value.unwrap_or_else(|| otherwise.to_string());
        let mut text = match self {
            File::Status => super::text::status(report),
            // Plain data: it has a JSON form.
            File::StatusJson => serde_json::to_string_pretty(report).unwrap_or_default(),
            File::Members => super::text::members(report),
            File::Leader => or(report.cluster.leader().map(|m| format!("{} {}", m.name, m.addr)), "none"),
            File::Revision => report.mirror.revision.to_string(),
            File::Lag => or(report.mirror.lag.map(|lag| lag.to_string()), "unknown"),
            File::Prefix => report.mount.prefix.clone(),
            File::Version => report.version.clone(),
            File::Session => or(report.session.as_ref().map(|session| session.id.clone()), "none"),
            File::Queue => report.replay.waiting.to_string(),
        };
        if !text.is_empty() && !text.ends_with('\n') {
            text.push('\n');
        }
        text
    }
}

/// What `stat` shows of the directory or a file of it. A file's length is 0, as in /proc: it has none until
/// it is opened.
pub fn attr(node: NodeId, now: std::time::SystemTime, shown: &Overrides) -> Option<Attr> {
    let (kind, mode, nlink) = match node {
        DIR => (Kind::Dir, 0o555, 2),
        _ => (File::numbered(node).map(|_| Kind::File)?, 0o444, 1),
    };
    Some(Attr {
        node,
        kind,
        size: 0,
        atime: now,
        mtime: now,
        ctime: now,
        mode: mode & !shown.umask.unwrap_or(0),
        nlink,
        uid: shown.uid.unwrap_or(0),
        gid: shown.gid.unwrap_or(0),
        device: None,
    })
}
