//! The connections of a client, one to each node that it needs, and what it knows of the cluster.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::ClientError;
use super::connection::Connection;
use super::endpoint::{DialError, Endpoint};
use super::leader::Leaders;
use super::settings::Settings;
use crate::wire::{Member, Status};

/// How long dialling a node may take, until it has proved that it serves us.
pub(super) const DIAL_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a node has to say who leads.
const ASK_TIMEOUT: Duration = Duration::from_millis(500);
/// Nodes are not asked more often than this, however many calls wait for a leader.
const LOOK_INTERVAL: Duration = Duration::from_millis(40);

type Dialling = Shared<BoxFuture<'static, Result<Arc<Connection>, DialError>>>;

/// What there is for one address.
enum Slot {
    Dialling(Dialling),
    Open(Arc<Connection>),
}

/// What last went wrong at an address.
#[derive(Clone)]
struct Trouble {
    when: Instant,
    error: DialError,
}

#[derive(Default)]
struct State {
    slots: HashMap<String, Slot>,
    /// Addresses that are being asked now.
    asking: HashSet<String>,
    looked: Option<Instant>,
    leaders: Leaders,
    troubles: HashMap<String, Trouble>,
}

/// See the module.
pub(super) struct Pool {
    pub settings: Settings,
    endpoint: Endpoint,
    state: Mutex<State>,
    /// The address of the leader: those who wait for one see it change.
    target: watch::Sender<Option<String>>,
}

impl Pool {
    pub fn new(settings: Settings) -> Result<Arc<Pool>, ClientError> {
        let endpoint = Endpoint::new(&settings)?;
        let leaders = Leaders::new(settings.nodes.clone());
        let state = Mutex::new(State { leaders, ..State::default() });
        Ok(Arc::new(Pool { settings, endpoint, state, target: watch::Sender::new(None) }))
    }

    /// See [`Endpoint::reload`].
    pub fn reload(&self) -> Result<bool, ClientError> {
        self.endpoint.reload()
    }

    /// The leader's address, and its changes.
    pub fn target(&self) -> watch::Receiver<Option<String>> {
        self.target.subscribe()
    }

    /// All addresses at which nodes may be.
    pub fn candidates(&self) -> Vec<String> {
        self.state.lock().leaders.candidates()
    }

    /// Whether a connection to this address is open.
    pub fn is_open(&self, addr: &str) -> bool {
        matches!(self.state.lock().slots.get(addr), Some(Slot::Open(c)) if c.ended().is_none())
    }

    /// Whether the node at this address did not answer when it was last asked.
    pub fn is_silent(&self, addr: &str) -> bool {
        self.state.lock().leaders.silent(addr)
    }

    /// Whether the node at this address is being asked who leads, and has not answered yet.
    pub fn is_asked(&self, addr: &str) -> bool {
        self.state.lock().asking.contains(addr)
    }

    /// The open connection to this address, or a new one. Who comes while one is being dialled waits
    /// for the same.
    pub async fn connection(self: &Arc<Self>, addr: &str) -> Result<Arc<Connection>, DialError> {
        let dialling = {
            let credentials = self.endpoint.credentials();
            let mut state = self.state.lock();
            match state.slots.get(addr) {
                // With new certificates comes a new connection; what is under way on the old one
                // holds it until it is done.
                Some(Slot::Open(open))
                    if open.ended().is_none() && Arc::ptr_eq(&open.credentials, &credentials) =>
                {
                    return Ok(open.clone());
                }
                Some(Slot::Dialling(dialling)) => dialling.clone(),
                _ => {
                    let dialling = self.dial(addr.to_string());
                    state.slots.insert(addr.to_string(), Slot::Dialling(dialling.clone()));
                    dialling
                }
            }
        };
        dialling.await
    }

    /// Dials in a task of its own, so that it goes on when the first who wanted it has left.
    fn dial(self: &Arc<Self>, addr: String) -> Dialling {
        let pool = self.clone();
        let task = tokio::spawn(async move {
            let dialled = match tokio::time::timeout(DIAL_TIMEOUT, pool.endpoint.dial(&addr)).await {
                Ok(dialled) => dialled,
                Err(_) => Err(DialError::silent(DIAL_TIMEOUT)),
            };
            match dialled {
                Ok((connection, status)) => {
                    pool.state.lock().slots.insert(addr.clone(), Slot::Open(connection.clone()));
                    pool.heard(&addr, &status);
                    Ok(connection)
                }
                Err(error) => {
                    tracing::debug!(%addr, %error, "cannot connect");
                    pool.state.lock().slots.remove(&addr);
                    pool.went_silent(&addr, error.clone());
                    Err(error)
                }
            }
        });
        async move { task.await.unwrap_or_else(|e| Err(DialError::other(format!("dialling was stopped: {e}")))) }
            .boxed()
            .shared()
    }

