//! Nothing ever waits for itself. Writers, renamers, makers and removers of directories, fsync of
//! directories, lockers and watchers work on both mounts at once, all in the same directory, so that
//! the replayer of each host meets every lock that the kernel has. Every call has a deadline.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use quorumfs_tests::deadline::Done;
use quorumfs_tests::inotify::Inotify;
use quorumfs_tests::random::Random;
use quorumfs_tests::{Pair, eventually, guard, tree};
use rustix::fs::{FlockOperation, flock};

/// How long they work; `QUORUMFS_TEST_SECONDS` changes it.
const SECONDS: u64 = 20;
/// No single call may take longer: the time-out of a call is 5 s, and one operation makes a few calls.
const CALL_MAX: Duration = Duration::from_secs(15);

/// One kind of work; an error that another worker's work explains is no failure.
type Work = fn(&Path, &mut Random) -> io::Result<()>;

const WORKERS: [(&str, Work); 8] = [
    ("write", |dir, random| fs::write(name(dir, random), format!("{}", random.number()))),
    ("append", |dir, random| {
        OpenOptions::new().append(true).create(true).open(name(dir, random))?.write_all(b"more")
    }),
    ("rename", |dir, random| fs::rename(name(dir, random), name(dir, random))),
    ("unlink", |dir, random| fs::remove_file(name(dir, random))),
    ("mkdir", |dir, random| {
        let sub = dir.join(format!("d{}", random.below(3)));
        fs::create_dir(&sub).or_else(|_| fs::remove_dir(&sub))
    }),
    ("fsync", |dir, _| File::open(dir)?.sync_all()),
    ("read", |dir, _| {
        for entry in fs::read_dir(dir)? {
            let _ = fs::read(entry?.path());
        }
        Ok(())
    }),
    ("flock", |dir, random| {
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(name(dir, random))?;
        flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        Ok(flock(&file, FlockOperation::Unlock)?)
    }),
];

/// One of a few names, so that the workers meet.
fn name(dir: &Path, random: &mut Random) -> std::path::PathBuf {
    dir.join(format!("f{}", random.below(5)))
}

/// Errors that come from the others' work, and not from a daemon in trouble.
fn is_explained(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(
            libc::ENOENT
                | libc::EEXIST
                | libc::ENOTEMPTY
                | libc::EISDIR
                | libc::ENOTDIR
                | libc::EWOULDBLOCK
                | libc::ESTALE
        )
    )
}

