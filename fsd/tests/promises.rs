//! What a mount promises, on a real kernel: races, appends, durability, locks, a cluster that is away.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use common::inotify::Watcher;
use common::{World, can_mount, eventually, sh};
use quorumfs_api::key::Key;
use quorumfs_api::wire::Consistency;

fn errno<T>(result: std::io::Result<T>) -> i32 {
    result.err().map_or(0, |error| error.raw_os_error().unwrap_or(-1))
}

#[test]
fn one_of_two_hosts_wins_an_exclusive_create() {
    if !can_mount() {
        return;
    }
    let world = World::new("excl", 2);
    for round in 0..30 {
        let start = Arc::new(Barrier::new(2));
        let won = Arc::new(AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for dir in [world.a(), world.b()] {
                let (start, won) = (start.clone(), won.clone());
                scope.spawn(move || {
                    start.wait();
                    match OpenOptions::new()
                        .write(true)
                        .create_new(true)
                        .open(dir.join(format!("lock{round}")))
                    {
                        Ok(_) => _ = won.fetch_add(1, Ordering::Relaxed),
                        Err(error) => assert_eq!(error.raw_os_error(), Some(libc::EEXIST)),
                    }
                });
            }
        });
        assert_eq!(won.load(Ordering::Relaxed), 1);
    }
}

#[test]
fn appends_of_two_hosts_lose_nothing() {
    if !can_mount() {
        return;
    }
    let world = World::new("append", 2);
    for round in 0..20 {
        let name = format!("log{round}");
        let start = Barrier::new(2);
        std::thread::scope(|scope| {
            for (host, dir) in [world.a(), world.b()].into_iter().enumerate() {
                let (start, path) = (&start, dir.join(&name));
                scope.spawn(move || {
                    start.wait();
                    for i in 0..10 {
                        // Neither knows whether the other has made it.
                        let mut file = OpenOptions::new().append(true).create(true).open(&path).unwrap();
                        // In one write: another test's thread may start a program between two, and the
                        // kernel then closes the child's copy of this descriptor, which publishes the first.
                        file.write_all(format!("{host}-{i}\n").as_bytes()).unwrap();
                        // Dropping it closes it, and a failed close would lose the line.
                        file.sync_all().unwrap();
                    }
                });
            }
        });
        world.settle();
        let text = fs::read_to_string(world.a().join(&name)).unwrap();
        let mut lines: Vec<&str> = text.lines().collect();
        lines.sort();
        let mut wanted: Vec<String> = (0..2).flat_map(|h| (0..10).map(move |i| format!("{h}-{i}"))).collect();
        wanted.sort();
        assert_eq!(lines, wanted);
        assert_eq!(text, fs::read_to_string(world.b().join(&name)).unwrap());
    }
}

#[test]
fn what_is_closed_is_committed_and_nothing_before() {
    if !can_mount() {
        return;
    }
    let world = World::new("close", 2);
    let client = world.client();
    let stored = |name: &str| {
        let key = Key::from_user(name.as_bytes()).unwrap();
        let got = client.get(key, Consistency::Linearizable, Duration::from_secs(5));
        world.runtime.block_on(got).unwrap().1.map(|record| record.value)
    };
    let path = world.a().join("f");
    let mut file = File::create(&path).unwrap();
    file.write_all(b"one").unwrap();
    assert_eq!(stored("f"), None, "a file is private until it is closed");
    assert!(path.exists(), "but this mount has its name at once");
    drop(file);
    assert_eq!(stored("f").unwrap(), "one");
    let mut file = OpenOptions::new().write(true).truncate(true).open(&path).unwrap();
    assert_eq!(stored("f").unwrap(), "one", "truncation is private too");
    assert_eq!(fs::read_to_string(&path).unwrap(), "one", "for others on this mount as well");
    file.write_all(b"two").unwrap();
    file.sync_all().unwrap();
    assert_eq!(stored("f").unwrap(), "two");
    file.write_all(b" and more").unwrap();
    assert_eq!(stored("f").unwrap(), "two");
    drop(file);
    assert_eq!(stored("f").unwrap(), "two and more");
    let mut file = OpenOptions::new().write(true).custom_flags(libc::O_SYNC).open(&path).unwrap();
    file.write_all(b"TWO").unwrap();
    assert_eq!(stored("f").unwrap(), "TWO and more", "O_SYNC commits each write");
    drop(File::create(&path).unwrap());
    assert_eq!(fs::metadata(&path).unwrap().len(), 0, "an emptied file is empty for whoever opens it next");
    assert_eq!(fs::read(&path).unwrap(), b"");
    eventually("the store has it", || stored("f").unwrap().is_empty());
}

