//! What must hold whatever happens; each in a file of its own, each with a test that shows that it
//! notices. The first five are those of Raft (Ongaro, "Consensus: Bridging Theory and Practice", figure
//! 3.2); the others are this store's.

mod election_safety;
mod exactly_once;
mod leader_completeness;
mod lease;
mod linear;
mod log_matching;
mod state_machine;
mod tree;

use crate::record::{Millis, Seen};

/// Something that must hold.
pub trait Invariant: Send {
    /// Its name.
    fn name(&self) -> &'static str;

    /// Looks at what happened.
    ///
    /// # Errors
    /// What is wrong with it.
    fn see(&mut self, now: Millis, seen: &Seen) -> Result<(), String>;

    /// Nothing more will happen; the states of all nodes were seen.
    ///
    /// # Errors
    /// What is wrong with the whole.
    fn end(&mut self) -> Result<(), String> {
        Ok(())
    }
}

/// All of them.
pub fn all() -> Vec<Box<dyn Invariant>> {
    vec![
        Box::<election_safety::ElectionSafety>::default(),
        Box::<log_matching::LogMatching>::default(),
        Box::<leader_completeness::LeaderCompleteness>::default(),
        Box::<state_machine::StateMachineSafety>::default(),
        Box::<exactly_once::ExactlyOnce>::default(),
        Box::<lease::Leases>::default(),
        Box::<tree::TreeRule>::default(),
        Box::<linear::Linear>::default(),
    ]
}

#[cfg(test)]
mod fixture {
    //! Small histories.

    use openraft::EntryPayload;
    use quorumfs_api::Timestamp;
    use quorumfs_api::command::{Command, Proposal};
    use quorumfs_store::{Entry, LeaderId, LogId, Logged};

    use super::Invariant;
    use crate::record::{Carried, Mandate, Place, Seen};

    /// The leader `node` in `term`.
    pub fn mandate(term: u64, node: u64) -> Mandate {
        Mandate { term, node }
    }

    /// A place in the log of node 1 as leader.
    pub fn place(term: u64, index: u64) -> Place {
        Place { index, mandate: mandate(term, 1) }
    }

    /// An entry with a command.
    pub fn entry(term: u64, index: u64, command: Command) -> Carried {
        let proposal = Proposal {
            time: Timestamp(0),
            author: "a".into(),
            node: true,
            session: None,
            value_max: 1 << 20,
            store_max: 1 << 30,
            command,
        };
        let log_id = LogId { leader_id: LeaderId { term, node_id: 1 }, index };
        Carried::new(&Entry { log_id, payload: EntryPayload::Normal(Logged::new(proposal).unwrap()) })
    }

    /// `entry` is applied on `node`.
    pub fn applied(node: u64, entry: &Carried, outcome: u64) -> Seen {
        Seen::Applied { node, entry: entry.clone(), outcome, revision: 0 }
    }

    /// What an invariant says to a history, one thing each millisecond.
    pub fn check(mut invariant: impl Invariant, history: &[Seen]) -> Result<(), String> {
        for (now, seen) in history.iter().enumerate() {
            invariant.see(now as u64, seen)?;
        }
        invariant.end()
    }
}
