//! Append: several workers add words to one file. Each acknowledged word is there exactly once, one
//! of unknown fate at most once, and in an order that time allows.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use quorumfs_api::wire::Consistency;
use quorumfs_api::{Command, CreateMode, Owner};
use tokio::task::JoinSet;

use crate::shared::{Micros, Shared};
use crate::store::{self, FINAL_TIMEOUT, Fate, key, write_and_ask};
use crate::workload::ROOT;
use crate::workload::watch::{Acknowledged, Effect};

const NAME: &str = "append";
const CHECK: &str = "appends happen exactly once, in an order that time allows";
const WORKERS: usize = 4;
const PER_FILE: u64 = 400;
const PAUSE: Duration = Duration::from_millis(40);

/// One append.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Appended {
    /// What was added, without the blank at its end.
    pub word: String,
    /// When it was called.
    pub call: Micros,
    /// When it was acknowledged; `None` if nobody knows whether it was done.
    pub ret: Option<Micros>,
}

/// Holds a file against what was appended to it.
pub fn check(history: &[Appended], content: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut places: HashMap<&str, usize> = HashMap::new();
    let words: Vec<&str> = content.split_terminator(' ').collect();
    let known: HashMap<&str, &Appended> =
        history.iter().map(|appended| (appended.word.as_str(), appended)).collect();
    for (place, word) in words.iter().enumerate() {
        if !known.contains_key(word) {
            found.push(format!("word {place}, {word:?}, was appended by nobody, or is part of a word"));
        }
        if let Some(before) = places.insert(word, place) {
            found.push(format!("{:?} is there twice, as word {before} and {place}", known.get(word)));
        }
    }
    for appended in history {
        if appended.ret.is_some() && !places.contains_key(appended.word.as_str()) {
            found.push(format!("{appended:?} was acknowledged, and is not there"));
        }
    }
    // Whoever stands later must not have been acknowledged before somebody earlier was called.
    let mut latest: Option<&Appended> = None;
    for word in &words {
        let Some(appended) = known.get(word).copied() else { continue };
        if let (Some(ret), Some(before)) = (appended.ret, latest)
            && ret < before.call
        {
            found.push(format!("{before:?} stands before {appended:?}, which was acknowledged first"));
        }
        if latest.is_none_or(|before| before.call < appended.call) {
            latest = Some(appended);
        }
    }
    found
}

#[derive(Default)]
struct Files {
    count: AtomicU64,
    histories: Mutex<BTreeMap<u64, Vec<Appended>>>,
}

/// Works until the run settles, then checks.
pub async fn run(shared: Arc<Shared>) {
    let files = Arc::new(Files::default());
    let mut workers = JoinSet::new();
    for number in 0..WORKERS {
        workers.spawn(work(shared.clone(), files.clone(), number));
    }
    workers.join_all().await;
    let histories = std::mem::take(&mut *files.histories.lock());
    shared.keep(NAME, histories.iter().flat_map(|(n, all)| all.iter().map(move |a| format!("{n} {a:?}"))));
    let client = shared.client();
    for (number, history) in histories {
        let path = format!("{ROOT}/{NAME}/{number}");
        match client.get(key(&path), Consistency::Linearizable, FINAL_TIMEOUT).await {
            Ok((_, record)) => {
                let content = record.as_ref().map(store::text).unwrap_or_default();
                shared.report.verdict(CHECK, &path, history.len(), check(&history, &content));
            }
            Err(error) => shared.report.violation("a healed cluster can be read", path, error.to_string()),
        }
    }
}

async fn work(shared: Arc<Shared>, files: Arc<Files>, number: usize) {
    let client = shared.client();
    let Some(session) = store::session(&shared, &client).await else { return };
    for count in 0.. {
        if !shared.runs() {
            return;
        }
        let file = files.count.fetch_add(1, Ordering::Relaxed) / PER_FILE;
        let path = format!("{ROOT}/{NAME}/{file}");
        let word = format!("{number}.{count}");
        let command = Command::Append {
            target: key(&path).into(),
            data: format!("{word} ").into(),
            create: CreateMode::Allow,
            parents: true,
            owner: Owner::FILE,
        };
        let written = write_and_ask(&shared, NAME, &session, command).await;
        let ret = match written.fate {
            Fate::Done(revision, _) => {
                let effects = vec![Effect::Ends(path, format!("{word} "))];
                shared.acknowledge(Acknowledged { revision, effects });
                Some(Some(written.ret))
            }
            Fate::Unknown(_) => Some(None),
            // It must not be there: the checker knows nobody who appended it.
            Fate::Never(_) => None,
            Fate::Refused(_, refusal) => {
                shared.report.violation("an append of a word is possible", path, refusal.to_string());
                None
            }
        };
        if let Some(ret) = ret {
            let appended = Appended { word, call: written.call, ret };
            files.histories.lock().entry(file).or_default().push(appended);
        }
        shared.pause(PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn appended(word: &str, call: Micros, ret: Option<Micros>) -> Appended {
        Appended { word: word.into(), call, ret }
    }
    fn history() -> Vec<Appended> {
        vec![
            appended("a", 0, Some(10)),
            appended("b", 5, Some(15)),
            appended("c", 20, None),
            appended("d", 30, Some(40)),
        ]
    }

    #[test]
    fn what_is_allowed_passes() {
        for content in ["a b d ", "b a d ", "a b c d ", "b a d c "] {
            assert_eq!(check(&history(), content), Vec::<String>::new(), "{content}");
        }
    }

    #[test]
    fn a_lost_append_is_found() {
        assert_eq!(check(&history(), "a d ").len(), 1);
        assert!(check(&history(), "a d ")[0].contains("is not there"));
        assert_eq!(check(&history(), "").len(), 3);
    }

    #[test]
    fn a_duplicate_append_is_found() {
        assert!(check(&history(), "a b a d ")[0].contains("twice"));
        assert!(check(&history(), "a b c d c ")[0].contains("twice"), "also one of unknown fate");
    }

    #[test]
    fn a_torn_or_made_up_word_is_found() {
        assert!(check(&history(), "a b d x ")[0].contains("nobody"));
        assert!(!check(&history(), "ab d ").is_empty());
    }

    #[test]
    fn an_order_against_time_is_found() {
        assert!(check(&history(), "a d b ")[0].contains("acknowledged first"));
        assert!(check(&history(), "c a b d ")[0].contains("acknowledged first"));
    }
}
