//! A volume's tree as applications see it, as if it were a directory of the host: names are looked up and forgotten one by
//! one, as the kernel does, and keys are fetched when they are needed. Offsets and lengths are those of the plaintext,
//! in the types of the trait.

use super::inode::Node;
use crate::fs::data::Allocate;
use crate::fs::{Changes, Creator, Entry, Error, Fs, ROOT};
use crate::kms::KmsErrorKind;
use crate::store::{DirEntry, Inode, Kind, RenameMode, Seek, Stat, StoreDir, StoreFile, Visit};
use crate::units::{PlainOffset, StoredOffset};
use parking_lot::RwLock;
use std::any::Any;
use std::fmt;
use std::io;
use std::sync::{Arc, Weak};

/// Locks for so many groups of directories.
const LOCKS: usize = 64;

/// A volume without FUSE.
pub struct Plain {
    pub(super) fs: Fs,
    /// What the kernel's lock of each directory does: nobody looks into one while it changes.
    names: [RwLock<()>; LOCKS],
    /// Who owns what is made, before it is given to somebody else.
    owner: (u32, u32),
}

/// The content of a file is not what was written. The source of an [`io::Error`].
#[derive(Debug)]
pub struct Damaged;

impl fmt::Display for Damaged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("it is damaged, or was tampered with")
    }
}

impl std::error::Error for Damaged {}

/// A key is needed and cannot be had. The source of an [`io::Error`].
#[derive(Debug)]
pub struct KeyGone(pub KmsErrorKind);

impl fmt::Display for KeyGone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            KmsErrorKind::Refused => f.write_str("the KMS refuses a key that is needed"),
            _ => f.write_str("the KMS does not give a key that is needed"),
        }
    }
}

impl std::error::Error for KeyGone {}

fn sorted(error: Error) -> io::Error {
    match error {
        Error::Damaged => io::Error::new(io::ErrorKind::InvalidData, Damaged),
        Error::Refused => io::Error::other(KeyGone(KmsErrorKind::Refused)),
        Error::Unreachable | Error::Locked(_) | Error::Draining | Error::NeedKey(_) => {
            io::Error::other(KeyGone(KmsErrorKind::Unreachable))
        }
        Error::Stale => io::Error::from_raw_os_error(libc::ESTALE),
        Error::Errno(number) => io::Error::from_raw_os_error(number),
    }
}

impl Plain {
    /// The tree of this volume.
    pub fn new(fs: Fs) -> Arc<Self> {
        let owner = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        Arc::new(Self { fs, names: std::array::from_fn(|_| RwLock::default()), owner })
    }

    /// Its root directory.
    pub fn root(self: &Arc<Self>) -> Arc<dyn StoreDir> {
        Dir::new(Arc::clone(self), ROOT, None)
    }

    /// The volume itself.
    pub fn fs(&self) -> &Fs {
        &self.fs
    }

    /// Makes durable what was done so far.
    ///
    /// # Errors
    /// The store's; that a key cannot be had.
    pub fn commit(&self) -> io::Result<()> {
        self.done(Fs::commit_all)
    }

    /// Calls again when the key is there, as whoever serves the kernel does.
    pub(super) fn done<T>(&self, act: impl Fn(&Fs) -> Result<T, Error>) -> io::Result<T> {
        loop {
            match act(&self.fs) {
                Err(Error::NeedKey(need)) => self.fs.fetch(&need).map_err(sorted)?,
                other => return other.map_err(sorted),
            }
        }
    }

    fn creator(&self, permissions: u32) -> Creator {
        Creator { uid: self.owner.0, gid: self.owner.1, permissions, umask: 0 }
    }
}

/// The attributes as those of the plaintext.
pub(super) fn seen(entry: &Entry) -> Stat {
    Stat { len: StoredOffset(entry.len.0), ..entry.stat }
}

/// A directory. What is below it keeps it known.
pub(super) struct Dir {
    me: Weak<Self>,
    node: Node,
}

impl Dir {
    fn new(tree: Arc<Plain>, ino: u64, above: Option<Arc<Self>>) -> Arc<Self> {
        Arc::new_cyclic(|me| Self { me: Weak::clone(me), node: Node::new(tree, ino, above) })
    }

    fn tree(&self) -> &Arc<Plain> {
        &self.node.tree
    }

    fn lock(&self) -> &RwLock<()> {
        &self.tree().names[self.node.ino as usize % LOCKS]
    }

