//! Sending log entries: requests go out one after the other without waiting, replies come back in the
//! same order.
//!
//! Writing and reading run beside each other, because either may have to wait: a task pulls requests
//! from openraft and writes them; the stream that openraft reads takes the replies. What is under way
//! is bounded in number and in bytes.

use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt};
use openraft::base::BoxStream;
use openraft::errors::RPCError;
use openraft::raft::{AppendEntriesRequest, StreamAppendError, StreamAppendResult};
use quorumfs_api::limits::FRAME_MAX;
use quorumfs_store::TypeConfig;
use quorumfs_store::format::{EntryRecord, PayloadRecord};
use tokio::io::BufReader;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinHandle;

use super::message::{self, AppendReply, AppendRequest, Purpose};
use super::{Link, network_error};

/// Requests that may be under way on one stream.
const PIPELINE: usize = 64;
/// Bytes of entries that may be under way on one stream; also what one frame aims at, so that no
/// frame comes near its limit. One entry can be larger than this, and then travels alone.
const PIPELINE_BYTES: usize = 8 << 20;
/// Bytes of entries in one frame.
const BATCH_BYTES: usize = 2 << 20;
/// What surrounds an entry in a frame, in bytes.
const ENTRY_OVERHEAD: usize = 64;
/// A peer that takes longer for one reply is given up, and dialled anew. A disk that is busy takes
/// hundreds of milliseconds.
const REPLY_TIMEOUT: Duration = Duration::from_secs(3);

const _: () = assert!(BATCH_BYTES < FRAME_MAX);

/// An append stream that was opened.
pub(super) struct AppendStream {
    connection: quinn::Connection,
    send: quinn::SendStream,
    recv: BufReader<quinn::RecvStream>,
}

type Item = Result<StreamAppendResult<TypeConfig>, RPCError<TypeConfig>>;

/// The writing half while it works; it ends with this value.
struct Writer(JoinHandle<Result<quinn::SendStream, RPCError<TypeConfig>>>);

impl Drop for Writer {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The reading half.
struct Reader<'s> {
    link: &'s mut Link,
    connection: quinn::Connection,
    recv: BufReader<quinn::RecvStream>,
    /// One for each frame that was written, in order; it gives back the room that the frame took.
    under_way: mpsc::Receiver<OwnedSemaphorePermit>,
    writer: Writer,
}

pub(super) async fn stream<'s, S>(
    link: &'s mut Link,
    input: S,
) -> Result<BoxStream<'s, Item>, RPCError<TypeConfig>>
where
    S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Send + Unpin + 'static,
{
    let idle = link.idle.take().filter(|stream| stream.connection.close_reason().is_none());
    let AppendStream { connection, send, recv } = match idle {
        Some(stream) => stream,
        None => {
            let wire = link.open(Purpose::Append).await?;
            AppendStream { connection: wire.connection, send: wire.send, recv: wire.recv }
        }
    };
    let (sent, under_way) = mpsc::channel(PIPELINE);
    let writer = Writer(tokio::spawn(write(input, send, sent)));
    let reader = Reader { link, connection, recv, under_way, writer };
    let replies = futures::stream::unfold(Some(reader), |reader| async move {
        let mut reader = reader?;
        match reader.under_way.recv().await {
            // All requests were sent and answered.
            None => reader.finish().await.err().map(|error| (Err(error), None)),
            Some(_room) => match reader.reply().await {
                matched @ Ok(Ok(_)) => Some((matched, Some(reader))),
                // After anything else the other side ends the stream.
                last => Some((last, None)),
            },
        }
    });
    Ok(replies.boxed())
}

impl Reader<'_> {
    async fn reply(&mut self) -> Item {
        match tokio::time::timeout(REPLY_TIMEOUT, message::read(&mut self.recv)).await {
            Ok(Ok(reply)) => Ok(match reply {
                AppendReply::Matched(matched) => Ok(matched.map(Into::into)),
                AppendReply::Conflict(at) => Err(StreamAppendError::Conflict(at.into())),
                AppendReply::HigherVote(vote) => Err(StreamAppendError::HigherVote(vote.into())),
            }),
            Ok(Err(error)) => Err(network_error(error).into()),
            Err(_) => {
                self.link.peers.give_up(&self.connection);
                Err(network_error(format!("no reply within {REPLY_TIMEOUT:?}")).into())
            }
        }
    }

    /// Keeps the stream for the next batch, unless writing failed.
    async fn finish(mut self) -> Result<(), RPCError<TypeConfig>> {
        let send = (&mut self.writer.0).await.map_err(network_error)??;
        let Reader { link, connection, recv, .. } = self;
        link.idle = Some(AppendStream { connection, send, recv });
        Ok(())
    }
}

