//! flock and fcntl locks, for all hosts.

use std::time::{Duration, Instant};

use quorumfs_api::command::{Command, HeldLock, LockKind, LockOwner, Range};
use quorumfs_api::outcome::{Done, Refusal};
use quorumfs_api::record::{Ino, LeaseId, Revision};
use tokio::sync::{OwnedMutexGuard, watch};

use super::{Caller, Fs};
use crate::errno::{Errno, Result};
use crate::handle::Fh;
use crate::handover::note::Note;
use crate::kernel::{NodeId, Object};
use crate::locked::LockId;
use crate::report;
use crate::state::Touch;

/// How often a waiter looks whether its process has a signal pending: a request cannot be killed
/// while it is with us.
const SIGNAL_CHECK: Duration = Duration::from_millis(100);
/// Whoever cannot be looked at is sent back after this time: it may have a signal, which it could not take while
/// it is with us.
const UNSEEN_WAIT: Duration = Duration::from_secs(3);
/// A waiter tries again after this time even if nobody told it to.
const TRY_AGAIN: Duration = Duration::from_secs(2);
/// Pause before a request is repeated in a new session.
const SESSION_PAUSE: Duration = Duration::from_millis(50);
/// How long a waiter that gives up waits for the store to know of it.
const CANCEL_TIME: Duration = Duration::from_millis(100);
/// How long an owner who has a lock through another open file waits for the close of that to be told of: mostly it is one
/// that was closed just before. A process with two descriptors waits so long once.
const LEAVING_WAIT: Duration = Duration::from_millis(20);
/// How often it is looked.
const LEAVING_CHECK: Duration = Duration::from_millis(1);
/// How often a lock that is given up is tried to be taken off the store.
const UNLOCK_ATTEMPTS: usize = 20;

/// What a program asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LockRequest {
    /// Whom it is for, as the kernel calls it.
    pub owner: u64,
    /// Which bytes.
    pub range: Range,
    /// `F_RDLCK`, `F_WRLCK` or `F_UNLCK`.
    pub kind: i32,
    /// Process.
    pub pid: u32,
    /// Wait for it.
    pub wait: bool,
}

/// A lock that is in the way, for `F_GETLK`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// Which bytes.
    pub range: Range,
    /// `F_RDLCK` or `F_WRLCK`.
    pub kind: i32,
    /// Process, if it is on this host, else 0.
    pub pid: u32,
}

fn lock_kind(kind: i32) -> Result<LockKind> {
    match kind {
        libc::F_RDLCK => Ok(LockKind::Shared),
        libc::F_WRLCK => Ok(LockKind::Exclusive),
        _ => Err(Errno::EINVAL),
    }
}

impl Fs {
    async fn locked_file(&self, node: NodeId) -> Result<Ino> {
        if report::is_own(node) {
            return Err(Errno::EOPNOTSUPP);
        }
        let (_, target) = self.settled_target(node).await?.ok_or(Errno::ESTALE)?;
        match target {
            quorumfs_api::command::Target::Ino(ino) => Ok(ino),
            quorumfs_api::command::Target::At(_) => Err(Errno::ESTALE),
        }
    }

    fn lock_owner(&self, owner: u64) -> Result<LockOwner> {
        // Without a session there is nothing that would free the lock when this host dies.
        let session = self.core.store.session().ok_or(Errno::ETIMEDOUT)?;
        Ok(LockOwner { session, owner })
    }

    /// The lock that is in the way of one that is asked for.
    pub async fn getlk(&self, node: NodeId, request: LockRequest) -> Result<Option<Held>> {
        let ino = self.locked_file(node).await?;
        let kind = lock_kind(request.kind)?;
        let owner = self.lock_owner(request.owner)?;
        let locks = self.core.store.locks(ino, self.core.rules.write_timeout).await;
        let locks: Vec<HeldLock> = locks.map_err(|error| Errno::from(&error))?;
        let conflict = locks.iter().find(|held| {
            held.owner != owner
                && held.range.overlaps(&request.range)
                && (held.kind == LockKind::Exclusive || kind == LockKind::Exclusive)
        });
        Ok(conflict.map(|held| Held {
            range: held.range,
            kind: if held.kind == LockKind::Exclusive { libc::F_WRLCK } else { libc::F_RDLCK },
            pid: if held.owner.session == owner.session { held.pid } else { 0 },
        }))
    }

