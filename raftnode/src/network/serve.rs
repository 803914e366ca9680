//! Answering other members.

use std::time::Duration;

use futures::StreamExt;
use openraft::errors::Fatal;
use openraft::raft::{
    AppendEntriesRequest, StreamAppendError, StreamAppendResult, TransferLeaderError, TransferLeaderRequest,
    VoteRequest,
};
use quorumfs_api::codec::{self, DecodeError, EncodeError, FrameKind};
use quorumfs_store::format::EntryRecord;
use quorumfs_store::{Raft, Snapshots, TypeConfig};
use tokio::io::BufReader;
use tokio::sync::mpsc;

use super::message::{self, AppendReply, AppendRequest, Hello, Purpose};
use super::{READ_BUFFER, snapshot};
use crate::progress;

/// A stream on which nothing was said for this long after it was opened is ended.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
/// Requests that were read and wait for openraft. What it has taken waits in its own queue, which is
/// bounded by what a leader sends ahead.
const APPEND_QUEUE: usize = 16;
/// Replies that are written together.
const REPLY_BATCH: usize = 64;

/// Why a peer's stream was ended.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// What came is no message.
    #[error("what it sent cannot be read: {0}")]
    Decode(#[from] DecodeError),
    /// A reply cannot be written.
    #[error("the reply cannot be encoded: {0}")]
    Encode(#[from] EncodeError),
    /// Who speaks is not who the certificate says, or is not meant to speak to this node.
    #[error("{0}")]
    Denied(String),
    /// The stream broke.
    #[error("the stream broke: {0}")]
    Stream(#[from] quinn::WriteError),
    /// An entry cannot be read, or a snapshot cannot be stored.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// This node's own Raft has stopped.
    #[error("this node has stopped: {0}")]
    Stopped(#[from] Box<Fatal<TypeConfig>>),
    /// Nothing came.
    #[error("it opened a stream and said nothing")]
    Silent,
}

impl From<Fatal<TypeConfig>> for ServeError {
    fn from(fatal: Fatal<TypeConfig>) -> ServeError {
        ServeError::Stopped(Box::new(fatal))
    }
}

/// What is needed to answer.
#[derive(Clone)]
pub struct PeerServer {
    /// This node's id.
    pub id: u64,
    /// Its Raft.
    pub raft: Raft,
    /// Where snapshots are received.
    pub snapshots: Snapshots,
}

impl PeerServer {
    /// Serves one stream of the peer whose certificate carries `certified`.
    pub async fn stream(
        &self,
        certified: &str,
        mut send: quinn::SendStream,
        recv: quinn::RecvStream,
    ) -> Result<(), ServeError> {
        let mut recv = BufReader::with_capacity(READ_BUFFER, recv);
        let hello: Hello = match tokio::time::timeout(HELLO_TIMEOUT, message::read(&mut recv)).await {
            Ok(hello) => hello?,
            Err(_) => return Err(ServeError::Silent),
        };
        self.check(&hello, certified)?;
        match hello.purpose {
            Purpose::Append => self.append(send, recv).await,
            Purpose::Vote | Purpose::PreVote => {
                let request: message::VoteRequest = message::read(&mut recv).await?;
                let reply = self.vote(request, hello.purpose == Purpose::PreVote).await?;
                finish(&mut send, &reply).await
            }
            Purpose::Transfer => {
                let request: message::TransferRequest = message::read(&mut recv).await?;
                let reply = self.transfer(request).await?;
                finish(&mut send, &reply).await
            }
            Purpose::Snapshot => {
                let reply = snapshot::receive(&self.raft, &self.snapshots, &mut recv).await?;
                finish(&mut send, &reply).await
            }
        }
    }

    /// Who speaks must carry the name that it gives, and that name must be the one that the cluster
    /// knows for its id. A node that has not heard of the id yet takes the word of the certificate:
    /// it may be new itself.
    fn check(&self, hello: &Hello, certified: &str) -> Result<(), ServeError> {
        if hello.to != self.id {
            return Err(ServeError::Denied(format!(
                "it is looking for node {}, but this is node {}",
                hello.to, self.id
            )));
        }
        if hello.name != certified {
            let text = format!("it says it is {:?}, but its certificate is for {certified:?}", hello.name);
            return Err(ServeError::Denied(text));
        }
        let membership = progress::now(&self.raft.metrics()).membership_config;
        match membership.get_node(&hello.from) {
            Some(known) if known.name != hello.name => Err(ServeError::Denied(format!(
                "it says it is node {}, which is {:?} and not {:?}",
                hello.from, known.name, hello.name
            ))),
            _ => Ok(()),
        }
    }

    async fn append(
        &self,
        mut send: quinn::SendStream,
        mut recv: BufReader<quinn::RecvStream>,
    ) -> Result<(), ServeError> {
        let (requests, queue) = mpsc::channel::<AppendEntriesRequest<TypeConfig>>(APPEND_QUEUE);
        let input =
            futures::stream::unfold(queue, |mut queue| async move { Some((queue.recv().await?, queue)) });
        let replies = self.raft.stream_append(input).ready_chunks(REPLY_BATCH);
        let read = async move {
            while let Some(request) = codec::read::<AppendRequest, _>(FrameKind::Peer, &mut recv).await? {
                if requests.send(to_openraft(request)?).await.is_err() {
                    break;
                }
            }
            Ok::<(), ServeError>(())
        };
        let write = async move {
            let mut replies = std::pin::pin!(replies);
            let mut frames = Vec::new();
            while let Some(batch) = replies.next().await {
                frames.clear();
                for reply in batch {
                    codec::encode_into(FrameKind::Peer, &append_reply(reply)?, &mut frames)?;
                }
                send.write_all(&frames).await?;
            }
            let _ = send.finish();
            Ok::<(), ServeError>(())
        };
        // The reader ends with the stream, or when openraft takes no more; the writer when all is
        // answered. If reading fails, what was read is still answered.
        let (read, write) = futures::join!(read, write);
        read.and(write)
    }

    async fn vote(&self, request: message::VoteRequest, pre: bool) -> Result<message::VoteReply, ServeError> {
        let mut rpc = VoteRequest::new(request.vote.into(), request.last.map(Into::into));
        rpc.leadership_transfer = request.transfer;
        let asked = if pre { self.raft.pre_vote(rpc).await } else { self.raft.vote(rpc).await };
        let answer = asked.map_err(|error| error.unwrap_fatal())?;
        Ok(message::VoteReply {
            vote: answer.vote.into(),
            granted: answer.vote_granted,
            last: answer.last_log_id.map(Into::into),
        })
    }

    async fn transfer(
        &self,
        request: message::TransferRequest,
    ) -> Result<message::TransferReply, ServeError> {
        let rpc = TransferLeaderRequest::new(request.from.into(), request.to, request.last.map(Into::into));
        Ok(match self.raft.handle_transfer_leader(rpc).await? {
            Ok(()) => message::TransferReply::Accepted,
            Err(TransferLeaderError::VoteChanged { expected, actual }) => {
                message::TransferReply::VoteChanged { expected: expected.into(), actual: actual.into() }
            }
            Err(TransferLeaderError::LogNotFlushed { expected, actual }) => {
                message::TransferReply::LogNotFlushed {
                    expected: expected.map(Into::into),
                    actual: actual.map(Into::into),
                }
            }
        })
    }
}

async fn finish<T: serde::Serialize>(send: &mut quinn::SendStream, reply: &T) -> Result<(), ServeError> {
    send.write_chunk(message::encode(reply)?).await?;
    let _ = send.finish();
    Ok(())
}

fn to_openraft(request: AppendRequest) -> std::io::Result<AppendEntriesRequest<TypeConfig>> {
    Ok(AppendEntriesRequest {
        vote: request.vote.into(),
        prev_log_id: request.prev.map(Into::into),
        leader_commit: request.commit.map(Into::into),
        entries: request.entries.into_iter().map(EntryRecord::into_entry).collect::<std::io::Result<_>>()?,
    })
}

fn append_reply(
    reply: Result<StreamAppendResult<TypeConfig>, Fatal<TypeConfig>>,
) -> Result<AppendReply, ServeError> {
    Ok(match reply? {
        Ok(matched) => AppendReply::Matched(matched.map(Into::into)),
        Err(StreamAppendError::Conflict(at)) => AppendReply::Conflict(at.into()),
        Err(StreamAppendError::HigherVote(vote)) => AppendReply::HigherVote(vote.into()),
    })
}
