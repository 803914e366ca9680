//! Lookup, attributes, listings.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use quorumfs_api::limits::NAME_MAX;
use quorumfs_api::record::{Ino, Kind};

use super::{Caller, Entry, Fs, name, report};
use crate::attr::Attr;
use crate::core::TTL;
use crate::errno::{Errno, Result};
use crate::handle::{Fh, Handle, Listed};
use crate::kernel::{NodeId, Object, STAGE};
use crate::mirror::{At, Net};
use crate::report::DIR;
use crate::state::{State, orphan_attr};
use crate::swap::{self, Made};

/// Where the replayer finds what it moves into its place, in the root: a name that no key can have, because
/// it is longer than `NAME_MAX`. The kernel lets FUSE have such names.
pub const STAGE_NAME: &str = match std::str::from_utf8(&[b'.'; NAME_MAX + 1]) {
    Ok(name) => name,
    Err(_) => unreachable!(),
};

impl Fs {
    /// What has a name.
    pub fn lookup(&self, caller: Caller, parent: NodeId, bytes: &[u8]) -> Result<Entry> {
        let mut state = self.core.state.lock();
        let state = &mut *state;
        if self.is_replayer(caller) {
            return self.lookup_for_replayer(state, parent, bytes);
        }
        let name = name(bytes)?;
        if let Some(own) = self.lookup_own(state, parent, bytes) {
            return own;
        }
        state.seen(parent);
        let dir = self.dir(state, parent)?;
        let at = (dir, name);
        match state.mirror.child(dir, &at.1) {
            Some(ino) => self.give(state, &at, ino),
            None => {
                let made_up = |state: &mut State| swap::lookup(state, &at);
                let node = state.kernel.private_at(&at).or_else(|| made_up(state)).ok_or(Errno::ENOENT)?;
                self.give_private(state, node)
            }
        }
    }

    /// The tree as it is for the replayer, with the directory out of which it moves things.
    fn lookup_for_replayer(&self, state: &mut State, parent: NodeId, bytes: &[u8]) -> Result<Entry> {
        if parent == STAGE {
            return self.give_staged(state);
        }
        if parent == Ino::ROOT.0 && bytes == STAGE_NAME.as_bytes() {
            return self.give_private(state, STAGE);
        }
        let dir = state.kernel.ino(parent).ok_or(Errno::ENOENT)?;
        let at = (dir, name(bytes)?);
        match (state.queue.lookup(&at, &state.mirror), state.queue.current()) {
            (Some(ino), _) => self.give_replayer(state, &at, ino),
            // The link that is about to be replaced.
            (None, Some(Net::Swap { dir: there }))
                if *there == dir && at.1.as_bytes() == swap::DATA.as_bytes() =>
            {
                let node = state.kernel.link_of(dir, Made::Data).ok_or(Errno::ENOENT)?;
                self.give_private(state, node)
            }
            (None, _) => Err(Errno::ENOENT),
        }
    }

    /// What is about to be moved into its place: for the kernel another thing than what is there now.
    fn give_staged(&self, state: &mut State) -> Result<Entry> {
        let shown = &self.core.rules.shown;
        let (node, attr) = match state.queue.current().cloned() {
            Some(Net::Create { ino, kind: Kind::File, .. }) => {
                let node = state.kernel.node(ino);
                let made = state.attr_of(ino, shown);
                (node, made.or_else(|| Some(Attr::of(state.queue.ghost(ino)?, node, 0, shown))))
            }
            Some(Net::Update { ino }) if state.mirror.get(ino).is_some() => {
                let node = state.stage(ino);
                (node, state.attr_as(ino, node, shown))
            }
            Some(Net::Swap { dir }) => {
                let record = swap::record(state, dir, Made::Data).ok_or(Errno::ENOENT)?;
                let node = state.stage_link(record);
                (node, state.attr(node, shown))
            }
            _ => return Err(Errno::ENOENT),
        };
        let attr = attr.ok_or(Errno::ENOENT)?;
        state.kernel.looked_up(node);
        Ok(Entry { attr, name_ttl: Duration::ZERO, attr_ttl: Duration::ZERO })
    }

    /// An entry for the replayer, also of what is gone from the tree already.
    pub(super) fn give_replayer(&self, state: &mut State, at: &At, ino: Ino) -> Result<Entry> {
        let shown = &self.core.rules.shown;
        let node = state.kernel.node(ino);
        state.catch_up(node);
        let attr = match state.attr_of(ino, shown) {
            Some(attr) => attr,
            // With the length that those see who have it open: the kernel takes whatever it is told.
            None => {
                let gone = state.kernel.orphaned(node).or_else(|| state.queue.ghost(ino));
                Attr::of(gone.ok_or(Errno::ENOENT)?, node, 0, shown)
            }
        };
        state.kernel.looked_up(node);
        let lasting = state.mirror.child(at.0, &at.1) == Some(ino)
            && state.queue.is_last(at)
            && !report::is_reserved(state, at);
        let ttl = if lasting { TTL } else { Duration::ZERO };
        Ok(Entry { attr, name_ttl: ttl, attr_ttl: ttl })
    }

    /// The kernel lets go of an inode.
    pub fn forget(&self, node: NodeId, count: u64) {
        let mut state = self.core.state.lock();
        state.kernel.forget(node, count);
        if !state.kernel.holds(node) {
            state.told.remove(&node);
        }
    }

    /// Attributes, and how long they are good for.
    pub async fn getattr(&self, caller: Caller, node: NodeId, fh: Option<Fh>) -> Result<(Attr, Duration)> {
        if !self.is_replayer(caller) {
            self.settle(node).await;
        }
        let mut state = self.core.state.lock();
        self.attributes(&mut state, caller, node, fh)
    }