#[test]
fn a_barrier_shows_what_others_have_done() {
    if !can_mount() {
        return;
    }
    let world = World::new("barrier", 2);
    fs::write(world.a().join("x"), "0").unwrap();
    world.settle();
    let dir = File::open(world.b()).unwrap();
    for i in 1..200 {
        let value = format!("{i}");
        fs::write(world.a().join("x"), &value).unwrap();
        dir.sync_all().unwrap();
        assert_eq!(fs::read_to_string(world.b().join("x")).unwrap(), value);
        assert_eq!(fs::metadata(world.b().join("x")).unwrap().len(), value.len() as u64);
    }
}

#[test]
fn a_reader_never_sees_a_part() {
    if !can_mount() {
        return;
    }
    let world = World::new("torn", 2);
    let value = |i: usize| vec![b'a' + (i % 26) as u8; 1 + (i * 7919) % 300_000];
    fs::write(world.a().join("f"), value(0)).unwrap();
    world.settle();
    let over = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for dir in [world.a(), world.b()] {
            let (over, path) = (&over, dir.join("f"));
            scope.spawn(move || {
                let mut reads = 0;
                while over.load(Ordering::Relaxed) == 0 || reads < 50 {
                    // In pieces, as most programs do.
                    let mut file = File::open(&path).unwrap();
                    let mut data = Vec::new();
                    let mut piece = vec![0; 4096];
                    loop {
                        let n = file.read(&mut piece).unwrap();
                        if n == 0 {
                            break;
                        }
                        data.extend_from_slice(&piece[..n]);
                    }
                    assert!(!data.is_empty(), "a value that is never empty was read as empty");
                    assert!(data.iter().all(|b| *b == data[0]), "parts of two values");
                    let known = (0..400).any(|i| value(i).len() == data.len() && value(i)[0] == data[0]);
                    assert!(known, "a length that was never written: {}", data.len());
                    reads += 1;
                }
            });
        }
        for i in 1..150 {
            fs::write(world.a().join("f"), value(i)).unwrap();
        }
        over.store(1, Ordering::Relaxed);
    });
}

#[test]
fn a_deleted_file_stays_for_those_who_have_it_open() {
    if !can_mount() {
        return;
    }
    let world = World::new("orphans", 2);
    fs::write(world.a().join("f"), "kept").unwrap();
    fs::write(world.a().join("g"), "replaced").unwrap();
    world.settle();
    let mut f = OpenOptions::new().read(true).write(true).open(world.b().join("f")).unwrap();
    let mut g = File::open(world.b().join("g")).unwrap();
    fs::remove_file(world.a().join("f")).unwrap();
    fs::write(world.a().join("new"), "new").unwrap();
    fs::rename(world.a().join("new"), world.a().join("g")).unwrap();
    world.settle();
    let read = |file: &mut File| {
        let mut text = String::new();
        file.seek(SeekFrom::Start(0)).unwrap();
        file.read_to_string(&mut text).unwrap();
        text
    };
    assert_eq!(read(&mut f), "kept");
    assert_eq!(read(&mut g), "replaced");
    assert_eq!(f.metadata().unwrap().len(), 4);
    assert_eq!(f.metadata().unwrap().nlink(), 0);
    f.write_all_at(b"K", 0).unwrap();
    f.sync_all().unwrap();
    assert_eq!(read(&mut f), "Kept");
    assert!(!world.b().join("f").exists());
    assert_eq!(fs::read_to_string(world.b().join("g")).unwrap(), "new");
}

#[test]
fn locks_hold_between_hosts() {
    if !can_mount() {
        return;
    }
    let world = World::new("locks", 2);
    fs::write(world.a().join("l"), "a lock").unwrap();
    world.settle();
    let (a, b) = (world.a().join("l"), world.b().join("l"));
    let lock = File::open(&a).unwrap();
    let other = File::open(&b).unwrap();
    lock.lock().unwrap();
    assert!(other.try_lock().is_err());
    let begun = Instant::now();
    // A waiter is interrupted.
    let status = std::process::Command::new("timeout")
        .args(["-s", "TERM", "0.3", "flock", b.to_str().unwrap(), "true"])
        .status()
        .unwrap();
    assert!(!status.success());
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| {
            other.lock().unwrap();
            Instant::now()
        });
        std::thread::park_timeout(Duration::from_millis(100));
        let freed = Instant::now();
        drop(lock);
        let got = waiter.join().unwrap();
        assert!(got >= freed && got - freed < Duration::from_secs(1), "{:?}", got - freed);
    });
    other.unlock().unwrap();
    File::open(&a).unwrap().try_lock().unwrap();
}

