//! Sessions: a lease that is kept alive, and writes that are done exactly once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

use super::dispatch::to_leader;
use super::pool::Pool;
use super::window::{Ticket, Window};
use super::{ClientError, unexpected};
use crate::command::{Command, RequestId};
use crate::limits::{LEASE_TTL_MAX_MS, LEASE_TTL_MIN_MS, SESSION_WINDOW};
use crate::outcome::{Done, Outcome, Refusal};
use crate::record::LeaseId;
use crate::wire::{Answer, Call};

/// How long one try at opening a lost session again may take.
const REOPEN_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause after a try that failed.
const REOPEN_PAUSE: Duration = Duration::from_millis(200);
/// Shortest time that one renewal of the lease gets.
const RENEW_MIN: Duration = Duration::from_millis(250);
/// How long the goodbye of a session that is merely dropped may take.
const REVOKE_TIMEOUT: Duration = Duration::from_secs(1);
/// Ids of earlier sessions that are remembered.
const IDS_MAX: usize = 4096;

/// A session whose holder has ended, for whoever goes on with it: a daemon that takes the place of
/// another one keeps its locks, its keys and what it had under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resume {
    /// The session.
    pub id: LeaseId,
    /// The first number that was given to no request yet.
    pub next: u64,
}

/// How far a write has come.
#[derive(Clone, Copy, Debug)]
pub enum Progress<'a> {
    /// It is about to be sent under this number.
    Sent(RequestId),
    /// It was answered.
    Answered(RequestId, &'a Outcome),
}

/// One lease and the numbers of its writes.
struct Generation {
    number: u64,
    id: LeaseId,
    window: Mutex<Window>,
    freed: Notify,
    valid_until: Mutex<Instant>,
    lost: AtomicBool,
}

struct Inner {
    pool: Arc<Pool>,
    ttl: Duration,
    current: Mutex<Arc<Generation>>,
    ids: Mutex<Vec<LeaseId>>,
    changes: watch::Sender<(u64, LeaseId)>,
    lost: watch::Sender<bool>,
    /// Tells the keeper that the lease is gone.
    reopen: Notify,
}

/// A session that opens itself again when it was lost.
///
/// The store ends a session of which it has not heard for its time to live: its ephemeral keys and
/// locks are gone then, and the session begins anew under another id. [`Session::changes`] tells.
///
/// Share it in an `Arc`. It is ended by [`Session::close`], or, without anybody waiting, by drop.
pub struct Session {
    inner: Arc<Inner>,
    keeper: JoinHandle<()>,
    runtime: Handle,
}

impl Session {
    pub(super) async fn open(
        pool: Arc<Pool>,
        ttl: Duration,
        timeout: Duration,
    ) -> Result<Session, ClientError> {
        let ttl = ttl.clamp(Duration::from_millis(LEASE_TTL_MIN_MS), Duration::from_millis(LEASE_TTL_MAX_MS));
        let first = grant(&pool, ttl, 1, timeout).await?;
        Ok(Session::begin(pool, ttl, first, ttl / 3))
    }

    /// Goes on with a session that somebody else opened and does not use any more. If it has ended
    /// meanwhile, that is found out at once, and another one is opened.
    pub(super) fn resume(pool: Arc<Pool>, ttl: Duration, resume: Resume) -> Session {
        let generation = Generation {
            number: 1,
            id: resume.id,
            window: Mutex::new(Window::starting_at(resume.next, SESSION_WINDOW)),
            freed: Notify::new(),
            // Not known until it was renewed.
            valid_until: Mutex::new(Instant::now()),
            lost: AtomicBool::new(false),
        };
        Session::begin(pool, ttl, generation, Duration::ZERO)
    }

