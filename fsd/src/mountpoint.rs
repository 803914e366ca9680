//! The directory that is mounted on: looking at it before the mount, and freeing it afterwards.

use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc;
use std::time::Duration;

use rustix::mount::UnmountFlags;

/// File system type of our mounts, as mountinfo shows it.
const FS_TYPE: &str = "fuse.quorumfs";
/// Where programs are looked for without a PATH, as exec does; mount(8) leaves its helpers none.
const DEFAULT_PATH: &str = "/bin:/usr/bin";
/// Mounts of dead daemons that are taken off one mount point; more than one is rare already.
const STALE_MAX: usize = 64;
/// A mount that has not answered a `stat` by then has a daemon that is stopped, not dead.
const STAT_TIMEOUT: Duration = Duration::from_secs(3);

/// Why a directory cannot be mounted on.
#[derive(Debug, thiserror::Error)]
pub enum MountPointError {
    /// Nothing there.
    #[error("the mount point {0:?} does not exist; make it with: mkdir -p {0:?}")]
    Missing(PathBuf),
    /// Not a directory.
    #[error("the mount point {0:?} is not a directory")]
    NotDirectory(PathBuf),
    /// A daemon serves this place already.
    #[error("{0:?} is a mounted quorumfs already; `fsd umount {0:?}` takes it off")]
    Mounted(PathBuf),
    /// A daemon holds this place and does not answer.
    #[error(
        "{0:?} is a mounted quorumfs whose daemon does not answer; if it is gone for good: umount -l {0:?}"
    )]
    Stuck(PathBuf),
    /// The remains of another file system.
    #[error(
        "{0:?} is the mount point of a {1} file system whose daemon has died; take it off with: umount -l {0:?}"
    )]
    OtherStale(PathBuf, String),
    /// The remains of a dead daemon could not be taken off.
    #[error("{path:?} was left mounted by an fsd that died, and cannot be taken off: {reason}")]
    Recover {
        /// Where.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// It is not mounted at all.
    #[error("{0:?} is not a mounted quorumfs")]
    NotMounted(PathBuf),
    /// Somebody has a file or a working directory there.
    #[error(
        "{0:?} is in use; `fsd umount --lazy {0:?}` takes it out of sight now and ends it when the last user is gone"
    )]
    Busy(PathBuf),
    /// Something of the system failed.
    #[error("{what} {path:?}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// What was seen and done while a mount point was made ready.
#[derive(Debug, Default)]
pub struct Prepared {
    /// The mount point with all symlinks resolved, as the kernel will name it.
    pub path: PathBuf,
    /// How many mounts of dead daemons were taken off.
    pub recovered: usize,
    /// Something is in the directory, which the mount will hide.
    pub hides_files: bool,
}

/// Makes sure that `path` can be mounted on. Takes off what a dead fsd left there.
pub fn prepare(path: &Path) -> Result<Prepared, MountPointError> {
    let path = resolve(path)?;
    let mut recovered = 0;
    loop {
        let mounted = mount_at(&path)?;
        match (stat(&path), mounted) {
            (Stat::Directory, Some(mount)) if mount.is_ours() => return Err(MountPointError::Mounted(path)),
            (Stat::Directory, _) => break,
            (Stat::Stuck, _) => return Err(MountPointError::Stuck(path)),
            (Stat::Dead, Some(mount)) if mount.is_ours() => {
                if recovered == STALE_MAX {
                    return Err(MountPointError::Recover { path, reason: "there is always one more".into() });
                }
                detach(&path, true)
                    .map_err(|e| MountPointError::Recover { path: path.clone(), reason: e.to_string() })?;
                recovered += 1;
            }
            (Stat::Dead, mount) => {
                return Err(MountPointError::OtherStale(path, mount.map_or("FUSE".into(), |m| m.kind)));
            }
            (Stat::Missing, _) => return Err(MountPointError::Missing(path)),
            (Stat::Other, _) => return Err(MountPointError::NotDirectory(path)),
            (Stat::Failed(source), _) => {
                return Err(MountPointError::Io { what: "looking at", path, source });
            }
        }
    }
    let hides_files = std::fs::read_dir(&path).is_ok_and(|mut entries| entries.next().is_some());
    Ok(Prepared { path, recovered, hides_files })
}

