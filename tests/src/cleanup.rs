//! What has to be undone when the test process ends, however it ends.
//!
//! Three nets: `Drop` of each part in the ordinary case; an `atexit` handler for what lives in
//! statics, which Rust never drops; and a sweep at the start of each test process for what a killed
//! one left behind. All names therefore hold the process's id.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, Once};

use rustix::mount::UnmountFlags;

/// How the names of all directories, mounts and namespaces of this harness begin.
pub const PREFIX: &str = "quorumfs-test-";
/// Lines of each log that are shown when a test fails.
const LOG_TAIL: usize = 60;

type Undo = Box<dyn FnOnce() + Send>;
static UNDO: Mutex<Vec<(u64, Undo)>> = Mutex::new(Vec::new());
static LOGS: Mutex<Vec<(String, PathBuf)>> = Mutex::new(Vec::new());
static NEXT: AtomicU64 = AtomicU64::new(1);

/// Stays registered until it is dropped or the process ends.
pub struct Registered(u64);

/// Runs `undo` when the process ends, unless the result is dropped before. Later ones run first.
pub fn at_exit(undo: impl FnOnce() + Send + 'static) -> Registered {
    start();
    let id = NEXT.fetch_add(1, Ordering::Relaxed);
    UNDO.lock().unwrap().push((id, Box::new(undo)));
    Registered(id)
}

impl Drop for Registered {
    fn drop(&mut self) {
        UNDO.lock().unwrap_or_else(|e| e.into_inner()).retain(|(id, _)| *id != self.0);
    }
}

/// Undoes everything that is registered.
pub fn run_all() {
    loop {
        let Some((_, undo)) = UNDO.lock().unwrap_or_else(|e| e.into_inner()).pop() else { return };
        undo();
    }
}

extern "C" fn on_exit() {
    // A panic must not cross into C.
    let _ = std::panic::catch_unwind(run_all);
}

/// Once in each process: clears away what dead runs left, and arranges the end of this one.
pub fn start() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        sweep();
        // SAFETY: the handler is a plain function that lives as long as the program.
        unsafe { libc::atexit(on_exit) };
    });
}

/// A directory that goes away with its owner or with the process.
pub struct Scratch {
    path: PathBuf,
    _registered: Registered,
}

