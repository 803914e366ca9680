//! Locks on byte ranges, as POSIX has them: of one owner no two ranges share a byte; a new lock
//! replaces what its owner had there, and joins with what it touches.
//!
//! Who waits for a lock is a part of the state, so that a circle of waits is found whatever hosts it
//! goes through: an owner that waits points at everybody who holds a lock that is in its way, and the
//! request that would close a circle is refused. As in Linux, threads that share an owner are taken
//! for one: where one of them waits, all of them do.

use std::collections::BTreeSet;

use quorumfs_api::bug::{Bug, planted};
use quorumfs_api::command::{HeldLock, LockKind, LockOwner, Range};
use quorumfs_api::event::Change;
use quorumfs_api::limits::{DEADLOCK_SEARCH_MAX, LOCKS_MAX, WAITS_MAX};
use quorumfs_api::outcome::{Done, Refusal};
use quorumfs_api::record::{Ino, LeaseId};

use crate::rows::{self, NodeRow, Wait};
use crate::state::{State, Step};
use crate::tables::{Table, Tables};

/// What a lock is asked for.
pub(crate) struct Wanted {
    pub lock: Wait,
    pub owner: LockOwner,
    pub pid: u32,
    /// Whether the owner waits if it cannot have it now.
    pub waits: bool,
}

impl<T: Tables + ?Sized> State<'_, T> {
    /// Takes a lock unless somebody else holds a conflicting one. Its revision is the fencing number:
    /// greater than that of everybody who held these bytes before.
    pub fn lock(&mut self, wanted: &Wanted) -> Step {
        let Wait { ino, range, kind } = wanted.lock;
        check_range(range)?;
        if rows::read::<NodeRow, _>(&self.rows, &rows::number(ino.0))?.is_none() {
            return Err(Refusal::Stale(ino).into());
        }
        self.check_lock(ino, kind)?;
        let session = self.lease(wanted.owner.session)?;
        self.check_lease(wanted.owner.session, &session)?;
        let mut held = self.held(ino)?;
        let conflict = held.iter().find(|lock| is_in_the_way(lock, wanted.owner, &wanted.lock));
        match conflict.copied().filter(|_| !planted(Bug::LockTwice)) {
            Some(conflict) if wanted.waits => return self.wait(wanted, conflict),
            Some(conflict) => return Err(Refusal::Locked(conflict).into()),
            None => self.stop_waiting(wanted.owner, |wait| *wait == wanted.lock)?,
        }
        let carved = carve(&mut held, wanted.owner, range);
        let revision = self.revision();
        let mut new = HeldLock { owner: wanted.owner, range, kind, pid: wanted.pid, revision };
        join(&mut held, &mut new);
        held.push(new);
        if held.len() > LOCKS_MAX {
            let text = format!("locks on one file; {LOCKS_MAX} is the most");
            return Err(Refusal::TooMany(text).into());
        }
        self.put_locks(ino, held)?;
        self.rows.put(Table::LeaseLocks, &rows::pair(wanted.owner.session.0, ino.0), rows::mark());
        self.changed = true;
        // From exclusive to shared: who waits to share may come in.
        if kind == LockKind::Shared && carved.exclusive {
            self.change(Change::Unlocked { ino })?;
        }
        Ok(Done::Locked(revision))
    }

    /// Notes that somebody waits, unless that would be for ever.
    fn wait(&mut self, wanted: &Wanted, conflict: HeldLock) -> Step {
        if self.closes_a_circle(wanted)? {
            return Err(Refusal::Deadlock(conflict).into());
        }
        let mut waits = self.waits(wanted.owner)?;
        if !waits.contains(&wanted.lock) {
            if waits.len() == WAITS_MAX {
                let text = format!("locks that one owner waits for; {WAITS_MAX} is the most");
                return Err(Refusal::TooMany(text).into());
            }
            waits.push(wanted.lock);
            self.put(&waiter(wanted.owner), &waits)?;
            self.changed = true;
        }
        Ok(Done::Waiting(conflict))
    }

    /// Whether somebody in the way of `wanted` waits, directly or through others, for its owner.
    fn closes_a_circle(&self, wanted: &Wanted) -> Step<bool> {
        let mut met = BTreeSet::new();
        let mut todo = vec![(wanted.owner, wanted.lock)];
        let mut looked_at = 0;
        while let Some((owner, wait)) = todo.pop() {
            for lock in self.held(wait.ino)? {
                looked_at += 1;
                if looked_at > DEADLOCK_SEARCH_MAX {
                    return Ok(false);
                }
                if !is_in_the_way(&lock, owner, &wait) {
                    continue;
                }
                if lock.owner == wanted.owner {
                    return Ok(true);
                }
                if met.insert(lock.owner) {
                    todo.extend(self.waits(lock.owner)?.into_iter().map(|wait| (lock.owner, wait)));
                }
            }
        }
        Ok(false)
    }

    /// An owner no longer waits for locks on a file. It works whatever is there.
    pub fn cancel_wait(&mut self, ino: Ino, owner: LockOwner) -> Step {
        if let Some(session) = rows::read(&self.rows, &rows::number(owner.session.0))? {
            self.check_lease(owner.session, &session)?;
        }
        self.stop_waiting(owner, |wait| wait.ino == ino)?;
        Ok(Done::Ok)
    }

    fn stop_waiting(&mut self, owner: LockOwner, over: impl Fn(&Wait) -> bool) -> Step<()> {
        let mut waits = self.waits(owner)?;
        let before = waits.len();
        waits.retain(|wait| !over(wait));
        if waits.len() == before {
            return Ok(());
        }
        self.changed = true;
        match waits.is_empty() {
            true => self.rows.delete(Table::Waits, &waiter(owner)),
            false => self.put(&waiter(owner), &waits)?,
        }
        Ok(())
    }

    fn waits(&self, owner: LockOwner) -> Step<Vec<Wait>> {
        Ok(rows::read(&self.rows, &waiter(owner))?.unwrap_or_default())
    }

    /// Gives up an owner's locks in a range. It works whatever is there, and is never too many.
    pub fn unlock(&mut self, ino: Ino, owner: LockOwner, range: Range) -> Step {
        check_range(range)?;
        if let Some(session) = rows::read(&self.rows, &rows::number(owner.session.0))? {
            self.check_lease(owner.session, &session)?;
        }
        let mut held = self.held(ino)?;
        if carve(&mut held, owner, range).any {
            self.forget_session(ino, owner.session, &held);
            self.put_locks(ino, held)?;
            self.change(Change::Unlocked { ino })?;
        }
        Ok(Done::Ok)
    }

    /// Gives up all that a session holds on a file.
    pub fn unlock_session(&mut self, ino: Ino, session: LeaseId) -> Step<()> {
        let mut held = self.held(ino)?;
        held.retain(|lock| lock.owner.session != session);
        self.forget_session(ino, session, &held);
        self.put_locks(ino, held)?;
        self.change(Change::Unlocked { ino })
    }

    fn held(&self, ino: Ino) -> Step<Vec<HeldLock>> {
        Ok(rows::read(&self.rows, &rows::number(ino.0))?.unwrap_or_default())
    }

    fn forget_session(&mut self, ino: Ino, session: LeaseId, held: &[HeldLock]) {
        if held.iter().all(|lock| lock.owner.session != session) {
            self.rows.delete(Table::LeaseLocks, &rows::pair(session.0, ino.0));
        }
    }

    fn put_locks(&mut self, ino: Ino, mut held: Vec<HeldLock>) -> Step<()> {
        if held.is_empty() {
            self.rows.delete(Table::Locks, &rows::number(ino.0));
            return Ok(());
        }
        // One order, so that the rows are the same bytes on every node.
        held.sort_by_key(|lock| (lock.range.start, lock.owner, lock.range.end));
        self.put(&rows::number(ino.0), &held)
    }
}

