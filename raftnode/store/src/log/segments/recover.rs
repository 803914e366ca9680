//! Reading a log at its start: which segments are its own, what they say, and where it ends.
//!
//! A power cut leaves at most one record that is not whole: a commit is durable before the next one
//! begins. It is the last of the newest segment, or the beginning of one; in both cases it was not
//! acknowledged. Whatever else is damaged is an error, unless it was purged. (A last record that was
//! whole and decayed later looks the same as one that never was: no log of this kind can tell.)

use std::io;

use super::file::LogFile;
use super::index::{Index, Run, Segment};
use super::layout::{ALIGN, HEAD, Head, Start, aligned};
use crate::format::{self, LogOp};
use crate::types::Entry;

/// Bytes of frames after which a run is full.
const RUN_BYTES: u64 = 32 << 10;

/// What was found.
pub struct Found {
    pub index: Index,
    /// Where the last write was: a record, or the beginning of a segment.
    pub newest: u64,
    /// Where the next record goes.
    pub end: u64,
}

fn damaged(text: String) -> io::Error {
    let text = format!("{text}: restore this node from a backup, or rejoin it under a new id");
    io::Error::new(io::ErrorKind::InvalidData, text)
}

/// The head of the log in `file`.
pub fn head(file: &dyn LogFile) -> io::Result<Head> {
    let mut bytes = vec![0; HEAD as usize];
    file.read(0, &mut bytes)?;
    Head::decode(&bytes)
}

/// The segments of the log, oldest first: from the newest back as long as their numbers follow on each
/// other. What is older was purged, and its units may be used again.
fn segments(file: &dyn LogFile, head: &Head) -> io::Result<Vec<(Start, Segment, u64)>> {
    let units = head.units(file.len()?);
    let mut starts = Vec::new();
    let mut bytes = vec![0; head.start_bytes()];
    for unit in 0..units {
        file.read(head.offset(unit), &mut bytes)?;
        if let Some((start, records)) = head.decode_start(unit, &bytes) {
            let segment = Segment { number: start.number, unit, span: start.span };
            starts.push((start, segment, records));
        }
    }
    starts.sort_by_key(|(start, _, _)| std::cmp::Reverse(start.number));
    let mut taken = vec![false; units as usize];
    let mut found: Vec<(Start, Segment, u64)> = Vec::new();
    for (start, segment, records) in starts {
        let follows = found.last().is_none_or(|(newer, _, _)| start.number + 1 == newer.number);
        let place = segment.unit as usize..(segment.unit.saturating_add(segment.span)) as usize;
        let Some(mine) = taken.get_mut(place) else { break };
        if !follows || mine.contains(&true) {
            break;
        }
        mine.fill(true);
        found.push((start, segment, records));
    }
    found.reverse();
    Ok(found)
}

/// Reads the log.
pub fn recover(file: &dyn LogFile, head: &Head) -> io::Result<Option<Found>> {
    let segments = segments(file, head)?;
    let mut index = Index::default();
    let mut end = None;
    for (nth, (start, segment, records)) in segments.iter().enumerate() {
        let mut bytes = vec![0; (head.offset(segment.unit + segment.span) - records) as usize];
        file.read(*records, &mut bytes)?;
        if index.segments.is_empty() {
            begin(&mut index, start);
        }
        index.segments.push_back(*segment);
        let mut at = *records;
        let mut last = head.offset(segment.unit);
        while let Some(frames) = head.decode_record(segment.number, at, &bytes[(at - records) as usize..]) {
            replay(&mut index, Head::frames_at(at), frames)?;
            if at > *records {
                last = at;
            }
            at = aligned(Head::frames_at(at) + frames.len() as u64);
        }
        match segments.get(nth + 1) {
            // It ended there only if the next one goes on from what it left.
            Some((next, _, _)) if next.previous_end == at && starts_from(next, &index) => {}
            Some(_) => index = Index::default(),
            None => {
                let rest =
                    (at - records) as usize..bytes.len().saturating_sub(Head::record_bytes(0) as usize);
                for later in rest.step_by(ALIGN as usize).skip(1) {
                    if head.decode_record(segment.number, records + later as u64, &bytes[later..]).is_some() {
                        return Err(damaged(format!(
                            "the log is damaged at byte {at}, and goes on behind it"
                        )));
                    }
                }
                end = Some((last, at));
            }
        }
    }
    if let Some(index) = index.hole() {
        return Err(damaged(format!("the log is damaged: entry {index} is missing")));
    }
    if let Some(newest) = index.segments.back()
        && let Some(at) = without_start(file, head, &index, newest.number + 1)?
    {
        return Err(damaged(format!("the log is damaged before byte {at}, and goes on behind it")));
    }
    Ok(end.map(|(newest, end)| Found { index, newest, end }))
}

