//! One message of each kind, and what it looks like on the wire.

use bytes::Bytes;
use quorumfs_api::codec::{self, FrameKind};
use quorumfs_api::command::{
    AttrChange, HeldLock, LockKind, LockOwner, Range, Relation, RequestId, Special, TimeChange, XattrMode,
};
use quorumfs_api::record::Device;
use quorumfs_api::rights::{Access, Grant, Rights};
use quorumfs_api::wire::{
    Admin, Answer, Call, Consistency, Failure, Hello, LeaseInfo, Member, Node, Prefix, Reply, Request,
    Status, WatchFrame, WatchStart,
};
use quorumfs_api::{
    Change, Command, Compare, CreateMode, Done, Event, Ino, Key, Kind, LeaseChange, LeaseId, Name, Outcome,
    Owner, Place, Proposal, Record, Refusal, RenameMode, Target, Timestamp,
};

fn key(text: &'static str) -> Key {
    Key::parse(text).unwrap()
}
fn name(text: &'static str) -> Name {
    Name::new(text).unwrap()
}

fn rights() -> Rights {
    let grant = |path, access, line| Grant { path: key(path), access, line };
    let grants = [grant("/", Access::Read, 4), grant("/a", Access::Write, 300), grant("/b", Access::None, 0)];
    let mut rights = Rights::new(true, grants);
    rights.cut_off = Some(9);
    rights
}

pub fn record() -> Record {
    Record {
        ino: Ino(300),
        kind: Kind::File,
        mode: 0o640,
        uid: 1000,
        gid: 100,
        atime: Timestamp(1_600_000_000_000_000_000),
        mtime: Timestamp(1_700_000_000_000_000_000),
        ctime: Timestamp(-1),
        create_revision: 7,
        mod_revision: 9,
        version: 2,
        lease: Some(LeaseId(5)),
        author: "host-a".into(),
        xattrs: vec![(Bytes::from_static(b"user.note"), Bytes::from_static(b"n"))],
        value: Bytes::from_static(b"v\0\xff"),
    }
}

fn place() -> Place {
    Place { key: key("/a/b"), parent: Ino(2), name: name("b") }
}

fn commands() -> Vec<(&'static str, Command)> {
    let owner = Owner { mode: 0o600, uid: 1, gid: 2 };
    let lock = LockOwner { session: LeaseId(5), owner: 77 };
    vec![
        (
            "put",
            Command::Put {
                target: key("/a").into(),
                value: Bytes::from_static(b"v"),
                create: CreateMode::Exclusive,
                parents: true,
                owner,
                lease: LeaseChange::Bind(LeaseId(5)),
            },
        ),
        (
            "append",
            Command::Append {
                target: Ino(3).into(),
                data: Bytes::from_static(b"d"),
                create: CreateMode::Never,
                parents: false,
                owner,
            },
        ),
        ("truncate", Command::Truncate { target: Ino(3).into(), size: 300 }),
        ("delete", Command::Delete { at: key("/a").into(), recursive: true }),
        ("mkdir", Command::Mkdir { at: quorumfs_api::At::Entry(Ino(2), name("d")), parents: false, owner }),
        ("rmdir", Command::Rmdir { at: key("/d").into() }),
        (
            "rename",
            Command::Rename { from: key("/a").into(), to: key("/b").into(), mode: RenameMode::Exchange },
        ),
        (
            "symlink",
            Command::Symlink { at: key("/l").into(), to: Bytes::from_static(b"a"), parents: true, owner },
        ),
        (
            "setattr",
            Command::SetAttr {
                target: Target::At(key("/a").into()),
                set: AttrChange {
                    mode: Some(0o777),
                    uid: None,
                    gid: Some(4),
                    atime: Some(TimeChange::Now),
                    mtime: Some(TimeChange::At(Timestamp(1))),
                },
            },
        ),
        (
            "setxattr",
            Command::SetXattr {
                target: Ino(3).into(),
                name: Bytes::from_static(b"user.x"),
                value: None,
                mode: XattrMode::Replace,
            },
        ),
        (
            "lock",
            Command::Lock {
                ino: Ino(3),
                owner: lock,
                range: Range::WHOLE,
                kind: LockKind::Exclusive,
                pid: 9,
                wait: true,
            },
        ),
        ("unlock", Command::Unlock { ino: Ino(3), owner: lock, range: Range { start: 1, end: 2 } }),
        ("lease-grant", Command::LeaseGrant { ttl_ms: 10_000 }),
        ("lease-revoke", Command::LeaseRevoke { lease: LeaseId(5) }),
        ("lease-expire", Command::LeaseExpire { leases: vec![LeaseId(5), LeaseId(6)] }),
        (
            "txn",
            Command::Txn {
                compare: vec![
                    Compare::Exists(key("/a"), true),
                    Compare::Value(key("/a"), Bytes::from_static(b"v"), false),
                    Compare::Version(key("/a"), Relation::Greater, 1),
                    Compare::CreateRevision(key("/a"), Relation::Less, 2),
                    Compare::ModRevision(key("/a"), Relation::NotEqual, 3),
                    Compare::Kind(key("/a"), Kind::Dir),
                ],
                then: vec![Command::Rmdir { at: key("/d").into() }],
                otherwise: vec![Command::Truncate { target: Ino(1).into(), size: 0 }],
            },
        ),
        ("mknod-fifo", mknod(Special::Fifo)),
        ("mknod-socket", mknod(Special::Socket)),
        ("mknod-char", mknod(Special::CharDevice(Device { major: 1, minor: 300 }))),
        ("mknod-block", mknod(Special::BlockDevice(Device { major: 8, minor: 0 }))),
        ("cancel-wait", Command::CancelWait { ino: Ino(3), owner: lock }),
    ]
}

