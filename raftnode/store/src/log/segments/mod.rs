//! The log in one file of segments that are written over and over. A commit is one write of one record,
//! over blocks that the file has already: nothing but these bytes goes to the disk.
//!
//! Why not redb, as for the state, or a library: a commit of redb is seven writes and a change of three
//! trees, and a file that is appended to takes the file system's journal along with each sync. Here
//! one small commit takes a quarter to a fifth of that time (`docs/benchmarks.md`). The libraries for
//! such logs append, or are no longer looked after, or bring a second engine with them.

mod file;
mod index;
mod layout;
mod recover;

use std::io;
use std::ops::Range;

use parking_lot::{Mutex, RwLock};
use quorumfs_api::bug::{Bug, planted};

pub use self::file::{DiskFile, LogFile};
use self::index::{Index, Run, Segment};
use self::layout::{BLOCK, Head, SEGMENT_MIN, Start, aligned};
use crate::error::to_io;
use crate::format::{self, LogIdRecord, LogOp, VoteRecord};
use crate::log::backend::{Batch, LogBackend, LogStart, Op};
use crate::types::Entry;

/// Bytes of zeros that are written at a time when the file grows.
const ZEROS: usize = 1 << 20;
/// Units that are free and at the end of the file, beyond these, are given back.
const FREE_UNITS: usize = 2;

/// With [`Bug::LostFsync`], one of so many commits is written, and with it those before.
const LOST_OF: usize = 64;

/// A log in a file.
pub struct SegmentLog {
    file: Box<dyn LogFile>,
    head: Head,
    inner: RwLock<Inner>,
    /// With [`Bug::LostFsync`], what is acknowledged and not written: offsets and bytes.
    lost: Mutex<Vec<(u64, Vec<u8>)>>,
}

struct Inner {
    index: Index,
    /// Which units of the file hold a segment that may be needed.
    taken: Vec<bool>,
    /// Where the next record goes.
    end: u64,
    /// How many segments were freed since the start.
    freed: u64,
}

