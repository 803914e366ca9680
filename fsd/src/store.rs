//! What the file system needs of the cluster, behind a trait: the client in a mount, a state machine
//! in memory in tests.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use parking_lot::Mutex;
use quorumfs_api::client::{Client, ClientError, Progress, Resume, Session};
use quorumfs_api::command::{Command, HeldLock, RequestId};
use quorumfs_api::outcome::{Outcome, Refusal};
use quorumfs_api::record::{Ino, LeaseId, Revision};
use quorumfs_api::wire::Status;
use tokio::sync::watch;

use crate::handover::call;
use crate::handover::journal::Journal;
use crate::handover::note::{self, Note};

/// The cluster as the file system sees it. All calls end by their time-out.
pub trait Store: Send + Sync + 'static {
    /// Does a command exactly once; with `only`, in that session or not at all (`SessionLost`).
    fn write(
        &self,
        only: Option<LeaseId>,
        command: Command,
        timeout: Duration,
    ) -> BoxFuture<'_, Result<Outcome, ClientError>>;
    /// The revision that holds all that was committed before the call.
    fn barrier(&self, timeout: Duration) -> BoxFuture<'_, Result<Revision, ClientError>>;
    /// The locks on a file.
    fn locks(&self, ino: Ino, timeout: Duration) -> BoxFuture<'_, Result<Vec<HeldLock>, ClientError>>;
    /// About the cluster.
    fn status(&self, timeout: Duration) -> BoxFuture<'_, Result<Status, ClientError>>;
    /// The session of now, which owns this mount's locks.
    fn session(&self) -> Option<LeaseId>;
    /// The sessions, one after the other: the locks of one are gone when the next begins.
    fn sessions(&self) -> watch::Receiver<Option<LeaseId>>;
    /// Whether this mount asked for what that session asked for.
    fn is_own(&self, session: LeaseId) -> bool;
    /// How long the session lives on if the leader is not heard of any more.
    fn session_left(&self) -> Option<Duration>;
    /// When the leader last answered.
    fn last_contact(&self) -> Option<Instant>;
}

/// How long the store keeps our locks after it last heard of us.
const SESSION_TTL: Duration = Duration::from_secs(20);
/// How long the leader is given to say what came of one request.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(2);
/// Pause between attempts to open the first session.
const SESSION_RETRY: Duration = Duration::from_millis(300);

/// What came of a request that an earlier worker had no answer to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It was done, or refused.
    Done(Outcome),
    /// It was not done, and never will be.
    NotDone,
    /// That is not known: it must not be done again.
    Unknown,
}

impl Fate {
    fn of(outcome: Option<Outcome>) -> Fate {
        match outcome {
            Some(Outcome { result: Err(Refusal::Forgotten(_)), .. }) => Fate::Unknown,
            Some(outcome) => Fate::Done(outcome),
            None => Fate::NotDone,
        }
    }
}

/// The cluster through the client. The session is opened in the background, so that a mount is usable
/// for reading while there is no quorum.
pub struct ClusterStore {
    client: Client,
    session: watch::Sender<Option<Arc<Session>>>,
    current: watch::Sender<Option<LeaseId>>,
    /// What an earlier worker had under way in the session is settled: nothing of it comes in between.
    settled: watch::Sender<bool>,
    contact: Mutex<Option<Instant>>,
    journal: OnceLock<Arc<Journal>>,
    /// The session of which the journal knows.
    noted: Mutex<Option<LeaseId>>,
}

impl ClusterStore {
    /// Without a session: nothing can be written.
    pub fn new(client: Client) -> Arc<ClusterStore> {
        Arc::new(ClusterStore {
            client,
            session: watch::Sender::new(None),
            current: watch::Sender::new(None),
            settled: watch::Sender::new(true),
            contact: Mutex::new(None),
            journal: OnceLock::new(),
            noted: Mutex::new(None),
        })
    }

    /// From here on requests are noted for a next worker.
    pub fn set_journal(&self, journal: Arc<Journal>) {
        let _ = self.journal.set(journal);
    }

    /// Goes on with the session of an earlier worker. First it is made sure of the requests with these
    /// numbers, which it had no answer to; `settled` hears what came of them.
    pub fn resume_session(
        self: &Arc<Self>,
        resume: Resume,
        open: Vec<u64>,
        settled: impl FnOnce(HashMap<u64, Fate>) + Send + 'static,
    ) {
        *self.noted.lock() = Some(resume.id);
        let session = Arc::new(self.client.resume_session(resume, SESSION_TTL));
        self.session.send_replace(Some(session.clone()));
        self.current.send_replace(Some(resume.id));
        self.settled.send_replace(open.is_empty());
        let weak = Arc::downgrade(self);
        tokio::spawn(follow(weak.clone(), session.changes()));
        tokio::spawn(async move {
            let mut fates = HashMap::new();
            for number in open {
                let fate = loop {
                    match session.settle(number, SETTLE_TIMEOUT).await {
                        Ok(outcome) => break Fate::of(outcome),
                        Err(ClientError::SessionLost { .. } | ClientError::NoLease(_)) => {
                            tracing::warn!("the session ended while no worker ran: its locks are gone");
                            break Fate::Unknown;
                        }
                        Err(error) => tracing::debug!(%error, number, "a request cannot be settled yet"),
                    }
                    if weak.strong_count() == 0 {
                        return;
                    }
                    tokio::time::sleep(SESSION_RETRY).await;
                };
                fates.insert(number, fate);
            }
            settled(fates);
            if let Some(store) = weak.upgrade() {
                store.settled.send_replace(true);
            }
        });
    }

