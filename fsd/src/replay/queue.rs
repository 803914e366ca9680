//! What waits to be replayed, and the tree as it is for the replayer: that of the change which it is
//! about to perform, while the mirror is ahead already. Pure.

use std::collections::{HashMap, HashSet, VecDeque};
use std::path::PathBuf;

use quorumfs_api::record::{Ino, Kind, Record};

use crate::mirror::{At, Mirror, Net, bare};

/// From this length on, files that were made and are gone again are taken out of the queue.
const COMPACT_FROM: usize = 4096;

/// A name whose replay is pending.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Pending {
    /// What the replayer finds there now.
    seen: Option<Ino>,
    /// Changes in the queue that concern it.
    count: usize,
}

/// Something whose place, or existence, the replayer sees differently.
#[derive(Clone, Debug)]
struct Moved {
    at: At,
    count: usize,
}

/// See the [module](self).
#[derive(Debug, Default)]
pub struct Queue {
    waiting: VecDeque<Net>,
    current: Option<Net>,
    /// The kernel has asked for what is under way.
    performed: bool,
    challenged: bool,
    names: HashMap<At, Pending>,
    places: HashMap<Ino, Moved>,
    /// What is gone from the tree, and the replayer has yet to take away.
    ghosts: HashMap<Ino, Record>,
    updates: HashSet<Ino>,
    attrs: HashSet<Ino>,
    swaps: HashSet<Ino>,
    compacted_at: usize,
}

impl Queue {
    /// Adds a change that the mirror has taken in just now.
    pub fn push(&mut self, mut net: Net) {
        // Nobody reads what is gone: the value must not wait here.
        match &mut net {
            Net::Remove { record, .. } | Net::Rename { replaced: Some(record), .. }
                if record.kind == Kind::File =>
            {
                *record = bare(record);
            }
            _ => {}
        }
        match &net {
            Net::Unlocked { .. } => return,
            // The event of the one that waits comes after this value is readable: one is enough.
            Net::Update { ino } if !self.updates.insert(*ino) => return,
            Net::Attr { ino } if !self.attrs.insert(*ino) => return,
            Net::Swap { dir } if !self.swaps.insert(*dir) => return,
            Net::Update { .. } | Net::Attr { .. } | Net::Swap { .. } => {}
            Net::Create { at, ino, kind } => {
                self.expect(at, None);
                // Its replay tells of whatever value it has by then.
                if *kind == Kind::File {
                    self.updates.insert(*ino);
                }
            }
            Net::Remove { at, record } => {
                self.expect(at, Some(record.ino));
                self.displace(record.ino, at);
                self.ghosts.insert(record.ino, record.clone());
            }
            Net::Rename { from, to, ino, replaced, exchanged } => {
                let there = replaced.as_ref().map(|record| record.ino).or(*exchanged);
                self.expect(from, Some(*ino));
                self.expect(to, there);
                self.displace(*ino, from);
                if let Some(other) = there {
                    self.displace(other, to);
                }
                if let Some(record) = replaced {
                    self.ghosts.insert(record.ino, record.clone());
                }
            }
        }
        self.waiting.push_back(net);
        if self.waiting.len() >= COMPACT_FROM.max(2 * self.compacted_at) {
            self.compact();
            self.compacted_at = self.waiting.len();
        }
    }

    fn expect(&mut self, at: &At, before: Option<Ino>) {
        let pending = self.names.entry(at.clone()).or_insert(Pending { seen: before, count: 0 });
        pending.count += 1;
    }

    fn displace(&mut self, ino: Ino, at: &At) {
        let moved = self.places.entry(ino).or_insert(Moved { at: at.clone(), count: 0 });
        moved.count += 1;
    }

    fn seen(&mut self, at: &At, after: Option<Ino>) {
        if let Some(pending) = self.names.get_mut(at) {
            pending.seen = after;
            pending.count -= 1;
            if pending.count == 0 {
                self.names.remove(at);
            }
        }
    }

    fn placed(&mut self, ino: Ino, at: Option<&At>) {
        if let Some(moved) = self.places.get_mut(&ino) {
            moved.count -= 1;
            if let Some(at) = at {
                moved.at = at.clone();
            }
            if moved.count == 0 {
                self.places.remove(&ino);
            }
        }
    }

