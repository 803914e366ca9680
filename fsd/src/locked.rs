//! The locks that were taken through this mount: in which session of the store, and through which open
//! files. Pure.
//!
//! A lock lives as long as its session. When the host was cut off for longer than the session's time to
//! live, the locks are gone and others may hold them, while programs here still believe in theirs. So a
//! descriptor through which such a lock was taken writes no more until it is unlocked or closed; and what it
//! writes before that is known is sent *in the session of the lock*, where the store refuses it once the
//! session has ended.

use std::collections::{HashMap, HashSet};

use quorumfs_api::record::{Ino, LeaseId};

use crate::errno::{Errno, Result};
use crate::handle::Fh;

/// A lock as the kernel knows it: the file, in the store's numbers, and the owner.
pub type LockId = (Ino, u64);

/// See the [module](self).
#[derive(Debug, Default)]
pub struct Locked {
    taken: HashMap<LockId, LeaseId>,
    /// Which locks were taken through an open file: they go with it.
    through: HashMap<Fh, HashSet<LockId>>,
    /// Open files through which a lock was taken that is lost.
    lost: HashSet<Fh>,
    /// Those that the store is being told of that they are given up, with how often. Whoever wants one of them for
    /// the same owner comes after that: the kernel may call the next open file as it called the one that is closed.
    leaving: HashMap<LockId, usize>,
    /// Open files through which an earlier worker took locks. One of them may be closed by now, and the request that says so
    /// be on its way still, while the next open file of the same name for the kernel locks already.
    inherited: HashSet<Fh>,
}

impl Locked {
    /// A lock was granted.
    pub fn take(&mut self, fh: Fh, lock: LockId, session: LeaseId) {
        self.taken.insert(lock, session);
        self.through.entry(fh).or_default().insert(lock);
    }

    /// A lock was granted by an earlier worker.
    pub fn inherit(&mut self, fh: Fh, lock: LockId, session: LeaseId) {
        self.inherited.insert(fh);
        self.take(fh, lock, session);
    }

    /// Whether an owner has that lock from the time of an earlier worker, through another open file: that may be one
    /// which is about to go.
    pub fn may_be_leaving(&self, fh: Fh, lock: LockId) -> bool {
        let mut others = self.through.iter().filter(|(other, locks)| **other != fh && locks.contains(&lock));
        others.any(|(other, _)| self.inherited.contains(other))
    }

    /// No such request has come: those others are open.
    pub fn is_not_leaving(&mut self, lock: LockId) {
        let through = &self.through;
        self.inherited.retain(|fh| !through.get(fh).is_some_and(|locks| locks.contains(&lock)));
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

    /// As [`Locked::give_up`], and the store is going to be told: [`Locked::left`] once it was.
    pub fn leave(&mut self, lock: LockId) -> Option<LeaseId> {
        let session = self.give_up(lock)?;
        self.leave_unknown(lock);
        Some(session)
    }

    /// The same for a lock of which it is not known whether it was granted.
    pub fn leave_unknown(&mut self, lock: LockId) {
        *self.leaving.entry(lock).or_default() += 1;
    }

    /// The store was told, or will never be.
    pub fn left(&mut self, lock: LockId) {
        if let Some(count) = self.leaving.get_mut(&lock) {
            *count -= 1;
            if *count == 0 {
                self.leaving.remove(&lock);
            }
        }
    }

    /// Whether the store is being told of such a lock.
    pub fn is_leaving(&self, lock: LockId) -> bool {
        self.leaving.contains_key(&lock)
    }

    /// An open file is closed for good. Gives what went with it, see [`Locked::leave`].
    pub fn close(&mut self, fh: Fh) -> Vec<(LockId, LeaseId)> {
        self.lost.remove(&fh);
        let mut gone = self.through.remove(&fh).unwrap_or_default();
        if self.inherited.remove(&fh) {
            // It belongs to whoever has the same name now.
            gone.retain(|lock| !self.through.values().any(|locks| locks.contains(lock)));
        }
        gone.into_iter().filter_map(|lock| Some((lock, self.leave(lock)?))).collect()
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
        locked.take(2, A, OLD);
        let mut gone = locked.close(1);
        gone.sort();
        assert_eq!(gone, [(A, OLD), (B, OLD)]);
        assert!(locked.is_empty());
        assert_eq!(locked.close(2), []);
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
    fn a_lock_is_leaving_until_the_store_knows() {
        let mut locked = Locked::default();
        locked.take(1, A, OLD);
        locked.take(2, A, OLD);
        assert_eq!(locked.close(1), [(A, OLD)]);
        locked.leave_unknown(A);
        locked.left(A);
        assert!(locked.is_leaving(A) && !locked.is_leaving(B));
        locked.left(A);
        assert!(!locked.is_leaving(A));
        locked.left(A);
    }

    #[test]
    fn what_an_earlier_worker_left_is_not_taken_from_the_next_of_the_same_name() {
        let mut locked = Locked::default();
        locked.inherit(1, A, OLD);
        assert!(locked.may_be_leaving(2, A) && !locked.may_be_leaving(1, A) && !locked.may_be_leaving(2, B));
        locked.take(2, A, OLD);
        assert_eq!(locked.close(1), [], "the second has it");
        assert_eq!(locked.session(A), Some(OLD));
        assert!(!locked.may_be_leaving(3, A));
        assert_eq!(locked.close(2), [(A, OLD)]);
        // Where nobody else has it, or both are known to be open, it goes.
        locked.inherit(4, B, OLD);
        assert_eq!(locked.close(4), [(B, OLD)]);
        locked.inherit(5, A, OLD);
        locked.is_not_leaving(A);
        locked.take(6, A, OLD);
        assert_eq!(locked.close(5), [(A, OLD)]);
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
