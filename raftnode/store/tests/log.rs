//! The log: durable, in order, with shared commits.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use common::{append, append_durably, blank, id, indexes, open, put, wait_until};
use futures::FutureExt;
use openraft::storage::{RaftLogReader, RaftLogStorage};
use proptest::prelude::*;
use quorumfs_store::{LogBackend, LogStore, Op, SegmentLog, Vote};

/// Segments as small as can be, so that they are used again and again.
const SEGMENT: u64 = 4096;

fn new_log(path: &std::path::Path) -> SegmentLog {
    let options = common::options();
    SegmentLog::create(&*(options.open_log)(path).unwrap(), SEGMENT).unwrap();
    SegmentLog::open((options.open_log)(path).unwrap()).unwrap()
}

#[tokio::test]
async fn writers_that_wait_share_one_commit() {
    let dir = tempfile::tempdir().unwrap();
    let backend = common::Gated::new(new_log(&dir.path().join("log")));
    let (commits, closed) = (backend.commits.clone(), backend.closed.clone());
    let mut log = LogStore::new(Arc::new(backend), 1 << 20).unwrap();
    closed.store(true, Ordering::SeqCst);
    let mut waiting = vec![append(&mut log, vec![put(0, "/a", "0")]).await.unwrap()];
    wait_until("the first commit", || commits.load(Ordering::SeqCst) == 1);
    for index in 1..=1000 {
        waiting.push(append(&mut log, vec![put(index, "/a", index.to_string())]).await.unwrap());
    }
    // Nothing but the first has reached the disk, and all can be read.
    assert_eq!(commits.load(Ordering::SeqCst), 1);
    assert_eq!(indexes(&log).await, (0..=1000).collect::<Vec<_>>());
    assert!(waiting.iter_mut().all(|wait| wait.now_or_never().is_none()), "nothing is acknowledged yet");
    closed.store(false, Ordering::SeqCst);
    for wait in waiting {
        wait.await.unwrap();
    }
    assert_eq!(commits.load(Ordering::SeqCst), 2, "1000 appends share one commit");
}

