//! Changing the cluster.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use openraft::ChangeMembers;
use quorumfs_api::wire::{Admin, Answer, Failure, Member};
use quorumfs_store::{MemberNode, StoredMembership};
use tokio::time::Instant;

use super::{Context, failures};
use crate::config::split_addr;
use crate::progress;

/// Entries that a learner may lack when it is made a voter: what it still lacks must not keep the
/// cluster from committing for long.
const CAUGHT_UP: u64 = 100;
/// How often openraft's own progress is looked at.
const POLL: Duration = Duration::from_millis(20);

/// Does what is asked, on the leader.
pub(super) async fn change(context: &Context, change: Admin, until: Instant) -> Result<Answer, Failure> {
    match change {
        Admin::AddLearner(member) => add_learner(context, member).await,
        Admin::Promote(id) => promote(context, id, until).await,
        Admin::Remove(id) => remove(context, id).await,
        Admin::Transfer(to) => transfer(context, to, until).await.map(|()| Answer::Done),
        Admin::Snapshot => snapshot(context, until).await,
    }
}

fn membership(context: &Context) -> StoredMembership {
    progress::now(&context.raft.metrics()).membership_config.as_ref().clone()
}

/// A node that does not lead says who does, before it says anything else.
fn must_lead(context: &Context) -> Result<(), Failure> {
    let forward = match context.raft.as_leader() {
        Ok(_) => return Ok(()),
        Err(forward) => forward,
    };
    Err(failures::not_leader(&context.raft, &forward))
}

fn bad(why: impl Into<String>) -> Failure {
    Failure::BadRequest(why.into())
}

async fn apply(
    context: &Context,
    change: ChangeMembers<u64, MemberNode>,
    retain: bool,
) -> Result<Answer, Failure> {
    let changed: Result<_, _> = context.raft.change_membership(change, retain).await;
    match changed {
        Ok(_) => Ok(Answer::Done),
        Err(error) => Err(failures::write(&context.raft, &error)),
    }
}

async fn add_learner(context: &Context, member: Member) -> Result<Answer, Failure> {
    must_lead(context)?;
    if member.id == 0 {
        return Err(bad("ids begin at 1"));
    }
    if let Err(error) = certs::Identity::new(certs::Role::Node, member.name.as_str()) {
        return Err(bad(error.to_string()));
    }
    split_addr(&member.addr).map_err(bad)?;
    for (id, node) in membership(context).nodes() {
        if *id == member.id && node.name == member.name && node.addr == member.addr {
            // A joining node asks until it is heard: it is a member already.
            return Ok(Answer::Done);
        }
        if *id == member.id {
            return Err(bad(format!(
                "id {id} belongs to {node}; ids are never used again, so choose another"
            )));
        }
        if node.name == member.name {
            return Err(bad(format!("the name {} belongs to node {id}; remove that one first", node.name)));
        }
        if node.addr == member.addr {
            return Err(bad(format!("the address {} belongs to node {id} ({})", node.addr, node.name)));
        }
    }
    let node = MemberNode { name: member.name, addr: member.addr };
    match context.raft.add_learner(member.id, node, false).await {
        Ok(_) => Ok(Answer::Done),
        Err(error) => Err(failures::write(&context.raft, &error)),
    }
}

async fn promote(context: &Context, id: u64, until: Instant) -> Result<Answer, Failure> {
    must_lead(context)?;
    let members = membership(context);
    if members.get_node(&id).is_none() {
        return Err(bad(format!("node {id} is no member; add it first")));
    }
    if members.voter_ids().any(|voter| voter == id) {
        return Ok(Answer::Done);
    }
    loop {
        must_lead(context)?;
        let (last, matched) = {
            let metrics = progress::now(&context.raft.metrics());
            let matched = metrics.replication.as_ref().and_then(|all| all.get(&id).copied().flatten());
            (metrics.last_log_index.unwrap_or(0), matched.map(|at| at.index))
        };
        if matched.is_some_and(|matched| matched + CAUGHT_UP >= last) {
            break;
        }
        if Instant::now() + POLL >= until {
            let has = matched.unwrap_or(0);
            return Err(Failure::Unavailable(format!(
                "node {id} has not caught up: it has {has} of {last} entries"
            )));
        }
        tokio::time::sleep(POLL).await;
    }
    apply(context, ChangeMembers::AddVoterIds(BTreeSet::from([id])), false).await
}

async fn remove(context: &Context, id: u64) -> Result<Answer, Failure> {
    must_lead(context)?;
    let members = membership(context);
    if members.get_node(&id).is_none() {
        return Ok(Answer::Done);
    }
    let voters: Vec<u64> = members.voter_ids().collect();
    if voters == [id] {
        return Err(bad(format!("node {id} is the only voter: without it there is no cluster")));
    }
    if voters.contains(&id) {
        // It goes altogether: a voter that is removed does not stay as a learner.
        apply(context, ChangeMembers::RemoveVoters(BTreeSet::from([id])), false).await
    } else {
        apply(context, ChangeMembers::RemoveNodes(BTreeSet::from([id])), false).await
    }
}

/// Hands leadership to `to`, or to the voter whose log is the longest, and waits until it is taken.
pub async fn transfer(context: &Context, to: Option<u64>, until: Instant) -> Result<(), Failure> {
    must_lead(context)?;
    let me = context.config.id;
    let members = membership(context);
    let to = match to {
        Some(to) if members.voter_ids().all(|voter| voter != to) => {
            return Err(bad(format!("node {to} is no voter")));
        }
        Some(to) => to,
        None => best_voter(context, &members).ok_or_else(|| bad("there is no other voter to lead"))?,
    };
    if to == me {
        return Ok(());
    }
    context.raft.trigger().transfer_leader(to).await.map_err(|error| failures::fatal(&error))?;
    let mut metrics = context.raft.metrics();
    let moved = progress::wait_for(&mut metrics, |now| now.current_leader.is_some_and(|leader| leader != me));
    match tokio::time::timeout_at(until, moved).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(_)) => Err(failures::stopped()),
        Err(_) => Err(Failure::Unavailable(format!("node {to} has not taken the leadership over in time"))),
    }
}

/// The other voter whose log reaches furthest.
fn best_voter(context: &Context, members: &StoredMembership) -> Option<u64> {
    let metrics = progress::now(&context.raft.metrics());
    let replication: &BTreeMap<u64, _> = metrics.replication.as_ref()?;
    let others = members.voter_ids().filter(|voter| *voter != context.config.id);
    others.max_by_key(|voter| replication.get(voter).copied().flatten().map(|at| at.index))
}

async fn snapshot(context: &Context, until: Instant) -> Result<Answer, Failure> {
    let wanted = progress::now(&context.raft.metrics()).last_applied.map_or(0, |at| at.index);
    if wanted == 0 {
        return Ok(Answer::Done);
    }
    let fatal = |error| failures::fatal(&error);
    context.raft.trigger().snapshot().await.map_err(fatal)?;
    let mut metrics = context.raft.metrics();
    let built = progress::wait_for(&mut metrics, |now| now.snapshot.is_some_and(|at| at.index >= wanted));
    match tokio::time::timeout_at(until, built).await {
        Ok(Ok(_)) => {}
        Ok(Err(_)) => return Err(failures::stopped()),
        Err(_) => return Err(Failure::Unavailable("the snapshot takes longer than that; it goes on".into())),
    }
    context.raft.trigger().purge_log(wanted).await.map_err(fatal)?;
    Ok(Answer::Done)
}
