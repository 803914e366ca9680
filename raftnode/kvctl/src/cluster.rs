//! `member ...`, `status` and `snapshot`.

use quorumfs_api::client::settings::with_port;
use quorumfs_api::wire::{Admin, Member as Info, Status};
use serde_json::{Value, json};

use crate::cli::{Context, Member};
use crate::error::Error;
use crate::output::size;
use crate::table::table;

/// `kvctl member`.
pub async fn member(context: &Context, member: Member) -> Result<(), Error> {
    let (admin, said) = match member {
        Member::List => return list(context).await,
        Member::Add { id, node, addr } => {
            let addr =
                with_port(&addr).map_err(|reason| Error::Usage(format!("--addr {addr:?}: {reason}")))?;
            let said = format!(
                "member {id} ({node} at {addr}) added as a learner; `kvctl member promote {id}` makes it vote"
            );
            (Admin::AddLearner(Info { id, name: node, addr, voter: false }), said)
        }
        Member::Promote { id } => (Admin::Promote(id), format!("member {id} votes")),
        Member::Remove { id } => {
            // To the cluster, taking out what is out is done: the answer to a first try may be lost.
            let status = context.client.leader_status(context.timeout()).await?;
            if !status.members.iter().any(|member| member.id == id) {
                return Err(Error::Refused(format!(
                    "there is no member {id}; `kvctl member list` names all"
                )));
            }
            (Admin::Remove(id), format!("member {id} removed"))
        }
        Member::Transfer { id } => {
            let said = match id {
                Some(id) => format!("member {id} was asked to lead"),
                None => "leadership was handed over".to_string(),
            };
            (Admin::Transfer(id), said)
        }
    };
    context.client.admin(admin, context.timeout()).await?;
    Ok(context.output.say(&said, &json!({ "done": said }))?)
}

/// `kvctl snapshot`.
pub async fn snapshot(context: &Context) -> Result<(), Error> {
    context.client.admin(Admin::Snapshot, context.timeout()).await?;
    Ok(context.output.say("snapshot written", &json!({ "done": "snapshot written" }))?)
}

async fn list(context: &Context) -> Result<(), Error> {
    let status = context.client.leader_status(context.timeout()).await?;
    if context.output.json {
        for member in &status.members {
            context.output.document(&json!({
                "id": member.id,
                "name": member.name,
                "addr": member.addr,
                "voter": member.voter,
                "leader": status.leader == Some(member.id),
            }))?;
        }
        return Ok(());
    }
    let mut rows = vec![["ID", "NAME", "ADDRESS", "ROLE"].map(String::from).to_vec()];
    rows.extend(status.members.iter().map(|member| {
        let role = match (status.leader == Some(member.id), member.voter) {
            (true, _) => "leader",
            (_, true) => "voter",
            (_, false) => "learner",
        };
        vec![member.id.to_string(), member.name.clone(), member.addr.clone(), role.to_string()]
    }));
    Ok(context.output.lines(&[table(&rows).as_bytes()])?)
}

/// `kvctl status`: fails only when no node answers.
pub async fn status(context: &Context) -> Result<(), Error> {
    // Says it well when nobody answers at all.
    context.client.status(context.timeout()).await?;
    let mut all = context.client.status_all(context.timeout()).await;
    all.sort_by_key(|(_, status)| status.as_ref().map_or(u64::MAX, |status| status.id));
    if context.output.json {
        for (addr, status) in &all {
            let document = match status {
                Ok(status) => describe(addr, status),
                Err(error) => json!({ "addr": addr, "error": error.to_string() }),
            };
            context.output.document(&document)?;
        }
        return Ok(());
    }
    let heading = [
        "ID", "NAME", "ADDRESS", "ROLE", "TERM", "APPLIED", "REVISION", "KEYS", "SIZE", "WATCHES", "VERSION",
    ];
    let mut rows = vec![heading.map(String::from).to_vec()];
    let mut problems = Vec::new();
    for (addr, status) in &all {
        match status {
            Ok(status) => rows.push(vec![
                status.id.to_string(),
                status.name.clone(),
                addr.clone(),
                role(status).to_string(),
                status.term.to_string(),
                format!("{}/{}", status.applied_index, status.last_log_index),
                status.revision.to_string(),
                status.keys.to_string(),
                format!("{} of {}", size(status.store_bytes), size(status.store_max)),
                status.watches.to_string(),
                status.version.clone(),
            ]),
            Err(error) => {
                rows.push(vec!["?".into(), "?".into(), addr.clone(), "down".into()]);
                problems.push(format!("{addr}: {error}"));
            }
        }
    }
    let mut lines = vec![table(&rows)];
    lines.extend(problems);
    let lines: Vec<&[u8]> = lines.iter().map(String::as_bytes).collect();
    Ok(context.output.lines(&lines)?)
}

fn role(status: &Status) -> &'static str {
    let own = status.members.iter().find(|member| member.id == status.id);
    match (status.leader, own) {
        (Some(leader), _) if leader == status.id => "leader",
        (_, None) => "no member",
        (None, _) => "no leader",
        (_, Some(own)) if own.voter => "follower",
        _ => "learner",
    }
}

fn describe(addr: &str, status: &Status) -> Value {
    json!({
        "addr": addr,
        "id": status.id,
        "name": status.name,
        "version": status.version,
        "role": role(status),
        "leader": status.leader,
        "term": status.term,
        "last_log_index": status.last_log_index,
        "applied_index": status.applied_index,
        "snapshot_index": status.snapshot_index,
        "revision": status.revision,
        "compacted": status.compacted,
        "keys": status.keys,
        "store_bytes": status.store_bytes,
        "store_max": status.store_max,
        "watches": status.watches,
    })
}
