//! Single rules of the tree, each where it is easy to read.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use bytes::Bytes;
use common::{at, delete, entry, fresh, grant, key, mkdir, proposal, put, refused, run};
use quorumfs_api::command::{
    AttrChange, Command, Compare, CreateMode, HeldLock, LeaseChange, LockKind, LockOwner, Owner, Range,
    RenameMode, Target, XattrMode,
};
use quorumfs_api::event::Change;
use quorumfs_api::limits::{LOCKS_MAX, SYMLINK_MAX, TXN_MAX, XATTR_NAME_MAX, XATTR_VALUE_MAX, XATTRS_MAX};
use quorumfs_api::outcome::{Done, Refusal};
use quorumfs_api::record::{Ino, Kind, Timestamp};
use quorumfs_api::style::EventStyle;
use quorumfs_machine::{MemTables, apply, init, view};

fn rename(from: &str, to: &str, mode: RenameMode) -> Command {
    Command::Rename { from: at(from), to: at(to), mode }
}

fn symlink(link: &str, to: impl Into<Bytes>) -> Command {
    Command::Symlink { at: at(link), to: to.into(), parents: true, owner: Owner::FILE }
}

/// `/dir/file`, `/dir/sub/deep`, `/empty`, `/file`, `/link`.
fn some() -> MemTables {
    let mut tables = fresh();
    for command in [
        put(key("/dir/file"), "1"),
        put(key("/dir/sub/deep"), "2"),
        mkdir("/empty"),
        put(key("/file"), "3"),
        symlink("/link", "file"),
    ] {
        run(&mut tables, command).outcome.result.unwrap();
    }
    tables
}

fn ino(tables: &MemTables, text: &str) -> Ino {
    view::resolve(tables, &key(text)).unwrap().unwrap()
}

#[test]
fn the_root_is_made_once() {
    let mut tables = fresh();
    let root = view::get(&tables, &key("/")).unwrap().unwrap();
    assert_eq!((root.ino, root.kind, root.mode), (Ino::ROOT, Kind::Dir, 0o755));
    assert_eq!(view::meta(&tables).unwrap().revision, 0);
    run(&mut tables, put(key("/a"), "1"));
    let before = tables.clone();
    init(&mut tables).unwrap();
    assert_eq!(tables, before);
}

/// Whether a refusal is the right one.
type Expected = fn(&Refusal) -> bool;

