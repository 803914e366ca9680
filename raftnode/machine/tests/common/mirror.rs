//! A tree kept from events alone, by inode, as the FUSE daemon keeps its own: it never looks at the
//! tables but for a copy.

use std::collections::BTreeMap;

use quorumfs_api::event::{Change, Event, Place};
use quorumfs_api::key::{Key, Name};
use quorumfs_api::record::{Ino, Record, Timestamp};
use quorumfs_api::wire::Node;
use quorumfs_machine::{Filtered, MemTables, filter, view};

pub struct Mirror {
    prefix: Key,
    root: Option<Record>,
    below: BTreeMap<Ino, Node>,
}

impl Mirror {
    pub fn copy_of(tables: &MemTables, prefix: &Key) -> Mirror {
        let mut mirror = Mirror { prefix: prefix.clone(), root: None, below: BTreeMap::new() };
        mirror.copy(tables);
        mirror
    }

    fn copy(&mut self, tables: &MemTables) {
        self.root = view::get(tables, &self.prefix).unwrap();
        self.below.clear();
        view::copy(tables, &self.prefix, &mut |node| {
            let parent_known = self.root.as_ref().is_some_and(|root| root.ino == node.parent)
                || self.below.contains_key(&node.parent);
            assert!(parent_known, "a copy gave {node:?} before its parent");
            assert!(self.below.insert(node.record.ino, node).is_none(), "a copy gave a node twice");
            std::ops::ControlFlow::Continue(())
        })
        .unwrap();
    }

    /// Takes what a watcher of the prefix gets for `event`. Says whether that was a copy.
    pub fn watch(&mut self, tables: &MemTables, event: &Event) -> bool {
        match filter(event, &self.prefix) {
            Filtered::Nothing => false,
            Filtered::Copy | Filtered::Root(_) => {
                self.copy(tables);
                true
            }
            Filtered::Pass(passed) => {
                assert_eq!(passed.revision, event.revision);
                if self.prefix.is_root() {
                    assert_eq!(passed, *event);
                }
                self.apply(&passed);
                false
            }
        }
    }

    fn apply(&mut self, event: &Event) {
        for change in &event.changes {
            match change {
                Change::Create { place, record } => {
                    if place.key == self.prefix {
                        assert!(self.root.replace(record.clone()).is_none());
                    } else {
                        let node =
                            Node { parent: place.parent, name: place.name.clone(), record: record.clone() };
                        assert_eq!(self.at(place), None, "created over something");
                        assert!(self.below.insert(record.ino, node).is_none());
                        self.touch(place.parent, event.time);
                    }
                }
                Change::Update { place, record } => {
                    self.check(place, record.ino);
                    *self.record(record.ino) = record.clone();
                }
                Change::Attr { place, record } => {
                    if let Some(place) = place {
                        self.check(place, record.ino);
                    }
                    assert!(record.value.is_empty());
                    let have = self.record(record.ino);
                    *have = Record { value: have.value.clone(), ..record.clone() };
                }
                Change::Remove { place, ino, kind } => {
                    if place.key == self.prefix {
                        let gone = self.root.take().expect("the root was there");
                        assert_eq!((gone.ino, gone.kind), (*ino, *kind));
                    } else {
                        self.check(place, *ino);
                        self.forget(*ino);
                        self.touch(place.parent, event.time);
                    }
                }
                Change::Rename { from, to, ino, kind, replaced, exchanged } => {
                    self.check(from, *ino);
                    assert_eq!(self.record(*ino).kind, *kind);
                    if let Some((old, _)) = replaced {
                        self.check(to, *old);
                        self.forget(*old);
                    }
                    if let Some((other, _)) = exchanged {
                        self.check(to, *other);
                        self.rename(*other, from, event);
                    }
                    self.rename(*ino, to, event);
                    self.touch(from.parent, event.time);
                    self.touch(to.parent, event.time);
                }
                Change::Unlocked { .. } => {}
            }
        }
    }

    fn rename(&mut self, ino: Ino, to: &Place, event: &Event) {
        let node = self.below.get_mut(&ino).expect("what is renamed is there");
        node.parent = to.parent;
        node.name = to.name.clone();
        node.record.ctime = event.time;
        node.record.mod_revision = event.revision;
        node.record.author = event.author.as_str().into();
    }

    /// With all below it: a directory that leaves a subtree takes what it has along.
    fn forget(&mut self, ino: Ino) {
        let inside: Vec<Ino> =
            self.below.values().filter(|n| n.parent == ino).map(|n| n.record.ino).collect();
        for child in inside {
            self.forget(child);
        }
        self.below.remove(&ino).expect("what goes was there");
    }

    fn touch(&mut self, dir: Ino, time: Timestamp) {
        let record = self.record(dir);
        record.mtime = time;
        record.ctime = time;
    }

    fn record(&mut self, ino: Ino) -> &mut Record {
        match &mut self.root {
            Some(root) if root.ino == ino => root,
            _ => &mut self.below.get_mut(&ino).expect("known").record,
        }
    }

    fn at(&self, place: &Place) -> Option<Ino> {
        self.below.values().find(|n| n.parent == place.parent && n.name == place.name).map(|n| n.record.ino)
    }

    /// Both ways of saying where something is have to agree.
    fn check(&self, place: &Place, ino: Ino) {
        assert_eq!(self.key_of(ino), place.key);
        if place.key != self.prefix {
            assert_eq!(self.at(place), Some(ino));
        }
    }

    fn key_of(&self, ino: Ino) -> Key {
        match &self.root {
            Some(root) if root.ino == ino => self.prefix.clone(),
            _ => {
                let node = &self.below[&ino];
                self.key_of(node.parent).join(&node.name).unwrap()
            }
        }
    }

    /// All of it, for comparing.
    pub fn tree(&self) -> (&Option<Record>, Vec<(Ino, &Name, &Record)>) {
        (&self.root, self.below.values().map(|n| (n.parent, &n.name, &n.record)).collect())
    }
}
