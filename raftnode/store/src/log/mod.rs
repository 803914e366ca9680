//! The Raft log: what openraft writes and reads, over the tail in memory and the log on disk.

mod backend;
mod segments;
mod tail;
mod writer;

use std::fmt::Debug;
use std::io;
use std::marker::PhantomData;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{self, Stream};
use openraft::storage::{IOFlushed, RaftLogReader, RaftLogStorage};
use openraft::{LogState, OptionalSend, RaftTypeConfig};
use tokio::sync::{mpsc, oneshot};

pub use self::backend::{Batch, LogBackend, LogStart, Op};
pub use self::segments::{DiskFile, LogFile, SegmentLog};
use self::tail::Tail;
use self::writer::{Done, Drive, Shared, Work, Write};
use crate::format::entry_bytes;
use crate::state::State;
use crate::types::{Entry, LeaderId, LogId, NodeId, TypeConfig, Vote};

/// About how many bytes of entries one read for replication gives: they have to fit into one frame,
/// and a follower that waits for more than this waits for the network and not for us.
const READ_BYTES: usize = 4 << 20;

/// A configuration of openraft with this crate's log: [`TypeConfig`], and those of simulations, which
/// bring a runtime of their own.
pub trait LogConfig:
    RaftTypeConfig<NodeId = NodeId, Term = u64, LeaderId = LeaderId, Vote = Vote, Entry = Entry>
{
}
impl<C> LogConfig for C where
    C: RaftTypeConfig<NodeId = NodeId, Term = u64, LeaderId = LeaderId, Vote = Vote, Entry = Entry>
{
}

/// The log, for openraft. There is one, and openraft owns it.
pub struct LogStore<C = TypeConfig> {
    shared: Arc<Shared>,
    writer: mpsc::Sender<Work>,
    /// The state, which has to be durable up to where the log is purged.
    state: Option<State>,
    config: PhantomData<fn() -> C>,
}

/// Reads the log, while it is written.
pub struct LogReader<C = TypeConfig> {
    shared: Arc<Shared>,
    config: PhantomData<fn() -> C>,
}

impl<C> Clone for LogReader<C> {
    fn clone(&self) -> LogReader<C> {
        LogReader { shared: self.shared.clone(), config: PhantomData }
    }
}

/// Lets the state wait for the log.
pub(crate) struct LogBarrier {
    shared: Arc<Shared>,
}

impl LogBarrier {
    /// Waits until all that can be read from the log now is durable. Blocks.
    pub fn wait(&self) -> io::Result<()> {
        self.shared.wait_until_durable()
    }
}

/// Closes the log from outside, while openraft owns it.
pub(crate) struct LogCloser {
    writer: mpsc::Sender<Work>,
}

impl LogCloser {
    /// Makes everything durable and lets go of the database.
    pub async fn close(&self) {
        let (done, wait) = oneshot::channel();
        if self.writer.send(Work::Close(done)).await.is_ok() {
            // An error means that the thread has ended, which is what is wanted.
            let _ = wait.await;
        }
    }
}

impl<C> LogStore<C> {
    /// Opens the log in `backend`; `cache_bytes` is how much of it stays in memory.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn new(backend: Arc<dyn LogBackend>, cache_bytes: usize) -> io::Result<LogStore<C>> {
        Self::driven(backend, cache_bytes, Drive::Thread)
    }

    /// Opens the log in `backend` for a simulation: no thread is started. A task of the current runtime
    /// writes, `delay` says how long each commit takes, and reads are done in place.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn simulated(
        backend: Arc<dyn LogBackend>,
        cache_bytes: usize,
        delay: impl FnMut() -> Duration + Send + 'static,
    ) -> io::Result<LogStore<C>> {
        Self::driven(backend, cache_bytes, Drive::Task(Box::new(delay)))
    }

    fn driven(backend: Arc<dyn LogBackend>, cache_bytes: usize, drive: Drive) -> io::Result<LogStore<C>> {
        let tail = Tail::new(backend.start()?, cache_bytes);
        let (shared, writer) = writer::start(backend, tail, drive)?;
        Ok(LogStore { shared, writer, state: None, config: PhantomData })
    }

    /// Ties the log to `state`: the log is purged only up to where the state is durable, and the state
    /// goes to disk only up to where the log is.
    pub(crate) fn tied_to(mut self, state: State) -> LogStore<C> {
        state.stay_behind(LogBarrier { shared: self.shared.clone() });
        self.state = Some(state);
        self
    }

    pub(crate) fn closer(&self) -> LogCloser {
        LogCloser { writer: self.writer.clone() }
    }

    /// A reader.
    pub fn reader(&self) -> LogReader<C> {
        LogReader { shared: self.shared.clone(), config: PhantomData }
    }

    async fn send(&self, number: u64, op: Op, done: Done, units: u32) -> io::Result<()> {
        let write = Work::Write(Write { number, op, done, units });
        match self.writer.send(write).await {
            Ok(()) => Ok(()),
            Err(_) => Err(self.shared.check().err().unwrap_or_else(writer::closed)),
        }
    }
}

