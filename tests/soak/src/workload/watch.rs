//! Watch: every event once, in order, none missing, whole revisions together, resumable, and never
//! from the future.
//!
//! Several watchers follow one directory from one revision, one of them beginning anew all the time
//! from where it was. They must agree with each other and with everything that was acknowledged.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use quorumfs_api::client::{Client, WatchItem};
use quorumfs_api::event::{Change, Event};
use quorumfs_api::wire::WatchStart;
use quorumfs_api::{Command, Record};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::report::Ended;
use crate::shared::Shared;
use crate::store::{self, FINAL_TIMEOUT, Fate, TIMEOUT, key, put, write};
use crate::workload::ROOT;

const NAME: &str = "watch";
const CHECK: &str = "watchers see every event once, in order, whole";
const WATCHERS: usize = 3;
/// A batch of events after which it is asked whether the store is that far.
const FUTURE_EVERY: u64 = 10;
/// How long the resuming watcher follows before it begins anew.
const RESUME: Duration = Duration::from_millis(700);
/// Bytes of a value's end that are kept.
const VALUE_KEPT: usize = 48;
const PAUSE: Duration = Duration::from_millis(70);

/// A write that was acknowledged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acknowledged {
    /// Its revision.
    pub revision: u64,
    /// What its event must show.
    pub effects: Vec<Effect>,
}

/// What an event must show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// This key has this value.
    Value(String, String),
    /// This key's value ends with this.
    Ends(String, String),
    /// This key is gone.
    Gone(String),
    /// This was renamed to that, and nothing else happened.
    Moved(String, String),
}

/// A change as it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kept {
    /// Made or changed: key, whether it was made, the value's end.
    Set(String, bool, String),
    /// Attributes changed.
    Attr(String),
    /// Gone.
    Gone(String),
    /// Renamed.
    Moved(String, String),
}

/// What one watcher has seen.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// The revision after which it began.
    pub from: u64,
    /// Everything up to here was seen.
    pub to: u64,
    /// Events in the order in which they came.
    pub events: Vec<(u64, Vec<Kept>)>,
    /// Revisions that it was told are no longer kept: after the first, up to and with the second.
    pub gaps: Vec<(u64, u64)>,
}

impl Seen {
    fn covers(&self, revision: u64) -> bool {
        revision > self.from
            && revision <= self.to
            && !self.gaps.iter().any(|(after, to)| revision > *after && revision <= *to)
    }
}

fn shows(changes: &[Kept], effect: &Effect) -> bool {
    match effect {
        Effect::Value(key, value) => {
            changes.iter().any(|change| matches!(change, Kept::Set(k, _, v) if k == key && *v == tail(value)))
        }
        Effect::Ends(key, end) => {
            changes.iter().any(|change| matches!(change, Kept::Set(k, _, v) if k == key && v.ends_with(end)))
        }
        Effect::Gone(key) => changes.iter().any(|change| matches!(change, Kept::Gone(k) if k == key)),
        Effect::Moved(from, to) => {
            changes.len() == 1 && matches!(&changes[0], Kept::Moved(f, t) if f == from && t == to)
        }
    }
}

/// Holds all watchers against each other and against what was acknowledged.
pub fn check(watchers: &[Seen], acknowledged: &[Acknowledged]) -> Vec<String> {
    let mut found = Vec::new();
    let mut all: BTreeMap<u64, (usize, &Vec<Kept>)> = BTreeMap::new();
    let mut own: Vec<BTreeMap<u64, &Vec<Kept>>> = Vec::new();
    for (number, seen) in watchers.iter().enumerate() {
        for pair in seen.events.windows(2) {
            if pair[1].0 <= pair[0].0 {
                found.push(format!("watcher {number}: revision {} came after {}", pair[1].0, pair[0].0));
            }
        }
        if let Some((revision, _)) = seen.events.first()
            && *revision <= seen.from
        {
            found.push(format!("watcher {number} began after {}, and got revision {revision}", seen.from));
        }
        own.push(seen.events.iter().map(|(revision, changes)| (*revision, changes)).collect());
        for (revision, changes) in &seen.events {
            let (first, same) = all.entry(*revision).or_insert((number, changes));
            if *same != changes {
                found.push(format!(
                    "revision {revision}: watcher {first} saw {same:?}, watcher {number} saw {changes:?}"
                ));
            }
        }
    }
    for (number, seen) in watchers.iter().enumerate() {
        for (revision, (first, changes)) in &all {
            if seen.covers(*revision) && !own[number].contains_key(revision) {
                found.push(format!(
                    "watcher {number} missed revision {revision}, which watcher {first} saw: {changes:?}"
                ));
            }
        }
        for acknowledged in acknowledged.iter().filter(|a| seen.covers(a.revision)) {
            let Some(changes) = own[number].get(&acknowledged.revision) else {
                found.push(format!(
                    "watcher {number} missed revision {}, which was acknowledged: {:?}",
                    acknowledged.revision, acknowledged.effects
                ));
                continue;
            };
            let missing: Vec<&Effect> =
                acknowledged.effects.iter().filter(|effect| !shows(changes, effect)).collect();
            if !missing.is_empty() {
                found.push(format!(
                    "watcher {number}: the event of revision {} does not show {missing:?}, but {changes:?}",
                    acknowledged.revision
                ));
            }
        }
    }
    found
}