    /// The number that grew with each grant of a lock that is held on a file now: whoever holds a lock hands it
    /// on with what it does elsewhere, and a number that is smaller than one seen before is of a former holder.
    pub(super) async fn lock_revision(&self, node: NodeId) -> Result<Revision> {
        let ino = self.locked_file(node).await?;
        let locks = self.core.store.locks(ino, self.core.rules.write_timeout).await;
        let locks = locks.map_err(|error| Errno::from(&error))?;
        locks.iter().map(|held| held.revision).max().ok_or(Errno::ENODATA)
    }

    /// Takes or gives up a lock.
    pub async fn setlk(&self, caller: Caller, node: NodeId, fh: Fh, request: LockRequest) -> Result<()> {
        if request.kind == libc::F_UNLCK {
            return self.unlock(node, fh, &request).await;
        }
        let kind = lock_kind(request.kind)?;
        let ino = self.locked_file(node).await?;
        self.let_leave(fh, (ino, request.owner)).await;
        let mut wanted = Wanted { ino, kind, fh, request, waits: false };
        let taken = self.take(caller, &mut wanted).await;
        if taken.is_err() && wanted.waits {
            self.cancel_wait(&wanted).await;
        }
        taken
    }

    async fn take(&self, caller: Caller, wanted: &mut Wanted) -> Result<()> {
        let (ino, request) = (wanted.ino, wanted.request);
        let deadline = self.core.deadline();
        let mut rounds = self.core.unlocked.subscribe();
        let mut waiter = Waiter::new(caller.pid);
        let lock_id = (ino, request.owner);
        loop {
            let gate = self.pass(lock_id).await?;
            rounds.borrow_and_update();
            let owner = self.lock_owner(request.owner)?;
            // A lock that is lost is no ground to build another on.
            self.core.enter_session(owner.session);
            {
                let state = self.core.state.lock();
                state.locked.fence(wanted.fh)?;
                // Noted before it can be held: giving up one that is not does no harm.
                state.note(|| Note::Locked(ino, request.owner, wanted.fh));
            }
            let lock = Command::Lock {
                ino,
                owner,
                range: request.range,
                kind: wanted.kind,
                pid: request.pid,
                wait: request.wait,
            };
            let answered = match self.core.propose(vec![Touch::Ino(ino)], lock).await {
                Ok(answered) => answered,
                Err(error) => {
                    self.give_up_unknown(lock_id, gate);
                    return Err(error);
                }
            };
            match answered {
                Ok((_, Done::Waiting(_))) => wanted.waits = true,
                Ok(_) => {
                    self.core.state.lock().locked.take(wanted.fh, lock_id, owner.session);
                    return Ok(());
                }
                // The session has ended, and the next is on its way.
                Err(Refusal::NoLease(_) | Refusal::NoSession(_)) => {
                    drop(gate);
                    wanted.waits = false;
                    if Instant::now() >= deadline && !request.wait {
                        return Err(Errno::ENOLCK);
                    }
                    tokio::time::sleep(SESSION_PAUSE).await;
                    self.may_wait(&mut waiter)?;
                    continue;
                }
                Err(refusal) => return Err(Errno::from(&refusal)),
            }
            drop(gate);
            self.wait_for_round(&mut waiter, &mut rounds).await?;
        }
    }

    /// Until a lock was given up somewhere, or the process has something else to do.
    async fn wait_for_round(&self, waiter: &mut Waiter, rounds: &mut watch::Receiver<u64>) -> Result<()> {
        let waiting = tokio::time::timeout(TRY_AGAIN, rounds.changed());
        tokio::pin!(waiting);
        loop {
            tokio::select! {
                _ = &mut waiting => return Ok(()),
                () = tokio::time::sleep(SIGNAL_CHECK) => self.may_wait(waiter)?,
            }
        }
    }

    fn may_wait(&self, waiter: &mut Waiter) -> Result<()> {
        if self.core.is_stopping() { Err(Errno::ENOLCK) } else { waiter.check() }
    }

