//! From keys to inodes and back. Paths are walked component by component; a symlink on the way is not
//! followed, it is simply no directory.

use bytes::Bytes;
use quorumfs_api::key::{Key, Name};
use quorumfs_api::limits::KEY_MAX;
use quorumfs_api::record::{Ino, Kind};

use crate::rows::{self, Entry};
use crate::tables::{ReadTables, StorageError, Table};

/// Where a walk along a key ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Walked {
    /// At the key.
    Found(Entry),
    /// In directory `dir` there is no component number `depth` (from 0).
    Missing { dir: Ino, depth: usize },
    /// Component number `depth` is no directory, but something follows it.
    NotDirectory { depth: usize },
}

/// The root as an entry.
pub(crate) const ROOT: Entry = Entry { ino: Ino::ROOT, kind: Kind::Dir };

/// Walks along `key` from the root.
pub(crate) fn walk<T: ReadTables + ?Sized>(tables: &T, key: &Key) -> Result<Walked, StorageError> {
    let mut at = ROOT;
    for (depth, name) in key.names().enumerate() {
        if at.kind != Kind::Dir {
            return Ok(Walked::NotDirectory { depth: depth - 1 });
        }
        match entry(tables, at.ino, &name)? {
            Some(entry) => at = entry,
            None => return Ok(Walked::Missing { dir: at.ino, depth }),
        }
    }
    Ok(Walked::Found(at))
}

/// What `key` stands for, if it exists.
pub(crate) fn find<T: ReadTables + ?Sized>(tables: &T, key: &Key) -> Result<Option<Entry>, StorageError> {
    Ok(match walk(tables, key)? {
        Walked::Found(entry) => Some(entry),
        Walked::Missing { .. } | Walked::NotDirectory { .. } => None,
    })
}

/// What `name` in directory `dir` stands for.
pub(crate) fn entry<T: ReadTables + ?Sized>(
    tables: &T,
    dir: Ino,
    name: &Name,
) -> Result<Option<Entry>, StorageError> {
    rows::read(tables, &rows::entry(dir, name.as_bytes()))
}

/// The key of an inode that is there.
pub(crate) fn key_of<T: ReadTables + ?Sized>(tables: &T, ino: Ino) -> Result<Key, StorageError> {
    let mut names = Vec::new();
    let mut at = ino;
    let mut length = 0;
    while let Some((dir, name)) = rows::node(tables, at)?.place {
        length += 1 + name.as_bytes().len();
        if length > KEY_MAX {
            // No command makes a longer key, so this is a loop or a damaged row.
            return Err(rows::damaged(Table::Nodes, &rows::number(ino.0), "its key is too long"));
        }
        names.push(name);
        at = dir;
    }
    if names.is_empty() {
        return Ok(Key::root());
    }
    let mut path = Vec::with_capacity(length);
    for name in names.iter().rev() {
        path.push(b'/');
        path.extend_from_slice(name.as_bytes());
    }
    Key::parse(Bytes::from(path))
        .map_err(|error| rows::damaged(Table::Nodes, &rows::number(ino.0), &error.to_string()))
}

/// The first `components` components of `key`.
pub(crate) fn ancestor(key: &Key, components: usize) -> Key {
    let mut at = key.clone();
    for _ in components..key.names().count() {
        match at.split() {
            Some((parent, _)) => at = parent,
            None => break,
        }
    }
    at
}

/// Bytes that the path to a directory takes before the slash of what is in it.
pub(crate) fn length(key: &Key) -> usize {
    if key.is_root() { 0 } else { key.as_bytes().len() }
}
