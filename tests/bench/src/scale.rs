//! A large store: what it takes in memory, how fast it is back after a kill, and what stays on disk.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;

use crate::etcd::EtcdCluster;
use crate::load::{self, Target};
use crate::process::resident;
use crate::quorum::QuorumCluster;
use crate::run::{Plan, connect_etcd, connect_quorum, make, progress};

/// Keys of the large store.
pub const KEYS: u64 = 1_000_000;
/// Keys of the large store in a short run.
pub const KEYS_QUICK: u64 = 100_000;
/// Puts after which the disk is looked at, over [`load::KEYS`] keys.
pub const PUTS: u64 = 200_000;
/// Writes under way while a store is filled.
const WRITERS: u64 = 256;
/// A node that is not back after this long is not coming back.
const BACK_TIME: Duration = Duration::from_secs(300);

/// What was found; ours first, then etcd's.
pub struct Scale {
    /// Keys that the store had.
    pub keys: u64,
    /// Resident memory in MiB.
    pub memory: (f64, f64),
    /// From the start of the process to the first linearizable read, in seconds.
    pub restart: f64,
    /// On disk in MiB after [`PUTS`] puts and compaction.
    pub disk: (f64, f64),
}

const MIB: f64 = (1 << 20) as f64;

/// Measures one node of each side.
pub async fn measure(plan: &Plan, dir: &Path) -> anyhow::Result<Scale> {
    let keys = if plan.quick { KEYS_QUICK } else { KEYS };
    let (ours_disk, theirs_disk) = disk(plan, dir).await?;

    progress(&format!("one node with {keys} keys of {} bytes", load::VALUE_SIZE));
    let mut quorum = QuorumCluster::start(&plan.bin, &make(dir, "large")?, 1).await?;
    let targets = connect_quorum(&quorum, load::CONNECTIONS_MAX).await?;
    fill(&targets, keys, keys).await?;
    let ours = resident(&quorum.processes())?;
    progress("its restart after a kill");
    drop(targets);
    let start = Instant::now();
    quorum.kill(1)?;
    quorum.start_again(1)?;
    let handle = quorum.connect_within(BACK_TIME).await?;
    handle.get("/bench/00000007", false).await.context("a read after the restart")?;
    let restart = start.elapsed().as_secs_f64();
    drop((handle, quorum));

    progress("the same in one etcd");
    let mut etcd = EtcdCluster::start_one(&make(dir, "large-etcd")?).await?;
    let targets = connect_etcd(&mut etcd, load::CONNECTIONS_MAX).await?;
    fill(&targets, keys, keys).await?;
    let theirs = resident(&etcd.processes())?;
    Ok(Scale { keys, memory: (ours, theirs), restart, disk: (ours_disk, theirs_disk) })
}

async fn disk(plan: &Plan, dir: &Path) -> anyhow::Result<(f64, f64)> {
    progress(&format!("what {PUTS} puts leave on disk"));
    let (ours, theirs) = (make(dir, "puts")?, make(dir, "puts-etcd")?);
    let quorum = QuorumCluster::start(&plan.bin, &ours, 1).await?;
    let targets = connect_quorum(&quorum, load::CONNECTIONS_MAX).await?;
    fill(&targets, PUTS, load::KEYS).await?;
    quorum.connect().await?.snapshot().await?;
    drop((targets, quorum));
    let mut etcd = EtcdCluster::start_one(&theirs).await?;
    let targets = connect_etcd(&mut etcd, load::CONNECTIONS_MAX).await?;
    fill(&targets, PUTS, load::KEYS).await?;
    if let Target::Etcd(etcd) = &mut targets[0].clone() {
        etcd.compact().await?;
    }
    drop((targets, etcd));
    Ok((allocated(&ours.join("n1"))? / MIB, allocated(&theirs.join("e1"))? / MIB))
}

/// Puts `puts` times, over `keys` keys in turn.
async fn fill(targets: &[Target], puts: u64, keys: u64) -> anyhow::Result<()> {
    let writers = (0..WRITERS).map(|first| {
        let mut target = targets[first as usize % targets.len()].clone();
        tokio::spawn(async move {
            for put in (first..puts).step_by(WRITERS as usize) {
                target.put(put % keys).await?;
            }
            anyhow::Ok(())
        })
    });
    for writer in futures::future::join_all(writers).await {
        writer??;
    }
    Ok(())
}

/// Bytes that the files under `dir` really take on disk.
fn allocated(dir: &Path) -> anyhow::Result<f64> {
    let mut bytes = 0.0;
    for entry in std::fs::read_dir(dir).with_context(|| format!("reading {dir:?}"))? {
        let entry = entry?;
        let meta = entry.metadata()?;
        bytes += if meta.is_dir() { allocated(&entry.path())? } else { meta.blocks() as f64 * 512.0 };
    }
    Ok(bytes)
}
