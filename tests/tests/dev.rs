//! `fsd dev`: one command, and a store is mounted. kvctl finds it by itself, events fire, a clean end
//! leaves nothing mounted, and an unclean one is repaired at the next start.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use quorumfs_tests::binaries::binary;
use quorumfs_tests::cleanup::{self, Registered, Scratch};
use quorumfs_tests::process::{self, Process, SIGKILL, SIGTERM, run, succeed};
use quorumfs_tests::{eventually, guard, until};

const START: Duration = Duration::from_secs(30);

/// One `fsd dev` at a time: each looks for a free port by itself, and two that look at the same moment
/// may find the same.
static ONE: Mutex<()> = Mutex::new(());

/// A person's machine: a home, and a place to mount on.
struct Machine {
    home: Scratch,
    mountpoint: PathBuf,
    _registered: Registered,
    _one: MutexGuard<'static, ()>,
}

impl Machine {
    fn new() -> Machine {
        let home = Scratch::new("home");
        let mountpoint = home.path().join("kv");
        let gone = mountpoint.clone();
        let registered = cleanup::at_exit(move || cleanup::force_unmount(&gone));
        Machine {
            home,
            mountpoint,
            _registered: registered,
            _one: ONE.lock().unwrap_or_else(|e| e.into_inner()),
        }
    }

    fn command(&self, name: &str) -> Command {
        let mut command = Command::new(binary(name));
        command.env("HOME", self.home.path());
        for name in ["XDG_DATA_HOME", "XDG_CONFIG_HOME", "QUORUMFS_NODES", "QUORUMFS_CERTS", "QUORUMFS_NAME"]
        {
            command.env_remove(name);
        }
        command
    }

    /// `fsd dev MOUNTPOINT`, until it can be used.
    #[track_caller]
    fn dev(&self) -> Process {
        let mut command = self.command("fsd");
        command.arg("dev").arg(&self.mountpoint);
        let mut process = Process::start("fsd dev", command, &self.home.path().join("fsd.log"), SIGTERM);
        eventually("fsd dev is usable", START, || {
            if let Some(status) = process.ended() {
                panic!("fsd dev ended ({status}):\n{}", process.log());
            }
            match cleanup::connection_of(&self.mountpoint) {
                None => Err("nothing is mounted"),
                // What a dead one left answers with ENOTCONN; a stat may be answered from the kernel's cache.
                Some(_) => fs::read_dir(&self.mountpoint).map(drop).map_err(|_| "it cannot be listed"),
            }
        });
        process
    }

    #[track_caller]
    fn kvctl(&self, words: &str) -> String {
        let mut command = self.command("kvctl");
        command.args(words.split(' '));
        succeed(&run(command, START))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        cleanup::force_unmount(&self.mountpoint);
    }
}

#[test]
fn a_put_fires_events_and_can_be_read() {
    let _guard = guard(90);
    let machine = Machine::new();
    let mut dev = machine.dev();
    let mut command = Command::new("inotifywait");
    command.arg("-m").arg(&machine.mountpoint).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut watcher = process::spawn(command, SIGKILL).unwrap();
    // It says so when its watch is there.
    let mut told = BufReader::new(watcher.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains("established") {
        line.clear();
        assert_ne!(told.read_line(&mut line).unwrap(), 0, "inotifywait ended");
    }
    machine.kvctl("put /hello world");
    let mut events = Vec::new();
    for line in BufReader::new(watcher.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        let mut words = line.split(' ').skip(1);
        let (event, name) = (words.next().unwrap().to_string(), words.next().unwrap_or("").to_string());
        if name == "hello" {
            events.push(event);
        }
        if events.last().is_some_and(|e| e.contains("CLOSE_WRITE")) {
            break;
        }
    }
    process::signal(watcher.id(), SIGKILL);
    let _ = watcher.wait();
    assert_eq!(events, ["CREATE", "OPEN", "MODIFY", "CLOSE_WRITE,CLOSE"]);
    assert_eq!(fs::read_to_string(machine.mountpoint.join("hello")).unwrap(), "world");

    fs::write(machine.mountpoint.join("back"), "again").unwrap();
    assert!(machine.kvctl("get back").contains("again"));

    let status = dev.terminate(START);
    assert!(status.success(), "{status}:\n{}", dev.log());
    assert_eq!(cleanup::connection_of(&machine.mountpoint), None, "SIGTERM left the mount behind");
}

#[test]
fn what_a_killed_one_left_is_recovered() {
    let _guard = guard(120);
    let machine = Machine::new();
    let mut dev = machine.dev();
    machine.kvctl("put /kept value");
    dev.kill();
    assert!(cleanup::connection_of(&machine.mountpoint).is_some(), "a killed daemon leaves its mount");
    assert!(fs::read_dir(&machine.mountpoint).is_err());

    let mut dev = machine.dev();
    assert_eq!(fs::read_to_string(machine.mountpoint.join("kept")).unwrap(), "value");
    let log = dev.log().to_lowercase();
    assert!(
        log.contains("died") || log.contains("stale") || log.contains("recovered"),
        "it does not say so:\n{log}"
    );
    assert!(dev.terminate(START).success());
    until("nothing is mounted", START, || cleanup::connection_of(&machine.mountpoint).is_none());
}

/// A second one on the same data, or on the same place, is refused with a reason.
#[test]
fn two_of_them_do_not_share_data_or_a_place() {
    let _guard = guard(90);
    let machine = Machine::new();
    let mut dev = machine.dev();
    for place in ["kv", "other"] {
        let mut command = machine.command("fsd");
        command.arg("dev").arg(machine.home.path().join(place));
        let output = run(command, START);
        assert!(!output.status.success(), "a second fsd dev on {place}");
        let said =
            String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
        assert!(!said.trim().is_empty(), "it does not say why");
    }
    assert!(cleanup::connection_of(&machine.home.path().join("other")).is_none());
    machine.kvctl("put /still works");
    assert_eq!(fs::read_to_string(machine.mountpoint.join("still")).unwrap(), "works");
    assert!(dev.terminate(START).success());
}
