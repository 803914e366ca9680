//! Promise 7 of SEMANTICS.md, row by row: the exact events that the other host's watchers get for
//! each operation, for watches of the directory and of the object itself. Each sequence is held
//! against two others: the text that stands here, and what tmpfs gives for the same operation.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::time::Duration;

use quorumfs_tests::cleanup::Scratch;
use quorumfs_tests::inotify::{self, Inotify};
use quorumfs_tests::pair::{PROPAGATION, pair};
use quorumfs_tests::{eventually, guard, tree, until};
use rustix::fs::inotify::ReadFlags;
use rustix::fs::{CWD, FileType, Mode, RenameFlags, XattrFlags, makedev, mknodat, renameat_with, setxattr};

/// Something that is done in a directory.
type Action<'a> = &'a dyn Fn(&Path);

/// One operation and what it has to look like from the other host.
struct Row<'a> {
    /// Makes what is there before, on A and on tmpfs alike.
    prepare: Action<'a>,
    /// Objects that get a watch of their own, besides the directory.
    watch: &'a [&'a str],
    /// What is done on A.
    remote: Action<'a>,
    /// What a local program does that gives the same events (column two of the table).
    local: Action<'a>,
    /// The events.
    wanted: &'a str,
}

/// Created after the operation: all its events are before the sentinel's own.
const SENTINEL: &str = "~end";

impl Row<'_> {
    #[track_caller]
    fn check(&self, label: &str) {
        let tmpfs = Scratch::on_tmpfs(label);
        (self.prepare)(tmpfs.path());
        let mut watcher = self.watcher(tmpfs.path());
        (self.local)(tmpfs.path());
        fs::create_dir(tmpfs.path().join(SENTINEL)).unwrap();
        let reference = inotify::text(&watcher.until_created(SENTINEL, PROPAGATION));
        assert_eq!(reference, self.wanted, "tmpfs (right is what this test expects)");

        let place = pair().place(label);
        (self.prepare)(&place.a);
        let before = tree::read(&place.a);
        eventually("B shows what A prepared", PROPAGATION, || {
            let seen = tree::try_read(&place.b).map_err(|e| e.to_string())?;
            let difference = tree::difference(("A", &before), ("B", &seen));
            if difference.is_empty() { Ok(()) } else { Err(difference) }
        });
        settle(&place.a, &place.b);
        let mut watcher = self.watcher(&place.b);
        (self.remote)(&place.a);
        fs::create_dir(place.a.join(SENTINEL)).unwrap();
        let seen = inotify::text(&watcher.until_created(SENTINEL, PROPAGATION));
        assert_eq!(seen, self.wanted, "host B (right is what this test expects)");
        let difference = tree::difference(("A", &tree::read(&place.a)), ("B", &tree::read(&place.b)));
        assert!(difference.is_empty(), "{difference}");
    }

    fn watcher(&self, dir: &Path) -> Inotify {
        let mut watcher = Inotify::on(dir);
        for object in self.watch {
            watcher.watch(&dir.join(object), object).unwrap();
        }
        watcher
    }
}

/// Waits until B has fired everything that A has done before: state comes first, events later.
#[track_caller]
fn settle(a: &Path, b: &Path) {
    let mut watcher = Inotify::on(b);
    fs::create_dir(a.join("~settle")).unwrap();
    watcher.until_created("~settle", PROPAGATION);
    fs::remove_dir(a.join("~settle")).unwrap();
    watcher.until("DELETE ~settle", PROPAGATION, |e| e.is(ReadFlags::DELETE, "~settle"));
}

/// Column two of the table for a new value: the size is what the key has when it is replayed.
fn replay_put(path: &Path) {
    let file = OpenOptions::new().write(true).open(path).unwrap();
    file.set_len(file.metadata().unwrap().len()).unwrap();
}

#[test]
fn put_of_an_existing_key() {
    let _guard = guard(60);
    Row {
        prepare: &|d| fs::write(d.join("f"), "old").unwrap(),
        watch: &["f"],
        remote: &|d| fs::write(d.join("f"), "newer").unwrap(),
        local: &|d| replay_put(&d.join("f")),
        wanted: "OPEN f; [f] OPEN; MODIFY f; [f] MODIFY; CLOSE_WRITE f; [f] CLOSE_WRITE",
    }
    .check("put-existing");
}

