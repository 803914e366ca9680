//! Promise 9 of SEMANTICS.md, as far as it is about locks: flock and fcntl locks hold on all hosts, end with
//! their descriptor, process, daemon or host, can be waited for and waiting can be ended; nobody waits in a
//! circle, and who has lost a lock writes no more.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use quorumfs_tests::cleanup::Scratch;
use quorumfs_tests::locker::{Locker, word};
use quorumfs_tests::pair::{PROPAGATION, Place, pair};
use quorumfs_tests::process::{self, SIGCONT, SIGINT, SIGKILL, SIGSTOP, SIGTERM, run, succeed};
use quorumfs_tests::{Host, Pair, eventually, guard, until};
use rustix::fs::{FlockOperation, flock};

/// How long a session of a mount lives after it was last heard of, and what may be added to it on a busy
/// machine.
const SESSION_END: Duration = Duration::from_secs(20 + 40);
/// Until who waits has what was given up, or knows that it waits no more.
const SOON: Duration = Duration::from_secs(20);

const AGAIN: &str = "errno 11";
const DEADLOCK: &str = "errno 35";
const NO_LOCK: &str = "errno 37";

fn locker() -> Locker {
    Locker::start(env!("CARGO_BIN_EXE_locker"))
}

/// A file of its own, as both hosts name it.
#[track_caller]
fn file(place: &Place, name: &str) -> (String, String) {
    fs::write(place.a.join(name), "0123456789").unwrap();
    until("B has the file", PROPAGATION, || place.b.join(name).exists());
    (word(&place.a.join(name)), word(&place.b.join(name)))
}

/// The fencing number, as a shell gets it.
fn lock_revision(path: &str) -> Option<u64> {
    let mut command = Command::new("getfattr");
    command.args(["--only-values", "-n", "user.kv.lock_revision", path]);
    let output = run(command, SOON);
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).parse().unwrap())
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

/// `flock FILE -c COMMAND`, as scripts use it, on both hosts at once: the commands never overlap.
#[test]
fn p9_flock_commands_never_overlap() {
    let _guard = guard(180);
    let place = pair().place("p9-overlap");
    let (a, b) = file(&place, "lock");
    let busy = Scratch::on_tmpfs("busy");
    // A directory that is there for as long as somebody is inside: mkdir fails for whoever comes too early.
    let script = format!("mkdir {0}/in && sleep 0.02 && rmdir {0}/in", busy.path().display());
    thread::scope(|scope| {
        for path in [&a, &b, &a, &b] {
            let script = &script;
            scope.spawn(move || {
                for _ in 0..6 {
                    let mut command = Command::new("flock");
                    command.args([path.as_str(), "-c", script]);
                    succeed(&run(command, Duration::from_secs(120)));
                }
            });
        }
    });
}

#[test]
fn p9_flock_shared_exclusive_up_and_down() {
    let _guard = guard(120);
    let place = pair().place("p9-shared");
    let (a, b) = file(&place, "lock");
    let (mut first, mut second) = (locker(), locker());
    first.must(&format!("flock {a} shared"));
    second.must(&format!("flock {b} shared"));
    assert_eq!(first.ask(&format!("flock {a} exclusive")), AGAIN, "B shares it");
    // One that was refused more has what it had.
    second.must(&format!("flock {b} unlock"));
    first.must(&format!("flock {a} exclusive"));
    assert_eq!(second.ask(&format!("flock {b} shared")), AGAIN);
    // Down again lets a waiter in at once.
    second.must_wait(&format!("flock {b} shared wait"));
    first.must(&format!("flock {a} shared"));
    assert_eq!(second.answer(), "ok");
    second.must_wait(&format!("flock {b} exclusive wait"));
    first.must(&format!("flock {a} unlock"));
    assert_eq!(second.answer(), "ok");
    assert_eq!(first.ask(&format!("flock {a} shared")), AGAIN);
}

