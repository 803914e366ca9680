//! What the notes of a worker come to. Pure.

use std::collections::{HashMap, HashSet};

use bytes::Bytes;
use quorumfs_api::outcome::Outcome;
use quorumfs_api::record::{Ino, LeaseId, Record, Revision};

use super::note::{Note, Row};
use crate::handle::{Described, Fh, describe};
use crate::kernel::NodeId;
use crate::mirror::At;
use crate::swap::Made;

/// Versions of one file that are kept for those who are reading them.
const VERSIONS_MAX: usize = 4;

/// What was done to an open file and is not published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Edit {
    /// Written there.
    Write(u64, Bytes),
    /// Filled with NULs from there to there.
    Clear(u64, u64),
    /// Cut or extended to that length.
    Resize(u64),
}

/// A handle that was written to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// What it is open on.
    pub node: NodeId,
    /// What was done and is not published, with the handle's count of edits.
    pub edits: Vec<(u64, Edit)>,
    /// The last request of the kernel that wrote.
    pub last: u64,
    /// The handle's count of edits.
    pub count: u64,
    /// Something of it was published: it does not empty the file any more.
    pub published: bool,
    /// See [`Writer::strips`](crate::handle::Writer::strips).
    pub strips: bool,
}

/// A request to the store whose outcome the kernel has not been told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sent {
    /// Its number in the session.
    pub number: u64,
    /// For which request of the kernel; 0 if for none.
    pub unique: u64,
    /// What was asked for.
    pub command: u8,
    /// What came of it, if that is known.
    pub outcome: Option<Outcome>,
    /// It will never be known.
    pub is_unknown: bool,
    /// It publishes what was written through a handle, up to that edit.
    pub publishes: Option<(Fh, u64)>,
}

/// See the [module](self).
#[derive(Debug, Default)]
pub struct Image {
    /// The tree as the kernel knows it.
    pub rows: HashMap<Ino, Row>,
    /// What somebody may have open, whether it is in the tree or not.
    pub opened: HashMap<Ino, Row>,
    /// The newest revision that was shown.
    pub shown: Revision,
    /// Numbers that the kernel has for files of the store: several for one where its values came by renames.
    pub aliases: HashMap<NodeId, Ino>,
    /// Which of them a file's name has.
    pub named: HashMap<Ino, NodeId>,
    /// Symbolic links that are in no store.
    pub links: HashMap<NodeId, Record>,
    /// Those of them that the kernel knows by a name of a directory.
    pub linked: HashMap<(Ino, Made), NodeId>,
    /// Directories in which something was shown, and the swap of the link that goes with it was not.
    pub swaps: HashSet<Ino>,
    /// Files that only the mount has.
    pub privates: HashMap<NodeId, (At, Record)>,
    /// Values that are being read, with their versions.
    pub kept: HashMap<Ino, Vec<(u64, Bytes)>>,
    /// Versions and lengths that are being read through handles, where it is not what they were opened with.
    pub passes: HashMap<Fh, (u64, usize)>,
    /// Handles that were written to.
    pub written: HashMap<Fh, Written>,
    /// The session.
    pub session: Option<LeaseId>,
    /// The first number that no request of it has.
    pub next: u64,
    /// What was under way.
    pub sent: Vec<Sent>,
    /// Locks: file, owner, handle.
    pub locks: HashSet<(Ino, u64, Fh)>,
    /// Processes and threads that replayed.
    pub replayers: Vec<(u32, u32)>,
}