#[test]
fn renames_follow_posix() {
    use RenameMode::{Exchange, NoReplace, Replace};
    let cases: [(&str, &str, RenameMode, Expected); 20] = [
        ("/none", "/x", Replace, |r| matches!(r, Refusal::NotFound(_))),
        ("/file", "/none/x", Replace, |r| matches!(r, Refusal::NotFound(_))),
        ("/file", "/link/x", Replace, |r| matches!(r, Refusal::NotDirectory(_))),
        ("/file/x", "/x", Replace, |r| matches!(r, Refusal::NotDirectory(_))),
        ("/", "/x", Replace, |r| matches!(r, Refusal::Invalid(_))),
        ("/file", "/", Replace, |r| matches!(r, Refusal::Invalid(_))),
        ("/dir", "/dir/sub/x", Replace, |r| matches!(r, Refusal::Invalid(_))),
        ("/dir", "/dir/sub", Replace, |r| matches!(r, Refusal::Invalid(_))),
        ("/dir", "/dir/sub", Exchange, |r| matches!(r, Refusal::Invalid(_))),
        ("/dir/sub", "/dir", Exchange, |r| matches!(r, Refusal::Invalid(_))),
        ("/dir/sub", "/dir", Replace, |r| matches!(r, Refusal::NotEmpty(_))),
        ("/dir/file", "/dir", Replace, |r| matches!(r, Refusal::IsDirectory(_))),
        ("/dir", "/file", Replace, |r| matches!(r, Refusal::NotDirectory(_))),
        ("/empty", "/link", Replace, |r| matches!(r, Refusal::NotDirectory(_))),
        ("/file", "/empty", Replace, |r| matches!(r, Refusal::IsDirectory(_))),
        ("/empty", "/dir", Replace, |r| matches!(r, Refusal::NotEmpty(_))),
        ("/file", "/link", NoReplace, |r| matches!(r, Refusal::Exists(_))),
        ("/file", "/file", NoReplace, |r| matches!(r, Refusal::Exists(_))),
        ("/file", "/none", Exchange, |r| matches!(r, Refusal::NotFound(_))),
        ("/none", "/file", Exchange, |r| matches!(r, Refusal::NotFound(_))),
    ];
    for (from, to, mode, expected) in cases {
        let refusal = refused(&mut some(), rename(from, to, mode));
        assert!(expected(&refusal), "{from} to {to} {mode:?}: {refusal:?}");
    }
    for (from, to, mode) in [
        ("/file", "/link", Replace),
        ("/link", "/file", Replace),
        ("/dir", "/empty", Replace),
        ("/dir", "/x", NoReplace),
        ("/dir", "/empty/x", Replace),
        ("/dir", "/file", Exchange),
        ("/dir/sub", "/link", Exchange),
    ] {
        let mut tables = some();
        let (a, b) = (ino(&tables, from), view::resolve(&tables, &key(to)).unwrap());
        let applied = run(&mut tables, rename(from, to, mode));
        assert_eq!(applied.outcome.result, Ok(Done::Ok), "{from} to {to} {mode:?}");
        assert_eq!(ino(&tables, to), a);
        let left = if mode == Exchange { b } else { None };
        assert_eq!(view::resolve(&tables, &key(from)).unwrap(), left);
        let changes = applied.event.unwrap().changes;
        assert!(matches!(&changes[..], [Change::Rename { .. }]), "one change, however much is below");
    }
    // To itself: nothing happens, and there is no revision.
    for mode in [Replace, Exchange] {
        let mut tables = some();
        let before = tables.clone();
        assert_eq!(run(&mut tables, rename("/dir", "/dir", mode)).event, None);
        assert_eq!(tables, before);
    }
}

#[test]
fn names_by_directory_number_follow_the_directory() {
    let mut tables = some();
    let dir = ino(&tables, "/dir").0;
    run(&mut tables, rename("/dir", "/empty/moved", RenameMode::Replace));
    let target = Target::At(entry(dir, "new"));
    let applied = run(&mut tables, put(target.clone(), "v"));
    let Change::Create { place, .. } = &applied.event.unwrap().changes[0] else { panic!("not made") };
    assert_eq!(place.key, key("/empty/moved/new"));
    let file = ino(&tables, "/file").0;
    assert!(matches!(refused(&mut tables, put(Target::At(entry(file, "x")), "v")), Refusal::NotDirectory(_)));
    run(&mut tables, delete("/empty", true));
    assert_eq!(refused(&mut tables, put(target, "v")), Refusal::Stale(Ino(dir)));
    assert_eq!(refused(&mut tables, put(Target::Ino(Ino(dir)), "v")), Refusal::Stale(Ino(dir)));
}

#[test]
fn symlinks_are_not_followed() {
    let mut tables = some();
    run(&mut tables, symlink("/to-dir", "dir"));
    assert!(matches!(refused(&mut tables, put(key("/to-dir/x"), "v")), Refusal::NotDirectory(_)));
    assert!(matches!(refused(&mut tables, put(key("/link"), "v")), Refusal::NotFile(_, Kind::Symlink)));
    assert_eq!(view::get(&tables, &key("/to-dir/file")).unwrap(), None);
    assert!(matches!(refused(&mut tables, symlink("/x", "")), Refusal::Invalid(_)));
    assert!(matches!(refused(&mut tables, symlink("/x", "a\0b")), Refusal::Invalid(_)));
    let long = vec![b'a'; SYMLINK_MAX + 1];
    assert!(matches!(refused(&mut tables, symlink("/x", long)), Refusal::NameTooLong(_)));
}