    pub(super) fn attributes(
        &self,
        state: &mut State,
        caller: Caller,
        node: NodeId,
        fh: Option<Fh>,
    ) -> Result<(Attr, Duration)> {
        state.seen(node);
        state.catch_up(node);
        let shown = &self.core.rules.shown;
        if let Some(attr) = self.own_attr(node) {
            return Ok((attr, Duration::ZERO));
        }
        if self.is_replayer(caller) {
            let attr = match state.attr(node, shown) {
                Some(attr) => attr,
                None => {
                    let ghost = state.kernel.ino(node).and_then(|ino| state.queue.ghost(ino));
                    orphan_attr(ghost.ok_or(Errno::ESTALE)?, node, shown)
                }
            };
            return Ok((attr, self.attr_ttl(state, node)));
        }
        // A file without a name is for those who have it open. Whoever comes by a cached name is sent
        // to look it up again.
        let is_open = !state.handles.of(node).is_empty() || state.kernel.is_inherited(node);
        if state.kernel.resolve(node, &state.mirror) == Object::Orphan && !is_open {
            return Err(Errno::ESTALE);
        }
        let mut attr = state.attr(node, shown).ok_or(Errno::ESTALE)?;
        let base = attr.size as usize;
        let mine = state.handles.writers(node).filter(|(number, writer)| {
            writer.is_pending() && fh.map_or(writer.pid == caller.pid, |fh| *number == fh)
        });
        // Whoever writes sees the length of what was written, and when.
        if let Some((_, writer)) = mine.max_by_key(|(_, writer)| writer.edits) {
            attr.size = writer.len(base) as u64;
            if writer.dirty {
                (attr.mtime, attr.ctime) = (writer.edited, writer.edited);
            }
        }
        let lasting = node == Ino::ROOT.0 || state.kernel.resolve(node, &state.mirror) != Object::Orphan;
        let ttl = if lasting { self.attr_ttl(state, node) } else { Duration::ZERO };
        Ok((attr, ttl))
    }

    /// What a symbolic link points to.
    pub fn readlink(&self, node: NodeId) -> Result<Bytes> {
        let state = self.core.state.lock();
        match state.kernel.resolve(node, &state.mirror) {
            Object::Real(ino) => {
                let node = state.mirror.get(ino).ok_or(Errno::ESTALE)?;
                match node.record.kind {
                    Kind::Symlink => Ok(node.record.value.clone()),
                    _ => Err(Errno::EINVAL),
                }
            }
            Object::Link => state.kernel.link(node).map(|link| link.value.clone()).ok_or(Errno::ESTALE),
            Object::Private => Err(Errno::EINVAL),
            Object::Orphan | Object::Gone => Err(Errno::ESTALE),
        }
    }

    /// Opens a directory.
    pub fn opendir(&self, node: NodeId) -> Result<Fh> {
        let mut state = self.core.state.lock();
        state.seen(node);
        let exists = node == Ino::ROOT.0 || node == DIR || self.dir(&state, node).is_ok();
        if !exists {
            return Err(match state.kernel.resolve(node, &state.mirror) {
                Object::Real(_) | Object::Private | Object::Link => Errno::ENOTDIR,
                Object::Orphan | Object::Gone => Errno::ESTALE,
            });
        }
        Ok(state.handles.add(Handle::Dir { node, names: Arc::default() }))
    }

    /// The names of an open directory: as they are when it is read from the beginning, and from then
    /// on the same until it is rewound, so that a position keeps its meaning.
    pub fn readdir(&self, node: NodeId, fh: Fh, offset: u64) -> Result<Arc<Vec<Listed>>> {
        let mut state = self.core.state.lock();
        let state = &mut *state;
        state.revive(node, fh, 0);
        let Some(Handle::Dir { node, .. }) = state.handles.get(fh) else { return Err(Errno::EBADF) };
        let node = *node;
        let fresh = (offset == 0).then(|| Arc::new(state.list(node)));
        let Some(Handle::Dir { names, .. }) = state.handles.get_mut(fh) else { return Err(Errno::EBADF) };
        if let Some(fresh) = fresh {
            *names = fresh;
        }
        Ok(names.clone())
    }

    /// Closes a directory.
    pub fn releasedir(&self, fh: Fh) {
        self.core.state.lock().handles.remove(fh);
    }
}

impl State {
    /// What is in a directory now.
    pub(crate) fn list(&self, node: NodeId) -> Vec<Listed> {
        let mut names = self.list_tree(node);
        report::listed(self, node, &mut names);
        names
    }

    fn list_tree(&self, node: NodeId) -> Vec<Listed> {
        let Object::Real(ino) = self.kernel.resolve(node, &self.mirror) else { return Vec::new() };
        let Some(dir) = self.mirror.dir(ino) else { return Vec::new() };
        let parent = self.mirror.get(ino).and_then(|node| node.at.as_ref()).map_or(Ino::ROOT, |at| at.0);
        let mut names = Vec::with_capacity(dir.children.len() + 2);
        names.push(Listed { node, kind: Kind::Dir, name: None });
        names.push(Listed { node: self.kernel.node(parent), kind: Kind::Dir, name: None });
        names.extend(dir.children.iter().map(|(name, child)| Listed {
            node: self.kernel.node(*child),
            kind: self.mirror.get(*child).map_or(Kind::File, |node| node.record.kind),
            name: Some(name.clone()),
        }));
        let private = self.kernel.privates_in(ino);
        names.extend(private.map(|(at, node)| Listed { node, kind: Kind::File, name: Some(at.1.clone()) }));
        names
    }
}
