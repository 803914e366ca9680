//! The difference between two trees as a sequence of changes that a file system can go through one
//! after the other: what a watcher sees after a gap.

use std::collections::{BTreeMap, HashMap, HashSet};

use quorumfs_api::key::Name;
use quorumfs_api::record::{Ino, Kind};

use super::{At, Mirror, Net};

/// One thing that has to happen, as soon as it can.
#[derive(Clone, Debug)]
enum Todo {
    Create(Ino),
    Move(Ino),
    Remove(Ino),
}

/// The old tree on its way to the new one: names only.
struct Way<'a> {
    old: &'a Mirror,
    new: &'a Mirror,
    at: HashMap<Ino, At>,
    names: HashMap<Ino, BTreeMap<Name, Ino>>,
    net: Vec<Net>,
}

/// Changes that lead from `old` to `new`. Each is possible when its turn comes: parents are made
/// before their children, names are free or are exchanged.
pub fn difference(old: &Mirror, new: &Mirror) -> Vec<Net> {
    let mut todo = Vec::new();
    let mut way = Way { old, new, at: HashMap::new(), names: HashMap::new(), net: Vec::new() };
    for (ino, node) in &old.nodes {
        if let Some(at) = &node.at {
            way.at.insert(*ino, at.clone());
            way.names.entry(at.0).or_default().insert(at.1.clone(), *ino);
        }
        match new.get(*ino) {
            None if node.at.is_some() => todo.push(Todo::Remove(*ino)),
            Some(now) if now.at != node.at => todo.push(Todo::Move(*ino)),
            _ => {}
        }
    }
    let created = new.nodes.iter().filter(|(ino, node)| node.at.is_some() && !old.nodes.contains_key(ino));
    todo.extend(created.map(|(ino, _)| Todo::Create(*ino)));
    // A deterministic order, so that a failing test fails again.
    todo.sort_by_key(|todo| match todo {
        Todo::Create(ino) | Todo::Move(ino) | Todo::Remove(ino) => ino.0,
    });
    way.go(todo);
    way.settle();
    way.net
}

