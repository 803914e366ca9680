//! Clients: each opens a session, does one operation after the other, and repeats each with the same
//! number until it has an answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use quorumfs_api::command::{At, Command, CreateMode, LeaseChange, Owner, RenameMode, RequestId};
use quorumfs_api::key::Key;
use quorumfs_api::outcome::{Done, Outcome, Refusal};
use quorumfs_api::record::LeaseId;
use quorumfs_api::wire::{Answer, Call, Consistency, Failure};

use crate::network::{HostId, Port, Reply, Request};
use crate::random::Random;
use crate::record::{Record, Seen, Told, What, fingerprint};

/// How long a client waits for one node.
const TRY: Duration = Duration::from_millis(400);
/// Longest pause before another try, in milliseconds.
const PAUSE_MS: u64 = 40;
/// Longest pause between two operations, in milliseconds.
const THINK_MS: u64 = 30;
/// Time to live of a session, in milliseconds.
const TTL_MS: u64 = 1_500;
/// Registers, logs and names of directories that all clients use.
const FILES: u64 = 3;

/// What all clients share.
pub struct Shared {
    /// The nodes.
    pub nodes: Vec<HostId>,
    /// Their end of the network.
    pub port: Port,
    /// Where all is written down.
    pub record: Record,
    /// Raised when no new operation is to begin.
    pub stop: AtomicBool,
    /// Clients that are not done.
    pub busy: AtomicU64,
    /// Numbers of operations.
    pub next: AtomicU64,
}

/// A client.
pub struct Client {
    name: Arc<str>,
    chance: Random,
    shared: Arc<Shared>,
    /// Who led when it was heard of last.
    leader: Option<HostId>,
    session: Option<LeaseId>,
    /// Number of the next request in the session.
    number: u64,
}

fn key(text: &str) -> Key {
    Key::parse(text.as_bytes().to_vec()).expect("the simulation's own keys are good")
}

fn put(file: &str, value: String, lease: LeaseChange) -> Command {
    Command::Put {
        target: key(file).into(),
        value: value.into(),
        create: CreateMode::Allow,
        parents: true,
        owner: Owner::FILE,
        lease,
    }
}

impl Client {
    /// Client `number`.
    pub fn new(number: u64, chance: Random, shared: Arc<Shared>) -> Client {
        shared.busy.fetch_add(1, Ordering::Relaxed);
        let name = format!("client{number}").into();
        Client { name, chance, shared, leader: None, session: None, number: 0 }
    }

    /// Works until it is told to stop.
    pub async fn run(mut self) {
        while !self.shared.stop.load(Ordering::Relaxed) {
            let Some(session) = self.session else {
                self.open().await;
                continue;
            };
            self.operate(session).await;
            let think = self.chance.between(0, THINK_MS);
            tokio::time::sleep(Duration::from_millis(think)).await;
        }
        // Some end their session, the others leave it to its time.
        if let Some(lease) = self.session.filter(|_| self.chance.chance(500)) {
            self.write(What::Tree("close".into()), Command::LeaseRevoke { lease }).await;
        }
        self.shared.busy.fetch_sub(1, Ordering::Relaxed);
    }

    async fn open(&mut self) {
        let op = self.begin(What::Open);
        let asked = self.shared.record.now();
        let command = Command::LeaseGrant { ttl_ms: TTL_MS };
        let answer = self.ask(Call::Write { session: None, command }).await;
        if let Ok(Answer::Written(Outcome { revision, result: Ok(Done::Lease { id, ttl_ms }) })) = answer {
            self.session = Some(id);
            self.number = 1;
            self.end(op, Some(Told::Done { revision, refused: None }));
            self.shared.record.see(Seen::Renewed { lease: id.0, asked, ttl: ttl_ms });
        } else {
            self.end(op, None);
        }
    }

    async fn operate(&mut self, session: LeaseId) {
        let file = self.chance.between(1, FILES);
        match self.chance.between(0, 99) {
            0..30 => {
                let (token, file) = (self.token(), format!("/log/{file}"));
                let command = Command::Append {
                    target: key(&file).into(),
                    data: Bytes::from(format!("{token};")),
                    create: CreateMode::Allow,
                    parents: true,
                    owner: Owner::FILE,
                };
                self.write(What::Append { file, token }, command).await;
            }
            30..50 => {
                let (token, file) = (self.token(), format!("/reg/{file}"));
                let command = put(&file, token.to_string(), LeaseChange::Keep);
                self.write(What::Put { file, token }, command).await;
            }
            50..75 => {
                let dir = self.chance.pick(&["reg", "log"]);
                self.read(format!("/{dir}/{file}")).await;
            }
            75..80 => {
                let file = format!("/alive/{}", self.name);
                let command = put(&file, session.0.to_string(), LeaseChange::Bind(session));
                self.write(What::Tree(file), command).await;
            }
            80..92 => {
                let command = self.tree();
                self.write(What::Tree(format!("{command:?}")), command).await;
            }
            _ => self.keep_alive(session).await,
        }
    }

