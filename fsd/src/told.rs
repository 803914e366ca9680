//! Readers that go through the page cache while the value changes: the kernel fills the cache when it likes, and takes
//! the length from the attributes that it was told. So it is told of a new value only when it can take the value
//! and its length together.

use std::collections::HashSet;

use bytes::Bytes;
use quorumfs_api::record::Record;

use crate::attr::{self, Attr};
use crate::handle::{Reader, same};
use crate::kernel::{NodeId, Object};
use crate::state::State;

impl State {
    /// The mirror has what the kernel was not told of yet.
    pub(crate) fn hold_back(&mut self, stale: &HashSet<NodeId>) {
        self.held_back = true;
        self.untold.extend(stale);
    }

    /// Those who read a file through the page cache and are to get another value than it has now.
    pub(crate) fn behind(&self, node: NodeId) -> impl Iterator<Item = &Reader> {
        let now = self.published(node);
        self.handles
            .cached(node)
            .filter(move |reader| now.as_ref().is_some_and(|now| !same(now, &reader.value)))
    }

    /// The kernel was told of these.
    pub(crate) fn told_of(&mut self, stale: HashSet<NodeId>) {
        for node in stale {
            self.untold.remove(&node);
            if self.behind(node).next().is_some() {
                self.told.insert(node);
            }
        }
    }

    /// The kernel asks for the attributes of a file. If it knows that they are old, it takes them together
    /// with the value that they are of.
    pub fn catch_up(&mut self, node: NodeId) {
        if self.told.remove(&node) {
            self.refresh(node);
        }
    }

    /// Who reads a file through the page cache gets what it has now from now on.
    pub fn refresh(&mut self, node: NodeId) {
        if let Some(record) = self.record(node) {
            let (value, times) = (record.value.clone(), (record.mtime, record.ctime));
            self.handles.refresh(node, &value, times);
        }
    }

    /// What a file holds for others, or held when it lost its name.
    pub fn published(&self, node: NodeId) -> Option<Bytes> {
        self.record(node).map(|record| record.value.clone())
    }

    /// The version of that.
    pub fn version(&self, node: NodeId) -> Option<u64> {
        self.record(node).map(|record| record.version)
    }

    pub(crate) fn record(&self, node: NodeId) -> Option<&Record> {
        match self.kernel.resolve(node, &self.mirror) {
            Object::Real(ino) => Some(&self.mirror.get(ino)?.record),
            Object::Orphan => self.kernel.orphaned(node),
            Object::Private | Object::Link | Object::Gone => None,
        }
    }

    /// While the kernel is not told of a new value, it gets the attributes of the old one: with the
    /// length of the one and the bytes of the other, a reader would get a part.
    pub(crate) fn as_told(&self, attr: Attr) -> Attr {
        let node = attr.node;
        let reader = if self.untold.contains(&node) { self.behind(node).next() } else { None };
        reader.map_or(attr, |reader| Attr {
            size: reader.value.len() as u64,
            mtime: attr::time(reader.times.0),
            ctime: attr::time(reader.times.1),
            ..attr
        })
    }
}
