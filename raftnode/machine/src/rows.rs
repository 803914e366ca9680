//! How the rows of the tables are written. Every value begins with the version of its format, so that
//! a later program can read an old state; a row that does not decode stops the node.
//!
//! Keys are numbers in big-endian bytes, so that the order of the rows is the order of the numbers.

use bytes::Bytes;
use quorumfs_api::command::{HeldLock, LockKind, Range};
use quorumfs_api::event::Event;
use quorumfs_api::key::Name;
use quorumfs_api::outcome::Outcome;
use quorumfs_api::record::{Ino, Kind, LeaseId, Record, Revision, Timestamp};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::tables::{ReadTables, StorageError, Table};

/// Version of the rows that this program writes.
const ROW_VERSION: u8 = 1;

/// Bytes that are set aside while a row is written.
const ROW_ROOM: usize = 512;

/// The one row of [`Table::Meta`] that belongs to the machine.
const COUNTERS_KEY: &[u8] = b"counters";

/// The counters of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Counters {
    /// The newest revision.
    pub revision: Revision,
    /// Events up to this revision are gone from the log.
    pub compacted: Revision,
    /// Number of keys; the root is none.
    pub keys: u64,
    /// Bytes that count against the quota.
    pub store_bytes: u64,
    /// The number that the next object gets.
    pub next_ino: u64,
    /// Bytes that the event log takes.
    pub event_bytes: u64,
    /// Revision that wrote the policy; 0 where there is none.
    pub policy: Revision,
}

/// A record without its value, with where it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NodeRow {
    /// Its directory and its name there; `None` for the root.
    pub place: Option<(Ino, Name)>,
    /// Bytes in its value.
    pub size: u64,
    /// Of a directory: no path from it to something below it has more bytes than this. It grows with
    /// what comes in and stays when things go, so that a rename can tell in one step that no key
    /// below would become too long.
    pub reach: u32,
    pub kind: Kind,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub atime: Timestamp,
    pub mtime: Timestamp,
    pub ctime: Timestamp,
    pub create_revision: Revision,
    pub mod_revision: Revision,
    pub version: u64,
    pub lease: Option<LeaseId>,
    pub author: String,
    pub xattrs: Vec<(Bytes, Bytes)>,
}

impl NodeRow {
    /// The record, with `value` for its value.
    pub fn into_record(self, ino: Ino, value: Bytes) -> Record {
        Record {
            ino,
            kind: self.kind,
            mode: self.mode,
            uid: self.uid,
            gid: self.gid,
            atime: self.atime,
            mtime: self.mtime,
            ctime: self.ctime,
            create_revision: self.create_revision,
            mod_revision: self.mod_revision,
            version: self.version,
            lease: self.lease,
            author: self.author.into(),
            xattrs: self.xattrs,
            value,
        }
    }
}

/// What a name in a directory stands for. The kind is here too, so that walking a path does not read
/// the records on the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    pub ino: Ino,
    pub kind: Kind,
}

/// A lock that somebody waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Wait {
    pub ino: Ino,
    pub range: Range,
    pub kind: LockKind,
}

/// A lease, and what its session remembers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LeaseRow {
    pub ttl_ms: u64,
    pub author: String,
    pub granted: Timestamp,
    /// How many keys are bound to it.
    pub keys: u64,
    /// Results of requests with smaller numbers are forgotten.
    pub floor: u64,
}

/// A type that is the row of one table.
pub(crate) trait Row: Serialize + DeserializeOwned {
    const TABLE: Table;
}
impl Row for Counters {
    const TABLE: Table = Table::Meta;
}
impl Row for NodeRow {
    const TABLE: Table = Table::Nodes;
}
impl Row for Entry {
    const TABLE: Table = Table::Entries;
}
impl Row for Event {
    const TABLE: Table = Table::Events;
}
impl Row for LeaseRow {
    const TABLE: Table = Table::Leases;
}
impl Row for Outcome {
    const TABLE: Table = Table::Results;
}
impl Row for Vec<HeldLock> {
    const TABLE: Table = Table::Locks;
}
impl Row for Vec<Wait> {
    const TABLE: Table = Table::Waits;
}

/// Writes a row.
pub(crate) fn encode<R: Row>(row: &R) -> Result<Bytes, StorageError> {
    // Most rows fit at once; what is kept has exactly the size that it needs.
    let mut out = Vec::with_capacity(ROW_ROOM);
    out.push(ROW_VERSION);
    match postcard::to_extend(row, out) {
        Ok(bytes) => Ok(Bytes::copy_from_slice(&bytes)),
        Err(error) => {
            Err(StorageError::new(format!("a row for {} cannot be encoded: {error}", R::TABLE.name())))
        }
    }
}

/// Reads a row.
pub(crate) fn decode<R: Row>(key: &[u8], bytes: &[u8]) -> Result<R, StorageError> {
    match postcard::take_from_bytes(body(R::TABLE, key, bytes)?) {
        Ok((row, [])) => Ok(row),
        Ok((_, rest)) => Err(damaged(R::TABLE, key, &format!("{} bytes follow it", rest.len()))),
        Err(error) => Err(damaged(R::TABLE, key, &error.to_string())),
    }
}

