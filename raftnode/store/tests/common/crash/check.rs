//! Opens what a power cut left, and compares it with what was acknowledged.

use std::path::Path;

use openraft::storage::{RaftLogReader, RaftLogStorage};
use openraft::{EntryPayload, StorageHelper};
use quorumfs_store::{Entry, LogId, LogStore, Op, SnapshotMeta, Store};
use tokio::io::AsyncReadExt;

use super::disk::{Disk, Trace};
use super::image::Image;
use super::model::{self, Expected, LogModel, rows};
use super::run::options_on;
use crate::common::{append_durably, apply};

macro_rules! ensure {
    ($held:expr, $($text:tt)*) => {
        if !$held {
            return Err(format!($($text)*));
        }
    };
}

/// A start after a crash: what it did to the disk, until it could serve.
pub struct Started {
    pub trace: Trace,
    /// Up to where the log was purged because the state was further than it.
    pub hole: Option<LogId>,
    /// Number of entries in the state.
    pub state: u64,
}

fn explain<E: std::fmt::Display>(what: &str) -> impl FnOnce(E) -> String {
    move |error| format!("{what}: {error}")
}

fn count(position: &SnapshotMeta) -> u64 {
    position.last_log_id.map_or(0, |last| last.index + 1)
}

async fn read_log(log: &mut LogStore) -> Result<LogModel, String> {
    let mut reader = log.reader();
    let entries = reader.try_get_log_entries(..).await.map_err(explain("the log cannot be read"))?;
    let ends = log.get_log_state().await.map_err(explain("the log cannot be read"))?;
    let found = LogModel {
        vote: reader.read_vote().await.map_err(explain("the vote cannot be read"))?,
        committed: log.read_committed().await.map_err(explain("the committed position cannot be read"))?,
        purged: ends.last_purged_log_id,
        entries: entries.into_iter().map(|entry| (entry.log_id.index, entry)).collect(),
    };
    ensure!(found.last() == ends.last_log_id, "the log says it ends at {:?}: {}", ends, found.brief());
    if let (Some((first, _)), Some((last, _))) =
        (found.entries.first_key_value(), found.entries.last_key_value())
    {
        let begin = found.purged.map_or(0, |purged| purged.index + 1);
        ensure!(*first == begin, "the log begins at {first} and not at {begin}");
        ensure!(found.entries.len() as u64 == last - first + 1, "the log has a hole: {}", found.brief());
    }
    ensure!(found.committed <= found.last(), "more is committed than there is: {}", found.brief());
    Ok(found)
}

/// Whether the state is that of its position, and gives the number of its entries.
fn check_state(store: &Store, expected: &Expected<'_>) -> Result<u64, String> {
    let position = store.state.position();
    let model = expected.model;
    let state = count(&position);
    ensure!(state <= model.truth.len() as u64, "the state has {state} entries, more than are committed");
    let truth = &model.truth[..state as usize];
    let last = truth.last().map(|entry| entry.log_id);
    ensure!(position.last_log_id == last, "the state stands at {position}, which was not committed");
    let members = truth.iter().rfind(|entry| matches!(entry.payload, EntryPayload::Membership(_)));
    ensure!(
        *position.last_membership.log_id() == members.map(|entry| entry.log_id),
        "the state stands at {position} with another membership"
    );
    let tables = store.state.read(|tables| Ok(rows(tables))).map_err(explain("the state cannot be read"))?;
    ensure!(tables == model.states[state as usize], "the tables are not those of {state} entries");
    Ok(state)
}

/// Number of entries in the current snapshot, which is whole.
async fn check_snapshot(store: &Store) -> Result<Option<u64>, String> {
    let current = store.snapshots.current().map_err(explain("the snapshot cannot be opened"))?;
    let Some(file) = current else { return Ok(None) };
    let mut bytes = Vec::new();
    let mut reader = file.into_reader().map_err(explain("the snapshot cannot be read"))?;
    reader.read_to_end(&mut bytes).await.map_err(explain("the snapshot cannot be read"))?;
    // Whoever receives a snapshot checks all of it.
    let mut copy = store.snapshots.receive().map_err(explain("a snapshot cannot be received"))?;
    copy.write(&bytes).await.map_err(explain("a snapshot cannot be received"))?;
    let copy = copy.finish().await.map_err(explain("the current snapshot"))?;
    Ok(Some(count(copy.meta())))
}

