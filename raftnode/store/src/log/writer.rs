//! The one thread that writes to the log on disk. It takes all writes that wait and makes them
//! durable in one commit, so that many writers share the cost of one sync.

use std::io;
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use parking_lot::{Condvar, Mutex, RwLock};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::Instant;

use crate::log::backend::{Batch, LogBackend, Op};
use crate::log::tail::Tail;

/// Most writes that wait for the writer thread.
const QUEUE: usize = 4096;
/// Most writes, and about how many bytes, that one commit takes: a longer one would make the first
/// of them wait for the last.
const BATCH_OPS: usize = 4096;
/// See [`BATCH_OPS`].
const BATCH_BYTES: usize = 8 << 20;
/// Most bytes of entries that wait to become durable; who appends more waits.
const WAITING_BYTES: usize = 64 << 20;
/// Shortest time between two committed positions that are written: each costs a page. A start applies
/// up to the last that was written, and to the end once there is a leader.
const COMMITTED_INTERVAL: Duration = Duration::from_millis(100);
/// Unit in which waiting bytes are counted.
const WAITING_UNIT: usize = 1 << 10;

/// Who waits for a write.
pub(crate) enum Done {
    /// Nobody.
    Nobody,
    /// openraft.
    Flushed(Box<dyn FnOnce(io::Result<()>) + Send>),
    /// A caller.
    Caller(oneshot::Sender<io::Result<()>>),
}

impl Done {
    fn call(self, result: &Result<(), Failure>) {
        let result = result.as_ref().map(|_| ()).map_err(Failure::to_error);
        match self {
            Done::Nobody => {}
            Done::Flushed(callback) => callback(result),
            // The caller may have given up.
            Done::Caller(caller) => drop(caller.send(result)),
        }
    }
}

/// A write on its way to the disk.
pub(crate) struct Write {
    pub number: u64,
    pub op: Op,
    pub done: Done,
    /// What it counts against [`WAITING_BYTES`].
    pub units: u32,
}

pub(crate) enum Work {
    Write(Write),
    /// Make everything durable and let go of the database.
    Close(oneshot::Sender<()>),
}

/// The error after which the log is dead.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    kind: io::ErrorKind,
    text: String,
}

impl Failure {
    fn new(error: &io::Error) -> Failure {
        Failure {
            kind: error.kind(),
            text: format!("the log cannot be written: {error}; the node has to be restarted"),
        }
    }

    pub fn to_error(&self) -> io::Error {
        io::Error::new(self.kind, self.text.clone())
    }
}

/// What writes the log, and how long that takes.
pub(crate) enum Drive {
    /// A thread; the disk takes its time.
    Thread,
    /// A task of the runtime that starts it; each commit takes the time that this gives, and a read
    /// takes none. So a simulation has the disk's time in its hands, too.
    Task(Box<dyn FnMut() -> Duration + Send>),
}

/// What the log, its readers and its writer thread share.
pub(crate) struct Shared {
    pub tail: RwLock<Tail>,
    /// The disk may make a reader wait, who then must not be a task.
    pub disk_waits: bool,
    /// `None` after the log was closed.
    backend: Mutex<Option<Arc<dyn LogBackend>>>,
    failure: OnceLock<Failure>,
    waiting: Semaphore,
    /// All writes up to this number are durable.
    durable: Mutex<u64>,
    /// Rings when that, or the failure, changes.
    progress: Condvar,
}

impl Shared {
    /// The log on disk.
    pub fn backend(&self) -> io::Result<Arc<dyn LogBackend>> {
        self.backend.lock().clone().ok_or_else(closed)
    }

    /// The error that ended it, if one did.
    pub fn check(&self) -> io::Result<()> {
        self.failure.get().map_or(Ok(()), |failure| Err(failure.to_error()))
    }

    /// Waits until `bytes` more may wait; gives the units that they count.
    pub async fn reserve(&self, bytes: usize) -> io::Result<u32> {
        let units = (bytes.min(WAITING_BYTES) / WAITING_UNIT + 1).min(WAITING_BYTES / WAITING_UNIT) as u32;
        match self.waiting.acquire_many(units).await {
            Ok(permit) => permit.forget(),
            Err(_) => return Err(self.check().err().unwrap_or_else(closed)),
        }
        Ok(units)
    }

    /// Waits until all that was asked for until now is durable. Blocks.
    pub fn wait_until_durable(&self) -> io::Result<()> {
        let asked = self.tail.read().asked();
        let mut durable = self.durable.lock();
        while *durable < asked {
            self.check()?;
            self.progress.wait(&mut durable);
        }
        Ok(())
    }

    fn fail(&self, error: &io::Error) -> Failure {
        let failure = self.failure.get_or_init(|| Failure::new(error)).clone();
        self.waiting.close();
        // Whoever has looked for a failure and found none is waiting by now.
        drop(self.durable.lock());
        self.progress.notify_all();
        failure
    }
}

pub(crate) fn closed() -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, "the log was closed")
}

