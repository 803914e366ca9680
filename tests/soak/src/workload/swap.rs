//! Compare and swap: transactions that replace a value by another, and linearizable gets.

use std::sync::Arc;
use std::time::Duration;

use quorumfs_api::{Command, Compare, Done, Key};
use tokio::task::JoinSet;

use crate::linear::{Kind, Operation};
use crate::shared::Shared;
use crate::store::{self, Fate, put, read, write};
use crate::workload::lane::Lane;
use crate::workload::register::record_read;
use crate::workload::watch::{Acknowledged, Effect};

const NAME: &str = "swap";
const WORKERS: usize = 4;
const PAUSE: Duration = Duration::from_millis(30);

/// Works until the run settles, then checks.
pub async fn run(shared: Arc<Shared>) {
    let lane = Arc::new(Lane::new(NAME));
    let mut workers = JoinSet::new();
    for number in 0..WORKERS {
        workers.spawn(work(shared.clone(), lane.clone(), number));
    }
    workers.join_all().await;
    lane.check(&shared, "compare and swap is linearizable");
}

async fn work(shared: Arc<Shared>, lane: Arc<Lane>, number: usize) {
    let client = shared.client();
    let Some(session) = store::session(&shared, &client).await else { return };
    let mut known: Option<(u64, Option<u64>)> = None;
    let mut random = shared.random(&format!("{NAME}{number}"));
    while shared.runs() {
        let (lane_number, key) = lane.next();
        let expected = known.take().filter(|(of, _)| *of == lane_number).map(|(_, value)| value);
        match expected {
            Some(expected) if random.chance(85) => {
                let value = lane.value();
                let written = write(&shared, NAME, &session, command(&key, expected, value)).await;
                let (ret, swapped, revision) = match written.fate {
                    Fate::Done(revision, Done::Txn { succeeded, .. }) => {
                        if succeeded {
                            known = Some((lane_number, Some(value)));
                            let effects = vec![Effect::Value(key.to_string(), value.to_string())];
                            shared.acknowledge(Acknowledged { revision, effects });
                        }
                        (Some(written.ret), Some(succeeded), Some(revision))
                    }
                    Fate::Unknown(_) => (None, None, None),
                    Fate::Never(_) => continue,
                    Fate::Done(..) | Fate::Refused(..) => {
                        let seen = format!("{:?}", written.fate);
                        shared.report.violation("a transaction is answered as one", key.to_string(), seen);
                        continue;
                    }
                };
                let kind = Kind::Swap { expected, value, swapped, revision };
                lane.record(lane_number, Operation { call: written.call, ret, kind });
            }
            _ => {
                let read = read(&shared, NAME, &client, &key).await;
                if let Ok((revision, record)) = read.got {
                    let value = record.as_ref().and_then(|record| store::text(record).parse().ok());
                    known = Some((lane_number, value));
                    record_read(&shared, &lane, lane_number, (read.call, read.ret), revision, record);
                }
            }
        }
        shared.pause(PAUSE).await;
    }
}

fn command(key: &Key, expected: Option<u64>, value: u64) -> Command {
    let compare = match expected {
        None => Compare::Exists(key.clone(), false),
        Some(expected) => Compare::Value(key.clone(), expected.to_string().into(), true),
    };
    Command::Txn { compare: vec![compare], then: vec![put(key, value.to_string())], otherwise: Vec::new() }
}
