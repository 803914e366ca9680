//! What an operation costs: processor time, switches, packets. On a machine that others use too these
//! say more than any latency.

use std::path::Path;

use anyhow::Context;

use crate::etcd::EtcdCluster;
use crate::load::{self, Operation, Target};
use crate::quorum::QuorumCluster;
use crate::run::{Plan, connect_etcd, connect_quorum, make, progress};
use crate::stats::Summary;

/// What processes have used since they began.
#[derive(Clone, Copy, Debug, Default)]
struct Used {
    cpu_ns: u64,
    switches: u64,
    writes: u64,
}

impl Used {
    /// Of these processes together.
    fn by(processes: &[u32]) -> anyhow::Result<Used> {
        let mut all = Used::default();
        for id in processes {
            let dir = format!("/proc/{id}");
            let io =
                std::fs::read_to_string(format!("{dir}/io")).with_context(|| format!("reading {dir}/io"))?;
            all.writes += field(&io, "syscw:");
            for task in std::fs::read_dir(format!("{dir}/task"))? {
                // A thread may end while we look; what it used is lost, and it was little.
                let read = |name: &str| {
                    std::fs::read_to_string(
                        task.as_ref()
                            .map_or_else(|_| Path::new("/").to_path_buf(), |task| task.path().join(name)),
                    )
                };
                let schedule = read("schedstat").unwrap_or_default();
                all.cpu_ns += schedule.split(' ').next().and_then(|ns| ns.parse().ok()).unwrap_or(0);
                let status = read("status").unwrap_or_default();
                all.switches += field(&status, "voluntary_ctxt_switches:");
                all.switches += field(&status, "nonvoluntary_ctxt_switches:");
            }
        }
        Ok(all)
    }

    fn since(self, before: Used) -> Used {
        Used {
            cpu_ns: self.cpu_ns.saturating_sub(before.cpu_ns),
            switches: self.switches.saturating_sub(before.switches),
            writes: self.writes.saturating_sub(before.writes),
        }
    }
}

fn field(text: &str, name: &str) -> u64 {
    let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|value| value.parse().ok()).unwrap_or(0)
}

/// UDP datagrams that this network namespace has sent.
fn datagrams() -> u64 {
    let text = std::fs::read_to_string("/proc/net/snmp").unwrap_or_default();
    let mut lines = text.lines().filter(|line| line.starts_with("Udp:"));
    let (Some(names), Some(values)) = (lines.next(), lines.next()) else { return 0 };
    let at = names.split(' ').position(|name| name == "OutDatagrams");
    at.and_then(|at| values.split(' ').nth(at)).and_then(|value| value.parse().ok()).unwrap_or(0)
}

fn line(
    side: &str,
    operation: Operation,
    clients: usize,
    summary: &Summary,
    nodes: Used,
    client: Used,
    sent: u64,
) {
    let count = summary.count.max(1) as f64;
    println!(
        "{side:8} {operation:?} {clients:4} clients: {rate:7.0}/s p50 {p50:6.2} p99 {p99:6.2} ms | nodes {cpu:6.1} µs, \
         {switches:5.2} switches, {writes:5.3} writes | client {client:5.1} µs | {sent:5.2} datagrams",
        rate = summary.rate,
        p50 = summary.p50_ms,
        p99 = summary.p99_ms,
        cpu = nodes.cpu_ns as f64 / 1e3 / count,
        switches = nodes.switches as f64 / count,
        writes = nodes.writes as f64 / count,
        client = client.cpu_ns as f64 / 1e3 / count,
        sent = sent as f64 / count,
    );
}

async fn measure(
    plan: &Plan,
    side: &str,
    nodes: &[u32],
    targets: &[Target],
    operation: Operation,
    clients: usize,
) -> anyhow::Result<()> {
    let me = [std::process::id()];
    let targets = &targets[..load::connections(clients).min(targets.len())];
    load::run(targets, operation, clients, plan.time / 10).await?;
    let (before, own, sent) = (Used::by(nodes)?, Used::by(&me)?, datagrams());
    let summary = load::run(targets, operation, clients, plan.time).await?.summary();
    let (used, own) = (Used::by(nodes)?.since(before), Used::by(&me)?.since(own));
    line(side, operation, clients, &summary, used, own, datagrams().saturating_sub(sent));
    Ok(())
}

/// Prints what puts and gets cost on both sides, for these numbers of clients.
pub async fn run(plan: &Plan, clients: &[usize], with_etcd: bool) -> anyhow::Result<()> {
    let dir = tempfile::Builder::new().prefix("quorumfs-bench.").tempdir_in(&plan.data)?;
    let quorum = QuorumCluster::start(&plan.bin, &make(dir.path(), "quorumfs")?, 3).await?;
    let ours = connect_quorum(&quorum, load::CONNECTIONS_MAX).await?;
    let mut sides = vec![("quorumfs", quorum.processes(), ours)];
    let mut etcd = None;
    if with_etcd {
        let cluster = etcd.insert(EtcdCluster::start(&make(dir.path(), "etcd")?).await?);
        let theirs = connect_etcd(cluster, load::CONNECTIONS_MAX).await?;
        sides.push(("etcd", cluster.processes(), theirs));
    }
    for (side, nodes, targets) in &sides {
        progress(&format!("{side}: processes {nodes:?}"));
        load::fill(&targets[0], load::FILLED).await?;
    }
    for operation in [Operation::Put, Operation::GetLinearizable, Operation::GetSerializable] {
        for clients in clients {
            for (side, nodes, targets) in &sides {
                measure(plan, side, nodes, targets, operation, *clients).await?;
            }
        }
    }
    drop(sides);
    drop((quorum, etcd));
    dir.close().context("removing the data of the run")
}
