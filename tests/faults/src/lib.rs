//! Faults inside of a process that knows nothing of them: a library that `LD_PRELOAD` puts before the C
//! library. The clock jumps, syncs take long, writes fail, datagrams come twice or late, as a file says that
//! `QUORUMFS_FAULTS` names; without it everything is as ever.
//!
//! The file is mapped, so that whoever writes to it is heard at once: [`FIELDS`] numbers of 8 bytes each, in
//! the byte order of the machine, as `quorumfs_tests::faults` writes them.
//!
//! Each function does what its name says in the C library, by the system call itself.

mod late;

use std::ffi::{c_int, c_long, c_void};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use libc::{clockid_t, iovec, msghdr, off_t, size_t, ssize_t, timespec};

/// Names the file.
const VARIABLE: &str = "QUORUMFS_FAULTS";
/// Nanoseconds in a second.
const SECOND: i64 = 1_000_000_000;

/// How many numbers the file has.
const FIELDS: usize = 6;
/// Nanoseconds by which the clock is wrong.
const CLOCK: usize = 0;
/// Error number of every write and sync; 0 for none.
const DISK_ERROR: usize = 1;
/// Microseconds that a sync takes longer.
const SYNC_DELAY: usize = 2;
/// Datagrams of a hundred that are sent twice.
const TWICE: usize = 3;
/// Datagrams of a hundred that are sent late.
const LATE: usize = 4;
/// Microseconds that they are late at most.
const LATE_MAX: usize = 5;

fn field(number: usize) -> i64 {
    static FIELDS_MAPPED: OnceLock<Option<&'static [AtomicI64; FIELDS]>> = OnceLock::new();
    FIELDS_MAPPED.get_or_init(map).map_or(0, |fields| fields[number].load(Ordering::Relaxed))
}

fn map() -> Option<&'static [AtomicI64; FIELDS]> {
    let path = std::env::var_os(VARIABLE)?;
    let file = std::fs::File::options().read(true).write(true).open(path).ok()?;
    let length = FIELDS * size_of::<AtomicI64>();
    if (file.metadata().ok()?.len() as usize) < length {
        return None;
    }
    let fd = std::os::fd::AsRawFd::as_raw_fd(&file);
    // SAFETY: a new shared mapping of a file that is long enough; it is never unmapped, and whatever is in it
    // is a number.
    unsafe {
        let mapped = libc::mmap(
            std::ptr::null_mut(),
            length,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED,
            fd,
            0,
        );
        if mapped == libc::MAP_FAILED { None } else { Some(&*mapped.cast()) }
    }
}

/// A number below `end`, different each time.
fn random(end: i64) -> i64 {
    static STATE: AtomicU64 = AtomicU64::new(0x9e37_79b9_7f4a_7c15);
    let mut z = STATE.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ (z >> 31)) >> 1) as i64 % end.max(1)
}

/// The error that writes have now.
fn disk_fails() -> Option<c_int> {
    let error = field(DISK_ERROR) as c_int;
    if error == 0 {
        return None;
    }
    // SAFETY: the address of this thread's own error number.
    unsafe { *libc::__errno_location() = error };
    Some(-1)
}

fn sync_takes_long() {
    let delay = field(SYNC_DELAY);
    if delay > 0 {
        std::thread::sleep(std::time::Duration::from_micros(delay as u64));
    }
}

/// # Safety
/// As `clock_gettime(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn clock_gettime(clock: clockid_t, time: *mut timespec) -> c_int {
    // SAFETY: the caller's arguments, for the same call.
    let result = unsafe { libc::syscall(libc::SYS_clock_gettime, c_long::from(clock), time) } as c_int;
    if result == 0 && matches!(clock, libc::CLOCK_REALTIME | libc::CLOCK_REALTIME_COARSE) {
        let wrong = field(CLOCK);
        if wrong != 0 {
            // SAFETY: the call has just filled it.
            let time = unsafe { &mut *time };
            let nanos = time.tv_sec * SECOND + time.tv_nsec + wrong;
            (time.tv_sec, time.tv_nsec) = (nanos.div_euclid(SECOND), nanos.rem_euclid(SECOND));
        }
    }
    result
}

