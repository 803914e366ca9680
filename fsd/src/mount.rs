//! `fsd mount`: everything around a mount. It looks first at what can be wrong, mounts, says so, and
//! ends it when it is told to.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use fsd::serve::{Config, Error, Mount, Overrides};
use quorumfs_api::client::settings::split_nodes;
use quorumfs_api::client::{Client, Overrides as SettingsOverrides, Settings, SettingsError};
use quorumfs_api::wire::Consistency;
use quorumfs_api::{Command, Key, Kind, Owner, Record};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::cli::MountArgs;
use crate::options::MountOptions;
use crate::{daemon, mountpoint};

/// Stands for the nodes that the environment or client.toml name.
const FROM_SETTINGS: &str = "-";
/// How long the first contact with a cluster may take. Longer than a system call may: a host that boots
/// together with its cluster should not fail for the sake of one election.
const CONTACT_TIMEOUT: Duration = Duration::from_secs(10);
/// Time to live of the session in which a missing prefix is made.
const PREFIX_SESSION_TTL: Duration = Duration::from_secs(10);
/// How long requests under way may take at the end, before the process ends without them.
pub const DRAIN_TIME: Duration = Duration::from_secs(5);

/// Runs `fsd mount`.
pub fn run(args: &MountArgs, options: &MountOptions) -> anyhow::Result<ExitCode> {
    let settings = settings(args, options)?;
    check_host(options)?;
    let path = prepare(&args.mountpoint)?;
    runtime()?.block_on(async {
        // From here on a signal means: end in good order.
        let mut signals = Signals::listen()?;
        let prefix = parse_prefix(options.prefix.as_deref())?;
        let source = source(args, &settings);
        let client = Client::new(settings)?;
        check_prefix(&client, &prefix, options.create_prefix).await?;
        let mount = start(Config { source, ..config(client, prefix, path.clone(), options) }).await?;
        if args.is_daemon {
            daemon::report_ready(options.log_file.as_deref())?;
        }
        tracing::info!("mounted on {}", path.display());
        serve(mount, &path, &mut signals).await?;
        Ok(ExitCode::SUCCESS)
    })
}

/// A runtime for all of the process.
pub fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().context("starting the runtime")
}

/// What mountinfo shows as the source: the nodes as they were named.
pub fn source(args: &MountArgs, settings: &Settings) -> String {
    if args.nodes == FROM_SETTINGS { settings.nodes.join(",") } else { args.nodes.clone() }
}

/// Where the cluster is, and who we are.
pub fn settings(args: &MountArgs, options: &MountOptions) -> anyhow::Result<Settings> {
    let overrides = SettingsOverrides {
        nodes: (args.nodes != FROM_SETTINGS).then(|| split_nodes(&args.nodes)),
        certs: options.certs.clone(),
        name: options.name.clone(),
        timeout: options.timeout,
    };
    Settings::resolve(overrides).map_err(|error| match error {
        // Here the nodes are no flag.
        SettingsError::NoNodes { looked } if args.nodes == FROM_SETTINGS => anyhow!(
            "\"-\" takes the nodes from QUORUMFS_NODES or from `nodes = [...]` in one of {looked}, and none says any"
        ),
        SettingsError::NoNodes { .. } => {
            anyhow!("no node is named: the first word has to be HOST:PORT,HOST:PORT,... of the cluster's nodes")
        }
        SettingsError::Address { addr, reason, .. } if args.nodes != FROM_SETTINGS => {
            anyhow!("{addr:?} is not the address of a node: {reason}")
        }
        SettingsError::NoCerts { looked } => anyhow!(
            "nothing says where the certificates are: use -o certs=DIR, --certs DIR or QUORUMFS_CERTS, or write \
             certs = \"DIR\" into one of {looked}"
        ),
        other => other.into(),
    })
}

/// Looks at what this host must have for a mount.
pub fn check_host(options: &MountOptions) -> anyhow::Result<()> {
    mountpoint::check_device().map_err(anyhow::Error::msg)?;
    if !is_root() {
        mountpoint::check_fusermount().map_err(anyhow::Error::msg)?;
        if options.allow_other == Some(true) {
            mountpoint::check_allow_other().map_err(anyhow::Error::msg)?;
        }
    }
    Ok(())
}

/// Whether this process may mount by itself.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Makes the mount point ready, and says what was done to it.
pub fn prepare(path: &Path) -> anyhow::Result<PathBuf> {
    let prepared = mountpoint::prepare(path)?;
    let path = prepared.path;
    if prepared.recovered > 0 {
        tracing::warn!(
            "{} was still mounted by an fsd that has died: taken off, and mounted anew",
            path.display()
        );
    }
    if prepared.hides_files {
        tracing::warn!(
            "{} is not empty: what is in it is hidden as long as the store is mounted there",
            path.display()
        );
    }
    Ok(path)
}

/// The subtree to mount; all of the store if nothing is said.
pub fn parse_prefix(prefix: Option<&str>) -> anyhow::Result<Key> {
    match prefix {
        None => Ok(Key::root()),
        Some(text) => Key::from_user(text.as_bytes()).with_context(|| format!("the prefix {text:?}")),
    }
}

