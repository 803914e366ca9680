//! Who leads, as far as can be told from what nodes say. Pure: no clock, no network.

use std::collections::{HashMap, HashSet};

use crate::wire::{Member, Status};

/// Most addresses that are remembered, whatever nodes claim.
const ADDRESSES_MAX: usize = 128;

/// What is known of the cluster.
#[derive(Debug, Default)]
pub(super) struct Leaders {
    /// Addresses from the settings: always candidates.
    seeds: Vec<String>,
    /// Members as told in the highest term heard of.
    members: Vec<Member>,
    members_term: u64,
    /// Which node answered at which address.
    at: HashMap<String, u64>,
    /// Address and term of the leader. Term 0 stands for a hint that did not say.
    leader: Option<(String, u64)>,
    /// Addresses that were silent. What others say of them does not count until they answer
    /// themselves: followers name a dead leader until they have elected another.
    silent: HashSet<String>,
}

impl Leaders {
    pub fn new(seeds: Vec<String>) -> Leaders {
        Leaders { seeds, ..Leaders::default() }
    }

    /// The address to send to.
    pub fn target(&self) -> Option<&str> {
        self.leader.as_ref().map(|(addr, _)| addr.as_str())
    }

    /// Every address at which a node may be: seeds first, each node once where that is known.
    pub fn candidates(&self) -> Vec<String> {
        let mut list = self.seeds.clone();
        for member in &self.members {
            let reached =
                list.iter().any(|addr| *addr == member.addr || self.at.get(addr) == Some(&member.id));
            if !reached && !member.addr.is_empty() && list.len() < ADDRESSES_MAX {
                list.push(member.addr.clone());
            }
        }
        list
    }

    /// Whether the node at `addr` did not answer when it was last asked.
    pub fn silent(&self, addr: &str) -> bool {
        self.silent.contains(addr)
    }

    /// The node at `addr` answered.
    pub fn heard(&mut self, addr: &str, status: &Status) {
        self.silent.remove(addr);
        if self.at.len() < ADDRESSES_MAX || self.at.contains_key(addr) {
            self.at.insert(addr.to_string(), status.id);
        }
        if !status.members.is_empty() && (status.term >= self.members_term || self.leader.is_none()) {
            self.members = status.members.iter().take(ADDRESSES_MAX).cloned().collect();
            self.members_term = status.term;
        }
        let known_term = self.leader.as_ref().map_or(0, |(_, term)| *term);
        match status.leader {
            Some(id) if id == status.id && status.term < known_term => {}
            Some(id) if id == status.id => self.leader = Some((addr.to_string(), status.term)),
            Some(id) => {
                // A follower's word: it counts if it is news, and not about a node that is silent.
                let Some(leader) = self.address_of(id) else { return };
                let contradicted = self.target() == Some(addr);
                if !self.silent.contains(&leader)
                    && (self.leader.is_none() || contradicted || status.term > known_term)
                {
                    self.leader = Some((leader, status.term));
                } else if contradicted {
                    self.leader = None;
                }
            }
            None if self.target() == Some(addr) => self.leader = None,
            None => {}
        }
    }

    /// The node at `addr` refused a call because it does not lead, and may have said who does.
    pub fn hinted(&mut self, addr: &str, hint: Option<&Member>) {
        self.silent.remove(addr);
        if self.target() == Some(addr) {
            self.leader = None;
        }
        let Some(member) = hint else { return };
        let leader = self.address_of(member.id).unwrap_or_else(|| member.addr.clone());
        // Somebody may have found the new leader while this answer was under way.
        if leader != addr && !leader.is_empty() && self.leader.is_none() && !self.silent.contains(&leader) {
            self.leader = Some((leader, 0));
        }
    }

    /// The node at `addr` could not be reached, or did not answer in time.
    pub fn went_silent(&mut self, addr: &str) {
        if self.silent.len() < ADDRESSES_MAX {
            self.silent.insert(addr.to_string());
        }
        if self.target() == Some(addr) {
            self.leader = None;
        }
    }