/// Takes a quorumfs off `path`, whether its daemon lives or not.
pub fn unmount(path: &Path, lazy: bool) -> Result<(), MountPointError> {
    let path = resolve(path)?;
    match mount_at(&path)? {
        Some(mount) if mount.is_ours() => {}
        _ => return Err(MountPointError::NotMounted(path)),
    }
    // A dead mount is nobody's any more, but may still be some shell's working directory.
    let lazy = lazy || matches!(stat(&path), Stat::Dead);
    match detach(&path, lazy) {
        Ok(()) => Ok(()),
        Err(e) if e.raw_os_error() == Some(libc::EBUSY) => Err(MountPointError::Busy(path)),
        Err(source) => Err(MountPointError::Io { what: "unmounting", path, source }),
    }
}

/// The resolved path of a mounted quorumfs.
pub fn mounted(path: &Path) -> Result<PathBuf, MountPointError> {
    let path = resolve(path)?;
    match mount_at(&path)? {
        Some(mount) if mount.is_ours() => Ok(path),
        _ => Err(MountPointError::NotMounted(path)),
    }
}

/// Where quorumfs is mounted, as far as this process sees, in the order of mounting. What another mount hides
/// is left out.
pub fn all_mounted() -> Result<Vec<PathBuf>, MountPointError> {
    let text = mountinfo()?;
    let mut points: Vec<PathBuf> = Vec::new();
    for mount in text.split(|b| *b == b'\n').filter_map(parse_line) {
        points.retain(|point| *point != mount.point);
        if mount.is_ours() {
            points.push(mount.point);
        }
    }
    Ok(points)
}

/// Whether a quorumfs is mounted on `path` (resolved already).
pub fn is_mounted(path: &Path) -> bool {
    matches!(mount_at(path), Ok(Some(mount)) if mount.is_ours())
}

/// The quorumfs that is mounted on `path` (resolved already).
pub fn find(path: &Path) -> Result<Option<MountLine>, MountPointError> {
    Ok(mount_at(path)?.filter(MountLine::is_ours))
}

/// Unmounts `path`, as root by the system call and as anybody else by fusermount3.
pub fn detach(path: &Path, lazy: bool) -> io::Result<()> {
    let mut flags = UnmountFlags::NOFOLLOW;
    if lazy {
        flags |= UnmountFlags::DETACH;
    }
    match rustix::mount::unmount(path, flags) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::PERM) => fusermount(path, lazy),
        Err(errno) => Err(errno.into()),
    }
}

fn fusermount(path: &Path, lazy: bool) -> io::Result<()> {
    let output =
        Command::new("fusermount3").arg(if lazy { "-uz" } else { "-u" }).arg("--").arg(path).output();
    let output =
        output.map_err(|e| io::Error::new(e.kind(), format!("fusermount3 could not be run: {e}")))?;
    if output.status.success() {
        return Ok(());
    }
    let message = String::from_utf8_lossy(&output.stderr).trim().to_string();
    if message.contains("busy") {
        return Err(io::Error::from_raw_os_error(libc::EBUSY));
    }
    Err(io::Error::other(message))
}

/// The path without symlinks. The last component may be a dead mount, which nothing can resolve.
pub fn resolve(path: &Path) -> Result<PathBuf, MountPointError> {
    let io_error = |what, source| MountPointError::Io { what, path: path.to_path_buf(), source };
    let absolute = std::path::absolute(path).map_err(|e| io_error("resolving", e))?;
    // A mount whose daemon is stopped would hold `canonicalize` for ever: the name is looked up first.
    let by_parent = match (absolute.parent(), absolute.file_name()) {
        (Some(parent), Some(name)) => match parent.canonicalize() {
            Ok(parent) => parent.join(name),
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(MountPointError::Missing(absolute)),
            Err(e) => return Err(io_error("resolving the directory of", e)),
        },
        _ => absolute,
    };
    if mount_at(&by_parent)?.is_some() {
        return Ok(by_parent);
    }
    match by_parent.canonicalize() {
        Ok(path) => Ok(path),
        Err(_) => Ok(by_parent),
    }
}

enum Stat {
    Directory,
    Other,
    Missing,
    /// The daemon behind it is dead.
    Dead,
    /// The daemon behind it does not answer.
    Stuck,
    Failed(io::Error),
}