fn mknod(special: Special) -> Command {
    let owner = Owner { mode: 0o600, uid: 1, gid: 2 };
    Command::Mknod { at: key("/n").into(), special, parents: true, owner }
}

fn calls() -> Vec<(&'static str, Call)> {
    let member = Member { id: 2, name: "n2".into(), addr: "n2:7400".into(), voter: false };
    vec![
        ("get", Call::Get { key: key("/a"), consistency: Consistency::Linearizable }),
        (
            "range",
            Call::Range {
                prefix: Prefix::Text(key("/a"), Bytes::from_static(b"b")),
                keys_only: true,
                after: Some(key("/a/b")),
                limit: 1000,
                consistency: Consistency::Serializable,
            },
        ),
        ("range-tree", range(Prefix::Tree(Key::root()))),
        ("range-children", range(Prefix::Children(key("/a")))),
        ("barrier", Call::Barrier),
        ("status", Call::Status),
        ("keepalive", Call::KeepAlive(LeaseId(5))),
        ("leases", Call::Leases(Some(LeaseId(5)))),
        ("locks", Call::Locks(Ino(3))),
        ("add-learner", Call::Admin(Admin::AddLearner(member))),
        ("promote", Call::Admin(Admin::Promote(2))),
        ("remove", Call::Admin(Admin::Remove(2))),
        ("transfer", Call::Admin(Admin::Transfer(None))),
        ("snapshot", Call::Admin(Admin::Snapshot)),
        ("rights", Call::Rights),
    ]
}

fn range(prefix: Prefix) -> Call {
    Call::Range { prefix, keys_only: false, after: None, limit: 0, consistency: Consistency::Linearizable }
}

fn held() -> HeldLock {
    HeldLock {
        owner: LockOwner { session: LeaseId(5), owner: 77 },
        range: Range::WHOLE,
        kind: LockKind::Shared,
        pid: 9,
        revision: 11,
    }
}

fn answers() -> Vec<(&'static str, Result<Answer, Failure>)> {
    let written = |result| Ok(Answer::Written(Outcome { revision: 12, result }));
    let member = Member { id: 2, name: "n2".into(), addr: "n2:7400".into(), voter: true };
    vec![
        ("written-ok", written(Ok(Done::Ok))),
        ("written", written(Ok(Done::Written { ino: Ino(3), created: true, version: 1 }))),
        ("deleted", written(Ok(Done::Deleted(4)))),
        ("lease", written(Ok(Done::Lease { id: LeaseId(5), ttl_ms: 10_000 }))),
        ("locked", written(Ok(Done::Locked(11)))),
        ("txn-done", written(Ok(Done::Txn { succeeded: false, results: vec![Done::Ok] }))),
        ("waiting", written(Ok(Done::Waiting(held())))),
        ("not-found", written(Err(Refusal::NotFound("/a".into())))),
        ("stale", written(Err(Refusal::Stale(Ino(3))))),
        ("exists", written(Err(Refusal::Exists("/a".into())))),
        ("not-directory", written(Err(Refusal::NotDirectory("/a".into())))),
        ("is-directory", written(Err(Refusal::IsDirectory("/a".into())))),
        ("not-file", written(Err(Refusal::NotFile("/a".into(), Kind::Symlink)))),
        ("not-empty", written(Err(Refusal::NotEmpty("/a".into())))),
        ("invalid", written(Err(Refusal::Invalid("x".into())))),
        ("name-too-long", written(Err(Refusal::NameTooLong("x".into())))),
        ("value-too-large", written(Err(Refusal::ValueTooLarge { size: 2, limit: 1 }))),
        ("store-full", written(Err(Refusal::StoreFull { used: 2, limit: 1 }))),
        ("no-lease", written(Err(Refusal::NoLease(LeaseId(5))))),
        ("no-session", written(Err(Refusal::NoSession(LeaseId(5))))),
        ("forgotten", written(Err(Refusal::Forgotten(3)))),
        ("refused-locked", written(Err(Refusal::Locked(held())))),
        ("too-many", written(Err(Refusal::TooMany("x".into())))),
        ("no-attribute", written(Err(Refusal::NoAttribute))),
        ("deadlock", written(Err(Refusal::Deadlock(held())))),
        ("policy-denies", written(Err(Refusal::Denied("no".into())))),
        ("bad-policy", written(Err(Refusal::BadPolicy("line 1, column 2: no".into())))),
        ("got", Ok(Answer::Got { revision: 12, record: Some(record()) })),
        ("range-answer", Ok(Answer::Range { revision: 12, items: vec![(key("/a"), record())], more: true })),
        ("barrier-answer", Ok(Answer::Barrier(12))),
        (
            "status-answer",
            Ok(Answer::Status(Box::new(Status {
                id: 1,
                name: "n1".into(),
                version: "0.1.0".into(),
                leader: Some(2),
                term: 3,
                last_log_index: 4,
                applied_index: 5,
                snapshot_index: 6,
                revision: 7,
                compacted: 8,
                keys: 9,
                store_bytes: 10,
                store_max: 11,
                watches: 12,
                members: vec![member.clone()],
            }))),
        ),
        ("kept-alive", Ok(Answer::KeptAlive(10_000))),
        (
            "leases-answer",
            Ok(Answer::Leases(vec![LeaseInfo {
                id: LeaseId(5),
                ttl_ms: 10_000,
                author: "host-a".into(),
                remaining_ms: Some(9_000),
                keys: vec![key("/a")],
            }])),
        ),
        ("locks-answer", Ok(Answer::Locks(vec![held()]))),
        ("done", Ok(Answer::Done)),
        ("rights", Ok(Answer::Rights { policy: 7, rights: rights() })),
        ("not-leader", Err(Failure::NotLeader(Some(member)))),
        ("no-quorum", Err(Failure::NoQuorum)),
        ("busy", Err(Failure::Busy("x".into()))),
        ("bad-request", Err(Failure::BadRequest("x".into()))),
        ("denied", Err(Failure::Denied("x".into()))),
        ("unavailable", Err(Failure::Unavailable("x".into()))),
        ("failure-no-lease", Err(Failure::NoLease(LeaseId(5)))),
    ]
}

