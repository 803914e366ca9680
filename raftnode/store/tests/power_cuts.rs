//! The log's file through one power cut after another: each leaves some sectors of what was not synced yet,
//! and the log goes on over them. After each it holds all that was acknowledged, and of what was under way
//! all or nothing; nothing that once was in a segment comes back.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;
#[path = "common/crash/random.rs"]
mod random;

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use common::{blank, id, put};
use parking_lot::Mutex;
use quorumfs_store::{Batch, Entry, LogBackend, LogFile, LogId, Op, SegmentLog, Vote};
use random::Random;

/// What a disk writes as a whole.
const SECTOR: usize = 512;
/// Segments as small as can be, so that they are used again and again.
const SEGMENT: u64 = 4096;
/// How many logs are written, each through so many power cuts.
const SEEDS: u64 = 60;
const CUTS: u64 = 25;

enum Change {
    Write(u64, Vec<u8>),
    Length(u64),
}

#[derive(Default)]
struct Content {
    synced: Vec<u8>,
    now: Vec<u8>,
    unsynced: Vec<Change>,
    /// Operations until the power is cut.
    left: u64,
}

/// A file of which the power can be cut.
#[derive(Clone, Default)]
struct File(Arc<Mutex<Content>>);

/// What is written behind the end makes the file longer.
fn write(content: &mut Vec<u8>, offset: usize, data: &[u8]) {
    let end = offset + data.len();
    content.resize(content.len().max(end), 0);
    content[offset..end].copy_from_slice(data);
}

impl File {
    fn change(&self, change: Change) -> io::Result<()> {
        let content = &mut *self.0.lock();
        match &change {
            Change::Write(offset, data) => write(&mut content.now, *offset as usize, data),
            Change::Length(length) => content.now.resize(*length as usize, 0),
        }
        content.unsynced.push(change);
        content.spend()
    }

    /// What was not synced never will be, though it can still be read: so Linux leaves pages that could not
    /// be written.
    fn forget(&self) {
        let content = &mut *self.0.lock();
        content.unsynced.clear();
        content.left = u64::MAX;
    }

    /// The power comes back: of what was not synced, some sectors are there.
    fn cut(&self, random: &mut Random, left: u64) {
        let content = &mut *self.0.lock();
        let share = random.below(5);
        for change in content.unsynced.drain(..) {
            match change {
                // The length is the file system's matter, which keeps its changes in order.
                Change::Length(length) => content.synced.resize(length as usize, 0),
                Change::Write(offset, data) => {
                    let mut at = offset as usize;
                    let end = at + data.len();
                    while at < end {
                        let next = ((at / SECTOR + 1) * SECTOR).min(end);
                        if random.below(4) < share && next <= content.synced.len() {
                            let part = &data[at - offset as usize..next - offset as usize];
                            write(&mut content.synced, at, part);
                        }
                        at = next;
                    }
                }
            }
        }
        content.now = content.synced.clone();
        content.left = left;
    }
}

impl Content {
    fn spend(&mut self) -> io::Result<()> {
        self.left = self.left.checked_sub(1).ok_or_else(|| io::Error::other("the power was cut"))?;
        Ok(())
    }
}

impl LogFile for File {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.lock().now.len() as u64)
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let content = self.0.lock();
        let bytes = content.now.get(offset as usize..offset as usize + out.len());
        out.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.change(Change::Length(len))
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.change(Change::Write(offset, data.to_vec()))
    }
    fn sync(&self) -> io::Result<()> {
        let content = &mut *self.0.lock();
        content.spend()?;
        for change in content.unsynced.drain(..) {
            match change {
                Change::Write(offset, data) => write(&mut content.synced, offset as usize, &data),
                Change::Length(length) => content.synced.resize(length as usize, 0),
            }
        }
        Ok(())
    }
}

#[derive(Clone, Debug, Default, PartialEq)]
struct Model {
    vote: Option<Vote>,
    committed: Option<LogId>,
    purged: Option<LogId>,
    entries: BTreeMap<u64, Entry>,
}

impl Model {
    fn first(&self) -> u64 {
        self.purged.map_or(0, |purged| purged.index + 1)
    }

    fn next(&self) -> u64 {
        self.entries.last_key_value().map_or(self.first(), |(last, _)| last + 1)
    }

    fn apply(&mut self, batch: &Batch) {
        for op in batch {
            match op {
                Op::Append(entries) => {
                    self.entries.extend(entries.iter().map(|entry| (entry.log_id.index, entry.clone())));
                }
                Op::Truncate(after) => {
                    self.entries.retain(|index, _| after.is_some_and(|after| *index <= after));
                }
                Op::Purge(upto) => {
                    self.entries.retain(|index, _| *index > upto.index);
                    self.purged = self.purged.max(Some(*upto));
                }
                Op::Vote(vote) => self.vote = Some(*vote),
                Op::Committed(committed) => self.committed = *committed,
            }
        }
    }

