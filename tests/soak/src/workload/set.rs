//! Set: names that are made exclusively, some taken away again. At the end exactly those are there
//! that were acknowledged, and perhaps some of unknown fate.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use quorumfs_api::{Command, CreateMode, LeaseChange, Owner, Refusal};
use tokio::task::JoinSet;

use crate::shared::Shared;
use crate::store::{self, FINAL_TIMEOUT, Fate, key, write};
use crate::workload::ROOT;
use crate::workload::watch::{Acknowledged, Effect};

const NAME: &str = "set";
const CHECK: &str = "a set holds what was acknowledged, and nothing else";
const WORKERS: usize = 3;
const PAUSE: Duration = Duration::from_millis(30);

/// What is known of one element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Element {
    /// It was added.
    Added,
    /// It was added and removed.
    Removed,
    /// It surely was never added.
    Never,
    /// Adding or removing it had no answer.
    Unknown,
}

/// Holds the set against what was done.
pub fn check(elements: &BTreeMap<String, Element>, there: &BTreeSet<String>) -> Vec<String> {
    let mut found = Vec::new();
    for (name, element) in elements {
        match (element, there.contains(name)) {
            (Element::Added, false) => found.push(format!("{name} was added, and is not there")),
            (Element::Removed, true) => found.push(format!("{name} was removed, and is there")),
            (Element::Never, true) => found.push(format!("{name} failed for sure, and is there")),
            _ => {}
        }
    }
    for name in there.iter().filter(|name| !elements.contains_key(*name)) {
        found.push(format!("{name} is there, and nobody added it"));
    }
    found
}

type Elements = Arc<Mutex<BTreeMap<String, Element>>>;

/// Works until the run settles, then checks.
pub async fn run(shared: Arc<Shared>) {
    let elements = Elements::default();
    let mut workers = JoinSet::new();
    for number in 0..WORKERS {
        workers.spawn(work(shared.clone(), elements.clone(), number));
    }
    workers.join_all().await;
    let elements = elements.lock().clone();
    shared.keep(NAME, elements.iter().map(|(name, element)| format!("{name} {element:?}")));
    let dir = format!("{ROOT}/{NAME}");
    match store::range(&shared.client(), &key(&dir), FINAL_TIMEOUT).await {
        Ok((_, items)) => {
            let there = items
                .iter()
                .filter_map(|(key, _)| key.to_string().strip_prefix(&format!("{dir}/")).map(str::to_string))
                .collect();
            shared.report.verdict(CHECK, &dir, elements.len(), check(&elements, &there));
        }
        Err(error) => shared.report.violation("a healed cluster can be read", dir, error.to_string()),
    }
}

async fn work(shared: Arc<Shared>, elements: Elements, number: usize) {
    let mut random = shared.random(&format!("{NAME}{number}"));
    let client = shared.client();
    let Some(session) = store::session(&shared, &client).await else { return };
    let mut added: Vec<String> = Vec::new();
    for count in 0.. {
        if !shared.runs() {
            return;
        }
        if !added.is_empty() && random.chance(35) {
            let name = added.swap_remove(random.below(added.len()));
            let path = format!("{ROOT}/{NAME}/{name}");
            let command = Command::Delete { at: key(&path).into(), recursive: false };
            let element = match write(&shared, NAME, &session, command).await.fate {
                Fate::Done(revision, _) => {
                    shared.acknowledge(Acknowledged { revision, effects: vec![Effect::Gone(path)] });
                    Element::Removed
                }
                Fate::Never(_) => {
                    added.push(name);
                    continue;
                }
                Fate::Unknown(_) => Element::Unknown,
                // Only this worker removes it, and does so once: a refusal means that it was lost, or
                // that one removal was applied twice.
                Fate::Refused(_, refusal) => {
                    shared.report.violation(CHECK, path, format!("the first removal was refused: {refusal}"));
                    Element::Unknown
                }
            };
            elements.lock().insert(name, element);
        } else {
            let name = format!("{number}-{count}");
            let path = format!("{ROOT}/{NAME}/{name}");
            let command = Command::Put {
                target: key(&path).into(),
                value: name.clone().into(),
                create: CreateMode::Exclusive,
                parents: true,
                owner: Owner::FILE,
                lease: LeaseChange::Keep,
            };
            let element = match write(&shared, NAME, &session, command).await.fate {
                Fate::Done(revision, _) => {
                    added.push(name.clone());
                    let effects = vec![Effect::Value(path, name.clone())];
                    shared.acknowledge(Acknowledged { revision, effects });
                    Element::Added
                }
                Fate::Never(_) => Element::Never,
                Fate::Unknown(_) => Element::Unknown,
                Fate::Refused(_, refusal) => {
                    if matches!(refusal, Refusal::Exists(_)) {
                        shared.report.violation("a retry is not applied twice", path, refusal.to_string());
                    } else {
                        shared.report.violation("a new name can be made", path, refusal.to_string());
                    }
                    Element::Unknown
                }
            };
            elements.lock().insert(name, element);
        }
        shared.pause(PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_lie_is_found() {
        let elements = BTreeMap::from([
            ("added".to_string(), Element::Added),
            ("removed".to_string(), Element::Removed),
            ("never".to_string(), Element::Never),
            ("unknown".to_string(), Element::Unknown),
        ]);
        let there = |names: &[&str]| names.iter().map(|name| name.to_string()).collect();
        assert!(check(&elements, &there(&["added"])).is_empty());
        assert!(check(&elements, &there(&["added", "unknown"])).is_empty());
        assert!(check(&elements, &there(&[]))[0].contains("added was added, and is not there"));
        assert!(check(&elements, &there(&["added", "removed"]))[0].contains("was removed"));
        assert!(check(&elements, &there(&["added", "never"]))[0].contains("failed for sure"));
        assert!(check(&elements, &there(&["added", "stranger"]))[0].contains("nobody added"));
    }
}
