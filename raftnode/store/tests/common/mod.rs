//! What the tests of the store share.
#![allow(clippy::unwrap_used, clippy::expect_used, dead_code, missing_docs)]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use futures::{FutureExt, stream};
use openraft::EntryPayload;
use openraft::storage::{IOFlushed, RaftLogReader, RaftLogStorage, RaftStateMachine};
use openraft::type_config::TypeConfigExt;
use quorumfs_api::command::{Command, CreateMode, LeaseChange, Owner, Proposal};
use quorumfs_api::{Key, Timestamp};
use quorumfs_machine::{ReadTables, Table, Tables};
use quorumfs_store::{
    Batch, Entry, Identity, LeaderId, LogBackend, LogFile, LogId, LogStart, LogStore, Logged, Options,
    StateMachine, Store, TypeConfig,
};

/// How long anything may take before a test gives up.
pub const DEADLINE: Duration = Duration::from_secs(60);

pub fn options() -> Options {
    let mut options = Options::new(Identity { id: 1, name: "a".into() });
    options.state_cache = 16 << 20;
    options.log_segment = 16 << 10;
    options
}

pub fn open(dir: &Path) -> Store {
    Store::open(dir, &options()).unwrap()
}

pub fn id(term: u64, index: u64) -> LogId {
    LogId { leader_id: LeaderId { term, node_id: 1 }, index }
}

pub fn blank(term: u64, index: u64) -> Entry {
    Entry { log_id: id(term, index), payload: EntryPayload::Blank }
}

pub fn proposal(command: Command) -> Proposal {
    Proposal {
        time: Timestamp(1),
        author: "test".into(),
        node: false,
        session: None,
        value_max: 1 << 20,
        store_max: 1 << 30,
        command,
    }
}

pub fn put_command(key: &str, value: impl Into<Vec<u8>>) -> Command {
    Command::Put {
        target: Key::parse(key.to_owned()).unwrap().into(),
        value: value.into().into(),
        create: CreateMode::Allow,
        parents: true,
        owner: Owner::FILE,
        lease: LeaseChange::Keep,
    }
}

pub fn put(index: u64, key: &str, value: impl Into<Vec<u8>>) -> Entry {
    let logged = Logged::new(proposal(put_command(key, value))).unwrap();
    Entry { log_id: id(1, index), payload: EntryPayload::Normal(logged) }
}

pub async fn apply(machine: &mut StateMachine, entries: Vec<Entry>) -> std::io::Result<()> {
    machine.apply(stream::iter(entries.into_iter().map(|entry| Ok((entry, None))))).await
}

/// Appends, and gives what the callback will say.
pub async fn append(
    log: &mut LogStore,
    entries: Vec<Entry>,
) -> std::io::Result<BoxFuture<'static, std::io::Result<()>>> {
    let (sender, receiver) = TypeConfig::oneshot();
    log.append(entries, IOFlushed::signal(sender)).await?;
    Ok(async move { receiver.await.expect("the callback is always called") }.boxed())
}

pub async fn append_durably(log: &mut LogStore, entries: Vec<Entry>) -> std::io::Result<()> {
    append(log, entries).await?.await
}

pub async fn indexes(log: &LogStore) -> Vec<u64> {
    let entries = log.reader().try_get_log_entries(0..u64::MAX).await.unwrap();
    entries.iter().map(|entry| entry.log_id.index).collect()
}

/// All rows.
pub fn dump(tables: &impl ReadTables) -> quorumfs_machine::MemTables {
    let mut copy = quorumfs_machine::MemTables::default();
    for table in Table::ALL {
        let visit = &mut |key: &[u8], value: &bytes::Bytes| {
            copy.put(table, key, value.clone()).unwrap();
            std::ops::ControlFlow::Continue(())
        };
        tables.scan(table, &[], None, visit).unwrap();
    }
    copy
}

/// Waits until `done`, not for a time that somebody guessed.
pub fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < DEADLINE, "waited too long for {what}");
        std::thread::yield_now();
    }
}

/// The file of a log where a database's would be.
pub struct OnBackend<B>(pub B);

impl<B: redb::StorageBackend> LogFile for OnBackend<B> {
    fn len(&self) -> std::io::Result<u64> {
        self.0.len()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> std::io::Result<()> {
        self.0.read(offset, out)
    }
    fn set_len(&self, len: u64) -> std::io::Result<()> {
        self.0.set_len(len)
    }
    fn write(&self, offset: u64, data: &[u8]) -> std::io::Result<()> {
        self.0.write(offset, data)
    }
    fn sync(&self) -> std::io::Result<()> {
        self.0.sync_data()
    }
}

/// A log that counts its commits, and stops in them while a gate is closed.
pub struct Gated<B> {
    pub inner: B,
    pub commits: Arc<AtomicU64>,
    pub closed: Arc<AtomicBool>,
}

impl<B: LogBackend> Gated<B> {
    pub fn new(inner: B) -> Gated<B> {
        Gated { inner, commits: Arc::default(), closed: Arc::default() }
    }
}

impl<B: LogBackend> LogBackend for Gated<B> {
    fn start(&self) -> std::io::Result<LogStart> {
        self.inner.start()
    }
    fn commit(&self, batch: &Batch) -> std::io::Result<()> {
        self.commits.fetch_add(1, Ordering::SeqCst);
        wait_until("the gate", || !self.closed.load(Ordering::SeqCst));
        self.inner.commit(batch)
    }
    fn read(&self, range: std::ops::Range<u64>, max_bytes: usize) -> std::io::Result<Vec<Entry>> {
        self.inner.read(range, max_bytes)
    }
}
