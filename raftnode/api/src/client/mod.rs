//! The client: finds the leader and follows it, repeats what was lost without doing it twice, and
//! has a deadline on everything.
//!
//! One [`Client`] is cheap to clone and to share. It runs on the tokio runtime of whoever calls it,
//! dials lazily, and keeps one connection to each node that it needs.
//!
//! | module | what it holds |
//! |---|---|
//! | [`settings`] | where the cluster is, who we are |
//! | `endpoint` | dialling one node, TLS failures in words |
//! | `connection` | many calls on one stream |
//! | `leader` | who leads, as far as can be told (pure) |
//! | `pool` | the connections, and looking for the leader |
//! | `dispatch` | one call to its answer |
//! | `session`, `window` | exactly-once writes |
//! | `watch`, `position` | events that never go back |

mod connection;
mod dispatch;
mod endpoint;
mod error;
mod leader;
mod pool;
mod position;
mod session;
pub mod settings;
mod watch;
mod window;

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::join_all;

pub use error::ClientError;
pub use session::{Progress, Resume, Session};
pub use settings::{Overrides, Settings, SettingsError};
pub use watch::{Watch, WatchItem};

use crate::command::{Command, HeldLock};
use crate::key::Key;
use crate::outcome::Outcome;
use crate::record::{Ino, LeaseId, Record, Revision};
use crate::rights::Rights;
use crate::wire::{Admin, Answer, Call, Consistency, LeaseInfo, Prefix, Status, WatchStart};
use pool::Pool;

/// One page of a range.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// Revision of the answer.
    pub revision: Revision,
    /// Keys with their records.
    pub items: Vec<(Key, Record)>,
    /// There is more after the last of them.
    pub more: bool,
}

/// A client of a cluster. See the [module](self).
#[derive(Clone)]
pub struct Client {
    pool: Arc<Pool>,
}

impl Client {
    /// Loads the credentials, and loads them again whenever their files change. Dials nothing yet.
    pub fn new(settings: Settings) -> Result<Client, ClientError> {
        Ok(Client { pool: Pool::new(settings)? })
    }

    /// The settings that it was made with.
    pub fn settings(&self) -> &Settings {
        &self.pool.settings
    }

    /// Loads the credentials at once, without waiting until the change of their files is noticed. True if there
    /// was something new in them.
    ///
    /// # Errors
    /// When they do not fit together. It is logged already, and the ones in use stay in use.
    pub fn reload_credentials(&self) -> Result<bool, ClientError> {
        self.pool.reload()
    }

    /// Asks the leader. Follows it when it moves, and goes on to another node when one dies: reads and
    /// whatever does no harm when done twice are repeated until `timeout`.
    pub async fn call(&self, call: Call, timeout: Duration) -> Result<Answer, ClientError> {
        dispatch::to_leader(&self.pool, call, timeout).await.result
    }

    /// Asks any node that answers.
    pub async fn call_any(&self, call: Call, timeout: Duration) -> Result<Answer, ClientError> {
        dispatch::to_any(&self.pool, call, timeout).await
    }

    /// Asks the node at `addr` and no other.
    pub async fn call_at(&self, addr: &str, call: Call, timeout: Duration) -> Result<Answer, ClientError> {
        dispatch::to_node(&self.pool, addr, call, timeout).await
    }

    /// Opens a session, for writes that are done exactly once, and for keys and locks that go with it.
    /// The store ends it when it was not heard of for `ttl`; `timeout` is for opening it.
    pub async fn session(&self, ttl: Duration, timeout: Duration) -> Result<Session, ClientError> {
        Session::open(self.pool.clone(), ttl, timeout).await
    }

    /// Goes on with a session of somebody who has ended. Asks nobody anything yet.
    pub fn resume_session(&self, resume: Resume, ttl: Duration) -> Session {
        Session::resume(self.pool.clone(), ttl, resume)
    }

    /// A write outside of any session, for what is harmless to repeat: granting and revoking leases.
    /// Anything else is sent once and never again, so that its fate may remain unknown.
    pub async fn write_once(&self, command: Command, timeout: Duration) -> Result<Outcome, ClientError> {
        match self.call(Call::Write { session: None, command }, timeout).await? {
            Answer::Written(outcome) => Ok(outcome),
            other => Err(unexpected("a write", &other)),
        }
    }

    async fn read(
        &self,
        call: Call,
        consistency: Consistency,
        timeout: Duration,
    ) -> Result<Answer, ClientError> {
        match consistency {
            Consistency::Linearizable => self.call(call, timeout).await,
            Consistency::Serializable => self.call_any(call, timeout).await,
        }
    }

    /// One key, and the revision of the answer.
    pub async fn get(
        &self,
        key: Key,
        consistency: Consistency,
        timeout: Duration,
    ) -> Result<(Revision, Option<Record>), ClientError> {
        match self.read(Call::Get { key, consistency }, consistency, timeout).await? {
            Answer::Got { revision, record } => Ok((revision, record)),
            other => Err(unexpected("a get", &other)),
        }
    }

