//! Nodes in this process, over real QUIC on the loopback, and a client that speaks the bare protocol.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used)]

pub mod client;

use std::future::Future;
use std::net::{SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use certs::{Authority, Paths, Request, Validity};
use quorumfs_api::wire::{Admin, Answer, Call, Member};
use raftnode::{Config, Node};
use tempfile::TempDir;
use tokio::time::Instant;

pub use client::Client;

/// How long anything may take in a test, on a machine that is busy.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The client that is admin where there is no policy.
pub const ADMIN: &str = "admin";

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

/// Gives up loudly.
pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(done) => done,
        Err(_) => panic!("not within {PATIENCE:?}: {what}"),
    }
}

/// A UDP port that was free a moment ago, and that this process gives out once. It lies below those that
/// the kernel gives to clients: one of them could take it before its node does.
pub fn free_addr() -> SocketAddr {
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

/// A CA, and room for data.
pub struct Site {
    pub dir: TempDir,
    pub authority: Authority,
}

impl Site {
    pub fn new() -> Site {
        let _ = tracing_subscriber::fmt()
            .with_env_filter(
                tracing_subscriber::EnvFilter::try_from_default_env()
                    .unwrap_or_else(|_| "warn,openraft=error".into()),
            )
            .with_test_writer()
            .try_init();
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::create(&dir.path().join("certs"), Validity::days(10), false).unwrap();
        let site = Site { dir, authority };
        site.client("tester");
        site.client(ADMIN);
        site
    }

    pub fn certs(&self) -> PathBuf {
        self.dir.path().join("certs")
    }

    pub fn client(&self, name: &str) -> Paths {
        self.authority.issue(&Request::client(name).unwrap()).unwrap().paths
    }

    /// Configuration of node `id`, with a certificate.
    pub fn node(&self, id: u64) -> Config {
        let name = format!("n{id}");
        if !Paths::in_dir(&self.certs(), &name).cert.exists() {
            self.authority.issue(&Request::node(&name, ["127.0.0.1"]).unwrap()).unwrap();
        }
        let data = self.dir.path().join(format!("data{id}"));
        Config::new(id, &name, free_addr(), &data, &self.certs()).unwrap()
    }
}

/// A cluster.
pub struct Cluster {
    pub site: Site,
    pub nodes: Vec<Option<Node>>,
    pub configs: Vec<Config>,
}

impl Cluster {
    /// One node.
    pub async fn one() -> Cluster {
        Cluster::one_with(|_| {}).await
    }

    /// One node, with changes to its configuration.
    pub async fn one_with(change: impl Fn(&mut Config)) -> Cluster {
        let site = Site::new();
        let mut config = site.node(1);
        change(&mut config);
        Node::init(&config).await.unwrap();
        let node = Node::start(config.clone()).await.unwrap();
        // It has to be elected first, as after every start.
        eventually("the node leads", || async { node.raft().is_leader().then_some(()) }).await;
        Cluster { site, nodes: vec![Some(node)], configs: vec![config] }
    }

    /// Voters 1 to `count`: the first by init, the others by join and promote.
    pub async fn of(count: u64) -> Cluster {
        Cluster::of_with(count, |_| {}).await
    }

    pub async fn of_with(count: u64, change: impl Fn(&mut Config)) -> Cluster {
        let mut cluster = Cluster::one_with(&change).await;
        for id in 2..=count {
            cluster.join(id, &change).await;
            cluster.admin(Admin::Promote(id)).await;
        }
        cluster
    }

    /// Starts node `id`, which asks to be added, and waits until it is a learner.
    pub async fn join(&mut self, id: u64, change: impl Fn(&mut Config)) {
        let mut config = self.site.node(id);
        change(&mut config);
        config.join = vec![self.configs[0].listen.to_string()];
        self.nodes.push(Some(Node::start(config.clone()).await.unwrap()));
        self.configs.push(config);
        eventually("the node is a member", || async {
            let leader = self.leader().await;
            let Ok(Answer::Status(status)) = leader.call(Call::Status).await else { return None };
            status.members.iter().any(|member| member.id == id).then_some(())
        })
        .await;
    }

    /// Does it through the leader, however often that moves.
    pub async fn admin(&self, admin: Admin) {
        eventually(&format!("{admin:?}"), || async {
            let leader = self.leader().await;
            match leader.call(Call::Admin(admin.clone())).await {
                Ok(Answer::Done) => Some(()),
                Ok(other) => panic!("{other:?}"),
                Err(failure) => {
                    eprintln!("{admin:?}: {failure}");
                    None
                }
            }
        })
        .await;
    }

    pub fn node(&self, id: u64) -> &Node {
        self.nodes[id as usize - 1].as_ref().expect("the node runs")
    }

    pub fn addr(&self, id: u64) -> SocketAddr {
        self.configs[id as usize - 1].listen
    }

    /// A client of node `id`, who may do everything.
    pub async fn client(&self, id: u64) -> Client {
        Client::connect(self.addr(id), &Paths::in_dir(&self.site.certs(), ADMIN)).await.unwrap()
    }

    /// Id of the leader, as all nodes that run see it.
    pub async fn leader_id(&self) -> u64 {
        eventually("one leader", || async {
            let mut leader = None;
            for node in self.nodes.iter().flatten() {
                let seen = node.raft().current_leader().await?;
                if *leader.get_or_insert(seen) != seen {
                    return None;
                }
            }
            leader.filter(|id| {
                self.nodes[*id as usize - 1].as_ref().is_some_and(|node| node.raft().is_leader())
            })
        })
        .await
    }

    /// A client of the leader.
    pub async fn leader(&self) -> Client {
        self.client(self.leader_id().await).await
    }

    /// Stops node `id`.
    pub async fn stop(&mut self, id: u64) {
        let node = self.nodes[id as usize - 1].take().unwrap();
        within("a stop", node.stop()).await.unwrap();
    }

    /// Starts node `id` again.
    pub async fn start(&mut self, id: u64) {
        let node = Node::start(self.configs[id as usize - 1].clone()).await.unwrap();
        self.nodes[id as usize - 1] = Some(node);
    }

    /// Stops all that run.
    pub async fn end(mut self) {
        for id in 1..=self.nodes.len() as u64 {
            if self.nodes[id as usize - 1].is_some() {
                self.stop(id).await;
            }
        }
    }

    /// Does it once the member is known, which may take a moment when it asks by itself.
    pub async fn admin_when_known(&self, admin: Admin) {
        eventually(&format!("{admin:?}"), || async {
            let leader = self.leader().await;
            leader.call(Call::Admin(admin.clone())).await.ok().map(drop)
        })
        .await;
    }

    /// Last log entry that node `id` has applied.
    pub async fn applied(&self, id: u64) -> u64 {
        match self.client(id).await.call(Call::Status).await.unwrap() {
            Answer::Status(status) => status.applied_index,
            other => panic!("{other:?}"),
        }
    }

    pub fn member(&self, id: u64) -> Member {
        let config = &self.configs[id as usize - 1];
        Member { id, name: config.name.clone(), addr: config.listen.to_string(), voter: false }
    }
}