impl SegmentLog {
    /// Makes a new log in an empty file, durably; `segment` is how many bytes are written before the
    /// next segment is begun.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn create(file: &dyn LogFile, segment: u64) -> io::Result<()> {
        let segment = segment.max(SEGMENT_MIN).next_multiple_of(BLOCK);
        let head =
            Head { segment, salt: std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 0) };
        file.set_len(0)?;
        file.write(0, &head.encode())?;
        file.sync()?;
        SegmentLog::begin(file, &head)
    }

    /// The first segment: with it, a log is never without one.
    fn begin(file: &dyn LogFile, head: &Head) -> io::Result<()> {
        grow(file, head, 0, 1)?;
        let start = Start { number: 1, span: 1, ..Start::default() };
        let mut out = Vec::new();
        head.encode_start(0, &start, &mut out)?;
        file.write_durably(head.offset(0), &out)
    }

    /// Opens the log in `file`.
    ///
    /// # Errors
    /// When it cannot be read, or is damaged.
    pub fn open(file: Box<dyn LogFile>) -> io::Result<SegmentLog> {
        let head = recover::head(&*file)?;
        // A process that was killed may have written what is not on disk yet, and it counts from now on.
        file.sync()?;
        let found = recover::recover(&*file, &head)?;
        let found = found.ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidData, "the log is damaged: it has no segment")
        })?;
        // Where a write failed, the kernel may show what is not on disk and call it clean: syncing does not
        // bring it there, writing it again does. That can only be the newest: all others were acknowledged.
        let mut newest = vec![0; (found.end - found.newest) as usize];
        file.read(found.newest, &mut newest)?;
        file.write_durably(found.newest, &newest)?;
        let mut taken = vec![false; head.units(file.len()?) as usize];
        for segment in &found.index.segments {
            mark(&mut taken, segment, true);
        }
        let mut inner = Inner { index: found.index, taken, end: found.end, freed: 0 };
        inner.free(&head);
        Ok(SegmentLog { file, head, inner: RwLock::new(inner), lost: Mutex::default() })
    }

    /// The record of `batch`, and what the log is afterwards. In the newest segment if there is room, or
    /// in a new one.
    fn prepare(&self, batch: &Batch) -> io::Result<Prepared> {
        let mut out = Vec::new();
        let (newest, end, limit) = {
            let inner = self.inner.read();
            let newest = inner.newest()?;
            (newest, inner.end, self.head.offset(newest.unit + newest.span))
        };
        Head::begin_record(&mut out);
        encode(batch, &mut out)?;
        if u32::try_from(out.len()).is_err() {
            let text = format!("a commit of {} bytes is too long for the log", out.len());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        let frames = Head::record_bytes(0) as usize..out.len();
        if end + aligned(out.len() as u64) <= limit {
            self.head.end_record(newest.number, end, 0, &mut out);
            return Ok(Prepared { out, offset: end, frames, segment: None });
        }
        let content = out.split_off(frames.start);
        let mut start = self.inner.read().start(newest.number + 1, end);
        let mut out = Vec::new();
        // The start has its whole length before its span is known: it cannot get shorter by that.
        start.span = u64::MAX;
        self.head.encode_start(0, &start, &mut out)?;
        let bytes = out.len() as u64 + Head::record_bytes(content.len());
        start.span = bytes.div_ceil(self.head.segment);
        let unit = self.place(start.span)?;
        out.clear();
        self.head.encode_start(unit, &start, &mut out)?;
        let offset = self.head.offset(unit);
        let at = Head::begin_record(&mut out);
        let frames = out.len()..out.len() + content.len();
        out.extend_from_slice(&content);
        self.head.end_record(start.number, offset + at as u64, at, &mut out);
        let segment = Segment { number: start.number, unit, span: start.span };
        Ok(Prepared { out, offset, frames, segment: Some(segment) })
    }

    /// The first of `span` free units that lie behind each other. The file grows if there are none.
    fn place(&self, span: u64) -> io::Result<u64> {
        let taken = self.inner.read().taken.clone();
        let free = (0..taken.len()).find(|first| {
            taken.get(*first..first + span as usize).is_some_and(|units| !units.contains(&true))
        });
        if let Some(unit) = free {
            return Ok(unit as u64);
        }
        // Free units at the end are part of the place.
        let unit = taken.iter().rposition(|taken| *taken).map_or(0, |last| last + 1) as u64;
        grow(&*self.file, &self.head, taken.len() as u64, unit + span)?;
        self.inner.write().taken.resize((unit + span) as usize, false);
        Ok(unit)
    }

    fn write(&self, prepared: &Prepared) -> io::Result<()> {
        // Here so that the soak test can show that it would find it.
        if planted(Bug::LostFsync) {
            let mut lost = self.lost.lock();
            lost.push((prepared.offset, prepared.out.clone()));
            if lost.len() < LOST_OF {
                return Ok(());
            }
            return lost.drain(..).try_for_each(|(offset, bytes)| self.file.write_durably(offset, &bytes));
        }
        self.file.write_durably(prepared.offset, &prepared.out)
    }

    /// The entries of `range` in `runs`; `None` if something was freed since the log had freed `freed`
    /// segments.
    fn read_runs(
        &self,
        runs: &[Run],
        freed: u64,
        range: &Range<u64>,
        max_bytes: usize,
    ) -> io::Result<Option<Vec<Entry>>> {
        let mut entries = Vec::new();
        let mut bytes = 0;
        for run in runs {
            let frames = recover::frames(&*self.file, run);
            if self.inner.read().freed != freed {
                return Ok(None);
            }
            for entry in recover::entries(run, &frames?)? {
                if !range.contains(&entry.log_id.index) {
                    continue;
                }
                bytes += format::entry_bytes(&entry);
                entries.push(entry);
                if bytes >= max_bytes {
                    return Ok(Some(entries));
                }
            }
        }
        Ok(Some(entries))
    }

    /// Gives units at the end of the file back, if many are free.
    fn shrink(&self) -> io::Result<()> {
        let mut inner = self.inner.write();
        let free = inner.taken.iter().rev().take_while(|taken| !**taken).count();
        if free > FREE_UNITS {
            let units = inner.taken.len() - (free - FREE_UNITS);
            inner.taken.truncate(units);
            self.file.set_len(self.head.offset(units as u64))?;
        }
        Ok(())
    }
}

/// A record that can be written.
struct Prepared {
    /// The start of a segment, if it begins one, and the record.
    out: Vec<u8>,
    /// Where it goes.
    offset: u64,
    /// Where in `out` the frames are.
    frames: Range<usize>,
    /// The segment that it begins.
    segment: Option<Segment>,
}

