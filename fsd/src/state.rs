//! What one lock holds: the tree, what the kernel knows of it, the open files and the replay queue. Here it is decided what
//! a change of the tree means for them.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use quorumfs_api::limits::VALUE_MAX_LIMIT;
use quorumfs_api::record::{Ino, Kind, Record};
use quorumfs_api::style::EventStyle;

use crate::attr::{Attr, Overrides};
use crate::errno::{Errno, Result};
use crate::handle::Handles;
use crate::handover::journal::Journal;
use crate::inherit::Inherited;
use crate::kernel::{Kernel, NodeId, Object, STAGE};
use crate::locked::Locked;
use crate::mirror::{At, Mirror, Net};
use crate::replay::queue::Queue;
use crate::rights::MountRights;

/// How long a limit that a node told of is taken for granted: it may be raised.
const LIMIT_MEMORY: Duration = Duration::from_secs(60);

/// What a request to the store concerns: an event of our session that fits to one is the answer to a
/// system call that is under way, for which the kernel fires the events by itself.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Touch {
    /// A name.
    Name(At),
    /// An object.
    Ino(Ino),
}

/// See the [module](self).
#[derive(Default)]
pub struct State {
    /// The tree.
    pub mirror: Mirror,
    /// How changes look in directories that do not say.
    pub events: EventStyle,
    /// What the kernel holds.
    pub kernel: Kernel,
    /// Open files.
    pub handles: Handles,
    /// What waits to be replayed.
    pub queue: Queue,
    /// Requests under way, with how many of each.
    pub inflight: HashMap<Touch, usize>,
    /// Files with a release that is still being published, with how many.
    pub settling: HashMap<NodeId, usize>,
    /// Locks taken through this mount.
    pub locked: Locked,
    /// What the kernel holds for names that a call under way here takes away or gives.
    pub believed: HashMap<At, Option<Ino>>,
    /// Names at which such a call met something else than the kernel holds.
    pub surprised: HashSet<At>,
    /// Who was asked to look up which name again before taking it away.
    pub looked_again: HashSet<(u32, At)>,
    /// The largest value that the nodes accept, from when they last refused a larger one.
    pub value_max: Option<(u64, Instant)>,
    /// What this mount may do, once it was told.
    pub rights: Option<MountRights>,
    /// The kernel has not been told yet of what the mirror has: nothing is replayed.
    pub held_back: bool,
    /// Of which files. Who reads them through the page cache still gets what the kernel believes in, with
    /// the length that goes with it.
    pub untold: HashSet<NodeId>,
    /// Files that are read through the page cache, of whose change the kernel was told: it takes the new
    /// value with the attributes that it asks for next, and not before.
    pub told: HashSet<NodeId>,
    /// Changes replayed or passed over since the start.
    pub replayed: u64,
    /// The kernel is connected: what changes from now on has to be shown to it.
    pub connected: bool,
    /// Where the next worker finds what it has to know, if there will be one.
    pub journal: Option<Arc<Journal>>,
    /// Version of each value that was noted for those who read it.
    pub kept: HashMap<Ino, u64>,
    /// What an earlier worker has left.
    pub inherited: Inherited,
}

/// Names that callers were sent to look up again and have not come back for; more than callers there are.
const LOOKED_AGAIN_MAX: usize = 4096;

impl State {
    /// The largest value that can be written, as far as it is known.
    pub fn value_limit(&self) -> u64 {
        match self.value_max {
            Some((limit, learned)) if learned.elapsed() < LIMIT_MEMORY => limit,
            _ => VALUE_MAX_LIMIT,
        }
    }

    /// Whether a system call that is under way here asked for this change. One that was given up
    /// before it was done is not: the kernel fired nothing for it.
    pub(crate) fn is_asked(&self, net: &Net) -> bool {
        let asked = |touch: Touch| self.inflight.contains_key(&touch);
        match net {
            Net::Create { at, .. } | Net::Remove { at, .. } => asked(Touch::Name(at.clone())),
            Net::Rename { from, .. } => asked(Touch::Name(from.clone())),
            Net::Update { ino } | Net::Attr { ino } => {
                let at = self.mirror.get(*ino).and_then(|node| node.at.clone());
                asked(Touch::Ino(*ino)) || at.is_some_and(|at| asked(Touch::Name(at)))
            }
            Net::Unlocked { ino } => asked(Touch::Ino(*ino)),
            Net::Swap { .. } => false,
        }
    }

