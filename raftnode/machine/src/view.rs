//! Reading the state: all that a node answers without the log.

use std::ops::ControlFlow;
use std::sync::Arc;

use quorumfs_api::command::HeldLock;
use quorumfs_api::event::Event;
use quorumfs_api::key::Key;
use quorumfs_api::record::{Ino, Kind, LeaseId, Record, Revision};
use quorumfs_api::rights::{Access, Rights, Sight};
use quorumfs_api::wire::{LeaseInfo, Node, Prefix};
use quorumfs_policy::InForce;

use crate::guard;
use crate::rows::{self, LeaseRow, NodeRow};
use crate::sight::Lens;
use crate::tables::{ReadTables, StorageError, Table};
use crate::walk::Walk;
use crate::{lease as leasing, path, range as ranging, sight};

/// The counters of the store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Meta {
    /// The newest revision.
    pub revision: Revision,
    /// Oldest revision after which a watch can resume.
    pub compacted: Revision,
    /// Number of keys; the root is none.
    pub keys: u64,
    /// Bytes that count against the quota.
    pub store_bytes: u64,
    /// The number that the next object gets.
    pub next_ino: u64,
}

/// The event log no longer reaches back to where a watcher wants to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the event log begins after revision {oldest}: watch from there, or take a new copy")]
pub struct Compacted {
    /// Oldest revision after which a watch can resume.
    pub oldest: Revision,
}

/// One page of a range.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// Keys with their records, parents first, in order of their paths' components.
    pub items: Vec<(Key, Record)>,
    /// There is more after the last of them.
    pub more: bool,
}

/// Bounds of one page of a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageLimit {
    /// Most keys.
    pub keys: usize,
    /// Bytes of keys and values after which the page ends; the first item always fits.
    pub bytes: usize,
}

/// The counters.
///
/// # Errors
/// As all here: when the storage fails or holds what cannot be read.
pub fn meta<T: ReadTables + ?Sized>(tables: &T) -> Result<Meta, StorageError> {
    let counters = rows::counters(tables)?;
    Ok(Meta {
        revision: counters.revision,
        compacted: counters.compacted,
        keys: counters.keys,
        store_bytes: counters.store_bytes,
        next_ino: counters.next_ino,
    })
}

/// The policy in force, or that there is none.
pub fn policy<T: ReadTables + ?Sized>(tables: &T) -> Result<InForce, StorageError> {
    match rows::counters(tables)?.policy {
        0 => Ok(InForce::none()),
        revision => guard::load(tables, revision),
    }
}

/// One key's record with its value. Symlinks are not followed.
pub fn get<T: ReadTables + ?Sized>(tables: &T, key: &Key) -> Result<Option<Record>, StorageError> {
    match path::find(tables, key)? {
        Some(entry) => existing(tables, entry.ino).map(Some),
        None => Ok(None),
    }
}

/// What somebody with these rights sees of a key.
pub fn get_seen<T: ReadTables + ?Sized>(
    tables: &T,
    key: &Key,
    rights: &Rights,
) -> Result<Option<Record>, StorageError> {
    let sight = rights.sight(key);
    if sight == Sight::Hidden {
        return Ok(None);
    }
    let record = get(tables, key)?.filter(|record| sight.shows(record.kind));
    Ok(record.map(|record| sight::veil(sight, record)))
}

/// The record of an inode with its value.
pub fn record<T: ReadTables + ?Sized>(tables: &T, ino: Ino) -> Result<Option<Record>, StorageError> {
    let Some(row) = rows::read::<NodeRow, _>(tables, &rows::number(ino.0))? else { return Ok(None) };
    let value = rows::value(tables, ino, &row)?;
    Ok(Some(row.into_record(ino, value)))
}

/// The record of an inode that must be there.
fn existing<T: ReadTables + ?Sized>(tables: &T, ino: Ino) -> Result<Record, StorageError> {
    let row = rows::node(tables, ino)?;
    let value = rows::value(tables, ino, &row)?;
    Ok(row.into_record(ino, value))
}

/// The inode that has this key now.
pub fn resolve<T: ReadTables + ?Sized>(tables: &T, key: &Key) -> Result<Option<Ino>, StorageError> {
    Ok(path::find(tables, key)?.map(|entry| entry.ino))
}

/// The key that an inode has now.
pub fn key_of<T: ReadTables + ?Sized>(tables: &T, ino: Ino) -> Result<Option<Key>, StorageError> {
    match rows::read::<NodeRow, _>(tables, &rows::number(ino.0))? {
        Some(_) => path::key_of(tables, ino).map(Some),
        None => Ok(None),
    }
}

/// A page of the keys that `prefix` names, from the first after `after`, which need not exist any
/// more. With `keys_only` the records come without their values.
pub fn range<T: ReadTables + ?Sized>(
    tables: &T,
    prefix: &Prefix,
    after: Option<&Key>,
    limit: PageLimit,
    keys_only: bool,
) -> Result<Page, StorageError> {
    range_seen(tables, prefix, after, limit, keys_only, &Rights::all())
}

/// The same of what somebody with these rights sees.
pub fn range_seen<T: ReadTables + ?Sized>(
    tables: &T,
    prefix: &Prefix,
    after: Option<&Key>,
    limit: PageLimit,
    keys_only: bool,
    rights: &Rights,
) -> Result<Page, StorageError> {
    ranging::range(tables, prefix, after, limit, keys_only, rights)
}

/// A copy of a subtree under way: all below a key, parents first, siblings in order of their names.
/// The key itself is not among them: its record is what [`get`] says.
pub struct Copy {
    walk: Option<Walk>,
    lens: Option<Lens>,
}

