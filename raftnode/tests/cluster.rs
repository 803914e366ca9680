//! A cluster does what a cluster is for.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::{Cluster, client::put, eventually};
use quorumfs_api::command::{Command, LeaseChange, RequestId};
use quorumfs_api::wire::{Admin, Answer, Call, Consistency, Failure, Prefix};
use quorumfs_api::{Done, Key, Refusal};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_node_writes_and_reads() {
    let cluster = Cluster::one().await;
    let client = cluster.leader().await;
    let outcome = client.put("/a/b", b"1").await.unwrap();
    assert!(matches!(outcome.result, Ok(Done::Written { created: true, .. })), "{outcome:?}");
    assert_eq!(client.get("/a/b").await.unwrap().unwrap(), b"1".as_slice());
    let record = client.get_with("/a/b", Consistency::Serializable).await.unwrap().unwrap();
    assert_eq!((&*record.author, record.mod_revision), ("admin", outcome.revision));
    let range = Call::Range {
        prefix: Prefix::Tree(Key::root()),
        keys_only: true,
        after: None,
        limit: 10,
        consistency: Consistency::Linearizable,
    };
    match client.call(range).await.unwrap() {
        Answer::Range { items, more, .. } => {
            let keys: Vec<String> = items.iter().map(|(key, _)| key.to_string()).collect();
            assert_eq!((keys, more), (vec!["/a".to_owned(), "/a/b".to_owned()], false));
        }
        other => panic!("{other:?}"),
    }
    cluster.end().await;
}

async fn term(cluster: &Cluster) -> u64 {
    match cluster.leader().await.call(Call::Status).await {
        Ok(Answer::Status(status)) => status.term,
        other => panic!("{other:?}"),
    }
}

