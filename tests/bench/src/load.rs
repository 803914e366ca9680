//! Closed-loop load: each client has one request under way, and sends the next when it is answered.

use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::etcd_api::Etcd;
use crate::quorum::Handle;
use crate::stats::Samples;

/// Connections that the clients share at most; the same for both sides.
pub const CONNECTIONS_MAX: usize = 16;
/// Size of a value in bytes.
pub const VALUE_SIZE: usize = 256;
/// Different keys that are written, over and over.
pub const KEYS: u64 = 10_000;

/// Something that is asked in the same way on both sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// A put of [`VALUE_SIZE`] bytes.
    Put,
    /// A get through the leader, which makes sure that it still leads.
    GetLinearizable,
    /// A get of what the node has.
    GetSerializable,
}

/// One connection to either side.
#[derive(Clone)]
pub enum Target {
    /// Ours.
    Quorum(Handle),
    /// The other.
    Etcd(Etcd),
}

impl Target {
    /// Puts the value of a key with this number.
    pub async fn put(&mut self, key: u64) -> anyhow::Result<()> {
        self.perform(Operation::Put, key).await
    }

    async fn perform(&mut self, operation: Operation, key: u64) -> anyhow::Result<()> {
        let name = format!("/bench/{key:08}");
        match self {
            Target::Quorum(handle) => match operation {
                Operation::Put => handle.put(&name, value()).await.map(drop),
                Operation::GetLinearizable => handle.get(&name, false).await.map(drop),
                Operation::GetSerializable => handle.get(&name, true).await.map(drop),
            },
            Target::Etcd(etcd) => match operation {
                Operation::Put => etcd.put(name.into(), value()).await,
                Operation::GetLinearizable => etcd.get(name.into(), false).await.map(drop),
                Operation::GetSerializable => etcd.get(name.into(), true).await.map(drop),
            },
        }
    }
}

fn value() -> Bytes {
    Bytes::from_static(&[b'v'; VALUE_SIZE])
}

/// How many connections `clients` share.
pub fn connections(clients: usize) -> usize {
    clients.clamp(1, CONNECTIONS_MAX)
}

/// Writes `keys` keys, so that the gets have something to find.
pub async fn fill(target: &Target, keys: u64) -> anyhow::Result<()> {
    let writers = (0..64_u64).map(|first| {
        let mut target = target.clone();
        async move {
            for key in (first..keys).step_by(64) {
                target.perform(Operation::Put, key).await?;
            }
            anyhow::Ok(())
        }
    });
    futures::future::try_join_all(writers).await?;
    Ok(())
}

/// How many keys [`fill`] has to write for gets.
pub const FILLED: u64 = 1000;

/// Runs `clients` clients over `targets` for this long.
pub async fn run(
    targets: &[Target],
    operation: Operation,
    clients: usize,
    time: Duration,
) -> anyhow::Result<Samples> {
    let begin = Instant::now();
    let tasks: Vec<_> = (0..clients)
        .map(|client| {
            let mut target = targets[client % targets.len()].clone();
            tokio::spawn(async move {
                let mut samples = Samples::default();
                // A small generator of one's own: no lock, and the same keys on both sides.
                let mut state = client as u64 + 1;
                while begin.elapsed() < time {
                    state =
                        state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    let range = if operation == Operation::Put { KEYS } else { FILLED };
                    let start = Instant::now();
                    match target.perform(operation, (state >> 33) % range).await {
                        Ok(()) => samples.push(start.elapsed()),
                        Err(_) => samples.fail(),
                    }
                }
                samples
            })
        })
        .collect();
    let mut all = Samples::default();
    for task in tasks {
        all.join(task.await?);
    }
    Ok(all.took(begin.elapsed()))
}
