//! Where in the file the entries of the log are, and what else it says. In memory; made anew at each
//! start.

use std::collections::VecDeque;

use crate::types::{LogId, Vote};

/// Entries that lie behind each other in one record. Few bytes, so that a cold read of one of them
/// does not read much else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Index of its first entry.
    pub first: u64,
    /// How many there are.
    pub count: u64,
    /// Offset of the frame of the first, in the file.
    pub at: u64,
    /// Bytes of all their frames.
    pub bytes: u64,
}

/// A segment that holds what may still be needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Its number.
    pub number: u64,
    /// Its first unit.
    pub unit: u64,
    /// Its number of units.
    pub span: u64,
}

/// The log as the file has it.
#[derive(Clone, Debug, Default)]
pub struct Index {
    /// In order of their indexes, without a hole.
    pub runs: VecDeque<Run>,
    /// Oldest first. The newest is the one that is written to.
    pub segments: VecDeque<Segment>,
    /// The vote.
    pub vote: Option<Vote>,
    /// The last committed position that was saved.
    pub committed: Option<LogId>,
    /// Up to where the log was purged.
    pub purged: Option<LogId>,
    /// Index of the next entry.
    pub next: u64,
}

impl Index {
    /// Entries were added. What does not follow on what is there takes its place: the log was cut, or
    /// purged beyond its end, in the same commit or before.
    pub fn append(&mut self, run: Run) {
        self.next = run.first + run.count;
        self.runs.push_back(run);
    }

    /// Removes all entries after `after`.
    pub fn truncate(&mut self, after: Option<u64>) {
        let keep = after.map_or(0, |after| after + 1);
        while self.runs.pop_back_if(|run| run.first >= keep).is_some() {}
        if let Some(run) = self.runs.back_mut() {
            run.count = run.count.min(keep - run.first);
        }
        self.next = self.next.min(keep);
        self.purged_to_next();
    }

    /// Removes all entries up to `upto`; a run of which some are left stays whole.
    pub fn purge(&mut self, upto: LogId) {
        while self.runs.pop_front_if(|run| run.first + run.count <= upto.index + 1).is_some() {}
        self.purged = self.purged.max(Some(upto));
        self.purged_to_next();
    }

    fn purged_to_next(&mut self) {
        self.next = self.next.max(self.purged.map_or(0, |purged| purged.index + 1));
    }

    /// The first index from `from` on that should be there and is not.
    pub fn hole(&self) -> Option<u64> {
        let mut want = self.purged.map_or(0, |purged| purged.index + 1);
        for run in &self.runs {
            if run.first > want {
                return Some(want);
            }
            want = want.max(run.first + run.count);
        }
        (want < self.next).then_some(want)
    }

    /// Takes out the oldest segment if nothing in it is needed. `end` is the offset behind a segment.
    pub fn free_oldest(
        &mut self,
        end: impl Fn(&Segment) -> u64,
        begin: impl Fn(&Segment) -> u64,
    ) -> Option<Segment> {
        // The newest is written to, and says what else the log knows.
        if self.segments.len() < 2 {
            return None;
        }
        let oldest = *self.segments.front()?;
        let here = begin(&oldest)..end(&oldest);
        // Runs are in the order of the segments.
        if self.runs.front().is_some_and(|run| here.contains(&run.at)) {
            return None;
        }
        self.segments.pop_front()
    }
}
