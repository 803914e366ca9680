//! What is big, deep or long: bounds hold, and what has to work at them works.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::ops::ControlFlow;

use common::{at, delete, fresh, grant, key, mkdir, put, refused, run};
use quorumfs_api::codec;
use quorumfs_api::codec::FrameKind;
use quorumfs_api::command::{Command, CreateMode, LeaseChange, Owner, RenameMode, Target};
use quorumfs_api::key::{Key, Name};
use quorumfs_api::limits::{DELETE_TREE_MAX, EVENT_LOG_BYTES, EVENT_LOG_REVISIONS, KEY_MAX};
use quorumfs_api::outcome::{Done, Refusal};
use quorumfs_api::wire::{Prefix, WatchFrame};
use quorumfs_machine::{Compacted, Filtered, MemTables, PageLimit, Table, apply, event_bytes, filter, view};

fn rename(from: &str, to: &str) -> Command {
    Command::Rename { from: at(from), to: at(to), mode: RenameMode::Replace }
}

/// `/` and as many times `name` as fit into a key of `length` bytes.
fn deep(top: &str, name: &str, length: usize) -> Key {
    let mut key = key(top);
    let name = Name::new(name.as_bytes()).unwrap();
    while let Ok(next) = key.join(&name)
        && next.as_bytes().len() <= length
    {
        key = next;
    }
    key
}

#[test]
fn a_rename_makes_no_key_too_long() {
    let mut tables = fresh();
    let longest = deep("/d", "n", KEY_MAX);
    assert_eq!(longest.as_bytes().len(), KEY_MAX - 1, "one byte is left");
    run(&mut tables, put(longest.clone(), "v")).outcome.result.unwrap();
    run(&mut tables, rename("/d", "/dd")).outcome.result.unwrap();
    assert!(matches!(refused(&mut tables, rename("/dd", "/ddd")), Refusal::NameTooLong(_)));
    run(&mut tables, mkdir("/e"));
    assert!(matches!(refused(&mut tables, rename("/dd", "/e/d")), Refusal::NameTooLong(_)));
    let exchange = Command::Rename { from: at("/dd/n"), to: at("/e"), mode: RenameMode::Exchange };
    run(&mut tables, exchange).outcome.result.unwrap();
    // Three bytes shorter than before at the top: one name of four bytes fits, one of five does not.
    assert!(matches!(refused(&mut tables, rename("/e", "/e2345")), Refusal::NameTooLong(_)));
    run(&mut tables, rename("/e", "/e234")).outcome.result.unwrap();
    run(&mut tables, rename("/e234", "/e")).outcome.result.unwrap();
    run(&mut tables, rename("/e", "/dd/n/e")).outcome.result.unwrap_err();
    run(&mut tables, rename("/e", "/dd/e")).outcome.result.unwrap();
    assert!(matches!(refused(&mut tables, rename("/dd", "/ddd")), Refusal::NameTooLong(_)));
    // What was in the way goes: it is measured anew.
    run(&mut tables, delete("/dd/e", true)).outcome.result.unwrap();
    run(&mut tables, rename("/dd", "/a-long-name")).outcome.result.unwrap();
    run(&mut tables, rename("/a-long-name", &format!("/{}", "n".repeat(255)))).outcome.result.unwrap();
}

#[test]
fn a_directory_knows_how_deep_it_is_after_something_moved_in() {
    let mut tables = fresh();
    run(&mut tables, put(deep("/d", "n", KEY_MAX - 10), "v")).outcome.result.unwrap();
    run(&mut tables, mkdir("/x/y"));
    run(&mut tables, rename("/d", "/x/y/d")).outcome.result.unwrap();
    let long = format!("/{}", "x".repeat(20));
    assert!(matches!(refused(&mut tables, rename("/x", &long)), Refusal::NameTooLong(_)));
    run(&mut tables, mkdir("/z"));
    let exchange = Command::Rename { from: at("/x/y"), to: at("/z"), mode: RenameMode::Exchange };
    run(&mut tables, exchange).outcome.result.unwrap();
    assert!(matches!(refused(&mut tables, rename("/z", &long)), Refusal::NameTooLong(_)));
    run(&mut tables, rename("/x", &long)).outcome.result.unwrap();
}

