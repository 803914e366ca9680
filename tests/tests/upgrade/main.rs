//! The mount outlives the daemon: a worker that is killed, or replaced by a newer program, is missed by nobody.
//! No read fails, no watch and no event is lost, locks stay held, and what was being written is written whole.
//!
//! `QUORUMFS_TEST_SECONDS` makes the test under load so long.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod load;
mod styles;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use quorumfs_tests::binaries::binary;
use quorumfs_tests::cleanup::Scratch;
use quorumfs_tests::deadline::Done;
use quorumfs_tests::host::MountConfig;
use quorumfs_tests::process::{self, run};
use quorumfs_tests::{Cluster, Host, Inotify, Pair, eventually, guard, tree, until};
use rustix::fs::inotify::ReadFlags;
use rustix::fs::{FlockOperation, flock};

/// How long anything may take on a busy machine.
const LIMIT: Duration = Duration::from_secs(30);
/// Waits until another worker than `before` serves.
#[track_caller]
fn another_worker(host: &Host, before: &[u32]) {
    until("another worker serves", LIMIT, || {
        let now = host.workers();
        now.len() == 1 && !before.contains(&now[0]) && fs::read_dir(host.path()).is_ok()
    });
}

/// Kills the worker and waits for the next.
#[track_caller]
fn kill_and_wait(host: &Host) {
    let before = host.workers();
    assert!(host.kill_worker(), "there is a worker");
    another_worker(host, &before);
}

#[track_caller]
fn upgrade(host: &Host) -> std::process::Output {
    let mut command = Command::new(binary("fsd"));
    command.arg("upgrade").arg(host.path());
    run(command, Duration::from_secs(100))
}

/// Without a quorum a new worker still has the tree from any node, and shows it.
#[test]
fn killed_without_a_quorum() {
    let _guard = guard(180);
    let mut cluster = Cluster::start(3);
    let config = MountConfig { options: vec!["supervise,timeout=2s".into()], ..MountConfig::default() };
    let (a, b) = (
        Host::mount_with(&cluster, "host-a", MountConfig::supervised()),
        Host::mount_with(&cluster, "host-b", config),
    );
    fs::write(a.join("f"), "before").unwrap();
    fs::write(a.join("lock"), "-").unwrap();
    until("B has it", LIMIT, || b.join("lock").exists());
    let lock = File::open(b.join("lock")).unwrap();
    flock(&lock, FlockOperation::LockExclusive).unwrap();
    let mut open = File::open(b.join("f")).unwrap();
    let mut watcher = Inotify::on(b.path());
    let leader = cluster.leader();
    for id in cluster.ids().into_iter().filter(|id| *id != leader) {
        cluster.node_mut(id).kill();
    }
    kill_and_wait(&b);
    assert_eq!(fs::read_to_string(b.join("f")).unwrap(), "before");
    let mut text = String::new();
    open.read_to_string(&mut text).unwrap();
    assert_eq!(text, "before");
    let error = fs::create_dir(b.join("d")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ETIMEDOUT), "{error}");
    cluster.start_all();
    eventually("writes go on", LIMIT, || fs::write(b.join("f"), "after"));
    let other = File::open(a.join("lock")).unwrap();
    let refused = flock(&other, FlockOperation::NonBlockingLockExclusive);
    assert_eq!(refused, Err(rustix::io::Errno::WOULDBLOCK), "the lock is still held");
    fs::write(a.join("g"), "x").unwrap();
    watcher.until_created("g", LIMIT);
    open.rewind().unwrap();
    text.clear();
    eventually("the open file shows it", LIMIT, || {
        text.clear();
        open.rewind()?;
        open.read_to_string(&mut text)?;
        if text == "after" { Ok(()) } else { Err(io::Error::other(text.clone())) }
    });
}

