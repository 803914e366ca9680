//! Bugs that etcd has had, as scenarios: each would be found here.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::*;
use parking_lot::Mutex;
use quorumfs_api::client::Client;
use quorumfs_api::event::Change;
use quorumfs_api::limits::EVENT_LOG_REVISIONS;
use quorumfs_api::wire::{Answer, Call, Consistency};
use quorumfs_soak::linear::{self, Kind, Operation, Revisions, Verdict};
use quorumfs_soak::store::key;
use quorumfs_tests::random::Random;
use quorumfs_tests::{Cluster, guard};
use tokio::task::JoinSet;

/// etcd-io/etcd#14370: a cluster of one acknowledged a write before it was in its log on disk, and a crash
/// lost it.
#[test]
fn a_single_node_that_crashes_loses_no_acknowledged_write() {
    const ROUNDS: usize = 6;
    const WRITERS: usize = 8;
    let _guard = guard(240);
    let mut random = Random::for_test("a single node that crashes");
    let mut cluster = Cluster::start(1);
    let runtime = runtime();
    let acknowledged: Arc<Mutex<Vec<String>>> = Arc::default();
    for round in 0..ROUNDS {
        let stop = Arc::new(AtomicBool::new(false));
        let client = runtime.block_on(async { client(&cluster, cluster.addresses()) });
        let mut writers = JoinSet::new();
        for writer in 0..WRITERS {
            let (client, acknowledged, stop) = (client.clone(), acknowledged.clone(), stop.clone());
            writers.spawn_on(
                async move {
                    let session = client.session(PATIENCE, PATIENCE).await.unwrap();
                    for number in 0.. {
                        if stop.load(Ordering::SeqCst) {
                            return;
                        }
                        let path = format!("/crash/{round}-{writer}-{number}");
                        let command = quorumfs_soak::store::put(&key(&path), path.clone());
                        // What comes back in time and without an error is acknowledged.
                        if session
                            .write(command, Duration::from_secs(1))
                            .await
                            .is_ok_and(|o| o.result.is_ok())
                        {
                            acknowledged.lock().push(path);
                        }
                    }
                },
                runtime.handle(),
            );
        }
        let (before, more) = (acknowledged.lock().len(), 20 + random.below(120));
        quorumfs_tests::until("writes are acknowledged", PATIENCE, || {
            acknowledged.lock().len() > before + more
        });
        cluster.node_mut(1).kill();
        stop.store(true, Ordering::SeqCst);
        cluster.node_mut(1).start();
        runtime.block_on(writers.join_all());
    }
    let client = runtime.block_on(async { client(&cluster, cluster.addresses()) });
    let there = runtime.block_on(quorumfs_soak::store::range(&client, &key("/crash"), PATIENCE)).unwrap().1;
    let there: std::collections::HashSet<String> = there
        .into_iter()
        .filter(|(key, record)| key.to_string().as_bytes() == &*record.value)
        .map(|(key, _)| key.to_string())
        .collect();
    let acknowledged = acknowledged.lock();
    let lost: Vec<&String> = acknowledged.iter().filter(|path| !there.contains(*path)).collect();
    assert!(
        lost.is_empty(),
        "{} of {} acknowledged writes are gone: {lost:?}",
        lost.len(),
        acknowledged.len()
    );
}

