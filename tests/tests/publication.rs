//! Promises 1 to 5 of SEMANTICS.md on two mounts of one cluster: atomic publication, durability of
//! what has returned, one order, read your writes, and the barrier.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read as _, Seek as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use quorumfs_tests::deadline::Done;
use quorumfs_tests::pair::{PROPAGATION, pair};
use quorumfs_tests::process::quiet;
use quorumfs_tests::shell::Shell;
use quorumfs_tests::{Pair, eventually, guard, until};

/// Promise 1: others see the old value or the new one, never a part.
#[test]
fn p1_readers_never_see_a_part_of_a_value() {
    let _guard = guard(120);
    let place = pair().place("p1-whole");
    // Each value is one letter, and each letter has a length of its own; the longest needs several
    // requests in either direction.
    let value = |n: usize| vec![b'a' + (n % 7) as u8; 1 + (n % 7) * 40_000];
    fs::write(place.a.join("f"), value(0)).unwrap();
    until("B has the file", PROPAGATION, || place.b.join("f").exists());
    let done = Done::default();
    let reads = AtomicU64::new(0);
    thread::scope(|scope| {
        for dir in [&place.a, &place.b, &place.b] {
            let (done, reads) = (&done, &reads);
            scope.spawn(move || {
                while !done.is_set() {
                    let seen = fs::read(dir.join("f")).expect("the file is always there");
                    let letter = *seen.first().expect("it is never empty");
                    assert!(
                        seen == value((letter - b'a') as usize),
                        "a mixture: {} bytes, first {letter}",
                        seen.len()
                    );
                    reads.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let _finish = done.finish();
        let _quiet = quiet();
        for n in 1..120 {
            let mut file = File::create(place.a.join("f")).unwrap();
            // In pieces, so that a daemon that published each write would be caught.
            for piece in value(n).chunks(30_000) {
                file.write_all(piece).unwrap();
            }
        }
    });
    assert!(reads.load(Ordering::Relaxed) > 100, "the readers hardly ran: {reads:?}");
}

/// Promise 1: one descriptor reads one value, in however many reads, also of a file that was quiet and is
/// read through the page cache; on the writer's own mount, too. A pass that takes longer than the mount
/// waits for it is not judged (SEMANTICS.md, edges).
#[test]
fn p1_one_descriptor_reads_one_value() {
    let _guard = guard(240);
    let place = pair().place("p1-pieces");
    let files: Vec<String> = (0..QUIET_FILES).map(|n| format!("f{n}")).collect();
    for name in &files {
        fs::write(place.a.join(name), letters(0)).unwrap();
    }
    barrier(&place.b);
    let (judged, slow) = (AtomicU64::new(0), AtomicU64::new(0));
    for round in 1..=QUIET_ROUNDS {
        // Only what has been quiet is read through the page cache.
        let quiet_since = Instant::now();
        until("the files have been quiet", PROPAGATION, || quiet_since.elapsed() > QUIET);
        let done = Done::default();
        thread::scope(|scope| {
            let _finish = done.finish();
            for dir in [&place.a, &place.b] {
                for (number, name) in files.iter().enumerate() {
                    let (done, judged, slow, path) = (&done, &judged, &slow, dir.join(name));
                    let piece = 60 + 90 * (number % 7);
                    scope.spawn(move || {
                        while !done.is_set() {
                            let (seen, taken) = read_in_pieces(&path, piece);
                            if taken >= PASS {
                                slow.fetch_add(1, Ordering::Relaxed);
                                continue;
                            }
                            judged.fetch_add(1, Ordering::Relaxed);
                            let letter = *seen.first().expect("it is never empty");
                            assert!(
                                seen == letters((letter - b'a') as usize),
                                "a mixture after {taken:?}: {} bytes of {:?} by {piece} in {path:?}",
                                seen.len(),
                                String::from_utf8_lossy(&seen)
                            );
                        }
                    });
                }
            }
            let _quiet = quiet();
            for (number, name) in files.iter().enumerate() {
                let path = place.a.join(name);
                let mut file = match number % 2 {
                    0 => File::create(path).unwrap(),
                    _ => OpenOptions::new().write(true).open(path).unwrap(),
                };
                let value = letters(round);
                let (first, second) = value.split_at(value.len() / 2);
                file.write_all(first).unwrap();
                file.write_all(second).unwrap();
                file.set_len(value.len() as u64).unwrap();
            }
            barrier(&place.b);
        });
    }
    let (judged, slow) = (judged.into_inner(), slow.into_inner());
    eprintln!("{judged} passes were judged, {slow} took too long");
    assert!(judged > 200, "the readers hardly ran: {judged} passes, {slow} too slow");
}

/// Files of [`p1_one_descriptor_reads_one_value`], each with a reader on each mount.
const QUIET_FILES: usize = 24;
/// How often each is replaced.
const QUIET_ROUNDS: usize = 4;
/// Longer than the time after which a mount lets a file that was changed into the page cache again.
const QUIET: Duration = Duration::from_millis(2200);
/// How long a mount waits for whoever has just opened a file: `fsd::core::PASS`.
const PASS: Duration = Duration::from_millis(100);

/// A value that fits in a page: one letter, and each letter has a length of its own.
fn letters(n: usize) -> Vec<u8> {
    vec![b'a' + (n % 26) as u8; 400 + (n % 26) * 1307 % 3600]
}

/// One pass through a file, and how long it took from before the open.
fn read_in_pieces(path: &Path, piece: usize) -> (Vec<u8>, Duration) {
    let begun = Instant::now();
    let mut file = File::open(path).expect("the file is always there");
    let (mut seen, mut buffer) = (Vec::new(), vec![0; piece]);
    loop {
        let length = file.read(&mut buffer).expect("it can be read");
        if length == 0 {
            return (seen, begun.elapsed());
        }
        seen.extend_from_slice(&buffer[..length]);
    }
}

/// Promise 1: what is written to a handle, and its O_TRUNC, are private until fsync or close.
#[test]
fn p1_unpublished_writes_are_private() {
    let _guard = guard(60);
    let place = pair().place("p1-private");
    fs::write(place.a.join("f"), "old").unwrap();
    until("B has the file", PROPAGATION, || fs::read(place.b.join("f")).is_ok_and(|v| v == b"old"));

    let _quiet = quiet();
    let mut file = File::create(place.a.join("f")).unwrap();
    file.write_all(b"new").unwrap();
    barrier(&place.b);
    assert_eq!(
        fs::read_to_string(place.b.join("f")).unwrap(),
        "old",
        "the other host saw an unpublished write"
    );
    assert_eq!(
        fs::read_to_string(place.a.join("f")).unwrap(),
        "old",
        "another handle saw an unpublished write"
    );

    file.sync_all().unwrap();
    assert_eq!(fs::read_to_string(place.a.join("f")).unwrap(), "new");
    barrier(&place.b);
    assert_eq!(fs::read_to_string(place.b.join("f")).unwrap(), "new", "fsync publishes");

    file.write_all(b"er").unwrap();
    barrier(&place.b);
    assert_eq!(fs::read_to_string(place.b.join("f")).unwrap(), "new");
    drop(file);
    barrier(&place.b);
    assert_eq!(fs::read_to_string(place.b.join("f")).unwrap(), "newer", "close publishes the rest");
}

/// Promise 1: a handle that writes reads what it wrote, and a new file is private until its close.
#[test]
fn p1_a_new_file_appears_with_its_value() {
    let _guard = guard(60);
    let place = pair().place("p1-new");
    let _quiet = quiet();
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(place.a.join("f"))
        .unwrap();
    file.write_all(b"hello").unwrap();
    file.rewind().unwrap();
    let mut back = String::new();
    file.read_to_string(&mut back).unwrap();
    assert_eq!(back, "hello", "the handle itself reads what it wrote");
    assert!(place.a.join("f").exists(), "on the creating mount the name is there at once");
    barrier(&place.b);
    assert!(!place.b.join("f").exists(), "the other host saw the name before the close");
    drop(file);
    barrier(&place.b);
    assert_eq!(fs::read_to_string(place.b.join("f")).unwrap(), "hello");
}

/// Promise 1, with descriptors: what is open stays readable after it was replaced or deleted.
#[test]
fn p1_open_descriptors_survive_replacement_and_deletion() {
    let _guard = guard(60);
    let place = pair().place("p1-open");
    for name in ["replaced", "deleted"] {
        fs::write(place.a.join(name), "before").unwrap();
    }
    fs::write(place.a.join("other"), "after").unwrap();
    barrier(&place.b);
    let replaced = File::open(place.b.join("replaced")).unwrap();
    let deleted = File::open(place.b.join("deleted")).unwrap();
    fs::rename(place.a.join("other"), place.a.join("replaced")).unwrap();
    fs::remove_file(place.a.join("deleted")).unwrap();
    barrier(&place.b);
    assert_eq!(fs::read_to_string(place.b.join("replaced")).unwrap(), "after");
    // A name that the kernel has cached goes with its event, which the barrier does not wait for; an open
    // of it is refused from the barrier on.
    assert_eq!(File::open(place.b.join("deleted")).unwrap_err().kind(), ErrorKind::NotFound);
    until("the name goes", PROPAGATION, || !place.b.join("deleted").exists());
    for file in [replaced, deleted] {
        let mut buffer = [0; 6];
        file.read_exact_at(&mut buffer, 0).unwrap();
        assert_eq!(&buffer, b"before");
    }
}

/// Promise 2: when close has returned, a power cut of the whole cluster loses nothing.
#[test]
fn p2_what_has_returned_survives_the_death_of_all_nodes() {
    let _guard = guard(180);
    let mut pair = Pair::start();
    let place = pair.place("p2");
    for name in ["old", "gone"] {
        fs::write(place.a.join(name), name).unwrap();
    }
    for round in 0..3 {
        fs::write(place.a.join("closed"), format!("closed {round}")).unwrap();
        let mut open = File::create(place.a.join("synced")).unwrap();
        open.write_all(format!("synced {round}").as_bytes()).unwrap();
        open.sync_all().unwrap();
        fs::create_dir(place.a.join(format!("dir{round}"))).unwrap();
        std::os::unix::fs::symlink(format!("target{round}"), place.a.join(format!("link{round}"))).unwrap();
        if round == 0 {
            fs::rename(place.a.join("old"), place.a.join("renamed")).unwrap();
            fs::remove_file(place.a.join("gone")).unwrap();
        }
        let shown = quorumfs_tests::tree::read(&place.a);
        pair.cluster().kill_all();
        drop(open);
        pair.cluster().start_all();
        // A descriptor that was closed without a cluster cannot have changed anything.
        eventually("the cluster is back", PROPAGATION * 3, || pair.kv.try_get(&place.key("closed")));
        barrier(&place.b);
        let after = quorumfs_tests::tree::read(&place.b);
        let difference = quorumfs_tests::tree::difference(("A before", &shown), ("B after", &after));
        assert!(difference.is_empty(), "round {round}: {difference}");
        assert_eq!(pair.kv.get(&place.key("closed")).unwrap(), format!("closed {round}"));
    }
}

/// Promise 3: one order. Who sees a later change sees all earlier ones, and nothing goes backwards.
#[test]
fn p3_every_mount_goes_through_one_order() {
    let _guard = guard(120);
    let place = pair().place("p3-order");
    for name in ["first", "second"] {
        fs::write(place.a.join(name), "0").unwrap();
    }
    barrier(&place.b);
    let done = Done::default();
    thread::scope(|scope| {
        for dir in [&place.a, &place.b] {
            let done = &done;
            scope.spawn(move || {
                let mut last = 0;
                while !done.is_set() {
                    let second = number(&dir.join("second"));
                    let first = number(&dir.join("first"));
                    assert!(
                        first >= second,
                        "the later change is seen and the earlier is not: {first} {second}"
                    );
                    assert!(second >= last, "{second} after {last}: time ran backwards");
                    last = second;
                }
            });
        }
        let _finish = done.finish();
        for n in 1..=300 {
            fs::write(place.a.join("first"), n.to_string()).unwrap();
            fs::write(place.a.join("second"), n.to_string()).unwrap();
        }
    });
}

/// Promise 3: the changes of one revision become visible together: a rename is never half there.
#[test]
fn p3_a_revision_is_seen_as_one() {
    let _guard = guard(120);
    let place = pair().place("p3-whole");
    fs::create_dir(place.a.join("one")).unwrap();
    fs::write(place.a.join("one/f"), "x").unwrap();
    barrier(&place.b);
    let done = Done::default();
    thread::scope(|scope| {
        for dir in [&place.a, &place.b] {
            let done = &done;
            scope.spawn(move || {
                while !done.is_set() {
                    let names: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name()).collect();
                    assert_eq!(names.len(), 1, "a rename was seen half done: {names:?}");
                }
            });
        }
        let _finish = done.finish();
        for _ in 0..150 {
            fs::rename(place.a.join("one"), place.a.join("two")).unwrap();
            fs::rename(place.a.join("two"), place.a.join("one")).unwrap();
        }
    });
}

/// Promise 4: a mount shows its own changes at once.
#[test]
fn p4_a_host_reads_its_own_writes() {
    let _guard = guard(120);
    let place = pair().place("p4");
    thread::scope(|scope| {
        for (host, dir) in [("a", &place.a), ("b", &place.b)] {
            scope.spawn(move || {
                for n in 0..60 {
                    let (file, other) =
                        (dir.join(format!("{host}{n}")), dir.join(format!("{host}{n}-moved")));
                    for text in ["one", "three", ""] {
                        fs::write(&file, text).unwrap();
                        assert_eq!(fs::read_to_string(&file).unwrap(), text);
                        assert_eq!(fs::metadata(&file).unwrap().len(), text.len() as u64);
                    }
                    fs::rename(&file, &other).unwrap();
                    assert!(!file.exists() && other.exists());
                    let names: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name()).collect();
                    assert!(names.iter().any(|x| x == other.file_name().unwrap()));
                    assert!(!names.iter().any(|x| x == file.file_name().unwrap()));
                    fs::remove_file(&other).unwrap();
                    assert!(!other.exists());
                    fs::create_dir(&file).unwrap();
                    assert!(file.is_dir());
                    fs::remove_dir(&file).unwrap();
                    assert!(!file.exists());
                }
            });
        }
    });
}

/// Promise 5: `sync FILE && cat FILE` is a linearizable read, after a write through anything.
#[test]
fn p5_fsync_is_a_barrier() {
    let _guard = guard(180);
    let pair = pair();
    let place = pair.place("p5");
    fs::write(place.a.join("f"), "0").unwrap();
    barrier(&place.b);
    for n in 1..=100 {
        fs::write(place.a.join("f"), n.to_string()).unwrap();
        // The directory, the root of the mount, or the file itself: all are the same barrier.
        match n % 3 {
            0 => barrier(&place.b),
            1 => barrier(pair.b.path()),
            _ => barrier(&place.b.join("f")),
        }
        assert_eq!(number(&place.b.join("f")), n, "the barrier let an old value pass");
    }
    for n in 200..210 {
        pair.kv.put(&place.key("f"), &n.to_string());
        let text = Shell::Bash.run(&place.b, "sync f && cat f");
        assert_eq!(text, n.to_string(), "sync && cat gave an old value");
        pair.kv.put(&place.key(&format!("new{n}")), "x");
        assert_eq!(Shell::Bash.run(&place.a, &format!("sync . && cat new{n}")), "x");
    }
}

/// fsync on whatever `path` is.
#[track_caller]
fn barrier(path: &Path) {
    File::open(path).and_then(|f| f.sync_all()).unwrap_or_else(|e| panic!("fsync of {path:?}: {e}"));
}

fn number(path: &Path) -> u64 {
    let text = fs::read_to_string(path).unwrap_or_else(|e| panic!("{path:?}: {e}"));
    text.parse().unwrap_or_else(|_| panic!("{path:?} holds {text:?}"))
}
