//! Taking connections up: who is it, what does it speak, is there room.

use std::sync::Arc;
use std::time::Duration;

use certs::{Identity, Role};
use tokio::sync::Semaphore;

use crate::bounds::{Bounds, ConnectionPlace};
use crate::endpoint::{self, CLOSE_BUSY, CLOSE_DENIED, CLOSE_STOPPING, Endpoint, Protocol};
use crate::network::serve::{PeerServer, ServeError};
use crate::service::Service;
use crate::stop::Stop;

/// Time for a handshake, from its first packet on.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Handshakes under way at one time. More are refused, and come back.
const HANDSHAKES: usize = 512;
/// Handshakes under way from which on a client must prove that its address is its own.
const RETRY_FROM: usize = 128;

/// Takes connections up until `stop` is raised or the endpoint is closed.
pub async fn run(endpoint: Endpoint, bounds: Bounds, peers: PeerServer, service: Service, stop: Stop) {
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES));
    let shared = Arc::new(Shared { bounds, peers, service, stop: stop.clone() });
    loop {
        let incoming = tokio::select! {
            incoming = endpoint.accept() => incoming,
            () = stop.raised() => None,
        };
        let Some(incoming) = incoming else { return };
        let Ok(place) = handshakes.clone().try_acquire_owned() else {
            incoming.refuse();
            continue;
        };
        if HANDSHAKES - handshakes.available_permits() > RETRY_FROM && incoming.may_retry() {
            // It cannot fail where `may_retry` says yes.
            let _ = incoming.retry();
            continue;
        }
        let shared = shared.clone();
        tokio::spawn(async move {
            let from = incoming.remote_address();
            let connection =
                match tokio::time::timeout(HANDSHAKE_TIMEOUT, async { incoming.accept()?.await }).await {
                    Ok(Ok(connection)) => connection,
                    Ok(Err(error)) => {
                        tracing::info!(%from, "a connection was refused: {}", endpoint::explain(&error));
                        return;
                    }
                    Err(_) => {
                        tracing::info!(%from, "a handshake took longer than {HANDSHAKE_TIMEOUT:?}");
                        return;
                    }
                };
            drop(place);
            shared.serve(connection).await;
        });
    }
}

struct Shared {
    bounds: Bounds,
    peers: PeerServer,
    service: Service,
    stop: Stop,
}

impl Shared {
    async fn serve(&self, connection: quinn::Connection) {
        let from = connection.remote_address();
        let (identity, protocol) =
            match (endpoint::identity_of(&connection), endpoint::protocol_of(&connection)) {
                (Ok(identity), Some(protocol)) => (identity, protocol),
                (Err(why), _) => return deny(&connection, &why),
                (_, None) => return deny(&connection, "no protocol was agreed on"),
            };
        match protocol {
            Protocol::Peer if identity.role != Role::Node => {
                let why =
                    format!("{identity} may not speak the protocol of nodes: it takes a node's certificate");
                deny(&connection, &why);
            }
            Protocol::Peer => match self.bounds.connection(true, &identity.name) {
                Ok(place) => self.serve_peer(connection, identity, place).await,
                Err(why) => busy(&connection, why),
            },
            Protocol::Client => match self.bounds.connection(false, &identity.name) {
                Ok(place) => {
                    tracing::debug!(%from, %identity, "a client is connected");
                    self.service.connection(connection, identity).await;
                    drop(place);
                }
                Err(why) => busy(&connection, why),
            },
        }
    }

    async fn serve_peer(&self, connection: quinn::Connection, identity: Identity, _place: ConnectionPlace) {
        tracing::debug!(from = %connection.remote_address(), %identity, "a node is connected");
        loop {
            let stream = tokio::select! {
                stream = connection.accept_bi() => stream,
                () = self.stop.raised() => return connection.close(CLOSE_STOPPING, b"the node is stopping"),
            };
            let Ok((send, recv)) = stream else { return };
            let (peers, name, connection) = (self.peers.clone(), identity.name.clone(), connection.clone());
            tokio::spawn(async move {
                match peers.stream(&name, send, recv).await {
                    Ok(()) => {}
                    Err(error @ ServeError::Denied(_)) => deny(&connection, &error.to_string()),
                    // Streams are dropped whenever a leader changes its mind: no reason to worry.
                    Err(error) => tracing::debug!(peer = name, "a stream was ended: {error}"),
                }
            });
        }
    }
}

fn deny(connection: &quinn::Connection, why: &str) {
    tracing::warn!(from = %connection.remote_address(), "a connection was refused: {why}");
    connection.close(CLOSE_DENIED, why.as_bytes());
}

fn busy(connection: &quinn::Connection, why: &str) {
    tracing::warn!(from = %connection.remote_address(), "a connection was refused: {why}");
    connection.close(CLOSE_BUSY, why.as_bytes());
}
