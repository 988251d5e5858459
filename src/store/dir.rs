//! The real store: a directory of the host, through system calls relative to open directories. One component at
//! a time, never through a symbolic link and never into another filesystem, so that nothing planted in it leads outside,
//! and inode numbers are those of one filesystem.

use super::{
    Inode, Kind, RenameMode, Seek, SetTime, SetXattr, Space, Stat, Store, StoreDir, StoreFile, Timestamp, Visit,
};
use crate::units::StoredOffset;
use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, RenameFlags, ResolveFlags, Statx, StatxAttributes, StatxFlags, Timespec,
    Timestamps, XattrFlags,
};
use rustix::io::Errno;
use std::any::Any;
use std::ffi::CString;
use std::io;
use std::mem::MaybeUninit;
use std::num::NonZeroU64;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

/// The longest value of an extended attribute, and the longest list of names (`XATTR_SIZE_MAX`).
const MAX_XATTR: usize = 65536;

/// What `statfs` says of btrfs (`BTRFS_SUPER_MAGIC`).
const BTRFS: u32 = 0x9123_683E;

/// A directory of the host as a store.
pub struct DirStore {
    root: Arc<Dir>,
    btrfs: bool,
}

struct Dir {
    handle: Handle,
    /// The filesystem of the whole store: major and minor number.
    device: (u32, u32),
    access_times: AccessTimes,
}

/// Whether reading is to be seen in the access times of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccessTimes {
    /// As the host's filesystem is mounted.
    Kept,
    /// No, as far as it is ours or we are root.
    Left,
}
struct File(Handle);
/// An open file, directory, or (with `O_PATH`) inode of any kind.
struct Handle {
    fd: OwnedFd,
    /// Opened with `O_PATH`: several calls then have to go through `/proc/self/fd`.
    path_only: bool,
}

impl DirStore {
    /// Opens a directory of the host. Symbolic links in `path` itself are followed: it is the operator's.
    ///
    /// # Errors
    /// The system's, if it cannot be opened or is not a directory.
    pub fn open(path: &Path) -> io::Result<Self> {
        Self::open_with(path, AccessTimes::Kept)
    }

    /// The same, with or without access times.
    ///
    /// # Errors
    /// As for [`open`](Self::open).
    pub fn open_with(path: &Path, access_times: AccessTimes) -> io::Result<Self> {
        let fd = rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let device = rustix::fs::fstat(&fd)?.st_dev;
        let device = (rustix::fs::major(device), rustix::fs::minor(device));
        let btrfs = rustix::fs::fstatfs(&fd)?.f_type as u32 == BTRFS;
        Ok(Self { root: Arc::new(Dir { handle: Handle { fd, path_only: false }, device, access_times }), btrfs })
    }
}

impl Store for DirStore {
    fn root(&self) -> Arc<dyn StoreDir> {
        Arc::<Dir>::clone(&self.root)
    }

    fn sync_all(&self) -> io::Result<()> {
        Ok(rustix::fs::syncfs(&self.root.handle.fd)?)
    }

    fn space(&self) -> io::Result<Space> {
        let space = rustix::fs::fstatvfs(&self.root.handle.fd)?;
        Ok(Space {
            fragment: space.f_frsize as u32,
            blocks: space.f_blocks,
            free: space.f_bfree,
            available: space.f_bavail,
            files: space.f_files,
            files_free: space.f_ffree,
        })
    }

    fn keeps_order(&self) -> bool {
        !self.btrfs
    }
}

impl Dir {
    fn of(dir: &dyn StoreDir) -> io::Result<&Self> {
        dir.as_any().downcast_ref().ok_or_else(|| Errno::XDEV.into())
    }

    /// Opens with the flag that leaves access times as they are, if that is wanted and allowed.
    fn quietly(&self, open: impl Fn(OFlags) -> io::Result<OwnedFd>) -> io::Result<OwnedFd> {
        match self.access_times {
            AccessTimes::Kept => open(OFlags::empty()),
            AccessTimes::Left => open(OFlags::NOATIME).or_else(|_| open(OFlags::empty())),
        }
    }

