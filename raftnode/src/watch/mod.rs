//! Watches. Each pulls what it has not sent yet from the state, so that a slow watcher
//! costs one batch of memory and not a queue: when it falls behind what the event log keeps, it gets a
//! new copy, or is told where it can resume.

mod copy;
mod group;
mod render;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use certs::Identity;
use quorumfs_api::codec::{self, EncodeError, FrameKind};
use quorumfs_api::record::Revision;
use quorumfs_api::rights::Rights;
use quorumfs_api::wire::{WatchFrame, WatchStart};
use quorumfs_machine::StorageError;
use quorumfs_machine::sight::next_policy;
use quorumfs_store::{AppliedAt, Behind, EventsError};
use tokio::time::Instant;

use crate::endpoint::{CLOSE_BUSY, CLOSE_SILENT, CLOSE_STOPPING};
use crate::service::{Context, who};
use render::{Batch, Renderer};

pub use group::Group;

/// Most events that are pulled at a time.
const PULL: usize = 512;
/// A sign of life is sent when nothing else was for this long.
const ALIVE: Duration = Duration::from_secs(2);
/// Shortest time between two frames that only say how far this watch is. The first after a pause
/// goes out at once, because somebody may wait for that very revision.
const PROGRESS: Duration = Duration::from_millis(10);

