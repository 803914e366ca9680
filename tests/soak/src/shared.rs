//! What the workloads and the driver of the faults know of each other.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use quorumfs_api::client::{Client, Settings};
use quorumfs_tests::random::Random;
use tokio::sync::watch;

use crate::report::Report;
use crate::workload::watch::Acknowledged;

/// Microseconds since the run began, of one monotonic clock.
pub type Micros = u64;

/// What a run is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Operations and faults.
    Run,
    /// Everything is healed for good: finish, read, check.
    Settle,
}

/// One mount, as the workloads see it.
pub struct Mount {
    /// Name of the host.
    pub name: String,
    /// Where it is mounted.
    pub path: PathBuf,
    /// Grows when its fsd is killed, and once more when it is there again: odd while it is away.
    pub epoch: AtomicU64,
}

impl Mount {
    /// The epoch of now, if the mount is there.
    pub fn up(&self) -> Option<u64> {
        let epoch = self.epoch.load(Ordering::SeqCst);
        epoch.is_multiple_of(2).then_some(epoch)
    }

    /// Whether it has been there all the time since `epoch`.
    pub fn stayed(&self, epoch: u64) -> bool {
        self.epoch.load(Ordering::SeqCst) == epoch
    }
}

/// Everything shared in a run.
pub struct Shared {
    /// The seed.
    pub seed: u64,
    /// What was done and found.
    pub report: Report,
    /// All mounts.
    pub mounts: Vec<Mount>,
    /// Writers on mounts that are at work.
    pub writers: AtomicUsize,
    /// What was acknowledged, for the watchers to be held against.
    pub acknowledged: Mutex<Vec<Acknowledged>>,
    settings: Settings,
    keep: PathBuf,
    start: Instant,
    phase: watch::Sender<Phase>,
    broken: AtomicBool,
    healed: AtomicU64,
}

impl Shared {
    /// A run that begins now. Histories go to `keep`.
    pub fn new(seed: u64, settings: Settings, mounts: Vec<Mount>, keep: PathBuf) -> Arc<Shared> {
        Arc::new(Shared {
            seed,
            report: Report::default(),
            writers: AtomicUsize::new(mounts.len()),
            mounts,
            acknowledged: Mutex::new(Vec::new()),
            settings,
            keep,
            start: Instant::now(),
            phase: watch::Sender::new(Phase::Run),
            broken: AtomicBool::new(false),
            healed: AtomicU64::new(0),
        })
    }

    /// A client of its own: a lost connection of one workload is not one of another.
    pub fn client(&self) -> Client {
        Client::new(self.settings.clone()).expect("the client's certificate was made")
    }

    /// Now.
    pub fn now(&self) -> Micros {
        self.at(Instant::now())
    }

    /// A moment.
    pub fn at(&self, moment: Instant) -> Micros {
        moment.saturating_duration_since(self.start).as_micros() as Micros
    }

    /// Random numbers of one worker, the same each time for the seed.
    pub fn random(&self, worker: &str) -> Random {
        let mut seed = self.seed;
        for byte in worker.bytes() {
            seed = (seed ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        Random::new(seed)
    }

    /// Whether operations go on.
    pub fn runs(&self) -> bool {
        *self.phase.borrow() == Phase::Run
    }

    /// Waits until all is healed for good.
    pub async fn settle(&self) {
        let _ = self.phase.subscribe().wait_for(|phase| *phase == Phase::Settle).await;
    }

    /// Waits so long, or until all is healed for good.
    pub async fn pause(&self, time: Duration) {
        let _ = tokio::time::timeout(time, self.settle()).await;
    }

    /// All is healed for good.
    pub fn begin_settling(&self) {
        self.phase.send_replace(Phase::Settle);
    }

    /// A fault begins.
    pub fn breaks(&self) {
        self.broken.store(true, Ordering::SeqCst);
    }

    /// All faults are healed.
    pub fn heals(&self) {
        self.healed.store(self.now(), Ordering::SeqCst);
        self.broken.store(false, Ordering::SeqCst);
    }

    /// Since when nothing has been broken; `None` while something is.
    pub fn whole_since(&self) -> Option<Micros> {
        (!self.broken.load(Ordering::SeqCst)).then(|| self.healed.load(Ordering::SeqCst))
    }

    /// Notes that a write was acknowledged.
    pub fn acknowledge(&self, acknowledged: Acknowledged) {
        self.acknowledged.lock().push(acknowledged);
    }

    /// Keeps a history, for a person to look at when the run fails.
    pub fn keep(&self, name: &str, lines: impl IntoIterator<Item = String>) {
        let mut text = String::new();
        for line in lines {
            text.push_str(&line);
            text.push('\n');
        }
        let path = self.keep.join(format!("{name}.history"));
        if let Err(error) = fs::write(&path, text) {
            eprintln!("the history {path:?} could not be kept: {error}");
        }
    }
}
