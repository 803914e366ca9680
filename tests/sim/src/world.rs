//! Time, millisecond by millisecond: messages arrive, faults happen, and each host runs for as long as
//! its clock says.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use quorumfs_machine::view;
use raftnode::Config;
use tokio::runtime::{Builder, Runtime};

use crate::bug::Bug;
use crate::client::{Client, Shared};
use crate::fault::{self, Fault, Weather};
use crate::network::{Body, CLIENTS, Envelope, HostId, Outbox, Port};
use crate::node::{Around, Node, TRUE_SPEED};
use crate::random::Random;
use crate::record::{Millis, Record, Seen, Tables, Violation};
use crate::runtime;

/// How long a cluster that nothing disturbs any more may take until everything is as it should be: its
/// members agree, every client has its answers, and what was bound to leases is gone.
const SETTLE: Millis = 30_000;
/// Between two looks at whether that is so.
const LOOK: Millis = 50;
/// Between two looks at the states of all nodes, while things go wrong.
const LOOK_CLOSELY: Millis = 500;
/// Longest time between two faults.
const FAULT_EVERY: Millis = 700;
/// Messages that wait for a stopped process; what comes then is lost.
const SOCKET: usize = 200;

/// What to run.
#[derive(Clone, Debug)]
pub struct Options {
    /// What chooses everything.
    pub seed: u64,
    /// What is done wrong.
    pub bug: Option<Bug>,
    /// For how long things go wrong, in simulated milliseconds.
    pub millis: Millis,
    /// Write everything that happens to stdout.
    pub print: bool,
}

impl Options {
    /// `seed`, as CI runs it.
    pub fn new(seed: u64) -> Options {
        Options { seed, bug: None, millis: 4_000, print: false }
    }
}

/// What came of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Hash of all that happened.
    pub hash: u64,
    /// How much that was.
    pub seen: u64,
    /// When it ended.
    pub millis: Millis,
    /// Operations of clients.
    pub operations: u64,
    /// The first broken promise.
    pub violation: Option<Violation>,
}

/// A message on its way; the second number makes the order of those that arrive together.
struct Flight {
    due: Millis,
    tie: u64,
    envelope: Envelope,
}
impl PartialEq for Flight {
    fn eq(&self, other: &Flight) -> bool {
        (self.due, self.tie) == (other.due, other.tie)
    }
}
impl Eq for Flight {}
impl PartialOrd for Flight {
    fn partial_cmp(&self, other: &Flight) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Flight {
    fn cmp(&self, other: &Flight) -> std::cmp::Ordering {
        (self.due, self.tie).cmp(&(other.due, other.tie))
    }
}

/// What is in store for a node that is down or stopped.
enum Away {
    /// It is started then.
    Down(Millis),
    /// It goes on then; since when it is stopped, and what waits in its socket.
    Stopped(Millis, Millis, Vec<Envelope>),
}

struct World {
    record: Record,
    chance: Random,
    outbox: Outbox,
    nodes: Vec<Node>,
    away: BTreeMap<HostId, Away>,
    clients: Runtime,
    shared: Arc<Shared>,
    flights: BinaryHeap<Reverse<Flight>>,
    sent: u64,
    /// When the last message of each stream arrives; `None` after one was lost.
    streams: BTreeMap<(HostId, HostId, u64), Option<Millis>>,
    cut: BTreeSet<(HostId, HostId)>,
    weather: Weather,
    now: Millis,
}

/// The settings of a node, with times and lengths that make much happen in little time.
fn settings(bug: Option<Bug>, chance: &mut Random) -> Arc<openraft::Config> {
    let listen = std::net::SocketAddr::from(([127, 0, 0, 1], 1));
    let nowhere = PathBuf::from("nowhere");
    let mut config = Config::new(1, "n1", listen, &nowhere, &nowhere).expect("the defaults are good");
    config.heartbeat = Duration::from_millis(40);
    config.election_min = Duration::from_millis(100);
    config.election_max = Duration::from_millis(200);
    config.snapshot_every = chance.pick(&[10, 30, 200]);
    config.log_keep = chance.pick(&[0, 5, 50]);
    let mut raft = (*raftnode::raft_config(&config).expect("the defaults are good")).clone();
    raft.max_in_snapshot_log_to_keep = config.log_keep;
    if bug == Some(Bug::LeaderRestore) {
        raft.enable_leader_restore = Some(true);
    }
    Arc::new(raft)
}

/// Runs one seed.
pub fn run(options: &Options) -> Report {
    let mut chance = Random::new(options.seed);
    runtime::seed(chance.number());
    let record = Record::new(options.print);
    let outbox = Outbox::default();
    let config = settings(options.bug, &mut chance);
    let around =
        Arc::new(Around { config, outbox: outbox.clone(), bug: options.bug, record: record.clone() });
    let ids: Vec<HostId> = (1..=chance.pick(&[3, 3, 5])).collect();
    let nodes = ids.iter().map(|id| Node::new(*id, chance.fork(), around.clone())).collect();
    let clients = Builder::new_current_thread().enable_time().start_paused(true).build();
    let shared = Arc::new(Shared {
        nodes: ids.clone(),
        port: Port::new(CLIENTS, 1, outbox.clone()),
        record: record.clone(),
        stop: AtomicBool::new(false),
        busy: AtomicU64::new(0),
        next: AtomicU64::new(1),
    });
    let mut world = World {
        record: record.clone(),
        chance,
        outbox,
        nodes,
        away: BTreeMap::new(),
        clients: clients.expect("a runtime without I/O"),
        shared: shared.clone(),
        flights: BinaryHeap::new(),
        sent: 0,
        streams: BTreeMap::new(),
        cut: BTreeSet::new(),
        weather: Weather::CALM,
        now: 0,
    };
    world.begin(&ids);
    world.storm(options.millis);
    world.settle();
    let (hash, seen) = record.hash();
    let operations = shared.next.load(Ordering::Relaxed);
    Report { hash, seen, millis: world.now, operations, violation: record.violation() }
}

impl World {
    fn begin(&mut self, ids: &[HostId]) {
        for node in &mut self.nodes {
            node.speed = TRUE_SPEED - 30 + self.chance.between(0, 60);
            node.start();
        }
        self.nodes[0].initialize(ids);
        for number in 1..=self.chance.between(2, 5) {
            let client = Client::new(number, self.chance.fork(), self.shared.clone());
            self.clients.spawn(client.run());
        }
        self.weather = Weather::random(&mut self.chance);
    }

