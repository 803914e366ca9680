//! A real node and real mounts in this process. What blocks on a mount runs in child processes or in
//! threads of its own, under a deadline; when the deadline passes, the connections of all mounts are
//! cut through sysfs, because a process that waits for a hung FUSE daemon cannot be killed.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used)]

pub mod inotify;
pub mod random;

use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use certs::{Authority, Request, Validity};
use fsd::serve::{Config, Mount};
use quorumfs_api::client::{Client, Settings};
use quorumfs_api::key::Key;
use raftnode::Node;
use tokio::runtime::Runtime;

/// How long a test may take in all.
const TEST_DEADLINE: Duration = Duration::from_secs(100);

/// Devices of all mounts of this process.
static DEVICES: Mutex<Vec<u32>> = Mutex::new(Vec::new());

/// Whether mounts can be made here; says so loudly where not.
pub fn can_mount() -> bool {
    let can = std::fs::OpenOptions::new().read(true).write(true).open("/dev/fuse").is_ok();
    if !can {
        eprintln!("SKIPPED, AND NOTHING WAS TESTED: /dev/fuse cannot be opened here");
    }
    can
}

fn abort_all() {
    for device in DEVICES.lock().unwrap().iter() {
        let _ = std::fs::write(format!("/sys/fs/fuse/connections/{device}/abort"), b"1");
    }
}

/// Cuts all connections when a test takes too long.
fn guard(name: &'static str) -> std::sync::mpsc::Sender<()> {
    let (alive, over) = std::sync::mpsc::channel::<()>();
    std::thread::spawn(move || {
        if over.recv_timeout(TEST_DEADLINE) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
            eprintln!("{name}: not done after {TEST_DEADLINE:?}; cutting off all mounts");
            abort_all();
        }
    });
    alive
}

/// A cluster of one node with its mounts.
pub struct World {
    pub runtime: Runtime,
    pub dir: tempfile::TempDir,
    node: Option<Node>,
    addr: SocketAddr,
    pub mounts: Vec<Option<Mount>>,
    pub paths: Vec<PathBuf>,
    _alive: std::sync::mpsc::Sender<()>,
}

impl World {
    /// A node and so many mounts of its whole store.
    pub fn new(name: &'static str, mounts: usize) -> World {
        World::with(name, mounts, |_, _| {})
    }

    /// The same, with a say in the configuration of each mount.
    pub fn with(name: &'static str, mounts: usize, adjust: impl Fn(usize, &mut Config)) -> World {
        if std::env::var_os("QUORUMFS_LOG").is_some() {
            let filter = tracing_subscriber::EnvFilter::from_env("QUORUMFS_LOG");
            let _ = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).try_init();
        }
        let alive = guard(name);
        let runtime = Runtime::new().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let certs = dir.path().join("certs");
        let authority = Authority::create(&certs, Validity::days(2), false).unwrap();
        authority.issue(&Request::node("n1", ["127.0.0.1"]).unwrap()).unwrap();
        authority.issue(&Request::client("admin").unwrap()).unwrap();
        let listen = "127.0.0.1:0".parse().unwrap();
        let config = raftnode::Config::new(1, "n1", listen, &dir.path().join("node"), &certs).unwrap();
        let node = runtime.block_on(async {
            Node::init(&config).await.unwrap();
            Node::start(config).await.unwrap()
        });
        let addr = node.local_addr();
        let mut world = World {
            runtime,
            dir,
            node: Some(node),
            addr,
            mounts: Vec::new(),
            paths: Vec::new(),
            _alive: alive,
        };
        for i in 0..mounts {
            world.mount(|config| adjust(i, config));
        }
        world
    }

    pub fn settings(&self) -> Settings {
        Settings {
            nodes: vec![self.addr.to_string()],
            certs: self.dir.path().join("certs"),
            name: "admin".into(),
            timeout: Duration::from_secs(5),
        }
    }

    pub fn client(&self) -> Client {
        let _inside = self.runtime.enter();
        Client::new(self.settings()).unwrap()
    }

    /// One more mount.
    pub fn mount(&mut self, adjust: impl Fn(&mut Config)) -> usize {
        let number = self.mounts.len();
        let path = self.dir.path().join(format!("mnt{number}"));
        std::fs::create_dir(&path).unwrap();
        let client = self.client();
        let mut config = Config::new(client, Key::root(), &path);
        config.allow_other = true;
        adjust(&mut config);
        let mount = self.runtime.block_on(Mount::start(config)).unwrap();
        let device = rustix::fs::minor(std::fs::metadata(&path).unwrap().dev());
        DEVICES.lock().unwrap().push(device);
        self.mounts.push(Some(mount));
        self.paths.push(path);
        number
    }

    pub fn a(&self) -> &Path {
        &self.paths[0]
    }

    pub fn b(&self) -> &Path {
        &self.paths[1]
    }

    /// Ends the node: there is no quorum any more.
    pub fn stop_node(&mut self) {
        if let Some(node) = self.node.take() {
            self.runtime.block_on(node.stop()).unwrap();
        }
    }

    /// Waits until both mounts show the same, and have replayed all.
    pub fn settle(&self) {
        let client = self.client();
        let revision = self.runtime.block_on(client.barrier(Duration::from_secs(5))).unwrap();
        for mount in self.mounts.iter().flatten() {
            let core = mount.core();
            eventually("a mount catches up", || {
                *core.shown.borrow() >= revision && core.state.lock().queue.is_idle()
            });
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for mount in self.mounts.drain(..).flatten() {
            let _ = self.runtime.block_on(mount.stop(Duration::from_secs(3)));
        }
        for path in &self.paths {
            let _ = rustix::mount::unmount(path.as_path(), rustix::mount::UnmountFlags::DETACH);
        }
        self.stop_node();
    }
}

/// Waits for a condition.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::yield_now();
        std::thread::park_timeout(Duration::from_millis(1));
    }
}

/// Runs a shell's command line in a directory, with a deadline.
pub fn shell(shell: &[&str], dir: &Path, line: &str) -> Output {
    let mut command = Command::new(shell[0]);
    command.args(&shell[1..]).arg("-c").arg(line).current_dir(dir);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > deadline {
            let _ = child.kill();
            abort_all();
            panic!("{shell:?} -c {line:?} hangs");
        }
        std::thread::park_timeout(Duration::from_millis(1));
    }
    child.wait_with_output().unwrap()
}

/// Runs `sh -c`, which must succeed, and gives what it printed.
pub fn sh(dir: &Path, line: &str) -> String {
    let output = shell(&["bash"], dir, line);
    assert!(
        output.status.success(),
        "{line:?}: {} {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}
