//! One connection to one node: many calls on one stream, watches on streams of their own.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use certs::Credentials;
use parking_lot::Mutex;
use quinn::{RecvStream, SendStream};
use tokio::io::BufReader;
use tokio::sync::{Semaphore, SemaphorePermit, mpsc, oneshot};

use super::endpoint::explain_lost;
use crate::codec::{self, DecodeError, EncodeError, FrameKind};
use crate::transport::close;
use crate::wire::{Answer, Call, Failure, Hello, Reply, Request, Status, WatchStart};

/// Calls that may be under way on one connection; more wait for their turn.
const CALLS_MAX: usize = 4096;
/// Frames that wait for the writer: it takes all that are there and sends them together.
const QUEUE: usize = 1024;
/// Bytes that the writer puts together into one write.
const BATCH_BYTES: usize = 128 << 10;
/// Size in bytes of the reader's buffer.
const READ_BUFFER: usize = 64 << 10;
/// How often a connection in use is asked whether its node is still there.
const HEALTH_INTERVAL: Duration = Duration::from_millis(700);
/// How long the node has for the answer. QUIC's own time-out is longer; a mount must not stand still
/// for it.
const HEALTH_TIMEOUT: Duration = Duration::from_millis(1500);

/// Why a call on a connection brought no answer.
#[derive(Clone, Debug)]
pub(super) enum CallError {
    /// The message is too long to be sent at all.
    TooLong(String),
    /// The connection ended. The node may or may not have seen the request.
    Lost(String),
}

type Waiter = oneshot::Sender<Result<Answer, Failure>>;

/// The calls that wait for an answer.
#[derive(Default)]
struct Pending {
    calls: HashMap<u64, Waiter>,
    /// Set when the connection has ended: why.
    ended: Option<String>,
}

/// An open connection, whose node has already accepted us.
pub(super) struct Connection {
    /// The address that was dialled.
    pub addr: String,
    /// What it was dialled with.
    pub credentials: Arc<Credentials>,
    quic: quinn::Connection,
    queue: mpsc::Sender<Bytes>,
    pending: Arc<Mutex<Pending>>,
    next: AtomicU64,
    room: Semaphore,
    watches: AtomicUsize,
    /// Since when the node has said that it knows no leader.
    leaderless: Mutex<Option<Instant>>,
}

impl Connection {
    /// Opens the stream for calls and starts the tasks that serve it.
    pub async fn start(
        addr: String,
        quic: quinn::Connection,
        credentials: Arc<Credentials>,
    ) -> Result<Arc<Connection>, String> {
        let (mut send, recv) = quic.open_bi().await.map_err(|e| explain_lost(&e))?;
        let hello = codec::encode(FrameKind::Hello, &Hello::Calls).map_err(|e| e.to_string())?;
        send.write_chunk(hello).await.map_err(|e| e.to_string())?;

        let (queue, frames) = mpsc::channel(QUEUE);
        let pending = Arc::new(Mutex::new(Pending::default()));
        tokio::spawn(write_frames(send, frames, quic.clone()));
        tokio::spawn(read_replies(recv, pending.clone(), quic.clone()));
        let connection = Arc::new(Connection {
            addr,
            credentials,
            quic,
            queue,
            pending,
            next: AtomicU64::new(1),
            room: Semaphore::new(CALLS_MAX),
            watches: AtomicUsize::new(0),
            leaderless: Mutex::new(None),
        });
        tokio::spawn(check_health(Arc::downgrade(&connection)));
        Ok(connection)
    }

