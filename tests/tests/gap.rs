//! Promise 10 of SEMANTICS.md: nothing is lost across a gap. A host whose cable is pulled shows its
//! last state, and afterwards converges and fires the net events, whether the cluster still has the
//! history of the gap or not.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::time::{Duration, Instant};

use quorumfs_tests::cluster::Cluster;
use quorumfs_tests::host::MountConfig;
use quorumfs_tests::inotify::{self, Event, Inotify};
use quorumfs_tests::network::NetHost;
use quorumfs_tests::shell::Shell;
use quorumfs_tests::{Host, Network, eventually, guard, tree, until};
use rustix::fs::inotify::ReadFlags;

/// Until a healed host has noticed, connected and caught up.
const HEALING: Duration = Duration::from_secs(60);

/// Three nodes and two hosts, each with a network of its own.
struct Bench {
    a: Host,
    b: Host,
    cable: NetHost,
    cluster: Cluster,
    nodes: Vec<NetHost>,
    _network: Network,
}

fn bench() -> Option<Bench> {
    let network = Network::start()?;
    let nodes: Vec<NetHost> = (0..3).map(|_| network.host()).collect();
    let cluster = Cluster::start_on(&nodes);
    let mount = |name: &str, host: &NetHost| {
        let options = vec!["timeout=3s".into()];
        Host::mount_with(
            &cluster,
            name,
            MountConfig { network: Some(host.clone()), options, ..Default::default() },
        )
    };
    let (host_a, cable) = (network.host(), network.host());
    let (a, b) = (mount("host-a", &host_a), mount("host-b", &cable));
    Some(Bench { a, b, cable, cluster, nodes, _network: network })
}

impl Bench {
    /// What both hosts show before the gap.
    fn prepare(&self) {
        for name in ["modified", "deleted", "renamed", "quiet"] {
            fs::write(self.a.join(name), "before").unwrap();
        }
        fs::create_dir(self.a.join("dir")).unwrap();
        fs::create_dir(self.a.join("emptied")).unwrap();
        fs::write(self.a.join("emptied/f"), "x").unwrap();
        eventually("B shows it", HEALING, || fs::metadata(self.b.join("emptied/f")));
        File::open(self.b.path()).unwrap().sync_all().unwrap();
        // The last of it has been fired on B when this has.
        let mut watcher = Inotify::on(self.b.path());
        fs::create_dir(self.a.join("ready")).unwrap();
        watcher.until_created("ready", HEALING);
    }

    /// What happens on A while B is away.
    fn change(&self) {
        fs::write(self.a.join("modified"), "between").unwrap();
        fs::write(self.a.join("modified"), "after").unwrap();
        fs::write(self.a.join("created"), "new").unwrap();
        fs::remove_file(self.a.join("deleted")).unwrap();
        fs::rename(self.a.join("renamed"), self.a.join("target")).unwrap();
        fs::write(self.a.join("passing"), "x").unwrap();
        fs::remove_file(self.a.join("passing")).unwrap();
        fs::write(self.a.join("dir/inside"), "deep").unwrap();
        fs::remove_file(self.a.join("emptied/f")).unwrap();
        fs::remove_dir(self.a.join("emptied")).unwrap();
    }

    /// Watches of B, taken before the gap.
    fn watch(&self) -> Inotify {
        let mut watcher = Inotify::on(self.b.path());
        watcher.watch(&self.b.join("dir"), "dir").unwrap();
        watcher.watch(&self.b.join("modified"), "file").unwrap();
        watcher
    }

    #[track_caller]
    fn converges(&self) {
        eventually("B shows what A shows", HEALING, || {
            let seen = tree::try_read(self.b.path()).map_err(|e| e.to_string())?;
            let difference = tree::difference(("A", &tree::read(self.a.path())), ("B", &seen));
            if difference.is_empty() { Ok(()) } else { Err(difference) }
        });
    }
}

/// The events of each name, without those that only readers and the kernel's housekeeping make.
fn by_name(events: &[Event]) -> BTreeMap<String, String> {
    let noise = ReadFlags::ACCESS | ReadFlags::CLOSE_NOWRITE | ReadFlags::IGNORED | ReadFlags::ATTRIB;
    let mut names: BTreeMap<String, Vec<Event>> = BTreeMap::new();
    for event in events.iter().filter(|e| !e.mask.intersects(noise)) {
        let name = event.name.as_ref().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let mut event = event.clone();
        (event.name, event.cookie) = (None, 0);
        names.entry(name).or_default().push(event);
    }
    names.into_iter().map(|(name, events)| (name, inotify::text(&events))).collect()
}

