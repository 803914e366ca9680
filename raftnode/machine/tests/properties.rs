//! Random histories against the reference tree, mirrors fed by events, and a second replica.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::generate::{Op, Stamper, op};
use common::mirror::Mirror;
use common::reference::{Reference, shape};
use proptest::prelude::*;
use quorumfs_api::command::{Command, Proposal};
use quorumfs_api::event::Event;
use quorumfs_api::key::Key;
use quorumfs_api::outcome::Done;
use quorumfs_api::record::{Ino, Kind, LeaseId, Record};
use quorumfs_api::wire::Prefix;
use quorumfs_machine::{Compacted, MemTables, PageLimit, Table, apply, view};

/// Subtrees that are watched. Some come and go, move, and are files at times.
const WATCHED: [&str; 6] = ["/", "/a", "/a/b", "/a/b/c", "/b", "/b/a"];

/// Where ranges begin, and after what they go on.
const TEXTS: [&str; 9] = ["/", "/a", "/a-", "/a/b", "/b", "/c", "/longer-name", "/a/zzz", "/nowhere/x"];

const ALL: PageLimit = PageLimit { keys: usize::MAX, bytes: usize::MAX };

struct History {
    tables: MemTables,
    reference: Reference,
    stamper: Stamper,
    mirrors: Vec<(Key, Mirror)>,
    proposals: Vec<Proposal>,
    events: Vec<Event>,
}

impl History {
    fn new() -> History {
        let tables = common::fresh();
        let watched = WATCHED.map(common::key);
        History {
            mirrors: watched.iter().map(|k| (k.clone(), Mirror::copy_of(&tables, k))).collect(),
            tables,
            reference: Reference::new(),
            stamper: Stamper::default(),
            proposals: Vec::new(),
            events: Vec::new(),
        }
    }

    fn step(&mut self, proposal: Proposal) {
        let before = self.tables.clone();
        let applied = apply(&mut self.tables, &proposal).unwrap();
        let (changed, expected) = self.reference.apply(&proposal);

        let mut outcome = applied.outcome.clone();
        outcome.result = outcome.result.map_err(shape);
        assert_eq!(outcome, expected, "{proposal:?}");
        assert_eq!(applied.event.is_some(), changed, "an event for each new revision: {proposal:?}");
        if outcome.result.is_err() {
            // A refusal may be remembered, but nothing else.
            for table in Table::ALL {
                if proposal.session.is_none() || !matches!(table, Table::Results | Table::Leases) {
                    assert_eq!(common::rows(&self.tables, table), common::rows(&before, table));
                }
            }
        }
        if let Some(event) = &applied.event {
            assert_eq!(event.revision, outcome.revision);
            assert_eq!((event.time, &event.author), (proposal.time, &proposal.author));
            assert_eq!(event.session, proposal.session.map(|r| r.session));
            if let Ok(Done::Lease { id, .. }) = outcome.result {
                self.stamper.granted.push((id, 1));
            }
        }
        self.check_tree();
        if let Some(event) = applied.event {
            for (prefix, mirror) in &mut self.mirrors {
                mirror.watch(&self.tables, &event);
                assert_eq!(
                    mirror.tree(),
                    Mirror::copy_of(&self.tables, prefix).tree(),
                    "the mirror of {prefix} after {event:?}"
                );
            }
            self.events.push(event);
        }
        self.proposals.push(proposal);
    }

    fn expected_tree(&self) -> Vec<(Key, Record)> {
        let join = |path: &Vec<_>| path.iter().fold(Key::root(), |key, name| key.join(name).unwrap());
        // The reference orders by lists of components, as ranges do.
        self.reference.objects.iter().map(|(path, record)| (join(path), record.clone())).collect()
    }

    fn check_tree(&self) {
        let mut tree = vec![(Key::root(), view::get(&self.tables, &Key::root()).unwrap().unwrap())];
        let page = view::range(&self.tables, &Prefix::Tree(Key::root()), None, ALL, false).unwrap();
        assert!(!page.more);
        tree.extend(page.items);
        assert_eq!(tree, self.expected_tree());
        let meta = view::meta(&self.tables).unwrap();
        assert_eq!(meta.revision, self.reference.revision);
        assert_eq!(meta.keys, tree.len() as u64 - 1);
        assert_eq!(meta.store_bytes, self.reference.bytes());
    }

