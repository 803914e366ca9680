//! Between FUSE and [`Fs`]: one call, one reply, no decision.
//!
//! A call is polled once on the thread that received it. If it has to wait for the cluster, it goes
//! on in the runtime and the thread takes the next request: those few threads never block.

use std::ffi::OsStr;
use std::future::Future;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Waker};
use std::time::SystemTime;

use fuser::{
    BsdFileFlags, CopyFileRangeFlags, Errno as FuseErrno, FileAttr, FileHandle, FileType, FopenFlags,
    Generation, INodeNo, InitFlags, KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate,
    ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyLock, ReplyLseek, ReplyOpen, ReplyStatfs,
    ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use quorumfs_api::command::Range;
use quorumfs_api::limits::NAME_MAX;
use quorumfs_api::record::{Device, Kind};

use crate::attr::Attr;
use crate::errno::{Errno, Result};
use crate::fs::{Caller, Change, Fs, LockRequest, Opened, Time};
use crate::handover::call;

/// Block size that `stat` and `statfs` show, in bytes.
const BLOCK: u64 = 4096;
/// Unit of `st_blocks`, in bytes.
const SECTOR: u64 = 512;
/// What is asked of the kernel, where it can do it. See `DESIGN`, section 4: truncation on open has to
/// reach the handle; cached pages go when the attributes that are told show another time or length.
const WANTED: [InitFlags; 7] = [
    InitFlags::FUSE_ATOMIC_O_TRUNC,
    InitFlags::FUSE_PARALLEL_DIROPS,
    InitFlags::FUSE_AUTO_INVAL_DATA,
    InitFlags::FUSE_POSIX_LOCKS,
    InitFlags::FUSE_FLOCK_LOCKS,
    InitFlags::FUSE_CACHE_SYMLINKS,
    InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP,
];

/// What fuser calls.
pub struct Adapter {
    fs: Fs,
    runtime: tokio::runtime::Handle,
    resends: Arc<AtomicBool>,
}

impl Adapter {
    /// For that file system; what waits, waits in that runtime.
    pub fn new(fs: Fs, runtime: tokio::runtime::Handle) -> Adapter {
        Adapter { fs, runtime, resends: Arc::default() }
    }

    /// Tells, once the connection is open, whether the kernel can be made to ask again what nobody answered.
    pub fn resends(&self) -> Arc<AtomicBool> {
        self.resends.clone()
    }

    fn drive(&self, request: &Request, call: impl Future<Output = ()> + Send + 'static) {
        let _inside = self.runtime.enter();
        let mut call: Pin<Box<dyn Future<Output = ()> + Send>> = match self.fs.core.journal() {
            Some(journal) => {
                let (journal, unique) = (journal.clone(), request.unique().0);
                Box::pin(async move { call::serve(unique, &journal, call).await })
            }
            None => Box::pin(call),
        };
        if call.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending() {
            self.runtime.spawn(call);
        }
    }
}

fn caller(request: &Request) -> Caller {
    Caller { uid: request.uid(), gid: request.gid(), pid: request.pid() }
}

fn errno(error: Errno) -> FuseErrno {
    FuseErrno::from_i32(error.0)
}

fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::File => FileType::RegularFile,
        Kind::Dir => FileType::Directory,
        Kind::Symlink => FileType::Symlink,
        Kind::Fifo => FileType::NamedPipe,
        Kind::Socket => FileType::Socket,
        Kind::CharDevice => FileType::CharDevice,
        Kind::BlockDevice => FileType::BlockDevice,
    }
}

/// A device's number as FUSE has it: the low byte of the minor, twelve bits of the major, the rest of the minor.
fn rdev(device: Device) -> u32 {
    (device.minor & 0xff) | ((device.major & 0xfff) << 8) | ((device.minor & !0xff) << 12)
}

fn device(rdev: u32) -> Device {
    Device { major: (rdev >> 8) & 0xfff, minor: (rdev & 0xff) | ((rdev >> 12) & 0xf_ff00) }
}

