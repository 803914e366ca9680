//! The cluster as a whole, with real processes: any node takes a write; nodes die, stop, come back
//! behind, come and go as members, and no acknowledged write is ever lost.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::{Duration, Instant};

use quorumfs_tests::load::{self, Load};
use quorumfs_tests::process::{describe, run};
use quorumfs_tests::{Cluster, Kv, Network, eventually, guard, until};

/// Until a cluster that lost its leader takes writes again: an election, and clients that notice.
const FAILOVER: Duration = Duration::from_secs(8);
/// Until a node that was away has caught up.
const CATCH_UP: Duration = Duration::from_secs(30);

/// Clients that know only one node each, and clients that know all.
fn clients(cluster: &Cluster) -> Vec<Kv> {
    vec![cluster.kv(), cluster.kv(), cluster.kv()]
}

#[test]
fn any_node_takes_a_write_and_every_node_reads_it() {
    let _guard = guard(120);
    let cluster = Cluster::start(3);
    for id in cluster.ids() {
        let key = format!("/through/{id}");
        cluster.kv_through(id).put(&key, &format!("by {id}"));
        for reader in cluster.ids() {
            let value = cluster.kv_through(reader).get(&key);
            assert_eq!(
                value.as_deref(),
                Some(format!("by {id}").as_str()),
                "written through n{id}, read through n{reader}"
            );
        }
    }
}

#[test]
fn killing_the_leader_under_load_loses_no_acknowledged_write() {
    let _guard = guard(180);
    let mut cluster = Cluster::start(3);
    let load = Load::start(clients(&cluster));
    for _ in 0..2 {
        load.advance(20, CATCH_UP);
        let leader = cluster.leader();
        cluster.node_mut(leader).kill();
        let pause = load.advance(20, CATCH_UP);
        eprintln!("n{leader} was killed; writes stood still for {pause:?}");
        assert!(pause < FAILOVER, "writes stood still for {pause:?}");
        assert_ne!(cluster.leader(), leader);
        cluster.node_mut(leader).start();
    }
    let (acknowledged, failures) = load.stop();
    load::check(&cluster.kv(), &acknowledged);
    eprintln!(
        "{} keys checked, {} writes failed: {:?}",
        acknowledged.len(),
        failures.len(),
        failures.first()
    );
}

#[test]
fn killing_all_nodes_under_load_loses_no_acknowledged_write() {
    let _guard = guard(180);
    let mut cluster = Cluster::start(3);
    // Clients that give up early: the cluster is away for a while.
    let load = Load::start(clients(&cluster).into_iter().map(|kv| kv.timeout("2s")).collect());
    for _ in 0..2 {
        load.advance(20, CATCH_UP);
        cluster.kill_all();
        cluster.start_all();
        load.advance(5, CATCH_UP);
    }
    let (acknowledged, _) = load.stop();
    load::check(&cluster.kv(), &acknowledged);
}

/// A stopped leader is replaced; when it goes on, it follows, and gives no old value to anybody.
#[test]
fn a_stopped_leader_is_replaced_and_never_answers_with_old_values() {
    let _guard = guard(120);
    let cluster = Cluster::start(3);
    cluster.kv().put("/k", "old");
    let leader = cluster.leader();
    cluster.node(leader).pause();
    eventually("a write with another leader", CATCH_UP, || cluster.kv().try_run(&["put", "/k", "new"]));
    cluster.node(leader).resume();
    let through = cluster.kv_through(leader);
    for _ in 0..10 {
        match through.try_get("/k") {
            Ok(value) => assert_eq!(value.as_deref(), Some("new"), "a stale read through the old leader"),
            Err(reason) => eprintln!("the old leader cannot answer yet: {reason}"),
        }
    }
    eventually("the old leader answers", CATCH_UP, || through.try_get("/k"));
}

/// A leader whose cable is pulled is replaced, and what it did not get acknowledged does not come back.
#[test]
fn a_leader_that_is_cut_off_under_load_is_replaced() {
    let _guard = guard(180);
    let Some(network) = Network::start() else { return };
    let hosts: Vec<_> = (0..3).map(|_| network.host()).collect();
    let cluster = Cluster::start_on(&hosts);
    let load = Load::start(clients(&cluster));
    load.advance(10, CATCH_UP);
    let leader = cluster.leader();
    let cable = &hosts[cluster.ids().iter().position(|id| *id == leader).unwrap()];
    cable.cut();
    let pause = load.advance(10, CATCH_UP);
    eprintln!("n{leader} was cut off; writes stood still for {pause:?}");
    assert!(pause < FAILOVER, "writes stood still for {pause:?}");
    cable.heal();
    let through = cluster.kv_through(leader);
    eventually("the old leader follows", CATCH_UP, || through.try_run(&["put", "/healed", "x"]));
    load.advance(10, CATCH_UP);
    let (acknowledged, failures) = load.stop();
    eprintln!("{} writes failed: {:?}", failures.len(), failures.first());
    load::check(&cluster.kv(), &acknowledged);
    load::check(&through, &acknowledged);
}