    /// Takes the next change, which is under way until [`Queue::finish`].
    pub fn take(&mut self) -> Option<&Net> {
        let net = self.waiting.pop_front()?;
        match &net {
            Net::Update { ino } | Net::Create { ino, .. } => _ = self.updates.remove(ino),
            Net::Attr { ino } => _ = self.attrs.remove(ino),
            Net::Swap { dir } => _ = self.swaps.remove(dir),
            _ => {}
        }
        self.current = Some(net);
        self.performed = false;
        self.challenged = false;
        self.current.as_ref()
    }

    /// Takes out the update of a file that waits, because something that is at least as new was told. Says
    /// whether one did.
    pub fn drop_update(&mut self, ino: Ino) -> bool {
        let waits = |net: &Net| matches!(net, Net::Update { ino: there } if *there == ino);
        if self.updates.contains(&ino)
            && let Some(index) = self.waiting.iter().position(waits)
        {
            self.waiting.remove(index);
            return self.updates.remove(&ino);
        }
        false
    }

    /// Whether the link of a directory waits to be swapped.
    pub fn is_to_swap(&self, dir: Ino) -> bool {
        self.swaps.contains(&dir)
    }

    /// The kernel asks for what is under way.
    pub fn perform(&mut self) {
        self.performed = true;
    }

    /// Whether the request that takes a name away has to be refused once. The kernel then tries again, and
    /// looks up every name on the way under the same lock: else it might take away what it holds for the
    /// name and not what is meant, and a living directory would be dead for it from then on.
    pub fn challenge(&mut self) -> bool {
        !std::mem::replace(&mut self.challenged, true)
    }

    /// Whether it has. A system call can succeed, or fail, on what the kernel believes to know.
    pub fn was_performed(&self) -> bool {
        self.performed
    }

    /// What is under way.
    pub fn current(&self) -> Option<&Net> {
        self.current.as_ref()
    }

    /// What was under way is done, or was passed over: the replayer sees the tree after it.
    pub fn finish(&mut self) {
        if let Some(net) = self.current.take() {
            self.settle(net);
        }
    }

    fn settle(&mut self, net: Net) {
        match net {
            Net::Create { at, ino, .. } => self.seen(&at, Some(ino)),
            Net::Remove { at, record } => {
                self.seen(&at, None);
                self.placed(record.ino, None);
                self.ghosts.remove(&record.ino);
            }
            Net::Rename { from, to, ino, replaced, exchanged } => {
                self.seen(&from, exchanged);
                self.seen(&to, Some(ino));
                self.placed(ino, Some(&to));
                if let Some(other) = exchanged {
                    self.placed(other, Some(&from));
                }
                if let Some(record) = replaced {
                    self.placed(record.ino, None);
                    self.ghosts.remove(&record.ino);
                }
            }
            Net::Update { .. } | Net::Attr { .. } | Net::Unlocked { .. } | Net::Swap { .. } => {}
        }
    }

    /// Takes a change out that the kernel is about to show by itself, if no other one depends on it.
    pub fn withdraw(&mut self, is_it: impl Fn(&Net) -> bool) -> Option<Net> {
        let place = self.waiting.iter().position(is_it)?;
        let alone = match &self.waiting[place] {
            Net::Create { at, .. } | Net::Remove { at, .. } => self.is_last(at),
            Net::Rename { from, to, .. } => self.is_last(from) && self.is_last(to),
            Net::Update { .. } | Net::Attr { .. } | Net::Unlocked { .. } | Net::Swap { .. } => true,
        };
        if !alone {
            return None;
        }
        let net = self.waiting.remove(place)?;
        match &net {
            Net::Update { ino } | Net::Create { ino, .. } => _ = self.updates.remove(ino),
            Net::Attr { ino } => _ = self.attrs.remove(ino),
            Net::Swap { dir } => _ = self.swaps.remove(dir),
            _ => {}
        }
        self.settle(net.clone());
        Some(net)
    }

    /// Whether a change of that name waits or is under way.
    pub fn is_pending(&self, at: &At) -> bool {
        self.names.contains_key(at)
    }

