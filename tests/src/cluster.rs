//! A cluster of real nodes.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::binaries::binary;
use crate::cleanup::Scratch;
use crate::deadline::{eventually, until};
use crate::faults::Faults;
use crate::kv::Kv;
use crate::network::NetHost;
use crate::node::Node;
use crate::process::{run, succeed};

/// How long a change of membership may take.
const MEMBER_TIMEOUT: Duration = Duration::from_secs(30);

/// Nodes, their certificates and their data. All of it goes when this is dropped.
pub struct Cluster {
    nodes: Vec<Node>,
    /// The newest id: one that was removed is never given to another node.
    newest: u64,
    certs: PathBuf,
    flags: Vec<String>,
    /// Whether new nodes can be broken from within.
    breakable: bool,
    // Last, so that the nodes are gone when their directory goes.
    scratch: Scratch,
}

impl Cluster {
    /// `n` voting members on loopback.
    #[track_caller]
    pub fn start(n: u64) -> Cluster {
        Cluster::start_with(n, &[])
    }

    /// The same with more flags for each raftnode.
    #[track_caller]
    pub fn start_with(n: u64, flags: &[&str]) -> Cluster {
        Cluster::build((0..n).map(|_| None).collect(), flags)
    }

    /// One node on each of these hosts of a [`Network`](crate::Network).
    #[track_caller]
    pub fn start_on(hosts: &[NetHost]) -> Cluster {
        Cluster::build(hosts.iter().cloned().map(Some).collect(), &[])
    }

    #[track_caller]
    fn build(places: Vec<Option<NetHost>>, flags: &[&str]) -> Cluster {
        let scratch = Scratch::new("cluster");
        let certs = scratch.path().join("certs");
        let mut cluster = Cluster {
            nodes: Vec::new(),
            newest: 0,
            flags: flags.iter().map(|f| f.to_string()).collect(),
            breakable: false,
            certs,
            scratch,
        };
        cluster.certs_command(&["init", cluster.certs.to_str().unwrap()]);
        cluster.issue_client("admin");
        let mut places = places.into_iter();
        let first = cluster.prepare(places.next().expect("a cluster has a node"));
        first.init();
        cluster.nodes.push(first);
        cluster.nodes[0].start();
        for place in places {
            let id = cluster.add_learner(place);
            cluster.promote(id);
        }
        cluster
    }

    /// Describes the next node and makes its certificate.
    fn prepare(&mut self, place: Option<NetHost>) -> Node {
        self.newest += 1;
        let id = self.newest;
        let flags: Vec<&str> = self.flags.iter().map(String::as_str).collect();
        let mut node = Node::new(id, self.scratch.path(), &self.certs, &flags, place);
        node.faults = self.breakable.then(|| self.faults(&node.name));
        let ip = node.address.ip().to_string();
        let dir = self.certs.to_str().unwrap();
        self.certs_command(&["issue", "--dir", dir, "--node", &node.name, "--san", &ip]);
        node
    }

    fn faults(&self, name: &str) -> Faults {
        Faults::new(self.scratch.path().join(format!("{name}.faults")))
    }

    /// From their next start on the nodes can be broken from within, and so can those that come.
    pub fn make_breakable(&mut self) {
        self.breakable = true;
        for number in 0..self.nodes.len() {
            self.nodes[number].faults = Some(self.faults(&self.nodes[number].name));
        }
    }

    /// Makes a client's certificate.
    pub fn issue_client(&self, name: &str) {
        if !self.certs.join(format!("{name}.crt")).exists() {
            self.certs_command(&["issue", "--dir", self.certs.to_str().unwrap(), "--client", name]);
        }
    }

    #[track_caller]
    fn certs_command(&self, arguments: &[&str]) {
        let mut command = Command::new(binary("certs"));
        command.args(arguments);
        succeed(&run(command, Duration::from_secs(20)));
    }

    /// Starts a new node that joins as a learner; gives its number.
    #[track_caller]
    pub fn add_learner(&mut self, place: Option<NetHost>) -> u64 {
        let mut node = self.prepare(place);
        let id = node.id;
        node.launch(&["--join", &self.addresses()]);
        self.nodes.push(node);
        let kv = self.kv();
        eventually(&format!("n{id} is a learner"), MEMBER_TIMEOUT, || match kv.member(id) {
            Some(_) => Ok(()),
            None => Err("the cluster does not know it"),
        });
        id
    }

    /// Makes a learner a voter.
    #[track_caller]
    pub fn promote(&self, id: u64) {
        let kv = self.kv();
        eventually(&format!("n{id} is promoted"), MEMBER_TIMEOUT, || {
            kv.try_run(&["member", "promote", &id.to_string()])
        });
        until(&format!("n{id} votes"), MEMBER_TIMEOUT, || kv.member(id).is_some_and(|m| m.voter));
    }

    /// Takes a member out, then ends its process and forgets it.
    #[track_caller]
    pub fn remove(&mut self, id: u64) {
        self.kv().run(&["member", "remove", &id.to_string()]);
        self.nodes.retain(|n| n.id != id);
    }

    /// Directory of the certificates.
    pub fn certs(&self) -> &Path {
        &self.certs
    }

    /// A place for this cluster's files.
    pub fn dir(&self) -> &Path {
        self.scratch.path()
    }

    /// Addresses of all nodes, as clients take them.
    pub fn addresses(&self) -> String {
        let all: Vec<String> = self.nodes.iter().map(|n| n.address.to_string()).collect();
        all.join(",")
    }

    /// A client that knows all nodes.
    pub fn kv(&self) -> Kv {
        Kv::new(self.addresses(), &self.certs)
    }

    /// A client that knows one node only.
    pub fn kv_through(&self, id: u64) -> Kv {
        Kv::new(self.node(id).address.to_string(), &self.certs)
    }

    /// Numbers of all nodes, running or not.
    pub fn ids(&self) -> Vec<u64> {
        self.nodes.iter().map(|n| n.id).collect()
    }

    /// One node.
    pub fn node(&self, id: u64) -> &Node {
        self.nodes.iter().find(|n| n.id == id).expect("there is such a node")
    }

    /// One node, to do something to it.
    pub fn node_mut(&mut self, id: u64) -> &mut Node {
        self.nodes.iter_mut().find(|n| n.id == id).expect("there is such a node")
    }

    /// All nodes.
    pub fn nodes_mut(&mut self) -> &mut [Node] {
        &mut self.nodes
    }

    /// Number of the leader, as the cluster says.
    #[track_caller]
    pub fn leader(&self) -> u64 {
        let kv = self.kv();
        eventually("a leader", MEMBER_TIMEOUT, || kv.leader().ok_or("nobody leads"))
    }

    /// `kill -9` of all nodes at once.
    pub fn kill_all(&mut self) {
        for node in &self.nodes {
            node.signal_kill();
        }
        for node in &mut self.nodes {
            node.kill();
        }
    }

    /// Starts all nodes that do not run.
    #[track_caller]
    pub fn start_all(&mut self) {
        for node in &mut self.nodes {
            if !node.runs() {
                node.launch(&[]);
            }
        }
        for node in &mut self.nodes {
            node.await_serving();
        }
    }
}