    /// One page of the keys under a prefix, after the key `after`.
    pub async fn range(
        &self,
        prefix: Prefix,
        keys_only: bool,
        after: Option<Key>,
        limit: u32,
        consistency: Consistency,
        timeout: Duration,
    ) -> Result<Page, ClientError> {
        let call = Call::Range { prefix, keys_only, after, limit, consistency };
        match self.read(call, consistency, timeout).await? {
            Answer::Range { revision, items, more } => Ok(Page { revision, items, more }),
            other => Err(unexpected("a range", &other)),
        }
    }

    /// The revision that is linearizable now: all that was committed anywhere before this call is in it.
    pub async fn barrier(&self, timeout: Duration) -> Result<Revision, ClientError> {
        match self.call(Call::Barrier, timeout).await? {
            Answer::Barrier(revision) => Ok(revision),
            other => Err(unexpected("a barrier", &other)),
        }
    }

    /// What any one node says of itself and the cluster.
    pub async fn status(&self, timeout: Duration) -> Result<Status, ClientError> {
        match self.call_any(Call::Status, timeout).await? {
            Answer::Status(status) => Ok(*status),
            other => Err(unexpected("a status", &other)),
        }
    }

    /// What the leader says of itself and the cluster: it is the first to know who is a member. Where no quorum answers within half
    /// of the time, what any one node knows.
    pub async fn leader_status(&self, timeout: Duration) -> Result<Status, ClientError> {
        let deadline = Instant::now() + timeout;
        // A node that is behind would answer as well; a barrier only a leader does.
        if self.barrier(timeout / 2).await.is_err() {
            return self.status(deadline.saturating_duration_since(Instant::now())).await;
        }
        match self.call(Call::Status, deadline.saturating_duration_since(Instant::now())).await? {
            Answer::Status(status) => Ok(*status),
            other => Err(unexpected("a status", &other)),
        }
    }

    /// What every node that is known says, asked in parallel, with the addresses.
    pub async fn status_all(&self, timeout: Duration) -> Vec<(String, Result<Status, ClientError>)> {
        // The first answer may name members that the settings do not.
        let _ = self.status(timeout).await;
        let asked = self.pool.candidates().into_iter().map(|addr| async move {
            let status = match self.call_at(&addr, Call::Status, timeout).await {
                Ok(Answer::Status(status)) => Ok(*status),
                Ok(other) => Err(unexpected("a status", &other)),
                Err(error) => Err(error),
            };
            (addr, status)
        });
        join_all(asked).await
    }

    /// Renews a lease, and answers its time to live.
    pub async fn keep_alive(&self, lease: LeaseId, timeout: Duration) -> Result<Duration, ClientError> {
        match self.call(Call::KeepAlive(lease), timeout).await? {
            Answer::KeptAlive(ttl_ms) => Ok(Duration::from_millis(ttl_ms)),
            other => Err(unexpected("a renewal", &other)),
        }
    }

    /// One lease with its keys, or all leases without. From the leader, which knows what is left of them.
    pub async fn leases(
        &self,
        lease: Option<LeaseId>,
        timeout: Duration,
    ) -> Result<Vec<LeaseInfo>, ClientError> {
        match self.call(Call::Leases(lease), timeout).await? {
            Answer::Leases(leases) => Ok(leases),
            other => Err(unexpected("a list of leases", &other)),
        }
    }

    /// The locks that are held on a file, as the leader knows them.
    pub async fn locks(&self, ino: Ino, timeout: Duration) -> Result<Vec<HeldLock>, ClientError> {
        match self.call(Call::Locks(ino), timeout).await? {
            Answer::Locks(locks) => Ok(locks),
            other => Err(unexpected("a list of locks", &other)),
        }
    }

    /// What this identity may do, and the revision that wrote the policy (0 where there is none).
    pub async fn rights(&self, timeout: Duration) -> Result<(Revision, Rights), ClientError> {
        match self.call_any(Call::Rights, timeout).await? {
            Answer::Rights { policy, rights } => Ok((policy, rights)),
            other => Err(unexpected("what may be done", &other)),
        }
    }

    /// Changes the cluster.
    pub async fn admin(&self, admin: Admin, timeout: Duration) -> Result<(), ClientError> {
        match self.call(Call::Admin(admin), timeout).await? {
            Answer::Done => Ok(()),
            other => Err(unexpected("a change of the cluster", &other)),
        }
    }

    /// Watches a subtree. What goes wrong comes as an item.
    pub fn watch(&self, start: WatchStart) -> Watch {
        Watch::start(self.pool.clone(), start)
    }

    /// Says goodbye to all nodes. Not needed, but then they notice only after a while.
    pub async fn close(&self) {
        self.pool.close().await;
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("settings", &self.pool.settings).finish_non_exhaustive()
    }
}

/// A node answered another question than was asked.
fn unexpected(asked: &str, answer: &Answer) -> ClientError {
    let kind = match answer {
        Answer::Written(_) => "the outcome of a write",
        Answer::Got { .. } => "a record",
        Answer::Range { .. } => "a range",
        Answer::Barrier(_) => "a barrier",
        Answer::Status(_) => "a status",
        Answer::KeptAlive(_) => "a renewal",
        Answer::Leases(_) => "leases",
        Answer::Locks(_) => "locks",
        Answer::Done => "nothing but success",
        Answer::Rights { .. } => "what may be done",
    };
    ClientError::Protocol { addr: "a node".into(), reason: format!("{asked} was answered with {kind}") }
}