#[test]
fn append_and_truncate_look_like_a_put() {
    let _guard = guard(60);
    let wanted = "OPEN f; [f] OPEN; MODIFY f; [f] MODIFY; CLOSE_WRITE f; [f] CLOSE_WRITE";
    let prepare = |d: &Path| fs::write(d.join("f"), "old").unwrap();
    let local = |d: &Path| replay_put(&d.join("f"));
    Row {
        prepare: &prepare,
        watch: &["f"],
        remote: &|d| {
            OpenOptions::new().append(true).open(d.join("f")).unwrap().write_all(b"more").unwrap();
        },
        local: &local,
        wanted,
    }
    .check("append");
    Row {
        prepare: &prepare,
        watch: &["f"],
        // truncate(2), without a descriptor.
        remote: &|d| truncate(&d.join("f"), 1),
        local: &local,
        wanted,
    }
    .check("truncate");
    Row {
        prepare: &prepare,
        watch: &["f"],
        // Without a write it is published when the kernel lets go of the file, a moment after the close; who
        // opens it here waits for that.
        remote: &|d| {
            drop(File::create(d.join("f")).unwrap());
            assert_eq!(fs::read(d.join("f")).unwrap(), b"");
        },
        local: &local,
        wanted,
    }
    .check("truncate-open");
}

#[test]
fn put_of_a_new_key() {
    let _guard = guard(60);
    Row {
        prepare: &|_| (),
        watch: &[],
        remote: &|d| fs::write(d.join("f"), "new").unwrap(),
        local: &|d| fs::write(d.join("f"), "new").unwrap(),
        wanted: "CREATE f; OPEN f; MODIFY f; CLOSE_WRITE f",
    }
    .check("put-new");
}

#[test]
fn mkdir_and_symlink() {
    let _guard = guard(60);
    let action = |d: &Path| {
        fs::create_dir(d.join("d")).unwrap();
        symlink("d", d.join("l")).unwrap();
    };
    Row { prepare: &|_| (), watch: &[], remote: &action, local: &action, wanted: "CREATE,ISDIR d; CREATE l" }
        .check("mkdir-symlink");
}

/// Fifos, sockets and devices come and go as everything else does, and are the same thing on every host.
#[test]
fn special_files() {
    let _guard = guard(60);
    let (null, mode) = (makedev(1, 3), Mode::from_raw_mode(0o640));
    let action = |d: &Path| {
        mknodat(CWD, d.join("fifo"), FileType::Fifo, mode, 0).unwrap();
        drop(std::os::unix::net::UnixListener::bind(d.join("socket")).unwrap());
        // Devices are root's to make, and the replayer makes what it shows.
        if rustix::process::geteuid().is_root() {
            mknodat(CWD, d.join("null"), FileType::CharacterDevice, mode, null).unwrap();
            fs::remove_file(d.join("null")).unwrap();
        }
        fs::rename(d.join("fifo"), d.join("pipe")).unwrap();
    };
    let root = "CREATE fifo; CREATE socket; CREATE null; DELETE null; MOVED_FROM fifo #1; MOVED_TO pipe #1";
    let user = "CREATE fifo; CREATE socket; MOVED_FROM fifo #1; MOVED_TO pipe #1";
    let wanted = if rustix::process::geteuid().is_root() { root } else { user };
    Row { prepare: &|_| (), watch: &[], remote: &action, local: &action, wanted }.check("special");

    let place = pair().place("devices");
    let made = [FileType::CharacterDevice, FileType::BlockDevice].map(|kind| {
        let device = makedev(259, 70_000);
        mknodat(CWD, place.a.join("node"), kind, mode, device).unwrap();
        eventually("B shows the device", PROPAGATION, || fs::symlink_metadata(place.b.join("node")));
        let (a, b) = (place.a.join("node"), place.b.join("node"));
        let seen = [a, b].map(|path| fs::symlink_metadata(path).unwrap());
        fs::remove_file(place.a.join("node")).unwrap();
        until("it is gone on B", PROPAGATION, || !place.b.join("node").exists());
        seen.map(|meta| (meta.rdev() == device, meta.mode()))
    });
    let mode = mode.as_raw_mode();
    let wanted = [libc::S_IFCHR | mode, libc::S_IFBLK | mode].map(|mode| [(true, mode); 2]);
    assert_eq!(made, wanted);
}

#[test]
fn delete_of_a_file() {
    let _guard = guard(60);
    let action = |d: &Path| fs::remove_file(d.join("f")).unwrap();
    Row {
        prepare: &|d| fs::write(d.join("f"), "x").unwrap(),
        watch: &["f"],
        remote: &action,
        local: &action,
        wanted: "[f] ATTRIB; [f] DELETE_SELF; [f] IGNORED; DELETE f",
    }
    .check("delete");
}

