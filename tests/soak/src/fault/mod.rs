//! What is broken, and in which order: chosen by the seed alone, so that a seed can be repeated.

pub mod links;
pub mod world;

use std::fmt;
use std::time::Duration;

use quorumfs_tests::random::Random;

/// Which node a fault is for. Numbers are taken modulo what there is at that moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Victim {
    /// Whoever leads.
    Leader,
    /// One of all.
    Any(usize),
}

/// Which links between nodes are cut. Clients reach all nodes all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// One node from all others.
    One(Victim),
    /// Two parts.
    Halves,
    /// Two parts, and one node that reaches both.
    Bridge,
    /// Each node reaches two neighbours only.
    Ring,
    /// One node hears nobody, and is heard.
    Deaf(Victim),
    /// One node is heard by nobody, and hears.
    Mute(Victim),
}

/// One fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// `kill -9` of a node; started again at once.
    Kill(Victim),
    /// `kill -9` of a node; started again when the fault is healed.
    Down(Victim),
    /// `kill -9` of all nodes at once.
    KillAll,
    /// SIGSTOP, and SIGCONT when it is healed.
    Pause(Victim),
    /// SIGTERM, and a start.
    Restart(Victim),
    /// Links are cut.
    Partition(Cut),
    /// A link goes away and comes back several times.
    Flap(Victim),
    /// So many packets of a hundred are lost at all nodes.
    Loss(u8),
    /// `kill -9` of a mount's fsd, and a new one.
    KillMount(usize),
    /// A mount's host is cut off from everybody.
    CutMount(usize),
    /// A voter is removed, and a new node takes its place.
    Replace(usize),
    /// A node joins, is promoted, and an old one goes.
    Grow(usize),
    /// All nodes build snapshots and purge their logs.
    Snapshot,
    /// All certificates are made anew by the same authority.
    Rotate,
    /// Leadership is handed over.
    Transfer,
    /// A node's clock jumps by so many milliseconds, and back when it is healed.
    Clock(Victim, i64),
    /// Every write and sync of a node fails; it is started again when the fault is healed.
    Disk(Victim, Error),
    /// Every sync of a node takes so many milliseconds longer.
    SlowDisk(Victim, u16),
    /// Datagrams of all nodes come twice, and late, and so in another order.
    Datagrams,
    /// A node ends and comes back as the other version, if there is one.
    Upgrade(Victim),
}

/// What a disk says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// `ENOSPC`.
    Full,
    /// `EIO`.
    Broken,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let who = |victim: &Victim| match victim {
            Victim::Leader => "the leader",
            Victim::Any(_) => "a node",
        };
        match self {
            Fault::Kill(v) => write!(f, "kill -9 {}", who(v)),
            Fault::Down(v) => write!(f, "kill -9 {} and leave it down", who(v)),
            Fault::KillAll => write!(f, "kill -9 all nodes"),
            Fault::Pause(v) => write!(f, "SIGSTOP {}", who(v)),
            Fault::Restart(v) => write!(f, "restart {}", who(v)),
            Fault::Partition(Cut::One(v)) => write!(f, "partition: {} alone", who(v)),
            Fault::Partition(Cut::Halves) => write!(f, "partition: halves"),
            Fault::Partition(Cut::Bridge) => write!(f, "partition: bridge"),
            Fault::Partition(Cut::Ring) => write!(f, "partition: ring"),
            Fault::Partition(Cut::Deaf(v)) => write!(f, "partition one way: {} hears nobody", who(v)),
            Fault::Partition(Cut::Mute(v)) => write!(f, "partition one way: nobody hears {}", who(v)),
            Fault::Flap(v) => write!(f, "flapping link of {}", who(v)),
            Fault::Loss(_) => write!(f, "packet loss"),
            Fault::KillMount(_) => write!(f, "kill -9 fsd"),
            Fault::CutMount(_) => write!(f, "a mount cut off"),
            Fault::Replace(_) => write!(f, "replace a voter"),
            Fault::Grow(_) => write!(f, "add and promote a node, remove another"),
            Fault::Snapshot => write!(f, "snapshots forced"),
            Fault::Rotate => write!(f, "certificate rotation"),
            Fault::Transfer => write!(f, "leadership handed over"),
            Fault::Clock(v, _) => write!(f, "clock step of {}", who(v)),
            Fault::Disk(v, Error::Full) => write!(f, "disk full at {}", who(v)),
            Fault::Disk(v, Error::Broken) => write!(f, "disk error at {}", who(v)),
            Fault::SlowDisk(v, _) => write!(f, "slow disk at {}", who(v)),
            Fault::Datagrams => write!(f, "packets twice and late"),
            Fault::Upgrade(v) => write!(f, "{} replaced by the other version", who(v)),
        }
    }
}

impl Fault {
    /// Whether the cluster has no quorum, or may have none, while it lasts. Two of these at once prove
    /// little, and a change of members needs a quorum.
    fn is_heavy(&self) -> bool {
        !matches!(
            self,
            Fault::Loss(_)
                | Fault::Snapshot
                | Fault::Rotate
                | Fault::Transfer
                | Fault::KillMount(_)
                | Fault::CutMount(_)
                | Fault::Clock(..)
                | Fault::SlowDisk(..)
                | Fault::Datagrams
        )
    }
}