    /// Whether a change that was asked for here met a directory, or took something away, that is not what the
    /// kernel holds for that name. The caller is told to look again, and the change is replayed as others' are:
    /// if the kernel went on with what it holds, a living directory would be dead for it.
    pub(crate) fn is_surprised(&mut self, changes: &[Net]) -> bool {
        let mut surprised = Vec::new();
        for net in changes {
            match net {
                Net::Remove { at, record } if self.is_other(at, Some(record.ino)) => surprised.push(at),
                Net::Rename { from, to, ino, replaced, exchanged } => {
                    if self.is_other(from, Some(*ino)) {
                        surprised.push(from);
                    }
                    let there = replaced.as_ref().map(|record| record.ino).or(*exchanged);
                    if self.is_other(to, there) && (exchanged.is_some() || self.believes_in_dir(to)) {
                        surprised.push(from);
                    }
                }
                _ => {}
            }
        }
        let any = !surprised.is_empty();
        self.surprised.extend(surprised.into_iter().cloned());
        any
    }

    fn is_other(&self, at: &At, met: Option<Ino>) -> bool {
        self.believed.get(at).is_some_and(|believed| *believed != met)
    }

    fn believes_in_dir(&self, at: &At) -> bool {
        // What is gone may have been one.
        let kind = |ino: Ino| self.mirror.get(ino).map_or(Kind::Dir, |node| node.record.kind);
        self.believed.get(at).copied().flatten().is_some_and(|ino| kind(ino) == Kind::Dir)
    }

    /// Before a name is taken away: if changes of it are not shown yet, what the kernel holds for it may be
    /// old. It looks a name up again when it is told that it is stale, and asks again.
    pub fn look_again(&mut self, pid: u32, at: &At) -> Result<()> {
        let asked = (pid, at.clone());
        if self.looked_again.remove(&asked) || !self.queue.is_pending(at) {
            return Ok(());
        }
        if self.looked_again.len() >= LOOKED_AGAIN_MAX {
            self.looked_again.clear();
        }
        self.looked_again.insert(asked);
        Err(Errno::ESTALE)
    }

    /// What a change of the tree means for what the kernel holds, and for the replay.
    pub(crate) fn take_in(&mut self, net: Net, own: bool, stale: &mut HashSet<NodeId>) {
        if !self.connected {
            return;
        }
        let mut show = |kernel: &Kernel, ino: Ino| stale.extend(kernel.nodes(ino));
        let mut was_private = false;
        match &net {
            Net::Create { at, ino, kind } => {
                show(&self.kernel, at.0);
                was_private = *kind == Kind::File && self.kernel.private_at(at).is_some();
                self.came_to_be(at, *ino, *kind);
                self.kernel.value_changed(*ino, Instant::now());
                show(&self.kernel, *ino);
            }
            Net::Update { ino } => {
                self.kernel.value_changed(*ino, Instant::now());
                show(&self.kernel, *ino);
            }
            Net::Attr { ino } => show(&self.kernel, *ino),
            Net::Remove { at, record } => {
                show(&self.kernel, at.0);
                show(&self.kernel, record.ino);
                self.orphan(record);
            }
            Net::Rename { from, to, ino, replaced, exchanged } => {
                for ino in [Some(from.0), Some(to.0), Some(*ino), *exchanged].into_iter().flatten() {
                    show(&self.kernel, ino);
                }
                if let Some(record) = replaced {
                    show(&self.kernel, record.ino);
                    self.orphan(record);
                }
                if let Some(kind) = self.mirror.get(*ino).map(|node| node.record.kind) {
                    self.came_to_be(to, *ino, kind);
                }
            }
            Net::Unlocked { .. } | Net::Swap { .. } => {}
        }
        if own && !self.queue.concerns(&net) {
            return self.take_in_own(net);
        }
        if let (Net::Create { at, ino, .. }, true) = (&net, was_private) {
            self.note_name(at, *ino);
        }
        match net {
            // The kernel has fired the creation when the private file was made. What is new is the value.
            Net::Create { ino, .. } if was_private => self.queue.push(Net::Update { ino }),
            net => self.queue.push(net),
        }
    }