    /// Keeps `first` alive; the first renewal is due after `renew`.
    fn begin(pool: Arc<Pool>, ttl: Duration, first: Generation, renew: Duration) -> Session {
        let first = Arc::new(first);
        let inner = Arc::new(Inner {
            pool,
            ttl,
            ids: Mutex::new(vec![first.id]),
            changes: watch::Sender::new((1, first.id)),
            lost: watch::Sender::new(false),
            current: Mutex::new(first),
            reopen: Notify::new(),
        });
        let keeper = tokio::spawn(keep(inner.clone(), renew));
        Session { inner, keeper, runtime: Handle::current() }
    }

    /// Id of the current one; of the last one, while it is being opened again.
    pub fn id(&self) -> LeaseId {
        self.inner.current.lock().id
    }

    /// 1, and one more each time that it had to be opened again: keys and locks of the earlier ones
    /// are gone.
    pub fn generation(&self) -> u64 {
        self.inner.current.lock().number
    }

    /// All ids that it ever had (the last few thousand), oldest first: an event with one of these is
    /// our own.
    pub fn ids(&self) -> Vec<LeaseId> {
        self.inner.ids.lock().clone()
    }

    /// Generation and id: changes when a new session has been opened in place of a lost one.
    pub fn changes(&self) -> watch::Receiver<(u64, LeaseId)> {
        self.inner.changes.subscribe()
    }

    /// True from when the session is known to have ended until another is open.
    pub fn lost(&self) -> watch::Receiver<bool> {
        self.inner.lost.subscribe()
    }

    /// Until when the session surely lives, whatever happens to the network: the holder of a lock
    /// must not rely on it after that.
    pub fn valid_until(&self) -> Instant {
        *self.inner.current.lock().valid_until.lock()
    }

    /// Does `command` exactly once, however often it has to be sent. What the store refuses is in the
    /// outcome; an error says whether it may have been done, see [`ClientError::maybe_done`].
    pub async fn write(&self, command: Command, timeout: Duration) -> Result<Outcome, ClientError> {
        self.write_noting(None, command, timeout, |_| {}).await
    }

    /// As [`Session::write`], but only while the session is the one with this id: what a lock protects must not
    /// be done after the lock is gone. The store itself refuses it once that session has ended.
    pub async fn write_in(
        &self,
        session: LeaseId,
        command: Command,
        timeout: Duration,
    ) -> Result<Outcome, ClientError> {
        self.write_noting(Some(session), command, timeout, |_| {}).await
    }