    fn open_at(&self, name: &[u8], flags: OFlags) -> io::Result<OwnedFd> {
        component(name)?;
        let (directory, flags) = (&self.handle.fd, flags | OFlags::NOFOLLOW | OFlags::CLOEXEC);
        let within = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
        match rustix::fs::openat2(directory, name, flags, Mode::empty(), within) {
            // Older than Linux 5.6, or kept from us by a container. One component that is no link cannot lead outside
            // but by a mount, which `stat` finds.
            Err(Errno::NOSYS | Errno::PERM) => Ok(rustix::fs::openat(directory, name, flags, Mode::empty())?),
            other => Ok(other?),
        }
    }
}

/// The store is addressed one component at a time; anything else is a mistake of ours, refused here once more.
fn component(name: &[u8]) -> io::Result<()> {
    if name.is_empty() || name == b"." || name == b".." || name.contains(&b'/') {
        return Err(Errno::INVAL.into());
    }
    Ok(())
}

fn file_flags(writable: bool) -> OFlags {
    let access = if writable { OFlags::RDWR } else { OFlags::RDONLY };
    // NONBLOCK: a FIFO put in the file's place must not hang us; regular files ignore it.
    access | OFlags::NOCTTY | OFlags::NONBLOCK
}

fn regular(fd: OwnedFd) -> io::Result<Arc<dyn StoreFile>> {
    match FileType::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode) {
        FileType::RegularFile => Ok(Arc::new(File(Handle { fd, path_only: false }))),
        FileType::Directory => Err(Errno::ISDIR.into()),
        _ => Err(Errno::STALE.into()),
    }
}

impl StoreDir for Dir {
    fn inode(&self) -> &dyn Inode {
        &self.handle
    }