fn file_attr(attr: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(attr.node),
        size: attr.size,
        blocks: attr.size.div_ceil(SECTOR),
        atime: attr.atime,
        mtime: attr.mtime,
        ctime: attr.ctime,
        crtime: attr.ctime,
        kind: file_type(attr.kind),
        perm: attr.mode as u16 & 0o7777,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.device.map_or(0, rdev),
        blksize: BLOCK as u32,
        flags: 0,
    }
}

fn open_flags(opened: Opened) -> FopenFlags {
    let mut flags = FopenFlags::empty();
    flags.set(FopenFlags::FOPEN_DIRECT_IO, opened.direct);
    flags.set(FopenFlags::FOPEN_KEEP_CACHE, opened.keep_cache);
    flags.set(FopenFlags::FOPEN_NOFLUSH, opened.no_flush);
    flags
}

fn entry(reply: ReplyEntry, result: Result<crate::fs::Entry>) {
    match result {
        Ok(entry) => {
            reply.entry_with_ttls(&entry.attr_ttl, &entry.name_ttl, &file_attr(&entry.attr), Generation(0));
        }
        Err(error) => reply.error(errno(error)),
    }
}

fn empty(reply: ReplyEmpty, result: Result<()>) {
    match result {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(errno(error)),
    }
}

fn xattr(reply: ReplyXattr, size: u32, result: Result<impl AsRef<[u8]>>) {
    match result {
        Ok(value) if size == 0 => reply.size(value.as_ref().len() as u32),
        Ok(value) if value.as_ref().len() > size as usize => reply.error(FuseErrno::ERANGE),
        Ok(value) => reply.data(value.as_ref()),
        Err(error) => reply.error(errno(error)),
    }
}

fn lock_range(start: u64, end: u64) -> Range {
    // The kernel's last byte is that of a signed offset.
    Range { start, end: if end >= i64::MAX as u64 { u64::MAX } else { end } }
}