/// etcd-io/etcd#15271: a watch that went on at a member which had been cut off, and had not caught up yet,
/// brought revisions that lay behind its position.
#[test]
fn a_watch_never_goes_back_at_a_node_that_is_behind() {
    const MISSED: u64 = 260;
    let _guard = guard(240);
    let flags = ["--snapshot-every", "100", "--log-keep", "20"];
    let cluster = Cluster::start_with(3, &flags);
    let leader = cluster.leader();
    let behind = cluster.ids().into_iter().find(|id| *id != leader).unwrap();
    let address = cluster.node(behind).address.to_string();
    let runtime = runtime();
    runtime.block_on(async {
        let all = client(&cluster, cluster.addresses());
        let session = all.session(PATIENCE, PATIENCE).await.unwrap();
        put_text(&session, "/w/k", "first").await;
        // The watch begins there, and knows no other node at first.
        let there = client(&cluster, address.clone());
        cluster.node(behind).pause();
        let mut last = 0;
        for number in 0..MISSED {
            last = put_text(&session, "/w/k", number).await;
        }
        let mut ahead = watch(&there, "/w", last);
        // It resumes with a request that is on its way already.
        tokio::time::sleep(QUIET).await;
        cluster.node(behind).resume();
        let mut goal = last;
        for number in 0..40 {
            goal = put_text(&session, "/w/k", format!("more {number}")).await;
        }
        let heard = listen(&mut ahead, goal).await;
        assert_eq!(heard.compacted, None, "nothing was missed: {heard:?}");
        let expected: Vec<u64> = (last + 1..=goal).collect();
        assert_eq!(heard.revisions(), expected, "from {:?}", heard.nodes);
        // And one that begins where that node was has to be told everything between, or that it cannot.
        let mut old = watch(&client(&cluster, address), "/w", last - MISSED);
        let heard = listen(&mut old, goal).await;
        if heard.compacted.is_none() {
            assert_eq!(heard.revisions(), (last - MISSED + 1..=goal).collect::<Vec<u64>>());
        }
    });
}

/// etcd-io/etcd#17529: with many slow watches on one connection, some missed events in silence once the
/// log was compacted beyond where they were.
#[test]
fn slow_watches_miss_nothing_in_silence() {
    const WATCHES: usize = 60;
    const EVENTS: u64 = 300;
    let _guard = guard(300);
    let cluster = Cluster::start(1);
    runtime().block_on(async {
        let writer = client(&cluster, cluster.addresses());
        let session = writer.session(PATIENCE, PATIENCE).await.unwrap();
        let from = put_text(&session, "/starved/k", "first").await;
        // All of them on one connection. Every other one is read from only when it is too late.
        let watcher = client(&cluster, cluster.addresses());
        let mut slow: Vec<_> = (0..WATCHES / 2).map(|_| watch(&watcher, "/starved", from)).collect();
        let (goal, goals) = tokio::sync::watch::channel(u64::MAX);
        let mut quick = JoinSet::new();
        for _ in 0..WATCHES / 2 {
            let (mut watch, mut goals) = (watch(&watcher, "/starved", from), goals.clone());
            quick.spawn(async move {
                let mut heard = listen_for(&mut watch, EVENTS as usize).await;
                let goal = *goals.wait_for(|goal| *goal < u64::MAX).await.unwrap();
                heard.to = heard.to.max(heard.events.last().map_or(0, |event| event.revision));
                assert!(heard.compacted.is_some() || heard.to >= goal, "{heard:?}");
                heard
            });
        }
        let mut events = Vec::new();
        for number in 0..EVENTS {
            events.push(put_text(&session, "/starved/k", format!("{number} {}", "y".repeat(8000))).await);
        }
        let last = events[events.len() - 1];
        goal.send_replace(last);
        let mut end = last;
        for _ in 0..80 {
            end = fill_the_log(&session, 1_000_000).await;
        }
        let mut all = quick.join_all().await;
        for watch in &mut slow {
            all.push(listen(watch, last).await);
        }
        let (mut whole, mut told) = (0, 0);
        for (number, heard) in all.iter().enumerate() {
            let revisions = heard.revisions();
            assert_eq!(revisions, events[..revisions.len()], "watch {number} has a gap: {heard:?}");
            match heard.compacted {
                None => {
                    assert_eq!(revisions.len(), events.len(), "watch {number} misses the end: {heard:?}");
                    whole += 1;
                }
                Some(oldest) => {
                    let next = events.get(revisions.len()).copied().unwrap_or(end);
                    assert!(oldest >= next, "watch {number} was cut off at {oldest}, and {next} is kept");
                    told += 1;
                }
            }
        }
        eprintln!("{whole} watches saw all {EVENTS} events, {told} were told that they cannot");
        // More waits than the connection may hold unread, so some are too late. Those that were read from all
        // along share its window with the others, and may be too late as well.
        assert!(told > 0, "nobody was too late: nothing was proved");
    });
}