fn stat(path: &Path) -> Stat {
    let target = path.to_path_buf();
    match in_time(STAT_TIMEOUT, move || look(&target)) {
        None => Stat::Stuck,
        Some(Ok(metadata)) if metadata.is_dir() => Stat::Directory,
        Some(Ok(_)) => Stat::Other,
        Some(Err(e)) => match e.raw_os_error() {
            Some(libc::ENOENT) => Stat::Missing,
            Some(libc::ENOTDIR) => Stat::Other,
            Some(libc::ENOTCONN | libc::ECONNABORTED) => Stat::Dead,
            // Another user's mount without allow_other: there, but not for us to look at.
            Some(libc::EACCES) if is_mounted(path) => Stat::Directory,
            _ => Stat::Failed(e),
        },
    }
}

/// Does what may wait for a daemon, in a thread of its own, which is given up when no answer comes.
pub fn in_time<T: Send + 'static>(timeout: Duration, ask: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let _ = sender.send(ask());
    });
    receiver.recv_timeout(timeout).ok()
}

/// A `stat` may be answered from the kernel's cache, long after the daemon died; opening a directory never is.
fn look(path: &Path) -> io::Result<std::fs::Metadata> {
    let metadata = std::fs::metadata(path)?;
    if metadata.is_dir()
        && let Err(e) = std::fs::read_dir(path)
        && matches!(e.raw_os_error(), Some(libc::ENOTCONN | libc::ECONNABORTED))
    {
        return Err(e);
    }
    Ok(metadata)
}

/// A line of mountinfo.
#[derive(Debug, PartialEq, Eq)]
pub struct MountLine {
    point: PathBuf,
    kind: String,
    source: String,
    /// Minor number of its device, by which the kernel knows the connection.
    pub device: u32,
    /// Who mounted it.
    pub user: Option<u32>,
}

impl MountLine {
    fn is_ours(&self) -> bool {
        self.kind == FS_TYPE
    }
}

/// What is mounted last on exactly `path`.
fn mount_at(path: &Path) -> Result<Option<MountLine>, MountPointError> {
    Ok(last_mount_at(&mountinfo()?, path))
}

fn mountinfo() -> Result<Vec<u8>, MountPointError> {
    let file = Path::new("/proc/self/mountinfo");
    std::fs::read(file).map_err(|source| MountPointError::Io {
        what: "reading",
        path: file.to_path_buf(),
        source,
    })
}

fn last_mount_at(mountinfo: &[u8], path: &Path) -> Option<MountLine> {
    mountinfo.split(|b| *b == b'\n').filter_map(parse_line).rfind(|mount| mount.point == path)
}

/// Reads `36 35 98:0 /root /point rw,noatime master:1 - type source options`.
fn parse_line(line: &[u8]) -> Option<MountLine> {
    let mut fields = line.split(|b| *b == b' ');
    let device = std::str::from_utf8(fields.nth(2)?).ok()?.split_once(':')?.1.parse().ok()?;
    let point = PathBuf::from(std::ffi::OsString::from_vec(unescape(fields.nth(1)?)));
    let mut fields = fields.skip_while(|f| *f != b"-").skip(1);
    let kind = String::from_utf8_lossy(fields.next()?).into_owned();
    let source = String::from_utf8_lossy(&unescape(fields.next()?)).into_owned();
    let options = String::from_utf8_lossy(fields.next()?);
    let user = options.split(',').find_map(|option| option.strip_prefix("user_id=")?.parse().ok());
    Some(MountLine { point, kind, source, device, user })
}

/// mountinfo writes blanks and backslashes as `\040`.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        let octal = tail.get(..3).filter(|d| *first == b'\\' && d.iter().all(|b| (b'0'..=b'7').contains(b)));
        match octal {
            Some(digits) => {
                out.push(
                    digits.iter().fold(0u8, |value, digit| value.wrapping_mul(8).wrapping_add(digit - b'0')),
                );
                rest = &tail[3..];
            }
            None => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    out
}

/// The device through which every FUSE mount speaks to the kernel.
pub fn check_device() -> Result<(), String> {
    let device = Path::new("/dev/fuse");
    match std::fs::OpenOptions::new().read(true).write(true).open(device) {
        Ok(_) => Ok(()),
        Err(e) => Err(match e.raw_os_error() {
            Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => format!(
                "/dev/fuse does not exist: load the kernel's FUSE module with `modprobe fuse` as root, or in a \
                 container pass the device in (--device /dev/fuse --cap-add SYS_ADMIN) ({e})"
            ),
            Some(libc::EACCES | libc::EPERM) => format!(
                "no permission for /dev/fuse ({e}): run as root, or let users have it with `chmod 666 /dev/fuse`, \
                 which is what udev sets on most systems"
            ),
            _ => format!("opening /dev/fuse: {e}"),
        }),
    }
}

