//! A data directory, opened.
//!
//! ```text
//! DIR/lock         held while a process uses the directory
//! DIR/node.toml    whose it is
//! DIR/raft.log     the log
//! DIR/state.redb   the state
//! DIR/snapshots/   snapshots
//! ```

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use quorumfs_machine::StorageError;
use redb::{Database, DatabaseError};

use crate::dir::{self, DirLock, Identity};
use crate::error::OpenError;
use crate::log::{DiskFile, LogCloser, LogFile, LogStore, SegmentLog};
use crate::machine::{StateFiles, StateMachine};
use crate::snapshot::Snapshots;
use crate::state::State;

/// Opens or makes the database at a path, with a cache of so many bytes.
pub type OpenDatabase = Arc<dyn Fn(&Path, usize) -> Result<Database, DatabaseError> + Send + Sync>;

/// Opens or makes the file of the log at a path.
pub type OpenLog = Arc<dyn Fn(&Path) -> io::Result<Box<dyn LogFile>> + Send + Sync>;

/// How a data directory is opened.
#[derive(Clone)]
pub struct Options {
    /// Whose directory it is. Written at the first start, checked at each later one.
    pub identity: Identity,
    /// Newest entries of the log that stay in memory, in bytes. A follower that is further behind
    /// is served from disk. Default: 64 MiB.
    pub log_memory: usize,
    /// Bytes of a segment of the log: its file grows and is used again in such pieces. Counts only when
    /// the log is made. Default: 4 MiB.
    pub log_segment: u64,
    /// Cache of state.redb, in bytes. What does not fit is read from the kernel's cache or the disk.
    /// Default: 128 MiB.
    pub state_cache: usize,
    /// Opens databases; one that is being made has `.new` behind its name. Tests put faulty disks here.
    pub open_database: OpenDatabase,
    /// Opens the log in the same way.
    pub open_log: OpenLog,
}

impl Options {
    /// Defaults for a node.
    pub fn new(identity: Identity) -> Options {
        Options {
            identity,
            log_memory: 64 << 20,
            log_segment: 4 << 20,
            state_cache: 128 << 20,
            open_database: Arc::new(|path, cache| {
                dir::make_private(path).map_err(redb::StorageError::from)?;
                Database::builder().set_cache_size(cache).create(path)
            }),
            open_log: Arc::new(|path| {
                let mut open = OpenOptions::new();
                let open = open.read(true).write(true).create(true).truncate(false).mode(0o600).open(path);
                Ok(Box::new(DiskFile::new(open?)?))
            }),
        }
    }
}

/// A log that was a database. Passing over it would lose what it holds.
const OLD_LOG: &str = "log.redb";

/// Name under which a database is made, before it takes the place of `path`.
fn unfinished(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    PathBuf::from(name)
}

/// Opens the database at `path`, or makes it. One that is being made has another name: redb opens
/// nothing that a crash left half made.
fn open_database(options: &Options, path: &Path, cache: usize) -> Result<Database, OpenError> {
    let new = unfinished(path);
    // A crash while it was made, or while a snapshot was installed, leaves it.
    dir::remove_if_there(&new).map_err(OpenError::io("cannot remove", &new))?;
    let open = |path: &Path| (options.open_database)(path, cache).map_err(OpenError::database(path));
    if path.try_exists().map_err(OpenError::io("cannot look for", path))? {
        return open(path);
    }
    let database = open(&new)?;
    fs::rename(&new, path).map_err(OpenError::io("cannot rename", &new))?;
    Ok(database)
}

