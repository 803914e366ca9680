//! The state as it is read: what was applied last, over what is being written, over the database.

use std::sync::Arc;

use bytes::Bytes;
use quorumfs_api::codec::{self, FrameKind};
use quorumfs_api::record::Revision;
use quorumfs_machine::tables::Visit;
use quorumfs_machine::{ReadTables, StorageError, Table, Tables};
use quorumfs_policy::InForce;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::format::{LogIdRecord, MembershipRecord};
use crate::state::base::{Base, failed};
use crate::state::overlay::{Merged, Overlay};
use crate::types::{LogId, SnapshotMeta, StoredMembership};

/// Row of the last applied log id. The zero byte keeps it apart from the rows of the state machine.
const APPLIED: &[u8] = b"\0raft/applied";
/// Row of the membership.
const MEMBERSHIP: &[u8] = b"\0raft/membership";

/// Applied entries, or bytes of rows, after which the active layer goes to disk.
const FLUSH_ENTRIES: u64 = 16_384;
/// See [`FLUSH_ENTRIES`].
const FLUSH_BYTES: usize = 24 << 20;

/// The three layers, and where in the log they stand.
pub(crate) struct Layers {
    /// Where applying writes.
    pub active: Overlay,
    /// What is being written to the database.
    pub frozen: Option<Arc<Overlay>>,
    /// The database; `None` after it was closed.
    pub base: Option<Arc<Base>>,
    /// Where in the log the state stands.
    pub position: SnapshotMeta,
    /// The newest revision.
    pub revision: Revision,
    /// The policy as of that revision.
    pub policy: Arc<InForce>,
}

impl Layers {
    /// Whether the active layer should go to disk.
    pub fn is_full(&self) -> bool {
        self.active.entries >= FLUSH_ENTRIES || self.active.bytes() >= FLUSH_BYTES
    }

    pub fn view(&self) -> Result<View<'_>, StorageError> {
        let base = self.base.as_deref().ok_or_else(closed)?;
        Ok(View { active: &self.active, frozen: self.frozen.as_deref(), base, policy: &self.policy })
    }

    /// Writes where in the log the state stands, as rows of the state.
    pub fn set_applied(&mut self, last: LogId) -> Result<(), StorageError> {
        self.position.last_log_id = Some(last);
        self.put(Table::Meta, APPLIED, row(&LogIdRecord::from(last))?)
    }

    /// Writes a new membership.
    pub fn set_membership(&mut self, membership: StoredMembership) -> Result<(), StorageError> {
        let at = membership.log_id().map(LogIdRecord::from);
        let record = (at, MembershipRecord::from(membership.membership()));
        self.position.last_membership = membership;
        self.put(Table::Meta, MEMBERSHIP, row(&record)?)
    }
}

pub(crate) fn closed() -> StorageError {
    StorageError::new("the state was closed")
}

fn row<T: Serialize>(value: &T) -> Result<Bytes, StorageError> {
    codec::encode(FrameKind::Row, value).map_err(failed)
}

fn read<T: DeserializeOwned>(tables: &impl ReadTables, key: &[u8]) -> Result<Option<T>, StorageError> {
    let Some(row) = tables.get(Table::Meta, key)? else { return Ok(None) };
    codec::decode_whole(FrameKind::Row, &row).map(Some).map_err(failed)
}

/// Where in the log some tables stand.
pub(crate) fn position(tables: &impl ReadTables) -> Result<SnapshotMeta, StorageError> {
    let last: Option<LogIdRecord> = read(tables, APPLIED)?;
    let membership: Option<(Option<LogIdRecord>, MembershipRecord)> = read(tables, MEMBERSHIP)?;
    let (at, membership) = membership.unwrap_or_default();
    let membership = membership.try_into().map_err(failed)?;
    Ok(SnapshotMeta {
        last_log_id: last.map(Into::into),
        last_membership: StoredMembership::new(at.map(Into::into), membership),
    })
}

/// The state at one moment, while its lock is held.
pub struct View<'a> {
    active: &'a Overlay,
    frozen: Option<&'a Overlay>,
    base: &'a Base,
    policy: &'a Arc<InForce>,
}

impl View<'_> {
    /// The policy as of the same moment.
    pub fn policy(&self) -> &Arc<InForce> {
        self.policy
    }
}

impl ReadTables for View<'_> {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, StorageError> {
        let above =
            self.active.get(table, key).or_else(|| self.frozen.and_then(|frozen| frozen.get(table, key)));
        match above {
            Some(row) => Ok(row.clone()),
            None => self.base.get(table, key),
        }
    }

    fn scan(
        &self,
        table: Table,
        start: &[u8],
        end: Option<&[u8]>,
        visit: Visit<'_>,
    ) -> Result<(), StorageError> {
        if end.is_some_and(|end| end <= start) {
            return Ok(());
        }
        let active = self.active.range(table, start, end);
        let frozen = self.frozen.map_or_else(Default::default, |frozen| frozen.range(table, start, end));
        self.base.scan_under(table, (start, end), Merged::new(active, frozen), visit)
    }
}

impl ReadTables for Layers {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, StorageError> {
        self.view()?.get(table, key)
    }

    fn scan(
        &self,
        table: Table,
        start: &[u8],
        end: Option<&[u8]>,
        visit: Visit<'_>,
    ) -> Result<(), StorageError> {
        self.view()?.scan(table, start, end, visit)
    }
}

impl Tables for Layers {
    fn put(&mut self, table: Table, key: &[u8], value: Bytes) -> Result<(), StorageError> {
        self.active.set(table, key, value, false);
        Ok(())
    }

    fn put_new(&mut self, table: Table, key: &[u8], value: Bytes) -> Result<(), StorageError> {
        self.active.set(table, key, value, true);
        Ok(())
    }

    fn delete(&mut self, table: Table, key: &[u8]) -> Result<(), StorageError> {
        self.active.remove(table, key);
        Ok(())
    }
}
