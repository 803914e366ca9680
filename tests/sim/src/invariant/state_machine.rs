//! If a node has applied an entry at an index, no node ever applies another one there; all get the same
//! outcome and event from it; and at the end every node's tables are, byte for byte, what the committed
//! entries make of empty tables.

use std::collections::BTreeMap;
use std::sync::Arc;

use openraft::EntryPayload;
use quorumfs_machine::MemTables;

use super::Invariant;
use crate::record::{Carried, Millis, Place, Seen};

/// See the module.
#[derive(Default)]
pub struct StateMachineSafety {
    applied: BTreeMap<u64, (u64, Carried, u64)>,
    states: BTreeMap<u64, (u64, Arc<MemTables>)>,
}

impl Invariant for StateMachineSafety {
    fn name(&self) -> &'static str {
        "state machine safety"
    }

    fn see(&mut self, _now: Millis, seen: &Seen) -> Result<(), String> {
        match seen {
            Seen::Applied { node, entry, outcome, .. } => {
                let at = Place::of(entry.entry.log_id);
                let (first, known, result) =
                    self.applied.entry(at.index).or_insert_with(|| (*node, entry.clone(), *outcome));
                if known.content != entry.content {
                    let there = Place::of(known.entry.log_id);
                    return Err(format!(
                        "node {node} applies {at:?}, and node {first} has applied {there:?}"
                    ));
                }
                if result != outcome {
                    return Err(format!("{at:?} has another outcome on node {node} than on node {first}"));
                }
                Ok(())
            }
            Seen::State { node, index, tables } => {
                self.states.insert(*node, (*index, tables.0.clone()));
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn end(&mut self) -> Result<(), String> {
        let mut tables = MemTables::default();
        quorumfs_machine::init(&mut tables).map_err(|error| error.to_string())?;
        let mut done = None;
        for (index, (_, entry, _)) in &self.applied {
            if done.is_some_and(|done| done + 1 != *index) {
                return Err(format!("nobody has applied what is before {index}, and it is committed"));
            }
            done = Some(*index);
            if let EntryPayload::Normal(logged) = &entry.entry.payload {
                quorumfs_machine::apply(&mut tables, logged.proposal()).map_err(|error| error.to_string())?;
            }
        }
        for (node, (index, state)) in &self.states {
            if Some(*index) == done && **state != tables {
                return Err(format!("the tables of node {node} are not what the log makes of empty ones"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use quorumfs_api::command::Command;

    use super::super::fixture::{applied, check, entry};
    use super::*;
    use crate::record::Tables;

    #[test]
    fn it_notices_other_entries_other_outcomes_and_other_tables() {
        let grant = entry(1, 0, Command::LeaseGrant { ttl_ms: 1_000 });
        let other = entry(1, 0, Command::LeaseGrant { ttl_ms: 2_000 });
        let safe = StateMachineSafety::default;
        assert_eq!(check(safe(), &[applied(1, &grant, 5), applied(2, &grant, 5)]), Ok(()));
        assert!(check(safe(), &[applied(1, &grant, 5), applied(2, &other, 5)]).is_err());
        assert!(check(safe(), &[applied(1, &grant, 5), applied(2, &grant, 6)]).is_err());
        let empty = Seen::State { node: 1, index: 0, tables: Tables(Arc::default()) };
        assert!(check(safe(), &[applied(1, &grant, 5), empty]).is_err());
    }
}