    /// Asks every node who leads, without waiting: what comes of it shows in [`Pool::target`].
    pub fn look_around(self: &Arc<Self>) {
        let ask: Vec<String> = {
            let mut state = self.state.lock();
            if state.looked.is_some_and(|at| at.elapsed() < LOOK_INTERVAL) {
                return;
            }
            state.looked = Some(Instant::now());
            let candidates = state.leaders.candidates();
            candidates.into_iter().filter(|addr| state.asking.insert(addr.clone())).collect()
        };
        for addr in ask {
            let pool = self.clone();
            tokio::spawn(async move {
                pool.ask(&addr).await;
                pool.state.lock().asking.remove(&addr);
            });
        }
    }

    async fn ask(self: &Arc<Self>, addr: &str) {
        let fresh = !self.is_open(addr);
        // A failure to connect is noted where it happens; a new connection has just said who leads.
        let Ok(connection) = self.connection(addr).await else { return };
        if fresh {
            return;
        }
        match connection.status(ASK_TIMEOUT).await {
            Ok(status) => self.heard(addr, &status),
            Err(why) => {
                self.set_aside(&connection);
                self.went_silent(addr, DialError::other(why));
            }
        }
    }

    /// Has the address dialled anew. A node that was started again does not know the old connection,
    /// and only silence tells; what is under way there may still be answered.
    fn set_aside(&self, connection: &Arc<Connection>) {
        let mut state = self.state.lock();
        if matches!(state.slots.get(&connection.addr), Some(Slot::Open(open)) if Arc::ptr_eq(open, connection))
        {
            state.slots.remove(&connection.addr);
        }
    }

    /// The node at `addr` said this about itself.
    pub fn heard(&self, addr: &str, status: &Status) {
        tracing::trace!(%addr, id = status.id, leader = ?status.leader, term = status.term, "a node says who leads");
        self.update(|state| {
            state.troubles.remove(addr);
            state.leaders.heard(addr, status);
        });
    }

    /// The node at `addr` does not lead, and said who does.
    pub fn hinted(&self, addr: &str, hint: Option<&Member>) {
        self.update(|state| {
            state.troubles.remove(addr);
            state.leaders.hinted(addr, hint);
        });
    }

    /// The node at `addr` could not be reached or did not answer.
    pub fn went_silent(&self, addr: &str, error: DialError) {
        self.update(|state| {
            if state.troubles.len() < 256 {
                state.troubles.insert(addr.to_string(), Trouble { when: Instant::now(), error });
            }
            state.leaders.went_silent(addr);
        });
    }

    fn update(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.state.lock();
        change(&mut state);
        let target = state.leaders.target();
        // Sent under the lock, so that two changes cannot be seen in the wrong order.
        self.target.send_if_modified(|now| {
            let changed = now.as_deref() != target;
            if changed {
                *now = target.map(str::to_string);
            }
            changed
        });
    }

    /// The error to give up with at once: all nodes refuse us, or we them, and no time will help.
    pub fn hopeless(&self, since: Instant) -> Option<ClientError> {
        let state = self.state.lock();
        let candidates = state.leaders.candidates();
        let mut refused = None;
        for addr in &candidates {
            match state.troubles.get(addr) {
                Some(t) if t.when >= since && t.error.is_refusal() => refused = Some((addr, t)),
                _ => return None,
            }
        }
        refused.map(|(addr, t)| ClientError::Certificate { addr: addr.clone(), reason: t.error.to_string() })
    }

    /// What is known of each node, for a message; and whether any of them answers.
    pub fn report(&self) -> (String, bool) {
        let state = self.state.lock();
        let mut answers = false;
        let said: Vec<String> = state
            .leaders
            .candidates()
            .into_iter()
            .map(|addr| match (state.troubles.get(&addr), state.slots.get(&addr)) {
                (Some(trouble), _) => format!("{addr}: {}", trouble.error),
                (None, Some(Slot::Open(_))) => {
                    answers = true;
                    format!("{addr}: answers, but does not lead")
                }
                _ => format!("{addr}: no answer yet"),
            })
            .collect();
        (said.join("; "), answers)
    }

    /// Ends every connection, and gives the goodbyes a moment to go out.
    pub async fn close(&self) {
        let slots = std::mem::take(&mut self.state.lock().slots);
        for slot in slots.into_values() {
            if let Slot::Open(connection) = slot {
                connection.end("the client was closed");
            }
        }
        self.endpoint.close().await;
    }
}