    /// Something that was looked up or made, known until it is dropped.
    fn known(&self, entry: &Entry) -> Node {
        Node::new(Arc::clone(self.tree()), entry.stat.ino, self.me.upgrade())
    }

    fn lookup(&self, name: &[u8]) -> io::Result<(Entry, Node)> {
        let _shared = self.lock().read();
        let entry = self.tree().done(|fs| fs.lookup(self.node.ino, name))?;
        Ok((entry, self.known(&entry)))
    }

    fn make(&self, act: impl Fn(&Fs, u64) -> Result<Entry, Error>) -> io::Result<()> {
        let _alone = self.lock().write();
        let entry = self.tree().done(|fs| act(fs, self.node.ino))?;
        drop(self.known(&entry));
        Ok(())
    }
}

impl StoreDir for Dir {
    fn inode(&self) -> &dyn Inode {
        &self.node
    }

    fn stat(&self, name: &[u8]) -> io::Result<Stat> {
        Ok(seen(&self.lookup(name)?.0))
    }

    fn entry(&self, name: &[u8]) -> io::Result<Box<dyn Inode>> {
        Ok(Box::new(self.lookup(name)?.1))
    }

    fn open_file(&self, name: &[u8], writable: bool) -> io::Result<Arc<dyn StoreFile>> {
        let (entry, node) = self.lookup(name)?;
        match entry.stat.kind {
            Kind::File => node.open_file(writable),
            Kind::Directory => Err(io::Error::from_raw_os_error(libc::EISDIR)),
            _ => Err(io::Error::from_raw_os_error(libc::ESTALE)),
        }
    }

    fn create_file(&self, name: &[u8], permissions: u32) -> io::Result<Arc<dyn StoreFile>> {
        let _alone = self.lock().write();
        let creator = self.tree().creator(permissions);
        let (entry, handle) = self.tree().done(|fs| fs.create(self.node.ino, name, creator))?;
        Ok(Arc::new(File { node: self.known(&entry), handle }))
    }

    fn open_dir(&self, name: &[u8]) -> io::Result<Arc<dyn StoreDir>> {
        let _shared = self.lock().read();
        let entry = self.tree().done(|fs| fs.lookup(self.node.ino, name))?;
        let dir = Self::new(Arc::clone(self.tree()), entry.stat.ino, self.me.upgrade());
        if entry.stat.kind == Kind::Directory { Ok(dir) } else { Err(io::Error::from_raw_os_error(libc::ENOTDIR)) }
    }

    fn make_dir(&self, name: &[u8], permissions: u32) -> io::Result<()> {
        self.make(|fs, ino| fs.make_directory(ino, name, self.tree().creator(permissions)))
    }

    fn make_node(&self, name: &[u8], kind: Kind, permissions: u32, rdev: u64) -> io::Result<()> {
        self.make(|fs, ino| fs.make_node(ino, name, kind, rdev, self.tree().creator(permissions)))
    }

    fn make_symlink(&self, name: &[u8], target: &[u8]) -> io::Result<()> {
        self.make(|fs, ino| fs.make_symlink(ino, name, target, self.tree().creator(0o777)))
    }

    fn read_symlink(&self, name: &[u8]) -> io::Result<Vec<u8>> {
        let (entry, _node) = self.lookup(name)?;
        self.tree().done(|fs| fs.read_symlink(entry.stat.ino))
    }

    fn link(&self, name: &[u8], to: &dyn StoreDir, to_name: &[u8]) -> io::Result<()> {
        let to = to.as_any().downcast_ref::<Self>().ok_or_else(|| io::Error::from_raw_os_error(libc::EXDEV))?;
        let (entry, _node) = self.lookup(name)?;
        to.make(|fs, ino| fs.link(entry.stat.ino, ino, to_name))
    }

    fn rename(&self, name: &[u8], to: &dyn StoreDir, to_name: &[u8], mode: RenameMode) -> io::Result<()> {
        let to = to.as_any().downcast_ref::<Self>().ok_or_else(|| io::Error::from_raw_os_error(libc::EXDEV))?;
        let (first, second) = (self.node.ino as usize % LOCKS, to.node.ino as usize % LOCKS);
        let names = &self.tree().names;
        // In one order, and each once.
        let _first = names[first.min(second)].write();
        let _second = (first != second).then(|| names[first.max(second)].write());
        self.tree().done(|fs| fs.rename(self.node.ino, name, to.node.ino, to_name, mode))
    }

