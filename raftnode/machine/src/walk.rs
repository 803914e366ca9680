//! Walking a subtree: parents first, siblings in order of their names, without recursion, holding only
//! a page of names for each level.

use std::collections::VecDeque;
use std::ops::ControlFlow;

use quorumfs_api::key::Name;
use quorumfs_api::record::{Ino, Kind};

use crate::rows::{self, Entry};
use crate::tables::{ReadTables, StorageError, Table};

/// Names that are read at a time.
const PAGE: usize = 256;

/// What a walk comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Step {
    /// Its directory.
    pub parent: Ino,
    /// Its name there.
    pub name: Name,
    /// What it is.
    pub entry: Entry,
    /// 1 for what lies right in the directory where the walk began.
    pub depth: usize,
}

/// The rest of one directory.
struct Level {
    dir: Ino,
    page: VecDeque<(Name, Entry)>,
    /// Where the next page begins; `None` when there is none.
    next: Option<Vec<u8>>,
}

impl Level {
    fn new(dir: Ino, start: Vec<u8>) -> Level {
        Level { dir, page: VecDeque::new(), next: Some(start) }
    }

    fn pop<T: ReadTables + ?Sized>(&mut self, tables: &T) -> Result<Option<(Name, Entry)>, StorageError> {
        if self.page.is_empty()
            && let Some(start) = self.next.take()
        {
            let end = rows::after(self.dir.0);
            let mut failed = None;
            tables.scan(Table::Entries, &start, end.as_ref().map(|e| e.as_slice()), &mut |key, row| {
                match rows::entry_name(key).and_then(|name| Ok((name, rows::decode::<Entry>(key, row)?))) {
                    Ok(item) => self.page.push_back(item),
                    Err(error) => {
                        failed = Some(error);
                        return ControlFlow::Break(());
                    }
                }
                if self.page.len() < PAGE {
                    return ControlFlow::Continue(());
                }
                self.next = Some(successor(key));
                ControlFlow::Break(())
            })?;
            if let Some(error) = failed {
                return Err(error);
            }
        }
        Ok(self.page.pop_front())
    }
}

/// The key right after `key`.
fn successor(key: &[u8]) -> Vec<u8> {
    [key, &[0]].concat()
}

/// A walk under way. It reads from the tables that each call gives it, which have to be the same.
pub(crate) struct Walk {
    levels: Vec<Level>,
    /// A directory that was handed out last: the walk goes on in it.
    enter: Option<Ino>,
}

impl Walk {
    /// All below `dir`.
    pub fn below(dir: Ino) -> Walk {
        Walk { levels: Vec::new(), enter: Some(dir) }
    }

    /// From the first name in `dir` that is not before `name`.
    pub fn from(dir: Ino, name: &[u8]) -> Walk {
        Walk { levels: vec![Level::new(dir, rows::entry(dir, name))], enter: None }
    }

    /// Goes on below what lies at `names` under `dir`, as if the walk had just handed that out:
    /// whatever of it is still there.
    pub fn resume<T: ReadTables + ?Sized>(
        tables: &T,
        dir: Ino,
        names: &[Name],
    ) -> Result<Walk, StorageError> {
        let mut walk = Walk { levels: Vec::new(), enter: Some(dir) };
        for name in names {
            let Some(dir) = walk.enter.take() else { break };
            let key = rows::entry(dir, name.as_bytes());
            walk.levels.push(Level::new(dir, successor(&key)));
            let entry: Option<Entry> = rows::read(tables, &key)?;
            walk.enter = entry.filter(|e| e.kind == Kind::Dir).map(|e| e.ino);
        }
        Ok(walk)
    }

    /// Leaves out what is below the directory that was handed out last.
    pub fn skip(&mut self) {
        self.enter = None;
    }

    /// Of what is in the directory that was handed out last, goes on with these names alone, which come
    /// in order.
    pub fn only<T: ReadTables + ?Sized>(&mut self, tables: &T, names: Vec<Name>) -> Result<(), StorageError> {
        let Some(dir) = self.enter.take() else { return Ok(()) };
        let mut page = VecDeque::new();
        for name in names {
            if let Some(entry) = rows::read(tables, &rows::entry(dir, name.as_bytes()))? {
                page.push_back((name, entry));
            }
        }
        self.levels.push(Level { dir, page, next: None });
        Ok(())
    }

    /// The next object.
    pub fn next<T: ReadTables + ?Sized>(&mut self, tables: &T) -> Result<Option<Step>, StorageError> {
        if let Some(dir) = self.enter.take() {
            self.levels.push(Level::new(dir, rows::entry(dir, &[])));
        }
        while let Some(level) = self.levels.last_mut() {
            let parent = level.dir;
            if let Some((name, entry)) = level.pop(tables)? {
                if entry.kind == Kind::Dir {
                    self.enter = Some(entry.ino);
                }
                return Ok(Some(Step { parent, name, entry, depth: self.levels.len() }));
            }
            self.levels.pop();
        }
        Ok(None)
    }
}
