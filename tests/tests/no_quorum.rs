//! Promise 8 of SEMANTICS.md: without a quorum reads go on, writes fail in time with an errno that
//! says why, and nothing half-done is left. And what follows from it: life after a daemon or a node
//! has died.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use quorumfs_tests::binaries::binary;
use quorumfs_tests::host::MountConfig;
use quorumfs_tests::inotify::Inotify;
use quorumfs_tests::process::{describe, quiet, run};
use quorumfs_tests::shell::Shell;
use quorumfs_tests::{Cluster, Host, Pair, eventually, guard, tree, until};
use rustix::fs::inotify::ReadFlags;

/// What a failing call may take: the time-out of 2 s that the mounts of this file have, twice for calls
/// that are two requests, and a busy machine.
const PATIENCE: Duration = Duration::from_secs(6);
/// Until a cluster that has its quorum back takes writes.
const RECOVERY: Duration = Duration::from_secs(20);

fn mount(cluster: &Cluster, name: &str) -> Host {
    Host::mount_with(
        cluster,
        name,
        MountConfig { options: vec!["timeout=2s".into()], ..MountConfig::default() },
    )
}

/// Runs `action`, which has to fail with one of `errnos` within the time-out.
#[track_caller]
fn fails_in_time<T>(what: &str, errnos: &[i32], action: impl FnOnce() -> io::Result<T>) {
    let start = Instant::now();
    let error = action().err().unwrap_or_else(|| panic!("{what} succeeded without a quorum"));
    let took = start.elapsed();
    assert!(took < PATIENCE, "{what} took {took:?}");
    assert!(errnos.contains(&error.raw_os_error().unwrap_or(0)), "{what} failed with {error}");
}

#[test]
fn p8_reads_go_on_and_writes_fail_in_time() {
    let _guard = guard(240);
    let mut cluster = Cluster::start(3);
    let (a, b) = (mount(&cluster, "host-a"), mount(&cluster, "host-b"));
    fs::create_dir(a.join("d")).unwrap();
    fs::write(a.join("d/f"), "before").unwrap();
    fs::write(a.join("victim"), "still here").unwrap();
    until("B has it", RECOVERY, || b.join("victim").exists());
    let before = tree::read(b.path());
    let leader = cluster.leader();

    let quiet = quiet();
    let mut open = OpenOptions::new().write(true).truncate(true).open(a.join("d/f")).unwrap();
    open.write_all(b"never acknowledged").unwrap();
    let killed: Vec<u64> = cluster.ids().into_iter().filter(|id| *id != leader).collect();
    for id in &killed {
        cluster.node_mut(*id).kill();
    }

    // What was open before is refused at its close or fsync, in time.
    fails_in_time("fsync", &[libc::ETIMEDOUT], || open.sync_all());
    std::mem::drop(quiet);
    let timed_out = &[libc::ETIMEDOUT];
    fails_in_time("mkdir", timed_out, || fs::create_dir(a.join("new")));
    fails_in_time("unlink", timed_out, || fs::remove_file(a.join("victim")));
    fails_in_time("rename", timed_out, || fs::rename(a.join("victim"), a.join("moved")));
    fails_in_time("symlink", timed_out, || std::os::unix::fs::symlink("x", a.join("link")));
    fails_in_time("O_EXCL", timed_out, || {
        OpenOptions::new().write(true).create_new(true).open(a.join("new"))
    });
    // A close whose error nobody looks at is not enough: after a while without a leader, open refuses.
    eventually("open for writing is refused", Duration::from_secs(20), || {
        let start = Instant::now();
        let result = OpenOptions::new().write(true).open(a.join("victim"));
        assert!(start.elapsed() < PATIENCE, "open took {:?}", start.elapsed());
        match result {
            Err(e) if e.raw_os_error() == Some(libc::ETIMEDOUT) => Ok(()),
            Err(e) => Err(format!("it fails with {e}")),
            Ok(_) => Err("it is granted".to_string()),
        }
    });
    let output = Shell::Bash.output(a.path(), "echo x > victim");
    assert!(!output.status.success(), "a shell's echo has to report it");
    fails_in_time("fsync of a directory, which is a barrier", timed_out, || File::open(b.path())?.sync_all());

    // Reads go on, on both hosts, and show the last state that was there.
    for host in [&a, &b] {
        let start = Instant::now();
        let now = tree::read(host.path());
        let difference = tree::difference(("before", &before), (host.name(), &now));
        assert!(difference.is_empty(), "{difference}");
        assert!(start.elapsed() < Duration::from_secs(2), "reads took {:?}", start.elapsed());
    }
    drop(open);

    cluster.start_all();
    eventually("writes go on", RECOVERY, || fs::write(a.join("after"), "x"));
    // Each refused change was either made whole or not at all, and both hosts agree on which.
    eventually("both hosts show the same", RECOVERY, || {
        for host in [&a, &b] {
            File::open(host.path()).and_then(|d| d.sync_all()).map_err(|e| e.to_string())?;
        }
        let difference = tree::difference(("A", &tree::read(a.path())), ("B", &tree::read(b.path())));
        if difference.is_empty() { Ok(()) } else { Err(difference) }
    });
    let text = fs::read_to_string(b.join("d/f")).unwrap();
    assert!(text == "before" || text == "never acknowledged", "half a value: {text:?}");
    if b.join("new").exists() {
        assert!(!b.join("new").is_dir() || fs::read_dir(b.join("new")).unwrap().count() == 0);
    }
    assert!(b.join("victim").exists() ^ b.join("moved").exists() || !b.join("victim").exists());
}

