//! Directories that want their changes to look otherwise: `user.kv.events` set to `rename` or `swap`.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use common::inotify::Watcher;
use common::random::{Random, seed};
use common::{World, can_mount, sh};
use quorumfs_api::command::{Command, CreateMode, LeaseChange, Owner, XattrMode};
use quorumfs_api::key::Key;
use quorumfs_api::style::EventStyle;
use rustix::fs::XattrFlags;

const ATTRIBUTE: &str = "user.kv.events";
const LAST: &str = "the-end";
/// More than the kernel holds of a directory and one open file, and less than all versions of the file.
const HELD_MAX: usize = 6;

fn style(dir: &Path, word: &str) {
    rustix::fs::setxattr(dir, ATTRIBUTE, word.as_bytes(), XattrFlags::empty()).unwrap();
}

/// Events of a directory on B (and of files in it) while something is done on A.
fn seen(world: &World, dir: &str, files: &[&str], line: &str) -> Vec<String> {
    let mut watcher = Watcher::new();
    watcher.watch(&world.b().join(dir), ".");
    for file in files {
        watcher.watch(&world.b().join(dir).join(file), file);
    }
    sh(&world.a().join(dir), line);
    world.settle();
    fs::create_dir(world.a().join(dir).join(LAST)).unwrap();
    let mut events = watcher.until(&format!("CREATE|ISDIR {LAST}"));
    fs::remove_dir(world.a().join(dir).join(LAST)).unwrap();
    world.settle();
    events.pop();
    events.retain(|event| !event.contains("OPEN|ISDIR"));
    events
}

/// What a local directory's watcher sees when a finished file is moved in from elsewhere.
fn moved_in_locally(replaced: bool) -> Vec<String> {
    let local = tempfile::tempdir_in("/dev/shm").unwrap();
    sh(local.path(), "mkdir d elsewhere; echo x > elsewhere/f");
    let mut watcher = Watcher::new();
    watcher.watch(&local.path().join("d"), ".");
    if replaced {
        sh(local.path(), "echo old > d/f");
        watcher = Watcher::new();
        watcher.watch(&local.path().join("d"), ".");
        watcher.watch(&local.path().join("d/f"), "f");
    }
    sh(local.path(), "mv elsewhere/f d/f; mkdir d/the-end");
    let mut events = watcher.until("CREATE|ISDIR the-end");
    events.pop();
    events
}

#[test]
fn plain_puts_look_like_a_file_that_is_moved_in() {
    if !can_mount() {
        return;
    }
    let world = World::new("rename_style", 2);
    sh(world.a(), "mkdir -p d/below d/own plain");
    style(&world.a().join("d"), "rename");
    style(&world.b().join("d/own"), "write");
    world.settle();
    let see = |files: &[&str], line: &str| seen(&world, "d", files, line);

    assert_eq!(see(&[], "echo one > f"), moved_in_locally(false));
    assert_eq!(see(&["f"], "echo two > f"), moved_in_locally(true));
    // Files go by the newest number: the watch on the file is a new one each time, as programs do it.
    assert_eq!(see(&["f"], "echo more >> f"), moved_in_locally(true));
    assert_eq!(see(&[], "truncate -s 3 f"), [". MOVED_TO f"]);
    assert_eq!(fs::read_to_string(world.b().join("d/f")).unwrap(), "two");
    // All else is as it is.
    assert_eq!(see(&[], "chmod 600 f"), [". ATTRIB f"]);
    assert_eq!(see(&[], "mkdir sub; rmdir sub"), [". CREATE|ISDIR sub", ". DELETE|ISDIR sub"]);
    assert_eq!(see(&[], "ln -s f l"), [". CREATE l"]);
    assert_eq!(
        see(&[], "echo three > .f; sync .; mv .f f"),
        [". MOVED_TO .f", ". MOVED_FROM .f", ". MOVED_TO f"]
    );
    assert_eq!(see(&[], "rm f"), [". DELETE f"]);
    // It holds for what is below and does not say otherwise.
    assert_eq!(seen(&world, "d/below", &[], "echo x > f"), [". MOVED_TO f"]);
    assert_eq!(
        seen(&world, "d/own", &[], "echo x > f"),
        [". CREATE f", ". OPEN f", ". MODIFY f", ". CLOSE_WRITE f"]
    );
    let plain = [". OPEN f", ". MODIFY f", ". CLOSE_WRITE f"];
    sh(world.a(), "echo x > plain/f");
    world.settle();
    assert_eq!(seen(&world, "plain", &[], "echo y > f"), plain);
    // And no longer than it is said.
    rustix::fs::removexattr(world.a().join("d"), ATTRIBUTE).unwrap();
    assert_eq!(seen(&world, "d/below", &[], "echo y > f"), plain);
    for wrong in ["Rename", "", "moves"] {
        let set = rustix::fs::setxattr(world.a().join("d"), ATTRIBUTE, wrong.as_bytes(), XattrFlags::empty());
        assert_eq!(set.unwrap_err(), rustix::io::Errno::INVAL, "{wrong:?}");
    }
    let set = rustix::fs::setxattr(world.a().join("plain/f"), ATTRIBUTE, b"rename", XattrFlags::empty());
    assert_eq!(set.unwrap_err(), rustix::io::Errno::NOTDIR);
}