    fn of(log: &SegmentLog) -> Model {
        let start = log.start().unwrap();
        let mut found = Model {
            vote: start.vote,
            committed: start.committed,
            purged: start.purged,
            entries: BTreeMap::new(),
        };
        let entries = log.read(found.first()..u64::MAX, usize::MAX).unwrap();
        found.entries = entries.into_iter().map(|entry| (entry.log_id.index, entry)).collect();
        // The last of what was purged may still be on disk.
        let last = found.entries.last_key_value().map(|(_, entry)| entry.log_id);
        assert_eq!(start.last.max(start.purged), last.max(start.purged));
        found
    }
}

/// What a member of a cluster may do next.
fn batch(random: &mut Random, model: &Model, term: &mut u64) -> Batch {
    let mut batch = Vec::new();
    let mut after = model.clone();
    for _ in 0..random.between(1, 3) {
        let op = match random.below(12) {
            0 => {
                *term += 1;
                Op::Vote(Vote::new(*term, 1))
            }
            1 => {
                let keep = random.between(after.first(), after.next());
                *term += 1;
                Op::Truncate(keep.checked_sub(1))
            }
            2 | 3 if after.next() > after.first() => {
                let upto = random.between(after.first(), after.next() - 1);
                Op::Purge(after.entries[&upto].log_id)
            }
            // A snapshot that reaches further than the log.
            4 if random.below(4) == 0 => Op::Purge(id(*term, after.next() + random.below(5))),
            5 => Op::Committed(after.entries.last_key_value().map(|(_, entry)| entry.log_id)),
            _ => {
                let size = [0, 50, 600, 3000][random.below(4) as usize];
                let entries = after.next()..after.next() + random.between(1, 5);
                let entry = |index| match size {
                    0 => blank(*term, index),
                    _ => Entry { log_id: id(*term, index), ..put(index, "/k", vec![*term as u8; size]) },
                };
                Op::Append(entries.map(entry).collect())
            }
        };
        after.apply(&vec![op.clone()]);
        batch.push(op);
    }
    batch
}

#[test]
fn a_log_survives_one_power_cut_after_another() {
    let seeds = match std::env::var("QUORUMFS_SEED") {
        Ok(seed) => seed.parse().unwrap()..=seed.parse().unwrap(),
        Err(_) => 1..=SEEDS,
    };
    for seed in seeds {
        let random = &mut Random::of(&[seed]);
        let file = File::default();
        file.0.lock().left = u64::MAX;
        SegmentLog::create(&file, SEGMENT).unwrap();
        let (mut model, mut term, mut torn) = (Model::default(), 1, 0);
        for cut in 0..CUTS {
            let said = format!("power cut {cut} of seed {seed}; QUORUMFS_SEED={seed} runs it again");
            file.0.lock().left = u64::MAX;
            let log =
                SegmentLog::open(Box::new(file.clone())).unwrap_or_else(|error| panic!("{error}: {said}"));
            assert_eq!(Model::of(&log), model, "{said}");
            file.0.lock().left = random.between(0, 60);
            loop {
                let batch = batch(random, &model, &mut term);
                let mut after = model.clone();
                after.apply(&batch);
                if log.commit(&batch).is_ok() {
                    model = after;
                    continue;
                }
                drop(log);
                file.cut(random, u64::MAX);
                let log = SegmentLog::open(Box::new(file.clone()));
                let found = Model::of(&log.unwrap_or_else(|error| panic!("{error}: {said}")));
                assert!(found == model || found == after, "{said}: it has {found:?}, not {model:?}");
                torn += u64::from(found == model);
                model = found;
                break;
            }
        }
        assert!(torn > 0, "no commit of seed {seed} was cut short: it shows nothing");
    }
}

/// What a start finds counts from then on: it must be on disk, even where the write that brought it failed.
#[test]
fn what_a_start_finds_after_a_failed_write_is_durable() {
    // With room in the segment, and at the beginning of one.
    for size in [50, 3900] {
        for entries in 1..4 {
            let file = File::default();
            file.0.lock().left = u64::MAX;
            SegmentLog::create(&file, SEGMENT).unwrap();
            let log = SegmentLog::open(Box::new(file.clone())).unwrap();
            let entry = |index| Entry { log_id: id(1, index), ..put(index, "/k", vec![7; size]) };
            for index in 0..entries {
                log.commit(&vec![Op::Append(vec![entry(index)])]).unwrap();
            }
            // The file grows before the write that is to fail.
            file.0.lock().left = if size > 1000 { 4 } else { 1 };
            assert!(log.commit(&vec![Op::Append(vec![entry(entries)])]).is_err());
            drop(log);
            file.forget();
            let log = SegmentLog::open(Box::new(file.clone())).unwrap();
            let found = Model::of(&log);
            assert_eq!(found.next(), entries + 1, "the write is seen, of {size} bytes");
            drop(log);
            file.cut(&mut Random::of(&[1]), u64::MAX);
            let log = SegmentLog::open(Box::new(file.clone())).unwrap();
            assert_eq!(Model::of(&log), found, "after the power was cut");
        }
    }
}