/// In its old term it might give the indexes of entries that it has acknowledged, and does not remember,
/// to others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_restarts_leads_only_after_an_election() {
    let mut cluster = Cluster::one().await;
    let before = term(&cluster).await;
    cluster.stop(1).await;
    cluster.start(1).await;
    let after = term(&cluster).await;
    assert!(after > before, "it leads in term {after}, and led in term {before} before it was stopped");
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_nodes_agree_and_the_others_name_the_leader() {
    let cluster = Cluster::of(3).await;
    let leader_id = cluster.leader_id().await;
    let leader = cluster.leader().await;
    leader.put("/x", b"1").await.unwrap();
    for id in 1..=3 {
        let client = cluster.client(id).await;
        eventually("the write is everywhere", || async { client.local("/x").await.map(drop) }).await;
        if id != leader_id {
            match client.get("/x").await {
                Err(Failure::NotLeader(Some(member))) => {
                    assert_eq!((member.id, member.addr), (leader_id, cluster.addr(leader_id).to_string()));
                }
                other => panic!("{other:?}"),
            }
            assert!(matches!(client.put("/x", b"2").await, Err(Failure::NotLeader(Some(_)))));
            assert!(matches!(client.call(Call::Barrier).await, Err(Failure::NotLeader(Some(_)))));
        }
        match client.call(Call::Status).await.unwrap() {
            Answer::Status(status) => {
                assert_eq!((status.id, status.leader), (id, Some(leader_id)));
                assert_eq!(status.members.iter().filter(|member| member.voter).count(), 3);
            }
            other => panic!("{other:?}"),
        }
    }
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retry_is_applied_once() {
    let cluster = Cluster::one().await;
    let client = cluster.leader().await;
    let session = client.grant(60_000).await;
    let id = RequestId { session, number: 1, done_below: 1 };
    let command = Command::Append {
        target: Key::parse("/log").unwrap().into(),
        data: b"line\n".as_slice().into(),
        create: quorumfs_api::CreateMode::Allow,
        parents: true,
        owner: quorumfs_api::Owner::FILE,
    };
    let first = client.write_in(Some(id), command.clone()).await.unwrap();
    let again = client.write_in(Some(id), command).await.unwrap();
    assert_eq!(first, again);
    assert_eq!(client.get("/log").await.unwrap().unwrap(), b"line\n".as_slice());
    cluster.end().await;
}

/// Whoever goes on with a session asks with a command that does nothing: he hears what came of a number,
/// or uses it up, so that what is still on its way is never done.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_number_can_be_settled_without_doing_anything() {
    let cluster = Cluster::one().await;
    let client = cluster.leader().await;
    let session = client.grant(60_000).await;
    let append = Command::Append {
        target: Key::parse("/log").unwrap().into(),
        data: b"line\n".as_slice().into(),
        create: quorumfs_api::CreateMode::Allow,
        parents: true,
        owner: quorumfs_api::Owner::FILE,
    };
    let nothing = Command::Txn { compare: Vec::new(), then: Vec::new(), otherwise: Vec::new() };
    let id = |number| Some(RequestId { session, number, done_below: 1 });
    let done = client.write_in(id(1), append.clone()).await.unwrap();
    assert_eq!(client.write_in(id(1), nothing.clone()).await.unwrap(), done, "it was done");
    let settled = client.write_in(id(2), nothing).await.unwrap();
    assert!(matches!(settled.result, Ok(Done::Txn { .. })), "it was not: {settled:?}");
    assert_eq!(client.write_in(id(2), append).await.unwrap(), settled, "and it never will be");
    assert_eq!(client.get("/log").await.unwrap().unwrap(), b"line\n".as_slice());
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_that_is_not_renewed_takes_its_keys_along() {
    let cluster = Cluster::one().await;
    let client = cluster.leader().await;
    let short = client.grant(600).await;
    let kept = client.grant(600).await;
    client.write_in(None, put("/short", b"1", LeaseChange::Bind(short))).await.unwrap().result.unwrap();
    client.write_in(None, put("/kept", b"1", LeaseChange::Bind(kept))).await.unwrap().result.unwrap();
    eventually("the key is gone", || async {
        assert!(matches!(client.call(Call::KeepAlive(kept)).await, Ok(Answer::KeptAlive(600))));
        client.get("/short").await.unwrap().is_none().then_some(())
    })
    .await;
    assert!(client.get("/kept").await.unwrap().is_some());
    assert_eq!(client.call(Call::KeepAlive(short)).await, Err(Failure::NoLease(short)));
    match client.call(Call::Leases(Some(kept))).await.unwrap() {
        Answer::Leases(leases) => {
            assert_eq!(leases[0].keys, [Key::parse("/kept").unwrap()]);
            assert!(leases[0].remaining_ms.is_some_and(|left| left <= 600));
        }
        other => panic!("{other:?}"),
    }
    let refused = client.write_in(None, put("/x", b"", LeaseChange::Bind(short))).await.unwrap();
    assert_eq!(refused.result, Err(Refusal::NoLease(short)));
    // Nobody but the leader itself says that a time is up.
    let forged = client.write_in(None, Command::LeaseExpire { leases: vec![kept] }).await;
    assert!(matches!(forged, Err(Failure::BadRequest(_))));
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_the_leader_stops_another_leads_and_nothing_is_lost() {
    let mut cluster = Cluster::of(3).await;
    let old = cluster.leader_id().await;
    let client = cluster.leader().await;
    let session = client.grant(60_000).await;
    for n in 1..=20 {
        let id = RequestId { session, number: n, done_below: n };
        client
            .write_in(Some(id), put(&format!("/k{n}"), b"v", LeaseChange::Keep))
            .await
            .unwrap()
            .result
            .unwrap();
    }
    cluster.stop(old).await;
    let new = cluster.leader_id().await;
    assert_ne!(new, old);
    let client = cluster.leader().await;
    for n in 1..=20 {
        assert!(client.get(&format!("/k{n}")).await.unwrap().is_some(), "/k{n}");
    }
    // The last request again: the new leader knows its result.
    let id = RequestId { session, number: 20, done_below: 20 };
    let before = client.get_with("/k20", Consistency::Linearizable).await.unwrap().unwrap();
    client.write_in(Some(id), put("/k20", b"v", LeaseChange::Keep)).await.unwrap().result.unwrap();
    let after = client.get_with("/k20", Consistency::Linearizable).await.unwrap().unwrap();
    assert_eq!(before, after);
    cluster.start(old).await;
    cluster.leader_id().await;
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_quorum_requests_fail_in_time() {
    let mut cluster = Cluster::of(3).await;
    let leader = cluster.leader_id().await;
    let client = cluster.leader().await;
    client.put("/x", b"1").await.unwrap();
    for id in (1..=3).filter(|id| *id != leader) {
        // Not by `stop`, which would hand the leadership on first; it leads on, alone.
        cluster.stop(id).await;
    }
    let began = tokio::time::Instant::now();
    let call = Call::Get { key: Key::parse("/x").unwrap(), consistency: Consistency::Linearizable };
    let answer = client.call_for(call, 1_000).await;
    assert!(matches!(answer, Err(Failure::NoQuorum | Failure::NotLeader(None))), "{answer:?}");
    let answer = client
        .call_for(Call::Write { session: None, command: put("/x", b"2", LeaseChange::Keep) }, 1_000)
        .await;
    assert!(matches!(answer, Err(Failure::NoQuorum | Failure::NotLeader(None))), "{answer:?}");
    assert!(began.elapsed() < std::time::Duration::from_secs(8));
    assert_eq!(client.local("/x").await.unwrap(), b"1".as_slice(), "reads of what is here go on");
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_was_away_catches_up_by_log_and_by_snapshot() {
    let mut cluster = Cluster::of_with(3, |config| {
        config.snapshot_every = 1_000_000;
        config.log_keep = 10;
    })
    .await;
    let away = (1..=3).find(|id| *id != 1).unwrap();
    // By log.
    cluster.stop(away).await;
    cluster.leader().await.put("/by-log", b"1").await.unwrap();
    cluster.start(away).await;
    let client = cluster.client(away).await;
    eventually("caught up by log", || async { client.local("/by-log").await }).await;
    // By snapshot: what it lacks is no longer in anybody's log.
    cluster.stop(away).await;
    let leader = cluster.leader().await;
    for n in 0..600 {
        leader.put(&format!("/n{}", n % 10), &[7; 2000]).await.unwrap();
    }
    leader.put("/by-snapshot", b"1").await.unwrap();
    cluster.admin(Admin::Snapshot).await;
    let purged = cluster.node(cluster.leader_id().await).raft().wait(Some(common::PATIENCE));
    purged.metrics(|metrics| metrics.purged.is_some_and(|at| at.index > 300), "purged").await.unwrap();
    cluster.start(away).await;
    let client = cluster.client(away).await;
    eventually("caught up by snapshot", || async { client.local("/by-snapshot").await }).await;
    // The status is openraft's metrics, which follow the state.
    eventually("the status tells of the snapshot", || async {
        match client.call(Call::Status).await {
            Ok(Answer::Status(status)) => (status.snapshot_index > 300).then_some(()),
            other => panic!("{other:?}"),
        }
    })
    .await;
    cluster.end().await;
}

/// While it takes a snapshot, others are made, and the log behind them goes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_joins_while_clients_write_more_than_the_log_keeps() {
    let few = |config: &mut raftnode::Config| {
        config.snapshot_every = 100;
        config.log_keep = 10;
    };
    let mut cluster = Cluster::one_with(few).await;
    let leader = cluster.leader().await;
    for n in 0..64 {
        leader.put(&format!("/large/{n}"), &vec![n; 1 << 20]).await.unwrap();
    }
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let mut writers = Vec::new();
    for writer in 0..64 {
        let (client, stop) = (cluster.leader().await, stop.clone());
        writers.push(tokio::spawn(async move {
            let mut puts = 0_u64;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                client.put(&format!("/small/{writer}"), &puts.to_le_bytes()).await.unwrap();
                puts += 1;
            }
            puts
        }));
    }
    cluster.join(2, few).await;
    cluster.admin(Admin::Promote(2)).await;
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    let mut puts = 0;
    for writer in writers {
        puts += writer.await.unwrap();
    }
    let purged = cluster.node(1).raft().wait(Some(common::PATIENCE));
    purged.metrics(|metrics| metrics.purged.is_some(), "purged").await.unwrap();
    println!("{puts} puts while it joined");
    let client = cluster.client(2).await;
    eventually("the new node has it", || async { client.local("/large/63").await }).await;
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_are_added_promoted_removed_and_lead_in_turn() {
    let mut cluster = Cluster::of(2).await;
    cluster.join(3, |_| {}).await;
    let refused = |member| async {
        let leader = cluster.leader().await;
        leader.call(Call::Admin(Admin::AddLearner(member))).await.unwrap_err()
    };
    let mut member = cluster.member(3);
    member.id = 9;
    assert!(refused(member.clone()).await.to_string().contains("name"));
    member.name = "n9".into();
    assert!(refused(member.clone()).await.to_string().contains("address"));
    member.addr = "127.0.0.1:1".into();
    member.id = 3;
    assert!(refused(member).await.to_string().contains("id 3"));
    cluster.admin(Admin::AddLearner(cluster.member(3))).await;

    cluster.admin(Admin::Promote(3)).await;
    cluster.admin(Admin::Transfer(Some(3))).await;
    assert_eq!(cluster.leader_id().await, 3);
    // The leader itself is removed.
    cluster.admin(Admin::Remove(3)).await;
    cluster.stop(3).await;
    assert_ne!(cluster.leader_id().await, 3);
    let leader = cluster.leader().await;
    leader.put("/x", b"1").await.unwrap();
    match leader.call(Call::Status).await.unwrap() {
        Answer::Status(status) => assert!(status.members.iter().all(|member| member.id != 3), "{status:?}"),
        other => panic!("{other:?}"),
    }
    cluster.end().await;
}
