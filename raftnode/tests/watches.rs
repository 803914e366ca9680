//! What watchers get.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::Cluster;
use quorumfs_api::limits::EVENT_LOG_REVISIONS;
use quorumfs_api::wire::{Call, Consistency, WatchFrame};
use quorumfs_api::{Change, Done, Key};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_then_every_event_once_and_in_order() {
    let cluster = Cluster::one().await;
    let client = cluster.leader().await;
    client.put("/a/one", b"1").await.unwrap();
    let last = client.put("/b/two", b"2").await.unwrap().revision;

    let mut watch = client.watch("/", None, true).await;
    let (revision, nodes) = watch.copy().await;
    assert_eq!(revision, last);
    let names: Vec<&str> = nodes.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["a", "one", "b", "two"], "parents before children");

    let mut wanted = Vec::new();
    for n in 0..50 {
        wanted.push(client.put(&format!("/a/k{n}"), b"v").await.unwrap().revision);
    }
    assert_eq!(watch.revisions(50).await, wanted);

    // From where it was, on a connection of its own: the same again.
    let mut resumed = cluster.client(1).await.watch("/", Some(wanted[9]), false).await;
    assert_eq!(resumed.revisions(40).await, wanted[10..]);
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prefix_sees_its_subtree_and_hears_how_far_it_is() {
    let cluster = Cluster::one().await;
    let client = cluster.leader().await;
    client.put("/in/x", b"1").await.unwrap();
    let mut watch = client.watch("/in", None, true).await;
    let (copied, nodes) = watch.copy().await;
    assert_eq!(nodes.len(), 1);

    // Outside: only that it is past it, and at once.
    let outside = client.put("/out/x", b"1").await.unwrap().revision;
    assert!(outside > copied);
    let asked = tokio::time::Instant::now();
    loop {
        match watch.next().await.unwrap() {
            WatchFrame::Progress(at) if at >= outside => break,
            WatchFrame::Progress(_) => {}
            other => panic!("{other:?}"),
        }
    }
    assert!(asked.elapsed() < std::time::Duration::from_secs(1), "{:?}", asked.elapsed());

    let inside = client.put("/in/y", b"2").await.unwrap().revision;
    match watch.next_news().await.unwrap() {
        WatchFrame::Events(events) => {
            assert_eq!((events.len(), events[0].revision), (1, inside));
            assert!(
                matches!(&events[0].changes[0], Change::Create { place, .. } if place.name.to_string() == "y")
            );
        }
        other => panic!("{other:?}"),
    }
    // An idle watch gives signs of life.
    assert!(matches!(watch.next().await, Some(WatchFrame::Progress(at)) if at == inside));
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whole_revisions_come_together_and_moves_into_the_prefix_bring_a_copy() {
    use quorumfs_api::command::{Command, RenameMode};
    let cluster = Cluster::one().await;
    let client = cluster.leader().await;
    client.put("/out/dir/f", b"1").await.unwrap();
    client.put("/in/x", b"1").await.unwrap();
    let mut watch = client.watch("/in", None, true).await;
    watch.copy().await;
    let rename = Command::Rename {
        from: Key::parse("/out/dir").unwrap().into(),
        to: Key::parse("/in/dir").unwrap().into(),
        mode: RenameMode::Replace,
    };
    let moved = client.write_in(None, rename).await.unwrap();
    moved.result.unwrap();
    let (revision, nodes) = watch.copy().await;
    assert!(revision >= moved.revision);
    assert_eq!(nodes.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["dir", "f", "x"]);

    let delete = Command::Delete { at: Key::parse("/in").unwrap().into(), recursive: true };
    let gone = client.write_in(None, delete).await.unwrap();
    assert_eq!(gone.result, Ok(Done::Deleted(4)));
    match watch.next_news().await.unwrap() {
        WatchFrame::Events(events) => {
            let removed =
                events[0].changes.iter().filter(|change| matches!(change, Change::Remove { .. })).count();
            assert_eq!((events.len(), events[0].revision, removed), (1, gone.revision, 4));
        }
        WatchFrame::CopyBegin { root: None, revision } => assert!(revision >= gone.revision),
        other => panic!("{other:?}"),
    }
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_too_far_behind_is_told_or_gets_a_copy() {
    let mut cluster = Cluster::one().await;
    let client = cluster.leader().await;
    let first = client.put("/x", b"0").await.unwrap().revision;
    // Many at a time, because one by one would wait for the disk each time.
    let clients =
        [cluster.leader().await, cluster.leader().await, cluster.leader().await, cluster.leader().await];
    let each = EVENT_LOG_REVISIONS / 4 / 50 + 3;
    futures::future::join_all(clients.iter().map(|client| async move {
        for _ in 0..each {
            client.put_many("/x", 50).await;
        }
    }))
    .await;
    // The newest events are in memory too, and more of them; after a restart there is only the log.
    cluster.stop(1).await;
    cluster.start(1).await;
    let client = cluster.leader().await;
    let mut told = client.watch("/", Some(first), false).await;
    match told.next_news().await.unwrap() {
        WatchFrame::Compacted(oldest) => assert!(oldest > first),
        _ => panic!("not told that the events are gone"),
    }
    assert_eq!(told.next().await, None, "the watch has ended");
    let mut copied = client.watch("/", Some(first), true).await;
    assert_eq!(copied.copy().await.1.len(), 1);
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_serves_watches_and_ends_them_when_it_stops() {
    let mut cluster = Cluster::of(3).await;
    let leader = cluster.leader_id().await;
    let follower = (1..=3).find(|id| *id != leader).unwrap();
    let client = cluster.client(follower).await;
    let mut watch = client.watch("/", None, true).await;
    watch.copy().await;
    let revision = cluster.leader().await.put("/x", b"1").await.unwrap().revision;
    assert_eq!(watch.revisions(1).await, [revision]);
    // What was seen on the watch can be read there.
    let call = Call::Get { key: Key::parse("/x").unwrap(), consistency: Consistency::Serializable };
    assert!(client.call(call).await.is_ok());
    cluster.stop(follower).await;
    let closed = common::within("the connection ends", client.connection.closed()).await;
    assert!(matches!(closed, quinn::ConnectionError::ApplicationClosed(_)), "{closed:?}");
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watcher_that_reads_nothing_costs_nothing_more_and_others_go_on() {
    let cluster = Cluster::one().await;
    let client = cluster.leader().await;
    let slow = cluster.client(1).await;
    let mut stuck = slow.watch("/", None, true).await;
    stuck.copy().await;
    let mut last = 0;
    // More than the stream's window takes.
    for n in 0..24 {
        last = client.put(&format!("/big{}", n % 4), &vec![1; 512 << 10]).await.unwrap().revision;
    }
    let mut quick = client.watch("/", Some(last - 1), false).await;
    assert_eq!(quick.revisions(1).await, [last]);
    // It reads at last, and has missed nothing.
    let seen = stuck.revisions(24).await;
    assert_eq!(seen.last(), Some(&last));
    cluster.end().await;
}
