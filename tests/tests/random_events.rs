//! Promises 6, 7 and 10 of SEMANTICS.md, all at once: many mixed random operations on A, and a program
//! on B that knows nothing but its recursive inotify watches. What it makes of the events has to end
//! in exactly B's tree; the events have to be those of A's operations, in A's order; and each read
//! that followed an event has to give what the event announced, or something newer.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use quorumfs_tests::cleanup::Scratch;
use quorumfs_tests::follower::{self, Follower, Node};
use quorumfs_tests::history::History;
use quorumfs_tests::pair::Place;
use quorumfs_tests::random::Random;
use quorumfs_tests::tree;
use quorumfs_tests::{Cluster, Pair, guard, until};

/// Operations of one run; `QUORUMFS_TEST_OPERATIONS` changes it.
const OPERATIONS: usize = 10_000;
/// Operations of each host where both work at once.
const TOGETHER: usize = 4000;
/// Names in each directory: few, so that operations meet.
const NAMES: [&str; 8] = ["a", "b", "c", "d", "e", "f", "g", "h"];
/// Directories are at most so deep.
const DEPTH: usize = 3;
/// Until B has fired everything, after the last operation.
const CATCH_UP: Duration = Duration::from_secs(60);

#[test]
fn events_replayed_into_a_model_end_in_the_tree() {
    let _guard = guard(400);
    let operations =
        std::env::var("QUORUMFS_TEST_OPERATIONS").ok().and_then(|n| n.parse().ok()).unwrap_or(OPERATIONS);
    let mut random = Random::for_test("random_events");
    // One node: what is tested is between the event log and the kernel of B.
    let pair = Pair::on(Cluster::start(1));
    let place = pair.place("random");
    let follower = Follower::start(&place.b);
    let follower = thread::spawn(move || follower.run(CATCH_UP * 5));

    let mut history = History::default();
    let start = Instant::now();
    while history.len() < operations {
        operate(&mut random, &place.a, &mut history);
    }
    let took = start.elapsed();
    fs::create_dir(place.a.join(follower::END)).unwrap();
    let log = follower.join().expect("the follower");
    fs::remove_dir(place.a.join(follower::END)).unwrap();
    eprintln!(
        "{} operations ({} were tried) in {took:?}; {} events on B, {} looks",
        history.len(),
        history.attempts(),
        log.events,
        log.observations.len()
    );

    let there = tree::read(&place.a);
    let difference = tree::difference(("A", &there), ("what was done", &follower::tree(history.graph())));
    assert!(difference.is_empty(), "A does not show its own operations:\n{difference}");
    until("B has removed the sentinel", CATCH_UP, || !place.b.join(follower::END).exists());
    let difference = tree::difference(("A", &there), ("B", &tree::read(&place.b)));
    assert!(difference.is_empty(), "B differs from A:\n{difference}");
    let difference =
        tree::difference(("B", &there), ("the model of its events", &follower::tree(&log.model)));
    assert!(difference.is_empty(), "the events do not tell all:\n{difference}");
    history.check(&log.observations);
}

