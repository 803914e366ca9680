//! One change, many watchers: when has the last of them heard?

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use bytes::Bytes;
use tokio::sync::mpsc;

use crate::etcd::EtcdCluster;
use crate::etcd_api::Etcd;
use crate::quorum::QuorumCluster;
use crate::stats::Samples;

/// Watchers, over [`CONNECTIONS`] connections on both sides.
pub const WATCHERS: usize = 1000;
/// See [`WATCHERS`].
const CONNECTIONS: usize = 16;
/// Time for all to have heard.
const HEARD_TIME: Duration = Duration::from_secs(30);
/// Key that is put.
const KEY: &str = "/fan/value";

/// Puts round after round, each time until all have told of it.
async fn rounds<P: AsyncFnMut(Bytes) -> anyhow::Result<()>>(
    mut put: P,
    mut heard: mpsc::UnboundedReceiver<u64>,
    time: Duration,
) -> anyhow::Result<Samples> {
    let mut samples = Samples::default();
    let begin = Instant::now();
    let mut round = 0_u64;
    // The first round only makes sure that all of them watch.
    while begin.elapsed() < time || round < 2 {
        round += 1;
        let start = Instant::now();
        put(Bytes::from(round.to_string())).await?;
        let mut left = WATCHERS;
        while left > 0 {
            let told = tokio::time::timeout(HEARD_TIME, heard.recv()).await;
            let told = told.with_context(|| format!("{left} of {WATCHERS} watchers have not heard"))?;
            ensure!(told.is_some(), "the watchers have gone");
            left -= usize::from(told == Some(round));
        }
        if round > 1 {
            samples.push(start.elapsed());
        }
    }
    Ok(samples.took(begin.elapsed()))
}

fn number(value: &[u8]) -> Option<u64> {
    std::str::from_utf8(value).ok()?.parse().ok()
}

/// Ours.
pub async fn quorum(cluster: &QuorumCluster, time: Duration) -> anyhow::Result<Samples> {
    let (told, heard) = mpsc::unbounded_channel();
    let mut handles = Vec::new();
    for _ in 0..CONNECTIONS {
        handles.push(cluster.connect().await?);
    }
    handles[0].put(KEY, Bytes::from_static(b"0")).await?;
    let mut watchers = tokio::task::JoinSet::new();
    for nth in 0..WATCHERS {
        let (mut watch, told) = (handles[nth % CONNECTIONS].watch("/fan").await?, told.clone());
        watchers.spawn(async move {
            while let Some(values) = watch.values().await {
                for round in values.iter().filter_map(|value| number(value)) {
                    if told.send(round).is_err() {
                        return;
                    }
                }
            }
        });
    }
    let writer = handles[0].clone();
    rounds(async |value| writer.put(KEY, value).await, heard, time).await
}

/// etcd's: at the leader, as ours may be anywhere.
pub async fn etcd(cluster: &mut EtcdCluster, time: Duration) -> anyhow::Result<Samples> {
    let (told, heard) = mpsc::unbounded_channel();
    let leader = cluster.leader().await?;
    let mut connections = Vec::new();
    for _ in 0..CONNECTIONS {
        connections.push(Etcd::connect(&leader).await?);
    }
    let mut watchers = tokio::task::JoinSet::new();
    for nth in 0..WATCHERS {
        let mut watch = connections[nth % CONNECTIONS].watch("/fan/", "/fan0").await?;
        let created = tokio::time::timeout(HEARD_TIME, watch.message()).await??;
        ensure!(created.is_some_and(|answer| answer.is_creation()), "etcd did not open a watch");
        let told = told.clone();
        watchers.spawn(async move {
            while let Ok(Some(answer)) = watch.message().await {
                for round in answer.values().filter_map(number) {
                    if told.send(round).is_err() {
                        return;
                    }
                }
            }
        });
    }
    let mut writer = Etcd::connect(&leader).await?;
    rounds(async |value| writer.put(Bytes::from_static(KEY.as_bytes()), value).await, heard, time).await
}
