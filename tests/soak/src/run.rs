//! One run: builds the world, starts the workloads, breaks and heals, and says what was found.

use std::collections::BTreeSet;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use clap::Parser;
use quorumfs_api::bug;
use quorumfs_api::client::{Client, Settings};
use quorumfs_api::wire::{Call, Consistency, Prefix};
use quorumfs_api::{Command, Key, Owner};
use quorumfs_tests::host::MountConfig;
use quorumfs_tests::{Cluster, Host, Network, guard, random};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

use crate::fault::links::Links;
use crate::fault::world::World;
use crate::fault::{Plan, Step};
use crate::shared::{Mount, Shared};
use crate::store::{FINAL_TIMEOUT, key};
use crate::workload::{self, mount::dir};

/// Small snapshots and a short log, so that nodes that were away need a snapshot.
const FLAGS: [&str; 4] = ["--snapshot-every", "800", "--log-keep", "200"];
/// How long the end of a run may take beyond its minutes: reading and checking everything.
const END_MAX: Duration = Duration::from_secs(400);
/// How long the workloads go on when everything is healed for good, at least.
const LAST_CALM: Duration = Duration::from_secs(3);
/// How long after that each of them may take until it has got something done.
const LIVELINESS: Duration = Duration::from_secs(60);

/// Breaks a cluster of real processes on purpose, and checks that every promise was kept.
#[derive(Parser, Debug)]
#[command(name = "soak")]
pub struct Options {
    /// How long faults are made, in minutes; a fraction is allowed.
    pub minutes: f64,
    /// Chooses the faults and the operations. Chosen at random, and printed, when it is not given.
    #[arg(long)]
    pub seed: Option<u64>,
    /// Voting members.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u8).range(1..=7))]
    pub nodes: u8,
    /// Mounts.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(0..=8))]
    pub mounts: u8,
    /// Programs of another version, for a rolling upgrade and back: nodes begin with these.
    #[arg(long)]
    pub old_bin_dir: Option<PathBuf>,
    /// Only faults with this in their names.
    #[arg(long)]
    pub only: Option<String>,
    /// Where histories and logs go when something did not hold.
    #[arg(long, default_value = "target/soak")]
    pub out: PathBuf,
}

/// Runs; true if everything held.
pub fn run(options: &Options) -> bool {
    let seed = options.seed.unwrap_or_else(|| random::seed() % 1_000_000);
    let only = options.only.as_ref().map_or(String::new(), |only| format!(" --only '{only}'"));
    let old = options.old_bin_dir.as_ref().map_or(String::new(), |dir| format!(" --old-bin-dir {dir:?}"));
    let bug = std::env::var(bug::VARIABLE).map_or(String::new(), |bug| format!(" --bug {bug}"));
    let replay = format!(
        "scripts/soak {} --seed {seed} --nodes {} --mounts {}{only}{old}{bug}",
        options.minutes, options.nodes, options.mounts
    );
    println!("soak: seed {seed}; to repeat: {replay}");
    let keep = options.out.join(format!("seed-{seed}"));
    let _ = fs::remove_dir_all(&keep);
    fs::create_dir_all(&keep).unwrap_or_else(|error| panic!("{keep:?} cannot be made: {error}"));
    let time = Duration::from_secs_f64(options.minutes * 60.0);
    let _guard = guard((time + END_MAX).as_secs());
    let Some(network) = Network::start() else { return false };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime can be made");
    let mut world = build(options, seed, network, &runtime, &keep);
    let shared = world.shared.clone();
    let started = Instant::now();
    let from = runtime.block_on(prepare(&world.client, world.hosts.len()));
    let _entered = runtime.enter();
    let workloads = workload::start(&shared, from);
    let plan = Plan::new(
        seed,
        options.nodes.into(),
        options.mounts.into(),
        options.only.clone(),
        options.old_bin_dir.is_some(),
    );
    let broke = catch_unwind(AssertUnwindSafe(|| drive(&mut world, plan, started + time, started)));
    if let Err(panic) = broke {
        shared.report.violation("the cluster heals", "the driver of the faults", message(&*panic));
        let _ = catch_unwind(AssertUnwindSafe(|| world.heal()));
    }
    say(started, "healed for good; the workloads end and check");
    shared.begin_settling();
    runtime.block_on(finish(workloads, &shared));
    compare_nodes(&world, &runtime);
    for name in shared.report.idle(&workload::NAMES) {
        shared.report.violation("a run proves something", name, "no operation was acknowledged");
    }
    let held = shared.report.held();
    print!("{}", shared.report.summary(&replay));
    if held {
        let _ = fs::remove_dir_all(&keep);
        println!("soak: everything held");
    } else {
        keep_logs(&world, &keep);
        println!("soak: NOT everything held; histories and logs are in {}", keep.display());
    }
    held
}

fn say(started: Instant, text: &str) {
    println!("{:>7.1} s  {text}", started.elapsed().as_secs_f64());
}

fn message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|text| text.to_string())).unwrap_or_default()
}

