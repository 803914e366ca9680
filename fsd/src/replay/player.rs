//! The thread that performs changes through the own mount.
//!
//! It has a descriptor table of its own, with nothing of the daemon's in it. A thread that shares the
//! table keeps `/dev/fuse` open until it ends; and one that waits inside the own mount ends only when
//! somebody answers. If the daemon is killed then, both would wait for each other for ever. For the
//! same reason it touches nothing here that has a descriptor behind it: no logging, no tokio.

use std::ffi::CString;
use std::os::fd::RawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use parking_lot::MutexGuard;
use quorumfs_api::bug::{Bug, planted};
use quorumfs_api::record::{Device, Ino, Kind};
use quorumfs_api::style::EventStyle;
use rustix::fs::{self, AtFlags, CWD, FileType, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use crate::core::Core;
use crate::fs::STAGE_NAME;
use crate::handover::note::Note;
use crate::mirror::{At, Net};
use crate::state::State;
use crate::swap::{self, DATA};

/// System calls for one change.
#[derive(Debug)]
enum Act {
    /// Nobody can be watching.
    Nothing,
    CreateFile {
        path: PathBuf,
        mode: u32,
        size: u64,
    },
    CreateDir {
        path: PathBuf,
        mode: u32,
    },
    CreateLink {
        path: PathBuf,
        to: Vec<u8>,
    },
    CreateNode {
        path: PathBuf,
        kind: FileType,
        mode: u32,
        device: Device,
    },
    Update {
        path: PathBuf,
        size: u64,
    },
    /// A rename out of nowhere: the directory in which it seems to have been is for nobody else.
    MoveIn {
        path: PathBuf,
    },
    Chmod {
        path: PathBuf,
        mode: u32,
    },
    Chown {
        path: PathBuf,
        uid: u32,
        gid: u32,
    },
    Unlink {
        path: PathBuf,
    },
    Rmdir {
        path: PathBuf,
    },
    Rename {
        from: PathBuf,
        to: PathBuf,
        exchange: bool,
    },
}

/// How often a change is tried while users rename the directories on the way to it.
const TRIES: usize = 6;

/// With [`Bug::LostEvent`], one of so many changes is not shown.
const LOST_OF: u64 = 3;
/// How long it is waited for what has to come before anything is replayed.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often it is looked.
const LOOK: Duration = Duration::from_millis(5);

/// What could not be replayed, for the log.
pub struct Complaint {
    /// What was tried.
    pub what: String,
    /// What the system said.
    pub error: Errno,
}

/// Points this thread's copies of the standard streams elsewhere: a daemon gives its own up, and whoever
/// reads their other ends waits until nobody holds them any more.
fn leave_standard_streams() {
    if let Ok(null) = std::fs::File::options().read(true).write(true).open("/dev/null") {
        let _ = rustix::stdio::dup2_stdin(&null);
        let _ = rustix::stdio::dup2_stdout(&null);
        let _ = rustix::stdio::dup2_stderr(&null);
    }
}

/// Leaves the table of descriptors to the other threads, and takes along the memory of the journal alone: no
/// call on that waits for anybody.
fn leave_descriptors(journal: Option<RawFd>) {
    let close = |from: u32, to: u32| {
        if from <= to {
            // SAFETY: only this thread's own table is changed, and nothing in this thread uses a
            // descriptor of the old one but the journal's.
            unsafe { libc::syscall(libc::SYS_close_range, from, to, 0u32) };
        }
    };
    // SAFETY: unshare has no preconditions on memory.
    if unsafe { libc::unshare(libc::CLONE_FILES) } == 0 {
        match journal.and_then(|descriptor| u32::try_from(descriptor).ok()) {
            Some(kept) if kept >= 3 => {
                close(3, kept - 1);
                close(kept + 1, u32::MAX);
            }
            _ => close(3, u32::MAX),
        }
        leave_standard_streams();
    }
}

/// Runs until the core is stopped. `failed` hears what did not work.
pub fn run(core: &Arc<Core>, mountpoint: &Path, failed: &Sender<Complaint>) {
    let journal = core.journal().map(|journal| journal.descriptor());
    leave_descriptors(journal);
    let thread = rustix::thread::gettid().as_raw_nonzero().get() as u32;
    core.replayer.set(thread);
    let mut state = core.state.lock();
    state.note(|| Note::Replayer(std::process::id(), thread));
    // The calls of a worker that was killed come to their end before they are made anew.
    let patience = Instant::now() + PATIENCE;
    while core.replayer.waits_for_earlier() && !core.is_stopping() && Instant::now() < patience {
        core.work.wait_for(&mut state, LOOK);
    }
    loop {
        while !core.is_stopping() && (state.held_back || state.queue.is_empty() || state.is_in_doubt()) {
            match state.is_in_doubt() {
                true => _ = core.work.wait_for(&mut state, LOOK),
                false => core.work.wait(&mut state),
            }
        }
        if core.is_stopping() {
            return;
        }
        let Some(net) = state.queue.take().cloned() else { continue };
        // As things are now: what comes later has an event of its own.
        let notes = state.notes_of(&net);
        let lost = planted(Bug::LostEvent) && state.replayed.is_multiple_of(LOST_OF);
        let act = if lost { Act::Nothing } else { plan(&state, &net) };
        if !matches!(act, Act::Nothing) {
            drop(state);
            state = show(core, &net, &act, mountpoint, failed);
        }
        if let Net::Swap { dir } = net
            && !state.queue.was_performed()
        {
            state.outdate_data(dir);
        }
        state.kernel.unstage();
        state.queue.finish();
        state.note_all(&notes);
        if let Net::Swap { dir } = net {
            state.swapped(dir);
        }
        state.replayed += 1;
    }
}

/// Performs a change, and makes sure that the kernel believes no other thing afterwards.
fn show<'a>(
    core: &'a Core,
    net: &Net,
    act: &Act,
    mountpoint: &Path,
    failed: &Sender<Complaint>,
) -> MutexGuard<'a, State> {
    let mut done = perform(act, mountpoint);
    let mut names = Vec::new();
    for _ in 1..TRIES {
        let state = core.state.lock();
        if state.queue.was_performed() {
            return state;
        }
        // The kernel did not ask, because of a name that it holds for something else, or because somebody
        // here renamed a directory on the way. Have it look again, first as things are before this change.
        names = self::names(&state, net);
        let act = plan(&state, net);
        if matches!(act, Act::Nothing) {
            return state;
        }
        drop(state);
        for path in &names {
            look_again(mountpoint, path);
        }
        done = perform(&act, mountpoint);
    }
    let mut state = core.state.lock();
    if !state.queue.was_performed() {
        let error = done.err().unwrap_or(Errno::STALE);
        let _ = failed.send(Complaint { what: format!("{act:?}"), error });
        // No event, then; but what is found must be what is there.
        state.queue.finish();
        drop(state);
        for path in &names {
            look_again(mountpoint, path);
        }
        state = core.state.lock();
    }
    state
}