#[test]
fn a_put_that_changes_nothing_is_a_change_and_a_truncate_is_not() {
    let mut tables = some();
    let before = view::get(&tables, &key("/file")).unwrap().unwrap();
    let applied = run(&mut tables, put(key("/file"), before.value.clone()));
    assert!(applied.event.is_some());
    let after = view::get(&tables, &key("/file")).unwrap().unwrap();
    assert_eq!((after.ino, after.version), (before.ino, before.version + 1));
    assert_eq!(after.create_revision, before.create_revision);
    let unchanged = tables.clone();
    let truncate = Command::Truncate { target: key("/file").into(), size: 1 };
    let done = Done::Written { ino: after.ino, created: false, version: after.version };
    assert_eq!(run(&mut tables, truncate).outcome.result, Ok(done));
    assert_eq!(tables, unchanged);
}

#[test]
fn appends_add_up() {
    let mut tables = fresh();
    for data in ["a", "bc", "", "d"] {
        let target = key("/log").into();
        let (create, parents, owner) = (CreateMode::Allow, false, Owner::FILE);
        run(&mut tables, Command::Append { target, data: data.into(), create, parents, owner });
    }
    let log = view::get(&tables, &key("/log")).unwrap().unwrap();
    assert_eq!((&log.value[..], log.version), (&b"abcd"[..], 3), "nothing was added once");
}

#[test]
fn parents_get_0755_and_the_owner() {
    let mut tables = fresh();
    let owner = Owner { mode: 0o600, uid: 7, gid: 8 };
    let Command::Put { target, value, create, parents, lease, .. } = put(key("/a/b/f"), "v") else {
        panic!()
    };
    run(&mut tables, Command::Put { target, value, create, parents, owner, lease });
    for (text, mode) in [("/a", 0o755), ("/a/b", 0o755), ("/a/b/f", 0o600)] {
        let record = view::get(&tables, &key(text)).unwrap().unwrap();
        assert_eq!((record.mode, record.uid, record.gid, record.create_revision), (mode, 7, 8, 1), "{text}");
    }
}

#[test]
fn a_full_store_takes_only_what_makes_room() {
    let mut tables = some();
    let lease = grant(&mut tables);
    let owner = LockOwner { session: lease, owner: 1 };
    let file = ino(&tables, "/file");
    let range = Range::WHOLE;
    run(
        &mut tables,
        Command::Lock { ino: file, owner, range, kind: LockKind::Exclusive, pid: 1, wait: false },
    );
    let used = view::meta(&tables).unwrap().store_bytes;
    let mut full = |command: Command| {
        let limited = quorumfs_api::Proposal { store_max: used / 2, ..proposal(command) };
        apply(&mut tables, &limited).unwrap().outcome.result
    };
    for grows in [
        put(key("/new"), ""),
        put(key("/file"), "longer"),
        mkdir("/new"),
        symlink("/new", "x"),
        Command::SetXattr {
            target: key("/file").into(),
            name: "user.x".into(),
            value: Some("v".into()),
            mode: XattrMode::Set,
        },
    ] {
        assert_eq!(full(grows), Err(Refusal::StoreFull { used, limit: used / 2 }));
    }
    for works in [
        put(key("/file"), "s"),
        Command::SetAttr {
            target: key("/file").into(),
            set: AttrChange { mode: Some(0o600), ..AttrChange::default() },
        },
        rename("/dir", "/a-much-longer-name", RenameMode::Replace),
        Command::Truncate { target: key("/file").into(), size: 0 },
        Command::Unlock { ino: file, owner, range },
        Command::LeaseRevoke { lease },
        delete("/link", false),
        Command::Rmdir { at: at("/empty") },
        delete("/", true),
    ] {
        let what = format!("{works:?}");
        assert!(full(works).is_ok(), "{what}");
    }
    assert_eq!(view::meta(&tables).unwrap().store_bytes, 0);
    assert_eq!(view::meta(&tables).unwrap().keys, 0);
}

