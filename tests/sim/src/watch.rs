//! A watch channel that wakes its receivers in the order in which they were made. tokio's spreads them
//! over several lists at random, so that the order of everything that follows would differ from run to
//! run.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::task::{Poll, Waker};

use openraft::async_runtime::watch::{RecvError, SendError, Watch, WatchReceiver, WatchSender};
use openraft::{OptionalSend, OptionalSync};
use parking_lot::{Mutex, RwLock, RwLockReadGuard};

/// See the module.
pub struct SimWatch;

#[derive(Default)]
struct Signals {
    version: u64,
    senders: usize,
    receivers: usize,
    /// Number of the next receiver.
    next: u64,
    waiting: BTreeMap<u64, Waker>,
}

struct Shared<T> {
    value: RwLock<T>,
    signals: Mutex<Signals>,
}

impl<T> Shared<T> {
    fn wake(&self) {
        let waiting = std::mem::take(&mut self.signals.lock().waiting);
        waiting.into_values().for_each(Waker::wake);
    }
}

/// The side that changes the value.
pub struct Sender<T>(Arc<Shared<T>>);

/// The side that sees it.
pub struct Receiver<T> {
    shared: Arc<Shared<T>>,
    number: u64,
    seen: u64,
}

impl<T> Receiver<T> {
    fn new(shared: &Arc<Shared<T>>, seen: Option<u64>) -> Receiver<T> {
        let mut signals = shared.signals.lock();
        signals.receivers += 1;
        signals.next += 1;
        Receiver { shared: shared.clone(), number: signals.next, seen: seen.unwrap_or(signals.version) }
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Sender<T> {
        self.0.signals.lock().senders += 1;
        Sender(self.0.clone())
    }
}
impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        let last = {
            let mut signals = self.0.signals.lock();
            signals.senders -= 1;
            signals.senders == 0
        };
        if last {
            self.0.wake();
        }
    }
}
impl<T> Clone for Receiver<T> {
    fn clone(&self) -> Receiver<T> {
        Receiver::new(&self.shared, Some(self.seen))
    }
}
impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        let mut signals = self.shared.signals.lock();
        signals.receivers -= 1;
        signals.waiting.remove(&self.number);
    }
}

impl Watch for SimWatch {
    type Sender<T: OptionalSend + OptionalSync> = Sender<T>;
    type Receiver<T: OptionalSend + OptionalSync> = Receiver<T>;
    type Ref<'a, T: OptionalSend + 'a> = RwLockReadGuard<'a, T>;

    fn channel<T: OptionalSend + OptionalSync>(init: T) -> (Sender<T>, Receiver<T>) {
        let signals = Signals { senders: 1, ..Signals::default() };
        let shared = Arc::new(Shared { value: RwLock::new(init), signals: Mutex::new(signals) });
        let receiver = Receiver::new(&shared, None);
        (Sender(shared), receiver)
    }
}

impl<T: OptionalSend + OptionalSync> WatchSender<SimWatch, T> for Sender<T> {
    fn send(&self, value: T) -> Result<(), SendError<T>> {
        if self.0.signals.lock().receivers == 0 {
            return Err(SendError(value));
        }
        self.send_if_modified(|current| {
            *current = value;
            true
        });
        Ok(())
    }

    fn send_if_modified<F: FnOnce(&mut T) -> bool>(&self, modify: F) -> bool {
        let modified = modify(&mut self.0.value.write());
        if modified {
            self.0.signals.lock().version += 1;
            self.0.wake();
        }
        modified
    }

    fn borrow_watched(&self) -> RwLockReadGuard<'_, T> {
        self.0.value.read()
    }

    fn subscribe(&self) -> Receiver<T> {
        Receiver::new(&self.0, None)
    }
}

impl<T: OptionalSend + OptionalSync> WatchReceiver<SimWatch, T> for Receiver<T> {
    async fn changed(&mut self) -> Result<(), RecvError> {
        std::future::poll_fn(|context| {
            let mut signals = self.shared.signals.lock();
            if signals.version != self.seen {
                self.seen = signals.version;
                return Poll::Ready(Ok(()));
            }
            if signals.senders == 0 {
                return Poll::Ready(Err(RecvError(())));
            }
            signals.waiting.insert(self.number, context.waker().clone());
            Poll::Pending
        })
        .await
    }

    fn borrow_watched(&self) -> RwLockReadGuard<'_, T> {
        self.shared.value.read()
    }

    fn borrow_and_update(&mut self) -> RwLockReadGuard<'_, T> {
        self.seen = self.shared.signals.lock().version;
        self.shared.value.read()
    }
}