    /// As [`Session::write`], with `only` as [`Session::write_in`]. `note` hears of its [`Progress`]: whoever writes
    /// that down can ask [`Session::settle`] what became of it, also in another process.
    pub async fn write_noting(
        &self,
        only: Option<LeaseId>,
        command: Command,
        timeout: Duration,
        note: impl Fn(Progress<'_>) + Send,
    ) -> Result<Outcome, ClientError> {
        let deadline = Instant::now() + timeout;
        loop {
            let generation = self.inner.wait_open(deadline).await?;
            if let Some(id) = only.filter(|id| *id != generation.id) {
                return Err(ClientError::SessionLost { id, maybe_done: false });
            }
            let ticket = generation.begin(deadline, timeout).await?;
            let request = RequestId {
                session: generation.id,
                number: ticket.number(),
                done_below: ticket.ticket.done_below,
            };
            note(Progress::Sent(request));
            let call = Call::Write { session: Some(request), command: command.clone() };
            let left = deadline.saturating_duration_since(Instant::now());
            let dispatched = to_leader(&self.inner.pool, call, left).await;
            let gone = match dispatched.result {
                Ok(Answer::Written(outcome)) => match outcome.result {
                    Err(Refusal::NoSession(id)) => id == generation.id,
                    _ => {
                        // While the number is still in use: later ones must not let the store forget it before
                        // its answer is written down.
                        note(Progress::Answered(request, &outcome));
                        return Ok(outcome);
                    }
                },
                Ok(other) => return Err(unexpected("a write", &other)),
                Err(ClientError::NoLease(id)) => id == generation.id,
                Err(error) => return Err(error),
            };
            let lost = ClientError::SessionLost { id: generation.id, maybe_done: dispatched.sends > 1 };
            if !gone {
                return Err(lost);
            }
            self.inner.lose(&generation);
            // The only copy that was ever sent was refused, so it is safe to begin anew.
            if dispatched.sends > 1 || Instant::now() >= deadline {
                return Err(lost);
            }
        }
    }

    /// Makes sure of a request that an earlier holder of this session sent and had no answer to: its
    /// outcome if it was done; `None` if it was not, and then it never will be, however long it is still
    /// on its way: the number is used up. [`Refusal::Forgotten`] as its result says that it cannot be known any more.
    ///
    /// # Errors
    /// When the leader cannot be asked in time, or the session has ended.
    pub async fn settle(&self, number: u64, timeout: Duration) -> Result<Option<Outcome>, ClientError> {
        let id = self.id();
        // Nothing below may be forgotten: it may be asked for next.
        let request = RequestId { session: id, number, done_below: 1 };
        let nothing = Command::Txn { compare: Vec::new(), then: Vec::new(), otherwise: Vec::new() };
        let call = Call::Write { session: Some(request), command: nothing };
        match to_leader(&self.inner.pool, call, timeout).await.result? {
            Answer::Written(Outcome { result: Ok(Done::Txn { .. }), .. }) => Ok(None),
            Answer::Written(Outcome { result: Err(Refusal::NoSession(id)), .. }) => {
                Err(ClientError::SessionLost { id, maybe_done: true })
            }
            Answer::Written(outcome) => Ok(Some(outcome)),
            other => Err(unexpected("a write", &other)),
        }
    }

    /// Ends it: its ephemeral keys and locks go. Waits at most so long for the store to say so.
    pub async fn close(self, timeout: Duration) -> Result<(), ClientError> {
        self.keeper.abort();
        let (id, lost) = {
            let current = self.inner.current.lock();
            (current.id, current.lost.swap(true, Ordering::Relaxed))
        };
        if lost { Ok(()) } else { revoke(&self.inner.pool, id, timeout).await }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.keeper.abort();
        let current = self.inner.current.lock().clone();
        if !current.lost.swap(true, Ordering::Relaxed) {
            let pool = self.inner.pool.clone();
            self.runtime.spawn(async move {
                // If it fails, the lease runs out by itself.
                let _ = revoke(&pool, current.id, REVOKE_TIMEOUT).await;
            });
        }
    }
}

impl Inner {
    /// The session of now, once there is one.
    async fn wait_open(&self, deadline: Instant) -> Result<Arc<Generation>, ClientError> {
        let mut lost = self.lost.subscribe();
        let opened = tokio::time::timeout_at(deadline.into(), lost.wait_for(|lost| !lost)).await;
        let current = self.current.lock().clone();
        match opened {
            Ok(Ok(_)) => Ok(current),
            _ => Err(ClientError::SessionLost { id: current.id, maybe_done: false }),
        }
    }

    fn lose(&self, generation: &Generation) {
        if !generation.lost.swap(true, Ordering::Relaxed) {
            tracing::warn!(session = %generation.id, "the session has ended: it was not heard of in time");
            self.lost.send_replace(true);
            self.reopen.notify_one();
        }
    }

