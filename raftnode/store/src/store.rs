//! A data directory, opened.
//!
//! ```text
//! DIR/lock         held while a process uses the directory
//! DIR/node.toml    whose it is
//! DIR/log.redb     the log
//! DIR/state.redb   the state
//! DIR/snapshots/   snapshots
//! ```

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use quorumfs_machine::StorageError;
use redb::{Database, DatabaseError};

use crate::dir::{self, DirLock, Identity};
use crate::error::OpenError;
use crate::log::{LogCloser, LogStore, RedbLog};
use crate::machine::{StateFiles, StateMachine};
use crate::snapshot::Snapshots;
use crate::state::State;

/// Opens or makes the database at a path, with a cache of so many bytes.
pub type OpenDatabase = Arc<dyn Fn(&Path, usize) -> Result<Database, DatabaseError> + Send + Sync>;

/// How a data directory is opened.
#[derive(Clone)]
pub struct Options {
    /// Whose directory it is. Written at the first start, checked at each later one.
    pub identity: Identity,
    /// Newest entries of the log that stay in memory, in bytes. A follower that is further behind
    /// is served from disk. Default: 64 MiB.
    pub log_memory: usize,
    /// Cache of log.redb, in bytes. The log is read from memory, so little helps. Default: 16 MiB.
    pub log_cache: usize,
    /// Cache of state.redb, in bytes. What does not fit is read from the kernel's cache or the disk.
    /// Default: 256 MiB.
    pub state_cache: usize,
    /// Opens databases; one that is being made has `.new` behind its name. Tests put faulty disks here.
    pub open_database: OpenDatabase,
}

impl Options {
    /// Defaults for a node.
    pub fn new(identity: Identity) -> Options {
        Options {
            identity,
            log_memory: 64 << 20,
            log_cache: 16 << 20,
            state_cache: 256 << 20,
            open_database: Arc::new(|path, cache| {
                dir::make_private(path).map_err(redb::StorageError::from)?;
                Database::builder().set_cache_size(cache).create(path)
            }),
        }
    }
}

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

        let path_of_log = path.join("log.redb");
        let log = RedbLog::new(open_database(options, &path_of_log, options.log_cache)?)
            .and_then(|log| LogStore::new(Arc::new(log), options.log_memory));
        let log = log.map_err(OpenError::database(&path_of_log))?.tied_to(state.clone());

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