fn build(options: &Options, seed: u64, network: Network, runtime: &Runtime, keep: &Path) -> World {
    let nets: Vec<_> = (0..options.nodes).map(|_| network.host()).collect();
    let spare = network.host();
    let mut cluster = Cluster::start_on(&nets);
    cluster.make_breakable();
    for id in cluster.ids() {
        let node = cluster.node_mut(id);
        node.programs.clone_from(&options.old_bin_dir);
        node.flags = FLAGS.map(str::to_string).to_vec();
        node.terminate();
        node.start();
    }
    let mut links = Links::default();
    nets.iter().chain([&spare]).for_each(|host| links.add(host));
    let (mut hosts, mut host_nets, mut mounts) = (Vec::new(), Vec::new(), Vec::new());
    for number in 0..options.mounts {
        let net = network.host();
        links.add(&net);
        let name = format!("h{number}");
        let config = MountConfig { network: Some(net.clone()), ..MountConfig::default() };
        let host = Host::mount_with(&cluster, &name, config);
        mounts.push(Mount { name, path: host.path().to_path_buf(), epoch: AtomicU64::new(0) });
        hosts.push(host);
        host_nets.push(net);
    }
    let mut nodes: Vec<String> = cluster.addresses().split(',').map(str::to_string).collect();
    nodes.push(format!("{}:7400", spare.ip()));
    let settings = Settings {
        nodes,
        certs: cluster.certs().to_path_buf(),
        name: "admin".into(),
        timeout: Duration::from_secs(4),
    };
    let places = cluster.ids().into_iter().zip(nets).collect();
    let _entered = runtime.enter();
    let client = Client::new(settings.clone()).expect("the client's certificate was made");
    let shared = Shared::new(seed, settings, mounts, keep.to_path_buf());
    World {
        hosts,
        host_nets,
        cluster,
        places,
        spare,
        links,
        broken_disks: BTreeSet::new(),
        old_programs: options.old_bin_dir.clone(),
        network,
        client,
        runtime: runtime.handle().clone(),
        shared,
    }
}

/// Makes the directories that are watched; gives the revision after that.
async fn prepare(client: &Client, hosts: usize) -> u64 {
    let session = client.session(Duration::from_secs(10), FINAL_TIMEOUT).await.expect("a new cluster works");
    let lease = key(&format!("{}/lease/first", workload::ROOT));
    for path in (0..hosts).map(|host| key(&dir(host))).chain([lease]) {
        let command = Command::Mkdir { at: path.into(), parents: true, owner: Owner::DIR };
        let outcome = session.write(command, FINAL_TIMEOUT).await.expect("a new cluster works");
        outcome.result.expect("a directory can be made");
    }
    let revision = client.barrier(FINAL_TIMEOUT).await.expect("a new cluster works");
    let _ = session.close(FINAL_TIMEOUT).await;
    revision
}

/// Breaks and heals until the time is over.
fn drive(world: &mut World, plan: Plan, end: Instant, started: Instant) {
    let shared = world.shared.clone();
    std::thread::sleep(Duration::from_secs(1));
    for Step { faults, hold, calm } in plan {
        if Instant::now() >= end {
            break;
        }
        shared.breaks();
        for fault in faults {
            let begun = Instant::now();
            let what = world.make(fault, hold);
            shared.report.fault(&fault.to_string());
            say(started, &format!("{fault}: {what} (took {} ms)", begun.elapsed().as_millis()));
        }
        std::thread::sleep(hold);
        let begun = Instant::now();
        world.heal();
        shared.heals();
        let (hold, took) = (hold.as_millis(), begun.elapsed().as_millis());
        say(started, &format!("healed after {hold} ms (took {took} ms)"));
        std::thread::sleep(calm);
    }
    std::thread::sleep(LAST_CALM);
    // On a slow machine a short run may not have let each of them through between two faults. In a
    // cluster that is whole they all go on.
    let deadline = Instant::now() + LIVELINESS;
    while !shared.report.idle(&workload::NAMES).is_empty() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(100));
    }
}

async fn finish(mut workloads: JoinSet<()>, shared: &Arc<Shared>) {
    while let Some(ended) = workloads.join_next().await {
        if let Err(error) = ended {
            shared.report.violation("the harness works", "a workload", error.to_string());
        }
    }
}

/// All nodes must hold the same.
fn compare_nodes(world: &World, runtime: &Runtime) {
    let report = &world.shared.report;
    let addresses = match world.await_equal() {
        Ok(addresses) => addresses,
        Err(text) => return report.violation("all nodes catch up after healing", "the nodes", text),
    };
    let mut first: Option<(String, String)> = None;
    for addr in addresses {
        match runtime.block_on(content(&world.client, &addr)) {
            Err(error) => report.violation("a healed node can be read", addr, error),
            Ok(content) => {
                report.checked("all nodes hold the same", 1);
                match &first {
                    None => first = Some((addr, content)),
                    Some((other, same)) if *same != content => {
                        let line = same.lines().zip(content.lines()).find(|(a, b)| a != b);
                        let seen = format!("{addr} differs from {other}, first in {line:?}");
                        report.violation("all nodes hold the same", addr, seen);
                    }
                    Some(_) => {}
                }
            }
        }
    }
}

/// Everything below the workloads' directory as one node has it.
async fn content(client: &Client, addr: &str) -> Result<String, String> {
    let mut text = String::new();
    let mut after: Option<Key> = None;
    loop {
        let call = Call::Range {
            prefix: Prefix::Tree(key(workload::ROOT)),
            keys_only: false,
            after: after.clone(),
            limit: u32::MAX,
            consistency: Consistency::Serializable,
        };
        let answer = client.call_at(addr, call, FINAL_TIMEOUT).await.map_err(|error| error.to_string())?;
        let quorumfs_api::wire::Answer::Range { items, more, .. } = answer else {
            return Err("another answer than asked for".into());
        };
        for (key, record) in &items {
            text.push_str(&format!("{key} {record:?}\n"));
        }
        after = items.last().map(|(key, _)| key.clone());
        if !more {
            return Ok(text);
        }
    }
}

fn keep_logs(world: &World, keep: &Path) {
    for entry in fs::read_dir(world.cluster.dir()).into_iter().flatten().flatten() {
        if entry.path().extension().is_some_and(|extension| extension == "log") {
            let _ = fs::copy(entry.path(), keep.join(entry.file_name()));
        }
    }
    for host in &world.hosts {
        let _ = fs::write(keep.join(format!("{}.log", host.name())), host.log());
    }
}
