//! Promise 9 of SEMANTICS.md: O_EXCL, mkdir, rename with NOREPLACE, flock and fcntl locks exclude
//! each other on all hosts of the cluster, and appends of several hosts are all kept.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::process::Command;
use std::sync::Barrier;
use std::thread;
use std::time::Duration;

use quorumfs_tests::pair::{PROPAGATION, pair};
use quorumfs_tests::process::{self, SIGKILL, SIGTERM};
use quorumfs_tests::{eventually, guard, until};
use rustix::fs::{CWD, FlockOperation, RenameFlags, flock, renameat_with};

/// Lets two threads of each host race for one thing, many times: exactly one may win.
#[track_caller]
fn one_winner(
    label: &str,
    rounds: usize,
    refusal: i32,
    attempt: impl Fn(&Path, usize, usize) -> io::Result<()> + Sync,
) {
    let place = pair().place(label);
    let start = Barrier::new(4);
    for round in 0..rounds {
        let results: Vec<io::Result<()>> = thread::scope(|scope| {
            let racers: Vec<_> = [&place.a, &place.a, &place.b, &place.b]
                .into_iter()
                .enumerate()
                .map(|(racer, dir)| {
                    let (start, attempt) = (&start, &attempt);
                    scope.spawn(move || {
                        start.wait();
                        attempt(dir, round, racer)
                    })
                })
                .collect();
            racers.into_iter().map(|r| r.join().unwrap()).collect()
        });
        let winners = results.iter().filter(|r| r.is_ok()).count();
        assert_eq!(winners, 1, "round {round}: {results:?}");
        for error in results.iter().filter_map(|r| r.as_ref().err()) {
            assert_eq!(error.raw_os_error(), Some(refusal), "round {round}: {results:?}");
        }
    }
}

#[test]
fn p9_o_excl_has_one_winner() {
    let _guard = guard(120);
    one_winner("p9-excl", 40, libc::EEXIST, |dir, round, _| {
        OpenOptions::new().write(true).create_new(true).open(dir.join(format!("f{round}"))).map(drop)
    });
}

#[test]
fn p9_mkdir_has_one_winner() {
    let _guard = guard(120);
    one_winner("p9-mkdir", 40, libc::EEXIST, |dir, round, _| fs::create_dir(dir.join(format!("d{round}"))));
}

#[test]
fn p9_rename_noreplace_has_one_winner() {
    let _guard = guard(120);
    one_winner("p9-rename", 30, libc::EEXIST, |dir, round, racer| {
        let own = dir.join(format!("own{round}-{racer}"));
        fs::write(&own, "x")?;
        renameat_with(CWD, &own, CWD, dir.join(format!("f{round}")), RenameFlags::NOREPLACE)?;
        Ok(())
    });
}

/// Appends are commands of their own: two hosts that append to one file lose nothing.
#[test]
fn p9_appends_of_two_hosts_are_all_kept() {
    let _guard = guard(120);
    let place = pair().place("p9-append");
    fs::write(place.a.join("log"), "").unwrap();
    until("B has the file", PROPAGATION, || place.b.join("log").exists());
    thread::scope(|scope| {
        for (host, dir) in [("a", &place.a), ("b", &place.b)] {
            scope.spawn(move || {
                for n in 0..60 {
                    let mut file = OpenOptions::new().append(true).open(dir.join("log")).unwrap();
                    file.write_all(format!("{host}{n}\n").as_bytes()).unwrap();
                }
            });
        }
    });
    File::open(&place.b).unwrap().sync_all().unwrap();
    let text = fs::read_to_string(place.b.join("log")).unwrap();
    for host in ["a", "b"] {
        let own: Vec<&str> = text.lines().filter(|l| l.starts_with(host)).collect();
        let wanted: Vec<String> = (0..60).map(|n| format!("{host}{n}")).collect();
        assert_eq!(own, wanted, "lines of host {host}");
    }
    assert_eq!(text.lines().count(), 120);
}

/// A counter that is read, increased and written under flock on both hosts counts right.
#[test]
fn p9_flock_excludes_across_hosts() {
    let _guard = guard(180);
    let place = pair().place("p9-flock");
    fs::write(place.a.join("lock"), "").unwrap();
    fs::write(place.a.join("count"), "0").unwrap();
    until("B has the files", PROPAGATION, || place.b.join("count").exists());
    thread::scope(|scope| {
        for dir in [&place.a, &place.a, &place.b] {
            scope.spawn(move || {
                for _ in 0..20 {
                    let lock = File::open(dir.join("lock")).unwrap();
                    flock(&lock, FlockOperation::LockExclusive).unwrap();
                    // Whoever has the lock sees what the last holder wrote: it was committed before the
                    // lock was given up, and the lock was granted by a later revision.
                    let count: u64 = fs::read_to_string(dir.join("count")).unwrap().parse().unwrap();
                    fs::write(dir.join("count"), (count + 1).to_string()).unwrap();
                    flock(&lock, FlockOperation::Unlock).unwrap();
                }
            });
        }
    });
    File::open(&place.b).unwrap().sync_all().unwrap();
    assert_eq!(fs::read_to_string(place.b.join("count")).unwrap(), "60");
}

