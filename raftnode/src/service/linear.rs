//! Linearizable reads by ReadIndex, many for the price of one: all that wait share a round in which a
//! quorum confirms this leader.
//!
//! A read may only share a round that began after it came, so requests that arrive while one is under
//! way wait for the next.

use std::time::Duration;

use openraft::errors::{LinearizableReadError, RaftError};
use openraft::raft::ReadPolicy;
use quorumfs_api::bug::{Bug, planted};
use quorumfs_api::wire::Failure;
use quorumfs_store::Raft;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::failures;
use crate::progress;

/// Reads that may wait for a round to begin.
const QUEUE: usize = 65_536;
/// Between two rounds that found no quorum.
const PAUSE: Duration = Duration::from_millis(20);

/// One read that waits.
struct Waiter {
    until: Instant,
    done: oneshot::Sender<Result<(), Failure>>,
}

/// Asks for rounds. Clones share them.
#[derive(Clone)]
pub struct Linear {
    queue: mpsc::Sender<Waiter>,
}

impl Linear {
    /// Starts the task that runs the rounds; it ends with the last clone.
    pub fn start(raft: Raft) -> Linear {
        let (queue, waiting) = mpsc::channel(QUEUE);
        tokio::spawn(rounds(raft, waiting));
        Linear { queue }
    }

    /// Waits until this node has applied all that was committed anywhere when this was called.
    ///
    /// # Errors
    /// When it does not lead, or no quorum answers until then.
    pub async fn read(&self, until: Instant) -> Result<(), Failure> {
        let (done, wait) = oneshot::channel();
        if self.queue.try_send(Waiter { until, done }).is_err() {
            return Err(Failure::Busy("too many reads wait for a quorum".into()));
        }
        wait.await.unwrap_or_else(|_| Err(failures::stopped()))
    }
}

async fn rounds(raft: Raft, mut waiting: mpsc::Receiver<Waiter>) {
    let mut waiters = Vec::new();
    loop {
        if waiters.is_empty() {
            match waiting.recv().await {
                Some(waiter) => waiters.push(waiter),
                None => return,
            }
        }
        while let Ok(waiter) = waiting.try_recv() {
            waiters.push(waiter);
        }
        if planted(Bug::StaleRead) && progress::now(&raft.server_metrics()).state.is_leader() {
            answer(std::mem::take(&mut waiters), &Ok(()));
            continue;
        }
        match raft.get_read_linearizer(ReadPolicy::ReadIndex).await {
            Ok(linearizer) => {
                let (raft, ready) = (raft.clone(), std::mem::take(&mut waiters));
                // Applying may lag behind; the next round need not wait for it.
                tokio::spawn(async move {
                    let until = ready.iter().map(|waiter| waiter.until).max().unwrap_or_else(Instant::now);
                    let left = until.saturating_duration_since(Instant::now());
                    let result = match linearizer.try_await_ready(&raft, Some(left)).await {
                        Ok(Ok(_)) => Ok(()),
                        Ok(Err(_)) => Err(Failure::NoQuorum),
                        Err(fatal) => Err(failures::fatal(&fatal)),
                    };
                    answer(ready, &result);
                });
            }
            Err(RaftError::APIError(LinearizableReadError::QuorumNotEnough(_))) => {
                let now = Instant::now();
                let (late, patient) =
                    std::mem::take(&mut waiters).into_iter().partition(|w: &Waiter| w.until <= now);
                answer(late, &Err(Failure::NoQuorum));
                waiters = patient;
                if !waiters.is_empty() {
                    tokio::time::sleep(PAUSE).await;
                }
            }
            Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(forward))) => {
                answer(std::mem::take(&mut waiters), &Err(failures::not_leader(&raft, &forward)));
            }
            Err(RaftError::Fatal(fatal)) => {
                answer(std::mem::take(&mut waiters), &Err(failures::fatal(&fatal)))
            }
        }
    }
}

fn answer(waiters: Vec<Waiter>, result: &Result<(), Failure>) {
    for waiter in waiters {
        // Who has gone away needs no answer.
        let _ = waiter.done.send(result.clone());
    }
}
