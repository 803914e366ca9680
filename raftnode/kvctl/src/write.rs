//! Commands that change keys.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use bytes::Bytes;
use quorumfs_api::command::{Relation, XattrMode};
use quorumfs_api::limits::TXN_MAX;
use quorumfs_api::style::{self, EventStyle};
use quorumfs_api::wire::{Consistency, Prefix};
use quorumfs_api::{Command, Compare, CreateMode, Done, Key, LeaseChange, Owner, RenameMode};
use serde_json::json;

use crate::cli::{Context, Del, Put};
use crate::error::Error;
use crate::key::{self, TextPrefix};
use crate::session::{is_gone, write, write_outcome};

/// How often `del --prefix` looks again when somebody else deletes in the same place.
const TRIES: usize = 5;

/// `kvctl put`.
pub async fn put(context: &Context, args: Put) -> Result<(), Error> {
    let key = key::key(&args.key)?;
    let value = key::value(args.value)?;
    let lease = match (args.lease, args.ignore_lease) {
        (Some(lease), _) => LeaseChange::Bind(lease),
        (None, true) => LeaseChange::Keep,
        (None, false) => LeaseChange::Clear,
    };
    let put = Command::Put {
        target: key.clone().into(),
        value,
        create: CreateMode::Allow,
        parents: true,
        owner: Owner::FILE,
        lease,
    };
    let (revision, done) = match args.prev_revision {
        None => write(&context.client, put).await?,
        Some(expected) => {
            let txn = Command::Txn {
                compare: vec![Compare::ModRevision(key.clone(), Relation::Equal, expected)],
                then: vec![put],
                otherwise: Vec::new(),
            };
            match write(&context.client, txn).await? {
                (revision, Done::Txn { succeeded: true, mut results }) if results.len() == 1 => {
                    (revision, results.remove(0))
                }
                (_, Done::Txn { succeeded: false, .. }) => {
                    return Err(Error::Refused(format!("{key} was changed: its revision is not {expected}")));
                }
                (revision, other) => (revision, other),
            }
        }
    };
    let mut document = json!({ "revision": revision });
    if let Done::Written { ino, created, version } = done {
        document["inode"] = ino.0.into();
        document["created"] = created.into();
        document["version"] = version.into();
    }
    Ok(context.output.say("OK", &document)?)
}

/// `kvctl del`.
pub async fn del(context: &Context, args: Del) -> Result<(), Error> {
    let (revision, count) = if args.prefix {
        delete_prefix(context, &TextPrefix::parse(&args.key)?).await?
    } else {
        let at = key::key(&args.key)?.into();
        let (revision, done) =
            write(&context.client, Command::Delete { at, recursive: args.recursive }).await?;
        (revision, deleted(&done))
    };
    Ok(context.output.say(&count.to_string(), &json!({ "revision": revision, "deleted": count }))?)
}

fn deleted(done: &Done) -> u64 {
    match done {
        Done::Deleted(count) => *count,
        Done::Txn { results, .. } => results.iter().map(deleted).sum(),
        _ => 0,
    }
}

/// Deletes what has the prefix, all of it below each such name; at most [`TXN_MAX`] names at once.
async fn delete_prefix(context: &Context, prefix: &TextPrefix) -> Result<(u64, u64), Error> {
    let mut total = 0;
    let mut revision = 0;
    let mut tries = 0;
    loop {
        let (now, names) = names_with(context, prefix).await?;
        revision = revision.max(now);
        if names.is_empty() {
            return Ok((revision, total));
        }
        for some in names.chunks(TXN_MAX) {
            let then =
                some.iter().map(|key| Command::Delete { at: key.clone().into(), recursive: true }).collect();
            let txn = Command::Txn { compare: Vec::new(), then, otherwise: Vec::new() };
            let outcome = write_outcome(&context.client, txn).await?;
            match outcome.result {
                Ok(done) => {
                    total += deleted(&done);
                    revision = outcome.revision;
                }
                // Somebody else was faster with one of them: look again at what is left.
                Err(refusal) if is_gone(&refusal) && tries < TRIES => {
                    tries += 1;
                    break;
                }
                Err(refusal) => return Err(refusal.into()),
            }
        }
    }
}

/// The names directly in the prefix's directory that begin with it.
async fn names_with(context: &Context, prefix: &TextPrefix) -> Result<(u64, Vec<Key>), Error> {
    let mut names = Vec::new();
    let mut after = None;
    loop {
        let page = context
            .client
            .range(
                Prefix::Children(prefix.dir.clone()),
                true,
                after,
                u32::MAX,
                Consistency::Linearizable,
                context.timeout(),
            )
            .await?;
        after = page.items.last().map(|(key, _)| key.clone());
        names.extend(page.items.into_iter().map(|(key, _)| key).filter(|key| prefix.matches(key)));
        if !page.more || after.is_none() {
            return Ok((page.revision, names));
        }
    }
}

/// Does it and prints OK.
async fn simple(context: &Context, command: Command) -> Result<(), Error> {
    let (revision, _) = write(&context.client, command).await?;
    Ok(context.output.say("OK", &json!({ "revision": revision }))?)
}

/// `kvctl mkdir`.
pub async fn mkdir(context: &Context, key: &OsStr, parents: bool) -> Result<(), Error> {
    simple(context, Command::Mkdir { at: key::key(key)?.into(), parents, owner: Owner::DIR }).await
}

/// `kvctl rmdir`.
pub async fn rmdir(context: &Context, key: &OsStr) -> Result<(), Error> {
    simple(context, Command::Rmdir { at: key::key(key)?.into() }).await
}

/// `kvctl mv`.
pub async fn mv(
    context: &Context,
    from: &OsStr,
    to: &OsStr,
    no_replace: bool,
    exchange: bool,
) -> Result<(), Error> {
    let mode = match (no_replace, exchange) {
        (true, _) => RenameMode::NoReplace,
        (_, true) => RenameMode::Exchange,
        _ => RenameMode::Replace,
    };
    simple(context, Command::Rename { from: key::key(from)?.into(), to: key::key(to)?.into(), mode }).await
}

/// `kvctl ln`.
pub async fn ln(context: &Context, target: &OsStr, key: &OsStr) -> Result<(), Error> {
    let to = Bytes::copy_from_slice(target.as_bytes());
    let at = key::key(key)?.into();
    simple(context, Command::Symlink { at, to, parents: true, owner: Owner::FILE }).await
}

/// `kvctl events`.
pub async fn events(
    context: &Context,
    dir: &OsStr,
    style: Option<EventStyle>,
    clear: bool,
) -> Result<(), Error> {
    let key = key::key(dir)?;
    if style.is_none() && !clear {
        let found = context.client.get(key.clone(), Consistency::Linearizable, context.timeout()).await?.1;
        let record = found.ok_or_else(|| Error::Refused(format!("no such key: {key}")))?;
        let name = EventStyle::of(&record).map(EventStyle::name);
        return Ok(context.output.say(name.unwrap_or("-"), &json!({ "events": name }))?);
    }
    let value = style.map(|style| Bytes::from_static(style.name().as_bytes()));
    let name = Bytes::from_static(style::ATTRIBUTE.as_bytes());
    simple(context, Command::SetXattr { target: key.into(), name, value, mode: XattrMode::Set }).await
}
