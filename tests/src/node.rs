//! One raftnode process.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::binaries::binary;
use crate::faults::Faults;
use crate::network::NetHost;
use crate::process::{self, Process, SIGCONT, SIGKILL, SIGSTOP, describe, run};

/// How long a node may take to serve, with other tests on the same two cores.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a node may take to end after SIGTERM.
pub const STOP_TIMEOUT: Duration = Duration::from_secs(15);

/// A node, running or not. Its data stays when it is stopped.
pub struct Node {
    /// Its number in the cluster.
    pub id: u64,
    /// Its name, also in its certificate.
    pub name: String,
    /// Where it listens.
    pub address: SocketAddr,
    /// Its data directory.
    pub data: PathBuf,
    certs: PathBuf,
    log: PathBuf,
    /// Flags besides the usual ones.
    pub flags: Vec<String>,
    /// What can go wrong inside of it, from its next start on.
    pub faults: Option<Faults>,
    /// A directory of programs of another version, if it is to run that.
    pub programs: Option<PathBuf>,
    /// The network namespace it lives in, if not this one.
    network: Option<NetHost>,
    process: Option<Process>,
    /// Length of the log when it was started last.
    from: usize,
}

impl Node {
    /// Describes a node; nothing runs yet.
    pub fn new(id: u64, dir: &Path, certs: &Path, flags: &[&str], network: Option<NetHost>) -> Node {
        let name = format!("n{id}");
        let address = match &network {
            Some(host) => SocketAddr::new(host.ip(), 7400),
            None => free_address(IpAddr::from([127, 0, 0, 1])),
        };
        Node {
            id,
            address,
            data: dir.join(&name),
            certs: certs.to_path_buf(),
            log: dir.join(format!("{name}.log")),
            flags: flags.iter().map(|f| f.to_string()).collect(),
            faults: None,
            programs: None,
            network,
            process: None,
            from: 0,
            name,
        }
    }

    /// The command that runs it; with `init`, the one that makes it the first of a cluster.
    pub fn command(&self, init: bool) -> Command {
        let program = self.programs.as_ref().map_or_else(|| binary("raftnode"), |dir| dir.join("raftnode"));
        let mut command = Command::new(program);
        if init {
            command.arg("init");
        }
        command.args(["--id", &self.id.to_string(), "--name", &self.name]);
        command.args(["--listen", &self.address.to_string(), "--metrics", "off"]);
        command.arg("--data").arg(&self.data).arg("--certs").arg(&self.certs);
        command.args(&self.flags);
        process::set_log(&mut command);
        if let Some(faults) = &self.faults {
            faults.enter(&mut command);
        }
        if let Some(host) = &self.network {
            host.enter(&mut command);
        }
        command
    }

    /// Makes it the only member of a new cluster.
    #[track_caller]
    pub fn init(&self) {
        let output = run(self.command(true), START_TIMEOUT);
        assert!(output.status.success(), "raftnode init: {}", describe(&output));
    }

    /// Starts it and waits until it serves.
    #[track_caller]
    pub fn start(&mut self) {
        self.launch(&[]);
        self.await_serving();
    }

    /// Starts it with more flags, and does not wait.
    #[track_caller]
    pub fn launch(&mut self, more: &[&str]) {
        let mut command = self.command(false);
        command.args(more);
        self.from = std::fs::metadata(&self.log).map_or(0, |m| m.len() as usize);
        self.process = Some(Process::start(&self.name, command, &self.log, SIGKILL));
    }

    /// Waits until it has said that it serves.
    #[track_caller]
    pub fn await_serving(&mut self) {
        let from = self.from;
        self.process.as_mut().expect("the node was started").wait_for_log("serving", from, START_TIMEOUT);
    }

    /// Whether its process is there.
    pub fn runs(&mut self) -> bool {
        self.process.as_mut().is_some_and(|p| p.ended().is_none())
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill();
        }
    }

    /// Sends it a signal.
    pub fn signal(&self, number: i32) {
        self.process.as_ref().expect("the node runs").signal(number);
    }

    /// Sends SIGKILL and does not wait, so that several die at once.
    pub fn signal_kill(&self) {
        if let Some(process) = &self.process {
            process.signal(SIGKILL);
        }
    }

    /// SIGTERM, and waits for the end.
    #[track_caller]
    pub fn terminate(&mut self) -> ExitStatus {
        self.process.take().expect("the node runs").terminate(STOP_TIMEOUT)
    }

    /// SIGSTOP: it is there, and answers nothing.
    pub fn pause(&self) {
        self.process.as_ref().expect("the node runs").signal(SIGSTOP);
    }

    /// SIGCONT.
    pub fn resume(&self) {
        self.process.as_ref().expect("the node runs").signal(SIGCONT);
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }
}

/// A UDP port that nobody has now, and that this process has not given out before.
fn free_address(ip: IpAddr) -> SocketAddr {
    // Below the range from which the kernel takes ports by itself: a port from that range could be
    // given to some client while its node is down for a restart.
    const FIRST: u64 = 10_000;
    const COUNT: u64 = 20_000;
    static NEXT: OnceLock<AtomicU64> = OnceLock::new();
    let next = NEXT.get_or_init(|| AtomicU64::new(crate::random::seed() % COUNT));
    for _ in 0..COUNT {
        let port = FIRST + next.fetch_add(1, Ordering::Relaxed) % COUNT;
        let address = SocketAddr::new(ip, port as u16);
        if UdpSocket::bind(address).is_ok() {
            return address;
        }
    }
    panic!("no free UDP port on {ip}");
}
