//! What a node does with a request of a peer or a client: as raftnode does it, with the same leases,
//! but without streams.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::{ClientWriteError, LinearizableReadError, RaftError};
use openraft::raft::{AppendEntriesResponse, ReadPolicy};
use quorumfs_api::Timestamp;
use quorumfs_api::command::{Command, Proposal, RequestId};
use quorumfs_api::outcome::{Done, Outcome};
use quorumfs_api::record::LeaseId;
use quorumfs_api::wire::{Answer, Call, Failure, LeaseInfo, Member};
use quorumfs_machine::{StorageError, view};
use quorumfs_store::Logged;
use raftnode::lease::{AUTHOR, Host, Leases, Renewal, Stopped};
use tokio::time::Instant;

use crate::bug::Bug;
use crate::machine::Shared;
use crate::network::{Reply, Request};
use crate::record::{Mandate, Record, Seen};
use crate::types::{Raft, Snapshot};

/// How long a node works on a request.
const PATIENCE: Duration = Duration::from_millis(800);
/// Limits in the proposals, in bytes.
const VALUE_MAX: u64 = 1 << 20;
/// See [`VALUE_MAX`].
const STORE_MAX: u64 = 64 << 20;

/// One node's answers.
#[derive(Clone)]
pub struct Service {
    /// Which node.
    pub node: u64,
    /// What is done wrong.
    pub bug: Option<Bug>,
    /// Its Raft.
    pub raft: Raft,
    /// What it has applied.
    pub applied: Shared,
    /// Its leases.
    pub leases: Leases,
    /// The last time that it gave out, in nanoseconds.
    pub time: Arc<AtomicI64>,
    /// How far its wall clock is off, in nanoseconds.
    pub skew: Arc<AtomicI64>,
    /// Where its clock began, in nanoseconds, and when that was.
    pub epoch: (i64, Instant),
    /// Where all is written down.
    pub record: Record,
}

impl Service {
    /// Answers a request.
    pub async fn answer(&self, request: Request) -> Reply {
        match request {
            Request::Append(rpc) => {
                let mandate = Mandate::of(&rpc.vote);
                match self.raft.append_entries(rpc).await {
                    Ok(reply) => {
                        if let AppendEntriesResponse::Success | AppendEntriesResponse::PartialSuccess(_) =
                            reply
                        {
                            self.record.see(Seen::Promised { node: self.node, to: mandate });
                        }
                        Reply::Append(reply)
                    }
                    Err(error) => Reply::Broken(error.unwrap_fatal()),
                }
            }
            Request::Vote(rpc, pre) => {
                let mandate = Mandate::of(&rpc.vote);
                let asked = if pre { self.raft.pre_vote(rpc).await } else { self.raft.vote(rpc).await };
                match asked {
                    Ok(reply) => {
                        if reply.vote_granted && !pre {
                            self.record.see(Seen::Promised { node: self.node, to: mandate });
                        }
                        Reply::Vote(reply)
                    }
                    Err(error) => Reply::Broken(error.unwrap_fatal()),
                }
            }
            Request::Snapshot(vote, meta, snapshot) => {
                match self.raft.install_full_snapshot(vote, Snapshot { meta, snapshot }).await {
                    Ok(reply) => Reply::Snapshot(reply),
                    Err(fatal) => Reply::Broken(fatal),
                }
            }
            Request::Transfer(rpc) => match self.raft.handle_transfer_leader(rpc).await {
                Ok(reply) => Reply::Transfer(reply),
                Err(fatal) => Reply::Broken(fatal),
            },
            Request::Client(author, call) => Reply::Client(self.call(&author, call).await),
        }
    }

    async fn call(&self, author: &str, call: Call) -> Result<Answer, Failure> {
        match call {
            Call::Write { session, command } => self.write(author, session, command).await,
            Call::Get { key, .. } => {
                self.linear(Instant::now() + PATIENCE).await?;
                let applied = self.applied.lock();
                let revision = view::meta(&applied.tables).map_err(failed)?.revision;
                let record = view::get(&applied.tables, &key).map_err(failed)?;
                Ok(Answer::Got { revision, record })
            }
            Call::KeepAlive(lease) => self.keep_alive(lease).await,
            _ => Err(Failure::BadRequest("the simulation does not ask this".into())),
        }
    }

    async fn write(
        &self,
        author: &str,
        session: Option<RequestId>,
        command: Command,
    ) -> Result<Answer, Failure> {
        let revokes = match &command {
            Command::LeaseRevoke { lease } => Some(*lease),
            _ => None,
        };
        let outcome = self.propose(author, session, command).await?;
        if let Some(id) = session {
            self.leases.renew(id.session);
        }
        match (&outcome.result, revokes) {
            (Ok(Done::Lease { id, ttl_ms }), _) => self.granted(*id, *ttl_ms),
            (Ok(_), Some(lease)) => self.leases.ended(lease),
            _ => {}
        }
        Ok(Answer::Written(outcome))
    }

