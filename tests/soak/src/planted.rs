//! What a run has to say about each bug that can be put in, and which faults let it show: for `scripts/soak --bugs`.

use quorumfs_api::bug::{ALL, Bug};

/// How one bug is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expected {
    /// Only faults with this in their names are made. All are, in the order of the seed, where it is empty: then the bug
    /// shows whatever breaks.
    pub only: &'static str,
    /// A violation has this in its text.
    pub says: &'static str,
}

/// How `bug` is found.
pub fn expected(bug: Bug) -> Expected {
    let (only, says) = match bug {
        // It needs a leader that others have replaced, and that does not know.
        Bug::StaleRead => ("partition: the leader alone", "reads and writes of one key are linearizable"),
        // What one node has lost the others still have.
        Bug::LostFsync => ("kill -9 all nodes", "a set holds what was acknowledged, and nothing else"),
        Bug::RetryTwice => ("", "a request that was done is known, and not done again"),
        Bug::WatchSkip => ("", "missed revision"),
        Bug::WatchHalf => ("", "does not show"),
        Bug::LeaseEarly => ("", "too early"),
        Bug::LeaseForever => ("", "too late"),
        Bug::LockTwice => ("", "two held it at once"),
        Bug::TornPublication => ("", "are no whole value"),
        Bug::LostEvent => ("", "after its last event a file has its last value"),
        Bug::NoBarrier => ("", "reads and writes of one key are linearizable"),
        Bug::WrongSnapshot => ("", "all nodes hold the same"),
    };
    Expected { only, says }
}

/// A line for each: its name, the faults, and what is said, with `|` between.
pub fn list() -> impl Iterator<Item = String> {
    ALL.iter().map(|(name, bug)| {
        let Expected { only, says } = expected(*bug);
        format!("{name}|{only}|{says}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::Plan;

    #[test]
    fn the_lines_can_be_taken_apart_and_looked_for() {
        for line in list() {
            let words: Vec<&str> = line.split('|').collect();
            assert_eq!(words.len(), 3, "{line}");
            // scripts/soak looks for it with grep.
            assert!(!words[2].is_empty() && !words[2].contains(['[', '*', '.', '\\', '^', '$']), "{line}");
        }
    }

    #[test]
    fn there_are_such_faults() {
        for (name, bug) in ALL {
            let only = expected(*bug).only;
            let mut plan = Plan::new(1, 5, 2, Some(only.to_string()), false);
            assert!(plan.next().is_some_and(|step| !step.faults.is_empty()), "{name}");
        }
    }
}
