//! A run of a store through all that a member of a cluster does to it, chosen by a seed. It is the
//! same for the same seed: writes that share a commit are gathered while the disk is held, and not by
//! chance.

use std::time::Duration;

use openraft::storage::{RaftLogStorage, RaftSnapshotBuilder, RaftStateMachine};
use quorumfs_store::{Entry, LogId, Op, Options, SnapshotMeta, Store, Vote};
use tempfile::TempDir;
use tokio::io::AsyncReadExt;

use super::disk::{Disk, Kind};
use super::image::Image;
use super::model::{self, Model};
use super::quick_dir;
use super::random::Random;
use crate::common::{append, apply, open, options};

/// A little more than the time between two committed positions that the log writes.
const COMMITTED_INTERVAL: Duration = Duration::from_millis(110);
/// Time in which a state that does not wait for the log would have reached the disk.
const AHEAD: Duration = Duration::from_millis(40);

/// A store that is running, and what is known of it.
pub struct Run {
    pub disk: Disk,
    pub model: Model,
    seed: u64,
    random: Random,
    dir: TempDir,
    store: Option<Store>,
    term: u64,
    /// Number of entries that the state has.
    applied: u64,
}

/// Options with which databases are on `disk`.
pub fn options_on(disk: &Disk) -> Options {
    let mut options = options();
    options.state_cache = 4 << 20;
    // Records that are larger, and segments that are used again.
    options.log_segment = 8 << 10;
    // So little that most of the log is read from disk.
    options.log_memory = 16 << 10;
    options.open_database = disk.opener();
    options.open_log = disk.log_opener();
    options
}

impl Run {
    /// Runs `steps` steps; `prepare` may break the disk before.
    pub async fn new(seed: u64, steps: u64, prepare: impl FnOnce(&Disk)) -> Run {
        let dir = quick_dir();
        let disk = Disk::new(dir.path(), Image::default());
        prepare(&disk);
        let mut run = Run {
            disk,
            model: Model::new(),
            seed,
            random: Random::of(&[seed]),
            dir,
            store: None,
            term: 1,
            applied: 0,
        };
        run.disk.watch_names();
        run.open();
        run.disk.names_synced();
        run.write(vec![Op::Vote(Vote::new_committed(1, 1))]).await;
        run.some_entries(4).await;
        for step in 0..steps {
            run.step(step).await;
        }
        run.close().await;
        run
    }

    async fn step(&mut self, step: u64) {
        // What is rare comes in each run.
        match step % 20 {
            7 => return self.install().await,
            12 => return self.ahead_of_the_log().await,
            16 => {
                self.close().await;
                return self.open();
            }
            _ => {}
        }
        match self.random.below(16) {
            0..5 => self.some_entries(3).await,
            5 => self.some_entries(12).await,
            6..9 => self.apply_some().await,
            9 => self.new_term().await,
            10 => self.save_committed().await,
            11 | 12 => self.flush().await,
            13 => self.flush_beside_the_log().await,
            _ => self.snapshot_and_purge().await,
        }
    }

    fn store(&mut self) -> &mut Store {
        self.store.as_mut().unwrap()
    }

    fn open(&mut self) {
        self.store = Some(Store::open(self.dir.path(), &options_on(&self.disk)).unwrap());
    }

    async fn close(&mut self) {
        self.store.take().unwrap().guard.close().await.unwrap();
        self.model.ack(self.disk.position());
        self.model.flushed.push((self.disk.position(), self.applied));
    }

    /// Index of the next entry of the log.
    fn end(&self) -> u64 {
        self.model.log().last().map_or(0, |last| last.index + 1)
    }

    /// Number of entries that are committed. They are never truncated.
    fn committed(&self) -> u64 {
        self.model.truth.len() as u64
    }

    fn entries(&self, count: u64) -> Vec<Entry> {
        (self.end()..self.end() + count).map(|index| model::entry(self.seed, self.term, index)).collect()
    }