#[test]
fn p9_flock_shared_and_exclusive() {
    let _guard = guard(60);
    let place = pair().place("p9-shared");
    fs::write(place.a.join("lock"), "").unwrap();
    until("B has the file", PROPAGATION, || place.b.join("lock").exists());
    let (a, b) = (File::open(place.a.join("lock")).unwrap(), File::open(place.b.join("lock")).unwrap());
    flock(&a, FlockOperation::NonBlockingLockShared).unwrap();
    flock(&b, FlockOperation::NonBlockingLockShared).expect("two hosts may share");
    let third = File::open(place.a.join("lock")).unwrap();
    let refused = flock(&third, FlockOperation::NonBlockingLockExclusive).unwrap_err();
    assert_eq!(refused, rustix::io::Errno::WOULDBLOCK);
    drop(a);
    // Closing gives a flock up; the release of a descriptor reaches fsd a moment after close returned.
    flock(&b, FlockOperation::Unlock).unwrap();
    eventually("the exclusive lock", PROPAGATION, || flock(&third, FlockOperation::NonBlockingLockExclusive));
    assert_eq!(flock(&b, FlockOperation::NonBlockingLockShared), Err(rustix::io::Errno::WOULDBLOCK));
}

/// fcntl locks: ranges conflict across hosts, F_GETLK says who, and a waiter gets the lock.
#[test]
fn p9_fcntl_locks_exclude_across_hosts() {
    let _guard = guard(60);
    let place = pair().place("p9-fcntl");
    fs::write(place.a.join("f"), "0123456789").unwrap();
    until("B has the file", PROPAGATION, || place.b.join("f").exists());
    let open = |dir: &Path| OpenOptions::new().read(true).write(true).open(dir.join("f")).unwrap();
    let (a, b) = (open(&place.a), open(&place.b));
    set_lock(&a, libc::F_SETLK, libc::F_WRLCK, 0, 5).unwrap();
    set_lock(&b, libc::F_SETLK, libc::F_WRLCK, 5, 5).expect("the ranges do not touch");
    let refused = set_lock(&b, libc::F_SETLK, libc::F_WRLCK, 0, 1).unwrap_err();
    assert!(matches!(refused.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)), "{refused}");
    assert_eq!(get_lock(&b, 0, 1), libc::F_WRLCK, "F_GETLK shows the conflict");
    assert_eq!(get_lock(&b, 9, 1), libc::F_UNLCK, "one's own lock is no conflict");
    thread::scope(|scope| {
        let waiter = scope.spawn(|| set_lock(&b, libc::F_SETLKW, libc::F_WRLCK, 0, 1));
        set_lock(&a, libc::F_SETLK, libc::F_UNLCK, 0, 5).unwrap();
        waiter.join().unwrap().expect("the waiter gets the lock when it is given up");
    });
    assert_eq!(get_lock(&a, 0, 1), libc::F_WRLCK);
}

/// A process that waits for a lock can be killed, and one that dies gives its locks up.
#[test]
fn p9_locks_end_with_their_process_and_waiting_can_be_ended() {
    let _guard = guard(60);
    let place = pair().place("p9-kill");
    fs::write(place.a.join("lock"), "").unwrap();
    until("B has the file", PROPAGATION, || place.b.join("lock").exists());
    let holder = |dir: &Path| {
        let mut command = Command::new("flock");
        command.arg(dir.join("lock")).args(["sh", "-c", "touch held; exec sleep 1000"]).current_dir(dir);
        process::spawn(command, SIGKILL).unwrap()
    };
    let mut first = holder(&place.a);
    until("A holds the lock", PROPAGATION, || place.b.join("held").exists());

    let mut waiting = Command::new("flock");
    waiting.arg(place.b.join("lock")).arg("true");
    let mut waiting = process::spawn(waiting, SIGKILL).unwrap();
    until("B waits in the lock", PROPAGATION, || {
        fs::read_to_string(format!("/proc/{}/wchan", waiting.id()))
            .is_ok_and(|w| w.contains("fuse") || w.contains("request"))
    });
    process::signal(waiting.id(), SIGTERM);
    eventually("the waiter ends by a signal", Duration::from_secs(5), || {
        waiting.try_wait().unwrap().ok_or("it waits still")
    });

    process::signal(first.id(), SIGKILL);
    first.wait().unwrap();
    // `sleep` was exec'ed by the child of flock, which holds the descriptor as well: end it too.
    let lock = File::open(place.b.join("lock")).unwrap();
    eventually("B gets the lock of the dead", Duration::from_secs(10), || {
        kill_sleepers(&place.a);
        flock(&lock, FlockOperation::NonBlockingLockExclusive)
    });
}

/// Ends what runs with this working directory: the sleeper of a test's own.
fn kill_sleepers(dir: &Path) {
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else { continue };
        let ours = fs::read_link(entry.path().join("cwd")).is_ok_and(|cwd| cwd == dir);
        if ours && fs::read_to_string(entry.path().join("comm")).is_ok_and(|c| c.trim() == "sleep") {
            process::signal(pid, SIGKILL);
        }
    }
}

fn lock_of(kind: i32, start: i64, length: i64) -> libc::flock {
    // SAFETY: all-zero bytes are a valid flock structure.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = kind as i16;
    lock.l_whence = libc::SEEK_SET as i16;
    (lock.l_start, lock.l_len) = (start, length);
    lock
}

fn set_lock(file: &File, command: i32, kind: i32, start: i64, length: i64) -> io::Result<()> {
    let lock = lock_of(kind, start, length);
    // SAFETY: the descriptor is open and the structure lives during the call.
    match unsafe { libc::fcntl(file.as_raw_fd(), command, &lock) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn get_lock(file: &File, start: i64, length: i64) -> i32 {
    let mut lock = lock_of(libc::F_WRLCK, start, length);
    // SAFETY: as above; the kernel writes into the structure.
    assert_eq!(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETLK, &mut lock) }, 0);
    lock.l_type.into()
}
