//! The directory behind the mirror, in the kernel's terms.

use fuser::{FileAttr, FileHandle, FileType, INodeNo, OpenFlags, Request, TimeOrNow};
use parking_lot::RwLock;
use rustix::fs::{AtFlags, CWD, Dir, Gid, Mode, OFlags, Stat, Timespec, Uid};
use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, UNIX_EPOCH};

pub type Result<T> = std::result::Result<T, rustix::io::Errno>;

/// An inode that the kernel knows.
struct Node {
    /// Opened with `O_PATH`.
    place: Arc<OwnedFd>,
    lookups: u64,
}

pub struct Listed {
    pub name: Vec<u8>,
    pub ino: u64,
    pub kind: FileType,
}

/// What the kernel has opened, by handle.
pub struct Handles<T> {
    open: RwLock<HashMap<u64, Arc<T>>>,
    next: AtomicU64,
}

impl<T> Handles<T> {
    pub fn new() -> Self {
        Self { open: RwLock::default(), next: AtomicU64::new(1) }
    }

    pub fn add(&self, value: T) -> FileHandle {
        let handle = self.next.fetch_add(1, Ordering::Relaxed);
        self.open.write().insert(handle, Arc::new(value));
        FileHandle(handle)
    }

    pub fn get(&self, handle: FileHandle) -> Result<Arc<T>> {
        self.open.read().get(&handle.0).map(Arc::clone).ok_or(rustix::io::Errno::BADF)
    }

    pub fn remove(&self, handle: FileHandle) {
        self.open.write().remove(&handle.0);
    }
}

pub struct Mirror {
    pub root: Arc<OwnedFd>,
    nodes: RwLock<HashMap<u64, Node>>,
    pub files: Handles<OwnedFd>,
    pub directories: Handles<Vec<Listed>>,
}

impl Mirror {
    pub fn new(directory: &Path) -> Result<Self> {
        let root = rustix::fs::open(directory, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        Ok(Self { root: Arc::new(root), nodes: RwLock::default(), files: Handles::new(), directories: Handles::new() })
    }

    pub fn place(&self, ino: INodeNo) -> Result<Arc<OwnedFd>> {
        if ino == INodeNo::ROOT {
            return Ok(Arc::clone(&self.root));
        }
        self.nodes.read().get(&ino.0).map(|node| Arc::clone(&node.place)).ok_or(rustix::io::Errno::STALE)
    }

    /// A path that leads to an inode, for the calls that take no `O_PATH` descriptor.
    pub fn path(&self, ino: INodeNo) -> Result<(Arc<OwnedFd>, String)> {
        let place = self.place(ino)?;
        let path = format!("/proc/self/fd/{}", place.as_raw_fd());
        Ok((place, path))
    }

    /// One more reference of the kernel to what has this name.
    pub fn find(&self, parent: INodeNo, name: &[u8]) -> Result<FileAttr> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let place = rustix::fs::openat(self.place(parent)?, name, flags, Mode::empty())?;
        let attributes = attributes_of(&rustix::fs::fstat(&place)?);
        let mut nodes = self.nodes.write();
        nodes.entry(attributes.ino.0).or_insert_with(|| Node { place: Arc::new(place), lookups: 0 }).lookups += 1;
        Ok(attributes)
    }

    /// The kernel has dropped so many references.
    pub fn forget(&self, ino: INodeNo, lookups: u64) {
        let mut nodes = self.nodes.write();
        if let Some(node) = nodes.get_mut(&ino.0) {
            node.lookups = node.lookups.saturating_sub(lookups);
            if node.lookups == 0 {
                nodes.remove(&ino.0);
            }
        }
    }

    pub fn open_file(&self, ino: INodeNo, flags: OpenFlags) -> Result<OwnedFd> {
        let (_place, path) = self.path(ino)?;
        rustix::fs::open(path, kept(flags.0), Mode::empty())
    }

