//! What one worker notes for the next. Enums grow at their ends only.

use bytes::Bytes;
use quorumfs_api::command::Command;
use quorumfs_api::outcome::Outcome;
use quorumfs_api::record::{Ino, Kind, LeaseId, Record, Revision, Timestamp};
use serde::{Deserialize, Serialize};

use crate::handle::Fh;
use crate::kernel::NodeId;
use crate::mirror::At;
use crate::swap::Made;

/// An object as the kernel knows it: enough to tell what watchers have missed, and no value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// Its number.
    pub ino: Ino,
    /// Its name; `None` for the root.
    pub at: Option<At>,
    /// What it is.
    pub kind: Kind,
    /// Version of the value of which watchers were told.
    pub version: u64,
    /// Its attributes.
    pub attrs: Attrs,
}

/// Attributes whose change is an event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attrs {
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Access time.
    pub atime: Timestamp,
    /// Modification time.
    pub mtime: Timestamp,
    /// Extended attributes.
    pub xattrs: Vec<(Bytes, Bytes)>,
}

impl Attrs {
    /// Those of a record.
    pub fn of(record: &Record) -> Attrs {
        Attrs {
            mode: record.mode,
            uid: record.uid,
            gid: record.gid,
            atime: record.atime,
            mtime: record.mtime,
            xattrs: record.xattrs.clone(),
        }
    }
}

impl Row {
    /// That of a record at a name.
    pub fn of(at: Option<At>, record: &Record) -> Row {
        let (ino, kind, version) = (record.ino, record.kind, record.version);
        Row { ino, at, kind, version, attrs: Attrs::of(record) }
    }

    /// A record with all that is known.
    pub fn record(&self) -> Record {
        Record {
            mode: self.attrs.mode,
            uid: self.attrs.uid,
            gid: self.attrs.gid,
            atime: self.attrs.atime,
            mtime: self.attrs.mtime,
            ctime: self.attrs.mtime,
            version: self.version,
            xattrs: self.attrs.xattrs.clone(),
            ..Record::unmade(self.ino, self.kind)
        }
    }
}

/// One note. Those about the tree are written when the kernel has fired the events, not before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Note {
    /// Something is there.
    Made(Row),
    /// It has another name.
    Moved(Ino, At),
    /// It has a new value: its version and time.
    Value(Ino, u64, Timestamp),
    /// It has other attributes.
    Attrs(Ino, Attrs),
    /// It is gone.
    Gone(Ino),
    /// The mount has shown this revision: it must not go back behind it.
    Shown(Revision),
    /// A file has this number for the kernel, and that one in the store.
    Alias(NodeId, Ino),
    /// A file that only this mount has.
    Private(NodeId, At, Record),
    /// It will not be published.
    Abandoned(NodeId),
    /// Somebody has opened a file of this version for reading: he may go on reading it though the store has
    /// another one by then, or none.
    Kept {
        /// Which.
        ino: Ino,
        /// Its version.
        version: u64,
        /// What it holds.
        value: Bytes,
    },
    /// Somebody has written to an open file.
    Wrote {
        /// Through which handle.
        fh: Fh,
        /// To what.
        node: NodeId,
        /// By which request of the kernel.
        unique: u64,
        /// How many writes the handle has seen with this one.
        edits: u64,
        /// Where.
        offset: u64,
        /// What.
        data: Bytes,
        /// The file loses what lets it run as its owner.
        strips: bool,
    },
    /// Somebody has cut or extended an open file.
    Resized {
        /// Through which handle.
        fh: Fh,
        /// Of what.
        node: NodeId,
        /// How many writes the handle has seen with this one.
        edits: u64,
        /// New length in bytes.
        size: u64,
    },
    /// What a handle held up to this write is in the store, or was given up.
    Published(Fh, u64),
    /// A handle of which something was noted is closed.
    Closed(Fh),
    /// The session.
    Session(LeaseId),
    /// A request to the store is about to be sent.
    Sent {
        /// Its number in the session.
        number: u64,
        /// For which request of the kernel; 0 if for none.
        unique: u64,
        /// What is asked for, see [`tag`].
        command: u8,
    },
    /// It was answered.
    Answered(u64, Outcome),
    /// The kernel has its answer.
    Replied(u64),
    /// A lock was asked for: file, owner, handle.
    Locked(Ino, u64, Fh),
    /// It was given up.
    Unlocked(Ino, u64),
    /// The process and the thread that replay: calls of theirs are no user's.
    Replayer(u32, u32),
    /// Nobody needs to know any more what came of a request to the store.
    Settled(u64),
    /// A range of an open file was filled with NULs.
    Cleared {
        /// Through which handle.
        fh: Fh,
        /// Of what.
        node: NodeId,
        /// How many writes the handle has seen with this one.
        edits: u64,
        /// First byte.
        from: u64,
        /// Behind the last one.
        to: u64,
    },
    /// Of a file's numbers for the kernel, its name has this one.
    Named(Ino, NodeId),
    /// A symbolic link that was made up has this number for the kernel.
    Link(NodeId, Record),
    /// The kernel knows it by that name of a directory; `None`: it is to be told of another one.
    Linked(Ino, Made, Option<NodeId>),
    /// The `..data` of a directory is to be swapped, or was.
    Swap(Ino, bool),
    /// Somebody has opened it: what is noted of it with [`Note::Kept`] has these attributes, also when it has no
    /// name any more.
    Opened(Row),
    /// What is read through an open file is of this version now, and of this length in bytes.
    Pass(Fh, u64, u64),
    /// A lock, by file and owner, was taken through an open file that is closed, and stays with another one.
    LeftTo(Ino, u64, Fh),
    /// A request to the store publishes what was written through a handle.
    Publishes {
        /// Its number in the session.
        number: u64,
        /// Through which handle.
        fh: Fh,
        /// Up to which write.
        edits: u64,
    },
}

