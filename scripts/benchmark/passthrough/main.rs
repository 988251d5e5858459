//! A FUSE mirror of a directory that encrypts nothing, with the library and the session options of kmsfs: what it costs
//! is FUSE's own price. `scripts/bench` measures it; it is good for nothing else.
//!
//! Usage: passthrough DIRECTORY MOUNTPOINT. Serves until it is unmounted.

mod mirror;

use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, Errno, FileAttr, FileHandle, FopenFlags, Generation, INodeNo,
    InitFlags, KernelConfig, LockOwner, MountOption, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite,
    ReplyXattr, Request, SessionACL, TimeOrNow, WriteFlags,
};
use mirror::{Mirror, Result, kept};
use rustix::fs::{AtFlags, CWD, FallocateFlags, Mode, OFlags, SeekFrom, XattrFlags};
use std::cell::RefCell;
use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

const TTL: Duration = Duration::from_secs(3600);
const MAX_REQUEST: u32 = 1 << 20;
const MAX_BACKGROUND: u16 = 64;

thread_local! {
    /// What is read, on its way to the kernel.
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; MAX_REQUEST as usize]);
}

fn number(error: rustix::io::Errno) -> Errno {
    Errno::from_i32(error.raw_os_error())
}

fn give_entry(result: Result<FileAttr>, reply: ReplyEntry) {
    match result {
        Ok(attributes) => reply.entry(&TTL, &attributes, Generation(0)),
        Err(error) => reply.error(number(error)),
    }
}

fn give_attributes(result: Result<FileAttr>, reply: ReplyAttr) {
    match result {
        Ok(attributes) => reply.attr(&TTL, &attributes),
        Err(error) => reply.error(number(error)),
    }
}

fn give_nothing(result: Result<()>, reply: ReplyEmpty) {
    match result {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(number(error)),
    }
}

fn give_xattr(result: Result<(Vec<u8>, usize)>, size: u32, reply: ReplyXattr) {
    match result {
        Ok((_, len)) if size == 0 => reply.size(len as u32),
        Ok((value, len)) => reply.data(&value[..len]),
        Err(error) => reply.error(number(error)),
    }
}

