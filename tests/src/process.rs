//! Child processes that cannot outlive the test process and cannot make it wait for ever.

use std::fs::{self, File};
use std::io;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::sync::{OnceLock, RwLock, RwLockWriteGuard};
use std::time::Duration;

use crate::cleanup;
use crate::deadline::eventually;

/// Signals, by the names that `kill(1)` uses.
pub use libc::{SIGCONT, SIGHUP, SIGINT, SIGKILL, SIGSTOP, SIGTERM};

static STARTING: RwLock<()> = RwLock::new(());

/// While the result lives, nobody in this process starts another one; who tries, waits.
///
/// A child has the descriptors of its parent until it executes its program. They are closed then, and
/// a close publishes what was written: a test that looks at unpublished writes must not be beside one
/// that starts processes.
pub fn quiet() -> RwLockWriteGuard<'static, ()> {
    STARTING.write().unwrap_or_else(|e| e.into_inner())
}

type Job = (Command, Sender<io::Result<Child>>);

/// Starts `command` so that it gets `death` when the test process dies.
///
/// The kernel sends the signal when the *thread* dies that started the child, and each test has its
/// own thread. So one thread, which lives as long as the process, starts all of them.
pub fn spawn(mut command: Command, death: i32) -> io::Result<Child> {
    static SPAWNER: OnceLock<Sender<Job>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (jobs, queue) = channel::<Job>();
        std::thread::spawn(move || {
            for (mut command, reply) in queue {
                let _ = reply.send(command.spawn());
            }
        });
        jobs
    });
    let parent = std::process::id();
    // SAFETY: all of these calls are async-signal-safe, as is needed between fork and exec.
    unsafe {
        command.pre_exec(move || {
            // A shell ignores these for what it starts in the background, and the programs of a test that
            // runs there would inherit it.
            for number in [libc::SIGINT, libc::SIGQUIT, libc::SIGHUP] {
                libc::signal(number, libc::SIG_DFL);
            }
            libc::prctl(libc::PR_SET_PDEATHSIG, death);
            // The parent may have died before the line above.
            if libc::getppid() as u32 != parent {
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
            Ok(())
        });
    }
    let _quiet = STARTING.read().unwrap_or_else(|e| e.into_inner());
    let (reply, answer) = channel();
    spawner.send((command, reply)).map_err(io::Error::other)?;
    answer.recv().map_err(io::Error::other)?
}

/// Runs `command` to its end and gives what it printed. Panics when it takes longer than `timeout`.
#[track_caller]
pub fn run(mut command: Command, timeout: Duration) -> Output {
    let text = format!("{command:?}");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = spawn(command, SIGKILL).unwrap_or_else(|e| panic!("{text}: {e}"));
    finish(child, &text, timeout)
}

/// [`run`] with something on standard input.
#[track_caller]
pub fn run_with_input(mut command: Command, input: &[u8], timeout: Duration) -> Output {
    use std::io::Write as _;
    let text = format!("{command:?}");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = spawn(command, SIGKILL).unwrap_or_else(|e| panic!("{text}: {e}"));
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    std::thread::spawn(move || stdin.write_all(&input));
    finish(child, &text, timeout)
}

#[track_caller]
fn finish(child: Child, text: &str, timeout: Duration) -> Output {
    let pid = child.id();
    let (done, result) = channel();
    std::thread::spawn(move || done.send(child.wait_with_output()));
    match result.recv_timeout(timeout) {
        Ok(output) => output.unwrap_or_else(|e| panic!("{text}: {e}")),
        Err(_) => {
            let place = fs::read_to_string(format!("/proc/{pid}/wchan")).unwrap_or_default();
            signal(pid, SIGKILL);
            panic!("{text} did not end within {timeout:?}; it waited in {place:?}");
        }
    }
}

