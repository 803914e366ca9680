//! openraft's network over QUIC: one connection to each member, a long-lived stream for log entries,
//! a stream for each vote and each snapshot.

mod append;
pub mod message;
pub mod peers;
pub mod serve;
mod snapshot;

use std::future::Future;
use std::time::Duration;

use futures::Stream;
use openraft::OptionalSend;
use openraft::base::{BoxFuture, BoxStream};
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{Backoff, RPCOption, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendError, StreamAppendResult,
    TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
};
use quorumfs_store::{MemberNode, NodeId, Snapshot, SnapshotFile, TypeConfig, Vote};
use serde::{Serialize, de::DeserializeOwned};
use tokio::io::BufReader;

use message::{Hello, Purpose};
use peers::{Peer, Peers};

use crate::retention::Sending;

/// Waits between tries to reach a member that cannot be reached. Short: a restarted member is to be
/// caught up with at once, and a dial that fails costs little.
const BACKOFF: [Duration; 3] =
    [Duration::from_millis(50), Duration::from_millis(100), Duration::from_millis(150)];
/// Size in bytes of the buffer that a stream is read through.
const READ_BUFFER: usize = 64 << 10;

/// How this node introduces itself.
#[derive(Clone, Debug)]
pub struct Me {
    /// Its Raft id.
    pub id: NodeId,
    /// Its name.
    pub name: String,
}

/// Makes a [`Link`] for each member.
#[derive(Clone)]
pub struct Links {
    me: Me,
    peers: Peers,
    sending: Sending,
}

impl Links {
    /// Links that dial through `peers`, and tell what snapshots they send.
    pub fn new(me: Me, peers: Peers, sending: Sending) -> Links {
        Links { me, peers, sending }
    }
}

impl RaftNetworkFactory<TypeConfig> for Links {
    type Network = Link;

    async fn new_client(&mut self, target: NodeId, node: &MemberNode) -> Link {
        let peer = Peer { id: target, name: node.name.clone(), addr: node.addr.clone() };
        Link {
            me: self.me.clone(),
            peer,
            peers: self.peers.clone(),
            sending: self.sending.clone(),
            idle: None,
        }
    }
}

/// The way to one member.
pub struct Link {
    me: Me,
    peer: Peer,
    peers: Peers,
    sending: Sending,
    /// An append stream on which nothing is under way, for the next batch.
    idle: Option<append::AppendStream>,
}

/// Both directions of a new stream.
struct Wire {
    connection: quinn::Connection,
    send: quinn::SendStream,
    recv: BufReader<quinn::RecvStream>,
}

fn network_error(error: impl ToString) -> NetworkError<TypeConfig> {
    NetworkError::from_string(error)
}

impl Link {
    /// Opens a stream for `purpose`.
    async fn open(&self, purpose: Purpose) -> Result<Wire, RPCError<TypeConfig>> {
        let connection = self.peers.connection(&self.peer).await.map_err(Unreachable::from_string)?;
        let hello = Hello { from: self.me.id, name: self.me.name.clone(), to: self.peer.id, purpose };
        let hello = message::encode(&hello).map_err(network_error)?;
        let (mut send, recv) = connection.open_bi().await.map_err(network_error)?;
        send.write_chunk(hello).await.map_err(network_error)?;
        Ok(Wire { connection, send, recv: BufReader::with_capacity(READ_BUFFER, recv) })
    }

    /// One request, one reply.
    async fn call<Q: Serialize, A: DeserializeOwned>(
        &self,
        purpose: Purpose,
        request: &Q,
        option: &RPCOption,
    ) -> Result<A, RPCError<TypeConfig>> {
        let exchange = async {
            let mut wire = self.open(purpose).await?;
            wire.send
                .write_chunk(message::encode(request).map_err(network_error)?)
                .await
                .map_err(network_error)?;
            // The end of the stream may be lost with the stream: the reply says more.
            let _ = wire.send.finish();
            message::read(&mut wire.recv).await.map_err(|e| RPCError::Network(network_error(e)))
        };
        match tokio::time::timeout(option.soft_ttl(), exchange).await {
            Ok(done) => done,
            Err(_) => {
                Err(Unreachable::from_string(format!("no answer from {} in time", self.peer.addr)).into())
            }
        }
    }

    async fn ask_vote(
        &self,
        purpose: Purpose,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        let request = message::VoteRequest {
            vote: rpc.vote.into(),
            last: rpc.last_log_id.map(Into::into),
            transfer: rpc.leadership_transfer,
        };
        let reply: message::VoteReply = self.call(purpose, &request, &option).await?;
        Ok(VoteResponse::new(Vote::from(reply.vote), reply.last.map(Into::into), reply.granted))
    }
}

impl RaftNetworkV2<TypeConfig> for Link {
    type SnapshotData = SnapshotFile;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>> {
        use futures::StreamExt;
        let prev = rpc.prev_log_id;
        let input = futures::stream::iter([rpc]);
        let mut replies = self.stream_append(input, option).await?;
        // A batch that was split has several replies; the last one, or the first bad one, counts.
        let mut last = None;
        while let Some(reply) = replies.next().await {
            last = Some(reply?);
        }
        Ok(match last.ok_or_else(|| network_error("the stream ended without a reply"))? {
            Ok(_) => AppendEntriesResponse::Success,
            Err(StreamAppendError::Conflict(at)) if Some(at) == prev => AppendEntriesResponse::Conflict,
            Err(StreamAppendError::Conflict(at)) => {
                return Err(network_error(format!("a conflict inside of a batch, at {at}")).into());
            }
            Err(StreamAppendError::HigherVote(vote)) => AppendEntriesResponse::HigherVote(vote),
        })
    }

    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        _option: RPCOption,
    ) -> BoxFuture<
        's,
        Result<
            BoxStream<'s, Result<StreamAppendResult<TypeConfig>, RPCError<TypeConfig>>>,
            RPCError<TypeConfig>,
        >,
    >
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + OptionalSend + Unpin + 'static,
    {
        Box::pin(append::stream(self, input))
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.ask_vote(Purpose::Vote, rpc, option).await
    }

    // The default grants, so that a node that is cut off would win its own pre-vote.
    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.ask_vote(Purpose::PreVote, rpc, option).await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let index = snapshot.meta.last_log_id.map_or(0, |last| last.index);
        let _transfer = self.sending.begin(self.peer.id, index);
        tokio::select! {
            closed = cancel => Err(closed.into()),
            sent = snapshot::send(self, vote, snapshot) => sent,
        }
    }

    async fn transfer_leader(
        &mut self,
        req: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RPCError<TypeConfig>> {
        use openraft::raft::TransferLeaderError;
        let request = message::TransferRequest {
            from: (*req.from_leader()).into(),
            to: *req.to_node_id(),
            last: req.last_log_id().map(|id| (*id).into()),
        };
        Ok(match self.call(Purpose::Transfer, &request, &option).await? {
            message::TransferReply::Accepted => Ok(()),
            message::TransferReply::VoteChanged { expected, actual } => {
                Err(TransferLeaderError::VoteChanged { expected: expected.into(), actual: actual.into() })
            }
            message::TransferReply::LogNotFlushed { expected, actual } => {
                Err(TransferLeaderError::LogNotFlushed {
                    expected: expected.map(Into::into),
                    actual: actual.map(Into::into),
                })
            }
        })
    }

    fn backoff(&self) -> Option<Backoff> {
        let last = BACKOFF[BACKOFF.len() - 1];
        Some(Backoff::new(BACKOFF.into_iter().chain(std::iter::repeat(last))))
    }
}
