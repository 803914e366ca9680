//! One mount, wired together: the client's watch feeds the core, fuser asks it, the replayer shows
//! the kernel what others did.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use fuser::{INodeNo, MountOption, Notifier, Session, SessionACL, SessionUnmounter};
use quorumfs_api::client::{Client, ClientError, Resume};
use quorumfs_api::key::Key;
use quorumfs_api::style::EventStyle;
use tokio::sync::watch;

pub use crate::attr::Overrides;
use crate::core::{Core, Invalidate, Rules};
use crate::feed::{self, Progress};
use crate::fs::Fs;
use crate::fuse::Adapter;
use crate::handover::device;
use crate::handover::journal::Journal;
use crate::inherit;
use crate::kernel::NodeId;
use crate::replay::player::{self, Complaint};
use crate::report::{Mounted, unix_ms};
use crate::store::ClusterStore;

/// Second half of the type of our mounts: mountinfo shows `fuse.quorumfs`.
const SUBTYPE: &str = "quorumfs";
/// How long the replayer may take to end with the mount.
const REPLAYER_END: Duration = Duration::from_secs(2);

/// What is to be mounted, and how.
#[derive(Debug)]
pub struct Config {
    /// The cluster. It loads its certificates again by itself when the files change.
    pub client: Client,
    /// The directory of the store that is mounted.
    pub prefix: Key,
    /// Where: an existing directory, absolute.
    pub mountpoint: PathBuf,
    /// What mountinfo shows as the source: the nodes as fstab names them, by which `mount -a` knows that this
    /// line is mounted already.
    pub source: String,
    /// Refuse every change with `EROFS`. The kernel does not know of it: replaying needs to write.
    pub read_only: bool,
    /// Commit in each `write`, as if every file were opened with `O_SYNC`.
    pub sync: bool,
    /// How long a system call may wait for the cluster.
    pub write_timeout: Duration,
    /// Whether other users may use the mount.
    pub allow_other: bool,
    /// What is shown in place of owners and modes.
    pub shown: Overrides,
    /// How changes look to programs that watch, in directories that do not say.
    pub events: EventStyle,
    /// Honour set-user-id bits.
    pub suid: bool,
    /// Honour device nodes.
    pub dev: bool,
    /// Refuse to execute.
    pub noexec: bool,
    /// Threads that take requests from the kernel.
    pub threads: usize,
}

impl Config {
    /// With the usual settings.
    pub fn new(client: Client, prefix: Key, mountpoint: impl Into<PathBuf>) -> Config {
        Config {
            client,
            prefix,
            mountpoint: mountpoint.into(),
            source: SUBTYPE.to_string(),
            read_only: false,
            sync: false,
            write_timeout: Duration::from_secs(5),
            allow_other: false,
            shown: Overrides::default(),
            events: EventStyle::default(),
            suid: false,
            dev: false,
            noexec: false,
            threads: 4,
        }
    }
}

/// Why a mount could not begin, or ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The tree could not be had in time.
    #[error("no copy of the tree came within {waited:?}: {reason}")]
    NoCopy {
        /// How long it was waited.
        waited: Duration,
        /// What is known.
        reason: String,
    },
    /// The cluster refuses us.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The kernel refuses us.
    #[error("mounting on {path:?}: {source}")]
    Mount {
        /// Where.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Something of this process failed.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The connection to the kernel broke.
    #[error("the connection to the kernel broke: {0}")]
    Broken(String),
}

/// How long a mount waits for its first copy of the tree.
pub const FIRST_COPY: Duration = Duration::from_secs(30);
/// How long a new worker waits for a node that has what the last one has shown.
const CATCH_UP: Duration = Duration::from_secs(10);

struct Kernel(Notifier);
impl Invalidate for Kernel {
    fn inode(&self, node: NodeId) -> bool {
        // A negative offset means: attributes only. That waits for nothing in the kernel; the pages go
        // when the next reader sees other attributes.
        if let Err(error) = self.0.inval_inode(INodeNo(node), -1, 0) {
            tracing::trace!(%error, node, "the kernel was not told of a change");
        }
        true
    }
}

/// The same through the device itself, which says whether the kernel holds the inode.
struct Device(OwnedFd);
impl Invalidate for Device {
    fn inode(&self, node: NodeId) -> bool {
        device::forget_attributes(&self.0, node)
    }
}