    /// Writes to the log and waits until all is durable. Of several the first has a commit of its own,
    /// and those that come while it is written share one.
    async fn write(&mut self, ops: Vec<Op>) {
        let commits = |op: &Op| !matches!(op, Op::Committed(_));
        let several = ops.iter().filter(|op| commits(op)).count() > 1;
        let disk = self.disk.clone();
        if several {
            disk.hold(Kind::Log, 0);
        }
        let mut waiting = Vec::new();
        for op in ops {
            let before = self.model.log().clone();
            self.model.ask(disk.position(), &op);
            let commits = commits(&op);
            let log = &mut self.store.as_mut().unwrap().log;
            match op {
                Op::Append(entries) => waiting.push(append(log, entries).await.unwrap()),
                Op::Truncate(after) => {
                    let last = after.map(|index| {
                        before.entries.get(&index).map(|entry| entry.log_id).or(before.purged).unwrap()
                    });
                    log.truncate_after(last).await.unwrap();
                }
                Op::Purge(upto) => log.purge(upto).await.unwrap(),
                Op::Committed(committed) => log.save_committed(committed).await.unwrap(),
                Op::Vote(vote) => {
                    assert!(!several, "a vote is waited for before anything else");
                    log.save_vote(&vote).await.unwrap();
                }
            }
            if several && commits {
                disk.wait_until_held(Kind::Log);
            }
        }
        disk.release(Kind::Log);
        for wait in waiting {
            wait.await.unwrap();
        }
        self.model.ack(disk.position());
    }

    async fn some_entries(&mut self, most: u64) {
        let mut ops = Vec::new();
        let entries = self.entries(most * 3);
        let mut rest = entries.as_slice();
        for _ in 0..self.random.between(1, 3) {
            let count = self.random.between(1, most) as usize;
            ops.push(Op::Append(rest[..count].to_vec()));
            rest = &rest[count..];
        }
        self.write(ops).await;
    }

    /// The log is committed up to this many entries, and all of them are applied.
    async fn apply_up_to(&mut self, count: u64) {
        for index in self.committed()..count {
            let entry = self.model.log().entries[&index].clone();
            self.model.commit(entry);
        }
        let entries = self.model.truth[self.applied as usize..count as usize].to_vec();
        self.model.applied.push((self.disk.position(), count));
        for piece in entries.chunks(3) {
            apply(&mut self.store().machine, piece.to_vec()).await.unwrap();
        }
        self.applied = count;
    }

    async fn apply_some(&mut self) {
        let count = self.random.between(self.applied, self.end());
        self.apply_up_to(count).await;
    }

    async fn new_term(&mut self) {
        self.term += 1;
        self.write(vec![Op::Vote(Vote::new(self.term, 1))]).await;
        if self.random.below(4) > 0 && self.end() > 0 {
            let keep = self.random.between(self.committed(), self.end());
            let truncate = Op::Truncate(keep.checked_sub(1));
            let mut after = self.model.log().clone();
            after.apply(&truncate);
            let end = after.last().map_or(0, |last| last.index + 1);
            let count = self.random.between(1, 5);
            let new = (end..end + count).map(|index| model::entry(self.seed, self.term, index)).collect();
            self.write(vec![truncate, Op::Append(new)]).await;
        }
        self.write(vec![Op::Vote(Vote::new_committed(self.term, 1))]).await;
    }

    async fn save_committed(&mut self) {
        let last = self.model.truth.last().map(|entry| entry.log_id);
        // The log writes one only so often: this makes sure that it writes this one.
        tokio::time::sleep(COMMITTED_INTERVAL).await;
        let entries = self.entries(2);
        self.write(vec![Op::Committed(last), Op::Append(entries)]).await;
    }

    async fn flush(&mut self) {
        self.store().state.flush().await.unwrap();
        self.model.flushed.push((self.disk.position(), self.applied));
    }

    /// The log is written while the state is on its way to the disk.
    async fn flush_beside_the_log(&mut self) {
        let count = self.end();
        if count == self.applied {
            return;
        }
        self.disk.hold(Kind::State, self.random.below(6) as usize);
        self.apply_up_to(count).await;
        let state = self.store().state.clone();
        let flush = tokio::spawn(async move { state.flush().await });
        tokio::task::yield_now().await;
        self.disk.wait_until_held(Kind::State);
        self.some_entries(3).await;
        self.disk.release(Kind::State);
        flush.await.unwrap().unwrap();
        self.model.flushed.push((self.disk.position(), self.applied));
    }

