//! The watches of one connection, in one task. As tasks of their own, each would have the connection send a packet
//! before the next has written its frame; so, what they write for one change leaves together.

use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use tokio::sync::mpsc;

/// Takes watches in. Once it is dropped no more come, and those that are there go on to their ends.
pub struct Group(mpsc::UnboundedSender<BoxFuture<'static, ()>>);

impl Group {
    /// A group without watches yet.
    pub fn start() -> Group {
        let (group, watches) = mpsc::unbounded_channel();
        tokio::spawn(run(watches));
        Group(group)
    }

    /// Serves this one too. How many there can be is for who calls.
    pub fn add(&self, watch: impl Future<Output = ()> + Send + 'static) {
        // The task ends only after this sender is gone.
        let _ = self.0.send(Box::pin(watch));
    }
}

async fn run(mut coming: mpsc::UnboundedReceiver<BoxFuture<'static, ()>>) {
    let mut watches = FuturesUnordered::new();
    loop {
        tokio::select! {
            watch = coming.recv() => match watch {
                Some(watch) => watches.push(watch),
                None => break,
            },
            Some(()) = watches.next() => {}
        }
    }
    while watches.next().await.is_some() {}
}
