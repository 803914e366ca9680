//! What openraft's errors are to a client.

use openraft::errors::{ChangeMembershipError, ClientWriteError, Fatal, ForwardToLeader, RaftError};
use quorumfs_api::wire::{Failure, Member};
use quorumfs_store::{Raft, TypeConfig};

use crate::progress;

/// The node is stopping.
pub fn stopped() -> Failure {
    Failure::Unavailable("the node is stopping".into())
}

/// Raft has stopped.
pub fn fatal(error: &Fatal<TypeConfig>) -> Failure {
    match error {
        Fatal::Stopped => stopped(),
        other => Failure::Unavailable(format!("the node has failed: {other}")),
    }
}

/// This node does not lead. A leader that has lost its quorum names itself, which helps nobody.
pub fn not_leader(raft: &Raft, forward: &ForwardToLeader<TypeConfig>) -> Failure {
    let leader = forward.leader_id.filter(|id| id != raft.node_id());
    Failure::NotLeader(leader.and_then(|id| {
        let node = forward.leader_node.clone().or_else(|| {
            let membership = progress::now(&raft.metrics()).membership_config;
            membership.get_node(&id).cloned()
        })?;
        Some(Member { id, name: node.name, addr: node.addr, voter: true })
    }))
}

/// A proposal came to nothing, or to nobody knows what.
pub fn write(raft: &Raft, error: &RaftError<TypeConfig, ClientWriteError<TypeConfig>>) -> Failure {
    match error {
        RaftError::Fatal(error) => fatal(error),
        RaftError::APIError(error) => proposal(raft, error),
    }
}

/// A proposal that Raft took came to nothing, or to nobody knows what.
pub fn proposal(raft: &Raft, error: &ClientWriteError<TypeConfig>) -> Failure {
    match error {
        ClientWriteError::ForwardToLeader(forward) => not_leader(raft, forward),
        // It may be committed by the next leader, or not: the client asks again with the same number.
        ClientWriteError::LogEntryDiscarded(_) => Failure::NoQuorum,
        ClientWriteError::ChangeMembershipError(error) => match error {
            ChangeMembershipError::InProgress(_) | ChangeMembershipError::UncommittedLeaderLog(_) => {
                Failure::Busy("another change of the cluster is under way".into())
            }
            other => Failure::BadRequest(other.to_string()),
        },
        ClientWriteError::PreconditionFailed(error) => Failure::BadRequest(error.to_string()),
    }
}