    /// Others made a quorum before our own disk had the entries: they are applied here already.
    async fn ahead_of_the_log(&mut self) {
        // A commit is at least a write and a sync.
        self.disk.hold(Kind::Log, self.random.below(2) as usize);
        let entries = self.entries(3);
        let count = self.end() + 3;
        self.model.ask(self.disk.position(), &Op::Append(entries.clone()));
        let wait = append(&mut self.store().log, entries).await.unwrap();
        self.disk.wait_until_held(Kind::Log);
        self.apply_up_to(count).await;
        let state = self.store().state.clone();
        let mut flush = tokio::spawn(async move { state.flush().await });
        let early = tokio::time::timeout(AHEAD, &mut flush).await;
        self.disk.release(Kind::Log);
        wait.await.unwrap();
        self.model.ack(self.disk.position());
        match early {
            Ok(flushed) => flushed.unwrap().unwrap(),
            Err(_) => flush.await.unwrap().unwrap(),
        }
        self.model.flushed.push((self.disk.position(), self.applied));
    }

    async fn snapshot_and_purge(&mut self) {
        if self.applied == 0 {
            return;
        }
        self.disk.watch_names();
        let mut builder = self.store().machine.get_snapshot_builder().await;
        builder.build_snapshot().await.unwrap();
        self.disk.names_synced();
        let position = self.disk.position();
        self.model.flushed.push((position, self.applied));
        self.model.snapshots.push((position, self.applied));
        let upto = self.random.between(self.applied.saturating_sub(20), self.applied);
        let upto = upto.checked_sub(1).and_then(|index| self.model.log().entries.get(&index));
        if let Some(upto) = upto.map(|entry| entry.log_id) {
            self.write(vec![Op::Purge(upto), Op::Append(self.entries(1))]).await;
        }
    }

    /// The leader is so far ahead that it sends a snapshot.
    async fn install(&mut self) {
        // The state has something that is not on disk.
        self.apply_up_to(self.end()).await;
        let upto = self.end() + self.random.between(1, 8);
        self.some_entries(1).await;
        let upto = upto.max(self.end() + 1);
        self.term += 1;
        self.write(vec![Op::Vote(Vote::new_committed(self.term, 1))]).await;
        for index in self.committed()..upto {
            self.model.commit(model::entry(self.seed, self.term, index));
        }
        let (meta, bytes) = self.snapshot_of_the_leader().await;

        self.disk.watch_names();
        let mut receiving = self.store().snapshots.receive().unwrap();
        for chunk in bytes.chunks(bytes.len() / 3 + 1) {
            receiving.write(chunk).await.unwrap();
            self.disk.look();
        }
        let file = receiving.finish().await.unwrap();
        self.disk.look();
        self.model.installed.push((self.disk.position(), upto));
        self.store().machine.install_snapshot(&meta, file).await.unwrap();
        self.disk.names_synced();
        let position = self.disk.position();
        self.applied = upto;
        self.model.applied.push((position, upto));
        self.model.flushed.push((position, upto));
        self.model.snapshots.push((position, upto));
        let last: LogId = meta.last_log_id.unwrap();
        let next = model::entry(self.seed, self.term, last.index + 1);
        self.write(vec![Op::Purge(last), Op::Append(vec![next])]).await;
    }

    /// A snapshot of all that is committed.
    async fn snapshot_of_the_leader(&self) -> (SnapshotMeta, Vec<u8>) {
        let dir = quick_dir();
        let mut leader = open(dir.path());
        apply(&mut leader.machine, self.model.truth.clone()).await.unwrap();
        let snapshot = leader.machine.get_snapshot_builder().await.build_snapshot().await.unwrap();
        let mut bytes = Vec::new();
        snapshot.snapshot.into_reader().unwrap().read_to_end(&mut bytes).await.unwrap();
        leader.guard.close().await.unwrap();
        (snapshot.meta, bytes)
    }
}
