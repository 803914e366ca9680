//! Rename of directories: whoever looks sees a tree under one of its two names, whole, never under
//! both and never in part. That it is one event is the watchers' to check.

use std::sync::Arc;
use std::time::Duration;

use quorumfs_api::command::RenameMode;
use quorumfs_api::{Command, Refusal};
use tokio::task::JoinSet;

use crate::report::Ended;
use crate::shared::Shared;
use crate::store::{self, Fate, TIMEOUT, key, put, write};
use crate::workload::ROOT;
use crate::workload::watch::{Acknowledged, Effect};

const NAME: &str = "rename";
const CHECK: &str = "a renamed directory is whole, under one name";
const TREES: usize = 2;
const FILES: [&str; 4] = ["a", "b", "sub/c", "sub/d"];
const PAUSE: Duration = Duration::from_millis(60);

/// Holds what is below the place of one tree (names from there on) against what it has to be.
pub fn check(there: &[String]) -> Vec<String> {
    let expected = |top: &str| {
        let mut all = vec![top.to_string(), format!("{top}/sub")];
        all.extend(FILES.iter().map(|file| format!("{top}/{file}")));
        all.sort();
        all
    };
    let mut sorted = there.to_vec();
    sorted.sort();
    if sorted == expected("left") || sorted == expected("right") {
        return Vec::new();
    }
    vec![format!("{sorted:?}")]
}

/// Works until the run settles, then checks for the last time.
pub async fn run(shared: Arc<Shared>) {
    let mut workers = JoinSet::new();
    for tree in 0..TREES {
        workers.spawn(work(shared.clone(), tree));
    }
    workers.join_all().await;
}

async fn work(shared: Arc<Shared>, tree: usize) {
    let client = shared.client();
    let Some(session) = store::session(&shared, &client).await else { return };
    let place = format!("{ROOT}/{NAME}/{tree}");
    for file in FILES {
        while shared.runs() {
            let command = put(&key(&format!("{place}/left/{file}")), file);
            if let Fate::Done(..) = write(&shared, NAME, &session, command).await.fate {
                break;
            }
        }
    }
    if !shared.runs() {
        return;
    }
    let looker = tokio::spawn(look(shared.clone(), place.clone()));
    // `None`: the fate of the last rename is unknown.
    let mut left = Some(true);
    let mut turn = false;
    while shared.runs() {
        turn = match left {
            Some(left) => left,
            None => !turn,
        };
        let (from, to) = if turn { ("left", "right") } else { ("right", "left") };
        let (from, to) = (format!("{place}/{from}"), format!("{place}/{to}"));
        let command =
            Command::Rename { from: key(&from).into(), to: key(&to).into(), mode: RenameMode::NoReplace };
        left = match write(&shared, NAME, &session, command).await.fate {
            Fate::Done(revision, _) => {
                shared.acknowledge(Acknowledged { revision, effects: vec![Effect::Moved(from, to)] });
                Some(!turn)
            }
            Fate::Never(_) => left,
            Fate::Unknown(_) => None,
            Fate::Refused(_, Refusal::NotFound(_) | Refusal::Exists(_)) if left.is_none() => Some(!turn),
            Fate::Refused(_, refusal) => {
                let seen = format!("it is there, and its rename to {to} was refused: {refusal}");
                shared.report.violation(CHECK, from, seen);
                None
            }
        };
        shared.pause(PAUSE).await;
    }
    if let Err(error) = looker.await {
        shared.report.violation("the harness works", place, error.to_string());
    }
}

async fn look(shared: Arc<Shared>, place: String) {
    let client = shared.client();
    let dir = key(&place);
    loop {
        let last = !shared.runs();
        match store::range(&client, &dir, TIMEOUT).await {
            Ok((revision, items)) => {
                shared.report.operation(NAME, Ended::Done);
                let prefix = format!("{place}/");
                let there: Vec<String> = items
                    .iter()
                    .filter_map(|(key, _)| key.to_string().strip_prefix(&prefix).map(str::to_string))
                    .collect();
                let found = check(&there).into_iter().map(|seen| format!("at revision {revision}: {seen}"));
                shared.report.verdict(CHECK, &place, 1, found.collect());
            }
            Err(_) => shared.report.operation(NAME, Ended::Failed),
        }
        if last {
            return;
        }
        shared.pause(PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(all: &[&str]) -> Vec<String> {
        all.iter().map(|name| name.to_string()).collect()
    }

    #[test]
    fn half_a_tree_or_two_are_found() {
        let left = ["left", "left/sub", "left/a", "left/b", "left/sub/c", "left/sub/d"];
        let right = ["right", "right/sub", "right/a", "right/b", "right/sub/c", "right/sub/d"];
        assert!(check(&names(&left)).is_empty());
        assert!(check(&names(&right)).is_empty());
        assert!(!check(&names(&[left, right].concat())).is_empty(), "both");
        assert!(!check(&[]).is_empty(), "neither");
        assert!(!check(&names(&left[..5])).is_empty(), "a part");
        assert!(!check(&names(&[&left[..4], &right[4..]].concat())).is_empty(), "torn");
    }
}
