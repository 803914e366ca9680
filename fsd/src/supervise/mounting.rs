//! Mounting by itself: the worker only gets the device.

use std::fs::File;
use std::io::{self, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::mount::MountFlags;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType, recvmsg,
    socketpair,
};

use crate::options::MountOptions;

/// What the type of our mounts ends with.
const SUBTYPE: &str = "quorumfs";
/// Where fusermount3 is told of the socket on which it answers.
const SOCKET_VARIABLE: &str = "_FUSE_COMMFD";

/// Mounts on `path`, as root by the system call and as anybody else by fusermount3. Answers the device, on
/// which the kernel's first request waits.
pub fn mount(path: &Path, source: &str, options: &MountOptions, allow_other: bool) -> io::Result<OwnedFd> {
    match by_system_call(path, source, options, allow_other) {
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
            by_fusermount(path, source, options, allow_other)
        }
        other => other,
    }
}

fn by_system_call(
    path: &Path,
    source: &str,
    options: &MountOptions,
    allow_other: bool,
) -> io::Result<OwnedFd> {
    let device: OwnedFd = File::options().read(true).write(true).open("/dev/fuse")?.into();
    let mut flags = MountFlags::NOATIME;
    flags.set(MountFlags::NOSUID, !options.suid);
    flags.set(MountFlags::NODEV, !options.dev);
    flags.set(MountFlags::NOEXEC, options.noexec);
    let (user, group) = (rustix::process::getuid(), rustix::process::getgid());
    let mut data = format!(
        "fd={},rootmode=40000,user_id={},group_id={},default_permissions",
        device.as_raw_fd(),
        user.as_raw(),
        group.as_raw()
    );
    if allow_other {
        data.push_str(",allow_other");
    }
    let data = std::ffi::CString::new(data)?;
    rustix::mount::mount(source, path, format!("fuse.{SUBTYPE}"), flags, data.as_c_str())?;
    Ok(device)
}

fn by_fusermount(
    path: &Path,
    source: &str,
    options: &MountOptions,
    allow_other: bool,
) -> io::Result<OwnedFd> {
    // In its list of options a comma needs a backslash.
    let source = source.replace('\\', "\\\\").replace(',', "\\,");
    let mut words = vec![format!("fsname={source}"), format!("subtype={SUBTYPE}")];
    words.extend(["default_permissions", "noatime"].map(String::from));
    for (wanted, word) in [(allow_other, "allow_other"), (options.noexec, "noexec")] {
        if wanted {
            words.push(word.to_string());
        }
    }
    for (wanted, yes, no) in [(options.suid, "suid", "nosuid"), (options.dev, "dev", "nodev")] {
        words.push(if wanted { yes } else { no }.to_string());
    }
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    let mut command = Command::new("fusermount3");
    command.arg("-o").arg(words.join(",")).arg("--").arg(path);
    command.env(SOCKET_VARIABLE, theirs.as_raw_fd().to_string());
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    inherit(&mut command, theirs.as_fd());
    let mut child = command
        .spawn()
        .map_err(|error| io::Error::new(error.kind(), format!("fusermount3 could not be run: {error}")))?;
    drop(theirs);
    let device = receive_device(ours.as_fd());
    // It ends once nobody listens any more.
    drop(ours);
    let mut said = String::new();
    if let Some(stderr) = child.stderr.take() {
        let _ = stderr.take(4096).read_to_string(&mut said);
    }
    let status = child.wait()?;
    match device {
        Ok(Some(device)) => Ok(device),
        Ok(None) => Err(io::Error::other(format!("fusermount3 ({status}): {}", said.trim()))),
        Err(error) => Err(error),
    }
}

fn receive_device(socket: BorrowedFd<'_>) -> io::Result<Option<OwnedFd>> {
    let mut byte = [0];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    recvmsg(socket, &mut [IoSliceMut::new(&mut byte)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut device = None;
    for part in control.drain() {
        if let RecvAncillaryMessage::ScmRights(mut some) = part {
            device = some.next();
        }
    }
    Ok(device)
}

/// Lets one descriptor through the `exec` of that command.
pub fn inherit(command: &mut Command, descriptor: BorrowedFd<'_>) {
    let number = descriptor.as_raw_fd();
    // SAFETY: fcntl may be called between fork and exec, and the descriptor is open there.
    unsafe {
        command.pre_exec(move || match libc::fcntl(number, libc::F_SETFD, 0) {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        });
    }
}