fn check_range(range: Range) -> Step<()> {
    if range.start > range.end {
        return Err(Refusal::Invalid("a lock ends before it begins".to_string()).into());
    }
    Ok(())
}

/// Key of the row of an owner that waits.
fn waiter(owner: LockOwner) -> [u8; 16] {
    rows::pair(owner.session.0, owner.owner)
}

/// Whether `owner` cannot have what it wants as long as `lock` is held.
fn is_in_the_way(lock: &HeldLock, owner: LockOwner, wanted: &Wait) -> bool {
    lock.owner != owner
        && lock.range.overlaps(&wanted.range)
        && (lock.kind == LockKind::Exclusive || wanted.kind == LockKind::Exclusive)
}

/// What was cut out.
#[derive(Default)]
struct Carved {
    any: bool,
    exclusive: bool,
}

/// Cuts `range` out of the locks of `owner`.
fn carve(held: &mut Vec<HeldLock>, owner: LockOwner, range: Range) -> Carved {
    let mut carved = Carved::default();
    let mut rest = Vec::with_capacity(held.len() + 1);
    for lock in held.drain(..) {
        if lock.owner != owner || !lock.range.overlaps(&range) {
            rest.push(lock);
            continue;
        }
        carved.any = true;
        carved.exclusive |= lock.kind == LockKind::Exclusive;
        // What is left of it on either side stays as it is. The subtraction and the addition cannot
        // overflow: something lies on that side.
        if lock.range.start < range.start {
            rest.push(HeldLock { range: Range { start: lock.range.start, end: range.start - 1 }, ..lock });
        }
        if lock.range.end > range.end {
            rest.push(HeldLock { range: Range { start: range.end + 1, end: lock.range.end }, ..lock });
        }
    }
    *held = rest;
    carved
}

/// Takes the locks that `new` touches into it: same owner, same kind, not a byte between.
fn join(held: &mut Vec<HeldLock>, new: &mut HeldLock) {
    let touching = |lock: &HeldLock| {
        lock.owner == new.owner
            && lock.kind == new.kind
            && (lock.range.end.checked_add(1) == Some(new.range.start)
                || new.range.end.checked_add(1) == Some(lock.range.start))
    };
    let (joined, rest): (Vec<_>, Vec<_>) = held.drain(..).partition(touching);
    *held = rest;
    for lock in joined {
        new.range.start = new.range.start.min(lock.range.start);
        new.range.end = new.range.end.max(lock.range.end);
    }
}