    /// Opens a session as soon as there is a leader.
    pub fn open_session(self: &Arc<Self>, timeout: Duration) {
        let weak = Arc::downgrade(self);
        tokio::spawn(async move {
            let mut told = false;
            loop {
                let Some(store) = weak.upgrade() else { return };
                match store.client.session(SESSION_TTL, timeout).await {
                    Ok(session) => {
                        *store.contact.lock() = Some(Instant::now());
                        let changes = session.changes();
                        store.session.send_replace(Some(Arc::new(session)));
                        drop(store);
                        return follow(weak, changes).await;
                    }
                    Err(error) if !told => {
                        told = true;
                        tracing::warn!(%error, "no session with the cluster yet: the mount can only be read");
                    }
                    Err(_) => {}
                }
                drop(store);
                tokio::time::sleep(SESSION_RETRY).await;
            }
        });
    }

    /// The client behind it.
    pub fn client(&self) -> &Client {
        &self.client
    }

    async fn wait_for_session(&self, timeout: Duration) -> Result<Arc<Session>, ClientError> {
        let mut settled = self.settled.subscribe();
        let wait = settled.wait_for(|settled| *settled);
        if tokio::time::timeout(timeout, wait).await.is_err() {
            let tried = "settling what the last worker had under way".to_string();
            return Err(ClientError::NoLeader { waited: timeout, tried });
        }
        let mut session = self.session.subscribe();
        let open = tokio::time::timeout(timeout, session.wait_for(Option::is_some)).await;
        match open {
            Ok(Ok(session)) => session.clone().ok_or(ClientError::Closed),
            Ok(Err(_)) => Err(ClientError::Closed),
            Err(_) => Err(ClientError::NoLeader { waited: timeout, tried: "opening a session".to_string() }),
        }
    }

    /// Gives up the session, and with it the locks, at once.
    pub async fn close(&self, timeout: Duration) {
        if let Some(session) = self.session.send_replace(None)
            && let Some(session) = Arc::into_inner(session)
            && let Err(error) = session.close(timeout).await
        {
            tracing::debug!(%error, "the session ends by itself");
        }
    }

    /// Notes a request before it is sent.
    fn note_sent(&self, journal: &Journal, request: RequestId, command: u8) {
        let unique = call::current();
        let mut noted = self.noted.lock();
        let session = (*noted != Some(request.session)).then_some(Note::Session(request.session));
        *noted = Some(request.session);
        let number = request.number;
        let sent = Note::Sent { number, unique, command };
        let publishes = call::published().map(|(fh, edits)| Note::Publishes { number, fh, edits });
        journal.add(session.iter().chain([&sent]).chain(&publishes));
        call::noted();
    }

    fn heard<T>(&self, result: Result<T, ClientError>) -> Result<T, ClientError> {
        if result.is_ok() {
            *self.contact.lock() = Some(Instant::now());
        }
        result
    }
}

/// Tells of each session that the client opens in place of one that was lost.
async fn follow(store: Weak<ClusterStore>, mut changes: watch::Receiver<(u64, LeaseId)>) {
    loop {
        let (_, id) = *changes.borrow_and_update();
        let Some(store) = store.upgrade() else { return };
        store.current.send_replace(Some(id));
        drop(store);
        if changes.changed().await.is_err() {
            return;
        }
    }
}

impl Store for ClusterStore {
    fn write(
        &self,
        only: Option<LeaseId>,
        command: Command,
        timeout: Duration,
    ) -> BoxFuture<'_, Result<Outcome, ClientError>> {
        Box::pin(async move {
            let begun = Instant::now();
            let session = self.wait_for_session(timeout).await?;
            let tag = note::tag(&command);
            let noting = |progress: Progress<'_>| match (progress, self.journal.get()) {
                (Progress::Sent(request), Some(journal)) => self.note_sent(journal, request, tag),
                (Progress::Answered(request, outcome), Some(journal)) => {
                    journal.add([&Note::Answered(request.number, outcome.clone())]);
                }
                (_, None) => {}
            };
            let left = timeout.saturating_sub(begun.elapsed());
            self.heard(session.write_noting(only, command, left, noting).await)
        })
    }
    fn sessions(&self) -> watch::Receiver<Option<LeaseId>> {
        self.current.subscribe()
    }
    fn barrier(&self, timeout: Duration) -> BoxFuture<'_, Result<Revision, ClientError>> {
        Box::pin(async move { self.heard(self.client.barrier(timeout).await) })
    }
    fn locks(&self, ino: Ino, timeout: Duration) -> BoxFuture<'_, Result<Vec<HeldLock>, ClientError>> {
        Box::pin(async move { self.heard(self.client.locks(ino, timeout).await) })
    }
    fn status(&self, timeout: Duration) -> BoxFuture<'_, Result<Status, ClientError>> {
        Box::pin(self.client.status(timeout))
    }
    fn session(&self) -> Option<LeaseId> {
        self.session.borrow().as_ref().map(|session| session.id())
    }
    fn is_own(&self, id: LeaseId) -> bool {
        self.session
            .borrow()
            .as_ref()
            .is_some_and(|session| session.id() == id || session.ids().contains(&id))
    }
    fn session_left(&self) -> Option<Duration> {
        let session = self.session.borrow();
        session.as_ref().map(|session| session.valid_until().saturating_duration_since(Instant::now()))
    }
    fn last_contact(&self) -> Option<Instant> {
        let renewed = self.session.borrow().as_ref().and_then(|s| s.valid_until().checked_sub(SESSION_TTL));
        (*self.contact.lock()).max(renewed)
    }
}
