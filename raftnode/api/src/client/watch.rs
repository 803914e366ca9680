//! Watches: one stream of events, whichever node it comes from at the moment.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::ClientError;
use super::connection::WatchStream;
use super::dispatch::{FIRST_DIAL, in_order};
use super::pool::{DIAL_TIMEOUT, Pool};
use super::position::{Accept, Position};
use crate::codec::{self, FrameKind};
use crate::event::Event;
use crate::record::{Record, Revision};
use crate::rights::Rights;
use crate::wire::{Node, WatchFrame, WatchStart};

/// Frames that wait for the reader. While it is full nothing is read, and QUIC's flow control holds
/// the node back.
const QUEUE: usize = 8;
/// First and longest pause before the nodes are tried again.
const PAUSE_MIN: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_millis(500);
/// How often a watch looks whether its node is still part of the cluster.
const CHECK_INTERVAL: Duration = Duration::from_millis(500);
/// A node without a leader for this long is left, if another node has one: it is cut off.
const LEADERLESS_MAX: Duration = Duration::from_secs(2);

/// What a watch brings.
#[derive(Clone, Debug)]
pub enum WatchItem {
    /// A copy of the subtree begins: all that follows until `CopyEnd` replaces what the watcher has. A
    /// copy that is followed by `Disconnected`, or by another `CopyBegin`, is void.
    CopyBegin {
        /// Its revision.
        revision: Revision,
        /// Record of the watched key itself, if it exists.
        root: Option<Record>,
    },
    /// Part of the copy: parents before their children.
    CopyPart(Vec<Node>),
    /// The copy is whole: the watcher is at its revision now.
    CopyEnd,
    /// Whole revisions in order, none twice.
    Events(Vec<Event>),
    /// Everything up to this revision was seen.
    Progress(Revision),
    /// What we may do from here on, by the cluster's policy.
    Rights(Rights),
    /// The position is older than what the node keeps (only without `copy_when_behind`); the watch
    /// ends. The oldest revision after which a watch can begin is given.
    Compacted(Revision),
    /// The connection was lost, or no node can be reached. It is tried until it works again.
    Disconnected(ClientError),
    /// It begins or goes on, from the node at this address.
    Connected(String),
    /// It could not begin, and trying again does not help: certificates do not fit. The watch ends.
    Failed(ClientError),
}

/// A stream of [`WatchItem`]s, bounded: a reader that is slow slows the node down, and a reader that
/// is very slow gets a copy in place of the events. Dropping it ends it.
pub struct Watch {
    items: mpsc::Receiver<WatchItem>,
    task: JoinHandle<()>,
}

impl Watch {
    pub(super) fn start(pool: Arc<Pool>, start: WatchStart) -> Watch {
        let (sender, items) = mpsc::channel(QUEUE);
        let task = tokio::spawn(async move {
            let mut watcher =
                Watcher { pool, position: Position::new(start), items: sender, was_connected: false };
            watcher.run().await;
        });
        Watch { items, task }
    }

    /// The next item; `None` after the watch has ended. A call that is given up loses nothing.
    pub async fn next(&mut self) -> Option<WatchItem> {
        self.items.recv().await
    }
}