/// Starts a store from `image` in `dir`. `before` is a start from which this is what a crash left.
pub async fn start(
    dir: &Path,
    image: Image,
    expected: &Expected<'_>,
    before: Option<&Started>,
) -> Result<(Store, Disk, Started), String> {
    let model = expected.model;
    let disk = Disk::new(dir, image);
    let mut store = Store::open(dir, &options_on(&disk)).map_err(explain("it does not open"))?;

    let found = read_log(&mut store.log).await?;
    let purged = before.and_then(|before| before.hole).map(Op::Purge);
    let is_like = |writes: usize| {
        let mut log = model.logs[writes].clone();
        let same = log == found;
        purged.as_ref().map_or(same, |purge| {
            log.apply(purge);
            same || log == found
        })
    };
    ensure!(
        expected.logs.clone().any(is_like),
        "the log is that of no number of writes from {} to {}: it has {}; the least is {}; the most is {}",
        expected.logs.start(),
        expected.logs.end(),
        found.brief(),
        model.logs[*expected.logs.start()].brief(),
        model.logs[*expected.logs.end()].brief()
    );

    let state = check_state(&store, expected)?;
    let most = expected.applied.max(before.map_or(0, |before| before.state));
    let installed = expected.installed == Some(state);
    ensure!(state >= expected.flushed, "the state has {state} entries; {} were durable", expected.flushed);
    ensure!(state <= most || installed, "the state has {state} entries; {most} were applied");
    let end = found.last().map_or(0, |last| last.index + 1);
    ensure!(state <= end || installed, "the state has {state} entries, and the log ends before {end}");

    let snapshot = check_snapshot(&store).await?;
    ensure!(snapshot >= expected.snapshot, "the snapshot is of {snapshot:?}, not {:?}", expected.snapshot);
    let begin = found.purged.map_or(0, |purged| purged.index + 1);
    ensure!(begin <= state.max(snapshot.unwrap_or(0)), "the log begins at {begin}, the state has {state}");

    // What openraft does at its start.
    let mut helper = StorageHelper::new(&mut store.log, &mut store.machine).with_id(1);
    helper.get_initial_state().await.map_err(explain("openraft refuses it"))?;
    let started = check_state(&store, expected)?;
    let least = found.committed.map_or(0, |at| at.index + 1).max(snapshot.unwrap_or(0)).max(state);
    ensure!(started == least, "openraft began with {started} entries and not with {least}");
    let hole = store.state.position().last_log_id.filter(|_| started > end);
    store.state.flush().await.map_err(explain("the state cannot be flushed"))?;
    let trace = disk.trace();
    Ok((store, disk, Started { trace, hole, state: started }))
}

/// Whether a store that was started goes on from there: the rest of the log gives the whole, what is
/// written now is durable, and another start finds all of it.
pub async fn go_on(
    dir: &Path,
    (mut store, disk, started): (Store, Disk, Started),
    expected: &Expected<'_>,
) -> Result<(), String> {
    let begin = read_log(&mut store.log).await?;
    let next = begin.last().map_or(0, |last| last.index + 1);
    let new = model::entry(0, 1 << 20, next);
    append_durably(&mut store.log, vec![new.clone()]).await.map_err(explain("it takes no entry"))?;
    let log = read_log(&mut store.log).await?;
    let rest: Vec<Entry> = log.entries.range(started.state..).map(|(_, entry)| entry.clone()).collect();
    let mut whole = expected.model.states[started.state as usize].clone();
    for entry in &rest {
        model::apply(&mut whole, entry);
    }
    apply(&mut store.machine, rest).await.map_err(explain("the log cannot be applied"))?;
    let compare = |store: &Store, when: &str| {
        let tables = store.state.read(|tables| Ok(rows(tables))).map_err(explain("the state"))?;
        ensure!(tables == whole, "{when} the tables are not those of the whole log");
        Ok(())
    };
    compare(&store, "after it was applied")?;
    store.guard.close().await.map_err(explain("it does not close"))?;
    drop((store.log, store.machine, store.state));

    let mut store = Store::open(dir, &options_on(&disk)).map_err(explain("it does not open again"))?;
    let again = read_log(&mut store.log).await?;
    ensure!(again == log, "the log was {} and is {}", log.brief(), again.brief());
    compare(&store, "when it was opened again")?;
    store.guard.close().await.map_err(explain("it does not close again"))
}
