//! The log in a redb database. The entries that one commit appends are packed into few rows, each
//! under the index of its first entry: a row costs more than its bytes.

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use quorumfs_api::bug::{Bug, planted};
use quorumfs_api::codec::{self, FrameKind};
use redb::{Database, Durability, ReadableDatabase, ReadableTable, Table, TableDefinition};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::to_io;
use crate::format::{self, LogIdRecord, VoteRecord};
use crate::log::backend::{Batch, LogBackend, LogStart, Op};
use crate::types::Entry;

/// Index of the first entry of a pack → the frames of its entries.
const LOG: TableDefinition<u64, &[u8]> = TableDefinition::new("log");
/// Name → a frame.
const META: TableDefinition<&str, &[u8]> = TableDefinition::new("meta");
const VOTE: &str = "vote";
const COMMITTED: &str = "committed";
const PURGED: &str = "purged";
/// Bytes after which a pack is full: long enough that a row's cost does not matter, short enough
/// that a cold read of one entry does not read much else.
const PACK_BYTES: usize = 32 << 10;

/// With [`Bug::LostFsync`], one of so many commits is durable.
const LOST_OF: u64 = 64;
static LOST: AtomicU64 = AtomicU64::new(0);

/// A log in a redb database.
#[derive(Debug)]
pub struct RedbLog {
    db: Database,
}

type Rows<'a> = Table<'a, u64, &'static [u8]>;
type Meta<'a> = Table<'a, &'static str, &'static [u8]>;

impl RedbLog {
    /// Takes a database, new or with a log in it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn new(db: Database) -> io::Result<RedbLog> {
        let transaction = db.begin_write().map_err(to_io)?;
        transaction.open_table(LOG).map_err(to_io)?;
        transaction.open_table(META).map_err(to_io)?;
        transaction.commit().map_err(to_io)?;
        Ok(RedbLog { db })
    }
}

fn put<T: Serialize>(meta: &mut Meta<'_>, key: &str, value: &T) -> io::Result<()> {
    let frame = codec::encode(FrameKind::Row, value).map_err(to_io)?;
    meta.insert(key, frame.as_ref()).map_err(to_io)?;
    Ok(())
}

fn get<T: DeserializeOwned>(
    meta: &impl ReadableTable<&'static str, &'static [u8]>,
    key: &str,
) -> io::Result<Option<T>> {
    let Some(row) = meta.get(key).map_err(to_io)? else { return Ok(None) };
    let damaged = |error| io::Error::new(io::ErrorKind::InvalidData, format!("log row {key:?}: {error}"));
    codec::decode_whole(FrameKind::Row, row.value()).map(Some).map_err(damaged)
}

/// Number of entries in a pack.
fn count(mut pack: &[u8]) -> io::Result<u64> {
    let mut entries = 0;
    while format::split_frame(&mut pack)?.is_some() {
        entries += 1;
    }
    Ok(entries)
}

/// The pack that would hold `index`: its first index, and its frames.
fn pack_at(rows: &impl ReadableTable<u64, &'static [u8]>, index: u64) -> io::Result<Option<(u64, Vec<u8>)>> {
    let Some(row) = rows.range(..=index).map_err(to_io)?.next_back() else { return Ok(None) };
    let (first, pack) = row.map_err(to_io)?;
    Ok(Some((first.value(), pack.value().to_vec())))
}

/// Entries on their way into a row.
#[derive(Default)]
struct Packer {
    first: u64,
    next: u64,
    frames: Vec<u8>,
}

impl Packer {
    fn add(&mut self, rows: &mut Rows<'_>, entry: &Entry) -> io::Result<()> {
        let index = entry.log_id.index;
        if self.next != index || self.frames.len() >= PACK_BYTES {
            self.flush(rows)?;
        }
        if self.frames.is_empty() {
            self.first = index;
        }
        self.next = index + 1;
        format::encode_entry(entry, &mut self.frames).map_err(to_io)
    }

    fn flush(&mut self, rows: &mut Rows<'_>) -> io::Result<()> {
        if !self.frames.is_empty() {
            rows.insert(self.first, self.frames.as_slice()).map_err(to_io)?;
            self.frames.clear();
        }
        Ok(())
    }
}

fn truncate(rows: &mut Rows<'_>, after: Option<u64>) -> io::Result<()> {
    let Some(after) = after else {
        return rows.retain(|_, _| false).map_err(to_io);
    };
    rows.retain_in(after.saturating_add(1).., |_, _| false).map_err(to_io)?;
    let Some((first, pack)) = pack_at(rows, after)? else { return Ok(()) };
    // Of the pack that holds `after`, what comes behind it goes.
    let mut rest = pack.as_slice();
    for _ in first..=after {
        if format::split_frame(&mut rest)?.is_none() {
            break;
        }
    }
    let kept = pack.len() - rest.len();
    if kept < pack.len() {
        rows.insert(first, &pack[..kept]).map_err(to_io)?;
    }
    Ok(())
}

