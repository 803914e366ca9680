//! What goes wrong, and how messages travel meanwhile.

use std::collections::BTreeSet;

use crate::network::{CLIENTS, HostId};
use crate::random::Random;
use crate::record::Millis;

/// How messages travel.
#[derive(Clone, Debug)]
pub struct Weather {
    /// Of 1000 messages, so many are lost.
    pub lost: u64,
    /// Of 1000, so many arrive twice.
    pub twice: u64,
    /// Shortest time on the way.
    pub fastest: Millis,
    /// Longest usual time.
    pub slowest: Millis,
    /// Of 1000, so many take up to [`LATE`].
    pub late: u64,
}

/// Longest time that a message is on its way.
pub const LATE: Millis = 1_200;

impl Weather {
    /// Nothing is lost.
    pub const CALM: Weather = Weather { lost: 0, twice: 0, fastest: 1, slowest: 2, late: 0 };

    /// Any.
    pub fn random(chance: &mut Random) -> Weather {
        Weather {
            lost: chance.pick(&[0, 0, 10, 50, 150]),
            twice: chance.pick(&[0, 10, 50]),
            fastest: chance.between(0, 2),
            slowest: chance.pick(&[2, 5, 15, 40]),
            late: chance.pick(&[0, 0, 5, 30]),
        }
    }

    /// When a message arrives that is sent now; `None` for one that is lost.
    pub fn travel(&self, chance: &mut Random) -> Option<Millis> {
        if chance.chance(self.lost) {
            return None;
        }
        let longest = if chance.chance(self.late) { LATE } else { self.slowest };
        Some(chance.between(self.fastest, longest))
    }
}

/// Something that is done to the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Messages from the first to the second of each pair are lost.
    Cut(BTreeSet<(HostId, HostId)>),
    /// No link is cut any more.
    Mend,
    /// These nodes are killed, and come back after a while.
    Crash(Vec<HostId>, Millis),
    /// A node is stopped, and goes on after a while.
    Pause(HostId, Millis),
    /// The leader shall hand over to this node.
    Transfer(HostId),
    /// The wall clock of a node is off by so many milliseconds.
    Skew(HostId, i64),
    /// Syncs of a node's disk take up to so many milliseconds.
    Disk(HostId, u64),
    /// Messages travel otherwise.
    Weather,
}

fn both(pairs: impl IntoIterator<Item = (HostId, HostId)>) -> BTreeSet<(HostId, HostId)> {
    pairs.into_iter().flat_map(|(a, b)| [(a, b), (b, a)]).collect()
}

/// Pairs of which one is among `some` and the other is not.
fn between(nodes: &[HostId], some: &[HostId]) -> impl Iterator<Item = (HostId, HostId)> {
    let (nodes, some) = (nodes.to_vec(), some.to_vec());
    let others: Vec<HostId> = nodes.into_iter().filter(|node| !some.contains(node)).collect();
    some.into_iter().flat_map(move |a| others.clone().into_iter().map(move |b| (a, b)))
}

/// Some fault; `leader` is who leads now.
pub fn random(nodes: &[HostId], leader: Option<HostId>, chance: &mut Random) -> Fault {
    // Most of what is worth breaking is the leader.
    let someone = |chance: &mut Random| match leader {
        Some(leader) if chance.chance(500) => leader,
        _ => chance.pick(nodes),
    };
    match chance.between(0, 99) {
        0..25 => Fault::Cut(cut(nodes, &someone, chance)),
        25..35 => Fault::Mend,
        35..65 => {
            let mut down: Vec<HostId> = nodes.to_vec();
            chance.shuffle(&mut down);
            let all = chance.chance(150);
            down.truncate(if all { nodes.len() } else { chance.between(1, nodes.len() as u64 / 2) as usize });
            let first = someone(chance);
            if !all && !down.contains(&first) {
                down[0] = first;
            }
            Fault::Crash(down, chance.between(5, 1_500))
        }
        65..78 => Fault::Pause(someone(chance), chance.between(20, 2_500)),
        78..84 => Fault::Transfer(chance.pick(nodes)),
        84..88 => Fault::Skew(chance.pick(nodes), chance.between(0, 20_000) as i64 - 10_000),
        88..93 => Fault::Disk(someone(chance), chance.pick(&[0, 2, 20, 200])),
        _ => Fault::Weather,
    }
}

fn cut(
    nodes: &[HostId],
    someone: &dyn Fn(&mut Random) -> HostId,
    chance: &mut Random,
) -> BTreeSet<(HostId, HostId)> {
    let one = someone(chance);
    match chance.between(0, 5) {
        // One, from the others.
        0 => both(between(nodes, &[one])),
        // One, from the others and from clients.
        1 => both(between(nodes, &[one]).chain([(one, CLIENTS)])),
        // Halves.
        2 => {
            let mut half = nodes.to_vec();
            chance.shuffle(&mut half);
            half.truncate(nodes.len() / 2);
            both(between(nodes, &half))
        }
        // One that is not heard.
        3 => between(nodes, &[one]).collect(),
        // One that does not hear.
        4 => between(nodes, &[one]).map(|(one, other)| (other, one)).collect(),
        // A bridge: two that hear each other only through the others.
        _ => {
            let other = chance.pick(nodes);
            both([(one, other)])
        }
    }
}
