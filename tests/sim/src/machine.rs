//! The state machine of a node: the real one over plain maps, brought to the [`Disk`] behind, as the
//! store does it.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend};
use parking_lot::Mutex;
use quorumfs_api::command::{AttrChange, Command};
use quorumfs_api::outcome::{Done, Outcome};
use quorumfs_machine::{MemTables, Table, Tables, view};
use quorumfs_store::{Entry, LogId, SnapshotMeta, StoredMembership, read_snapshot, write_snapshot};

use crate::bug::Bug;
use crate::disk::Disk;
use crate::random::Random;
use crate::record::{Carried, Record, Seen, fingerprint};
use crate::types::{SimConfig, Snapshot};

/// In how many of 1000 cases something that was applied brings the state to disk.
const FLUSH_PER_MILLE: u64 = 30;
/// Longest time that writing a snapshot takes, in milliseconds.
const SNAPSHOT_MS: u64 = 40;

/// What was applied, for those who read.
#[derive(Clone, Default)]
pub struct Applied {
    /// The tables.
    pub tables: MemTables,
    /// As of where in the log.
    pub position: SnapshotMeta,
}

/// The same, shared.
pub type Shared = Arc<Mutex<Applied>>;

/// See the module.
pub struct Machine {
    node: u64,
    bug: Option<Bug>,
    applied: Shared,
    disk: Arc<Disk>,
    chance: Random,
    record: Record,
}

/// Builds a snapshot while applying goes on.
pub struct Builder {
    applied: Applied,
    disk: Arc<Disk>,
    millis: u64,
}

impl Machine {
    /// The machine, as it is on `disk`.
    pub fn open(node: u64, bug: Option<Bug>, disk: Arc<Disk>, chance: Random, record: Record) -> Machine {
        let (position, mut tables) = disk.state().unwrap_or_default();
        quorumfs_machine::init(&mut tables).expect("maps do not fail");
        let applied = Arc::new(Mutex::new(Applied { tables, position }));
        Machine { node, bug, applied, disk, chance, record }
    }

    /// What is applied.
    pub fn applied(&self) -> Shared {
        self.applied.clone()
    }

    fn apply_one(&mut self, applied: &mut Applied, entry: &Entry) -> io::Result<Outcome> {
        let Applied { tables, position } = applied;
        let now = |tables: &MemTables| view::meta(tables).map(|meta| meta.revision).map_err(io::Error::other);
        let (outcome, event) = match &entry.payload {
            EntryPayload::Normal(logged) => {
                let mut proposal = logged.proposal().clone();
                if self.bug == Some(Bug::ApplyDiffers)
                    && self.node == 2
                    && let Command::Append { target, .. } = &proposal.command
                {
                    let set = AttrChange { mode: Some(0o600), ..AttrChange::default() };
                    proposal.command = Command::SetAttr { target: target.clone(), set };
                }
                let done = quorumfs_machine::apply(tables, &proposal).map_err(io::Error::other)?;
                (done.outcome, done.event)
            }
            EntryPayload::Blank => (Outcome { revision: now(tables)?, result: Ok(Done::Ok) }, None),
            EntryPayload::Membership(membership) => {
                position.last_membership = StoredMembership::new(Some(entry.log_id), membership.clone());
                (Outcome { revision: now(tables)?, result: Ok(Done::Ok) }, None)
            }
        };
        position.last_log_id = Some(entry.log_id);
        self.record.see(Seen::Applied {
            node: self.node,
            entry: Carried::new(entry),
            outcome: fingerprint(&(&outcome, &event)),
            revision: outcome.revision,
        });
        Ok(outcome)
    }

    /// The state goes to disk, unless the log is behind: it must not get ahead of it.
    fn flush(&self) {
        let applied = self.applied.lock().clone();
        if applied.position.last_log_id.is_some_and(|last| last.index <= self.disk.log_end()) {
            self.disk.write_state(applied.position, applied.tables);
        }
    }
}

impl RaftSnapshotBuilder<SimConfig> for Builder {
    type SnapshotData = Bytes;

    async fn build_snapshot(&mut self) -> io::Result<Snapshot> {
        let Applied { tables, position } = self.applied.clone();
        tokio::time::sleep(Duration::from_millis(self.millis)).await;
        // The log is purged up to the snapshot, and the state must not get ahead of the log.
        while position.last_log_id.is_some_and(|last| last.index > self.disk.log_end()) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let mut bytes = Vec::new();
        write_snapshot(&tables, &position, &mut bytes).map_err(io::Error::other)?;
        let bytes = Bytes::from(bytes);
        self.disk.write_state(position.clone(), tables);
        self.disk.write_snapshot(position.clone(), bytes.clone());
        Ok(Snapshot { meta: position, snapshot: bytes })
    }
}

impl RaftStateMachine<SimConfig> for Machine {
    type SnapshotData = Bytes;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        let position = self.applied.lock().position.clone();
        Ok((position.last_log_id, position.last_membership))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> io::Result<()>
    where
        Strm: Stream<Item = io::Result<EntryResponder<SimConfig>>> + Unpin + OptionalSend,
    {
        while let Some(item) = entries.next().await {
            let (entry, responder) = item?;
            let shared = self.applied.clone();
            let outcome = self.apply_one(&mut shared.lock(), &entry)?;
            if let Some(responder) = responder {
                responder.send(outcome);
            }
            if self.chance.chance(FLUSH_PER_MILLE) {
                self.flush();
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        let millis = self.chance.between(0, SNAPSHOT_MS);
        Builder { applied: self.applied.lock().clone(), disk: self.disk.clone(), millis }
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: Bytes) -> io::Result<()> {
        let mut tables = MemTables::default();
        let found = read_snapshot(snapshot.as_ref(), |rows| {
            for (table, key, value) in rows {
                let table = Table::from_number(table).expect("the reader has checked it");
                tables.put(table, &key, value)?;
            }
            Ok(())
        });
        if found.map_err(io::Error::other)? != *meta {
            return Err(io::Error::other("the snapshot is not the one that was announced"));
        }
        tokio::time::sleep(Duration::from_millis(self.chance.between(0, SNAPSHOT_MS))).await;
        self.disk.write_snapshot(meta.clone(), snapshot);
        self.disk.write_state(meta.clone(), tables.clone());
        *self.applied.lock() = Applied { tables, position: meta.clone() };
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<Snapshot>> {
        Ok(self.disk.snapshot().map(|(meta, snapshot)| Snapshot { meta, snapshot }))
    }
}
