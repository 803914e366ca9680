//! A cluster of three etcd members on this machine, with default settings.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::Context;

use crate::etcd_api::{Address, Etcd};
use crate::etcd_tls::Pki;
use crate::process::{Process, free_tcp_ports, until};

/// How long the members have to elect a leader.
const START_TIME: Duration = Duration::from_secs(60);

/// The running cluster.
pub struct EtcdCluster {
    members: Vec<Process>,
    addresses: Vec<Address>,
    /// What the program says of itself.
    pub version: String,
}

impl EtcdCluster {
    /// Starts it, with its data under `dir`.
    pub async fn start(dir: &Path) -> anyhow::Result<EtcdCluster> {
        EtcdCluster::start_size(dir, 3, None).await
    }

    /// The same, with mutual TLS everywhere.
    pub async fn start_tls(dir: &Path) -> anyhow::Result<EtcdCluster> {
        EtcdCluster::start_size(dir, 3, Some(Pki::create(&dir.join("pki"))?)).await
    }

    /// The same with one member.
    pub async fn start_one(dir: &Path) -> anyhow::Result<EtcdCluster> {
        EtcdCluster::start_size(dir, 1, None).await
    }

    async fn start_size(dir: &Path, size: usize, pki: Option<Pki>) -> anyhow::Result<EtcdCluster> {
        let output = Command::new("etcd")
            .arg("--version")
            .output()
            .context("etcd is not installed: scripts/setup --bench")?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let version = text.lines().next().unwrap_or_default().replace("etcd Version: ", "");
        let all = free_tcp_ports::<6>()?;
        let (ports, peers) = (all[..size].to_vec(), all[3..3 + size].to_vec());
        let scheme = if pki.is_some() { "https" } else { "http" };
        let url = |port: u16| format!("{scheme}://127.0.0.1:{port}");
        let cluster: Vec<String> = (0..size).map(|i| format!("e{}={}", i + 1, url(peers[i]))).collect();
        let mut members = Vec::new();
        for i in 0..size {
            let name = format!("e{}", i + 1);
            let mut command = Command::new("etcd");
            // The environment must not configure it behind our back.
            for (variable, _) in
                std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("ETCD_"))
            {
                command.env_remove(variable);
            }
            command.env("ETCD_UNSUPPORTED_ARCH", "arm64");
            command.arg("--name").arg(&name).arg("--data-dir").arg(dir.join(&name));
            command.arg("--listen-client-urls").arg(url(ports[i]));
            command.arg("--advertise-client-urls").arg(url(ports[i]));
            command.arg("--listen-peer-urls").arg(url(peers[i]));
            command.arg("--initial-advertise-peer-urls").arg(url(peers[i]));
            command.arg("--initial-cluster").arg(cluster.join(","));
            command
                .arg("--initial-cluster-token")
                .arg("quorumfs-bench")
                .arg("--initial-cluster-state")
                .arg("new");
            if let Some(pki) = &pki {
                pki.member(&name, &mut command)?;
            }
            members.push(Process::start(dir, &name, command)?);
        }
        let tls = pki.map(|pki| pki.client()).transpose()?;
        let addresses = ports.into_iter().map(|port| Address { port, tls: tls.clone() }).collect();
        let mut cluster = EtcdCluster { members, addresses, version };
        cluster.leader().await?;
        Ok(cluster)
    }

    /// Ids of the members' processes.
    pub fn processes(&self) -> Vec<u32> {
        self.members.iter().map(Process::id).collect()
    }

    /// The member that leads: etcd is asked there, without a hop in between.
    pub async fn leader(&mut self) -> anyhow::Result<Address> {
        let (members, addresses) = (&mut self.members, &self.addresses);
        until("etcd elects a leader", START_TIME, async || {
            for member in members.iter_mut() {
                member.check()?;
            }
            for address in addresses {
                if Etcd::connect(address).await?.leads().await? {
                    return Ok(address.clone());
                }
            }
            anyhow::bail!("no member leads")
        })
        .await
    }

    /// A member that does not lead: where a watcher on another host may be connected.
    pub async fn follower(&mut self) -> anyhow::Result<Address> {
        let leader = self.leader().await?;
        let other = self.addresses.iter().find(|address| address.port != leader.port);
        other.cloned().context("etcd has only one member")
    }
}
