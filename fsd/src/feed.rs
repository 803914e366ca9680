//! From the watch stream into the core.

use std::sync::Arc;

use quorumfs_api::client::{Client, ClientError, WatchItem};
use quorumfs_api::key::Key;
use quorumfs_api::wire::WatchStart;
use tokio::sync::watch;

use crate::core::Core;
use crate::mirror::{Mirror, OutOfStep};

/// How far the feed has come.
#[derive(Clone, Debug, Default)]
pub enum Progress {
    /// No copy yet; what stands in the way, if anything is known.
    #[default]
    Waiting,
    /// No copy yet, and this is why.
    Hindered(String),
    /// The mirror holds the tree.
    Ready,
    /// It will never come.
    Failed(ClientError),
}

/// Keeps the core up to date until it is dropped. Reconnecting is the client's business; taking a new
/// copy when something does not fit is ours.
pub async fn run(core: Arc<Core>, client: Client, prefix: Key, progress: watch::Sender<Progress>) {
    loop {
        let start = WatchStart { prefix: prefix.clone(), after: None, copy_when_behind: true };
        let mut watch = client.watch(start);
        let mut copy: Option<Mirror> = None;
        loop {
            let Some(item) = watch.next().await else { return };
            let taken = match item {
                WatchItem::CopyBegin { revision, root } => {
                    copy = Some(Mirror::begin(revision, root));
                    Ok(())
                }
                WatchItem::CopyPart(nodes) => match &mut copy {
                    Some(copy) => copy.add(nodes),
                    None => Err(OutOfStep("a part of a copy came without its beginning".to_string())),
                },
                WatchItem::CopyEnd => {
                    if let Some(copy) = copy.take() {
                        tracing::debug!(
                            revision = copy.revision,
                            objects = copy.len(),
                            "took a copy of the tree"
                        );
                        core.replace(copy).await;
                    }
                    progress.send_replace(Progress::Ready);
                    Ok(())
                }
                WatchItem::Events(events) => core.events(events).await,
                WatchItem::Progress(revision) => {
                    core.progress(revision).await;
                    Ok(())
                }
                WatchItem::Rights(rights) => {
                    core.may(&prefix, rights);
                    Ok(())
                }
                WatchItem::Compacted(_) => Err(OutOfStep("the event log was compacted".to_string())),
                WatchItem::Connected(addr) => {
                    tracing::info!(%addr, "the mirror follows this node");
                    core.linked(Ok(addr));
                    Ok(())
                }
                WatchItem::Disconnected(error) => {
                    copy = None;
                    core.linked(Err(error.to_string()));
                    tracing::warn!(%error, "the mirror does not get news; what it holds can still be read");
                    progress.send_if_modified(|progress| {
                        let waiting = matches!(progress, Progress::Waiting | Progress::Hindered(_));
                        if waiting {
                            *progress = Progress::Hindered(error.to_string());
                        }
                        waiting
                    });
                    Ok(())
                }
                WatchItem::Failed(error) => {
                    tracing::error!(%error, "the mirror gets no news any more");
                    core.linked(Err(error.to_string()));
                    progress.send_replace(Progress::Failed(error));
                    return;
                }
            };
            if let Err(error) = taken {
                tracing::warn!(%error, "starting the watch anew");
                break;
            }
        }
    }
}