impl Way<'_> {
    /// Does what is possible until all is done.
    fn go(&mut self, mut todo: Vec<Todo>) {
        while !todo.is_empty() {
            let before = todo.len();
            let mut rest = Vec::new();
            for item in todo {
                if !self.attempt(&item) {
                    rest.push(item);
                }
            }
            todo = rest;
            if todo.len() == before && !self.untie(&todo) && !self.uproot(&mut todo) {
                tracing::warn!(left = todo.len(), "some renames after a gap cannot be shown as events");
                return;
            }
        }
    }

    fn is_dir(&self, ino: Ino) -> bool {
        let known = self.old.get(ino).or_else(|| self.new.get(ino));
        ino == Ino::ROOT || known.is_some_and(|node| node.record.kind == Kind::Dir)
    }

    /// Whether `ino` has come to its directory of the old tree on the way, or is new and made.
    fn is_there(&self, ino: Ino) -> bool {
        ino == Ino::ROOT || self.at.contains_key(&ino)
    }

    fn occupant(&self, at: &At) -> Option<Ino> {
        self.names.get(&at.0)?.get(&at.1).copied()
    }

    /// Whether `ino` lies in `dir`, however deep, or is it.
    fn is_within(&self, mut ino: Ino, dir: Ino) -> bool {
        // A tree that was damaged by a fault of ours must not hang us.
        for _ in 0..=self.at.len() {
            if ino == dir {
                return true;
            }
            match self.at.get(&ino) {
                Some(at) => ino = at.0,
                None => return false,
            }
        }
        true
    }

    fn unlink(&mut self, ino: Ino) -> Option<At> {
        let at = self.at.remove(&ino)?;
        if let Some(names) = self.names.get_mut(&at.0) {
            names.remove(&at.1);
        }
        Some(at)
    }

    fn link(&mut self, ino: Ino, at: At) {
        self.names.entry(at.0).or_default().insert(at.1.clone(), ino);
        self.at.insert(ino, at);
    }

    fn attempt(&mut self, item: &Todo) -> bool {
        match item {
            Todo::Create(ino) => {
                let Some((at, kind)) = self.new.get(*ino).and_then(|n| Some((n.at.clone()?, n.record.kind)))
                else {
                    return true;
                };
                if !self.is_there(at.0) || self.occupant(&at).is_some() {
                    return false;
                }
                self.link(*ino, at.clone());
                self.net.push(Net::Create { at, ino: *ino, kind });
                true
            }
            Todo::Move(ino) => {
                let Some(to) = self.new.get(*ino).and_then(|n| n.at.clone()) else { return true };
                if self.at.get(ino) == Some(&to) {
                    return true;
                }
                if !self.is_there(to.0) || self.is_within(to.0, *ino) {
                    return false;
                }
                // What is in the way and will be gone anyway is replaced, as the rename itself did.
                let mut replaced = None;
                if let Some(other) = self.occupant(&to) {
                    let goes = !self.new.nodes.contains_key(&other);
                    let fits = !self.is_dir(other) && !self.is_dir(*ino);
                    if !(goes && fits) {
                        return false;
                    }
                    self.unlink(other);
                    replaced = self.old.get(other).map(|node| node.record.clone());
                }
                let Some(from) = self.unlink(*ino) else { return true };
                self.link(*ino, to.clone());
                self.net.push(Net::Rename { from, to, ino: *ino, replaced, exchanged: None });
                true
            }
            Todo::Remove(ino) => {
                if !self.at.contains_key(ino) {
                    return true;
                }
                if self.names.get(ino).is_some_and(|names| !names.is_empty()) {
                    return false;
                }
                let Some(at) = self.unlink(*ino) else { return true };
                if let Some(node) = self.old.get(*ino) {
                    self.net.push(Net::Remove { at, record: node.record.clone() });
                }
                true
            }
        }
    }

    /// Two or more wait for each other's names: puts one in its place by an exchange.
    fn untie(&mut self, todo: &[Todo]) -> bool {
        let moves: HashSet<Ino> =
            todo.iter().filter_map(|t| if let Todo::Move(i) = t { Some(*i) } else { None }).collect();
        for item in todo.iter() {
            let Todo::Move(ino) = item else { continue };
            let Some(to) = self.new.get(*ino).and_then(|n| n.at.clone()) else { continue };
            if !self.is_there(to.0) || self.is_within(to.0, *ino) {
                continue;
            }
            let Some(other) = self.occupant(&to).filter(|other| moves.contains(other)) else { continue };
            let Some(from) = self.at.get(ino).cloned() else { continue };
            if self.is_within(from.0, other) {
                continue;
            }
            self.unlink(*ino);
            self.unlink(other);
            self.link(*ino, to.clone());
            self.link(other, from.clone());
            self.net.push(Net::Rename { from, to, ino: *ino, replaced: None, exchanged: Some(other) });
            return true;
        }
        false
    }

    /// Not even that: something has to come to lie in what will have its name. It is taken away with
    /// all that is in it, and made again where it belongs.
    fn uproot(&mut self, todo: &mut Vec<Todo>) -> bool {
        let stuck = todo.iter().find_map(|item| match item {
            Todo::Create(ino) | Todo::Move(ino) => {
                let to = self.new.get(*ino)?.at.clone()?;
                let other = self.occupant(&to)?;
                // What is in its place already does not go away again.
                let misplaced = self.new.get(other).is_none_or(|node| node.at.as_ref() != Some(&to));
                misplaced.then_some(other)
            }
            Todo::Remove(_) => None,
        });
        // Or a directory that has to come to lie in itself, by way of what is in it now.
        let moved = || todo.iter().find_map(|t| if let Todo::Move(ino) = t { Some(*ino) } else { None });
        let Some(top) = stuck.or_else(moved) else { return false };
        let mut doomed = vec![top];
        let mut next = 0;
        while let Some(ino) = doomed.get(next).copied() {
            next += 1;
            doomed.extend(self.names.get(&ino).into_iter().flat_map(|names| names.values().copied()));
        }
        for ino in doomed.into_iter().rev() {
            let Some(at) = self.unlink(ino) else { continue };
            if let Some(node) = self.old.get(ino).or_else(|| self.new.get(ino)) {
                self.net.push(Net::Remove { at, record: node.record.clone() });
            }
            if self.new.get(ino).is_some() {
                todo.push(Todo::Create(ino));
            }
        }
        true
    }

    /// Values and attributes, once all have their names.
    fn settle(&mut self) {
        let mut inos: Vec<Ino> = self.new.nodes.keys().copied().collect();
        inos.sort();
        for ino in inos {
            let (Some(old), Some(new)) = (self.old.get(ino), self.new.get(ino)) else { continue };
            let (old, new) = (&old.record, &new.record);
            if old.version != new.version && new.kind == Kind::File {
                self.net.push(Net::Update { ino });
            } else if (old.mode, old.uid, old.gid, &old.xattrs) != (new.mode, new.uid, new.gid, &new.xattrs)
                || (new.kind != Kind::Dir && (old.atime, old.mtime) != (new.atime, new.mtime))
            {
                self.net.push(Net::Attr { ino });
            }
        }
    }
}