#[test]
fn delete_of_a_symlink() {
    let _guard = guard(60);
    let action = |d: &Path| fs::remove_file(d.join("l")).unwrap();
    Row {
        prepare: &|d| symlink("nowhere", d.join("l")).unwrap(),
        watch: &[],
        remote: &action,
        local: &action,
        wanted: "DELETE l",
    }
    .check("delete-symlink");
}

#[test]
fn rmdir() {
    let _guard = guard(60);
    let action = |d: &Path| fs::remove_dir(d.join("d")).unwrap();
    Row {
        prepare: &|d| fs::create_dir(d.join("d")).unwrap(),
        watch: &["d"],
        remote: &action,
        local: &action,
        wanted: "[d] DELETE_SELF; [d] IGNORED; DELETE,ISDIR d",
    }
    .check("rmdir");
}

#[test]
fn rename_of_a_file() {
    let _guard = guard(60);
    let action = |d: &Path| fs::rename(d.join("f"), d.join("g")).unwrap();
    Row {
        prepare: &|d| fs::write(d.join("f"), "x").unwrap(),
        watch: &["f"],
        remote: &action,
        local: &action,
        wanted: "MOVED_FROM f #1; MOVED_TO g #1; [f] MOVE_SELF",
    }
    .check("rename");
}

#[test]
fn rename_over_a_file() {
    let _guard = guard(60);
    let action = |d: &Path| fs::rename(d.join("f"), d.join("g")).unwrap();
    Row {
        prepare: &|d| {
            fs::write(d.join("f"), "new").unwrap();
            fs::write(d.join("g"), "old").unwrap();
        },
        watch: &["f", "g"],
        remote: &action,
        local: &action,
        wanted: "MOVED_FROM f #1; MOVED_TO g #1; [g] ATTRIB; [f] MOVE_SELF; [g] DELETE_SELF; [g] IGNORED",
    }
    .check("rename-over");
}

#[test]
fn rename_of_a_directory_keeps_the_watches_in_it() {
    let _guard = guard(60);
    let action = |d: &Path| {
        fs::rename(d.join("one"), d.join("two")).unwrap();
        fs::create_dir(d.join("two/later")).unwrap();
    };
    Row {
        prepare: &|d| {
            fs::create_dir(d.join("one")).unwrap();
            fs::write(d.join("one/f"), "x").unwrap();
        },
        watch: &["one"],
        remote: &action,
        local: &action,
        wanted: "MOVED_FROM,ISDIR one #1; MOVED_TO,ISDIR two #1; [one] MOVE_SELF; [one] CREATE,ISDIR later",
    }
    .check("rename-dir");
}

#[test]
fn rename_from_one_directory_to_another() {
    let _guard = guard(60);
    let action = |d: &Path| fs::rename(d.join("from/f"), d.join("to/g")).unwrap();
    Row {
        prepare: &|d| {
            fs::create_dir(d.join("from")).unwrap();
            fs::create_dir(d.join("to")).unwrap();
            fs::write(d.join("from/f"), "x").unwrap();
        },
        watch: &["from", "to"],
        remote: &action,
        local: &action,
        wanted: "[from] MOVED_FROM f #1; [to] MOVED_TO g #1",
    }
    .check("rename-across");
}

#[test]
fn rename_exchange() {
    let _guard = guard(60);
    let action = |d: &Path| renameat_with(CWD, d.join("f"), CWD, d.join("g"), RenameFlags::EXCHANGE).unwrap();
    Row {
        prepare: &|d| {
            fs::write(d.join("f"), "1").unwrap();
            fs::write(d.join("g"), "2").unwrap();
        },
        watch: &[],
        remote: &action,
        local: &action,
        wanted: "MOVED_FROM f #1; MOVED_TO g #1; MOVED_FROM g #2; MOVED_TO f #2",
    }
    .check("exchange");
}

/// What Kubernetes-style publishers do: a new directory, a new link, and a rename of the link.
#[test]
fn swap_of_a_symlink() {
    let _guard = guard(60);
    let action = |d: &Path| {
        symlink("v2", d.join("..data_tmp")).unwrap();
        fs::rename(d.join("..data_tmp"), d.join("..data")).unwrap();
    };
    Row {
        prepare: &|d| symlink("v1", d.join("..data")).unwrap(),
        watch: &[],
        remote: &action,
        local: &action,
        wanted: "CREATE ..data_tmp; MOVED_FROM ..data_tmp #1; MOVED_TO ..data #1",
    }
    .check("swap");
}