/// A node that was away catches up from the log: afterwards it carries the cluster.
#[test]
fn a_node_that_was_away_catches_up_by_log() {
    let _guard = guard(120);
    let mut cluster = Cluster::start(3);
    catches_up(&mut cluster, 40, false);
}

/// The log it would need is purged: it gets a snapshot.
#[test]
fn a_node_that_was_away_for_long_catches_up_by_snapshot() {
    let _guard = guard(180);
    let mut cluster = Cluster::start_with(3, &["--snapshot-every", "50", "--log-keep", "10"]);
    // The log is purged 256 entries at a time, and each kvctl makes two or more.
    let away = catches_up(&mut cluster, 400, true);
    assert!(
        cluster.node(away).log().to_lowercase().contains("snapshot"),
        "the log of n{away} does not speak of a snapshot"
    );
    // The state that came as a snapshot is the node's own now: it survives a restart.
    cluster.node_mut(away).kill();
    cluster.node_mut(away).start();
    eventually("it answers", CATCH_UP, || match cluster.kv_through(away).try_get("/away/0") {
        Ok(Some(_)) => Ok(()),
        other => Err(format!("{other:?}")),
    });
}

/// Kills a follower, writes, restarts it (with `purged`, only once the log that it needs has gone), and kills another one:
/// the quorum then needs it.
#[track_caller]
fn catches_up(cluster: &mut Cluster, writes: usize, purged: bool) -> u64 {
    let leader = cluster.leader();
    let away = *cluster.ids().iter().find(|id| **id != leader).unwrap();
    cluster.node_mut(away).kill();
    let kv = cluster.kv();
    // Through the leader: who asks a dead node first waits for it.
    let through = cluster.kv_through(leader);
    std::thread::scope(|scope| {
        for writer in 0..4 {
            let through = &through;
            scope.spawn(move || {
                for n in (writer..writes).step_by(4) {
                    through.put(&format!("/away/{}", n % 40), &n.to_string());
                }
            });
        }
    });
    // For a moment the leader keeps what a member needs that has just answered.
    eventually("the log goes", CATCH_UP, || {
        match cluster.node(leader).log().contains("letting go of the log") {
            gone if gone || !purged => Ok(()),
            _ => Err("the leader still has it"),
        }
    });
    cluster.node_mut(away).start();
    let other = *cluster.ids().iter().find(|id| **id != leader && **id != away).unwrap();
    cluster.node_mut(other).kill();
    eventually("a quorum with the one that was away", CATCH_UP, || kv.try_run(&["put", "/back", "1"]));
    // Now it is one of two, and the other one is the old leader: without that one nothing is known but
    // what it has itself, and what the third has.
    cluster.node_mut(other).start();
    eventually("all are there", CATCH_UP, || kv.try_run(&["put", "/all", "1"]));
    cluster.node_mut(leader).kill();
    eventually("a quorum without the old leader", CATCH_UP, || kv.try_run(&["put", "/back", "2"]));
    for n in writes - 40..writes {
        let key = format!("/away/{}", n % 40);
        assert_eq!(
            cluster.kv_through(away).get(&key).as_deref(),
            Some(n.to_string().as_str()),
            "{key} through n{away}"
        );
    }
    cluster.node_mut(leader).start();
    away
}

#[test]
fn members_come_and_go_under_load() {
    let _guard = guard(240);
    let mut cluster = Cluster::start(3);
    let load = Load::start(clients(&cluster));
    load.advance(10, CATCH_UP);

    let fourth = cluster.add_learner(None);
    assert!(cluster.kv().member(fourth).is_some_and(|m| !m.voter), "a new node is a learner first");
    load.advance(10, CATCH_UP);
    cluster.promote(fourth);
    load.advance(10, CATCH_UP);

    let leader = cluster.leader();
    let follower = *cluster.ids().iter().find(|id| **id != leader && **id != fourth).unwrap();
    cluster.remove(follower);
    load.advance(10, CATCH_UP);
    assert!(cluster.kv().member(follower).is_none());

    // The leader itself can be removed as well; another one takes over.
    eprintln!("n{leader} leads and is removed");
    cluster.kv().run(&["member", "remove", &leader.to_string()]);
    let pause = load.advance(10, CATCH_UP);
    assert!(pause < FAILOVER, "writes stood still for {pause:?}");
    until("another leader", CATCH_UP, || cluster.leader() != leader);
    let members: Vec<u64> = cluster.kv().members().iter().map(|m| m.id).collect();
    assert!(!members.contains(&leader), "{members:?}");
    let (acknowledged, failures) = load.stop();
    eprintln!("{} writes failed: {:?}", failures.len(), failures.first());
    load::check(&cluster.kv(), &acknowledged);
}

