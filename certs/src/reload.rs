//! New certificates taken up while a process runs.
//!
//! What is watched are directories, because editors, `certs issue` and Kubernetes put a new file
//! in place by a rename, after which a watch on the old file would never fire again. A slow check
//! runs beside that, for file systems without events and for certificates whose time has come.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use notify::event::{AccessKind, AccessMode};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use time::OffsetDateTime;
use tokio::sync::watch;

use crate::error::Error;
use crate::files::parent;
use crate::inspect::date;
use crate::load::{Credentials, Paths};

/// How long the directories must be quiet before the files are read: a certificate and its key
/// arrive one after the other, and between the two they do not fit together.
const QUIET: Duration = Duration::from_millis(100);
/// How long a directory that is never quiet can delay a reload.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often the files are read without any event.
const CHECK_EVERY: Duration = Duration::from_secs(60);
/// A certificate this close to its end is warned about (or in its last fifth, if that is less).
const NOTICE: time::Duration = time::Duration::days(14);
/// How often that warning is repeated.
const NOTICE_EVERY: Duration = Duration::from_secs(6 * 3600);

/// Loads the credentials again when their files change, for as long as it is kept.
///
/// New ones that do not fit together, or are of another identity, are refused with a warning and
/// the old ones stay in use, so that a mistake while replacing files never takes a cluster down.
#[derive(Debug)]
pub struct Reloader {
    shared: Arc<Shared>,
    stop: Arc<AtomicBool>,
    wake: SyncSender<()>,
}

impl Reloader {
    /// Loads the credentials, and starts to watch their files on a thread of its own.
    ///
    /// The receiver holds the ones in use, and is told of every change. When the `Reloader` is
    /// dropped the watching ends, and the receiver sees the channel closed.
    pub fn start(paths: Paths) -> Result<(Reloader, watch::Receiver<Arc<Credentials>>), Error> {
        let (wake, woken) = sync_channel(1);
        // Watched first and loaded then: a change in between is seen as an event.
        let mut watched = Watched::new(wake.clone());
        watched.refresh(&paths);
        let (current, receiver) = watch::channel(Arc::new(Credentials::load(&paths)?));
        let shared = Arc::new(Shared { paths, current, last_refusal: Mutex::new(None) });
        let stop = Arc::new(AtomicBool::new(false));
        let worker = Worker { shared: shared.clone(), stop: stop.clone(), woken, watched, noticed: None };
        std::thread::Builder::new()
            .name("certs-reload".into())
            .spawn(move || worker.run())
            .map_err(Error::Watch)?;
        Ok((Reloader { shared, stop, wake }, receiver))
    }

    /// Loads the files at once, as for SIGHUP. True if there was something new in them.
    ///
    /// An error is logged already, and the old credentials stay in use. Reads a few small files,
    /// on the calling thread.
    pub fn reload_now(&self) -> Result<bool, Error> {
        self.shared.reload(true)
    }
}

impl Drop for Reloader {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        // Full means that the worker is about to wake up anyway.
        let _ = self.wake.try_send(());
    }
}

#[derive(Debug)]
struct Shared {
    paths: Paths,
    current: watch::Sender<Arc<Credentials>>,
    /// The last reason to refuse, so that the slow check does not repeat it for ever. Held while
    /// loading: of two loads at once, the older could be published last.
    last_refusal: Mutex<Option<String>>,
}

impl Shared {
    fn reload(&self, always_warn: bool) -> Result<bool, Error> {
        let mut last_refusal = self.last_refusal.lock().unwrap_or_else(PoisonError::into_inner);
        let result = self.load();
        let refusal = result.as_ref().err().map(Error::to_string);
        if let Some(reason) = &refusal
            && (always_warn || *last_refusal != refusal)
        {
            let in_use_until = date(self.current.borrow().not_after());
            tracing::warn!(%reason, %in_use_until, "new certificates refused, the old ones stay in use");
        }
        *last_refusal = refusal;
        result
    }

