//! The file system without a kernel, on a state machine in memory: orders of calls that a kernel makes seldom.
#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use fsd::attr::Overrides;
use fsd::core::{Core, Rules};
use fsd::fs::{Caller, Fs, LockRequest};
use fsd::handover::image::Image;
use fsd::handover::note::Note;
use fsd::kernel::NodeId;
use fsd::mirror::Mirror;
use fsd::report::{Mounted, unix_ms};
use fsd::store::{Fate, Store};
use futures::future::BoxFuture;
use parking_lot::Mutex;
use quorumfs_api::client::ClientError;
use quorumfs_api::command::{
    Command, CreateMode, HeldLock, LeaseChange, Owner, Proposal, Range, RenameMode, RequestId,
};
use quorumfs_api::key::Key;
use quorumfs_api::limits::{STORE_MAX_DEFAULT, VALUE_MAX_DEFAULT};
use quorumfs_api::outcome::{Done, Outcome};
use quorumfs_api::record::{Ino, LeaseId, Revision, Timestamp};
use quorumfs_api::style::EventStyle;
use quorumfs_api::wire::Status;
use quorumfs_machine::{MemTables, apply, init, view};
use tokio::sync::{Semaphore, watch};

const USER: Caller = Caller { uid: 0, gid: 0, pid: 100 };
const REPLAYER: Caller = Caller { uid: 0, gid: 0, pid: 200 };
const ROOT: NodeId = Ino::ROOT.0;

/// The cluster: a state machine, one session, and this mount as its only watcher.
struct Memory {
    tables: Mutex<(MemTables, u64)>,
    session: watch::Sender<Option<LeaseId>>,
    core: OnceLock<Weak<Core>>,
    /// Requests need a permit each: a test that takes them all stops them.
    open: Semaphore,
}

impl Memory {
    fn new() -> Arc<Memory> {
        let mut tables = MemTables::default();
        init(&mut tables).unwrap();
        let memory = Memory {
            tables: Mutex::new((tables, 0)),
            session: watch::Sender::new(None),
            core: OnceLock::new(),
            open: Semaphore::new(1 << 20),
        };
        let granted = memory.apply(None, Command::LeaseGrant { ttl_ms: 3_600_000 }).0;
        let Ok(Done::Lease { id, .. }) = granted.result else { panic!("{granted:?}") };
        memory.session.send_replace(Some(id));
        Arc::new(memory)
    }

    fn apply(
        &self,
        session: Option<LeaseId>,
        command: Command,
    ) -> (Outcome, Option<quorumfs_api::event::Event>) {
        let mut tables = self.tables.lock();
        tables.1 += 1;
        let number = tables.1;
        let proposal = Proposal {
            time: Timestamp(number as i64),
            author: "test".into(),
            node: false,
            session: session.map(|session| RequestId { session, number, done_below: number }),
            value_max: VALUE_MAX_DEFAULT,
            store_max: STORE_MAX_DEFAULT,
            command,
        };
        let applied = apply(&mut tables.0, &proposal).unwrap();
        (applied.outcome, applied.event)
    }

    /// Does something, and tells the mount of it.
    async fn run(&self, session: Option<LeaseId>, command: Command) -> Outcome {
        let (outcome, event) = self.apply(session, command);
        if let (Some(event), Some(core)) = (event, self.core.get().and_then(Weak::upgrade)) {
            core.events(vec![event]).await.unwrap();
        }
        outcome
    }

    /// The same as another host.
    async fn elsewhere(&self, command: Command) {
        self.run(None, command).await.result.unwrap();
    }

    fn held(&self, node: NodeId) -> usize {
        view::locks(&self.tables.lock().0, Ino(node)).unwrap().len()
    }

    fn value(&self, path: &'static str) -> Bytes {
        let key = Key::parse(path).unwrap();
        view::get(&self.tables.lock().0, &key).unwrap().unwrap().value
    }

    fn copy(&self) -> Mirror {
        let (root, tables) = (Key::root(), &self.tables.lock().0);
        let revision = view::meta(tables).unwrap().revision;
        let mut mirror = Mirror::begin(revision, view::get(tables, &root).unwrap());
        let mut nodes = Vec::new();
        view::copy(tables, &root, &mut |node| {
            nodes.push(node);
            ControlFlow::Continue(())
        })
        .unwrap();
        mirror.add(nodes).unwrap();
        mirror
    }
}