/// Kinds of commands in one byte, of those that an answer is kept for.
pub const PUT: u8 = 1;
/// See [`PUT`].
pub const DELETE: u8 = 4;
/// See [`PUT`].
pub const MKDIR: u8 = 5;
/// See [`PUT`].
pub const RMDIR: u8 = 6;
/// See [`PUT`].
pub const RENAME: u8 = 7;
/// See [`PUT`].
pub const SYMLINK: u8 = 8;
/// See [`PUT`].
pub const MKNOD: u8 = 14;

const LOCK: u8 = 11;
const UNLOCK: u8 = 12;
const CANCEL_WAIT: u8 = 15;

/// Kinds of commands that can be done once more without harm if it is not known whether they were done.
pub const IS_SAFE_TWICE: [u8; 3] = [LOCK, UNLOCK, CANCEL_WAIT];

/// What kind of command it is.
pub fn tag(command: &Command) -> u8 {
    match command {
        Command::Put { .. } => PUT,
        Command::Append { .. } => 2,
        Command::Truncate { .. } => 3,
        Command::Delete { .. } => DELETE,
        Command::Mkdir { .. } => MKDIR,
        Command::Rmdir { .. } => RMDIR,
        Command::Rename { .. } => RENAME,
        Command::Symlink { .. } => SYMLINK,
        Command::SetAttr { .. } => 9,
        Command::SetXattr { .. } => 10,
        Command::Lock { .. } => LOCK,
        Command::Unlock { .. } => UNLOCK,
        Command::Txn { .. } => 13,
        Command::Mknod { .. } => MKNOD,
        Command::CancelWait { .. } => CANCEL_WAIT,
        // A mount asks for nothing else.
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use quorumfs_api::codec::{self, FrameKind};
    use quorumfs_api::key::Name;

    use super::*;

    /// A newer program reads what an older one has noted.
    #[test]
    fn notes_do_not_change_by_accident() {
        let attrs = Attrs {
            mode: 0o644,
            uid: 0,
            gid: 0,
            atime: Timestamp(0),
            mtime: Timestamp(0),
            xattrs: Vec::new(),
        };
        let at = (Ino(1), Name::new(Bytes::from_static(b"f")).unwrap());
        let row = Row { ino: Ino(2), at: Some(at.clone()), kind: Kind::File, version: 3, attrs };
        let data = Bytes::from_static(b"x");
        let golden: &[(Note, &[u8])] = &[
            (Note::Made(row), &[0, 2, 1, 1, 1, b'f', 0, 3, 0xa4, 3, 0, 0, 0, 0, 0]),
            (Note::Moved(Ino(2), at), &[1, 2, 1, 1, b'f']),
            (Note::Shown(300), &[5, 0xac, 2]),
            (Note::Kept { ino: Ino(3), version: 1, value: data.clone() }, &[9, 3, 1, 1, b'x']),
            (
                Note::Wrote { fh: 1, node: 2, unique: 3, edits: 4, offset: 5, data, strips: true },
                &[10, 1, 2, 3, 4, 5, 1, b'x', 1],
            ),
            (Note::Sent { number: 9, unique: 8, command: PUT }, &[15, 9, 8, 1]),
            (Note::Locked(Ino(1), 2, 3), &[18, 1, 2, 3]),
            (Note::Settled(7), &[21, 7]),
            (Note::Named(Ino(2), 300), &[23, 2, 0xac, 2]),
            (Note::Linked(Ino(2), Made::Stamp, Some(9)), &[25, 2, 1, 1, 9]),
            (Note::Swap(Ino(2), true), &[26, 2, 1]),
            (Note::Pass(1, 2, 300), &[28, 1, 2, 0xac, 2]),
            (Note::LeftTo(Ino(1), 2, 3), &[29, 1, 2, 3]),
            (Note::Publishes { number: 1, fh: 2, edits: 3 }, &[30, 1, 2, 3]),
        ];
        for (note, bytes) in golden {
            let frame = codec::encode(FrameKind::Note, note).unwrap();
            assert_eq!(&frame[6..frame.len() - 4], *bytes, "{note:?}");
            assert_eq!(codec::decode_whole::<Note>(FrameKind::Note, &frame).unwrap(), *note);
        }
    }
}
