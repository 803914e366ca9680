//! Takes one call to its answer: to the leader wherever it is, or to any node, until the deadline.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::RngExt;
use tokio::time::timeout_at;

use super::ClientError;
use super::connection::CallError;
use super::endpoint::DialError;
use super::pool::Pool;
use crate::command::Command;
use crate::wire::{Answer, Call, Failure};

/// A call that has no answer after this long makes the client look whether somebody else leads now, again and again.
const STALL: Duration = Duration::from_millis(250);
/// While there is no leader, or it does not even say that it leads, nodes are asked this often.
const LOOK: Duration = Duration::from_millis(60);
/// First and longest pause before a node is asked again that could not serve us.
const PAUSE_MIN: Duration = Duration::from_millis(10);
const PAUSE_MAX: Duration = Duration::from_millis(250);
/// What one node gets of the time, when any node will do.
const TRY_MAX: Duration = Duration::from_millis(1500);
/// The first time round, a node that has not answered the dialling after this long is passed over.
pub(super) const FIRST_DIAL: Duration = Duration::from_millis(250);

/// What came of a call, and how often it was handed to a node that may have acted on it.
pub(super) struct Dispatched {
    pub result: Result<Answer, ClientError>,
    pub sends: u32,
}

/// Whether doing it twice does no harm: reads, what has a number in a session, and leases (one too
/// many only runs out).
fn may_repeat(call: &Call) -> bool {
    match call {
        Call::Write { session: None, command } => {
            matches!(command, Command::LeaseGrant { .. } | Command::LeaseRevoke { .. })
        }
        _ => true,
    }
}

fn changes(call: &Call) -> bool {
    matches!(call, Call::Write { .. } | Call::Admin(_))
}

/// What one attempt came to.
enum Attempt {
    Answered(Result<Answer, Failure>),
    /// Nothing came: the connection is gone, and the node may have acted or not.
    Lost(String),
    TooLong(String),
    /// Another node leads now.
    Moved,
    TimeUp,
}

/// Keeps what a failure has to say.
struct Trip<'a> {
    pool: &'a Arc<Pool>,
    start: Instant,
    deadline: Instant,
    sends: u32,
    /// A node may have acted on it, and did not say.
    open: bool,
    changes: bool,
    no_quorum: bool,
    busy: Option<String>,
    pauses: u32,
}

impl Trip<'_> {
    fn left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    fn until(&self, time: Duration) -> tokio::time::Instant {
        (Instant::now() + time).min(self.deadline).into()
    }

    /// Waits a little longer each time, and never as long as others do.
    async fn pause(&mut self) {
        let longest = PAUSE_MIN.saturating_mul(1 << self.pauses.min(6)).min(PAUSE_MAX);
        self.pauses += 1;
        let pause = longest.mul_f64(rand::rng().random_range(0.5..1.0));
        tokio::time::sleep_until(self.until(pause)).await;
    }

    fn give_up(self) -> Dispatched {
        let waited = self.start.elapsed();
        let maybe_done = self.changes && self.open;
        let (tried, answers) = self.pool.report();
        let error = if let (Some(busy), false) = (self.busy, self.open) {
            ClientError::Busy(busy)
        } else if self.no_quorum {
            ClientError::NoQuorum { waited, maybe_done }
        } else if self.open {
            ClientError::Unknown { waited, maybe_done, tried }
        } else if answers {
            ClientError::NoLeader { waited, tried }
        } else {
            ClientError::Unreachable { waited, tried }
        };
        Dispatched { result: Err(error), sends: self.sends }
    }

    fn done(self, result: Result<Answer, ClientError>) -> Dispatched {
        Dispatched { result, sends: self.sends }
    }
}

/// Looks around while a call has no answer: more often once the leader does not say either that it leads. One
/// that is only slow does say so, and is not asked as often by all who wait for it.
struct Stall {
    ticks: tokio::time::Interval,
    looked: Instant,
}

