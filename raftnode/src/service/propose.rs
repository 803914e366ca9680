//! Proposals on their way into the log, in groups: all that have come while a group was committed are the
//! next one. Each step of a write (a message to each member, a write to each disk, an answer) then costs
//! a group as much as it would cost one proposal.

use std::time::Duration;

use futures::StreamExt;
use quorumfs_api::outcome::Outcome;
use quorumfs_api::wire::Failure;
use quorumfs_store::{Logged, Raft, TypeConfig};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout_at};

use super::failures;

/// Proposals that may wait for the next group.
const QUEUE: usize = 65_536;
/// Proposals of one group.
const GROUP: usize = 1024;
/// Bytes of proposals after which a group is full: about what one message to a member holds.
const GROUP_BYTES: usize = 4 << 20;
/// How often everything else gets its turn before a group is closed: a datagram takes about so many tasks to
/// become a proposal.
const GATHER: usize = 3;
/// Longest time that a group keeps the next one waiting: where a quorum is far away, groups follow each
/// other without waiting for it.
const LINGER: Duration = Duration::from_millis(2);

/// One proposal that waits.
struct Waiter {
    logged: Logged,
    done: oneshot::Sender<Result<Outcome, Failure>>,
}

/// Takes proposals. Clones share the groups.
#[derive(Clone)]
pub struct Proposer {
    queue: mpsc::Sender<Waiter>,
}

impl Proposer {
    /// Starts the task that makes the groups; it ends with the last clone.
    pub fn start(raft: Raft) -> Proposer {
        let (queue, waiting) = mpsc::channel(QUEUE);
        tokio::spawn(groups(raft, waiting));
        Proposer { queue }
    }

    /// Puts a proposal into the log, and waits for what comes of it.
    ///
    /// # Errors
    /// When this node does not lead, or there are too many; or when it is not known whether it will be done.
    pub async fn propose(&self, logged: Logged) -> Result<Outcome, Failure> {
        let (done, wait) = oneshot::channel();
        self.queue.try_send(Waiter { logged, done }).map_err(|error| match error {
            TrySendError::Full(_) => Failure::Busy("too many proposals wait for the log".into()),
            TrySendError::Closed(_) => failures::stopped(),
        })?;
        // Whoever had it is gone, after it may have come into the log: nobody knows what becomes of it.
        wait.await.unwrap_or(Err(Failure::NoQuorum))
    }
}

async fn groups(raft: Raft, mut waiting: mpsc::Receiver<Waiter>) {
    let mut group = Vec::new();
    while let Some(first) = waiting.recv().await {
        // What has arrived at the socket meanwhile comes along.
        for _ in 0..GATHER {
            tokio::task::yield_now().await;
        }
        gather(first, &mut waiting, &mut group);
        let began = Instant::now();
        let (proposals, waiters): (Vec<Logged>, Vec<_>) =
            group.drain(..).map(|waiter| (waiter.logged, waiter.done)).unzip();
        match raft.client_write_many(proposals).await {
            Ok(results) => {
                let answered = tokio::spawn(answer(raft.clone(), results, waiters));
                // If it takes longer it goes on beside the next one.
                let _ = timeout_at(began + LINGER, answered).await;
            }
            Err(fatal) => {
                for done in waiters {
                    let _ = done.send(Err(failures::fatal(&fatal)));
                }
            }
        }
    }
}

/// Takes `first` and what waits behind it, up to what one group holds.
fn gather(first: Waiter, waiting: &mut mpsc::Receiver<Waiter>, group: &mut Vec<Waiter>) {
    let mut bytes = 0;
    let mut next = Some(first);
    while let Some(waiter) = next {
        bytes += waiter.logged.encoded().len();
        group.push(waiter);
        let full = group.len() >= GROUP || bytes >= GROUP_BYTES;
        next = if full { None } else { waiting.try_recv().ok() };
    }
}

/// Gives each its result, as they come; who has gone away needs none.
async fn answer<S, F>(raft: Raft, mut results: S, waiters: Vec<oneshot::Sender<Result<Outcome, Failure>>>)
where
    S: futures::Stream<Item = Result<Written, F>> + Unpin,
{
    // When the results end early, Raft has stopped, with these in its log or not: whoever still waits hears
    // of that by the drop.
    for done in waiters {
        let Some(Ok(written)) = results.next().await else { return };
        let _ = done.send(match written {
            Ok(written) => Ok(written.response),
            Err(error) => Err(failures::proposal(&raft, &error)),
        });
    }
}

type Written = openraft::raft::WriteResult<TypeConfig>;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use quorumfs_api::Timestamp;
    use quorumfs_api::command::{Command, Proposal};
    use quorumfs_api::record::LeaseId;

    use super::*;

    fn logged() -> Logged {
        let command = Command::LeaseExpire { leases: Vec::new() };
        let proposal = Proposal {
            time: Timestamp(1),
            author: "test".into(),
            node: true,
            session: None,
            value_max: 1,
            store_max: 1,
            command,
        };
        Logged::new(proposal).unwrap()
    }

    #[tokio::test]
    async fn what_was_taken_and_not_answered_may_have_been_done() {
        let (queue, mut waiting) = mpsc::channel(1);
        let proposer = Proposer { queue };
        let (outcome, ()) = tokio::join!(proposer.propose(logged()), async {
            drop(waiting.recv().await);
        });
        assert_eq!(outcome, Err(Failure::NoQuorum));
        drop(waiting);
        assert_eq!(proposer.propose(logged()).await, Err(failures::stopped()), "nobody took this one");
    }

    #[tokio::test]
    async fn too_many_are_refused() {
        let (queue, _waiting) = mpsc::channel(1);
        let proposer = Proposer { queue };
        let mut first = std::pin::pin!(proposer.propose(logged()));
        assert!(futures::poll!(&mut first).is_pending());
        assert!(matches!(proposer.propose(logged()).await, Err(Failure::Busy(_))));
    }

    #[tokio::test]
    async fn a_group_has_a_bound_and_the_order_in_which_they_came() {
        let bytes = logged().encoded().len();
        assert!(GROUP * bytes < GROUP_BYTES, "the first bound is that of the number");
        let (queue, mut waiting) = mpsc::channel(QUEUE);
        let put = |value: Vec<u8>| {
            let mut proposal = logged().proposal().clone();
            proposal.command =
                Command::LeaseExpire { leases: value.into_iter().map(|n| LeaseId(n.into())).collect() };
            Waiter { logged: Logged::new(proposal).unwrap(), done: oneshot::channel().0 }
        };
        for n in 0..GROUP + 2 {
            queue.try_send(put(vec![n as u8])).ok().unwrap();
        }
        let mut group = Vec::new();
        let first = waiting.recv().await.unwrap();
        gather(first, &mut waiting, &mut group);
        assert_eq!(group.len(), GROUP);
        for (n, waiter) in group.drain(..).enumerate() {
            let leases = vec![LeaseId((n as u8).into())];
            assert_eq!(waiter.logged.proposal().command, Command::LeaseExpire { leases });
        }
        assert_eq!((waiting.len(), group.len()), (2, 0));
        for _ in 0..6 {
            queue.try_send(put(vec![1; 1 << 20])).ok().unwrap();
        }
        let first = waiting.recv().await.unwrap();
        gather(first, &mut waiting, &mut group);
        assert_eq!(group.len(), 2 + GROUP_BYTES / (1 << 20));
    }
}
