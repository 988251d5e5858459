//! The seam to the backing directory: positional bytes, names, attributes, sync. [`dir`] is the real one.
//! Depends on `units` only. Invariant: nothing here follows a symbolic link, takes more than one path component or enters
//! another filesystem, so nothing that is planted in the tree can lead outside it.

pub mod dir;
#[cfg(test)]
pub mod fault;
#[cfg(test)]
pub mod mem;

use crate::units::StoredOffset;
use std::any::Any;
use std::io;
use std::sync::Arc;

/// A moment, in seconds and nanoseconds since 1970; negative seconds lie before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp {
    /// Whole seconds.
    pub seconds: i64,
    /// 0 to 999,999,999, always forwards from `seconds`.
    pub nanoseconds: u32,
}

impl Timestamp {
    /// This moment, as the kernel stamps inodes with it.
    pub fn now() -> Self {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::RealtimeCoarse);
        Self { seconds: now.tv_sec, nanoseconds: now.tv_nsec as u32 }
    }
}

/// What kind of thing an inode is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
}

/// The attributes of an inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// Inode number in the backing filesystem.
    pub ino: u64,
    /// What it is.
    pub kind: Kind,
    /// Permission bits with setuid, setgid and sticky: `mode & 0o7777`.
    pub permissions: u32,
    /// Hard links.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number of a device node.
    pub rdev: u64,
    /// Length of the stored bytes.
    pub len: StoredOffset,
    /// 512-byte units that it takes on disk.
    pub blocks: u64,
    /// Last access.
    pub atime: Timestamp,
    /// Last change of the content.
    pub mtime: Timestamp,
    /// Last change of the inode.
    pub ctime: Timestamp,
}

/// A time to set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetTime {
    /// Leave it.
    Keep,
    /// The moment of the call.
    Now,
    /// This moment.
    At(Timestamp),
}

/// An entry of a directory.
#[derive(Clone, Debug)]
pub struct DirEntry {
    /// Its name.
    pub name: Vec<u8>,
    /// Its inode number.
    pub ino: u64,
    /// What it is, where the filesystem tells with the name.
    pub kind: Option<Kind>,
}

/// How a rename treats an existing target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RenameMode {
    /// It is replaced.
    Replace,
    /// It is an error.
    NoReplace,
    /// The two change places.
    Exchange,
}

/// How an extended attribute is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetXattr {
    /// Whether it exists or not.
    Any,
    /// Only if it does not exist.
    Create,
    /// Only if it exists.
    Replace,
}

/// What a `seek` looks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seek {
    /// The next byte that is not in a hole.
    Data,
    /// The next byte that is in a hole, the end of the file at the latest.
    Hole,
}

/// The space and inodes of the backing filesystem, as in `statvfs`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Space {
    /// Unit of the block counts, in bytes.
    pub fragment: u32,
    /// Blocks in all.
    pub blocks: u64,
    /// Free blocks.
    pub free: u64,
    /// Free blocks for unprivileged users.
    pub available: u64,
    /// Inodes in all.
    pub files: u64,
    /// Free inodes.
    pub files_free: u64,
}

/// An open regular file. All methods may be called from several threads.
pub trait StoreFile: Send + Sync {
    /// Reads until the buffer is full or the file ends; returns how many bytes were read.
    fn read_at(&self, buffer: &mut [u8], offset: StoredOffset) -> io::Result<usize>;
    /// Writes all of the buffer.
    fn write_at(&self, bytes: &[u8], offset: StoredOffset) -> io::Result<()>;
    /// Cuts or extends (with a hole) to this length.
    fn set_len(&self, len: StoredOffset) -> io::Result<()>;
    /// Frees the disk space of a range, which then reads as zeros; the length stays.
    fn punch(&self, offset: StoredOffset, len: u64) -> io::Result<()>;
    /// Reserves disk space for a range without changing the length.
    fn reserve(&self, offset: StoredOffset, len: u64) -> io::Result<()>;
    /// The next data or hole at or after an offset; `None` at or behind the end, or for data in a last hole.
    fn seek(&self, offset: StoredOffset, what: Seek) -> io::Result<Option<StoredOffset>>;
    /// Makes content and length durable, and the other attributes too unless `data_only`.
    fn sync(&self, data_only: bool) -> io::Result<()>;
    /// The inode itself.
    fn inode(&self) -> &dyn Inode;
    /// Lets the system begin to read a range that is going to be read, together with others; a hint.
    fn will_read(&self, _offset: StoredOffset, _len: u64) {}
    /// Lets the system drop what it keeps of the content in memory, so that it is read from the disk again; a hint.
    fn uncache(&self) {}
}

/// An inode of any kind, whether it still has a name or not.
pub trait Inode: Send + Sync {
    /// Its attributes.
    fn stat(&self) -> io::Result<Stat>;
    /// Which filesystem it is on; inode numbers are those of one filesystem.
    fn device(&self) -> io::Result<u64> {
        Ok(0)
    }
    /// Sets the permission bits, setuid, setgid and sticky.
    fn set_permissions(&self, permissions: u32) -> io::Result<()>;
    /// Sets the owner, the group, or both.
    fn set_owner(&self, uid: Option<u32>, gid: Option<u32>) -> io::Result<()>;
    /// Sets access and modification time.
    fn set_times(&self, atime: SetTime, mtime: SetTime) -> io::Result<()>;
    /// The value of an extended attribute, `None` if it has no such one.
    fn xattr(&self, name: &[u8]) -> io::Result<Option<Vec<u8>>>;
    /// The names of all extended attributes.
    fn xattr_names(&self) -> io::Result<Vec<Vec<u8>>>;
    /// Sets an extended attribute.
    fn set_xattr(&self, name: &[u8], value: &[u8], how: SetXattr) -> io::Result<()>;
    /// Removes an extended attribute; an error if there is none.
    fn remove_xattr(&self, name: &[u8]) -> io::Result<()>;
    /// Opens it, which has to be a regular file, once more: for reading and, if asked, for writing.
    fn open_file(&self, writable: bool) -> io::Result<Arc<dyn StoreFile>>;
}