    /// Things go wrong.
    fn storm(&mut self, millis: Millis) {
        let mut next = self.chance.between(0, FAULT_EVERY);
        while self.now < millis && self.record.violation().is_none() {
            if self.now >= next {
                next = self.now + self.chance.between(1, FAULT_EVERY);
                let leader = self.nodes.iter().find(|node| node.leads()).map(|node| node.id);
                let fault = fault::random(&self.shared.nodes, leader, &mut self.chance);
                self.strike(fault);
            }
            self.step();
            if self.now.is_multiple_of(LOOK_CLOSELY) {
                self.look();
            }
        }
    }

    /// Everything is mended, and has to come to rest.
    fn settle(&mut self) {
        if self.record.violation().is_some() {
            return;
        }
        self.record.see(Seen::Fault("everything is mended".into()));
        self.cut.clear();
        self.weather = Weather::CALM;
        self.shared.stop.store(true, Ordering::Relaxed);
        for node in &mut self.nodes {
            node.sync_ms.store(2, Ordering::Relaxed);
        }
        for away in self.away.values_mut() {
            let (Away::Down(until) | Away::Stopped(until, ..)) = away;
            *until = self.now;
        }
        let deadline = self.now + SETTLE;
        loop {
            self.step();
            if self.record.violation().is_some() {
                return;
            }
            if self.now.is_multiple_of(LOOK) {
                match self.restless() {
                    None => break,
                    Some(why) if self.now >= deadline => return self.record.fail("convergence", why),
                    Some(_) => {}
                }
            }
        }
        self.look();
        self.record.end();
    }

    /// Why everything is not at rest yet.
    fn restless(&self) -> Option<String> {
        let busy = self.shared.busy.load(Ordering::Relaxed);
        if busy > 0 {
            return Some(format!("{busy} client(s) still wait for an answer"));
        }
        let Some(leader) = self.nodes.iter().find(|node| node.leads()) else {
            return Some("nobody leads".into());
        };
        let last = leader.last_index();
        for node in &self.nodes {
            if let Some(failure) = node.failure() {
                return Some(format!("node {} has failed: {failure}", node.id));
            }
            if node.applied_index() != last {
                return Some(format!("node {} has applied {:?} of {last:?}", node.id, node.applied_index()));
            }
        }
        let applied = leader.applied()?;
        let leases = view::leases(&applied.lock().tables).expect("maps do not fail");
        (!leases.is_empty()).then(|| format!("leases that nobody renews are still there: {leases:?}"))
    }

    /// Shows the states of all nodes to the invariants.
    fn look(&self) {
        for node in &self.nodes {
            let Some(applied) = node.applied() else { continue };
            let (tables, index) = {
                let applied = applied.lock();
                (applied.tables.clone(), applied.position.last_log_id.map_or(0, |last| last.index))
            };
            self.record.see(Seen::State { node: node.id, index, tables: Tables(Arc::new(tables)) });
        }
    }

