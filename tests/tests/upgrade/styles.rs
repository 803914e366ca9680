//! Directories whose changes look like renames, or with a `..data` that is swapped: the kernel holds numbers that
//! are in no store.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::time::{Duration, Instant};

use quorumfs_tests::{Inotify, Pair, eventually, guard, process, until};
use rustix::fs::XattrFlags;
use rustix::fs::inotify::ReadFlags;

use super::{LIMIT, another_worker, kill_and_wait, upgrade};
/// Descriptors of one file under several numbers, each from before another value was moved in.
#[track_caller]
fn all_read(open: &[File], text: &str) {
    for (number, file) in open.iter().enumerate() {
        eventually(&format!("descriptor {number} reads {text:?}"), LIMIT, || {
            let mut bytes = [0; 64];
            let length = file.read_at(&mut bytes, 0).map_err(|error| error.to_string())?;
            let read = String::from_utf8_lossy(&bytes[..length]).into_owned();
            if read == text { Ok(()) } else { Err(read) }
        });
        assert_eq!(file.metadata().unwrap().len(), text.len() as u64, "descriptor {number}");
    }
}

/// Where values are shown as renames, the kernel knows a file by many numbers, and all of them are known to the next
/// worker; where `..data` is swapped, it knows links that are in no store.
#[test]
fn renames_and_swaps_are_shown_by_the_next_worker_too() {
    let _guard = guard(180);
    let pair = Pair::supervised();
    let (a, b) = (&pair.a, &pair.b);
    for style in ["rename", "swap"] {
        fs::create_dir(a.join(style)).unwrap();
        rustix::fs::setxattr(a.join(style), "user.kv.events", style.as_bytes(), XattrFlags::empty()).unwrap();
        fs::write(a.join(style).join("f"), "value 0").unwrap();
    }
    until("B has it", LIMIT, || b.join("swap/f").exists());
    let (renamed, swapped) = (b.join("rename"), b.join("swap"));
    let own = a.join("rename");
    let mut watcher = Inotify::on(&renamed);
    let mut swaps = Inotify::on(&swapped);
    let mut watcher_of_writer = Inotify::on(&own);
    let link = || fs::read_link(swapped.join("..data")).unwrap();
    let (mut open, mut link_before) = (Vec::new(), link());
    let moved = |watcher: &mut Inotify, name: &str, what: &str| {
        let mut seen = Vec::new();
        let deadline = Instant::now() + LIMIT;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let Some(event) = watcher.next(left) else { panic!("{what}: no move of {name} in {seen:?}") };
            assert!(!event.mask.contains(ReadFlags::IGNORED), "{what}: the watch is lost");
            if event.is(ReadFlags::MOVED_TO, name) {
                return seen;
            }
            seen.push(event);
        }
    };
    for (round, change) in ["nothing", "kill", "upgrade", "kill", "upgrade"].into_iter().enumerate() {
        let what = format!("round {round}, after: {change}");
        // The file of each round is another one for the kernel.
        let file = File::open(renamed.join("f")).unwrap();
        let mut on_file = Inotify::on(&renamed.join("f"));
        open.push(file);
        all_read(&open, &format!("value {round}"));
        match change {
            "kill" => [a, b].into_iter().for_each(kill_and_wait),
            "upgrade" => {
                for host in [a, b] {
                    let before = host.workers();
                    let output = upgrade(host);
                    assert!(output.status.success(), "{}\n{}", process::describe(&output), host.log());
                    another_worker(host, &before);
                }
            }
            _ => {}
        }
        all_read(&open, &format!("value {round}"));
        let text = format!("value {}", round + 1);
        for dir in ["rename", "swap"] {
            eventually("A can write", LIMIT, || fs::write(a.join(dir).join("f"), &text));
        }
        let seen = moved(&mut watcher, "f", &what);
        let written = seen.iter().any(|event| event.is(ReadFlags::MODIFY, "f"));
        assert!(!written, "{what}: a write, and not a move: {seen:?}");
        assert_eq!(fs::read_to_string(renamed.join("f")).unwrap(), text, "{what}");
        all_read(&open, &text);
        // Whoever watches the file itself is told that it was replaced.
        until(&format!("{what}: the watch of the file fires"), LIMIT, || {
            on_file.next(Duration::from_millis(100)).is_some_and(|event| {
                event.mask.intersects(ReadFlags::ATTRIB | ReadFlags::DELETE_SELF | ReadFlags::MOVE_SELF)
            })
        });
        // The writer's own programs wait for a move as well.
        moved(&mut watcher_of_writer, "f", &what);
        // The first may be left over from the making of the directory.
        while link() == link_before {
            moved(&mut swaps, "..data", &what);
        }
        link_before = link();
        assert_eq!(fs::read_to_string(swapped.join("..data/f")).unwrap(), text, "{what}");
    }
    // By the oldest number as well as by the name it is the same file.
    fs::write(renamed.join("f"), "from B").unwrap();
    all_read(&open, "from B");
    let removed = b.join("rename/f");
    fs::remove_file(&removed).unwrap();
    until("A sees that it is gone", LIMIT, || !a.join("rename/f").exists());
    kill_and_wait(b);
    all_read(&open, "from B");
    assert!(!removed.exists());
}
