//! The tables are a tree: every object but the root has one name, in a directory that is there; nothing
//! is lost and nothing is there twice; the counters are right.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use quorumfs_api::key::Key;
use quorumfs_api::record::{Ino, Kind};
use quorumfs_machine::{MemTables, ReadTables, Table, view};

use super::Invariant;
use crate::record::{Millis, Seen};

/// See the module.
#[derive(Default)]
pub struct TreeRule;

fn rows(tables: &MemTables, table: Table) -> Result<u64, String> {
    let mut rows = 0;
    let counted = tables.scan(table, &[], None, &mut |_, _| {
        rows += 1;
        ControlFlow::Continue(())
    });
    counted.map(|()| rows).map_err(|error| error.to_string())
}

fn check(tables: &MemTables) -> Result<(), String> {
    let text = |error: quorumfs_machine::StorageError| error.to_string();
    let mut kinds = BTreeMap::from([(Ino::ROOT, Kind::Dir)]);
    let mut copy = view::Copy::begin(tables, &Key::root()).map_err(text)?;
    while let Some(node) = copy.next(tables).map_err(text)? {
        let (ino, name) = (node.record.ino, node.name);
        match kinds.get(&node.parent) {
            Some(Kind::Dir) => {}
            Some(kind) => return Err(format!("{name} lies in {}, which is a {kind:?}", node.parent)),
            None => return Err(format!("{name} lies in {}, which is not there", node.parent)),
        }
        if kinds.insert(ino, node.record.kind).is_some() {
            return Err(format!("{ino} has two names, one of them {name}"));
        }
    }
    let reached = kinds.len() as u64;
    let there = rows(tables, Table::Nodes)?;
    if reached != there {
        return Err(format!("{there} objects are there, and {reached} can be reached from the root"));
    }
    let names = rows(tables, Table::Entries)?;
    if names + 1 != there {
        return Err(format!("{there} objects with the root, and {names} names"));
    }
    let meta = view::meta(tables).map_err(text)?;
    if meta.keys != names {
        return Err(format!("{} keys are counted, and {names} are there", meta.keys));
    }
    if kinds.last_key_value().is_some_and(|(ino, _)| ino.0 >= meta.next_ino) {
        return Err(format!("the next object would get the number {}, which is taken", meta.next_ino));
    }
    Ok(())
}

impl Invariant for TreeRule {
    fn name(&self) -> &'static str {
        "tree rule"
    }

    fn see(&mut self, _now: Millis, seen: &Seen) -> Result<(), String> {
        match seen {
            Seen::State { node, tables, .. } => check(&tables.0).map_err(|why| format!("node {node}: {why}")),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use openraft::EntryPayload;
    use quorumfs_api::command::{At, Command, Owner};
    use quorumfs_machine::Tables;

    use super::super::fixture::entry;
    use super::*;

    #[test]
    fn it_notices_what_is_lost_and_what_has_no_directory() {
        let mut tables = MemTables::default();
        quorumfs_machine::init(&mut tables).unwrap();
        let at = At::Key(Key::parse(b"/a/b".to_vec()).unwrap());
        let mkdir = entry(1, 1, Command::Mkdir { at, parents: true, owner: Owner::DIR });
        let EntryPayload::Normal(logged) = mkdir.entry.payload else { panic!("it is a proposal") };
        quorumfs_machine::apply(&mut tables, logged.proposal()).unwrap();
        assert_eq!(check(&tables), Ok(()));
        for table in [Table::Nodes, Table::Entries] {
            let mut last = Vec::new();
            let all = tables.scan(table, &[], None, &mut |key, _| {
                last = key.to_vec();
                ControlFlow::Continue(())
            });
            all.unwrap();
            let mut damaged = tables.clone();
            damaged.delete(table, &last).unwrap();
            assert!(check(&damaged).is_err(), "without the last row of {table:?}");
        }
    }
}
