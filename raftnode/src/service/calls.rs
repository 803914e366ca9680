//! One stream of calls: requests are read one after the other, answered beside each other, and the
//! replies written together as they become ready.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use certs::Identity;
use quorumfs_api::codec::{self, DecodeError, FrameKind};
use quorumfs_api::limits::FRAME_MAX;
use quorumfs_api::wire::{Answer, Call, Failure, Reply, Request};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::Instant;

use super::{Context, admin, denial, failures, info, read, who, write};
use crate::endpoint::CLOSE_SILENT;
use crate::metrics::{RequestKind, RequestResult};

/// Size in bytes of the buffer that a stream is read through.
const READ_BUFFER: usize = 64 << 10;
/// Bytes of replies that may wait for the client to read them, on one stream.
const REPLY_BYTES: usize = 8 << 20;
/// Bytes that are put together into one write.
const WRITE_BATCH: usize = 128 << 10;
/// A client that takes nothing for this long is cut off.
const WRITE_STALL: Duration = Duration::from_secs(15);
/// A request that has begun to arrive must be whole within this time: it holds room meanwhile.
const REQUEST_ARRIVAL: Duration = Duration::from_secs(30);
/// Answers to reads that one connection may have put together at one time.
const CONNECTION_READS: usize = 16;
/// Shortest time that a request gets, whatever the client says.
const TIMEOUT_MIN: Duration = Duration::from_millis(1);

/// What all streams of one connection share.
pub struct ConnectionRoom {
    requests: Arc<Semaphore>,
    pub(super) reads: Arc<Semaphore>,
}

impl ConnectionRoom {
    /// Room for so many requests at a time.
    pub fn new(requests: usize) -> ConnectionRoom {
        ConnectionRoom {
            requests: Arc::new(Semaphore::new(requests.min(Semaphore::MAX_PERMITS))),
            reads: Arc::new(Semaphore::new(CONNECTION_READS)),
        }
    }
}

/// A reply that waits to be written, and the room that it takes.
type Ready = (Bytes, OwnedSemaphorePermit);

/// What each request of a stream needs.
struct Stream {
    context: Arc<Context>,
    identity: Arc<Identity>,
    room: Arc<ConnectionRoom>,
    replies: mpsc::UnboundedSender<Ready>,
    reply_room: Arc<Semaphore>,
}

/// Serves the stream until the client ends it.
///
/// # Errors
/// When what comes is not the protocol.
pub(super) async fn serve(
    context: Arc<Context>,
    send: quinn::SendStream,
    recv: quinn::RecvStream,
    identity: Arc<Identity>,
    room: Arc<ConnectionRoom>,
) -> Result<(), DecodeError> {
    // Bounded by `reply_room`, which counts bytes where a channel would count messages.
    let (replies, ready) = mpsc::unbounded_channel();
    let reply_room = Arc::new(Semaphore::new(REPLY_BYTES));
    let writer = tokio::spawn(write_replies(send, ready));
    let stream = Arc::new(Stream { context, identity, room, replies, reply_room });
    let served = read_requests(&stream, recv).await;
    // Requests that are under way hold the stream too; the writer ends when the last is answered.
    drop(stream);
    if served.is_err() {
        writer.abort();
    }
    served
}

async fn read_requests(stream: &Arc<Stream>, recv: quinn::RecvStream) -> Result<(), DecodeError> {
    let mut recv = BufReader::with_capacity(READ_BUFFER, recv);
    loop {
        // Waits here for the next request without holding anything.
        let begun = recv.fill_buf().await?;
        if begun.is_empty() {
            return Ok(());
        }
        let arrival = Instant::now() + REQUEST_ARRIVAL;
        let claimed = begun.first_chunk::<4>().map(|length| u32::from_le_bytes(*length) as usize);
        if let Some(claimed) = claimed.filter(|claimed| *claimed > FRAME_MAX) {
            return Err(DecodeError::TooLong(claimed));
        }
        // What is not known yet, because the four bytes came apart, is taken for small.
        let Some(bytes) = stream.context.bounds.room(claimed.unwrap_or(READ_BUFFER)).await else {
            return Ok(());
        };
        let frame = match tokio::time::timeout_at(arrival, codec::read_frame(&mut recv)).await {
            Ok(frame) => frame?,
            Err(_) => return Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into()),
        };
        let Some(frame) = frame else { return Ok(()) };
        let request: Request = codec::decode(FrameKind::Request, &frame)?;
        drop(frame);
        let began = Instant::now();
        let kind = kind_of(&request.call);
        let room = stream.room.requests.clone().try_acquire_owned().ok().zip(stream.context.bounds.request());
        let stream = stream.clone();
        tokio::spawn(async move {
            let Some(room) = room else {
                // A node that drains waits for all the room there is, so nobody else gets any.
                let busy = if stream.context.draining.is_raised() {
                    failures::stopped()
                } else {
                    Failure::Busy("too many requests are under way".into())
                };
                stream.context.metrics.request(kind, RequestResult::Busy, began.elapsed());
                stream.reply(Reply { id: request.id, answer: Err(busy) }).await;
                return;
            };
            let id = request.id;
            let limit = stream.context.config.request_timeout_max;
            let timeout = Duration::from_millis(request.timeout_ms.into()).clamp(TIMEOUT_MIN, limit);
            stream.answer_and_reply(id, request.call, began + timeout).await;
            drop((room, bytes));
        });
    }
}

