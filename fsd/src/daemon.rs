//! Going into the background: `--daemon` returns when the mount is usable, and not before.
//!
//! The program starts itself again with [`FLAG`], with its standard output as a pipe on which the
//! child says [`READY`]. No `fork` is needed, so nothing of a half-started runtime is ever copied, and
//! a child that dies without a word closes the pipe, which the parent sees.

use std::fs::File;
use std::io::{self, BufRead, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, bail};

use crate::log;

/// The hidden flag that tells the child what it is.
pub const FLAG: &str = "--report-ready-on-stdout";
/// What the child writes when the mount can be used.
const READY: &[u8] = b"ready\n";
/// Most bytes that are read from the child; it writes one word.
const REPORT_MAX: u64 = 4096;
/// Where the log goes when the daemon has no terminal and no file.
const SYSLOG: &str = "/dev/log";

/// Runs this very command line again in the background. Succeeds when the mount is usable; the child
/// has said on the shared standard error why, when it is not.
pub fn spawn_self() -> anyhow::Result<ExitCode> {
    let mut args = std::env::args_os();
    let mut command = Command::new("/proc/self/exe");
    if let Some(name) = args.next() {
        use std::os::unix::process::CommandExt;
        command.arg0(name);
    }
    command.args(args).arg(FLAG).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.spawn().context("starting the daemon")?;
    let mut report = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        let mut stdout = io::BufReader::new(stdout.take(REPORT_MAX));
        stdout.read_until(b'\n', &mut report).context("waiting for the daemon to be ready")?;
    }
    if report == READY {
        return Ok(ExitCode::SUCCESS);
    }
    let status = child.wait().context("waiting for the daemon")?;
    if let Some(signal) = status.signal() {
        bail!("the daemon was ended by signal {signal} before the mount was usable");
    }
    Ok(ExitCode::from(
        status.code().and_then(|code| u8::try_from(code).ok()).filter(|code| *code != 0).unwrap_or(1),
    ))
}

/// Cuts the child loose from the terminal: closing it, or Ctrl-C in it, must not end the mount.
pub fn leave_terminal() {
    // Fails only for a leader of a process group, which a child just spawned is not.
    let _ = rustix::process::setsid();
}

/// Tells the parent that the mount is usable, and turns the log away from its standard error.
pub fn report_ready(log_file: Option<&Path>) -> anyhow::Result<()> {
    turn_away(log_file, || {
        let mut stdout = io::stdout();
        // The parent may have been interrupted; the mount is good all the same.
        let _ = stdout.write_all(READY).and_then(|()| stdout.flush());
    })
}

/// Turns the log of a daemon's worker to where the daemon's goes.
pub fn turn_log(log_file: Option<&Path>) -> anyhow::Result<()> {
    turn_away(log_file, || {})
}

fn turn_away(log_file: Option<&Path>, when_open: impl FnOnce()) -> anyhow::Result<()> {
    // The log's new place comes first: what cannot be opened is still said to the person who waits.
    let log = open_log(log_file)?;
    when_open();
    let null = File::options().read(true).write(true).open("/dev/null").context("opening /dev/null")?;
    // A daemon must not keep a directory of somebody's busy.
    let _ = std::env::set_current_dir("/");
    rustix::stdio::dup2_stdout(&null).context("closing standard output")?;
    match log {
        LogTarget::File(file) => rustix::stdio::dup2_stderr(file.as_fd()),
        LogTarget::Syslog(socket) => {
            log::to_syslog();
            rustix::stdio::dup2_stderr(socket.as_fd())
        }
        LogTarget::Nowhere => rustix::stdio::dup2_stderr(null.as_fd()),
    }
    .context("turning the log away from standard error")?;
    log::be_terse(false);
    Ok(())
}

enum LogTarget {
    File(File),
    Syslog(UnixDatagram),
    Nowhere,
}

fn open_log(file: Option<&Path>) -> anyhow::Result<LogTarget> {
    if let Some(path) = file {
        let file = File::options().create(true).append(true).open(path);
        return Ok(LogTarget::File(file.with_context(|| format!("opening the log file {path:?}"))?));
    }
    // journald and every syslogd listen here. One write to a datagram socket is one message.
    let socket = UnixDatagram::unbound().and_then(|socket| socket.connect(SYSLOG).map(|()| socket));
    match socket {
        Ok(socket) => Ok(LogTarget::Syslog(socket)),
        Err(_) => {
            tracing::warn!(
                "there is no syslog here and no --log-file was given: the daemon's log is dropped"
            );
            Ok(LogTarget::Nowhere)
        }
    }
}
