//! The cluster, its mounts and its network, and how each fault is made and healed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use quorumfs_api::client::Client;
use quorumfs_api::wire::{Admin, Status};
use quorumfs_tests::binaries::binary;
use quorumfs_tests::network::NetHost;
use quorumfs_tests::process::{SIGHUP, describe, run};
use quorumfs_tests::{Cluster, Faults, Host, Network};
use rustix::io::Errno;
use tokio::runtime::Handle;

use super::links::Links;
use super::{Cut, Error, Fault, Victim};
use crate::shared::Shared;

/// How long a node is asked about itself.
const ASK: Duration = Duration::from_millis(700);
/// How often a change of members is tried, as an operator would.
const TRIES: usize = 4;
/// Datagrams of a hundred that come twice, and late, and how late they are.
const TWICE: u8 = 15;
const LATE: u8 = 25;
const LATE_MAX: Duration = Duration::from_millis(40);
/// How long the nodes may take to be equal when all is healed.
const EQUAL: Duration = Duration::from_secs(30);

/// Everything that can be broken.
pub struct World {
    /// Mounts before the cluster: they are taken off first.
    pub hosts: Vec<Host>,
    /// Network of each mount's host.
    pub host_nets: Vec<NetHost>,
    /// The nodes.
    pub cluster: Cluster,
    /// Where each node lives.
    pub places: BTreeMap<u64, NetHost>,
    /// A host without a node.
    pub spare: NetHost,
    /// The rules of the network.
    pub links: Links,
    /// Nodes whose disk fails.
    pub broken_disks: BTreeSet<u64>,
    /// Programs of another version, for nodes to change to and back.
    pub old_programs: Option<PathBuf>,
    /// The network, for as long as the rest.
    pub network: Network,
    /// A client, to ask who leads.
    pub client: Client,
    /// Where the client's tasks run.
    pub runtime: Handle,
    /// What the workloads know.
    pub shared: Arc<Shared>,
}

impl World {
    fn statuses(&self) -> Vec<(String, Status)> {
        let all = self.runtime.block_on(self.client.status_all(ASK));
        all.into_iter().filter_map(|(addr, status)| Some((addr, status.ok()?))).collect()
    }

    /// The node that leads in the latest term.
    fn leader(&self) -> Option<u64> {
        self.statuses()
            .into_iter()
            .filter(|(_, status)| status.leader == Some(status.id))
            .max_by_key(|(_, status)| status.term)
            .map(|(_, status)| status.id)
            .filter(|id| self.places.contains_key(id))
    }

    fn victim(&self, victim: Victim) -> u64 {
        let any =
            |number: usize| *self.places.keys().nth(number % self.places.len()).expect("there are nodes");
        match victim {
            Victim::Any(number) => any(number),
            Victim::Leader => self.leader().unwrap_or_else(|| any(0)),
        }
    }

    fn ip(&self, id: u64) -> IpAddr {
        self.places[&id].ip()
    }