impl Store for Memory {
    fn write(
        &self,
        _only: Option<LeaseId>,
        command: Command,
        _timeout: Duration,
    ) -> BoxFuture<'_, Result<Outcome, ClientError>> {
        Box::pin(async move {
            let _permit = self.open.acquire().await.unwrap();
            Ok(self.run(self.session(), command).await)
        })
    }
    fn barrier(&self, _timeout: Duration) -> BoxFuture<'_, Result<Revision, ClientError>> {
        Box::pin(async { Ok(view::meta(&self.tables.lock().0).unwrap().revision) })
    }
    fn locks(&self, ino: Ino, _timeout: Duration) -> BoxFuture<'_, Result<Vec<HeldLock>, ClientError>> {
        Box::pin(async move { Ok(view::locks(&self.tables.lock().0, ino).unwrap()) })
    }
    fn status(&self, _timeout: Duration) -> BoxFuture<'_, Result<Status, ClientError>> {
        Box::pin(async { Err(ClientError::Closed) })
    }
    fn session(&self) -> Option<LeaseId> {
        *self.session.borrow()
    }
    fn sessions(&self) -> watch::Receiver<Option<LeaseId>> {
        self.session.subscribe()
    }
    fn is_own(&self, session: LeaseId) -> bool {
        self.session() == Some(session)
    }
    fn session_left(&self) -> Option<Duration> {
        None
    }
    fn last_contact(&self) -> Option<Instant> {
        Some(Instant::now())
    }
}

/// A mount of a store with these files, as the kernel finds it.
async fn mount(files: &[(&'static str, &'static str)]) -> (Arc<Memory>, Fs) {
    let store = Memory::new();
    for (path, value) in files {
        store.elsewhere(put(path, value)).await;
    }
    let core = core(&store).await;
    let _ = store.core.set(Arc::downgrade(&core));
    (store, Fs::new(core))
}

async fn core(store: &Arc<Memory>) -> Arc<Core> {
    let rules = Rules {
        read_only: false,
        sync: false,
        write_timeout: Duration::from_secs(10),
        shown: Overrides::default(),
        events: EventStyle::Write,
    };
    let mounted = Mounted {
        mountpoint: "/kv".into(),
        prefix: "/".into(),
        identity: "test".into(),
        nodes: Vec::new(),
        read_only: false,
        sync: false,
        timeout_ms: 10_000,
        since: unix_ms(SystemTime::now()),
    };
    let core = Core::new(store.clone(), rules, mounted);
    core.replace(store.copy()).await;
    core.state.lock().connected = true;
    core.replayer.set(REPLAYER.pid);
    core
}

fn put(path: &'static str, value: &'static str) -> Command {
    Command::Put {
        target: Key::parse(path).unwrap().into(),
        value: Bytes::from_static(value.as_bytes()),
        create: CreateMode::Allow,
        parents: false,
        owner: Owner::FILE,
        lease: LeaseChange::Keep,
    }
}

async fn open(fs: &Fs, name: &str) -> (NodeId, u64) {
    let node = fs.lookup(USER, ROOT, name.as_bytes()).unwrap().attr.node;
    (node, fs.open(USER, node, libc::O_RDONLY).await.unwrap().fh)
}

fn flock(kind: i32) -> LockRequest {
    LockRequest { owner: 7, range: Range::WHOLE, kind, pid: USER.pid, wait: false }
}

