//! When leases end. The state machine has no clock: the leader counts, and proposes the end of leases
//! whose time is up.
//!
//! A node that becomes leader cannot know when each was last renewed, so all start anew with their
//! whole time. That may let a lease live longer, never shorter.

use std::collections::{BTreeSet, HashMap};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use quorumfs_api::bug::{Bug, planted};
use quorumfs_api::record::LeaseId;
use quorumfs_api::wire::{Failure, LeaseInfo};
use quorumfs_machine::StorageError;
use tokio::sync::Notify;
use tokio::time::Instant;

/// Leases that one proposal ends.
const BATCH: usize = 256;
/// Between two tries to end leases, when the first failed.
const RETRY: Duration = Duration::from_millis(100);
/// How often the leader compares its leases with the state's: one whose grant was never seen here,
/// because whoever asked for it had gone, must end too.
const RECONCILE: Duration = Duration::from_secs(5);
/// How long one proposal, or one confirmation of leadership, may take before it is tried anew.
const PATIENCE: Duration = Duration::from_secs(5);
/// Who ends leases, in the events.
pub const AUTHOR: &str = "lease";

/// The node has stopped, or is about to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the node has stopped")]
pub struct Stopped;

/// What counting needs of the node around it.
pub trait Host: Send + Sync + 'static {
    /// Waits until the node leads (`true`), or no longer does.
    fn until_leading(&self, leads: bool) -> impl Future<Output = Result<(), Stopped>> + Send;

    /// Waits until all that earlier leaders committed is applied here, as a quorum confirms; gives up
    /// at `until`.
    fn take_over(&self, until: Instant) -> impl Future<Output = Result<(), Failure>> + Send;

    /// The leases that are there now.
    ///
    /// # Errors
    /// When they cannot be read.
    fn leases(&self) -> Result<Vec<LeaseInfo>, StorageError>;

    /// Proposes the end of these leases, and waits until it is done.
    fn expire(&self, leases: Vec<LeaseId>) -> impl Future<Output = Result<(), Failure>> + Send;
}

/// What came of a renewal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renewal {
    /// It has its whole time again.
    Renewed(Duration),
    /// Its end is proposed already.
    Ending,
    /// This node does not count for it.
    Unknown,
}

struct Counted {
    ttl: Duration,
    until: Instant,
    ending: bool,
}

/// Leases by id, and by when they end.
#[derive(Default)]
struct Table {
    leads: bool,
    leases: HashMap<LeaseId, Counted>,
    queue: BTreeSet<(Instant, LeaseId)>,
    /// That leases cannot be ended was said; it is not said again until one was.
    complained: bool,
}

impl Table {
    fn set(&mut self, id: LeaseId, ttl: Duration, now: Instant) {
        self.remove(id);
        let until = now + ttl;
        self.leases.insert(id, Counted { ttl, until, ending: false });
        self.queue.insert((until, id));
    }

    fn remove(&mut self, id: LeaseId) {
        if let Some(old) = self.leases.remove(&id) {
            self.queue.remove(&(old.until, id));
        }
    }

    fn renew(&mut self, id: LeaseId, now: Instant) -> Renewal {
        match self.leases.get_mut(&id) {
            None => Renewal::Unknown,
            Some(counted) if counted.ending => Renewal::Ending,
            Some(counted) => {
                self.queue.remove(&(counted.until, id));
                counted.until = now + if planted(Bug::LeaseEarly) { counted.ttl / 2 } else { counted.ttl };
                self.queue.insert((counted.until, id));
                Renewal::Renewed(counted.ttl)
            }
        }
    }

    /// Leases whose time is up, at most a batch of them; they can no longer be renewed.
    fn take_due(&mut self, now: Instant) -> Vec<LeaseId> {
        if planted(Bug::LeaseForever) {
            return Vec::new();
        }
        let due: Vec<(Instant, LeaseId)> =
            self.queue.iter().take_while(|(until, _)| *until <= now).take(BATCH).copied().collect();
        for (until, id) in &due {
            self.queue.remove(&(*until, *id));
            if let Some(counted) = self.leases.get_mut(id) {
                counted.ending = true;
            }
        }
        due.into_iter().map(|(_, id)| id).collect()
    }

    /// Their end could not be proposed: it will be, soon. They stay beyond renewal.
    fn put_back(&mut self, ids: &[LeaseId], at: Instant) {
        for id in ids {
            if let Some(counted) = self.leases.get_mut(id) {
                counted.until = at;
                self.queue.insert((at, *id));
            }
        }
    }

    fn clear(&mut self) {
        *self = Table::default();
    }
}

/// When leases end, while this node leads. Clones share it.
#[derive(Clone, Default)]
pub struct Leases {
    table: Arc<Mutex<Table>>,
    changed: Arc<Notify>,
}

impl Leases {
    /// Whether this node counts.
    pub fn leads(&self) -> bool {
        self.table.lock().leads
    }

    /// A lease was granted, or is there.
    pub fn granted(&self, id: LeaseId, ttl_ms: u64) {
        let mut table = self.table.lock();
        if table.leads {
            table.set(id, Duration::from_millis(ttl_ms), Instant::now());
            drop(table);
            self.changed.notify_one();
        }
    }

