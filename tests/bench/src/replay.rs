//! How many changes of others a mount can show as inotify events: a burst is committed, and a watcher on the mount
//! counts until it has seen them all.

use std::mem::MaybeUninit;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use bytes::Bytes;
use quorumfs_api::limits::TXN_MAX;
use rustix::fs::inotify::{self, ReadFlags, WatchFlags};

use crate::events::wait_readable;
use crate::load::VALUE_SIZE;
use crate::process::until;
use crate::quorum::{Handle, QuorumCluster};
use crate::run::{Plan, make, progress};

/// Changes in one burst, each of another file.
const BURST: usize = 20_000;
/// Transactions of a burst under way: it is committed faster than it can be shown.
const WRITERS: usize = 8;
/// How long a change may take to be found on the mount.
const SEEN_TIME: Duration = Duration::from_secs(10);

/// Changes a second, the median of the bursts.
pub struct Rates {
    /// New values of files that the kernel knows.
    pub updates: f64,
    /// New files.
    pub creates: f64,
}

/// Measures, in a store and on a mount of its own.
pub async fn measure(plan: &Plan, dir: &Path) -> anyhow::Result<Rates> {
    progress(&format!("bursts of {BURST} changes, and their events on a mount"));
    let mut quorum = QuorumCluster::start(&plan.bin, &make(dir, "replay")?, 1).await?;
    let handle = quorum.connect().await?;
    let mount = quorum.mount().await?;
    let (mut creates, mut updates) = (Vec::new(), Vec::new());
    for round in 0..plan.rounds {
        let name = format!("round{round}");
        handle.put(&format!("/{name}/first"), Bytes::new()).await?;
        let path = mount.join(&name);
        until("a directory is found on the mount", SEEN_TIME, async || {
            Ok(std::fs::metadata(path.join("first"))?)
        })
        .await?;
        creates.push(burst(&handle, &name, &path).await?);
        // What the kernel does not hold needs no event of its own.
        for key in 0..BURST {
            rustix::fs::stat(path.join(format!("key{key}")))?;
        }
        updates.push(burst(&handle, &name, &path).await?);
    }
    quorum.unmount()?;
    Ok(Rates { updates: median(updates), creates: median(creates) })
}

/// Puts all keys, in transactions as large as can be; answers how many events came a second, from the first put on.
async fn burst(handle: &Handle, name: &str, path: &Path) -> anyhow::Result<f64> {
    let watch = inotify::init(inotify::CreateFlags::CLOEXEC).context("inotify")?;
    inotify::add_watch(&watch, path, WatchFlags::CLOSE_WRITE)
        .with_context(|| format!("watching {path:?}"))?;
    let begin = Instant::now();
    let watcher = tokio::task::spawn_blocking(move || count(&watch));
    let batches: Vec<usize> = (0..BURST).step_by(TXN_MAX).collect();
    let writers = (0..WRITERS).map(|writer| {
        let batches = batches.iter().copied().skip(writer).step_by(WRITERS);
        async move {
            for first in batches {
                let keys =
                    (first..BURST.min(first + TXN_MAX)).map(|key| format!("/{name}/key{key}")).collect();
                handle.put_all(keys, Bytes::from_static(&[b'v'; VALUE_SIZE])).await?;
            }
            anyhow::Ok(())
        }
    });
    futures::future::try_join_all(writers).await?;
    let last = watcher.await??;
    Ok(BURST as f64 / (last - begin).as_secs_f64())
}

/// Reads until all of a burst has been seen; answers when.
fn count(watch: &impl std::os::fd::AsFd) -> anyhow::Result<Instant> {
    let mut space = [MaybeUninit::uninit(); 64 << 10];
    let mut events = inotify::Reader::new(watch, &mut space);
    for _ in 0..BURST {
        if events.is_buffer_empty() {
            wait_readable(watch)?;
        }
        let event = events.next().context("reading an inotify event")?;
        ensure!(!event.events().contains(ReadFlags::QUEUE_OVERFLOW), "the watcher was too slow");
    }
    Ok(Instant::now())
}

fn median(mut rates: Vec<f64>) -> f64 {
    rates.sort_by(f64::total_cmp);
    rates.get(rates.len() / 2).copied().unwrap_or(f64::NAN)
}