impl Stall {
    fn new() -> Stall {
        let now = Instant::now();
        let mut ticks = tokio::time::interval_at((now + STALL).into(), LOOK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        Stall { ticks, looked: now }
    }

    /// Is awaited beside the call to the leader at `addr`.
    async fn tick(&mut self, pool: &Arc<Pool>, addr: &str) {
        self.ticks.tick().await;
        if pool.is_asked(addr) || self.looked.elapsed() >= STALL {
            self.looked = Instant::now();
            pool.look_around();
        }
    }
}

/// Asks the leader.
pub(super) async fn to_leader(pool: &Arc<Pool>, call: Call, timeout: Duration) -> Dispatched {
    let start = Instant::now();
    let repeat = may_repeat(&call);
    let mut trip = Trip {
        pool,
        start,
        deadline: start + timeout,
        sends: 0,
        open: false,
        changes: changes(&call),
        no_quorum: false,
        busy: None,
        pauses: 0,
    };
    let mut target = pool.target();
    while !trip.left().is_zero() {
        let leader = target.borrow_and_update().clone();
        let Some(addr) = leader else {
            pool.look_around();
            let _ = timeout_at(trip.until(LOOK), target.changed()).await;
            match pool.hopeless(start) {
                Some(error) => return trip.done(Err(error)),
                None => continue,
            }
        };
        let connecting = pool.connection(&addr);
        tokio::pin!(connecting);
        let mut stall = Stall::new();
        let connected = loop {
            tokio::select! {
                biased;
                connected = &mut connecting => break connected.ok(),
                _ = target.changed() => {
                    if target.borrow().as_ref().is_some_and(|now| *now != addr) {
                        break None;
                    }
                }
                () = stall.tick(pool, &addr) => {}
                () = tokio::time::sleep_until(trip.deadline.into()) => break None,
            }
        };
        // What was wrong is noted, and the leader is forgotten, where the dialling failed.
        let Some(connection) = connected else { continue };

        trip.sends += 1;
        let attempt = {
            let answer = connection.call(call.clone(), trip.left());
            tokio::pin!(answer);
            let mut stall = Stall::new();
            loop {
                tokio::select! {
                    biased;
                    answer = &mut answer => break match answer {
                        Ok(answer) => Attempt::Answered(answer),
                        Err(CallError::Lost(why)) => Attempt::Lost(why),
                        Err(CallError::TooLong(why)) => Attempt::TooLong(why),
                    },
                    _ = target.changed(), if repeat => {
                        // "Nobody" is no reason to give up on this one: it may still answer.
                        let moved = target.borrow_and_update().as_ref().is_some_and(|now| *now != addr);
                        if moved {
                            break Attempt::Moved;
                        }
                    }
                    () = stall.tick(pool, &addr) => {}
                    () = tokio::time::sleep_until(trip.deadline.into()) => break Attempt::TimeUp,
                }
            }
        };

        match attempt {
            Attempt::Answered(Ok(answer)) => return trip.done(Ok(answer)),
            Attempt::Answered(Err(failure)) => match failure {
                Failure::NotLeader(hint) => {
                    trip.sends -= 1;
                    pool.hinted(&addr, hint.as_ref());
                    // Two nodes may each name the other for a moment.
                    if trip.pauses > 0 || hint.is_none() {
                        pool.look_around();
                        trip.pause().await;
                    } else {
                        trip.pauses = 1;
                    }
                }
                Failure::NoQuorum => {
                    trip.open = true;
                    trip.no_quorum = true;
                    if !repeat {
                        return trip.give_up();
                    }
                    pool.look_around();
                    trip.pause().await;
                }
                Failure::Busy(why) => {
                    trip.sends -= 1;
                    trip.busy = Some(why);
                    trip.pause().await;
                }
                Failure::Unavailable(why) => {
                    trip.sends -= 1;
                    tracing::debug!(%addr, %why, "the node cannot serve");
                    pool.went_silent(&addr, DialError::other(why));
                    trip.pause().await;
                }
                Failure::BadRequest(why) => return trip.done(Err(ClientError::BadRequest(why))),
                Failure::Denied(why) => return trip.done(Err(ClientError::Denied(why))),
                Failure::NoLease(lease) => return trip.done(Err(ClientError::NoLease(lease))),
            },
            Attempt::TooLong(why) => return trip.done(Err(ClientError::BadRequest(why))),
            Attempt::Lost(why) => {
                trip.open = true;
                tracing::debug!(%addr, %why, "the connection to the leader was lost");
                pool.went_silent(&addr, DialError::other(why));
                if !repeat {
                    return trip.give_up();
                }
            }
            Attempt::Moved => {
                trip.open = true;
                tracing::debug!(%addr, "another node leads now");
            }
            Attempt::TimeUp => {
                trip.open = true;
                break;
            }
        }
    }
    trip.give_up()
}

/// Asks any node: those with an open connection first, then the others in random order.
pub(super) async fn to_any(pool: &Arc<Pool>, call: Call, timeout: Duration) -> Result<Answer, ClientError> {
    let start = Instant::now();
    let mut trip = Trip {
        pool,
        start,
        deadline: start + timeout,
        sends: 0,
        open: false,
        changes: changes(&call),
        no_quorum: false,
        busy: None,
        pauses: 0,
    };
    let mut dial = FIRST_DIAL;
    while !trip.left().is_zero() {
        for addr in in_order(pool, None) {
            let until = trip.until(TRY_MAX);
            // Dialling goes on in the background, so that the next time round it may be there.
            let Ok(Ok(connection)) = timeout_at(trip.until(dial), pool.connection(&addr)).await else {
                continue;
            };
            match timeout_at(until, connection.call(call.clone(), trip.left())).await {
                Ok(Ok(Ok(answer))) => return Ok(answer),
                Ok(Ok(Err(Failure::BadRequest(why)))) | Ok(Err(CallError::TooLong(why))) => {
                    return Err(ClientError::BadRequest(why));
                }
                Ok(Ok(Err(Failure::Denied(why)))) => return Err(ClientError::Denied(why)),
                Ok(Ok(Err(Failure::NoLease(lease)))) => return Err(ClientError::NoLease(lease)),
                Ok(Ok(Err(Failure::Busy(why)))) => trip.busy = Some(why),
                Ok(Ok(Err(other))) => tracing::debug!(%addr, %other, "the node cannot serve"),
                Ok(Err(CallError::Lost(why))) => pool.went_silent(&addr, DialError::other(why)),
                Err(_) => trip.open = true,
            }
        }
        if let Some(error) = pool.hopeless(start) {
            return Err(error);
        }
        dial = TRY_MAX;
        trip.pause().await;
    }
    trip.give_up().result
}

/// All candidates but one: open connections first, silent nodes last, and else at random, so that
/// many clients spread out.
pub(super) fn in_order(pool: &Arc<Pool>, but: Option<&str>) -> Vec<String> {
    let mut all: Vec<(u8, u32, String)> = pool
        .candidates()
        .into_iter()
        .map(|addr| {
            let rank = match () {
                () if pool.is_open(&addr) => 0,
                () if !pool.is_silent(&addr) => 1,
                () => 2,
            };
            (rank, rand::rng().random(), addr)
        })
        .collect();
    all.sort();
    if let Some(but) = but.filter(|_| all.len() > 1) {
        all.retain(|(_, _, addr)| addr != but);
    }
    all.into_iter().map(|(_, _, addr)| addr).collect()
}

/// Asks one node.
pub(super) async fn to_node(
    pool: &Arc<Pool>,
    addr: &str,
    call: Call,
    timeout: Duration,
) -> Result<Answer, ClientError> {
    let start = Instant::now();
    let deadline = (start + timeout).into();
    let unreachable =
        |why: String| ClientError::Unreachable { waited: start.elapsed(), tried: format!("{addr}: {why}") };
    let maybe_done = changes(&call);
    let connection = match timeout_at(deadline, pool.connection(addr)).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) if error.is_refusal() => {
            return Err(ClientError::Certificate { addr: addr.to_string(), reason: error.to_string() });
        }
        Ok(Err(error)) => return Err(unreachable(error.to_string())),
        Err(_) => return Err(unreachable("no answer in time".into())),
    };
    match timeout_at(deadline, connection.call(call, timeout)).await {
        Ok(Ok(Ok(answer))) => Ok(answer),
        Ok(Ok(Err(failure))) => Err(match failure {
            Failure::NoQuorum => ClientError::NoQuorum { waited: start.elapsed(), maybe_done },
            Failure::Busy(why) => ClientError::Busy(why),
            Failure::BadRequest(why) => ClientError::BadRequest(why),
            Failure::Denied(why) => ClientError::Denied(why),
            Failure::NoLease(lease) => ClientError::NoLease(lease),
            other @ (Failure::NotLeader(_) | Failure::Unavailable(_)) => unreachable(other.to_string()),
        }),
        Ok(Err(CallError::TooLong(why))) => Err(ClientError::BadRequest(why)),
        Ok(Err(CallError::Lost(why))) => {
            Err(ClientError::Unknown { waited: start.elapsed(), maybe_done, tried: format!("{addr}: {why}") })
        }
        Err(_) => Err(ClientError::Unknown { waited: start.elapsed(), maybe_done, tried: addr.to_string() }),
    }
}
