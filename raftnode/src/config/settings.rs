//! Everything that can be set, once: the same fields are command-line flags and keys of the TOML file.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;
use serde::Deserialize;

use super::units::{Size, Span};

/// What flags or the file say. What neither says gets its default in [`super::Config`].
#[derive(Args, Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Settings {
    /// Raft id of this node, from 1; never reused, not even for the same machine after its data was
    /// lost.
    #[arg(long, value_name = "N")]
    pub id: Option<u64>,
    /// Name of this node. Its certificate must carry it, and is looked up by it in `certs`.
    #[arg(long)]
    pub name: Option<String>,
    /// UDP address on which peers and clients are served. Default 0.0.0.0:7400.
    #[arg(long, value_name = "ADDR:PORT")]
    pub listen: Option<SocketAddr>,
    /// Where other nodes and clients reach this node. The host must stand in the node's
    /// certificate. Default: the address of `listen` where that is a single address.
    #[arg(long, value_name = "HOST:PORT")]
    pub advertise: Option<String>,
    /// Directory for the log, the state and snapshots; used by one process at a time.
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// Directory with ca.crt, NAME.crt and NAME.key; watched, so that new ones are taken up while
    /// running.
    #[arg(long, value_name = "DIR")]
    pub certs: Option<PathBuf>,
    /// TCP address of /metrics, /healthz and /readyz, without authentication; "off" for none.
    /// Default 127.0.0.1:9740.
    #[arg(long, value_name = "ADDR:PORT|off")]
    pub metrics: Option<String>,
    /// Nodes to ask for being added as a learner when this data directory belongs to no cluster yet.
    #[arg(long, value_name = "HOST:PORT", value_delimiter = ',')]
    pub join: Option<Vec<String>>,

    /// Largest value in bytes, at most 8MiB. Larger ones are refused with a clear error. The
    /// leader's setting counts. Default 1MiB.
    #[arg(long, value_name = "SIZE")]
    pub value_max: Option<Size>,
    /// Size of the store in bytes (names, values and 256 bytes a key) at which writes that grow it
    /// are refused; deletes always work. The leader's setting counts. Default 2GiB.
    #[arg(long, value_name = "SIZE")]
    pub store_max: Option<Size>,

    /// Time between two heartbeats of the leader. Shorter: more packets; longer: needs longer
    /// election time-outs. Default 100ms.
    #[arg(long, value_name = "TIME")]
    pub heartbeat: Option<Span>,
    /// Shortest time without a leader's sign of life, beyond the leader's lease, after which a voter
    /// stands for election. Shorter: faster fail-over, and more elections without need on a loaded
    /// machine. Default 150ms.
    #[arg(long, value_name = "TIME")]
    pub election_min: Option<Span>,
    /// The longest such time; also the leader's lease, during which no other node is voted for.
    /// A dead leader is replaced after this plus a time between `election-min` and this. Default
    /// 300ms.
    #[arg(long, value_name = "TIME")]
    pub election_max: Option<Span>,
    /// Log entries after which a snapshot is built and the log before it purged. More: a longer log
    /// on disk, and a longer start; fewer: more work for snapshots. Default 50000.
    #[arg(long, value_name = "ENTRIES")]
    pub snapshot_every: Option<u64>,
    /// Log entries that are kept behind a snapshot, so that a node that was away shortly catches up
    /// by log. What a node needs that is just being brought up is kept, too, up to 20 times this and
    /// snapshot-every. Default 10000.
    #[arg(long, value_name = "ENTRIES")]
    pub log_keep: Option<u64>,

    /// Longest time that a request may take, whatever the client asks for. Default 60s.
    #[arg(long, value_name = "TIME")]
    pub request_timeout_max: Option<Span>,
    /// Requests under way on this node in all; more are answered "busy". Bounds memory. Default
    /// 65536.
    #[arg(long, value_name = "N")]
    pub requests_max: Option<usize>,
    /// Requests under way on one connection; more are answered "busy". Default 8192.
    #[arg(long, value_name = "N")]
    pub requests_per_connection: Option<usize>,
    /// Bytes of requests under way on this node in all; more are answered "busy". Default 256MiB.
    #[arg(long, value_name = "SIZE")]
    pub request_bytes_max: Option<Size>,
    /// Client connections in all; more are refused. Default 16384.
    #[arg(long, value_name = "N")]
    pub connections_max: Option<usize>,
    /// Client connections of one identity (the name in a certificate). Default 4096.
    #[arg(long, value_name = "N")]
    pub connections_per_identity: Option<usize>,
    /// Watches that are open on this node; more are refused. Each costs at most about 5 MiB, when
    /// its client reads slowly. Default 16384.
    #[arg(long, value_name = "N")]
    pub watches_max: Option<usize>,
    /// A watcher that takes nothing for this long, while there is something for it, is let go of; it can go on
    /// from where it was. Until then it may hold what one watch holds (see watches-max). Default 30s.
    #[arg(long, value_name = "TIME")]
    pub watch_stall: Option<Span>,
    /// Threads for everything but the disk. One serves about as many requests as one core can, with
    /// the fewest switches between threads; more help where a node has many clients or watches and
    /// cores to spare. Default: a quarter of the cores, from 1 to 4.
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
    /// How long a stopping node waits for requests that are under way. Default 5s.
    #[arg(long, value_name = "TIME")]
    pub drain: Option<Span>,
}

impl Settings {
    /// What `self` says, and where it says nothing, what `file` says.
    pub fn over(self, file: Settings) -> Settings {
        Settings {
            id: self.id.or(file.id),
            name: self.name.or(file.name),
            listen: self.listen.or(file.listen),
            advertise: self.advertise.or(file.advertise),
            data: self.data.or(file.data),
            certs: self.certs.or(file.certs),
            metrics: self.metrics.or(file.metrics),
            join: self.join.or(file.join),
            value_max: self.value_max.or(file.value_max),
            store_max: self.store_max.or(file.store_max),
            heartbeat: self.heartbeat.or(file.heartbeat),
            election_min: self.election_min.or(file.election_min),
            election_max: self.election_max.or(file.election_max),
            snapshot_every: self.snapshot_every.or(file.snapshot_every),
            log_keep: self.log_keep.or(file.log_keep),
            request_timeout_max: self.request_timeout_max.or(file.request_timeout_max),
            requests_max: self.requests_max.or(file.requests_max),
            requests_per_connection: self.requests_per_connection.or(file.requests_per_connection),
            request_bytes_max: self.request_bytes_max.or(file.request_bytes_max),
            connections_max: self.connections_max.or(file.connections_max),
            connections_per_identity: self.connections_per_identity.or(file.connections_per_identity),
            watches_max: self.watches_max.or(file.watches_max),
            watch_stall: self.watch_stall.or(file.watch_stall),
            threads: self.threads.or(file.threads),
            drain: self.drain.or(file.drain),
        }
    }
}
