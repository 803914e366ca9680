//! Everything at once in the same directories, on both mounts: nothing hangs, and both end the same.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use common::inotify::Watcher;
use common::random::{Random, seed};
use common::{World, can_mount, sh};

/// One random operation; what it answers does not matter, that it answers does.
fn act(random: &mut Random, dir: &Path) {
    let place = |random: &mut Random| {
        let dirs = ["", "d0/", "d1/", "d0/e/"];
        let (d, f) = (random.next(4) as usize, random.next(6));
        dir.join(format!("{}f{f}", dirs[d]))
    };
    let path = place(random);
    match random.next(14) {
        0..=2 => _ = fs::write(&path, vec![b'x'; random.next(9000) as usize]),
        3 => {
            if let Ok(mut file) = OpenOptions::new().append(true).create(true).open(&path) {
                let _ = file.write_all(b"line\n");
            }
        }
        4 => _ = fs::rename(&path, place(random)),
        5 => _ = fs::remove_file(&path),
        6 => _ = fs::read(&path),
        7 => _ = fs::create_dir(dir.join(["d0", "d1", "d0/e"][random.next(3) as usize])),
        8 => {
            let name = ["d0", "d1", "d0/e"][random.next(3) as usize];
            let _ = fs::rename(dir.join(name), dir.join(["d0", "d1", "d0/e"][random.next(3) as usize]));
        }
        9 => _ = File::open(path.parent().unwrap()).and_then(|dir| dir.sync_all()),
        10 => _ = fs::read_dir(path.parent().unwrap()).map(|names| names.count()),
        11 => _ = std::os::unix::fs::symlink("target", &path),
        12 => _ = fs::metadata(&path),
        _ => _ = OpenOptions::new().write(true).create_new(true).open(&path),
    }
}

const LISTING: &str = "find . -mindepth 1 -printf '%P %y %m %s %l\n' | sort; \
                       find . -type f | sort | while read -r f; do md5sum < \"$f\"; done";

#[test]
fn nothing_hangs_and_both_mounts_end_the_same() {
    if !can_mount() {
        return;
    }
    let world = World::new("stress", 2);
    let seed = seed();
    let time = std::env::var("QUORUMFS_STRESS").ok().and_then(|s| s.parse().ok()).unwrap_or(10);
    let until = Instant::now() + Duration::from_secs(time);
    let done = std::sync::atomic::AtomicU64::new(0);
    std::thread::scope(|scope| {
        for i in 0..6u64 {
            let dir = [world.a(), world.b()][i as usize % 2];
            let done = &done;
            scope.spawn(move || {
                let mut random = Random(seed.wrapping_mul(i * 2 + 1) | 1);
                while Instant::now() < until {
                    act(&mut random, dir);
                    done.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                }
            });
        }
        for dir in [world.a(), world.b()] {
            scope.spawn(move || {
                while Instant::now() < until {
                    let mut watcher = Watcher::new();
                    watcher.watch(dir, ".");
                    // Watches come and go; what they see is looked at elsewhere.
                    std::thread::park_timeout(Duration::from_millis(20));
                }
            });
        }
    });
    eprintln!("{} operations", done.into_inner());
    world.settle();
    sh(world.a(), "sync .");
    sh(world.b(), "sync .");
    let (mut a, mut b) = (sh(world.a(), LISTING), sh(world.b(), LISTING));
    // What the kernel has cached must be no other than what is so.
    for world in [world.a(), world.b()] {
        sh(world, "for f in * */*; do cat $f > /dev/null 2>&1; done; true");
    }
    let deadline = Instant::now() + Duration::from_secs(5);
    while a != b && Instant::now() < deadline {
        (a, b) = (sh(world.a(), LISTING), sh(world.b(), LISTING));
    }
    // Fails with the state of both mounts, which says on whose side a difference is.
    let trees = [0, 1].map(|i| {
        let mount = world.mounts[i].as_ref().unwrap();
        let state = mount.core().state.lock();
        let names = |ino| state.mirror.get(ino).map(|n| (n.at.clone(), n.record.value.len(), n.record.mode));
        let mut tree: Vec<_> =
            state.mirror.inos().map(|ino| (ino, state.kernel.node(ino), names(ino))).collect();
        tree.sort_by_key(|(ino, ..)| *ino);
        format!("{tree:#?}")
    });
    assert!(a == b, "A:\n{a}\nB:\n{b}\nmirrors equal: {}\n{}\n{}", trees[0] == trees[1], trees[0], trees[1]);
}

#[test]
fn events_lead_a_model_to_the_same_tree() {
    if !can_mount() {
        return;
    }
    let world = World::new("model", 2);
    let mut random = Random(seed());
    let mut watcher = Watcher::new();
    watcher.watch(world.b(), ".");
    let mut model = std::collections::BTreeSet::new();
    for round in 0..20 {
        for _ in 0..100 {
            let name = |random: &mut Random| world.a().join(format!("f{}", random.next(8)));
            let path = name(&mut random);
            match random.next(6) {
                0..=2 => _ = fs::write(&path, vec![b'v'; random.next(2000) as usize]),
                3 => _ = fs::rename(&path, name(&mut random)),
                4 => _ = fs::remove_file(&path),
                _ => _ = fs::create_dir(&path).and_then(|()| fs::remove_dir(&path)),
            }
        }
        let last = format!("last{round}");
        fs::create_dir(world.a().join(&last)).unwrap();
        for event in watcher.until(&last) {
            let mut words = event.split(' ').skip(1);
            let (kind, name) = (words.next().unwrap().to_string(), words.next().unwrap_or("").to_string());
            match kind.split('|').next().unwrap() {
                "CREATE" => assert!(model.insert(name), "made twice: {event}"),
                "MOVED_TO" => _ = model.insert(name),
                "DELETE" | "MOVED_FROM" => assert!(model.remove(&name), "gone twice: {event}"),
                "MODIFY" | "OPEN" | "CLOSE_WRITE" => assert!(model.contains(&name), "not there: {event}"),
                _ => {}
            }
        }
        let shown: std::collections::BTreeSet<String> =
            fs::read_dir(world.a()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        assert_eq!(model, shown);
    }
}