    /// Makes one fault; says what was really done.
    pub fn make(&mut self, fault: Fault, hold: Duration) -> String {
        match fault {
            Fault::Kill(victim) => {
                let id = self.victim(victim);
                self.cluster.node_mut(id).kill();
                self.cluster.node_mut(id).launch(&[]);
                format!("n{id}")
            }
            Fault::Down(victim) => {
                let id = self.victim(victim);
                self.cluster.node_mut(id).kill();
                format!("n{id}")
            }
            Fault::KillAll => {
                self.cluster.kill_all();
                for node in self.cluster.nodes_mut() {
                    node.launch(&[]);
                }
                String::new()
            }
            Fault::Pause(victim) => {
                let id = self.victim(victim);
                if self.cluster.node_mut(id).runs() {
                    self.cluster.node(id).pause();
                }
                format!("n{id}")
            }
            Fault::Restart(victim) => {
                let id = self.victim(victim);
                if self.cluster.node_mut(id).runs() {
                    let status = self.cluster.node_mut(id).terminate();
                    if !status.success() {
                        let seen = format!("it ended with {status}");
                        self.shared.report.violation("a node stops cleanly", format!("n{id}"), seen);
                    }
                }
                self.cluster.node_mut(id).launch(&[]);
                format!("n{id}")
            }
            Fault::Partition(cut) => {
                let text = self.partition(cut);
                self.links.apply();
                text
            }
            Fault::Flap(victim) => {
                let id = self.victim(victim);
                let ip = self.ip(id);
                let end = Instant::now() + hold;
                while Instant::now() < end {
                    self.links.isolate(ip);
                    self.links.apply();
                    std::thread::sleep(Duration::from_millis(350));
                    self.links.heal();
                    std::thread::sleep(Duration::from_millis(450));
                }
                format!("n{id}")
            }
            Fault::Loss(percent) => {
                let ips: Vec<IpAddr> = self.places.values().map(NetHost::ip).collect();
                ips.into_iter().for_each(|ip| self.links.lose(ip, percent));
                self.links.apply();
                format!("{percent} %")
            }
            Fault::KillMount(number) => self.kill_mount(number),
            Fault::CutMount(number) => {
                let number = number % self.host_nets.len().max(1);
                if let Some(host) = self.host_nets.get(number) {
                    self.links.isolate(host.ip());
                    self.links.apply();
                }
                format!("h{number}")
            }
            Fault::Replace(number) => self.change_members(number, false),
            Fault::Grow(number) => self.change_members(number, true),
            Fault::Snapshot => self.snapshot(),
            Fault::Rotate => self.rotate(),
            Fault::Transfer => {
                let result =
                    self.runtime.block_on(self.client.admin(Admin::Transfer(None), Duration::from_secs(4)));
                result.map_or_else(|error| error.to_string(), |()| String::new())
            }
            Fault::Clock(victim, millis) => {
                let id = self.victim(victim);
                self.faults(id).clock(millis);
                format!("n{id} by {millis} ms")
            }
            Fault::Disk(victim, error) => {
                let id = self.victim(victim);
                self.broken_disks.insert(id);
                self.faults(id).disk(match error {
                    Error::Full => Errno::NOSPC.raw_os_error(),
                    Error::Broken => Errno::IO.raw_os_error(),
                });
                format!("n{id}")
            }
            Fault::SlowDisk(victim, millis) => {
                let id = self.victim(victim);
                self.faults(id).slow_disk(Duration::from_millis(millis.into()));
                format!("n{id} by {millis} ms")
            }
            Fault::Datagrams => {
                for id in self.cluster.ids() {
                    self.faults(id).datagrams(TWICE, LATE, LATE_MAX);
                }
                String::new()
            }
            Fault::Upgrade(victim) => self.change_version(victim),
        }
    }

    fn faults(&self, id: u64) -> &Faults {
        self.cluster.node(id).faults.as_ref().expect("all nodes were made breakable")
    }

    /// Stops a node as its service manager would, and starts its data with the other programs.
    fn change_version(&mut self, victim: Victim) -> String {
        let id = self.victim(victim);
        let old = self.old_programs.clone();
        let node = self.cluster.node_mut(id);
        if node.runs() {
            node.terminate();
        }
        node.programs = if node.programs.is_some() { None } else { old };
        node.launch(&[]);
        let version = if node.programs.is_some() { "the old one" } else { "the new one" };
        format!("n{id} is {version} now")
    }

    fn partition(&mut self, cut: Cut) -> String {
        let ids: Vec<u64> = self.places.keys().copied().collect();
        let ips: Vec<IpAddr> = ids.iter().map(|id| self.ip(*id)).collect();
        let half = ips.len() / 2;
        match cut {
            Cut::One(victim) | Cut::Deaf(victim) | Cut::Mute(victim) => {
                let id = self.victim(victim);
                let ip = self.ip(id);
                for other in ips.into_iter().filter(|other| *other != ip) {
                    if !matches!(cut, Cut::Deaf(_)) {
                        self.links.silence(ip, other);
                    }
                    if !matches!(cut, Cut::Mute(_)) {
                        self.links.silence(other, ip);
                    }
                }
                format!("n{id}")
            }
            Cut::Halves | Cut::Bridge => {
                // The one in the middle of a bridge reaches both sides.
                let right = if cut == Cut::Bridge { half + 1 } else { half };
                for left in &ips[..half] {
                    for right in &ips[right..] {
                        self.links.cut(*left, *right);
                    }
                }
                format!("{:?} from {:?}", &ids[..half], &ids[right..])
            }
            Cut::Ring => {
                for (a, one) in ips.iter().enumerate() {
                    for (b, other) in ips.iter().enumerate().skip(a + 1) {
                        if b - a != 1 && b - a != ips.len() - 1 {
                            self.links.cut(*one, *other);
                        }
                    }
                }
                format!("{ids:?}")
            }
        }
    }

