//! A node that is killed: its old connections must not keep the others waiting when it is back.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::process::{Child, Command};
use std::time::{Duration, Instant};

use common::{Client, Cluster, eventually};
use quorumfs_api::wire::{Admin, Call};
use raftnode::Config;

/// A node in a process of its own, killed at the end whatever happens.
struct Process(Child);

impl Process {
    fn start(config: &Config, join: &str) -> Process {
        let mut command = Command::new(env!("CARGO_BIN_EXE_raftnode"));
        command.args(["--id", &config.id.to_string(), "--name", &config.name, "--metrics", "off"]);
        command.args(["--listen", &config.listen.to_string(), "--join", join]);
        command.arg("--data").arg(&config.data).arg("--certs").arg(&config.certs);
        Process(command.env("RUST_LOG", "error,openraft=off").spawn().unwrap())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_node_that_is_back_is_noticed_at_once() {
    let cluster = Cluster::one().await;
    let config = cluster.site.node(2);
    let join = cluster.addr(1).to_string();
    let mut node = Process::start(&config, &join);
    cluster.admin_when_known(Admin::Promote(2)).await;
    let paths = certs::Paths::in_dir(&cluster.site.certs(), "tester");
    let caught_up = || async {
        let wanted = cluster.applied(1).await;
        let client =
            tokio::time::timeout(Duration::from_secs(1), Client::connect(config.listen, &paths)).await;
        let quorumfs_api::wire::Answer::Status(status) = client.ok()?.ok()?.call(Call::Status).await.ok()?
        else {
            return None;
        };
        (status.applied_index >= wanted && status.leader == Some(1)).then_some(())
    };
    eventually("the first start", caught_up).await;
    let leader = cluster.leader().await;
    for round in 0..3 {
        leader.put("/x", b"1").await.unwrap();
        drop(node);
        node = Process::start(&config, &join);
        let back = Instant::now();
        eventually("it is back", caught_up).await;
        // Without a reset, the leader's connection would first have to time out.
        assert!(back.elapsed() < Duration::from_millis(2500), "round {round}: {:?}", back.elapsed());
    }
    drop(node);
    cluster.end().await;
}