/// Starts the writer. It ends when it is told to close, or when the last sender is gone.
pub(crate) fn start(
    backend: Arc<dyn LogBackend>,
    tail: Tail,
    drive: Drive,
) -> io::Result<(Arc<Shared>, mpsc::Sender<Work>)> {
    let shared = Arc::new(Shared {
        tail: RwLock::new(tail),
        disk_waits: matches!(drive, Drive::Thread),
        backend: Mutex::new(Some(backend.clone())),
        failure: OnceLock::new(),
        waiting: Semaphore::new(WAITING_BYTES / WAITING_UNIT),
        durable: Mutex::new(0),
        progress: Condvar::new(),
    });
    let (sender, receiver) = mpsc::channel(QUEUE);
    let writer = Writer { shared: shared.clone(), backend: Some(backend), receiver, saved: Instant::now() };
    match drive {
        Drive::Thread => drop(thread::Builder::new().name("log-writer".into()).spawn(move || writer.run())?),
        Drive::Task(delay) => drop(tokio::spawn(writer.run_in_task(delay))),
    }
    Ok((shared, sender))
}

/// Writes that become durable together, and who waits for them.
#[derive(Default)]
struct Gathered {
    batch: Batch,
    waiters: Vec<Done>,
    /// Number of the last of them.
    number: u64,
    units: usize,
    /// The log is to be closed behind them.
    close: Option<oneshot::Sender<()>>,
}

struct Writer {
    shared: Arc<Shared>,
    backend: Option<Arc<dyn LogBackend>>,
    receiver: mpsc::Receiver<Work>,
    /// When a committed position was written last.
    saved: Instant,
}

impl Writer {
    fn run(mut self) {
        let mut gathered = Gathered::default();
        while let Some(first) = self.receiver.blocking_recv() {
            self.gather(first, &mut gathered);
            if self.write(&mut gathered) {
                return;
            }
        }
        self.write_rest(gathered);
    }

    async fn run_in_task(mut self, mut delay: Box<dyn FnMut() -> Duration + Send>) {
        let mut gathered = Gathered::default();
        while let Some(first) = self.receiver.recv().await {
            self.gather(first, &mut gathered);
            if !gathered.batch.is_empty() {
                tokio::time::sleep(delay()).await;
            }
            if self.write(&mut gathered) {
                return;
            }
        }
        self.write_rest(gathered);
    }

    /// Takes all that waits, from `first` on, up to what one commit holds.
    fn gather(&mut self, first: Work, gathered: &mut Gathered) {
        let mut next = Some(first);
        while let Some(work) = next {
            match work {
                Work::Write(write) => {
                    gathered.number = write.number;
                    gathered.units += write.units as usize;
                    gathered.batch.push(write.op);
                    gathered.waiters.push(write.done);
                }
                Work::Close(done) => {
                    gathered.close = Some(done);
                    break;
                }
            }
            if gathered.batch.len() >= BATCH_OPS || gathered.units >= BATCH_BYTES / WAITING_UNIT {
                break;
            }
            next = self.receiver.try_recv().ok();
        }
    }

    /// Writes what was gathered. True if the log was closed with it.
    fn write(&mut self, gathered: &mut Gathered) -> bool {
        let Gathered { batch, waiters, number, units, close } = gathered;
        if close.is_some() || (!batch.is_empty() && self.saved.elapsed() >= COMMITTED_INTERVAL) {
            batch.extend(self.committed(*number));
            self.saved = Instant::now();
        }
        self.commit(batch, waiters, *number, *units);
        batch.clear();
        (*number, *units) = (0, 0);
        let Some(done) = close.take() else { return false };
        self.receiver.close();
        self.end();
        // Whoever waits for it may have gone away.
        let _ = done.send(());
        true
    }

    /// Nobody is left who could ask for more.
    fn write_rest(&mut self, mut gathered: Gathered) {
        gathered.batch.extend(self.committed(0));
        self.commit(&gathered.batch, &mut gathered.waiters, 0, 0);
        self.end();
    }

    /// The committed position, if it may be written with the writes up to `number`, and has not been.
    fn committed(&self, number: u64) -> Option<Op> {
        self.shared.tail.write().save_committed(number).map(Op::Committed)
    }

    /// Makes `batch` durable and tells those who wait. After one failure all that follow fail.
    fn commit(&self, batch: &Batch, waiters: &mut Vec<Done>, number: u64, units: usize) {
        let result = match (&self.backend, self.shared.failure.get()) {
            (_, Some(failure)) => Err(failure.clone()),
            (Some(backend), None) if !batch.is_empty() => {
                backend.commit(batch).map_err(|error| self.shared.fail(&error))
            }
            _ => Ok(()),
        };
        if let Err(failure) = &result {
            tracing::error!(error = %failure.text, "the log failed");
        } else if number > 0 {
            {
                let mut tail = self.shared.tail.write();
                tail.durable(number);
                for op in batch {
                    if let Op::Vote(vote) = op {
                        tail.vote = Some(*vote);
                    }
                }
            }
            *self.shared.durable.lock() = number;
            self.shared.progress.notify_all();
        }
        for done in waiters.drain(..) {
            done.call(&result);
        }
        self.shared.waiting.add_permits(units);
    }

    fn end(&mut self) {
        let closed = Failure { kind: io::ErrorKind::BrokenPipe, text: "the log was closed".into() };
        // Where it had failed before, that stays what is said.
        let _ = self.shared.failure.set(closed);
        self.shared.waiting.close();
        self.backend = None;
        let backend = self.shared.backend.lock().take();
        // Closing the database writes to it: not under the lock.
        drop(backend);
    }
}

impl Drop for Writer {
    /// Whether the writer ends in order, by a panic, or with its runtime, nothing is accepted afterwards.
    fn drop(&mut self) {
        self.shared.fail(&io::Error::new(io::ErrorKind::BrokenPipe, "its writer has ended"));
    }
}
