//! What the policy denies before anything is proposed: reads, and changes of the cluster. Writes are
//! judged by the state machine. Every denial is told to whoever asked, and goes to the log.

use super::{Context, read};
use quorumfs_api::Key;
use quorumfs_api::record::LeaseId;
use quorumfs_api::rights::{Access, Rights};
use quorumfs_api::wire::Failure;
use quorumfs_machine::view;
use quorumfs_policy::{ADMIN, Who};

fn denied(context: &Context, why: String) -> Failure {
    context.denials.log(&why);
    Failure::Denied(why)
}

/// The refusal of a read.
pub(super) fn refuse(context: &Context, rights: &Rights, who: Who<'_>, what: &str, key: &Key) -> Failure {
    denied(context, rights.refusal(&who.to_string(), what, key, Access::Read))
}

/// Whether the policy denies this identity altogether, and why.
pub(crate) fn cut_off(context: &Context, who: Who<'_>) -> Option<String> {
    let line = context.state.policy().rights(who).cut_off?;
    Some(format!("{who} is denied by line {line} of the policy"))
}

/// Refuses those whom the policy denies altogether.
pub(super) fn check_identity(context: &Context, who: Who<'_>) -> Result<(), Failure> {
    cut_off(context, who).map_or(Ok(()), |why| Err(denied(context, why)))
}

/// Refuses those who are no admins.
pub(super) fn check_admin(context: &Context, who: Who<'_>) -> Result<(), Failure> {
    let policy = context.state.policy();
    if policy.rights(who).admin {
        return Ok(());
    }
    let why = match policy.policy() {
        Some(_) => format!("{who} may not change the cluster: no rule of the policy makes it an admin"),
        None => format!(
            "{who} may not change the cluster: there is no policy, so that only nodes and the client {ADMIN:?} may"
        ),
    };
    Err(denied(context, why))
}

/// Whether others' leases are none of its business.
pub(super) fn is_governed(context: &Context, who: Who<'_>) -> bool {
    let policy = context.state.policy();
    policy.policy().is_some() && !policy.rights(who).admin
}

/// Refuses those whose lease it is not. One that does not exist is nobody's.
pub(super) fn check_lease(context: &Context, who: Who<'_>, lease: LeaseId) -> Result<(), Failure> {
    if !is_governed(context, who) {
        return Ok(());
    }
    let info = context.state.read(|tables| view::lease_author(tables, lease)).map_err(read::broken)?;
    match info {
        Some(author) if author != who.name => {
            Err(denied(context, format!("lease {lease} belongs to {author}, not to {who}")))
        }
        _ => Ok(()),
    }
}
