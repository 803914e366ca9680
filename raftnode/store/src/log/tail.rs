//! The newest part of the log, in memory. Entries are readable here before they are durable, and
//! replication and applying read them here and not from disk.

use std::collections::VecDeque;
use std::io;

use crate::format::entry_bytes;
use crate::log::backend::LogStart;
use crate::types::{Entry, LogId, Vote};

struct Cached {
    entry: Entry,
    bytes: usize,
    /// Number of the write that brings it to disk.
    write: u64,
}

/// Ends of the log, the vote, and the newest entries.
pub(crate) struct Tail {
    entries: VecDeque<Cached>,
    bytes: usize,
    max_bytes: usize,
    /// All writes up to this number are durable.
    durable: u64,
    /// Number of the last write that was asked for.
    asked: u64,
    /// Grows whenever entries go: who read from disk meanwhile reads again.
    pub generation: u64,
    /// The last durable vote.
    pub vote: Option<Vote>,
    /// The last committed position.
    committed: Option<LogId>,
    /// The write after which it was told, while it is not on its way to disk: it must not get there before the
    /// entries that it is about.
    unsaved: Option<u64>,
    /// Up to where the log was purged.
    pub purged: Option<LogId>,
    /// The last entry, or what was purged if there is none.
    pub last: Option<LogId>,
}

/// Where the entries of a range are.
pub(crate) struct Found {
    /// These are on disk only.
    pub disk: std::ops::Range<u64>,
    /// These follow.
    pub memory: Vec<Entry>,
    /// The generation as of which this holds.
    pub generation: u64,
}

impl Tail {
    pub fn new(start: LogStart, max_bytes: usize) -> Tail {
        Tail {
            entries: VecDeque::new(),
            bytes: 0,
            max_bytes,
            durable: 0,
            asked: 0,
            generation: 0,
            vote: start.vote,
            committed: start.committed,
            unsaved: None,
            purged: start.purged,
            last: start.last.max(start.purged),
        }
    }

    /// Gives a write its number.
    pub fn ask(&mut self) -> u64 {
        self.asked += 1;
        self.asked
    }

    /// Number of the last write that was asked for.
    pub fn asked(&self) -> u64 {
        self.asked
    }

    /// The last committed position.
    pub fn committed(&self) -> Option<LogId> {
        self.committed
    }

    /// Takes note of what is committed.
    pub fn commit(&mut self, committed: Option<LogId>) {
        self.committed = committed;
        self.unsaved = Some(self.asked);
    }

    /// The last committed position, if it may go to disk with the writes up to number `write`, and has not yet.
    pub fn save_committed(&mut self, write: u64) -> Option<Option<LogId>> {
        self.unsaved.take_if(|after| *after <= write.max(self.durable))?;
        Some(self.committed)
    }

    /// Adds entries that write number `write` makes durable.
    pub fn append(&mut self, entries: &[Entry], write: u64) -> io::Result<()> {
        let mut next = self.last.map(|last| last.index + 1);
        for entry in entries {
            let index = entry.log_id.index;
            if next.is_some_and(|next| next != index) {
                let text = format!("entry {index} would leave a hole in the log after {:?}", self.last);
                return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
            }
            next = Some(index + 1);
        }
        for entry in entries {
            let bytes = entry_bytes(entry);
            self.bytes += bytes;
            self.last = Some(entry.log_id);
            self.entries.push_back(Cached { entry: entry.clone(), bytes, write });
        }
        Ok(())
    }

    /// Removes what comes after `after`.
    pub fn truncate(&mut self, after: Option<LogId>) {
        self.generation += 1;
        let keep = |index: u64| after.is_some_and(|after| index <= after.index);
        while let Some(cached) = self.entries.pop_back_if(|cached| !keep(cached.entry.log_id.index)) {
            self.bytes -= cached.bytes;
        }
        // There may be nothing behind `after`.
        if self.last.is_some_and(|last| !keep(last.index)) {
            self.last = after.max(self.purged);
        }
    }

    /// Removes what comes up to `upto`.
    pub fn purge(&mut self, upto: LogId) {
        self.generation += 1;
        while let Some(cached) = self.entries.pop_front_if(|cached| cached.entry.log_id.index <= upto.index) {
            self.bytes -= cached.bytes;
        }
        self.purged = self.purged.max(Some(upto));
        self.last = self.last.max(Some(upto));
    }

    /// All writes up to number `write` are durable: what is on disk may leave memory.
    pub fn durable(&mut self, write: u64) {
        self.durable = write;
        while self.bytes > self.max_bytes
            && let Some(cached) = self.entries.pop_front_if(|cached| cached.write <= write)
        {
            self.bytes -= cached.bytes;
        }
    }

    /// Where the entries from `start` to `end` (left out) are; those that do not exist are nowhere.
    /// From memory, at most about `max_bytes`, but one if there is one.
    pub fn find(&self, start: u64, end: u64, max_bytes: usize) -> Found {
        let start = start.max(self.purged.map_or(0, |purged| purged.index + 1));
        let end = end.min(self.last.map_or(0, |last| last.index + 1));
        let cached_from = self.entries.front().map_or(end, |cached| cached.entry.log_id.index);
        let mut found =
            Found { disk: start..end.min(cached_from), memory: Vec::new(), generation: self.generation };
        if found.disk.is_empty() {
            found.disk = 0..0;
        }
        if end > start.max(cached_from) {
            let skip = start.max(cached_from) - cached_from;
            let count = (end - start.max(cached_from)) as usize;
            found.memory.reserve(count.min(1024));
            let mut bytes = 0;
            for cached in self.entries.range(skip as usize..).take(count) {
                found.memory.push(cached.entry.clone());
                bytes += cached.bytes;
                if bytes >= max_bytes {
                    break;
                }
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::LeaderId;

    #[test]
    fn what_is_committed_goes_to_disk_once_and_not_before_the_entries_that_it_is_about() {
        let start = LogStart { vote: None, committed: None, purged: None, last: None };
        let mut tail = Tail::new(start, usize::MAX);
        assert_eq!(tail.save_committed(9), None, "nothing was told");
        let at = Some(LogId::new(LeaderId { term: 1, node_id: 1 }, 7));
        assert_eq!(tail.ask(), 1);
        assert_eq!(tail.ask(), 2);
        tail.commit(at);
        assert_eq!(tail.ask(), 3);
        assert_eq!(tail.save_committed(1), None, "write 2 may be of the entry");
        assert_eq!(tail.save_committed(2), Some(at));
        assert_eq!(tail.save_committed(3), None, "it is on its way");
        tail.commit(at);
        assert_eq!(tail.save_committed(0), None);
        tail.durable(3);
        assert_eq!(tail.save_committed(0), Some(at), "all is durable");
    }
}