impl Image {
    /// Takes in one note.
    pub fn take(&mut self, note: Note) {
        match note {
            Note::Made(row) => _ = self.rows.insert(row.ino, row),
            Note::Moved(ino, at) => {
                if let Some(row) = self.rows.get_mut(&ino) {
                    row.at = Some(at);
                }
            }
            Note::Value(ino, version, mtime) => {
                if let Some(row) = self.rows.get_mut(&ino) {
                    row.version = version;
                    row.attrs.mtime = mtime;
                }
            }
            Note::Attrs(ino, attrs) => {
                if let Some(row) = self.opened.get_mut(&ino) {
                    row.attrs = attrs.clone();
                }
                if let Some(row) = self.rows.get_mut(&ino) {
                    row.attrs = attrs;
                }
            }
            Note::Gone(ino) => _ = self.rows.remove(&ino),
            Note::Opened(row) => _ = self.opened.insert(row.ino, row),
            Note::Shown(revision) => self.shown = self.shown.max(revision),
            Note::Alias(node, ino) => {
                self.privates.remove(&node);
                self.aliases.insert(node, ino);
            }
            Note::Private(node, at, record) => _ = self.privates.insert(node, (at, record)),
            Note::Abandoned(node) => _ = self.privates.remove(&node),
            Note::Kept { ino, version, value } => {
                let versions = self.kept.entry(ino).or_default();
                versions.retain(|(have, _)| *have != version);
                if versions.len() == VERSIONS_MAX {
                    versions.remove(0);
                }
                versions.push((version, value));
            }
            Note::Wrote { fh, node, unique, edits, offset, data, strips } => {
                let written = self.edit(fh, node, edits, Edit::Write(offset, data));
                written.last = unique;
                written.strips |= strips;
            }
            Note::Cleared { fh, node, edits, from, to } => {
                self.edit(fh, node, edits, Edit::Clear(from, to));
            }
            Note::Resized { fh, node, edits, size } => _ = self.edit(fh, node, edits, Edit::Resize(size)),
            Note::Published(fh, edits) => self.published(fh, edits),
            Note::Pass(fh, version, length) => _ = self.passes.insert(fh, (version, length as usize)),
            Note::Closed(fh) => {
                self.written.remove(&fh);
                self.passes.remove(&fh);
            }
            Note::Session(id) => {
                if self.session != Some(id) {
                    (self.session, self.next) = (Some(id), 1);
                    self.sent.clear();
                }
            }
            Note::Sent { number, unique, command } => {
                self.next = self.next.max(number + 1);
                let (outcome, is_unknown, publishes) = (None, false, None);
                self.sent.push(Sent { number, unique, command, outcome, is_unknown, publishes });
            }
            Note::Publishes { number, fh, edits } => {
                if let Some(sent) = self.sent.iter_mut().find(|sent| sent.number == number) {
                    sent.publishes = Some((fh, edits));
                }
            }
            Note::Answered(number, outcome) => {
                self.sent.retain(|sent| sent.number != number || sent.unique != 0);
                if let Some(sent) = self.sent.iter_mut().find(|sent| sent.number == number) {
                    sent.outcome = Some(outcome);
                }
            }
            Note::Replied(unique) => self.sent.retain(|sent| sent.unique != unique),
            Note::Locked(ino, owner, fh) => _ = self.locks.insert((ino, owner, fh)),
            Note::LeftTo(ino, owner, fh) => _ = self.locks.remove(&(ino, owner, fh)),
            Note::Unlocked(ino, owner) => self.locks.retain(|lock| (lock.0, lock.1) != (ino, owner)),
            Note::Replayer(process, thread) => self.replayers.push((process, thread)),
            Note::Settled(number) => self.sent.retain(|sent| sent.number != number),
            Note::Named(ino, node) => _ = self.named.insert(ino, node),
            Note::Link(node, record) => _ = self.links.insert(node, record),
            Note::Linked(dir, made, Some(node)) => _ = self.linked.insert((dir, made), node),
            Note::Linked(dir, made, None) => _ = self.linked.remove(&(dir, made)),
            Note::Swap(dir, true) => _ = self.swaps.insert(dir),
            Note::Swap(dir, false) => _ = self.swaps.remove(&dir),
        }
    }

    fn edit(&mut self, fh: Fh, node: NodeId, count: u64, edit: Edit) -> &mut Written {
        let written = self.written.entry(fh).or_default();
        written.node = node;
        written.count = count;
        written.edits.push((count, edit));
        written
    }

    fn published(&mut self, fh: Fh, edits: u64) {
        let written = self.written.entry(fh).or_default();
        written.published = true;
        let newer = written.edits.iter().any(|(count, _)| *count > edits);
        let appends = matches!(describe(fh), Described::Writer { at_end: true, .. });
        match newer {
            false => {
                written.edits.clear();
                written.strips = false;
            }
            // What was appended meanwhile is another matter; other writes are parts of one whole.
            true if appends => written.edits.retain(|(count, _)| *count > edits),
            true => {}
        }
    }