impl<C> LogReader<C> {
    /// The entries of the range that exist, from its first, ending once they hold about `max_bytes`.
    async fn read(&self, start: u64, end: u64, max_bytes: usize) -> io::Result<Vec<Entry>> {
        loop {
            let found = self.shared.tail.read().find(start, end, max_bytes);
            if found.disk.is_empty() {
                return Ok(found.memory);
            }
            let backend = self.shared.backend()?;
            let range = found.disk.clone();
            let mut entries = if self.shared.disk_waits {
                let read = tokio::task::spawn_blocking(move || backend.read(range, max_bytes));
                read.await.map_err(io::Error::other)??
            } else {
                backend.read(range, max_bytes)?
            };
            if self.shared.tail.read().generation != found.generation {
                // The log was cut meanwhile: what was read need not be what is there now.
                continue;
            }
            let mut bytes: usize = entries.iter().map(entry_bytes).sum();
            if bytes < max_bytes {
                for entry in found.memory {
                    bytes += entry_bytes(&entry);
                    entries.push(entry);
                    if bytes >= max_bytes {
                        break;
                    }
                }
            }
            for pair in entries.windows(2) {
                if pair[0].log_id.index + 1 != pair[1].log_id.index {
                    let (from, to) = (pair[0].log_id.index, pair[1].log_id.index);
                    let text = format!("the log has a hole between entries {from} and {to}");
                    return Err(io::Error::new(io::ErrorKind::InvalidData, text));
                }
            }
            return Ok(entries);
        }
    }
}

fn bounds(range: &impl RangeBounds<u64>) -> (u64, u64) {
    let start = match range.start_bound() {
        Bound::Included(start) => *start,
        Bound::Excluded(start) => start.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(end) => end.saturating_add(1),
        Bound::Excluded(end) => *end,
        Bound::Unbounded => u64::MAX,
    };
    (start, end)
}

impl<C: LogConfig> RaftLogReader<C> for LogReader<C> {
    async fn entries_stream<RB>(&mut self, range: RB) -> impl Stream<Item = io::Result<Entry>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        // A follower that was away applies a long range: it is read piece by piece.
        struct Reading<C> {
            reader: LogReader<C>,
            piece: std::vec::IntoIter<Entry>,
            next: u64,
            end: u64,
        }
        let (next, end) = bounds(&range);
        let reading = Reading { reader: self.clone(), piece: Vec::new().into_iter(), next, end };
        stream::try_unfold(reading, |mut reading| async move {
            loop {
                if let Some(entry) = reading.piece.next() {
                    reading.next = entry.log_id.index + 1;
                    return Ok(Some((entry, reading)));
                }
                if reading.next >= reading.end {
                    return Ok(None);
                }
                let piece = reading.reader.read(reading.next, reading.end, READ_BYTES).await?;
                if piece.is_empty() {
                    return Ok(None);
                }
                reading.piece = piece.into_iter();
            }
        })
    }

    async fn try_get_log_entries<RB>(&mut self, range: RB) -> io::Result<Vec<Entry>>
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let (start, end) = bounds(&range);
        self.read(start, end, usize::MAX).await
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        self.read(start, end, READ_BYTES).await
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        Ok(self.shared.tail.read().vote)
    }
}

impl<C: LogConfig> RaftLogStorage<C> for LogStore<C> {
    type LogReader = LogReader<C>;

    async fn get_log_state(&mut self) -> io::Result<LogState<C>> {
        let tail = self.shared.tail.read();
        Ok(LogState { last_purged_log_id: tail.purged, last_log_id: tail.last })
    }

    async fn get_log_reader(&mut self) -> LogReader<C> {
        self.reader()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        self.shared.check()?;
        let number = self.shared.tail.write().ask();
        let (done, wait) = oneshot::channel();
        self.send(number, Op::Vote(*vote), Done::Caller(done), 0).await?;
        match wait.await {
            Ok(result) => result,
            Err(_) => Err(self.shared.check().err().unwrap_or_else(writer::closed)),
        }
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        self.shared.check()?;
        // It is not worth a sync of its own, nor waking the writer: it goes with some later write.
        self.shared.tail.write().commit(committed);
        Ok(())
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        Ok(self.shared.tail.read().committed())
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<C>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<Entry> = entries.into_iter().collect();
        self.shared.check()?;
        let units = self.shared.reserve(entries.iter().map(entry_bytes).sum()).await?;
        let number = {
            let mut tail = self.shared.tail.write();
            let number = tail.ask();
            tail.append(&entries, number)?;
            number
        };
        let done = Done::Flushed(Box::new(|result| callback.io_completed(result)));
        self.send(number, Op::Append(entries), done, units).await
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> io::Result<()> {
        self.shared.check()?;
        let number = {
            let mut tail = self.shared.tail.write();
            tail.truncate(last);
            tail.ask()
        };
        self.send(number, Op::Truncate(last.map(|last| last.index)), Done::Nobody, 0).await
    }

    async fn purge(&mut self, upto: LogId) -> io::Result<()> {
        self.shared.check()?;
        if let Some(state) = &self.state {
            // Entries that are needed to build the state again after a crash must stay.
            state.ensure_durable(upto.index).await.map_err(crate::error::to_io)?;
        }
        let number = {
            let mut tail = self.shared.tail.write();
            tail.purge(upto);
            tail.ask()
        };
        self.send(number, Op::Purge(upto), Done::Nobody, 0).await
    }
}
