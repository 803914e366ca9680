//! Cuts links between hosts with nftables, in the network namespace of whoever hears.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::process::Command;
use std::time::Duration;

use quorumfs_tests::network::NetHost;
use quorumfs_tests::process::{describe, run};

/// Name of the table of these rules.
const TABLE: &str = "quorumfs-soak";

/// What one host does not hear.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Rule {
    from: BTreeSet<IpAddr>,
    all: bool,
    loss: u8,
}

/// The rules of all hosts.
#[derive(Default)]
pub struct Links {
    hosts: BTreeMap<IpAddr, NetHost>,
    rules: BTreeMap<IpAddr, Rule>,
}

impl Links {
    /// One more host.
    pub fn add(&mut self, host: &NetHost) {
        self.hosts.insert(host.ip(), host.clone());
    }

    /// `to` does not hear `from` any more.
    pub fn silence(&mut self, from: IpAddr, to: IpAddr) {
        self.rules.entry(to).or_default().from.insert(from);
    }

    /// Nothing passes between the two.
    pub fn cut(&mut self, one: IpAddr, other: IpAddr) {
        self.silence(one, other);
        self.silence(other, one);
    }

    /// Nothing passes to or from this host at all.
    pub fn isolate(&mut self, host: IpAddr) {
        self.rules.entry(host).or_default().all = true;
    }

    /// This host loses so many packets of a hundred, both ways.
    pub fn lose(&mut self, host: IpAddr, percent: u8) {
        self.rules.entry(host).or_default().loss = percent;
    }

    /// Puts the rules into the kernel.
    pub fn apply(&self) {
        for (ip, rule) in &self.rules {
            self.nft(*ip, &script(rule));
        }
    }

    /// All packets pass again.
    pub fn heal(&mut self) {
        for ip in std::mem::take(&mut self.rules).into_keys() {
            self.nft(ip, &format!("table inet {TABLE} {{}}; delete table inet {TABLE}"));
        }
    }

    fn nft(&self, ip: IpAddr, script: &str) {
        let mut command = Command::new("nft");
        self.hosts[&ip].enter(&mut command);
        command.arg(script);
        let output = run(command, Duration::from_secs(20));
        assert!(output.status.success(), "nft {script}: {}", describe(&output));
    }
}

fn script(rule: &Rule) -> String {
    let (mut incoming, mut outgoing) = (String::new(), String::new());
    if rule.all {
        incoming.push_str("meta iifname != \"lo\" drop; ");
        outgoing.push_str("meta oifname != \"lo\" drop; ");
    }
    if !rule.from.is_empty() {
        let all: Vec<String> = rule.from.iter().map(IpAddr::to_string).collect();
        incoming.push_str(&format!("ip saddr {{ {} }} drop; ", all.join(", ")));
    }
    if rule.loss > 0 {
        incoming.push_str(&format!("meta iifname != \"lo\" numgen random mod 100 < {} drop; ", rule.loss));
        outgoing.push_str(&format!("meta oifname != \"lo\" numgen random mod 100 < {} drop; ", rule.loss));
    }
    format!(
        "table inet {TABLE} {{}}; delete table inet {TABLE}; table inet {TABLE} {{
            chain incoming {{ type filter hook input priority 0; {incoming}}}
            chain outgoing {{ type filter hook output priority 0; {outgoing}}}
        }}"
    )
}
