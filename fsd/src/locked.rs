//! The locks that were taken through this mount: in which session of the store, and through which open
//! files. Pure.
//!
//! A lock lives as long as its session. When the host was cut off for longer than the session's time to
//! live, the locks are gone and others may hold them, while programs here still believe in theirs. So a
//! descriptor through which such a lock was taken writes no more until it is unlocked or closed; and what it
//! writes before that is known is sent *in the session of the lock*, where the store refuses it once the
//! session has ended.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Weak};

use quorumfs_api::record::{Ino, LeaseId};

use crate::errno::{Errno, Result};
use crate::handle::Fh;

/// A lock as the kernel knows it: the file, in the store's numbers, and the owner.
pub type LockId = (Ino, u64);

/// Whoever asks the store for a lock, or gives it up, holds this meanwhile.
pub type Gate = Arc<tokio::sync::Mutex<()>>;

/// Gates above which those are looked for that nobody uses any more.
const GATES: usize = 64;

/// See the [module](self).
#[derive(Debug, Default)]
pub struct Locked {
    taken: HashMap<LockId, LeaseId>,
    /// Which locks were taken through an open file: they go with it.
    through: HashMap<Fh, HashSet<LockId>>,
    /// Open files through which a lock was taken that is lost.
    lost: HashSet<Fh>,
    gates: HashMap<LockId, Weak<tokio::sync::Mutex<()>>>,
}

impl Locked {
    /// The gate of a lock. The kernel tells of a close after the program had its answer, in no order with what comes
    /// after it, and calls the next open file as it called the one that was closed. So the one must not be given up
    /// while the other is asked for.
    pub fn gate(&mut self, lock: LockId) -> Gate {
        if let Some(gate) = self.gates.get(&lock).and_then(Weak::upgrade) {
            return gate;
        }
        if self.gates.len() >= GATES {
            self.gates.retain(|_, gate| gate.strong_count() > 0);
        }
        let gate = Gate::default();
        self.gates.insert(lock, Arc::downgrade(&gate));
        gate
    }

    /// A lock was granted.
    pub fn take(&mut self, fh: Fh, lock: LockId, session: LeaseId) {
        self.taken.insert(lock, session);
        self.through.entry(fh).or_default().insert(lock);
    }

    /// Whether it was taken through other open files only.
    pub fn is_elsewhere(&self, fh: Fh, lock: LockId) -> bool {
        let is_here = self.through.get(&fh).is_some_and(|locks| locks.contains(&lock));
        !is_here && self.taken.contains_key(&lock)
    }

    /// The session in which a lock is held.
    pub fn session(&self, lock: LockId) -> Option<LeaseId> {
        self.taken.get(&lock).copied()
    }

    /// An owner gives up all that it has on a file. Gives the session if there was anything.
    pub fn give_up(&mut self, lock: LockId) -> Option<LeaseId> {
        let session = self.taken.remove(&lock)?;
        self.through.retain(|_, locks| {
            locks.remove(&lock);
            !locks.is_empty()
        });
        Some(session)
    }

    /// An open file is closed for good. Gives what was locked through it, to be [left](Locked::leave).
    pub fn close(&mut self, fh: Fh) -> Vec<LockId> {
        self.lost.remove(&fh);
        self.through.get(&fh).into_iter().flatten().copied().collect()
    }

    /// That file does not hold the lock any more. Gives the session if the lock is to be given up: if it was taken
    /// through another file, too, it stays with that.
    pub fn leave(&mut self, fh: Fh, lock: LockId) -> Option<LeaseId> {
        let locks = self.through.get_mut(&fh)?;
        locks.remove(&lock);
        if locks.is_empty() {
            self.through.remove(&fh);
        }
        if self.through.values().any(|locks| locks.contains(&lock)) {
            return None;
        }
        self.taken.remove(&lock)
    }

    /// Whoever has the file open says that it holds nothing through it.
    pub fn accept_loss(&mut self, fh: Fh) {
        self.lost.remove(&fh);
    }

