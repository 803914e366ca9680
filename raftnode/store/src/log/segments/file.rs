//! The file under the log: written in place at given offsets, each time durably.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use rustix::fs::{FlockOperation, flock};

/// What the log needs of its file. Tests put faults in, and cut the power.
pub trait LogFile: Send + Sync + 'static {
    /// Length in bytes.
    fn len(&self) -> io::Result<u64>;

    /// Whether it has no bytes.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Fills `out` with what is at `offset`; an error where the file ends before.
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()>;

    /// Changes the length; what is new reads as zeros. Not durable before [`LogFile::sync`].
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// Writes, not durably.
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()>;

    /// Makes all that was written, and the length, durable.
    fn sync(&self) -> io::Result<()>;

    /// Writes over bytes that the file has, and returns when they are durable.
    fn write_durably(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.write(offset, data)?;
        self.sync()
    }
}

/// A file on disk.
#[derive(Debug)]
pub struct DiskFile(File);

impl DiskFile {
    /// Takes a file that can be read and written, for itself alone: whoever came past the lock of the data
    /// directory must not write to the log.
    ///
    /// # Errors
    /// When somebody has it.
    pub fn new(file: File) -> io::Result<DiskFile> {
        flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        Ok(DiskFile(file))
    }
}

impl Drop for DiskFile {
    fn drop(&mut self) {
        // As with the lock of the data directory, closing it would not always do.
        let _ = flock(&self.0, FlockOperation::Unlock);
    }
}

impl LogFile for DiskFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(out, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write_all_at(data, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    /// One system call where a write and a sync would be two. Over blocks that were written before it
    /// also changes nothing but data: the file system's own journal stays out of it.
    fn write_durably(&self, mut offset: u64, mut data: &[u8]) -> io::Result<()> {
        while !data.is_empty() {
            match write_synced(&self.0, data, offset) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    data = &data[written..];
                    offset += written as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // A file system without that flag.
                Err(error) if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOSYS)) => {
                    self.write(offset, data)?;
                    return self.sync();
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// One write that returns when its bytes are durable, of as many of them as the kernel takes. By the C
/// library, so that the tests' library of faults sees it.
fn write_synced(file: &File, data: &[u8], offset: u64) -> io::Result<usize> {
    let part = libc::iovec { iov_base: data.as_ptr().cast_mut().cast(), iov_len: data.len() };
    let offset = libc::off_t::try_from(offset).map_err(io::Error::other)?;
    // SAFETY: the one part is `data`, which outlives the call and is only read.
    let written = unsafe { libc::pwritev2(file.as_raw_fd(), &raw const part, 1, offset, libc::RWF_DSYNC) };
    usize::try_from(written).map_err(|_| io::Error::last_os_error())
}