/// Why a watch ended.
#[derive(Debug, thiserror::Error)]
enum WatchError {
    #[error("the stream ended: {0}")]
    Stream(#[from] quinn::WriteError),
    #[error("the watcher takes nothing, and is let go of; it can go on from where it was")]
    Stall,
    #[error(transparent)]
    Storage(#[from] StorageError),
    #[error(transparent)]
    Encode(#[from] EncodeError),
    #[error("the node is stopping")]
    Stopped,
}

/// Serves watches. Clones share the renderer.
#[derive(Clone)]
pub struct Watches {
    context: Arc<Context>,
    renderer: Arc<Renderer>,
    copies: copy::Copies,
}

impl Watches {
    /// No watches yet.
    pub fn new(context: Arc<Context>) -> Watches {
        Watches { context, renderer: Arc::default(), copies: copy::Copies::default() }
    }

    /// Serves one watch until either side ends it.
    pub async fn serve(
        &self,
        identity: Arc<Identity>,
        start: WatchStart,
        mut send: quinn::SendStream,
        recv: quinn::RecvStream,
    ) {
        let Some(_place) = self.context.bounds.watch() else {
            tracing::warn!("a watch was refused: there are too many");
            let _ = send.reset(CLOSE_BUSY);
            return;
        };
        let ended = send.stopped();
        let mut watch = Watch { watches: self.clone(), identity, start, send, told: None, sight: None };
        let result = tokio::select! {
            result = watch.run() => result,
            _ = ended => Ok(()),
            () = self.context.stop.raised() => Err(WatchError::Stopped),
        };
        match result {
            Ok(()) => {
                let _ = watch.send.finish();
            }
            Err(error) => {
                let code = match &error {
                    WatchError::Stall => CLOSE_SILENT,
                    _ => CLOSE_STOPPING,
                };
                let _ = watch.send.reset(code);
                match error {
                    WatchError::Stream(_) | WatchError::Stopped => tracing::debug!("a watch ended: {error}"),
                    _ => tracing::warn!("a watch was ended: {error}"),
                }
            }
        }
        // Until here, because dropping it tells the client to stop writing.
        drop(recv);
    }
}

/// One watch.
struct Watch {
    watches: Watches,
    identity: Arc<Identity>,
    start: WatchStart,
    send: quinn::SendStream,
    /// What the watcher may see, and the revision of the policy that says so.
    sight: Option<(Revision, Arc<Rights>)>,
    /// Up to where the watcher knows that it has everything.
    told: Option<Revision>,
}

impl Watch {
    async fn run(&mut self) -> Result<(), WatchError> {
        let context = self.watches.context.clone();
        let mut applied = context.state.applied();
        let mut at = match self.start.after {
            Some(after) => after,
            None => self.copy().await?,
        };
        let mut spoke = Instant::now() - PROGRESS;
        loop {
            // Events may be newer than this; those that come after another policy are left for later.
            let AppliedAt { revision: newest, policy, .. } = *applied.borrow_and_update();
            let (policy, rights) = match &self.sight {
                Some((known, rights)) if *known >= policy => (*known, rights.clone()),
                _ => {
                    at = self.obey(at).await?;
                    continue;
                }
            };
            if at < newest {
                match self.batch(at, newest.max(policy), &rights)? {
                    Ok(batch) => {
                        if !batch.frames.is_empty() {
                            self.write(batch.frames.clone()).await?;
                            context.metrics.watch_events.increment(batch.events);
                            spoke = Instant::now();
                        }
                        self.told = self.told.max(batch.passed);
                        at = batch.last;
                        if let Some(revision) = batch.copy_at {
                            if !self.start.copy_when_behind {
                                return self.write_frame(&WatchFrame::Compacted(revision)).await;
                            }
                            at = self.copy().await?;
                        }
                    }
                    Err(behind) if self.start.copy_when_behind => {
                        tracing::debug!("a watcher gets a new copy: {behind}");
                        at = self.copy().await?;
                    }
                    Err(behind) => return self.write_frame(&WatchFrame::Compacted(behind.compacted)).await,
                }
                continue;
            }
            // All is sent. What was passed over is told at once, unless that was done just now.
            let wake = if self.told.is_none_or(|told| told < at) { spoke + PROGRESS } else { spoke + ALIVE };
            if wake <= Instant::now() {
                self.write_frame(&WatchFrame::Progress(at)).await?;
                self.told = Some(at);
                spoke = Instant::now();
                continue;
            }
            tokio::select! {
                changed = applied.changed() => changed.map_err(|_| WatchError::Stopped)?,
                () = tokio::time::sleep_until(wake) => {}
            }
        }
    }

    /// Takes another policy up for a watcher that has everything up to `at`, and says up to where it has
    /// everything then: what it did not see before may be older.
    async fn obey(&mut self, at: Revision) -> Result<Revision, WatchError> {
        let in_force = self.watches.context.state.policy();
        let rights = in_force.rights(who(&self.identity));
        let changed = self.see(in_force.revision, rights).await?;
        // A watcher that is resumed behind the policy may have seen by another one.
        if changed && at < in_force.revision && self.start.copy_when_behind {
            return self.copy().await;
        }
        Ok(at)
    }

    /// What the watcher may see from here on. Tells it, if that is something else than before.
    async fn see(&mut self, policy: Revision, rights: Arc<Rights>) -> Result<bool, WatchError> {
        let before = self.sight.replace((policy, rights.clone()));
        if before.is_some_and(|(_, before)| before == rights) {
            return Ok(false);
        }
        self.write_frame(&WatchFrame::Rights(rights.as_ref().clone())).await?;
        Ok(true)
    }

    /// What comes after `at`, ready to be sent. These rights are good up to revision `judged`; what comes
    /// after it only until something may have brought another policy.
    fn batch(
        &self,
        at: Revision,
        judged: Revision,
        rights: &Arc<Rights>,
    ) -> Result<Result<Arc<Batch>, Behind>, WatchError> {
        match self.watches.context.state.events_after(at, PULL) {
            Ok(mut events) => {
                let other = next_policy(events.iter().map(|event| event.as_ref()), judged);
                if let Some(other) = other {
                    events.retain(|event| event.revision < other);
                }
                Ok(Ok(self.watches.renderer.render(
                    &self.start.prefix,
                    self.start.copy_when_behind,
                    rights,
                    at,
                    &events,
                )?))
            }
            Err(EventsError::Behind(behind)) => Ok(Err(behind)),
            Err(EventsError::Storage(error)) => Err(error.into()),
        }
    }

    /// Sends a copy of the subtree, and says as of which revision.
    async fn copy(&mut self) -> Result<Revision, WatchError> {
        let watches = self.watches.clone();
        let mut copy =
            watches.copies.begin(&watches.context.state, &self.start.prefix, who(&self.identity)).await?;
        self.see(copy.policy, copy.rights.clone()).await?;
        while let Some(frame) = copy.next().await {
            self.write(frame?).await?;
        }
        watches.context.metrics.watch_copies.increment(1);
        self.told = Some(copy.revision);
        Ok(copy.revision)
    }

    async fn write_frame(&mut self, frame: &WatchFrame) -> Result<(), WatchError> {
        self.write(codec::encode(FrameKind::Watch, frame)?).await
    }

    async fn write(&mut self, bytes: Bytes) -> Result<(), WatchError> {
        match tokio::time::timeout(self.watches.context.config.watch_stall, self.send.write_chunk(bytes))
            .await
        {
            Ok(written) => Ok(written?),
            Err(_) => Err(WatchError::Stall),
        }
    }
}
