//! Register: puts and linearizable gets of a few workers on one key. Checked by [`linear`](crate::linear).

use std::sync::Arc;
use std::time::Duration;

use quorumfs_api::client::Session;
use tokio::task::JoinSet;

use crate::linear::{Kind, Operation};
use crate::shared::Shared;
use crate::store::{self, Fate, put, read, write};
use crate::workload::lane::Lane;
use crate::workload::watch::{Acknowledged, Effect};

const NAME: &str = "register";
const WORKERS: usize = 5;
const PAUSE: Duration = Duration::from_millis(25);

/// Works until the run settles, then checks.
pub async fn run(shared: Arc<Shared>) {
    let lane = Arc::new(Lane::new(NAME));
    let mut workers = JoinSet::new();
    for number in 0..WORKERS {
        workers.spawn(work(shared.clone(), lane.clone(), number));
    }
    workers.join_all().await;
    lane.check(&shared, "reads and writes of one key are linearizable");
}

async fn work(shared: Arc<Shared>, lane: Arc<Lane>, number: usize) {
    let mut random = shared.random(&format!("{NAME}{number}"));
    let client = shared.client();
    let Some(session) = store::session(&shared, &client).await else { return };
    while shared.runs() {
        let (lane_number, key) = lane.next();
        if random.chance(55) {
            let read = read(&shared, NAME, &client, &key).await;
            if let Ok((revision, record)) = read.got {
                record_read(&shared, &lane, lane_number, (read.call, read.ret), revision, record);
            }
        } else {
            put_one(&shared, &lane, &session, lane_number, &key).await;
        }
        shared.pause(PAUSE).await;
    }
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
    lane.record(number, Operation { call, ret: Some(ret), kind: Kind::Read { value, modified, revision } });
}

async fn put_one(shared: &Shared, lane: &Lane, session: &Session, number: u64, key: &quorumfs_api::Key) {
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
