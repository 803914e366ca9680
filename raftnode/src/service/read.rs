//! Reading keys.

use std::sync::Arc;

use quorumfs_api::limits::{RANGE_PAGE_BYTES, RANGE_PAGE_KEYS};
use quorumfs_api::rights::Sight;
use quorumfs_api::wire::{Answer, Consistency, Failure, Prefix};
use quorumfs_api::{Key, Revision};
use quorumfs_machine::StorageError;
use quorumfs_machine::view::{self, PageLimit};
use quorumfs_policy::Who;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use super::calls::ConnectionRoom;
use super::{Context, denial, failures};

/// The turn to put an answer together: what it is made of stays in memory until it is sent.
pub(super) struct Turn {
    _connection: OwnedSemaphorePermit,
    _node: OwnedSemaphorePermit,
}

impl Turn {
    /// Waits for it.
    pub async fn wait(context: &Context, room: &ConnectionRoom) -> Result<Turn, Failure> {
        let connection = room.reads.clone().acquire_owned().await.map_err(|_| failures::stopped())?;
        let node = context.bounds.read().await.ok_or_else(failures::stopped)?;
        Ok(Turn { _connection: connection, _node: node })
    }
}

/// The state cannot be read: this node is of no use until it was restarted.
pub(super) fn broken(error: StorageError) -> Failure {
    Failure::Unavailable(error.to_string())
}

/// Waits until this node's state is as fresh as the request wants it.
pub(super) async fn fresh(
    context: &Context,
    consistency: Consistency,
    until: Instant,
) -> Result<(), Failure> {
    match consistency {
        Consistency::Linearizable => context.linear.read(until).await,
        Consistency::Serializable => Ok(()),
    }
}

/// The revision that this node has.
pub(super) fn revision(context: &Context) -> Result<Revision, Failure> {
    let meta = context.state.read(|tables| view::meta(tables)).map_err(broken)?;
    Ok(meta.revision)
}

/// One key.
pub(super) fn get(context: &Context, who: Who<'_>, key: &Key) -> Result<Answer, Failure> {
    let read = context.state.read(|tables| {
        let rights = tables.policy().rights(who);
        if rights.sight(key) == Sight::Hidden {
            return Ok(Err(rights));
        }
        Ok(Ok((view::meta(tables)?.revision, view::get_seen(tables, key, &rights)?)))
    });
    match read.map_err(broken)? {
        Ok((revision, record)) => Ok(Answer::Got { revision, record }),
        Err(rights) => Err(denial::refuse(context, &rights, who, "read", key)),
    }
}

/// One page of keys. It may take milliseconds, so it runs where it keeps nobody from being served.
pub(super) async fn range(
    context: &Arc<Context>,
    who: Who<'_>,
    prefix: Prefix,
    keys_only: bool,
    after: Option<Key>,
    limit: u32,
) -> Result<Answer, Failure> {
    let limit = PageLimit { keys: (limit as usize).clamp(1, RANGE_PAGE_KEYS), bytes: RANGE_PAGE_BYTES };
    let (Prefix::Tree(dir) | Prefix::Children(dir) | Prefix::Text(dir, _)) = prefix.clone();
    let state = context.state.clone();
    let (name, node) = (who.name.to_owned(), who.node);
    let read = tokio::task::spawn_blocking(move || {
        state.read(|tables| {
            let rights = tables.policy().rights(Who { name: &name, node });
            let (Prefix::Tree(dir) | Prefix::Children(dir) | Prefix::Text(dir, _)) = &prefix;
            if rights.sight(dir) == Sight::Hidden {
                return Ok(Err(rights));
            }
            let page = view::range_seen(tables, &prefix, after.as_ref(), limit, keys_only, &rights)?;
            Ok(Ok((view::meta(tables)?.revision, page)))
        })
    });
    match read.await.map_err(|_| failures::stopped())?.map_err(broken)? {
        Ok((revision, page)) => Ok(Answer::Range { revision, items: page.items, more: page.more }),
        Err(rights) => Err(denial::refuse(context, &rights, who, "list", &dir)),
    }
}