/// The host that wrote gets the events of the write from its own kernel, and the move after them; who has
/// the old file open reads on.
#[test]
fn the_writers_own_programs_see_the_move_too() {
    if !can_mount() {
        return;
    }
    let world = World::new("rename_style_own", 1);
    sh(world.a(), "mkdir d");
    style(&world.a().join("d"), "rename");
    let dir = world.a().join("d");
    let mut watcher = Watcher::new();
    watcher.watch(&dir, ".");
    let file = dir.join("f");
    fs::write(&file, "one").unwrap();
    // The kernel tells of the close when its flush was answered, and that is after the commit.
    let written = |watcher: &mut Watcher| {
        let mut events = watcher.until("MOVED_TO f");
        if !events.contains(&". CLOSE_WRITE f".to_string()) {
            events.extend(watcher.until("CLOSE_WRITE f"));
        }
        events.sort();
        events
    };
    assert_eq!(
        written(&mut watcher),
        [". CLOSE_WRITE f", ". CREATE f", ". MODIFY f", ". MOVED_TO f", ". OPEN f"]
    );
    let open = fs::File::open(&file).unwrap();
    fs::write(&file, "two").unwrap();
    assert!(written(&mut watcher).contains(&". MOVED_TO f".to_string()));
    assert_eq!(fs::read_to_string(&file).unwrap(), "two");
    assert_eq!(std::io::read_to_string(&open).unwrap(), "two");
    assert_eq!(std::os::unix::fs::MetadataExt::size(&open.metadata().unwrap()), 3);
    // Through the old descriptor's file as well as by the name it can be changed and removed.
    world.settle();
    sh(
        &dir,
        "echo three > f; cat f; echo more >> f; chmod 640 f; stat -c %a%s f; flock f true; rm f; ! test -e f",
    );
    let core = world.mounts[0].as_ref().unwrap().core();
    common::eventually("the kernel lets go of files that were replaced", || {
        core.state.lock().kernel.held().count() < HELD_MAX
    });
}

#[test]
fn a_mount_can_show_all_changes_as_moves() {
    if !can_mount() {
        return;
    }
    let world = World::with("rename_style_mount", 2, |i, config| {
        config.events = if i == 1 { EventStyle::Rename } else { EventStyle::Write };
    });
    sh(world.a(), "mkdir -p d/e");
    world.settle();
    assert_eq!(seen(&world, "d/e", &[], "echo x > f"), [". MOVED_TO f"]);
    assert_eq!(seen(&world, "d/e", &[], "echo y > f"), [". MOVED_TO f"]);
    // In the root of the mount, too.
    assert_eq!(seen(&world, ".", &[], "echo x > f"), [". MOVED_TO f"]);
}

