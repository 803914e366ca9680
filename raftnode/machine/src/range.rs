//! Pages of keys in the order of their paths' components: a directory, then all in it, then what
//! follows it. The order of the keys' bytes is another one, because a slash is not the smallest byte.

use std::cmp::Ordering;

use bytes::Bytes;
use quorumfs_api::key::{Key, Name};
use quorumfs_api::record::{Ino, Kind};
use quorumfs_api::rights::{Access, Rights, Sight};
use quorumfs_api::wire::Prefix;

use crate::path;
use crate::rows;
use crate::sight;
use crate::tables::{ReadTables, StorageError};
use crate::view::{Page, PageLimit};
use crate::walk::Walk;

/// A page of the keys that `prefix` names, from the first after `after`.
pub(crate) fn range<T: ReadTables + ?Sized>(
    tables: &T,
    prefix: &Prefix,
    after: Option<&Key>,
    limit: PageLimit,
    keys_only: bool,
    rights: &Rights,
) -> Result<Page, StorageError> {
    let (dir, deep, begin) = match prefix {
        Prefix::Tree(dir) => (dir, true, Bytes::new()),
        Prefix::Children(dir) => (dir, false, Bytes::new()),
        Prefix::Text(dir, begin) => (dir, true, begin.clone()),
    };
    let mut page = Page::default();
    let Some(root) = path::find(tables, dir)?.filter(|entry| entry.kind == Kind::Dir) else {
        return Ok(page);
    };
    let Some(mut walk) = start(tables, dir, root.ino, &begin, deep, after)? else { return Ok(page) };
    // The keys of the directories from `dir` down to where the walk is.
    let mut dirs: Vec<Key> = vec![dir.clone()];
    if let Some(after) = after.filter(|after| after.is_within(dir)) {
        let names = dir.names().count();
        let mut key = dir.clone();
        for name in after.names().skip(names) {
            key = join(&key, &name)?;
            dirs.push(key.clone());
        }
    }
    let everything = rights.covers(dir, Access::Read);
    let mut bytes = 0;
    while let Some(step) = walk.next(tables)? {
        if step.depth == 1 && !step.name.as_bytes().starts_with(&begin) {
            break;
        }
        if page.items.len() >= limit.keys || (bytes >= limit.bytes && !page.items.is_empty()) {
            page.more = true;
            break;
        }
        dirs.truncate(step.depth);
        let key = join(dirs.last().unwrap_or(dir), &step.name)?;
        let sight = if everything { Sight::Full } else { rights.sight(&key) };
        if step.entry.kind == Kind::Dir {
            if deep && sight != Sight::Hidden {
                dirs.push(key.clone());
            } else {
                walk.skip();
            }
        }
        if !sight.shows(step.entry.kind) {
            continue;
        }
        let row = rows::node(tables, step.entry.ino)?;
        let value = if keys_only { Bytes::new() } else { rows::value(tables, step.entry.ino, &row)? };
        bytes += key.as_bytes().len() + value.len();
        page.items.push((key, sight::veil(sight, row.into_record(step.entry.ino, value))));
    }
    Ok(page)
}

/// Where the page begins; `None` when all of the range comes before `after`.
fn start<T: ReadTables + ?Sized>(
    tables: &T,
    dir: &Key,
    ino: Ino,
    begin: &[u8],
    deep: bool,
    after: Option<&Key>,
) -> Result<Option<Walk>, StorageError> {
    let Some(after) = after else { return Ok(Some(Walk::from(ino, begin))) };
    if !after.is_within(dir) {
        return Ok(match after.names().cmp(dir.names()) {
            Ordering::Less => Some(Walk::from(ino, begin)),
            _ => None,
        });
    }
    let names: Vec<Name> = after.names().skip(dir.names().count()).collect();
    match names.first() {
        // A key before all that begin with `begin`, or the directory itself.
        None => Ok(Some(Walk::from(ino, begin))),
        Some(first) if first.as_bytes() < begin => Ok(Some(Walk::from(ino, begin))),
        Some(first) if !first.as_bytes().starts_with(begin) => Ok(None),
        Some(_) if deep => Ok(Some(Walk::resume(tables, ino, &names)?)),
        Some(_) => {
            let mut walk = Walk::resume(tables, ino, &names[..1])?;
            walk.skip();
            Ok(Some(walk))
        }
    }
}

fn join(dir: &Key, name: &Name) -> Result<Key, StorageError> {
    dir.join(name).map_err(|error| StorageError::new(format!("a name in {dir} makes no key: {error}")))
}
