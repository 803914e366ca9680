//! How long a change takes to reach a program on another host: from `close` on one mount to the inotify
//! event on the other, and, for etcd, from the put to the watch.

use std::fs::OpenOptions;
use std::io::Write;
use std::mem::MaybeUninit;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use rustix::fs::inotify;

use crate::etcd::EtcdCluster;
use crate::etcd_api::Etcd;
use crate::stats::Samples;

/// An event that does not come within this time is lost.
const EVENT_TIME: Duration = Duration::from_secs(10);
/// The directory for it, on the mounts and in etcd.
const DIRECTORY: &str = "events";

/// Overwrites a file on the mount `from` again and again, each time waiting for CLOSE_WRITE on `to`.
pub fn between_mounts(from: &Path, to: &Path, time: Duration) -> anyhow::Result<Samples> {
    let (from, to) = (from.join(DIRECTORY), to.join(DIRECTORY));
    std::fs::create_dir_all(&from).with_context(|| format!("making {from:?}"))?;
    let file = from.join("value");
    std::fs::write(&file, "at first")?;
    let deadline = Instant::now() + EVENT_TIME;
    while !to.join("value").exists() {
        ensure!(Instant::now() < deadline, "{:?} did not appear on the other mount", file);
    }
    let watch = inotify::init(inotify::CreateFlags::CLOEXEC).context("inotify")?;
    inotify::add_watch(&watch, &to, inotify::WatchFlags::CLOSE_WRITE)
        .with_context(|| format!("watching {to:?}"))?;
    let mut space = [MaybeUninit::uninit(); 4096];
    let mut events = inotify::Reader::new(&watch, &mut space);
    let mut samples = Samples::default();
    let begin = Instant::now();
    // The first write is left out: the file appeared just now, and its own event may still be on its way.
    let mut warm = false;
    while begin.elapsed() < time || !warm {
        // Each has a text of its own: an event that is left over must not pass for the one that is waited for.
        let text = if warm { samples.len().to_string() } else { "warm".to_string() };
        let mut handle = OpenOptions::new().write(true).truncate(true).open(&file)?;
        handle.write_all(text.as_bytes())?;
        let start = Instant::now();
        drop(handle);
        loop {
            wait_readable(&watch)?;
            events.next().context("reading an inotify event")?;
            // An event of an earlier write may come late: it is over when this one's value is read.
            if std::fs::read_to_string(to.join("value"))? == text {
                break;
            }
        }
        if warm {
            samples.push(start.elapsed());
        }
        warm = true;
    }
    Ok(samples.took(begin.elapsed()))
}

/// Waits for the next event; fails when none comes.
pub fn wait_readable(watch: &impl std::os::fd::AsFd) -> anyhow::Result<()> {
    let mut poll = [rustix::event::PollFd::new(watch, rustix::event::PollFlags::IN)];
    let timeout = rustix::event::Timespec { tv_sec: EVENT_TIME.as_secs() as i64, tv_nsec: 0 };
    match rustix::event::poll(&mut poll, Some(&timeout)) {
        Ok(0) => bail!("no inotify event within {EVENT_TIME:?}"),
        Ok(_) => Ok(()),
        Err(e) => Err(e).context("waiting for an inotify event"),
    }
}

/// Puts a key at the leader again and again, each time waiting for it on a watch at a follower.
pub async fn through_etcd(cluster: &mut EtcdCluster, time: Duration) -> anyhow::Result<Samples> {
    let mut writer = Etcd::connect(&cluster.leader().await?).await?;
    let mut reader = Etcd::connect(&cluster.follower().await?).await?;
    let mut watch = reader.watch("/events/", "/events0").await?;
    let created = tokio::time::timeout(EVENT_TIME, watch.message()).await??;
    ensure!(created.is_some_and(|answer| answer.is_creation()), "etcd did not open the watch");
    let mut samples = Samples::default();
    let begin = Instant::now();
    while begin.elapsed() < time {
        let text = samples.len().to_string();
        let start = Instant::now();
        let put = writer.put(Bytes::from_static(b"/events/value"), Bytes::from(text.clone()));
        let seen = async {
            loop {
                let Some(answer) = watch.message().await? else { bail!("etcd ended the watch") };
                if answer.values().any(|value| value == text.as_bytes()) {
                    return Ok(start.elapsed());
                }
            }
        };
        let ((), elapsed) = tokio::time::timeout(EVENT_TIME, futures::future::try_join(put, seen)).await??;
        samples.push(elapsed);
    }
    Ok(samples.took(begin.elapsed()))
}
