//! The state machine as openraft wants it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use futures::{Stream, StreamExt};
use openraft::OptionalSend;
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine};
use quorumfs_api::bug::{Bug, planted};
use quorumfs_machine::{StorageError, Table};
use redb::Database;

use crate::dir::remove_if_there;
use crate::error::to_io;
use crate::snapshot::{self, Row, SnapshotError, SnapshotFile, Snapshots};
use crate::state::base::{self, Base, failed};
use crate::state::{State, layers};
use crate::store::OpenDatabase;
use crate::types::{LogId, Snapshot, SnapshotMeta, StoredMembership, TypeConfig};

/// Most entries that are applied before readers get their turn.
const CHUNK: usize = 256;
/// Bytes of rows of a snapshot that go into one transaction.
const INSTALL_BYTES: usize = 32 << 20;

/// Where the state is on disk.
pub(crate) struct StateFiles {
    /// The database.
    pub current: PathBuf,
    /// One that is being made from a snapshot. It is removed at start.
    pub next: PathBuf,
    /// How databases are opened.
    pub open: OpenDatabase,
    /// Their cache, in bytes.
    pub cache_bytes: usize,
}

/// The state machine, for openraft. There is one, and openraft owns it.
pub struct StateMachine {
    pub(crate) state: State,
    pub(crate) snapshots: Snapshots,
    pub(crate) files: std::sync::Arc<StateFiles>,
}

/// Builds a snapshot while applying goes on.
pub struct SnapshotBuilder {
    state: State,
    snapshots: Snapshots,
}

async fn blocking<R: Send + 'static>(
    work: impl FnOnce() -> Result<R, SnapshotError> + Send + 'static,
) -> io::Result<R> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?.map_err(to_io)
}

impl RaftSnapshotBuilder<TypeConfig> for SnapshotBuilder {
    type SnapshotData = SnapshotFile;

    async fn build_snapshot(&mut self) -> io::Result<Snapshot> {
        // The log is purged up to the snapshot: what it holds has to be durable as state too, and is
        // once there is a view.
        let view = self.state.snapshot_view().await.map_err(to_io)?;
        let snapshots = self.snapshots.clone();
        let file = blocking(move || snapshots.build(&view)).await?;
        Ok(Snapshot { meta: file.meta().clone(), snapshot: file })
    }
}

/// Makes a database from a snapshot, durable and checked, in the file `next`.
fn restore(
    files: &StateFiles,
    file: &SnapshotFile,
    wanted: &SnapshotMeta,
) -> Result<Database, SnapshotError> {
    remove_if_there(&files.next)?;
    let database = (files.open)(&files.next, files.cache_bytes).map_err(failed)?;
    base::make_tables(&database)?;
    let mut pending: Vec<Row> = Vec::new();
    let mut bytes = 0;
    let meta = snapshot::read_snapshot(file.reader()?, |rows| {
        bytes += rows.iter().map(|(_, key, value)| key.len() + value.len()).sum::<usize>();
        pending.extend(rows);
        if bytes >= INSTALL_BYTES {
            bytes = 0;
            insert(&database, std::mem::take(&mut pending), false)?;
        }
        Ok(())
    })?;
    // Also makes the whole open fast after a crash.
    insert(&database, pending, true)?;
    let database = std::sync::Arc::new(database);
    let found = layers::position(&Base::now(&database)?)?;
    if found != meta || meta != *wanted {
        let text = format!("it is of {found}, its header says {meta}, and {wanted} was announced");
        return Err(SnapshotError::Damaged(text));
    }
    std::sync::Arc::into_inner(database)
        .ok_or_else(|| StorageError::new("the new database is still being read").into())
}

fn insert(database: &Database, rows: Vec<Row>, last: bool) -> Result<(), StorageError> {
    let transaction = base::begin(database, last)?;
    let mut rows = rows.into_iter().peekable();
    while let Some(number) = rows.peek().map(|(number, _, _)| *number) {
        let table =
            Table::from_number(number).ok_or_else(|| StorageError::new(format!("no table {number}")))?;
        let rows = std::iter::from_fn(|| rows.next_if(|(here, _, _)| *here == number));
        let wrong = planted(Bug::WrongSnapshot) && table == Table::Values;
        let rows = rows.map(|(_, key, value)| (key, if wrong { turned(&value) } else { value }));
        base::insert(&transaction, table, rows)?;
    }
    transaction.commit().map_err(failed)
}

/// With [`Bug::WrongSnapshot`], what becomes of a value. Its row begins with the version of its format, which stays: a
/// row that cannot be read is found by the node itself, which then ends, and shows nobody a wrong value.
fn turned(row: &[u8]) -> Bytes {
    row.iter().take(1).chain(row.iter().skip(1).rev()).copied().collect()
}

impl StateMachine {
    async fn install(&self, meta: &SnapshotMeta, file: SnapshotFile) -> io::Result<()> {
        let files = self.files.clone();
        let snapshots = self.snapshots.clone();
        let wanted = meta.clone();
        let database = blocking(move || match restore(&files, &file, &wanted) {
            Ok(database) => {
                // Before the state: with the snapshot alone, a restart installs it again.
                snapshots.adopt(file)?;
                Ok(database)
            }
            Err(error) => {
                clean(&files.next);
                Err(error)
            }
        })
        .await?;
        let (from, to) = (self.files.next.clone(), self.files.current.clone());
        self.state.install(database, meta.clone(), from, to).await.map_err(to_io)
    }
}

/// Removes a database that was not finished.
fn clean(path: &Path) {
    if let Err(error) = fs::remove_file(path) {
        tracing::warn!(path = %path.display(), %error, "an unfinished database stays until the next start");
    }
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotData = SnapshotFile;
    type SnapshotBuilder = SnapshotBuilder;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        let position = self.state.position();
        Ok((position.last_log_id, position.last_membership))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> io::Result<()>
    where
        Strm: Stream<Item = io::Result<EntryResponder<TypeConfig>>> + Unpin + OptionalSend,
    {
        let mut chunk = Vec::with_capacity(CHUNK.min(entries.size_hint().0 + 1));
        loop {
            let item = entries.next().await.transpose()?;
            let end = item.is_none();
            chunk.extend(item);
            if chunk.len() == CHUNK || (end && !chunk.is_empty()) {
                let outcomes = self.state.apply(chunk.iter().map(|(entry, _)| entry)).map_err(to_io)?;
                // Now all is to be seen: who gets an answer can read what it says.
                for ((_, responder), outcome) in chunk.drain(..).zip(outcomes) {
                    if let Some(responder) = responder {
                        responder.send(outcome);
                    }
                }
                self.state.wait_for_room().await.map_err(to_io)?;
            }
            if end {
                return Ok(());
            }
        }
    }

    async fn try_create_snapshot_builder(&mut self, _force: bool) -> Option<SnapshotBuilder> {
        Some(self.get_snapshot_builder().await)
    }

    async fn get_snapshot_builder(&mut self) -> SnapshotBuilder {
        SnapshotBuilder { state: self.state.clone(), snapshots: self.snapshots.clone() }
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: SnapshotFile) -> io::Result<()> {
        self.install(meta, snapshot).await
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<Snapshot>> {
        let snapshots = self.snapshots.clone();
        let current = blocking(move || snapshots.current()).await?;
        Ok(current.map(|file| Snapshot { meta: file.meta().clone(), snapshot: file }))
    }
}