    /// Whether no change of that name waits behind the one that is under way.
    pub fn is_last(&self, at: &At) -> bool {
        self.names.get(at).is_none_or(|pending| pending.count <= 1)
    }

    /// Whether a change waits that touches what `net` touches.
    pub fn concerns(&self, net: &Net) -> bool {
        match net {
            Net::Create { at, .. } | Net::Remove { at, .. } => self.is_pending(at),
            Net::Rename { from, to, .. } => self.is_pending(from) || self.is_pending(to),
            Net::Update { .. } | Net::Attr { .. } | Net::Unlocked { .. } | Net::Swap { .. } => false,
        }
    }

    /// What the replayer finds at a name.
    pub fn lookup(&self, at: &At, mirror: &Mirror) -> Option<Ino> {
        match self.names.get(at) {
            Some(pending) => pending.seen,
            None => mirror.child(at.0, &at.1),
        }
    }

    /// The record of what only the replayer still sees.
    pub fn ghost(&self, ino: Ino) -> Option<&Record> {
        self.ghosts.get(&ino)
    }

    /// The directory and name of something for the replayer; `None` for the root and what is nowhere.
    pub fn place(&self, ino: Ino, mirror: &Mirror) -> Option<At> {
        match self.places.get(&ino) {
            Some(moved) => Some(moved.at.clone()),
            None => mirror.get(ino)?.at.clone(),
        }
    }

    /// Where something is for the replayer, from the mount point on; `None` if it cannot be reached.
    pub fn path(&self, ino: Ino, mirror: &Mirror) -> Option<PathBuf> {
        use std::os::unix::ffi::OsStrExt;
        let mut names = Vec::new();
        let mut at = ino;
        // Longer than any key is deep: a loop would be a fault of ours, and must not hang the replayer.
        while at != Ino::ROOT {
            let (parent, name) = self.place(at, mirror)?;
            names.push(name);
            if names.len() > quorumfs_api::limits::KEY_MAX {
                return None;
            }
            at = parent;
        }
        let names = names.iter().rev().map(|name| std::ffi::OsStr::from_bytes(name.as_bytes()));
        Some(names.collect())
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Whether none waits and none is under way.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.current.is_none()
    }

    /// Takes out files that were made and are gone again, with all that happened to them between: a
    /// watcher that is so far behind sees neither. This bounds the queue by the number of keys.
    fn compact(&mut self) {
        let mut made: HashMap<Ino, bool> = HashMap::new();
        for net in &self.waiting {
            match net {
                Net::Create { ino, kind, .. } if *kind != Kind::Dir => _ = made.insert(*ino, false),
                Net::Remove { record, .. } => {
                    if let Some(gone) = made.get_mut(&record.ino) {
                        *gone = true;
                    }
                }
                // Renamed ones stay: names that they passed through may have been seen.
                Net::Rename { ino, replaced, exchanged, .. } => {
                    made.remove(ino);
                    if let Some(other) = replaced.as_ref().map(|record| record.ino).or(*exchanged) {
                        made.remove(&other);
                    }
                }
                _ => {}
            }
        }
        made.retain(|_, gone| *gone);
        for net in std::mem::take(&mut self.waiting) {
            let ino = match &net {
                Net::Create { ino, .. } | Net::Update { ino } | Net::Attr { ino } => *ino,
                Net::Remove { record, .. } => record.ino,
                Net::Rename { .. } | Net::Unlocked { .. } | Net::Swap { .. } => {
                    self.waiting.push_back(net);
                    continue;
                }
            };
            if !made.contains_key(&ino) {
                self.waiting.push_back(net);
                continue;
            }
            match &net {
                Net::Create { at, .. } => {
                    let seen = self.names.get(at).and_then(|pending| pending.seen);
                    self.seen(at, seen);
                    self.updates.remove(&ino);
                }
                Net::Remove { at, .. } => {
                    let seen = self.names.get(at).and_then(|pending| pending.seen);
                    self.seen(at, seen);
                    self.placed(ino, None);
                    self.ghosts.remove(&ino);
                }
                Net::Attr { .. } => _ = self.attrs.remove(&ino),
                _ => _ = self.updates.remove(&ino),
            }
        }
    }
}

#[cfg(test)]
mod tests;
