//! What is written to disk, in our own types: openraft may change its own without changing ours.
//! Fields are never reordered, enums only grow at their end; the golden bytes below keep watch.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use bytes::Bytes;
use openraft::EntryPayload;
use quorumfs_api::codec::{self, EncodeError, FrameKind};
use serde::{Deserialize, Serialize};

use crate::types::{
    Entry, LeaderId, LogId, Logged, MemberNode, Membership, SnapshotMeta, StoredMembership, Vote,
};

/// A position in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogIdRecord {
    /// Term of the leader that proposed the entry.
    pub term: u64,
    /// That leader.
    pub node: u64,
    /// Index in the log.
    pub index: u64,
}

impl From<LogId> for LogIdRecord {
    fn from(id: LogId) -> LogIdRecord {
        LogIdRecord { term: id.leader_id.term, node: id.leader_id.node_id, index: id.index }
    }
}
impl From<LogIdRecord> for LogId {
    fn from(id: LogIdRecord) -> LogId {
        LogId { leader_id: LeaderId { term: id.term, node_id: id.node }, index: id.index }
    }
}

/// A vote.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VoteRecord {
    /// Term.
    pub term: u64,
    /// For whom.
    pub node: u64,
    /// Whether a quorum granted it.
    pub committed: bool,
}

impl From<Vote> for VoteRecord {
    fn from(vote: Vote) -> VoteRecord {
        VoteRecord { term: vote.leader_id.term, node: vote.leader_id.node_id, committed: vote.committed }
    }
}
impl From<VoteRecord> for Vote {
    fn from(vote: VoteRecord) -> Vote {
        Vote { leader_id: LeaderId { term: vote.term, node_id: vote.node }, committed: vote.committed }
    }
}

/// Who is in the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MembershipRecord {
    /// Voters; more than one list while the cluster goes over from one to the next.
    pub configs: Vec<Vec<u64>>,
    /// All members, learners too.
    pub nodes: Vec<(u64, MemberNode)>,
}

impl From<&Membership> for MembershipRecord {
    fn from(membership: &Membership) -> MembershipRecord {
        MembershipRecord {
            configs: membership
                .get_joint_config()
                .iter()
                .map(|voters| voters.iter().copied().collect())
                .collect(),
            nodes: membership.nodes().map(|(id, node)| (*id, node.clone())).collect(),
        }
    }
}
impl TryFrom<MembershipRecord> for Membership {
    type Error = io::Error;
    fn try_from(record: MembershipRecord) -> io::Result<Membership> {
        let configs: Vec<BTreeSet<u64>> =
            record.configs.into_iter().map(|voters| voters.into_iter().collect()).collect();
        let nodes: BTreeMap<u64, MemberNode> = record.nodes.into_iter().collect();
        if configs.is_empty() && nodes.is_empty() {
            return Ok(Membership::default());
        }
        Membership::new(configs, nodes).map_err(|error| {
            io::Error::new(io::ErrorKind::InvalidData, format!("a stored membership is invalid: {error}"))
        })
    }
}

/// A position in the state: the last entry that is in it, and the membership as of then. Also the
/// header of a snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PositionRecord {
    /// Last entry that was applied.
    pub last: Option<LogIdRecord>,
    /// Where the membership stands in the log.
    pub membership_at: Option<LogIdRecord>,
    /// The membership.
    pub membership: MembershipRecord,
}

impl From<&SnapshotMeta> for PositionRecord {
    fn from(meta: &SnapshotMeta) -> PositionRecord {
        PositionRecord {
            last: meta.last_log_id.map(Into::into),
            membership_at: meta.last_membership.log_id().map(Into::into),
            membership: meta.last_membership.membership().into(),
        }
    }
}
impl TryFrom<PositionRecord> for SnapshotMeta {
    type Error = io::Error;
    fn try_from(record: PositionRecord) -> io::Result<SnapshotMeta> {
        Ok(SnapshotMeta {
            last_log_id: record.last.map(Into::into),
            last_membership: StoredMembership::new(
                record.membership_at.map(Into::into),
                record.membership.try_into()?,
            ),
        })
    }
}

