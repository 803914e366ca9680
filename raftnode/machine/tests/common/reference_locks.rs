//! Locks byte by byte: who holds each of the first bytes of a file, and the rest as one more "byte".

use std::collections::BTreeMap;

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
pub struct ByteLocks(BTreeMap<(Ino, LockOwner), [Option<Hold>; BYTES as usize + 1]>);

fn slots(range: Range) -> std::ops::RangeInclusive<usize> {
    range.start.min(BYTES) as usize..=range.end.min(BYTES) as usize
}

impl ByteLocks {
    /// All locks on a file, each as the longest run of bytes that one owner holds in one way.
    pub fn held(&self, ino: Ino) -> Vec<HeldLock> {
        let mut all = Vec::new();
        for ((_, owner), bytes) in self.0.iter().filter(|((of, _), _)| *of == ino) {
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
        let bytes = self.0.entry((ino, owner)).or_insert([None; BYTES as usize + 1]);
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
        if let Some(bytes) = self.0.get_mut(&(ino, owner)) {
            for byte in slots(range) {
                any |= bytes[byte].take().is_some();
            }
        }
        any
    }

    pub fn forget(&mut self, gone: impl Fn(Ino, LeaseId) -> bool) {
        self.0.retain(|(ino, owner), _| !gone(*ino, owner.session));
    }
}
