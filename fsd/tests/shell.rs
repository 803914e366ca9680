//! The program around a mount: the command line, the background, the end, and what a dead one leaves.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// For every step, on a slow and busy machine.
const LIMIT: Duration = Duration::from_secs(60);

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !done() {
        assert!(Instant::now() < deadline, "gave up waiting: {what}");
        std::thread::park_timeout(Duration::from_millis(10));
    }
}

fn is_mounted(path: &Path) -> bool {
    let info = fs::read_to_string("/proc/self/mountinfo").unwrap();
    info.lines().any(|line| line.split(' ').nth(4) == path.to_str())
}

/// A directory for a test, and `fsd dev` in it.
struct Dev {
    dir: tempfile::TempDir,
    child: Option<Child>,
}

impl Dev {
    fn start() -> Dev {
        let mut dev = Dev { dir: tempfile::tempdir().unwrap(), child: None };
        dev.start_again();
        dev
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().canonicalize().unwrap().join(name)
    }

    fn kv(&self) -> PathBuf {
        self.path("kv")
    }

    /// `fsd` with `XDG_DATA_HOME` of this test, where `fsd dev` puts its data and others find client.toml.
    fn fsd(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_fsd"));
        command.env("XDG_DATA_HOME", self.path("data")).env("XDG_CONFIG_HOME", self.path("config"));
        for name in ["QUORUMFS_NODES", "QUORUMFS_CERTS", "QUORUMFS_NAME", "RUST_LOG"] {
            command.env_remove(name);
        }
        command
    }

    /// Starts `fsd dev` and waits for its welcome.
    fn start_again(&mut self) -> String {
        let mut command = self.fsd();
        command.arg("dev").arg(self.kv()).arg("--listen").arg(free_address());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut welcome = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut welcome).unwrap();
        if !welcome.contains("mounted on") {
            let mut errors = String::new();
            child.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
            panic!("fsd dev did not start: {welcome}{errors}");
        }
        self.child = Some(child);
        welcome
    }

    /// Ends it by a signal; answers its exit code and what it said on standard error.
    fn end(&mut self, signal: Signal) -> (Option<i32>, String) {
        let mut child = self.child.take().unwrap();
        kill_process(Pid::from_child(&child), signal).unwrap();
        let mut status = None;
        until("fsd dev ends", || {
            status = child.try_wait().unwrap();
            status.is_some()
        });
        let mut errors = String::new();
        child.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
        (status.unwrap().code(), errors)
    }

    /// Mounts it once more, in the background.
    fn mount(&self, point: &Path, flags: &[&str]) -> Output {
        self.fsd().arg("mount").arg("-").arg(point).arg("--daemon").args(flags).output().unwrap()
    }

    fn umount(&self, point: &Path) {
        let output = self.fsd().arg("umount").arg(point).output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        assert!(!is_mounted(point));
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = kill_process(Pid::from_child(&child), Signal::TERM);
            let deadline = Instant::now() + Duration::from_secs(10);
            while matches!(child.try_wait(), Ok(None)) && Instant::now() < deadline {
                std::thread::park_timeout(Duration::from_millis(10));
            }
            let _ = child.kill();
            let _ = child.wait();
        }
        // A test that failed half-way must leave nothing mounted either.
        for entry in fs::read_dir(self.dir.path()).into_iter().flatten().flatten() {
            let path = entry.path();
            if is_mounted(&path) {
                let _ = rustix::mount::unmount(&path, rustix::mount::UnmountFlags::DETACH);
            }
        }
    }
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn dev_keeps_its_data_and_ends_cleanly() {
    let mut dev = Dev::start();
    fs::write(dev.kv().join("hello"), "world").unwrap();
    let (code, errors) = dev.end(Signal::TERM);
    assert_eq!(code, Some(0), "{errors}");
    assert!(!is_mounted(&dev.kv()));
    assert!(!dev.kv().join("hello").exists());

    dev.start_again();
    assert_eq!(fs::read_to_string(dev.kv().join("hello")).unwrap(), "world");
    let (code, errors) = dev.end(Signal::INT);
    assert_eq!(code, Some(0), "{errors}");
    assert!(!is_mounted(&dev.kv()));
}

#[test]
fn a_dead_mount_is_recovered_with_a_message() {
    let mut dev = Dev::start();
    fs::write(dev.kv().join("kept"), "1").unwrap();
    dev.end(Signal::KILL);
    until("the mount is dead", || {
        fs::metadata(dev.kv()).is_err_and(|e| e.raw_os_error() == Some(libc::ENOTCONN))
    });

    dev.start_again();
    assert_eq!(fs::read_to_string(dev.kv().join("kept")).unwrap(), "1");
    let (code, errors) = dev.end(Signal::TERM);
    assert_eq!(code, Some(0), "{errors}");
    assert!(errors.contains("has died"), "{errors}");
    assert!(!is_mounted(&dev.kv()), "the dead mount below has to be gone too");
}

