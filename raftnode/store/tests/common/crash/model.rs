//! What was asked of a store and what it acknowledged, when, and what has to be there therefore.

use std::collections::BTreeMap;

use openraft::EntryPayload;
use quorumfs_api::Key;
use quorumfs_api::command::{Command, RenameMode};
use quorumfs_machine::{MemTables, ReadTables, Table};
use quorumfs_store::{Entry, LogId, Logged, MemberNode, Membership, Op, Vote};

use super::random::Random;
use crate::common::{dump, id, proposal, put_command};

/// The entry that a leader of this term writes at this index.
pub fn entry(seed: u64, term: u64, index: u64) -> Entry {
    let mut random = Random::of(&[seed, term, index]);
    let key = |path: String| Key::parse(path).unwrap();
    let mut name = || format!("/d{}/f{}", random.below(3), random.below(8));
    let (one, other) = (name(), name());
    let value = |length: u64| vec![b'a' + (index % 26) as u8; length as usize];
    let command = match random.below(20) {
        0 => Command::Mkdir {
            at: key(format!("/d{}", index % 7)).into(),
            parents: true,
            owner: quorumfs_api::Owner::DIR,
        },
        1 | 2 => Command::Delete { at: key(one).into(), recursive: true },
        3 | 4 => Command::Rename { from: key(one).into(), to: key(other).into(), mode: RenameMode::Replace },
        5 => Command::LeaseGrant { ttl_ms: 1000 },
        6 => put_command(&one, value(20_000 + random.below(20_000))),
        7..10 => put_command(&one, value(2000 + random.below(3000))),
        _ => put_command(&one, format!("{term} {index}")),
    };
    let payload = if index.is_multiple_of(41) {
        let node = MemberNode { name: format!("a{index}"), addr: "h:1".into() };
        EntryPayload::Membership(Membership::new(vec![[1].into()], BTreeMap::from([(1, node)])).unwrap())
    } else if index % 17 == 1 {
        EntryPayload::Blank
    } else {
        EntryPayload::Normal(Logged::new(proposal(command)).unwrap())
    };
    Entry { log_id: id(term, index), payload }
}

/// The tables with one more entry applied.
pub fn apply(tables: &mut MemTables, entry: &Entry) {
    if let EntryPayload::Normal(logged) = &entry.payload {
        quorumfs_machine::apply(tables, logged.proposal()).unwrap();
    }
}

/// All rows but those in which the store keeps where in the log it stands.
pub fn rows(tables: &impl ReadTables) -> MemTables {
    let mut rows = dump(tables);
    for key in [b"\0raft/applied".as_slice(), b"\0raft/membership"] {
        quorumfs_machine::Tables::delete(&mut rows, Table::Meta, key).unwrap();
    }
    rows
}

/// What a log holds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LogModel {
    pub vote: Option<Vote>,
    pub committed: Option<LogId>,
    pub purged: Option<LogId>,
    pub entries: BTreeMap<u64, Entry>,
}

impl LogModel {
    pub fn last(&self) -> Option<LogId> {
        self.entries.last_key_value().map(|(_, entry)| entry.log_id).or(self.purged)
    }

    pub fn apply(&mut self, op: &Op) {
        match op {
            Op::Append(entries) => {
                self.entries.extend(entries.iter().map(|entry| (entry.log_id.index, entry.clone())));
            }
            Op::Truncate(after) => self.entries.retain(|index, _| Some(*index) <= *after),
            Op::Purge(upto) => {
                self.entries.retain(|index, _| *index > upto.index);
                self.purged = Some(*upto);
            }
            Op::Vote(vote) => self.vote = Some(*vote),
            Op::Committed(committed) => self.committed = *committed,
        }
    }

    /// For messages.
    pub fn brief(&self) -> String {
        let ends = [self.entries.first_key_value(), self.entries.last_key_value()];
        let ends = ends.map(|end| end.map(|(_, entry)| entry.log_id.to_string()));
        format!(
            "vote {:?}, committed {:?}, purged {:?}, {} entries {:?} to {:?}",
            self.vote.map(|vote| vote.to_string()),
            self.committed.map(|at| at.to_string()),
            self.purged.map(|at| at.to_string()),
            self.entries.len(),
            ends[0],
            ends[1]
        )
    }
}

/// Pairs of a position in the trace and a number of applied entries.
type Steps = Vec<(usize, u64)>;

/// The history of a store. A position is how much of the trace had happened.
#[derive(Default)]
pub struct Model {
    /// When each write to the log was asked for.
    asked: Vec<usize>,
    /// Position and number of writes that were acknowledged by then.
    acked: Vec<(usize, usize)>,
    /// The log after the first writes: one more than there are writes.
    pub logs: Vec<LogModel>,
    /// The committed entries, from index 0.
    pub truth: Vec<Entry>,
    /// The tables after the first committed entries: one more than there are entries.
    pub states: Vec<MemTables>,
    /// The state may be that of so many entries from here on.
    pub applied: Steps,
    /// The state on disk is that of so many entries at least, from here on.
    pub flushed: Steps,
    /// A snapshot of so many entries may take the place of the state from here on.
    pub installed: Steps,
    /// There is a snapshot of at least so many entries from here on.
    pub snapshots: Steps,
}

impl Model {
    pub fn new() -> Model {
        let mut tables = MemTables::default();
        quorumfs_machine::init(&mut tables).unwrap();
        Model { logs: vec![LogModel::default()], states: vec![tables], ..Model::default() }
    }

    /// The log as it was asked for.
    pub fn log(&self) -> &LogModel {
        self.logs.last().unwrap()
    }

    /// A write to the log is asked for.
    pub fn ask(&mut self, position: usize, op: &Op) {
        let mut log = self.log().clone();
        log.apply(op);
        self.logs.push(log);
        self.asked.push(position);
    }

    /// All writes so far are durable.
    pub fn ack(&mut self, position: usize) {
        self.acked.push((position, self.asked.len()));
    }

    /// An entry is committed.
    pub fn commit(&mut self, entry: Entry) {
        assert_eq!(entry.log_id.index, self.truth.len() as u64);
        let mut tables = self.states.last().unwrap().clone();
        apply(&mut tables, &entry);
        self.states.push(tables);
        self.truth.push(entry);
    }

    /// What has to be there after a crash at `point`.
    pub fn at(&self, point: usize) -> Expected<'_> {
        let most = |steps: &Steps| {
            steps.iter().filter(|(position, _)| *position <= point).map(|(_, count)| *count).max()
        };
        let least = self.acked.iter().filter(|(position, _)| *position <= point).map(|(_, count)| *count);
        let least = least.max().unwrap_or(0);
        let asked = self.asked.iter().filter(|position| **position <= point).count();
        Expected {
            model: self,
            logs: least..=asked,
            flushed: most(&self.flushed).unwrap_or(0),
            applied: most(&self.applied).unwrap_or(0),
            installed: most(&self.installed),
            snapshot: most(&self.snapshots),
        }
    }
}

/// What has to be there after a crash.
pub struct Expected<'a> {
    pub model: &'a Model,
    /// The log is that after one of these numbers of writes.
    pub logs: std::ops::RangeInclusive<usize>,
    /// The state has at least so many entries.
    pub flushed: u64,
    /// The state has at most so many, or those of `installed`.
    pub applied: u64,
    /// A snapshot of so many entries may have been installed.
    pub installed: Option<u64>,
    /// There is a snapshot of at least so many.
    pub snapshot: Option<u64>,
}
