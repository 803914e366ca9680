//! The fuzz target of this crate, on stable: see `raftnode/api/fuzz/src/replay.rs`. The corpus holds what
//! this version writes, which is also a check that the format has not changed.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../../api/fuzz/src/replay.rs"]
mod replay;
#[path = "../fuzz/src/lib.rs"]
mod target;

use quorumfs_api::command::{Command, CreateMode, LeaseChange, Owner, Proposal};
use quorumfs_api::{Key, Timestamp};
use quorumfs_machine::{MemTables, apply, init};
use quorumfs_store::{LeaderId, LogId, SnapshotMeta, write_snapshot};

fn sample(values: &[usize]) -> Vec<u8> {
    let mut tables = MemTables::default();
    init(&mut tables).unwrap();
    for (number, bytes) in values.iter().enumerate() {
        let command = Command::Put {
            target: Key::parse(format!("/d{number}/file")).unwrap().into(),
            value: vec![b'v'; *bytes].into(),
            create: CreateMode::Allow,
            parents: true,
            owner: Owner::FILE,
            lease: LeaseChange::Keep,
        };
        let proposal = Proposal {
            time: Timestamp(1_000),
            author: "alice".into(),
            node: false,
            session: None,
            value_max: 1 << 20,
            store_max: 1 << 30,
            command,
        };
        apply(&mut tables, &proposal).unwrap();
    }
    let last = LogId { leader_id: LeaderId { term: 2, node_id: 1 }, index: values.len() as u64 };
    let meta = SnapshotMeta { last_log_id: Some(last), ..SnapshotMeta::default() };
    let mut bytes = Vec::new();
    write_snapshot(&tables, &meta, &mut bytes).unwrap();
    bytes
}

/// `QUORUMFS_WRITE_CORPUS=1` writes the samples, after the format was changed on purpose.
#[test]
fn the_corpus_holds_what_this_version_writes() {
    let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/snapshot");
    for (name, values) in [("empty", &[][..]), ("small", &[3, 0, 100]), ("parts", &[600, 600, 600])] {
        let (path, bytes) = (dir.join(name), sample(values));
        if std::env::var_os("QUORUMFS_WRITE_CORPUS").is_some() {
            std::fs::write(&path, &bytes).unwrap();
        }
        assert_eq!(std::fs::read(&path).unwrap(), bytes, "{} was written by another format", path.display());
    }
}

#[test]
fn snapshot() {
    replay::replay(env!("CARGO_MANIFEST_DIR"), "snapshot", target::snapshot);
}