#[test]
fn a_mount_in_use_is_taken_out_of_sight() {
    let mut dev = Dev::start();
    fs::write(dev.kv().join("open"), "x").unwrap();
    let open = fs::File::open(dev.kv().join("open")).unwrap();
    let (code, errors) = dev.end(Signal::TERM);
    assert_eq!(code, Some(0), "{errors}");
    assert!(errors.contains("in use"), "{errors}");
    assert!(!is_mounted(&dev.kv()));
    drop(open);
}

#[test]
fn a_second_store_in_the_same_data_is_refused() {
    let dev = Dev::start();
    let output = dev.fsd().arg("dev").arg(dev.path("other")).output().unwrap();
    assert!(!output.status.success());
    assert!(stderr(&output).contains("in use"), "{}", stderr(&output));
    assert!(!is_mounted(&dev.path("other")));
}

#[test]
fn a_daemon_returns_when_the_mount_is_usable() {
    let dev = Dev::start();
    let point = dev.path("second");
    fs::create_dir(&point).unwrap();
    fs::write(dev.kv().join("before"), "there").unwrap();
    let log = dev.path("fsd.log");
    let output = dev.mount(&point, &["--log-file", log.to_str().unwrap()]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(fs::read_to_string(point.join("before")).unwrap(), "there");
    fs::write(point.join("through"), "daemon").unwrap();
    until("the other mount shows it", || {
        fs::read(dev.kv().join("through")).is_ok_and(|text| text == b"daemon")
    });

    let again = dev.mount(&point, &[]);
    assert!(!again.status.success());
    assert!(stderr(&again).contains("mounted quorumfs already"), "{}", stderr(&again));

    dev.umount(&point);
    until("the daemon says its end", || fs::read_to_string(&log).unwrap().contains("was unmounted"));
}

#[test]
fn what_cannot_be_mounted_says_why() {
    let dev = Dev::start();
    let point = dev.path("point");
    let refused = |flags: &[&str], why: &str| {
        let output = dev.mount(&point, flags);
        assert!(!output.status.success() && stderr(&output).contains(why), "{flags:?}: {}", stderr(&output));
        assert!(!is_mounted(&point));
    };
    refused(&[], "mkdir -p");
    fs::write(&point, "").unwrap();
    refused(&[], "not a directory");
    fs::remove_file(&point).unwrap();
    fs::create_dir(&point).unwrap();
    refused(&["-o", "nonsense"], "known are");
    refused(&["--prefix", "/none"], "kvctl mkdir /none");
    refused(&["--name", "nobody"], "nobody");
    // With a value: close waits for it. An empty file is published at its release, after close has returned.
    fs::write(dev.kv().join("file"), "value").unwrap();
    refused(&["--prefix", "/file"], "not a directory");
}

#[test]
fn a_prefix_is_made_when_asked_for() {
    let dev = Dev::start();
    let point = dev.path("point");
    fs::create_dir(&point).unwrap();
    let output = dev.mount(&point, &["--prefix", "/services/web", "--create-prefix"]);
    assert!(output.status.success(), "{}", stderr(&output));
    fs::write(point.join("port"), "80").unwrap();
    until("the whole store shows it", || {
        fs::read(dev.kv().join("services/web/port")).is_ok_and(|text| text == b"80")
    });
    dev.umount(&point);
}

#[test]
fn options_reach_the_mount() {
    let dev = Dev::start();
    let point = dev.path("point");
    fs::create_dir(&point).unwrap();
    fs::write(dev.kv().join("file"), "x").unwrap();
    let output = dev.mount(&point, &["-o", "ro,noatime,_netdev,uid=12,gid=34,umask=077"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let error = fs::write(point.join("file"), "y").unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EROFS), "{error}");
    let stat = rustix::fs::stat(point.join("file")).unwrap();
    assert_eq!((stat.st_uid, stat.st_gid, stat.st_mode & 0o777), (12, 34, 0o600));
    dev.umount(&point);
}

/// A UDP address that was free a moment ago, and that this process gives out once. Its port lies below those
/// that the kernel gives to clients: one of them could take it before the node does.
fn free_address() -> String {
    const FIRST: u32 = 10_000;
    const COUNT: u32 = 20_000;
    static GIVEN: AtomicU32 = AtomicU32::new(0);
    // Test processes that run one after the other begin at different places.
    let first = std::process::id().wrapping_mul(97);
    loop {
        let number = first.wrapping_add(GIVEN.fetch_add(1, Ordering::Relaxed));
        let address = format!("127.0.0.1:{}", FIRST + number % COUNT);
        if std::net::UdpSocket::bind(&address).is_ok() {
            return address;
        }
    }
}