/// Killed with much to replay: directories made, renamed and taken away. The kernel believes no old thing
/// afterwards, and no directory is dead that lives.
#[test]
fn killed_while_changes_are_being_replayed() {
    let _guard = guard(180);
    let pair = Pair::supervised();
    let (a, b) = (&pair.a, &pair.b);
    fs::create_dir(a.join("top")).unwrap();
    for number in 0..30 {
        fs::create_dir(a.join(format!("top/d{number}"))).unwrap();
        fs::write(a.join(format!("top/d{number}/f")), "old").unwrap();
    }
    until("B has it", LIMIT, || b.join("top/d29/f").exists());
    // Known to B's kernel, every one of them.
    tree::read(b.path());
    let mut watcher = Inotify::on(&b.join("top"));
    let done = Done::default();
    std::thread::scope(|scope| {
        let _finish = done.finish();
        scope.spawn(|| {
            for _ in 0..4 {
                if done.is_set() || !b.kill_worker() {
                    return;
                }
                std::thread::park_timeout(Duration::from_millis(400));
            }
        });
        for number in 0..30 {
            let path = |name: &str| a.join(format!("top/{name}{number}"));
            match number % 3 {
                0 => fs::rename(path("d"), path("moved")).unwrap(),
                1 => {
                    fs::remove_file(path("d").join("f")).unwrap();
                    fs::remove_dir(path("d")).unwrap();
                    fs::create_dir(path("d")).unwrap();
                    fs::write(path("d").join("g"), "new").unwrap();
                }
                _ => {
                    fs::write(path("d").join("f"), "changed").unwrap();
                    fs::create_dir(path("made")).unwrap();
                }
            }
        }
    });
    until("one worker serves B", LIMIT, || b.workers().len() == 1 && fs::read_dir(b.path()).is_ok());
    let mut expected: BTreeSet<String> = (0..30)
        .map(|number| match number % 3 {
            0 => format!("moved{number}"),
            1 => format!("d{number}"),
            _ => format!("made{number}"),
        })
        .collect();
    let deadline = Instant::now() + LIMIT;
    while !expected.is_empty() && Instant::now() < deadline {
        let Some(event) = watcher.next(Duration::from_millis(500)) else { continue };
        if event.mask.intersects(ReadFlags::CREATE | ReadFlags::MOVED_TO)
            && let Some(name) = event.name.as_ref().and_then(|name| name.to_str())
        {
            expected.remove(name);
        }
    }
    assert!(expected.is_empty(), "events are lost: {expected:?}");
    eventually("both show the same", LIMIT, || {
        let difference = tree::difference(("A", &tree::read(a.path())), ("B", &tree::read(b.path())));
        if difference.is_empty() { Ok(()) } else { Err(difference) }
    });
    for entry in fs::read_dir(b.join("top")).unwrap() {
        let dir = entry.unwrap().path();
        fs::write(dir.join("alive"), "x").unwrap_or_else(|error| panic!("{dir:?}: {error}"));
    }
}

/// Somebody waits for a lock on a mount whose worker dies: he gets it when it is free, and a signal ends him.
#[test]
fn killed_while_somebody_waits_for_a_lock() {
    let _guard = guard(180);
    let pair = Pair::supervised();
    let (a, b) = (&pair.a, &pair.b);
    fs::write(a.join("lock"), "-").unwrap();
    until("B has it", LIMIT, || b.join("lock").exists());
    let held = File::open(a.join("lock")).unwrap();
    flock(&held, FlockOperation::LockExclusive).unwrap();
    let wait = |script: &str| {
        let mut command = Command::new("flock");
        command.arg(b.join("lock")).args(["-c", script]);
        process::spawn(command, process::SIGKILL).unwrap()
    };
    let (mut patient, mut interrupted) = (wait("exit 7"), wait("exit 8"));
    let in_call = |pid: u32| {
        let text = fs::read_to_string(format!("/proc/{pid}/syscall")).unwrap_or_default();
        text.starts_with(&format!("{} ", libc::SYS_flock))
    };
    until("both wait", LIMIT, || in_call(patient.id()) && in_call(interrupted.id()));
    kill_and_wait(b);
    assert!(patient.try_wait().unwrap().is_none(), "it waits on");
    process::signal(interrupted.id(), process::SIGTERM);
    let mut status = None;
    until("the signal ends it", LIMIT, || {
        status = interrupted.try_wait().unwrap();
        status.is_some()
    });
    assert_eq!(status.unwrap().signal(), Some(process::SIGTERM));
    drop(held);
    until("the lock comes", LIMIT, || {
        status = patient.try_wait().unwrap();
        status.is_some()
    });
    assert_eq!(status.unwrap().code(), Some(7));
}