/// What a supervisor hands to a worker.
#[derive(Debug)]
pub struct Handover {
    /// `/dev/fuse`, mounted.
    pub device: OwnedFd,
    /// Memory for the journal, or the journal of the last worker.
    pub journal: OwnedFd,
    /// Counts the workers of the mount, from 0.
    pub generation: u32,
    /// The supervisor's process, for the report.
    pub supervisor: Option<u32>,
}

/// A mount that is being served. Dropping it takes it off at once, if it was mounted here; [`Mount::stop`]
/// does it in order.
pub struct Mount {
    core: Arc<Core>,
    store: Arc<ClusterStore>,
    path: PathBuf,
    /// Minor number of its device, by which the kernel knows the connection.
    device: Option<u32>,
    feed: tokio::task::JoinHandle<()>,
    unmounter: Option<SessionUnmounter>,
    /// A supervisor has mounted it: it goes on without this process.
    supervised: bool,
    resends: bool,
    replayer: Option<JoinHandle<()>>,
    ended: watch::Receiver<Option<Result<(), String>>>,
}

/// All that a mount needs but the kernel: the mirror holds the tree, and follows it.
pub struct Prepared {
    config: Config,
    core: Arc<Core>,
    store: Arc<ClusterStore>,
    feed: AbortOnDrop,
}

impl Prepared {
    /// Takes a copy of the tree, for at most that time if there is a limit.
    ///
    /// # Errors
    /// When the cluster refuses us or gives no copy.
    pub async fn new(config: Config, limit: Option<Duration>) -> Result<Prepared, Error> {
        let store = ClusterStore::new(config.client.clone());
        let rules = Rules {
            read_only: config.read_only,
            sync: config.sync,
            write_timeout: config.write_timeout,
            shown: shown(config.shown),
            events: config.events,
        };
        let core = Core::new(store.clone(), rules, mounted(&config));
        let (progress, mut copied) = watch::channel(Progress::default());
        let feed =
            tokio::spawn(feed::run(core.clone(), config.client.clone(), config.prefix.clone(), progress));
        let feed = AbortOnDrop(Some(feed));
        tokio::spawn(core.clone().follow_sessions());
        wait_for_copy(&mut copied, limit).await?;
        // The node that sent the copy may be behind: one that has just started reads its log first.
        if core.barrier().await.is_err() {
            tracing::warn!("no quorum answers: what is mounted is what one node has, and may be behind");
        }
        Ok(Prepared { config, core, store, feed })
    }

    /// Mounts it. When this returns, the mount is usable.
    ///
    /// # Errors
    /// When the kernel refuses the mount.
    pub async fn mount(self) -> Result<Mount, Error> {
        self.store.open_session(self.config.write_timeout);
        let options = mount_options(&self.config);
        let adapter = self.adapter();
        let path = self.config.mountpoint.clone();
        // The handshake with the kernel blocks.
        let mounted = tokio::task::spawn_blocking(move || Session::new(adapter, &path, &options));
        let mounted = mounted.await.map_err(|error| Error::Broken(error.to_string()))?;
        let path = self.config.mountpoint.clone();
        let mut session = mounted.map_err(|source| Error::Mount { path, source })?;
        self.core.connect(Box::new(Kernel(session.notifier())));
        let unmounter = session.unmount_callable();
        self.run(session, Some(unmounter), false).await
    }

    /// Serves what a supervisor has mounted just now. When this returns, the mount is usable.
    ///
    /// # Errors
    /// When the connection to the kernel cannot be opened.
    pub async fn serve(self, handover: Handover) -> Result<Mount, Error> {
        let what = "taking over a mount that was made just now";
        let journal = Journal::begin(handover.journal).map_err(|source| Error::Io { what, source })?;
        let notify = handover.device.try_clone().map_err(|source| Error::Io { what, source })?;
        self.note_in(journal, handover.generation);
        self.core.set_supervisor(handover.supervisor);
        self.core.set_invalidate(Box::new(Device(notify)));
        self.core.begin_notes();
        self.store.open_session(self.config.write_timeout);
        let (adapter, options) = (self.adapter(), shared_options(&self.config));
        let (resends, device) = (adapter.resends(), handover.device);
        let open =
            tokio::task::spawn_blocking(move || Session::from_fd(adapter, device, options.acl, options));
        let session = open.await.map_err(|error| Error::Broken(error.to_string()))?;
        let session = session.map_err(|source| Error::Io { what, source })?;
        let mut mount = self.run(session, None, true).await?;
        mount.resends = resends.load(Ordering::Acquire);
        Ok(mount)
    }

