//! Connections to other members: one each, shared by all that talk to it, dialled again when it
//! failed.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use parking_lot::Mutex;

use crate::config::split_addr;
use crate::endpoint::{Endpoint, PeerError};

/// Time for a handshake with a peer. A loaded machine takes tens of milliseconds; what takes longer
/// than this is taken for unreachable, and tried again.
const DIAL_TIMEOUT: Duration = Duration::from_secs(1);

/// A member that can be dialled.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Peer {
    /// Its Raft id.
    pub id: u64,
    /// Its name, which its certificate must carry.
    pub name: String,
    /// `host:port`.
    pub addr: String,
}

/// Why a peer cannot be talked to.
#[derive(Clone, Debug, thiserror::Error)]
#[error("node {id} at {addr} cannot be reached: {why}")]
pub struct DialError {
    id: u64,
    addr: String,
    why: String,
}

type Dial = Shared<BoxFuture<'static, Result<quinn::Connection, DialError>>>;

/// The connections.
#[derive(Clone)]
pub struct Peers {
    endpoint: Endpoint,
    dials: Arc<Mutex<HashMap<u64, (Peer, Dial)>>>,
}

impl Peers {
    /// None yet.
    pub fn new(endpoint: Endpoint) -> Peers {
        Peers { endpoint, dials: Arc::default() }
    }

    /// The connection to `peer`, dialled if there is none that works. Whoever asks while a dial is
    /// under way waits for that one.
    pub async fn connection(&self, peer: &Peer) -> Result<quinn::Connection, DialError> {
        let dial = self.dial(peer);
        dial.await
    }

    fn dial(&self, peer: &Peer) -> Dial {
        let mut dials = self.dials.lock();
        if let Some((known, dial)) = dials.get(&peer.id) {
            let usable = match dial.peek() {
                None => true,
                Some(Ok(connection)) => connection.close_reason().is_none(),
                Some(Err(_)) => false,
            };
            if known == peer && usable {
                return dial.clone();
            }
            if let Some(Ok(connection)) = dial.peek() {
                connection.close(crate::endpoint::CLOSE_REPLACED, b"dialled anew");
            }
        }
        let (endpoint, target) = (self.endpoint.clone(), peer.clone());
        let task = tokio::spawn(async move { dial_peer(&endpoint, &target).await });
        let error = DialError { id: peer.id, addr: peer.addr.clone(), why: "the node is stopping".into() };
        let dial = task.map(|done| done.unwrap_or(Err(error))).boxed().shared();
        dials.insert(peer.id, (peer.clone(), dial.clone()));
        dial
    }

    /// Closes a connection on which a peer does not answer, so that the next call dials.
    pub fn give_up(&self, connection: &quinn::Connection) {
        connection.close(crate::endpoint::CLOSE_SILENT, b"no answer in time");
    }
}

async fn dial_peer(endpoint: &Endpoint, peer: &Peer) -> Result<quinn::Connection, DialError> {
    let fail = |why: String| DialError { id: peer.id, addr: peer.addr.clone(), why };
    let (host, port) = split_addr(&peer.addr).map_err(&fail)?;
    let attempt = async {
        let mut last = format!("{host} has no address that this node's socket can reach");
        let addrs: Vec<SocketAddr> =
            tokio::net::lookup_host((host, port)).await.map_err(|e| e.to_string())?.collect();
        for addr in addrs.into_iter().filter(|addr| endpoint.can_reach(addr)) {
            match endpoint.connect_peer(addr, host, &peer.name).await {
                Ok(connection) => return Ok(connection),
                Err(error) => {
                    if let PeerError::Identity(_) = &error {
                        tracing::warn!(peer = peer.id, name = peer.name, addr = peer.addr, "{error}");
                    }
                    last = error.to_string();
                }
            }
        }
        Err(last)
    };
    match tokio::time::timeout(DIAL_TIMEOUT, attempt).await {
        Ok(done) => done.map_err(fail),
        Err(_) => Err(fail(format!("no answer within {DIAL_TIMEOUT:?}"))),
    }
}