/// What one watch that begins after `after` hears of the directory `/d`, of the revisions up to `goal`.
async fn heard_after(client: &Client, after: u64, goal: u64) -> Heard {
    listen(&mut watch(client, "/d", after), goal).await
}

/// The event log keeps so many revisions, so that each new one takes the oldest away. When the oldest are a
/// put, a delete and a put, a watch from before the delete hears of it, or hears that it cannot, at whatever
/// point it begins, and also when the node was killed in that moment.
fn compact_on_a_delete(with_kill: bool) {
    const WRITERS: u64 = 64;
    const STEPS_MAX: u64 = 200;
    let _guard = guard(300);
    let mut cluster = Cluster::start(1);
    let runtime = runtime();
    let node = cluster.addresses();
    let (mut clients, session, put, gone, again) = runtime.block_on(async {
        let client = client(&cluster, node.clone());
        let session = Arc::new(client.session(10 * PATIENCE, PATIENCE).await.unwrap());
        let put = put_text(&session, "/d/k", "one").await;
        let gone = delete(&session, "/d/k").await;
        let again = put_text(&session, "/d/k", "two").await;
        (client, session, put, gone, again)
    });
    // What it applied since it started a node also has in memory, and more of it.
    cluster.node_mut(1).terminate();
    cluster.node_mut(1).start();
    runtime.block_on(async {
        let mut writers = JoinSet::new();
        for _ in 0..WRITERS {
            let session = session.clone();
            writers.spawn(async move {
                for _ in 0..(EVENT_LOG_REVISIONS - STEPS_MAX / 2) / WRITERS {
                    put_text(&session, "/elsewhere/k", "more").await;
                }
            });
        }
        writers.join_all().await;
    });
    let mut states: Vec<Vec<bool>> = Vec::new();
    let mut killed_at = None;
    for _ in 0..STEPS_MAX {
        let end = runtime.block_on(put_text(&session, "/elsewhere/k", "more"));
        let oldest = runtime.block_on(heard_after(&clients, 0, end)).compacted;
        if oldest.is_none_or(|oldest| oldest + 1 < put) {
            continue;
        }
        if with_kill && killed_at != oldest {
            killed_at = oldest;
            cluster.node_mut(1).kill();
            cluster.node_mut(1).start();
            clients = runtime.block_on(async { client(&cluster, node.clone()) });
            // It reads its log before it is where it was.
            runtime.block_on(clients.barrier(PATIENCE)).unwrap();
        }
        let mut state = Vec::new();
        for next in [put, gone, again] {
            let heard = runtime.block_on(heard_after(&clients, next - 1, end));
            match heard.compacted {
                None => {
                    let first =
                        heard.events.first().unwrap_or_else(|| panic!("{next} is missing: {heard:?}"));
                    assert_eq!(first.revision, next, "a watch after {} begins with {first:?}", next - 1);
                    let is_gone = matches!(first.changes.as_slice(), [Change::Remove { .. }]);
                    assert_eq!(is_gone, next == gone, "{first:?}");
                }
                Some(oldest) => {
                    assert!(oldest >= next, "cut off at {oldest} although {next} is kept");
                    assert!(heard.events.is_empty(), "half of it: {heard:?}");
                }
            }
            state.push(heard.compacted.is_none());
        }
        // Once an event is gone, so are those before it.
        assert!(state.is_sorted(), "{state:?}");
        if states.last() != Some(&state) {
            states.push(state.clone());
        }
        if state == [false, false, false] {
            let at_the_edge = [vec![false, true, true], vec![false, false, true]];
            assert!(at_the_edge.iter().all(|state| states.contains(state)), "it went too fast: {states:?}");
            return;
        }
    }
    panic!("the event log was never compacted so far: {states:?}");
}

