//! How much of the log stays behind a snapshot.
//!
//! openraft would keep a fixed number of entries. Where clients write that many while a member takes a snapshot, what follows the
//! snapshot is gone by the time it has it: it gets the next one, and the one after that, and is never there. So what a member
//! needs that answers, or takes a snapshot, stays, up to a bound. (etcd does not compact its Raft log either while a snapshot is
//! under way.)

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use openraft::RaftMetrics;
use openraft::async_runtime::Instant as _;
use parking_lot::Mutex;
use quorumfs_store::{NodeId, TypeConfig};
use tokio::time::Instant;

use crate::progress;
use crate::service::Context;

/// How often it is looked at what may go.
const PERIOD: Duration = Duration::from_millis(200);
/// Entries that have to be many before any of them go.
const BATCH: u64 = 256;
/// So many times as much as the log holds anyway, between two snapshots and behind the older one, is kept for members.
const HOLD: u64 = 20;
/// A member that has not answered for this long is not waited for, nor one whose snapshot has ended for longer than this.
const ANSWERING: Duration = Duration::from_secs(10);

/// The snapshots that are being sent: what follows them is needed next. Clones share them.
#[derive(Clone, Default)]
pub struct Sending(Arc<Mutex<HashMap<NodeId, Sent>>>);

/// Up to where a snapshot brings a member.
struct Sent {
    index: u64,
    /// When the sending has ended; for a moment longer openraft does not know what the member has.
    ended: Arc<OnceLock<Instant>>,
}

/// A snapshot that is being sent, until it is dropped.
pub struct Transfer(Arc<OnceLock<Instant>>);

impl Sending {
    /// A snapshot that goes up to entry `index` is sent to `peer`.
    pub fn begin(&self, peer: NodeId, index: u64) -> Transfer {
        let ended = Arc::default();
        self.0.lock().insert(peer, Sent { index, ended: Arc::clone(&ended) });
        Transfer(ended)
    }

    /// Up to where the members are brought by their snapshots.
    fn now(&self) -> HashMap<NodeId, u64> {
        let mut sending = self.0.lock();
        sending.retain(|_, sent| sent.ended.get().is_none_or(|ended| ended.elapsed() < ANSWERING));
        sending.iter().map(|(peer, sent)| (*peer, sent.index)).collect()
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        // Only this one's: the next may have begun.
        let _ = self.0.set(Instant::now());
    }
}

/// What there is to decide by.
struct Picture {
    /// The newest snapshot.
    snapshot: u64,
    /// What is gone already.
    purged: u64,
    /// The last entry of each member that is brought up.
    members: Vec<u64>,
}

impl Picture {
    fn new(metrics: &RaftMetrics<TypeConfig>, sending: &HashMap<NodeId, u64>) -> Picture {
        let purged = metrics.purged.map_or(0, |at| at.index);
        let answers = |peer| {
            let heard = metrics.heartbeat.as_ref().and_then(|all| all.get(peer).copied().flatten());
            heard.is_some_and(|heard| heard.elapsed() < ANSWERING)
        };
        let members = metrics.replication.iter().flatten().filter(|(peer, _)| **peer != metrics.id);
        let members = members.filter_map(|(peer, matched)| {
            let sent = sending.get(peer).copied();
            let has = matched.map_or(0, |at| at.index).max(sent.unwrap_or(0));
            // Who lacks what is gone will get a snapshot, and needs nothing yet.
            ((sent.is_some() || answers(peer)) && has >= purged).then_some(has)
        });
        Picture { snapshot: metrics.snapshot.map_or(0, |at| at.index), purged, members: members.collect() }
    }

    /// Up to which entry the log may go, if it is worth it; and whether a member needs some of that.
    fn decide(&self, keep: u64, hold: u64) -> Option<(u64, bool)> {
        let usual = self.snapshot.saturating_sub(keep);
        let needed = self.members.iter().copied().min().unwrap_or(usual);
        let upto = usual.min(needed.max(usual.saturating_sub(hold)));
        (upto >= self.purged + BATCH).then_some((upto, upto > needed))
    }
}

/// Lets go of what nobody needs, until the node stops.
pub async fn run(context: Arc<Context>, sending: Sending) {
    let keep = context.config.log_keep;
    let hold = context.config.snapshot_every.saturating_add(keep).saturating_mul(HOLD);
    loop {
        tokio::select! {
            () = tokio::time::sleep(PERIOD) => {}
            () = context.stop.raised() => return,
        }
        let picture = Picture::new(&progress::now(&context.raft.metrics()), &sending.now());
        let Some((upto, needed)) = picture.decide(keep, hold) else { continue };
        if needed {
            tracing::warn!(
                "a member is more than {hold} log entries behind, and gets a snapshot: it takes the log slower than \
                 clients write"
            );
        }
        tracing::info!("letting go of the log up to entry {upto}");
        if context.raft.trigger().purge_log(upto).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decide(snapshot: u64, purged: u64, members: &[u64]) -> Option<(u64, bool)> {
        Picture { snapshot, purged, members: members.to_vec() }.decide(1_000, 20_000)
    }

    #[test]
    fn what_nobody_needs_goes_but_for_what_is_always_kept() {
        assert_eq!(decide(0, 0, &[]), None, "there is no snapshot");
        assert_eq!(decide(900, 0, &[]), None);
        assert_eq!(decide(5_000, 0, &[]), Some((4_000, false)));
        assert_eq!(decide(5_000, 3_900, &[]), None, "too little to be worth it");
        assert_eq!(decide(5_000, 0, &[5_100, 5_200]), Some((4_000, false)), "they have it");
    }

    #[test]
    fn what_a_member_needs_stays_but_not_without_end() {
        assert_eq!(decide(5_000, 0, &[5_100, 2_000]), Some((2_000, false)));
        assert_eq!(decide(5_000, 2_000, &[2_000]), None);
        assert_eq!(decide(50_000, 2_000, &[2_000, 50_000]), Some((29_000, true)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_snapshot_that_was_sent_counts_until_the_member_is_known_to_have_it() {
        let sending = Sending::default();
        let first = sending.begin(4, 700);
        tokio::time::advance(ANSWERING * 3).await;
        assert_eq!(sending.now(), HashMap::from([(4, 700)]));
        drop(first);
        assert_eq!(sending.now(), HashMap::from([(4, 700)]));
        tokio::time::advance(ANSWERING).await;
        assert_eq!(sending.now(), HashMap::new());
        // The end of one is not that of the next.
        let second = sending.begin(4, 800);
        let _third = sending.begin(4, 900);
        drop(second);
        tokio::time::advance(ANSWERING).await;
        assert_eq!(sending.now(), HashMap::from([(4, 900)]));
    }
}
