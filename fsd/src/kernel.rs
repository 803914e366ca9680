//! What the kernel knows: which inodes it holds, and by which numbers.
//!
//! Most objects are known by the number that the store gave them. A file that was created here and is
//! not published yet has a *provisional* number; once it is published (or somebody else made its name)
//! that number is an *alias* of the real one for as long as the kernel holds it, because the kernel
//! cannot be told that an inode has another number now.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use quorumfs_api::record::{Ino, Kind, Record};

use crate::mirror::{At, Mirror, bare};

/// Number of an inode between the kernel and us.
pub type NodeId = u64;

/// Provisional numbers begin here: the store counts from 1 and never comes so far.
const PROVISIONAL: NodeId = 1 << 63;

/// A file that exists on this mount only, until it is closed.
#[derive(Clone, Debug)]
pub struct Private {
    /// Where it will be.
    pub at: At,
    /// Its attributes.
    pub record: Record,
    /// Held by whoever publishes it or does away with it.
    pub gate: Arc<tokio::sync::Mutex<()>>,
}

/// What a number stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Object {
    /// Something in the mirror.
    Real(Ino),
    /// Something that only this mount has.
    Private,
    /// Something that has no name any more, but the kernel holds it.
    Orphan,
    /// Nothing.
    Gone,
}

/// See the [module](self).
#[derive(Debug, Default)]
pub struct Kernel {
    lookups: HashMap<NodeId, u64>,
    real: HashMap<NodeId, Ino>,
    alias: HashMap<Ino, NodeId>,
    orphans: HashMap<NodeId, Record>,
    privates: HashMap<NodeId, Private>,
    names: HashMap<At, NodeId>,
    made: u64,
    /// Version of the value with which the page cache was last allowed to fill.
    filled: HashMap<NodeId, u64>,
    /// When values of held files last changed.
    changed: HashMap<NodeId, Instant>,
}

impl Kernel {
    /// The number by which the kernel knows `ino`.
    pub fn node(&self, ino: Ino) -> NodeId {
        self.alias.get(&ino).copied().unwrap_or(ino.0)
    }

    /// What the kernel's number stands for.
    pub fn resolve(&self, node: NodeId, mirror: &Mirror) -> Object {
        if self.privates.contains_key(&node) {
            return Object::Private;
        }
        let ino = match self.real.get(&node) {
            Some(ino) => *ino,
            None => Ino(node),
        };
        if mirror.get(ino).is_some() {
            Object::Real(ino)
        } else if self.orphans.contains_key(&node) {
            Object::Orphan
        } else {
            Object::Gone
        }
    }

    /// The store's number behind the kernel's, also of what is gone.
    pub fn ino(&self, node: NodeId) -> Option<Ino> {
        match self.real.get(&node) {
            Some(ino) => Some(*ino),
            None => (node < PROVISIONAL).then_some(Ino(node)),
        }
    }

    /// The kernel was given an entry.
    pub fn looked_up(&mut self, node: NodeId) {
        *self.lookups.entry(node).or_default() += 1;
    }

    /// Whether the kernel may hold it. It always holds the root.
    pub fn holds(&self, node: NodeId) -> bool {
        node == Ino::ROOT.0 || self.lookups.contains_key(&node)
    }

    /// The kernel gives back so many of what it was given.
    pub fn forget(&mut self, node: NodeId, count: u64) {
        let Some(lookups) = self.lookups.get_mut(&node) else { return };
        *lookups = lookups.saturating_sub(count);
        if *lookups > 0 {
            return;
        }
        self.lookups.remove(&node);
        self.orphans.remove(&node);
        self.filled.remove(&node);
        self.changed.remove(&node);
        if let Some(ino) = self.real.remove(&node) {
            self.alias.remove(&ino);
        }
    }

    /// Makes a private file; `record` gets its provisional number.
    pub fn make_private(&mut self, at: At, record: impl FnOnce(Ino) -> Record) -> NodeId {
        self.made += 1;
        let node = PROVISIONAL + self.made;
        self.names.insert(at.clone(), node);
        self.privates.insert(node, Private { at, record: record(Ino(node)), gate: Arc::default() });
        node
    }

    /// The private file of a number.
    pub fn private(&self, node: NodeId) -> Option<&Private> {
        self.privates.get(&node)
    }

    /// The private file of a name.
    pub fn private_at(&self, at: &At) -> Option<NodeId> {
        self.names.get(at).copied()
    }

    /// The private files in a directory.
    pub fn privates_in(&self, dir: Ino) -> impl Iterator<Item = (&At, NodeId)> {
        self.names.iter().filter(move |(at, _)| at.0 == dir).map(|(at, node)| (at, *node))
    }

    /// The name came into the tree: the private file of that name stands for it from now on. A directory or
    /// symlink cannot have a file's number, which the kernel would take for a broken inode: then the
    /// private file has lost its name.
    pub fn published(&mut self, at: &At, ino: Ino, kind: Kind) {
        let Some(node) = self.private_at(at) else { return };
        if kind != Kind::File {
            return self.abandon(node);
        }
        self.names.remove(at);
        self.privates.remove(&node);
        if !self.holds(node) {
            return;
        }
        self.real.insert(node, ino);
        // Where the kernel holds the other under its own number already, it keeps that.
        if !self.holds(ino.0) {
            self.alias.insert(ino, node);
        }
    }

    /// The private file will never be published: it was unlinked, or could not be.
    pub fn abandon(&mut self, node: NodeId) {
        if let Some(private) = self.privates.remove(&node) {
            self.names.remove(&private.at);
            self.orphans.insert(node, private.record);
        }
    }

    /// An object lost its name. Its value is kept for those who have it open.
    pub fn orphan(&mut self, record: &Record, is_open: bool) {
        let node = self.node(record.ino);
        if self.holds(node) {
            self.orphans.insert(node, if is_open { record.clone() } else { bare(record) });
        }
    }

    /// Somebody who has an orphan open has written to it.
    pub fn write_orphan(&mut self, node: NodeId, value: Bytes) {
        if let Some(record) = self.orphans.get_mut(&node) {
            record.value = value;
        }
    }

    /// The record of an orphan.
    pub fn orphaned(&self, node: NodeId) -> Option<&Record> {
        self.orphans.get(&node)
    }

    /// The value of a held file changed.
    pub fn value_changed(&mut self, ino: Ino, now: Instant) {
        let node = self.node(ino);
        if self.holds(node) {
            self.changed.insert(node, now);
        }
    }

    /// When the value last changed while the kernel held the file.
    pub fn last_change(&self, node: NodeId) -> Option<Instant> {
        self.changed.get(&node).copied()
    }

    /// A file is opened for cached reading at `version`: whether what the kernel has cached is that.
    pub fn keep_cache(&mut self, node: NodeId, version: u64) -> bool {
        self.filled.insert(node, version) == Some(version)
    }

    /// Numbers of all that the kernel holds.
    pub fn held(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.lookups.keys().copied()
    }
}
