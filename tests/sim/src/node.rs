//! A node: its disk, which survives, and while it runs, a runtime with a clock of its own.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver;
use openraft::storage::{RaftLogReader, RaftLogStorage};
use openraft::type_config::alias::WatchReceiverOf;
use quorumfs_store::{LogReader, LogStore, MemberNode};
use raftnode::lease::Leases;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::bug::Bug;
use crate::disk::Disk;
use crate::machine::{Machine, Shared};
use crate::network::{Body, Envelope, HostId, Links, Outbox, Port};
use crate::random::Random;
use crate::record::{Mandate, Place, Record, Seen};
use crate::service::Service;
use crate::types::{Raft, SimConfig};

/// Bytes of the log that stay in memory. Little, so that the disk is read, too.
const LOG_MEMORY: usize = 4 << 10;
/// Where the clocks of all nodes begin, in nanoseconds since 1970.
const EPOCH: i64 = 1_700_000_000_000_000_000;
/// A clock's speed is counted in these parts of the true one.
pub const TRUE_SPEED: u64 = 1_000;

/// What makes one node's surroundings.
pub struct Around {
    /// Settings of openraft.
    pub config: Arc<openraft::Config>,
    /// Where messages go.
    pub outbox: Outbox,
    /// What is done wrong.
    pub bug: Option<Bug>,
    /// Where all is written down.
    pub record: Record,
}

struct Running {
    runtime: Runtime,
    raft: Raft,
    port: Port,
    inbox: mpsc::UnboundedSender<Envelope>,
    applied: Shared,
    reader: LogReader<SimConfig>,
    server: WatchReceiverOf<SimConfig, openraft::metrics::RaftServerMetrics<SimConfig>>,
    /// Its mandate, when it was looked at last and led.
    led: Option<Mandate>,
}

/// See the module.
pub struct Node {
    /// Its number.
    pub id: HostId,
    /// What survives.
    pub disk: Arc<Disk>,
    /// Speed of its clock, in parts of [`TRUE_SPEED`].
    pub speed: u64,
    /// How far its wall clock is off, in nanoseconds.
    pub skew: Arc<AtomicI64>,
    /// Longest time that a sync of its disk takes, in milliseconds.
    pub sync_ms: Arc<AtomicU64>,
    life: u64,
    /// Its own time since the beginning, in parts of a millisecond as `speed` counts them.
    clock: u64,
    chance: Random,
    around: Arc<Around>,
    running: Option<Running>,
}

impl Node {
    /// One that does not run yet.
    pub fn new(id: HostId, chance: Random, around: Arc<Around>) -> Node {
        Node {
            id,
            disk: Arc::new(Disk::new(id, around.bug, around.record.clone())),
            speed: TRUE_SPEED,
            skew: Arc::default(),
            sync_ms: Arc::new(AtomicU64::new(2)),
            life: 0,
            clock: 0,
            chance,
            around,
            running: None,
        }
    }

    /// Whether it runs.
    pub fn is_up(&self) -> bool {
        self.running.is_some()
    }

    /// Starts it.
    pub fn start(&mut self) {
        self.life += 1;
        let around = self.around.clone();
        let (record, bug) = (around.record.clone(), around.bug);
        record.see(Seen::Opened { node: self.id, log: self.disk.log() });
        let runtime = Builder::new_current_thread().enable_time().start_paused(true).build();
        let runtime = runtime.expect("a runtime without I/O");
        let port = Port::new(self.id, self.life, around.outbox.clone());
        let (inbox, received) = mpsc::unbounded_channel();
        let machine = Machine::open(self.id, bug, self.disk.clone(), self.chance.fork(), record.clone());
        let applied = machine.applied();
        let sync_ms = self.sync_ms.clone();
        let mut chance = self.chance.fork();
        let delay = move || Duration::from_millis(chance.between(0, sync_ms.load(Ordering::Relaxed)));
        let (disk, links, config, id) =
            (self.disk.clone(), Links(port.clone()), around.config.clone(), self.id);
        let epoch = EPOCH + (self.clock / TRUE_SPEED) as i64 * 1_000_000;
        let skew = self.skew.clone();
        let (raft, reader) = runtime.block_on({
            let (port, applied) = (port.clone(), applied.clone());
            async move {
                let mut log = LogStore::<SimConfig>::simulated(disk, LOG_MEMORY, delay).expect("our own log");
                let reader = log.get_log_reader().await;
                let raft = Raft::new(id, config, links, log, machine).await.expect("the node starts");
                let service = Service {
                    node: id,
                    bug,
                    raft: raft.clone(),
                    applied,
                    leases: Leases::default(),
                    time: Arc::default(),
                    skew,
                    epoch: (epoch, Instant::now()),
                    record,
                };
                tokio::spawn({
                    let (leases, host) = (service.leases.clone(), Arc::new(service.clone()));
                    async move { leases.run(host).await }
                });
                tokio::spawn(serve(service, port, received));
                (raft, reader)
            }
        });
        let server = raft.server_metrics();
        self.running = Some(Running { runtime, raft, port, inbox, applied, reader, server, led: None });
    }

