//! The mounted subtree in memory: what all reads are served from.
//!
//! It is pure: events and copies go in, net changes come out. The mounted directory has the number 1
//! here, whatever its number in the store is, because FUSE wants that of a root.

mod diff;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use quorumfs_api::event::{Change, Event, Place};
use quorumfs_api::key::Name;
use quorumfs_api::record::{Ino, Kind, Record, Revision};
use quorumfs_api::style::EventStyle;
use quorumfs_api::wire;

pub use diff::difference;

/// A name in a directory.
pub type At = (Ino, Name);

/// An event does not fit to what is here: a new copy is needed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the mirror is out of step with the store: {0}; a new copy of the tree is taken")]
pub struct OutOfStep(pub String);

/// One change of the tree, with what was before as far as replaying it needs that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Net {
    /// Something was made.
    Create {
        /// Where.
        at: At,
        /// Its number.
        ino: Ino,
        /// What it is.
        kind: Kind,
    },
    /// A file has a new value.
    Update {
        /// Its number.
        ino: Ino,
    },
    /// Attributes changed.
    Attr {
        /// Whose.
        ino: Ino,
    },
    /// Something is gone.
    Remove {
        /// Where it was.
        at: At,
        /// What it was.
        record: Record,
    },
    /// Something has another name.
    Rename {
        /// Old name.
        from: At,
        /// New name.
        to: At,
        /// Number of what was renamed.
        ino: Ino,
        /// What was replaced.
        replaced: Option<Record>,
        /// What has the old name now.
        exchanged: Option<Ino>,
    },
    /// Locks on a file were given up.
    Unlocked {
        /// The file.
        ino: Ino,
    },
    /// No change by itself: it follows those of one revision in a directory that has a `..data`.
    Swap {
        /// The directory.
        dir: Ino,
    },
}

/// What else a rename concerns.
type Other = (Ino, Kind);

/// The names in a directory.
#[derive(Clone, Debug, Default)]
pub struct Dir {
    /// In order.
    pub children: BTreeMap<Name, Ino>,
    /// How many of them are directories.
    pub subdirs: u32,
}

/// One object.
#[derive(Clone, Debug)]
pub struct Node {
    /// All that the store knows of it.
    pub record: Record,
    /// Its name; `None` for the root.
    pub at: Option<At>,
    /// For a directory, what is in it.
    pub dir: Option<Box<Dir>>,
}

/// The tree.
#[derive(Clone, Debug, Default)]
pub struct Mirror {
    // Boxed, because up to half of a hash table is empty.
    nodes: HashMap<Ino, Box<Node>>,
    /// Names of authors, each once: there are few of them and many records.
    authors: HashSet<Arc<str>>,
    /// The store's number of the mounted directory, while it exists.
    root: Option<Ino>,
    /// The tree is that of this revision.
    pub revision: Revision,
}

/// A record without its value, for what only needs its attributes.
pub fn bare(record: &Record) -> Record {
    Record { value: Bytes::new(), ..record.clone() }
}

impl Mirror {
    /// Begins a copy.
    pub fn begin(revision: Revision, root: Option<Record>) -> Mirror {
        let mut mirror = Mirror { revision, ..Mirror::default() };
        if let Some(mut record) = root.filter(|record| record.kind == Kind::Dir) {
            mirror.root = Some(record.ino);
            record.ino = Ino::ROOT;
            let node = Node { record, at: None, dir: Some(Box::default()) };
            mirror.nodes.insert(Ino::ROOT, Box::new(node));
        }
        mirror
    }

    /// A tree without values, of objects that come in no order. What does not fit is left out.
    pub fn of_parts(parts: impl Iterator<Item = (Option<At>, Record)>) -> Mirror {
        let mut mirror = Mirror::default();
        let mut waiting: HashMap<Ino, Vec<(At, Record)>> = HashMap::new();
        for (at, record) in parts {
            match at {
                Some(at) => waiting.entry(at.0).or_default().push((at, record)),
                None if record.kind == Kind::Dir => {
                    let node = Node { record, at: None, dir: Some(Box::default()) };
                    mirror.nodes.insert(Ino::ROOT, Box::new(node));
                }
                None => {}
            }
        }
        let mut dirs = vec![Ino::ROOT];
        while let Some(dir) = dirs.pop() {
            for (at, record) in waiting.remove(&dir).unwrap_or_default() {
                let (ino, kind) = (record.ino, record.kind);
                match mirror.insert(at, record) {
                    Ok(()) if kind == Kind::Dir => dirs.push(ino),
                    Ok(()) => {}
                    Err(error) => tracing::debug!(%error, "left out"),
                }
            }
        }
        mirror
    }