#[track_caller]
fn check_net_events(watcher: &mut Inotify) {
    let events = watcher.until_created("end", HEALING);
    let told = inotify::text(&events);
    let names = by_name(&events);
    let of = |name: &str| names.get(name).map(String::as_str).unwrap_or("nothing").to_string();
    let update = "OPEN; MODIFY; CLOSE_WRITE";
    let twice = format!("{update}; {update}");
    assert!([update, &twice].contains(&of("modified").as_str()), "{told}");
    assert!(of("").contains("[file] MODIFY"), "the file's own watch: {told}");
    assert_eq!(of("created"), "CREATE; OPEN; MODIFY; CLOSE_WRITE", "{told}");
    assert_eq!(of("deleted"), "DELETE", "{told}");
    // The history may be gone, and with it the knowledge that it was a rename.
    match of("renamed").as_str() {
        "MOVED_FROM" => assert_eq!(of("target"), "MOVED_TO", "{told}"),
        "DELETE" => assert!(of("target").starts_with("CREATE"), "{told}"),
        other => panic!("renamed has {other}: {told}"),
    }
    let passing = of("passing");
    let both = passing.starts_with("CREATE") && passing.ends_with("DELETE");
    assert!(passing == "nothing" || both, "created and deleted in the gap: both events, or neither: {told}");
    assert_eq!(of("inside"), "[dir] CREATE; [dir] OPEN; [dir] MODIFY; [dir] CLOSE_WRITE", "{told}");
    assert_eq!(of("emptied"), "DELETE,ISDIR", "{told}");
    assert_eq!(of("quiet"), "nothing", "what did not change has no event: {told}");
}

#[test]
fn p10_a_watch_taken_before_a_partition_sees_the_net_events_after_it() {
    let _guard = guard(240);
    let Some(bench) = bench() else { return };
    bench.prepare();
    let mut watcher = bench.watch();
    bench.cable.cut();
    bench.change();
    assert_eq!(
        fs::read_to_string(bench.b.join("modified")).unwrap(),
        "before",
        "B is cut off, and reads go on"
    );
    watcher.clear();
    // Its writes fail in time, and say so.
    let start = Instant::now();
    let refused = fs::create_dir(bench.b.join("refused")).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::ETIMEDOUT), "{refused}");
    assert!(start.elapsed() < Duration::from_secs(8), "{:?}", start.elapsed());
    bench.cable.heal();
    fs::create_dir(bench.a.join("end")).unwrap();
    check_net_events(&mut watcher);
    bench.converges();
    eventually("B writes again", HEALING, || fs::write(bench.b.join("again"), "x"));
    assert!(Shell::Bash.output(bench.a.path(), "sync . && cat again").status.success());
}

/// The gap is longer than the cluster's history: B gets a copy and finds the difference itself.
#[test]
fn p10_a_gap_longer_than_the_history_loses_no_net_event() {
    let _guard = guard(300);
    let Some(bench) = bench() else { return };
    bench.prepare();
    fs::create_dir(bench.a.join("filler")).unwrap();
    until("B shows it", HEALING, || bench.b.join("filler").exists());
    let mut watcher = bench.watch();
    bench.cable.cut();
    bench.change();
    // More bytes than the event log keeps (EVENT_LOG_BYTES, 64 MiB), in values of the largest size.
    for n in 0..70u32 {
        fs::write(bench.a.join("filler/f"), vec![b'a' + (n % 26) as u8; 1 << 20]).unwrap();
    }
    watcher.clear();
    bench.cable.heal();
    eventually("B has caught up", HEALING, || fs::metadata(bench.b.join("created")));
    fs::create_dir(bench.a.join("end")).unwrap();
    check_net_events(&mut watcher);
    bench.converges();
}

/// Loss of packets makes things slow, and nothing else.
#[test]
fn p10_a_bad_cable_loses_nothing() {
    let _guard = guard(240);
    let Some(bench) = bench() else { return };
    bench.prepare();
    bench.cable.lose(15);
    for n in 0..60 {
        fs::write(bench.a.join(format!("f{}", n % 7)), format!("value {n}")).unwrap();
    }
    for n in 0..10 {
        eventually("B writes through a bad cable", HEALING, || fs::write(bench.b.join(format!("b{n}")), "x"));
    }
    bench.converges();
    bench.cable.heal();
}

/// A leader that is cut off is replaced; when it is back, it follows, and no acknowledged write is lost.
#[test]
fn a_partitioned_leader_is_replaced() {
    let _guard = guard(240);
    let Some(bench) = bench() else { return };
    bench.prepare();
    let leader = bench.cluster.leader();
    let position = bench.cluster.ids().iter().position(|id| *id == leader).unwrap();
    bench.nodes[position].cut();
    let start = Instant::now();
    eventually("writes go on with another leader", HEALING, || {
        fs::write(bench.a.join("modified"), "by the new one")
    });
    eprintln!("writes went on {:?} after the leader was cut off", start.elapsed());
    eventually("B shows it", HEALING, || match fs::read_to_string(bench.b.join("modified")) {
        Ok(text) if text == "by the new one" => Ok(()),
        other => Err(format!("{other:?}")),
    });
    bench.nodes[position].heal();
    let back = bench.cluster.kv_through(leader);
    eventually("the old leader follows", HEALING, || match back.try_get("/modified") {
        Ok(Some(text)) if text == "by the new one" => Ok(()),
        other => Err(format!("{other:?}")),
    });
    bench.converges();
}