/// Writes all requests, and gives the stream back.
async fn write<S>(
    mut input: S,
    mut send: quinn::SendStream,
    sent: mpsc::Sender<OwnedSemaphorePermit>,
) -> Result<quinn::SendStream, RPCError<TypeConfig>>
where
    S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Send + Unpin + 'static,
{
    let room = Arc::new(Semaphore::new(PIPELINE_BYTES));
    while let Some(request) = input.next().await {
        for part in split(request) {
            let frame = message::encode(&part).map_err(network_error)?;
            drop(part);
            let cost = frame.len().min(PIPELINE_BYTES) as u32;
            let permit = room.clone().acquire_many_owned(cost).await.map_err(network_error)?;
            send.write_chunk(frame).await.map_err(network_error)?;
            if sent.send(permit).await.is_err() {
                // Nobody waits for the replies any more.
                return Ok(send);
            }
        }
    }
    Ok(send)
}

fn size(record: &EntryRecord) -> usize {
    ENTRY_OVERHEAD
        + match &record.payload {
            PayloadRecord::Normal(encoded) => encoded.len(),
            PayloadRecord::Blank => 0,
            PayloadRecord::Membership(members) => {
                members.nodes.iter().map(|(_, node)| ENTRY_OVERHEAD + node.name.len() + node.addr.len()).sum()
            }
        }
}

/// The request in parts of at most about [`BATCH_BYTES`], each of which follows on the one before.
fn split(request: AppendEntriesRequest<TypeConfig>) -> Vec<AppendRequest> {
    let vote = request.vote.into();
    let commit = request.leader_commit.map(Into::into);
    let part = |prev, entries| AppendRequest { vote, prev, commit, entries };
    let mut prev = request.prev_log_id.map(Into::into);
    let mut parts = Vec::with_capacity(1);
    let (mut entries, mut bytes) = (Vec::with_capacity(request.entries.len()), 0);
    for entry in &request.entries {
        let record = EntryRecord::from(entry);
        let cost = size(&record);
        if bytes + cost > BATCH_BYTES && !entries.is_empty() {
            let full: Vec<EntryRecord> = std::mem::take(&mut entries);
            let last = full.last().map(|entry| entry.id);
            parts.push(part(prev, full));
            prev = last.or(prev);
            bytes = 0;
        }
        bytes += cost;
        entries.push(record);
    }
    parts.push(part(prev, entries));
    parts
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use openraft::EntryPayload;
    use quorumfs_api::command::{Command, CreateMode, LeaseChange, Owner, Proposal};
    use quorumfs_api::{Key, Timestamp};
    use quorumfs_store::{Entry, LeaderId, LogId, Logged, Vote};

    fn id(index: u64) -> LogId {
        LogId { leader_id: LeaderId { term: 1, node_id: 1 }, index }
    }

    fn put(index: u64, bytes: usize) -> Entry {
        let command = Command::Put {
            target: Key::root().into(),
            value: vec![0; bytes].into(),
            create: CreateMode::Allow,
            parents: false,
            owner: Owner::FILE,
            lease: LeaseChange::Keep,
        };
        let proposal = Proposal {
            time: Timestamp(0),
            author: "a".into(),
            node: false,
            session: None,
            value_max: 0,
            store_max: 0,
            command,
        };
        Entry { log_id: id(index), payload: EntryPayload::Normal(Logged::new(proposal).unwrap()) }
    }

    #[test]
    fn a_large_batch_is_split_and_its_parts_follow_on_each_other() {
        let entries: Vec<Entry> = (1..=10).map(|index| put(index, BATCH_BYTES / 3)).collect();
        let request = AppendEntriesRequest {
            vote: Vote::new_committed(1, 1),
            prev_log_id: Some(id(0)),
            leader_commit: None,
            entries,
        };
        let parts = split(request);
        assert!(parts.len() > 1);
        let mut prev = Some(id(0).into());
        let mut next = 1;
        for part in &parts {
            assert_eq!(part.prev, prev);
            assert!(message::encode(part).unwrap().len() <= BATCH_BYTES + 1024);
            for entry in &part.entries {
                assert_eq!(entry.id.index, next);
                next += 1;
            }
            prev = part.entries.last().map(|entry| entry.id);
        }
        assert_eq!(next, 11);
    }

    #[test]
    fn an_entry_larger_than_a_batch_travels_alone_and_a_heartbeat_is_one_frame() {
        let big = AppendEntriesRequest {
            vote: Vote::new_committed(1, 1),
            prev_log_id: None,
            leader_commit: None,
            entries: vec![put(0, 8 << 20), put(1, 1)],
        };
        assert_eq!(split(big).iter().map(|part| part.entries.len()).collect::<Vec<_>>(), [1, 1]);
        let heartbeat = AppendEntriesRequest {
            vote: Vote::new_committed(1, 1),
            prev_log_id: Some(id(4)),
            leader_commit: Some(id(4)),
            entries: vec![],
        };
        assert_eq!(split(heartbeat).len(), 1);
    }
}
