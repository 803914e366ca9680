#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use proptest::prelude::*;
use quorumfs_api::command::{AttrChange, Command, CreateMode, LeaseChange, Owner, Proposal, RenameMode};
use quorumfs_api::key::Key;
use quorumfs_api::limits::{STORE_MAX_DEFAULT, VALUE_MAX_DEFAULT};
use quorumfs_api::record::Timestamp;
use quorumfs_machine::{Filtered, MemTables, apply, filter, init, view};

use super::*;
use crate::replay::queue::Queue;

fn key(path: &[u8]) -> Key {
    let names = ["p", "a", "b", "c"];
    let text: String = path.iter().map(|i| format!("/{}", names[usize::from(*i) % 4])).collect();
    Key::parse(text).unwrap()
}

fn path() -> impl Strategy<Value = Key> {
    proptest::collection::vec(0u8..4, 1..5).prop_map(|path| key(&path))
}

fn command() -> impl Strategy<Value = Command> {
    let value = proptest::collection::vec(any::<u8>(), 0..4).prop_map(Bytes::from);
    prop_oneof![
        3 => (path(), value).prop_map(|(key, value)| Command::Put {
            target: key.into(), value, create: CreateMode::Allow, parents: true, owner: Owner::FILE,
            lease: LeaseChange::Keep,
        }),
        1 => (path(), any::<bool>()).prop_map(|(key, recursive)| Command::Delete { at: key.into(), recursive }),
        2 => path().prop_map(|key| Command::Mkdir { at: key.into(), parents: false, owner: Owner::DIR }),
        1 => path().prop_map(|key| Command::Rmdir { at: key.into() }),
        3 => (path(), path()).prop_map(|(from, to)| Command::Rename {
            from: from.into(), to: to.into(), mode: RenameMode::Replace,
        }),
        2 => (path(), path()).prop_map(|(from, to)| Command::Rename {
            from: from.into(), to: to.into(), mode: RenameMode::Exchange,
        }),
        1 => path().prop_map(|key| Command::Symlink {
            at: key.into(), to: Bytes::from_static(b"x"), parents: false, owner: Owner::FILE,
        }),
        1 => (path(), 0u32..0o1000).prop_map(|(key, mode)| Command::SetAttr {
            target: key.into(), set: AttrChange { mode: Some(mode), ..AttrChange::default() },
        }),
    ]
}

/// A state machine with nothing around it.
struct Store {
    tables: MemTables,
    time: i64,
}

impl Store {
    fn new() -> Store {
        let mut tables = MemTables::default();
        init(&mut tables).unwrap();
        Store { tables, time: 0 }
    }

    fn run(&mut self, command: Command) -> Option<Event> {
        self.time += 1;
        let proposal = Proposal {
            time: Timestamp(self.time),
            author: "test".into(),
            node: false,
            session: None,
            value_max: VALUE_MAX_DEFAULT,
            store_max: STORE_MAX_DEFAULT,
            command,
        };
        apply(&mut self.tables, &proposal).unwrap().event
    }

    fn copy(&self, prefix: &Key) -> Mirror {
        let revision = view::meta(&self.tables).unwrap().revision;
        let mut mirror = Mirror::begin(revision, view::get(&self.tables, prefix).unwrap());
        let mut nodes = Vec::new();
        view::copy(&self.tables, prefix, &mut |node| {
            nodes.push(node);
            ControlFlow::Continue(())
        })
        .unwrap();
        mirror.add(nodes).unwrap();
        mirror
    }
}

/// Everything of a tree that can be compared.
type Shape = (Record, Option<At>, Vec<(Name, Ino)>, u32);
fn shape(mirror: &Mirror) -> BTreeMap<Ino, Shape> {
    let shape = |ino: Ino| {
        let node = mirror.get(ino).unwrap();
        let dir = node.dir.as_deref().cloned().unwrap_or_default();
        (node.record.clone(), node.at.clone(), dir.children.into_iter().collect(), dir.subdirs)
    };
    mirror.inos().map(|ino| (ino, shape(ino))).collect()
}

/// The names of a tree, as a kernel has them: what a sequence of changes is performed on.
#[derive(Clone, Debug, PartialEq)]
struct Names(BTreeMap<At, Ino>);

impl Names {
    fn of(mirror: &Mirror) -> Names {
        Names(mirror.inos().filter_map(|ino| Some((mirror.get(ino)?.at.clone()?, ino))).collect())
    }

    fn has_dir(&self, dir: Ino) -> bool {
        dir == Ino::ROOT || self.0.values().any(|ino| *ino == dir)
    }

    fn is_empty(&self, dir: Ino) -> bool {
        !self.0.keys().any(|at| at.0 == dir)
    }

    /// Does what the system calls for it would do; they must not fail.
    fn perform(&mut self, net: &Net) {
        match net {
            Net::Create { at, ino, .. } => {
                assert!(self.has_dir(at.0), "no directory for {net:?}");
                assert_eq!(self.0.insert(at.clone(), *ino), None, "{net:?}");
            }
            Net::Remove { at, record } => {
                assert!(self.is_empty(record.ino), "not empty: {net:?}");
                assert_eq!(self.0.remove(at), Some(record.ino), "{net:?}");
            }
            Net::Rename { from, to, ino, replaced, exchanged } => {
                assert!(self.has_dir(to.0), "no directory for {net:?}");
                assert_eq!(self.0.remove(from), Some(*ino), "{net:?}");
                let there = replaced.as_ref().map(|record| record.ino).or(*exchanged);
                assert_eq!(self.0.insert(to.clone(), *ino), there, "{net:?}");
                if let Some(other) = exchanged {
                    self.0.insert(from.clone(), *other);
                }
                if let Some(record) = replaced {
                    assert!(self.is_empty(record.ino), "replaced with something in it: {net:?}");
                }
            }
            Net::Update { .. } | Net::Attr { .. } | Net::Unlocked { .. } | Net::Swap { .. } => {}
        }
    }
}

