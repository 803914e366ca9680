//! Workers are killed and upgraded while much is going on on both hosts.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use quorumfs_tests::deadline::Done;
use quorumfs_tests::random::Random;
use quorumfs_tests::{Inotify, Pair, eventually, guard, process, tree, until};
use rustix::fs::inotify::ReadFlags;
use rustix::fs::{FlockOperation, flock};

use super::{LIMIT, kill_and_wait, upgrade};

/// How long the test goes on.
const SECONDS: u64 = 10;
/// What went wrong, and how often what was done.
#[derive(Default)]
struct Log {
    failures: Mutex<Vec<String>>,
    opened: AtomicU64,
    reads: AtomicU64,
    writes: AtomicU64,
    refused: AtomicU64,
    /// What was read under the lock, by those whose next number was written.
    counts: Mutex<Vec<u64>>,
}

impl Log {
    fn fail(&self, what: impl Into<String>) {
        let mut failures = self.failures.lock().unwrap();
        if failures.len() < 20 {
            failures.push(what.into());
        }
    }

    /// Counts what must not fail.
    fn must<T>(&self, what: &str, result: io::Result<T>) -> Option<T> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        result.map_err(|error| self.fail(format!("{what}: {error}"))).ok()
    }

    /// Counts what may be refused, if it is refused whole.
    fn may<T>(&self, what: &str, result: io::Result<T>) -> Option<T> {
        self.writes.fetch_add(1, Ordering::Relaxed);
        result
            .map_err(|error| {
                eprintln!("refused: {what}: {error}");
                self.refused.fetch_add(1, Ordering::Relaxed);
            })
            .ok()
    }
}

/// A value that shows when it is not whole: longer than the page cache takes for odd numbers.
fn value(number: u64) -> String {
    let length = if number % 2 == 1 { 20_000 } else { 200 };
    format!("{number:08} {}\n", "x".repeat(length))
}

fn number_of(text: &str) -> Option<u64> {
    let number = text.get(..8)?.parse().ok()?;
    (text == value(number)).then_some(number)
}

/// Reads on one mount: small and large, by name and through open descriptors.
fn read_on(mount: &Path, done: &Done, log: &Log) {
    let held = log.must("open held", File::open(mount.join("held")));
    log.opened.fetch_add(1, Ordering::Relaxed);
    let mut newest = 0;
    while !done.is_set() {
        log.must("stat", fs::metadata(mount.join("still")));
        if let Some(text) = log.must("read still", fs::read_to_string(mount.join("still")))
            && text != "as it was"
        {
            log.fail(format!("a file that nobody touches holds {text:?}"));
        }
        for name in ["put", "renamed"] {
            if let Some(text) = log.must(name, fs::read_to_string(mount.join(name))) {
                match number_of(&text) {
                    Some(number) if name == "put" && number < newest => {
                        log.fail(format!("{name} went back from {newest} to {number}"));
                    }
                    Some(number) if name == "put" => newest = number,
                    Some(_) => {}
                    None => log.fail(format!("{name} is not whole: {} bytes", text.len())),
                }
            }
        }
        if let Some(held) = &held {
            let mut buffer = [0; 64];
            match log.must("pread of a deleted file", held.read_at(&mut buffer, 0)) {
                Some(length) if &buffer[..length] != b"deleted, and open" => {
                    log.fail(format!("a deleted file has changed: {:?}", &buffer[..length]));
                }
                _ => {}
            }
        }
        if let Some(list) = log.must("list", fs::read_dir(mount)) {
            let names: BTreeSet<_> = list
                .filter_map(|entry| log.must("entry", entry))
                .collect::<Vec<_>>()
                .iter()
                .map(|entry| entry.file_name())
                .collect();
            if !names.contains(std::ffi::OsStr::new("still")) {
                log.fail("a listing misses a name");
            }
        }
    }
}

/// Makes files, one after the other; answers the names of those that were made.
fn make_on(dir: &Path, host: &str, done: &Done, log: &Log) -> Vec<String> {
    let mut made = Vec::new();
    for number in 0.. {
        if done.is_set() {
            break;
        }
        let name = format!("{host}-{number}");
        // A name that nobody else uses: it can neither be there nor be missing.
        let lock = dir.join(format!("lock-{host}-{number}"));
        if log.may("mkdir", fs::create_dir(&lock)).is_some() {
            log.may("rmdir", fs::remove_dir(&lock));
        }
        let written = match number % 3 {
            0 => fs::write(dir.join(&name), &name),
            1 => {
                OpenOptions::new().write(true).create_new(true).open(dir.join(&name)).and_then(|mut file| {
                    file.write_all(name.as_bytes())?;
                    file.sync_all()
                })
            }
            _ => fs::write(dir.join(format!(".{name}")), &name)
                .and_then(|()| fs::rename(dir.join(format!(".{name}")), dir.join(&name))),
        };
        if log.may(&format!("make {name}"), written).is_some() {
            made.push(name);
        }
    }
    made
}

