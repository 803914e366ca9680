//! Serving clients: their connections, the streams on them, and what they ask.

mod admin;
mod calls;
mod denial;
pub mod failures;
pub mod info;
mod leases;
pub mod linear;
pub mod propose;
mod read;
mod write;

pub(crate) use admin::transfer;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use certs::{Identity, Role};
use quorumfs_api::codec::{self, DecodeError, FrameKind};
use quorumfs_api::denials::Denials;
use quorumfs_api::wire::Hello;
use quorumfs_policy::Who;
use quorumfs_store::{Raft, State};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::bounds::Bounds;
use crate::clock::Clock;
use crate::config::Config;
use crate::endpoint::{CLOSE_DENIED, CLOSE_PROTOCOL, CLOSE_STOPPING};
use crate::lease::Leases;
use crate::metrics::NodeMetrics;
use crate::stop::Stop;
use crate::watch;

/// A stream on which nothing was said for this long after it was opened is ended.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
/// Streams of one connection that may be open without having said what they are for. More wait in QUIC's
/// own books, where they cost next to nothing.
const HELLOS: usize = 256;
/// Streams for calls that one connection may have; each has buffers of its own, and one is enough.
const CALL_STREAMS: usize = 4;

/// Somebody, as the policy takes it.
pub(crate) fn who(identity: &Identity) -> Who<'_> {
    Who { name: &identity.name, node: identity.role == Role::Node }
}

/// All that is needed to answer a client.
pub struct Context {
    /// The configuration.
    pub config: Config,
    /// Where others reach this node.
    pub advertise: String,
    /// Consensus.
    pub raft: Raft,
    /// What this node has applied.
    pub state: State,
    /// Writes.
    pub proposer: propose::Proposer,
    /// Linearizable reads.
    pub linear: linear::Linear,
    /// When leases end, while this node leads.
    pub leases: Leases,
    /// The time of proposals.
    pub clock: Arc<Clock>,
    /// What clients may use.
    pub bounds: Bounds,
    /// What is counted.
    pub metrics: NodeMetrics,
    /// What was denied goes to the log, but not without end.
    pub denials: Denials,
    /// Raised when new requests are no longer taken.
    pub draining: Stop,
    /// Raised when everything ends.
    pub stop: Stop,
}

/// What the streams of one connection share.
#[derive(Default)]
struct Streams {
    /// How many of them are for calls.
    calls: AtomicUsize,
    watches: OnceLock<watch::Group>,
}

/// Serves clients. Clones share everything.
#[derive(Clone)]
pub struct Service {
    context: Arc<Context>,
    watches: watch::Watches,
}

impl Service {
    /// A service.
    pub fn new(context: Arc<Context>) -> Service {
        let watches = watch::Watches::new(context.clone());
        Service { context, watches }
    }

    /// Serves one connection until it ends.
    pub async fn connection(&self, connection: quinn::Connection, identity: Identity) {
        let identity = Arc::new(identity);
        let place = Arc::new(calls::ConnectionRoom::new(self.context.config.requests_per_connection));
        let streams = Arc::new(Streams::default());
        let hellos = Arc::new(Semaphore::new(HELLOS));
        let mut policies = self.context.state.policies();
        loop {
            // What is denied altogether by now, or from now on, is cut off.
            policies.mark_unchanged();
            if let Some(why) = denial::cut_off(&self.context, who(&identity)) {
                self.context.denials.log(&why);
                return connection.close(CLOSE_DENIED, why.as_bytes());
            }
            let Ok(turn) = hellos.clone().acquire_owned().await else { return };
            let stream = tokio::select! {
                stream = connection.accept_bi() => stream,
                changed = policies.changed() => match changed {
                    Ok(()) => continue,
                    Err(_) => return,
                },
                () = self.context.stop.raised() => return connection.close(CLOSE_STOPPING, b"the node is stopping"),
            };
            let Ok((send, recv)) = stream else { return };
            let (service, identity, place, streams) =
                (self.clone(), identity.clone(), place.clone(), streams.clone());
            let connection = connection.clone();
            tokio::spawn(async move {
                if let Err(error) = service.stream(send, recv, turn, identity, place, &streams).await {
                    // A stream that was reset is the client's way to end it; anything else is an
                    // error in its program, and it is told so.
                    match &error {
                        DecodeError::Io(_) => tracing::debug!("a stream was ended: {error}"),
                        _ => {
                            tracing::warn!(from = %connection.remote_address(), "a client was cut off: {error}");
                            connection.close(CLOSE_PROTOCOL, error.to_string().as_bytes());
                        }
                    }
                }
            });
        }
    }

    async fn stream(
        &self,
        mut send: quinn::SendStream,
        mut recv: quinn::RecvStream,
        turn: OwnedSemaphorePermit,
        identity: Arc<Identity>,
        room: Arc<calls::ConnectionRoom>,
        streams: &Streams,
    ) -> Result<(), DecodeError> {
        let hello = codec::read::<Hello, _>(FrameKind::Hello, &mut recv);
        let hello = match tokio::time::timeout(HELLO_TIMEOUT, hello).await {
            Ok(hello) => hello?,
            // Half-open: it costs nothing any more.
            Err(_) => {
                let _ = send.reset(CLOSE_PROTOCOL);
                return Ok(());
            }
        };
        drop(turn);
        match hello {
            None => Ok(()),
            Some(Hello::Watch(start)) => {
                let watches = self.watches.clone();
                let watch = async move { watches.serve(identity, start, send, recv).await };
                streams.watches.get_or_init(watch::Group::start).add(watch);
                Ok(())
            }
            Some(Hello::Calls) => {
                if streams.calls.fetch_add(1, Ordering::AcqRel) >= CALL_STREAMS {
                    let _ = send.reset(crate::endpoint::CLOSE_BUSY);
                    streams.calls.fetch_sub(1, Ordering::AcqRel);
                    return Ok(());
                }
                let served = calls::serve(self.context.clone(), send, recv, identity, room).await;
                streams.calls.fetch_sub(1, Ordering::AcqRel);
                served
            }
        }
    }
}
