//! The types that openraft is instantiated with. The rest of the program names them from here, so
//! that a new release of openraft changes this file.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use openraft::type_config::alias;
use quorumfs_api::codec::EncodeError;
use quorumfs_api::command::Proposal;
use quorumfs_api::limits::FRAME_MAX;
use quorumfs_api::outcome::Outcome;
use serde::de::{Error as _, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Number of a member. It is never given to another: a wiped node comes back under a new one.
pub type NodeId = u64;

/// What the cluster knows of a member beside its number.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberNode {
    /// Its name, as in its certificate.
    pub name: String,
    /// Where other members and clients reach it: `HOST:PORT`.
    pub addr: String,
}

impl fmt::Display for MemberNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}", self.name, self.addr)
    }
}

/// A proposal as the log carries it: the proposal and its encoding, both shared. It is encoded once,
/// by whoever proposes it; the log, each replication stream and each log of a follower only copy
/// these bytes.
#[derive(Clone)]
pub struct Logged(Arc<Shared>);

struct Shared {
    proposal: Proposal,
    encoded: Bytes,
}

impl Logged {
    /// Room in a frame for what surrounds a proposal, in bytes.
    const FRAME_ROOM: usize = 1 << 10;

    /// Encodes `proposal`.
    ///
    /// # Errors
    /// When it is too long for a frame.
    pub fn new(proposal: Proposal) -> Result<Logged, EncodeError> {
        let encoded = postcard::to_stdvec(&proposal)?;
        if encoded.len() > FRAME_MAX - Self::FRAME_ROOM {
            return Err(EncodeError::TooLong(encoded.len()));
        }
        Ok(Logged(Arc::new(Shared { proposal, encoded: encoded.into() })))
    }

    /// Reads what [`Logged::new`] encoded.
    ///
    /// # Errors
    /// When these bytes are not a proposal that this version knows.
    pub fn decode(encoded: Bytes) -> Result<Logged, postcard::Error> {
        let (proposal, rest) = postcard::take_from_bytes(&encoded)?;
        if !rest.is_empty() {
            return Err(postcard::Error::DeserializeBadEncoding);
        }
        Ok(Logged(Arc::new(Shared { proposal, encoded })))
    }

    /// The proposal.
    pub fn proposal(&self) -> &Proposal {
        &self.0.proposal
    }

    /// Its encoding.
    pub fn encoded(&self) -> &Bytes {
        &self.0.encoded
    }
}

impl PartialEq for Logged {
    fn eq(&self, other: &Logged) -> bool {
        self.0.encoded == other.0.encoded
    }
}
impl Eq for Logged {}

impl fmt::Debug for Logged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.proposal.fmt(f)
    }
}
impl fmt::Display for Logged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a proposal of {} ({} bytes)", self.0.proposal.author, self.0.encoded.len())
    }
}

impl Serialize for Logged {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0.encoded)
    }
}

impl<'de> Deserialize<'de> for Logged {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Logged, D::Error> {
        struct Encoded;
        impl Visitor<'_> for Encoded {
            type Value = Logged;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the bytes of a proposal")
            }
            fn visit_bytes<E: serde::de::Error>(self, bytes: &[u8]) -> Result<Logged, E> {
                Logged::decode(Bytes::copy_from_slice(bytes)).map_err(E::custom)
            }
            fn visit_byte_buf<E: serde::de::Error>(self, bytes: Vec<u8>) -> Result<Logged, E> {
                Logged::decode(bytes.into()).map_err(E::custom)
            }
        }
        deserializer.deserialize_bytes(Encoded).map_err(D::Error::custom)
    }
}

#[allow(deprecated, missing_docs)]
mod config {
    use super::{Logged, MemberNode, NodeId, Outcome};
    openraft::declare_raft_types!(
        /// All choices that openraft leaves to its user.
        pub TypeConfig:
            D = Logged,
            R = Outcome,
            NodeId = NodeId,
            Node = MemberNode,
    );
}
pub use config::TypeConfig;

/// Term and number of a leader.
pub type LeaderId = alias::LeaderIdOf<TypeConfig>;
/// Position in the log.
pub type LogId = alias::LogIdOf<TypeConfig>;
/// A vote for a leader.
pub type Vote = alias::VoteOf<TypeConfig>;
/// A log entry.
pub type Entry = alias::EntryOf<TypeConfig>;
/// What a log entry holds.
pub type Payload = alias::PayloadOf<TypeConfig>;
/// Who is in the cluster.
pub type Membership = openraft::Membership<NodeId, MemberNode>;
/// A membership with its position in the log.
pub type StoredMembership = alias::StoredMembershipOf<TypeConfig>;
/// What a snapshot is of.
pub type SnapshotMeta = alias::SnapshotMetaOf<TypeConfig>;
/// A snapshot with its file.
pub type Snapshot = alias::SnapshotOf<TypeConfig, crate::snapshot::SnapshotFile>;
/// Ends of the log.
pub type LogState = openraft::LogState<TypeConfig>;
/// A running member.
pub type Raft = openraft::Raft<TypeConfig, crate::machine::StateMachine>;