/// What an entry holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PayloadRecord {
    /// Nothing: a new leader's first entry.
    Blank,
    /// An encoded proposal.
    Normal(Bytes),
    /// A membership.
    Membership(MembershipRecord),
}

/// A log entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EntryRecord {
    /// Its position.
    pub id: LogIdRecord,
    /// What it holds.
    pub payload: PayloadRecord,
}

impl From<&Entry> for EntryRecord {
    fn from(entry: &Entry) -> EntryRecord {
        let payload = match &entry.payload {
            EntryPayload::Blank => PayloadRecord::Blank,
            EntryPayload::Normal(logged) => PayloadRecord::Normal(logged.encoded().clone()),
            EntryPayload::Membership(membership) => PayloadRecord::Membership(membership.into()),
        };
        EntryRecord { id: entry.log_id.into(), payload }
    }
}
impl EntryRecord {
    /// The entry.
    ///
    /// # Errors
    /// When this version does not know what it holds.
    pub fn into_entry(self) -> io::Result<Entry> {
        let record = self;
        let payload = match record.payload {
            PayloadRecord::Blank => EntryPayload::Blank,
            PayloadRecord::Normal(encoded) => {
                EntryPayload::Normal(Logged::decode(encoded).map_err(|error| {
                    let text = format!(
                        "log entry {} holds a proposal that this version cannot read: {error}",
                        record.id.index
                    );
                    io::Error::new(io::ErrorKind::InvalidData, text)
                })?)
            }
            PayloadRecord::Membership(membership) => EntryPayload::Membership(membership.try_into()?),
        };
        Ok(Entry { log_id: record.id.into(), payload })
    }
}

/// About how many bytes an entry takes in memory and on disk.
pub(crate) fn entry_bytes(entry: &Entry) -> usize {
    const FIXED: usize = 160;
    match &entry.payload {
        // The proposal is held twice: encoded, and as what it is.
        EntryPayload::Normal(logged) => FIXED + 2 * logged.encoded().len(),
        EntryPayload::Blank => FIXED,
        EntryPayload::Membership(membership) => {
            FIXED + membership.nodes().map(|(_, node)| 64 + node.name.len() + node.addr.len()).sum::<usize>()
        }
    }
}

/// Adds the frame of `entry` to `out`.
///
/// # Errors
/// When it is too long for a frame.
pub fn encode_entry(entry: &Entry, out: &mut Vec<u8>) -> Result<(), EncodeError> {
    codec::encode_into(FrameKind::Entry, &EntryRecord::from(entry), out)
}

/// What a log records beside entries. Enums only grow at their end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LogOp {
    /// All entries after this index are gone; `None`: all of them.
    Truncate(Option<u64>),
    /// All entries up to this one are gone.
    Purge(LogIdRecord),
    /// The vote.
    Vote(VoteRecord),
    /// Up to where the log is known to be committed.
    Committed(Option<LogIdRecord>),
}

/// Adds the frame of `op` to `out`.
///
/// # Errors
/// Never, in truth: it is short.
pub(crate) fn encode_op(op: &LogOp, out: &mut Vec<u8>) -> Result<(), EncodeError> {
    codec::encode_into(FrameKind::Row, op, out)
}

/// Reads one frame that is no entry's, its length included.
///
/// # Errors
/// When it is damaged, or this version does not know it.
pub(crate) fn decode_op(frame: &[u8]) -> io::Result<LogOp> {
    codec::decode_whole(FrameKind::Row, frame).map_err(|error| {
        io::Error::new(io::ErrorKind::InvalidData, format!("the log cannot be read: {error}"))
    })
}

/// Index of the entry that is in `frame`, its length included, which was found whole; `None` if it
/// holds no entry.
pub(crate) fn entry_index(frame: &[u8]) -> io::Result<Option<u64>> {
    const KIND: usize = 5;
    if frame.get(KIND) != Some(&(FrameKind::Entry as u8)) {
        return Ok(None);
    }
    match postcard::take_from_bytes::<LogIdRecord>(&frame[KIND + 1..]) {
        Ok((id, _)) => Ok(Some(id.index)),
        Err(error) => {
            Err(io::Error::new(io::ErrorKind::InvalidData, format!("a log entry cannot be read: {error}")))
        }
    }
}