    /// Adds a part of a copy.
    pub fn add(&mut self, nodes: Vec<wire::Node>) -> Result<(), OutOfStep> {
        for node in nodes {
            let parent = self.inner(node.parent);
            self.insert((parent, node.name), node.record)?;
        }
        Ok(())
    }

    /// Number here of what has this number in the store.
    pub fn inner(&self, ino: Ino) -> Ino {
        if self.root == Some(ino) { Ino::ROOT } else { ino }
    }

    /// Number in the store of what has this number here; `None` for a root that does not exist.
    pub fn outer(&self, ino: Ino) -> Option<Ino> {
        if ino == Ino::ROOT { self.root } else { Some(ino) }
    }

    /// An object.
    pub fn get(&self, ino: Ino) -> Option<&Node> {
        self.nodes.get(&ino).map(Box::as_ref)
    }

    /// What is in a directory.
    pub fn dir(&self, ino: Ino) -> Option<&Dir> {
        self.get(ino)?.dir.as_deref()
    }

    /// What has a name.
    pub fn child(&self, parent: Ino, name: &Name) -> Option<Ino> {
        self.dir(parent)?.children.get(name).copied()
    }

    /// How changes in a directory are to look: what it says itself, or the nearest above it that says
    /// anything; `None` where nobody does. What is above the mounted directory is not seen here.
    pub fn style(&self, dir: Ino) -> Option<EventStyle> {
        let mut next = self.get(dir);
        while let Some(node) = next {
            let said = EventStyle::of(&node.record);
            if said.is_some() {
                return said;
            }
            next = node.at.as_ref().and_then(|at| self.get(at.0));
        }
        None
    }

    /// A text that is another one after every change of what is in a directory, and the same on every mount
    /// that may read the same keys: the newest revision of any record in it, and how many there are.
    pub fn fingerprint(&self, dir: Ino) -> Option<String> {
        let children = &self.dir(dir)?.children;
        let newest = children.values().filter_map(|ino| Some(self.get(*ino)?.record.mod_revision)).max();
        Some(format!("{}.{}", newest.unwrap_or(0), children.len()))
    }

    /// How many objects there are.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether there is not even a root.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// All objects, in no order.
    pub fn objects(&self) -> impl Iterator<Item = &Node> {
        self.nodes.values().map(Box::as_ref)
    }