/// etcd-io/etcd#18089: a watch from a compacted revision that was a delete did not bring the delete.
#[test]
fn a_delete_at_the_compacted_revision_is_not_dropped() {
    compact_on_a_delete(false);
}

/// etcd-io/etcd#19179: the same where the member crashed while it compacted.
#[test]
fn a_delete_at_the_compacted_revision_survives_a_crash() {
    compact_on_a_delete(true);
}

/// etcd-io/etcd#20418: a leader that was paused answered linearizable reads, on which it had begun to work
/// before, with what it had then.
#[test]
fn a_leader_that_was_paused_answers_nothing_stale() {
    const ROUNDS: usize = 4;
    const READERS: usize = 6;
    let _guard = guard(300);
    let cluster = Cluster::start(3);
    let runtime = runtime();
    let began = Instant::now();
    let now = move || began.elapsed().as_micros() as u64;
    let values = AtomicU64::new(1);
    for round in 0..ROUNDS {
        let leader = cluster.leader();
        let address = cluster.node(leader).address.to_string();
        let history: Arc<Mutex<Vec<Operation>>> = Arc::default();
        let path = format!("/paused/{round}");
        let stop = Arc::new(AtomicBool::new(false));
        runtime.block_on(async {
            let others: Vec<String> = cluster
                .ids()
                .into_iter()
                .filter(|id| *id != leader)
                .map(|id| cluster.node(id).address.to_string())
                .collect();
            let write = async |client: &Client| {
                let value = values.fetch_add(1, Ordering::SeqCst);
                let session = client.session(PATIENCE, PATIENCE).await.unwrap();
                let call = now();
                let revision = put_text(&session, &path, value).await;
                let kind = Kind::Write { value, revision: Some(revision) };
                history.lock().push(Operation { call, ret: Some(now()), kind });
            };
            write(&client(&cluster, cluster.addresses())).await;
            let mut readers = JoinSet::new();
            let reader = client(&cluster, address.clone());
            for _ in 0..READERS {
                let (reader, history, stop) = (reader.clone(), history.clone(), stop.clone());
                let (address, key) = (address.clone(), key(&path));
                readers.spawn(async move {
                    while !stop.load(Ordering::SeqCst) {
                        let get = Call::Get { key: key.clone(), consistency: Consistency::Linearizable };
                        let call = now();
                        let got = reader.call_at(&address, get, Duration::from_secs(10)).await;
                        let ret = Some(now());
                        // A node that does not lead any more says so; that is no read.
                        let Ok(Answer::Got { revision: answer, record }) = got else {
                            tokio::time::sleep(Duration::from_millis(5)).await;
                            continue;
                        };
                        let value =
                            record.as_ref().map(|record| quorumfs_soak::store::text(record).parse().unwrap());
                        let modified = record.map_or(0, |record| record.mod_revision);
                        let revisions = Some(Revisions { modified, answer });
                        note(&history, Operation { call, ret, kind: Kind::Read { value, revisions } });
                        tokio::time::sleep(Duration::from_millis(2)).await;
                    }
                });
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
            cluster.node(leader).pause();
            // The others elect one of them, and go on.
            write(&client(&cluster, others.join(","))).await;
            write(&client(&cluster, others.join(","))).await;
            cluster.node(leader).resume();
            tokio::time::sleep(Duration::from_millis(400)).await;
            stop.store(true, Ordering::SeqCst);
            readers.join_all().await;
        });
        let history = history.lock().clone();
        let reads = history.len() - 3;
        assert!(reads > 5, "the readers hardly ran");
        let shown = match linear::check(&history) {
            Verdict::Legal => continue,
            Verdict::Illegal(why) | Verdict::Unknown(why) => why,
        };
        panic!("round {round}, {reads} reads: {shown}");
    }
}

/// Writes an operation down, if there are not enough already: a checker needs time.
fn note(history: &Mutex<Vec<Operation>>, operation: Operation) {
    const MAX: usize = 4000;
    let mut history = history.lock();
    if history.len() < MAX {
        history.push(operation);
    }
}
