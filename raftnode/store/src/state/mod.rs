//! The state of the store: applied to in memory, brought to disk behind, read from both.

pub(crate) mod base;
mod flush;
pub(crate) mod layers;
mod overlay;
mod ring;
#[cfg(test)]
mod tests;

use std::sync::{Arc, OnceLock};
use std::thread;

use bytes::Bytes;
use openraft::EntryPayload;
use parking_lot::{Mutex, RwLock};
use quorumfs_api::event::Event;
use quorumfs_api::outcome::{Done, Outcome};
use quorumfs_api::record::Revision;
use quorumfs_machine::tables::Visit;
use quorumfs_machine::{ReadTables, StorageError, Table, view};
use quorumfs_policy::InForce;
use redb::Database;
use tokio::sync::watch;

use self::base::Base;
use self::flush::{Desk, Install};
use self::layers::Layers;
pub use self::layers::View;
use self::overlay::Overlay;
use self::ring::Ring;
use crate::log::LogBarrier;
use crate::types::{Entry, SnapshotMeta, StoredMembership};

/// Bytes of rows at which applying waits for the disk.
const ACTIVE_BYTES_MAX: usize = 64 << 20;
/// About how many bytes of events one call of [`State::events_after`] gives.
const EVENTS_BYTES: usize = 4 << 20;

/// Up to where the state is applied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AppliedAt {
    /// Index of the last applied log entry; 0 where there is none.
    pub index: u64,
    /// The store's revision.
    pub revision: Revision,
    /// Revision that wrote the policy; 0 where there is none.
    pub policy: Revision,
}

/// The event log no longer reaches back to where a watcher wants to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the event log begins after revision {compacted}: watch from there, or take a new copy")]
pub struct Behind {
    /// Oldest revision after which a watch can resume.
    pub compacted: Revision,
}

/// Why there are no events.
#[derive(Debug, thiserror::Error)]
pub enum EventsError {
    /// They are forgotten.
    #[error(transparent)]
    Behind(#[from] Behind),
    /// The storage failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// What is on disk.
#[derive(Clone, Debug, Default)]
struct Durable {
    position: SnapshotMeta,
    revision: Revision,
    policy: Arc<InForce>,
}

struct Inner {
    layers: RwLock<Layers>,
    ring: Mutex<Ring>,
    applied: watch::Sender<AppliedAt>,
    /// Revision that wrote the policy.
    policies: watch::Sender<Revision>,
    durable: watch::Sender<Durable>,
    desk: Desk,
    /// The log that is applied here, where it is on the same disk.
    log: OnceLock<LogBarrier>,
    failure: OnceLock<String>,
}

impl Inner {
    fn check(&self) -> Result<(), StorageError> {
        match self.failure.get() {
            Some(failure) => Err(StorageError::new(failure.clone())),
            None => Ok(()),
        }
    }

    /// The state is dead from now on; gives the error to tell.
    fn fail(&self, error: StorageError) -> StorageError {
        tracing::error!(%error, "the state failed");
        let failure = self.failure.get_or_init(|| format!("{error}; the node has to be restarted"));
        StorageError::new(failure.clone())
    }

    fn publish(&self, position: &SnapshotMeta, revision: Revision, policy: Revision) {
        let index = position.last_log_id.map_or(0, |last| last.index);
        self.applied.send_replace(AppliedAt { index, revision, policy });
        self.policies.send_if_modified(|known| std::mem::replace(known, policy) != policy);
    }
}

/// Ends the thread when the last handle is gone. What is in memory only is not lost: the log has it.
struct Handle {
    inner: Arc<Inner>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.inner.desk.end();
    }
}

/// The state of the store. Clones are handles to the same.
#[derive(Clone)]
pub struct State {
    handle: Arc<Handle>,
}

/// The state on disk at one moment. It stays as it is while writes go on; as long as it is held the
/// database cannot use the space of what was replaced since.
#[derive(Clone)]
pub struct SnapshotView {
    base: Arc<Base>,
    position: Arc<SnapshotMeta>,
    revision: Revision,
    policy: Arc<InForce>,
}

impl SnapshotView {
    /// Where in the log it stands.
    pub fn position(&self) -> &SnapshotMeta {
        &self.position
    }

