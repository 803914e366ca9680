//! Going on with a FUSE connection that somebody else began. fuser has no word for that; but it takes any
//! descriptor, so it gets a socket on which the request waits that opens a connection, and then the
//! device in the place of that socket.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use fuser::{Config, Filesystem, Session};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use crate::kernel::NodeId;

/// `FUSE_INIT`.
const INIT: u32 = 26;
/// Version of the protocol that the opening request names; that of the connection was agreed on long ago.
const PROTOCOL: (u32, u32) = (7, 45);
/// Bytes that the kernel may read ahead, as it says itself.
const READAHEAD: u32 = 128 << 10;
/// `FUSE_NOTIFY_INVAL_INODE` and `FUSE_NOTIFY_RESEND`.
const INVAL_INODE: i32 = 2;
const RESEND: i32 = 7;

/// `struct fuse_in_header` and `struct fuse_init_in`, with every feature on offer: what the connection
/// really has was agreed on with its first worker.
fn opening() -> Vec<u8> {
    let words = [PROTOCOL.0, PROTOCOL.1, READAHEAD, u32::MAX, u32::MAX];
    // The rest of both structures is not used.
    let (header, body) = (40, 64);
    let mut message = vec![0; header + body];
    message[..4].copy_from_slice(&((header + body) as u32).to_le_bytes());
    message[4..8].copy_from_slice(&INIT.to_le_bytes());
    message[8..16].copy_from_slice(&1u64.to_le_bytes());
    for (place, word) in message[header..].chunks_exact_mut(4).zip(words) {
        place.copy_from_slice(&word.to_le_bytes());
    }
    message
}

/// A session on a connection that is open already.
///
/// # Errors
/// When the system refuses.
pub fn resume<FS: Filesystem>(filesystem: FS, device: OwnedFd, config: Config) -> io::Result<Session<FS>> {
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    rustix::io::write(&ours, &opening())?;
    let acl = config.acl;
    let session = Session::from_fd(filesystem, theirs, acl, config)?;
    let place = session.as_fd().as_raw_fd();
    // SAFETY: both are open, and `place` is the session's own until it is dropped: only what is behind
    // that number changes.
    if unsafe { libc::dup3(device.as_raw_fd(), place, libc::O_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(session)
}

/// `struct fuse_out_header` of a notification, and what follows.
fn notify(device: impl AsFd, code: i32, body: &[u8]) -> rustix::io::Result<()> {
    let mut message = vec![0; 16];
    message.extend_from_slice(body);
    let length = message.len() as u32;
    message[..4].copy_from_slice(&length.to_le_bytes());
    message[4..8].copy_from_slice(&code.to_le_bytes());
    rustix::io::write(device, &message).map(drop)
}

/// Has the kernel ask again whatever it has no answer to. Nobody else may be answering.
///
/// # Errors
/// `EINVAL` before Linux 6.9.
pub fn resend(device: impl AsFd) -> io::Result<()> {
    Ok(notify(device, RESEND, &[])?)
}

/// Makes the kernel forget the attributes of an inode. Answers whether it holds that inode at all.
pub fn forget_attributes(device: impl AsFd, node: NodeId) -> bool {
    let mut body = [0; 24];
    body[..8].copy_from_slice(&node.to_le_bytes());
    // A negative offset means: attributes only. That waits for nothing in the kernel.
    body[8..16].copy_from_slice(&(-1i64).to_le_bytes());
    // What cannot be told is taken to be held: that costs a replay at most.
    notify(device, INVAL_INODE, &body) != Err(rustix::io::Errno::NOENT)
}
