//! `watch`.

use std::time::Instant;

use quorumfs_api::client::{ClientError, WatchItem};
use quorumfs_api::rights::{Access, Sight};
use quorumfs_api::wire::WatchStart;
use quorumfs_api::{Change, Event, Key, Kind, Record};
use serde_json::{Map, Value};

use crate::cli::{Context, WatchArgs};
use crate::error::Error;
use crate::key::{self, TextPrefix};
use crate::output;

/// What is wanted.
enum Wanted {
    Key(Key),
    Prefix(TextPrefix),
}

impl Wanted {
    fn matches(&self, key: &Key) -> bool {
        match self {
            Wanted::Key(wanted) => wanted == key,
            Wanted::Prefix(prefix) => prefix.matches(key),
        }
    }
}

/// `kvctl watch`.
pub async fn watch(context: &Context, args: WatchArgs) -> Result<(), Error> {
    let wanted = if args.prefix {
        Wanted::Prefix(TextPrefix::parse(&args.key)?)
    } else {
        Wanted::Key(key::key(&args.key)?)
    };
    let after = match args.from_revision {
        Some(revision) => revision.saturating_sub(1),
        None => now(context).await?,
    };
    let prefix = match &wanted {
        Wanted::Key(key) => key.clone(),
        Wanted::Prefix(prefix) => prefix.dir.clone(),
    };
    let watched = prefix.clone();
    let begun = Instant::now();
    let mut connected = false;
    let mut left = args.count.unwrap_or(u64::MAX);
    let mut seen = after;
    let mut everything = prefix.is_root();
    let start = WatchStart { prefix, after: Some(seen), copy_when_behind: false };
    let mut watch = context.client.watch(start);
    while left > 0 {
        let item = if connected {
            watch.next().await
        } else {
            match tokio::time::timeout(context.timeout(), watch.next()).await {
                Ok(item) => item,
                Err(_) => {
                    let waited = begun.elapsed();
                    return Err(ClientError::Unreachable {
                        waited,
                        tried: "no node allows the watch".into(),
                    }
                    .into());
                }
            }
        };
        match item {
            None => break,
            Some(WatchItem::Events(events)) => {
                for event in &events {
                    seen = event.revision;
                    for change in &event.changes {
                        if left > 0 && show(context, &wanted, event, change)? {
                            left -= 1;
                        }
                    }
                }
            }
            Some(WatchItem::Connected(_)) => connected = true,
            Some(WatchItem::Disconnected(error)) if connected => eprintln!("kvctl: {error}; trying again"),
            Some(WatchItem::Disconnected(error)) => {
                if begun.elapsed() >= context.timeout() {
                    return Err(error.into());
                }
            }
            Some(WatchItem::Failed(error)) => return Err(error.into()),
            // Something was renamed over the edge of the watched directory, which its own watch cannot tell in
            // events. That of the root can.
            Some(WatchItem::Compacted(_)) if !everything => {
                everything = true;
                connected = false;
                let start = WatchStart { prefix: Key::root(), after: Some(seen), copy_when_behind: false };
                watch = context.client.watch(start);
            }
            Some(WatchItem::Compacted(oldest)) => {
                return Err(Error::Refused(format!(
                    "revision {} is no longer kept: the oldest that can be watched from is {}; what happened \
                     in between is lost to this watch, read the keys again",
                    seen + 1,
                    oldest + 1
                )));
            }
            Some(WatchItem::CopyBegin { .. } | WatchItem::CopyPart(_) | WatchItem::CopyEnd) => {}
            Some(WatchItem::Progress(revision)) => seen = revision,
            Some(WatchItem::Rights(rights)) => {
                if rights.sight(&watched) == Sight::Hidden {
                    let name = &context.client.settings().name;
                    return Err(
                        ClientError::Denied(rights.refusal(name, "watch", &watched, Access::Read)).into()
                    );
                }
            }
        }
    }
    Ok(())
}

/// The revision of now; of any node, if there is no quorum to ask.
async fn now(context: &Context) -> Result<u64, Error> {
    match context.client.barrier(context.timeout()).await {
        Ok(revision) => Ok(revision),
        Err(error @ (ClientError::NoLeader { .. } | ClientError::NoQuorum { .. })) => {
            eprintln!("kvctl: {error}; watching what this node has");
            Ok(context.client.status(context.timeout()).await?.revision)
        }
        Err(error) => Err(error.into()),
    }
}

/// Prints a change if it is wanted, and says whether it was.
fn show(context: &Context, wanted: &Wanted, event: &Event, change: &Change) -> Result<bool, Error> {
    let written = |record: &Record| if record.kind == Kind::Dir { "MKDIR" } else { "PUT" };
    let (what, key, to, record) = match change {
        Change::Create { place, record } | Change::Update { place, record } => {
            (written(record), &place.key, None, Some(record))
        }
        Change::Attr { place: Some(place), record } => ("ATTR", &place.key, None, Some(record)),
        Change::Remove { place, .. } => ("DELETE", &place.key, None, None),
        Change::Rename { from, to, exchanged, .. } => {
            (if exchanged.is_some() { "EXCHANGE" } else { "RENAME" }, &from.key, Some(&to.key), None)
        }
        Change::Attr { place: None, .. } | Change::Unlocked { .. } => return Ok(false),
    };
    if !wanted.matches(key) && !to.is_some_and(|to| wanted.matches(to)) {
        return Ok(false);
    }
    if context.output.json {
        let mut map = Map::new();
        map.insert("type".into(), what.into());
        map.insert("revision".into(), event.revision.into());
        map.insert("time".into(), output::moment(event.time).into());
        map.insert("by".into(), Value::from(event.author.clone()));
        output::put_bytes(&mut map, "key", key.as_bytes());
        if let Some(to) = to {
            output::put_bytes(&mut map, "to", to.as_bytes());
        }
        if let Some(record) = record {
            output::fill(&mut map, record, what == "PUT");
        }
        context.output.document(&Value::Object(map))?;
        return Ok(true);
    }
    let third: &[u8] = match (to, record) {
        (Some(to), _) => to.as_bytes(),
        (None, Some(record)) => &record.value,
        (None, None) => b"",
    };
    context.output.lines(&[what.as_bytes(), key.as_bytes(), third])?;
    Ok(true)
}
