//! What the disk itself can do: the floor under every durable write.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;

use crate::stats::Samples;

/// One block, as a write-ahead log would append for a small entry.
const BLOCK: usize = 4096;

/// Appends blocks to a file in `dir`, each followed by fdatasync, for this long.
pub fn append_and_sync(dir: &Path, time: Duration) -> anyhow::Result<Samples> {
    let path = dir.join("raw-append");
    let mut file = File::create(&path).with_context(|| format!("creating {path:?}"))?;
    let block = [0xa5_u8; BLOCK];
    let mut samples = Samples::default();
    let begin = Instant::now();
    while begin.elapsed() < time {
        let start = Instant::now();
        file.write_all(&block)
            .and_then(|()| file.sync_data())
            .with_context(|| format!("writing {path:?}"))?;
        samples.push(start.elapsed());
    }
    let samples = samples.took(begin.elapsed());
    std::fs::remove_file(&path).with_context(|| format!("removing {path:?}"))?;
    Ok(samples)
}