/// What the workers of one host did.
#[derive(Default)]
struct Report {
    calls: AtomicU64,
    worst: Mutex<(Duration, &'static str)>,
    unexplained: Mutex<Vec<String>>,
}

impl Report {
    fn work(&self, label: &'static str, work: Work, dir: &Path, seed: u64, done: &Done) {
        let mut random = Random::new(seed);
        while !done.is_set() {
            let start = Instant::now();
            let result = work(dir, &mut random);
            let took = start.elapsed();
            self.calls.fetch_add(1, Ordering::Relaxed);
            let mut worst = self.worst.lock().unwrap();
            *worst = (*worst).max((took, label));
            drop(worst);
            if let Err(error) = result.or_else(|e| if is_explained(&e) { Ok(()) } else { Err(e) }) {
                let mut list = self.unexplained.lock().unwrap();
                if list.len() < 20 {
                    list.push(format!("{label}: {error}"));
                }
            }
        }
    }
}

fn seconds() -> u64 {
    std::env::var("QUORUMFS_TEST_SECONDS").ok().and_then(|s| s.parse().ok()).unwrap_or(SECONDS)
}

#[test]
fn nobody_waits_for_ever_in_a_crowded_directory() {
    let seconds = seconds();
    let _guard = guard(seconds + 120);
    let mut random = Random::for_test("deadlock");
    let pair = Pair::start();
    let place = pair.place("crowd");
    let done = Done::default();
    let (a, b) = (Report::default(), Report::default());
    let events = [AtomicU64::new(0), AtomicU64::new(0)];
    thread::scope(|scope| {
        let finish = done.finish();
        for (report, dir) in [(&a, &place.a), (&b, &place.b)] {
            for (label, work) in WORKERS {
                let (seed, done) = (random.number(), &done);
                scope.spawn(move || report.work(label, work, dir, seed, done));
            }
        }
        for (count, dir) in events.iter().zip([&place.a, &place.b]) {
            let done = &done;
            scope.spawn(move || watch(dir, count, done));
        }
        thread::sleep(Duration::from_secs(seconds));
        drop(finish);
    });
    for (host, report) in [("A", &a), ("B", &b)] {
        let (worst, label) = *report.worst.lock().unwrap();
        eprintln!("{host}: {} calls, the longest {worst:?} ({label})", report.calls.load(Ordering::Relaxed));
        assert!(worst < CALL_MAX, "{host}: a {label} took {worst:?}");
        let unexplained = report.unexplained.lock().unwrap();
        assert!(unexplained.is_empty(), "{host}: {unexplained:?}");
        assert!(report.calls.load(Ordering::Relaxed) > seconds * 20, "{host} hardly did anything");
    }
    assert!(
        events.iter().all(|e| e.load(Ordering::Relaxed) > 100),
        "the watchers saw next to nothing: {events:?}"
    );
    eventually("both hosts show the same", Duration::from_secs(20), || {
        for dir in [&place.a, &place.b] {
            File::open(dir).and_then(|d| d.sync_all()).map_err(|e| e.to_string())?;
        }
        let difference = tree::difference(("A", &tree::read(&place.a)), ("B", &tree::read(&place.b)));
        if difference.is_empty() { Ok(()) } else { Err(difference) }
    });
}

/// Reads every file that an event names, as a reloader does.
fn watch(dir: &Path, count: &AtomicU64, done: &Done) {
    let mut watcher = Inotify::on(dir);
    while !done.is_set() {
        if let Some(event) = watcher.next(Duration::from_millis(100)) {
            count.fetch_add(1, Ordering::Relaxed);
            // Its own OPEN and ACCESS are events as well, which must not feed it for ever.
            let quiet = rustix::fs::inotify::ReadFlags::CREATE | rustix::fs::inotify::ReadFlags::CLOSE_WRITE;
            if let Some(name) = event.name.filter(|_| event.mask.intersects(quiet)) {
                let _ = fs::read(dir.join(name));
            }
        }
    }
}

/// fsd dies in the middle of it: everybody on its host gets errors and nobody hangs; the other host
/// goes on as if nothing had been.
#[test]
fn a_killed_fsd_hangs_nobody() {
    let _guard = guard(180);
    let mut random = Random::for_test("deadlock-kill");
    let mut pair = Pair::start();
    let place = pair.place("killed");
    let (stop_a, stop_b) = (Done::default(), Done::default());
    let (a, b) = (Report::default(), Report::default());
    let workers = WORKERS.map(|(label, work)| (label, work, random.number()));
    thread::scope(|scope| {
        let (finish_a, finish_b) = (stop_a.finish(), stop_b.finish());
        let (dir_a, dir_b) = (&place.a, &place.b);
        let (a, b, stop_a, stop_b) = (&a, &b, &stop_a, &stop_b);
        for (label, work, seed) in workers {
            scope.spawn(move || a.work(label, work, dir_a, seed, stop_a));
            scope.spawn(move || b.work(label, work, dir_b, seed + 1, stop_b));
        }
        thread::sleep(Duration::from_secs(3));
        pair.a.kill();
        let before = b.calls.load(Ordering::Relaxed);
        drop(finish_a);
        // The scope ends when all workers have: the guard above is the deadline of those on A.
        eventually("host B goes on", Duration::from_secs(20), || {
            if b.calls.load(Ordering::Relaxed) > before + 200 { Ok(()) } else { Err("it does not") }
        });
        drop(finish_b);
    });
    let unexplained = b.unexplained.lock().unwrap();
    assert!(unexplained.is_empty(), "host B suffered: {unexplained:?}");
    let errors = a.unexplained.lock().unwrap();
    assert!(!errors.is_empty(), "nobody on A noticed that fsd was killed");
    drop(errors);
    pair.a.start();
    let difference = tree::difference(("A", &tree::read(&place.a)), ("B", &tree::read(&place.b)));
    assert!(difference.is_empty(), "{difference}");
}