#[test]
fn values_are_bounded_but_for_cutting() {
    let mut tables = fresh();
    run(&mut tables, put(key("/f"), vec![0; 100]));
    let mut limited = |command: Command| {
        let limited = quorumfs_api::Proposal { value_max: 10, ..proposal(command) };
        apply(&mut tables, &limited).unwrap().outcome.result
    };
    let truncate = |size| Command::Truncate { target: key("/f").into(), size };
    assert_eq!(limited(put(key("/f"), vec![0; 11])), Err(Refusal::ValueTooLarge { size: 11, limit: 10 }));
    assert_eq!(limited(truncate(101)), Err(Refusal::ValueTooLarge { size: 101, limit: 10 }));
    assert!(limited(truncate(99)).is_ok());
    // Whatever the leader allows, what has to fit into a frame is bounded.
    let huge = quorumfs_api::Proposal { value_max: u64::MAX, ..proposal(truncate(u64::MAX)) };
    assert!(matches!(apply(&mut tables, &huge).unwrap().outcome.result, Err(Refusal::ValueTooLarge { .. })));
}

#[test]
fn a_directory_can_say_how_its_changes_are_to_look() {
    let mut tables = some();
    let set = |at: &str, value: Option<&'static str>| Command::SetXattr {
        target: key(at).into(),
        name: "user.kv.events".into(),
        value: value.map(Into::into),
        mode: XattrMode::Set,
    };
    for word in ["rename", "swap", "write"] {
        run(&mut tables, set("/dir", Some(word))).outcome.result.unwrap();
        let dir = view::get(&tables, &key("/dir")).unwrap().unwrap();
        assert_eq!(EventStyle::of(&dir).map(EventStyle::name), Some(word));
    }
    assert!(matches!(refused(&mut tables, set("/dir", Some("Rename"))), Refusal::Invalid(_)));
    assert!(matches!(refused(&mut tables, set("/file", Some("rename"))), Refusal::NotDirectory(_)));
    run(&mut tables, set("/dir", None)).outcome.result.unwrap();
    assert_eq!(EventStyle::of(&view::get(&tables, &key("/dir")).unwrap().unwrap()), None);
    assert!(matches!(refused(&mut tables, set("/dir", None)), Refusal::NoAttribute));
    // The root is a directory like others.
    run(&mut tables, set("/", Some("swap"))).outcome.result.unwrap();
}

#[test]
fn attributes_have_limits() {
    let mut tables = some();
    let set = |name: Vec<u8>, value: Option<Vec<u8>>| Command::SetXattr {
        target: key("/file").into(),
        name: name.into(),
        value: value.map(Into::into),
        mode: XattrMode::Set,
    };
    assert!(matches!(refused(&mut tables, set(b"user.kv.version".to_vec(), None)), Refusal::Invalid(_)));
    assert!(matches!(refused(&mut tables, set(Vec::new(), None)), Refusal::Invalid(_)));
    let long = vec![b'n'; XATTR_NAME_MAX + 1];
    assert!(matches!(refused(&mut tables, set(long, Some(vec![1]))), Refusal::NameTooLong(_)));
    let big = vec![0; XATTR_VALUE_MAX + 1];
    assert!(matches!(refused(&mut tables, set(b"user.x".to_vec(), Some(big))), Refusal::TooMany(_)));
    for i in 0..XATTRS_MAX {
        run(&mut tables, set(format!("user.{i}").into_bytes(), Some(vec![1]))).outcome.result.unwrap();
    }
    assert!(matches!(refused(&mut tables, set(b"user.x".to_vec(), Some(vec![1]))), Refusal::TooMany(_)));
    let file = view::get(&tables, &key("/file")).unwrap().unwrap();
    assert!(file.xattrs.is_sorted() && file.xattrs.len() == XATTRS_MAX);
    assert_eq!(file.version, 1, "attributes are not the value");
}

