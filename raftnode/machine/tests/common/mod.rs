//! What the tests of the state machine share.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used)]

pub mod generate;
pub mod mirror;
pub mod reference;
pub mod reference_locks;

use std::hash::{BuildHasher, Hasher};
use std::ops::ControlFlow;

use bytes::Bytes;
use proptest::test_runner::{Config, RngSeed};
use quorumfs_api::command::{At, Command, CreateMode, LeaseChange, Owner, Proposal, RequestId, Target};
use quorumfs_api::key::{Key, Name};
use quorumfs_api::record::{Ino, LeaseId, Timestamp};
use quorumfs_machine::{Applied, MemTables, ReadTables, Table, Tables, apply, init};

/// A configuration with a seed that a failure shows. `PROPTEST_RNG_SEED` in the environment replays
/// it, `PROPTEST_CASES` asks for more or fewer cases. No files with seeds are written.
pub fn config(cases: u32) -> Config {
    let mut config = Config::default();
    if std::env::var_os("PROPTEST_CASES").is_none() {
        config.cases = cases;
    }
    config.failure_persistence = None;
    let seed = match config.rng_seed {
        RngSeed::Fixed(seed) => seed,
        RngSeed::Random => std::collections::hash_map::RandomState::new().build_hasher().finish(),
    };
    config.rng_seed = RngSeed::Fixed(seed);
    eprintln!("replay with: PROPTEST_RNG_SEED={seed} PROPTEST_CASES={}", config.cases);
    config
}

/// Empty, but for the root.
pub fn fresh() -> MemTables {
    let mut tables = MemTables::default();
    init(&mut tables).unwrap();
    tables
}

/// All rows of a table.
pub fn rows(tables: &impl ReadTables, table: Table) -> Vec<(Vec<u8>, Bytes)> {
    let mut rows = Vec::new();
    tables
        .scan(table, &[], None, &mut |key, value| {
            rows.push((key.to_vec(), value.clone()));
            ControlFlow::Continue(())
        })
        .unwrap();
    rows
}

/// What a snapshot does: every row into other tables.
pub fn snapshot(tables: &impl ReadTables) -> MemTables {
    let mut copy = MemTables::default();
    for table in Table::ALL {
        for (key, value) in rows(tables, table) {
            copy.put(table, &key, value).unwrap();
        }
    }
    copy
}

pub fn key(text: &str) -> Key {
    Key::parse(text.as_bytes().to_vec()).unwrap()
}

pub fn at(text: &str) -> At {
    At::Key(key(text))
}

pub fn entry(dir: u64, name: &str) -> At {
    At::Entry(Ino(dir), Name::new(name.as_bytes()).unwrap())
}

/// A proposal without a session, with room for everything.
pub fn proposal(command: Command) -> Proposal {
    Proposal {
        time: Timestamp(1_000),
        author: "alice".to_string(),
        node: false,
        session: None,
        value_max: 8 << 20,
        store_max: u64::MAX >> 1,
        command,
    }
}

/// One of a session.
pub fn asked(session: LeaseId, number: u64, done_below: u64, command: Command) -> Proposal {
    Proposal { session: Some(RequestId { session, number, done_below }), ..proposal(command) }
}

pub fn put(target: impl Into<Target>, value: impl Into<Bytes>) -> Command {
    Command::Put {
        target: target.into(),
        value: value.into(),
        create: CreateMode::Allow,
        parents: true,
        owner: Owner::FILE,
        lease: LeaseChange::Keep,
    }
}

pub fn mkdir(text: &str) -> Command {
    Command::Mkdir { at: at(text), parents: true, owner: Owner::DIR }
}

pub fn delete(text: &str, recursive: bool) -> Command {
    Command::Delete { at: at(text), recursive }
}

/// Applies a command that nobody asked for in a session.
pub fn run(tables: &mut MemTables, command: Command) -> Applied {
    apply(tables, &proposal(command)).unwrap()
}

/// The same, and it has to be refused and leave everything as it was.
pub fn refused(tables: &mut MemTables, command: Command) -> quorumfs_api::outcome::Refusal {
    let before = tables.clone();
    let applied = run(tables, command);
    assert_eq!(*tables, before, "a refused command changed something");
    assert_eq!(applied.event, None);
    applied.outcome.result.unwrap_err()
}

/// Grants a lease.
pub fn grant(tables: &mut MemTables) -> LeaseId {
    match run(tables, Command::LeaseGrant { ttl_ms: 10_000 }).outcome.result {
        Ok(quorumfs_api::outcome::Done::Lease { id, .. }) => id,
        other => panic!("no lease: {other:?}"),
    }
}