/// The names that a change concerns, from the mount point on.
fn names(state: &State, net: &Net) -> Vec<PathBuf> {
    let named = |at: &At| {
        let dir = state.queue.path(at.0, &state.mirror)?;
        Some(dir.join(std::ffi::OsStr::from_bytes(at.1.as_bytes())))
    };
    match net {
        Net::Create { at, .. } | Net::Remove { at, .. } => named(at).into_iter().collect(),
        Net::Rename { from, to, .. } => named(from).into_iter().chain(named(to)).collect(),
        Net::Update { ino } | Net::Attr { ino } => {
            state.queue.path(*ino, &state.mirror).into_iter().collect()
        }
        Net::Swap { dir } => {
            state.queue.path(*dir, &state.mirror).map(|dir| dir.join(DATA)).into_iter().collect()
        }
        Net::Unlocked { .. } => Vec::new(),
    }
}

/// Makes the kernel look up a name, whatever it believes: before it makes a directory it has to. The
/// request that may follow is not what is expected, and is refused.
fn look_again(mountpoint: &Path, path: &Path) {
    if let Ok(path) = full(mountpoint, path) {
        let _ = fs::mkdirat(CWD, path, Mode::from_raw_mode(0o700));
    }
}

fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::File => FileType::RegularFile,
        Kind::Dir => FileType::Directory,
        Kind::Symlink => FileType::Symlink,
        Kind::Fifo => FileType::Fifo,
        Kind::Socket => FileType::Socket,
        Kind::CharDevice => FileType::CharacterDevice,
        Kind::BlockDevice => FileType::BlockDevice,
    }
}

fn holds(state: &State, ino: Ino) -> bool {
    state.kernel.holds(state.kernel.node(ino))
}

