//! A quorumfs cluster on this machine: the real programs, their data on disk, mutual TLS as always.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use bytes::Bytes;
use quorumfs_api::client::{Client, Session, Settings, Watch, WatchItem};
use quorumfs_api::event::Change as Happened;
use quorumfs_api::wire::{Admin, Answer, Call, Consistency, WatchStart};
use quorumfs_api::{Command as Change, CreateMode, Key, LeaseChange, Owner};

use crate::process::{Process, free_udp_ports, run, until};

/// How long a cluster has to form, and a mount to appear.
const START_TIME: Duration = Duration::from_secs(60);
/// How long a request may take.
const CALL_TIME: Duration = Duration::from_secs(10);
/// How long a snapshot may take.
const SNAPSHOT_TIME: Duration = Duration::from_secs(120);
/// Time to live of a session.
const SESSION_TTL: Duration = Duration::from_secs(30);
/// The identity of the benchmark.
const IDENTITY: &str = "admin";

/// The running cluster, and its mounts.
pub struct QuorumCluster {
    // Mounts end before the nodes that they need.
    mounts: Vec<Mount>,
    nodes: Vec<Node>,
    bin: PathBuf,
    dir: PathBuf,
    addresses: Vec<String>,
}

/// One node, and how it is started.
struct Node {
    process: Process,
    name: String,
    args: Vec<OsString>,
}

struct Mount {
    process: Process,
    path: PathBuf,
}

/// One client with its connections and its session.
#[derive(Clone)]
pub struct Handle {
    client: Client,
    session: Arc<Session>,
}

impl QuorumCluster {
    /// Starts `size` nodes with everything of theirs under `dir`.
    pub async fn start(bin: &Path, dir: &Path, size: usize) -> anyhow::Result<QuorumCluster> {
        let certs = dir.join("certs");
        run(Command::new(bin.join("certs")).arg("init").arg(&certs))?;
        let issue = |role: &str, name: &str, san: Option<&str>| {
            let mut command = Command::new(bin.join("certs"));
            command.arg("issue").arg("--dir").arg(&certs).arg(role).arg(name);
            if let Some(san) = san {
                command.arg("--san").arg(san);
            }
            run(&mut command)
        };
        issue("--client", IDENTITY, None)?;
        let ports = free_udp_ports::<3>()?;
        let addresses: Vec<String> = ports[..size].iter().map(|port| format!("127.0.0.1:{port}")).collect();
        let mut nodes = Vec::new();
        for (i, address) in addresses.iter().enumerate() {
            let name = format!("n{}", i + 1);
            issue("--node", &name, Some("127.0.0.1"))?;
            let flags = |command: &mut Command| {
                command
                    .arg("--id")
                    .arg((i + 1).to_string())
                    .arg("--name")
                    .arg(&name)
                    .arg("--listen")
                    .arg(address);
                command
                    .arg("--data")
                    .arg(dir.join(&name))
                    .arg("--certs")
                    .arg(&certs)
                    .arg("--metrics")
                    .arg("off");
            };
            let mut command = Command::new(bin.join("raftnode"));
            if i == 0 {
                let mut init = Command::new(bin.join("raftnode"));
                init.arg("init");
                flags(&mut init);
                run(&mut init)?;
                flags(&mut command);
            } else {
                flags(&mut command);
                command.arg("--join").arg(&addresses[0]);
            }
            let args = command.get_args().map(OsString::from).collect();
            nodes.push(Node { process: Process::start(dir, &name, command)?, name, args });
        }
        let (bin, dir) = (bin.to_path_buf(), dir.to_path_buf());
        let cluster = QuorumCluster { mounts: Vec::new(), nodes, bin, dir, addresses };
        let client = cluster.client()?;
        for id in 2..=size as u64 {
            until("a node joins", START_TIME, async || {
                Ok(client.admin(Admin::Promote(id), CALL_TIME).await?)
            })
            .await?;
        }
        until("the cluster serves", START_TIME, async || Ok(client.barrier(CALL_TIME).await?)).await?;
        Ok(cluster)
    }

    /// Ids of the nodes' processes.
    pub fn processes(&self) -> Vec<u32> {
        self.nodes.iter().map(|node| node.process.id()).collect()
    }

    fn client(&self) -> anyhow::Result<Client> {
        let settings = Settings {
            nodes: self.addresses.clone(),
            certs: self.dir.join("certs"),
            name: IDENTITY.to_string(),
            timeout: CALL_TIME,
        };
        Ok(Client::new(settings)?)
    }

    fn node(&mut self, id: u64) -> anyhow::Result<&mut Node> {
        let node = usize::try_from(id).ok().and_then(|id| self.nodes.get_mut(id.wrapping_sub(1)));
        node.with_context(|| format!("there is no node {id}"))
    }

    /// Kills a node, as a crash would.
    pub fn kill(&mut self, id: u64) -> anyhow::Result<()> {
        self.node(id)?.process.kill()
    }

    /// Starts a node that was killed.
    pub fn start_again(&mut self, id: u64) -> anyhow::Result<()> {
        let (dir, bin) = (self.dir.clone(), self.bin.clone());
        let node = self.node(id)?;
        let mut command = Command::new(bin.join("raftnode"));
        command.args(&node.args);
        node.process = Process::start(&dir, &node.name, command)?;
        Ok(())
    }

    /// Waits until a node has applied all that was committed when this was called.
    pub async fn until_caught_up(&self, handle: &Handle, id: u64, time: Duration) -> anyhow::Result<()> {
        let revision = handle.client.barrier(CALL_TIME).await?;
        let addr = self.addresses.get(id as usize - 1).context("a node without an address")?;
        until("a node comes back", time, async || {
            match handle.client.call_at(addr, Call::Status, CALL_TIME).await? {
                Answer::Status(status) if status.revision >= revision => Ok(()),
                _ => anyhow::bail!("node {id} is behind"),
            }
        })
        .await
    }