#[test]
fn fencing_numbers_grow_and_locks_are_bounded() {
    let mut tables = some();
    let file = ino(&tables, "/file");
    let (a, b) = (grant(&mut tables), grant(&mut tables));
    let lock = |session, range, kind| Command::Lock {
        ino: file,
        owner: LockOwner { session, owner: 1 },
        range,
        kind,
        pid: 9,
        wait: false,
    };
    let Done::Locked(first) =
        run(&mut tables, lock(a, Range::WHOLE, LockKind::Exclusive)).outcome.result.unwrap()
    else {
        panic!("not locked")
    };
    let held = HeldLock {
        owner: LockOwner { session: a, owner: 1 },
        range: Range::WHOLE,
        kind: LockKind::Exclusive,
        pid: 9,
        revision: first,
    };
    let wanted = lock(b, Range { start: 3, end: 3 }, LockKind::Shared);
    assert_eq!(refused(&mut tables, wanted.clone()), Refusal::Locked(held));
    // From exclusive to shared lets others in, and says so.
    let shared = run(&mut tables, lock(a, Range::WHOLE, LockKind::Shared));
    assert_eq!(shared.event.unwrap().changes, [Change::Unlocked { ino: file }]);
    let Done::Locked(second) = run(&mut tables, wanted).outcome.result.unwrap() else { panic!("not locked") };
    assert!(second > first);

    let unlock =
        |session| Command::Unlock { ino: file, owner: LockOwner { session, owner: 1 }, range: Range::WHOLE };
    assert_eq!(run(&mut tables, unlock(a)).event.unwrap().changes, [Change::Unlocked { ino: file }]);
    assert_eq!(run(&mut tables, unlock(a)).event, None, "nothing was held any more");
    for i in 1..LOCKS_MAX as u64 {
        let range = Range { start: i * 2, end: i * 2 };
        run(&mut tables, lock(a, range, LockKind::Shared)).outcome.result.unwrap();
    }
    let one_more = lock(a, Range { start: 1 << 20, end: 1 << 20 }, LockKind::Shared);
    assert!(matches!(refused(&mut tables, one_more), Refusal::TooMany(_)));
    assert!(matches!(
        refused(&mut tables, lock(a, Range { start: 2, end: 1 }, LockKind::Shared)),
        Refusal::Invalid(_)
    ));
}

#[test]
fn who_waits_for_a_lock_hears_that_the_file_is_gone() {
    let mut tables = some();
    let session = grant(&mut tables);
    for (text, command) in [
        ("/file", delete("/file", false)),
        ("/dir/file", rename("/dir/sub/deep", "/dir/file", RenameMode::Replace)),
    ] {
        let file = ino(&tables, text);
        let owner = LockOwner { session, owner: 1 };
        run(
            &mut tables,
            Command::Lock {
                ino: file,
                owner,
                range: Range::WHOLE,
                kind: LockKind::Shared,
                pid: 1,
                wait: false,
            },
        );
        let changes = run(&mut tables, command).event.unwrap().changes;
        assert_eq!(changes.last(), Some(&Change::Unlocked { ino: file }));
        assert!(view::locks(&tables, file).unwrap().is_empty());
    }
}

