//! Locks on byte ranges, as POSIX has them: of one owner no two ranges share a byte; a new lock
//! replaces what its owner had there, and joins with what it touches.

use quorumfs_api::bug::{Bug, planted};
use quorumfs_api::command::{HeldLock, LockKind, LockOwner, Range};
use quorumfs_api::event::Change;
use quorumfs_api::limits::LOCKS_MAX;
use quorumfs_api::outcome::{Done, Refusal};
use quorumfs_api::record::{Ino, LeaseId};

use crate::rows::{self, NodeRow};
use crate::state::{State, Step};
use crate::tables::{Table, Tables};

/// What a lock is asked for.
pub(crate) struct Wanted {
    pub ino: Ino,
    pub owner: LockOwner,
    pub range: Range,
    pub kind: LockKind,
    pub pid: u32,
}

impl<T: Tables + ?Sized> State<'_, T> {
    /// Takes a lock unless somebody else holds a conflicting one. Its revision is the fencing number:
    /// greater than that of everybody who held these bytes before.
    pub fn lock(&mut self, wanted: &Wanted) -> Step {
        check_range(wanted.range)?;
        if rows::read::<NodeRow, _>(&self.rows, &rows::number(wanted.ino.0))?.is_none() {
            return Err(Refusal::Stale(wanted.ino).into());
        }
        self.lease(wanted.owner.session)?;
        let mut held = self.held(wanted.ino)?;
        if let Some(conflict) = held.iter().find(|lock| conflicts(lock, wanted))
            && !planted(Bug::LockTwice)
        {
            return Err(Refusal::Locked(*conflict).into());
        }
        let carved = carve(&mut held, wanted.owner, wanted.range);
        let revision = self.revision();
        let mut new = HeldLock {
            owner: wanted.owner,
            range: wanted.range,
            kind: wanted.kind,
            pid: wanted.pid,
            revision,
        };
        join(&mut held, &mut new);
        held.push(new);
        if held.len() > LOCKS_MAX {
            let text = format!("locks on one file; {LOCKS_MAX} is the most");
            return Err(Refusal::TooMany(text).into());
        }
        self.put_locks(wanted.ino, held)?;
        self.rows.put(Table::LeaseLocks, &rows::pair(wanted.owner.session.0, wanted.ino.0), rows::mark());
        self.changed = true;
        // From exclusive to shared: who waits to share may come in.
        if wanted.kind == LockKind::Shared && carved.exclusive {
            self.change(Change::Unlocked { ino: wanted.ino })?;
        }
        Ok(Done::Locked(revision))
    }

    /// Gives up an owner's locks in a range. It works whatever is there, and is never too many.
    pub fn unlock(&mut self, ino: Ino, owner: LockOwner, range: Range) -> Step {
        check_range(range)?;
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

fn conflicts(lock: &HeldLock, wanted: &Wanted) -> bool {
    lock.owner != wanted.owner
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