    /// All numbers, in no order.
    pub fn inos(&self) -> impl Iterator<Item = Ino> + '_ {
        self.nodes.keys().copied()
    }

    /// That name, in memory once.
    fn author(&mut self, author: Arc<str>) -> Arc<str> {
        if let Some(known) = self.authors.get(&author) {
            return known.clone();
        }
        // As many as have ever written while this tree was followed: a new copy begins anew.
        self.authors.insert(author.clone());
        author
    }

    fn insert(&mut self, at: At, mut record: Record) -> Result<(), OutOfStep> {
        record.author = self.author(record.author);
        let (ino, kind) = (record.ino, record.kind);
        if self.nodes.contains_key(&ino) {
            return Err(OutOfStep(format!("inode {ino} is made twice")));
        }
        self.link(&at, ino, kind)?;
        let dir = (kind == Kind::Dir).then(Box::default);
        self.nodes.insert(ino, Box::new(Node { record, at: Some(at), dir }));
        Ok(())
    }

    fn link(&mut self, at: &At, ino: Ino, kind: Kind) -> Result<(), OutOfStep> {
        let dir = self.nodes.get_mut(&at.0).and_then(|node| node.dir.as_mut());
        let dir = dir.ok_or_else(|| OutOfStep(format!("{} has no directory {}", at.1, at.0)))?;
        if dir.children.insert(at.1.clone(), ino).is_some() {
            return Err(OutOfStep(format!("the name {} in {} is taken", at.1, at.0)));
        }
        dir.subdirs += u32::from(kind == Kind::Dir);
        Ok(())
    }

    fn unlink(&mut self, at: &At, ino: Ino, kind: Kind) -> Result<(), OutOfStep> {
        let dir = self.nodes.get_mut(&at.0).and_then(|node| node.dir.as_mut());
        let dir = dir.ok_or_else(|| OutOfStep(format!("{} has no directory {}", at.1, at.0)))?;
        if dir.children.remove(&at.1) != Some(ino) {
            return Err(OutOfStep(format!("the name {} in {} is not that of inode {ino}", at.1, at.0)));
        }
        dir.subdirs -= u32::from(kind == Kind::Dir);
        Ok(())
    }

    fn touch(&mut self, dir: Ino, event: &Event) {
        if let Some(node) = self.nodes.get_mut(&dir) {
            node.record.mtime = event.time;
            node.record.ctime = event.time;
        }
    }

    fn existing(&mut self, ino: Ino) -> Result<&mut Node, OutOfStep> {
        self.nodes
            .get_mut(&ino)
            .map(Box::as_mut)
            .ok_or_else(|| OutOfStep(format!("inode {ino} is not known")))
    }

    fn at(&self, place: Place) -> At {
        (self.inner(place.parent), place.name)
    }

    /// Takes in one revision. Those that are in already are passed over. After an error the tree is of
    /// no use any more.
    pub fn apply(&mut self, event: Event) -> Result<Vec<Net>, OutOfStep> {
        if event.revision <= self.revision {
            return Ok(Vec::new());
        }
        if self.root.is_none() {
            // There is no directory to mount. When there is one, a copy comes; a file is of no interest.
            self.revision = event.revision;
            return Ok(Vec::new());
        }
        let mut net = Vec::with_capacity(event.changes.len());
        let mut changes = event.changes;
        let event = Event { changes: Vec::new(), author: event.author, ..event };
        for change in changes.drain(..) {
            self.change(change, &event, &mut net)?;
        }
        self.revision = event.revision;
        Ok(net)
    }

    fn change(&mut self, change: Change, event: &Event, net: &mut Vec<Net>) -> Result<(), OutOfStep> {
        match change {
            Change::Create { place, record } => {
                let at = self.at(place);
                let (ino, kind) = (record.ino, record.kind);
                self.insert(at.clone(), record)?;
                self.touch(at.0, event);
                net.push(Net::Create { at, ino, kind });
            }
            Change::Update { mut record, .. } => {
                record.author = self.author(record.author);
                let ino = self.inner(record.ino);
                self.existing(ino)?.record = record;
                net.push(Net::Update { ino });
            }
            Change::Attr { mut record, .. } => {
                let ino = self.inner(record.ino);
                record.ino = ino;
                record.author = self.author(record.author);
                let node = self.existing(ino)?;
                // The value is left out of such an event because it did not change.
                record.value = node.record.value.clone();
                node.record = record;
                net.push(Net::Attr { ino });
            }
            Change::Remove { place, ino, .. } => {
                let at = self.at(place);
                self.remove(at, ino, event, net)?;
            }
            Change::Rename { from, to, ino, replaced, exchanged, .. } => {
                let (from, to) = (self.at(from), self.at(to));
                self.rename(from, to, ino, (replaced, exchanged), event, net)?;
            }
            Change::Unlocked { ino } => net.push(Net::Unlocked { ino }),
        }
        Ok(())
    }

    /// Takes away an object and, where a directory went out of sight as a whole, all that is in it.
    fn remove(&mut self, at: At, ino: Ino, event: &Event, net: &mut Vec<Net>) -> Result<(), OutOfStep> {
        let mut doomed = vec![(at, ino)];
        let mut next = 0;
        while let Some((_, ino)) = doomed.get(next) {
            let ino = *ino;
            next += 1;
            if let Some(dir) = self.dir(ino) {
                doomed.extend(dir.children.iter().map(|(name, child)| ((ino, name.clone()), *child)));
            }
        }
        for (at, ino) in doomed.into_iter().rev() {
            let kind = self.existing(ino)?.record.kind;
            self.unlink(&at, ino, kind)?;
            self.touch(at.0, event);
            if let Some(node) = self.nodes.remove(&ino) {
                net.push(Net::Remove { at, record: node.record });
            }
        }
        Ok(())
    }

    fn rename(
        &mut self,
        from: At,
        to: At,
        ino: Ino,
        (replaced, exchanged): (Option<Other>, Option<Other>),
        event: &Event,
        net: &mut Vec<Net>,
    ) -> Result<(), OutOfStep> {
        let kind = self.existing(ino)?.record.kind;
        self.unlink(&from, ino, kind)?;
        let mut gone = None;
        if let Some((old, kind)) = replaced {
            self.unlink(&to, old, kind)?;
            gone = self.nodes.remove(&old).map(|node| node.record);
        }
        if let Some((other, kind)) = exchanged {
            self.unlink(&to, other, kind)?;
            self.link(&from, other, kind)?;
            self.settle(other, from.clone(), event)?;
        }
        self.link(&to, ino, kind)?;
        self.settle(ino, to.clone(), event)?;
        self.touch(from.0, event);
        self.touch(to.0, event);
        net.push(Net::Rename { from, to, ino, replaced: gone, exchanged: exchanged.map(|(ino, _)| ino) });
        Ok(())
    }

    fn settle(&mut self, ino: Ino, at: At, event: &Event) -> Result<(), OutOfStep> {
        let author = self.author(event.author.as_str().into());
        let node = self.existing(ino)?;
        node.at = Some(at);
        node.record.ctime = event.time;
        node.record.mod_revision = event.revision;
        node.record.author = author;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
