//! What is committed is in the log of every leader that comes after. An entry that somebody has applied
//! is committed.

use std::collections::BTreeMap;

use super::Invariant;
use crate::record::{Mandate, Millis, Place, Seen};

/// See the module.
#[derive(Default)]
pub struct LeaderCompleteness {
    committed: BTreeMap<u64, Mandate>,
}

impl Invariant for LeaderCompleteness {
    fn name(&self) -> &'static str {
        "leader completeness"
    }

    fn see(&mut self, _now: Millis, seen: &Seen) -> Result<(), String> {
        match seen {
            Seen::Applied { entry, .. } => {
                let place = Place::of(entry.entry.log_id);
                self.committed.entry(place.index).or_insert(place.mandate);
                Ok(())
            }
            Seen::Leads { node, mandate, purged, log, .. } => {
                let log: BTreeMap<u64, Mandate> = log.iter().map(|at| (at.index, at.mandate)).collect();
                let from = purged.map_or(0, |purged| purged.index + 1);
                for (index, committed) in self.committed.range(from..) {
                    // A leader that was elected before knows nothing of what came later.
                    if committed > mandate {
                        continue;
                    }
                    match log.get(index) {
                        Some(found) if found == committed => {}
                        Some(found) => {
                            return Err(format!(
                                "node {node} leads as {mandate:?} with {index}@{found:?}, but {index}@{committed:?} is committed"
                            ));
                        }
                        None => {
                            return Err(format!(
                                "node {node} leads as {mandate:?} without {index}@{committed:?}, which is committed"
                            ));
                        }
                    }
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use quorumfs_api::command::Command;

    use super::super::fixture::{applied, check, entry, mandate, place};
    use super::*;

    #[test]
    fn it_notices_a_leader_that_lacks_what_is_committed() {
        let committed = applied(1, &entry(1, 4, Command::LeaseGrant { ttl_ms: 1 }), 0);
        let leads = |log| Seen::Leads { node: 2, life: 1, mandate: mandate(2, 2), purged: None, log };
        let good = [committed.clone(), leads(vec![place(1, 4), place(2, 5)])];
        assert_eq!(check(LeaderCompleteness::default(), &good), Ok(()));
        assert!(check(LeaderCompleteness::default(), &[committed.clone(), leads(vec![])]).is_err());
        assert!(check(LeaderCompleteness::default(), &[committed, leads(vec![place(2, 4)])]).is_err());
    }
}
