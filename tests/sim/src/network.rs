//! Messages between hosts. Who sends puts them into the [`Outbox`]; the [`world`](crate::world) decides
//! what becomes of each, and hands those that arrive to [`Port::receive`].

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use openraft::OptionalSend;
use openraft::base::{BoxFuture, BoxStream};
use openraft::errors::{Fatal, NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{Backoff, RPCOption, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendResult, TransferLeaderError,
    TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
};
use parking_lot::Mutex;
use quorumfs_api::wire::{Answer, Call, Failure};
use quorumfs_store::{MemberNode, SnapshotMeta, Vote};
use tokio::sync::oneshot;

use crate::types::{SimConfig, Snapshot};

/// Number of a host: nodes from 1, clients above [`CLIENTS`].
pub type HostId = u64;
/// Clients have higher numbers than this.
pub const CLIENTS: HostId = 100;

/// Append requests that are under way to one member.
const PIPELINE: usize = 8;
/// How long a leader waits for an append to be answered.
const APPEND_TIMEOUT: Duration = Duration::from_millis(1_000);
/// How long it waits for a snapshot to be installed.
const SNAPSHOT_TIMEOUT: Duration = Duration::from_millis(3_000);
/// Between two tries to reach a member.
const BACKOFF: Duration = Duration::from_millis(50);

/// What is asked.
#[derive(Clone)]
pub enum Request {
    /// Entries, or none.
    Append(AppendEntriesRequest<SimConfig>),
    /// A vote, or (`true`) whether one would be given.
    Vote(VoteRequest<SimConfig>, bool),
    /// A whole snapshot.
    Snapshot(Vote, SnapshotMeta, Bytes),
    /// Leadership is handed over.
    Transfer(TransferLeaderRequest<SimConfig>),
    /// What a client wants, and who it is.
    Client(Arc<str>, Call),
}

/// What is answered.
#[derive(Clone)]
pub enum Reply {
    /// To `Append`.
    Append(AppendEntriesResponse<SimConfig>),
    /// To `Vote`.
    Vote(VoteResponse<SimConfig>),
    /// To `Snapshot`.
    Snapshot(SnapshotResponse<SimConfig>),
    /// To `Transfer`.
    Transfer(Result<(), TransferLeaderError<SimConfig>>),
    /// To `Client`.
    Client(Result<Answer, Failure>),
    /// The node has failed.
    Broken(Fatal<SimConfig>),
}

/// One message.
#[derive(Clone)]
pub enum Body {
    /// A request.
    Request(Request),
    /// A reply.
    Reply(Reply),
}

/// One message on its way.
#[derive(Clone)]
pub struct Envelope {
    /// Sender.
    pub from: HostId,
    /// Receiver.
    pub to: HostId,
    /// Number of the call, unique for the sender of the request.
    pub call: u64,
    /// Number of the stream that it belongs to, where others follow: on one stream nothing overtakes
    /// anything, nothing is there twice, and what comes after something that is lost is lost, too.
    pub stream: Option<u64>,
    /// The message.
    pub body: Body,
}

impl Envelope {
    /// What it is.
    pub fn kind(&self) -> &'static str {
        match &self.body {
            Body::Request(Request::Append(rpc)) if rpc.entries.is_empty() => "heartbeat",
            Body::Request(Request::Append(_)) => "append",
            Body::Request(Request::Vote(_, false)) => "vote",
            Body::Request(Request::Vote(_, true)) => "pre-vote",
            Body::Request(Request::Snapshot(..)) => "snapshot",
            Body::Request(Request::Transfer(_)) => "transfer",
            Body::Request(Request::Client(..)) => "client",
            Body::Reply(_) => "reply",
        }
    }
}

/// What was sent and is not looked at yet.
pub type Outbox = Arc<Mutex<Vec<Envelope>>>;

/// A host's end of the network.
#[derive(Clone)]
pub struct Port {
    host: HostId,
    outbox: Outbox,
    calls: Arc<Mutex<Calls>>,
}

struct Calls {
    next: u64,
    waiting: BTreeMap<u64, oneshot::Sender<Reply>>,
}

impl Port {
    /// One of `host`, which starts for the `life`th time: replies to a former life mean nothing to it.
    pub fn new(host: HostId, life: u64, outbox: Outbox) -> Port {
        let calls = Calls { next: life << 32, waiting: BTreeMap::new() };
        Port { host, outbox, calls: Arc::new(Mutex::new(calls)) }
    }

    /// A stream on which several messages follow each other.
    pub fn open(&self) -> u64 {
        let mut calls = self.calls.lock();
        calls.next += 1;
        calls.next
    }

    /// Asks, and waits for the answer.
    pub async fn call(
        &self,
        to: HostId,
        stream: Option<u64>,
        request: Request,
        timeout: Duration,
    ) -> Option<Reply> {
        let (done, wait) = oneshot::channel();
        let call = {
            let mut calls = self.calls.lock();
            calls.next += 1;
            let call = calls.next;
            calls.waiting.insert(call, done);
            call
        };
        self.outbox.lock().push(Envelope { from: self.host, to, call, stream, body: Body::Request(request) });
        let reply = tokio::time::timeout(timeout, wait).await;
        self.calls.lock().waiting.remove(&call);
        reply.ok()?.ok()
    }

    /// Answers.
    pub fn reply(&self, to: HostId, call: u64, stream: Option<u64>, reply: Reply) {
        self.outbox.lock().push(Envelope { from: self.host, to, call, stream, body: Body::Reply(reply) });
    }