    /// Gives what was just made to whom it belongs, and to the kernel.
    pub fn made(&self, request: &Request, parent: INodeNo, name: &OsStr) -> Result<FileAttr> {
        if request.uid() != 0 || request.gid() != 0 {
            let (uid, gid) = (Uid::from_raw(request.uid()), Gid::from_raw(request.gid()));
            rustix::fs::chownat(self.place(parent)?, name.as_bytes(), Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
        }
        self.find(parent, name.as_bytes())
    }

    pub fn attributes(&self, ino: INodeNo) -> Result<FileAttr> {
        let attributes = attributes_of(&rustix::fs::fstat(self.place(ino)?)?);
        Ok(FileAttr { ino, ..attributes })
    }

    pub fn list(&self, ino: INodeNo) -> Result<Vec<Listed>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::openat(self.place(ino)?, ".", flags, Mode::empty())?;
        let entry = |entry: Result<rustix::fs::DirEntry>| {
            let entry = entry?;
            let kind = kind_of(entry.file_type());
            Ok(Listed { name: entry.file_name().to_bytes().to_vec(), ino: entry.ino(), kind })
        };
        Dir::new(directory)?.map(entry).collect()
    }

    #[expect(clippy::too_many_arguments, reason = "the library's own list")]
    pub fn change(
        &self,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
    ) -> Result<FileAttr> {
        let (place, path) = self.path(ino)?;
        if let Some(mode) = mode {
            rustix::fs::chmod(&path, Mode::from_raw_mode(mode & 0o7777))?;
        }
        if uid.is_some() || gid.is_some() {
            rustix::fs::chownat(&place, "", uid.map(Uid::from_raw), gid.map(Gid::from_raw), AtFlags::EMPTY_PATH)?;
        }
        if let Some(size) = size {
            rustix::fs::ftruncate(rustix::fs::open(&path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?, size)?;
        }
        if atime.is_some() || mtime.is_some() {
            let times = rustix::fs::Timestamps { last_access: timespec(atime), last_modification: timespec(mtime) };
            rustix::fs::utimensat(CWD, &path, &times, AtFlags::empty())?;
        }
        self.attributes(ino)
    }
}

/// How the kernel's flags are used here: it reads through files that are open for writing, appends by itself, and its
/// buffers are not aligned as `O_DIRECT` needs it.
pub fn kept(flags: i32) -> OFlags {
    let mut flags = OFlags::from_bits_retain(flags as u32) | OFlags::CLOEXEC;
    flags.remove(OFlags::APPEND | OFlags::DIRECT | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW);
    if flags.contains(OFlags::WRONLY) {
        flags.remove(OFlags::WRONLY);
        flags.insert(OFlags::RDWR);
    }
    flags
}

fn kind_of(kind: rustix::fs::FileType) -> FileType {
    match kind {
        rustix::fs::FileType::Directory => FileType::Directory,
        rustix::fs::FileType::Symlink => FileType::Symlink,
        rustix::fs::FileType::Fifo => FileType::NamedPipe,
        rustix::fs::FileType::Socket => FileType::Socket,
        rustix::fs::FileType::CharacterDevice => FileType::CharDevice,
        rustix::fs::FileType::BlockDevice => FileType::BlockDevice,
        _ => FileType::RegularFile,
    }
}

fn attributes_of(stat: &Stat) -> FileAttr {
    let time = |seconds: i64, nanoseconds: u64| {
        UNIX_EPOCH + Duration::new(seconds.unsigned_abs(), u32::try_from(nanoseconds).unwrap_or(0))
    };
    FileAttr {
        ino: INodeNo(stat.st_ino),
        size: stat.st_size as u64,
        blocks: stat.st_blocks as u64,
        atime: time(stat.st_atime, stat.st_atime_nsec),
        mtime: time(stat.st_mtime, stat.st_mtime_nsec),
        ctime: time(stat.st_ctime, stat.st_ctime_nsec),
        crtime: UNIX_EPOCH,
        kind: kind_of(rustix::fs::FileType::from_raw_mode(stat.st_mode)),
        perm: (stat.st_mode & 0o7777) as u16,
        nlink: stat.st_nlink as u32,
        uid: stat.st_uid,
        gid: stat.st_gid,
        rdev: stat.st_rdev as u32,
        blksize: 4096,
        flags: 0,
    }
}

fn timespec(time: Option<TimeOrNow>) -> Timespec {
    match time {
        None => Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT },
        Some(TimeOrNow::Now) => Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW },
        Some(TimeOrNow::SpecificTime(time)) => {
            let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
            Timespec { tv_sec: since.as_secs() as i64, tv_nsec: since.subsec_nanos().into() }
        }
    }
}
