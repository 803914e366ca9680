//! Metrics and health, over plain HTTP on a listener of its own.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State as Shared;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use openraft::Instant;
use tokio::net::TcpListener;

use crate::progress;
use crate::service::{Context, info};

/// How often latencies are put into their buckets.
const UPKEEP: Duration = Duration::from_secs(5);
/// Entries that may be committed and not applied yet on a node that is ready.
const LAG: u64 = 10_000;
/// Election time-outs for which a leader may be without its quorum and is still ready.
const QUORUM_AGE: u32 = 3;

/// Serves on `listener` until the node stops.
pub fn serve(listener: TcpListener, context: Arc<Context>) {
    let stop = context.stop.clone();
    let app = Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .with_state(context);
    tokio::spawn(async move {
        let served =
            axum::serve(listener, app).with_graceful_shutdown(async move { stop.raised().await }).await;
        if let Err(error) = served {
            tracing::error!("metrics are no longer served: {error}");
        }
    });
}

/// Keeps what was recorded small, scraped or not.
pub async fn upkeep(context: Arc<Context>) {
    let mut tick = tokio::time::interval(UPKEEP);
    loop {
        tokio::select! {
            _ = tick.tick() => context.metrics.upkeep(),
            () = context.stop.raised() => return,
        }
    }
}

async fn metrics(Shared(context): Shared<Arc<Context>>) -> Response {
    let status = match info::status(&context) {
        Ok(status) => status,
        Err(failure) => return (StatusCode::SERVICE_UNAVAILABLE, failure.to_string()).into_response(),
    };
    let raft = progress::now(&context.raft.metrics());
    let committed = raft.local_committed.map_or(0, |at| at.index);
    let gauges: [(&str, &str, f64); 16] = [
        ("quorumfs_raft_term", "The current term", status.term as f64),
        ("quorumfs_raft_leader", "Id of the leader; 0 if there is none", status.leader.unwrap_or(0) as f64),
        (
            "quorumfs_raft_is_leader",
            "1 if this node leads",
            f64::from(u8::from(status.leader == Some(status.id))),
        ),
        ("quorumfs_raft_last_log_index", "Last entry of the log", status.last_log_index as f64),
        ("quorumfs_raft_committed_index", "Last entry that is committed here", committed as f64),
        ("quorumfs_raft_applied_index", "Last entry that is applied here", status.applied_index as f64),
        ("quorumfs_raft_snapshot_index", "Last entry of the snapshot", status.snapshot_index as f64),
        ("quorumfs_raft_members", "Members of the cluster", status.members.len() as f64),
        ("quorumfs_revision", "The store's revision here", status.revision as f64),
        ("quorumfs_compacted_revision", "Oldest revision to resume a watch from", status.compacted as f64),
        ("quorumfs_keys", "Keys", status.keys as f64),
        ("quorumfs_store_bytes", "Bytes that count against the quota", status.store_bytes as f64),
        ("quorumfs_store_max_bytes", "The quota", status.store_max as f64),
        ("quorumfs_watches", "Watches that are open", status.watches as f64),
        ("quorumfs_connections", "Client connections", context.bounds.connections() as f64),
        ("quorumfs_requests_under_way", "Requests under way", context.bounds.requests() as f64),
    ];
    for (name, text, value) in gauges {
        context.metrics.gauge(name, text, value);
    }
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], context.metrics.render()).into_response()
}

async fn ready(Shared(context): Shared<Arc<Context>>) -> Response {
    match why_not_ready(&context) {
        None => "ready\n".into_response(),
        Some(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {why}\n")).into_response(),
    }
}

/// Why this node should not be sent clients, if so.
fn why_not_ready(context: &Context) -> Option<String> {
    if context.draining.is_raised() {
        return Some("the node is stopping".into());
    }
    let raft = progress::now(&context.raft.metrics());
    if let Err(fatal) = &raft.running_state {
        return Some(format!("the node has failed: {fatal}"));
    }
    let Some(leader) = raft.current_leader else { return Some("there is no leader".into()) };
    let quorum_age = raft.last_quorum_acked.map_or(Duration::ZERO, |at| at.elapsed());
    if leader == context.config.id && quorum_age > context.config.election_max * QUORUM_AGE {
        return Some(format!("it leads, but no quorum has answered for {quorum_age:?}"));
    }
    let committed = raft.local_committed.map_or(0, |at| at.index);
    let applied = raft.last_applied.map_or(0, |at| at.index);
    (applied + LAG < committed)
        .then(|| format!("{} committed entries are not applied yet", committed - applied))
}