    /// What is too slow to look at after each step.
    fn check_all(&self) {
        let tree = self.expected_tree();
        let count = |table| common::rows(&self.tables, table).len();
        assert_eq!(count(Table::Nodes), tree.len());
        assert_eq!(count(Table::Entries), tree.len() - 1);
        assert_eq!(count(Table::Values), tree.iter().filter(|(_, r)| !r.value.is_empty()).count());
        assert_eq!(count(Table::LeaseKeys), tree.iter().filter(|(_, r)| r.lease.is_some()).count());
        for (key, record) in &tree {
            assert_eq!(view::resolve(&self.tables, key).unwrap(), Some(record.ino));
            assert_eq!(view::key_of(&self.tables, record.ino).unwrap().as_ref(), Some(key));
            assert_eq!(view::get(&self.tables, key).unwrap().as_ref(), Some(record));
            assert_eq!(view::record(&self.tables, record.ino).unwrap().as_ref(), Some(record));
        }
        let mut locked = 0;
        let mut sessions = 0;
        for ino in (1..view::meta(&self.tables).unwrap().next_ino).map(Ino) {
            let held = view::locks(&self.tables, ino).unwrap();
            assert_eq!(held, self.reference.locks.held(ino), "locks on {ino}");
            locked += usize::from(!held.is_empty());
            sessions += held.iter().map(|l| l.owner.session).collect::<std::collections::BTreeSet<_>>().len();
        }
        assert_eq!(count(Table::Locks), locked);
        assert_eq!(count(Table::LeaseLocks), sessions);
        assert_eq!(count(Table::Waits), self.reference.locks.waiting());
        self.check_leases(&tree);
        self.check_events();
        self.check_replicas();
    }

    fn check_leases(&self, tree: &[(Key, Record)]) {
        let leases = view::leases(&self.tables).unwrap();
        let expected: Vec<(LeaseId, u64)> =
            self.reference.sessions.iter().map(|(id, session)| (*id, session.ttl_ms)).collect();
        assert_eq!(leases.iter().map(|l| (l.id, l.ttl_ms)).collect::<Vec<_>>(), expected);
        for (id, _) in expected {
            let mut keys = view::lease(&self.tables, id).unwrap().unwrap().keys;
            keys.sort();
            let mut expected: Vec<Key> =
                tree.iter().filter(|(_, r)| r.lease == Some(id)).map(|(k, _)| k.clone()).collect();
            expected.sort();
            assert_eq!(keys, expected);
        }
        assert_eq!(view::lease(&self.tables, LeaseId(u64::MAX)).unwrap(), None);
    }

    fn check_events(&self) {
        let last = self.events.len() as u64;
        for after in 0..=last + 1 {
            let rest = view::events(&self.tables, after, usize::MAX, usize::MAX).unwrap();
            let expected = self.events.get(after as usize..).unwrap_or_default();
            assert_eq!(rest, Ok::<_, Compacted>(expected.to_vec()));
            let two = view::events(&self.tables, after, 2, usize::MAX).unwrap().unwrap();
            assert_eq!(two, expected[..expected.len().min(2)]);
            let one = view::events(&self.tables, after, 2, 1).unwrap().unwrap();
            assert_eq!(one, expected[..expected.len().min(1)]);
        }
    }

    /// The same log gives the same bytes; so does a snapshot on the way with the rest of the log.
    fn check_replicas(&self) {
        let mut replica = common::fresh();
        let mut from_snapshot = None;
        for (i, proposal) in self.proposals.iter().enumerate() {
            if i == self.proposals.len() / 2 {
                from_snapshot = Some(common::snapshot(&replica));
            }
            let applied = apply(&mut replica, proposal).unwrap();
            if let Some(tables) = &mut from_snapshot {
                assert_eq!(apply(tables, proposal).unwrap(), applied);
            }
        }
        assert!(replica == self.tables, "two replicas of one log differ");
        assert!(from_snapshot.is_none_or(|tables| tables == self.tables), "a snapshot and the rest differ");
    }
}

fn history(ops: &[Op]) -> History {
    let mut history = History::new();
    for ttl_ms in [1_000, 2_000] {
        history.step(common::proposal(Command::LeaseGrant { ttl_ms }));
    }
    // Something to meet.
    for text in ["/a/b/c", "/a/c", "/b/a/b", "/c"] {
        history.step(common::proposal(common::put(common::key(text), "value")));
    }
    for op in ops {
        let existing: Vec<Key> = history.expected_tree().into_iter().map(|(key, _)| key).collect();
        let proposal = history.stamper.stamp(op, &existing);
        history.step(proposal);
    }
    history.check_all();
    history
}