impl Scratch {
    /// Makes one. `label` helps a person who looks.
    pub fn new(label: &str) -> Scratch {
        start();
        let name = format!("{PREFIX}{}-{}-{label}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).unwrap();
        let gone = path.clone();
        Scratch { path, _registered: at_exit(move || remove(&gone)) }
    }

    /// One on tmpfs, the file system that mounts are compared with.
    pub fn on_tmpfs(label: &str) -> Scratch {
        start();
        let name = format!("{PREFIX}{}-{}-{label}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = Path::new("/dev/shm").join(name);
        fs::create_dir_all(&path).unwrap();
        let gone = path.clone();
        Scratch { path, _registered: at_exit(move || remove(&gone)) }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if std::thread::panicking() {
            show_logs_below(&self.path);
        }
        LOGS.lock().unwrap_or_else(|e| e.into_inner()).retain(|(_, log)| !log.starts_with(&self.path));
        remove(&self.path);
    }
}

/// `QUORUMFS_TEST_KEEP=1` leaves data and logs where they are, for a person to look at.
fn remove(path: &Path) {
    // Never through something that is still mounted: that would delete keys, or hang.
    let mounted = mounts().iter().any(|(_, place, _)| place.starts_with(path));
    if !mounted && std::env::var_os("QUORUMFS_TEST_KEEP").is_none() {
        let _ = fs::remove_dir_all(path);
    }
}

/// Takes a mount off, whatever its daemon does. The abort wakes everybody who waits in it.
pub fn force_unmount(mountpoint: &Path) {
    for _ in 0..8 {
        if connection_of(mountpoint).is_none() {
            return;
        }
        abort(mountpoint);
        let _ = rustix::mount::unmount(mountpoint, UnmountFlags::DETACH | UnmountFlags::FORCE);
    }
}

/// Ends the FUSE connection of a mount: every request that waits gets an error.
pub fn abort(mountpoint: &Path) {
    let Some(minor) = connection_of(mountpoint) else { return };
    let control = Path::new("/sys/fs/fuse/connections");
    if !control.join(minor.to_string()).exists() {
        // The control file system may not be mounted; failing here only loses the politer way.
        let _ = rustix::mount::mount("none", control, "fusectl", rustix::mount::MountFlags::empty(), None);
    }
    if let Ok(mut file) =
        fs::OpenOptions::new().write(true).open(control.join(minor.to_string()).join("abort"))
    {
        let _ = file.write_all(b"1");
    }
}

/// Every mount on this machine: its device's minor number, its place, its type.
pub fn mounts() -> Vec<(u32, PathBuf, String)> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    text.lines().filter_map(parse_mount).collect()
}

fn parse_mount(line: &str) -> Option<(u32, PathBuf, String)> {
    let mut words = line.split(' ');
    let device = words.nth(2)?;
    let place = words.nth(1)?;
    let kind = line.split(" - ").nth(1)?.split(' ').next()?;
    let minor = device.split(':').nth(1)?.parse().ok()?;
    // The kernel writes a blank as \040; the names of this harness hold none.
    Some((minor, PathBuf::from(place), kind.to_string()))
}

/// The number of the FUSE connection that is mounted here.
pub fn connection_of(mountpoint: &Path) -> Option<u32> {
    mounts()
        .into_iter()
        .rev()
        .find(|(_, place, kind)| place == mountpoint && kind.starts_with("fuse"))
        .map(|(minor, ..)| minor)
}

/// Clears away mounts and directories of test processes that no longer live.
fn sweep() {
    for (_, place, kind) in mounts() {
        if kind.starts_with("fuse") && owner(&place).is_some_and(is_dead) {
            force_unmount(&place);
        }
    }
    for base in [std::env::temp_dir(), PathBuf::from("/dev/shm")] {
        for entry in fs::read_dir(base).into_iter().flatten().flatten() {
            if owner(&entry.path()).is_some_and(is_dead) {
                remove(&entry.path());
            }
        }
    }
    crate::network::sweep();
    crate::cgroup::sweep();
}

/// The process that a path of this harness belongs to.
pub fn owner(path: &Path) -> Option<u32> {
    let name = path.iter().find_map(|part| part.to_str()?.strip_prefix(PREFIX))?;
    name.split('-').next()?.parse().ok()
}

/// Whether no process has this id any more.
pub fn is_dead(pid: u32) -> bool {
    !Path::new("/proc").join(pid.to_string()).exists()
}

/// A log file to show when a test fails.
pub fn watch_log(name: &str, path: &Path) {
    LOGS.lock().unwrap().push((name.to_string(), path.to_path_buf()));
}

/// Shows the ends of all logs on standard error.
pub fn show_logs() {
    show_logs_below(Path::new("/"));
}

fn show_logs_below(dir: &Path) {
    let logs = LOGS.lock().unwrap_or_else(|e| e.into_inner()).clone();
    let mut out = String::new();
    for (name, path) in logs.into_iter().filter(|(_, path)| path.starts_with(dir)) {
        let Ok(text) = fs::read(&path) else { continue };
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        let skipped = lines.len().saturating_sub(LOG_TAIL);
        out.push_str(&format!("--- log of {name}: the last of {} lines\n", lines.len()));
        for line in &lines[skipped..] {
            out.push_str(line);
            out.push('\n');
        }
    }
    let _ = std::io::stderr().write_all(out.as_bytes());
}

/// Shows where each thread of this process waits: a hang in a mount has `fuse` in it.
pub fn show_threads() {
    for entry in fs::read_dir("/proc/self/task").into_iter().flatten().flatten() {
        let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        let place = fs::read_to_string(entry.path().join("wchan")).unwrap_or_default();
        eprintln!("--- thread {} waits in {place}", name.trim());
    }
}