fn watch_frames() -> Vec<(&'static str, WatchFrame)> {
    let moved = Place { key: key("/c"), parent: Ino(1), name: name("c") };
    let changes = vec![
        Change::Create { place: place(), record: record() },
        Change::Update { place: place(), record: record() },
        Change::Attr { place: None, record: record() },
        Change::Remove { place: place(), ino: Ino(3), kind: Kind::Dir },
        Change::Rename {
            from: place(),
            to: moved,
            ino: Ino(3),
            kind: Kind::File,
            replaced: Some((Ino(4), Kind::Symlink)),
            exchanged: None,
        },
        Change::Unlocked { ino: Ino(3) },
    ];
    let event = Event {
        revision: 12,
        time: Timestamp(5),
        session: Some(LeaseId(5)),
        author: "host-a".into(),
        changes,
    };
    vec![
        ("copy-begin", WatchFrame::CopyBegin { revision: 12, root: Some(record()) }),
        ("copy-part", WatchFrame::CopyPart(vec![Node { parent: Ino(1), name: name("a"), record: record() }])),
        ("copy-end", WatchFrame::CopyEnd),
        ("events", WatchFrame::Events(vec![event])),
        ("progress", WatchFrame::Progress(12)),
        ("compacted", WatchFrame::Compacted(3)),
        ("rights", WatchFrame::Rights(rights())),
    ]
}

/// Name and whole frame of each message.
pub fn messages() -> Vec<(String, Vec<u8>)> {
    let mut all = Vec::new();
    let start = WatchStart { prefix: key("/a"), after: Some(12), copy_when_behind: true };
    for (name, hello) in [("calls", Hello::Calls), ("watch", Hello::Watch(start))] {
        all.push((format!("hello/{name}"), codec::encode(FrameKind::Hello, &hello)));
    }
    let session = Some(RequestId { session: LeaseId(5), number: 3, done_below: 2 });
    for (name, command) in commands() {
        let call = Call::Write { session, command: command.clone() };
        all.push((
            format!("write/{name}"),
            codec::encode(FrameKind::Request, &Request { id: 1, timeout_ms: 5000, call }),
        ));
        let proposal = Proposal {
            time: Timestamp(1_700_000_000_000_000_000),
            author: "host-a".into(),
            node: false,
            session,
            value_max: 1 << 20,
            store_max: 2 << 30,
            command,
        };
        all.push((format!("proposal/{name}"), codec::encode(FrameKind::Entry, &proposal)));
    }
    for (name, call) in calls() {
        all.push((
            format!("call/{name}"),
            codec::encode(FrameKind::Request, &Request { id: 300, timeout_ms: 1, call }),
        ));
    }
    for (name, answer) in answers() {
        all.push((format!("reply/{name}"), codec::encode(FrameKind::Reply, &Reply { id: 300, answer })));
    }
    for (name, frame) in watch_frames() {
        all.push((format!("watch/{name}"), codec::encode(FrameKind::Watch, &frame)));
    }
    all.push(("row/record".into(), codec::encode(FrameKind::Row, &record())));
    all.into_iter().map(|(name, bytes)| (name, bytes.unwrap().to_vec())).collect()
}
