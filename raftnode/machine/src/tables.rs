//! The tables that the state machine works on, as ordered maps of bytes. The machine sees only these
//! traits: it runs the same over a database, over its in-memory layers, and over a plain map in tests.

use std::collections::BTreeMap;
use std::ops::{Bound, ControlFlow};

use bytes::Bytes;

/// A table. Numbers and names are part of the disk and snapshot formats: they are never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Table {
    /// Counters of the store, by name.
    Meta = 0,
    /// Inode → record without its value.
    Nodes = 1,
    /// Inode → value of a file or target of a symlink.
    Values = 2,
    /// Inode of a directory and a name → inode.
    Entries = 3,
    /// Revision → event.
    Events = 4,
    /// Lease → what was granted.
    Leases = 5,
    /// Lease and request number → outcome, for retries.
    Results = 6,
    /// Lease and inode → nothing: the keys of a lease.
    LeaseKeys = 7,
    /// Inode → locks held on it.
    Locks = 8,
    /// Lease and inode → nothing: where a lease holds locks.
    LeaseLocks = 9,
    /// Lease and lock owner → the locks that it waits for.
    Waits = 10,
}

impl Table {
    /// All tables in the order of their numbers.
    pub const ALL: [Table; 11] = [
        Table::Meta,
        Table::Nodes,
        Table::Values,
        Table::Entries,
        Table::Events,
        Table::Leases,
        Table::Results,
        Table::LeaseKeys,
        Table::Locks,
        Table::LeaseLocks,
        Table::Waits,
    ];

    /// Its name in the database.
    pub fn name(self) -> &'static str {
        match self {
            Table::Meta => "meta",
            Table::Nodes => "nodes",
            Table::Values => "values",
            Table::Entries => "entries",
            Table::Events => "events",
            Table::Leases => "leases",
            Table::Results => "results",
            Table::LeaseKeys => "lease_keys",
            Table::Locks => "locks",
            Table::LeaseLocks => "lease_locks",
            Table::Waits => "waits",
        }
    }

    /// The table with this number.
    pub fn from_number(number: u8) -> Option<Table> {
        Table::ALL.get(usize::from(number)).copied()
    }
}

/// The storage failed, or what it holds cannot be read. The node has to stop: a state that is applied
/// in part must never be served.
#[derive(Debug, thiserror::Error)]
#[error("the state cannot be read or written: {0}")]
pub struct StorageError(#[from] pub Box<dyn std::error::Error + Send + Sync>);

impl StorageError {
    /// One that says `message`.
    pub fn new(message: impl Into<String>) -> StorageError {
        StorageError(message.into().into())
    }
}

/// Called for each row of a scan.
pub type Visit<'a> = &'a mut dyn FnMut(&[u8], &Bytes) -> ControlFlow<()>;

/// Reading.
pub trait ReadTables {
    /// The value of `key`.
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, StorageError>;

    /// Rows from `start` (included) to `end` (left out; `None`: the end of the table) in order of
    /// their keys, until `visit` breaks off.
    fn scan(
        &self,
        table: Table,
        start: &[u8],
        end: Option<&[u8]>,
        visit: Visit<'_>,
    ) -> Result<(), StorageError>;
}

/// Reading and writing. Writes are seen by reads at once.
pub trait Tables: ReadTables {
    /// Sets `key`.
    fn put(&mut self, table: Table, key: &[u8], value: Bytes) -> Result<(), StorageError>;
    /// As `put`, where the caller knows that nothing is at `key`.
    fn put_new(&mut self, table: Table, key: &[u8], value: Bytes) -> Result<(), StorageError> {
        self.put(table, key, value)
    }
    /// Removes `key`; nothing happens if it is not there.
    fn delete(&mut self, table: Table, key: &[u8]) -> Result<(), StorageError>;
}

/// Tables in plain maps: what tests compare with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemTables {
    rows: BTreeMap<Table, BTreeMap<Vec<u8>, Bytes>>,
}

impl ReadTables for MemTables {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, StorageError> {
        Ok(self.rows.get(&table).and_then(|rows| rows.get(key)).cloned())
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
        let end = end.map_or(Bound::Unbounded, Bound::Excluded);
        let rows = self
            .rows
            .get(&table)
            .into_iter()
            .flat_map(|rows| rows.range::<[u8], _>((Bound::Included(start), end)));
        for (key, value) in rows {
            if visit(key, value).is_break() {
                break;
            }
        }
        Ok(())
    }
}

impl Tables for MemTables {
    fn put(&mut self, table: Table, key: &[u8], value: Bytes) -> Result<(), StorageError> {
        self.rows.entry(table).or_default().insert(key.to_vec(), value);
        Ok(())
    }

    fn delete(&mut self, table: Table, key: &[u8]) -> Result<(), StorageError> {
        if let Some(rows) = self.rows.get_mut(&table) {
            rows.remove(key);
            if rows.is_empty() {
                self.rows.remove(&table);
            }
        }
        Ok(())
    }
}