#[test]
fn p9_fcntl_ranges_and_who_holds_them() {
    let _guard = guard(120);
    let place = pair().place("p9-fcntl");
    let (a, b) = file(&place, "f");
    let (mut on_a, mut also_on_a, mut on_b) = (locker(), locker(), locker());
    on_a.must(&format!("fcntl {a} exclusive 0 5"));
    on_b.must(&format!("fcntl {b} exclusive 5 5"));
    for refused in ["exclusive 0 1", "shared 4 1", "exclusive 0 0"] {
        assert_eq!(on_b.ask(&format!("fcntl {b} {refused}")), AGAIN, "{refused}");
    }
    // On the holder's host it is a process with a number; elsewhere there is none that would mean anything.
    let pid = on_a.pid();
    assert_eq!(also_on_a.ask(&format!("test {a} shared 2 1")), format!("exclusive 0 5 {pid}"));
    assert_eq!(on_b.ask(&format!("test {b} shared 2 1")), "exclusive 0 5 0");
    assert_eq!(on_b.ask(&format!("test {b} exclusive 9 1")), "free", "one's own lock is no conflict");
    assert_eq!(on_a.ask(&format!("test {a} shared 7 100")), "exclusive 5 5 0");
    // A hole in the middle, and one part shared.
    on_a.must(&format!("fcntl {a} unlock 1 2"));
    on_a.must(&format!("fcntl {a} shared 4 1"));
    on_b.must(&format!("fcntl {b} exclusive 1 2"));
    on_b.must(&format!("fcntl {b} shared 4 1"));
    assert_eq!(also_on_a.ask(&format!("test {a} exclusive 3 1")), format!("exclusive 3 1 {pid}"));
    assert_eq!(on_b.ask(&format!("test {b} exclusive 4 1")), "shared 4 1 0");
    // To the end of the file, however long that will be.
    on_a.must(&format!("fcntl {a} exclusive 100 0"));
    assert_eq!(on_b.ask(&format!("test {b} shared 1000000 1")), "exclusive 100 0 0");
    // Nothing is left of a process that ends.
    on_a.finish();
    eventually("B gets what the process had", SOON, || {
        match on_b.ask(&format!("fcntl {b} exclusive 0 0")).as_str() {
            "ok" => Ok(()),
            other => Err(other.to_string()),
        }
    });
}

/// A lock that is given up, in whatever way, goes to the waiter on the other host.
#[test]
fn p9_a_waiter_gets_what_is_given_up() {
    let _guard = guard(240);
    let place = pair().place("p9-release");
    for kind in ["flock", "fcntl"] {
        let bytes = if kind == "fcntl" { " 0 0" } else { "" };
        for way in ["unlock", "close", "end", "kill"] {
            let (a, b) = file(&place, &format!("{kind}-{way}"));
            let (mut holder, mut waiter) = (locker(), locker());
            holder.must(&format!("{kind} {a} exclusive{bytes}"));
            waiter.must_wait(&format!("{kind} {b} exclusive{bytes} wait"));
            match way {
                "unlock" => holder.must(&format!("{kind} {a} unlock{bytes}")),
                "close" => holder.must(&format!("close {a}")),
                "end" => holder.finish(),
                _ => holder.signal(SIGKILL),
            }
            assert_eq!(waiter.answer(), "ok", "{kind}, {way}");
        }
    }
}

/// Whoever waits for a lock can be interrupted at once, and is no longer taken for a waiter.
#[test]
fn p9_waiting_can_be_ended() {
    let _guard = guard(120);
    let place = pair().place("p9-signal");
    let (a, b) = file(&place, "lock");
    let mut holder = locker();
    holder.must(&format!("fcntl {a} exclusive 0 0"));
    for (name, signal) in [("SIGINT", SIGINT), ("SIGTERM", SIGTERM), ("SIGKILL", SIGKILL)] {
        for words in ["flock FILE exclusive wait", "fcntl FILE shared 3 1 wait"] {
            let mut waiter = locker();
            waiter.must_wait(&words.replace("FILE", &b));
            let begun = Instant::now();
            waiter.signal(signal);
            assert_eq!(waiter.killed_by(SOON), Some(signal));
            eprintln!("{words} ended by {name} within {:?}", begun.elapsed());
        }
    }
    // A person's Ctrl-C goes to flock(1) and what it would run.
    let mut command = Command::new("flock");
    command.args([b.as_str(), "-c", "true"]);
    let mut waiting = process::spawn(command, SIGKILL).unwrap();
    until("it waits", SOON, || {
        let wchan = fs::read_to_string(format!("/proc/{}/wchan", waiting.id())).unwrap_or_default();
        wchan.contains("request") || wchan.contains("fuse")
    });
    process::signal(waiting.id(), SIGINT);
    eventually("Ctrl-C ends flock(1)", SOON, || waiting.try_wait().unwrap().ok_or("it waits still"));
    // None of them got it after its end.
    holder.must(&format!("fcntl {a} unlock 0 0"));
    let mut next = locker();
    next.must(&format!("flock {b} exclusive"));
}

