//! A lease does not end before its time: not before its time to live has passed since its client asked for
//! it, or for a renewal, and was answered. (That it does end, the end of a run waits for.)

use std::collections::BTreeMap;

use openraft::EntryPayload;
use quorumfs_api::command::Command;

use super::Invariant;
use crate::node::TRUE_SPEED;
use crate::record::{Millis, Seen};

/// Clocks run up to 3 % fast, and count whole milliseconds.
const SPEED_MAX: u64 = TRUE_SPEED + 30;

#[derive(Default)]
struct Lease {
    ttl: Millis,
    /// When its client asked last, of what was answered.
    asked: Millis,
    /// When it was seen to end.
    ended: Option<Millis>,
}

/// See the module.
#[derive(Default)]
pub struct Leases {
    leases: BTreeMap<u64, Lease>,
}

impl Lease {
    fn check(&self, id: u64) -> Result<(), String> {
        let shortest = (self.ttl * TRUE_SPEED / SPEED_MAX).saturating_sub(2);
        match self.ended {
            Some(ended) if ended < self.asked + shortest => Err(format!(
                "lease {id} has ended {} ms after its client asked last, and has {} ms to live",
                ended.saturating_sub(self.asked),
                self.ttl
            )),
            _ => Ok(()),
        }
    }
}

impl Invariant for Leases {
    fn name(&self) -> &'static str {
        "lease"
    }

    fn see(&mut self, now: Millis, seen: &Seen) -> Result<(), String> {
        match seen {
            Seen::Renewed { lease, asked, ttl } => {
                let known = self.leases.entry(*lease).or_default();
                known.ttl = known.ttl.max(*ttl);
                known.asked = known.asked.max(*asked);
                known.check(*lease)
            }
            Seen::Applied { entry, .. } => {
                let EntryPayload::Normal(logged) = &entry.entry.payload else { return Ok(()) };
                let Command::LeaseExpire { leases } = &logged.proposal().command else { return Ok(()) };
                for id in leases {
                    let known = self.leases.entry(id.0).or_default();
                    known.ended.get_or_insert(now);
                    known.check(id.0)?;
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use quorumfs_api::record::LeaseId;

    use super::super::fixture::{applied, entry};
    use super::*;

    #[test]
    fn it_notices_a_lease_that_ends_early_whoever_says_so_first() {
        let ends = applied(1, &entry(1, 1, Command::LeaseExpire { leases: vec![LeaseId(4)] }), 0);
        let renewed = Seen::Renewed { lease: 4, asked: 1_000, ttl: 1_500 };
        let mut late = Leases::default();
        assert_eq!(late.see(1_010, &renewed), Ok(()));
        assert_eq!(late.see(2_500, &ends), Ok(()));
        let mut early = Leases::default();
        assert_eq!(early.see(1_010, &renewed), Ok(()));
        assert!(early.see(2_000, &ends).is_err());
        let mut after = Leases::default();
        assert_eq!(after.see(2_000, &ends), Ok(()));
        assert!(after.see(2_010, &renewed).is_err());
    }
}
