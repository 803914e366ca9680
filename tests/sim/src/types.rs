//! The types of openraft here: those of a real node, but for the runtime.

use quorumfs_api::outcome::Outcome;
use quorumfs_store::{Logged, MemberNode};

use crate::machine::Machine;
use crate::runtime::SimRuntime;

#[allow(deprecated, missing_docs)]
mod config {
    use super::{Logged, MemberNode, Outcome, SimRuntime};
    openraft::declare_raft_types!(
        /// The choices that openraft leaves to its user.
        pub SimConfig:
            D = Logged,
            R = Outcome,
            NodeId = u64,
            Node = MemberNode,
            AsyncRuntime = SimRuntime,
    );
}
pub use config::SimConfig;

/// A running member.
pub type Raft = openraft::Raft<SimConfig, Machine>;
/// A snapshot, as its bytes.
pub type Snapshot = openraft::type_config::alias::SnapshotOf<SimConfig, bytes::Bytes>;