fn put(key: &str, value: &'static str) -> Command {
    Command::Put {
        target: Key::parse(key.to_string()).unwrap().into(),
        value: value.into(),
        create: CreateMode::Allow,
        parents: true,
        owner: Owner::FILE,
        lease: LeaseChange::Keep,
    }
}

/// One swap for each revision, after the events of all its files; the link points elsewhere each time, to the same
/// place on all hosts, and the directory itself is what it was.
#[test]
fn a_link_is_swapped_after_each_revision() {
    if !can_mount() {
        return;
    }
    let world = World::new("swap_style", 2);
    let client = world.client();
    let session =
        world.runtime.block_on(client.session(Duration::from_secs(20), Duration::from_secs(10))).unwrap();
    let run = |command: Command| {
        world.runtime.block_on(session.write(command, Duration::from_secs(10))).unwrap().result.unwrap();
        world.settle();
    };
    run(put("/c/old", "0"));
    run(Command::SetXattr {
        target: Key::parse("/c".to_string()).unwrap().into(),
        name: ATTRIBUTE.into(),
        value: Some("swap".into()),
        mode: XattrMode::Set,
    });
    let (a, b) = (world.a().join("c"), world.b().join("c"));
    let link = |dir: &Path| fs::read_link(dir.join("..data")).unwrap();
    let mut before = link(&b);
    assert_eq!(fs::read_to_string(b.join("..data/old")).unwrap(), "0");
    assert_eq!(fs::read_to_string(b.join(&before).join("old")).unwrap(), "0");

    let mut watcher = Watcher::new();
    watcher.watch(&b, ".");
    let swapped = ". MOVED_TO ..data";
    let both = vec![put("/c/one", "1"), put("/c/two", "2")];
    run(Command::Txn { compare: Vec::new(), then: both, otherwise: Vec::new() });
    let events = watcher.until("..data");
    let made =
        |name: &str| ["CREATE", "OPEN", "MODIFY", "CLOSE_WRITE"].map(|kind| format!(". {kind} {name}"));
    let wanted = [made("one").to_vec(), made("two").to_vec(), vec![swapped.to_string()]].concat();
    assert_eq!(events, wanted);
    assert_eq!(sh(&b, "cat ..data/one ..data/two"), "12");
    // That was seen, too.
    watcher = Watcher::new();
    watcher.watch(&b, ".");
    for (done, kinds) in [
        ("echo more >> one", &["OPEN one", "MODIFY one", "CLOSE_WRITE one"][..]),
        ("mv one three", &["MOVED_FROM one", "MOVED_TO three"]),
        ("rm two", &["DELETE two"]),
        ("mkdir sub", &["CREATE|ISDIR sub"]),
    ] {
        sh(&a, done);
        world.settle();
        let mut events = watcher.until("..data");
        events.retain(|event| !event.contains("OPEN|ISDIR"));
        let wanted: Vec<String> = kinds.iter().map(|kind| format!(". {kind}")).collect();
        assert_eq!(events, [wanted, vec![swapped.to_string()]].concat(), "{done}");
        let now = link(&b);
        assert!(now != before && now == link(&a), "{done}: {before:?}, {now:?}, {:?}", link(&a));
        before = now;
    }
    // The links are found, not listed; writing by way of them works; they go with the directory.
    assert_eq!(sh(&b, "ls -A; echo new > ..data/four; cat four; rmdir sub"), "old\nsub\nthree\nnew\n");
    world.settle();
    assert!(sh(&a, "rm ..data 2>&1 || true").contains("No such file"));
    assert_eq!(watcher.until("DELETE|ISDIR sub").last().unwrap(), ". DELETE|ISDIR sub");
    watcher.until("..data");
    // Who keeps a ..data of his own has it.
    sh(&a, "mkdir v1; ln -s v1 tmp; mv -T tmp ..data; readlink ..data");
    world.settle();
    assert_eq!(sh(&b, "readlink ..data; ls -A | head -1"), "v1\n..data\n");
    // The directory and the link in it were changes, too, with a swap for each.
    watcher.until("MOVED_FROM tmp");
    assert_eq!(watcher.until("..data"), [". MOVED_TO ..data"]);
    world.settle();
    let mut rest = seen(&world, "c", &[], "echo x > v2");
    rest.retain(|event| event.contains("..data"));
    assert!(rest.is_empty(), "{rest:?}");
    sh(world.b(), "rm -r c; ! test -e c");
}

