//! Hosts with a network of their own: namespaces that are joined by a bridge, so that a test can pull
//! a cable or lose packets, and the kernel's network stack does the rest.

use std::fs::{self, File};
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsRawFd as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crate::cleanup::{self, PREFIX, Registered};
use crate::process::{describe, run};

/// Name of the table of packet rules in each namespace.
const TABLE: &str = "quorumfs";
/// Subnets that a process can choose from.
const SUBNETS: u64 = 250;

/// A bridge and the hosts on it.
pub struct Network {
    bridge: String,
    octet: u8,
    hosts: AtomicU8,
    _registered: Registered,
}

/// One host on it. Its namespace lives until the network and all its hosts are dropped.
#[derive(Clone)]
pub struct NetHost(Arc<Inner>);

struct Inner {
    namespace: String,
    ip: Ipv4Addr,
    _registered: Registered,
}

impl Network {
    /// Makes the bridge. `None`, with a loud line, where this process may not.
    pub fn start() -> Option<Network> {
        cleanup::start();
        // SAFETY: geteuid cannot fail.
        if unsafe { libc::geteuid() } != 0 {
            eprintln!("SKIPPED: network namespaces need root; this test proved nothing");
            return None;
        }
        static NEXT: AtomicU32 = AtomicU32::new(0);
        static FIRST: OnceLock<u32> = OnceLock::new();
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        // An interface's name has at most 15 bytes.
        let bridge = format!("qb{}x{number}", std::process::id());
        // 198.18.0.0/15 is set aside for tests of networks. Where this process begins in it is chosen at
        // random, so that two of them do not meet; its own networks follow each other.
        let first = *FIRST.get_or_init(|| (crate::random::seed() % SUBNETS) as u32);
        let octet = ((first + number) % SUBNETS as u32) as u8 + 1;
        ip(&["link", "add", &bridge, "type", "bridge"]);
        ip(&["address", "add", &format!("198.18.{octet}.1/24"), "dev", &bridge]);
        ip(&["link", "set", &bridge, "up"]);
        let name = bridge.clone();
        let registered = cleanup::at_exit(move || try_ip(&["link", "delete", &name]));
        Some(Network { bridge, octet, hosts: AtomicU8::new(0), _registered: registered })
    }

    /// A new host.
    pub fn host(&self) -> NetHost {
        let n = self.hosts.fetch_add(1, Ordering::Relaxed);
        let namespace = format!("{PREFIX}{}-{}-{n}", std::process::id(), self.octet);
        let address = Ipv4Addr::new(198, 18, self.octet, n + 2);
        let cable = format!("{}v{n}", self.bridge.trim_start_matches("qb"));
        ip(&["netns", "add", &namespace]);
        let name = namespace.clone();
        let registered = cleanup::at_exit(move || try_ip(&["netns", "delete", &name]));
        ip(&["link", "add", &cable, "type", "veth", "peer", "name", "eth0", "netns", &namespace]);
        ip(&["link", "set", &cable, "master", &self.bridge, "up"]);
        ip(&["-n", &namespace, "address", "add", &format!("{address}/24"), "dev", "eth0"]);
        ip(&["-n", &namespace, "link", "set", "eth0", "up"]);
        ip(&["-n", &namespace, "link", "set", "lo", "up"]);
        NetHost(Arc::new(Inner { namespace, ip: address, _registered: registered }))
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        try_ip(&["link", "delete", &self.bridge]);
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        try_ip(&["netns", "delete", &self.namespace]);
    }
}

impl NetHost {
    /// Its address.
    pub fn ip(&self) -> IpAddr {
        self.0.ip.into()
    }

    /// Makes `command` run on this host. It shares the file systems with everybody, so that its mounts
    /// can be used from here (`ip netns exec` would hide them).
    pub fn enter(&self, command: &mut Command) {
        let namespace = File::open(Path::new("/run/netns").join(&self.0.namespace)).unwrap();
        // SAFETY: setns is a plain system call, allowed between fork and exec.
        unsafe {
            command.pre_exec(move || match libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            });
        }
    }

    /// Cuts it off: packets are lost both ways without a word, as behind a dead switch.
    pub fn cut(&self) {
        self.rules("drop");
    }

    /// Loses so many packets of a hundred, both ways.
    pub fn lose(&self, percent: u8) {
        self.rules(&format!("meta oifname != lo numgen random mod 100 < {percent} drop"));
    }

    /// All packets pass again.
    pub fn heal(&self) {
        self.nft(&format!("table inet {TABLE} {{}}; delete table inet {TABLE}"));
    }

    fn rules(&self, rule: &str) {
        let incoming = rule.replace("oifname", "iifname");
        self.nft(&format!(
            "table inet {TABLE} {{}}; delete table inet {TABLE}; table inet {TABLE} {{
                chain incoming {{ type filter hook input priority 0; {incoming}; }}
                chain outgoing {{ type filter hook output priority 0; {rule}; }}
            }}"
        ));
    }

    fn nft(&self, script: &str) {
        let mut command = Command::new("nft");
        self.enter(&mut command);
        command.arg(script);
        let output = run(command, Duration::from_secs(20));
        assert!(output.status.success(), "nft {script}: {}", describe(&output));
    }
}

#[track_caller]
fn ip(arguments: &[&str]) {
    let mut command = Command::new("ip");
    command.args(arguments);
    let output = run(command, Duration::from_secs(20));
    assert!(output.status.success(), "ip {arguments:?}: {}", describe(&output));
}

/// For the way out, where there is nobody to tell.
fn try_ip(arguments: &[&str]) {
    let _ = Command::new("ip").args(arguments).stderr(std::process::Stdio::null()).status();
}

/// Takes away what dead test processes left.
pub(crate) fn sweep() {
    for entry in fs::read_dir("/run/netns").into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let pid = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next()?.parse().ok());
        if pid.is_some_and(cleanup::is_dead) {
            try_ip(&["netns", "delete", &name]);
        }
    }
    for entry in fs::read_dir("/sys/class/net").into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let pid = name.strip_prefix("qb").and_then(|rest| rest.split('x').next()?.parse().ok());
        if pid.is_some_and(cleanup::is_dead) {
            try_ip(&["link", "delete", &name]);
        }
    }
}

/// A TCP port of this host that nobody has now, for programs that cannot choose one by themselves.
#[track_caller]
pub fn free_tcp_port() -> u16 {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    listener.local_addr().unwrap().port()
}