/// What happens next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Faults that are there together, made in this order.
    pub faults: Vec<Fault>,
    /// How long they last.
    pub hold: Duration,
    /// How long everything is whole afterwards.
    pub calm: Duration,
}

/// The steps of a seed, without end.
pub struct Plan {
    random: Random,
    nodes: usize,
    mounts: usize,
    only: Option<String>,
    versions: bool,
    /// Each kind comes once in each round, so that a short run sees many.
    round: Vec<Fault>,
}

impl Plan {
    /// The plan for a cluster of so many nodes and mounts; of faults whose name holds `only`, if given; with
    /// upgrades if there are two `versions`.
    pub fn new(seed: u64, nodes: usize, mounts: usize, only: Option<String>, versions: bool) -> Plan {
        Plan { random: Random::new(seed), nodes, mounts, only, versions, round: Vec::new() }
    }

    fn victim(&mut self) -> Victim {
        if self.random.chance(40) { Victim::Leader } else { Victim::Any(self.random.below(1 << 16)) }
    }

    fn refill(&mut self) {
        let victims: Vec<Victim> = (0..13).map(|_| self.victim()).collect();
        // Further back certificates would not be valid yet.
        let step = self.random.below(100_000) as i64 - 50_000;
        let any = self.random.below(1 << 16);
        let mut all = vec![
            Fault::Kill(victims[0]),
            Fault::Down(victims[1]),
            Fault::KillAll,
            Fault::Pause(victims[2]),
            Fault::Pause(Victim::Leader),
            Fault::Restart(victims[3]),
            Fault::Partition(Cut::One(victims[4])),
            Fault::Partition(Cut::One(Victim::Leader)),
            Fault::Partition(Cut::Halves),
            Fault::Partition(Cut::Deaf(victims[5])),
            Fault::Partition(Cut::Mute(victims[6])),
            Fault::Partition(Cut::Bridge),
            Fault::Flap(victims[7]),
            Fault::Loss(5 + self.random.below(25) as u8),
            Fault::Replace(any),
            Fault::Grow(any),
            Fault::Snapshot,
            Fault::Rotate,
            Fault::Transfer,
            Fault::Clock(victims[8], step),
            Fault::Disk(victims[9], Error::Full),
            Fault::Disk(victims[10], Error::Broken),
            Fault::SlowDisk(victims[11], 20 + self.random.below(300) as u16),
            Fault::Datagrams,
        ];
        if self.versions {
            all.push(Fault::Upgrade(victims[12]));
            all.push(Fault::Upgrade(Victim::Any(any)));
        }
        if self.nodes >= 5 {
            // With fewer nodes everybody is a neighbour of everybody.
            all.push(Fault::Partition(Cut::Ring));
        }
        if self.mounts > 0 {
            all.push(Fault::KillMount(any));
            all.push(Fault::CutMount(any));
        }
        if let Some(only) = &self.only {
            all.retain(|fault| fault.to_string().contains(only.as_str()));
            assert!(!all.is_empty(), "no fault has {only:?} in its name");
        }
        while !all.is_empty() {
            let next = self.random.below(all.len());
            self.round.push(all.swap_remove(next));
        }
    }

    fn draw(&mut self) -> Fault {
        if self.round.is_empty() {
            self.refill();
        }
        self.round.pop().expect("it was filled")
    }
}

impl Iterator for Plan {
    type Item = Step;
    fn next(&mut self) -> Option<Step> {
        let mut faults = vec![self.draw()];
        // A third are mixed: one that leaves the cluster able to work comes first.
        if self.random.chance(35) {
            let other = self.draw();
            if other.is_heavy() && faults[0].is_heavy() {
                self.round.push(other);
            } else if other.is_heavy() {
                faults.push(other);
            } else {
                faults.insert(0, other);
            }
        }
        let hold = Duration::from_millis(800 + self.random.below(5200) as u64);
        let calm = Duration::from_millis(1500 + self.random.below(2500) as u64);
        Some(Step { faults, hold, calm })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn a_seed_gives_the_same_plan() {
        let plan = |seed| Iterator::take(Plan::new(seed, 5, 2, None, true), 50).collect::<Vec<_>>();
        assert_eq!(plan(7), plan(7));
        assert_ne!(plan(7), plan(8));
    }

    #[test]
    fn each_round_has_every_fault() {
        let faults: BTreeSet<String> = Iterator::take(Plan::new(1, 5, 2, None, true), 50)
            .flat_map(|step| step.faults)
            .map(|f| f.to_string())
            .collect();
        for name in [
            "kill -9 all nodes",
            "partition: ring",
            "partition: bridge",
            "certificate rotation",
            "kill -9 fsd",
            "packets twice and late",
        ] {
            assert!(faults.contains(name), "{name} of {faults:?}");
        }
    }
}
