//! Large trees on a mount: how long it takes to mount them, what a key takes in the memory of `fsd`, what walking
//! them costs, and whether one key is slower among a million than among few.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, ensure};
use bytes::Bytes;

use crate::files::{self, Access};
use crate::load::VALUE_SIZE;
use crate::process::resident;
use crate::quorum::{Handle, QuorumCluster};
use crate::run::{Plan, make, progress};

/// Keys of the trees, one after the other.
const SIZES: [u64; 3] = [10_000, 100_000, 1_000_000];
/// Those of a short run.
const SIZES_QUICK: [u64; 2] = [10_000, 100_000];
/// Keys in each directory: a million of them lie in 50,000.
const IN_DIRECTORY: u64 = 20;
/// Keys in the one directory that is listed.
const LISTED: u64 = 10_000;
/// What `find` walks: objects, with their directories.
const WALKED: u64 = 100_000;
/// Directories under one: `find` walks the first of these groups.
const GROUP: u64 = WALKED / (IN_DIRECTORY + 1);
/// Commands in one transaction of the filling.
const BATCH: u64 = 100;
/// Transactions under way while it is filled.
const WRITERS: u64 = 8;

/// What was found with one tree.
pub struct Tree {
    /// Keys that it has.
    pub keys: u64,
    /// From the start of `fsd` until the mount answers, in seconds.
    pub mount: f64,
    /// Bytes of memory for each key, beyond the value.
    pub bytes: f64,
    /// `ls` of a directory with [`LISTED`] keys, the first time, in milliseconds.
    pub list: f64,
    /// `find` of [`WALKED`] objects, the first time, in milliseconds; `None` where there are fewer.
    pub walk: Option<f64>,
    /// `stat`, `open` + `read` + `close`, and `echo v > f` of one key: medians in microseconds.
    pub one: [f64; 3],
}

/// Measures trees that grow.
pub async fn measure(plan: &Plan, dir: &Path) -> anyhow::Result<Vec<Tree>> {
    let mut quorum = QuorumCluster::start(&plan.bin, &make(dir, "trees")?, 1).await?;
    let handle = quorum.connect().await?;
    fill(&handle, 0..LISTED, |key| format!("/listed/key{key}")).await?;
    handle.put("/one/file", Bytes::from_static(b"v")).await?;
    handle.put("/empty/file", Bytes::from_static(b"v")).await?;
    // What fsd takes with next to nothing in it is no key's.
    quorum.mount_at("/empty").await?;
    let base = resident(&quorum.mount_processes())?;
    quorum.unmount()?;

    let mut trees = Vec::new();
    let mut filled = 0;
    for keys in if plan.quick { &SIZES_QUICK[..] } else { &SIZES[..] } {
        progress(&format!("a tree of {keys} keys"));
        // Those of the listed directory are keys as well.
        let wanted = keys - LISTED;
        fill(&handle, filled..wanted, path).await?;
        filled = wanted;
        trees.push(tree(plan, &mut quorum, *keys, base).await?);
    }
    Ok(trees)
}

fn path(key: u64) -> String {
    let dir = key / IN_DIRECTORY;
    format!("/tree/group{}/dir{dir}/key{key}", dir / GROUP)
}

async fn tree(plan: &Plan, quorum: &mut QuorumCluster, keys: u64, base: f64) -> anyhow::Result<Tree> {
    let begin = Instant::now();
    let root = quorum.mount_at("/").await?;
    rustix::fs::stat(root.join("one/file")).context("the last of the tree")?;
    let mount = begin.elapsed().as_secs_f64();
    let memory = (resident(&quorum.mount_processes())? - base) * f64::from(1 << 20);
    let bytes = memory / keys as f64 - VALUE_SIZE as f64;
    let list = output(Command::new("ls").arg(root.join("listed")), LISTED)?;
    let walk = (keys - LISTED >= WALKED)
        .then(|| output(Command::new("find").arg(root.join("tree/group0")), GROUP * (IN_DIRECTORY + 1) + 1))
        .transpose()?;
    let mut one = [f64::NAN; 3];
    files::prepare(&root.join("one"))?;
    for (found, access) in one.iter_mut().zip([Access::Stat, Access::OpenReadClose, Access::Echo]) {
        let (dir, time) = (root.join("one"), plan.time);
        let samples = tokio::task::spawn_blocking(move || files::measure(&dir, access, time)).await??;
        *found = samples.summary().p50_ms * 1e3;
    }
    quorum.unmount()?;
    Ok(Tree { keys, mount, bytes, list, walk, one })
}

/// Runs a command that prints that many lines; answers how long it took, in milliseconds.
fn output(command: &mut Command, lines: u64) -> anyhow::Result<f64> {
    let begin = Instant::now();
    let output = command.stderr(Stdio::inherit()).output().with_context(|| format!("{command:?}"))?;
    let took = begin.elapsed().as_secs_f64() * 1e3;
    let printed = output.stdout.iter().filter(|byte| **byte == b'\n').count() as u64;
    ensure!(output.status.success() && printed == lines, "{command:?} printed {printed} lines, not {lines}");
    Ok(took)
}

/// Puts keys, many in one transaction.
async fn fill(handle: &Handle, keys: std::ops::Range<u64>, path: fn(u64) -> String) -> anyhow::Result<()> {
    let writers = (0..WRITERS).map(|writer| {
        let (handle, keys) = (handle.clone(), keys.clone());
        tokio::spawn(async move {
            let first = keys.start + writer * BATCH;
            for begin in (first..keys.end).step_by((WRITERS * BATCH) as usize) {
                let batch = (begin..keys.end.min(begin + BATCH)).map(path).collect();
                handle.put_all(batch, Bytes::from_static(&[b'v'; VALUE_SIZE])).await?;
            }
            anyhow::Ok(())
        })
    });
    for writer in futures::future::join_all(writers).await {
        writer??;
    }
    Ok(())
}