    /// Notes that come to this.
    pub fn notes(self, give: &mut dyn FnMut(Note)) {
        self.rows.into_values().for_each(|row| give(Note::Made(row)));
        for (ino, versions) in self.kept {
            versions.into_iter().for_each(|(version, value)| give(Note::Kept { ino, version, value }));
        }
        self.opened.into_values().for_each(|row| give(Note::Opened(row)));
        self.passes
            .into_iter()
            .for_each(|(fh, (version, length))| give(Note::Pass(fh, version, length as u64)));
        give(Note::Shown(self.shown));
        self.aliases.into_iter().for_each(|(node, ino)| give(Note::Alias(node, ino)));
        self.named.into_iter().for_each(|(ino, node)| give(Note::Named(ino, node)));
        self.links.into_iter().for_each(|(node, record)| give(Note::Link(node, record)));
        self.linked.into_iter().for_each(|((dir, made), node)| give(Note::Linked(dir, made, Some(node))));
        self.swaps.into_iter().for_each(|dir| give(Note::Swap(dir, true)));
        self.privates.into_iter().for_each(|(node, (at, record))| give(Note::Private(node, at, record)));
        for (fh, written) in self.written {
            if written.published {
                give(Note::Published(fh, 0));
            }
            let (node, unique, strips) = (written.node, written.last, written.strips);
            for (edits, edit) in written.edits {
                give(match edit {
                    Edit::Write(offset, data) => {
                        Note::Wrote { fh, node, unique, edits, offset, data, strips }
                    }
                    Edit::Clear(from, to) => Note::Cleared { fh, node, edits, from, to },
                    Edit::Resize(size) => Note::Resized { fh, node, edits, size },
                });
            }
        }
        if let Some(id) = self.session {
            give(Note::Session(id));
        }
        if self.next > 1 {
            // Carries the number on; nobody asks for what came of it.
            let number = self.next - 1;
            give(Note::Sent { number, unique: u64::MAX, command: 0 });
            give(Note::Replied(u64::MAX));
        }
        for Sent { number, unique, command, outcome, publishes, .. } in self.sent {
            give(Note::Sent { number, unique, command });
            if let Some((fh, edits)) = publishes {
                give(Note::Publishes { number, fh, edits });
            }
            if let Some(outcome) = outcome {
                give(Note::Answered(number, outcome));
            }
        }
        self.locks.into_iter().for_each(|(ino, owner, fh)| give(Note::Locked(ino, owner, fh)));
        self.replayers.into_iter().for_each(|(process, thread)| give(Note::Replayer(process, thread)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is read, published and locked through handles, also written anew.
    #[test]
    fn what_handles_do_outlives_two_workers() {
        let (file, reader, first, second) = (Ino(7), 1, 1 << 62, (1 << 62) + 1);
        let mut image = Image::default();
        for note in [
            Note::Session(LeaseId(1)),
            Note::Pass(reader, 5, 300),
            Note::Pass(reader + 1, 5, 300),
            Note::Closed(reader + 1),
            Note::Sent { number: 1, unique: 9, command: 1 },
            Note::Publishes { number: 1, fh: first, edits: 3 },
            Note::Sent { number: 2, unique: 11, command: 1 },
            Note::Publishes { number: 2, fh: second, edits: 4 },
            Note::Replied(11),
            Note::Locked(file, 5, first),
            Note::Locked(file, 5, second),
            Note::LeftTo(file, 5, first),
        ] {
            image.take(note);
        }
        let mut again = Image::default();
        image.notes(&mut |note| again.take(note));
        assert_eq!(again.passes, HashMap::from([(reader, (5, 300))]));
        let sent: Vec<_> = again.sent.iter().map(|sent| (sent.number, sent.publishes)).collect();
        assert_eq!(sent, [(1, Some((first, 3)))]);
        assert_eq!(again.locks, HashSet::from([(file, 5, second)]));
        again.take(Note::Unlocked(file, 5));
        assert!(again.locks.is_empty());
    }

    /// Written anew, the notes come to the same.
    #[test]
    fn numbers_and_swaps_outlive_two_workers() {
        let (file, dir) = (Ino(7), Ino(2));
        let mut image = Image::default();
        for note in [
            Note::Alias(100, file),
            Note::Named(file, 100),
            Note::Alias(101, file),
            Note::Named(file, 101),
            // Staged, and never moved in.
            Note::Alias(102, file),
            Note::Linked(dir, Made::Data, Some(200)),
            Note::Linked(dir, Made::Stamp, Some(201)),
            Note::Linked(dir, Made::Data, None),
            Note::Swap(dir, true),
            Note::Swap(Ino(3), true),
            Note::Swap(Ino(3), false),
        ] {
            image.take(note);
        }
        let mut again = Image::default();
        image.notes(&mut |note| again.take(note));
        assert_eq!(again.aliases, HashMap::from([(100, file), (101, file), (102, file)]));
        assert_eq!(again.named, HashMap::from([(file, 101)]));
        assert_eq!(again.linked, HashMap::from([((dir, Made::Stamp), 201)]));
        assert_eq!(again.swaps, HashSet::from([dir]));
    }
}
