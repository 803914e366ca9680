//! What the file system needs of the cluster, behind a trait: the client in a mount, a state machine
//! in memory in tests.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use parking_lot::Mutex;
use quorumfs_api::client::{Client, ClientError, Session};
use quorumfs_api::command::{Command, HeldLock};
use quorumfs_api::outcome::Outcome;
use quorumfs_api::record::{Ino, LeaseId, Revision};
use quorumfs_api::wire::Status;
use tokio::sync::watch;

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
/// Pause between attempts to open the first session.
const SESSION_RETRY: Duration = Duration::from_millis(300);

/// The cluster through the client. The session is opened in the background, so that a mount is usable
/// for reading while there is no quorum.
pub struct ClusterStore {
    client: Client,
    session: watch::Sender<Option<Arc<Session>>>,
    current: watch::Sender<Option<LeaseId>>,
    contact: Mutex<Option<Instant>>,
}

impl ClusterStore {
    /// Begins; the session comes as soon as there is a leader.
    pub fn start(client: Client, timeout: Duration) -> Arc<ClusterStore> {
        let store = Arc::new(ClusterStore {
            client,
            session: watch::Sender::new(None),
            current: watch::Sender::new(None),
            contact: Mutex::new(None),
        });
        let weak = Arc::downgrade(&store);
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
        store
    }

    /// The client behind it.
    pub fn client(&self) -> &Client {
        &self.client
    }

    async fn open_session(&self, timeout: Duration) -> Result<Arc<Session>, ClientError> {
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
            let session = self.open_session(timeout).await?;
            let left = timeout.saturating_sub(begun.elapsed());
            self.heard(match only {
                Some(id) => session.write_in(id, command, left).await,
                None => session.write(command, left).await,
            })
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