    /// As [`QuorumCluster::connect`], for a cluster that may take so long to serve.
    pub async fn connect_within(&self, time: Duration) -> anyhow::Result<Handle> {
        let client = self.client()?;
        let session = client.session(SESSION_TTL, time).await.context("opening a session")?;
        Ok(Handle { client, session: Arc::new(session) })
    }

    /// A client of its own, with connections of its own.
    pub async fn connect(&self) -> anyhow::Result<Handle> {
        self.connect_within(CALL_TIME).await
    }

    /// Mounts the store once more; answers where.
    pub async fn mount(&mut self) -> anyhow::Result<PathBuf> {
        self.mount_at("/").await
    }

    /// Mounts what is under a key; answers where.
    pub async fn mount_at(&mut self, prefix: &str) -> anyhow::Result<PathBuf> {
        let name = format!("host{}", self.mounts.len());
        let path = self.dir.join(&name);
        std::fs::create_dir_all(&path)?;
        let mut command = Command::new(self.bin.join("fsd"));
        command.arg("mount").arg(self.addresses.join(",")).arg(&path);
        command.arg("--certs").arg(self.dir.join("certs")).arg("--name").arg(IDENTITY);
        command.arg("--prefix").arg(prefix);
        let mut process = Process::start(&self.dir, &format!("fsd-{name}"), command)?;
        until("the mount appears", START_TIME, async || {
            process.check()?;
            is_mounted(&path)
        })
        .await?;
        self.mounts.push(Mount { process, path: path.clone() });
        Ok(path)
    }

    /// Ids of the mounts' processes.
    pub fn mount_processes(&self) -> Vec<u32> {
        self.mounts.iter().map(|mount| mount.process.id()).collect()
    }

    /// Ends the mounts; fails if one stays.
    pub fn unmount(&mut self) -> anyhow::Result<()> {
        let paths: Vec<PathBuf> = self.mounts.drain(..).map(|mount| mount.path.clone()).collect();
        for path in paths {
            ensure!(is_mounted(&path).is_err(), "{path:?} is still mounted");
        }
        Ok(())
    }
}

fn is_mounted(path: &Path) -> anyhow::Result<()> {
    let info = std::fs::read_to_string("/proc/self/mountinfo")?;
    let path = path.to_string_lossy();
    ensure!(info.lines().any(|line| line.split(' ').nth(4) == Some(&path)), "{path} is not mounted");
    Ok(())
}

impl Handle {
    /// Puts, exactly once.
    pub async fn put(&self, key: &str, value: Bytes) -> anyhow::Result<()> {
        let command = put_command(key.parse()?, value);
        let outcome = self.session.write(command, CALL_TIME).await?;
        outcome.result.with_context(|| format!("put of {key}"))?;
        Ok(())
    }

    /// Puts one value under many keys, in one transaction.
    pub async fn put_all(&self, keys: Vec<String>, value: Bytes) -> anyhow::Result<()> {
        let puts = keys.into_iter().map(|key| Ok(put_command(key.parse()?, value.clone())));
        let then = puts.collect::<anyhow::Result<Vec<Change>>>()?;
        let command = Change::Txn { compare: Vec::new(), then, otherwise: Vec::new() };
        let outcome = self.session.write(command, CALL_TIME).await?;
        outcome.result.context("putting many keys")?;
        Ok(())
    }

    /// Gets.
    pub async fn get(&self, key: &str, serializable: bool) -> anyhow::Result<Option<Bytes>> {
        let consistency = if serializable { Consistency::Serializable } else { Consistency::Linearizable };
        let (_, record) = self.client.get(key.parse()?, consistency, CALL_TIME).await?;
        Ok(record.map(|record| record.value))
    }
}

impl Handle {
    /// Id of the leader.
    pub async fn leader(&self) -> anyhow::Result<u64> {
        until("a leader is known", START_TIME, async || {
            self.client.status(CALL_TIME).await?.leader.context("no leader is known")
        })
        .await
    }

    /// Builds a snapshot at the leader, and purges its log behind it.
    pub async fn snapshot(&self) -> anyhow::Result<()> {
        Ok(self.client.admin(Admin::Snapshot, SNAPSHOT_TIME).await?)
    }

    /// Watches a subtree, from now on.
    pub async fn watch(&self, prefix: &str) -> anyhow::Result<Values> {
        let after = Some(self.client.barrier(CALL_TIME).await?);
        let start = WatchStart { prefix: prefix.parse()?, after, copy_when_behind: false };
        Ok(Values(self.client.watch(start)))
    }
}

/// The values that are put in a subtree.
pub struct Values(Watch);

impl Values {
    /// The next ones; `None` when the watch has ended.
    pub async fn values(&mut self) -> Option<Vec<Bytes>> {
        loop {
            let WatchItem::Events(events) = self.0.next().await? else { continue };
            let changes = events.into_iter().flat_map(|event| event.changes);
            return Some(
                changes
                    .filter_map(|change| match change {
                        Happened::Create { record, .. } | Happened::Update { record, .. } => {
                            Some(record.value)
                        }
                        _ => None,
                    })
                    .collect(),
            );
        }
    }
}

fn put_command(key: Key, value: Bytes) -> Change {
    Change::Put {
        target: key.into(),
        value,
        create: CreateMode::Allow,
        parents: true,
        owner: Owner::FILE,
        lease: LeaseChange::Keep,
    }
}