/// Opens the log at `path`, or makes it, unless the state has entries already; one that is being made has
/// another name here too.
fn open_log(options: &Options, path: &Path, state: &State) -> Result<SegmentLog, OpenError> {
    let refuse = |path: &Path, text: &str| {
        let error = io::Error::new(io::ErrorKind::InvalidData, text);
        OpenError::io("the log cannot be opened:", path)(error)
    };
    let new = unfinished(path);
    dir::remove_if_there(&new).map_err(OpenError::io("cannot remove", &new))?;
    let old = path.with_file_name(OLD_LOG);
    if old.try_exists().map_err(OpenError::io("cannot look for", &old))? {
        return Err(refuse(
            &old,
            "a version before 0.1.0 wrote it, and this one does not read it: give this node an empty data \
             directory and let it join under a new id, one node after the other; what a cluster of one node \
             holds must be copied with the version that wrote it",
        ));
    }
    if !path.try_exists().map_err(OpenError::io("cannot look for", path))? {
        if state.position().last_log_id.is_some() {
            // The votes are gone with it: this node could vote a second time in a term.
            return Err(refuse(
                path,
                "it is missing, though the state has entries of it: give this node an empty data directory and \
                 let it join under a new id",
            ));
        }
        let made = (options.open_log)(&new).and_then(|file| SegmentLog::create(&*file, options.log_segment));
        made.map_err(OpenError::io("cannot make the log", &new))?;
        fs::rename(&new, path).map_err(OpenError::io("cannot rename", &new))?;
    }
    let opened = (options.open_log)(path).and_then(SegmentLog::open);
    opened.map_err(OpenError::io("cannot open the log", path))
}

/// All parts of an open data directory.
pub struct Store {
    /// For openraft.
    pub log: LogStore,
    /// For openraft.
    pub machine: StateMachine,
    /// For the node.
    pub state: State,
    /// For the node.
    pub snapshots: Snapshots,
    /// Keeps the directory locked; closes all.
    pub guard: StoreGuard,
}

/// Keeps a data directory locked, and closes it in order.
pub struct StoreGuard {
    log: LogCloser,
    state: State,
    lock: Arc<DirLock>,
}

impl StoreGuard {
    /// Brings everything to disk, so that the next start has nothing to do, and gives up the
    /// directory. openraft has to be shut down before; what is asked afterwards fails.
    ///
    /// # Errors
    /// When the state could not be written. The log has it, and the next start applies it again.
    pub async fn close(self) -> Result<(), StorageError> {
        let closed = self.state.close().await;
        self.log.close().await;
        self.lock.release();
        closed
    }
}

impl Store {
    /// Opens a data directory; makes it if it is not there. Blocks, on a large log after a crash for
    /// a while.
    ///
    /// # Errors
    /// When another process has it, it belongs to another node, or it cannot be read.
    pub fn open(path: &Path, options: &Options) -> Result<Store, OpenError> {
        dir::make_dir(path)?;
        let lock = Arc::new(DirLock::take(path)?);
        options.identity.claim(path)?;

        let files = StateFiles {
            current: path.join("state.redb"),
            next: unfinished(&path.join("state.redb")),
            open: options.open_database.clone(),
            cache_bytes: options.state_cache,
        };
        let state = State::open(open_database(options, &files.current, files.cache_bytes)?);
        let state = state.map_err(OpenError::database(&files.current))?;

        let path_of_log = path.join("raft.log");
        let log = LogStore::new(Arc::new(open_log(options, &path_of_log, &state)?), options.log_memory);
        let log = log.map_err(OpenError::io("cannot open the log", &path_of_log))?.tied_to(state.clone());

        let path_of_snapshots = path.join("snapshots");
        dir::make_dir(&path_of_snapshots)?;
        let snapshots = Snapshots::open(path_of_snapshots.clone());
        let snapshots =
            snapshots.map_err(OpenError::io("cannot read the snapshots in", path_of_snapshots))?;
        dir::sync_dir(path).map_err(OpenError::io("cannot sync", path))?;

        let machine =
            StateMachine { state: state.clone(), snapshots: snapshots.clone(), files: Arc::new(files) };
        let guard = StoreGuard { log: log.closer(), state: state.clone(), lock };
        Ok(Store { log, machine, state, snapshots, guard })
    }
}