/// Two hosts that lock crosswise: one of them is refused, the other gets what it waits for.
#[test]
fn p9_a_deadlock_of_two_hosts_is_refused() {
    let _guard = guard(120);
    let place = pair().place("p9-deadlock");
    let (one_a, one_b) = file(&place, "one");
    let (two_a, two_b) = file(&place, "two");
    let (mut on_a, mut on_b) = (locker(), locker());
    for _ in 0..3 {
        on_a.must(&format!("fcntl {one_a} exclusive 0 0"));
        on_b.must(&format!("fcntl {two_b} exclusive 0 0"));
        on_a.must_wait(&format!("fcntl {two_a} exclusive 0 0 wait"));
        assert_eq!(on_b.ask(&format!("fcntl {one_b} exclusive 0 0 wait")), DEADLOCK);
        // Who does not wait is in no deadlock.
        assert_eq!(on_b.ask(&format!("fcntl {one_b} shared 0 1")), AGAIN);
        on_b.must(&format!("fcntl {two_b} unlock 0 0"));
        assert_eq!(on_a.answer(), "ok");
        on_a.must(&format!("fcntl {one_a} unlock 0 0"));
        on_a.must(&format!("fcntl {two_a} unlock 0 0"));
    }
    // Two that share and both want it alone.
    on_a.must(&format!("fcntl {one_a} shared 0 0"));
    on_b.must(&format!("fcntl {one_b} shared 0 0"));
    on_a.must_wait(&format!("fcntl {one_a} exclusive 0 0 wait"));
    assert_eq!(on_b.ask(&format!("fcntl {one_b} exclusive 0 0 wait")), DEADLOCK);
    on_b.must(&format!("close {one_b}"));
    assert_eq!(on_a.answer(), "ok");
    // One that was interrupted is no part of a circle any more.
    let mut gone = locker();
    on_b.must(&format!("fcntl {two_b} exclusive 0 0"));
    on_a.must(&format!("fcntl {one_a} unlock 0 0"));
    gone.must(&format!("fcntl {one_a} exclusive 0 0"));
    gone.must_wait(&format!("fcntl {two_a} exclusive 0 0 wait"));
    gone.signal(SIGTERM);
    assert_eq!(gone.killed_by(SOON), Some(SIGTERM));
    assert_eq!(on_b.ask(&format!("fcntl {one_b} exclusive 0 0 wait")), "ok");
}

/// The fencing number grows from holder to holder, and is there for as long as somebody holds the lock.
#[test]
fn p9_fencing_numbers_grow_from_holder_to_holder() {
    let _guard = guard(120);
    let place = pair().place("p9-fencing");
    let (a, b) = file(&place, "lock");
    assert_eq!(lock_revision(&a), None, "nobody holds it");
    let mut last = 0;
    for path in [&a, &b, &a, &b] {
        let mut holder = locker();
        eventually("the lock", SOON, || match holder.ask(&format!("flock {path} exclusive")).as_str() {
            "ok" => Ok(()),
            other => Err(other.to_string()),
        });
        let now = lock_revision(path).expect("it is held");
        assert!(now > last, "{now} after {last}");
        assert_eq!(lock_revision(&a), lock_revision(&b), "every host sees the same number");
        last = now;
        holder.finish();
    }
    until("nobody holds it any more", SOON, || lock_revision(&b).is_none());
    // As a script does it.
    let mut command = Command::new("flock");
    command.args([&b, "-c", &format!("getfattr --only-values -n user.kv.lock_revision {b}")]);
    let number: u64 = succeed(&run(command, SOON)).parse().unwrap();
    assert!(number > last);
}