impl Copy {
    /// Begins one. Where `root` is no directory, it is empty.
    pub fn begin<T: ReadTables + ?Sized>(tables: &T, root: &Key) -> Result<Copy, StorageError> {
        let dir = path::find(tables, root)?.filter(|entry| entry.kind == Kind::Dir);
        Ok(Copy { walk: dir.map(|entry| Walk::below(entry.ino)), lens: None })
    }

    /// Begins one of what somebody with these rights sees.
    pub fn begin_seen<T: ReadTables + ?Sized>(
        tables: &T,
        root: &Key,
        rights: &Arc<Rights>,
    ) -> Result<Copy, StorageError> {
        if rights.covers(root, Access::Read) {
            return Copy::begin(tables, root);
        }
        if rights.sight(root) == Sight::Hidden {
            return Ok(Copy { walk: None, lens: None });
        }
        let mut copy = Copy::begin(tables, root)?;
        if let Some(walk) = copy.walk.as_mut().filter(|_| rights.sight(root) == Sight::Way) {
            walk.only(tables, rights.ways(root))?;
        }
        copy.lens = Some(Lens::new(rights.clone(), root.clone()));
        Ok(copy)
    }

    /// The next object. `tables` have to be the same, unchanged, for the whole copy.
    pub fn next<T: ReadTables + ?Sized>(&mut self, tables: &T) -> Result<Option<Node>, StorageError> {
        let Some(walk) = &mut self.walk else { return Ok(None) };
        while let Some(step) = walk.next(tables)? {
            let sight = match &mut self.lens {
                Some(lens) => lens.look(tables, walk, &step)?,
                None => Sight::Full,
            };
            if sight.shows(step.entry.kind) {
                let record = sight::veil(sight, existing(tables, step.entry.ino)?);
                return Ok(Some(Node { parent: step.parent, name: step.name, record }));
            }
        }
        Ok(None)
    }
}

/// Visits all that [`Copy`] gives, until `visit` breaks off.
pub fn copy<T: ReadTables + ?Sized>(
    tables: &T,
    root: &Key,
    visit: &mut dyn FnMut(Node) -> ControlFlow<()>,
) -> Result<(), StorageError> {
    let mut copy = Copy::begin(tables, root)?;
    while let Some(node) = copy.next(tables)? {
        if visit(node).is_break() {
            break;
        }
    }
    Ok(())
}

/// The events after revision `after`, at most `max_events`, ending once they hold `max_bytes`; at
/// least one if there is one and one is wanted.
pub fn events<T: ReadTables + ?Sized>(
    tables: &T,
    after: Revision,
    max_events: usize,
    max_bytes: usize,
) -> Result<Result<Vec<Event>, Compacted>, StorageError> {
    let oldest = rows::counters(tables)?.compacted;
    if after < oldest {
        return Ok(Err(Compacted { oldest }));
    }
    let mut events = Vec::new();
    let (Some(start), true) = (rows::after(after), max_events > 0) else { return Ok(Ok(events)) };
    let mut bytes = 0;
    let mut failed = None;
    tables.scan(Table::Events, &start, None, &mut |key, row| {
        match rows::decode::<Event>(key, row) {
            Ok(event) => events.push(event),
            Err(error) => {
                failed = Some(error);
                return ControlFlow::Break(());
            }
        }
        bytes += row.len();
        if events.len() < max_events && bytes < max_bytes {
            ControlFlow::Continue(())
        } else {
            ControlFlow::Break(())
        }
    })?;
    failed.map_or(Ok(Ok(events)), Err)
}

fn lease_info(id: LeaseId, row: LeaseRow, keys: Vec<Key>) -> LeaseInfo {
    LeaseInfo { id, ttl_ms: row.ttl_ms, author: row.author, remaining_ms: None, keys }
}

/// All leases in order of their ids, without their keys.
pub fn leases<T: ReadTables + ?Sized>(tables: &T) -> Result<Vec<LeaseInfo>, StorageError> {
    let mut leases = Vec::new();
    let mut failed = None;
    tables.scan(Table::Leases, &[], None, &mut |key, row| {
        match rows::first(Table::Leases, key).and_then(|id| Ok((id, rows::decode(key, row)?))) {
            Ok((id, row)) => leases.push(lease_info(LeaseId(id), row, Vec::new())),
            Err(error) => {
                failed = Some(error);
                return ControlFlow::Break(());
            }
        }
        ControlFlow::Continue(())
    })?;
    failed.map_or(Ok(leases), Err)
}

/// Who was granted a lease, if it exists.
pub fn lease_author<T: ReadTables + ?Sized>(tables: &T, id: LeaseId) -> Result<Option<String>, StorageError> {
    let row: Option<LeaseRow> = rows::read(tables, &rows::number(id.0))?;
    Ok(row.map(|row| row.author))
}

/// One lease with its keys, in order of their inodes.
pub fn lease<T: ReadTables + ?Sized>(tables: &T, id: LeaseId) -> Result<Option<LeaseInfo>, StorageError> {
    let Some(row) = rows::read::<LeaseRow, _>(tables, &rows::number(id.0))? else { return Ok(None) };
    let inos = leasing::numbers(tables, Table::LeaseKeys, id)?;
    let keys = inos.into_iter().map(|ino| path::key_of(tables, Ino(ino))).collect::<Result<_, _>>()?;
    Ok(Some(lease_info(id, row, keys)))
}

/// The locks that are held on an inode, in order of their first bytes.
pub fn locks<T: ReadTables + ?Sized>(tables: &T, ino: Ino) -> Result<Vec<HeldLock>, StorageError> {
    Ok(rows::read(tables, &rows::number(ino.0))?.unwrap_or_default())
}
