//! Metrics and health.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::net::SocketAddr;

use common::{Cluster, eventually};
use raftnode::Node;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

async fn get(addr: SocketAddr, path: &str) -> (u16, String) {
    let mut stream = tokio::net::TcpStream::connect(addr).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
    (status, answer.split_once("\r\n\r\n").unwrap().1.to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_and_metrics_say_how_the_node_is() {
    let cluster = Cluster::one_with(|config| config.metrics = Some(([127, 0, 0, 1], 0).into())).await;
    let addr = cluster.node(1).metrics_addr().unwrap();
    cluster.leader().await.put("/x", b"1").await.unwrap();
    assert_eq!(get(addr, "/healthz").await.0, 200);
    assert_eq!(get(addr, "/readyz").await.0, 200);
    let (status, text) = get(addr, "/metrics").await;
    assert_eq!(status, 200);
    for line in [
        "quorumfs_raft_is_leader 1",
        "quorumfs_keys 1",
        r#"quorumfs_requests_total{kind="write",result="ok"} 1"#,
        r#"quorumfs_request_seconds_count{kind="write"} 1"#,
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_in_no_cluster_lives_but_is_not_ready() {
    let site = common::Site::new();
    let mut config = site.node(1);
    config.metrics = Some(([127, 0, 0, 1], 0).into());
    let node = Node::start(config).await.unwrap();
    let addr = node.metrics_addr().unwrap();
    assert_eq!(get(addr, "/healthz").await.0, 200);
    let (status, why) = get(addr, "/readyz").await;
    assert_eq!(status, 503);
    assert!(why.contains("no leader"), "{why}");
    node.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_without_its_quorum_is_not_ready() {
    let mut cluster = Cluster::of_with(3, |config| config.metrics = Some(([127, 0, 0, 1], 0).into())).await;
    let leader = cluster.leader_id().await;
    let addr = cluster.node(leader).metrics_addr().unwrap();
    for id in (1..=3).filter(|id| *id != leader) {
        cluster.stop(id).await;
    }
    eventually("it notices", || async { (get(addr, "/readyz").await.0 == 503).then_some(()) }).await;
    cluster.end().await;
}