/// What is done with each entry of a directory: its name, inode number and kind.
pub type Visit<'a> = dyn FnMut(&[u8], u64, Option<Kind>) + 'a;

/// An open directory. Every name is one component; nothing follows symbolic links.
pub trait StoreDir: Send + Sync {
    /// The directory's own inode.
    fn inode(&self) -> &dyn Inode;
    /// The attributes of an entry.
    fn stat(&self, name: &[u8]) -> io::Result<Stat>;
    /// The inode of an entry, of any kind.
    fn entry(&self, name: &[u8]) -> io::Result<Box<dyn Inode>>;
    /// Opens a regular file, for reading and, if asked, for writing.
    fn open_file(&self, name: &[u8], writable: bool) -> io::Result<Arc<dyn StoreFile>>;
    /// Creates a regular file that must not exist, and opens it for reading and writing.
    fn create_file(&self, name: &[u8], permissions: u32) -> io::Result<Arc<dyn StoreFile>>;
    /// Opens a directory.
    fn open_dir(&self, name: &[u8]) -> io::Result<Arc<dyn StoreDir>>;
    /// Makes a directory.
    fn make_dir(&self, name: &[u8], permissions: u32) -> io::Result<()>;
    /// Makes a FIFO, socket or device node.
    fn make_node(&self, name: &[u8], kind: Kind, permissions: u32, rdev: u64) -> io::Result<()>;
    /// Makes a symbolic link.
    fn make_symlink(&self, name: &[u8], target: &[u8]) -> io::Result<()>;
    /// The target of a symbolic link.
    fn read_symlink(&self, name: &[u8]) -> io::Result<Vec<u8>>;
    /// Makes another name, in `to`, for the inode of an entry.
    fn link(&self, name: &[u8], to: &dyn StoreDir, to_name: &[u8]) -> io::Result<()>;
    /// Renames an entry into `to`, a directory of the same store.
    fn rename(&self, name: &[u8], to: &dyn StoreDir, to_name: &[u8], mode: RenameMode) -> io::Result<()>;
    /// Removes an entry that is not a directory.
    fn unlink(&self, name: &[u8]) -> io::Result<()>;
    /// Removes an empty directory.
    fn remove_dir(&self, name: &[u8]) -> io::Result<()>;
    /// Gives out name, inode number and kind (where the filesystem tells it with the name) of all entries but `.` and
    /// `..`, in the order of the filesystem.
    fn each(&self, act: &mut Visit<'_>) -> io::Result<()>;
    /// The same as a list.
    fn list(&self) -> io::Result<Vec<DirEntry>> {
        let mut entries = Vec::new();
        self.each(&mut |name, ino, kind| entries.push(DirEntry { name: name.to_vec(), ino, kind }))?;
        Ok(entries)
    }
    /// Makes the entries durable.
    fn sync(&self) -> io::Result<()>;
    /// For [`link`](Self::link) and [`rename`](Self::rename) to know their own kind again.
    fn as_any(&self) -> &dyn Any;
}

/// A backing directory.
pub trait Store: Send + Sync {
    /// The directory itself.
    fn root(&self) -> Arc<dyn StoreDir>;
    /// Makes everything durable that was written so far.
    fn sync_all(&self) -> io::Result<()>;
    /// The space left.
    fn space(&self) -> io::Result<Space>;
    /// Whether changes of names that are not durable yet come back after a crash in the order in which they were made. On
    /// btrfs they do not: a rename may be there without what was made in the directory before it.
    fn keeps_order(&self) -> bool;
}

/// A name for something in the making, or to be removed: unlikely to exist.
pub fn staging_name(prefix: &[u8]) -> Vec<u8> {
    [prefix, data_encoding::HEXLOWER.encode(&crate::crypto::random_id()).as_bytes()].concat()
}

/// Replaces a file's content so that a crash leaves the old or the new content, and returns when it is durable:
/// 1. write a new file beside it and sync it (a crash leaves a file in the making, which the next one ignores);
/// 2. rename it over the old one (a crash leaves the old or the new content);
/// 3. sync the directory.
pub fn replace_file(dir: &dyn StoreDir, name: &[u8], content: &[u8], permissions: u32) -> io::Result<()> {
    let temporary = staging_name(&[name, b".new-"].concat());
    let written = (|| {
        let file = dir.create_file(&temporary, permissions)?;
        file.write_at(content, StoredOffset(0))?;
        file.sync(false)?;
        dir.rename(&temporary, dir, name, RenameMode::Replace)
    })();
    if let Err(error) = written {
        // The first error is what matters; a file in the making is ignored by everyone.
        let _ = dir.unlink(&temporary);
        return Err(error);
    }
    dir.sync()
}
