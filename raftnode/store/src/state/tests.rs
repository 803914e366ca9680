//! The layers together are one set of tables, whatever was flushed when.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::ops::ControlFlow;
use std::path::Path;

use bytes::Bytes;
use proptest::prelude::*;
use quorumfs_machine::{MemTables, ReadTables, Table, Tables};
use redb::Database;

use super::State;
use super::overlay::Overlay;

fn open(path: &Path) -> State {
    State::open(Database::create(path).unwrap()).unwrap()
}

#[derive(Clone, Debug)]
enum Step {
    Put(u8, u8, u8),
    Delete(u8, u8),
    Flush,
    /// Leaves a layer frozen, as while it is being written.
    Freeze,
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => (0..3u8, 0..24u8, any::<u8>()).prop_map(|(table, key, value)| Step::Put(table, key, value)),
        6 => (0..3u8, 0..24u8).prop_map(|(table, key)| Step::Delete(table, key)),
        2 => Just(Step::Flush),
        2 => Just(Step::Freeze),
        1 => Just(Step::Reopen),
    ]
}

/// Tables in which the state machine keeps nothing at its start.
const TABLES: [Table; 3] = [Table::Values, Table::Locks, Table::LeaseKeys];

fn key(number: u8) -> Vec<u8> {
    // Some are prefixes of others, one is empty.
    vec![b'a' + number % 2; usize::from(number / 2)]
}

fn rows(
    tables: &impl ReadTables,
    table: Table,
    start: &[u8],
    end: Option<&[u8]>,
    most: usize,
) -> Vec<(Vec<u8>, Bytes)> {
    let mut rows = Vec::new();
    let visit = &mut |key: &[u8], value: &Bytes| {
        rows.push((key.to_vec(), value.clone()));
        if rows.len() == most { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    tables.scan(table, start, end, visit).unwrap();
    rows
}

fn check(state: &State, model: &MemTables, number: u8) {
    let layers = state.inner().layers.read();
    let (a, b) = (key(number), key(number.wrapping_mul(7) % 24));
    for table in TABLES {
        for number in 0..24 {
            let key = key(number);
            assert_eq!(layers.get(table, &key).unwrap(), model.get(table, &key).unwrap());
        }
        for most in [1, 3, usize::MAX] {
            assert_eq!(rows(&*layers, table, &[], None, most), rows(model, table, &[], None, most));
            assert_eq!(rows(&*layers, table, &a, None, most), rows(model, table, &a, None, most));
            assert_eq!(rows(&*layers, table, &a, Some(&b), most), rows(model, table, &a, Some(&b), most));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// A failure prints the steps, and how to run them again.
    #[test]
    fn layers_read_like_plain_tables(steps in proptest::collection::vec(step(), 1..60)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        let mut state = open(&path);
        let mut model = MemTables::default();
        let mut views = Vec::new();
        for (number, step) in steps.into_iter().enumerate() {
            match step {
                Step::Put(table, number, value) => {
                    let (table, key) = (TABLES[usize::from(table)], key(number));
                    let mut layers = state.inner().layers.write();
                    match model.get(table, &key).unwrap() {
                        Some(_) => layers.put(table, &key, vec![value].into()).unwrap(),
                        None => layers.put_new(table, &key, vec![value].into()).unwrap(),
                    }
                    model.put(table, &key, vec![value].into()).unwrap();
                }
                Step::Delete(table, number) => {
                    let (table, key) = (TABLES[usize::from(table)], key(number));
                    state.inner().layers.write().delete(table, &key).unwrap();
                    model.delete(table, &key).unwrap();
                }
                Step::Flush => {
                    let view = runtime.block_on(state.snapshot_view()).unwrap();
                    views.push((view, model.clone()));
                }
                Step::Freeze => {
                    // What the thread does, stopped half-way: then all again, as if it went on.
                    let mut layers = state.inner().layers.write();
                    if layers.frozen.is_none() {
                        let active = std::mem::take(&mut layers.active);
                        layers.frozen = Some(std::sync::Arc::new(active));
                    }
                    drop(layers);
                    check(&state, &model, number as u8 % 24);
                    let mut layers = state.inner().layers.write();
                    let mut merged = Overlay::default();
                    let frozen = layers.frozen.take();
                    for layer in frozen.iter().map(|frozen| &**frozen).chain([&layers.active]) {
                        for table in Table::ALL {
                            for (key, value) in layer.rows(table) {
                                match value {
                                    Some(value) => merged.set(table, key, value.clone(), false),
                                    None => merged.remove(table, key),
                                }
                            }
                        }
                    }
                    layers.active = merged;
                }
                Step::Reopen => {
                    views.clear();
                    runtime.block_on(state.close()).unwrap();
                    drop(state);
                    state = open(&path);
                }
            }
            check(&state, &model, number as u8 % 24);
        }
        // Each view is still the state of its moment.
        for (view, model) in views {
            for table in TABLES {
                assert_eq!(rows(&view, table, &[], None, usize::MAX), rows(&model, table, &[], None, usize::MAX));
            }
        }
    }
}