    /// Its revision.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// The policy as of that revision.
    pub fn policy(&self) -> &Arc<InForce> {
        &self.policy
    }
}

impl ReadTables for SnapshotView {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, StorageError> {
        self.base.get(table, key)
    }

    fn scan(
        &self,
        table: Table,
        start: &[u8],
        end: Option<&[u8]>,
        visit: Visit<'_>,
    ) -> Result<(), StorageError> {
        self.base.scan(table, start, end, visit)
    }
}

impl State {
    /// Opens the state in `database`, which may be new.
    pub(crate) fn open(database: Database) -> Result<State, StorageError> {
        let database = Arc::new(database);
        base::make_tables(&database)?;
        let base = Base::now(&database)?;
        let position = layers::position(&base)?;
        let mut layers = Layers {
            active: Overlay::default(),
            frozen: None,
            base: Some(Arc::new(base)),
            position: position.clone(),
            revision: 0,
            policy: Arc::default(),
        };
        quorumfs_machine::init(&mut layers)?;
        layers.revision = view::meta(&layers)?.revision;
        layers.policy = Arc::new(view::policy(&layers)?);
        let (revision, policy) = (layers.revision, layers.policy.clone());
        let policy_at = policy.revision;
        let inner = Arc::new(Inner {
            layers: RwLock::new(layers),
            ring: Mutex::new(Ring::new(revision)),
            applied: watch::Sender::new(AppliedAt::default()),
            policies: watch::Sender::new(policy.revision),
            durable: watch::Sender::new(Durable { position: position.clone(), revision, policy }),
            desk: Desk::default(),
            log: OnceLock::new(),
            failure: OnceLock::new(),
        });
        inner.publish(&position, revision, policy_at);
        let flusher = inner.clone();
        let spawned = thread::Builder::new().name("state-flusher".into()).spawn(move || flush::run(&flusher));
        spawned.map_err(base::failed)?;
        Ok(State { handle: Arc::new(Handle { inner }) })
    }

    fn inner(&self) -> &Inner {
        &self.handle.inner
    }

    /// From now on the state goes to disk only up to where this log is durable.
    pub(crate) fn stay_behind(&self, log: LogBarrier) {
        let first = self.inner().log.set(log).is_ok();
        debug_assert!(first, "a state has one log");
    }

