//! Locks: nobody holds one while another does, and the fencing numbers only grow.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use quorumfs_api::client::Session;
use quorumfs_api::command::{LockKind, LockOwner, Range};
use quorumfs_api::wire::Consistency;
use quorumfs_api::{Command, Done, Ino, Refusal};
use tokio::task::JoinSet;

use crate::shared::{Micros, Shared};
use crate::store::{self, Fate, TIMEOUT, key, put, write};
use crate::workload::ROOT;

const NAME: &str = "lock";
const CHECK: &str = "one holder of a lock at a time, fencing numbers only grow";
const FILES: usize = 2;
const WORKERS: usize = 4;
const PAUSE: Duration = Duration::from_millis(30);

/// One time that a lock was held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// By whom.
    pub worker: usize,
    /// When it was asked for.
    pub asked: Micros,
    /// From when the holder knew.
    pub from: Micros,
    /// Until when the holder could rely on it: it gave it up, or its session was no longer sure.
    pub until: Micros,
    /// The fencing number.
    pub fence: u64,
}

/// Holds the times against each other.
pub fn check(history: &[Held]) -> Vec<String> {
    let mut found = Vec::new();
    let mut held: Vec<&Held> = history.iter().filter(|held| held.from < held.until).collect();
    held.sort_by_key(|held| held.from);
    for pair in held.windows(2) {
        if pair[1].from < pair[0].until {
            found.push(format!("two held it at once: {:?} and {:?}", pair[0], pair[1]));
        }
    }
    let mut granted: Vec<&Held> = history.iter().collect();
    granted.sort_by_key(|held| held.fence);
    for pair in granted.windows(2) {
        if pair[0].fence == pair[1].fence {
            found.push(format!("two have one fencing number: {:?} and {:?}", pair[0], pair[1]));
        } else if pair[1].from < pair[0].asked {
            found.push(format!("the fencing number fell: {:?} came before {:?}", pair[1], pair[0]));
        }
    }
    found
}

type Histories = Arc<Mutex<BTreeMap<usize, Vec<Held>>>>;

/// Works until the run settles, then checks.
pub async fn run(shared: Arc<Shared>) {
    let mut files = Vec::new();
    let client = shared.client();
    if let Some(session) = store::session(&shared, &client).await {
        for file in 0..FILES {
            let path = key(&format!("{ROOT}/{NAME}/{file}"));
            while shared.runs() {
                write(&shared, NAME, &session, put(&path, "lock")).await;
                if let Ok((_, Some(record))) =
                    client.get(path.clone(), Consistency::Linearizable, TIMEOUT).await
                {
                    files.push(record.ino);
                    break;
                }
            }
        }
    }
    let histories = Histories::default();
    let mut workers = JoinSet::new();
    for number in 0..if files.len() == FILES { WORKERS } else { 0 } {
        workers.spawn(work(shared.clone(), files.clone(), histories.clone(), number));
    }
    workers.join_all().await;
    for (file, history) in histories.lock().iter() {
        shared.keep(&format!("{NAME}-{file}"), history.iter().map(|held| format!("{held:?}")));
        let place = format!("{ROOT}/{NAME}/{file}");
        shared.report.verdict(CHECK, &place, history.len(), check(history));
    }
}

async fn work(shared: Arc<Shared>, files: Vec<Ino>, histories: Histories, worker: usize) {
    let mut random = shared.random(&format!("{NAME}{worker}"));
    let client = shared.client();
    let Some(session) = store::session(&shared, &client).await else { return };
    for turn in 0.. {
        if !shared.runs() {
            return;
        }
        let file = random.below(files.len());
        let (generation, id) = *session.changes().borrow();
        // A new owner each time: else taking again what an unlock of unknown fate left is allowed.
        let owner = LockOwner { session: id, owner: turn };
        let command = Command::Lock {
            ino: files[file],
            owner,
            range: Range::WHOLE,
            kind: LockKind::Exclusive,
            pid: worker as u32,
            wait: false,
        };
        let written = write(&shared, NAME, &session, command).await;
        match written.fate {
            Fate::Done(_, Done::Locked(fence)) => {
                let hold = Duration::from_millis(random.below(120) as u64);
                let until = keep(&shared, &session, generation, hold).await;
                let held = Held { worker, asked: written.call, from: written.ret, until, fence };
                histories.lock().entry(file).or_default().push(held);
                unlock(&shared, &session, files[file], owner).await;
            }
            // It may hold it without knowing: then nobody can, until it is given up or the session ends.
            Fate::Unknown(_) => unlock(&shared, &session, files[file], owner).await,
            Fate::Refused(_, Refusal::Locked(_) | Refusal::NoLease(_)) | Fate::Never(_) => {}
            Fate::Done(..) | Fate::Refused(..) => {
                let seen = format!("{:?}", written.fate);
                shared.report.violation("a lock is granted or held by another", format!("{file}"), seen);
            }
        }
        shared.pause(PAUSE).await;
    }
}

/// Relies on the lock for a while; gives the last moment at which that was right.
async fn keep(shared: &Shared, session: &Session, generation: u64, hold: Duration) -> Micros {
    let end = Instant::now() + hold;
    let mut surely = None;
    loop {
        // Read before it is asked whether the session is still the one that holds the lock.
        let valid = session.valid_until();
        if session.generation() == generation {
            surely = Some(valid);
        }
        let now = Instant::now();
        let Some(valid) = surely else { return 0 };
        if now >= end.min(valid) || session.generation() != generation {
            return shared.at(now.min(valid));
        }
        tokio::time::sleep((end.min(valid) - now).min(Duration::from_millis(20))).await;
    }
}

async fn unlock(shared: &Shared, session: &Session, ino: Ino, owner: LockOwner) {
    // While the session lives its owner has to see to it; with the session the lock goes by itself.
    while shared.runs() && session.id() == owner.session {
        let command = Command::Unlock { ino, owner, range: Range::WHOLE };
        match write(shared, NAME, session, command).await.fate {
            Fate::Done(..) | Fate::Refused(..) => return,
            Fate::Never(_) | Fate::Unknown(_) => shared.pause(PAUSE).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(worker: usize, asked: Micros, from: Micros, until: Micros, fence: u64) -> Held {
        Held { worker, asked, from, until, fence }
    }

    #[test]
    fn one_after_the_other_is_allowed() {
        let history = [held(0, 0, 5, 20, 3), held(1, 10, 21, 30, 4), held(0, 31, 33, 40, 9)];
        assert!(check(&history).is_empty());
        // Whoever heard of its lock only when the session was over never relied on it.
        assert!(check(&[held(0, 0, 50, 10, 3), held(1, 20, 30, 60, 4)]).is_empty());
    }

    #[test]
    fn overlapping_holders_are_found() {
        assert!(check(&[held(0, 0, 5, 20, 3), held(1, 10, 19, 30, 4)])[0].contains("two held it at once"));
    }

    #[test]
    fn fencing_numbers_that_fall_or_repeat_are_found() {
        assert!(check(&[held(0, 0, 5, 20, 9), held(1, 21, 23, 30, 4)])[0].contains("fell"));
        assert!(check(&[held(0, 0, 5, 20, 4), held(1, 21, 23, 30, 4)])[0].contains("one fencing number"));
    }
}
