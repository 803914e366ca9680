//! Operations on the store, with how they ended in the words of a history.

use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use quorumfs_api::client::{Client, ClientError, Progress, Session};
use quorumfs_api::record::{Record, Revision};
use quorumfs_api::wire::{Consistency, Prefix};
use quorumfs_api::{Command, CreateMode, Done, Key, LeaseChange, Outcome, Owner, Refusal};

use crate::report::Ended;
use crate::shared::{Micros, Shared};

const REMEMBERED: &str = "a request that was done is known, and not done again";

/// What each operation gets.
pub const TIMEOUT: Duration = Duration::from_secs(4);
/// Time to live of a worker's session: shorter than some faults, so that sessions end, too.
pub const SESSION_TTL: Duration = Duration::from_secs(5);
/// How long the last reads may take, when all is healed.
pub const FINAL_TIMEOUT: Duration = Duration::from_secs(30);

/// How a write ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It was done, at this revision.
    Done(Revision, Done),
    /// The state machine refused it, at this revision.
    Refused(Revision, Refusal),
    /// It was not done, and never will be.
    Never(String),
    /// Nobody knows, or will.
    Unknown(String),
}

impl Fate {
    /// For the counts.
    pub fn ended(&self) -> Ended {
        match self {
            Fate::Done(..) => Ended::Done,
            Fate::Refused(..) => Ended::Refused,
            Fate::Never(_) => Ended::Failed,
            Fate::Unknown(_) => Ended::Unknown,
        }
    }
}

impl Fate {
    fn of(result: Result<Outcome, ClientError>) -> Fate {
        match result {
            Ok(outcome) => match outcome.result {
                Ok(done) => Fate::Done(outcome.revision, done),
                // The session ended, or the answer was forgotten: the refusal does not say what came before.
                Err(refusal @ (Refusal::NoSession(_) | Refusal::Forgotten(_))) => {
                    Fate::Unknown(refusal.to_string())
                }
                Err(refusal) => Fate::Refused(outcome.revision, refusal),
            },
            Err(error) if error.maybe_done() => Fate::Unknown(error.to_string()),
            Err(error) => Fate::Never(error.to_string()),
        }
    }
}

/// A write with its times.
#[derive(Clone, Debug)]
pub struct Written {
    /// When it was called.
    pub call: Micros,
    /// When it returned.
    pub ret: Micros,
    /// How it ended.
    pub fate: Fate,
}

/// Does one write.
pub async fn write(shared: &Shared, workload: &'static str, session: &Session, command: Command) -> Written {
    let call = shared.now();
    let result = session.write(command, TIMEOUT).await;
    let ret = shared.now();
    let fate = Fate::of(result);
    shared.report.operation(workload, fate.ended());
    Written { call, ret, fate }
}

/// Does one write, and asks once more what became of it, as a client does that starts again in the middle. A write that
/// was acknowledged must be known by its number; one whose fate was not known mostly has one after that.
pub async fn write_and_ask(
    shared: &Shared,
    workload: &'static str,
    session: &Session,
    command: Command,
) -> Written {
    let call = shared.now();
    let sent = Mutex::new(None);
    let note = |progress: Progress<'_>| {
        if let Progress::Sent(request) = progress {
            *sent.lock() = Some(request);
        }
    };
    let result = session.write_noting(None, command, TIMEOUT, note).await;
    let acknowledged = shared.now();
    let fate = Fate::of(result);
    shared.report.operation(workload, fate.ended());
    let sent = sent.lock().take();
    let (Some(sent), Fate::Done(..) | Fate::Unknown(_)) = (sent, &fate) else {
        return Written { call, ret: acknowledged, fate };
    };
    // Only its own session knows the number.
    let is_current = || session.id() == sent.session;
    let asked = if is_current() { session.settle(sent.number, TIMEOUT).await.ok() } else { None };
    let Some(answer) = asked.filter(|_| is_current()) else {
        return Written { call, ret: acknowledged, fate };
    };
    let known = match answer {
        Some(outcome) => Fate::of(Ok(outcome)),
        None => Fate::Never("its number was used for nothing".into()),
    };
    if matches!(fate, Fate::Unknown(_)) {
        return Written { call, ret: shared.now(), fate: known };
    }
    shared.report.checked(REMEMBERED, 1);
    if known != fate {
        let seen = format!("{fate:?} at first, and {known:?} when it was asked again");
        shared.report.violation(REMEMBERED, format!("request {} of {}", sent.number, sent.session), seen);
    }
    Written { call, ret: acknowledged, fate }
}

/// A linearizable read with its times.
pub struct Read {
    /// When it was called.
    pub call: Micros,
    /// When it returned.
    pub ret: Micros,
    /// Revision of the answer, and the record.
    pub got: Result<(Revision, Option<Record>), ClientError>,
}

/// Reads one key.
pub async fn read(shared: &Shared, workload: &'static str, client: &Client, key: &Key) -> Read {
    let call = shared.now();
    let got = client.get(key.clone(), Consistency::Linearizable, TIMEOUT).await;
    let ret = shared.now();
    shared.report.operation(workload, if got.is_ok() { Ended::Done } else { Ended::Failed });
    Read { call, ret, got }
}

/// All keys under a directory, of one page after the other. They are of one revision only if there is
/// one page.
pub async fn range(
    client: &Client,
    dir: &Key,
    timeout: Duration,
) -> Result<(Revision, Vec<(Key, Record)>), ClientError> {
    let mut all = Vec::new();
    loop {
        let after = all.last().map(|(key, _): &(Key, Record)| key.clone());
        let page = client
            .range(Prefix::Tree(dir.clone()), false, after, u32::MAX, Consistency::Linearizable, timeout)
            .await?;
        all.extend(page.items);
        if !page.more {
            return Ok((page.revision, all));
        }
    }
}

/// A session, however long it takes to get one while the run goes on.
pub async fn session(shared: &Shared, client: &Client) -> Option<Session> {
    while shared.runs() {
        match client.session(SESSION_TTL, TIMEOUT).await {
            Ok(session) => return Some(session),
            Err(_) => shared.pause(Duration::from_millis(100)).await,
        }
    }
    None
}

/// A put that makes what is missing.
pub fn put(key: &Key, value: impl Into<Bytes>) -> Command {
    Command::Put {
        target: key.clone().into(),
        value: value.into(),
        create: CreateMode::Allow,
        parents: true,
        owner: Owner::FILE,
        lease: LeaseChange::Keep,
    }
}

/// A key that the harness chose itself.
pub fn key(path: &str) -> Key {
    path.parse().expect("the harness makes canonical keys")
}

/// The value of a record as text.
pub fn text(record: &Record) -> String {
    String::from_utf8_lossy(&record.value).into_owned()
}