/// What has to be done for a change, if anybody can be watching.
fn plan(state: &State, net: &Net) -> Act {
    let mirror = &state.mirror;
    let path = |ino| state.queue.path(ino, mirror);
    let named = |at: &crate::mirror::At| Some(path(at.0)?.join(std::ffi::OsStr::from_bytes(at.1.as_bytes())));
    let act = match net {
        Net::Create { at, ino, kind } if holds(state, at.0) => {
            let record = mirror.get(*ino).map(|node| &node.record).or_else(|| state.queue.ghost(*ino));
            named(at).zip(record).map(|(path, record)| {
                let mode = record.mode;
                match kind {
                    Kind::File if state.style(at.0) == EventStyle::Rename => Act::MoveIn { path },
                    Kind::File => Act::CreateFile { path, mode, size: record.value.len() as u64 },
                    Kind::Dir => Act::CreateDir { path, mode },
                    // The kernel does not keep what it points to, but wants to be told something.
                    Kind::Symlink if record.value.is_empty() => Act::CreateLink { path, to: b"?".to_vec() },
                    Kind::Symlink => Act::CreateLink { path, to: record.value.to_vec() },
                    Kind::Fifo | Kind::Socket | Kind::CharDevice | Kind::BlockDevice => Act::CreateNode {
                        path,
                        kind: file_type(*kind),
                        mode,
                        device: Device::from_value(&record.value).unwrap_or_default(),
                    },
                }
            })
        }
        Net::Update { ino } | Net::Attr { ino } => mirror.get(*ino).and_then(|node| {
            // Where the replayer finds it: it may have been moved since.
            let parent = state.queue.place(*ino, mirror).map_or(Ino::ROOT, |at| at.0);
            if !holds(state, *ino) && !holds(state, parent) {
                return None;
            }
            let path = path(*ino)?;
            let record = &node.record;
            Some(match net {
                Net::Update { .. } if state.style(parent) == EventStyle::Rename => Act::MoveIn { path },
                Net::Update { .. } => Act::Update { path, size: record.value.len() as u64 },
                _ if record.kind == Kind::Symlink => Act::Chown { path, uid: record.uid, gid: record.gid },
                _ => Act::Chmod { path, mode: record.mode },
            })
        }),
        Net::Remove { at, record } if holds(state, at.0) || holds(state, record.ino) => {
            named(at).map(|path| match record.kind {
                Kind::Dir => Act::Rmdir { path },
                _ => Act::Unlink { path },
            })
        }
        Net::Rename { from, to, ino, exchanged, .. }
            if holds(state, from.0) || holds(state, to.0) || holds(state, *ino) =>
        {
            named(from).zip(named(to)).map(|(from, to)| Act::Rename {
                from,
                to,
                exchange: exchanged.is_some(),
            })
        }
        Net::Swap { dir } if holds(state, *dir) && swap::is_shown(state, *dir) => {
            path(*dir).map(|path| Act::MoveIn { path: path.join(DATA) })
        }
        _ => None,
    };
    act.unwrap_or(Act::Nothing)
}

fn full(mountpoint: &Path, path: &Path) -> Result<CString, Errno> {
    CString::new(mountpoint.join(path).as_os_str().as_bytes()).map_err(|_| Errno::INVAL)
}

fn perform(act: &Act, mountpoint: &Path) -> Result<(), Errno> {
    match act {
        Act::Nothing => Ok(()),
        Act::CreateFile { path, mode, size } => {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            let file = fs::openat(CWD, full(mountpoint, path)?, flags, Mode::from_raw_mode(*mode))?;
            // A file that is empty when it comes was not modified since it was made.
            if *size > 0 { fs::ftruncate(&file, *size) } else { Ok(()) }
        }
        Act::CreateDir { path, mode } => {
            fs::mkdirat(CWD, full(mountpoint, path)?, Mode::from_raw_mode(*mode))
        }
        Act::CreateLink { path, to } => {
            let to = CString::new(to.as_slice()).map_err(|_| Errno::INVAL)?;
            fs::symlinkat(to, CWD, full(mountpoint, path)?)
        }
        Act::CreateNode { path, kind, mode, device } => {
            let (mode, device) = (Mode::from_raw_mode(*mode), fs::makedev(device.major, device.minor));
            fs::mknodat(CWD, full(mountpoint, path)?, *kind, mode, device)
        }
        Act::Update { path, size } => {
            let flags = OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            let file = fs::openat(CWD, full(mountpoint, path)?, flags, Mode::empty())?;
            fs::ftruncate(&file, *size)
        }
        Act::MoveIn { path } => {
            let from = Path::new(STAGE_NAME).join(path.file_name().unwrap_or_default());
            fs::renameat(CWD, full(mountpoint, &from)?, CWD, full(mountpoint, path)?)
        }
        Act::Chmod { path, mode } => {
            fs::chmodat(CWD, full(mountpoint, path)?, Mode::from_raw_mode(*mode), AtFlags::empty())
        }
        Act::Chown { path, uid, gid } => {
            let (uid, gid) = (fs::Uid::from_raw(*uid), fs::Gid::from_raw(*gid));
            fs::chownat(CWD, full(mountpoint, path)?, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
        }
        Act::Unlink { path } => fs::unlinkat(CWD, full(mountpoint, path)?, AtFlags::empty()),
        Act::Rmdir { path } => fs::unlinkat(CWD, full(mountpoint, path)?, AtFlags::REMOVEDIR),
        Act::Rename { from, to, exchange } => {
            let flags = if *exchange { RenameFlags::EXCHANGE } else { RenameFlags::empty() };
            fs::renameat_with(CWD, full(mountpoint, from)?, CWD, full(mountpoint, to)?, flags)
        }
    }
}