/// # Safety
/// As `pwrite(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pwrite64(fd: c_int, data: *const c_void, length: size_t, offset: off_t) -> ssize_t {
    if let Some(failed) = disk_fails() {
        return failed as ssize_t;
    }
    // SAFETY: the caller's arguments, for the same call.
    unsafe { libc::syscall(libc::SYS_pwrite64, c_long::from(fd), data, length, offset) as ssize_t }
}

/// Only ever asked for with `RWF_DSYNC`: a write and a sync in one.
///
/// # Safety
/// As `pwritev2(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pwritev2(
    fd: c_int,
    parts: *const iovec,
    count: c_int,
    offset: off_t,
    flags: c_int,
) -> ssize_t {
    sync_takes_long();
    if let Some(failed) = disk_fails() {
        return failed as ssize_t;
    }
    let (fd, count, flags) = (c_long::from(fd), c_long::from(count), c_long::from(flags));
    // SAFETY: the caller's arguments, for the same call; the upper half of the offset is in the lower one.
    unsafe { libc::syscall(libc::SYS_pwritev2, fd, parts, count, offset, 0 as c_long, flags) as ssize_t }
}

/// # Safety
/// As `ftruncate(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ftruncate64(fd: c_int, length: off_t) -> c_int {
    if let Some(failed) = disk_fails() {
        return failed;
    }
    // SAFETY: the caller's arguments, for the same call.
    unsafe { libc::syscall(libc::SYS_ftruncate, c_long::from(fd), length) as c_int }
}

/// # Safety
/// As `fdatasync(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fdatasync(fd: c_int) -> c_int {
    sync_takes_long();
    if let Some(failed) = disk_fails() {
        return failed;
    }
    // SAFETY: the caller's arguments, for the same call.
    unsafe { libc::syscall(libc::SYS_fdatasync, c_long::from(fd)) as c_int }
}

/// # Safety
/// As `fsync(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fsync(fd: c_int) -> c_int {
    sync_takes_long();
    if let Some(failed) = disk_fails() {
        return failed;
    }
    // SAFETY: the caller's arguments, for the same call.
    unsafe { libc::syscall(libc::SYS_fsync, c_long::from(fd)) as c_int }
}

/// # Safety
/// As `sendmsg(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendmsg(fd: c_int, message: *const msghdr, flags: c_int) -> ssize_t {
    // SAFETY: the caller's message is whole. One without an address is for no datagram socket of ours.
    let datagram = unsafe { !message.is_null() && !(*message).msg_name.is_null() };
    if datagram && random(100) < field(LATE) {
        // SAFETY: as above.
        let copy = unsafe { late::Datagram::copy(fd, &*message, flags) };
        let length = copy.length();
        late::send(copy, std::time::Duration::from_micros(random(field(LATE_MAX)) as u64));
        return length;
    }
    // SAFETY: the caller's arguments, for the same call.
    let send = || unsafe { libc::syscall(libc::SYS_sendmsg, c_long::from(fd), message, c_long::from(flags)) };
    if datagram && random(100) < field(TWICE) {
        send();
    }
    send() as ssize_t
}

/// The bytes of a scattered buffer, one after the other.
///
/// # Safety
/// Each of them must be readable.
unsafe fn gather(parts: *const iovec, count: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    for number in 0..count {
        // SAFETY: as the caller promises.
        let part = unsafe { &*parts.add(number) };
        // SAFETY: as the caller promises.
        bytes.extend_from_slice(unsafe {
            std::slice::from_raw_parts(part.iov_base.cast::<u8>(), part.iov_len)
        });
    }
    bytes
}
