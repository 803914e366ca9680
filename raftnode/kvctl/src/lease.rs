//! `lease ...`.

use std::time::Duration;

use quorumfs_api::client::settings::format_duration;
use quorumfs_api::wire::LeaseInfo;
use quorumfs_api::{Command, Done};
use serde_json::{Map, Value, json};

use crate::cli::{Context, Lease};
use crate::error::Error;
use crate::output;
use crate::session::write_once;
use crate::table::table;

/// Does it.
pub async fn run(context: &Context, lease: Lease) -> Result<(), Error> {
    match lease {
        Lease::Grant { ttl } => grant(context, ttl).await,
        Lease::Revoke { id } => {
            let (revision, _) = write_once(&context.client, Command::LeaseRevoke { lease: id }).await?;
            let document = json!({ "revision": revision, "lease": id.to_string() });
            Ok(context.output.say(&format!("lease {id} revoked"), &document)?)
        }
        Lease::Keepalive { id, once } => loop {
            let ttl = context.client.keep_alive(id, context.timeout()).await?;
            let document = json!({ "lease": id.to_string(), "ttl_ms": ttl.as_millis() as u64 });
            let text = format!("lease {id} keepalived with TTL({})", format_duration(ttl));
            context.output.say(&text, &document)?;
            if once {
                return Ok(());
            }
            tokio::time::sleep(ttl / 3).await;
        },
        Lease::List => list(context, context.client.leases(None, context.timeout()).await?, false),
        Lease::Info { id } => {
            let found = context.client.leases(Some(id), context.timeout()).await?;
            if found.is_empty() {
                return Err(Error::Refused(format!("lease {id} does not exist: it ended, or it never was")));
            }
            list(context, found, true)
        }
    }
}

async fn grant(context: &Context, ttl: Duration) -> Result<(), Error> {
    let ttl_ms = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
    match write_once(&context.client, Command::LeaseGrant { ttl_ms }).await? {
        (revision, Done::Lease { id, ttl_ms }) => {
            let document = json!({ "revision": revision, "lease": id.to_string(), "ttl_ms": ttl_ms });
            let ttl = format_duration(Duration::from_millis(ttl_ms));
            Ok(context.output.say(&format!("lease {id} granted with TTL({ttl})"), &document)?)
        }
        (_, other) => Err(Error::Refused(format!("the cluster answered something else: {other:?}"))),
    }
}

fn list(context: &Context, leases: Vec<LeaseInfo>, with_keys: bool) -> Result<(), Error> {
    if context.output.json {
        for lease in &leases {
            let mut document = json!({
                "lease": lease.id.to_string(),
                "ttl_ms": lease.ttl_ms,
                "remaining_ms": lease.remaining_ms,
                "author": lease.author,
            });
            if with_keys {
                let keys = lease.keys.iter().map(|key| {
                    let mut map = Map::new();
                    output::put_bytes(&mut map, "key", key.as_bytes());
                    Value::Object(map)
                });
                document["keys"] = keys.collect();
            }
            context.output.document(&document)?;
        }
        return Ok(());
    }
    let mut rows = vec![["LEASE", "TTL", "REMAINING", "AUTHOR"].map(String::from).to_vec()];
    rows.extend(leases.iter().map(|lease| {
        vec![
            lease.id.to_string(),
            format_duration(Duration::from_millis(lease.ttl_ms)),
            lease.remaining_ms.map_or("?".into(), |ms| format_duration(Duration::from_millis(ms))),
            lease.author.clone(),
        ]
    }));
    context.output.lines(&[table(&rows).as_bytes()])?;
    let keys: Vec<&[u8]> = leases.iter().flat_map(|lease| &lease.keys).map(|key| key.as_bytes()).collect();
    if with_keys { Ok(context.output.lines(&keys)?) } else { Ok(()) }
}