#[test]
fn setattr() {
    let _guard = guard(60);
    let prepare = |d: &Path| fs::write(d.join("f"), "x").unwrap();
    let wanted = "ATTRIB f; [f] ATTRIB";
    let chmod = |d: &Path| fs::set_permissions(d.join("f"), Permissions::from_mode(0o600)).unwrap();
    let chown = |d: &Path| std::os::unix::fs::chown(d.join("f"), Some(1), Some(1)).unwrap();
    let xattr = |d: &Path| setxattr(d.join("f"), "user.note", b"hello", XattrFlags::empty()).unwrap();
    let touch = |d: &Path| set_times(&d.join("f"));
    let rows: [(&str, Action); 4] =
        [("chmod", &chmod), ("chown", &chown), ("xattr", &xattr), ("touch", &touch)];
    for (label, action) in rows {
        eprintln!("{label}");
        Row { prepare: &prepare, watch: &["f"], remote: action, local: action, wanted }.check(label);
    }
}

/// kvctl is no mount: both hosts replay what it does, parents first, children first on the way out.
#[test]
fn kvctl_fires_events_too() {
    let _guard = guard(60);
    let pair = pair();
    let place = pair.place("kvctl");
    fs::create_dir(place.a.join("d")).unwrap();
    eventually("B has it", PROPAGATION, || fs::metadata(place.b.join("d")));
    settle(&place.a, &place.b);
    for host in [&place.a, &place.b] {
        let mut watcher = Inotify::on(host);
        watcher.watch(&host.join("d"), "d").unwrap();
        pair.kv.put(&place.key("f"), "1");
        pair.kv.put(&place.key("f"), "2");
        pair.kv.put(&place.key("d/deep/g"), "3");
        pair.kv.run(&["del", "--prefix", &place.key("d")]);
        pair.kv.run(&["del", &place.key("f")]);
        pair.kv.run(&["mkdir", &place.key(SENTINEL)]);
        let mut events = watcher.until_created(SENTINEL, PROPAGATION);
        // Two puts that wait together are one; here they do not wait, as each kvctl takes longer.
        events.retain(|e| !e.mask.contains(ReadFlags::ATTRIB));
        assert_eq!(
            inotify::text(&events),
            "CREATE f; OPEN f; MODIFY f; CLOSE_WRITE f; OPEN f; MODIFY f; CLOSE_WRITE f; \
             [d] CREATE,ISDIR deep; [d] DELETE,ISDIR deep; [d] DELETE_SELF; [d] IGNORED; \
             DELETE,ISDIR d; DELETE f",
            "on {host:?}"
        );
        pair.kv.run(&["rmdir", &place.key(SENTINEL)]);
        pair.kv.run(&["mkdir", &place.key("d")]);
        eventually("it has the directory again", PROPAGATION, || fs::metadata(host.join("d")));
        for dir in [&place.a, &place.b] {
            File::open(dir).unwrap().sync_all().unwrap();
        }
        settle(&place.a, &place.b);
    }
}

/// The writer's own watchers get what a local file system gives; the kernel fires it, not fsd.
#[test]
fn p7_the_writers_own_host_gets_events_too() {
    let _guard = guard(60);
    let place = pair().place("own");
    let tmpfs = Scratch::on_tmpfs("own");
    let actions = |d: &Path| {
        fs::write(d.join("f"), "one").unwrap();
        OpenOptions::new().append(true).open(d.join("f")).unwrap().write_all(b"two").unwrap();
        fs::create_dir(d.join("d")).unwrap();
        symlink("f", d.join("l")).unwrap();
        fs::rename(d.join("f"), d.join("g")).unwrap();
        fs::set_permissions(d.join("g"), Permissions::from_mode(0o600)).unwrap();
        fs::remove_file(d.join("l")).unwrap();
        fs::remove_dir(d.join("d")).unwrap();
        fs::create_dir(d.join(SENTINEL)).unwrap();
    };
    let [local, own] = [tmpfs.path(), place.a.as_path()].map(|dir| {
        let mut watcher = Inotify::on(dir);
        actions(dir);
        inotify::text(&watcher.until_created(SENTINEL, PROPAGATION))
    });
    assert_eq!(own, local);
}

