//! What a file costs on the mount, and what it costs on tmpfs.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;

use crate::stats::Samples;

/// Size in bytes of the file that is read.
const SIZE: usize = 256;
/// After this long without a write a file is at rest: longer than a mount takes it for busy.
const AT_REST: Duration = Duration::from_secs(3);
/// Calls between two looks at the clock, where a call is about as cheap as that look.
const BATCH: u32 = 256;

/// A system call or a few, on one file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// `stat`.
    Stat,
    /// `pread` of an open file.
    Pread,
    /// `open`, `read`, `close`.
    OpenReadClose,
    /// `open` with `O_CREAT | O_TRUNC`, `write`, `close`: what `echo v > f` does in a shell.
    Echo,
}

/// Makes the file that the others read, and waits until it is at rest: a mount reads a file that was written
/// just now past the kernel's cache.
pub fn prepare(dir: &Path) -> anyhow::Result<()> {
    let path = dir.join("file");
    std::fs::write(&path, [b'v'; SIZE]).with_context(|| format!("writing {path:?}"))?;
    std::thread::sleep(AT_REST);
    std::fs::read(&path).map(drop).with_context(|| format!("reading {path:?}"))
}

/// Does it for this long. Cheap calls are timed in batches, so their percentiles are those of batches.
pub fn measure(dir: &Path, access: Access, time: Duration) -> anyhow::Result<Samples> {
    let path = dir.join("file");
    let mut samples = Samples::default();
    let begin = Instant::now();
    match access {
        Access::Stat => {
            while begin.elapsed() < time {
                batch(&mut samples, || Ok(rustix::fs::stat(&path).map(drop)?))?;
            }
        }
        Access::Pread => {
            let file = File::open(&path)?;
            let mut buffer = [0; SIZE];
            while begin.elapsed() < time {
                batch(&mut samples, || file.read_at(&mut buffer, 0).map(drop))?;
            }
        }
        Access::OpenReadClose => {
            let mut buffer = [0; SIZE];
            while begin.elapsed() < time {
                let start = Instant::now();
                let mut file = File::open(&path)?;
                file.read(&mut buffer).map(drop)?;
                drop(file);
                samples.push(start.elapsed());
            }
        }
        Access::Echo => {
            let path = dir.join("echo");
            while begin.elapsed() < time {
                let start = Instant::now();
                let mut file = OpenOptions::new().write(true).create(true).truncate(true).open(&path)?;
                file.write_all(b"v\n")?;
                drop(file);
                samples.push(start.elapsed());
            }
        }
    }
    Ok(samples.took(begin.elapsed()))
}

fn batch(samples: &mut Samples, mut call: impl FnMut() -> std::io::Result<()>) -> std::io::Result<()> {
    let start = Instant::now();
    for _ in 0..BATCH {
        call()?;
    }
    samples.push(start.elapsed() / BATCH);
    Ok(())
}
