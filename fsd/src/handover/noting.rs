//! Changes of the state of which the next worker has to know: each is noted with what it does, under the same lock.

use std::collections::BTreeSet;

use quorumfs_api::record::{Ino, Kind, Record};

use super::note::{Attrs, Note, Row};
use crate::handle::Fh;
use crate::kernel::NodeId;
use crate::mirror::{At, Net};
use crate::state::State;
use crate::swap::Made;

impl State {
    /// Adds to what the next worker will know.
    pub fn note(&self, note: impl FnOnce() -> Note) {
        if let Some(journal) = &self.journal {
            journal.add([&note()]);
        }
    }

    /// Adds several.
    pub fn note_all(&self, notes: &[Note]) {
        if let Some(journal) = &self.journal
            && !notes.is_empty()
        {
            journal.add(notes);
        }
    }

    /// What is to be noted when the kernel has shown a change, as things are now.
    pub fn notes_of(&self, net: &Net) -> Vec<Note> {
        if self.journal.is_none() {
            return Vec::new();
        }
        let record = |ino: &Ino| self.mirror.get(*ino).map(|node| &node.record);
        match net {
            Net::Create { at, ino, .. } => {
                let record = record(ino).or_else(|| self.queue.ghost(*ino));
                record.map(|record| Note::Made(Row::of(Some(at.clone()), record))).into_iter().collect()
            }
            Net::Update { ino } => {
                record(ino).map(|r| Note::Value(*ino, r.version, r.mtime)).into_iter().collect()
            }
            Net::Attr { ino } => record(ino).map(|r| Note::Attrs(*ino, Attrs::of(r))).into_iter().collect(),
            Net::Remove { record, .. } => vec![Note::Gone(record.ino)],
            Net::Rename { from, to, ino, replaced, exchanged } => {
                let mut notes = vec![Note::Moved(*ino, to.clone())];
                notes.extend(replaced.iter().map(|record| Note::Gone(record.ino)));
                notes.extend(exchanged.iter().map(|other| Note::Moved(*other, from.clone())));
                notes
            }
            Net::Unlocked { .. } | Net::Swap { .. } => Vec::new(),
        }
    }

    /// The private file of that number will never be published.
    pub fn abandon(&mut self, node: NodeId) {
        self.kernel.abandon(node);
        self.note(|| Note::Abandoned(node));
    }

    /// Somebody opens a file to read what it holds: he can do so to its end, whatever happens to it and to us.
    pub fn keep_open(&mut self, ino: Ino) {
        if self.journal.is_some()
            && let Some(node) = self.mirror.get(ino)
        {
            let record = node.record.clone();
            self.keep(&record);
        }
    }

    /// Who has a file open reads it from its beginning again, and gets another value than it had when it was opened.
    pub fn keep_pass(&mut self, node: NodeId, fh: Fh) {
        if self.journal.is_some()
            && let Some(record) = self.record(node).cloned()
        {
            self.keep(&record);
            self.note(|| Note::Pass(fh, record.version, record.value.len() as u64));
        }
    }

    fn keep(&mut self, record: &Record) {
        let (ino, version) = (record.ino, record.version);
        if self.journal.is_some() && self.kept.insert(ino, version) != Some(version) {
            let value = record.value.clone();
            self.note_all(&[Note::Opened(Row::of(None, record)), Note::Kept { ino, version, value }]);
        }
    }

    /// Something lost its name. Whoever has it open reads on, also when another worker serves.
    pub(crate) fn orphan(&mut self, record: &Record) {
        let (kernel, handles) = (&mut self.kernel, &self.handles);
        kernel.orphan(record, |node| !handles.of(node).is_empty());
        if record.kind == Kind::File && self.is_open(record.ino) {
            self.keep(record);
        }
    }

    /// Whether somebody has it open, or may have from the time of an earlier worker.
    fn is_open(&self, ino: Ino) -> bool {
        let nodes = self.kernel.nodes(ino);
        nodes.into_iter().any(|node| !self.handles.of(node).is_empty() || self.kernel.is_inherited(node))
    }

    /// The name came into the tree, see [`Kernel::published`].
    pub(crate) fn came_to_be(&mut self, at: &At, ino: Ino, kind: Kind) {
        let Some(node) = self.kernel.private_at(at) else { return };
        self.kernel.published(at, ino, kind);
        self.note(|| if kind == Kind::File { Note::Alias(node, ino) } else { Note::Abandoned(node) });
        if self.kernel.node(ino) == node {
            self.note(|| Note::Named(ino, node));
        }
    }

    /// A number for a file under which it is about to be moved in, see [`Kernel::stage`].
    pub fn stage(&mut self, ino: Ino) -> NodeId {
        let node = self.kernel.stage(ino);
        // The kernel may hold it from here on, whether it is moved in or not.
        self.note(|| Note::Alias(node, ino));
        node
    }

    /// A new `..data` that is about to be moved in, see [`Kernel::stage_link`].
    pub fn stage_link(&mut self, record: Record) -> NodeId {
        let node = self.kernel.stage_link(record.clone());
        self.note(|| Note::Link(node, record));
        node
    }

    /// See [`Kernel::make_link`].
    pub fn make_link(&mut self, dir: Ino, made: Made, record: Record) -> NodeId {
        let node = self.kernel.make_link(dir, made, record.clone());
        self.note_all(&[Note::Link(node, record), Note::Linked(dir, made, Some(node))]);
        node
    }

    /// See [`Kernel::moved_in`].
    pub fn moved_in(&mut self, ino: Ino) {
        if let Some(node) = self.kernel.moved_in(ino) {
            self.note(|| Note::Named(ino, node));
        }
    }

    /// See [`Kernel::moved_in_link`].
    pub fn moved_in_link(&mut self, dir: Ino) {
        if let Some(node) = self.kernel.moved_in_link(dir) {
            self.note(|| Note::Linked(dir, Made::Data, Some(node)));
        }
    }

    /// See [`Kernel::outdate_data`].
    pub fn outdate_data(&mut self, dir: Ino) {
        self.kernel.outdate_data(dir);
        self.note(|| Note::Linked(dir, Made::Data, None));
    }

    /// Watchers know of the name, and not of the value.
    pub(crate) fn note_name(&self, at: &At, ino: Ino) {
        if let Some(node) = self.mirror.get(ino) {
            self.note(|| Note::Made(Row { version: 0, ..Row::of(Some(at.clone()), &node.record) }));
        }
    }

    /// The links of these directories are to be swapped, once what is in the queue before was shown.
    pub(crate) fn swap(&mut self, dirs: BTreeSet<Ino>) {
        if self.connected {
            for dir in dirs {
                self.note(|| Note::Swap(dir, true));
                self.queue.push(Net::Swap { dir });
            }
        }
    }

    /// The link of a directory was swapped, or need not be.
    pub fn swapped(&self, dir: Ino) {
        if !self.queue.is_to_swap(dir) {
            self.note(|| Note::Swap(dir, false));
        }
    }
}
