//! What members say to each other. The format is ours, not openraft's: an upgrade of the library
//! cannot change it behind our back, and the golden-byte tests below hold it fast. Enums only grow at
//! their end.
//!
//! Every stream on a peer connection is opened by the one that dialled, and begins with a [`Hello`]:
//!
//! - **append**: [`AppendRequest`]s, each answered in order with an [`AppendReply`]; after one that is
//!   not `Matched` the stream ends;
//! - **vote**, **pre-vote**, **transfer**: one request, one reply;
//! - **snapshot**: a [`SnapshotStart`], the bytes of the file, then one [`SnapshotReply`].

use bytes::Bytes;
use quorumfs_api::codec::{self, DecodeError, EncodeError, FrameKind};
use quorumfs_store::format::{EntryRecord, LogIdRecord, VoteRecord};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::io::AsyncRead;

/// First frame of each stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Id of the member that speaks.
    pub from: u64,
    /// Its name, which its certificate must carry.
    pub name: String,
    /// Id of the member that is meant: after an address was given to another node, its old owner's
    /// messages must not reach the new one.
    pub to: u64,
    /// What the stream is for.
    pub purpose: Purpose,
}

/// What a stream is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Purpose {
    /// Log entries and heartbeats.
    Append,
    /// A vote.
    Vote,
    /// A vote that would be given, were one asked for.
    PreVote,
    /// Leadership is handed over.
    Transfer,
    /// A snapshot.
    Snapshot,
}

/// Entries, or none for a heartbeat.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppendRequest {
    /// The leader's mandate.
    pub vote: VoteRecord,
    /// The entry before the first of these.
    pub prev: Option<LogIdRecord>,
    /// What is committed.
    pub commit: Option<LogIdRecord>,
    /// The entries, in order.
    pub entries: Vec<EntryRecord>,
}

/// Answer to one [`AppendRequest`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AppendReply {
    /// The log agrees up to here, and is on disk.
    Matched(Option<LogIdRecord>),
    /// The log does not hold this entry.
    Conflict(LogIdRecord),
    /// A later leader is known.
    HigherVote(VoteRecord),
}

/// Asks for a vote.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VoteRequest {
    /// The vote that is wanted.
    pub vote: VoteRecord,
    /// End of the candidate's log.
    pub last: Option<LogIdRecord>,
    /// The leader itself asked for this election, so its lease is no reason to refuse.
    pub transfer: bool,
}

/// Answer to a [`VoteRequest`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VoteReply {
    /// The vote that stands now.
    pub vote: VoteRecord,
    /// Whether it was given.
    pub granted: bool,
    /// End of the voter's log.
    pub last: Option<LogIdRecord>,
}

/// Hands leadership over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransferRequest {
    /// Mandate of the leader that goes.
    pub from: VoteRecord,
    /// Who shall lead.
    pub to: u64,
    /// How far its log must reach.
    pub last: Option<LogIdRecord>,
}

/// Answer to a [`TransferRequest`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TransferReply {
    /// It stands for election.
    Accepted,
    /// Another vote stands.
    VoteChanged {
        /// The one that was named.
        expected: VoteRecord,
        /// The one that stands.
        actual: VoteRecord,
    },
    /// Its log does not reach far enough.
    LogNotFlushed {
        /// Where it should reach.
        expected: Option<LogIdRecord>,
        /// Where it does.
        actual: Option<LogIdRecord>,
    },
}

/// What comes before a snapshot's content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotStart {
    /// The leader's mandate.
    pub vote: VoteRecord,
    /// Bytes of content, which follow as they are: the file says itself what it is of, and is checked
    /// as a whole before it is used.
    pub bytes: u64,
}

/// Answer to a whole snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotReply {
    /// The vote that stands now.
    pub vote: VoteRecord,
}

/// One frame of a message.
pub fn encode<T: Serialize>(message: &T) -> Result<Bytes, EncodeError> {
    codec::encode(FrameKind::Peer, message)
}

/// Reads one message; the end of the stream is an error.
pub async fn read<T: DeserializeOwned, R: AsyncRead + Unpin>(stream: &mut R) -> Result<T, DecodeError> {
    codec::read(FrameKind::Peer, stream)
        .await?
        .ok_or_else(|| std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;
    use quorumfs_store::MemberNode;
    use quorumfs_store::format::{MembershipRecord, PayloadRecord};

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|b| format!("{b:02x}")).collect()
    }

    const VOTE: VoteRecord = VoteRecord { term: 3, node: 2, committed: true };
    const ID: LogIdRecord = LogIdRecord { term: 3, node: 2, index: 300 };

    /// What version 1 writes. A change here is a change of the protocol: it needs a new version.
    #[test]
    fn golden_bytes() {
        let member = MemberNode { name: "n1".into(), addr: "h:1".into() };
        let membership = MembershipRecord { configs: vec![vec![1, 2]], nodes: vec![(1, member)] };
        let append = AppendRequest {
            vote: VOTE,
            prev: Some(ID),
            commit: None,
            entries: vec![
                EntryRecord { id: ID, payload: PayloadRecord::Blank },
                EntryRecord { id: ID, payload: PayloadRecord::Normal(Bytes::from_static(b"xyz")) },
                EntryRecord { id: ID, payload: PayloadRecord::Membership(membership) },
            ],
        };
        let body = |frame: Bytes| hex(&frame[6..frame.len() - 4]);
        let hello = Hello { from: 1, name: "n1".into(), to: 2, purpose: Purpose::Snapshot };
        assert_eq!(body(encode(&hello).unwrap()), "01026e310204");
        assert_eq!(
            body(encode(&append).unwrap()),
            "030201010302ac0200030302ac02000302ac02010378797a0302ac0202010201020101026e3103683a31"
        );
        assert_eq!(body(encode(&AppendReply::Matched(Some(ID))).unwrap()), "00010302ac02");
        assert_eq!(body(encode(&AppendReply::Conflict(ID)).unwrap()), "010302ac02");
        assert_eq!(body(encode(&AppendReply::HigherVote(VOTE)).unwrap()), "02030201");
        assert_eq!(
            body(encode(&VoteRequest { vote: VOTE, last: Some(ID), transfer: true }).unwrap()),
            "030201010302ac0201"
        );
        assert_eq!(body(encode(&VoteReply { vote: VOTE, granted: true, last: None }).unwrap()), "0302010100");
        assert_eq!(body(encode(&TransferRequest { from: VOTE, to: 9, last: None }).unwrap()), "0302010900");
        assert_eq!(body(encode(&TransferReply::Accepted).unwrap()), "00");
        assert_eq!(body(encode(&SnapshotStart { vote: VOTE, bytes: 4 }).unwrap()), "03020104");
        assert_eq!(body(encode(&SnapshotReply { vote: VOTE }).unwrap()), "030201");
    }

    proptest! {
        /// Bytes from a stranger give an error or a message, never a panic.
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            let _ = codec::decode::<AppendRequest>(FrameKind::Peer, &bytes);
            let mut framed = vec![codec::VERSION, FrameKind::Peer as u8];
            framed.extend_from_slice(&bytes);
            let crc = crc32fast::hash(&framed);
            framed.extend_from_slice(&crc.to_le_bytes());
            let _ = codec::decode::<AppendRequest>(FrameKind::Peer, &framed);
            let _ = codec::decode::<SnapshotStart>(FrameKind::Peer, &framed);
            let _ = codec::decode::<Hello>(FrameKind::Peer, &framed);
        }
    }
}
