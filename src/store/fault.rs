//! A store whose operations fail when they are told to. For tests.

use super::{Inode, Kind, RenameMode, Seek, SetTime, SetXattr, Space, Stat, Store, StoreDir, StoreFile, Visit};
use crate::units::StoredOffset;
use parking_lot::Mutex;
use std::any::Any;
use std::io;
use std::sync::Arc;

/// What goes wrong.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// Nothing is done, and this error number returned.
    Errno(i32),
    /// A write does half of its work and then fails with this error number; others do nothing.
    Half(i32),
    /// A read returns fewer bytes than there are; what is no read goes well.
    ShortRead,
}

/// When something goes wrong.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// The first operation that fails, counted from 0.
    pub at: u64,
    /// Whether all later ones fail too. What is full, or over quota, still removes names.
    pub lasting: bool,
    /// Reads are not counted, and do not fail.
    pub only_changes: bool,
    /// What goes wrong.
    pub fault: Fault,
}

/// Says which operations fail, and counts them.
#[derive(Clone, Default)]
pub struct Faults(Arc<Mutex<Counts>>);

#[derive(Default)]
struct Counts {
    plan: Option<Plan>,
    paused: bool,
    passed: u64,
    failed: u64,
}

impl Faults {
    /// From now on, operations are counted from 0 and go as planned.
    pub fn plan(&self, plan: Option<Plan>) {
        *self.0.lock() = Counts { plan, ..Counts::default() };
    }

    /// While paused, operations are not counted and do not fail.
    pub fn pause(&self, paused: bool) {
        self.0.lock().paused = paused;
    }

    /// How many operations failed since.
    pub fn failed(&self) -> u64 {
        self.0.lock().failed
    }

    fn next(&self, changes: bool) -> Option<Fault> {
        let mut counts = self.0.lock();
        let plan = counts.plan?;
        if counts.paused || (plan.only_changes && !changes) {
            return None;
        }
        counts.passed += 1;
        let now = counts.passed - 1;
        let due = now == plan.at || (plan.lasting && now > plan.at);
        counts.failed += u64::from(due);
        due.then_some(plan.fault)
    }

    fn pass(&self, changes: bool) -> io::Result<()> {
        match self.next(changes) {
            Some(Fault::Errno(number) | Fault::Half(number)) => Err(io::Error::from_raw_os_error(number)),
            Some(Fault::ShortRead) | None => Ok(()),
        }
    }

    fn pass_removal(&self) -> io::Result<()> {
        let full = self.0.lock().plan.is_some_and(|plan| {
            let number = match plan.fault {
                Fault::Errno(number) | Fault::Half(number) => number,
                Fault::ShortRead => 0,
            };
            plan.lasting && matches!(number, libc::ENOSPC | libc::EDQUOT)
        });
        if full { Ok(()) } else { self.pass(true) }
    }

    fn wrap<T: ?Sized>(&self, inner: Arc<T>) -> Arc<Faulty<T>> {
        Arc::new(Faulty { inner, faults: self.clone() })
    }
}

/// A store with faults.
pub struct FaultStore {
    inner: Arc<dyn Store>,
    faults: Faults,
}

impl FaultStore {
    /// Around another store.
    pub fn new(inner: Arc<dyn Store>, faults: Faults) -> Self {
        Self { inner, faults }
    }
}

impl Store for FaultStore {
    fn root(&self) -> Arc<dyn StoreDir> {
        self.faults.wrap(self.inner.root())
    }

    fn sync_all(&self) -> io::Result<()> {
        self.faults.pass(true)?;
        self.inner.sync_all()
    }

    fn space(&self) -> io::Result<Space> {
        self.faults.pass(false)?;
        self.inner.space()
    }

    fn keeps_order(&self) -> bool {
        self.inner.keeps_order()
    }
}

struct Faulty<T: ?Sized> {
    inner: Arc<T>,
    faults: Faults,
}

struct FaultyInode {
    inner: Box<dyn Inode>,
    faults: Faults,
}

macro_rules! forward_inode {
    ($self:ident, $inner:expr) => {
        fn stat(&$self) -> io::Result<Stat> {
            $self.faults.pass(false)?;
            $inner.stat()
        }

        fn set_permissions(&$self, permissions: u32) -> io::Result<()> {
            $self.faults.pass(true)?;
            $inner.set_permissions(permissions)
        }

        fn set_owner(&$self, uid: Option<u32>, gid: Option<u32>) -> io::Result<()> {
            $self.faults.pass(true)?;
            $inner.set_owner(uid, gid)
        }

        fn set_times(&$self, atime: SetTime, mtime: SetTime) -> io::Result<()> {
            $self.faults.pass(true)?;
            $inner.set_times(atime, mtime)
        }

        fn xattr(&$self, name: &[u8]) -> io::Result<Option<Vec<u8>>> {
            $self.faults.pass(false)?;
            $inner.xattr(name)
        }

        fn xattr_names(&$self) -> io::Result<Vec<Vec<u8>>> {
            $self.faults.pass(false)?;
            $inner.xattr_names()
        }

        fn set_xattr(&$self, name: &[u8], value: &[u8], how: SetXattr) -> io::Result<()> {
            $self.faults.pass(true)?;
            $inner.set_xattr(name, value, how)
        }

        fn remove_xattr(&$self, name: &[u8]) -> io::Result<()> {
            $self.faults.pass(true)?;
            $inner.remove_xattr(name)
        }

        fn open_file(&$self, writable: bool) -> io::Result<Arc<dyn StoreFile>> {
            $self.faults.pass(false)?;
            Ok(Arc::new(Faulty { inner: $inner.open_file(writable)?, faults: $self.faults.clone() }))
        }
    };
}