    /// Makes it the first of a cluster of these.
    pub fn initialize(&self, members: &[HostId]) {
        let Some(running) = &self.running else { return };
        let member = |id: &HostId| (*id, MemberNode { name: format!("n{id}"), addr: format!("n{id}:1") });
        let members: BTreeMap<u64, MemberNode> = members.iter().map(member).collect();
        running.runtime.block_on(running.raft.initialize(members)).expect("a new cluster");
    }

    /// Kills it: what is not on its disk is lost.
    pub fn crash(&mut self) {
        self.running = None;
        self.disk.crash();
    }

    /// A message arrives.
    pub fn deliver(&self, envelope: Envelope) {
        let Some(running) = &self.running else { return };
        match envelope.body {
            Body::Reply(reply) => running.port.receive(envelope.call, reply),
            Body::Request(_) => drop(running.inbox.send(envelope)),
        }
    }

    /// Lets it run for a millisecond of true time.
    pub fn step(&mut self) {
        let before = self.clock / TRUE_SPEED;
        self.clock += self.speed;
        let millis = self.clock / TRUE_SPEED - before;
        let Some(running) = &self.running else { return };
        if millis > 0 {
            running.runtime.block_on(async { tokio::time::sleep(Duration::from_millis(millis)).await });
        }
    }

    /// It was stopped for so long: its clock went on, and nothing else did.
    pub fn wake(&mut self, millis: u64) {
        self.clock += millis * self.speed;
        if let Some(running) = &self.running {
            running.runtime.block_on(async { tokio::time::advance(Duration::from_millis(millis)).await });
        }
    }

    /// Looks whether it leads, and tells of it when that is new.
    pub fn observe(&mut self) {
        let Some(running) = &mut self.running else { return };
        let led = {
            let server = running.server.borrow_watched();
            server.state.is_leader().then(|| Mandate::of(&server.vote))
        };
        if led == running.led {
            return;
        }
        running.led = led;
        if let Some(mandate) = led {
            let reader = &mut running.reader;
            let log = running.runtime.block_on(reader.try_get_log_entries(0..u64::MAX)).expect("our own log");
            self.around.record.see(Seen::Leads {
                node: self.id,
                life: self.life,
                mandate,
                purged: self
                    .disk
                    .log()
                    .first()
                    .copied()
                    .filter(|first| log.first().is_none_or(|entry| entry.log_id.index > first.index)),
                log: log.iter().map(|entry| Place::of(entry.log_id)).collect(),
            });
        }
    }

    /// Whether it leads, as it was observed last.
    pub fn leads(&self) -> bool {
        self.running.as_ref().is_some_and(|running| running.led.is_some())
    }

    /// It shall hand leadership over.
    pub fn transfer(&self, to: HostId) {
        let Some(running) = &self.running else { return };
        let raft = running.raft.clone();
        running.runtime.spawn(async move { raft.trigger().transfer_leader(to).await });
    }

    /// What is applied, if it runs.
    pub fn applied(&self) -> Option<Shared> {
        self.running.as_ref().map(|running| running.applied.clone())
    }

    /// Index of the last applied entry, if it runs.
    pub fn applied_index(&self) -> Option<u64> {
        let applied = self.applied()?;
        let last = applied.lock().position.last_log_id;
        last.map(|last| last.index)
    }

    /// Index of the last entry of its log, if it runs.
    pub fn last_index(&self) -> Option<u64> {
        let metrics = self.running.as_ref()?.raft.metrics();
        metrics.borrow_watched().last_log_index
    }

    /// Why it has failed, if it runs and has.
    pub fn failure(&self) -> Option<String> {
        let metrics = self.running.as_ref()?.raft.metrics();
        metrics.borrow_watched().running_state.as_ref().err().map(ToString::to_string)
    }
}

/// Answers requests as they come, each for itself.
async fn serve(service: Service, port: Port, mut inbox: mpsc::UnboundedReceiver<Envelope>) {
    while let Some(Envelope { from, call, stream, body, .. }) = inbox.recv().await {
        let Body::Request(request) = body else { continue };
        let (service, port) = (service.clone(), port.clone());
        tokio::spawn(async move {
            let reply = service.answer(request).await;
            port.reply(from, call, stream, reply);
        });
    }
}