#[test]
fn without_a_quorum_reads_go_on_and_writes_fail_clearly() {
    if !can_mount() {
        return;
    }
    let mut world = World::with("no_quorum", 2, |_, config| config.write_timeout = Duration::from_secs(1));
    fs::write(world.a().join("f"), "value").unwrap();
    world.settle();
    let mut open = OpenOptions::new().write(true).open(world.b().join("f")).unwrap();
    world.stop_node();
    assert_eq!(fs::read_to_string(world.b().join("f")).unwrap(), "value");
    assert_eq!(sh(world.b(), "ls"), "f\n");
    let within = |what: &str, wanted: i32, call: &mut dyn FnMut() -> i32| {
        let begun = Instant::now();
        let got = call();
        assert_eq!(got, wanted, "{what}");
        assert!(begun.elapsed() < Duration::from_secs(3), "{what} took {:?}", begun.elapsed());
    };
    let path = |name: &str| -> PathBuf { world.b().join(name) };
    within("mkdir", libc::ETIMEDOUT, &mut || errno(fs::create_dir(path("d"))));
    within("unlink", libc::ETIMEDOUT, &mut || errno(fs::remove_file(path("f"))));
    within("rename", libc::ETIMEDOUT, &mut || errno(fs::rename(path("f"), path("g"))));
    within("fsync", libc::ETIMEDOUT, &mut || {
        open.write_all(b"new").unwrap();
        errno(open.sync_all())
    });
    within("open for writing", libc::ETIMEDOUT, &mut || {
        errno(OpenOptions::new().write(true).open(path("f")))
    });
    within("open again", libc::ETIMEDOUT, &mut || errno(File::create(path("h"))));
    drop(open);
    assert_eq!(fs::read_to_string(path("f")).unwrap(), "value");
    assert_eq!(sh(world.b(), "ls"), "f\n");
}

#[test]
fn events_are_readable_when_they_arrive() {
    if !can_mount() {
        return;
    }
    let world = World::new("readable", 2);
    fs::write(world.a().join("f"), "0").unwrap();
    world.settle();
    let mut watcher = Watcher::new();
    watcher.watch(&world.b().join("f"), "f");
    let mut tail = File::open(world.b().join("f")).unwrap();
    for i in 1..100 {
        let value = format!("{i}");
        fs::write(world.a().join("f"), &value).unwrap();
        watcher.until("CLOSE_WRITE");
        assert_eq!(fs::read_to_string(world.b().join("f")).unwrap(), value);
        // Who has it open and begins anew sees it too.
        let mut text = String::new();
        tail.seek(SeekFrom::Start(0)).unwrap();
        tail.read_to_string(&mut text).unwrap();
        assert_eq!(text, value);
    }
}

#[test]
fn what_the_store_knows_is_in_extended_attributes() {
    if !can_mount() {
        return;
    }
    let world = World::new("xattr", 2);
    fs::write(world.a().join("f"), "1").unwrap();
    fs::write(world.a().join("f"), "22").unwrap();
    world.settle();
    let shown = sh(world.b(), "getfattr -d f 2>/dev/null || true");
    if !shown.is_empty() {
        assert!(shown.contains("user.kv.version=\"2\""), "{shown}");
        assert!(shown.contains("user.kv.author=\"admin\""), "{shown}");
        sh(world.a(), "setfattr -n user.note -v hello f");
        world.settle();
        assert!(sh(world.b(), "getfattr -n user.note f").contains("user.note=\"hello\""));
    }
}

#[test]
fn a_mount_that_only_reads_refuses_and_still_fires() {
    if !can_mount() {
        return;
    }
    let world = World::with("read_only", 2, |i, config| config.read_only = i == 1);
    let mut watcher = Watcher::new();
    watcher.watch(world.b(), ".");
    assert_eq!(errno(fs::create_dir(world.b().join("d"))), libc::EROFS);
    assert_eq!(errno(File::create(world.b().join("f"))), libc::EROFS);
    fs::write(world.a().join("f"), "value").unwrap();
    let seen = watcher.until("CLOSE_WRITE");
    assert_eq!(seen, [". CREATE f", ". OPEN f", ". MODIFY f", ". CLOSE_WRITE f"]);
}
