//! Leases: an ephemeral key is there as long as its lease surely lives, and gone soon after its end.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use quorumfs_api::client::{Client, ClientError};
use quorumfs_api::outcome::{Done, Outcome};
use quorumfs_api::{Command, CreateMode, LeaseChange, LeaseId, Owner};
use tokio::task::JoinSet;

use crate::report::Ended;
use crate::shared::{Micros, Shared};
use crate::store::{self, Fate, TIMEOUT, key, read, write};
use crate::workload::ROOT;

const NAME: &str = "lease";
const CHECK: &str = "an ephemeral key goes with its lease, never before, and soon after";
const WORKERS: usize = 3;
const TTL: Duration = Duration::from_millis(1500);
/// How long after its time a key may still be there while nothing is broken: an election, for after
/// it every lease has its whole time again; a proposal; and a machine with other things to do.
pub const SLACK: Duration = Duration::from_millis(5000);
const LOOK: Duration = Duration::from_millis(150);

/// One look at the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    /// When the read was called.
    pub call: Micros,
    /// When it returned.
    pub ret: Micros,
    /// Whether the key was there.
    pub there: bool,
}

/// What was done with one lease.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Life {
    /// Time to live.
    pub ttl: Micros,
    /// When the renewals were sent that were acknowledged (the grant is one), in order.
    pub renewed: Vec<Micros>,
    /// When the last thing was over that may have renewed it, or set it anew.
    pub last: Micros,
    /// When the put of the key was acknowledged.
    pub bound: Micros,
    /// Reads of the key after that.
    pub looks: Vec<Look>,
}

/// Holds the looks against the lease.
pub fn check(life: &Life) -> Vec<String> {
    let mut found = Vec::new();
    let sure = life.renewed.iter().max().map_or(0, |sent| sent + life.ttl);
    let late = life.last + life.ttl + SLACK.as_micros() as Micros;
    let mut gone: Option<&Look> = None;
    for look in &life.looks {
        if !look.there && look.ret < sure && look.call > life.bound {
            found.push(format!("gone {} µs too early: {look:?} of {life:?}", sure - look.ret));
        }
        if look.there && look.call > late {
            found.push(format!("there {} µs too late: {look:?} of {life:?}", look.call - late));
        }
        match gone {
            Some(before) if look.there && look.call > before.ret => {
                found.push(format!("there again: {look:?} after {before:?}"));
            }
            _ if !look.there => gone = Some(look),
            _ => {}
        }
        if !found.is_empty() {
            break;
        }
    }
    found
}

/// Works until the run settles, then checks the last ones.
pub async fn run(shared: Arc<Shared>) {
    let names = Arc::new(AtomicU64::new(0));
    let mut workers = JoinSet::new();
    for number in 0..WORKERS {
        workers.spawn(work(shared.clone(), names.clone(), number));
    }
    workers.join_all().await;
}

async fn work(shared: Arc<Shared>, names: Arc<AtomicU64>, number: usize) {
    let mut random = shared.random(&format!("{NAME}{number}"));
    let client = shared.client();
    let Some(session) = store::session(&shared, &client).await else { return };
    while shared.runs() {
        let path = format!("{ROOT}/{NAME}/{}", names.fetch_add(1, Ordering::Relaxed));
        let sent = shared.now();
        let Ok(lease) = grant(&client).await else {
            shared.report.operation(NAME, Ended::Unknown);
            shared.pause(LOOK).await;
            continue;
        };
        let mut life = Life { ttl: TTL.as_micros() as Micros, renewed: vec![sent], ..Life::default() };
        let command = Command::Put {
            target: key(&path).into(),
            value: "here".into(),
            create: CreateMode::Exclusive,
            parents: true,
            owner: Owner::FILE,
            lease: LeaseChange::Bind(lease),
        };
        let written = write(&shared, NAME, &session, command).await;
        life.last = shared.now();
        match written.fate {
            Fate::Done(..) => life.bound = written.ret,
            // The lease ended before the put came, or nobody knows: nothing can be said of this one.
            _ => continue,
        }
        let renewals = random.below(5);
        follow(&shared, &client, &path, lease, renewals, &mut life).await;
        let found = check(&life);
        if !found.is_empty() {
            shared.keep(&format!("{NAME}-{}", path.replace('/', "_")), [format!("{lease:?} {life:?}")]);
        }
        shared.report.verdict(CHECK, &path, life.looks.len(), found);
    }
}

async fn grant(client: &Client) -> Result<LeaseId, ClientError> {
    let command = Command::LeaseGrant { ttl_ms: TTL.as_millis() as u64 };
    match client.write_once(command, TIMEOUT).await? {
        Outcome { result: Ok(Done::Lease { id, .. }), .. } => Ok(id),
        Outcome { result, .. } => Err(ClientError::Lost(format!("{result:?}"))),
    }
}

/// Renews a few times, and looks until the key is gone or has been there for too long.
async fn follow(
    shared: &Shared,
    client: &Client,
    path: &str,
    lease: LeaseId,
    mut renewals: usize,
    life: &mut Life,
) {
    let key = key(path);
    let mut next = shared.now() + life.ttl / 3;
    loop {
        if renewals > 0 && shared.now() >= next {
            renewals -= 1;
            let sent = shared.now();
            let kept = client.keep_alive(lease, TTL / 3).await;
            life.last = shared.now();
            next = life.last + life.ttl / 3;
            if kept.is_ok() {
                life.renewed.push(sent);
            }
        }
        let look = read(shared, NAME, client, &key).await;
        if let Ok((_, record)) = &look.got {
            life.looks.push(Look { call: look.call, ret: look.ret, there: record.is_some() });
        }
        // A new leader gives every lease its whole time again: count from the last disturbance.
        match shared.whole_since() {
            None => life.last = shared.now(),
            Some(since) => life.last = life.last.max(since),
        }
        let last = life.looks.last();
        let gone = last.is_some_and(|look| !look.there);
        let late = life.last + life.ttl + 2 * SLACK.as_micros() as Micros;
        if (gone && renewals == 0) || last.is_some_and(|look| look.there && look.call > late) {
            return;
        }
        if gone {
            renewals = 0;
        }
        tokio::time::sleep(LOOK).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Micros = 1_000_000;

    fn life(looks: &[(Micros, bool)]) -> Life {
        let looks = looks.iter().map(|(call, there)| Look { call: *call, ret: call + 100, there: *there });
        Life {
            ttl: 2 * SECOND,
            renewed: vec![SECOND, 3 * SECOND],
            last: 3 * SECOND + 1000,
            bound: SECOND + 500,
            looks: looks.collect(),
        }
    }

    #[test]
    fn there_until_its_time_and_then_gone_is_allowed() {
        let looks = [(2 * SECOND, true), (4 * SECOND, true), (6 * SECOND, true), (7 * SECOND, false)];
        assert!(check(&life(&looks)).is_empty());
        assert!(check(&life(&[(5 * SECOND, false)])).is_empty());
    }

    #[test]
    fn gone_early_is_found() {
        assert!(check(&life(&[(2 * SECOND, false)]))[0].contains("too early"));
        assert!(check(&life(&[(4 * SECOND, true), (5 * SECOND - 200, false)]))[0].contains("too early"));
    }

    #[test]
    fn gone_late_is_found() {
        let late = 5 * SECOND + SLACK.as_micros() as Micros + 1001;
        assert!(check(&life(&[(late, true)]))[0].contains("too late"));
    }

    #[test]
    fn there_again_is_found() {
        assert!(check(&life(&[(6 * SECOND, false), (7 * SECOND, true)]))[0].contains("there again"));
    }
}