/// A program that does not start is not taken; one that does is.
#[test]
fn an_upgrade_takes_the_program_that_is_installed() {
    let _guard = guard(240);
    let cluster = Cluster::start(1);
    let scratch = Scratch::new("program");
    let program = scratch.path().join("fsd");
    fs::copy(binary("fsd"), &program).unwrap();
    let config = MountConfig { program: Some(program.clone()), ..MountConfig::supervised() };
    let host = Host::mount_with(&cluster, "host-a", config);
    fs::write(host.join("f"), "kept").unwrap();
    let mut open = File::open(host.join("f")).unwrap();
    let workers = host.workers();
    let install = |write: &dyn Fn(&Path)| {
        let new = scratch.path().join("fsd.new");
        write(&new);
        fs::set_permissions(&new, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        fs::rename(&new, &program).unwrap();
    };
    for (text, why) in [
        ("#!/bin/sh\nexit 3\n", "--version"),
        ("#!/bin/sh\n[ \"$1\" = --version ] && echo fsd 9.9.9 && exit\nexit 3\n", "ended by itself"),
    ] {
        install(&|new| fs::write(new, text).unwrap());
        let output = upgrade(&host);
        assert!(!output.status.success(), "{}", process::describe(&output));
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(error.contains("the old program goes on"), "{why}: {error}");
        assert_eq!(host.workers(), workers, "{why}");
        assert_eq!(fs::read_to_string(host.join("f")).unwrap(), "kept");
    }
    install(&|new| {
        fs::copy(binary("fsd"), new).unwrap();
    });
    let output = upgrade(&host);
    assert!(output.status.success(), "{}\n{}", process::describe(&output), host.log());
    another_worker(&host, &workers);
    let runs = fs::read_link(format!("/proc/{}/exe", host.workers()[0])).unwrap();
    assert_eq!(runs, program.canonicalize().unwrap(), "the new program serves");
    let mut text = String::new();
    open.read_to_string(&mut text).unwrap();
    assert_eq!(text, "kept");
    // And when it dies, it is the new one that is started again.
    kill_and_wait(&host);
    assert_eq!(fs::read_link(format!("/proc/{}/exe", host.workers()[0])).unwrap(), runs);
    // The signal does the same.
    let workers = host.workers();
    host.signal(libc::SIGUSR2);
    another_worker(&host, &workers);
    fs::write(host.join("f"), "written").unwrap();
}

/// Workers that die again and again: the supervisor says so, and gives the mount up.
#[test]
fn a_crash_loop_comes_to_an_end() {
    let _guard = guard(180);
    let cluster = Cluster::start(1);
    let mut host = Host::mount_with(&cluster, "host-a", MountConfig::supervised());
    fs::write(host.join("f"), "x").unwrap();
    let done = Done::default();
    let status = std::thread::scope(|scope| {
        let _finish = done.finish();
        let pid = host.pid();
        let done = &done;
        scope.spawn(move || {
            while !done.is_set() {
                process::children(pid)
                    .into_iter()
                    .for_each(|worker| process::signal(worker, process::SIGKILL));
                std::thread::park_timeout(Duration::from_millis(20));
            }
        });
        host.wait(Duration::from_secs(90))
    });
    assert!(!status.success(), "{status}");
    let log = host.log();
    assert!(log.contains("again and again"), "{log}");
    assert!(log.matches("is gone: starting another one").count() < 10, "it does not spin: {log}");
    let error = File::open(host.join("f")).unwrap_err();
    assert!(matches!(error.raw_os_error(), Some(libc::ENOTCONN | libc::ECONNABORTED)), "{error}");
}

/// `fsd status` says which process holds the mount, and which serves it.
#[test]
fn the_status_names_supervisor_and_worker() {
    let _guard = guard(120);
    let cluster = Cluster::start(1);
    let host = Host::mount_with(&cluster, "host-a", MountConfig::supervised());
    let status = |json: bool| {
        let mut command = Command::new(binary("fsd"));
        command.arg("status").arg(host.path()).args(json.then_some("--json"));
        let output = run(command, LIMIT);
        assert!(output.status.success(), "{}", process::describe(&output));
        String::from_utf8(output.stdout).unwrap()
    };
    for _ in 0..2 {
        let text = status(false);
        assert!(text.contains(&format!("\nsupervisor    pid {}\n", host.pid())), "{text}");
        let json: serde_json::Value = serde_json::from_str(&status(true)).unwrap();
        assert_eq!(json["daemon"]["supervisor"], host.pid());
        assert_eq!(json["daemon"]["pid"], host.workers()[0]);
        kill_and_wait(&host);
    }
}

/// An unmount from outside ends both processes, and so does SIGTERM while no worker serves.
#[test]
fn an_unmount_ends_supervisor_and_worker() {
    let _guard = guard(120);
    let cluster = Cluster::start(1);
    let mut host = Host::mount_with(&cluster, "host-a", MountConfig::supervised());
    let workers = host.workers();
    // While the worker looks at its mount for the first time, that is in use.
    eventually("it can be unmounted", LIMIT, || {
        rustix::mount::unmount(host.path(), rustix::mount::UnmountFlags::empty())
    });
    assert!(host.wait(LIMIT).success(), "{}", host.log());
    assert!(!workers.iter().any(|worker| process::runs(*worker)));
    host.start();
    let workers = host.workers();
    host.kill_worker();
    assert!(host.terminate().success(), "{}", host.log());
    assert!(!host.is_mounted());
    until("the workers are gone", LIMIT, || !workers.iter().any(|worker| process::runs(*worker)));
}