#[test]
fn deep_trees_need_no_stack() {
    let mut tables = fresh();
    let bottom = deep("/", "n", KEY_MAX);
    run(&mut tables, put(bottom.clone(), "v")).outcome.result.unwrap();
    let depth = bottom.names().count();
    assert_eq!(depth, KEY_MAX / 2);
    let ino = view::resolve(&tables, &bottom).unwrap().unwrap();
    assert_eq!(view::key_of(&tables, ino).unwrap(), Some(bottom));
    let mut seen = 0;
    view::copy(&tables, &Key::root(), &mut |_| {
        seen += 1;
        ControlFlow::Continue(())
    })
    .unwrap();
    assert_eq!(seen, depth);
    let one = PageLimit { keys: 1, bytes: usize::MAX };
    let page = view::range(&tables, &Prefix::Tree(Key::root()), None, one, true).unwrap();
    assert!(page.more && page.items.len() == 1);
    let done = run(&mut tables, delete("/n", true)).outcome.result;
    assert_eq!(done, Ok(Done::Deleted(depth as u64)));
    assert_eq!(view::meta(&tables).unwrap().store_bytes, 0);
}

#[test]
fn a_tree_that_is_too_big_is_deleted_in_parts() {
    let mut tables = fresh();
    let lease = grant(&mut tables);
    let file = |i: usize, lease| Command::Put {
        target: key(&format!("/d/{}/{i}", i % 2)).into(),
        value: "v".into(),
        create: CreateMode::Exclusive,
        parents: true,
        owner: Owner::FILE,
        lease,
    };
    for i in 0..DELETE_TREE_MAX {
        run(&mut tables, file(i, LeaseChange::Bind(lease))).outcome.result.unwrap();
    }
    assert!(matches!(
        refused(&mut tables, file(DELETE_TREE_MAX, LeaseChange::Bind(lease))),
        Refusal::TooMany(_)
    ));
    assert!(matches!(refused(&mut tables, delete("/d", true)), Refusal::TooMany(_)));
    // A page of names is read at a time: more than one page has to come in order.
    let mut before = None;
    view::copy(&tables, &key("/d/0"), &mut |node| {
        assert!(before.replace(node.name.clone()) < Some(node.name));
        ControlFlow::Continue(())
    })
    .unwrap();
    run(&mut tables, delete("/d/0", true)).outcome.result.unwrap();
    let applied = run(&mut tables, Command::LeaseRevoke { lease });
    assert_eq!(applied.event.unwrap().changes.len(), DELETE_TREE_MAX / 2);
    assert_eq!(view::meta(&tables).unwrap().keys, 2);
    assert_eq!(common::rows(&tables, Table::LeaseKeys).len(), 0);
}

#[test]
fn an_event_fits_into_a_frame() {
    let mut tables = fresh();
    run(&mut tables, put(key("/f"), vec![0; 8 << 20])).outcome.result.unwrap();
    let append = Command::Append {
        target: key("/f").into(),
        data: "x".into(),
        create: CreateMode::Never,
        parents: false,
        owner: Owner::FILE,
    };
    run(&mut tables, Command::Truncate { target: key("/f").into(), size: (8 << 20) - 10 });
    let twice =
        Command::Txn { compare: vec![], then: vec![append.clone(), append.clone()], otherwise: vec![] };
    assert!(matches!(refused(&mut tables, twice), Refusal::TooMany(_)));
    let event = run(&mut tables, append).event.unwrap();
    let frame = codec::encode(FrameKind::Watch, &WatchFrame::Events(vec![event])).unwrap();
    assert!(frame.len() > 8 << 20);
}

