//! Register: puts and linearizable gets of a few workers on one key, and reads of it on every mount behind
//! a barrier, which are to be as good. Checked by [`linear`](crate::linear).

use std::fs::File;
use std::io::{ErrorKind, Read as _};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use quorumfs_api::Key;
use quorumfs_api::client::{Client, Session};
use tokio::task::JoinSet;

use crate::linear::{Kind, Operation, Revisions};
use crate::report::Ended;
use crate::shared::Shared;
use crate::store::{self, Fate, put, read, write};
use crate::workload::lane::Lane;
use crate::workload::watch::{Acknowledged, Effect};

const NAME: &str = "register";
/// Reads on mounts, in the counts.
const BARRIER: &str = "mount barrier";
const CHECK: &str = "reads and writes of one key are linearizable";
const WORKERS: usize = 5;
/// Workers that only read. A node that wrongly believes to lead answers them for as long as it believes so; whoever
/// writes, too, waits there for its write, and then goes to the next node.
const READERS: usize = 1;
const PAUSE: Duration = Duration::from_millis(25);

/// Works until the run settles, then checks.
pub async fn run(shared: Arc<Shared>) {
    let lane = Arc::new(Lane::new(NAME));
    let mut workers = JoinSet::new();
    for number in 0..WORKERS {
        workers.spawn(work(shared.clone(), lane.clone(), number));
    }
    for _ in 0..READERS {
        workers.spawn(only_read(shared.clone(), lane.clone()));
    }
    for host in 0..shared.mounts.len() {
        let (shared, lane) = (shared.clone(), lane.clone());
        workers.spawn_blocking(move || read_on_mount(&shared, &lane, host));
    }
    workers.join_all().await;
    lane.check(&shared, CHECK);
}

async fn work(shared: Arc<Shared>, lane: Arc<Lane>, number: usize) {
    let mut random = shared.random(&format!("{NAME}{number}"));
    let client = shared.client();
    let Some(session) = store::session(&shared, &client).await else { return };
    while shared.runs() {
        let (lane_number, key) = lane.next();
        if random.chance(55) {
            read_one(&shared, &lane, &client, lane_number, &key).await;
        } else {
            put_one(&shared, &lane, &session, lane_number, &key).await;
        }
        shared.pause(PAUSE).await;
    }
}

async fn only_read(shared: Arc<Shared>, lane: Arc<Lane>) {
    let client = shared.client();
    while shared.runs() {
        let (number, key) = lane.next();
        read_one(&shared, &lane, &client, number, &key).await;
        shared.pause(PAUSE).await;
    }
}

async fn read_one(shared: &Shared, lane: &Lane, client: &Client, number: u64, key: &Key) {
    let read = read(shared, NAME, client, key).await;
    if let Ok((revision, record)) = read.got {
        record_read(shared, lane, number, (read.call, read.ret), revision, record);
    }
}

/// Reads the key of the moment on a mount, until the run settles. Calls on a mount block.
fn read_on_mount(shared: &Shared, lane: &Lane, host: usize) {
    let mount = &shared.mounts[host];
    while shared.runs() {
        std::thread::sleep(PAUSE);
        let Some(epoch) = mount.up() else { continue };
        let (number, key) = lane.next();
        let path = mount.path.join(key.to_string().trim_start_matches('/'));
        let call = shared.now();
        let read = File::open(&mount.path).and_then(|root| root.sync_all()).and_then(|()| read_number(&path));
        let ret = shared.now();
        // What a dead mount says means nothing.
        if !mount.stayed(epoch) {
            continue;
        }
        let value = match read {
            Ok(value) => value,
            Err(_) => {
                shared.report.operation(BARRIER, Ended::Failed);
                continue;
            }
        };
        shared.report.operation(BARRIER, Ended::Done);
        let value = match value.map(|text| text.parse().map_err(|_| text)).transpose() {
            Ok(value) => value,
            Err(text) => {
                let seen = format!("{text:?} is not a number that was written");
                shared.report.violation("values are whole", path.display().to_string(), seen);
                continue;
            }
        };
        lane.record(number, Operation { call, ret: Some(ret), kind: Kind::Read { value, revisions: None } });
    }
}

/// The value of a small file; `None` if it is not there.
fn read_number(path: &Path) -> std::io::Result<Option<String>> {
    let mut file = match File::open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    let mut bytes = [0; 32];
    let length = file.read(&mut bytes)?;
    Ok(Some(String::from_utf8_lossy(&bytes[..length]).into_owned()))
}

/// Writes a read down, for the swaps as well.
pub fn record_read(
    shared: &Shared,
    lane: &Lane,
    number: u64,
    (call, ret): (u64, u64),
    revision: u64,
    record: Option<quorumfs_api::Record>,
) {
    let value = match record.as_ref().map(|record| store::text(record).parse()) {
        None => None,
        Some(Ok(value)) => Some(value),
        Some(Err(_)) => {
            let seen = format!("{:?} is not a number that was written", record);
            shared.report.violation("values are whole", format!("{NAME} {number}"), seen);
            return;
        }
    };
    let modified = record.map_or(0, |record| record.mod_revision);
    let revisions = Some(Revisions { modified, answer: revision });
    lane.record(number, Operation { call, ret: Some(ret), kind: Kind::Read { value, revisions } });
}

async fn put_one(shared: &Shared, lane: &Lane, session: &Session, number: u64, key: &Key) {
    let value = lane.value();
    let written = write(shared, NAME, session, put(key, value.to_string())).await;
    let (ret, revision) = match written.fate {
        Fate::Done(revision, _) => {
            let effects = vec![Effect::Value(key.to_string(), value.to_string())];
            shared.acknowledge(Acknowledged { revision, effects });
            (Some(written.ret), Some(revision))
        }
        // What surely did not happen is no part of the history: a read of its value has no writer.
        Fate::Never(_) => return,
        Fate::Refused(_, refusal) => {
            shared.report.violation(
                "a put of a small value is possible",
                key.to_string(),
                refusal.to_string(),
            );
            return;
        }
        Fate::Unknown(_) => (None, None),
    };
    lane.record(number, Operation { call: written.call, ret, kind: Kind::Write { value, revision } });
}