    fn strike(&mut self, fault: Fault) {
        self.record.see(Seen::Fault(format!("{fault:?}")));
        match fault {
            Fault::Cut(pairs) => self.cut = pairs,
            Fault::Mend => self.cut.clear(),
            Fault::Crash(ids, millis) => {
                for id in ids {
                    self.node(id).crash();
                    let until = self.now + millis + self.chance.between(0, 50);
                    self.away.insert(id, Away::Down(until));
                }
            }
            Fault::Pause(id, millis) => {
                let until = self.now + millis;
                self.away.entry(id).or_insert(Away::Stopped(until, self.now, Vec::new()));
            }
            Fault::Transfer(to) => {
                if let Some(leader) = self.nodes.iter().find(|node| node.leads() && node.id != to)
                    && !self.away.contains_key(&leader.id)
                {
                    leader.transfer(to);
                }
            }
            Fault::Skew(id, millis) => self.node(id).skew.store(millis * 1_000_000, Ordering::Relaxed),
            Fault::Disk(id, millis) => self.node(id).sync_ms.store(millis, Ordering::Relaxed),
            Fault::Weather => self.weather = Weather::random(&mut self.chance),
        }
    }

    fn node(&mut self, id: HostId) -> &mut Node {
        &mut self.nodes[id as usize - 1]
    }

    /// One millisecond.
    fn step(&mut self) {
        self.now += 1;
        self.record.set_now(self.now);
        self.come_back();
        while self.flights.peek().is_some_and(|next| next.0.due <= self.now) {
            if let Some(Reverse(flight)) = self.flights.pop() {
                self.arrive(flight.envelope);
            }
        }
        for index in 0..self.nodes.len() {
            if self.away.contains_key(&self.nodes[index].id) {
                continue;
            }
            self.nodes[index].step();
            self.nodes[index].observe();
            self.post();
        }
        self.clients.block_on(async { tokio::time::sleep(Duration::from_millis(1)).await });
        self.post();
    }

    /// Nodes whose time has come.
    fn come_back(&mut self) {
        let now = self.now;
        let due = |away: &Away| matches!(away, Away::Down(until) | Away::Stopped(until, ..) if *until <= now);
        let ids: Vec<HostId> = self.away.iter().filter(|(_, away)| due(away)).map(|(id, _)| *id).collect();
        for id in ids {
            match self.away.remove(&id) {
                Some(Away::Down(_)) => {
                    self.record.see(Seen::Fault(format!("node {id} starts")));
                    self.node(id).start();
                    self.post();
                }
                Some(Away::Stopped(_, since, waiting)) => {
                    self.record.see(Seen::Fault(format!("node {id} goes on")));
                    self.node(id).wake(now - since);
                    for envelope in waiting {
                        self.arrive(envelope);
                    }
                }
                None => {}
            }
        }
    }

    fn arrive(&mut self, envelope: Envelope) {
        let (from, to, kind) = (envelope.from, envelope.to, envelope.kind());
        if let Some(Away::Stopped(_, _, waiting)) = self.away.get_mut(&to) {
            if waiting.len() < SOCKET {
                waiting.push(envelope);
            }
            return;
        }
        self.record.see(Seen::Delivered { from, to, kind });
        if to < CLIENTS {
            self.node(to).deliver(envelope);
        } else if let Body::Reply(reply) = envelope.body {
            self.shared.port.receive(envelope.call, reply);
        }
    }

    /// Decides what becomes of the messages that were sent.
    fn post(&mut self) {
        let sent = std::mem::take(&mut *self.outbox.lock());
        for envelope in sent {
            let is_cut = self.cut.contains(&(envelope.from, envelope.to));
            match envelope.stream {
                Some(stream) => self.flow(envelope, stream, is_cut),
                None if is_cut => {}
                None => {
                    if self.chance.chance(self.weather.twice) {
                        self.fly(envelope.clone());
                    }
                    self.fly(envelope);
                }
            }
        }
    }

    fn fly(&mut self, envelope: Envelope) {
        if let Some(travel) = self.weather.travel(&mut self.chance) {
            self.launch(self.now + travel, envelope);
        }
    }

    /// The same on a stream. A packet that is lost is mostly sent again, and all behind it wait.
    fn flow(&mut self, envelope: Envelope, stream: u64, is_cut: bool) {
        let travel = match self.weather.travel(&mut self.chance) {
            None if self.chance.chance(700) => Some(self.chance.between(20, fault::LATE)),
            travel => travel,
        };
        let key = (envelope.from, envelope.to, stream);
        let last = self.streams.get(&key).copied().unwrap_or(Some(0));
        let due = last.zip(travel).filter(|_| !is_cut).map(|(last, travel)| last.max(self.now + travel));
        self.streams.insert(key, due);
        if let Some(due) = due {
            self.launch(due, envelope);
        }
    }

    fn launch(&mut self, due: Millis, envelope: Envelope) {
        self.sent += 1;
        self.flights.push(Reverse(Flight { due, tie: self.sent, envelope }));
    }
}
