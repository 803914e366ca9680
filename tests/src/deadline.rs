//! Waiting for something without sleeping blindly, and an end for tests that hang.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use crate::cleanup;

/// Longest pause between two looks.
const PAUSE_MAX: Duration = Duration::from_millis(50);

/// Looks until `probe` says `Ok`; panics with its last `Err` when `timeout` has passed.
#[track_caller]
pub fn eventually<T, E: std::fmt::Display>(
    what: &str,
    timeout: Duration,
    mut probe: impl FnMut() -> Result<T, E>,
) -> T {
    let start = Instant::now();
    // Short pauses at first, because most things happen within a few milliseconds.
    let mut pause = Duration::from_millis(1);
    loop {
        match probe() {
            Ok(value) => return value,
            Err(reason) if start.elapsed() > timeout => {
                panic!("not within {timeout:?}: {what}: {reason}")
            }
            Err(_) => std::thread::sleep(pause),
        }
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// [`eventually`] for a plain condition.
#[track_caller]
pub fn until(what: &str, timeout: Duration, mut condition: impl FnMut() -> bool) {
    eventually(what, timeout, || if condition() { Ok(()) } else { Err("it is not so") })
}

/// Ends with the test that holds it.
pub struct Guard {
    disarm: Option<Sender<()>>,
}

/// Gives the test that holds the result so many seconds. A process that hangs inside a file system
/// cannot be interrupted from within, so when the time is up the mounts are aborted, the logs are
/// shown, and the whole test process exits with 3. When the test panics, the logs are shown too.
#[track_caller]
pub fn guard(seconds: u64) -> Guard {
    let caller = std::panic::Location::caller().to_string();
    let test = std::thread::current().name().unwrap_or("?").to_string();
    let (disarm, armed): (Sender<()>, Receiver<()>) = channel();
    std::thread::spawn(move || {
        if armed.recv_timeout(Duration::from_secs(seconds)) == Err(RecvTimeoutError::Timeout) {
            eprintln!("=== {test} ({caller}) hangs: {seconds} s have passed; giving up");
            cleanup::show_logs();
            cleanup::show_threads();
            cleanup::run_all();
            // Not `exit`: another thread may hang in a file system call with locks held.
            // SAFETY: _exit takes a number and does not return.
            unsafe { libc::_exit(3) }
        }
    });
    Guard { disarm: Some(disarm) }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.disarm.take();
        if std::thread::panicking() {
            cleanup::show_logs();
        }
    }
}

/// Set when it is dropped: so that the threads of a test end also when the one that leads them panics.
#[derive(Default)]
pub struct Done(std::sync::atomic::AtomicBool);

/// Sets its [`Done`] when it goes out of scope.
pub struct Finish<'a>(&'a Done);

impl Done {
    /// Whether the others are to end.
    pub fn is_set(&self) -> bool {
        self.0.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// Sets this when the result is dropped.
    pub fn finish(&self) -> Finish<'_> {
        Finish(self)
    }
}

impl Drop for Finish<'_> {
    fn drop(&mut self) {
        self.0.0.store(true, std::sync::atomic::Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_until_it_is_so() {
        let mut looks = 0;
        let value = eventually("third look", Duration::from_secs(5), || {
            looks += 1;
            if looks == 3 { Ok(looks) } else { Err("too early") }
        });
        assert_eq!(value, 3);
    }

    #[test]
    #[should_panic(expected = "because of me")]
    fn says_why_not() {
        eventually("never", Duration::from_millis(20), || Err::<(), _>("because of me"));
    }
}
