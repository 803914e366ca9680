//! What a watcher on one mount sees of what was done on another, compared with what a watcher of a
//! local directory sees of the same.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::path::Path;

use common::inotify::Watcher;
use common::{World, can_mount, sh};

/// What is there before, what is watched beside the directory itself, what is done.
struct Case {
    before: &'static str,
    watched: &'static [&'static str],
    done: &'static str,
}

const CASES: &[Case] = &[
    // put, existing key
    Case { before: "echo old > f", watched: &["f"], done: "echo new! | dd of=f conv=notrunc 2>/dev/null" },
    Case {
        before: "mkdir d; echo old > d/f",
        watched: &["d", "d/f"],
        done: "echo x | dd of=d/f conv=notrunc 2>/dev/null",
    },
    // put, new key
    Case { before: "", watched: &[], done: "echo value > f" },
    Case { before: "mkdir d", watched: &["d"], done: "echo value > d/f" },
    Case { before: "", watched: &[], done: "set -C; : > empty" },
    // mkdir, symlink
    Case { before: "", watched: &[], done: "mkdir d" },
    Case { before: "mkdir d", watched: &["d"], done: "mkdir d/e; ln -s e d/l" },
    // delete, rmdir
    Case { before: "echo x > f", watched: &["f"], done: "rm f" },
    Case { before: "mkdir d; ln -s x d/l", watched: &["d"], done: "rm d/l; rmdir d" },
    Case { before: "mkdir -p d/e; echo x > d/e/f", watched: &["d", "d/e", "d/e/f"], done: "rm -r d" },
    // rename
    Case { before: "echo x > f", watched: &["f"], done: "mv f g" },
    Case { before: "echo x > f; echo y > g", watched: &["f", "g"], done: "mv f g" },
    Case { before: "mkdir d e; echo x > d/f", watched: &["d", "e", "d/f"], done: "mv d/f e/g" },
    Case { before: "mkdir d e; echo x > d/f", watched: &["d", "e", "d/f"], done: "mv d e/d2; mv e/d2/f e/" },
    Case { before: "echo x > f; echo y > g", watched: &["f", "g"], done: "exchange f g" },
    Case { before: "mkdir d e", watched: &["d", "e"], done: "mv -T d e" },
    // setattr
    Case { before: "echo x > f", watched: &["f"], done: "chmod 600 f" },
    Case { before: "mkdir d", watched: &["d"], done: "chmod 700 d" },
    Case { before: "echo x > f", watched: &["f"], done: "perl -e 'utime 1, 2, q(f)'" },
    Case { before: "echo x > f", watched: &["f"], done: "chown 1:1 f" },
    // how editors and tools do it
    Case { before: "echo x > f", watched: &["f"], done: "echo new > .f.tmp; mv .f.tmp f" },
    Case { before: "ln -s one l", watched: &[], done: "ln -s two l.new; mv -T l.new l" },
];

const LAST: &str = "the-end";

fn record(watched_in: &Path, done_in: &Path, case: &Case, settle: impl Fn()) -> Vec<String> {
    sh(done_in, case.before);
    settle();
    let mut watcher = Watcher::new();
    watcher.watch(watched_in, ".");
    for path in case.watched {
        watcher.watch(&watched_in.join(path), path);
    }
    match case.done.strip_prefix("exchange ") {
        // Not every mv has it.
        Some(names) => {
            let (old, new) = names.split_once(' ').unwrap();
            let flags = rustix::fs::RenameFlags::EXCHANGE;
            rustix::fs::renameat_with(
                rustix::fs::CWD,
                done_in.join(old),
                rustix::fs::CWD,
                done_in.join(new),
                flags,
            )
            .unwrap();
        }
        None => _ = sh(done_in, case.done),
    }
    sh(done_in, &format!("mkdir {LAST}"));
    let mut events = watcher.until(LAST);
    // That somebody lists a directory is no change, and stays on the host where it happens.
    events.retain(|event| !event.contains("OPEN|ISDIR"));
    events
}

#[test]
fn a_remote_change_fires_what_a_local_one_fires() {
    if !can_mount() {
        return;
    }
    let world = World::new("events", 2);
    let local = tempfile::tempdir_in("/dev/shm").unwrap();
    let mut wrong = Vec::new();
    for (i, case) in CASES.iter().enumerate() {
        let name = format!("case{i}");
        for dir in [world.a(), local.path()] {
            fs::create_dir(dir.join(&name)).unwrap();
        }
        world.settle();
        let here = local.path().join(&name);
        let wanted = record(&here, &here, case, || {});
        let seen = record(&world.b().join(&name), &world.a().join(&name), case, || world.settle());
        if wanted != seen {
            wrong.push(format!("{} ; {}\n  local:  {wanted:?}\n  remote: {seen:?}", case.before, case.done));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_writers_own_mount_fires_once() {
    if !can_mount() {
        return;
    }
    let world = World::new("own_events", 2);
    let local = tempfile::tempdir_in("/dev/shm").unwrap();
    let mut wrong = Vec::new();
    for (i, case) in CASES.iter().enumerate() {
        let name = format!("case{i}");
        for dir in [world.a(), local.path()] {
            fs::create_dir(dir.join(&name)).unwrap();
        }
        let (here, there) = (local.path().join(&name), world.a().join(&name));
        let wanted = record(&here, &here, case, || {});
        let seen = record(&there, &there, case, || world.settle());
        if wanted != seen {
            wrong.push(format!("{} ; {}\n  local: {wanted:?}\n  mount: {seen:?}", case.before, case.done));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