/// Panics with all that was printed unless the exit code is 0; gives standard output.
#[track_caller]
pub fn succeed(output: &Output) -> String {
    assert!(output.status.success(), "{}", describe(output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Exit code, standard output and standard error, for a message.
pub fn describe(output: &Output) -> String {
    format!(
        "{} with output {:?} and error {:?}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// How much a daemon logs: as it does by itself, or as `QUORUMFS_TEST_LOG` says.
pub fn set_log(command: &mut Command) {
    command.env("NO_COLOR", "1").env_remove("RUST_LOG");
    if let Some(filter) = std::env::var_os("QUORUMFS_TEST_LOG") {
        command.env("RUST_LOG", filter);
    }
}

/// Sends a signal to a process of ours.
pub fn signal(pid: u32, number: i32) {
    // SAFETY: kill takes two numbers; the process is our child and has not been waited for.
    unsafe { libc::kill(pid as i32, number) };
}

/// Processes that `parent` started and that run.
pub fn children(parent: u32) -> Vec<u32> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid| state(*pid).is_some_and(|(state, ppid)| ppid == parent && state != 'Z')).collect()
}

/// Whether a process runs: one that has ended and was not waited for does not.
pub fn runs(pid: u32) -> bool {
    state(pid).is_some_and(|(state, _)| !matches!(state, 'Z' | 'X'))
}

/// State and parent of a process.
fn state(pid: u32) -> Option<(char, u32)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in brackets, may hold anything.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}

/// A daemon, with its output in a log file. Killed when dropped.
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    ended: Option<ExitStatus>,
}

impl Process {
    /// Starts it; what it prints is added to `log`.
    #[track_caller]
    pub fn start(name: &str, mut command: Command, log: &Path, death: i32) -> Process {
        let known = log.exists();
        let file = File::options().create(true).append(true).open(log).unwrap();
        command.stdin(Stdio::null()).stdout(file.try_clone().unwrap()).stderr(file);
        if !known {
            cleanup::watch_log(name, log);
        }
        let text = format!("{command:?}");
        let child = spawn(command, death).unwrap_or_else(|e| panic!("{name}: {text}: {e}"));
        Process { name: name.to_string(), child, log: log.to_path_buf(), ended: None }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends it a signal.
    pub fn signal(&self, number: i32) {
        if self.ended.is_none() {
            signal(self.child.id(), number);
        }
    }

    /// How it ended, if it did.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().ok().flatten();
        }
        self.ended
    }

    /// Waits for its end.
    #[track_caller]
    pub fn wait(&mut self, timeout: Duration) -> ExitStatus {
        let name = self.name.clone();
        eventually(&format!("end of {name}"), timeout, || self.ended().ok_or("it runs"))
    }

    /// `kill -9`, and waits.
    pub fn kill(&mut self) {
        self.signal(SIGKILL);
        if self.ended.is_none() {
            self.ended = self.child.wait().ok();
        }
    }

    /// `SIGTERM`, and waits for a clean end.
    #[track_caller]
    pub fn terminate(&mut self, timeout: Duration) -> ExitStatus {
        self.signal(SIGTERM);
        self.wait(timeout)
    }

    /// What it has printed so far, also in earlier runs with the same log.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Waits until its log, from byte `from` on, holds `needle`. Panics when the process ends first.
    #[track_caller]
    pub fn wait_for_log(&mut self, needle: &str, from: usize, timeout: Duration) {
        let what = format!("{needle:?} in the log of {}", self.name);
        eventually(&what, timeout, || {
            let log = self.log();
            if log.get(from..).is_some_and(|new| new.contains(needle)) {
                return Ok(());
            }
            if let Some(status) = self.ended() {
                panic!("{} ended ({status}, signal {:?}) before {what}:\n{log}", self.name, status.signal());
            }
            Err("it is not there")
        });
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.ended().is_none() {
            // A stopped process dies of SIGKILL as well, but its mount would wait until then.
            self.signal(SIGCONT);
            self.kill();
        }
    }
}
