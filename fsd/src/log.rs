//! The log: one line an event on standard error, or to syslog once a daemon has left its terminal.

use std::io::{self, IsTerminal, Write};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

/// What is shown when `RUST_LOG` says nothing: our own news, and only the troubles of libraries.
const FILTER: &str = "warn,openraft=error,fuser=error,fsd=info,quorumfs_api=info,certs=info";
/// The same for `fsd dev`, whose terminal is for the person and not for the node in it.
const QUIET_FILTER: &str = "warn,openraft=error,fuser=error";
/// Facility "daemon", severity "info": a line says itself how grave it is.
const SYSLOG_PREFIX: &str = "<30>";

static SYSLOG: AtomicBool = AtomicBool::new(false);
/// Only troubles are shown: somebody waits at a terminal for a mount.
static TERSE: AtomicBool = AtomicBool::new(false);
/// What this process is, where a mount has several.
static ROLE: OnceLock<&'static str> = OnceLock::new();

/// Says in each line which process of a mount it is from.
pub fn set_role(role: &'static str) {
    let _ = ROLE.set(role);
}

/// Starts logging.
pub fn start(quiet: bool) {
    let filter = EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| EnvFilter::new(if quiet { QUIET_FILTER } else { FILTER }));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(io::stderr().is_terminal())
        .with_writer(StandardError)
        .init();
}

/// From here on, or from here on no more, only troubles are shown.
pub fn be_terse(terse: bool) {
    TERSE.store(terse, Ordering::Relaxed);
}

/// From here on every line carries what syslog wants at its beginning.
pub fn to_syslog() {
    SYSLOG.store(true, Ordering::Relaxed);
}

struct StandardError;

impl<'a> MakeWriter<'a> for StandardError {
    type Writer = Line;

    fn make_writer(&'a self) -> Line {
        Line { is_shown: true }
    }

    fn make_writer_for(&'a self, event: &tracing::Metadata<'_>) -> Line {
        Line { is_shown: *event.level() <= tracing::Level::WARN || !TERSE.load(Ordering::Relaxed) }
    }
}

/// Writes an event in one piece, as syslog's datagrams need it.
struct Line {
    is_shown: bool,
}

impl Write for Line {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        if !self.is_shown {
            return Ok(event.len());
        }
        let mut stderr = io::stderr().lock();
        if SYSLOG.load(Ordering::Relaxed) {
            let role = ROLE.get().unwrap_or(&"fsd");
            let mut message = format!("{SYSLOG_PREFIX}{role}[{}]: ", std::process::id()).into_bytes();
            message.extend_from_slice(event);
            // A log that is full or gone is no reason to fail.
            let _ = stderr.write(&message);
        } else {
            let mut line = Vec::with_capacity(event.len() + 32);
            if let Some(role) = ROLE.get() {
                line.extend_from_slice(format!("{role}[{}] ", std::process::id()).as_bytes());
            }
            line.extend_from_slice(event);
            let _ = stderr.write_all(&line);
        }
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