/// Puts new values in place, and under a name by renames.
fn put_on(mount: &Path, done: &Done, log: &Log) -> u64 {
    let mut last = 0;
    for number in 1.. {
        if done.is_set() {
            break;
        }
        // A truncation is private too: nobody sees an empty file.
        if log.may("put", fs::write(mount.join("put"), value(number))).is_some() {
            last = number;
        }
        let new = mount.join(".renamed.new");
        let renamed = fs::write(&new, value(number)).and_then(|()| fs::rename(&new, mount.join("renamed")));
        log.may("rename", renamed);
    }
    last
}

/// Appends lines through one descriptor; answers those that are in for sure.
fn append_on(mount: &Path, done: &Done, log: &Log) -> Vec<String> {
    let mut lines = Vec::new();
    let Some(mut file) = log.may("open", OpenOptions::new().append(true).open(mount.join("lines"))) else {
        return lines;
    };
    for number in 0.. {
        if done.is_set() {
            break;
        }
        let line = format!("line {number}");
        let appended = writeln!(file, "{line}").and_then(|()| file.sync_all());
        if log.may(&line, appended).is_some() {
            lines.push(line);
        }
    }
    lines
}

/// Counts under a lock that both hosts take.
fn count_on(mount: &Path, done: &Done, log: &Log) {
    while !done.is_set() {
        let Some(lock) = log.may("open the lock", File::open(mount.join("lock"))) else { continue };
        if log.may("flock", flock(&lock, FlockOperation::LockExclusive).map_err(io::Error::from)).is_none() {
            continue;
        }
        let Some(text) = log.must("read the count", fs::read_to_string(mount.join("count"))) else {
            continue;
        };
        let number: u64 = text.trim().parse().unwrap_or(u64::MAX / 2);
        let written = File::options().write(true).open(mount.join("count")).and_then(|mut file| {
            write!(file, "{:020}", number + 1)?;
            file.sync_all()
        });
        if log.may("write the count", written).is_some() {
            log.counts.lock().unwrap().push(number);
        }
    }
}

