//! Changing the store: everything goes through the log.

use quorumfs_api::command::{Command, Proposal, RequestId};
use quorumfs_api::outcome::{Done, Outcome, Refusal};
use quorumfs_api::record::LeaseId;
use quorumfs_api::wire::{Answer, Failure};
use quorumfs_machine::view;
use quorumfs_policy::Who;
use quorumfs_store::Logged;
use tokio::time::Instant;

use super::{Context, denial, read};
use crate::lease::Renewal;

/// Proposes `command` for `author`, and waits for its outcome.
pub(super) async fn write(
    context: &Context,
    who: Who<'_>,
    session: Option<RequestId>,
    command: Command,
) -> Result<Answer, Failure> {
    if matches!(command, Command::LeaseExpire { .. }) {
        return Err(Failure::BadRequest("only the leader ends leases whose time is up; revoke it".into()));
    }
    let revokes = match &command {
        Command::LeaseRevoke { lease } => Some(*lease),
        _ => None,
    };
    let outcome = propose(context, who, session, command).await?;
    // Whoever writes in a session is alive.
    if let Some(id) = session {
        context.leases.renew(id.session);
    }
    if let Err(Refusal::Denied(why)) = &outcome.result {
        context.denials.log(why);
    }
    match (&outcome.result, revokes) {
        (Ok(Done::Lease { id, ttl_ms }), _) => context.leases.granted(*id, *ttl_ms),
        (Ok(_), Some(lease)) => context.leases.ended(lease),
        _ => {}
    }
    Ok(Answer::Written(outcome))
}

/// Puts a command into the log.
pub async fn propose(
    context: &Context,
    who: Who<'_>,
    session: Option<RequestId>,
    command: Command,
) -> Result<Outcome, Failure> {
    let proposal = Proposal {
        time: context.clock.now(),
        author: who.name.to_owned(),
        node: who.node,
        session,
        value_max: context.config.value_max,
        store_max: context.config.store_max,
        command,
    };
    let logged = Logged::new(proposal).map_err(|error| Failure::BadRequest(error.to_string()))?;
    context.proposer.propose(logged).await
}

/// Renews a lease, after a quorum has confirmed that this node leads: a leader that was deposed
/// without knowing must not promise anything.
pub(super) async fn keep_alive(
    context: &Context,
    who: Who<'_>,
    lease: LeaseId,
    until: Instant,
) -> Result<Answer, Failure> {
    context.linear.read(until).await?;
    denial::check_lease(context, who, lease)?;
    match context.leases.renew(lease) {
        Renewal::Renewed(ttl) => Ok(Answer::KeptAlive(ttl.as_millis() as u64)),
        Renewal::Ending => Err(Failure::NoLease(lease)),
        Renewal::Unknown => {
            // It may have been granted before this node took its leases over.
            match context.state.read(|tables| view::lease(tables, lease)).map_err(read::broken)? {
                Some(info) => {
                    context.leases.granted(lease, info.ttl_ms);
                    Ok(Answer::KeptAlive(info.ttl_ms))
                }
                None => Err(Failure::NoLease(lease)),
            }
        }
    }
}