/// No event is fired twice: not on the host that made the change, nor after the events of it.
#[test]
fn p7_nothing_is_replayed_on_the_host_that_made_it() {
    let _guard = guard(60);
    let place = pair().place("once");
    let mut own = Inotify::on(&place.a);
    let mut other = Inotify::on(&place.b);
    for n in 0..50 {
        fs::create_dir(place.a.join(format!("d{n}"))).unwrap();
        // From B, so that A replays something in between.
        fs::create_dir(place.b.join(format!("e{n}"))).unwrap();
    }
    // Each watcher waits for what the other host makes last: that comes by a replay, after all others.
    for (dir, watcher, end) in [(&place.b, &mut own, "~end-b"), (&place.a, &mut other, "~end-a")] {
        fs::create_dir(dir.join(end)).unwrap();
        let events = watcher.until_created(end, PROPAGATION);
        let mut names: Vec<String> = events
            .into_iter()
            .map(|e| e.name.unwrap().into_string().unwrap())
            .filter(|n| !n.starts_with('~'))
            .collect();
        names.sort();
        let mut wanted: Vec<String> = (0..50).flat_map(|n| [format!("d{n}"), format!("e{n}")]).collect();
        wanted.sort();
        assert_eq!(names, wanted);
    }
}

/// Promise 6: when an event arrives, a read gives that value or a newer one. A waits for B each
/// time, so here it has to be exactly that value.
#[test]
fn p6_what_an_event_announces_can_be_read() {
    let _guard = guard(120);
    let place = pair().place("p6");
    fs::write(place.a.join("f"), "start").unwrap();
    eventually("B has the file", PROPAGATION, || fs::metadata(place.b.join("f")));
    settle(&place.a, &place.b);
    let mut watcher = Inotify::on(&place.b);
    let flags = ReadFlags::MODIFY | ReadFlags::MOVED_TO;
    for n in 0..200 {
        let value = format!("value {n} {}", "x".repeat(n * 40));
        if n % 2 == 0 {
            fs::write(place.a.join("f"), &value).unwrap();
        } else {
            fs::write(place.a.join("f.new"), &value).unwrap();
            fs::rename(place.a.join("f.new"), place.a.join("f")).unwrap();
        }
        watcher.until("an event for f", PROPAGATION, |e| {
            e.mask.intersects(flags) && e.name.as_deref().is_some_and(|n| n == "f")
        });
        let seen = fs::read_to_string(place.b.join("f")).unwrap();
        assert!(
            seen == value,
            "round {n}: the event came and the read gave {:?}",
            &seen[..seen.len().min(30)]
        );
        assert_eq!(fs::metadata(place.b.join("f")).unwrap().len(), value.len() as u64, "round {n}: size");
    }
}

#[track_caller]
fn truncate(path: &Path, size: i64) {
    let path = std::ffi::CString::new(path.as_os_str().as_encoded_bytes()).unwrap();
    // SAFETY: the path is a C string that lives during the call.
    assert_eq!(unsafe { libc::truncate(path.as_ptr(), size) }, 0, "{}", std::io::Error::last_os_error());
}

#[track_caller]
fn set_times(path: &Path) {
    let stamp = rustix::fs::Timespec { tv_sec: 1_000_000, tv_nsec: 0 };
    let both = rustix::fs::Timestamps { last_access: stamp, last_modification: stamp };
    rustix::fs::utimensat(CWD, path, &both, rustix::fs::AtFlags::empty()).unwrap();
}

/// A watch taken on one host lasts: a thousand changes later it still fires.
#[test]
fn a_file_watch_survives_many_updates() {
    let _guard = guard(120);
    let place = pair().place("survive");
    fs::write(place.a.join("f"), "0").unwrap();
    eventually("B has the file", PROPAGATION, || fs::metadata(place.b.join("f")));
    settle(&place.a, &place.b);
    let mut watcher = Inotify::new();
    watcher.watch(&place.b.join("f"), "f").unwrap();
    for n in 1..=300 {
        fs::write(place.a.join("f"), n.to_string()).unwrap();
    }
    // Successive values that wait together may be one event; the last value has an event of its own.
    let end = std::time::Instant::now() + Duration::from_secs(20);
    loop {
        let left = end.saturating_duration_since(std::time::Instant::now());
        let event = watcher.next(left).expect("the watch fires until the last value is there");
        let modified = event.mask.contains(ReadFlags::MODIFY);
        if modified && fs::read_to_string(place.b.join("f")).unwrap() == "300" {
            break;
        }
    }
}
