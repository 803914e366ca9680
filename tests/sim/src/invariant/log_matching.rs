//! If two logs have an entry with the same index and mandate, then it is the same entry, and the logs
//! are the same up to there. By induction it is enough that the entry before is the same one, too.

use std::collections::BTreeMap;

use super::Invariant;
use crate::record::{Millis, Place, Seen};

/// See the module.
#[derive(Default)]
pub struct LogMatching {
    content: BTreeMap<Place, u64>,
    before: BTreeMap<Place, Place>,
}

impl LogMatching {
    fn follows(&mut self, node: u64, before: Place, at: Place) -> Result<(), String> {
        if before.index + 1 != at.index {
            return Err(format!("the log of node {node} has a hole between {before:?} and {at:?}"));
        }
        let known = *self.before.entry(at).or_insert(before);
        if known == before {
            Ok(())
        } else {
            Err(format!("{at:?} follows {before:?} on node {node}, and {known:?} elsewhere"))
        }
    }
}

impl Invariant for LogMatching {
    fn name(&self) -> &'static str {
        "log matching"
    }

    fn see(&mut self, _now: Millis, seen: &Seen) -> Result<(), String> {
        match seen {
            Seen::Appended { node, at, before, content } => {
                let known = *self.content.entry(*at).or_insert(*content);
                if known != *content {
                    return Err(format!("{at:?} holds {content:x} on node {node}, and {known:x} elsewhere"));
                }
                match before {
                    Some(before) => self.follows(*node, *before, *at),
                    None if at.index == 0 => Ok(()),
                    None => Err(format!("the log of node {node} has a hole before {at:?}")),
                }
            }
            Seen::Opened { node, log } | Seen::Leads { node, log, .. } => {
                log.windows(2).try_for_each(|pair| self.follows(*node, pair[0], pair[1]))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{check, place};
    use super::*;

    #[test]
    fn it_notices_two_entries_at_one_place_and_two_ways_to_it() {
        let appended = |node, at, before, content| Seen::Appended { node, at, before: Some(before), content };
        let one = appended(1, place(2, 5), place(1, 4), 7);
        let same = appended(2, place(2, 5), place(1, 4), 7);
        assert_eq!(check(LogMatching::default(), &[one.clone(), same]), Ok(()));
        let other = appended(2, place(2, 5), place(1, 4), 8);
        assert!(check(LogMatching::default(), &[one.clone(), other]).is_err());
        let way = Seen::Opened { node: 2, log: vec![place(2, 4), place(2, 5)] };
        assert!(check(LogMatching::default(), &[one, way]).is_err());
        let hole = Seen::Opened { node: 2, log: vec![place(2, 4), place(2, 6)] };
        assert!(check(LogMatching::default(), &[hole]).is_err());
        let hole = Seen::Appended { node: 1, at: place(2, 5), before: None, content: 7 };
        assert!(check(LogMatching::default(), &[hole]).is_err());
    }
}
