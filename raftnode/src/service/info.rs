//! What a node says about itself, its cluster, leases and locks.

use std::sync::Arc;

use quorumfs_api::Key;
use quorumfs_api::record::{Ino, LeaseId};
use quorumfs_api::rights::Access;
use quorumfs_api::wire::{Answer, Failure, Member, Status};
use quorumfs_machine::view;
use quorumfs_policy::Who;
use quorumfs_store::StoredMembership;

use super::{Context, denial, failures, read};
use crate::progress;

/// Most leases that one answer names.
const LEASES_MAX: usize = 65_536;

/// All members of a cluster.
pub fn members(membership: &StoredMembership) -> Vec<Member> {
    let voters: Vec<u64> = membership.voter_ids().collect();
    let member = |(id, node): (&u64, &quorumfs_store::MemberNode)| Member {
        id: *id,
        name: node.name.clone(),
        addr: node.addr.clone(),
        voter: voters.contains(id),
    };
    membership.nodes().map(member).collect()
}

/// This node, and the cluster as it sees it.
pub fn status(context: &Context) -> Result<Status, Failure> {
    let meta = context.state.read(|tables| view::meta(tables)).map_err(read::broken)?;
    let raft = progress::now(&context.raft.metrics());
    Ok(Status {
        id: context.config.id,
        name: context.config.name.clone(),
        version: env!("CARGO_PKG_VERSION").into(),
        leader: raft.current_leader,
        term: raft.current_term,
        last_log_index: raft.last_log_index.unwrap_or(0),
        applied_index: raft.last_applied.map_or(0, |id| id.index),
        snapshot_index: raft.snapshot.map_or(0, |id| id.index),
        revision: meta.revision,
        compacted: meta.compacted,
        keys: meta.keys,
        store_bytes: meta.store_bytes,
        store_max: context.config.store_max,
        watches: context.bounds.watches() as u64,
        members: members(&raft.membership_config),
    })
}

/// One lease with its keys, or all without. Of others' leases only admins hear, where there is a policy.
pub(super) async fn leases(
    context: &Arc<Context>,
    who: Who<'_>,
    lease: Option<LeaseId>,
) -> Result<Answer, Failure> {
    if let Some(lease) = lease {
        denial::check_lease(context, who, lease)?;
    }
    let state = context.state.clone();
    let read = tokio::task::spawn_blocking(move || {
        state.read(|tables| match lease {
            Some(lease) => Ok(view::lease(tables, lease)?.into_iter().collect()),
            None => view::leases(tables),
        })
    });
    let mut found = read.await.map_err(|_| failures::stopped())?.map_err(read::broken)?;
    if let (Some(lease), true) = (lease, found.is_empty()) {
        return Err(Failure::NoLease(lease));
    }
    if denial::is_governed(context, who) {
        found.retain(|info| info.author == who.name);
    }
    found.truncate(LEASES_MAX);
    for info in &mut found {
        info.remaining_ms = context.leases.remaining(info.id).map(|left| left.as_millis() as u64);
    }
    Ok(Answer::Leases(found))
}

/// The locks on a file.
pub(super) fn locks(context: &Context, who: Who<'_>, ino: Ino) -> Result<Answer, Failure> {
    let key = context.state.read(|tables| {
        let rights = tables.policy().rights(who);
        if rights.covers(&Key::root(), Access::Read) {
            return Ok(None);
        }
        let key = view::key_of(tables, ino)?.filter(|key| rights.access(key) < Access::Read);
        Ok(key.map(|key| (key, rights)))
    });
    if let Some((key, rights)) = key.map_err(read::broken)? {
        return Err(denial::refuse(context, &rights, who, "read the locks of", &key));
    }
    context.state.read(|tables| view::locks(tables, ino)).map(Answer::Locks).map_err(read::broken)
}