    /// The kernel has fired the events of a local change by itself. Where changes are to look like renames,
    /// programs of this host wait for one as well: until it has come, their value is not noted as shown.
    pub(crate) fn take_in_own(&mut self, net: Net) {
        let renames = |dir: Ino| self.style(dir) == EventStyle::Rename;
        let parent = |ino: Ino| self.mirror.get(ino).and_then(|node| node.at.as_ref()).map(|at| at.0);
        match net {
            Net::Create { at, ino, kind: Kind::File } if renames(at.0) => {
                self.note_name(&at, ino);
                self.queue.push(Net::Update { ino });
            }
            Net::Update { ino } if parent(ino).is_some_and(renames) => self.queue.push(net),
            // This is the rename that they wait for.
            Net::Rename { ref to, ino, .. } if renames(to.0) => {
                self.note_all(&self.notes_of(&net));
                if self.queue.drop_update(ino) {
                    self.note_all(&self.notes_of(&Net::Update { ino }));
                }
            }
            net => self.note_all(&self.notes_of(&net)),
        }
    }

    /// How changes in that directory look.
    pub fn style(&self, dir: Ino) -> EventStyle {
        self.mirror.style(dir).unwrap_or(self.events)
    }

    /// The directories with a `..data` in which something changed, each once.
    pub(crate) fn swaps(&self, changes: &[Net]) -> BTreeSet<Ino> {
        let parent = |ino: &Ino| self.mirror.get(*ino).and_then(|node| node.at.as_ref()).map(|at| at.0);
        let dirs = changes.iter().flat_map(|net| match net {
            Net::Create { at, .. } | Net::Remove { at, .. } => [Some(at.0), None],
            Net::Rename { from, to, .. } => [Some(from.0), Some(to.0)],
            Net::Update { ino } | Net::Attr { ino } => [parent(ino), None],
            Net::Unlocked { .. } | Net::Swap { .. } => [None, None],
        });
        dirs.flatten().filter(|dir| self.style(*dir) == EventStyle::Swap).collect()
    }

    /// Attributes of a number as everybody sees them.
    pub fn attr(&self, node: NodeId, shown: &Overrides) -> Option<Attr> {
        match self.kernel.resolve(node, &self.mirror) {
            Object::Real(ino) => self.attr_as(ino, node, shown),
            Object::Private => Some(Attr::of(&self.kernel.private(node)?.record, node, 0, shown)),
            Object::Orphan => self.kernel.orphaned(node).map(|record| orphan_attr(record, node, shown)),
            Object::Link => Some(Attr::of(self.kernel.link(node)?, node, 0, shown)),
            Object::Gone if node == STAGE => {
                // The kernel asks whether the replayer may take something away there, whoever it runs as.
                Some(Attr { mode: 0o777, ..Attr::of(&missing_root(), node, 0, shown) })
            }
            Object::Gone if node == Ino::ROOT.0 => Some(Attr::of(&missing_root(), node, 0, shown)),
            Object::Gone => None,
        }
    }

    /// Attributes of something in the tree.
    pub fn attr_of(&self, ino: Ino, shown: &Overrides) -> Option<Attr> {
        self.attr_as(ino, self.kernel.node(ino), shown)
    }

    /// The same under one of its numbers: each has readers of its own.
    pub fn attr_as(&self, ino: Ino, number: NodeId, shown: &Overrides) -> Option<Attr> {
        let node = self.mirror.get(ino)?;
        let subdirs = node.dir.as_ref().map_or(0, |dir| dir.subdirs);
        Some(self.as_told(Attr::of(&node.record, number, subdirs, shown)))
    }
}

/// What has no name has no links.
pub fn orphan_attr(record: &Record, node: NodeId, shown: &Overrides) -> Attr {
    Attr { nlink: 0, ..Attr::of(record, node, 0, shown) }
}

/// What is shown while the mounted prefix does not exist: an empty directory that nobody can write.
fn missing_root() -> Record {
    Record { mode: 0o555, ..Record::unmade(Ino::ROOT, Kind::Dir) }
}