/// Where segment `number` goes on after its first record, if it has no start. That one and the first record
/// are one write, which was whole before there was a second record: so the start is damaged, and what comes
/// after it was acknowledged.
fn without_start(file: &dyn LogFile, head: &Head, index: &Index, number: u64) -> io::Result<Option<u64>> {
    let length = file.len()?;
    let record_at = |at: u64| -> io::Result<Option<u64>> {
        let mut prefix = vec![0; Head::record_bytes(0) as usize];
        if at + prefix.len() as u64 > length {
            return Ok(None);
        }
        file.read(at, &mut prefix)?;
        let Some(bytes) = head.record_length(number, at, &prefix).filter(|bytes| *bytes <= length - at)
        else {
            return Ok(None);
        };
        let mut record = vec![0; bytes as usize];
        file.read(at, &mut record)?;
        Ok(head.decode_record(number, at, &record).map(|_| aligned(at + bytes)))
    };
    let in_use = |unit: u64| {
        index.segments.iter().any(|segment| (segment.unit..segment.unit + segment.span).contains(&unit))
    };
    for unit in (0..head.units(length)).filter(|unit| !in_use(*unit)) {
        let first = head.offset(unit);
        for at in (first..=first + head.start_bytes() as u64).step_by(ALIGN as usize) {
            if let Some(second) = record_at(at)?
                && record_at(second)?.is_some()
            {
                return Ok(Some(second));
            }
        }
    }
    Ok(None)
}

fn begin(index: &mut Index, start: &Start) {
    index.vote = start.vote.map(Into::into);
    index.committed = start.committed.map(Into::into);
    index.purged = start.purged.map(Into::into);
    index.next = start.next;
}

/// Whether a segment was begun when the log was as `index` says.
fn starts_from(start: &Start, index: &Index) -> bool {
    let mut here = Index::default();
    begin(&mut here, start);
    here.vote == index.vote
        && here.committed == index.committed
        && here.purged == index.purged
        && here.next == index.next
}

/// Does to `index` what the frames of a record, which lie at `offset`, say.
pub fn replay(index: &mut Index, offset: u64, mut frames: &[u8]) -> io::Result<()> {
    let begin = frames.len();
    let mut run: Option<Run> = None;
    let mut at = offset;
    while let Some(frame) = format::split_frame(&mut frames)? {
        match format::entry_index(frame)? {
            Some(entry) => {
                let fits = |run: &Run| run.first + run.count == entry && run.bytes < RUN_BYTES;
                match &mut run {
                    Some(run) if fits(run) => {
                        run.count += 1;
                        run.bytes += frame.len() as u64;
                    }
                    _ => {
                        run.take().into_iter().for_each(|full| index.append(full));
                        run = Some(Run { first: entry, count: 1, at, bytes: frame.len() as u64 });
                    }
                }
            }
            None => {
                run.take().into_iter().for_each(|full| index.append(full));
                match format::decode_op(frame)? {
                    LogOp::Truncate(after) => index.truncate(after),
                    LogOp::Purge(upto) => index.purge(upto.into()),
                    LogOp::Vote(vote) => index.vote = Some(vote.into()),
                    LogOp::Committed(committed) => index.committed = committed.map(Into::into),
                }
            }
        }
        at = offset + (begin - frames.len()) as u64;
    }
    run.into_iter().for_each(|full| index.append(full));
    Ok(())
}

/// The last entry of the log.
pub fn last(file: &dyn LogFile, index: &Index) -> io::Result<Option<Entry>> {
    let Some(run) = index.runs.back() else { return Ok(None) };
    Ok(entries(run, &frames(file, run)?)?.pop())
}

/// The frames of a run.
pub fn frames(file: &dyn LogFile, run: &Run) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; run.bytes as usize];
    file.read(run.at, &mut bytes)?;
    Ok(bytes)
}

/// The entries in the frames of a run.
pub fn entries(run: &Run, mut frames: &[u8]) -> io::Result<Vec<Entry>> {
    let mut entries = Vec::with_capacity(run.count as usize);
    for index in run.first..run.first + run.count {
        let frame = format::split_frame(&mut frames)?;
        let frame = frame.ok_or_else(|| damaged(format!("the log ends before entry {index}")))?;
        let entry = format::decode_entry(frame)?;
        if entry.log_id.index != index {
            let text = format!("the log has entry {} where entry {index} should be", entry.log_id.index);
            return Err(damaged(text));
        }
        entries.push(entry);
    }
    Ok(entries)
}
