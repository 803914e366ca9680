//! Locks byte by byte: who holds each of the first bytes of a file, and the rest as one more "byte".

use std::collections::{BTreeMap, BTreeSet};

use quorumfs_api::command::{HeldLock, LockKind, LockOwner, Range};
use quorumfs_api::record::{Ino, LeaseId, Revision};

/// Bytes that are told apart. The last stands for all from here on.
pub const BYTES: u64 = 12;

#[derive(Clone, Copy, PartialEq)]
struct Hold {
    kind: LockKind,
    pid: u32,
    revision: Revision,
}

#[derive(Clone, Default)]
pub struct ByteLocks {
    held: BTreeMap<(Ino, LockOwner), [Option<Hold>; BYTES as usize + 1]>,
    /// Who waits, for what.
    waits: Vec<(LockOwner, (Ino, Range, LockKind))>,
}

fn slots(range: Range) -> std::ops::RangeInclusive<usize> {
    range.start.min(BYTES) as usize..=range.end.min(BYTES) as usize
}

impl ByteLocks {
    /// All locks on a file, each as the longest run of bytes that one owner holds in one way.
    pub fn held(&self, ino: Ino) -> Vec<HeldLock> {
        let mut all = Vec::new();
        for ((_, owner), bytes) in self.held.iter().filter(|((of, _), _)| *of == ino) {
            let mut at = 0;
            while at <= BYTES {
                let Some(hold) = bytes[at as usize] else {
                    at += 1;
                    continue;
                };
                let start = at;
                while at <= BYTES && bytes[at as usize].is_some_and(|next| next.kind == hold.kind) {
                    assert!(bytes[at as usize] == Some(hold), "one run, two locks");
                    at += 1;
                }
                let end = if at > BYTES { u64::MAX } else { at - 1 };
                let Hold { kind, pid, revision } = hold;
                all.push(HeldLock { owner: *owner, range: Range { start, end }, kind, pid, revision });
            }
        }
        all.sort_by_key(|lock| (lock.range.start, lock.owner));
        all
    }

    pub fn conflict(&self, ino: Ino, owner: LockOwner, range: Range, kind: LockKind) -> Option<HeldLock> {
        self.held(ino).into_iter().find(|lock| {
            let exclusive = lock.kind == LockKind::Exclusive || kind == LockKind::Exclusive;
            exclusive && lock.owner != owner && slots(lock.range).any(|byte| slots(range).contains(&byte))
        })
    }

    pub fn lock(
        &mut self,
        ino: Ino,
        owner: LockOwner,
        range: Range,
        kind: LockKind,
        pid: u32,
        revision: Revision,
    ) {
        let bytes = self.held.entry((ino, owner)).or_insert([None; BYTES as usize + 1]);
        for byte in slots(range) {
            bytes[byte] = Some(Hold { kind, pid, revision });
        }
        // What it touches and is of the same kind becomes one lock with it.
        let (mut low, mut high) = (*slots(range).start(), *slots(range).end());
        while low > 0 && bytes[low - 1].is_some_and(|hold| hold.kind == kind) {
            low -= 1;
            bytes[low] = Some(Hold { kind, pid, revision });
        }
        while high < BYTES as usize && bytes[high + 1].is_some_and(|hold| hold.kind == kind) {
            high += 1;
            bytes[high] = Some(Hold { kind, pid, revision });
        }
    }

    /// Says whether anything was held there.
    pub fn unlock(&mut self, ino: Ino, owner: LockOwner, range: Range) -> bool {
        let mut any = false;
        if let Some(bytes) = self.held.get_mut(&(ino, owner)) {
            for byte in slots(range) {
                any |= bytes[byte].take().is_some();
            }
        }
        any
    }

    pub fn forget(&mut self, gone: impl Fn(Ino, LeaseId) -> bool) {
        self.held.retain(|(ino, owner), _| !gone(*ino, owner.session));
    }

    /// Nobody of an ended session waits any more.
    pub fn end(&mut self, session: LeaseId) {
        self.forget(|_, of| of == session);
        self.waits.retain(|(owner, _)| owner.session != session);
    }

    /// How many owners wait.
    pub fn waiting(&self) -> usize {
        self.waits.iter().map(|(owner, _)| owner).collect::<BTreeSet<_>>().len()
    }

    /// Says whether that is new.
    pub fn wait(&mut self, ino: Ino, owner: LockOwner, range: Range, kind: LockKind) -> bool {
        let wait = (owner, (ino, range, kind));
        let new = !self.waits.contains(&wait);
        if new {
            self.waits.push(wait);
        }
        new
    }

    /// Says whether the owner waited for any of those.
    pub fn stop_waiting(&mut self, owner: LockOwner, over: impl Fn(Ino, Range, LockKind) -> bool) -> bool {
        let before = self.waits.len();
        self.waits.retain(|(who, (ino, range, kind))| *who != owner || !over(*ino, *range, *kind));
        self.waits.len() != before
    }

    /// Everybody who holds what is in the way.
    fn in_the_way(&self, owner: LockOwner, (ino, range, kind): (Ino, Range, LockKind)) -> Vec<LockOwner> {
        let meets = |lock: &HeldLock| slots(lock.range).any(|byte| slots(range).contains(&byte));
        let excludes = |lock: &HeldLock| LockKind::Exclusive == lock.kind || kind == LockKind::Exclusive;
        let held = self.held(ino).into_iter();
        held.filter(|l| l.owner != owner && meets(l) && excludes(l)).map(|l| l.owner).collect()
    }

    /// Whether the circle of those who wait for each other would close: grows the set of all whom the owner
    /// would wait for until nothing more comes.
    pub fn would_wait_for_ever(&self, ino: Ino, owner: LockOwner, range: Range, kind: LockKind) -> bool {
        let mut reached: BTreeSet<LockOwner> =
            self.in_the_way(owner, (ino, range, kind)).into_iter().collect();
        loop {
            let waiting = self.waits.iter().filter(|(who, _)| reached.contains(who));
            let more: BTreeSet<_> = waiting.flat_map(|(who, wait)| self.in_the_way(*who, *wait)).collect();
            if more.is_subset(&reached) {
                return reached.contains(&owner);
            }
            reached.extend(more);
        }
    }
}