    fn granted(&self, id: LeaseId, ttl_ms: u64) {
        let early = self.bug == Some(Bug::LeaseEarly);
        self.leases.granted(id, if early { ttl_ms / 2 } else { ttl_ms });
    }

    async fn propose(
        &self,
        author: &str,
        session: Option<RequestId>,
        command: Command,
    ) -> Result<Outcome, Failure> {
        let session = session.filter(|_| self.bug != Some(Bug::RetryTwice));
        let proposal = Proposal {
            time: self.wall(),
            author: author.to_owned(),
            node: true,
            session,
            value_max: VALUE_MAX,
            store_max: STORE_MAX,
            command,
        };
        let logged = Logged::new(proposal).map_err(|error| Failure::BadRequest(error.to_string()))?;
        match self.raft.client_write(logged).await {
            Ok(written) => Ok(written.data),
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(forward))) => {
                Err(not_leader(forward.leader_id.filter(|id| *id != self.node)))
            }
            Err(RaftError::Fatal(fatal)) => Err(Failure::Unavailable(fatal.to_string())),
            Err(_) => Err(Failure::NoQuorum),
        }
    }

    /// A wall clock that never goes back, as a node has it.
    fn wall(&self) -> Timestamp {
        let (epoch, began) = self.epoch;
        let wall = epoch + began.elapsed().as_nanos() as i64 + self.skew.load(Ordering::Relaxed);
        let last = self.time.fetch_max(wall, Ordering::Relaxed);
        if wall > last { Timestamp(wall) } else { Timestamp(self.time.fetch_add(1, Ordering::Relaxed) + 1) }
    }

    /// Waits until all that was committed before this call is applied here.
    async fn linear(&self, until: Instant) -> Result<(), Failure> {
        if self.bug == Some(Bug::StaleRead) && self.raft.is_leader() {
            return Ok(());
        }
        match self.raft.get_read_linearizer(ReadPolicy::ReadIndex).await {
            Ok(linearizer) => {
                let left = until.saturating_duration_since(Instant::now());
                match linearizer.try_await_ready(&self.raft, Some(left)).await {
                    Ok(Ok(_)) => Ok(()),
                    Ok(Err(_)) => Err(Failure::NoQuorum),
                    Err(fatal) => Err(Failure::Unavailable(fatal.to_string())),
                }
            }
            Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(forward))) => {
                Err(not_leader(forward.leader_id.filter(|id| *id != self.node)))
            }
            Err(RaftError::APIError(LinearizableReadError::QuorumNotEnough(_))) => Err(Failure::NoQuorum),
            Err(RaftError::Fatal(fatal)) => Err(Failure::Unavailable(fatal.to_string())),
        }
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<Answer, Failure> {
        self.linear(Instant::now() + PATIENCE).await?;
        match self.leases.renew(lease) {
            Renewal::Renewed(ttl) => Ok(Answer::KeptAlive(ttl.as_millis() as u64)),
            Renewal::Ending => Err(Failure::NoLease(lease)),
            Renewal::Unknown => {
                let found = view::lease(&self.applied.lock().tables, lease).map_err(failed)?;
                let info = found.ok_or(Failure::NoLease(lease))?;
                self.granted(lease, info.ttl_ms);
                Ok(Answer::KeptAlive(info.ttl_ms))
            }
        }
    }
}

fn failed(error: StorageError) -> Failure {
    Failure::Unavailable(error.to_string())
}

fn not_leader(leader: Option<u64>) -> Failure {
    Failure::NotLeader(leader.map(|id| Member { id, ..Member::default() }))
}

impl Host for Service {
    async fn until_leading(&self, leads: bool) -> Result<(), Stopped> {
        let mut metrics = self.raft.server_metrics();
        metrics.wait_until(|now| now.state.is_leader() == leads).await.map(drop).map_err(|_| Stopped)
    }

    async fn take_over(&self, until: Instant) -> Result<(), Failure> {
        self.linear(until).await?;
        let applied = self.applied.lock();
        let revision = view::meta(&applied.tables).map_err(failed)?.revision;
        if let Ok(events) = view::events(&applied.tables, revision.saturating_sub(1), 1, usize::MAX)
            && let Some(event) = events.ok().as_deref().and_then(<[_]>::last)
        {
            self.time.fetch_max(event.time.0, Ordering::Relaxed);
        }
        Ok(())
    }

    fn leases(&self) -> Result<Vec<LeaseInfo>, StorageError> {
        view::leases(&self.applied.lock().tables)
    }

    async fn expire(&self, leases: Vec<LeaseId>) -> Result<(), Failure> {
        self.propose(AUTHOR, None, Command::LeaseExpire { leases }).await.map(drop)
    }
}