/// `-o sync` commits in each write, so that even a shell's echo reports the failure.
#[test]
fn p8_mounted_sync_each_write_reports_its_failure() {
    let _guard = guard(120);
    let mut cluster = Cluster::start(3);
    let config = MountConfig { options: vec!["sync,timeout=2s".into()], ..MountConfig::default() };
    let a = Host::mount_with(&cluster, "host-a", config);
    let kv = cluster.kv();
    let mut file = File::create(a.join("f")).unwrap();
    file.write_all(b"one").unwrap();
    assert_eq!(kv.get("/f").as_deref(), Some("one"), "the write itself commits");
    for id in cluster.ids() {
        cluster.node_mut(id).pause();
    }
    fails_in_time("write", &[libc::ETIMEDOUT], || file.write_all(b"two"));
    for id in cluster.ids() {
        cluster.node_mut(id).resume();
    }
}

/// Events and reads on B go on while each node in turn is dead or stopped.
#[test]
fn hosts_follow_the_cluster_when_nodes_die() {
    let _guard = guard(240);
    let mut pair = Pair::start();
    let mut watcher = Inotify::on(pair.b.path());
    for round in 0..3 {
        let id = pair.cluster().ids()[round];
        let how = if round == 1 { "stopped" } else { "killed" };
        match round {
            1 => pair.cluster().node(id).pause(),
            _ => pair.cluster().node_mut(id).kill(),
        }
        let name = format!("round{round}");
        let start = Instant::now();
        eventually(&format!("A writes while n{id} is {how}"), RECOVERY, || {
            fs::write(pair.a.join(&name), &name)
        });
        watcher.until("CLOSE_WRITE", RECOVERY, |e| e.is(ReadFlags::CLOSE_WRITE, &name));
        assert_eq!(fs::read_to_string(pair.b.join(&name)).unwrap(), name);
        eprintln!("n{id} {how}: written and seen after {:?}", start.elapsed());
        match round {
            1 => pair.cluster().node(id).resume(),
            _ => pair.cluster().start_all(),
        }
    }
}