fn kind_of(call: &Call) -> RequestKind {
    match call {
        Call::Write { .. } => RequestKind::Write,
        Call::Get { .. } => RequestKind::Get,
        Call::Range { .. } => RequestKind::Range,
        Call::Barrier => RequestKind::Barrier,
        Call::KeepAlive(_) => RequestKind::KeepAlive,
        Call::Status | Call::Leases(_) | Call::Locks(_) | Call::Rights => RequestKind::Info,
        Call::Admin(_) => RequestKind::Admin,
    }
}

impl Stream {
    async fn answer_and_reply(&self, id: u64, call: Call, until: Instant) {
        let began = Instant::now();
        let kind = kind_of(&call);
        // Held until the reply waits in the queue, so that answers that nobody reads do not pile up.
        let mut turn = None;
        let answer = if self.context.draining.is_raised() {
            Err(failures::stopped())
        } else {
            match tokio::time::timeout_at(until, self.answer(call, until, &mut turn)).await {
                Ok(answer) => answer,
                Err(_) => Err(Failure::NoQuorum),
            }
        };
        let result = match &answer {
            Ok(Answer::Written(outcome)) if outcome.result.is_err() => RequestResult::Refused,
            Ok(_) => RequestResult::Ok,
            Err(Failure::Busy(_)) => RequestResult::Busy,
            Err(_) => RequestResult::Failed,
        };
        self.reply(Reply { id, answer }).await;
        drop(turn);
        self.context.metrics.request(kind, result, began.elapsed());
    }

    async fn answer(
        &self,
        call: Call,
        until: Instant,
        turn: &mut Option<read::Turn>,
    ) -> Result<Answer, Failure> {
        let context = &self.context;
        let who = who(&self.identity);
        // What is written is judged when it is applied.
        if !matches!(call, Call::Write { .. }) {
            denial::check_identity(context, who)?;
        }
        match call {
            Call::Write { session, command } => write::write(context, who, session, command).await,
            Call::Get { key, consistency } => {
                read::fresh(context, consistency, until).await?;
                *turn = Some(read::Turn::wait(context, &self.room).await?);
                read::get(context, who, &key)
            }
            Call::Range { prefix, keys_only, after, limit, consistency } => {
                read::fresh(context, consistency, until).await?;
                *turn = Some(read::Turn::wait(context, &self.room).await?);
                read::range(context, who, prefix, keys_only, after, limit).await
            }
            Call::Barrier => {
                context.linear.read(until).await?;
                Ok(Answer::Barrier(read::revision(context)?))
            }
            Call::Status => info::status(context).map(|status| Answer::Status(Box::new(status))),
            Call::KeepAlive(lease) => write::keep_alive(context, who, lease, until).await,
            Call::Leases(lease) => {
                // The leader's word is the freshest; another node answers what it has.
                if context.leases.leads() {
                    context.linear.read(until).await?;
                }
                *turn = Some(read::Turn::wait(context, &self.room).await?);
                info::leases(context, who, lease).await
            }
            Call::Locks(ino) => {
                context.linear.read(until).await?;
                info::locks(context, who, ino)
            }
            Call::Admin(change) => {
                denial::check_admin(context, who)?;
                admin::change(context, change, until).await
            }
            Call::Rights => {
                let policy = context.state.policy();
                let rights = policy.rights(who).as_ref().clone();
                Ok(Answer::Rights { policy: policy.revision, rights })
            }
        }
    }

    async fn reply(&self, reply: Reply) {
        let frame = match codec::encode(FrameKind::Reply, &reply) {
            Ok(frame) => frame,
            Err(error) => {
                let failure = Failure::Unavailable(format!("the answer cannot be sent: {error}"));
                let Ok(frame) =
                    codec::encode(FrameKind::Reply, &Reply { id: reply.id, answer: Err(failure) })
                else {
                    return;
                };
                frame
            }
        };
        let cost = frame.len().min(REPLY_BYTES) as u32;
        if let Ok(room) = self.reply_room.clone().acquire_many_owned(cost).await {
            // The writer has ended if this fails, and nobody waits for the reply.
            let _ = self.replies.send((frame, room));
        }
    }
}

/// Writes replies, as many at a time as are ready.
async fn write_replies(mut send: quinn::SendStream, mut ready: mpsc::UnboundedReceiver<Ready>) {
    let mut batch = Vec::new();
    while let Some((frame, room)) = ready.recv().await {
        // The rooms are given back when the bytes are QUIC's, whose own window bounds them.
        let mut rooms = vec![room];
        let mut next = Some(frame);
        while let Some(frame) = next {
            batch.extend_from_slice(&frame);
            next = None;
            if batch.len() < WRITE_BATCH
                && let Ok((frame, room)) = ready.try_recv()
            {
                rooms.push(room);
                next = Some(frame);
            }
        }
        match tokio::time::timeout(WRITE_STALL, send.write_all(&batch)).await {
            Ok(Ok(())) => {}
            // Dropping the receiver frees whoever waits for room.
            Ok(Err(_)) => return ready.close(),
            Err(_) => {
                let _ = send.reset(CLOSE_SILENT);
                return ready.close();
            }
        }
        batch.clear();
        batch.shrink_to(WRITE_BATCH);
    }
    let _ = send.finish();
}