/// Makes sure that the cluster answers and that there is a directory to mount.
pub async fn check_prefix(client: &Client, prefix: &Key, create: bool) -> anyhow::Result<()> {
    // Any node's word is enough for a prefix that is there: a mount that only reads needs no quorum. But a
    // node that is behind may not have it yet.
    let (_, mut found) =
        client.get(prefix.clone(), Consistency::Serializable, CONTACT_TIMEOUT).await.map_err(|error| {
            let what =
                if error.is_denied() { "this cannot be mounted" } else { "the cluster cannot be reached" };
            anyhow::Error::new(error).context(what)
        })?;
    if found.is_none() {
        (_, found) = client
            .get(prefix.clone(), Consistency::Linearizable, CONTACT_TIMEOUT)
            .await
            .with_context(|| {
                format!("the prefix {prefix} was not found on one node, and the leader could not be asked")
            })?;
    }
    match found {
        Some(Record { kind: Kind::Dir, .. }) => Ok(()),
        Some(_) => {
            bail!("the prefix {prefix} is not a directory of the store, and only a directory can be mounted")
        }
        None if create => make_prefix(client, prefix).await,
        None => bail!(
            "the prefix {prefix} does not exist in the store; make it with `kvctl mkdir {prefix}`, or mount with --create-prefix"
        ),
    }
}

async fn make_prefix(client: &Client, prefix: &Key) -> anyhow::Result<()> {
    let session = client.session(PREFIX_SESSION_TTL, CONTACT_TIMEOUT).await?;
    let command = Command::Mkdir { at: prefix.clone().into(), parents: true, owner: Owner::DIR };
    let outcome = session.write(command, CONTACT_TIMEOUT).await?;
    outcome.result.with_context(|| format!("making the prefix {prefix}"))?;
    session.close(CONTACT_TIMEOUT).await?;
    tracing::info!("made the prefix {prefix}");
    Ok(())
}

/// What the core is told.
pub fn config(client: Client, prefix: Key, mountpoint: PathBuf, options: &MountOptions) -> Config {
    let mut config = Config::new(client, prefix, mountpoint);
    config.read_only = options.read_only;
    config.sync = options.sync;
    if let Some(timeout) = options.timeout {
        config.write_timeout = timeout;
    }
    // Root's mounts are for everybody, as those of other file systems are; modes still hold.
    config.allow_other = options.allow_other.unwrap_or_else(is_root);
    config.shown = Overrides { uid: options.uid, gid: options.gid, umask: options.umask };
    config.events = options.event.unwrap_or_default();
    config.suid = options.suid;
    config.dev = options.dev;
    config.noexec = options.noexec;
    config
}

/// Mounts; says what to do where the kernel refuses.
pub async fn start(config: Config) -> anyhow::Result<Mount> {
    Mount::start(config).await.map_err(|error| match error {
        Error::Mount { path, source } => anyhow::Error::msg(mountpoint::explain_mount_error(&source, &path)),
        other => other.into(),
    })
}

/// SIGINT, SIGTERM and SIGHUP.
pub struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// To come to an end.
    End,
    /// To take up new certificates.
    Reload,
}

impl Signals {
    /// Takes them from here on.
    pub fn listen() -> anyhow::Result<Signals> {
        let listen = |kind| signal(kind).context("taking signals");
        Ok(Signals {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            hangup: listen(SignalKind::hangup())?,
        })
    }

    /// Waits for the next.
    pub async fn next(&mut self) -> Wanted {
        tokio::select! {
            _ = self.interrupt.recv() => Wanted::End,
            _ = self.terminate.recv() => Wanted::End,
            _ = self.hangup.recv() => Wanted::Reload,
        }
    }
}

/// Serves until a signal or an `umount` ends it.
pub async fn serve(mount: Mount, path: &Path, signals: &mut Signals) -> anyhow::Result<()> {
    loop {
        tokio::select! {
            ended = mount.ended() => {
                ended?;
                tracing::info!("{} was unmounted", path.display());
                break;
            }
            wanted = signals.next() => match wanted {
                Wanted::Reload => mount.reload_certificates(),
                Wanted::End => { unmount(path).await?; break }
            },
        }
    }
    mount.stop(DRAIN_TIME).await?;
    Ok(())
}

/// Takes the mount off at once; those who use it keep nothing but errors. Answers whether somebody does.
pub async fn unmount(path: &Path) -> anyhow::Result<bool> {
    let target = path.to_path_buf();
    // The unmount itself asks the daemon: it must not hold a thread that answers.
    let done = tokio::task::spawn_blocking(move || match mountpoint::detach(&target, false) {
        Err(e) if e.raw_os_error() == Some(libc::EBUSY) => mountpoint::detach(&target, true).map(|()| true),
        other => other.map(|()| false),
    })
    .await?;
    match done {
        Ok(false) => tracing::info!("{} is unmounted", path.display()),
        Ok(true) => tracing::warn!(
            "{} was in use: it is out of sight now, and whoever still has a file of it open gets errors",
            path.display()
        ),
        // Somebody else was faster.
        Err(_) if !mountpoint::is_mounted(path) => {}
        Err(e) => return Err(e).with_context(|| format!("unmounting {}", path.display())),
    }
    Ok(matches!(done, Ok(true)))
}