fn purge(rows: &mut Rows<'_>, upto: u64) -> io::Result<()> {
    let Some((first, pack)) = pack_at(rows, upto)? else { return Ok(()) };
    // A pack that is only purged in part stays; readers know where the log begins.
    let end = if first + count(&pack)? <= upto + 1 { first + 1 } else { first };
    rows.retain_in(..end, |_, _| false).map_err(to_io)
}

impl LogBackend for RedbLog {
    fn start(&self) -> io::Result<LogStart> {
        let transaction = self.db.begin_read().map_err(to_io)?;
        let meta = transaction.open_table(META).map_err(to_io)?;
        let rows = transaction.open_table(LOG).map_err(to_io)?;
        let purged = get::<LogIdRecord>(&meta, PURGED)?.map(Into::into);
        let mut last = None;
        if let Some((_, pack)) = rows.last().map_err(to_io)? {
            let mut rest = pack.value();
            while let Some(frame) = format::split_frame(&mut rest)? {
                if rest.is_empty() {
                    last = Some(format::decode_entry(frame)?.log_id);
                }
            }
        }
        Ok(LogStart {
            vote: get::<VoteRecord>(&meta, VOTE)?.map(Into::into),
            committed: get::<Option<LogIdRecord>>(&meta, COMMITTED)?.flatten().map(Into::into),
            purged,
            last,
        })
    }

    fn commit(&self, batch: &Batch) -> io::Result<()> {
        let mut transaction = self.db.begin_write().map_err(to_io)?;
        // Here so that the soak test can show that it would find it.
        let lost = planted(Bug::LostFsync) && !LOST.fetch_add(1, Ordering::Relaxed).is_multiple_of(LOST_OF);
        let durability = if lost { Durability::None } else { Durability::Immediate };
        transaction.set_durability(durability).map_err(to_io)?;
        {
            let mut rows = transaction.open_table(LOG).map_err(to_io)?;
            let mut packer = Packer::default();
            for op in batch {
                match op {
                    Op::Append(entries) => {
                        for entry in entries {
                            packer.add(&mut rows, entry)?;
                        }
                    }
                    Op::Truncate(after) => {
                        packer.flush(&mut rows)?;
                        truncate(&mut rows, *after)?;
                    }
                    Op::Purge(upto) => {
                        packer.flush(&mut rows)?;
                        purge(&mut rows, upto.index)?;
                        put(
                            &mut transaction.open_table(META).map_err(to_io)?,
                            PURGED,
                            &LogIdRecord::from(*upto),
                        )?;
                    }
                    Op::Vote(vote) => {
                        let mut meta = transaction.open_table(META).map_err(to_io)?;
                        put(&mut meta, VOTE, &VoteRecord::from(*vote))?;
                    }
                    Op::Committed(committed) => {
                        let mut meta = transaction.open_table(META).map_err(to_io)?;
                        put(&mut meta, COMMITTED, &committed.map(LogIdRecord::from))?;
                    }
                }
            }
            packer.flush(&mut rows)?;
        }
        transaction.commit().map_err(to_io)
    }

    fn read(&self, range: Range<u64>, max_bytes: usize) -> io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        if range.is_empty() {
            return Ok(entries);
        }
        let transaction = self.db.begin_read().map_err(to_io)?;
        let rows = transaction.open_table(LOG).map_err(to_io)?;
        // The first of them may lie in a pack that begins before the range.
        let from = match rows.range(..=range.start).map_err(to_io)?.next_back() {
            Some(row) => row.map_err(to_io)?.0.value(),
            None => range.start,
        };
        let mut bytes = 0;
        'rows: for row in rows.range(from..range.end).map_err(to_io)? {
            let (first, pack) = row.map_err(to_io)?;
            let mut rest = pack.value();
            let mut index = first.value();
            while let Some(frame) = format::split_frame(&mut rest)? {
                if index >= range.end {
                    break 'rows;
                }
                if index >= range.start {
                    let entry = format::decode_entry(frame)?;
                    if entry.log_id.index != index {
                        let found = entry.log_id.index;
                        let text = format!("the log has entry {found} where entry {index} should be");
                        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
                    }
                    bytes += format::entry_bytes(&entry);
                    entries.push(entry);
                    if bytes >= max_bytes {
                        break 'rows;
                    }
                }
                index += 1;
            }
        }
        Ok(entries)
    }
}