/// Reads one frame, its length included.
///
/// # Errors
/// When it is damaged, or this version does not know what it holds: the node must not go on.
pub fn decode_entry(frame: &[u8]) -> io::Result<Entry> {
    let record: EntryRecord = codec::decode_whole(FrameKind::Entry, frame).map_err(|error| {
        io::Error::new(io::ErrorKind::InvalidData, format!("a log entry cannot be read: {error}"))
    })?;
    record.into_entry()
}

/// Takes the first frame, its length included, off `frames`; `None` when nothing is left.
///
/// # Errors
/// When what is left is less than a frame.
pub(crate) fn split_frame<'a>(frames: &mut &'a [u8]) -> io::Result<Option<&'a [u8]>> {
    if frames.is_empty() {
        return Ok(None);
    }
    let cut = frames
        .first_chunk::<4>()
        .map(|length| 4 + u32::from_le_bytes(*length) as usize)
        .filter(|cut| *cut <= frames.len())
        .ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidData, "a record of the log ends in the middle of a frame")
        })?;
    let (frame, rest) = frames.split_at(cut);
    *frames = rest;
    Ok(Some(frame))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use quorumfs_api::command::{Command, Proposal};
    use quorumfs_api::record::Timestamp;

    fn id(term: u64, node: u64, index: u64) -> LogId {
        LogId { leader_id: LeaderId { term, node_id: node }, index }
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn entries_have_the_bytes_of_version_1() {
        let member = MemberNode { name: "a".into(), addr: "h:1".into() };
        let proposal = Proposal {
            time: Timestamp(5),
            author: "me".into(),
            node: false,
            session: None,
            value_max: 1,
            store_max: 2,
            command: Command::LeaseGrant { ttl_ms: 3 },
        };
        let entries = [
            (EntryPayload::Blank, GOLDEN_BLANK),
            (EntryPayload::Normal(Logged::new(proposal).unwrap()), GOLDEN_NORMAL),
            (
                EntryPayload::Membership(
                    Membership::new(vec![[7].into()], BTreeMap::from([(7, member)])).unwrap(),
                ),
                GOLDEN_MEMBERSHIP,
            ),
        ];
        let mut found = Vec::new();
        let mut expected = Vec::new();
        for (payload, golden) in entries {
            let entry = Entry { log_id: id(1, 2, 300), payload };
            let mut frame = Vec::new();
            encode_entry(&entry, &mut frame).unwrap();
            found.push(hex(&frame));
            expected.push(golden);
            let read = decode_entry(&frame).unwrap();
            assert_eq!(read.log_id, entry.log_id);
            assert_eq!(read.payload, entry.payload);
        }
        assert_eq!(found, expected);
    }

    const GOLDEN_BLANK: &str = "0b00000001060102ac02006a107f98";
    const GOLDEN_NORMAL: &str = "1600000001060102ac02010a0a026d65000001020c03c98a1771";
    const GOLDEN_MEMBERSHIP: &str = "1600000001060102ac02020101070107016103683a312d423ecd";

    #[test]
    fn a_changed_byte_is_found() {
        let mut frame = Vec::new();
        encode_entry(&Entry { log_id: id(1, 2, 3), payload: EntryPayload::Blank }, &mut frame).unwrap();
        for at in 0..frame.len() {
            let mut bad = frame.clone();
            bad[at] ^= 1;
            assert!(decode_entry(&bad).is_err(), "byte {at}");
        }
        let mut rest = frame.as_slice();
        assert_eq!(split_frame(&mut rest).unwrap(), Some(frame.as_slice()));
        assert_eq!(split_frame(&mut rest).unwrap(), None);
        assert!(split_frame(&mut &frame[..frame.len() - 1]).is_err());
    }
}