/// The kernel takes whatever length it is told, also the replayer: a reader in this very moment would find the file
/// empty that it has open.
#[tokio::test]
async fn what_the_replayer_is_about_to_take_away_keeps_its_length() {
    let (store, fs) = mount(&[("/f", "deleted, and open"), ("/g", "replaced"), ("/h", "new")]).await;
    let ((f, f_fh), (g, g_fh)) = (open(&fs, "f").await, open(&fs, "g").await);
    let [f_key, g_key, h_key] = ["/f", "/g", "/h"].map(|path| Key::parse(path).unwrap());
    store.elsewhere(Command::Delete { at: f_key.into(), recursive: false }).await;
    let rename = Command::Rename { from: h_key.into(), to: g_key.into(), mode: RenameMode::Replace };
    store.elsewhere(rename).await;
    for (name, node, fh, value) in [("f", f, f_fh, "deleted, and open"), ("g", g, g_fh, "replaced")] {
        assert!(fs.core.state.lock().queue.take().is_some(), "it is to be replayed");
        let entry = fs.lookup(REPLAYER, ROOT, name.as_bytes()).unwrap();
        assert_eq!((entry.attr.node, entry.attr.size), (node, value.len() as u64));
        assert_eq!(fs.getattr(REPLAYER, node, None).await.unwrap().0.size, value.len() as u64);
        assert_eq!(fs.getattr(USER, node, Some(fh)).await.unwrap().0.size, value.len() as u64);
        assert_eq!(fs.read(node, fh, 0, 100).unwrap(), value);
        fs.core.state.lock().queue.finish();
    }
}

/// A worker was killed while the close of a file that was opened with `O_TRUNC` emptied it. Asked again, the close must not
/// empty what somebody else has written since.
#[tokio::test]
async fn a_file_is_emptied_once() {
    let (store, first) = mount(&[("/f", "old")]).await;
    let node = first.lookup(USER, ROOT, b"f").unwrap().attr.node;
    let fh = first.open(USER, node, libc::O_WRONLY | libc::O_TRUNC).await.unwrap().fh;
    let emptied = store.run(store.session(), Command::Truncate { target: Ino(node).into(), size: 0 }).await;
    let mut image = Image::default();
    for note in [
        Note::Session(store.session().unwrap()),
        Note::Sent { number: 1, unique: 9, command: 3 },
        Note::Publishes { number: 1, fh, edits: 0 },
    ] {
        image.take(note);
    }
    store.elsewhere(put("/f", "newer")).await;
    let next = Fs::new(core(&store).await);
    next.core.inherit(image, |_| true);
    next.core.settle_calls(HashMap::from([(1, Fate::Done(emptied))]));
    next.release(node, fh).await;
    assert_eq!(store.value("/f"), "newer");
}

/// The kernel calls an open file as it called one that was closed before, and tells of that close when it likes.
#[tokio::test]
async fn a_lock_is_not_given_up_with_the_close_of_an_earlier_file_of_the_same_name() {
    let (store, fs) = mount(&[("/lock", "-")]).await;
    let ((node, first), (_, second)) = (open(&fs, "lock").await, open(&fs, "lock").await);
    fs.setlk(USER, node, first, flock(libc::F_WRLCK)).await.unwrap();
    fs.setlk(USER, node, second, flock(libc::F_WRLCK)).await.unwrap();
    fs.release(node, first).await;
    assert_eq!(store.held(node), 1, "the second file holds it");
    fs.release(node, second).await;
    assert_eq!(store.held(node), 0);
}

/// The same while the store is being asked.
#[tokio::test]
async fn a_close_waits_for_a_lock_that_is_asked_for_under_the_same_name() {
    let (store, fs) = mount(&[("/lock", "-")]).await;
    let ((node, first), (_, second)) = (open(&fs, "lock").await, open(&fs, "lock").await);
    fs.setlk(USER, node, first, flock(libc::F_WRLCK)).await.unwrap();
    let stopped = store.open.acquire_many(1 << 20).await.unwrap();
    let asked = tokio::spawn({
        let fs = fs.clone();
        async move { fs.setlk(USER, node, second, flock(libc::F_WRLCK)).await }
    });
    let deadline = Instant::now() + Duration::from_secs(10);
    let gate = fs.core.state.lock().locked.gate((Ino(node), 7));
    while gate.try_lock().is_ok() {
        assert!(Instant::now() < deadline, "it is not asked for");
        tokio::task::yield_now().await;
    }
    let closed = tokio::spawn({
        let fs = fs.clone();
        async move { fs.release(node, first).await }
    });
    tokio::task::yield_now().await;
    drop(stopped);
    asked.await.unwrap().unwrap();
    closed.await.unwrap();
    assert_eq!(store.held(node), 1, "the second file holds it");
    fs.release(node, second).await;
    assert_eq!(store.held(node), 0);
}
