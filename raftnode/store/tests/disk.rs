//! What a disk that fails, and a process that dies, may do: nothing that was acknowledged is lost, and
//! nothing is acknowledged after an error.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::fs::OpenOptions;
use std::io::{self, BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use common::{OnBackend, append, append_durably, apply, blank, id, indexes, open, options, put};
use openraft::storage::{RaftLogReader, RaftLogStorage};
use quorumfs_machine::view;
use quorumfs_store::{OpenError, Options, Store, Vote};
use redb::backends::FileBackend;
use redb::{Database, StorageBackend};

/// A disk that works for a number of writes and syncs, and never again.
#[derive(Debug)]
struct Faulty {
    inner: FileBackend,
    left: Arc<AtomicI64>,
}

impl Faulty {
    fn spend(&self) -> io::Result<()> {
        if self.left.fetch_sub(1, Ordering::SeqCst) > 0 { Ok(()) } else { Err(io::Error::other("injected")) }
    }
}

impl StorageBackend for Faulty {
    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.inner.read(offset, out)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.spend()?;
        self.inner.set_len(len)
    }
    fn sync_data(&self) -> io::Result<()> {
        self.spend()?;
        self.inner.sync_data()
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.spend()?;
        self.inner.write(offset, data)
    }
    fn close(&self) -> io::Result<()> {
        self.inner.close()
    }
}

/// Options with which the log fails after what is in the counter.
fn faulty_log() -> (Options, Arc<AtomicI64>) {
    let left = Arc::new(AtomicI64::new(i64::MAX));
    let mut options = options();
    let counter = left.clone();
    options.open_log = Arc::new(move |path: &Path| {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        let inner = FileBackend::new(file).map_err(io::Error::other)?;
        Ok(Box::new(OnBackend(Faulty { inner, left: counter.clone() })))
    });
    (options, left)
}

/// Options with which the database `name` fails after what is in the counter.
fn faulty(name: &'static str) -> (Options, Arc<AtomicI64>) {
    let left = Arc::new(AtomicI64::new(i64::MAX));
    let mut options = options();
    let (counter, sound) = (left.clone(), options.open_database.clone());
    options.open_database = Arc::new(move |path: &Path, cache| {
        // One that is being made has more to its name.
        if !path.file_name().is_some_and(|file| file.to_string_lossy().starts_with(name)) {
            return sound(path, cache);
        }
        let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
        let inner = FileBackend::new(open.map_err(redb::StorageError::from)?)?;
        Database::builder().set_cache_size(cache).create_with_backend(Faulty { inner, left: counter.clone() })
    });
    (options, left)
}

#[tokio::test]
async fn a_log_on_a_failing_disk_acknowledges_nothing_afterwards() {
    for after in 0..24 {
        let dir = tempfile::tempdir().unwrap();
        let (options, left) = faulty_log();
        let mut store = Store::open(dir.path(), &options).unwrap();
        append_durably(&mut store.log, vec![blank(1, 0)]).await.unwrap();
        left.store(after, Ordering::SeqCst);
        let mut acknowledged = 0;
        let mut failed = false;
        for index in 1..40 {
            match append_durably(&mut store.log, vec![put(index, "/k", vec![b'v'; 3000])]).await {
                Ok(()) => {
                    assert!(
                        !failed,
                        "entry {index} was acknowledged after an error (disk fails after {after})"
                    );
                    acknowledged = index;
                }
                Err(error) => {
                    assert!(error.to_string().contains("restarted"), "{error}");
                    failed = true;
                }
            }
        }
        assert!(failed);
        assert!(store.log.save_vote(&Vote::new(9, 1)).await.is_err(), "votes are not taken either");
        // Gone like a process that exits; the file is what the disk took.
        let _ = store.guard.close().await;
        drop((store.log, store.machine, store.state));

        let store = open(dir.path());
        let found = indexes(&store.log).await;
        assert!(found.len() as u64 > acknowledged, "lost entry {acknowledged} (disk fails after {after})");
        assert_eq!(found, (0..found.len() as u64).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn a_state_on_a_failing_disk_stops_and_the_log_brings_it_back() {
    for after in 0..12 {
        let dir = tempfile::tempdir().unwrap();
        let (options, left) = faulty("state.redb");
        let mut store = Store::open(dir.path(), &options).unwrap();
        let entries: Vec<_> = (0..20).map(|index| put(index, &format!("/k{index}"), "v")).collect();
        append_durably(&mut store.log, entries.clone()).await.unwrap();
        apply(&mut store.machine, entries[..10].to_vec()).await.unwrap();
        store.state.flush().await.unwrap();
        left.store(after, Ordering::SeqCst);
        apply(&mut store.machine, entries[10..].to_vec()).await.unwrap();
        let flushed = store.state.flush().await;
        if let Err(error) = &flushed {
            assert!(error.to_string().contains("restarted"), "{error}");
            assert!(store.state.read(|tables| view::meta(tables)).is_err());
            assert!(apply(&mut store.machine, vec![blank(1, 20)]).await.is_err());
            assert!(store.log.purge(id(1, 19)).await.is_err(), "what is not durable as state is not purged");
        }
        let _ = store.guard.close().await;
        drop((store.log, store.machine, store.state));

        let mut store = open(dir.path());
        let at = store.state.position().last_log_id.unwrap().index;
        assert!(at == 19 || (at == 9 && flushed.is_err()), "it stands at {at}");
        apply(&mut store.machine, entries[at as usize + 1..].to_vec()).await.unwrap();
        assert_eq!(store.state.read(|tables| view::meta(tables)).unwrap().keys, 20);
    }
}

#[test]
fn a_second_process_cannot_open_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    match Store::open(dir.path(), &options()) {
        Err(OpenError::InUse { holder, .. }) => assert_eq!(holder, std::process::id().to_string()),
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("it was opened twice"),
    }
    drop(store);
}

#[tokio::test]
async fn a_directory_belongs_to_one_node() {
    let dir = tempfile::tempdir().unwrap();
    open(dir.path()).guard.close().await.unwrap();
    let mut other = options();
    other.identity.id = 2;
    let refused = Store::open(dir.path(), &other).err().expect("another node's directory");
    assert!(refused.to_string().contains("belongs to node 1 (a)"), "{refused}");
    std::fs::write(dir.path().join("node.toml"), "id = x").unwrap();
    assert!(matches!(Store::open(dir.path(), &options()), Err(OpenError::IdentityFile { .. })));
}

#[test]
fn a_log_of_an_older_version_is_not_passed_over() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("log.redb"), "a database").unwrap();
    let refused = Store::open(dir.path(), &options()).err().expect("the log of another version").to_string();
    assert!(refused.contains("log.redb") && refused.contains("join under a new id"), "{refused}");
    assert!(!dir.path().join("raft.log").exists());
}