#[test]
fn the_end_of_a_lease_works_however_long_its_keys() {
    let mut tables = fresh();
    let lease = grant(&mut tables);
    let dir = deep("/d", &"n".repeat(250), 3_900);
    run(&mut tables, mkdir(std::str::from_utf8(dir.as_bytes()).unwrap()));
    let dir_ino = view::resolve(&tables, &dir).unwrap().unwrap();
    for i in 0..4_300 {
        let name = Name::new(format!("{i:0150}")).unwrap();
        let command = Command::Put {
            target: Target::At(quorumfs_api::At::Entry(dir_ino, name)),
            value: "v".into(),
            create: CreateMode::Allow,
            parents: false,
            owner: Owner::FILE,
            lease: LeaseChange::Bind(lease),
        };
        run(&mut tables, command).outcome.result.unwrap();
    }
    let event = run(&mut tables, Command::LeaseRevoke { lease }).event.unwrap();
    assert_eq!(event.changes.len(), 4_300);
    assert!(codec::encode(FrameKind::Watch, &WatchFrame::Events(vec![event.clone()])).is_err());
    assert_eq!(filter(&event, &Key::root()), Filtered::Copy);
    assert_eq!(filter(&event, &key("/x")), Filtered::Nothing);
}

#[test]
fn the_estimate_is_never_below_what_encoding_gives() {
    use proptest::prelude::*;
    proptest!(common::config(16), |(ops in proptest::collection::vec(common::generate::op(), 40))| {
        let mut tables = fresh();
        let mut stamper = common::generate::Stamper::default();
        for op in &ops {
            let mut proposal = stamper.stamp(op, &[]);
            // Numbers at their longest.
            proposal.time.0 = i64::MIN;
            if let Some(event) = apply(&mut tables, &proposal).unwrap().event {
                let encoded = codec::encode(FrameKind::Watch, &event).unwrap().len() - codec::OVERHEAD;
                prop_assert!(encoded <= event_bytes(&event));
            }
        }
    });
}

fn events(tables: &MemTables, after: u64) -> Result<usize, Compacted> {
    view::events(tables, after, usize::MAX, usize::MAX).unwrap().map(|events| events.len())
}

#[test]
fn the_event_log_is_bounded_by_revisions() {
    let mut tables = fresh();
    for _ in 0..EVENT_LOG_REVISIONS + 5 {
        run(&mut tables, put(key("/f"), "v"));
    }
    let meta = view::meta(&tables).unwrap();
    assert_eq!((meta.revision, meta.compacted), (EVENT_LOG_REVISIONS + 5, 5));
    assert_eq!(common::rows(&tables, Table::Events).len() as u64, EVENT_LOG_REVISIONS);
    assert_eq!(events(&tables, 4), Err(Compacted { oldest: 5 }));
    assert_eq!(events(&tables, 5), Ok(EVENT_LOG_REVISIONS as usize));
    assert_eq!(events(&tables, meta.revision), Ok(0));
}

#[test]
fn the_event_log_is_bounded_by_bytes() {
    let mut tables = fresh();
    let value = bytes::Bytes::from(vec![0; 7 << 20]);
    let fit = EVENT_LOG_BYTES / (7 << 20);
    for _ in 0..fit + 3 {
        run(&mut tables, put(key("/f"), value.clone())).outcome.result.unwrap();
    }
    let meta = view::meta(&tables).unwrap();
    assert_eq!((meta.revision, meta.compacted), (fit + 3, 3));
    let bytes: usize =
        common::rows(&tables, Table::Events).iter().map(|(key, row)| key.len() + row.len()).sum();
    assert!(bytes as u64 <= EVENT_LOG_BYTES);
    // Small ones push big ones out only as far as needed.
    run(&mut tables, put(key("/f"), "v"));
    assert_eq!(events(&tables, 3), Ok(fit as usize + 1));
}