#[test]
fn transactions_are_all_or_nothing() {
    let mut tables = some();
    let txn = |compare, then, otherwise| Command::Txn { compare, then, otherwise };
    let refusal = refused(
        &mut tables,
        txn(vec![], vec![put(key("/x"), "1"), put(key("/file"), "2"), delete("/none", false)], vec![]),
    );
    assert!(matches!(refusal, Refusal::NotFound(_)));
    for inner in [Command::LeaseGrant { ttl_ms: 1 }, txn(vec![], vec![], vec![])] {
        // Also in the branch that does not run.
        assert!(matches!(refused(&mut tables, txn(vec![], vec![], vec![inner])), Refusal::Invalid(_)));
    }
    let many = vec![Compare::Exists(key("/file"), true); TXN_MAX + 1];
    assert!(matches!(refused(&mut tables, txn(many, vec![], vec![])), Refusal::TooMany(_)));
    let nothing = run(&mut tables, txn(vec![], vec![], vec![]));
    assert_eq!(nothing.event, None);
    let swap = txn(
        vec![Compare::Value(key("/file"), "3".into(), true)],
        vec![put(key("/file"), "4"), put(key("/count"), "1")],
        vec![],
    );
    let first = run(&mut tables, swap.clone());
    let event = first.event.unwrap();
    assert_eq!(event.changes.len(), 2, "one revision holds both");
    assert!(matches!(first.outcome.result, Ok(Done::Txn { succeeded: true, .. })));
    let second = run(&mut tables, swap).outcome.result;
    assert_eq!(second, Ok(Done::Txn { succeeded: false, results: vec![] }));
}

#[test]
fn the_end_of_a_lease_is_one_revision() {
    let mut tables = some();
    let lease = grant(&mut tables);
    let bind = |text: &str| {
        let Command::Put { target, value, create, parents, owner, .. } = put(key(text), "v") else {
            panic!()
        };
        Command::Put { target, value, create, parents, owner, lease: LeaseChange::Bind(lease) }
    };
    for text in ["/services/a", "/services/b", "/file"] {
        run(&mut tables, bind(text)).outcome.result.unwrap();
    }
    // A rename takes the binding along.
    run(&mut tables, rename("/services/b", "/services/c", RenameMode::Replace));
    let free = ino(&tables, "/dir/file");
    let owner = LockOwner { session: lease, owner: 1 };
    run(
        &mut tables,
        Command::Lock { ino: free, owner, range: Range::WHOLE, kind: LockKind::Shared, pid: 1, wait: false },
    );
    let info = view::lease(&tables, lease).unwrap().unwrap();
    assert_eq!(info.keys, [key("/file"), key("/services/a"), key("/services/c")]);

    let applied = run(&mut tables, Command::LeaseExpire { leases: vec![lease, lease] });
    let removed: Vec<_> = applied
        .event
        .unwrap()
        .changes
        .into_iter()
        .map(|change| match change {
            Change::Remove { place, .. } => place.key.to_string(),
            Change::Unlocked { ino } => format!("unlocked {}", ino == free),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(removed, ["/file", "/services/a", "/services/c", "unlocked true"]);
    assert!(view::resolve(&tables, &key("/services")).unwrap().is_some(), "directories stay");
    assert_eq!(refused(&mut tables, bind("/x")), Refusal::NoLease(lease));
    assert_eq!(refused(&mut tables, Command::LeaseRevoke { lease }), Refusal::NoLease(lease));
    assert_eq!(run(&mut tables, Command::LeaseExpire { leases: vec![lease] }).event, None);
}

#[test]
fn times_and_authors_are_those_of_the_proposal() {
    let mut tables = some();
    let later = quorumfs_api::Proposal {
        time: Timestamp(5_000),
        author: "bob".to_string(),
        ..proposal(rename("/dir/file", "/empty/file", RenameMode::Replace))
    };
    let revision = apply(&mut tables, &later).unwrap().outcome.revision;
    for dir in ["/dir", "/empty"] {
        let record = view::get(&tables, &key(dir)).unwrap().unwrap();
        assert_eq!((record.mtime, record.ctime), (Timestamp(5_000), Timestamp(5_000)));
        assert!(record.mod_revision < revision, "names inside are not the directory's own record");
        assert_eq!(&*record.author, "alice");
    }
    let file = view::get(&tables, &key("/empty/file")).unwrap().unwrap();
    assert_eq!((file.mtime, file.ctime), (Timestamp(1_000), Timestamp(5_000)));
    assert_eq!((file.mod_revision, file.version, &file.author[..]), (revision, 1, "bob"));
}
