//! What watchers of a subtree see, case by case; `properties.rs` checks that mirrors stay true.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::{at, delete, fresh, grant, key, mkdir, put, run};
use quorumfs_api::command::{AttrChange, Command, LockKind, LockOwner, Range, RenameMode, Target};
use quorumfs_api::event::Change;
use quorumfs_api::record::Ino;
use quorumfs_machine::{Filtered, MemTables, filter, view};

/// `nothing`, `copy`, or the changes that pass; with `root:` before them, a mirror takes a copy.
fn seen(tables: &mut MemTables, command: Command, prefix: &str) -> String {
    let event = run(tables, command).event.expect("something changed");
    let (root, event) = match filter(&event, &key(prefix)) {
        Filtered::Nothing => return "nothing".to_string(),
        Filtered::Copy => return "copy".to_string(),
        Filtered::Root(event) => ("root: ", event),
        Filtered::Pass(event) => ("", event),
    };
    let change = |change: &Change| match change {
        Change::Create { place, .. } => format!("create {}", place.key),
        Change::Update { place, .. } => format!("update {}", place.key),
        Change::Attr { place, .. } => {
            format!("attr {}", place.as_ref().map_or("/".to_string(), |p| p.key.to_string()))
        }
        Change::Remove { place, .. } => format!("remove {}", place.key),
        Change::Rename { from, to, .. } => format!("rename {} {}", from.key, to.key),
        Change::Unlocked { .. } => "unlocked".to_string(),
    };
    format!("{root}{}", event.changes.iter().map(change).collect::<Vec<_>>().join(", "))
}

fn rename(from: &str, to: &str, mode: RenameMode) -> Command {
    Command::Rename { from: at(from), to: at(to), mode }
}

#[test]
fn each_change_from_where_the_watcher_stands() {
    use RenameMode::{Exchange, Replace};
    let touch = |target: Target| Command::SetAttr {
        target,
        set: AttrChange { mode: Some(0o700), ..AttrChange::default() },
    };
    let cases: Vec<(&str, Command, &str)> = vec![
        ("/w", put(key("/w/new"), "v"), "create /w/new"),
        ("/w", put(key("/other"), "v"), "nothing"),
        ("/w", put(key("/ww"), "v"), "nothing"),
        ("/w", put(key("/w/f"), "v"), "update /w/f"),
        ("/w", delete("/w/d", true), "remove /w/d/x, remove /w/d"),
        ("/w", delete("/w", true), "root: remove /w/f, remove /w/d/x, remove /w/d, remove /w"),
        ("/w", touch(key("/w").into()), "attr /w"),
        ("/w", touch(Ino::ROOT.into()), "nothing"),
        ("/", touch(Ino::ROOT.into()), "attr /"),
        ("/w", rename("/w/f", "/w/g", Replace), "rename /w/f /w/g"),
        ("/w", rename("/w/f", "/out", Replace), "remove /w/f"),
        ("/w", rename("/w/d", "/out", Replace), "remove /w/d"),
        ("/w", rename("/o/f", "/w/g", Replace), "copy"),
        ("/w", rename("/w/f", "/o/f", Exchange), "copy"),
        ("/w", rename("/w", "/x", Replace), "copy"),
        ("/w", rename("/o", "/x", Replace), "nothing"),
        ("/w/d", rename("/w", "/x", Replace), "copy"),
        ("/o/x", rename("/w", "/o/x", Replace), "copy"),
        ("/e/d", rename("/w", "/e", Replace), "copy"),
        ("/", rename("/w", "/e", Replace), "rename /w /e"),
        ("/new", mkdir("/new"), "root: create /new"),
        ("/new/deep", mkdir("/new"), "nothing"),
        ("/e", Command::Rmdir { at: at("/e") }, "root: remove /e"),
        ("/e/x", Command::Rmdir { at: at("/e") }, "nothing"),
        // A file that is watched by its own name.
        ("/w/new", put(key("/w/new"), "v"), "create /w/new"),
        ("/w/f", put(key("/w/f"), "v"), "update /w/f"),
        ("/w/f", delete("/w/f", false), "remove /w/f"),
        ("/w/f", delete("/w", true), "remove /w/f"),
        ("/w/f", rename("/w/f", "/w/g", Replace), "remove /w/f"),
        ("/w/f", rename("/o/f", "/w/f", Replace), "copy"),
        ("/w/f", rename("/w/f", "/o/f", Exchange), "copy"),
    ];
    for (prefix, command, expected) in cases {
        let mut tables = fresh();
        for file in ["/w/f", "/w/d/x", "/o/f"] {
            run(&mut tables, put(key(file), "1"));
        }
        run(&mut tables, mkdir("/e"));
        let what = format!("{command:?}");
        assert_eq!(seen(&mut tables, command, prefix), expected, "{prefix} sees {what}");
    }
}

#[test]
fn a_revision_without_changes_is_progress() {
    let mut tables = fresh();
    let event = run(&mut tables, Command::LeaseGrant { ttl_ms: 1_000 }).event.unwrap();
    assert!(event.changes.is_empty());
    assert_eq!(filter(&event, &key("/")), Filtered::Nothing);
}

#[test]
fn locks_that_are_given_up_are_seen_by_all() {
    let mut tables = fresh();
    run(&mut tables, put(key("/w/f"), "1"));
    let session = grant(&mut tables);
    let ino = view::resolve(&tables, &key("/w/f")).unwrap().unwrap();
    let owner = LockOwner { session, owner: 1 };
    run(
        &mut tables,
        Command::Lock { ino, owner, range: Range::WHOLE, kind: LockKind::Shared, pid: 1, wait: false },
    );
    assert_eq!(seen(&mut tables, Command::LeaseRevoke { lease: session }, "/elsewhere"), "unlocked");
}
