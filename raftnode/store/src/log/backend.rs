//! The seam between the log in memory and the log on disk: another kind of file can take its
//! place without a change above this line, and tests stop and count its commits.

use std::io;
use std::ops::Range;

use crate::types::{Entry, LogId, Vote};

/// One write to the log. Writes are done in the order in which they were asked for.
#[derive(Clone, Debug)]
pub enum Op {
    /// Adds entries after the last.
    Append(Vec<Entry>),
    /// Removes all entries after this index; `None` removes all.
    Truncate(Option<u64>),
    /// Removes all entries up to this one. It need not exist.
    Purge(LogId),
    /// Replaces the vote.
    Vote(Vote),
    /// Replaces the position up to which the log is known to be committed.
    Committed(Option<LogId>),
}

/// Writes that become durable together.
pub type Batch = Vec<Op>;

/// What a log holds when it is opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogStart {
    /// The last vote.
    pub vote: Option<Vote>,
    /// The last committed position that was saved.
    pub committed: Option<LogId>,
    /// Up to where the log was purged.
    pub purged: Option<LogId>,
    /// The last entry, if there is one.
    pub last: Option<LogId>,
}

/// A log on disk. Only one thread writes; any number read.
pub trait LogBackend: Send + Sync + 'static {
    /// What the log holds now.
    fn start(&self) -> io::Result<LogStart>;

    /// Does all of `batch`, in order, and returns when it is durable. A crash leaves all of it or
    /// nothing. After an error the log must not be written any more.
    fn commit(&self, batch: &Batch) -> io::Result<()>;

    /// The entries of `range` that are there, from its first, ending once they hold `max_bytes`; at
    /// least one if there is one. They are those of one moment.
    fn read(&self, range: Range<u64>, max_bytes: usize) -> io::Result<Vec<Entry>>;
}