impl futures::Stream for Watch {
    type Item = WatchItem;
    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<WatchItem>> {
        self.items.poll_recv(cx)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Why a stream from one node is over.
enum End {
    /// Go on at another node.
    Lost(String),
    /// The watch is over.
    Done,
}

struct Watcher {
    pool: Arc<Pool>,
    position: Position,
    items: mpsc::Sender<WatchItem>,
    was_connected: bool,
}

impl Watcher {
    async fn run(&mut self) {
        let begun = Instant::now();
        let mut left: Option<String> = None;
        let mut pause = PAUSE_MIN;
        let mut told = false;
        let mut round = 0u32;
        loop {
            let mut problems: Vec<String> = Vec::new();
            // The first time round is quick, and passes over the node that was just left.
            let (dial, but) = match round {
                0 => (FIRST_DIAL, left.as_deref()),
                _ => (DIAL_TIMEOUT, None),
            };
            round = round.saturating_add(1);
            for addr in in_order(&self.pool, but) {
                let stream = match self.open(&addr, dial).await {
                    Ok(stream) => stream,
                    Err(why) => {
                        problems.push(format!("{addr}: {why}"));
                        continue;
                    }
                };
                let opened = Instant::now();
                if self.items.send(WatchItem::Connected(addr.clone())).await.is_err() {
                    return;
                }
                self.was_connected = true;
                match self.follow(stream).await {
                    End::Done => return,
                    End::Lost(why) => {
                        tracing::debug!(%addr, %why, "the watch was lost");
                        let error = ClientError::Lost(format!("{addr}: {why}"));
                        if self.items.send(WatchItem::Disconnected(error)).await.is_err() {
                            return;
                        }
                        // A stream that lived is no reason to wait.
                        if opened.elapsed() > PAUSE_MAX {
                            pause = PAUSE_MIN;
                        }
                        // Why it cannot go on, if it cannot, is another story.
                        told = false;
                        round = 0;
                        left = Some(addr);
                        break;
                    }
                }
            }
            if !self.was_connected
                && let Some(error) = self.pool.hopeless(begun)
            {
                let _ = self.items.send(WatchItem::Failed(error)).await;
                return;
            }
            if !told && round > 1 {
                let error = ClientError::Unreachable { waited: begun.elapsed(), tried: problems.join("; ") };
                if self.items.send(WatchItem::Disconnected(error)).await.is_err() {
                    return;
                }
                told = true;
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    async fn open(&mut self, addr: &str, dial: Duration) -> Result<WatchStream, String> {
        let dialled = timeout(dial, self.pool.connection(addr)).await;
        let connection = match dialled {
            Ok(Ok(connection)) => connection,
            Ok(Err(error)) => return Err(error.to_string()),
            Err(_) => return Err("no answer in time".into()),
        };
        match timeout(DIAL_TIMEOUT, connection.watch(self.position.resume())).await {
            Ok(opened) => opened,
            Err(_) => Err("it allows no further watch".into()),
        }
    }

    /// Passes on what one node sends, until it ends.
    async fn follow(&mut self, mut stream: WatchStream) -> End {
        let addr = stream.addr().to_string();
        loop {
            let frame = {
                let connection = stream.connection();
                let read = codec::read::<WatchFrame, _>(FrameKind::Watch, &mut stream.recv);
                tokio::pin!(read);
                loop {
                    tokio::select! {
                        frame = &mut read => break frame,
                        () = self.items.closed() => return End::Done,
                        () = tokio::time::sleep(CHECK_INTERVAL) => {
                            if connection.leaderless() > LEADERLESS_MAX && self.others_lead(&addr) {
                                return End::Lost("the node is cut off from the cluster".into());
                            }
                        }
                    }
                }
            };
            let frame = match frame {
                Ok(Some(frame)) => frame,
                Ok(None) => return End::Lost("the node ended the watch".into()),
                Err(error) => return End::Lost(stream.explain(&error)),
            };
            let frame = match self.position.accept(frame) {
                Accept::Show(frame) => frame,
                Accept::Skip => continue,
                Accept::Reject(why) => return End::Lost(why),
            };
            let (item, last) = match frame {
                WatchFrame::CopyBegin { revision, root } => (WatchItem::CopyBegin { revision, root }, false),
                WatchFrame::CopyPart(nodes) => (WatchItem::CopyPart(nodes), false),
                WatchFrame::CopyEnd => (WatchItem::CopyEnd, false),
                WatchFrame::Events(events) => (WatchItem::Events(events), false),
                WatchFrame::Progress(revision) => (WatchItem::Progress(revision), false),
                WatchFrame::Compacted(oldest) => (WatchItem::Compacted(oldest), true),
                WatchFrame::Rights(rights) => (WatchItem::Rights(rights), false),
            };
            if self.items.send(item).await.is_err() || last {
                return End::Done;
            }
        }
    }

    /// Whether another node than `addr` leads.
    fn others_lead(&self, addr: &str) -> bool {
        self.pool.look_around();
        self.pool.target().borrow().as_deref().is_some_and(|leader| leader != addr)
    }
}
