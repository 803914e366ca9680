//! Copies of a subtree, from a view of the state that stays as it is while writes go on.

use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;
use quorumfs_api::Key;
use quorumfs_api::codec::{self, FrameKind};
use quorumfs_api::record::Revision;
use quorumfs_api::rights::Rights;
use quorumfs_api::wire::{Node, WatchFrame};
use quorumfs_machine::view;
use quorumfs_policy::Who;
use quorumfs_store::{SnapshotView, State};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use super::WatchError;

/// Bytes of one part of a copy. A larger record has a part of its own.
const PART_BYTES: usize = 256 << 10;
/// What a node is taken to cost beyond its name and value, in bytes.
const NODE_BYTES: usize = 128;
/// Parts that may wait for the watcher.
const QUEUE: usize = 4;
/// Copies that are made at one time; each occupies a thread, and keeps the database from using space
/// again.
const COPIES: usize = 16;

/// Makes copies, only so many at a time.
#[derive(Clone)]
pub(super) struct Copies(Arc<Semaphore>);

impl Default for Copies {
    fn default() -> Copies {
        Copies(Arc::new(Semaphore::new(COPIES)))
    }
}

/// A copy that is being made.
pub(super) struct Copy {
    /// As of when it is.
    pub revision: Revision,
    /// Revision that wrote the policy of then.
    pub policy: Revision,
    /// What may be seen by it.
    pub rights: Arc<Rights>,
    frames: mpsc::Receiver<Result<Bytes, WatchError>>,
    _turn: OwnedSemaphorePermit,
}

impl Copy {
    /// The next frame.
    pub async fn next(&mut self) -> Option<Result<Bytes, WatchError>> {
        self.frames.recv().await
    }
}

impl Copies {
    /// Begins a copy of what `who` sees of `prefix` now.
    pub async fn begin(&self, state: &State, prefix: &Key, who: Who<'_>) -> Result<Copy, WatchError> {
        let turn = self.0.clone().acquire_owned().await.map_err(|_| WatchError::Stopped)?;
        let view = state.snapshot_view().await?;
        let (revision, policy) = (view.revision(), view.policy().revision);
        let rights = view.policy().rights(who);
        let (sender, frames) = mpsc::channel(QUEUE);
        let prefix = prefix.clone();
        let seen = rights.clone();
        // It ends early when the receiver is gone.
        tokio::task::spawn_blocking(move || {
            if let Err(error) = make(&view, &prefix, &seen, &sender) {
                let _ = sender.blocking_send(Err(error));
            }
        });
        Ok(Copy { revision, policy, rights, frames, _turn: turn })
    }
}

fn make(
    view: &SnapshotView,
    prefix: &Key,
    rights: &Arc<Rights>,
    out: &mpsc::Sender<Result<Bytes, WatchError>>,
) -> Result<(), WatchError> {
    let send = |frame: &WatchFrame| -> Result<ControlFlow<()>, WatchError> {
        let frame = codec::encode(FrameKind::Watch, frame)?;
        Ok(if out.blocking_send(Ok(frame)).is_ok() {
            ControlFlow::Continue(())
        } else {
            ControlFlow::Break(())
        })
    };
    let root = view::get_seen(view, prefix, rights)?;
    if send(&WatchFrame::CopyBegin { revision: view.revision(), root })?.is_break() {
        return Ok(());
    }
    let mut part: Vec<Node> = Vec::new();
    let mut bytes = 0;
    let mut copy = view::Copy::begin_seen(view, prefix, rights)?;
    while let Some(node) = copy.next(view)? {
        let cost = NODE_BYTES + node.name.as_bytes().len() + node.record.value.len() + xattr_bytes(&node);
        if bytes + cost > PART_BYTES && !part.is_empty() {
            if send(&WatchFrame::CopyPart(std::mem::take(&mut part)))?.is_break() {
                return Ok(());
            }
            bytes = 0;
        }
        bytes += cost;
        part.push(node);
    }
    if !part.is_empty() && send(&WatchFrame::CopyPart(part))?.is_break() {
        return Ok(());
    }
    send(&WatchFrame::CopyEnd).map(|_| ())
}

fn xattr_bytes(node: &Node) -> usize {
    node.record.xattrs.iter().map(|(name, value)| name.len() + value.len()).sum()
}