#[tokio::test]
async fn entries_are_read_from_memory_and_from_disk() {
    let dir = tempfile::tempdir().unwrap();
    let backend = Arc::new(new_log(&dir.path().join("log")));
    // So little memory that nearly all of it is on disk.
    let mut log = LogStore::new(backend, 2000).unwrap();
    for first in (0..500).step_by(50) {
        let entries = (first..first + 50).map(|index| put(index, "/k", vec![b'v'; 100])).collect();
        append_durably(&mut log, entries).await.unwrap();
    }
    assert_eq!(indexes(&log).await, (0..500).collect::<Vec<_>>());
    let mut reader = log.reader();
    for (start, end) in [(0, 1), (49, 51), (120, 130), (498, 500), (490, 600)] {
        let entries = reader.try_get_log_entries(start..end).await.unwrap();
        let found: Vec<u64> = entries.iter().map(|entry| entry.log_id.index).collect();
        assert_eq!(found, (start..end.min(500)).collect::<Vec<_>>());
    }
    assert!(!reader.limited_get_log_entries(0, 500).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_closed_log_has_everything_when_it_is_opened_again() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    let vote = Vote::new_committed(7, 1);
    store.log.save_vote(&vote).await.unwrap();
    append_durably(&mut store.log, (0..10).map(|index| blank(7, index)).collect()).await.unwrap();
    store.log.save_committed(Some(id(7, 8))).await.unwrap();
    store.log.purge(id(7, 2)).await.unwrap();
    store.log.truncate_after(Some(id(7, 8))).await.unwrap();
    store.guard.close().await.unwrap();
    let refused = append(&mut store.log, vec![blank(7, 9)]).await;
    assert!(refused.is_err(), "a closed log takes nothing");

    let mut store = open(dir.path());
    assert_eq!(store.log.reader().read_vote().await.unwrap(), Some(vote));
    assert_eq!(store.log.read_committed().await.unwrap(), Some(id(7, 8)));
    let state = store.log.get_log_state().await.unwrap();
    assert_eq!((state.last_purged_log_id, state.last_log_id), (Some(id(7, 2)), Some(id(7, 8))));
    assert_eq!(indexes(&store.log).await, (3..=8).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_hole_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    append_durably(&mut store.log, vec![blank(1, 0)]).await.unwrap();
    assert!(append(&mut store.log, vec![blank(1, 2)]).await.is_err());
    assert!(append(&mut store.log, vec![blank(1, 1), blank(1, 3)]).await.is_err());
    append_durably(&mut store.log, vec![blank(1, 1)]).await.unwrap();
    assert_eq!(indexes(&store.log).await, [0, 1]);
}

#[test]
fn a_segment_that_lost_its_start_is_missed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let log = new_log(&path);
    // Room is left in the second segment, the newest.
    for index in 0..6 {
        log.commit(&vec![Op::Append(vec![put(index, "/k", vec![b'v'; 800])])]).unwrap();
    }
    drop(log);
    let mut bytes = std::fs::read(&path).unwrap();
    assert_eq!(bytes.len() as u64, 4096 + 2 * SEGMENT);
    bytes[4096 + SEGMENT as usize] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    let refused = SegmentLog::open((common::options().open_log)(&path).unwrap()).err();
    assert!(refused.is_some_and(|error| error.to_string().contains("goes on behind it")));
}

#[derive(Clone, Debug)]
enum Step {
    Append(usize),
    Truncate(u64),
    Purge(u64),
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (1..30usize).prop_map(Step::Append),
        2 => (0..20u64).prop_map(Step::Truncate),
        2 => (0..40u64).prop_map(Step::Purge),
        1 => Just(Step::Reopen),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// A failure prints the steps, and how to run them again.
    #[test]
    fn a_log_is_what_was_written(steps in proptest::collection::vec(step(), 1..25), wait in any::<bool>()) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
        runtime.block_on(async {
            let dir = tempfile::tempdir().unwrap();
            let mut store = open(dir.path());
            let mut model: BTreeMap<u64, u64> = BTreeMap::new();
            let (mut next, mut purged, mut term) = (0, 0, 1);
            for step in steps {
                match step {
                    Step::Append(count) => {
                        let entries: Vec<_> = (next..next + count as u64).map(|index| blank(term, index)).collect();
                        model.extend(entries.iter().map(|entry| (entry.log_id.index, term)));
                        next += count as u64;
                        let waiting = append(&mut store.log, entries).await.unwrap();
                        if wait {
                            waiting.await.unwrap();
                        }
                    }
                    Step::Truncate(back) => {
                        let keep = next.saturating_sub(back).max(purged);
                        next = keep;
                        model.retain(|index, _| *index < keep);
                        let last = keep.checked_sub(1).map(|index| id(model.get(&index).copied().unwrap_or(term), index));
                        store.log.truncate_after(last).await.unwrap();
                        term += 1;
                    }
                    Step::Purge(count) => {
                        let upto = (purged + count).min(next);
                        if let Some(last) = upto.checked_sub(1).filter(|_| upto > purged) {
                            store.log.purge(id(model[&last], last)).await.unwrap();
                            purged = upto;
                            model.retain(|index, _| *index >= upto);
                        }
                    }
                    Step::Reopen => {
                        store.guard.close().await.unwrap();
                        drop((store.log, store.machine, store.state));
                        store = open(dir.path());
                    }
                }
                let entries = store.log.reader().try_get_log_entries(..).await.unwrap();
                let found: BTreeMap<u64, u64> =
                    entries.iter().map(|entry| (entry.log_id.index, entry.log_id.leader_id.term)).collect();
                assert_eq!(found, model);
                let state = store.log.get_log_state().await.unwrap();
                assert_eq!(state.last_log_id.map(|last| last.index + 1).unwrap_or(0), next);
            }
        });
    }
}