/// Both hosts change the same tree at once, each as fast as it can, and the program runs on both: what
/// one host does itself and what it replays for the other meet in the same kernel. Both programs have to
/// end in the one tree that both hosts show.
#[test]
fn two_hosts_at_once_end_in_one_tree() {
    let _guard = guard(400);
    let mut random = Random::for_test("two_hosts");
    let pair = Pair::on(Cluster::start(1));
    let place = pair.place("both");
    // Each waits for the other's sentinel: that comes by a replay, after all that was before it.
    let ends = [format!("{}-b", follower::END), format!("{}-a", follower::END)];
    let hosts = [&place.a, &place.b];
    let followers: Vec<_> = hosts
        .into_iter()
        .zip(&ends)
        .map(|(dir, end)| {
            let follower = Follower::until(dir, end);
            thread::spawn(move || follower.run(CATCH_UP * 5))
        })
        .collect();
    thread::scope(|scope| {
        for dir in hosts {
            let seed = random.number();
            scope.spawn(move || {
                let mut random = Random::new(seed);
                for number in 0..TOGETHER {
                    disturb(&mut random, dir, number);
                }
            });
        }
    });
    for dir in hosts {
        fs::File::open(dir).unwrap().sync_all().unwrap();
    }
    for (dir, end) in hosts.into_iter().zip(ends.iter().rev()) {
        fs::create_dir(dir.join(end)).unwrap();
    }
    let logs: Vec<_> = followers.into_iter().map(|f| f.join().expect("a follower")).collect();
    for (dir, end) in hosts.into_iter().zip(ends.iter().rev()) {
        fs::remove_dir(dir.join(end)).unwrap();
    }
    for dir in hosts {
        until("the sentinels are gone", CATCH_UP, || !ends.iter().any(|end| dir.join(end).exists()));
    }
    let there = tree::read(&place.a);
    let difference = tree::difference(("A", &there), ("B", &tree::read(&place.b)));
    assert!(
        difference.is_empty(),
        "the hosts differ:\n{difference}\n{}",
        explain(&pair, &place, &difference)
    );
    for (host, log) in ["A", "B"].into_iter().zip(&logs) {
        let difference =
            tree::difference((host, &there), ("the model of its events", &follower::tree(&log.model)));
        assert!(difference.is_empty(), "the events on {host} do not tell all:\n{difference}");
    }
    eprintln!("{} names are left; {} and {} events", there.len(), logs[0].events, logs[1].events);
}

/// Of the first path that differs: what each directory on the way is by listing, by stat, and in the store.
fn explain(pair: &Pair, place: &Place, difference: &str) -> String {
    use std::os::unix::fs::DirEntryExt as _;
    let path = PathBuf::from(difference.split('"').nth(1).unwrap_or_default());
    let mut told = String::new();
    for path in path.ancestors().filter(|p| !p.as_os_str().is_empty()) {
        let key = place.key(path.to_str().unwrap());
        let inode = pair.kv.try_run(&["--json", "get", &key]).map(|text| {
            text.split("\"inode\":").nth(1).and_then(|t| t.split(',').next()).unwrap_or("?").to_string()
        });
        told.push_str(&format!("{path:?}: store {inode:?}"));
        for (host, dir) in [("A", &place.a), ("B", &place.b)] {
            let full = dir.join(path);
            let mut entries = fs::read_dir(full.parent().unwrap()).into_iter().flatten().flatten();
            let listed = entries.find(|e| Some(e.file_name().as_os_str()) == full.file_name());
            let listed = listed.map(|e| e.ino());
            told.push_str(&format!(
                "; {host} lists {listed:?}, stat {:?}",
                full.symlink_metadata().map(|m| m.ino())
            ));
        }
        told.push('\n');
    }
    told
}

/// One random operation that knows nothing of what is there; most are refused.
fn disturb(random: &mut Random, root: &Path, number: usize) {
    let place = |random: &mut Random| {
        let mut path = root.to_path_buf();
        for _ in 0..random.below(3) {
            path.push(random.pick(&NAMES[..3]));
        }
        path.join(random.pick(&NAMES[..5]))
    };
    let path = place(random);
    let _ = match random.below(10) {
        0..4 => fs::write(&path, format!("{number} in {}", root.display())),
        4 => fs::create_dir(&path),
        5 => fs::remove_file(&path),
        6 => fs::remove_dir(&path),
        7 => OpenOptions::new().append(true).open(&path).and_then(|mut f| f.write_all(b"+")),
        _ => fs::rename(&path, place(random)),
    };
}

