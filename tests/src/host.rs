//! A host: an fsd process and its mount.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::Duration;

use crate::binaries::binary;
use crate::cleanup::{self, Registered, Scratch};
use crate::cluster::Cluster;
use crate::deadline::{eventually, until};
use crate::network::NetHost;
use crate::process::{self, Process, SIGTERM};

/// How long a mount may take to be usable.
const MOUNT_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a clean unmount may take.
const UNMOUNT_TIMEOUT: Duration = Duration::from_secs(15);

/// What differs from one mount to the next.
#[derive(Clone, Default)]
pub struct MountConfig {
    /// Subtree, for example `/services`.
    pub prefix: Option<String>,
    /// `-o` options.
    pub options: Vec<String>,
    /// The network namespace it lives in, if not this one.
    pub network: Option<NetHost>,
    /// Another fsd than the one that was built.
    pub program: Option<PathBuf>,
}

impl MountConfig {
    /// One that outlives the process that serves it.
    pub fn supervised() -> MountConfig {
        MountConfig { options: vec!["supervise".to_string()], ..MountConfig::default() }
    }
}

/// An fsd process with its mount. Unmounted when dropped, whatever state it is in.
pub struct Host {
    name: String,
    mountpoint: PathBuf,
    log: PathBuf,
    command: Box<dyn Fn() -> Command + Send + Sync>,
    process: Option<Process>,
    _registered: Registered,
    _scratch: Scratch,
}

impl Host {
    /// Mounts the whole store.
    #[track_caller]
    pub fn mount(cluster: &Cluster, name: &str) -> Host {
        Host::mount_with(cluster, name, MountConfig::default())
    }

    /// Mounts as `config` says.
    #[track_caller]
    pub fn mount_with(cluster: &Cluster, name: &str, config: MountConfig) -> Host {
        let scratch = Scratch::new(name);
        // Two mounts of one client name would be two sessions of it, which is allowed; a name of its own
        // makes `user.kv.author` say which host wrote.
        cluster.issue_client(name);
        let mountpoint = scratch.path().join("kv");
        fs::create_dir(&mountpoint).unwrap();
        let (nodes, certs, client) = (cluster.addresses(), cluster.certs().to_path_buf(), name.to_string());
        let place = mountpoint.clone();
        let command = move || {
            let mut command = match &config.program {
                Some(program) => Command::new(program),
                None => Command::new(binary("fsd")),
            };
            command.arg("mount").arg(&nodes).arg(&place).arg("--certs").arg(&certs).args(["--name", &client]);
            if let Some(prefix) = &config.prefix {
                command.args(["--prefix", prefix]);
            }
            for option in &config.options {
                command.args(["-o", option]);
            }
            process::set_log(&mut command);
            if let Some(host) = &config.network {
                host.enter(&mut command);
            }
            command
        };
        let log = scratch.path().join("fsd.log");
        let gone = mountpoint.clone();
        let mut host = Host {
            name: name.to_string(),
            log,
            command: Box::new(command),
            process: None,
            _registered: cleanup::at_exit(move || cleanup::force_unmount(&gone)),
            mountpoint,
            _scratch: scratch,
        };
        host.start();
        host
    }

    /// Starts fsd and waits until the mount is usable.
    #[track_caller]
    pub fn start(&mut self) {
        // SIGTERM when the test process dies: then fsd takes its mount off by itself.
        let mut process = Process::start(&self.name, (self.command)(), &self.log, SIGTERM);
        eventually(&format!("mount of {}", self.name), MOUNT_TIMEOUT, || {
            if let Some(status) = process.ended() {
                panic!("fsd of {} ended ({status}) instead of mounting:\n{}", self.name, process.log());
            }
            let connection = cleanup::connection_of(&self.mountpoint);
            if connection.is_none() {
                return Err("nothing is mounted");
            }
            // What a dead fsd left answers with ENOTCONN; a stat may be answered from the kernel's cache.
            fs::read_dir(&self.mountpoint).map_err(|_| "it cannot be listed")?;
            // Where it was taken off meanwhile, the bare directory below was listed.
            if cleanup::connection_of(&self.mountpoint) != connection {
                return Err("it is being mounted anew");
            }
            Ok(())
        });
        self.process = Some(process);
    }

    /// Its name, which is that of its certificate.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.mountpoint
    }

    /// A path on this mount.
    pub fn join(&self, key: impl AsRef<str>) -> PathBuf {
        self.mountpoint.join(key.as_ref().trim_start_matches('/'))
    }

    /// Process ids of the workers of a supervised mount: usually one, two while one takes the place of another.
    pub fn workers(&self) -> Vec<u32> {
        self.process.as_ref().map(|process| process::children(process.pid())).unwrap_or_default()
    }

    /// `kill -9` of the worker; another one will take its place. Answers whether one was there.
    pub fn kill_worker(&self) -> bool {
        let workers = self.workers();
        workers.iter().for_each(|worker| process::signal(*worker, process::SIGKILL));
        !workers.is_empty()
    }

    /// Waits for the end of fsd.
    #[track_caller]
    pub fn wait(&mut self, timeout: Duration) -> ExitStatus {
        self.process.as_mut().expect("fsd runs").wait(timeout)
    }

    /// Process id of fsd; of its supervisor, if it has one.
    pub fn pid(&self) -> u32 {
        self.process.as_ref().expect("fsd runs").pid()
    }

    /// What fsd has logged.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// `kill -9` of fsd, with its worker if it has one; what they leave stays mounted.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            // Stopped, it starts no other worker while they are being killed.
            process.signal(process::SIGSTOP);
            let workers = process::children(process.pid());
            process.kill();
            for worker in &workers {
                process::signal(*worker, process::SIGKILL);
            }
            until("the workers are gone", UNMOUNT_TIMEOUT, || !workers.iter().any(|pid| process::runs(*pid)));
        }
    }

    /// SIGTERM; fsd unmounts and ends.
    #[track_caller]
    pub fn terminate(&mut self) -> ExitStatus {
        self.process.take().expect("fsd runs").terminate(UNMOUNT_TIMEOUT)
    }

    /// Whether something is mounted there.
    pub fn is_mounted(&self) -> bool {
        cleanup::connection_of(&self.mountpoint).is_some()
    }

    /// Sends fsd a signal.
    pub fn signal(&self, number: i32) {
        self.process.as_ref().expect("fsd runs").signal(number);
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Some(process) = &mut self.process {
            process.signal(libc::SIGCONT);
            process.signal(SIGTERM);
            let start = std::time::Instant::now();
            while process.ended().is_none() && start.elapsed() < UNMOUNT_TIMEOUT {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        self.kill();
        cleanup::force_unmount(&self.mountpoint);
    }
}