    /// The session in which a write through this file has to be done, if any.
    ///
    /// # Errors
    /// ENOLCK when a lock is lost that was taken through it.
    pub fn fence(&self, fh: Fh) -> Result<Option<LeaseId>> {
        if self.lost.contains(&fh) {
            return Err(Errno::ENOLCK);
        }
        let mut locks = self.through.get(&fh).into_iter().flatten();
        Ok(locks.find_map(|lock| self.session(*lock)))
    }

    /// `now` is the session from here on: the locks of earlier ones are gone. Gives how many.
    pub fn change_session(&mut self, now: LeaseId) -> usize {
        let before = self.taken.len();
        self.taken.retain(|_, session| *session == now);
        let taken = &self.taken;
        let lost = &mut self.lost;
        self.through.retain(|fh, locks| {
            let had = locks.len();
            locks.retain(|lock| taken.contains_key(lock));
            if locks.len() < had {
                lost.insert(*fh);
            }
            !locks.is_empty()
        });
        before - self.taken.len()
    }

    /// How many owners have locks, each file counted by itself.
    pub fn len(&self) -> usize {
        self.taken.len()
    }

    /// Whether nothing is locked.
    pub fn is_empty(&self) -> bool {
        self.taken.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: LockId = (Ino(7), 1);
    const B: LockId = (Ino(8), 1);
    const OLD: LeaseId = LeaseId(10);
    const NEW: LeaseId = LeaseId(20);

    #[test]
    fn what_was_locked_through_a_file_goes_with_it() {
        let mut locked = Locked::default();
        locked.take(1, A, OLD);
        locked.take(1, B, OLD);
        let mut gone = locked.close(1);
        gone.sort();
        assert_eq!(gone, [A, B]);
        assert_eq!([locked.leave(1, A), locked.leave(1, B)], [Some(OLD), Some(OLD)]);
        assert!(locked.is_empty());
        assert_eq!((locked.close(1), locked.leave(1, A)), (vec![], None));
    }

    /// The kernel calls the next open file as it called the last one, and tells of that one's close later.
    #[test]
    fn a_lock_stays_with_whoever_has_it_last() {
        let mut locked = Locked::default();
        locked.take(1, A, OLD);
        locked.take(2, A, OLD);
        assert_eq!(locked.close(1), [A]);
        assert_eq!(locked.leave(1, A), None, "the second has it");
        assert_eq!(locked.session(A), Some(OLD));
        assert_eq!(locked.leave(2, A), Some(OLD));
        assert!(locked.is_empty());
    }

    #[test]
    fn a_gate_is_one_for_as_long_as_it_is_used() {
        let mut locked = Locked::default();
        let gate = locked.gate(A);
        assert!(Arc::ptr_eq(&gate, &locked.gate(A)) && !Arc::ptr_eq(&gate, &locked.gate(B)));
        for number in 0..10 * GATES as u64 {
            locked.gate((Ino(9), number));
        }
        assert!(locked.gates.len() <= GATES + 1 && Arc::ptr_eq(&gate, &locked.gate(A)));
    }

    #[test]
    fn a_new_session_fences_those_who_locked_in_the_old_one() {
        let mut locked = Locked::default();
        locked.take(1, A, OLD);
        locked.take(2, B, OLD);
        assert_eq!(locked.fence(1), Ok(Some(OLD)));
        assert_eq!(locked.fence(3), Ok(None));
        assert_eq!(locked.change_session(OLD), 0);
        assert_eq!(locked.change_session(NEW), 2);
        assert!(locked.is_empty());
        assert_eq!((locked.fence(1), locked.fence(2)), (Err(Errno::ENOLCK), Err(Errno::ENOLCK)));
        // One unlocks and locks again, the other is closed and its number given to somebody else.
        locked.accept_loss(1);
        locked.take(1, A, NEW);
        assert_eq!(locked.fence(1), Ok(Some(NEW)));
        locked.close(2);
        assert_eq!(locked.fence(2), Ok(None));
    }

    #[test]
    fn unlocking_ends_the_fence() {
        let mut locked = Locked::default();
        locked.take(1, A, OLD);
        assert_eq!(locked.give_up(A), Some(OLD));
        assert_eq!(locked.give_up(A), None);
        assert_eq!(locked.fence(1), Ok(None));
        assert_eq!(locked.change_session(NEW), 0);
        assert_eq!(locked.fence(1), Ok(None), "it held nothing that could be lost");
    }
}