    /// Sends one request and waits for its answer. Dropping the future gives the call up. The caller
    /// bounds the time; `timeout` only tells the node when nobody waits any more.
    pub async fn call(&self, call: Call, timeout: Duration) -> Result<Result<Answer, Failure>, CallError> {
        // Asking whether the node lives must not wait behind the work that it may be stuck in.
        let _room: Option<SemaphorePermit<'_>> = match call {
            Call::Status => None,
            _ => Some(self.room.acquire().await.map_err(|_| self.lost())?),
        };
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let timeout_ms = u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX).max(1);
        let frame = codec::encode(FrameKind::Request, &Request { id, timeout_ms, call })
            .map_err(|e: EncodeError| CallError::TooLong(e.to_string()))?;
        let (waiter, answer) = oneshot::channel();
        {
            let mut pending = self.pending.lock();
            if let Some(why) = &pending.ended {
                return Err(CallError::Lost(why.clone()));
            }
            pending.calls.insert(id, waiter);
        }
        // From here on the entry goes whichever way this future ends.
        let _entry = Entry { pending: &self.pending, id };
        self.queue.send(frame).await.map_err(|_| self.lost())?;
        answer.await.map_err(|_| self.lost())
    }

    /// Asks the node about itself.
    pub async fn status(&self, timeout: Duration) -> Result<Box<Status>, String> {
        match tokio::time::timeout(timeout, self.call(Call::Status, timeout)).await {
            Err(_) => Err(format!("no answer within {}", super::settings::format_duration(timeout))),
            Ok(Err(CallError::Lost(why) | CallError::TooLong(why))) => Err(why),
            Ok(Ok(Err(failure))) => Err(failure.to_string()),
            Ok(Ok(Ok(Answer::Status(status)))) => Ok(status),
            Ok(Ok(Ok(_))) => Err("it answered another question than was asked".into()),
        }
    }

    /// Opens a stream for a watch. The stream ends when what is returned is dropped.
    pub async fn watch(self: &Arc<Self>, start: WatchStart) -> Result<WatchStream, String> {
        let hello = codec::encode(FrameKind::Hello, &Hello::Watch(start)).map_err(|e| e.to_string())?;
        let (mut send, recv) = self.quic.open_bi().await.map_err(|e| explain_lost(&e))?;
        send.write_chunk(hello).await.map_err(|e| self.ended().unwrap_or_else(|| e.to_string()))?;
        self.watches.fetch_add(1, Ordering::Relaxed);
        Ok(WatchStream { connection: self.clone(), send, recv: BufReader::with_capacity(READ_BUFFER, recv) })
    }

    /// Why it has ended; `None` while it stands.
    pub fn ended(&self) -> Option<String> {
        let ended = self.pending.lock().ended.clone();
        // Whoever reads another stream may notice the end first: the connection itself knows the node's reason.
        ended.or_else(|| self.quic.close_reason().map(|reason| explain_lost(&reason)))
    }

    /// How long the node has known no leader: it may be cut off, and its watches stand still.
    pub fn leaderless(&self) -> Duration {
        self.leaderless.lock().map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// Ends it at once: all that waits on it fails and can go elsewhere.
    pub fn end(&self, why: &str) {
        finish(&self.pending, why.to_string());
        self.quic.close(quinn::VarInt::from_u32(0), b"");
    }

    fn lost(&self) -> CallError {
        CallError::Lost(self.ended().unwrap_or_else(|| "the connection is closing".into()))
    }

    fn in_use(&self) -> bool {
        self.watches.load(Ordering::Relaxed) > 0 || !self.pending.lock().calls.is_empty()
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.quic.close(quinn::VarInt::from_u32(0), b"");
    }
}

/// Takes a call out of the table when its caller no longer waits.
struct Entry<'a> {
    pending: &'a Mutex<Pending>,
    id: u64,
}
impl Drop for Entry<'_> {
    fn drop(&mut self) {
        self.pending.lock().calls.remove(&self.id);
    }
}