/// The same program on tmpfs: if it were wrong about a local file system, it would prove nothing.
#[test]
fn the_program_is_right_about_a_local_file_system() {
    let _guard = guard(60);
    let mut random = Random::for_test("follower");
    let tmpfs = Scratch::on_tmpfs("follower");
    let root = tmpfs.path().to_path_buf();
    let follower = Follower::start(&root);
    let follower = thread::spawn(move || follower.run(CATCH_UP));
    let mut history = History::default();
    for _ in 0..3000 {
        operate(&mut random, &root, &mut history);
    }
    fs::create_dir(root.join(follower::END)).unwrap();
    let log = follower.join().expect("the follower");
    let difference = tree::difference(
        ("what was done", &follower::tree(history.graph())),
        ("the model of its events", &follower::tree(&log.model)),
    );
    assert!(difference.is_empty(), "{difference}");
}

/// One random operation on A. What POSIX refuses is part of the game, and changes nothing.
fn operate(random: &mut Random, root: &Path, history: &mut History) {
    let number = history.attempts();
    let kind = random.below(100);
    let path = random_path(random, history, (46..60).contains(&kind));
    let full = root.join(&path);
    match kind {
        0..40 => {
            let value = format!("{number} {}", "x".repeat(random.below(200)));
            // The symlinks of this test point nowhere, and a write would make their target.
            let is_link = matches!(history.node(&path), Some(Node::Symlink(_)));
            if !is_link && fs::write(&full, &value).is_ok() {
                history.write(&path, value.into_bytes());
            }
        }
        40..46 => {
            let data = format!("+{number}");
            let file = OpenOptions::new().append(true).open(&full);
            if file.is_ok_and(|mut f| f.write_all(data.as_bytes()).is_ok()) {
                history.append(&path, data.as_bytes());
            }
        }
        46..55 => {
            if fs::create_dir(&full).is_ok() {
                history.create(&path, Node::Dir(fs::metadata(&full).unwrap().ino()));
            }
        }
        55..60 => {
            let to = PathBuf::from(format!("to-{number}"));
            if symlink(&to, &full).is_ok() {
                history.create(&path, Node::Symlink(to));
            }
        }
        60..73 => {
            let done = match full.symlink_metadata() {
                Ok(m) if m.is_dir() => fs::remove_dir(&full),
                _ => fs::remove_file(&full),
            };
            if done.is_ok() {
                history.remove(&path);
            }
        }
        73..95 => {
            let fresh = random.chance(60);
            let to = random_path(random, history, fresh);
            // rename(2) of a name to itself succeeds and does nothing.
            if path != to && fs::rename(&full, root.join(&to)).is_ok() {
                history.rename(&path, &to);
            }
        }
        _ => {
            let mode = if random.chance(50) { 0o700 } else { 0o755 };
            let is_link = full.symlink_metadata().is_ok_and(|m| m.is_symlink());
            if !is_link {
                let _ = fs::set_permissions(&full, fs::Permissions::from_mode(mode));
            }
        }
    }
    history.attempted();
}

/// A name in some directory that exists: one that stands for something, where there is one, or one that
/// probably is `fresh`.
fn random_path(random: &mut Random, history: &History, fresh: bool) -> PathBuf {
    let mut path = PathBuf::new();
    for _ in 0..random.below(DEPTH + 1) {
        let dirs = names(history, &path, |node| matches!(node, Node::Dir(_)));
        if dirs.is_empty() {
            break;
        }
        path.push(random.pick(&dirs));
    }
    let there = names(history, &path, |_| true);
    match fresh || there.is_empty() || random.chance(20) {
        true => path.join(random.pick(&NAMES)),
        false => path.join(random.pick(&there)),
    }
}

/// Names in a directory that stand for something of that kind.
fn names(history: &History, dir: &Path, wanted: impl Fn(&Node) -> bool) -> Vec<&'static str> {
    let is_wanted = |name: &&&str| history.node(&dir.join(name)).is_some_and(&wanted);
    NAMES.iter().filter(is_wanted).copied().collect()
}
