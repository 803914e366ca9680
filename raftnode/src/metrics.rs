//! What a node counts. Every node has a registry of its own, so that several can live in one process.

use std::sync::Arc;
use std::time::Duration;

use metrics::{Counter, Gauge, Histogram, Key, KeyName, Label, Level, Metadata, Recorder, Unit};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle, PrometheusRecorder};

/// Buckets of the latency histograms, in seconds.
const LATENCY_BUCKETS: [f64; 16] = [
    0.000_1, 0.000_25, 0.000_5, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.125, 0.25, 0.5, 1.0, 2.5,
    10.0,
];
const METADATA: Metadata<'static> = Metadata::new("raftnode", Level::INFO, None);

/// What a request was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestKind {
    /// A change.
    Write,
    /// One key.
    Get,
    /// Many keys.
    Range,
    /// A barrier.
    Barrier,
    /// A lease renewed.
    KeepAlive,
    /// Status, leases, locks.
    Info,
    /// A change of the cluster.
    Admin,
}

impl RequestKind {
    const ALL: [(RequestKind, &'static str); 7] = [
        (RequestKind::Write, "write"),
        (RequestKind::Get, "get"),
        (RequestKind::Range, "range"),
        (RequestKind::Barrier, "barrier"),
        (RequestKind::KeepAlive, "keep_alive"),
        (RequestKind::Info, "info"),
        (RequestKind::Admin, "admin"),
    ];
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestResult {
    /// It was answered.
    Ok,
    /// The state machine refused it.
    Refused,
    /// It was not answered, because of this node or the cluster.
    Failed,
    /// There was no room for it.
    Busy,
}

impl RequestResult {
    const ALL: [(RequestResult, &'static str); 4] = [
        (RequestResult::Ok, "ok"),
        (RequestResult::Refused, "refused"),
        (RequestResult::Failed, "failed"),
        (RequestResult::Busy, "busy"),
    ];
}

/// The registry of a node. Clones share it.
#[derive(Clone)]
pub struct NodeMetrics {
    recorder: Arc<PrometheusRecorder>,
    handle: PrometheusHandle,
    requests: Arc<[[Counter; 4]; 7]>,
    latency: Arc<[Histogram; 7]>,
    /// Events that were sent to watchers.
    pub watch_events: Counter,
    /// Copies that were sent to watchers.
    pub watch_copies: Counter,
    /// Leases that were expired by this node.
    pub leases_expired: Counter,
}

impl NodeMetrics {
    /// An empty registry.
    ///
    /// # Errors
    /// Never, as long as the buckets above are some.
    pub fn new() -> Result<NodeMetrics, metrics_exporter_prometheus::BuildError> {
        let recorder = Arc::new(PrometheusBuilder::new().set_buckets(&LATENCY_BUCKETS)?.build_recorder());
        let counter = |name: &'static str, text: &'static str, labels: Vec<Label>| {
            recorder.describe_counter(KeyName::from(name), Some(Unit::Count), text.into());
            recorder.register_counter(&Key::from_parts(name, labels), &METADATA)
        };
        let requests = RequestKind::ALL.map(|(_, kind)| {
            RequestResult::ALL.map(|(_, result)| {
                let labels = vec![Label::new("kind", kind), Label::new("result", result)];
                counter("quorumfs_requests_total", "Requests of clients", labels)
            })
        });
        let latency = RequestKind::ALL.map(|(_, kind)| {
            let name = "quorumfs_request_seconds";
            recorder.describe_histogram(
                name.into(),
                Some(Unit::Seconds),
                "Time from a request to its answer".into(),
            );
            recorder.register_histogram(&Key::from_parts(name, vec![Label::new("kind", kind)]), &METADATA)
        });
        Ok(NodeMetrics {
            requests: Arc::new(requests),
            latency: Arc::new(latency),
            watch_events: counter("quorumfs_watch_events_total", "Events sent to watchers", vec![]),
            watch_copies: counter(
                "quorumfs_watch_copies_total",
                "Copies of subtrees sent to watchers",
                vec![],
            ),
            leases_expired: counter("quorumfs_leases_expired_total", "Leases whose time was up", vec![]),
            handle: recorder.handle(),
            recorder,
        })
    }

    /// Counts one request.
    pub fn request(&self, kind: RequestKind, result: RequestResult, took: Duration) {
        self.requests[kind as usize][result as usize].increment(1);
        self.latency[kind as usize].record(took.as_secs_f64());
    }

    /// Sets a gauge.
    pub fn gauge(&self, name: &'static str, text: &'static str, value: f64) {
        self.recorder.describe_gauge(name.into(), None, text.into());
        let gauge: Gauge = self.recorder.register_gauge(&Key::from_name(name), &METADATA);
        gauge.set(value);
    }

    /// All of it in Prometheus' text format.
    pub fn render(&self) -> String {
        self.handle.render()
    }

    /// Puts recorded latencies into their buckets. They pile up where nobody scrapes and nobody calls
    /// this every few seconds.
    pub fn upkeep(&self) {
        self.handle.run_upkeep();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_is_counted_is_rendered() {
        let metrics = NodeMetrics::new().unwrap();
        metrics.request(RequestKind::Write, RequestResult::Refused, Duration::from_millis(3));
        metrics.gauge("quorumfs_raft_term", "The term", 7.0);
        let text = metrics.render();
        assert!(text.contains(r#"quorumfs_requests_total{kind="write",result="refused"} 1"#), "{text}");
        assert!(text.contains("quorumfs_raft_term 7"), "{text}");
        assert!(text.contains(r#"quorumfs_request_seconds_bucket{kind="write",le="0.004"} 1"#), "{text}");
    }

    #[test]
    fn kinds_and_results_index_their_tables() {
        for (index, (kind, _)) in RequestKind::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, index);
        }
        for (index, (result, _)) in RequestResult::ALL.into_iter().enumerate() {
            assert_eq!(result as usize, index);
        }
    }
}