    /// Reads the state as it is now. Applying waits meanwhile: for what takes long there is
    /// [`State::snapshot_view`].
    ///
    /// # Errors
    /// What `read` says; or when the state has failed, or was closed.
    pub fn read<R>(
        &self,
        read: impl FnOnce(&View<'_>) -> Result<R, StorageError>,
    ) -> Result<R, StorageError> {
        self.inner().check()?;
        let layers = self.inner().layers.read();
        read(&layers.view()?)
    }

    /// The state as it is now, for long reads. What is not on disk yet is brought there first.
    ///
    /// # Errors
    /// When the state has failed, or was closed.
    pub async fn snapshot_view(&self) -> Result<SnapshotView, StorageError> {
        self.inner().desk.flush().await
    }

    /// Brings all that is applied now to disk.
    ///
    /// # Errors
    /// When the state has failed, or was closed.
    pub async fn flush(&self) -> Result<(), StorageError> {
        self.snapshot_view().await.map(|_| ())
    }

    /// Makes the state durable up to a log index, if it is applied that far.
    pub(crate) async fn ensure_durable(&self, index: u64) -> Result<(), StorageError> {
        let behind = {
            let durable = self.inner().durable.borrow();
            durable.position.last_log_id.is_none_or(|last| last.index < index)
        };
        if behind && self.inner().applied.borrow().index >= index { self.flush().await } else { Ok(()) }
    }

    /// Up to where the state is applied, now and from now on.
    pub fn applied(&self) -> watch::Receiver<AppliedAt> {
        self.inner().applied.subscribe()
    }

    /// Revisions that wrote a policy, now and from now on.
    pub fn policies(&self) -> watch::Receiver<Revision> {
        self.inner().policies.subscribe()
    }

    /// The policy as it is now.
    pub fn policy(&self) -> Arc<InForce> {
        self.inner().layers.read().policy.clone()
    }

    /// Where in the log the state stands.
    pub fn position(&self) -> SnapshotMeta {
        self.inner().layers.read().position.clone()
    }

    /// The events after revision `after` in order, at most `max`, but one if there is one. None means
    /// that nothing happened since.
    ///
    /// # Errors
    /// When they are forgotten, or the storage fails.
    pub fn events_after(&self, after: Revision, max: usize) -> Result<Vec<Arc<Event>>, EventsError> {
        if let Some(events) = self.inner().ring.lock().after(after, max, EVENTS_BYTES) {
            return Ok(events);
        }
        match self.read(|tables| view::events(tables, after, max, EVENTS_BYTES))? {
            Ok(events) => Ok(events.into_iter().map(Arc::new).collect()),
            Err(compacted) => Err(Behind { compacted: compacted.oldest }.into()),
        }
    }

    /// Applies entries, all of them before anybody sees one; gives their outcomes in order.
    pub(crate) fn apply<'a>(
        &self,
        entries: impl Iterator<Item = &'a Entry>,
    ) -> Result<Vec<Outcome>, StorageError> {
        let inner = self.inner();
        inner.check()?;
        let mut events = Vec::new();
        let (outcomes, position, revision, policy, full) = {
            let mut layers = inner.layers.write();
            let outcomes = match apply(&mut layers, entries, &mut events) {
                Ok(outcomes) => outcomes,
                // What is in the layer now is the state of no index: nobody may see it.
                Err(error) => return Err(inner.fail(error)),
            };
            let (position, policy) = (layers.position.clone(), layers.policy.revision);
            (outcomes, position, layers.revision, policy, layers.is_full())
        };
        if full {
            inner.desk.kick();
        }
        if !events.is_empty() {
            let mut ring = inner.ring.lock();
            for event in events {
                ring.push(event);
            }
        }
        inner.publish(&position, revision, policy);
        Ok(outcomes)
    }

    /// Waits while too much is in memory only.
    pub(crate) async fn wait_for_room(&self) -> Result<(), StorageError> {
        let full = self.inner().layers.read().active.bytes() >= ACTIVE_BYTES_MAX;
        if full { self.flush().await } else { Ok(()) }
    }

    /// Puts the state in `database`, a durable one in the file `from`, in the place of this one, in
    /// the file `to`.
    pub(crate) async fn install(
        &self,
        database: Database,
        position: SnapshotMeta,
        from: std::path::PathBuf,
        to: std::path::PathBuf,
    ) -> Result<(), StorageError> {
        let database = Arc::new(database);
        let revision = view::meta(&Base::now(&database)?)?.revision;
        let desk = &self.inner().desk;
        desk.install(|done| Install { database, position, revision, from, to, done }).await
    }

    /// Brings everything to disk and lets go of the database.
    pub(crate) async fn close(&self) -> Result<(), StorageError> {
        self.inner().desk.close().await
    }
}

fn apply<'a>(
    layers: &mut Layers,
    entries: impl Iterator<Item = &'a Entry>,
    events: &mut Vec<Arc<Event>>,
) -> Result<Vec<Outcome>, StorageError> {
    let mut outcomes = Vec::with_capacity(entries.size_hint().0);
    let mut policy = layers.policy.clone();
    let mut last = None;
    for entry in entries {
        let outcome = match &entry.payload {
            EntryPayload::Normal(logged) => {
                let applied = quorumfs_machine::apply_under(layers, &mut policy, logged.proposal())?;
                events.extend(applied.event.map(Arc::new));
                applied.outcome
            }
            EntryPayload::Blank => Outcome { revision: layers.revision, result: Ok(Done::Ok) },
            EntryPayload::Membership(membership) => {
                layers.set_membership(StoredMembership::new(Some(entry.log_id), membership.clone()))?;
                Outcome { revision: layers.revision, result: Ok(Done::Ok) }
            }
        };
        layers.revision = outcome.revision;
        layers.active.entries += 1;
        outcomes.push(outcome);
        last = Some(entry.log_id);
    }
    layers.policy = policy;
    if let Some(last) = last {
        layers.set_applied(last)?;
    }
    Ok(outcomes)
}
