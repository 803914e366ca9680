//! The client when nodes die.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use common::{Cluster, PATIENCE};
use quorumfs_api::client::{ClientError, WatchItem};
use quorumfs_api::wire::{Consistency, WatchStart};
use quorumfs_api::{Change, Command, CreateMode, Key, Owner};
use tokio::runtime::Runtime;

fn append(key: &str, data: String) -> Command {
    Command::Append {
        target: key.parse::<Key>().unwrap().into(),
        data: Bytes::from(data),
        create: CreateMode::Allow,
        parents: true,
        owner: Owner::FILE,
    }
}

#[test]
fn writes_under_way_when_the_leader_dies_are_done_exactly_once() {
    let mut cluster = Cluster::start(3);
    Runtime::new().unwrap().block_on(async {
        let client = cluster.client();
        let session = Arc::new(client.session(Duration::from_secs(20), PATIENCE).await.unwrap());
        let writers: Vec<_> = (0..8)
            .map(|writer| {
                let session = session.clone();
                tokio::spawn(async move {
                    for n in 0..40 {
                        let outcome =
                            session.write(append("/log", format!("{writer}.{n}\n")), PATIENCE).await;
                        outcome.unwrap().result.unwrap();
                    }
                })
            })
            .collect();
        // In the middle of it.
        common::eventually("some are written", || async {
            let got = client.get("/log".parse().unwrap(), Consistency::Serializable, PATIENCE).await.ok()?;
            (got.1?.value.len() > 200).then_some(())
        })
        .await;
        cluster.crash_leader(&client).await;
        let died = Instant::now();
        for writer in writers {
            writer.await.unwrap();
        }
        eprintln!("all were written {:?} after the leader died", died.elapsed());
        let (_, record) =
            client.get("/log".parse().unwrap(), Consistency::Linearizable, PATIENCE).await.unwrap();
        let value = record.unwrap().value;
        let mut lines: Vec<String> =
            String::from_utf8(value.to_vec()).unwrap().lines().map(str::to_string).collect();
        lines.sort();
        let mut expected: Vec<String> =
            (0..8).flat_map(|writer| (0..40).map(move |n| format!("{writer}.{n}"))).collect();
        expected.sort();
        assert_eq!(lines, expected, "each append once");
        assert_eq!(session.generation(), 1);
        client.close().await;
    });
}

#[test]
fn a_watch_goes_on_at_another_node_without_a_gap_or_a_repetition() {
    let mut cluster = Cluster::start(3);
    Runtime::new().unwrap().block_on(async {
        let client = cluster.client();
        let session = client.session(Duration::from_secs(20), PATIENCE).await.unwrap();
        session.write(append("/w/log", "first\n".into()), PATIENCE).await.unwrap().result.unwrap();
        let start = WatchStart { prefix: "/w".parse().unwrap(), after: None, copy_when_behind: true };
        let mut watch = client.watch(start);
        let mut copied = 0;
        let mut seen = 0;
        let mut lines = Vec::new();
        let mut moves = 0;
        for round in 0..30 {
            if round == 10 {
                let at = loop {
                    match watch.next().await.unwrap() {
                        WatchItem::Connected(addr) => break addr,
                        WatchItem::CopyEnd => panic!("a copy before the connection"),
                        _ => {}
                    }
                };
                // The node of the watch dies, whoever it is; the leader dies if it is that one.
                cluster.nodes.iter_mut().find(|node| node.addr.to_string() == at).unwrap().crash();
            }
            session.write(append("/w/log", format!("{round}\n")), PATIENCE).await.unwrap().result.unwrap();
        }
        let mut last = Bytes::new();
        let whole = |value: &Bytes| value.ends_with(b"29\n");
        while !whole(&last) {
            let item = tokio::time::timeout(PATIENCE, watch.next()).await.unwrap().unwrap();
            match item {
                WatchItem::CopyBegin { revision, .. } => {
                    assert!(revision >= seen);
                    seen = revision;
                    copied += 1;
                }
                WatchItem::CopyPart(nodes) => {
                    for node in nodes {
                        last = node.record.value;
                    }
                }
                WatchItem::Events(events) => {
                    for event in events {
                        assert!(event.revision > seen, "{} again after {seen}", event.revision);
                        seen = event.revision;
                        for change in event.changes {
                            if let Change::Update { record, .. } = change {
                                last = record.value.clone();
                                lines.push(record.value);
                            }
                        }
                    }
                }
                WatchItem::Disconnected(_) => moves += 1,
                WatchItem::Failed(error) => panic!("{error}"),
                _ => {}
            }
        }
        assert!(copied >= 1 && moves >= 1, "{copied} copies, {moves} moves");
        for two in lines.windows(2) {
            assert!(two[1].starts_with(&two[0]) && two[1].len() > two[0].len(), "each event is the next");
        }
        client.close().await;
    });
}

#[test]
fn without_a_quorum_the_error_says_so_within_its_time() {
    let mut cluster = Cluster::start(3);
    Runtime::new().unwrap().block_on(async {
        let client = cluster.client();
        let session = client.session(Duration::from_secs(20), PATIENCE).await.unwrap();
        session.write(append("/a", "1".into()), PATIENCE).await.unwrap().result.unwrap();
        for node in cluster.nodes.iter_mut().take(2) {
            node.crash();
        }
        let begun = Instant::now();
        let error = session.write(append("/a", "2".into()), Duration::from_secs(2)).await.unwrap_err();
        assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
        assert!(error.is_timeout(), "{error}");
        // What a node has can still be read.
        let got = client.get("/a".parse().unwrap(), Consistency::Serializable, Duration::from_secs(5)).await;
        assert_eq!(&got.unwrap().1.unwrap().value[..1], b"1");
        let lost = client.get("/a".parse().unwrap(), Consistency::Linearizable, Duration::from_secs(1)).await;
        assert!(lost.unwrap_err().is_timeout());
    });
}

#[test]
fn a_session_that_was_ended_opens_itself_again() {
    let cluster = Cluster::start(1);
    Runtime::new().unwrap().block_on(async {
        let client = cluster.client();
        let session = client.session(Duration::from_secs(20), PATIENCE).await.unwrap();
        let first = session.id();
        let mut changes = session.changes();
        client.write_once(Command::LeaseRevoke { lease: first }, PATIENCE).await.unwrap().result.unwrap();
        // It was sent once and refused, so that it is done in the new session.
        session.write(append("/a", "1".into()), PATIENCE).await.unwrap().result.unwrap();
        tokio::time::timeout(PATIENCE, changes.changed()).await.unwrap().unwrap();
        assert_eq!(session.generation(), 2);
        assert_ne!(session.id(), first);
        assert_eq!(session.ids(), [first, session.id()]);
        let last = session.id();
        session.close(PATIENCE).await.unwrap();
        let left = client.leases(None, PATIENCE).await.unwrap();
        assert!(left.iter().all(|lease| lease.id != last), "it is gone when it was closed");
        let error = client.keep_alive(last, PATIENCE).await.unwrap_err();
        assert!(matches!(error, ClientError::NoLease(_)), "{error}");
    });
}
