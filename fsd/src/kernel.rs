//! What the kernel knows: which inodes it holds, and by which numbers.
//!
//! Most objects are known by the number that the store gave them. A file that was created here and is
//! not published yet has a *provisional* number; once it is published (or somebody else made its name)
//! that number is an *alias* of the real one for as long as the kernel holds it, because the kernel
//! cannot be told that an inode has another number now. A file whose new value is shown as a rename gets
//! an alias as well: to the kernel, what a rename replaces must be another inode.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use quorumfs_api::record::{Ino, Kind, Record};

use crate::mirror::{At, Mirror, bare};
use crate::swap::Made;

/// Number of an inode between the kernel and us.
pub type NodeId = u64;

/// Provisional numbers begin here: the store counts from 1 and never comes so far.
const PROVISIONAL: NodeId = 1 << 63;
/// So many of them each worker of a mount has to itself.
const PROVISIONAL_STEP: NodeId = 1 << 40;

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

/// The directory out of which the replayer moves what it shows as a rename. Nobody else ever finds it.
pub const STAGE: NodeId = PROVISIONAL;

/// What a number stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Object {
    /// Something in the mirror.
    Real(Ino),
    /// Something that only this mount has.
    Private,
    /// Something that has no name any more, but the kernel holds it.
    Orphan,
    /// A symbolic link that is in no store: see [`swap`](crate::swap).
    Link,
    /// Nothing.
    Gone,
}

/// See the [module](self).
#[derive(Debug, Default)]
pub struct Kernel {
    lookups: HashMap<NodeId, u64>,
    /// What an earlier worker gave it. How often is not known, so what the kernel gives back tells nothing:
    /// they are held until the kernel says that it does not know them.
    inherited: HashSet<NodeId>,
    /// Of those, what the kernel has given something back of.
    doubtful: Vec<NodeId>,
    real: HashMap<NodeId, Ino>,
    /// The number by which a file's name is known, where it is another than the store's.
    alias: HashMap<Ino, NodeId>,
    /// All provisional numbers that the kernel holds for a file: those that are not its alias are known to
    /// who opened or watches it.
    numbers: HashMap<Ino, Vec<NodeId>>,
    links: HashMap<NodeId, Record>,
    /// Which of them the kernel was told of for a directory.
    made_links: HashMap<(Ino, Made), NodeId>,
    /// What the replayer is about to move into its place.
    staged: Option<NodeId>,
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

    /// All numbers by which the kernel may hold `ino`.
    pub fn nodes(&self, ino: Ino) -> Vec<NodeId> {
        let provisional = self.numbers.get(&ino).into_iter().flatten().copied();
        std::iter::once(ino.0).chain(provisional).filter(|node| self.holds(*node)).collect()
    }