/// The receiving end of a watch. It keeps its connection open, and being looked after.
pub(super) struct WatchStream {
    connection: Arc<Connection>,
    send: SendStream,
    /// Where the frames come from.
    pub recv: BufReader<RecvStream>,
}
impl WatchStream {
    /// Address of the node.
    pub fn addr(&self) -> &str {
        &self.connection.addr
    }
    /// Why nothing more comes, after reading has failed with `error`.
    pub fn explain(&self, error: &DecodeError) -> String {
        if let Some(why) = self.connection.ended() {
            return why;
        }
        let reset = match error {
            DecodeError::Io(error) => error.get_ref().and_then(|inner| inner.downcast_ref()),
            _ => None,
        };
        match reset {
            Some(quinn::ReadError::Reset(code)) => close::explain(code.into_inner()),
            _ => error.to_string(),
        }
    }
    /// The connection that it is on.
    pub fn connection(&self) -> Arc<Connection> {
        self.connection.clone()
    }
}
impl Drop for WatchStream {
    fn drop(&mut self) {
        self.connection.watches.fetch_sub(1, Ordering::Relaxed);
        // Tells the node that nobody reads any more; the receiving half stops by being dropped.
        let _ = self.send.reset(quinn::VarInt::from_u32(0));
    }
}

fn finish(pending: &Mutex<Pending>, why: String) {
    let calls = {
        let mut pending = pending.lock();
        pending.ended.get_or_insert(why);
        std::mem::take(&mut pending.calls)
    };
    // Their receivers see that the sender is gone, and ask why.
    drop(calls);
}

/// Sends what waits, many frames in one write.
async fn write_frames(mut send: SendStream, mut frames: mpsc::Receiver<Bytes>, quic: quinn::Connection) {
    let mut batch: Vec<Bytes> = Vec::new();
    while let Some(first) = frames.recv().await {
        let mut bytes = first.len();
        batch.push(first);
        while bytes < BATCH_BYTES {
            let Ok(next) = frames.try_recv() else { break };
            bytes += next.len();
            batch.push(next);
        }
        let written = if batch.len() == 1 {
            send.write_all_chunks(&mut batch).await
        } else {
            // Small frames are cheaper copied together than kept as so many pieces.
            let joined: Vec<u8> = batch.concat();
            send.write_chunk(joined.into()).await
        };
        batch.clear();
        if let Err(error) = written {
            tracing::debug!(%error, "the stream for calls cannot be written");
            // The reader may not notice that only this half broke.
            quic.close(quinn::VarInt::from_u32(0), b"");
            return;
        }
    }
    let _ = send.finish();
}

/// Gives each reply to the call that waits for it.
async fn read_replies(recv: RecvStream, pending: Arc<Mutex<Pending>>, quic: quinn::Connection) {
    let mut recv = BufReader::with_capacity(READ_BUFFER, recv);
    let why = loop {
        match codec::read::<Reply, _>(FrameKind::Reply, &mut recv).await {
            Ok(Some(reply)) => {
                let waiter = pending.lock().calls.remove(&reply.id);
                // Nobody waits for the reply to a call that was given up.
                if let Some(waiter) = waiter {
                    let _ = waiter.send(reply.answer);
                }
            }
            Ok(None) => break "the node ended the connection".to_string(),
            Err(error) => {
                break match quic.close_reason() {
                    Some(reason) => explain_lost(&reason),
                    None => format!("a reply cannot be read: {error}"),
                };
            }
        }
    };
    finish(&pending, why);
    quic.close(quinn::VarInt::from_u32(0), b"");
}

/// While the connection is in use, makes sure that the node behind it still answers.
async fn check_health(connection: std::sync::Weak<Connection>) {
    let mut ticks = tokio::time::interval(HEALTH_INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let Some(connection) = connection.upgrade() else { return };
        if connection.ended().is_some() {
            return;
        }
        if !connection.in_use() {
            continue;
        }
        match connection.status(HEALTH_TIMEOUT).await {
            Ok(status) => {
                let mut leaderless = connection.leaderless.lock();
                match status.leader {
                    Some(_) => *leaderless = None,
                    None => _ = leaderless.get_or_insert_with(Instant::now),
                }
            }
            Err(why) => {
                connection.end(&format!("the node is silent: {why}"));
                return;
            }
        }
    }
}