/// What a range has to give, from the whole tree.
fn expected_range(tree: &[(Key, Record)], prefix: &Prefix, after: Option<&Key>) -> Vec<Key> {
    let within = |key: &Key| match prefix {
        Prefix::Tree(dir) => key != dir && key.is_within(dir),
        Prefix::Children(dir) => key.split().is_some_and(|(parent, _)| parent == *dir),
        Prefix::Text(dir, begin) => {
            let mut text = dir.as_bytes().to_vec();
            if !dir.is_root() {
                text.push(b'/');
            }
            text.extend_from_slice(begin);
            key.as_bytes().starts_with(&text) && !key.is_root()
        }
    };
    let names = |key: &Key| key.names().collect::<Vec<_>>();
    let keys = tree.iter().map(|(key, _)| key).filter(|key| within(key));
    keys.filter(|key| after.is_none_or(|after| names(key) > names(after))).cloned().collect()
}

#[test]
fn histories_agree_with_the_reference() {
    proptest!(common::config(256), |(ops in proptest::collection::vec(op(), 1..70))| {
        history(&ops);
    });
}

#[test]
fn ranges_come_in_order_and_resume_anywhere() {
    proptest!(common::config(128), |(
        ops in proptest::collection::vec(op(), 20..60),
        dir in proptest::sample::select(&TEXTS[..]),
        after in proptest::option::of(proptest::sample::select(&TEXTS[..])),
        page in 1..5usize,
        begin in proptest::sample::select(&["", "a", "b", "longer", "a-"][..]),
    )| {
        let history = history(&ops);
        let tree = history.expected_tree();
        let dir = common::key(dir);
        for prefix in [
            Prefix::Tree(dir.clone()),
            Prefix::Children(dir.clone()),
            Prefix::Text(dir.clone(), begin.as_bytes().to_vec().into()),
        ] {
            let mut after = after.map(common::key);
            let expected = expected_range(&tree, &prefix, after.as_ref());
            let mut keys = Vec::new();
            loop {
                // In turn bounded by keys and by bytes.
                let limit = match keys.len() % 2 {
                    0 => PageLimit { keys: page, bytes: usize::MAX },
                    _ => PageLimit { keys: usize::MAX, bytes: page * 20 },
                };
                let got = view::range(&history.tables, &prefix, after.as_ref(), limit, true).unwrap();
                prop_assert!(got.items.iter().all(|(_, record)| record.value.is_empty()));
                after = got.items.last().map(|(key, _)| key.clone());
                keys.extend(got.items.into_iter().map(|(key, _)| key));
                if !got.more {
                    break;
                }
                prop_assert!(after.is_some(), "a page that is not the last holds something");
            }
            prop_assert_eq!(&keys, &expected, "{:?}", prefix);
        }
    });
}

/// The generator has to reach what the tests are for.
#[test]
fn random_histories_are_not_trivial() {
    use proptest::strategy::ValueTree;
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let ops = proptest::collection::vec(op(), 4_000).new_tree(&mut runner).unwrap().current();
    let mut counts = std::collections::BTreeMap::new();
    for ops in ops.chunks(60) {
        let history = history(ops);
        let objects = history.reference.objects.values();
        *counts.entry("files").or_insert(0) += objects.clone().filter(|r| r.kind == Kind::File).count();
        *counts.entry("bound").or_insert(0) += objects.clone().filter(|r| r.lease.is_some()).count();
        *counts.entry("deep").or_insert(0) +=
            history.reference.objects.keys().filter(|k| k.len() > 3).count();
        *counts.entry("locks").or_insert(0) +=
            objects.map(|r| history.reference.locks.held(r.ino).len()).sum::<usize>();
        for event in &history.events {
            for change in &event.changes {
                let name = format!("{change:?}");
                let name = match name.split([' ', '{']).next().unwrap() {
                    "Create" => "create",
                    "Update" => "update",
                    "Attr" => "attr",
                    "Remove" => "remove",
                    "Unlocked" => "unlocked",
                    _ if name.contains("exchanged: Some") => "exchange",
                    _ if name.contains("replaced: Some") => "replace",
                    _ => "rename",
                };
                *counts.entry(name).or_insert(0) += 1;
            }
        }
    }
    let wanted = [
        "files", "bound", "deep", "locks", "create", "update", "attr", "remove", "unlocked", "exchange",
        "replace", "rename",
    ];
    for what in wanted {
        assert!(counts.get(what).is_some_and(|n| *n >= 10), "too few of {what}: {counts:?}");
    }
}