/// Whatever is done on A: who believes the events of B has the tree, files never come but by a move,
/// and what is read after a move is what was put, or newer.
#[test]
fn moves_lead_a_model_to_the_same_tree() {
    if !can_mount() {
        return;
    }
    let world = World::new("rename_model", 2);
    let mut random = Random(seed());
    for dir in ["r", "r/s"] {
        fs::create_dir(world.a().join(dir)).unwrap();
    }
    style(&world.a().join("r"), "rename");
    style(&world.a().join("r/s"), "swap");
    world.settle();
    let watched = ["r", "r/s"];
    let mut watchers = watched.map(|dir| {
        let mut watcher = Watcher::new();
        watcher.watch(&world.b().join(dir), ".");
        (dir, watcher, BTreeSet::new())
    });
    watchers[0].2.insert("s".to_string());
    for round in 0..12 {
        for _ in 0..60 {
            let name = |random: &mut Random| {
                world.a().join(watched[random.next(2) as usize]).join(format!("f{}", random.next(6)))
            };
            let path = name(&mut random);
            match random.next(6) {
                0..=2 => _ = fs::write(&path, vec![b'v'; random.next(2000) as usize]),
                3 => _ = fs::rename(&path, name(&mut random)),
                4 => _ = fs::remove_file(&path),
                _ => _ = fs::create_dir(&path).and_then(|()| fs::remove_dir(&path)),
            }
        }
        world.settle();
        let last = format!("last{round}");
        for (dir, watcher, model) in &mut watchers {
            fs::create_dir(world.a().join(*dir).join(&last)).unwrap();
            let mut swaps_end = *dir != "r/s";
            for event in watcher.until(&format!("CREATE|ISDIR {last}")) {
                let mut words = event.split(' ').skip(1);
                let (kind, name) =
                    (words.next().unwrap().to_string(), words.next().unwrap_or("").to_string());
                if name == "..data" {
                    assert_eq!((*dir, kind.as_str()), ("r/s", "MOVED_TO"), "{event}");
                    swaps_end = true;
                    continue;
                }
                match kind.split('|').next().unwrap() {
                    "CREATE" | "MOVED_TO" => _ = model.insert(name),
                    "DELETE" | "MOVED_FROM" => {
                        assert!(model.remove(&name), "gone twice: {event}");
                    }
                    "MODIFY" | "CLOSE_WRITE" if *dir == "r" => {
                        panic!("a write, and not a move: {event}");
                    }
                    _ => {}
                }
            }
            assert!(swaps_end, "something was done in {dir}, and nothing was swapped");
            let shown: BTreeSet<String> = fs::read_dir(world.a().join(*dir))
                .unwrap()
                .map(|e| e.unwrap().file_name().into_string().unwrap())
                .collect();
            assert_eq!(*model, shown, "{dir}");
        }
        for name in
            watchers.iter().flat_map(|(dir, _, model)| model.iter().map(move |name| format!("{dir}/{name}")))
        {
            let read = |root: &Path| fs::read(root.join(&name)).map_err(|e| e.raw_os_error());
            assert_eq!(read(world.a()), read(world.b()), "{name}");
        }
        world.settle();
        let link = |root: &Path| fs::read_link(root.join("r/s/..data")).unwrap();
        assert_eq!(link(world.a()), link(world.b()));
    }
}