#[tokio::test]
async fn a_log_that_went_away_is_not_made_again() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    let entries = vec![put(0, "/k", "v")];
    append_durably(&mut store.log, entries.clone()).await.unwrap();
    apply(&mut store.machine, entries).await.unwrap();
    store.guard.close().await.unwrap();
    drop((store.log, store.machine, store.state));
    std::fs::remove_file(dir.path().join("raft.log")).unwrap();
    let refused = Store::open(dir.path(), &options()).err().expect("the votes are gone").to_string();
    assert!(refused.contains("raft.log") && refused.contains("missing"), "{refused}");
}

#[test]
fn a_log_is_open_once() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let _file = (options().open_log)(&path).unwrap();
    assert!((options().open_log)(&path).is_err());
}

#[test]
fn its_files_are_private() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data");
    let _store = open(&path);
    let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&path), 0o700);
    for file in ["lock", "node.toml", "raft.log", "state.redb"] {
        assert_eq!(mode(&path.join(file)), 0o600, "{file}");
    }
}

const CHILD: &str = "QUORUMFS_STORE_TEST_CHILD";

/// Not a test by itself: what the child of the next one does. It writes, and says what is durable.
#[test]
fn child_that_writes_until_it_is_killed() {
    let Ok(dir) = std::env::var(CHILD) else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let mut store = open(Path::new(&dir));
        let first = indexes(&store.log).await.last().map_or(0, |last| last + 1);
        let mut out = io::stdout();
        let mut waiting = std::collections::VecDeque::new();
        for index in first.. {
            let entry = put(index, &format!("/k{}", index % 50), index.to_string());
            waiting.push_back((index, append(&mut store.log, vec![entry.clone()]).await.unwrap()));
            if waiting.len() < 8 {
                continue;
            }
            let (index, wait) = waiting.pop_front().unwrap();
            wait.await.unwrap();
            let entries = store.log.reader().try_get_log_entries(index..=index).await.unwrap();
            store.log.save_committed(Some(id(1, index))).await.unwrap();
            apply(&mut store.machine, entries).await.unwrap();
            if index % 64 == 0 {
                store.state.flush().await.unwrap();
                store.log.purge(id(1, index.saturating_sub(200))).await.unwrap();
            }
            writeln!(out, "durable {index}").unwrap();
        }
    });
}

#[tokio::test]
async fn nothing_acknowledged_is_lost_when_the_process_is_killed() {
    let dir = tempfile::tempdir().unwrap();
    for round in 1..=3 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["child_that_writes_until_it_is_killed", "--exact", "--nocapture"])
            .env(CHILD, dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut acknowledged = None;
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut seen = 0;
        while let Some(Ok(line)) = lines.next() {
            if let Some((_, index)) = line.split_once("durable ") {
                acknowledged = Some(index.parse::<u64>().unwrap());
                seen += 1;
                if seen == 150 * round {
                    child.kill().unwrap();
                }
            }
        }
        child.wait().unwrap();
        let acknowledged = acknowledged.expect("the child said what is durable");

        let mut store = open(dir.path());
        let log = store.log.get_log_state().await.unwrap();
        let last = log.last_log_id.unwrap().index;
        assert!(
            last >= acknowledged,
            "round {round}: entry {acknowledged} was acknowledged, {last} is the last"
        );
        // The state is that of one index, and the log brings it to the end.
        let at = store.state.position().last_log_id.map_or(0, |last| last.index + 1);
        assert!(
            at > log.last_purged_log_id.map_or(0, |purged| purged.index),
            "the log begins after the state"
        );
        let entries = store.log.reader().try_get_log_entries(at..).await.unwrap();
        apply(&mut store.machine, entries).await.unwrap();
        let meta = store.state.read(|tables| view::meta(tables)).unwrap();
        assert_eq!(meta.revision, last + 1, "each entry was applied once");
        store.guard.close().await.unwrap();
    }
}