impl fuser::Filesystem for Mirror {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        // As in `src/fuse.rs`.
        for flag in [
            InitFlags::FUSE_ATOMIC_O_TRUNC,
            InitFlags::FUSE_DONT_MASK,
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_READDIRPLUS_AUTO,
            InitFlags::FUSE_ASYNC_DIO,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_POSIX_ACL,
            InitFlags::FUSE_CACHE_SYMLINKS,
            InitFlags::FUSE_EXPLICIT_INVAL_DATA,
            InitFlags::FUSE_WRITEBACK_CACHE,
        ] {
            let _ = config.add_capabilities(flag);
        }
        let _ = config.set_max_write(MAX_REQUEST);
        let _ = config.set_max_readahead(MAX_REQUEST);
        let _ = config.set_max_background(MAX_BACKGROUND);
        Ok(())
    }

    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        give_entry(self.find(parent, name.as_bytes()), reply);
    }

    fn forget(&self, _request: &Request, ino: INodeNo, nlookup: u64) {
        Mirror::forget(self, ino, nlookup);
    }

    fn getattr(&self, _request: &Request, ino: INodeNo, _handle: Option<FileHandle>, reply: ReplyAttr) {
        give_attributes(self.attributes(ino), reply);
    }

    fn setattr(
        &self,
        _request: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _handle: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        give_attributes(self.change(ino, mode, uid, gid, size, atime, mtime), reply);
    }

    fn readlink(&self, _request: &Request, ino: INodeNo, reply: ReplyData) {
        match self.place(ino).and_then(|place| rustix::fs::readlinkat(place, "", Vec::new())) {
            Ok(target) => reply.data(target.as_bytes()),
            Err(error) => reply.error(number(error)),
        }
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let kind = rustix::fs::FileType::from_raw_mode(mode);
        let permissions = Mode::from_raw_mode(mode & !umask & 0o7777);
        let act = || {
            rustix::fs::mknodat(self.place(parent)?, name, kind, permissions, rdev.into())?;
            self.made(request, parent, name)
        };
        give_entry(act(), reply);
    }

    fn mkdir(&self, request: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        let act = || {
            rustix::fs::mkdirat(self.place(parent)?, name, Mode::from_raw_mode(mode & !umask & 0o7777))?;
            self.made(request, parent, name)
        };
        give_entry(act(), reply);
    }

    fn unlink(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let result = self.place(parent).and_then(|place| rustix::fs::unlinkat(place, name, AtFlags::empty()));
        give_nothing(result, reply);
    }

    fn rmdir(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let result = self.place(parent).and_then(|place| rustix::fs::unlinkat(place, name, AtFlags::REMOVEDIR));
        give_nothing(result, reply);
    }

    fn symlink(&self, request: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let act = || {
            rustix::fs::symlinkat(target, self.place(parent)?, name)?;
            self.made(request, parent, name)
        };
        give_entry(act(), reply);
    }

    fn rename(
        &self,
        _request: &Request,
        parent: INodeNo,
        name: &OsStr,
        to_parent: INodeNo,
        to_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let flags = rustix::fs::RenameFlags::from_bits_retain(flags.bits());
        let act = || rustix::fs::renameat_with(self.place(parent)?, name, self.place(to_parent)?, to_name, flags);
        give_nothing(act(), reply);
    }

    fn link(&self, _request: &Request, ino: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let act = || {
            let (_place, path) = self.path(ino)?;
            rustix::fs::linkat(CWD, path, self.place(parent)?, name, AtFlags::SYMLINK_FOLLOW)?;
            self.find(parent, name.as_bytes())
        };
        give_entry(act(), reply);
    }

    fn open(&self, _request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        match self.open_file(ino, flags) {
            Ok(file) => reply.opened(self.files.add(file), open_flags()),
            Err(error) => reply.error(number(error)),
        }
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let permissions = Mode::from_raw_mode(mode & !umask & 0o7777);
        let act = || {
            let flags = kept(flags) | OFlags::CREATE | OFlags::EXCL;
            let file = rustix::fs::openat(self.place(parent)?, name, flags, permissions)?;
            Ok((self.made(request, parent, name)?, file))
        };
        match act() {
            Ok((attributes, file)) => {
                reply.created(&TTL, &attributes, Generation(0), self.files.add(file), open_flags());
            }
            Err(error) => reply.error(number(error)),
        }
    }

    fn read(
        &self,
        _request: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        BUFFER.with_borrow_mut(|buffer| {
            let buffer = &mut buffer[..(size.min(MAX_REQUEST)) as usize];
            match self.files.get(handle).and_then(|file| rustix::io::pread(file, &mut *buffer, offset)) {
                Ok(len) => reply.data(&buffer[..len]),
                Err(error) => reply.error(number(error)),
            }
        });
    }

    fn write(
        &self,
        _request: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match self.files.get(handle).and_then(|file| rustix::io::pwrite(file, data, offset)) {
            Ok(len) => reply.written(len as u32),
            Err(error) => reply.error(number(error)),
        }
    }

    fn flush(&self, _request: &Request, _ino: INodeNo, _handle: FileHandle, _owner: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn release(
        &self,
        _request: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.files.remove(handle);
        reply.ok();
    }

    fn fsync(&self, _request: &Request, _ino: INodeNo, handle: FileHandle, datasync: bool, reply: ReplyEmpty) {
        let sync = |file: &OwnedFd| if datasync { rustix::fs::fdatasync(file) } else { rustix::fs::fsync(file) };
        give_nothing(self.files.get(handle).and_then(|file| sync(&file)), reply);
    }

    fn opendir(&self, _request: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        match self.list(ino) {
            Ok(listed) => reply.opened(self.directories.add(listed), FopenFlags::empty()),
            Err(error) => reply.error(number(error)),
        }
    }

    fn readdir(&self, _request: &Request, _ino: INodeNo, handle: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let Ok(listed) = self.directories.get(handle) else { return reply.error(Errno::EBADF) };
        for (next, entry) in (offset + 1..).zip(listed.iter().skip(offset as usize)) {
            if reply.add(INodeNo(entry.ino), next, entry.kind, OsStr::from_bytes(&entry.name)) {
                break;
            }
        }
        reply.ok();
    }

    fn readdirplus(
        &self,
        _request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let Ok(listed) = self.directories.get(handle) else { return reply.error(Errno::EBADF) };
        for (next, entry) in (offset + 1..).zip(listed.iter().skip(offset as usize)) {
            let dot = matches!(entry.name.as_slice(), b"." | b"..");
            let found = if dot { self.attributes(ino) } else { self.find(ino, &entry.name) };
            // Removed since it was listed.
            let Ok(attributes) = found else { continue };
            let shown = INodeNo(entry.ino);
            if reply.add(shown, next, OsStr::from_bytes(&entry.name), &TTL, &attributes, Generation(0)) {
                if !dot {
                    Mirror::forget(self, attributes.ino, 1);
                }
                break;
            }
        }
        reply.ok();
    }

    fn releasedir(&self, _request: &Request, _ino: INodeNo, handle: FileHandle, _flags: OpenFlags, reply: ReplyEmpty) {
        self.directories.remove(handle);
        reply.ok();
    }

    fn fsyncdir(&self, _request: &Request, ino: INodeNo, _handle: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let act = || rustix::fs::fsync(rustix::fs::openat(self.place(ino)?, ".", flags, Mode::empty())?);
        give_nothing(act(), reply);
    }

    fn statfs(&self, _request: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        match rustix::fs::fstatvfs(&self.root) {
            Ok(space) => reply.statfs(
                space.f_blocks,
                space.f_bfree,
                space.f_bavail,
                space.f_files,
                space.f_ffree,
                space.f_bsize as u32,
                space.f_namemax as u32,
                space.f_frsize as u32,
            ),
            Err(error) => reply.error(number(error)),
        }
    }

    fn setxattr(
        &self,
        _request: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let flags = XattrFlags::from_bits_retain(flags as u32);
        let result = self.path(ino).and_then(|(_place, path)| rustix::fs::setxattr(path, name, value, flags));
        give_nothing(result, reply);
    }

    fn getxattr(&self, _request: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let mut value = vec![0; size as usize];
        let result = self.path(ino).and_then(|(_place, path)| rustix::fs::getxattr(path, name, &mut *value));
        give_xattr(result.map(|len| (value, len)), size, reply);
    }

    fn listxattr(&self, _request: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let mut list = vec![0; size as usize];
        let result = self.path(ino).and_then(|(_place, path)| rustix::fs::listxattr(path, &mut *list));
        give_xattr(result.map(|len| (list, len)), size, reply);
    }

    fn removexattr(&self, _request: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        give_nothing(self.path(ino).and_then(|(_place, path)| rustix::fs::removexattr(path, name)), reply);
    }

    fn access(&self, _request: &Request, _ino: INodeNo, _mask: AccessFlags, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fallocate(
        &self,
        _request: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let flags = FallocateFlags::from_bits_retain(mode as u32);
        let result = self.files.get(handle).and_then(|file| rustix::fs::fallocate(file, flags, offset, length));
        give_nothing(result, reply);
    }

    fn lseek(
        &self,
        _request: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let to = match (whence, u64::try_from(offset)) {
            (libc::SEEK_DATA, Ok(offset)) => SeekFrom::Data(offset),
            (libc::SEEK_HOLE, Ok(offset)) => SeekFrom::Hole(offset),
            _ => return reply.error(Errno::ENXIO),
        };
        match self.files.get(handle).and_then(|file| rustix::fs::seek(file, to)) {
            Ok(found) => reply.offset(found as i64),
            Err(error) => reply.error(number(error)),
        }
    }

    fn copy_file_range(
        &self,
        _request: &Request,
        _from: INodeNo,
        _from_handle: FileHandle,
        _from_offset: u64,
        _to: INodeNo,
        _to_handle: FileHandle,
        _to_offset: u64,
        _len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        reply.error(Errno::ENOSYS);
    }
}

fn open_flags() -> FopenFlags {
    FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES | FopenFlags::FOPEN_KEEP_CACHE
}

fn main() -> std::io::Result<()> {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let [directory, mountpoint] = arguments.as_slice() else {
        eprintln!("Usage: passthrough DIRECTORY MOUNTPOINT");
        std::process::exit(2);
    };
    rustix::process::umask(Mode::empty());
    // Each inode that the kernel knows is a descriptor.
    let mut limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    limit.current = limit.maximum;
    rustix::process::setrlimit(rustix::process::Resource::Nofile, limit)?;
    let mut config = fuser::Config::default();
    config.mount_options = vec![MountOption::FSName("passthrough".into()), MountOption::DefaultPermissions];
    config.acl = SessionACL::Owner;
    config.n_threads = Some(std::thread::available_parallelism().map_or(2, std::num::NonZero::get).clamp(2, 16));
    config.clone_fd = true;
    fuser::mount(Mirror::new(Path::new(directory))?, mountpoint, &config)
}