    /// Where the member `id` can be reached: where it answered before, or where it says that it is.
    fn address_of(&self, id: u64) -> Option<String> {
        let seed = self.seeds.iter().find(|addr| self.at.get(*addr) == Some(&id));
        let met = || self.at.iter().filter(|(_, node)| **node == id).map(|(addr, _)| addr).min();
        let told = || self.members.iter().find(|m| m.id == id && !m.addr.is_empty()).map(|m| &m.addr);
        seed.or_else(met).or_else(told).cloned()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn addr(id: u64) -> String {
        format!("n{id}:7400")
    }
    fn members() -> Vec<Member> {
        (1..=3).map(|id| Member { id, name: format!("n{id}"), addr: addr(id), voter: true }).collect()
    }
    fn status(id: u64, leader: Option<u64>, term: u64) -> Status {
        Status { id, leader, term, members: members(), ..Status::default() }
    }

    #[test]
    fn one_seed_is_enough_to_learn_of_all() {
        let mut leaders = Leaders::new(vec![addr(2)]);
        assert_eq!(leaders.target(), None);
        leaders.heard(&addr(2), &status(2, Some(3), 1));
        assert_eq!(leaders.target(), Some(addr(3).as_str()));
        assert_eq!(leaders.candidates(), [addr(2), addr(1), addr(3)]);
    }

    #[test]
    fn a_node_reached_under_another_address_is_no_second_candidate() {
        let mut leaders = Leaders::new(vec!["localhost:7400".into()]);
        leaders.heard("localhost:7400", &status(1, Some(1), 1));
        assert_eq!(leaders.target(), Some("localhost:7400"));
        assert_eq!(leaders.candidates(), ["localhost:7400".to_string(), addr(2), addr(3)]);
        // And what others say of it leads to where it was reached.
        leaders.hinted("localhost:7400", None);
        leaders.heard(&addr(2), &status(2, Some(1), 1));
        assert_eq!(leaders.target(), Some("localhost:7400"));
    }

    #[test]
    fn followers_that_still_name_a_dead_leader_are_not_believed() {
        let mut leaders = Leaders::new((1..=3).map(addr).collect());
        leaders.heard(&addr(1), &status(1, Some(1), 4));
        leaders.went_silent(&addr(1));
        leaders.heard(&addr(2), &status(2, Some(1), 4));
        leaders.hinted(&addr(3), members().first());
        assert_eq!(leaders.target(), None);
        leaders.heard(&addr(3), &status(3, Some(2), 5));
        assert_eq!(leaders.target(), Some(addr(2).as_str()));
        // It comes back as a follower, and its own word makes it a candidate for leadership again.
        leaders.heard(&addr(1), &status(1, Some(2), 5));
        leaders.heard(&addr(2), &status(2, Some(1), 6));
        assert_eq!(leaders.target(), Some(addr(1).as_str()));
    }

    #[test]
    fn the_higher_term_wins_whichever_is_heard_first() {
        for reversed in [false, true] {
            let mut leaders = Leaders::new((1..=3).map(addr).collect());
            let mut said = vec![status(1, Some(1), 4), status(2, Some(2), 5)];
            if reversed {
                said.reverse();
            }
            for status in said {
                leaders.heard(&addr(status.id), &status);
            }
            assert_eq!(leaders.target(), Some(addr(2).as_str()));
        }
    }

    proptest! {
        #[test]
        fn whatever_was_said_before_the_leaders_own_word_in_a_new_term_decides(
            said in proptest::collection::vec((1u64..=3, 0u64..=3, 0u64..20, 0u8..3), 0..60),
            leader in 1u64..=3,
        ) {
            let mut leaders = Leaders::new(vec![addr(1)]);
            for (id, named, term, what) in said {
                match what {
                    0 => leaders.heard(&addr(id), &status(id, (named > 0).then_some(named), term)),
                    1 => leaders.hinted(&addr(id), members().iter().find(|m| m.id == named)),
                    _ => leaders.went_silent(&addr(id)),
                }
                if let Some(target) = leaders.target() {
                    prop_assert!(!leaders.silent(target), "a silent node is no target");
                }
                prop_assert!(leaders.candidates().len() <= 3);
            }
            leaders.heard(&addr(leader), &status(leader, Some(leader), 21));
            let expected = addr(leader);
            prop_assert_eq!(leaders.target(), Some(expected.as_str()));
        }
    }
}