/// Whether the helper that mounts for ordinary users is installed.
pub fn check_fusermount() -> Result<(), String> {
    let path = std::env::var_os("PATH").unwrap_or_else(|| DEFAULT_PATH.into());
    if std::env::split_paths(&path).any(|dir| dir.join("fusermount3").is_file()) {
        return Ok(());
    }
    Err("fusermount3 is not installed, and only it can mount for an ordinary user: apt-get install fuse3, or run as root"
        .to_string())
}

/// Whether fuse.conf lets ordinary users open their mounts to others.
pub fn check_allow_other() -> Result<(), String> {
    let conf = std::fs::read("/etc/fuse.conf").unwrap_or_default();
    let allowed = conf.split(|b| *b == b'\n').any(|line| line.trim_ascii() == b"user_allow_other");
    if allowed {
        return Ok(());
    }
    Err("allow_other was asked for, but /etc/fuse.conf has no line `user_allow_other`: add it as root, or mount \
         without allow_other (then only you can see the files)"
        .to_string())
}

/// A path in an error of the kernel's own making is more useful when it says what to do.
pub fn explain_mount_error(error: &io::Error, path: &Path) -> String {
    let hint = match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => {
            "; mounting needs root, or fusermount3 and a mount point that you own; in a container also \
             --cap-add SYS_ADMIN --device /dev/fuse"
        }
        Some(libc::ENODEV) => "; the kernel has no FUSE: modprobe fuse",
        Some(libc::EBUSY) => "; something else is mounted there or uses it",
        _ => "",
    };
    format!("mounting on {:?}: {error}{hint}", String::from_utf8_lossy(path.as_os_str().as_bytes()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const INFO: &[u8] = b"\
22 1 254:0 / / rw,relatime - ext4 /dev/vda rw\n\
40 22 0:40 / /mnt/kv rw shared:5 master:2 - fuse.quorumfs n1:7400 rw,user_id=0\n\
41 22 0:41 / /mnt/with\\040blank rw - fuse.quorumfs x rw\n\
42 40 0:42 / /mnt/kv rw - tmpfs tmpfs rw\n\
44 22 0:44 / /mnt/sshfs rw - fuse.sshfs quorumfs:/ rw\n";

    #[test]
    fn mountinfo_tells_type_and_escapes() {
        let root = last_mount_at(INFO, Path::new("/")).unwrap();
        assert_eq!((root.kind.as_str(), root.source.as_str()), ("ext4", "/dev/vda"));
        assert!(last_mount_at(INFO, Path::new("/mnt/with blank")).unwrap().is_ours());
        assert!(!last_mount_at(INFO, Path::new("/mnt/sshfs")).unwrap().is_ours());
        assert_eq!(last_mount_at(INFO, Path::new("/mnt")), None);
    }

    #[test]
    fn the_last_mount_on_a_point_counts() {
        assert_eq!(last_mount_at(INFO, Path::new("/mnt/kv")).unwrap().kind, "tmpfs");
    }

    #[test]
    fn unescaping_leaves_everything_else_alone() {
        assert_eq!(unescape(b"a\\134b\\04"), b"a\\b\\04");
        assert_eq!(unescape(b"\\"), b"\\");
    }

    #[test]
    fn a_plain_directory_is_ready() {
        let dir = tempfile::tempdir().unwrap();
        let prepared = prepare(dir.path()).unwrap();
        assert!(!prepared.hides_files && prepared.recovered == 0);
        std::fs::write(dir.path().join("file"), "x").unwrap();
        assert!(prepare(dir.path()).unwrap().hides_files);
        assert!(matches!(prepare(&dir.path().join("file")), Err(MountPointError::NotDirectory(_))));
        assert!(matches!(prepare(&dir.path().join("none")), Err(MountPointError::Missing(_))));
        assert!(matches!(prepare(&dir.path().join("no/ne")), Err(MountPointError::Missing(_))));
        assert!(matches!(unmount(dir.path(), false), Err(MountPointError::NotMounted(_))));
    }

    #[test]
    fn a_symlink_is_followed() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("real")).unwrap();
        std::os::unix::fs::symlink("real", dir.path().join("link")).unwrap();
        let real = dir.path().canonicalize().unwrap().join("real");
        assert_eq!(prepare(&dir.path().join("link")).unwrap().path, real);
    }
}
