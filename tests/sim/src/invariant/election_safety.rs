//! A mandate (term and node) is held at most once: a leader that stops never leads again under the same
//! one. And what a node has promised it keeps, also after a restart: it never follows, or votes for, a
//! mandate that is older than one that it has told somebody it follows. Two quorums share a node, so
//! that no two leaders can be believed by a quorum at the same time.

use std::collections::BTreeMap;

use super::Invariant;
use crate::record::{Mandate, Millis, Seen};

/// See the module.
#[derive(Default)]
pub struct ElectionSafety {
    promised: BTreeMap<u64, Mandate>,
    /// Who led under a mandate: node, and how often it had started.
    led: BTreeMap<Mandate, (u64, u64)>,
}

impl ElectionSafety {
    fn promise(&mut self, node: u64, to: Mandate) -> Result<(), String> {
        let last = self.promised.entry(node).or_insert(to);
        if to < *last {
            return Err(format!("node {node} follows {to:?}, but has promised not to go behind {last:?}"));
        }
        *last = to;
        Ok(())
    }
}

impl Invariant for ElectionSafety {
    fn name(&self) -> &'static str {
        "election safety"
    }

    fn see(&mut self, _now: Millis, seen: &Seen) -> Result<(), String> {
        match seen {
            Seen::Promised { node, to } => self.promise(*node, *to),
            Seen::Leads { node, life, mandate, .. } => {
                let (before, former) = *self.led.entry(*mandate).or_insert((*node, *life));
                if (before, former) != (*node, *life) || *node != mandate.node {
                    return Err(format!(
                        "{mandate:?} was held by node {before} in its life {former}, and now by node {node} in its life {life}"
                    ));
                }
                self.promise(*node, *mandate)
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{check, mandate};
    use super::*;

    fn leads(node: u64, life: u64, term: u64) -> Seen {
        Seen::Leads { node, life, mandate: mandate(term, node), purged: None, log: vec![] }
    }

    #[test]
    fn it_notices_a_broken_promise_and_a_mandate_that_is_held_twice() {
        let promised = |node, term, to| Seen::Promised { node, to: mandate(term, to) };
        let legal = [promised(1, 2, 3), promised(2, 2, 3), leads(3, 1, 2), leads(3, 1, 2), promised(1, 3, 1)];
        assert_eq!(check(ElectionSafety::default(), &legal), Ok(()));
        assert!(check(ElectionSafety::default(), &[promised(1, 2, 3), promised(1, 2, 2)]).is_err());
        assert!(check(ElectionSafety::default(), &[leads(3, 1, 2), leads(3, 2, 2)]).is_err());
        assert!(check(ElectionSafety::default(), &[promised(3, 5, 1), leads(3, 1, 2)]).is_err());
    }
}