    fn stat(&self, name: &[u8]) -> io::Result<Stat> {
        component(name)?;
        let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
        let found = rustix::fs::statx(&self.handle.fd, name, flags, StatxFlags::BASIC_STATS)?;
        let stat = stat_from(&found);
        // What is mounted there, or a subvolume: its numbers may be those of other inodes of the store.
        let is_other = stat.kind == Kind::Directory && (found.stx_dev_major, found.stx_dev_minor) != self.device;
        if is_other || found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT) {
            return Err(Errno::XDEV.into());
        }
        Ok(stat)
    }

    fn entry(&self, name: &[u8]) -> io::Result<Box<dyn Inode>> {
        Ok(Box::new(Handle { fd: self.open_at(name, OFlags::PATH)?, path_only: true }))
    }

    fn open_file(&self, name: &[u8], writable: bool) -> io::Result<Arc<dyn StoreFile>> {
        let flags = file_flags(writable);
        regular(self.quietly(|quiet| self.open_at(name, flags | quiet))?)
    }

    fn create_file(&self, name: &[u8], permissions: u32) -> io::Result<Arc<dyn StoreFile>> {
        component(name)?;
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&self.handle.fd, name, flags, Mode::from_raw_mode(permissions))?;
        Ok(Arc::new(File(Handle { fd, path_only: false })))
    }

    fn open_dir(&self, name: &[u8]) -> io::Result<Arc<dyn StoreDir>> {
        let fd = self.open_at(name, OFlags::RDONLY | OFlags::DIRECTORY)?;
        Ok(Arc::new(Self { handle: Handle { fd, path_only: false }, ..*self }))
    }

    fn make_dir(&self, name: &[u8], permissions: u32) -> io::Result<()> {
        component(name)?;
        Ok(rustix::fs::mkdirat(&self.handle.fd, name, Mode::from_raw_mode(permissions))?)
    }

    fn make_node(&self, name: &[u8], kind: Kind, permissions: u32, rdev: u64) -> io::Result<()> {
        component(name)?;
        let kind = match kind {
            Kind::File => FileType::RegularFile,
            Kind::Fifo => FileType::Fifo,
            Kind::Socket => FileType::Socket,
            Kind::CharDevice => FileType::CharacterDevice,
            Kind::BlockDevice => FileType::BlockDevice,
            Kind::Directory | Kind::Symlink => return Err(Errno::INVAL.into()),
        };
        Ok(rustix::fs::mknodat(&self.handle.fd, name, kind, Mode::from_raw_mode(permissions), rdev)?)
    }

    fn make_symlink(&self, name: &[u8], target: &[u8]) -> io::Result<()> {
        component(name)?;
        Ok(rustix::fs::symlinkat(target, &self.handle.fd, name)?)
    }

    fn read_symlink(&self, name: &[u8]) -> io::Result<Vec<u8>> {
        component(name)?;
        Ok(rustix::fs::readlinkat(&self.handle.fd, name, Vec::new())?.into_bytes())
    }

    fn link(&self, name: &[u8], to: &dyn StoreDir, to_name: &[u8]) -> io::Result<()> {
        component(name)?;
        component(to_name)?;
        Ok(rustix::fs::linkat(&self.handle.fd, name, &Self::of(to)?.handle.fd, to_name, AtFlags::empty())?)
    }

    fn rename(&self, name: &[u8], to: &dyn StoreDir, to_name: &[u8], mode: RenameMode) -> io::Result<()> {
        component(name)?;
        component(to_name)?;
        let to = &Self::of(to)?.handle.fd;
        let flags = match mode {
            // Plain renameat works on filesystems that know no flags.
            RenameMode::Replace => return Ok(rustix::fs::renameat(&self.handle.fd, name, to, to_name)?),
            RenameMode::NoReplace => RenameFlags::NOREPLACE,
            RenameMode::Exchange => RenameFlags::EXCHANGE,
        };
        Ok(rustix::fs::renameat_with(&self.handle.fd, name, to, to_name, flags)?)
    }

    fn unlink(&self, name: &[u8]) -> io::Result<()> {
        component(name)?;
        Ok(rustix::fs::unlinkat(&self.handle.fd, name, AtFlags::empty())?)
    }

    fn remove_dir(&self, name: &[u8]) -> io::Result<()> {
        component(name)?;
        Ok(rustix::fs::unlinkat(&self.handle.fd, name, AtFlags::REMOVEDIR)?)
    }

    fn each(&self, act: &mut Visit<'_>) -> io::Result<()> {
        // A descriptor of its own: the position in a directory belongs to the open file description.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let open = |quiet| Ok(rustix::fs::openat(&self.handle.fd, c".", flags | quiet, Mode::empty())?);
        let fd = self.quietly(open)?;
        let mut buffer = [MaybeUninit::uninit(); 32 * 1024];
        let mut iterator = rustix::fs::RawDir::new(fd, &mut buffer);
        while let Some(entry) = iterator.next() {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                act(name, entry.ino(), kind_from(entry.file_type()));
            }
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(rustix::fs::fsync(&self.handle.fd)?)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl StoreFile for File {
    fn read_at(&self, buffer: &mut [u8], offset: StoredOffset) -> io::Result<usize> {
        let mut done = 0;
        while done < buffer.len() {
            match rustix::io::pread(&self.0.fd, &mut buffer[done..], offset.0 + done as u64) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(Errno::INTR) => (),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(done)
    }

    fn write_at(&self, bytes: &[u8], offset: StoredOffset) -> io::Result<()> {
        let mut done = 0;
        while done < bytes.len() {
            match rustix::io::pwrite(&self.0.fd, &bytes[done..], offset.0 + done as u64) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => done += count,
                Err(Errno::INTR) => (),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn set_len(&self, len: StoredOffset) -> io::Result<()> {
        Ok(rustix::fs::ftruncate(&self.0.fd, len.0)?)
    }

    fn punch(&self, offset: StoredOffset, len: u64) -> io::Result<()> {
        let flags = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
        Ok(rustix::fs::fallocate(&self.0.fd, flags, offset.0, len)?)
    }

    fn reserve(&self, offset: StoredOffset, len: u64) -> io::Result<()> {
        Ok(rustix::fs::fallocate(&self.0.fd, rustix::fs::FallocateFlags::KEEP_SIZE, offset.0, len)?)
    }

    fn seek(&self, offset: StoredOffset, what: Seek) -> io::Result<Option<StoredOffset>> {
        let position = match what {
            Seek::Data => rustix::fs::SeekFrom::Data(offset.0),
            Seek::Hole => rustix::fs::SeekFrom::Hole(offset.0),
        };
        match rustix::fs::seek(&self.0.fd, position) {
            Ok(found) => Ok(Some(StoredOffset(found))),
            Err(Errno::NXIO) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn sync(&self, data_only: bool) -> io::Result<()> {
        Ok(if data_only { rustix::fs::fdatasync(&self.0.fd) } else { rustix::fs::fsync(&self.0.fd) }?)
    }

    fn inode(&self) -> &dyn Inode {
        &self.0
    }

    fn will_read(&self, offset: StoredOffset, len: u64) {
        let _ = rustix::fs::fadvise(&self.0.fd, offset.0, NonZeroU64::new(len), rustix::fs::Advice::WillNeed);
    }

    fn uncache(&self) {
        let _ = rustix::fs::fadvise(&self.0.fd, 0, None, rustix::fs::Advice::DontNeed);
    }
}

impl Handle {
    /// A path that leads to this very inode, whatever its names are.
    fn proc_path(&self) -> CString {
        #[expect(clippy::expect_used, reason = "digits and slashes")]
        CString::new(format!("/proc/self/fd/{}", self.fd.as_raw_fd())).expect("no zero byte")
    }
}

impl AsFd for Handle {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Inode for Handle {
    fn stat(&self) -> io::Result<Stat> {
        Ok(stat_from(&rustix::fs::statx(&self.fd, c"", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS)?))
    }

    fn device(&self) -> io::Result<u64> {
        Ok(rustix::fs::fstat(&self.fd)?.st_dev)
    }

    fn set_permissions(&self, permissions: u32) -> io::Result<()> {
        let mode = Mode::from_raw_mode(permissions);
        Ok(if self.path_only {
            rustix::fs::chmodat(CWD, self.proc_path(), mode, AtFlags::empty())
        } else {
            rustix::fs::fchmod(&self.fd, mode)
        }?)
    }

    fn set_owner(&self, uid: Option<u32>, gid: Option<u32>) -> io::Result<()> {
        let uid = uid.map(rustix::fs::Uid::from_raw);
        let gid = gid.map(rustix::fs::Gid::from_raw);
        Ok(rustix::fs::chownat(&self.fd, c"", uid, gid, AtFlags::EMPTY_PATH)?)
    }

    fn set_times(&self, atime: SetTime, mtime: SetTime) -> io::Result<()> {
        let times = Timestamps { last_access: timespec(atime), last_modification: timespec(mtime) };
        Ok(if self.path_only {
            rustix::fs::utimensat(&self.fd, c"", &times, AtFlags::EMPTY_PATH)
        } else {
            rustix::fs::futimens(&self.fd, &times)
        }?)
    }

    fn xattr(&self, name: &[u8]) -> io::Result<Option<Vec<u8>>> {
        match read_whole(|value| self.getxattr(name, value)) {
            Ok(value) => Ok(Some(value)),
            Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn xattr_names(&self) -> io::Result<Vec<Vec<u8>>> {
        match read_whole(|names| self.listxattr(names)) {
            Ok(names) => {
                Ok(names.split(|byte| *byte == 0).filter(|name| !name.is_empty()).map(<[u8]>::to_vec).collect())
            }
            Err(Errno::OPNOTSUPP) => Ok(Vec::new()),
            Err(error) => Err(error.into()),
        }
    }

    fn set_xattr(&self, name: &[u8], value: &[u8], how: SetXattr) -> io::Result<()> {
        let flags = match how {
            SetXattr::Any => XattrFlags::empty(),
            SetXattr::Create => XattrFlags::CREATE,
            SetXattr::Replace => XattrFlags::REPLACE,
        };
        Ok(if self.path_only {
            rustix::fs::setxattr(self.proc_path(), name, value, flags)
        } else {
            rustix::fs::fsetxattr(&self.fd, name, value, flags)
        }?)
    }

    fn remove_xattr(&self, name: &[u8]) -> io::Result<()> {
        Ok(if self.path_only {
            rustix::fs::removexattr(self.proc_path(), name)
        } else {
            rustix::fs::fremovexattr(&self.fd, name)
        }?)
    }

    fn open_file(&self, writable: bool) -> io::Result<Arc<dyn StoreFile>> {
        // A device must not be opened, whatever comes of it.
        if self.stat()?.kind != Kind::File {
            return Err(Errno::STALE.into());
        }
        regular(rustix::fs::openat(CWD, self.proc_path(), file_flags(writable) | OFlags::CLOEXEC, Mode::empty())?)
    }
}

impl Handle {
    /// Copies the value; into an empty buffer, returns its length only, for which rustix has functions of their own.
    fn getxattr(&self, name: &[u8], value: &mut [u8]) -> Result<usize, Errno> {
        match (self.path_only, value.is_empty()) {
            (true, true) => rustix::fs::getxattr_query(self.proc_path(), name),
            (true, false) => rustix::fs::getxattr(self.proc_path(), name, value),
            (false, true) => rustix::fs::fgetxattr_query(&self.fd, name),
            (false, false) => rustix::fs::fgetxattr(&self.fd, name, value),
        }
    }

    /// The same for the list of names.
    fn listxattr(&self, names: &mut [u8]) -> Result<usize, Errno> {
        match (self.path_only, names.is_empty()) {
            (true, true) => rustix::fs::listxattr_query(self.proc_path()),
            (true, false) => rustix::fs::listxattr(self.proc_path(), names),
            (false, true) => rustix::fs::flistxattr_query(&self.fd),
            (false, false) => rustix::fs::flistxattr(&self.fd, names),
        }
    }
}

/// Calls `read` with a buffer that is large enough: nearly everything fits into the first.
fn read_whole(read: impl Fn(&mut [u8]) -> Result<usize, Errno>) -> Result<Vec<u8>, Errno> {
    let mut buffer = vec![0; 512];
    loop {
        match read(&mut buffer) {
            Ok(len) => {
                buffer.truncate(len);
                return Ok(buffer);
            }
            Err(Errno::RANGE) if buffer.len() < MAX_XATTR => buffer.resize(MAX_XATTR, 0),
            Err(error) => return Err(error),
        }
    }
}

fn timespec(time: SetTime) -> Timespec {
    match time {
        SetTime::Keep => Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT },
        SetTime::Now => Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW },
        SetTime::At(at) => Timespec { tv_sec: at.seconds, tv_nsec: at.nanoseconds.into() },
    }
}

fn stat_from(stat: &Statx) -> Stat {
    let time = |time: rustix::fs::StatxTimestamp| Timestamp { seconds: time.tv_sec, nanoseconds: time.tv_nsec };
    Stat {
        ino: stat.stx_ino,
        kind: kind_from(FileType::from_raw_mode(stat.stx_mode.into())).unwrap_or(Kind::File),
        permissions: u32::from(stat.stx_mode) & 0o7777,
        nlink: stat.stx_nlink,
        uid: stat.stx_uid,
        gid: stat.stx_gid,
        rdev: rustix::fs::makedev(stat.stx_rdev_major, stat.stx_rdev_minor),
        len: StoredOffset(stat.stx_size),
        blocks: stat.stx_blocks,
        atime: time(stat.stx_atime),
        mtime: time(stat.stx_mtime),
        ctime: time(stat.stx_ctime),
    }
}

fn kind_from(kind: FileType) -> Option<Kind> {
    match kind {
        FileType::RegularFile => Some(Kind::File),
        FileType::Directory => Some(Kind::Directory),
        FileType::Symlink => Some(Kind::Symlink),
        FileType::Fifo => Some(Kind::Fifo),
        FileType::Socket => Some(Kind::Socket),
        FileType::CharacterDevice => Some(Kind::CharDevice),
        FileType::BlockDevice => Some(Kind::BlockDevice),
        FileType::Unknown => None,
    }
}

#[cfg(test)]
mod tests;
