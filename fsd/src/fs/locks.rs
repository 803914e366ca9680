//! flock and fcntl locks, for all hosts.

use std::time::{Duration, Instant};

use quorumfs_api::command::{Command, HeldLock, LockKind, LockOwner, Range};
use quorumfs_api::outcome::Refusal;
use quorumfs_api::record::Ino;

use super::{Caller, Fs};
use crate::core::Touch;
use crate::errno::{Errno, Result};
use crate::handle::Fh;
use crate::kernel::{NodeId, Object};
use crate::report;

/// How often a waiter looks whether its process has a signal pending: a request cannot be killed
/// while it is with us.
const SIGNAL_CHECK: Duration = Duration::from_millis(150);
/// Whoever cannot be looked at is sent back with EINTR after this time: it tries again unless it has a signal,
/// which it could not take while it is with us.
const UNSEEN_WAIT: Duration = Duration::from_secs(3);
/// A waiter tries again after this time even if nobody told it to.
const TRY_AGAIN: Duration = Duration::from_secs(2);

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

    /// Takes or gives up a lock.
    pub async fn setlk(&self, caller: Caller, node: NodeId, fh: Fh, request: LockRequest) -> Result<()> {
        let owner = self.lock_owner(request.owner)?;
        if request.kind == libc::F_UNLCK {
            let ino = {
                let state = self.core.state.lock();
                let ino = state.kernel.ino(node).ok_or(Errno::EBADF)?;
                state.mirror.outer(ino).ok_or(Errno::ESTALE)?
            };
            let known = self.core.state.lock().locks.contains(&(ino, request.owner));
            if !known {
                return Ok(());
            }
            let command = Command::Unlock { ino, owner, range: request.range };
            self.core.commit(Vec::new(), command).await?;
            if request.range == Range::WHOLE {
                self.core.state.lock().locks.remove(&(ino, request.owner));
            }
            return Ok(());
        }
        let kind = lock_kind(request.kind)?;
        let ino = self.locked_file(node).await?;
        let mut rounds = self.core.unlocked.subscribe();
        let begun = Instant::now();
        loop {
            rounds.borrow_and_update();
            let command = Command::Lock { ino, owner, range: request.range, kind, pid: request.pid };
            match self.core.propose(vec![Touch::Ino(ino)], command).await? {
                Ok(_) => {
                    let mut state = self.core.state.lock();
                    state.locks.insert((ino, request.owner));
                    state.lock_handles.entry(fh).or_default().insert((ino, request.owner));
                    return Ok(());
                }
                Err(Refusal::Locked(_)) if request.wait => {}
                Err(refusal) => return Err(Errno::from(&refusal)),
            }
            let waiting = async {
                let _ = tokio::time::timeout(TRY_AGAIN, rounds.changed()).await;
            };
            tokio::pin!(waiting);
            loop {
                tokio::select! {
                    () = &mut waiting => break,
                    () = tokio::time::sleep(SIGNAL_CHECK) => {
                        let over = match waiter(caller.pid) {
                            Waiter::Waits => false,
                            Waiter::Signalled => true,
                            Waiter::Unseen => begun.elapsed() > UNSEEN_WAIT,
                        };
                        if self.core.is_stopping() || over {
                            return Err(Errno::EINTR);
                        }
                    }
                }
            }
        }
    }

    /// A process closed a descriptor: POSIX takes away all its locks on the file.
    pub(super) async fn unlock_owner(&self, node: NodeId, owner: u64) {
        let ino = {
            let mut state = self.core.state.lock();
            let state = &mut *state;
            if state.locks.is_empty() {
                return;
            }
            let ino = match state.kernel.resolve(node, &state.mirror) {
                Object::Real(ino) => state.mirror.outer(ino),
                _ => state.kernel.ino(node),
            };
            match ino {
                Some(ino) if state.locks.remove(&(ino, owner)) => ino,
                _ => return,
            }
        };
        self.give_up(ino, owner).await;
    }

    /// An open file is gone, and with it what was locked through it.
    pub(super) async fn unlock_handle(&self, fh: Fh) {
        let gone: Vec<(Ino, u64)> = {
            let mut state = self.core.state.lock();
            let taken = state.lock_handles.remove(&fh).unwrap_or_default();
            taken.into_iter().filter(|lock| state.locks.remove(lock)).collect()
        };
        for (ino, owner) in gone {
            self.give_up(ino, owner).await;
        }
    }

    /// Gives up a lock that nobody knows of any more. If the cluster cannot be reached now, that is
    /// gone on with in the background: the close must not wait for it longer than for anything else.
    async fn give_up(&self, ino: Ino, owner: u64) {
        if self.try_give_up(ino, owner).await {
            return;
        }
        let fs = self.clone();
        tokio::spawn(async move {
            for _ in 0..UNLOCK_ATTEMPTS {
                if fs.core.is_stopping() || fs.try_give_up(ino, owner).await {
                    return;
                }
            }
            tracing::warn!(%ino, "a lock could not be given up in time; it ends with the session");
        });
    }

    /// Whether it is done, or will never be.
    async fn try_give_up(&self, ino: Ino, owner: u64) -> bool {
        let Ok(owner) = self.lock_owner(owner) else { return true };
        let command = Command::Unlock { ino, owner, range: Range::WHOLE };
        match self.core.commit(Vec::new(), command).await {
            Ok(_) => true,
            Err(Errno::ETIMEDOUT) => false,
            Err(error) => {
                tracing::debug!(%error, %ino, "a lock was given up that the store does not know");
                true
            }
        }
    }
}

/// What can be seen of a thread that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Waiter {
    /// It waits.
    Waits,
    /// It, or its process, has a signal that it has not blocked; or it is gone.
    Signalled,
    /// It cannot be looked at: its process is in a pid namespace that ours does not see (the kernel says 0 then),
    /// or /proc hides the processes of other users.
    Unseen,
}

/// Looks at the thread of a request.
fn waiter(tid: u32) -> Waiter {
    if tid == 0 {
        return Waiter::Unseen;
    }
    let Ok(status) = std::fs::read_to_string(format!("/proc/{tid}/status")) else {
        let pid = i32::try_from(tid).ok().and_then(rustix::process::Pid::from_raw);
        return match pid.map(rustix::process::test_kill_process) {
            Some(Ok(()) | Err(rustix::io::Errno::PERM)) => Waiter::Unseen,
            _ => Waiter::Signalled,
        };
    };
    let mask = |field: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(field))?;
        u64::from_str_radix(line.trim(), 16).ok()
    };
    let pending = mask("SigPnd:").unwrap_or(0) | mask("ShdPnd:").unwrap_or(0);
    let blocked = mask("SigBlk:").unwrap_or(0) | mask("SigIgn:").unwrap_or(0);
    if pending & !blocked != 0 { Waiter::Signalled } else { Waiter::Waits }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_waiter_is_looked_at_where_that_is_possible() {
        assert_eq!(waiter(std::process::id()), Waiter::Waits);
        assert_eq!(waiter(0), Waiter::Unseen);
        // Above what Linux gives out.
        assert_eq!(waiter(1 << 23), Waiter::Signalled);
    }
}
