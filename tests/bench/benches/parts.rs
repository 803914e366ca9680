//! The parts that every write goes through, each by itself: the codec, the log on disk, the state machine,
//! the mirror of a mount. `cargo bench -p quorumfs-bench`.
#![allow(missing_docs, clippy::unwrap_used)]

use std::hint::black_box;

use bytes::Bytes;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use fsd::mirror::Mirror;
use quorumfs_api::codec::{self, FrameKind};
use quorumfs_api::command::{Command, CreateMode, LeaseChange, Owner, Proposal, RequestId};
use quorumfs_api::event::Event;
use quorumfs_api::outcome::Done;
use quorumfs_api::wire::{Call, Request};
use quorumfs_api::{Key, LeaseId, Timestamp};
use quorumfs_machine::{Applied, MemTables, view};
use quorumfs_store::{LogBackend, LogId, Logged, Op, Options, SegmentLog};

/// Bytes of a value, and different keys.
const VALUE: usize = 256;
const KEYS: u64 = 10_000;

fn put(key: u64) -> Command {
    let key: Key = format!("/bench/{:08}", key % KEYS).parse().unwrap();
    Command::Put {
        target: key.into(),
        value: Bytes::from_static(&[b'v'; VALUE]),
        create: CreateMode::Allow,
        parents: true,
        owner: Owner::FILE,
        lease: LeaseChange::Keep,
    }
}

fn proposal(session: Option<RequestId>, command: Command) -> Proposal {
    let (value_max, store_max) = (1 << 20, 1 << 40);
    Proposal {
        time: Timestamp(1),
        author: "bench".into(),
        node: false,
        session,
        value_max,
        store_max,
        command,
    }
}

/// A store with all keys in it.
struct Store {
    tables: MemTables,
    session: LeaseId,
    next: u64,
}

impl Store {
    fn new() -> Store {
        let mut tables = MemTables::default();
        quorumfs_machine::init(&mut tables).unwrap();
        let granted =
            quorumfs_machine::apply(&mut tables, &proposal(None, Command::LeaseGrant { ttl_ms: 60_000 }));
        let Ok(Done::Lease { id: session, .. }) = granted.unwrap().outcome.result else {
            unreachable!("a lease is granted")
        };
        let mut store = Store { tables, session, next: 1 };
        (0..KEYS).for_each(|_| drop(store.put()));
        store
    }

    /// As a session of one client does it.
    fn put(&mut self) -> Applied {
        let number = self.next;
        self.next += 1;
        let request = RequestId { session: self.session, number, done_below: number };
        quorumfs_machine::apply(&mut self.tables, &proposal(Some(request), put(number))).unwrap()
    }
}

fn machine(c: &mut Criterion) {
    let mut store = Store::new();
    c.bench_function("machine: put of an existing key", |b| b.iter(|| black_box(store.put())));
}

fn wire(c: &mut Criterion) {
    let session = Some(RequestId { session: LeaseId(7), number: 1000, done_below: 990 });
    let request = Request { id: 1000, timeout_ms: 5000, call: Call::Write { session, command: put(1) } };
    c.bench_function("codec: encode a put", |b| {
        b.iter(|| codec::encode(FrameKind::Request, black_box(&request)).unwrap());
    });
    let frame = codec::encode(FrameKind::Request, &request).unwrap();
    c.bench_function("codec: decode a put", |b| {
        b.iter(|| codec::decode_whole::<Request>(FrameKind::Request, black_box(&frame)).unwrap());
    });
}

fn mirror(c: &mut Criterion) {
    let mut store = Store::new();
    let root = store.tables.clone();
    let revision = view::meta(&root).unwrap().revision;
    // A mirror begins empty at revision 0 and is given every event.
    let mut fresh = MemTables::default();
    quorumfs_machine::init(&mut fresh).unwrap();
    let record = view::get(&fresh, &Key::root()).unwrap();
    let mut all = Mirror::begin(0, record);
    let mut seed = Store { tables: fresh, session: store.session, next: 1 };
    quorumfs_machine::apply(&mut seed.tables, &proposal(None, Command::LeaseGrant { ttl_ms: 60_000 }))
        .unwrap()
        .event
        .into_iter()
        .for_each(|event| drop(all.apply(event).unwrap()));
    for _ in 0..KEYS {
        if let Some(event) = seed.put().event {
            all.apply(event).unwrap();
        }
    }
    assert_eq!(view::meta(&seed.tables).unwrap().revision, revision);
    let mut group = c.benchmark_group("mirror");
    group.throughput(Throughput::Elements(1));
    group.bench_function("apply an update", |b| {
        b.iter_batched(
            || store.put().event.unwrap(),
            |event: Event| black_box(all.apply(event).unwrap()),
            BatchSize::NumIterations(1),
        );
    });
    group.finish();
}

fn log(c: &mut Criterion) {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let options = Options::new(quorumfs_store::Identity { id: 1, name: "bench".into() });
    let path = dir.path().join("raft.log");
    SegmentLog::create(&*(options.open_log)(&path).unwrap(), options.log_segment).unwrap();
    let log = SegmentLog::open((options.open_log)(&path).unwrap()).unwrap();
    let mut next = 0;
    let mut group = c.benchmark_group("log");
    for entries in [1, 16, 256] {
        group.throughput(Throughput::Elements(entries));
        group.bench_function(format!("commit of {entries}, durable"), |b| {
            b.iter(|| {
                let batch = (next..next + entries).map(entry).collect();
                next += entries;
                log.commit(&vec![Op::Append(batch), Op::Purge(id(next - 1))]).unwrap();
            });
        });
    }
    group.finish();
}

fn id(index: u64) -> LogId {
    LogId { leader_id: quorumfs_store::LeaderId { term: 1, node_id: 1 }, index }
}

fn entry(index: u64) -> quorumfs_store::Entry {
    let payload = quorumfs_store::Payload::Normal(Logged::new(proposal(None, put(index))).unwrap());
    quorumfs_store::Entry { log_id: id(index), payload }
}

criterion_group!(parts, wire, machine, mirror, log);
criterion_main!(parts);