    fn unlink(&self, name: &[u8]) -> io::Result<()> {
        let _alone = self.lock().write();
        self.tree().done(|fs| fs.unlink(self.node.ino, name))
    }

    fn remove_dir(&self, name: &[u8]) -> io::Result<()> {
        let _alone = self.lock().write();
        self.tree().done(|fs| fs.remove_directory(self.node.ino, name))
    }

    fn each(&self, act: &mut Visit<'_>) -> io::Result<()> {
        self.list()?.iter().for_each(|entry| act(&entry.name, entry.ino, entry.kind));
        Ok(())
    }

    fn list(&self) -> io::Result<Vec<DirEntry>> {
        let _shared = self.lock().read();
        let handle = self.tree().done(|fs| fs.open_directory(self.node.ino))?;
        let listed = self.tree().done(|fs| {
            let mut entries = Vec::new();
            fs.list(handle, 0, false, |listed| {
                if listed.name != b"." && listed.name != b".." {
                    entries.push(DirEntry { name: listed.name.clone(), ino: listed.ino, kind: Some(listed.kind) });
                }
                true
            })?;
            Ok(entries)
        });
        self.tree().fs.release_directory(handle);
        listed
    }

    fn sync(&self) -> io::Result<()> {
        self.tree().done(|fs| fs.sync_directory(self.node.ino))
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// An open file.
pub(super) struct File {
    node: Node,
    handle: u64,
}

impl File {
    pub fn open(node: Node, writable: bool) -> io::Result<Arc<dyn StoreFile>> {
        let handle = node.tree.done(|fs| fs.open(node.ino, writable, false))?;
        Ok(Arc::new(Self { node, handle }))
    }

    fn done<T>(&self, act: impl Fn(&Fs, u64) -> Result<T, Error>) -> io::Result<T> {
        self.node.tree.done(|fs| act(fs, self.handle))
    }
}

impl Drop for File {
    fn drop(&mut self) {
        // What could not be stored is tried again with the next commit, which says so.
        let _ = self.done(Fs::flush);
        self.node.tree.fs.release(self.handle);
    }
}

impl StoreFile for File {
    fn read_at(&self, buffer: &mut [u8], offset: StoredOffset) -> io::Result<usize> {
        let mut out = zeroize::Zeroizing::new(Vec::with_capacity(buffer.len()));
        loop {
            match self.node.tree.fs.read(self.handle, PlainOffset(offset.0), buffer.len(), &mut out) {
                Err(Error::NeedKey(need)) => self.node.tree.fs.fetch(&need).map_err(sorted)?,
                other => break other.map_err(sorted)?,
            }
        }
        buffer[..out.len()].copy_from_slice(&out);
        Ok(out.len())
    }

    fn write_at(&self, bytes: &[u8], offset: StoredOffset) -> io::Result<()> {
        self.done(|fs, handle| fs.write(handle, PlainOffset(offset.0), bytes, false))
    }

    fn set_len(&self, len: StoredOffset) -> io::Result<()> {
        let changes = Changes { len: Some(PlainOffset(len.0)), ..Changes::default() };
        self.node.tree.done(|fs| fs.change(self.node.ino, &changes)).map(drop)
    }

    fn punch(&self, offset: StoredOffset, len: u64) -> io::Result<()> {
        self.done(|fs, handle| fs.allocate(handle, PlainOffset(offset.0), len, Allocate::Punch))
    }

    fn reserve(&self, offset: StoredOffset, len: u64) -> io::Result<()> {
        self.done(|fs, handle| fs.allocate(handle, PlainOffset(offset.0), len, Allocate::Keep))
    }

    fn seek(&self, offset: StoredOffset, what: Seek) -> io::Result<Option<StoredOffset>> {
        match self.done(|fs, handle| fs.seek(handle, PlainOffset(offset.0), what)) {
            Ok(found) => Ok(Some(StoredOffset(found.0))),
            Err(error) if error.raw_os_error() == Some(libc::ENXIO) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn sync(&self, data_only: bool) -> io::Result<()> {
        self.done(|fs, handle| fs.sync(handle, data_only))
    }

    fn inode(&self) -> &dyn Inode {
        &self.node
    }

    fn uncache(&self) {
        // A hint.
        let _ = self.done(Fs::uncache);
    }
}