    fn kill_mount(&mut self, number: usize) -> String {
        let number = number % self.hosts.len().max(1);
        if let Some(host) = self.hosts.get_mut(number) {
            // Odd: it is away.
            self.shared.mounts[number].epoch.fetch_add(1, Ordering::SeqCst);
            host.kill();
        }
        format!("h{number}")
    }

    /// A node goes and a new one takes its place; with `grow`, the new one comes first.
    fn change_members(&mut self, number: usize, grow: bool) -> String {
        let old = self.victim(Victim::Any(number));
        if grow {
            let place = self.spare.clone();
            let new = self.join(place);
            self.spare = self.leave(old);
            format!("n{new} came, n{old} went")
        } else {
            let place = self.leave(old);
            let new = self.join(place);
            format!("n{old} went, n{new} came in its place")
        }
    }

    fn join(&mut self, place: NetHost) -> u64 {
        let id = self.cluster.add_learner(Some(place.clone()));
        self.places.insert(id, place);
        self.cluster.promote(id);
        id
    }

    fn leave(&mut self, id: u64) -> NetHost {
        let mut error = None;
        for _ in 0..TRIES {
            // The leader that removes itself may be gone before it has answered: ask again.
            match catch_unwind(AssertUnwindSafe(|| self.cluster.remove(id))) {
                Ok(()) => return self.places.remove(&id).expect("it had a place"),
                Err(panic) => error = Some(panic),
            }
        }
        std::panic::resume_unwind(error.expect("it failed at least once"));
    }

    fn snapshot(&self) -> String {
        let results: Vec<String> = self
            .statuses()
            .into_iter()
            .map(|(addr, status)| {
                let call = quorumfs_api::wire::Call::Admin(Admin::Snapshot);
                let result = self.runtime.block_on(self.client.call_at(&addr, call, Duration::from_secs(4)));
                format!("n{} {}", status.id, result.map_or_else(|error| error.to_string(), |_| "done".into()))
            })
            .collect();
        results.join(", ")
    }

    fn rotate(&mut self) -> String {
        let dir = self.cluster.certs().to_path_buf();
        let issue = |arguments: &[&str]| {
            let mut command = Command::new(binary("certs"));
            command.args(["issue", "--force", "--dir"]).arg(&dir).args(arguments);
            let output = run(command, Duration::from_secs(20));
            assert!(output.status.success(), "certs {arguments:?}: {}", describe(&output));
        };
        for id in self.cluster.ids() {
            let node = self.cluster.node(id);
            issue(&["--node", &node.name, "--san", &node.address.ip().to_string()]);
        }
        for name in self.shared.mounts.iter().map(|mount| mount.name.as_str()).chain(["admin"]) {
            issue(&["--client", name]);
        }
        for node in self.cluster.nodes_mut() {
            if node.runs() {
                node.signal(SIGHUP);
            }
        }
        String::new()
    }

    /// Makes everything whole again, and waits until it is.
    pub fn heal(&mut self) {
        self.links.heal();
        // A node that met an error may not have ended yet: it is of no use any more in any case.
        for id in std::mem::take(&mut self.broken_disks) {
            if self.places.contains_key(&id) {
                self.cluster.node_mut(id).kill();
            }
        }
        for id in self.cluster.ids() {
            self.faults(id).heal();
            let node = self.cluster.node_mut(id);
            if node.runs() {
                node.resume();
            }
        }
        self.cluster.start_all();
        for (host, mount) in self.hosts.iter_mut().zip(&self.shared.mounts) {
            if mount.up().is_none() {
                host.start();
                mount.epoch.fetch_add(1, Ordering::SeqCst);
            }
        }
    }

    /// Waits until all nodes have the same revision. Whether their contents are the same as well is
    /// asked of each node by [`crate::run`].
    pub fn await_equal(&self) -> Result<Vec<String>, String> {
        let begun = Instant::now();
        loop {
            let statuses = self.statuses();
            let first = statuses.first().map(|(_, status)| status.applied_index);
            let equal = statuses.iter().all(|(_, status)| Some(status.applied_index) == first);
            if equal && statuses.len() == self.places.len() {
                return Ok(statuses.into_iter().map(|(addr, _)| addr).collect());
            }
            if begun.elapsed() > EQUAL {
                let short = |(addr, s): &(String, Status)| {
                    format!("n{} at {addr}: applied {}, revision {}", s.id, s.applied_index, s.revision)
                };
                return Err(statuses.iter().map(short).collect::<Vec<_>>().join("; "));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}