    /// A reply has come. Nobody may be waiting for it any more.
    pub fn receive(&self, call: u64, reply: Reply) {
        if let Some(waiting) = self.calls.lock().waiting.remove(&call) {
            let _ = waiting.send(reply);
        }
    }
}

/// Makes a [`Link`] for each member.
pub struct Links(pub Port);

impl RaftNetworkFactory<SimConfig> for Links {
    type Network = Link;

    async fn new_client(&mut self, target: u64, _node: &MemberNode) -> Link {
        Link { port: self.0.clone(), to: target }
    }
}

/// The way to one member.
pub struct Link {
    port: Port,
    to: HostId,
}

type Item = Result<StreamAppendResult<SimConfig>, RPCError<SimConfig>>;

fn silent(to: HostId) -> Unreachable<SimConfig> {
    Unreachable::from_string(format!("no answer from {to}"))
}

fn broken(fatal: &Fatal<SimConfig>) -> NetworkError<SimConfig> {
    NetworkError::from_string(fatal)
}

fn wrong() -> NetworkError<SimConfig> {
    NetworkError::from_string("an answer of another kind")
}

async fn append(port: Port, to: HostId, stream: u64, rpc: AppendEntriesRequest<SimConfig>) -> Item {
    let prev = rpc.prev_log_id;
    let last = rpc.entries.last().map(|entry| entry.log_id).or(prev);
    match port.call(to, Some(stream), Request::Append(rpc), APPEND_TIMEOUT).await {
        Some(Reply::Append(reply)) => Ok(reply.into_stream_result(prev, last)),
        Some(Reply::Broken(fatal)) => Err(broken(&fatal).into()),
        Some(_) => Err(wrong().into()),
        None => Err(silent(to).into()),
    }
}

impl Link {
    async fn ask_vote(
        &self,
        rpc: VoteRequest<SimConfig>,
        pre: bool,
        option: RPCOption,
    ) -> Result<VoteResponse<SimConfig>, RPCError<SimConfig>> {
        match self.port.call(self.to, None, Request::Vote(rpc, pre), option.soft_ttl()).await {
            Some(Reply::Vote(reply)) => Ok(reply),
            Some(Reply::Broken(fatal)) => Err(broken(&fatal).into()),
            Some(_) => Err(wrong().into()),
            None => Err(silent(self.to).into()),
        }
    }
}

impl RaftNetworkV2<SimConfig> for Link {
    type SnapshotData = Bytes;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<SimConfig>,
        _option: RPCOption,
    ) -> Result<AppendEntriesResponse<SimConfig>, RPCError<SimConfig>> {
        match self.port.call(self.to, None, Request::Append(rpc), APPEND_TIMEOUT).await {
            Some(Reply::Append(reply)) => Ok(reply),
            Some(Reply::Broken(fatal)) => Err(broken(&fatal).into()),
            Some(_) => Err(wrong().into()),
            None => Err(silent(self.to).into()),
        }
    }

    // As a real node does it: several are under way, the answers come in order, and the first one that is
    // not good is the last.
    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        _option: RPCOption,
    ) -> BoxFuture<'s, Result<BoxStream<'s, Item>, RPCError<SimConfig>>>
    where
        S: Stream<Item = AppendEntriesRequest<SimConfig>> + OptionalSend + Unpin + 'static,
    {
        let (port, to, stream) = (self.port.clone(), self.to, self.port.open());
        let replies = input.map(move |rpc| append(port.clone(), to, stream, rpc)).buffered(PIPELINE);
        let until_bad = replies.scan(false, |ended, reply| {
            let before = std::mem::replace(ended, !matches!(reply, Ok(Ok(_))));
            futures::future::ready((!before).then_some(reply))
        });
        let stream: BoxStream<'s, Item> = until_bad.boxed();
        Box::pin(futures::future::ready(Ok(stream)))
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<SimConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<SimConfig>, RPCError<SimConfig>> {
        self.ask_vote(rpc, false, option).await
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<SimConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<SimConfig>, RPCError<SimConfig>> {
        self.ask_vote(rpc, true, option).await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<SimConfig>, StreamingError<SimConfig>> {
        let request = Request::Snapshot(vote, snapshot.meta, snapshot.snapshot);
        let reply = tokio::select! {
            biased;
            closed = cancel => return Err(closed.into()),
            reply = self.port.call(self.to, None, request, SNAPSHOT_TIMEOUT) => reply,
        };
        match reply {
            Some(Reply::Snapshot(reply)) => Ok(reply),
            Some(Reply::Broken(fatal)) => Err(broken(&fatal).into()),
            Some(_) => Err(wrong().into()),
            None => Err(silent(self.to).into()),
        }
    }

    async fn transfer_leader(
        &mut self,
        req: TransferLeaderRequest<SimConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<SimConfig>, RPCError<SimConfig>> {
        match self.port.call(self.to, None, Request::Transfer(req), option.soft_ttl()).await {
            Some(Reply::Transfer(reply)) => Ok(reply),
            Some(Reply::Broken(fatal)) => Err(broken(&fatal).into()),
            Some(_) => Err(wrong().into()),
            None => Err(silent(self.to).into()),
        }
    }

    fn backoff(&self) -> Option<Backoff> {
        Some(Backoff::new(std::iter::repeat(BACKOFF)))
    }
}