    fn opened(&self, generation: Generation) {
        let seen = (generation.number, generation.id);
        {
            let mut ids = self.ids.lock();
            if ids.len() >= IDS_MAX {
                ids.remove(0);
            }
            ids.push(generation.id);
        }
        *self.current.lock() = Arc::new(generation);
        tracing::info!(session = %seen.1, generation = seen.0, "a new session is open");
        self.changes.send_replace(seen);
        self.lost.send_replace(false);
    }
}

impl Generation {
    /// A number, when the window has room.
    async fn begin(self: &Arc<Self>, deadline: Instant, timeout: Duration) -> Result<Open, ClientError> {
        loop {
            let freed = self.freed.notified();
            tokio::pin!(freed);
            // Registered before looking, so that what is freed in between is not missed.
            freed.as_mut().enable();
            let ticket = self.window.lock().begin();
            if let Some(ticket) = ticket {
                return Ok(Open { generation: self.clone(), ticket });
            }
            if tokio::time::timeout_at(deadline.into(), freed).await.is_err() {
                let waited = super::settings::format_duration(timeout);
                return Err(ClientError::Busy(format!(
                    "{SESSION_WINDOW} writes of this session have been under way for {waited}"
                )));
            }
        }
    }
}

/// A write under way. Its number is done with when this goes, also when the caller leaves early.
struct Open {
    generation: Arc<Generation>,
    ticket: Ticket,
}
impl Open {
    fn number(&self) -> u64 {
        self.ticket.number
    }
}
impl Drop for Open {
    fn drop(&mut self) {
        self.generation.window.lock().finish(self.ticket.number);
        self.generation.freed.notify_waiters();
    }
}

async fn grant(
    pool: &Arc<Pool>,
    ttl: Duration,
    number: u64,
    timeout: Duration,
) -> Result<Generation, ClientError> {
    let sent = Instant::now();
    let ttl_ms = u64::try_from(ttl.as_millis()).unwrap_or(LEASE_TTL_MAX_MS);
    let call = Call::Write { session: None, command: Command::LeaseGrant { ttl_ms } };
    match to_leader(pool, call, timeout).await.result? {
        Answer::Written(Outcome { result: Ok(Done::Lease { id, ttl_ms }), .. }) => Ok(Generation {
            number,
            id,
            window: Mutex::new(Window::new(SESSION_WINDOW)),
            freed: Notify::new(),
            valid_until: Mutex::new(sent + Duration::from_millis(ttl_ms)),
            lost: AtomicBool::new(false),
        }),
        Answer::Written(Outcome { result: Err(refusal), .. }) => Err(ClientError::Refused(refusal)),
        other => Err(unexpected("opening a session", &other)),
    }
}

async fn revoke(pool: &Arc<Pool>, lease: LeaseId, timeout: Duration) -> Result<(), ClientError> {
    let call = Call::Write { session: None, command: Command::LeaseRevoke { lease } };
    match to_leader(pool, call, timeout).await.result? {
        Answer::Written(Outcome { result: Ok(_) | Err(Refusal::NoLease(_)), .. }) => Ok(()),
        Answer::Written(Outcome { result: Err(refusal), .. }) => Err(ClientError::Refused(refusal)),
        other => Err(unexpected("ending a session", &other)),
    }
}

/// Renews the lease, and opens another when it is gone.
async fn keep(inner: Arc<Inner>, first: Duration) {
    let every = inner.ttl / 3;
    let mut wait = first;
    loop {
        let generation = inner.current.lock().clone();
        if generation.lost.load(Ordering::Relaxed) {
            match grant(&inner.pool, inner.ttl, generation.number + 1, REOPEN_TIMEOUT).await {
                Ok(opened) => {
                    inner.opened(opened);
                    wait = every;
                }
                Err(error) => {
                    tracing::debug!(%error, "the session cannot be opened again yet");
                    tokio::time::sleep(REOPEN_PAUSE).await;
                }
            }
            continue;
        }
        tokio::select! {
            () = inner.reopen.notified() => continue,
            () = tokio::time::sleep(wait) => {}
        }
        let sent = Instant::now();
        match to_leader(&inner.pool, Call::KeepAlive(generation.id), every.max(RENEW_MIN)).await.result {
            Ok(Answer::KeptAlive(ttl_ms)) => {
                *generation.valid_until.lock() = sent + Duration::from_millis(ttl_ms);
                wait = every;
            }
            Ok(other) => {
                tracing::warn!(error = %unexpected("a renewal", &other), "a node answers strangely");
                wait = every;
            }
            Err(ClientError::NoLease(_)) => inner.lose(&generation),
            Err(error) => {
                tracing::debug!(%error, "the session could not be renewed; trying again");
                wait = every / 8;
            }
        }
    }
}