impl Inner {
    fn newest(&self) -> io::Result<Segment> {
        let newest = self.index.segments.back().copied();
        newest.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the log has no segment"))
    }

    fn start(&self, number: u64, previous_end: u64) -> Start {
        Start {
            number,
            span: 1,
            previous_end,
            next: self.index.next,
            vote: self.index.vote.map(VoteRecord::from),
            committed: self.index.committed.map(LogIdRecord::from),
            purged: self.index.purged.map(LogIdRecord::from),
        }
    }

    /// Frees the units of segments in which nothing is needed. Says whether there were any.
    fn free(&mut self, head: &Head) -> bool {
        let end = |segment: &Segment| head.offset(segment.unit + segment.span);
        let begin = |segment: &Segment| head.offset(segment.unit);
        let mut any = false;
        while let Some(segment) = self.index.free_oldest(end, begin) {
            mark(&mut self.taken, &segment, false);
            self.freed += 1;
            any = true;
        }
        any
    }
}

fn mark(taken: &mut [bool], segment: &Segment, is: bool) {
    let units = segment.unit as usize..(segment.unit + segment.span) as usize;
    if let Some(units) = taken.get_mut(units) {
        units.fill(is);
    }
}

/// Makes the file `to` units long, durably. The new ones are written: blocks that are only reserved would
/// cost a change of the file system's own books with the first write to each.
fn grow(file: &dyn LogFile, head: &Head, from: u64, to: u64) -> io::Result<()> {
    let (mut at, end) = (head.offset(from), head.offset(to));
    file.set_len(end)?;
    let zeros = vec![0; ZEROS.min((end - at) as usize)];
    while at < end {
        let count = zeros.len().min((end - at) as usize);
        file.write(at, &zeros[..count])?;
        at += count as u64;
    }
    file.sync()
}

/// The frames of a commit.
fn encode(batch: &Batch, out: &mut Vec<u8>) -> io::Result<()> {
    for op in batch {
        let op = match op {
            Op::Append(entries) => {
                for entry in entries {
                    format::encode_entry(entry, out).map_err(to_io)?;
                }
                continue;
            }
            Op::Truncate(after) => LogOp::Truncate(*after),
            Op::Purge(upto) => LogOp::Purge((*upto).into()),
            Op::Vote(vote) => LogOp::Vote((*vote).into()),
            Op::Committed(committed) => LogOp::Committed(committed.map(Into::into)),
        };
        format::encode_op(&op, out).map_err(to_io)?;
    }
    Ok(())
}

impl LogBackend for SegmentLog {
    fn start(&self) -> io::Result<LogStart> {
        let inner = self.inner.read();
        let last = recover::last(&*self.file, &inner.index)?;
        Ok(LogStart {
            vote: inner.index.vote,
            committed: inner.index.committed,
            purged: inner.index.purged,
            last: last.map(|entry| entry.log_id),
        })
    }

    fn commit(&self, batch: &Batch) -> io::Result<()> {
        let prepared = self.prepare(batch)?;
        self.write(&prepared)?;
        let end = prepared.offset + prepared.out.len() as u64;
        let freed = {
            let mut inner = self.inner.write();
            if let Some(segment) = prepared.segment {
                mark(&mut inner.taken, &segment, true);
                inner.index.segments.push_back(segment);
            }
            let frames = prepared.offset + prepared.frames.start as u64;
            recover::replay(&mut inner.index, frames, &prepared.out[prepared.frames])?;
            inner.end = end;
            batch.iter().any(|op| matches!(op, Op::Purge(_))) && inner.free(&self.head)
        };
        if freed { self.shrink() } else { Ok(()) }
    }

    fn read(&self, range: Range<u64>, max_bytes: usize) -> io::Result<Vec<Entry>> {
        // Not under the lock: a follower that catches up must not make writers wait. What is freed meanwhile
        // may be written over, and then all is read again.
        loop {
            let (runs, freed) = {
                let inner = self.inner.read();
                let runs = &inner.index.runs;
                let from = runs.partition_point(|run| run.first + run.count <= range.start);
                let wanted = runs.range(from..).take_while(|run| run.first < range.end);
                (wanted.copied().collect::<Vec<Run>>(), inner.freed)
            };
            if let Some(entries) = self.read_runs(&runs, freed, &range, max_bytes)? {
                return Ok(entries);
            }
        }
    }
}