    fn load(&self) -> Result<bool, Error> {
        let old = self.current.borrow().clone();
        let new = Credentials::load(&self.paths)?;
        if new.same_as(&old) {
            return Ok(false);
        }
        if new.identity() != old.identity() {
            return Err(Error::IdentityChanged { old: old.identity().clone(), new: new.identity().clone() });
        }
        tracing::info!(identity = %new.identity(), not_after = %date(new.not_after()), "new certificates in use");
        self.current.send_replace(Arc::new(new));
        Ok(true)
    }
}

struct Worker {
    shared: Arc<Shared>,
    stop: Arc<AtomicBool>,
    woken: Receiver<()>,
    watched: Watched,
    noticed: Option<Instant>,
}

impl Worker {
    fn run(mut self) {
        loop {
            let changed = match self.woken.recv_timeout(CHECK_EVERY) {
                Ok(()) => true,
                Err(RecvTimeoutError::Timeout) => false,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            if changed {
                self.settle();
            }
            if self.stop.load(Ordering::Acquire) {
                return;
            }
            self.watched.refresh(&self.shared.paths);
            // Logged there, and there is nobody else to tell.
            let _ = self.shared.reload(changed);
            self.notice_expiry();
        }
    }

    /// Waits until nothing has changed for a moment.
    fn settle(&self) {
        let deadline = Instant::now() + PATIENCE;
        while !self.stop.load(Ordering::Acquire)
            && Instant::now() < deadline
            && self.woken.recv_timeout(QUIET).is_ok()
        {}
    }

    fn notice_expiry(&mut self) {
        let current = self.shared.current.borrow().clone();
        let left = current.not_after() - OffsetDateTime::now_utc();
        let lifetime = current.not_after() - current.not_before();
        let due = left < NOTICE.min(lifetime / 5);
        if due && self.noticed.is_none_or(|at| at.elapsed() >= NOTICE_EVERY) {
            self.noticed = Some(Instant::now());
            let (identity, not_after) = (current.identity(), date(current.not_after()));
            tracing::warn!(%identity, %not_after, "the certificate in use ends soon: issue the next one");
        }
    }
}

/// The directories under watch. Without a watcher, only the slow check notices changes.
struct Watched {
    watcher: Option<RecommendedWatcher>,
    dirs: BTreeSet<PathBuf>,
}

impl Watched {
    fn new(wake: SyncSender<()>) -> Watched {
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            if event.is_ok_and(|event| !is_change(event.kind)) {
                return;
            }
            // Full means that a wake-up is waiting, and that stands for this event too.
            let _ = wake.try_send(());
        });
        if let Err(error) = &watcher {
            tracing::warn!(%error, every = ?CHECK_EVERY, "cannot watch for new certificates, checking periodically");
        }
        Watched { watcher: watcher.ok(), dirs: BTreeSet::new() }
    }

    /// Watches the directories of the files as they are now, and no other. Symlinks lead to more
    /// of them, and a directory that was replaced must be watched anew.
    fn refresh(&mut self, paths: &Paths) {
        let Some(watcher) = &mut self.watcher else { return };
        let dirs: BTreeSet<PathBuf> = paths.all().into_iter().flat_map(directories).collect();
        for gone in self.dirs.difference(&dirs) {
            // It fails when the directory was removed, and the watch with it.
            let _ = watcher.unwatch(gone);
        }
        for dir in &dirs {
            if let Err(error) = watcher.watch(dir, RecursiveMode::NonRecursive) {
                let dir = dir.display();
                tracing::warn!(%dir, %error, every = ?CHECK_EVERY, "cannot watch this directory, checking periodically");
            }
        }
        self.dirs = dirs;
    }
}

/// The directory that names the file, and the one where it really is.
fn directories(path: &Path) -> impl Iterator<Item = PathBuf> {
    let target = path.canonicalize().ok().map(|target| parent(&target).to_owned());
    let named = parent(path);
    let named = named.canonicalize().unwrap_or_else(|_| named.to_owned());
    std::iter::once(named).chain(target)
}

/// Whether an event can mean new contents. Reading does not: it would follow its own reload.
fn is_change(kind: EventKind) -> bool {
    !matches!(kind, EventKind::Access(access) if access != AccessKind::Close(AccessMode::Write))
}
