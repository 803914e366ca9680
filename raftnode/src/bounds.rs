//! What a node lets clients use, so that no number of them can take it down.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::config::Config;

/// Connections of one member: it needs one; a restart may leave an old one for a moment.
const PEER_CONNECTIONS: usize = 8;
/// Answers to reads that are being put together at one time, on the whole node. Each may hold a page
/// of a range (2 MiB) or the largest value (8 MiB).
const READS: usize = 64;

/// The bounds of a node. Clones share them.
#[derive(Clone)]
pub struct Bounds {
    requests: Arc<Semaphore>,
    requests_max: usize,
    bytes: Arc<Semaphore>,
    bytes_max: usize,
    reads: Arc<Semaphore>,
    watches: Arc<Semaphore>,
    watches_max: usize,
    connections: Arc<Mutex<Connections>>,
    connections_max: usize,
    connections_per_identity: usize,
}

#[derive(Default)]
struct Connections {
    clients: usize,
    by_identity: HashMap<(bool, String), usize>,
}

/// A place for a connection. It is free again when this is dropped.
pub struct ConnectionPlace {
    connections: Arc<Mutex<Connections>>,
    peer: bool,
    name: String,
}

impl Drop for ConnectionPlace {
    fn drop(&mut self) {
        let mut connections = self.connections.lock();
        if !self.peer {
            connections.clients -= 1;
        }
        let key = (self.peer, std::mem::take(&mut self.name));
        if let Some(count) = connections.by_identity.get_mut(&key) {
            *count -= 1;
            if *count == 0 {
                connections.by_identity.remove(&key);
            }
        }
    }
}

impl Bounds {
    /// The bounds that `config` sets.
    pub fn new(config: &Config) -> Bounds {
        // A semaphore takes at most this many; more than that is no bound.
        let clamp = |count: usize| count.min(Semaphore::MAX_PERMITS).min(u32::MAX as usize);
        let bytes_max = clamp(config.request_bytes_max);
        Bounds {
            requests: Arc::new(Semaphore::new(clamp(config.requests_max))),
            requests_max: clamp(config.requests_max),
            bytes: Arc::new(Semaphore::new(bytes_max)),
            bytes_max,
            reads: Arc::new(Semaphore::new(READS)),
            watches: Arc::new(Semaphore::new(clamp(config.watches_max))),
            watches_max: clamp(config.watches_max),
            connections: Arc::default(),
            connections_max: config.connections_max,
            connections_per_identity: config.connections_per_identity,
        }
    }

    /// A place for one more connection of this identity, or why there is none.
    pub fn connection(&self, peer: bool, name: &str) -> Result<ConnectionPlace, &'static str> {
        let mut connections = self.connections.lock();
        if !peer && connections.clients >= self.connections_max {
            return Err("too many connections to this node");
        }
        let of_one = connections.by_identity.get(&(peer, name.to_owned())).copied().unwrap_or(0);
        if of_one >= if peer { PEER_CONNECTIONS } else { self.connections_per_identity } {
            return Err("too many connections of this identity");
        }
        if !peer {
            connections.clients += 1;
        }
        *connections.by_identity.entry((peer, name.to_owned())).or_default() += 1;
        Ok(ConnectionPlace { connections: self.connections.clone(), peer, name: name.to_owned() })
    }

    /// Client connections that are open.
    pub fn connections(&self) -> usize {
        self.connections.lock().clients
    }

    /// A place for one more request, if there is one.
    pub fn request(&self) -> Option<OwnedSemaphorePermit> {
        self.requests.clone().try_acquire_owned().ok()
    }

    /// Waits until no request is under way.
    pub async fn all_requests_done(&self) {
        let _ = self.requests.acquire_many(self.requests_max as u32).await;
    }

    /// Requests under way.
    pub fn requests(&self) -> usize {
        self.requests_max - self.requests.available_permits()
    }

    /// Waits for room for a request of `bytes`; the reader of its stream stands still meanwhile, and
    /// QUIC's flow control stops the client.
    pub async fn room(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        self.bytes.clone().acquire_many_owned(bytes.min(self.bytes_max) as u32).await.ok()
    }

    /// Waits for the turn to put an answer together.
    pub async fn read(&self) -> Option<OwnedSemaphorePermit> {
        self.reads.clone().acquire_owned().await.ok()
    }

    /// A place for one more watch, if there is one.
    pub fn watch(&self) -> Option<OwnedSemaphorePermit> {
        self.watches.clone().try_acquire_owned().ok()
    }

    /// Watches that are open.
    pub fn watches(&self) -> usize {
        self.watches_max - self.watches.available_permits()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn bounds(connections: usize, per_identity: usize) -> Bounds {
        let dir = std::path::Path::new("d");
        let mut config = Config::new(1, "n1", ([127, 0, 0, 1], 0).into(), dir, dir).unwrap();
        config.connections_max = connections;
        config.connections_per_identity = per_identity;
        Bounds::new(&config)
    }

    #[test]
    fn connections_are_bounded_in_all_and_for_each_identity() {
        let bounds = bounds(3, 2);
        let first = bounds.connection(false, "a").unwrap();
        let _second = bounds.connection(false, "a").unwrap();
        assert!(bounds.connection(false, "a").is_err());
        let _third = bounds.connection(false, "b").unwrap();
        assert!(bounds.connection(false, "c").is_err());
        // A member comes in however many clients there are, and a client of its name counts apart.
        let _peer = bounds.connection(true, "a").unwrap();
        drop(first);
        assert_eq!(bounds.connections(), 2);
        assert!(bounds.connection(false, "a").is_ok());
    }
}