impl fuser::Filesystem for Adapter {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        for flag in WANTED {
            if config.add_capabilities(flag).is_err() {
                if flag == InitFlags::FUSE_ATOMIC_O_TRUNC {
                    return Err(std::io::Error::from_raw_os_error(libc::EOPNOTSUPP));
                }
                tracing::debug!(?flag, "the kernel does not know this feature of FUSE");
            }
        }
        let resends = config.capabilities().contains(InitFlags::FUSE_HAS_RESEND);
        self.resends.store(resends, Ordering::Release);
        Ok(())
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        entry(reply, self.fs.lookup(caller(request), parent.0, name.as_bytes()));
    }

    fn forget(&self, _request: &Request, ino: INodeNo, count: u64) {
        self.fs.forget(ino.0, count);
    }

    fn getattr(&self, request: &Request, ino: INodeNo, fh: Option<FileHandle>, reply: ReplyAttr) {
        let (fs, caller) = (self.fs.clone(), caller(request));
        self.drive(request, async move {
            match fs.getattr(caller, ino.0, fh.map(|fh| fh.0)).await {
                Ok((attr, ttl)) => reply.attr(&ttl, &file_attr(&attr)),
                Err(error) => reply.error(errno(error)),
            }
        });
    }

    fn setattr(
        &self,
        request: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let (fs, caller) = (self.fs.clone(), caller(request));
        let time = |time| match time {
            TimeOrNow::Now => Time::Now,
            TimeOrNow::SpecificTime(time) => Time::At(time),
        };
        let change = Change { mode, uid, gid, size, atime: atime.map(time), mtime: mtime.map(time) };
        self.drive(request, async move {
            match fs.setattr(caller, ino.0, fh.map(|fh| fh.0), change).await {
                Ok((attr, ttl)) => reply.attr(&ttl, &file_attr(&attr)),
                Err(error) => reply.error(errno(error)),
            }
        });
    }

    fn readlink(&self, _request: &Request, ino: INodeNo, reply: ReplyData) {
        match self.fs.readlink(ino.0) {
            Ok(to) => reply.data(&to),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let (fs, caller, name) = (self.fs.clone(), caller(request), name.as_bytes().to_vec());
        self.drive(request, async move {
            entry(reply, fs.mknod(caller, parent.0, &name, mode, device(rdev)).await)
        });
    }

    fn mkdir(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        let (fs, caller, name) = (self.fs.clone(), caller(request), name.as_bytes().to_vec());
        self.drive(request, async move { entry(reply, fs.mkdir(caller, parent.0, &name, mode).await) });
    }

    fn unlink(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (fs, caller, name) = (self.fs.clone(), caller(request), name.as_bytes().to_vec());
        self.drive(request, async move { empty(reply, fs.unlink(caller, parent.0, &name).await) });
    }

    fn rmdir(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (fs, caller, name) = (self.fs.clone(), caller(request), name.as_bytes().to_vec());
        self.drive(request, async move { empty(reply, fs.rmdir(caller, parent.0, &name).await) });
    }

    fn symlink(&self, request: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let (fs, caller, name) = (self.fs.clone(), caller(request), name.as_bytes().to_vec());
        let target = target.as_os_str().as_bytes().to_vec();
        self.drive(request, async move { entry(reply, fs.symlink(caller, parent.0, &name, &target).await) });
    }

    fn rename(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let (fs, caller) = (self.fs.clone(), caller(request));
        let (old, new) = (name.as_bytes().to_vec(), newname.as_bytes().to_vec());
        self.drive(request, async move {
            let renamed = fs.rename(caller, (parent.0, &old), (newparent.0, &new), flags.bits());
            empty(reply, renamed.await);
        });
    }

    fn link(&self, _request: &Request, _ino: INodeNo, _parent: INodeNo, _name: &OsStr, reply: ReplyEntry) {
        // A key has one name.
        reply.error(FuseErrno::EPERM);
    }

    fn open(&self, request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let (fs, caller) = (self.fs.clone(), caller(request));
        self.drive(request, async move {
            match fs.open(caller, ino.0, flags.0).await {
                Ok(opened) => reply.opened(FileHandle(opened.fh), open_flags(opened)),
                Err(error) => reply.error(errno(error)),
            }
        });
    }

    fn read(
        &self,
        _request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.fs.read(ino.0, fh.0, offset, size) {
            Ok(data) => reply.data(&data),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn write(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let length = data.len() as u32;
        let strips = write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID);
        match self.fs.write(ino.0, fh.0, request.unique().0, offset, data, strips) {
            Ok(false) => reply.written(length),
            Ok(true) => {
                let fs = self.fs.clone();
                self.drive(request, async move {
                    match fs.commit_write(fh.0).await {
                        Ok(()) => reply.written(length),
                        Err(error) => reply.error(errno(error)),
                    }
                });
            }
            Err(error) => reply.error(errno(error)),
        }
    }

    fn flush(&self, request: &Request, ino: INodeNo, fh: FileHandle, owner: LockOwner, reply: ReplyEmpty) {
        let fs = self.fs.clone();
        self.drive(request, async move { empty(reply, fs.flush(fh.0, ino.0, owner.0).await) });
    }

    fn release(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        let fs = self.fs.clone();
        self.drive(request, async move {
            fs.release(ino.0, fh.0).await;
            reply.ok();
        });
    }

    fn fsync(&self, request: &Request, ino: INodeNo, fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        let fs = self.fs.clone();
        self.drive(request, async move { empty(reply, fs.fsync(ino.0, fh.0).await) });
    }

    fn opendir(&self, _request: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        match self.fs.opendir(ino.0) {
            Ok(fh) => reply.opened(FileHandle(fh), FopenFlags::empty()),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn readdir(
        &self,
        _request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let names = match self.fs.readdir(ino.0, fh.0, offset) {
            Ok(names) => names,
            Err(error) => return reply.error(errno(error)),
        };
        let rest = names.iter().enumerate().skip(usize::try_from(offset).unwrap_or(usize::MAX));
        for (index, listed) in rest {
            let name = match (&listed.name, index) {
                (Some(name), _) => name.as_bytes(),
                (None, 0) => b".",
                (None, _) => b"..",
            };
            // The position of the next name is what the kernel hands back.
            if reply.add(
                INodeNo(listed.node),
                index as u64 + 1,
                file_type(listed.kind),
                OsStr::from_bytes(name),
            ) {
                break;
            }
        }
        reply.ok();
    }

    fn releasedir(
        &self,
        _request: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.fs.releasedir(fh.0);
        reply.ok();
    }

    fn fsyncdir(
        &self,
        request: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        let fs = self.fs.clone();
        self.drive(request, async move { empty(reply, fs.core.barrier().await) });
    }

    fn statfs(&self, request: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        let fs = self.fs.clone();
        self.drive(request, async move {
            let space = fs.statfs().await;
            let free = space.total.saturating_sub(space.used) / BLOCK;
            reply.statfs(
                space.total / BLOCK,
                free,
                free,
                space.objects,
                0,
                BLOCK as u32,
                NAME_MAX as u32,
                BLOCK as u32,
            );
        });
    }

    fn setxattr(
        &self,
        request: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let (fs, name, value) = (self.fs.clone(), name.as_bytes().to_vec(), value.to_vec());
        self.drive(request, async move { empty(reply, fs.setxattr(ino.0, &name, &value, flags).await) });
    }

    fn getxattr(&self, request: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let (fs, name) = (self.fs.clone(), name.as_bytes().to_vec());
        self.drive(request, async move { xattr(reply, size, fs.getxattr(ino.0, &name).await) });
    }

    fn listxattr(&self, _request: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        xattr(reply, size, self.fs.listxattr(ino.0));
    }

    fn removexattr(&self, request: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (fs, name) = (self.fs.clone(), name.as_bytes().to_vec());
        self.drive(request, async move { empty(reply, fs.removexattr(ino.0, &name).await) });
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let (fs, caller, name) = (self.fs.clone(), caller(request), name.as_bytes().to_vec());
        self.drive(request, async move {
            match fs.create(caller, parent.0, &name, mode, flags).await {
                Ok((entry, opened)) => {
                    let (attr, fh) = (file_attr(&entry.attr), FileHandle(opened.fh));
                    reply.created(&entry.name_ttl, &attr, Generation(0), fh, open_flags(opened));
                }
                Err(error) => reply.error(errno(error)),
            }
        });
    }

    fn getlk(
        &self,
        request: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        owner: LockOwner,
        start: u64,
        end: u64,
        typ: i32,
        pid: u32,
        reply: ReplyLock,
    ) {
        let range = lock_range(start, end);
        let wanted = LockRequest { owner: owner.0, range, kind: typ, pid, wait: false };
        let fs = self.fs.clone();
        self.drive(request, async move {
            match fs.getlk(ino.0, wanted).await {
                Ok(None) => reply.locked(start, end, libc::F_UNLCK, 0),
                Ok(Some(held)) => {
                    let end = held.range.end.min(i64::MAX as u64);
                    reply.locked(held.range.start, end, held.kind, held.pid);
                }
                Err(error) => reply.error(errno(error)),
            }
        });
    }

    fn setlk(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        owner: LockOwner,
        start: u64,
        end: u64,
        typ: i32,
        pid: u32,
        sleep: bool,
        reply: ReplyEmpty,
    ) {
        let range = lock_range(start, end);
        let wanted = LockRequest { owner: owner.0, range, kind: typ, pid, wait: sleep };
        let (fs, caller) = (self.fs.clone(), caller(request));
        self.drive(request, async move { empty(reply, fs.setlk(caller, ino.0, fh.0, wanted).await) });
    }

    fn fallocate(
        &self,
        _request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        empty(reply, self.fs.allocate(ino.0, fh.0, offset, length, mode));
    }

    fn lseek(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _offset: i64,
        _whence: i32,
        reply: ReplyLseek,
    ) {
        // The kernel knows how to do it for files without holes.
        reply.error(FuseErrno::ENOSYS);
    }

    fn copy_file_range(
        &self,
        _request: &Request,
        _ino_in: INodeNo,
        _fh_in: FileHandle,
        _offset_in: u64,
        _ino_out: INodeNo,
        _fh_out: FileHandle,
        _offset_out: u64,
        _len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        // The kernel copies by reading and writing then.
        reply.error(FuseErrno::ENOSYS);
    }
}
