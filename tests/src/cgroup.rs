//! A control group of one's own, for a program that rules one.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::cleanup::{self, PREFIX, Registered};
use crate::deadline::eventually;

/// Until all that was killed in it has ended.
const END: Duration = Duration::from_secs(20);

/// It goes away with its owner or with the process; what runs in it has to be killed before.
pub struct Cgroup {
    path: PathBuf,
    _registered: Registered,
}

impl Cgroup {
    /// Makes one, below that of this process. Says what is in the way where that is not possible.
    pub fn new() -> Result<Cgroup, String> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        cleanup::start();
        let parent = own().ok_or("no cgroup2 file system is mounted here")?;
        let name = format!("{PREFIX}{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = parent.join(name);
        fs::create_dir(&path).map_err(|e| format!("no control group can be made in {parent:?}: {e}"))?;
        let gone = path.clone();
        Ok(Cgroup { path, _registered: cleanup::at_exit(move || drop(remove(&gone))) })
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // A panic while another one is on its way would end the process; then what is registered comes to it.
        match std::thread::panicking() {
            true => drop(remove(&self.path)),
            false => eventually("the control group is removed", END, || remove(&self.path)),
        }
    }
}

/// The group that this process is in.
fn own() -> Option<PathBuf> {
    let (_, mountpoint, _) = cleanup::mounts().into_iter().rev().find(|(.., kind)| kind == "cgroup2")?;
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let group = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    Some(mountpoint.join(group))
}

/// Removes a group with those in it: the files in them are the kernel's.
fn remove(path: &Path) -> std::io::Result<()> {
    if !path.exists() {
        return Ok(());
    }
    for entry in fs::read_dir(path)?.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&entry.path())?;
        }
    }
    fs::remove_dir(path)
}

/// Removes those of test processes that no longer live.
pub(crate) fn sweep() {
    for entry in own().iter().flat_map(fs::read_dir).flatten().flatten() {
        if cleanup::owner(&entry.path()).is_some_and(cleanup::is_dead) {
            drop(remove(&entry.path()));
        }
    }
}