fn body<'a>(table: Table, key: &[u8], bytes: &'a [u8]) -> Result<&'a [u8], StorageError> {
    match bytes.split_first() {
        Some((&ROW_VERSION, body)) => Ok(body),
        Some((version, _)) => Err(damaged(table, key, &format!("format version {version} is unknown here"))),
        None => Err(damaged(table, key, "it is empty")),
    }
}

/// A row is not what it has to be.
pub(crate) fn damaged(table: Table, key: &[u8], what: &str) -> StorageError {
    let key: String = key.iter().take(32).map(|b| format!("{b:02x}")).collect();
    StorageError::new(format!(
        "row {key} of table {}: {what}; restore this node from a snapshot or rejoin it under a new id",
        table.name()
    ))
}

/// Reads the row at `key`, if there is one.
pub(crate) fn read<R: Row, T: ReadTables + ?Sized>(
    tables: &T,
    key: &[u8],
) -> Result<Option<R>, StorageError> {
    tables.get(R::TABLE, key)?.map(|bytes| decode(key, &bytes)).transpose()
}

/// Key of an inode's, a revision's or a lease's row.
pub(crate) fn number(number: u64) -> [u8; 8] {
    number.to_be_bytes()
}

/// Key of a row for a lease and an inode, a request number or a lock owner.
pub(crate) fn pair(first: u64, second: u64) -> [u8; 16] {
    let mut key = [0; 16];
    key[..8].copy_from_slice(&first.to_be_bytes());
    key[8..].copy_from_slice(&second.to_be_bytes());
    key
}

/// The number that a row's key is.
pub(crate) fn first(table: Table, key: &[u8]) -> Result<u64, StorageError> {
    let number: Result<[u8; 8], _> = key.try_into();
    number.map(u64::from_be_bytes).map_err(|_| damaged(table, key, "its key is no number"))
}

/// The second of the two numbers that a row's key is.
pub(crate) fn second(table: Table, key: &[u8]) -> Result<u64, StorageError> {
    first(table, key.get(8..).unwrap_or_default())
}

/// Key of the row of a name in a directory.
pub(crate) fn entry(dir: Ino, name: &[u8]) -> Vec<u8> {
    let mut key = Vec::with_capacity(8 + name.len());
    key.extend_from_slice(&dir.0.to_be_bytes());
    key.extend_from_slice(name);
    key
}

/// The name in the key of an entry.
pub(crate) fn entry_name(key: &[u8]) -> Result<Name, StorageError> {
    let name = key.get(8..).unwrap_or_default();
    Name::new(name).map_err(|error| damaged(Table::Entries, key, &error.to_string()))
}

/// First key after all that begin with `first`.
pub(crate) fn after(first: u64) -> Option<[u8; 8]> {
    first.checked_add(1).map(u64::to_be_bytes)
}

/// The counters; an error where [`init`](crate::init) has never run.
pub(crate) fn counters<T: ReadTables + ?Sized>(tables: &T) -> Result<Counters, StorageError> {
    counters_if_any(tables)?.ok_or_else(|| damaged(Table::Meta, COUNTERS_KEY, "the tables are empty"))
}

/// The counters, unless the tables are empty.
pub(crate) fn counters_if_any<T: ReadTables + ?Sized>(tables: &T) -> Result<Option<Counters>, StorageError> {
    read(tables, COUNTERS_KEY)
}

/// Key of the counters.
pub(crate) fn counters_key() -> &'static [u8] {
    COUNTERS_KEY
}

/// A row that says only that it is there.
pub(crate) fn mark() -> Bytes {
    Bytes::from_static(&[ROW_VERSION])
}

/// Writes the row of a value.
pub(crate) fn encode_value(value: &[u8]) -> Bytes {
    let mut row = Vec::with_capacity(1 + value.len());
    row.push(ROW_VERSION);
    row.extend_from_slice(value);
    row.into()
}

/// The record row of an inode that must be there, because another row names it.
pub(crate) fn node<T: ReadTables + ?Sized>(tables: &T, ino: Ino) -> Result<NodeRow, StorageError> {
    let key = number(ino.0);
    read(tables, &key)?
        .ok_or_else(|| damaged(Table::Nodes, &key, "it is missing, though another row names it"))
}

/// The value that belongs to `row`. Empty values have no row.
pub(crate) fn value<T: ReadTables + ?Sized>(
    tables: &T,
    ino: Ino,
    row: &NodeRow,
) -> Result<Bytes, StorageError> {
    if row.size == 0 {
        return Ok(Bytes::new());
    }
    let key = number(ino.0);
    let bytes =
        tables.get(Table::Values, &key)?.ok_or_else(|| damaged(Table::Values, &key, "it is missing"))?;
    body(Table::Values, &key, &bytes)?;
    let value = bytes.slice(1..);
    if value.len() as u64 != row.size {
        return Err(damaged(
            Table::Values,
            &key,
            &format!("{} bytes where {} belong", value.len(), row.size),
        ));
    }
    Ok(value)
}