    /// A change somewhere in a small tree.
    fn tree(&mut self) -> Command {
        let mut place = || {
            let depth = self.chance.between(1, 3);
            let names: Vec<String> =
                (0..depth).map(|_| format!("d{}", self.chance.between(1, FILES))).collect();
            key(&format!("/tree/{}", names.join("/")))
        };
        let (one, two) = (place(), place());
        match self.chance.between(0, 4) {
            0 => Command::Mkdir { at: At::Key(one), parents: true, owner: Owner::DIR },
            1 => Command::Put {
                target: one.into(),
                value: Bytes::from_static(b"leaf"),
                create: CreateMode::Allow,
                parents: true,
                owner: Owner::FILE,
                lease: LeaseChange::Keep,
            },
            2 => Command::Delete { at: At::Key(one), recursive: true },
            3 => Command::Rename { from: At::Key(one), to: At::Key(two), mode: RenameMode::Replace },
            _ => Command::Rename { from: At::Key(one), to: At::Key(two), mode: RenameMode::Exchange },
        }
    }

    fn token(&self) -> u64 {
        self.shared.next.fetch_add(1, Ordering::Relaxed)
    }

    fn begin(&self, what: What) -> u64 {
        let op = self.token();
        self.shared.record.see(Seen::Called { op, what });
        op
    }

    fn end(&self, op: u64, told: Option<Told>) {
        self.shared.record.see(Seen::Returned { op, told });
    }

    async fn write(&mut self, what: What, command: Command) {
        let Some(session) = self.session else { return };
        let op = self.begin(what);
        let number = self.number;
        self.number += 1;
        let request = RequestId { session, number, done_below: number };
        loop {
            let command = command.clone();
            match self.ask(Call::Write { session: Some(request), command }).await {
                Ok(Answer::Written(Outcome { result: Err(Refusal::NoSession(_)), .. })) => {
                    self.session = None;
                    return self.end(op, None);
                }
                Ok(Answer::Written(Outcome { revision, result })) => {
                    let refused = result.err().map(|refusal| refusal.to_string());
                    return self.end(op, Some(Told::Done { revision, refused }));
                }
                _ => self.pause().await,
            }
        }
    }

    async fn read(&mut self, file: String) {
        let op = self.begin(What::Read { file: file.clone() });
        loop {
            // Whoever leads by what somebody believes has to know better.
            if self.chance.chance(400) {
                self.leader = None;
            }
            let call = Call::Get { key: key(&file), consistency: Consistency::Linearizable };
            if let Ok(Answer::Got { revision, record }) = self.ask(call).await {
                let modified = record.as_ref().map_or(0, |record| record.mod_revision);
                let value = fingerprint(&record.map(|record| record.value));
                return self.end(op, Some(Told::Value { revision, modified, value }));
            }
            self.pause().await;
        }
    }

    async fn keep_alive(&mut self, lease: LeaseId) {
        let asked = self.shared.record.now();
        match self.ask(Call::KeepAlive(lease)).await {
            Ok(Answer::KeptAlive(ttl)) => {
                self.shared.record.see(Seen::Renewed { lease: lease.0, asked, ttl });
            }
            Err(Failure::NoLease(_)) => self.session = None,
            _ => {}
        }
    }

    async fn pause(&mut self) {
        tokio::time::sleep(Duration::from_millis(self.chance.between(1, PAUSE_MS))).await;
    }

    /// Asks one node: the leader, if one is known.
    async fn ask(&mut self, call: Call) -> Result<Answer, Failure> {
        let node = self.leader.take().unwrap_or_else(|| self.chance.pick(&self.shared.nodes));
        let request = Request::Client(self.name.clone(), call);
        match self.shared.port.call(node, None, request, TRY).await {
            Some(Reply::Client(Err(Failure::NotLeader(leader)))) => {
                self.leader = leader.as_ref().map(|member| member.id);
                Err(Failure::NotLeader(leader))
            }
            Some(Reply::Client(answer)) => {
                self.leader = Some(node);
                answer
            }
            _ => Err(Failure::NoQuorum),
        }
    }
}