fn touched(net: &Net) -> Vec<At> {
    match net {
        Net::Create { at, .. } | Net::Remove { at, .. } => vec![at.clone()],
        Net::Rename { from, to, .. } => vec![from.clone(), to.clone()],
        _ => Vec::new(),
    }
}

proptest! {

    /// Events lead to the tree that a copy has, for the whole store and for a subtree.
    #[test]
    fn events_and_copies_agree(commands in proptest::collection::vec(command(), 0..60)) {
        let mut store = Store::new();
        let prefixes = [Key::root(), key(&[0]), key(&[0, 1])];
        let mut mirrors: Vec<Mirror> = prefixes.iter().map(|prefix| store.copy(prefix)).collect();
        for command in commands {
            let Some(event) = store.run(command) else { continue };
            for (prefix, mirror) in prefixes.iter().zip(&mut mirrors) {
                match filter(&event, prefix) {
                    Filtered::Pass(event) => _ = mirror.apply(event).unwrap(),
                    Filtered::Nothing => mirror.revision = event.revision,
                    Filtered::Copy | Filtered::Root(_) => *mirror = store.copy(prefix),
                }
                prop_assert_eq!(shape(mirror), shape(&store.copy(prefix)));
            }
        }
    }

    /// The text for a directory is another one exactly when something in it has changed.
    #[test]
    fn fingerprints_tell_of_every_change(commands in proptest::collection::vec(command(), 0..60)) {
        let mut store = Store::new();
        let mut mirror = store.copy(&Key::root());
        for command in commands {
            let before = mirror.clone();
            let Some(event) = store.run(command) else { continue };
            mirror.apply(event).unwrap();
            for ino in mirror.inos().filter(|ino| before.dir(*ino).is_some()) {
                let inside = |mirror: &Mirror| -> Vec<_> {
                    let names = mirror.dir(ino).into_iter().flat_map(|dir| dir.children.clone());
                    names.map(|(name, ino)| (name, ino, mirror.get(ino).unwrap().record.mod_revision)).collect()
                };
                let changed = inside(&before) != inside(&mirror);
                prop_assert_eq!(changed, before.fingerprint(ino) != mirror.fingerprint(ino));
            }
        }
    }

    /// The difference of two trees is a sequence of possible system calls that ends in the second.
    #[test]
    fn differences_can_be_performed(
        before in proptest::collection::vec(command(), 0..40),
        after in proptest::collection::vec(command(), 0..40),
    ) {
        let mut store = Store::new();
        for command in before {
            store.run(command);
        }
        let old = store.copy(&Key::root());
        for command in after {
            store.run(command);
        }
        let new = store.copy(&Key::root());
        let net = difference(&old, &new);
        let mut names = Names::of(&old);
        for net in &net {
            names.perform(net);
        }
        prop_assert_eq!(names, Names::of(&new));
        for ino in new.inos() {
            let (Some(was), Some(is)) = (old.get(ino), new.get(ino)) else { continue };
            let told = net.contains(&Net::Update { ino });
            prop_assert_eq!(told, was.record.version != is.record.version);
        }
    }

    /// However far the replayer is behind, what it finds at each name is what was there before the
    /// change that it performs, and at the end it finds what is so.
    #[test]
    fn the_replayer_sees_the_tree_of_its_change(
        steps in proptest::collection::vec((command(), 0usize..4), 0..80),
    ) {
        let mut store = Store::new();
        let mut mirror = store.copy(&Key::root());
        let mut names = Names::of(&mirror);
        let mut queue = Queue::default();
        let mut play = |queue: &mut Queue, mirror: &Mirror| {
            let Some(net) = queue.take().cloned() else { return false };
            for at in touched(&net) {
                assert_eq!(queue.lookup(&at, mirror), names.0.get(&at).copied(), "{net:?}");
                // The way there leads through names that the replayer finds.
                let mut dir = at.0;
                while dir != Ino::ROOT {
                    let at = names.0.iter().find(|(_, ino)| **ino == dir).unwrap().0.clone();
                    assert_eq!(queue.lookup(&at, mirror), Some(dir), "on the way to {net:?}");
                    dir = at.0;
                }
                assert!(queue.path(at.0, mirror).is_some());
            }
            names.perform(&net);
            queue.finish();
            true
        };
        for (command, plays) in steps {
            if let Some(event) = store.run(command) {
                for net in mirror.apply(event).unwrap() {
                    queue.push(net);
                }
            }
            for _ in 0..plays {
                play(&mut queue, &mirror);
            }
        }
        while play(&mut queue, &mirror) {}
        prop_assert_eq!(&names, &Names::of(&mirror));
        prop_assert!(queue.is_idle());
        for at in names.0.keys() {
            prop_assert!(!queue.is_pending(at));
        }
    }
}

#[test]
fn an_event_that_does_not_fit_is_refused() {
    let mut store = Store::new();
    let mirror = store.copy(&Key::root());
    let put = |path: &[u8]| Command::Mkdir { at: key(path).into(), parents: true, owner: Owner::DIR };
    store.run(put(&[1])).unwrap();
    let later = store.run(put(&[1, 2])).unwrap();
    assert!(mirror.clone().apply(later).is_err());
}