/// Works until the run settles, then checks. Watching begins after revision `from`.
pub async fn run(shared: Arc<Shared>, from: u64) {
    let mut workers = JoinSet::new();
    let all = Arc::new(Mutex::new(vec![Seen::default(); WATCHERS]));
    for number in 0..WATCHERS {
        let (shared, all) = (shared.clone(), all.clone());
        workers.spawn(async move {
            let seen = follow(&shared, number, from).await;
            all.lock()[number] = seen;
        });
    }
    workers.spawn(write_together(shared.clone()));
    workers.join_all().await;
    let watchers = all.lock().clone();
    for (number, seen) in watchers.iter().enumerate() {
        let lines = seen.events.iter().map(|(revision, changes)| format!("{revision} {changes:?}"));
        let first = format!("from {} to {} gaps {:?}", seen.from, seen.to, seen.gaps);
        shared.keep(&format!("{NAME}-{number}"), std::iter::once(first).chain(lines));
    }
    let acknowledged = shared.acknowledged.lock().clone();
    shared.keep("acknowledged", acknowledged.iter().map(|a| format!("{a:?}")));
    let events = watchers.iter().map(|seen| seen.events.len()).sum::<usize>();
    shared.report.verdict(CHECK, ROOT, events + acknowledged.len(), check(&watchers, &acknowledged));
}

/// Transactions over several keys: their changes must come together.
async fn write_together(shared: Arc<Shared>) {
    let client = shared.client();
    let Some(session) = store::session(&shared, &client).await else { return };
    let keys: Vec<String> = ["a", "b", "deep/c"].iter().map(|name| format!("{ROOT}/txn/{name}")).collect();
    for count in 0.. {
        if !shared.runs() {
            return;
        }
        let value = count.to_string();
        let then = keys.iter().map(|path| put(&key(path), value.clone())).collect();
        let command = Command::Txn { compare: Vec::new(), then, otherwise: Vec::new() };
        if let Fate::Done(revision, _) = write(&shared, "txn", &session, command).await.fate {
            let effects = keys.iter().map(|path| Effect::Value(path.clone(), value.clone())).collect();
            shared.acknowledge(Acknowledged { revision, effects });
        }
        shared.pause(PAUSE).await;
    }
}

/// Watches until everything that was committed before the end has come.
async fn follow(shared: &Shared, number: usize, from: u64) -> Seen {
    let client = shared.client();
    let mut seen = Seen { from, to: from, ..Seen::default() };
    let mut goal: Option<u64> = None;
    let mut batches = 0;
    let mut settled = None;
    loop {
        let start = WatchStart { prefix: key(ROOT), after: Some(seen.to), copy_when_behind: false };
        let mut watch = client.watch(start);
        let opened = std::time::Instant::now();
        loop {
            if goal.is_none() && !shared.runs() {
                let begun = *settled.get_or_insert_with(std::time::Instant::now);
                match client.barrier(TIMEOUT).await {
                    Ok(revision) => goal = Some(revision),
                    Err(error) if begun.elapsed() > FINAL_TIMEOUT => {
                        let place = format!("watcher {number}");
                        shared.report.violation("a healed cluster can be read", place, error.to_string());
                        return seen;
                    }
                    Err(_) => {}
                }
            }
            if goal.is_some_and(|goal| seen.to >= goal) {
                return seen;
            }
            if let (Some(goal), Some(begun)) = (goal, settled)
                && begun.elapsed() > 2 * FINAL_TIMEOUT
            {
                let text = format!("it has come to {}, and {goal} is committed", seen.to);
                shared.report.violation("a watch goes on", format!("watcher {number}"), text);
                return seen;
            }
            if number == 0 && opened.elapsed() > RESUME {
                break;
            }
            let Ok(item) = timeout(Duration::from_millis(300), watch.next()).await else { continue };
            match item {
                Some(WatchItem::Events(events)) => {
                    shared.report.operation(NAME, Ended::Done);
                    batches += 1;
                    take(&mut seen, events);
                    if batches % FUTURE_EVERY == 0 {
                        look_for_future(shared, &client, number, seen.to).await;
                    }
                }
                Some(WatchItem::Progress(revision)) => seen.to = seen.to.max(revision),
                Some(WatchItem::Connected(_) | WatchItem::Disconnected(_) | WatchItem::Rights(_)) => {}
                Some(WatchItem::Compacted(oldest)) => {
                    if oldest <= seen.to {
                        let text = format!("after {}: Compacted({oldest})", seen.to);
                        shared.report.violation("a watch resumes", format!("watcher {number}"), text);
                    }
                    seen.gaps.push((seen.to, oldest));
                    seen.to = seen.to.max(oldest);
                    break;
                }
                other => {
                    let text = format!("after {}: {other:?}", seen.to);
                    shared.report.violation("a watch goes on", format!("watcher {number}"), text);
                    shared.pause(Duration::from_secs(1)).await;
                    break;
                }
            }
        }
    }
}