    /// Takes the place of a worker that is gone: the kernel goes on as if nothing had been.
    ///
    /// # Errors
    /// When the notes of the last worker, or the connection, cannot be taken up.
    pub async fn resume(self, handover: Handover) -> Result<Mount, Error> {
        let what = "taking over from the last worker";
        let failed = |source| Error::Io { what, source };
        let Handover { device, journal, generation, supervisor } = handover;
        self.core.set_supervisor(supervisor);
        let notify = device.try_clone().map_err(failed)?;
        let (journal, image) = Journal::resume(journal).map_err(failed)?;
        // What was seen once is not taken back.
        let deadline = Instant::now() + CATCH_UP;
        if *self.core.shown.borrow() < image.shown && self.core.wait_for(image.shown, deadline).await.is_err()
        {
            tracing::warn!(
                "the nodes that answer are behind what was shown here before: older values come back"
            );
        }
        self.note_in(journal, generation);
        let open = image.sent.iter().filter(|sent| sent.outcome.is_none());
        let open = open.map(|sent| sent.number).collect();
        let session = image.session.map(|id| Resume { id, next: image.next.max(1) });
        let (adapter, options, core) = (self.adapter(), shared_options(&self.config), self.core.clone());
        let taken_up = tokio::task::spawn_blocking(move || {
            let session = device::resume(adapter, device, options)?;
            // What comes from the cluster meanwhile is told to the kernel, too.
            core.set_invalidate(Box::new(Device(notify.try_clone()?)));
            core.inherit(image, |node| device::forget_attributes(&notify, node));
            device::resend(&notify)?;
            tokio::spawn(inherit::ask_again(core, move |node| device::forget_attributes(&notify, node)));
            Ok(session)
        });
        let device = taken_up.await.map_err(|error| Error::Broken(error.to_string()))?.map_err(failed)?;
        // Not before it is known which calls wait for what comes of it.
        match session {
            Some(session) => {
                let core = self.core.clone();
                self.store.resume_session(session, open, move |outcomes| core.settle_calls(outcomes));
            }
            None => self.store.open_session(self.config.write_timeout),
        }
        let mut mount = self.run(device, None, true).await?;
        mount.resends = true;
        Ok(mount)
    }

    fn adapter(&self) -> Adapter {
        Adapter::new(Fs::new(self.core.clone()), tokio::runtime::Handle::current())
    }

    fn note_in(&self, journal: Journal, generation: u32) {
        let journal = Arc::new(journal);
        self.core.set_journal(journal.clone());
        self.store.set_journal(journal);
        let mut state = self.core.state.lock();
        state.handles.set_generation(generation);
        state.kernel.set_generation(generation);
    }

    async fn run(
        self,
        session: Session<Adapter>,
        unmounter: Option<SessionUnmounter>,
        supervised: bool,
    ) -> Result<Mount, Error> {
        let (end, ended) = watch::channel(None);
        std::thread::Builder::new()
            .name("fuse".to_string())
            .spawn(move || {
                let result = session.run().map_err(|error| error.to_string());
                end.send_replace(Some(result));
            })
            .map_err(|source| Error::Io { what: "starting the thread for FUSE", source })?;
        let path = self.config.mountpoint;
        let mut mount = Mount {
            core: self.core,
            store: self.store,
            device: None,
            path: path.clone(),
            feed: self.feed.keep(),
            unmounter,
            supervised,
            resends: false,
            replayer: None,
            ended,
        };
        // From here on dropping `mount` takes it off again.
        mount.device = device_of(path).await;
        mount.replayer = Some(mount.start_replayer()?);
        Ok(mount)
    }
}

impl Mount {
    /// Takes a copy of the tree and mounts it. When this returns, the mount is usable.
    ///
    /// # Errors
    /// When the cluster refuses us or gives no copy, or the kernel refuses the mount.
    pub async fn start(config: Config) -> Result<Mount, Error> {
        Prepared::new(config, Some(FIRST_COPY)).await?.mount().await
    }