    /// A lease was ended by somebody else.
    pub fn ended(&self, id: LeaseId) {
        self.table.lock().remove(id);
    }

    /// Gives a lease its whole time again.
    pub fn renew(&self, id: LeaseId) -> Renewal {
        self.table.lock().renew(id, Instant::now())
    }

    /// What is left of it.
    pub fn remaining(&self, id: LeaseId) -> Option<Duration> {
        let table = self.table.lock();
        table.leases.get(&id).map(|counted| counted.until.saturating_duration_since(Instant::now()))
    }

    /// Counts while this node leads; ends when it stops.
    pub async fn run(&self, host: Arc<impl Host>) {
        while host.until_leading(true).await.is_ok() {
            tokio::select! {
                biased;
                // Why it ends shows when it is to lead again.
                _ = host.until_leading(false) => {}
                () = self.count(&*host) => {}
            }
            self.table.lock().clear();
        }
    }

    /// Takes the leases over, and ends those whose time is up, for ever.
    async fn count(&self, host: &impl Host) {
        while host.take_over(Instant::now() + PATIENCE).await.is_err() {
            tokio::time::sleep(RETRY).await;
        }
        self.table.lock().leads = true;
        let mut reconcile = tokio::time::interval(RECONCILE);
        loop {
            let next = self.table.lock().queue.first().map(|(until, _)| *until);
            let sleep = async {
                match next {
                    Some(until) => tokio::time::sleep_until(until).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                _ = reconcile.tick() => self.reconcile(host),
                () = self.changed.notified() => {}
                () = sleep => self.end_due(host).await,
            }
        }
    }

    fn reconcile(&self, host: &impl Host) {
        let found = match host.leases() {
            Ok(found) => found,
            Err(error) => return tracing::error!("leases cannot be read: {error}"),
        };
        let now = Instant::now();
        let there: BTreeSet<LeaseId> = found.iter().map(|info| info.id).collect();
        let mut table = self.table.lock();
        let gone: Vec<LeaseId> = table.leases.keys().filter(|id| !there.contains(id)).copied().collect();
        gone.into_iter().for_each(|id| table.remove(id));
        for info in found {
            if !table.leases.contains_key(&info.id) {
                table.set(info.id, Duration::from_millis(info.ttl_ms), now);
            }
        }
    }

    async fn end_due(&self, host: &impl Host) {
        let due = self.table.lock().take_due(Instant::now());
        if due.is_empty() {
            return;
        }
        match tokio::time::timeout(PATIENCE, host.expire(due.clone())).await {
            Ok(Ok(())) => {
                tracing::info!("{} lease(s) ended: not renewed in time", due.len());
                let mut table = self.table.lock();
                due.iter().for_each(|id| table.remove(*id));
                table.complained = false;
            }
            other => {
                let why = other.map_or("no quorum in time".to_owned(), |done| match done {
                    Ok(_) => String::new(),
                    Err(failure) => failure.to_string(),
                });
                let mut table = self.table.lock();
                table.put_back(&due, Instant::now() + RETRY);
                if !std::mem::replace(&mut table.complained, true) {
                    tracing::warn!(
                        "{} lease(s) could not be ended yet, and are tried again: {why}",
                        due.len()
                    );
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const TTL: Duration = Duration::from_secs(10);

    #[test]
    fn a_lease_is_due_when_it_was_not_renewed_and_then_cannot_be() {
        let start = Instant::now();
        let mut table = Table::default();
        table.set(LeaseId(1), TTL, start);
        table.set(LeaseId(2), TTL, start);
        let later = start + TTL / 2;
        assert_eq!(table.renew(LeaseId(2), later), Renewal::Renewed(TTL));
        assert_eq!(table.renew(LeaseId(3), later), Renewal::Unknown);
        assert!(table.take_due(later).is_empty());
        assert_eq!(table.take_due(start + TTL), [LeaseId(1)]);
        assert_eq!(table.renew(LeaseId(1), start + TTL), Renewal::Ending);
        assert!(table.take_due(start + TTL).is_empty(), "it is proposed once");
        table.put_back(&[LeaseId(1)], start + TTL);
        assert_eq!(table.renew(LeaseId(1), start + TTL), Renewal::Ending);
        assert_eq!(table.take_due(start + TTL), [LeaseId(1)], "and again when that failed");
        assert_eq!(table.take_due(later + TTL), [LeaseId(2)]);
    }

    #[test]
    fn many_that_are_due_go_in_batches() {
        let start = Instant::now();
        let mut table = Table::default();
        for id in 0..BATCH as u64 + 10 {
            table.set(LeaseId(id), TTL, start);
        }
        assert_eq!(table.take_due(start + TTL).len(), BATCH);
        assert_eq!(table.take_due(start + TTL).len(), 10);
        table.remove(LeaseId(0));
        assert_eq!(table.queue.len(), 0);
    }

    #[test]
    fn a_new_time_takes_the_place_of_the_old() {
        let start = Instant::now();
        let mut table = Table::default();
        table.set(LeaseId(1), TTL, start);
        table.set(LeaseId(1), TTL * 2, start);
        assert!(table.take_due(start + TTL).is_empty());
        assert_eq!(table.queue.len(), 1);
    }
}