/// Three hosts: the daemon of one is killed, one is not heard of for longer than its session lives. Their
/// locks go to the third; and when the one that was silent comes back, it knows that it holds nothing, and
/// writes nothing through what it had locked.
#[test]
fn p9_locks_end_with_the_daemon_and_with_the_host() {
    let _guard = guard(300);
    let mut pair = Pair::start();
    let third = Host::mount(pair.cluster(), "host-c");
    let place = pair.place("p9-lost");
    let (killed_a, _) = file(&place, "killed");
    let (_, silent_b) = file(&place, "silent");
    let dir = third.join(&place.key);
    until("C has the files", PROPAGATION, || dir.join("silent").exists());
    let (killed_c, silent_c) = (word(&dir.join("killed")), word(&dir.join("silent")));

    let (mut on_a, mut on_b) = (locker(), locker());
    on_a.must(&format!("fcntl {killed_a} exclusive 0 0"));
    on_b.must(&format!("flock {silent_b} exclusive"));
    on_b.must(&format!("write {silent_b} mine"));
    let (mut after_killed, mut after_silent) = (locker(), locker());
    after_killed.must_wait(&format!("fcntl {killed_c} exclusive 0 0 wait"));
    after_silent.must_wait(&format!("flock {silent_c} exclusive wait"));

    pair.a.kill();
    pair.b.signal(SIGSTOP);
    let begun = Instant::now();
    eventually("C has the lock of the silent host", SESSION_END, || match lock_held(&mut after_silent) {
        true => Ok(()),
        false => Err("it waits"),
    });
    eprintln!("the lock of a silent host was free after {:?}", begun.elapsed());
    eventually("C has the lock of the killed daemon", SESSION_END, || match lock_held(&mut after_killed) {
        true => Ok(()),
        false => Err("it waits"),
    });
    after_silent.must(&format!("write {silent_c} theirs"));

    // It comes back. What it sends in the session of its lock is refused, whether it knows already or not.
    pair.b.signal(SIGCONT);
    assert_eq!(on_b.ask(&format!("write {silent_b} stale")), NO_LOCK);
    assert_eq!(on_b.ask(&format!("write {silent_b} stale")), NO_LOCK);
    assert_eq!(on_b.ask(&format!("flock {silent_b} shared")), NO_LOCK, "no lock on top of a lost one");
    eventually("the value of the new holder", SOON, || match fs::read_to_string(&silent_b) {
        Ok(text) if text.starts_with("theirs") => Ok(()),
        other => Err(format!("{other:?}")),
    });
    assert!(pair.b.log().contains("locks of its programs are gone"), "fsd says so");
    // Unlocking says that it knows. Then it is as any other.
    on_b.must(&format!("flock {silent_b} unlock"));
    assert_eq!(on_b.ask(&format!("flock {silent_b} exclusive")), AGAIN);
    after_silent.must(&format!("flock {silent_c} unlock"));
    on_b.must(&format!("flock {silent_b} exclusive wait"));
    on_b.must(&format!("write {silent_b} again"));
}

/// Whether a waiter has answered that it has the lock.
fn lock_held(waiter: &mut Locker) -> bool {
    match waiter.try_answer() {
        Some(answer) => {
            assert_eq!(answer, "ok");
            true
        }
        None => false,
    }
}

/// A directory cannot be locked through FUSE at all: the kernel keeps such locks to itself.
#[test]
fn p9_locks_on_directories_are_of_one_host() {
    let _guard = guard(60);
    let place = pair().place("p9-directory");
    let open = |dir: &Path| File::open(dir).unwrap();
    let (first, second, other) = (open(&place.a), open(&place.a), open(&place.b));
    flock(&first, FlockOperation::NonBlockingLockExclusive).unwrap();
    assert!(flock(&second, FlockOperation::NonBlockingLockExclusive).is_err(), "on one host it holds");
    flock(&other, FlockOperation::NonBlockingLockExclusive)
        .expect("SEMANTICS.md says that it does not reach");
}