    /// Whether the kernel can be made to ask again what a worker that is gone did not answer.
    pub fn resends(&self) -> bool {
        self.resends
    }

    fn start_replayer(&self) -> Result<JoinHandle<()>, Error> {
        let (failed, complaints) = mpsc::channel::<Complaint>();
        let spawn = |name: &str, run: Box<dyn FnOnce() + Send>| {
            let thread = std::thread::Builder::new().name(name.to_string());
            thread
                .spawn(run)
                .map_err(|source| Error::Io { what: "starting a thread of the replayer", source })
        };
        // The replayer has no descriptors of its own to log with.
        spawn(
            "replay-log",
            Box::new(move || {
                for Complaint { what, error } in complaints {
                    tracing::debug!(%error, what, "a change could not be shown as an event");
                }
            }),
        )?;
        let (core, path) = (self.core.clone(), self.path.clone());
        spawn("replay", Box::new(move || player::run(&core, &path, &failed)))
    }

    /// The state, for tests and for what shows it.
    pub fn core(&self) -> &Arc<Core> {
        &self.core
    }

    /// On SIGHUP: takes up new certificates now. They are also taken up by themselves when their files change.
    pub fn reload_certificates(&self) {
        // What is new, or wrong, is logged where it is loaded.
        if let Ok(false) = self.store.client().reload_credentials() {
            tracing::info!("SIGHUP: the certificates are the ones in use");
        }
    }

    /// Waits until the mount is off, however that came.
    ///
    /// # Errors
    /// When the connection to the kernel broke.
    pub async fn ended(&self) -> Result<(), Error> {
        let mut ended = self.ended.clone();
        let result = match ended.wait_for(Option::is_some).await {
            Ok(result) => result.clone(),
            Err(_) => Some(Err("the thread for FUSE is gone".to_string())),
        };
        match result {
            Some(Err(reason)) => Err(Error::Broken(reason)),
            _ => Ok(()),
        }
    }

    /// Takes the mount off and lets what is under way come to its end, for at most `drain`. Who still
    /// has a file open gets errors after that.
    ///
    /// # Errors
    /// When the connection to the kernel broke.
    pub async fn stop(mut self, drain: Duration) -> Result<(), Error> {
        let deadline = Instant::now() + drain;
        self.core.stop();
        let (unmounter, path) = (self.unmounter.take(), self.path.clone());
        let off = tokio::task::spawn_blocking(move || unmount(unmounter, &path));
        let _ = tokio::time::timeout_at(deadline.into(), off).await;
        if tokio::time::timeout_at(deadline.into(), self.ended()).await.is_err() {
            tracing::warn!(path = %self.path.display(), "somebody still uses the mount: cutting it off");
            self.abort();
        }
        let store = self.store.clone();
        let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(200));
        store.close(left).await;
        Ok(())
    }

    /// Cuts the connection: every request that waits in the kernel fails at once.
    fn abort(&self) {
        if let Some(device) = self.device {
            let _ = std::fs::write(format!("/sys/fs/fuse/connections/{device}/abort"), b"1");
        }
    }

    fn has_ended(&self) -> bool {
        self.ended.borrow().is_some() || self.ended.has_changed().is_err()
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        self.core.stop();
        self.feed.abort();
        if !self.has_ended() {
            unmount(self.unmounter.take(), &self.path);
            // With files still open it lives on, detached; nobody would answer them.
            if !self.supervised && !self.has_ended() {
                self.abort();
            }
        }
        if let Some(replayer) = self.replayer.take() {
            let deadline = Instant::now() + REPLAYER_END;
            while !replayer.is_finished() && Instant::now() < deadline {
                self.core.work.notify_all();
                std::thread::park_timeout(Duration::from_millis(2));
            }
        }
    }
}

/// Takes it off, in use or not.
fn unmount(unmounter: Option<SessionUnmounter>, path: &Path) {
    let Some(mut unmounter) = unmounter else { return };
    if let Err(error) = unmounter.unmount() {
        tracing::debug!(%error, "taking the mount off lazily");
        if let Err(error) = rustix::mount::unmount(path, rustix::mount::UnmountFlags::DETACH) {
            tracing::debug!(%error, "the mount is off already");
        }
    }
}

