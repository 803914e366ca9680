//! Real nodes in this process, over QUIC on the loopback.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used)]

use std::future::Future;
use std::net::{SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use certs::{Authority, Request, Validity};
use quorumfs_api::client::{Client, Overrides, Settings};
use quorumfs_api::wire::Admin;
use raftnode::{Config, Node};
use tempfile::TempDir;
use tokio::runtime::Runtime;

/// How long anything may take in a test, on a machine that is busy.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Polls until `good` gives something.
pub async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, mut good: impl FnMut() -> F) -> T {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = good().await {
            return found;
        }
        assert!(Instant::now() < until, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A node on a runtime of its own, so that it can die without a word.
pub struct Running {
    pub id: u64,
    pub addr: SocketAddr,
    node: Option<Node>,
    runtime: Option<Runtime>,
}

impl Running {
    /// As `kill -9`: nothing is said to anybody.
    pub fn crash(&mut self) {
        if let Some(node) = self.node.take() {
            std::mem::forget(node);
        }
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.crash();
    }
}

pub struct Cluster {
    pub dir: TempDir,
    pub authority: Authority,
    pub nodes: Vec<Running>,
}

impl Cluster {
    /// `size` nodes, all of them voters.
    pub fn start(size: u64) -> Cluster {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::create(&dir.path().join("pki"), Validity::days(10), false).unwrap();
        authority.issue(&Request::client("admin").unwrap()).unwrap();
        let mut cluster = Cluster { dir, authority, nodes: Vec::new() };
        for id in 1..=size {
            cluster.add(id);
        }
        if size < 2 {
            return cluster;
        }
        Runtime::new().unwrap().block_on(async {
            let client = cluster.client();
            for id in 2..=size {
                eventually("a learner is there", || async {
                    let status = client.status(PATIENCE).await.ok()?;
                    status.members.iter().any(|member| member.id == id).then_some(())
                })
                .await;
                client.admin(Admin::Promote(id), PATIENCE).await.unwrap();
            }
        });
        cluster
    }

    fn add(&mut self, id: u64) {
        let name = format!("n{id}");
        self.authority.issue(&Request::node(&name, ["127.0.0.1"]).unwrap()).unwrap();
        let addr = free_addr();
        let data = self.dir.path().join(&name);
        let mut config = Config::new(id, &name, addr, &data, &self.certs()).unwrap();
        config.join = self.nodes.iter().map(|node| node.addr.to_string()).collect();
        let runtime = Runtime::new().unwrap();
        let node = runtime.block_on(async {
            if id == 1 {
                Node::init(&config).await.unwrap();
            }
            Node::start(config).await.unwrap()
        });
        let addr = node.local_addr();
        self.nodes.push(Running { id, addr, node: Some(node), runtime: Some(runtime) });
    }

    pub fn certs(&self) -> PathBuf {
        self.dir.path().join("pki")
    }

    pub fn addrs(&self) -> Vec<String> {
        self.nodes.iter().map(|node| node.addr.to_string()).collect()
    }

    pub fn settings(&self) -> Settings {
        Settings::resolve(Overrides {
            nodes: Some(self.addrs()),
            certs: Some(self.certs()),
            name: Some("admin".into()),
            timeout: Some(PATIENCE),
        })
        .unwrap()
    }

    /// Needs a runtime around it.
    pub fn client(&self) -> Client {
        Client::new(self.settings()).unwrap()
    }

    /// Crashes the leader, and answers its id.
    pub async fn crash_leader(&mut self, client: &Client) -> u64 {
        let leader =
            eventually("there is a leader", || async { client.status(PATIENCE).await.ok()?.leader }).await;
        self.nodes.iter_mut().find(|node| node.id == leader).unwrap().crash();
        leader
    }

    /// A `kvctl` that knows where the cluster is.
    pub fn kvctl(&self) -> Command {
        let mut command = kvctl(&self.dir);
        command
            .env("QUORUMFS_NODES", self.addrs().join(","))
            .env("QUORUMFS_CERTS", self.certs())
            .env("QUORUMFS_NAME", "admin");
        command
    }
}

/// A `kvctl` that knows nothing, not even the settings of who runs the test.
pub fn kvctl(home: &TempDir) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kvctl"));
    command.env_clear().env("HOME", home.path());
    command
}

/// Runs it: exit code, standard output, standard error.
pub fn run(mut command: Command, args: &[&str]) -> (i32, String, String) {
    let Output { status, stdout, stderr } = command.args(args).output().unwrap();
    (
        status.code().unwrap(),
        String::from_utf8_lossy(&stdout).into_owned(),
        String::from_utf8_lossy(&stderr).into_owned(),
    )
}

/// A UDP port that was free a moment ago, and that this process gives out once. It lies below those that
/// the kernel gives to clients: one of them could take it before its node does.
fn free_addr() -> SocketAddr {
    const FIRST: u32 = 10_000;
    const COUNT: u32 = 20_000;
    static GIVEN: AtomicU32 = AtomicU32::new(0);
    // Test processes that run one after the other begin at different places.
    let first = std::process::id().wrapping_mul(97);
    loop {
        let number = first.wrapping_add(GIVEN.fetch_add(1, Ordering::Relaxed));
        let addr = SocketAddr::from(([127, 0, 0, 1], (FIRST + number % COUNT) as u16));
        if UdpSocket::bind(addr).is_ok() {
            return addr;
        }
    }
}
