//! chmod, chown, utimes, truncate; and how much room there is.

use std::time::{Duration, SystemTime};

use quorumfs_api::command::{AttrChange, Command, TimeChange};
use quorumfs_api::record::Ino;

use super::{Caller, Fs};
use crate::attr::{Attr, stamp};
use crate::errno::{Errno, Result};
use crate::handle::Fh;
use crate::handover::note::Note;
use crate::kernel::{NodeId, Object};
use crate::replay::expect;
use crate::report;
use crate::state::Touch;

/// A time to set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Time {
    /// The present.
    Now,
    /// This one.
    At(SystemTime),
}

/// What `setattr` is to change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// Permission bits.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Length of the file.
    pub size: Option<u64>,
    /// Access time.
    pub atime: Option<Time>,
    /// Modification time.
    pub mtime: Option<Time>,
}

/// Answer to `statfs`, in bytes and objects.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Space {
    /// The quota.
    pub total: u64,
    /// What is used.
    pub used: u64,
    /// How many objects there are.
    pub objects: u64,
}

/// How long `df` may wait for a node.
const STATFS_TIMEOUT: Duration = Duration::from_millis(500);

impl Fs {
    /// Changes attributes or the length.
    pub async fn setattr(
        &self,
        caller: Caller,
        node: NodeId,
        fh: Option<Fh>,
        change: Change,
    ) -> Result<(Attr, Duration)> {
        if self.is_replayer(caller) {
            let mut state = self.core.state.lock();
            return match state.kernel.ino(node).is_some_and(|ino| expect::sets(&mut state.queue, ino)) {
                true => self.attributes(&mut state, caller, node, None),
                false => Err(Errno::ESTALE),
            };
        }
        self.check_writable()?;
        if report::is_own(node) {
            return Err(Errno::EPERM);
        }
        if let Some(size) = change.size {
            self.resize(node, fh, size).await?;
        }
        let time = |time| match time {
            Time::Now => TimeChange::Now,
            Time::At(time) => TimeChange::At(stamp(time)),
        };
        let set = AttrChange {
            mode: change.mode.map(|mode| mode & 0o7777),
            uid: change.uid,
            gid: change.gid,
            // With a new length the kernel sends the time as well, which comes by itself.
            mtime: change.mtime.filter(|_| change.size.is_none()).map(time),
            atime: change.atime.map(time),
        };
        if set != AttrChange::default() {
            if set.mtime.is_some() {
                self.publish_own(node, caller.pid).await?;
            }
            if let Some((ino, target)) = self.settled_target(node).await? {
                self.core.commit(vec![Touch::Ino(ino)], Command::SetAttr { target, set }).await?;
            }
        }
        let mut state = self.core.state.lock();
        match self.attributes(&mut state, caller, node, fh) {
            // An orphan that is not open any more.
            Err(Errno::ESTALE) => {
                state.attr(node, &self.core.rules.shown).map(|a| (a, Duration::ZERO)).ok_or(Errno::ESTALE)
            }
            other => other,
        }
    }

    /// The file's number in the store, where it is published for that; `None` if it has no name.
    pub(super) async fn settled_target(
        &self,
        node: NodeId,
    ) -> Result<Option<(Ino, quorumfs_api::command::Target)>> {
        self.publish_node(node).await?;
        let state = self.core.state.lock();
        match state.kernel.resolve(node, &state.mirror) {
            Object::Real(ino) => Ok(Some((ino, Self::target(&state, ino)?))),
            Object::Orphan => Ok(None),
            // It is in no store.
            Object::Link => Err(Errno::EPERM),
            Object::Private | Object::Gone => Err(Errno::ESTALE),
        }
    }

    /// Cuts or extends: through a handle that is its business, by name it is done at once.
    async fn resize(&self, node: NodeId, fh: Option<Fh>, size: u64) -> Result<()> {
        let handled = {
            let mut state = self.core.state.lock();
            if size > state.value_limit() {
                return Err(Errno::EFBIG);
            }
            if let Some(fh) = fh {
                state.locked.fence(fh)?;
            }
            let base = state.published(node).unwrap_or_default();
            if let Some(fh) = fh {
                state.revive(node, fh, 0);
            }
            let resized = match fh.and_then(|fh| state.handles.writer(fh)) {
                Some(writer) => {
                    // The length that it has changes nothing, so there is nothing to publish.
                    if writer.len(base.len()) as u64 != size || writer.is_pending() {
                        writer.resize(size as usize, &base);
                    }
                    Some((writer.sync, writer.edits))
                }
                None => None,
            };
            if let (Some((_, edits)), Some(fh)) = (resized, fh) {
                state.note(|| Note::Resized { fh, node, edits, size });
            }
            resized.map(|(sync, _)| sync)
        };
        match (handled, fh) {
            (Some(true), Some(fh)) => self.publish(fh).await,
            (Some(_), _) => Ok(()),
            (None, _) => {
                self.require_leader().await?;
                if let Some((ino, target)) = self.settled_target(node).await? {
                    self.core.commit(vec![Touch::Ino(ino)], Command::Truncate { target, size }).await?;
                }
                Ok(())
            }
        }
    }

    /// How much room there is. Without a node that answers, only what the mirror knows.
    pub async fn statfs(&self) -> Space {
        match self.core.store.status(STATFS_TIMEOUT).await {
            Ok(status) => Space { total: status.store_max, used: status.store_bytes, objects: status.keys },
            Err(_) => {
                let state = self.core.state.lock();
                Space { total: 0, used: 0, objects: state.mirror.len() as u64 }
            }
        }
    }
}
