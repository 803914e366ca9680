//! What of a node survives when it is killed: the log below the real log code, the state as of some
//! index, and the current snapshot.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;

use bytes::Bytes;
use parking_lot::Mutex;
use quorumfs_machine::MemTables;
use quorumfs_store::format::{decode_entry, encode_entry};
use quorumfs_store::{Batch, Entry, LogBackend, LogId, LogStart, Op, SnapshotMeta, Vote};

use crate::bug::Bug;
use crate::record::{Carried, Place, Record, Seen};

/// Writes that a disk with [`Bug::SyncSkipped`] keeps to itself.
const UNSYNCED: usize = 12;

#[derive(Default)]
struct Content {
    vote: Option<Vote>,
    committed: Option<LogId>,
    purged: Option<LogId>,
    /// Frames by index.
    entries: BTreeMap<u64, (LogId, Vec<u8>)>,
    unsynced: Vec<Op>,
    state: Option<(SnapshotMeta, MemTables)>,
    snapshot: Option<(SnapshotMeta, Bytes)>,
}

/// The disk of a node.
pub struct Disk {
    node: u64,
    bug: Option<Bug>,
    record: Record,
    content: Mutex<Content>,
}

impl Disk {
    /// An empty one.
    pub fn new(node: u64, bug: Option<Bug>, record: Record) -> Disk {
        Disk { node, bug, record, content: Mutex::default() }
    }

    /// The power goes, and comes back.
    pub fn crash(&self) {
        self.content.lock().unsynced.clear();
    }

    /// Index up to which the log is on disk.
    pub fn log_end(&self) -> u64 {
        let content = self.content.lock();
        let last = content.entries.last_key_value().map_or(0, |(index, _)| *index);
        last.max(content.purged.map_or(0, |purged| purged.index))
    }

    /// Where the log begins, and all of it, as it is on disk.
    pub fn log(&self) -> Vec<Place> {
        let content = self.content.lock();
        let purged = content.purged.into_iter();
        purged.chain(content.entries.values().map(|(id, _)| *id)).map(Place::of).collect()
    }

    /// The state.
    pub fn state(&self) -> Option<(SnapshotMeta, MemTables)> {
        self.content.lock().state.clone()
    }

    /// Writes the state as of one index, unless a later one is there.
    pub fn write_state(&self, position: SnapshotMeta, tables: MemTables) {
        let mut content = self.content.lock();
        if content.state.as_ref().is_none_or(|(there, _)| there.last_log_id <= position.last_log_id) {
            content.state = Some((position, tables));
        }
    }

    /// The current snapshot.
    pub fn snapshot(&self) -> Option<(SnapshotMeta, Bytes)> {
        self.content.lock().snapshot.clone()
    }

    /// Writes a snapshot, unless a later one is there.
    pub fn write_snapshot(&self, meta: SnapshotMeta, bytes: Bytes) {
        let mut content = self.content.lock();
        if content.snapshot.as_ref().is_none_or(|(there, _)| there.last_log_id <= meta.last_log_id) {
            content.snapshot = Some((meta, bytes));
        }
    }

    fn write(&self, content: &mut Content, op: &Op) -> io::Result<()> {
        match op {
            Op::Append(entries) => {
                for entry in entries {
                    let mut frame = Vec::new();
                    encode_entry(entry, &mut frame).map_err(io::Error::other)?;
                    let index = entry.log_id.index;
                    let before = index
                        .checked_sub(1)
                        .and_then(|before| content.entries.get(&before))
                        .map(|(id, _)| *id)
                        .or(content.purged.filter(|purged| purged.index + 1 == index));
                    content.entries.insert(index, (entry.log_id, frame));
                    self.record.see(Seen::Appended {
                        node: self.node,
                        at: Place::of(entry.log_id),
                        before: before.map(Place::of),
                        content: Carried::new(entry).content,
                    });
                }
            }
            Op::Truncate(after) => {
                let more = u64::from(self.bug == Some(Bug::TruncateTooMuch));
                content.entries.retain(|index, _| after.is_some_and(|after| *index + more <= after));
            }
            Op::Purge(upto) => {
                content.entries.retain(|index, _| *index > upto.index);
                content.purged = content.purged.max(Some(*upto));
            }
            Op::Vote(_) if self.bug == Some(Bug::VoteNotWritten) && content.vote.is_some() => {}
            Op::Vote(vote) => content.vote = Some(*vote),
            Op::Committed(committed) => content.committed = *committed,
        }
        Ok(())
    }
}

impl LogBackend for Disk {
    fn start(&self) -> io::Result<LogStart> {
        let content = self.content.lock();
        Ok(LogStart {
            vote: content.vote,
            committed: content.committed,
            purged: content.purged,
            last: content.entries.last_key_value().map(|(_, (id, _))| *id),
        })
    }

    fn commit(&self, batch: &Batch) -> io::Result<()> {
        let content = &mut *self.content.lock();
        content.unsynced.extend(batch.iter().cloned());
        if self.bug == Some(Bug::SyncSkipped) && content.unsynced.len() < UNSYNCED {
            return Ok(());
        }
        for op in std::mem::take(&mut content.unsynced) {
            self.write(content, &op)?;
        }
        Ok(())
    }

    fn read(&self, range: Range<u64>, max_bytes: usize) -> io::Result<Vec<Entry>> {
        let content = self.content.lock();
        let mut entries = Vec::new();
        let mut bytes = 0;
        for (_, frame) in content.entries.range(range).map(|(_, entry)| entry) {
            entries.push(decode_entry(frame)?);
            bytes += frame.len();
            if bytes >= max_bytes {
                break;
            }
        }
        Ok(entries)
    }
}