    /// The store is told that somebody waits no more; the program is not kept for it.
    async fn cancel_wait(&self, wanted: &Wanted) {
        let Ok(owner) = self.lock_owner(wanted.request.owner) else { return };
        let (fs, ino) = (self.clone(), wanted.ino);
        let cancel = tokio::spawn(async move {
            let Ok(_gate) = fs.pass((ino, owner.owner)).await else { return };
            // If that fails, the store takes it for waiting until it locks something there, or the session ends.
            let _ = fs.core.propose(Vec::new(), Command::CancelWait { ino, owner }).await;
        });
        let _ = tokio::time::timeout(CANCEL_TIME, cancel).await;
    }

    /// Gives the file that was closed just before under the same name time to give the lock up: then it is granted
    /// anew, under a number of its own. If that comes later, the lock stays, and is not granted anew.
    async fn let_leave(&self, fh: Fh, lock: LockId) {
        let begun = Instant::now();
        while begun.elapsed() < LEAVING_WAIT && self.core.state.lock().locked.is_elsewhere(fh, lock) {
            tokio::time::sleep(LEAVING_CHECK).await;
        }
    }

    /// Waits until nobody else asks for this lock or gives it up.
    async fn pass(&self, lock: LockId) -> Result<OwnedMutexGuard<()>> {
        let gate = self.core.state.lock().locked.gate(lock);
        let passed = tokio::time::timeout(self.core.rules.write_timeout, gate.lock_owned()).await;
        passed.map_err(|_| Errno::ETIMEDOUT)
    }

    /// A request was answered with an error and may have been granted all the same: nobody would know of that
    /// lock. Where the owner has others on that file, they are given up together with those.
    fn give_up_unknown(&self, lock: LockId, gate: OwnedMutexGuard<()>) {
        let held = self.core.state.lock().locked.session(lock);
        if let (None, Some(session)) = (held, self.core.store.session()) {
            let fs = self.clone();
            tokio::spawn(async move { fs.give_up(lock, session, gate).await });
        }
    }

    async fn unlock(&self, node: NodeId, fh: Fh, request: &LockRequest) -> Result<()> {
        let lock = {
            let mut state = self.core.state.lock();
            let ino = state.kernel.ino(node).ok_or(Errno::EBADF)?;
            state.locked.accept_loss(fh);
            (state.mirror.outer(ino).ok_or(Errno::ESTALE)?, request.owner)
        };
        let _gate = self.pass(lock).await?;
        let Some(session) = self.core.state.lock().locked.session(lock) else { return Ok(()) };
        let owner = LockOwner { session, owner: request.owner };
        let unlock = Command::Unlock { ino: lock.0, owner, range: request.range };
        self.core.commit(Vec::new(), unlock).await?;
        if request.range == Range::WHOLE {
            let mut state = self.core.state.lock();
            state.locked.give_up(lock);
            state.note(|| Note::Unlocked(lock.0, lock.1));
        }
        Ok(())
    }

    /// A process closed a descriptor: POSIX takes away all its locks on the file.
    pub(super) async fn unlock_owner(&self, node: NodeId, owner: u64) {
        let lock = {
            let state = self.core.state.lock();
            if state.locked.is_empty() {
                return;
            }
            let ino = match state.kernel.resolve(node, &state.mirror) {
                Object::Real(ino) => state.mirror.outer(ino),
                _ => state.kernel.ino(node),
            };
            let Some(lock) = ino.map(|ino| (ino, owner)) else { return };
            if state.locked.session(lock).is_none() {
                return;
            }
            lock
        };
        // Who waits in vain leaves it to the end of the open file.
        let Ok(gate) = self.pass(lock).await else { return };
        let session = self.core.state.lock().locked.give_up(lock);
        if let Some(session) = session {
            self.give_up(lock, session, gate).await;
        }
    }

    /// An open file is gone, and with it what was locked through it.
    pub(super) async fn unlock_handle(&self, fh: Fh) {
        let gone = self.core.state.lock().locked.close(fh);
        for lock in gone {
            let gate = self.core.state.lock().locked.gate(lock);
            let gate = gate.lock_owned().await;
            let left = {
                let mut state = self.core.state.lock();
                let left = state.locked.leave(fh, lock);
                if left.is_none() {
                    state.note(|| Note::LeftTo(lock.0, lock.1, fh));
                }
                left
            };
            if let Some(session) = left {
                self.give_up(lock, session, gate).await;
            }
        }
    }

