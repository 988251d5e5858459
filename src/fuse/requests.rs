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
    ReplyLseek, ReplyOpen, ReplyStatfs, TimeOrNow, WriteFlags,
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
        let name = name.as_bytes().to_vec();
        self.entry(timed, move |fs| Self::unless_closed(fs, fs.lookup(parent.0, &name)), reply);
    }

    fn forget(&self, _request: &Request, ino: INodeNo, nlookup: u64) {
        if Wash::owns(ino.0) {
            return;
        }
        self.fs.forget(ino.0, nlookup);
        self.cached.forget(ino.0, || self.fs.knows(ino.0));
    }

    fn getattr(&self, _request: &Request, ino: INodeNo, _handle: Option<FileHandle>, reply: ReplyAttr) {
        let timed = self.timed(Operation::Getattr);
        if Wash::owns(ino.0) {
            return reply.attr(&Duration::ZERO, &Wash::attributes(ino.0));
        }
        let done = move |result: std::result::Result<crate::fs::Entry, Errno>| match result {
            Ok(entry) => reply.attr(&TTL, &attr_of(&entry)),
            Err(number) => reply.error(number),
        };
        match ino {
            // It answers in every state, and whoever looks at it uses nothing.
            INodeNo::ROOT => done(self.fs.attributes(ino.0).map_err(|error| self.number(&error))),
            _ => self.finish(timed, self.fs.attributes(ino.0), move |fs| fs.attributes(ino.0), done),
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
        let timed = self.timed(Operation::Readlink);
        let act = move |fs: &Fs| Self::unless_closed(fs, fs.read_symlink(ino.0));
        self.finish(timed, act(&self.fs), act, move |result| match result {
            Ok(target) => reply.data(&target),
            Err(number) => reply.error(number),
        });
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
        self.entry(timed, move |fs| fs.make_node(parent.0, &name, kind, rdev.into(), creator), reply);
    }

    fn mkdir(&self, request: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        let timed = self.timed(Operation::Mkdir);
        let creator = Self::creator(request, mode, umask);
        let name = name.as_bytes().to_vec();
        self.entry(timed, move |fs| fs.make_directory(parent.0, &name, creator), reply);
    }

    fn unlink(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let timed = self.timed(Operation::Unlink);
        let name = name.as_bytes().to_vec();
        self.empty(timed, move |fs| fs.unlink(parent.0, &name), reply);
    }

    fn rmdir(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let timed = self.timed(Operation::Rmdir);
        let name = name.as_bytes().to_vec();
        self.empty(timed, move |fs| fs.remove_directory(parent.0, &name), reply);
    }

    fn symlink(&self, request: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let timed = self.timed(Operation::Symlink);
        let creator = Self::creator(request, 0o777, 0);
        let (name, target) = (name.as_bytes().to_vec(), target.as_os_str().as_bytes().to_vec());
        self.entry(timed, move |fs| fs.make_symlink(parent.0, &name, &target, creator), reply);
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
        let timed = self.timed(Operation::Rename);
        let mode = match flags.bits() {
            0 => RenameMode::Replace,
            libc::RENAME_NOREPLACE => RenameMode::NoReplace,
            libc::RENAME_EXCHANGE => RenameMode::Exchange,
            _ => return reply.error(Errno::EINVAL),
        };
        let (name, to_name) = (name.as_bytes().to_vec(), to_name.as_bytes().to_vec());
        self.empty(timed, move |fs| fs.rename(parent.0, &name, to_parent.0, &to_name, mode), reply);
    }

    fn link(&self, _request: &Request, ino: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let timed = self.timed(Operation::Link);
        let name = name.as_bytes().to_vec();
        self.entry(timed, move |fs| fs.link(ino.0, parent.0, &name), reply);
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
        let drops = self.dropping(ino.0, move |group| caller.keeps(group));
        let act = move |fs: &Fs| {
            if truncate {
                drops(fs)?;
            }
            fs.open(ino.0, writes, truncate)
        };
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
            let drops = self.dropping(ino.0, move |group| caller.keeps_unprivileged(group));
            match drops(&self.fs) {
                Ok(()) => (),
                Err(Error::NeedKey(need)) => {
                    // A volume that nobody used is unlocked first.
                    let data = zeroize::Zeroizing::new(data.to_vec());
                    let act = move |fs: &Fs| {
                        drops(fs)?;
                        fs.write(handle.0, PlainOffset(offset), &data, false).map(|()| data.len() as u32)
                    };
                    return self
                        .finish(timed, Err(Error::NeedKey(need)), act, move |result| give_written(result, reply));
                }
                Err(error) => return reply.error(self.number(&error)),
            }
        }
        self.note_request();
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
                self.finish(timed, Err(Error::NeedKey(need)), act, move |result| give_written(result, reply));
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
            let timed = self.timed(Operation::Flush);
            self.empty(timed, move |fs| fs.flush(handle.0), reply);
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
        let timed = self.timed(Operation::Opendir);
        let act = move |fs: &Fs| fs.open_directory(ino.0);
        self.finish(timed, act(&self.fs), act, move |result| match result {
            Ok(handle) => reply.opened(FileHandle(handle), FopenFlags::empty()),
            Err(number) => reply.error(number),
        });
    }

    fn readdir(&self, _request: &Request, _ino: INodeNo, handle: FileHandle, offset: u64, reply: ReplyDirectory) {
        let timed = self.timed(Operation::Readdir);
        let reply = Arc::new(Mutex::new(Some(reply)));
        let filled = Arc::clone(&reply);
        let act = move |fs: &Fs| {
            let mut reply = filled.lock();
            let Some(reply) = reply.as_mut() else { return Ok(()) };
            let result = fs.list(handle.0, offset, false, |listed| {
                let name = OsStr::from_bytes(&listed.name);
                !reply.add(INodeNo(listed.ino), listed.next, convert::file_type(listed.kind), name)
            });
            Self::unless_closed(fs, result)
        };
        self.finish(timed, act(&self.fs), act, move |result| match (reply.lock().take(), result) {
            (Some(reply), Ok(())) => reply.ok(),
            (Some(reply), Err(number)) => reply.error(number),
            (None, _) => (),
        });
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
        let timed = self.timed(Operation::Fsyncdir);
        self.empty(timed, move |fs| fs.sync_directory(ino.0), reply);
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
        let timed = self.timed(Operation::Setxattr);
        let how = match flags {
            0 => SetXattr::Any,
            libc::XATTR_CREATE => SetXattr::Create,
            libc::XATTR_REPLACE => SetXattr::Replace,
            _ => return reply.error(Errno::EINVAL),
        };
        let (name, value) = (name.as_bytes().to_vec(), zeroize::Zeroizing::new(value.to_vec()));
        let caller = Caller::of(request);
        let act = move |fs: &Fs| {
            fs.set_xattr(ino.0, &name, &value, how)?;
            if name == b"system.posix_acl_access" {
                fs.drop_setgid(ino.0, |group| caller.keeps_setgid(group))?;
            }
            Ok(())
        };
        self.empty(timed, act, reply);
    }

    fn getxattr(&self, _request: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let timed = self.timed(Operation::Getxattr);
        if Wash::owns(ino.0) {
            return reply.error(Errno::NO_XATTR);
        }
        let name = name.as_bytes().to_vec();
        let act = move |fs: &Fs| Self::unless_closed(fs, fs.xattr(ino.0, &name));
        self.finish(timed, act(&self.fs), act, move |result| match result {
            Ok(Some(value)) => reply_xattr(&value, size, reply),
            Ok(None) => reply.error(Errno::NO_XATTR),
            Err(number) => reply.error(number),
        });
    }

    fn listxattr(&self, request: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let timed = self.timed(Operation::Listxattr);
        let is_root = request.uid() == 0;
        let act = move |fs: &Fs| Self::unless_closed(fs, fs.xattr_names(ino.0));
        self.finish(timed, act(&self.fs), act, move |result| match result {
            Ok(names) => {
                let shown = |name: &Vec<u8>| is_root || !name.starts_with(b"trusted.");
                let list: Vec<u8> = names.into_iter().filter(shown).flat_map(|name| [name, vec![0]].concat()).collect();
                reply_xattr(&list, size, reply);
            }
            Err(number) => reply.error(number),
        });
    }

    fn removexattr(&self, _request: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let timed = self.timed(Operation::Removexattr);
        let name = name.as_bytes().to_vec();
        self.empty(timed, move |fs| fs.remove_xattr(ino.0, &name), reply);
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
        let drops = self.dropping(ino.0, move |group| caller.keeps(group));
        let act = move |fs: &Fs| {
            drops(fs)?;
            fs.allocate(handle.0, PlainOffset(offset), length, how)
        };
        self.empty(timed, act, reply);
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
