//! The leader is killed: how long until a write is acknowledged again?

use std::time::{Duration, Instant};

use anyhow::Context;
use bytes::Bytes;

use crate::quorum::QuorumCluster;
use crate::stats::Samples;

/// Writes before each kill: the client is known to talk to the leader then.
const WARM_WRITES: usize = 5;
/// How long the node that was killed has to come back and catch up.
const BACK_TIME: Duration = Duration::from_secs(60);

/// Kills the leader so many times (SIGKILL), and measures from the kill to the next acknowledged write of a
/// client that had a write under way or just done. The killed node comes back before the next kill.
pub async fn kills(cluster: &mut QuorumCluster, count: usize) -> anyhow::Result<Samples> {
    let handle = cluster.connect().await?;
    let mut samples = Samples::default();
    let begin = Instant::now();
    for kill in 0..count {
        for _ in 0..WARM_WRITES {
            handle.put("/failover", Bytes::from(kill.to_string())).await?;
        }
        let leader = handle.leader().await?;
        let start = Instant::now();
        cluster.kill(leader)?;
        let put = handle.put("/failover", Bytes::from(kill.to_string()));
        put.await.with_context(|| format!("after kill {kill} nobody took a write"))?;
        samples.push(start.elapsed());
        cluster.start_again(leader)?;
        cluster.until_caught_up(&handle, leader, BACK_TIME).await?;
    }
    Ok(samples.took(begin.elapsed()))
}