#[test]
fn killed_and_upgraded_under_load() {
    let _guard = guard(240);
    let seconds = std::env::var("QUORUMFS_TEST_SECONDS").ok().map_or(SECONDS, |text| text.parse().unwrap());
    let mut random = Random::for_test("upgrade");
    let pair = Pair::supervised();
    let (a, b) = (&pair.a, &pair.b);
    for (name, text) in [
        ("still", "as it was".to_string()),
        ("put", value(0)),
        ("renamed", value(0)),
        ("lines", String::new()),
    ] {
        fs::write(a.join(name), text).unwrap();
    }
    for (name, text) in
        [("held", "deleted, and open"), ("lock", "-"), ("guarded", "-"), ("count", "00000000000000000000")]
    {
        fs::write(a.join(name), text).unwrap();
    }
    fs::create_dir(a.join("made")).unwrap();
    until("B has it", LIMIT, || b.join("made").is_dir() && b.join("count").exists());
    let mut watchers = [Inotify::on(&a.join("made")), Inotify::on(&b.join("made"))];
    let guarded = File::open(b.join("guarded")).unwrap();
    flock(&guarded, FlockOperation::LockExclusive).unwrap();

    let (done, log) = (Done::default(), Log::default());
    let (mut names, mut last, mut lines) = (Vec::new(), 0, Vec::new());
    let (mut kills, mut upgrades) = (0, 0);
    std::thread::scope(|scope| {
        let _finish = done.finish();
        let readers: Vec<_> = [a, b].map(|host| scope.spawn(|| read_on(host.path(), &done, &log))).into();
        until("both have the file open", LIMIT, || log.opened.load(Ordering::Relaxed) == 2);
        fs::remove_file(a.join("held")).unwrap();
        let makers = [("a", a), ("b", b)].map(|(name, host)| {
            let dir = host.join("made");
            let (done, log) = (&done, &log);
            scope.spawn(move || make_on(&dir, name, done, log))
        });
        let putter = scope.spawn(|| put_on(b.path(), &done, &log));
        let appender = scope.spawn(|| append_on(b.path(), &done, &log));
        let counters = [a, b].map(|host| scope.spawn(|| count_on(host.path(), &done, &log)));

        let end = Instant::now() + Duration::from_secs(seconds);
        while Instant::now() < end {
            let host = if (kills + upgrades) % 3 == 2 { a } else { b };
            if random.chance(25) {
                let output = upgrade(host);
                if !output.status.success() {
                    log.fail(process::describe(&output));
                }
                upgrades += 1;
            } else {
                kill_and_wait(host);
                kills += 1;
            }
            let other = File::open(a.join("guarded")).unwrap();
            if flock(&other, FlockOperation::NonBlockingLockExclusive) != Err(rustix::io::Errno::WOULDBLOCK) {
                log.fail("a lock that is held was given to somebody else");
            }
            std::thread::park_timeout(Duration::from_millis(200 + random.below(1300) as u64));
        }
        let finish = done.finish();
        drop(finish);
        for reader in readers {
            reader.join().unwrap();
        }
        names.extend(makers.into_iter().flat_map(|maker| maker.join().unwrap()));
        last = putter.join().unwrap();
        lines = appender.join().unwrap();
        counters.into_iter().for_each(|counter| counter.join().unwrap());
    });
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let mut counts = std::mem::take(&mut *log.counts.lock().unwrap());
    counts.sort_unstable();
    eprintln!(
        "{kills} kills, {upgrades} upgrades; {} reads; {} writes, {} of them refused; {} files, {} lines, {} under the lock",
        count(&log.reads),
        count(&log.writes),
        count(&log.refused),
        names.len(),
        lines.len(),
        counts.len()
    );

    // What was acknowledged is there, whole, on both hosts; nothing else is half there.
    for host in [a, b] {
        File::open(host.path()).unwrap().sync_all().unwrap();
    }
    let difference = tree::difference(("A", &tree::read(a.path())), ("B", &tree::read(b.path())));
    if !difference.is_empty() {
        log.fail(difference);
    }
    for name in &names {
        if fs::read_to_string(b.join("made").join(name)).ok().as_deref() != Some(name) {
            log.fail(format!("{name} was acknowledged, and is not there"));
        }
    }
    let put = number_of(&fs::read_to_string(a.join("put")).unwrap()).unwrap_or(0);
    assert!(put >= last, "put {last} was acknowledged; {put} is there");
    let text = fs::read_to_string(a.join("lines")).unwrap();
    let there: Vec<&str> = text.lines().collect();
    let mut once = BTreeSet::new();
    let twice: Vec<_> = there.iter().filter(|line| !once.insert(**line)).collect();
    assert!(twice.is_empty(), "lines were appended twice: {twice:?}");
    for line in &lines {
        assert!(once.contains(line.as_str()), "{line:?} was acknowledged, and is not there");
    }
    let total: u64 = fs::read_to_string(a.join("count")).unwrap().trim().parse().unwrap();
    // A number that was read twice was read by two who held the lock at once, or what was acknowledged was lost. One
    // whose successor was refused may be read again, and may be missing.
    let twice: Vec<_> = counts.windows(2).filter(|pair| pair[0] == pair[1]).map(|pair| pair[0]).collect();
    assert!(twice.is_empty(), "read by two under the lock, who both went on: {twice:?}");
    assert!(total >= counts.len() as u64, "{} times counted, and the count is {total}", counts.len());
    if count(&log.refused) == 0 {
        assert_eq!(total, counts.len() as u64, "somebody counted whom nobody knows");
    }

    // Every name that stays has come by as an event, on both hosts.
    let mut lost = Vec::new();
    for (host, watcher) in ["A", "B"].iter().zip(&mut watchers) {
        let mut missing: BTreeSet<&str> = names.iter().map(String::as_str).collect();
        let deadline = Instant::now() + LIMIT;
        while !missing.is_empty() && Instant::now() < deadline {
            let Some(event) = watcher.next(Duration::from_millis(500)) else { continue };
            assert!(!event.mask.contains(ReadFlags::IGNORED), "the watch is lost");
            if event.mask.intersects(ReadFlags::CREATE | ReadFlags::MOVED_TO)
                && let Some(name) = event.name.as_ref().and_then(|name| name.to_str())
            {
                missing.remove(name);
            }
        }
        lost.extend(missing.into_iter().map(|name| format!("{host}: {name}")));
    }
    assert!(lost.is_empty(), "{} events are lost: {lost:?}", lost.len());
    let failures = log.failures.lock().unwrap();
    assert!(failures.is_empty(), "{failures:#?}");
    drop(guarded);
    let other = File::open(a.join("guarded")).unwrap();
    eventually("the lock is free", LIMIT, || flock(&other, FlockOperation::NonBlockingLockExclusive));
}