async fn wait_for_copy(
    progress: &mut watch::Receiver<Progress>,
    limit: Option<Duration>,
) -> Result<(), Error> {
    let over = |progress: &Progress| matches!(progress, Progress::Ready | Progress::Failed(_));
    let copied = async { progress.wait_for(over).await.map(drop) };
    let waited = match limit {
        Some(limit) => tokio::time::timeout(limit, copied).await.unwrap_or(Ok(())),
        None => copied.await,
    };
    if waited.is_err() {
        return Err(Error::Broken("the mirror's task is gone".to_string()));
    }
    let state = progress.borrow().clone();
    match state {
        Progress::Ready => Ok(()),
        Progress::Failed(error) => Err(error.into()),
        Progress::Hindered(reason) => Err(Error::NoCopy { waited: limit.unwrap_or_default(), reason }),
        Progress::Waiting => {
            let reason = "no node sent one".to_string();
            Err(Error::NoCopy { waited: limit.unwrap_or_default(), reason })
        }
    }
}

async fn device_of(path: PathBuf) -> Option<u32> {
    use std::os::unix::fs::MetadataExt;
    let stat = tokio::task::spawn_blocking(move || std::fs::metadata(path)).await.ok()?.ok()?;
    Some(rustix::fs::minor(stat.dev()))
}

/// What is shown where nothing else was said. An ordinary user's mount shows everything as his: the
/// replayer is that user, and the kernel lets nobody change what belongs to others.
fn shown(wanted: Overrides) -> Overrides {
    let user = rustix::process::geteuid();
    if user.is_root() {
        return wanted;
    }
    let group = rustix::process::getegid();
    Overrides { uid: wanted.uid.or(Some(user.as_raw())), gid: wanted.gid.or(Some(group.as_raw())), ..wanted }
}

fn mount_options(config: &Config) -> fuser::Config {
    let mut options = fuser::Config::default();
    options.mount_options = vec![
        MountOption::FSName(source(config)),
        // fuser drops its own `Subtype` where it mounts without fusermount3.
        MountOption::CUSTOM(format!("subtype={SUBTYPE}")),
        MountOption::DefaultPermissions,
        if config.suid { MountOption::Suid } else { MountOption::NoSuid },
        if config.dev { MountOption::Dev } else { MountOption::NoDev },
        if config.noexec { MountOption::NoExec } else { MountOption::Exec },
        MountOption::NoAtime,
    ];
    options.acl = if config.allow_other { SessionACL::All } else { SessionACL::Owner };
    options.n_threads = Some(config.threads.max(2));
    options.clone_fd = true;
    options
}

/// What the mount says of how it was made.
fn mounted(config: &Config) -> Mounted {
    let settings = config.client.settings();
    Mounted {
        mountpoint: config.mountpoint.display().to_string(),
        prefix: config.prefix.to_string(),
        identity: settings.name.clone(),
        nodes: settings.nodes.clone(),
        read_only: config.read_only,
        sync: config.sync,
        timeout_ms: u64::try_from(config.write_timeout.as_millis()).unwrap_or(u64::MAX),
        since: unix_ms(SystemTime::now()),
    }
}

/// The source as fuser takes it: one argument of mount(2) for root, a word in fusermount3's list of options for
/// everybody else, in which a comma needs a backslash.
fn source(config: &Config) -> String {
    if rustix::process::geteuid().is_root() {
        return config.source.clone();
    }
    config.source.replace('\\', "\\\\").replace(',', "\\,")
}

/// The same for a connection that goes on without us: a clone of the device takes the requests that were
/// read through it along when it is closed.
fn shared_options(config: &Config) -> fuser::Config {
    let mut options = mount_options(config);
    options.clone_fd = false;
    options
}

/// A task that ends with whoever started it, unless it is kept.
struct AbortOnDrop(Option<tokio::task::JoinHandle<()>>);
impl AbortOnDrop {
    fn keep(mut self) -> tokio::task::JoinHandle<()> {
        // It is there until `keep` takes it, once.
        self.0.take().unwrap_or_else(|| tokio::spawn(async {}))
    }
}
impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        if let Some(task) = &self.0 {
            task.abort();
        }
    }
}
