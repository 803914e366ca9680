//! The bytes of every kind of row, and of what stands in the log and on the wire. If one of these
//! tests fails, an old state can no longer be read: give the row a new version instead.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fmt::Write;

use bytes::Bytes;
use quorumfs_api::codec::{self, FrameKind};
use quorumfs_api::command::{
    Command, CreateMode, LeaseChange, LockKind, LockOwner, Owner, Proposal, Range, RenameMode, RequestId,
    Special, XattrMode,
};
use quorumfs_api::key::Key;
use quorumfs_api::record::{Device, Ino, LeaseId, Timestamp};

use crate::{Applied, MemTables, ReadTables, Table, apply, init};

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

fn key(text: &'static str) -> Key {
    Key::parse(text.as_bytes()).unwrap()
}

fn proposals() -> Vec<Proposal> {
    let lease = LeaseId(1);
    let commands = vec![
        Command::LeaseGrant { ttl_ms: 5_000 },
        Command::Put {
            target: key("/a/f").into(),
            value: Bytes::from_static(b"hello"),
            create: CreateMode::Allow,
            parents: true,
            owner: Owner { mode: 0o640, uid: 1, gid: 2 },
            lease: LeaseChange::Bind(lease),
        },
        Command::SetXattr {
            target: Ino(3).into(),
            name: Bytes::from_static(b"user.x"),
            value: Some(Bytes::from_static(b"y")),
            mode: XattrMode::Set,
        },
        Command::Lock {
            ino: Ino(3),
            owner: LockOwner { session: lease, owner: 7 },
            range: Range { start: 1, end: 200 },
            kind: LockKind::Exclusive,
            pid: 300,
            wait: false,
        },
        Command::Lock {
            ino: Ino(3),
            owner: LockOwner { session: lease, owner: 8 },
            range: Range::WHOLE,
            kind: LockKind::Shared,
            pid: 301,
            wait: true,
        },
        Command::Mknod {
            at: key("/n").into(),
            special: Special::CharDevice(Device { major: 1, minor: 3 }),
            parents: false,
            owner: Owner { mode: 0o600, uid: 1, gid: 2 },
        },
        Command::Rename { from: key("/a/f").into(), to: key("/g").into(), mode: RenameMode::Replace },
        Command::Rmdir { at: key("/none").into() },
    ];
    let propose = |(i, command)| Proposal {
        time: Timestamp(1_000 + i as i64),
        author: "alice".to_string(),
        node: false,
        session: (i == 6).then_some(RequestId { session: lease, number: 2, done_below: 2 }),
        value_max: 1 << 20,
        store_max: 2 << 30,
        command,
    };
    commands.into_iter().enumerate().map(propose).collect()
}

fn applied() -> (MemTables, Vec<Applied>) {
    let mut tables = MemTables::default();
    init(&mut tables).unwrap();
    let applied = proposals().iter().map(|proposal| apply(&mut tables, proposal).unwrap()).collect();
    (tables, applied)
}

#[test]
fn rows_are_these_bytes() {
    let (tables, _) = applied();
    let mut found = String::new();
    for table in Table::ALL {
        tables
            .scan(table, &[], None, &mut |key, row| {
                writeln!(found, "{} {} {}", table.name(), hex(key), hex(row)).unwrap();
                std::ops::ControlFlow::Continue(())
            })
            .unwrap();
    }
    assert_eq!(found, include_str!("golden_rows.txt"));
}

#[test]
fn what_goes_through_the_log_is_these_bytes() {
    let (_, applied) = applied();
    let mut found = String::new();
    for (proposal, Applied { outcome, event }) in proposals().iter().zip(applied) {
        writeln!(found, "proposal {}", hex(&codec::encode(FrameKind::Entry, proposal).unwrap())).unwrap();
        writeln!(found, "outcome {}", hex(&codec::encode(FrameKind::Reply, &outcome).unwrap())).unwrap();
        if let Some(event) = event {
            writeln!(found, "event {}", hex(&codec::encode(FrameKind::Watch, &event).unwrap())).unwrap();
        }
    }
    assert_eq!(found, include_str!("golden_log.txt"));
}
