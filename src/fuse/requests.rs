//! The kernel's requests: decode, one call, reply.

use super::cached::is_direct;
use super::caller::Caller;
use super::convert::{kind_of, set_time_of};
use super::*;
use crate::fs::Changes;
use crate::fs::data::Allocate;
use crate::store::{RenameMode, Seek, SetXattr};
use crate::units::PlainOffset;
use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, FileHandle, INodeNo, InitFlags, IoctlFlags, KernelConfig, LockOwner,
    OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyIoctl,
    ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, TimeOrNow, WriteFlags,
};
use parking_lot::Mutex;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::Ordering;
use std::time::{Instant, SystemTime};

/// How many read-ahead and write-back requests may be under way.
const MAX_BACKGROUND: u16 = 64;

impl fuser::Filesystem for Kernel {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        let wanted = [
            InitFlags::FUSE_ATOMIC_O_TRUNC,
            InitFlags::FUSE_DONT_MASK,
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_READDIRPLUS_AUTO,
            InitFlags::FUSE_ASYNC_DIO,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_POSIX_ACL,
            InitFlags::FUSE_CACHE_SYMLINKS,
            InitFlags::FUSE_EXPLICIT_INVAL_DATA,
            // Else the kernel asks before each write whether there are file capabilities to take away.
            InitFlags::FUSE_HANDLE_KILLPRIV_V2,
        ];
        for flag in wanted {
            // Each makes something faster or more complete; an older kernel does without.
            let _ = config.add_capabilities(flag);
        }
        if !self.direct_io {
            let _ = config.add_capabilities(InitFlags::FUSE_WRITEBACK_CACHE);
        }
        let _ = config.set_max_write(MAX_REQUEST);
        let _ = config.set_max_readahead(MAX_REQUEST);
        let _ = config.set_max_background(MAX_BACKGROUND);
        Ok(())
    }

    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let timed = self.timed(Operation::Lookup);
        if parent == INodeNo::ROOT
            && let Some(ino) = self.wash.lookup(name.as_bytes())
        {
            return reply.entry(&Duration::ZERO, &Wash::attributes(ino), Generation(0));
        }
        match Self::unless_closed(&self.fs, self.fs.lookup(parent.0, name.as_bytes())) {
            Err(Error::NeedKey(need)) => {
                let name = name.as_bytes().to_vec();
                let act = move |fs: &Fs| fs.lookup(parent.0, &name);
                self.finish(timed, Err(Error::NeedKey(need)), act, move |result| give_entry(result, reply));
            }
            other => self.reply_entry(other, reply),
        }
    }

    fn forget(&self, _request: &Request, ino: INodeNo, nlookup: u64) {
        if Wash::owns(ino.0) {
            return;
        }
        self.fs.forget(ino.0, nlookup);
        self.cached.forget(ino.0, || self.fs.knows(ino.0));
    }

    fn getattr(&self, _request: &Request, ino: INodeNo, _handle: Option<FileHandle>, reply: ReplyAttr) {
        let _timed = self.timed(Operation::Getattr);
        if Wash::owns(ino.0) {
            return reply.attr(&Duration::ZERO, &Wash::attributes(ino.0));
        }
        match self.fs.attributes(ino.0) {
            Ok(entry) => reply.attr(&TTL, &attr_of(&entry)),
            Err(error) => reply.error(self.number(&error)),
        }
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
        _handle: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let timed = self.timed(Operation::Setattr);
        let changes = Changes {
            permissions: mode.map(|mode| mode & 0o7777),
            uid,
            gid,
            len: size.map(PlainOffset),
            atime: atime.map(set_time_of),
            mtime: mtime.map(set_time_of),
        };
        let (truncates, caller) = (size.is_some() && mode.is_none(), Caller::of(request));
        let act = move |fs: &Fs| {
            if truncates {
                fs.drop_privileges(ino.0, |group| caller.keeps(group))?;
            }
            fs.change(ino.0, &changes)
        };
        self.finish(timed, act(&self.fs), act, move |result| match result {
            Ok(entry) => reply.attr(&TTL, &attr_of(&entry)),
            Err(number) => reply.error(number),
        });
    }

    fn readlink(&self, _request: &Request, ino: INodeNo, reply: ReplyData) {
        let _timed = self.timed(Operation::Readlink);
        match Self::unless_closed(&self.fs, self.fs.read_symlink(ino.0)) {
            Ok(target) => reply.data(&target),
            Err(error) => reply.error(self.number(&error)),
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
        let timed = self.timed(Operation::Mknod);
        let Some(kind) = kind_of(mode) else { return reply.error(Errno::EINVAL) };
        let creator = Self::creator(request, mode, umask);
        let name = name.as_bytes().to_vec();
        let act = move |fs: &Fs| fs.make_node(parent.0, &name, kind, rdev.into(), creator);
        self.finish(timed, act(&self.fs), act, move |result| give_entry(result, reply));
    }

    fn mkdir(&self, request: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        let _timed = self.timed(Operation::Mkdir);
        let creator = Self::creator(request, mode, umask);
        self.reply_entry(self.fs.make_directory(parent.0, name.as_bytes(), creator), reply);
    }

    fn unlink(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let _timed = self.timed(Operation::Unlink);
        self.reply_empty(self.fs.unlink(parent.0, name.as_bytes()), reply);
    }

    fn rmdir(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let _timed = self.timed(Operation::Rmdir);
        self.reply_empty(self.fs.remove_directory(parent.0, name.as_bytes()), reply);
    }

    fn symlink(&self, request: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let _timed = self.timed(Operation::Symlink);
        let creator = Self::creator(request, 0o777, 0);
        let target = target.as_os_str().as_bytes();
        self.reply_entry(self.fs.make_symlink(parent.0, name.as_bytes(), target, creator), reply);
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
        let _timed = self.timed(Operation::Rename);
        let mode = match flags.bits() {
            0 => RenameMode::Replace,
            libc::RENAME_NOREPLACE => RenameMode::NoReplace,
            libc::RENAME_EXCHANGE => RenameMode::Exchange,
            _ => return reply.error(Errno::EINVAL),
        };
        let result = self.fs.rename(parent.0, name.as_bytes(), to_parent.0, to_name.as_bytes(), mode);
        self.reply_empty(result, reply);
    }

    fn link(&self, _request: &Request, ino: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let _timed = self.timed(Operation::Link);
        self.reply_entry(self.fs.link(ino.0, parent.0, name.as_bytes()), reply);
    }

    fn open(&self, request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let timed = self.timed(Operation::Open);
        if Wash::owns(ino.0) {
            return reply.opened(FileHandle(ino.0), FopenFlags::FOPEN_DIRECT_IO);
        }
        let truncate = flags.0 & libc::O_TRUNC != 0;
        let writes = flags.0 & libc::O_ACCMODE != libc::O_RDONLY;
        let open_flags = self.open_flags();
        let caller = Caller::of(request);
        if truncate && let Err(error) = self.drop_privileges(ino.0, |group| caller.keeps(group)) {
            return reply.error(self.number(&error));
        }
        let act = move |fs: &Fs| fs.open(ino.0, writes, truncate);
        self.finish(timed, act(&self.fs), act, move |result| match result {
            Ok(handle) => reply.opened(FileHandle(handle), open_flags),
            Err(number) => reply.error(number),
        });
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        let timed = self.timed(Operation::Create);
        let creator = Self::creator(request, mode, umask);
        let open_flags = self.open_flags();
        let name = name.as_bytes().to_vec();
        let act = move |fs: &Fs| fs.create(parent.0, &name, creator);
        self.finish(timed, act(&self.fs), act, move |result| match result {
            Ok((entry, handle)) => {
                let generation = Generation(entry.generation);
                reply.created(&TTL, &attr_of(&entry), generation, FileHandle(handle), open_flags);
            }
            Err(number) => reply.error(number),
        });
    }

    fn read(
        &self,
        _request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let timed = self.timed(Operation::Read);
        if !self.direct_io && !is_direct(flags) {
            self.cached.note(ino.0);
        }
        let buffers = Arc::clone(&self.buffers);
        let act = move |fs: &Fs| {
            let mut buffer = buffers.take();
            fs.read(handle.0, PlainOffset(offset), size as usize, buffer.bytes()).map(|()| buffer)
        };
        self.finish(timed, act(&self.fs), act, move |result| match result {
            Ok(mut buffer) => reply.data(buffer.bytes()),
            Err(number) => reply.error(number),
        });
    }

    fn write(
        &self,
        request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let timed = self.timed(Operation::Write);
        if Wash::owns(handle.0) {
            self.wash.meet();
            return reply.written(data.len() as u32);
        }
        if write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID) {
            let caller = Caller::of(request);
            if let Err(error) = self.drop_privileges(ino.0, |group| caller.keeps_unprivileged(group)) {
                return reply.error(self.number(&error));
            }
        }
        let held_back = write_flags.contains(WriteFlags::FUSE_WRITE_CACHE);
        let offset = PlainOffset(offset);
        if held_back {
            self.cached.note(ino.0);
        } else if is_direct(flags)
            && let Some(stale) = self.cached.stale(ino.0)
        {
            return self.write_past_cache((ino.0, handle.0), offset, data, stale, (timed, reply));
        }
        match self.fs.write(handle.0, offset, data, held_back) {
            Ok(()) => reply.written(data.len() as u32),
            Err(Error::NeedKey(need)) => {
                // The request's buffer is gone when this returns.
                let data = zeroize::Zeroizing::new(data.to_vec());
                let act = move |fs: &Fs| fs.write(handle.0, offset, &data, held_back).map(|()| data.len() as u32);
                self.finish(timed, Err(Error::NeedKey(need)), act, move |result| match result {
                    Ok(written) => reply.written(written),
                    Err(number) => reply.error(number),
                });
            }
            Err(error) => {
                if matches!(error, Error::Locked(_) | Error::Draining) {
                    self.wash.soil();
                }
                reply.error(self.number(&error));
            }
        }
    }

    fn flush(&self, _request: &Request, _ino: INodeNo, handle: FileHandle, _owner: LockOwner, reply: ReplyEmpty) {
        if !self.direct_io {
            // From then on the kernel spares each close a request: before it would send one it has sent what was written
            // and the time of that, which is as good a sign.
            reply.error(Errno::ENOSYS);
        } else if Wash::owns(handle.0) {
            reply.ok();
        } else {
            self.reply_empty(self.fs.flush(handle.0), reply);
        }
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
        let _timed = self.timed(Operation::Release);
        if !Wash::owns(handle.0) {
            self.fs.release(handle.0);
        }
        reply.ok();
    }

    fn fsync(&self, _request: &Request, ino: INodeNo, handle: FileHandle, datasync: bool, reply: ReplyEmpty) {
        let timed = self.timed(Operation::Fsync);
        let act = move |fs: &Fs| fs.sync(handle.0, datasync);
        let (forgetter, synced) = (Arc::clone(&self.forgetter), Arc::clone(&self.synced));
        let done = move |result: std::result::Result<(), Errno>| match result {
            Ok(()) => {
                if let Some(forgetter) = forgetter.get()
                    && synced.note(ino.0, Instant::now())
                {
                    forgetter.forget_attributes(ino.0);
                }
                reply.ok();
            }
            Err(number) => reply.error(number),
        };
        // One at a time waits for the disk here. Others wait elsewhere, so that there is somebody left to serve the
        // kernel, and so that one sync of the journal is for all of them.
        if self.syncing.swap(true, Ordering::AcqRel) {
            self.workers.run(
                act,
                act,
                Self::numbered(move |result| {
                    let _timed = timed;
                    done(result);
                }),
            );
        } else {
            let result = act(&self.fs);
            self.syncing.store(false, Ordering::Release);
            self.finish(timed, result, act, done);
        }
    }

    fn opendir(&self, _request: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let _timed = self.timed(Operation::Opendir);
        match self.fs.open_directory(ino.0) {
            Ok(handle) => reply.opened(FileHandle(handle), FopenFlags::empty()),
            Err(error) => reply.error(self.number(&error)),
        }
    }

    fn readdir(&self, _request: &Request, _ino: INodeNo, handle: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let _timed = self.timed(Operation::Readdir);
        let result = self.fs.list(handle.0, offset, false, |listed| {
            !reply.add(
                INodeNo(listed.ino),
                listed.next,
                convert::file_type(listed.kind),
                OsStr::from_bytes(&listed.name),
            )
        });
        match Self::unless_closed(&self.fs, result) {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(self.number(&error)),
        }
    }

    fn readdirplus(
        &self,
        _request: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        reply: ReplyDirectoryPlus,
    ) {
        let timed = self.timed(Operation::Readdir);
        // Shared, as it is filled by whoever comes to the end with it: here, or where a key can be waited for.
        let reply = Arc::new(Mutex::new(Some(reply)));
        let filled = Arc::clone(&reply);
        let act = move |fs: &Fs| {
            let mut reply = filled.lock();
            let Some(reply) = reply.as_mut() else { return Ok(()) };
            let result = fs.list(handle.0, offset, true, |listed| {
                let (attr, generation) = match &listed.entry {
                    Some(entry) => (attr_of(entry), entry.generation),
                    // `.` and `..` are not looked up: the kernel takes nothing but their number.
                    None => (convert::attr_of_dot(listed.ino), 0),
                };
                let name = OsStr::from_bytes(&listed.name);
                !reply.add(INodeNo(listed.ino), listed.next, name, &TTL, &attr, Generation(generation))
            });
            Self::unless_closed(fs, result)
        };
        self.finish(timed, act(&self.fs), act, move |result| match (reply.lock().take(), result) {
            (Some(reply), Ok(())) => reply.ok(),
            (Some(reply), Err(number)) => reply.error(number),
            (None, _) => (),
        });
    }

    fn releasedir(&self, _request: &Request, _ino: INodeNo, handle: FileHandle, _flags: OpenFlags, reply: ReplyEmpty) {
        let _timed = self.timed(Operation::Releasedir);
        self.fs.release_directory(handle.0);
        reply.ok();
    }

    fn fsyncdir(&self, _request: &Request, ino: INodeNo, _handle: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        let _timed = self.timed(Operation::Fsyncdir);
        self.reply_empty(self.fs.sync_directory(ino.0), reply);
    }

    fn statfs(&self, _request: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        let _timed = self.timed(Operation::Statfs);
        match self.fs.space() {
            Ok(space) => reply.statfs(
                space.blocks,
                space.free,
                space.available,
                space.files,
                space.files_free,
                space.fragment,
                crate::crypto::names::NAME_MAX as u32,
                space.fragment,
            ),
            Err(error) => reply.error(self.number(&error)),
        }
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
        let _timed = self.timed(Operation::Setxattr);
        let how = match flags {
            0 => SetXattr::Any,
            libc::XATTR_CREATE => SetXattr::Create,
            libc::XATTR_REPLACE => SetXattr::Replace,
            _ => return reply.error(Errno::EINVAL),
        };
        let mut result = self.fs.set_xattr(ino.0, name.as_bytes(), value, how);
        if result.is_ok() && name.as_bytes() == b"system.posix_acl_access" {
            let caller = Caller::of(request);
            result = self.fs.drop_setgid(ino.0, |group| caller.keeps_setgid(group));
        }
        self.reply_empty(result, reply);
    }

    fn getxattr(&self, _request: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let _timed = self.timed(Operation::Getxattr);
        if Wash::owns(ino.0) {
            return reply.error(Errno::NO_XATTR);
        }
        match Self::unless_closed(&self.fs, self.fs.xattr(ino.0, name.as_bytes())) {
            Ok(Some(value)) => reply_xattr(&value, size, reply),
            Ok(None) => reply.error(Errno::NO_XATTR),
            Err(error) => reply.error(self.number(&error)),
        }
    }

    fn listxattr(&self, request: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let _timed = self.timed(Operation::Listxattr);
        match Self::unless_closed(&self.fs, self.fs.xattr_names(ino.0)) {
            Ok(names) => {
                let shown = |name: &Vec<u8>| request.uid() == 0 || !name.starts_with(b"trusted.");
                let list: Vec<u8> = names.into_iter().filter(shown).flat_map(|name| [name, vec![0]].concat()).collect();
                reply_xattr(&list, size, reply);
            }
            Err(error) => reply.error(self.number(&error)),
        }
    }

    fn removexattr(&self, _request: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let _timed = self.timed(Operation::Removexattr);
        self.reply_empty(self.fs.remove_xattr(ino.0, name.as_bytes()), reply);
    }

    fn access(&self, _request: &Request, _ino: INodeNo, _mask: AccessFlags, reply: ReplyEmpty) {
        // `default_permissions`: the kernel has checked.
        reply.ok();
    }

    fn fallocate(
        &self,
        request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let timed = self.timed(Operation::Fallocate);
        const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        const ZERO_KEEP: i32 = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;
        let how = match mode {
            0 => Allocate::Extend,
            libc::FALLOC_FL_KEEP_SIZE => Allocate::Keep,
            PUNCH => Allocate::Punch,
            libc::FALLOC_FL_ZERO_RANGE => Allocate::Zero,
            ZERO_KEEP => Allocate::ZeroKeep,
            _ => return reply.error(Errno::EOPNOTSUPP),
        };
        // The kernel leaves this to us, and does not say so.
        let caller = Caller::of(request);
        if let Err(error) = self.drop_privileges(ino.0, |group| caller.keeps(group)) {
            return reply.error(self.number(&error));
        }
        let act = move |fs: &Fs| fs.allocate(handle.0, PlainOffset(offset), length, how);
        self.finish(timed, act(&self.fs), act, move |result| match result {
            Ok(()) => reply.ok(),
            Err(number) => reply.error(number),
        });
    }

    fn lseek(&self, _request: &Request, ino: INodeNo, handle: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        let timed = self.timed(Operation::Lseek);
        let what = match whence {
            libc::SEEK_DATA => Seek::Data,
            libc::SEEK_HOLE => Seek::Hole,
            _ => return reply.error(Errno::EINVAL),
        };
        let Ok(offset) = u64::try_from(offset) else { return reply.error(Errno::ENXIO) };
        let act = move |fs: &Fs| fs.seek(handle.0, PlainOffset(offset), what);
        let done = move |result: std::result::Result<PlainOffset, Errno>| match result {
            Ok(found) => reply.offset(found.0 as i64),
            Err(number) => reply.error(number),
        };
        match self.forgetter.get() {
            Some(forgetter) if self.fs.is_written_to(ino.0) => {
                let forgetter = forgetter.clone();
                self.workers.run(
                    move |fs| {
                        forgetter.write_out(ino.0);
                        act(fs)
                    },
                    act,
                    Self::numbered(move |result| {
                        let _timed = timed;
                        done(result);
                    }),
                );
            }
            _ => self.finish(timed, act(&self.fs), act, done),
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
        // From then on the kernel copies through its page cache, which knows more than we do.
        reply.error(Errno::ENOSYS);
    }

    fn ioctl(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _handle: FileHandle,
        _flags: IoctlFlags,
        _command: u32,
        _data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        // Programs ask every file whether it is a terminal.
        reply.error(Errno::ENOTTY);
    }
}
