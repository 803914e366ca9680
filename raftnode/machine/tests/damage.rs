//! A row that cannot be read, or a storage that fails, stops the node: it is an error, never a skip,
//! and nothing is half-written.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::cell::Cell;
use std::ops::ControlFlow;

use bytes::Bytes;
use common::{asked, at, fresh, grant, key, mkdir, put, run};
use quorumfs_api::command::{Command, LockKind, LockOwner, Range, RenameMode};
use quorumfs_api::key::Key;
use quorumfs_api::record::LeaseId;
use quorumfs_api::wire::Prefix;
use quorumfs_machine::tables::Visit;
use quorumfs_machine::{MemTables, PageLimit, ReadTables, StorageError, Table, Tables, apply, init, view};

fn some() -> (MemTables, LeaseId) {
    let mut tables = fresh();
    let session = grant(&mut tables);
    run(&mut tables, put(key("/d/f"), "value"));
    let ino = view::resolve(&tables, &key("/d/f")).unwrap().unwrap();
    let owner = LockOwner { session, owner: 1 };
    run(
        &mut tables,
        Command::Lock { ino, owner, range: Range::WHOLE, kind: LockKind::Shared, pid: 1, wait: false },
    );
    apply(&mut tables, &asked(session, 1, 1, mkdir("/e"))).unwrap();
    (tables, session)
}

/// All reads together; an error if any fails.
fn read_all(tables: &MemTables) -> Result<(), StorageError> {
    let all = PageLimit { keys: usize::MAX, bytes: usize::MAX };
    view::meta(tables)?;
    view::range(tables, &Prefix::Tree(Key::root()), None, all, false)?;
    view::copy(tables, &Key::root(), &mut |_| ControlFlow::Continue(()))?;
    view::events(tables, 0, usize::MAX, usize::MAX)?.unwrap();
    for lease in view::leases(tables)? {
        view::lease(tables, lease.id)?;
    }
    for ino in 1..10 {
        view::locks(tables, quorumfs_api::Ino(ino))?;
        view::record(tables, quorumfs_api::Ino(ino))?;
    }
    Ok(())
}

/// What happens to the bytes of a row.
type Damage = fn(&[u8]) -> Vec<u8>;

#[test]
fn a_damaged_row_is_an_error() {
    let (tables, session) = some();
    read_all(&tables).unwrap();
    let damages: [(&str, Damage); 4] = [
        ("another version", |row| [&[99], &row[1..]].concat()),
        ("cut", |row| row[..row.len() - 1].to_vec()),
        ("longer", |row| [row, &[0]].concat()),
        ("empty", |_| Vec::new()),
    ];
    for table in [
        Table::Meta,
        Table::Nodes,
        Table::Values,
        Table::Entries,
        Table::Events,
        Table::Leases,
        Table::Results,
        Table::Locks,
    ] {
        for (row_key, row) in common::rows(&tables, table) {
            for (what, damage) in damages {
                let mut damaged = tables.clone();
                damaged.put(table, &row_key, damage(&row).into()).unwrap();
                let read = read_all(&damaged);
                let again = apply(&mut damaged, &asked(session, 1, 1, mkdir("/e")));
                assert!(read.is_err() || again.is_err(), "{what} row {row_key:?} of {}", table.name());
            }
        }
    }
}

#[test]
fn empty_tables_are_an_error_and_not_an_empty_store() {
    let mut tables = MemTables::default();
    assert!(apply(&mut tables, &common::proposal(mkdir("/x"))).is_err());
    assert!(view::meta(&tables).is_err());
    assert_eq!(tables, MemTables::default());
}

/// Fails from the call number `left` on.
struct Failing {
    tables: MemTables,
    left: Cell<usize>,
    wrote: bool,
}

impl Failing {
    fn call(&self) -> Result<(), StorageError> {
        match self.left.get().checked_sub(1) {
            Some(left) => {
                self.left.set(left);
                Ok(())
            }
            None => Err(StorageError::new("the disk is gone")),
        }
    }
}

impl ReadTables for Failing {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, StorageError> {
        self.call()?;
        self.tables.get(table, key)
    }
    fn scan(
        &self,
        table: Table,
        start: &[u8],
        end: Option<&[u8]>,
        visit: Visit<'_>,
    ) -> Result<(), StorageError> {
        self.call()?;
        self.tables.scan(table, start, end, visit)
    }
}

impl Tables for Failing {
    fn put(&mut self, table: Table, key: &[u8], value: Bytes) -> Result<(), StorageError> {
        self.wrote = true;
        self.tables.put(table, key, value)
    }
    fn delete(&mut self, table: Table, key: &[u8]) -> Result<(), StorageError> {
        self.wrote = true;
        self.tables.delete(table, key)
    }
}

#[test]
fn a_read_that_fails_leaves_nothing_half_written() {
    let (tables, session) = some();
    let rename = |from, to| Command::Rename { from: at(from), to: at(to), mode: RenameMode::Replace };
    let txn = Command::Txn {
        compare: vec![],
        then: vec![put(key("/d/g"), "v"), rename("/d", "/e"), common::delete("/e/f", false)],
        otherwise: vec![],
    };
    let proposal = asked(session, 2, 2, txn);
    for left in 0.. {
        let mut failing = Failing { tables: tables.clone(), left: Cell::new(left), wrote: false };
        match apply(&mut failing, &proposal) {
            Ok(applied) => {
                assert!(applied.outcome.result.is_ok() && failing.wrote && left > 10);
                break;
            }
            Err(_) => assert!(!failing.wrote, "reads that fail come before all writes"),
        }
        init(&mut failing).unwrap_err();
    }
}