impl Inode for FaultyInode {
    forward_inode!(self, self.inner);
}

impl Inode for Faulty<dyn StoreFile> {
    forward_inode!(self, self.inner.inode());
}

impl Inode for Faulty<dyn StoreDir> {
    forward_inode!(self, self.inner.inode());
}

impl StoreFile for Faulty<dyn StoreFile> {
    fn read_at(&self, buffer: &mut [u8], offset: StoredOffset) -> io::Result<usize> {
        let len = match self.faults.next(false) {
            Some(Fault::ShortRead) => buffer.len() / 2,
            Some(Fault::Errno(number) | Fault::Half(number)) => return Err(io::Error::from_raw_os_error(number)),
            None => buffer.len(),
        };
        self.inner.read_at(&mut buffer[..len], offset)
    }

    fn write_at(&self, bytes: &[u8], offset: StoredOffset) -> io::Result<()> {
        match self.faults.next(true) {
            Some(Fault::Half(number)) => {
                self.inner.write_at(&bytes[..bytes.len() / 2], offset)?;
                Err(io::Error::from_raw_os_error(number))
            }
            Some(Fault::Errno(number)) => Err(io::Error::from_raw_os_error(number)),
            Some(Fault::ShortRead) | None => self.inner.write_at(bytes, offset),
        }
    }

    fn set_len(&self, len: StoredOffset) -> io::Result<()> {
        self.faults.pass(true)?;
        self.inner.set_len(len)
    }

    fn punch(&self, offset: StoredOffset, len: u64) -> io::Result<()> {
        self.faults.pass(true)?;
        self.inner.punch(offset, len)
    }

    fn reserve(&self, offset: StoredOffset, len: u64) -> io::Result<()> {
        self.faults.pass(true)?;
        self.inner.reserve(offset, len)
    }

    fn seek(&self, offset: StoredOffset, what: Seek) -> io::Result<Option<StoredOffset>> {
        self.faults.pass(false)?;
        self.inner.seek(offset, what)
    }

    fn sync(&self, data_only: bool) -> io::Result<()> {
        self.faults.pass(true)?;
        self.inner.sync(data_only)
    }

    fn inode(&self) -> &dyn Inode {
        self
    }
}

/// The directory below, which knows its own kind only.
fn inner(dir: &dyn StoreDir) -> &dyn StoreDir {
    dir.as_any().downcast_ref::<Faulty<dyn StoreDir>>().map_or(dir, |dir| &*dir.inner)
}

impl StoreDir for Faulty<dyn StoreDir> {
    fn inode(&self) -> &dyn Inode {
        self
    }

    fn stat(&self, name: &[u8]) -> io::Result<Stat> {
        self.faults.pass(false)?;
        self.inner.stat(name)
    }

    fn entry(&self, name: &[u8]) -> io::Result<Box<dyn Inode>> {
        self.faults.pass(false)?;
        Ok(Box::new(FaultyInode { inner: self.inner.entry(name)?, faults: self.faults.clone() }))
    }

    fn open_file(&self, name: &[u8], writable: bool) -> io::Result<Arc<dyn StoreFile>> {
        self.faults.pass(false)?;
        Ok(self.faults.wrap(self.inner.open_file(name, writable)?))
    }

    fn create_file(&self, name: &[u8], permissions: u32) -> io::Result<Arc<dyn StoreFile>> {
        self.faults.pass(true)?;
        Ok(self.faults.wrap(self.inner.create_file(name, permissions)?))
    }

    fn open_dir(&self, name: &[u8]) -> io::Result<Arc<dyn StoreDir>> {
        self.faults.pass(false)?;
        Ok(self.faults.wrap(self.inner.open_dir(name)?))
    }

    fn make_dir(&self, name: &[u8], permissions: u32) -> io::Result<()> {
        self.faults.pass(true)?;
        self.inner.make_dir(name, permissions)
    }

    fn make_node(&self, name: &[u8], kind: Kind, permissions: u32, rdev: u64) -> io::Result<()> {
        self.faults.pass(true)?;
        self.inner.make_node(name, kind, permissions, rdev)
    }

    fn make_symlink(&self, name: &[u8], target: &[u8]) -> io::Result<()> {
        self.faults.pass(true)?;
        self.inner.make_symlink(name, target)
    }

    fn read_symlink(&self, name: &[u8]) -> io::Result<Vec<u8>> {
        self.faults.pass(false)?;
        self.inner.read_symlink(name)
    }

    fn link(&self, name: &[u8], to: &dyn StoreDir, to_name: &[u8]) -> io::Result<()> {
        self.faults.pass(true)?;
        self.inner.link(name, inner(to), to_name)
    }

    fn rename(&self, name: &[u8], to: &dyn StoreDir, to_name: &[u8], mode: RenameMode) -> io::Result<()> {
        self.faults.pass(true)?;
        self.inner.rename(name, inner(to), to_name, mode)
    }

    fn unlink(&self, name: &[u8]) -> io::Result<()> {
        self.faults.pass_removal()?;
        self.inner.unlink(name)
    }

    fn remove_dir(&self, name: &[u8]) -> io::Result<()> {
        self.faults.pass_removal()?;
        self.inner.remove_dir(name)
    }

    fn each(&self, act: &mut Visit<'_>) -> io::Result<()> {
        self.faults.pass(false)?;
        self.inner.each(act)
    }

    fn sync(&self) -> io::Result<()> {
        self.faults.pass(true)?;
        self.inner.sync()
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