/// An event that has come is committed: a read that begins now must be at least there.
async fn look_for_future(shared: &Shared, client: &Client, number: usize, seen: u64) {
    if let Ok(revision) = client.barrier(TIMEOUT).await {
        let found = (revision < seen)
            .then(|| format!("watcher {number} saw revision {seen} while the store was at {revision}"));
        shared.report.verdict("no event comes from the future", ROOT, 1, found.into_iter().collect());
    }
}

fn take(seen: &mut Seen, events: Vec<Event>) {
    for event in events {
        let changes: Vec<Kept> = event.changes.iter().filter_map(keep).collect();
        seen.to = seen.to.max(event.revision);
        // Locks that were given up pass to everybody, and say nothing of this directory.
        if !changes.is_empty() {
            seen.events.push((event.revision, changes));
        }
    }
}

fn keep(change: &Change) -> Option<Kept> {
    let value = |record: &Record| tail(&store::text(record));
    Some(match change {
        Change::Create { place, record } => Kept::Set(place.key.to_string(), true, value(record)),
        Change::Update { place, record } => Kept::Set(place.key.to_string(), false, value(record)),
        Change::Attr { place, .. } => Kept::Attr(place.as_ref().map_or("/".into(), |p| p.key.to_string())),
        Change::Remove { place, .. } => Kept::Gone(place.key.to_string()),
        Change::Rename { from, to, .. } => Kept::Moved(from.key.to_string(), to.key.to_string()),
        Change::Unlocked { .. } => return None,
    })
}

fn tail(value: &str) -> String {
    let from = value.char_indices().rev().nth(VALUE_KEPT - 1).map_or(0, |(at, _)| at);
    value[from..].to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(key: &str, value: &str) -> Kept {
        Kept::Set(key.into(), false, value.into())
    }
    fn seen(events: &[(u64, Vec<Kept>)]) -> Seen {
        Seen { from: 4, to: 20, events: events.to_vec(), gaps: Vec::new() }
    }
    fn events() -> Vec<(u64, Vec<Kept>)> {
        vec![
            (5, vec![set("/a", "1")]),
            (7, vec![set("/a", "2"), set("/b", "2")]),
            (9, vec![Kept::Moved("/d".into(), "/e".into())]),
        ]
    }
    fn acknowledged() -> Vec<Acknowledged> {
        let value = |key: &str, value: &str| Effect::Value(key.into(), value.into());
        vec![
            Acknowledged { revision: 5, effects: vec![value("/a", "1")] },
            Acknowledged { revision: 7, effects: vec![value("/a", "2"), value("/b", "2")] },
            Acknowledged { revision: 9, effects: vec![Effect::Moved("/d".into(), "/e".into())] },
        ]
    }

    #[test]
    fn watchers_that_saw_everything_pass() {
        assert!(check(&[seen(&events()), seen(&events())], &acknowledged()).is_empty());
        // One that was told of a gap need not have seen what lies in it.
        let mut gap = seen(&events()[2..]);
        gap.gaps.push((4, 8));
        assert!(check(&[seen(&events()), gap], &acknowledged()).is_empty());
    }

    #[test]
    fn a_skipped_revision_is_found() {
        let skipped = seen(&[events()[0].clone(), events()[2].clone()]);
        let found = check(&[seen(&events()), skipped.clone()], &[]);
        assert!(found[0].contains("watcher 1 missed revision 7"), "{found:?}");
        // Also when all of them skipped it.
        let found = check(&[skipped.clone(), skipped], &acknowledged());
        assert!(found[0].contains("watcher 0 missed revision 7, which was acknowledged"), "{found:?}");
    }

    #[test]
    fn events_twice_or_out_of_order_are_found() {
        let twice = [events()[0].clone(), events()[0].clone(), events()[1].clone()];
        assert!(check(&[seen(&twice)], &[])[0].contains("came after"));
        let back = [events()[1].clone(), events()[0].clone()];
        assert!(check(&[seen(&back)], &[])[0].contains("came after"));
        let early = [(3, vec![set("/a", "0")])];
        assert!(check(&[seen(&early)], &[])[0].contains("began after"));
    }

    #[test]
    fn half_a_revision_is_found() {
        let mut half = events();
        half[1].1.pop();
        assert!(check(&[seen(&half)], &acknowledged())[0].contains("does not show"));
    }

    #[test]
    fn a_rename_in_pieces_is_found() {
        let mut pieces = events();
        pieces[2].1 = vec![Kept::Gone("/d".into()), set("/e", "")];
        assert!(check(&[seen(&pieces)], &acknowledged())[0].contains("does not show"));
    }

    #[test]
    fn another_value_is_found() {
        let mut other = events();
        other[0].1 = vec![set("/a", "9")];
        assert!(check(&[seen(&other)], &acknowledged())[0].contains("does not show"));
        assert!(check(&[seen(&events()), seen(&other)], &[])[0].contains("revision 5"));
    }
}