    /// What the kernel's number stands for.
    pub fn resolve(&self, node: NodeId, mirror: &Mirror) -> Object {
        if self.privates.contains_key(&node) {
            return Object::Private;
        }
        if self.links.contains_key(&node) {
            return Object::Link;
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
        node == Ino::ROOT.0 || self.lookups.contains_key(&node) || self.inherited.contains(&node)
    }

    /// The kernel holds it from an earlier worker.
    pub fn inherit(&mut self, node: NodeId) {
        self.inherited.insert(node);
    }

    /// Whether it does: then somebody may have it open without our knowledge.
    pub fn is_inherited(&self, node: NodeId) -> bool {
        self.inherited.contains(&node)
    }

    /// The kernel says that it does not know that number. What was given to it since then may still be on
    /// its way.
    pub fn is_unknown(&mut self, node: NodeId) {
        if !self.lookups.contains_key(&node) && self.inherited.remove(&node) {
            self.let_go(node);
        }
    }

    /// What the kernel should be asked for whether it still holds it.
    pub fn take_doubtful(&mut self) -> Vec<NodeId> {
        std::mem::take(&mut self.doubtful)
    }

    /// Numbers for private files are those of this worker from here on.
    pub fn set_generation(&mut self, generation: u32) {
        self.made = u64::from(generation) * PROVISIONAL_STEP;
    }

    /// A private file that an earlier worker made.
    pub fn restore_private(&mut self, node: NodeId, at: At, record: Record) {
        self.names.insert(at.clone(), node);
        self.privates.insert(node, Private { at, record, gate: Arc::default() });
    }

    /// A number that an earlier worker gave to a file; `is_its_names` if it is the one that its name has.
    pub fn restore_alias(&mut self, node: NodeId, ino: Ino, is_its_names: bool) {
        self.real.insert(node, ino);
        self.numbers.entry(ino).or_default().push(node);
        if is_its_names {
            self.alias.insert(ino, node);
        }
    }

    /// A symbolic link that an earlier worker made up.
    pub fn restore_link(&mut self, node: NodeId, record: Record) {
        self.links.insert(node, record);
    }

    /// The link of a directory that an earlier worker told of.
    pub fn restore_link_of(&mut self, dir: Ino, made: Made, node: NodeId) {
        if self.links.contains_key(&node) {
            self.made_links.insert((dir, made), node);
        }
    }

    /// What has no name any more since an earlier worker.
    pub fn restore_orphan(&mut self, node: NodeId, record: Record) {
        self.orphans.insert(node, record);
    }

    /// The kernel gives back so many of what it was given.
    pub fn forget(&mut self, node: NodeId, count: u64) {
        if self.inherited.contains(&node) {
            return self.doubtful.push(node);
        }
        let Some(lookups) = self.lookups.get_mut(&node) else { return };
        *lookups = lookups.saturating_sub(count);
        if *lookups > 0 {
            return;
        }
        self.lookups.remove(&node);
        self.let_go(node);
    }

    fn let_go(&mut self, node: NodeId) {
        // It stands for nothing from here on: whoever moves something in gets another number.
        self.staged.take_if(|staged| *staged == node);
        self.orphans.remove(&node);
        self.filled.remove(&node);
        self.changed.remove(&node);
        if self.links.remove(&node).is_some() {
            self.made_links.retain(|_, link| *link != node);
        }
        if let Some(ino) = self.real.remove(&node) {
            if self.alias.get(&ino) == Some(&node) {
                self.alias.remove(&ino);
            }
            if let Some(numbers) = self.numbers.get_mut(&ino) {
                numbers.retain(|number| *number != node);
                if numbers.is_empty() {
                    self.numbers.remove(&ino);
                }
            }
        }
    }

    fn provisional(&mut self) -> NodeId {
        self.made += 1;
        PROVISIONAL + self.made
    }

    /// Another number for a file, which becomes its alias with [`Kernel::moved_in`].
    pub fn stage(&mut self, ino: Ino) -> NodeId {
        if let Some(node) = self.staged {
            return node;
        }
        let node = self.provisional();
        self.real.insert(node, ino);
        self.numbers.entry(ino).or_default().push(node);
        self.staged = Some(node);
        node
    }

    /// A new symbolic link, which becomes the directory's with [`Kernel::moved_in_link`].
    pub fn stage_link(&mut self, record: Record) -> NodeId {
        if let Some(node) = self.staged {
            return node;
        }
        let node = self.provisional();
        self.links.insert(node, record);
        self.staged = Some(node);
        node
    }

    /// A number for a symbolic link that is in no store.
    pub fn make_link(&mut self, dir: Ino, made: Made, record: Record) -> NodeId {
        let node = self.provisional();
        self.links.insert(node, record);
        self.made_links.insert((dir, made), node);
        node
    }

    /// A symbolic link that is in no store.
    pub fn link(&self, node: NodeId) -> Option<&Record> {
        self.links.get(&node)
    }

    /// The kernel has what was staged in place of what it had. Answers the number that the name has now.
    pub fn moved_in(&mut self, ino: Ino) -> Option<NodeId> {
        let node = self.staged.take()?;
        self.alias.insert(ino, node);
        Some(node)
    }

    /// The kernel has the new `..data` of a directory. Answers its number.
    pub fn moved_in_link(&mut self, dir: Ino) -> Option<NodeId> {
        let node = self.staged.take()?;
        self.made_links.insert((dir, Made::Data), node);
        Some(node)
    }

    /// What is staged stays out.
    pub fn unstage(&mut self) {
        self.staged = None;
    }

    /// A link of a directory that the kernel was told of.
    pub fn link_of(&self, dir: Ino, made: Made) -> Option<NodeId> {
        self.made_links.get(&(dir, made)).copied()
    }

    /// The `..data` that was told of is not what it should be: who asks next is told of another one.
    pub fn outdate_data(&mut self, dir: Ino) {
        self.made_links.remove(&(dir, Made::Data));
    }

    /// Makes a private file; `record` gets its provisional number.
    pub fn make_private(&mut self, at: At, record: impl FnOnce(Ino) -> Record) -> NodeId {
        let node = self.provisional();
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
        self.numbers.entry(ino).or_default().push(node);
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
    pub fn orphan(&mut self, record: &Record, is_open: impl Fn(NodeId) -> bool) {
        for node in self.nodes(record.ino) {
            // What the kernel has from an earlier worker may be open without our knowledge.
            let is_open = is_open(node) || self.inherited.contains(&node);
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
        for node in self.nodes(ino) {
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
        let more = self.inherited.iter().filter(|node| !self.lookups.contains_key(node));
        self.lookups.keys().chain(more).copied()
    }
}