    /// Gives up a lock that nobody knows of any more. If the cluster cannot be reached now, that is
    /// gone on with in the background: the close must not wait for it longer than for anything else.
    async fn give_up(&self, lock: LockId, session: LeaseId, gate: OwnedMutexGuard<()>) {
        if self.try_give_up(lock, session).await {
            return;
        }
        let fs = self.clone();
        tokio::spawn(async move {
            // Whoever wants it for the same owner comes after that.
            let _gate = gate;
            for _ in 0..UNLOCK_ATTEMPTS {
                if fs.core.is_stopping() || fs.try_give_up(lock, session).await {
                    return;
                }
            }
            tracing::warn!(ino = %lock.0, "a lock could not be given up in time; it ends with the session");
        });
    }

    /// Whether it is done, or will never be.
    async fn try_give_up(&self, (ino, owner): LockId, session: LeaseId) -> bool {
        let owner = LockOwner { session, owner };
        let command = Command::Unlock { ino, owner, range: Range::WHOLE };
        let done = match self.core.commit(Vec::new(), command).await {
            Ok(_) => true,
            Err(Errno::ETIMEDOUT) => false,
            Err(error) => {
                tracing::debug!(%error, %ino, "a lock was given up that the store does not know");
                true
            }
        };
        if done {
            self.core.state.lock().note(|| Note::Unlocked(ino, owner.owner));
        }
        done
    }
}

/// A lock that is asked for.
struct Wanted {
    ino: Ino,
    kind: LockKind,
    fh: Fh,
    request: LockRequest,
    /// The store has noted that its owner waits.
    waits: bool,
}

/// A thread that waits, in a call that it cannot leave by itself.
struct Waiter {
    tid: u32,
    begun: Instant,
    /// At the last look its process had a signal, which any of its threads may take.
    shared: bool,
}

impl Waiter {
    fn new(tid: u32) -> Waiter {
        Waiter { tid, begun: Instant::now(), shared: false }
    }

    /// Whether it may go on.
    ///
    /// # Errors
    /// EINTR for a signal: the kernel then handles it, and may ask again. Without one it would hand on a number
    /// that no program knows, so that one that cannot be looked at gets ENOLCK, whether it has a signal or not.
    fn check(&mut self) -> Result<()> {
        let had = std::mem::replace(&mut self.shared, false);
        match look(self.tid) {
            Seen::Nothing => Ok(()),
            Seen::Signal => Err(Errno::EINTR),
            Seen::SharedSignal if had => Err(Errno::EINTR),
            // Another thread that can take it has done so by the next look.
            Seen::SharedSignal => {
                self.shared = true;
                Ok(())
            }
            Seen::Unseen if self.begun.elapsed() > UNSEEN_WAIT => Err(Errno::ENOLCK),
            Seen::Unseen => Ok(()),
        }
    }
}

/// What can be seen of a thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    /// No signal.
    Nothing,
    /// It has a signal that it has not blocked; or it is gone.
    Signal,
    /// Its process has one.
    SharedSignal,
    /// It cannot be looked at: its process is in a pid namespace that ours does not see (the kernel says 0 then),
    /// or /proc hides the processes of other users.
    Unseen,
}

/// Looks at the thread of a request.
fn look(tid: u32) -> Seen {
    if tid == 0 {
        return Seen::Unseen;
    }
    let Ok(status) = std::fs::read_to_string(format!("/proc/{tid}/status")) else {
        let pid = i32::try_from(tid).ok().and_then(rustix::process::Pid::from_raw);
        return match pid.map(rustix::process::test_kill_process) {
            Some(Ok(()) | Err(rustix::io::Errno::PERM)) => Seen::Unseen,
            _ => Seen::Signal,
        };
    };
    let mask = |field: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(field))?;
        u64::from_str_radix(line.trim(), 16).ok()
    };
    let blocked = mask("SigBlk:").unwrap_or(0) | mask("SigIgn:").unwrap_or(0);
    let pending = |field| mask(field).unwrap_or(0) & !blocked != 0;
    match (pending("SigPnd:"), pending("ShdPnd:")) {
        (true, _) => Seen::Signal,
        (false, true) => Seen::SharedSignal,
        (false, false) => Seen::Nothing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_waiter_is_looked_at_where_that_is_possible() {
        assert_eq!(look(std::process::id()), Seen::Nothing);
        assert_eq!(look(0), Seen::Unseen);
        // Above what Linux gives out.
        assert_eq!(look(1 << 23), Seen::Signal);
    }
}
