//! What each system call means, without a word about FUSE: numbers and bytes in, results out.
//!
//! Operations are futures, because some wait for the cluster; those that need not are done when they
//! are polled for the first time.
//!
//! | module | what |
//! |---|---|
//! | `names` | lookup, attributes, listings |
//! | `files` | open, create, read, write, flush, fsync, release |
//! | `publish` | what was written becomes what others see |
//! | `tree` | mkdir, unlink, rmdir, rename, symlink |
//! | `attrs` | chmod, chown, utimes, truncate, statfs |
//! | `xattr` | extended attributes |
//! | `locks` | flock and fcntl locks, cluster-wide |
//! | `report` | the directory `/.quorumfs` |

mod attrs;
mod files;
mod locks;
mod names;
mod publish;
mod report;
mod tree;
mod xattr;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use quorumfs_api::command::{At as Place, Owner};
use quorumfs_api::key::Name;
use quorumfs_api::record::{Ino, Kind};

pub use attrs::{Change, Space, Time};
pub use files::Opened;
pub use locks::{Held, LockRequest};
pub use names::STAGE_NAME;

use crate::attr::Attr;
use crate::core::{Core, TTL};
use crate::errno::{Errno, Result};
use crate::kernel::{NodeId, Object};
use crate::mirror::At;
use crate::state::State;

/// Who makes a system call.
#[derive(Clone, Copy, Debug)]
pub struct Caller {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Thread.
    pub pid: u32,
}

/// A name's answer to the kernel.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// What has the name.
    pub attr: Attr,
    /// How long the kernel may believe that the name is there.
    pub name_ttl: Duration,
    /// How long it may believe the attributes.
    pub attr_ttl: Duration,
}

/// The file system. Cheap to clone.
#[derive(Clone)]
pub struct Fs {
    /// The mount's state.
    pub core: Arc<Core>,
}

/// A name that the kernel hands over.
fn name(bytes: &[u8]) -> Result<Name> {
    Name::new(Bytes::copy_from_slice(bytes)).map_err(|error| Errno::from(&error))
}

impl Fs {
    /// On that core.
    pub fn new(core: Arc<Core>) -> Fs {
        Fs { core }
    }

    fn is_replayer(&self, caller: Caller) -> bool {
        self.core.replayer.is(caller.pid)
    }

    fn check_writable(&self) -> Result<()> {
        if self.core.rules.read_only { Err(Errno::EROFS) } else { Ok(()) }
    }

    /// The directory that the kernel means, which exists.
    fn dir(&self, state: &State, node: NodeId) -> Result<Ino> {
        match state.kernel.resolve(node, &state.mirror) {
            Object::Real(ino) if state.mirror.dir(ino).is_some() => Ok(ino),
            Object::Real(_) | Object::Private | Object::Link => Err(Errno::ENOTDIR),
            // In a directory that is gone no name can be made, and none is found.
            Object::Orphan | Object::Gone => Err(Errno::ENOENT),
        }
    }

    /// The store's way of saying a name.
    fn place(&self, state: &State, at: &At) -> Result<Place> {
        let dir = state.mirror.outer(at.0).ok_or(Errno::ENOENT)?;
        Ok(Place::Entry(dir, at.1.clone()))
    }

    /// Gives the kernel an entry for what is at `at` in the tree.
    fn give(&self, state: &mut State, at: &At, ino: Ino) -> Result<Entry> {
        state.catch_up(state.kernel.node(ino));
        let attr = state.attr_of(ino, &self.core.rules.shown).ok_or(Errno::ENOENT)?;
        state.kernel.looked_up(attr.node);
        // While its replay is pending, the kernel must ask again: under the replayer it may not be there.
        let name_ttl =
            if state.queue.is_pending(at) || report::is_reserved(state, at) { Duration::ZERO } else { TTL };
        Ok(Entry { attr, name_ttl, attr_ttl: self.attr_ttl(state, attr.node) })
    }

    /// Gives the kernel an entry for a private file.
    fn give_private(&self, state: &mut State, node: NodeId) -> Result<Entry> {
        let attr = state.attr(node, &self.core.rules.shown).ok_or(Errno::ENOENT)?;
        state.kernel.looked_up(node);
        Ok(Entry { attr, name_ttl: Duration::ZERO, attr_ttl: Duration::ZERO })
    }

    /// Attributes of what is being written are only good for now.
    fn attr_ttl(&self, state: &State, node: NodeId) -> Duration {
        let busy = state.untold.contains(&node)
            || state.settling.contains_key(&node)
            || state.handles.writers(node).any(|(_, w)| w.is_pending());
        if busy { Duration::ZERO } else { TTL }
    }

    /// Who owns what this caller makes in that directory: a set-group-id directory hands on its group.
    fn owner(&self, state: &State, dir: Ino, caller: Caller, mode: u32, kind: Kind) -> Owner {
        let mut owner = Owner { mode: mode & 0o7777, uid: caller.uid, gid: caller.gid };
        if let Some(parent) = state.mirror.get(dir)
            && parent.record.mode & 0o2000 != 0
        {
            owner.gid = parent.record.gid;
            if kind == Kind::Dir {
                owner.mode |= 0o2000;
            }
        }
        owner
    }

    fn now() -> quorumfs_api::record::Timestamp {
        crate::attr::stamp(SystemTime::now())
    }
}
