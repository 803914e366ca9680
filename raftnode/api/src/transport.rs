//! QUIC settings that clients and nodes share.

use std::sync::Arc;
use std::time::Duration;

use quinn::{IdleTimeout, MtuDiscoveryConfig, TransportConfig, VarInt};

/// ALPN of clients.
pub const ALPN_CLIENT: &[u8] = b"quorumfs-client/1";
/// ALPN of members among each other.
pub const ALPN_PEER: &[u8] = b"quorumfs-peer/1";
/// The UDP port of a node when none is given.
pub const DEFAULT_PORT: u16 = 7400;

/// A connection on which nothing arrives for this long is dead.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(5);
/// A packet goes out at least this often.
pub const KEEP_ALIVE: Duration = Duration::from_secs(1);
/// Taken for the round trip until one was measured: data centres, not continents.
const INITIAL_RTT: Duration = Duration::from_millis(20);
/// Bytes that one side may send on a stream ahead of the reader: also what a slow reader costs.
const STREAM_WINDOW: u32 = 4 << 20;
/// The same for a whole connection.
const CONNECTION_WINDOW: u32 = 16 << 20;
/// Streams that a client may have open at once (each watch is one). quinn keeps about 100 bytes for each
/// that may be, from the first packet of a handshake on: this is what a connection costs that does nothing.
pub const STREAMS_MAX: u32 = 2_048;
/// Largest UDP payload in bytes. With segmentation offload, 8940 was measured to collapse to 1 % of
/// the throughput of 6500 and less.
const MTU_MAX: u16 = 6500;
/// Size in bytes asked for a node's socket buffers.
pub const SOCKET_BUFFER: usize = 4 << 20;

/// Codes with which a node ends a connection or a stream.
pub mod close {
    /// The node stops.
    pub const STOPPING: u32 = 1;
    /// This identity may not speak this protocol, or not to this node, or is denied by the policy.
    pub const DENIED: u32 = 2;
    /// There are too many of them.
    pub const BUSY: u32 = 3;
    /// What came is not the protocol.
    pub const PROTOCOL: u32 = 4;
    /// Another connection took its place.
    pub const REPLACED: u32 = 5;
    /// The other side does not answer, or does not read.
    pub const SILENT: u32 = 6;

    /// What a stream that was ended with `code` is to be told to people as.
    pub fn explain(code: u64) -> String {
        match u32::try_from(code) {
            Ok(STOPPING) => "the node is stopping, or cannot read its state".into(),
            Ok(DENIED) => "the node does not allow it".into(),
            Ok(BUSY) => "the node has too many of these already (its watches-max)".into(),
            Ok(PROTOCOL) => "the node does not understand what it was sent".into(),
            Ok(REPLACED) => "another one took its place".into(),
            Ok(SILENT) => "it was not read fast enough, and the node let go of it".into(),
            _ => format!("the node ended it with code {code}"),
        }
    }
}

/// Transport parameters of both ends.
pub fn config() -> Arc<TransportConfig> {
    let mut config = TransportConfig::default();
    let mut mtu = MtuDiscoveryConfig::default();
    mtu.upper_bound(MTU_MAX);
    config
        .max_idle_timeout(IdleTimeout::try_from(IDLE_TIMEOUT).ok())
        .keep_alive_interval(Some(KEEP_ALIVE))
        .initial_rtt(INITIAL_RTT)
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW))
        .receive_window(VarInt::from_u32(CONNECTION_WINDOW))
        .send_window(u64::from(CONNECTION_WINDOW))
        .max_concurrent_bidi_streams(VarInt::from_u32(STREAMS_MAX))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None)
        .mtu_discovery_config(Some(mtu));
    Arc::new(config)
}