/// kill -9 of fsd: programs get errors and no hang, other hosts live on, its locks end with its
/// session, and a new fsd on the same mount point takes the old mount off and shows everything.
#[test]
fn a_killed_fsd_leaves_nothing_hanging_and_can_be_started_again() {
    let _guard = guard(180);
    let cluster = Cluster::start(1);
    let (mut a, b) = (Host::mount(&cluster, "host-a"), Host::mount(&cluster, "host-b"));
    fs::write(a.join("f"), "kept").unwrap();
    fs::write(a.join("lock"), "").unwrap();
    until("B has it", RECOVERY, || b.join("lock").exists());
    let held = File::open(a.join("lock")).unwrap();
    rustix::fs::flock(&held, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let mut unpublished = File::create(a.join("unpublished")).unwrap();
    unpublished.write_all(b"lost").unwrap();

    a.kill();
    let error = fs::read_to_string(a.join("f")).unwrap_err();
    assert!(matches!(error.raw_os_error(), Some(libc::ENOTCONN | libc::ECONNABORTED)), "{error}");
    let mut status = Command::new(binary("fsd"));
    status.arg("status").arg(a.path());
    let output = run(status, RECOVERY);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.code() == Some(1) && said.contains("has died"), "{}", describe(&output));
    drop((held, unpublished));
    fs::write(b.join("g"), "the other host lives on").unwrap();
    let lock = File::open(b.join("lock")).unwrap();
    eventually("the dead host's lock ends with its session", Duration::from_secs(60), || {
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive)
    });

    a.start();
    assert_eq!(fs::read_to_string(a.join("f")).unwrap(), "kept");
    assert_eq!(fs::read_to_string(a.join("g")).unwrap(), "the other host lives on");
    assert!(!a.join("unpublished").exists(), "what was never published is gone with its daemon");
    fs::write(a.join("f"), "again").unwrap();
    File::open(b.path()).unwrap().sync_all().unwrap();
    assert_eq!(fs::read_to_string(b.join("f")).unwrap(), "again");
}

/// SIGTERM: fsd unmounts, ends with 0, and leaves an empty directory behind.
#[test]
fn sigterm_unmounts_and_ends_cleanly() {
    let _guard = guard(90);
    let cluster = Cluster::start(1);
    let mut a = Host::mount(&cluster, "host-a");
    fs::write(a.join("f"), "x").unwrap();
    let status = a.terminate();
    assert!(status.success(), "{status}: {}", a.log());
    assert!(!a.is_mounted());
    assert_eq!(fs::read_dir(a.path()).unwrap().count(), 0);
    a.start();
    assert_eq!(fs::read_to_string(a.join("f")).unwrap(), "x");
}

/// A mount of a subtree shows that subtree only, and follows it.
#[test]
fn a_subtree_can_be_mounted() {
    let _guard = guard(120);
    let cluster = Cluster::start(1);
    let kv = cluster.kv();
    kv.put("/services/web/port", "80");
    kv.put("/other", "not to be seen");
    let config = MountConfig { prefix: Some("/services".into()), ..MountConfig::default() };
    let (all, part) = (Host::mount(&cluster, "host-a"), Host::mount_with(&cluster, "host-b", config));
    let mut watcher = Inotify::on(&part.join("web"));
    assert_eq!(names(part.path()), ["web"]);
    assert_eq!(fs::read_to_string(part.join("web/port")).unwrap(), "80");
    fs::write(all.join("services/web/port"), "8080").unwrap();
    watcher.until("CLOSE_WRITE port", RECOVERY, |e| e.is(ReadFlags::CLOSE_WRITE, "port"));
    assert_eq!(fs::read_to_string(part.join("web/port")).unwrap(), "8080");
    fs::write(part.join("web/name"), "www").unwrap();
    assert_eq!(kv.get("/services/web/name").as_deref(), Some("www"));
    // Out of the subtree and into it: on the subtree's mount it goes and comes.
    fs::rename(all.join("services/web/name"), all.join("name")).unwrap();
    watcher.until("name goes", RECOVERY, |e| {
        e.is(ReadFlags::DELETE, "name") || e.is(ReadFlags::MOVED_FROM, "name")
    });
    assert!(!part.join("web/name").exists());
    fs::rename(all.join("name"), all.join("services/web/name")).unwrap();
    watcher.until("name comes", RECOVERY, |e| {
        e.is(ReadFlags::CREATE, "name") || e.is(ReadFlags::MOVED_TO, "name")
    });
    assert_eq!(fs::read_to_string(part.join("web/name")).unwrap(), "www");
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}