#[test]
fn a_second_process_on_a_data_directory_is_refused() {
    let _guard = guard(60);
    let cluster = Cluster::start(1);
    let output = run(cluster.node(1).command(false), Duration::from_secs(20));
    assert!(!output.status.success());
    let text = String::from_utf8_lossy(&output.stderr).to_lowercase()
        + &String::from_utf8_lossy(&output.stdout).to_lowercase();
    assert!(
        ["another process", "in use", "locked", "already"].iter().any(|w| text.contains(w)),
        "it does not say why: {}",
        describe(&output)
    );
    let output = run(cluster.node(1).command(true), Duration::from_secs(20));
    assert!(!output.status.success(), "a second init is refused too");
    cluster.kv().put("/still", "works");
}

#[test]
fn a_restart_of_all_nodes_keeps_everything() {
    let _guard = guard(120);
    let mut cluster = Cluster::start(3);
    let kv = cluster.kv();
    kv.put("/a/b/c", "deep");
    kv.run(&["mkdir", "/dir"]);
    kv.run(&["mv", "/a/b", "/dir/moved"]);
    kv.put_bytes("/bytes", b"\x00\xff");
    let before = kv.run(&["--json", "get", "--prefix", "/"]);
    for node in cluster.nodes_mut() {
        let status = node.terminate();
        assert!(status.success(), "{} ended with {status}:\n{}", node.name, node.log());
    }
    cluster.start_all();
    let after =
        eventually("the cluster answers", CATCH_UP, || kv.try_run(&["--json", "get", "--prefix", "/"]));
    assert_eq!(before, after);
    assert_eq!(kv.get("/dir/moved/c").as_deref(), Some("deep"));
}

/// SIGTERM hands leadership over before it ends: nobody waits for an election time-out.
#[test]
fn a_clean_stop_of_the_leader_moves_leadership_fast() {
    let _guard = guard(120);
    let mut cluster = Cluster::start(3);
    let load = Load::start(clients(&cluster));
    load.advance(10, CATCH_UP);
    let leader = cluster.leader();
    let start = Instant::now();
    let status = cluster.node_mut(leader).terminate();
    assert!(status.success(), "{status}");
    let stopped = start.elapsed();
    let pause = load.advance(5, CATCH_UP);
    eprintln!("n{leader} stopped within {stopped:?}; writes stood still for {pause:?}");
    assert!(stopped < Duration::from_secs(8) && pause < Duration::from_secs(4), "{stopped:?} {pause:?}");
    assert_ne!(cluster.leader(), leader);
    let (acknowledged, failures) = load.stop();
    load::check(&cluster.kv(), &acknowledged);
    assert!(failures.is_empty(), "a clean stop fails no write that is retried: {failures:?}");
}

/// The knobs hold: a value that is too large, and a store that is full, in which deletes work.
#[test]
fn limits_are_kept_and_a_full_store_can_be_emptied() {
    let _guard = guard(120);
    let cluster = Cluster::start_with(1, &["--value-max", "10KiB", "--store-max", "100KiB"]);
    let kv = cluster.kv();
    let value = "x".repeat(10 << 10);
    let refused = kv.try_run(&["put", "/large", &format!("{value}x")]).unwrap_err();
    assert!(refused.contains("10240"), "{refused}");
    let stored = (0..20).take_while(|n| kv.try_run(&["put", &format!("/f{n}"), &value]).is_ok()).count();
    assert!((5..=9).contains(&stored), "{stored} values of 10 KiB in a store of 100 KiB");
    let refused = kv.try_run(&["put", "/more", &value]).unwrap_err();
    assert!(refused.contains("full"), "{refused}");
    kv.run(&["del", "/f0"]);
    kv.put("/more", &value);
}

/// Leases: their keys end with them.
#[test]
fn keys_end_with_their_lease() {
    let _guard = guard(60);
    let cluster = Cluster::start(1);
    let kv = cluster.kv();
    let document = kv.json(&["lease", "grant", "1s"]);
    let id = document[0]["lease"].as_str().expect("an id").to_string();
    kv.run(&["put", "--lease", &id, "/ephemeral", "x"]);
    until("the key is gone", Duration::from_secs(20), || kv.get("/ephemeral").is_none());
}
