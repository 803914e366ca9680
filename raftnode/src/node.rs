//! A node from its start to its end: what is opened in which order, and closed in the other.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use certs::{Credentials, Identity, Paths, Reloader, Role};
use openraft::errors::{Fatal, InitializeError, RaftError};
use openraft::{ChangeMembers, Instant as _};
use quorumfs_machine::StorageError;
use quorumfs_store::{MemberNode, OpenError, Options, Raft, Store, StoreGuard, TypeConfig};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::bounds::Bounds;
use crate::clock::Clock;
use crate::config::Config;
use crate::endpoint::{Endpoint, EndpointError};
use crate::lease::Leases;
use crate::metrics::NodeMetrics;
use crate::network::peers::Peers;
use crate::network::serve::PeerServer;
use crate::network::{Links, Me};
use crate::retention::{self, Sending};
use crate::service::linear::Linear;
use crate::service::propose::Proposer;
use crate::service::{Context, Service};
use crate::stop::Stop;
use crate::{http, join, listener, progress, service};

/// Entries of one append request; their bytes are bounded too, where they are read.
const PAYLOAD_ENTRIES: u64 = 1024;
/// How long a leader that stops waits for another to take over.
const TRANSFER_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a stopping node waits for the other sides of its connections to hear of it.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Why a node does not run.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The data directory cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The certificates cannot be used.
    #[error(transparent)]
    Certs(#[from] certs::Error),
    /// The certificate is of somebody else.
    #[error(
        "the certificate {path} is of {found}, and this is node/{name}: issue one with `certs issue --node {name}`"
    )]
    Identity {
        /// The certificate.
        path: PathBuf,
        /// Whose it is.
        found: Identity,
        /// Who runs here.
        name: String,
    },
    /// The socket cannot be served.
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    /// openraft does not take the time-outs.
    #[error("the configuration does not do for Raft: {0}")]
    Raft(#[from] openraft::ConfigError),
    /// Metrics cannot be served.
    #[error("cannot serve metrics on {addr}: {error}")]
    Metrics {
        /// Where.
        addr: SocketAddr,
        /// Why.
        error: std::io::Error,
    },
    /// The metrics registry cannot be made.
    #[error("cannot make the metrics registry: {0}")]
    Registry(#[from] metrics_exporter_prometheus::BuildError),
    /// Raft stopped by itself: a disk failed, or worse.
    #[error(
        "the node has failed: {0}; what it acknowledged is safe with the others; start it again, and look at its disk"
    )]
    Fatal(#[source] Box<Fatal<TypeConfig>>),
    /// A cluster is there already.
    #[error("the data directory {0} belongs to a cluster already: start the node without `init`")]
    Initialized(PathBuf),
    /// The last of the state could not be written at the end.
    #[error("the state could not be written at the end: {0}; the log has everything")]
    Close(#[from] StorageError),
    /// The process cannot listen to signals.
    #[error("signals cannot be handled")]
    Signals,
    /// A part of the node ended in an unforeseen way.
    #[error("a task of the node ended early: {0}")]
    Task(#[from] tokio::task::JoinError),
}

impl From<Fatal<TypeConfig>> for NodeError {
    fn from(fatal: Fatal<TypeConfig>) -> NodeError {
        NodeError::Fatal(Box::new(fatal))
    }
}

/// A running node.
pub struct Node {
    context: Arc<Context>,
    endpoint: Endpoint,
    guard: StoreGuard,
    reloader: Arc<Reloader>,
    metrics_addr: Option<SocketAddr>,
}

/// The settings of consensus.
///
/// # Errors
/// When openraft does not take the time-outs.
pub fn raft_config(config: &Config) -> Result<Arc<openraft::Config>, NodeError> {
    let ms = |time: Duration| time.as_millis() as u64;
    let raft = openraft::Config {
        cluster_name: "quorumfs".into(),
        heartbeat_interval: ms(config.heartbeat),
        election_timeout_min: ms(config.election_min),
        election_timeout_max: ms(config.election_max),
        enable_pre_vote: Some(true),
        // A leader that comes back in its old term may have acknowledged more than it remembers to be
        // committed, and would answer linearizable reads without it. In a new term its first entry lies
        // behind all that.
        enable_leader_restore: Some(false),
        max_payload_entries: PAYLOAD_ENTRIES,
        snapshot_policy: openraft::SnapshotPolicy::LogsSinceLast(config.snapshot_every),
        // What goes is decided by `retention`.
        max_in_snapshot_log_to_keep: u64::MAX,
        // A follower is served from the log as long as the log reaches back to it.
        replication_lag_threshold: u64::MAX / 2,
        ..openraft::Config::default()
    };
    Ok(Arc::new(raft.validate()?))
}

async fn open_store(config: &Config) -> Result<Store, NodeError> {
    let options = Options::new(quorumfs_store::Identity { id: config.id, name: config.name.clone() });
    let data = config.data.clone();
    // It may read a long log, and must not keep the runtime from what else it does.
    Ok(tokio::task::spawn_blocking(move || Store::open(&data, &options)).await??)
}

fn check_identity(config: &Config, paths: &Paths, credentials: &Credentials) -> Result<(), NodeError> {
    let found = credentials.identity();
    if found.role == Role::Node && found.name == config.name {
        return Ok(());
    }
    Err(NodeError::Identity { path: paths.cert.clone(), found: found.clone(), name: config.name.clone() })
}

async fn bind_metrics(config: &Config) -> Result<Option<TcpListener>, NodeError> {
    let Some(addr) = config.metrics else { return Ok(None) };
    let listener = TcpListener::bind(addr).await;
    listener.map(Some).map_err(|error| NodeError::Metrics { addr, error })
}

impl Node {
    /// Makes the data directory the first member of a new cluster.
    ///
    /// # Errors
    /// When it belongs to a cluster already, or cannot be used.
    pub async fn init(config: &Config) -> Result<(), NodeError> {
        let paths = Paths::in_dir(&config.certs, &config.name);
        let credentials = Credentials::load(&paths)?;
        check_identity(config, &paths, &credentials)?;
        let store = open_store(config).await?;
        let endpoint = Endpoint::bind(config.listen, &credentials, &config.data)?;
        let addr = config.advertise.clone().unwrap_or_else(|| endpoint.local_addr().to_string());
        let me = Me { id: config.id, name: config.name.clone() };
        let network = Links::new(me, Peers::new(endpoint.clone()), Sending::default());
        let raft = Raft::new(config.id, raft_config(config)?, network, store.log, store.machine).await?;
        let me = MemberNode { name: config.name.clone(), addr };
        let made = raft.initialize(BTreeMap::from([(config.id, me)])).await;
        // It must be on disk as this node's own before anybody is told that it worked.
        if made.is_ok() {
            let mut metrics = raft.metrics();
            let led = progress::wait_for(&mut metrics, |now| {
                now.last_applied.is_some() || now.running_state.is_err()
            });
            if let Ok(seen) = led.await
                && let Err(fatal) = &seen.running_state
            {
                return Err(fatal.clone().into());
            }
        }
        raft.shutdown().await?;
        store.guard.close().await?;
        endpoint.close().await;
        match made {
            Ok(()) => Ok(()),
            Err(RaftError::Fatal(fatal)) => Err(fatal.into()),
            Err(RaftError::APIError(InitializeError::NotAllowed(_) | InitializeError::NotInMembers(_))) => {
                Err(NodeError::Initialized(config.data.clone()))
            }
        }
    }

    /// Starts a node. It serves when this returns; whether it has a leader is another question.
    ///
    /// # Errors
    /// When anything that it needs cannot be opened.
    pub async fn start(config: Config) -> Result<Node, NodeError> {
        let paths = Paths::in_dir(&config.certs, &config.name);
        let (reloader, credentials) = Reloader::start(paths.clone())?;
        let first = credentials.borrow().clone();
        check_identity(&config, &paths, &first)?;
        let store = open_store(&config).await?;
        let endpoint = Endpoint::bind(config.listen, &first, &config.data)?;
        let (http, metrics) = (bind_metrics(&config).await?, NodeMetrics::new()?);
        let metrics_addr = http.as_ref().and_then(|listener| listener.local_addr().ok());
        let advertise = config.advertise.clone().unwrap_or_else(|| endpoint.local_addr().to_string());

        let (me, sending) = (Me { id: config.id, name: config.name.clone() }, Sending::default());
        let links = Links::new(me, Peers::new(endpoint.clone()), sending.clone());
        let raft = Raft::new(config.id, raft_config(&config)?, links, store.log, store.machine).await?;
        let bounds = Bounds::new(&config);
        let context = Arc::new(Context {
            advertise,
            proposer: Proposer::start(raft.clone()),
            linear: Linear::start(raft.clone()),
            leases: Leases::default(),
            clock: Arc::new(Clock::default()),
            metrics,
            denials: Default::default(),
            draining: Stop::default(),
            stop: Stop::default(),
            state: store.state,
            bounds: bounds.clone(),
            raft: raft.clone(),
            config,
        });
        let peers = PeerServer { id: context.config.id, raft, snapshots: store.snapshots };
        let service = Service::new(context.clone());
        tokio::spawn(listener::run(endpoint.clone(), bounds, peers, service, context.stop.clone()));
        tokio::spawn({
            let (leases, context) = (context.leases.clone(), context.clone());
            async move { leases.run(context).await }
        });
        tokio::spawn(reload(endpoint.clone(), credentials, context.stop.clone()));
        tokio::spawn(join::run(endpoint.clone(), context.clone()));
        tokio::spawn(keep_address(context.clone()));
        tokio::spawn(retention::run(context.clone(), sending));
        tokio::spawn(http::upkeep(context.clone()));
        if let Some(listener) = http {
            http::serve(listener, context.clone());
        }
        let config = &context.config;
        let (local, name) = (endpoint.local_addr(), &config.name);
        tracing::info!(id = config.id, name, advertise = context.advertise, "serving on {local} (UDP)");
        Ok(Node { context, endpoint, guard: store.guard, reloader: Arc::new(reloader), metrics_addr })
    }

    /// The UDP address on which peers and clients are served.
    pub fn local_addr(&self) -> SocketAddr {
        self.endpoint.local_addr()
    }

    /// Where others reach this node.
    pub fn advertised(&self) -> &str {
        &self.context.advertise
    }

    /// Where metrics are served.
    pub fn metrics_addr(&self) -> Option<SocketAddr> {
        self.metrics_addr
    }

    /// Consensus, for tests and tools in the same process.
    pub fn raft(&self) -> &Raft {
        &self.context.raft
    }

    /// Loads the certificates again at once. True if there was something new.
    ///
    /// # Errors
    /// When the new ones are not good; the old ones stay in use.
    pub fn reload_certificates(&self) -> Result<bool, certs::Error> {
        self.reloader.reload_now()
    }

    /// Waits until the node fails by itself, which a healthy one never does.
    pub async fn wait(&self) -> NodeError {
        // These change seldom, and end with Raft; the full metrics change with every message, and then say
        // how it ended.
        let mut rare = self.context.raft.server_metrics();
        let _ = progress::wait_for(&mut rare, |_| false).await;
        let ended = progress::now(&self.context.raft.metrics()).running_state.err();
        ended.unwrap_or(Fatal::Stopped).into()
    }

    /// Ends the node: leadership is handed over, requests under way are answered, everything is
    /// written, everybody is told.
    ///
    /// # Errors
    /// When the state could not be written at the end.
    pub async fn stop(self) -> Result<(), NodeError> {
        let Node { context, endpoint, guard, .. } = self;
        tracing::info!("stopping");
        if has_followers(&context) {
            let until = Instant::now() + TRANSFER_TIMEOUT;
            if let Err(failure) = service::transfer(&context, None, until).await {
                tracing::warn!("leadership was not handed over: {failure}");
            }
        }
        context.draining.raise();
        if tokio::time::timeout(context.config.drain, context.bounds.all_requests_done()).await.is_err() {
            tracing::warn!("{} request(s) were cut off: they took too long", context.bounds.requests());
        }
        context.stop.raise();
        context.raft.shutdown().await?;
        let closed = guard.close().await;
        endpoint.refuse_new();
        // What does not hear of it within this time finds out by itself.
        let _ = tokio::time::timeout(CLOSE_TIMEOUT, endpoint.close()).await;
        closed?;
        tracing::info!("stopped");
        Ok(())
    }
}

/// Whether this node leads others that answer, one of whom can take over.
fn has_followers(context: &Context) -> bool {
    let raft = progress::now(&context.raft.metrics());
    let answered = raft.last_quorum_acked.is_some_and(|at| at.elapsed() <= context.config.election_max * 2);
    raft.state.is_leader() && raft.membership_config.voter_ids().count() > 1 && answered
}

/// Takes up new certificates.
async fn reload(endpoint: Endpoint, mut credentials: watch::Receiver<Arc<Credentials>>, stop: Stop) {
    loop {
        tokio::select! {
            changed = credentials.changed() => if changed.is_err() { return },
            () = stop.raised() => return,
        }
        let new = credentials.borrow_and_update().clone();
        match endpoint.reload(&new) {
            Ok(()) => tracing::info!(not_after = %new.not_after(), "new certificates are in use"),
            Err(error) => tracing::error!("new certificates cannot be used, the old ones stay: {error}"),
        }
    }
}

/// A leader whose address has changed tells the cluster; a follower cannot, and says what to do.
async fn keep_address(context: Arc<Context>) {
    let mut metrics = context.raft.server_metrics();
    let mut warned = false;
    loop {
        let now = progress::now(&metrics);
        let leads = now.state.is_leader();
        let known = now.membership_config.get_node(&context.config.id).cloned();
        if let Some(known) = known
            && known.addr != context.advertise
        {
            if leads {
                let me = MemberNode { name: context.config.name.clone(), addr: context.advertise.clone() };
                tracing::info!("this node's address was {}, and is {} now", known.addr, me.addr);
                let change = ChangeMembers::SetNodes(BTreeMap::from([(context.config.id, me)]));
                if let Err(error) = context.raft.change_membership(change, false).await {
                    tracing::warn!("the cluster could not be told of the new address: {error}");
                }
            } else if !warned {
                warned = true;
                tracing::warn!(
                    "the cluster knows this node at {}, but it advertises {}: use the old address, or remove this \
                     node and add it again under a new id",
                    known.addr,
                    context.advertise
                );
            }
        }
        tokio::select! {
            changed = progress::wait_for(&mut metrics, |new| *new != now) => if changed.is_err() { return },
            () = context.stop.raised() => return,
        }
    }
}
