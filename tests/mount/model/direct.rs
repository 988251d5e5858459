//! The tree itself, called as the kernel calls it: names are looked up one by one, and forgotten.

use super::Setup;
use super::system::{Allocation, Look, Name, Result, System};
use kmsfs::file::Context;
use kmsfs::format::Geometry;
use kmsfs::fs::data::Allocate;
use kmsfs::fs::rekey::{Plan, Progress, Rekey, Stopped};
use kmsfs::fs::volume::{FILES_PER_ENVELOPE, InitOptions, Volume, init};
use kmsfs::fs::{Changes, Creator, Entry, Error, Fs, ROOT};
use kmsfs::journal::recovery;
use kmsfs::kms::{ConnectOptions, Kms, connect};
use kmsfs::lease::{Leases, LockReason};
use kmsfs::store::dir::DirStore;
use kmsfs::store::{Kind, RenameMode, Seek, SetTime, SetXattr, Timestamp};
use kmsfs::units::PlainOffset;
use parking_lot::RwLock;
use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use tempfile::TempDir;

/// A small log, so that it comes round.
const LOG_LEN: u64 = 400 * 1024;

/// A volume without FUSE.
pub struct Direct {
    fs: Fs,
    /// What the kernel's lock of each directory does: nobody looks into one while it changes.
    names: RwLock<()>,
    place: TempDir,
    forgetful: bool,
}

/// An open file.
pub struct Open {
    handle: u64,
    ino: u64,
    looked: Vec<u64>,
}

/// What one operation has looked up.
struct Walk<'a> {
    direct: &'a Direct,
    looked: Vec<u64>,
}

impl Drop for Walk<'_> {
    fn drop(&mut self) {
        self.direct.forget(&self.looked);
    }
}

impl Walk<'_> {
    fn lookup(&mut self, parent: u64, name: Name) -> Result<Entry> {
        let entry = {
            let _shared = self.direct.names.read();
            self.direct.done(|fs| fs.lookup(parent, name.as_bytes()))?
        };
        self.looked.push(entry.stat.ino);
        Ok(entry)
    }

    /// Where a path leads, and what is there.
    fn walk(&mut self, path: &[Name]) -> Result<(u64, Kind)> {
        path.iter().try_fold((ROOT, Kind::Directory), |(at, kind), name| {
            is_directory(kind)?;
            let entry = self.lookup(at, name)?;
            Ok((entry.stat.ino, entry.stat.kind))
        })
    }

    fn parent<'a>(&mut self, path: &[&'a str]) -> Result<(u64, &'a [u8])>
    where
        'a: 'static,
    {
        let (name, above) = path.split_last().expect("not the root");
        let (at, kind) = self.walk(above)?;
        is_directory(kind)?;
        Ok((at, name.as_bytes()))
    }

    /// What is there, and `None` if nothing is, but its directory.
    fn find(&mut self, path: &[Name]) -> Result<Option<(u64, Kind)>> {
        self.parent(path)?;
        match self.walk(path) {
            Err(libc::ENOENT) => Ok(None),
            found => found.map(Some),
        }
    }
}

/// What the kernel says of a path that leads through something else; no link leads anywhere.
fn is_directory(kind: Kind) -> Result {
    match kind {
        Kind::Directory => Ok(()),
        Kind::Symlink => Err(libc::ENOENT),
        _ => Err(libc::ENOTDIR),
    }
}

fn creator(permissions: u32) -> Creator {
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    Creator { uid, gid, permissions, umask: 0 }
}

/// In memory, where that has all that is needed: nothing is cut off here, so nothing has to be durable.
fn place() -> TempDir {
    let has_attributes =
        |place: &TempDir| rustix::fs::setxattr(place.path(), "user.test", b"", rustix::fs::XattrFlags::empty()).is_ok();
    let in_memory = tempfile::Builder::new().prefix("kmsfs-model-").tempdir_in("/dev/shm").ok().filter(has_attributes);
    in_memory.unwrap_or_else(|| TempDir::with_prefix("kmsfs-model-").expect("a temporary directory"))
}

fn reference(place: &Path) -> String {
    format!("file:{}", place.join("kek").display())
}

fn kms(place: &Path) -> Arc<dyn Kms> {
    connect(&reference(place), &ConnectOptions::from_variables(|_| None)).expect("a key")
}

/// A process that mounts a volume which is there.
fn open(place: &Path) -> Fs {
    let path = place.join("volume");
    let volume = Volume::open(&path).expect("a volume");
    let record = volume.record();
    let (directory, tree) = (volume.journal().expect("a journal"), volume.tree().expect("a tree"));
    let (journal, found) = recovery::open(&*directory, &*tree, LOG_LEN).expect("a journal");
    assert!(found.damaged_at.is_empty());
    let context = Context {
        volume: record.id,
        geometry: Geometry::new(record.chunk_size),
        kek_floor: record.kek_floor,
        epoch_floor: record.epoch_floor,
        journal: Arc::new(journal),
        ledger: std::sync::OnceLock::new(),
        tags: kmsfs::file::TagCache::default(),
    };
    let kms = kms(place);
    let key = kms.unwrap(&record.newest().volume_key, record.id).expect("the volume's key").secret;
    let leases = Leases::new(kms, record.id, NonZeroUsize::new(100).expect("not zero"));
    let store = DirStore::open(&path).expect("a directory");
    Fs::new(volume, Arc::new(store), Arc::new(context), Arc::new(leases), key, false).expect("a tree")
}

impl Direct {
    /// A new volume.
    pub fn new(setup: Setup) -> Self {
        let place = place();
        let key = data_encoding::BASE64.encode(&[7; 32]);
        std::fs::write(place.path().join("kek"), key).expect("a key file");
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(place.path().join("kek"), mode).expect("permissions");
        let options = InitOptions {
            chunk_size: if setup.large_chunks { "64K" } else { "4K" }.parse().expect("a size"),
            files_per_envelope: FILES_PER_ENVELOPE,
            plain_names: setup.plain_names,
        };
        init(&place.path().join("volume"), &reference(place.path()), &*kms(place.path()), options).expect("a volume");
        Self { fs: open(place.path()), names: RwLock::default(), place, forgetful: setup.forgetful }
    }

    fn reopened(self, sweep: bool) -> Self {
        self.fs.close(LockReason::Operator, std::time::Duration::from_secs(1));
        drop(self.fs);
        let fs = open(self.place.path());
        if sweep {
            fs.sweep(&AtomicBool::new(false)).expect("all files can be looked at");
            assert!(!fs.wants_sweep());
        }
        Self { fs, ..self }
    }

    /// Calls again when the key is there, as whoever serves the kernel does.
    fn done<T>(&self, act: impl Fn(&Fs) -> kmsfs::fs::Result<T>) -> Result<T> {
        loop {
            match act(&self.fs) {
                Err(Error::NeedKey(need)) => self.fs.fetch(&need).expect("the key can be had"),
                other => return other.map_err(|error| kmsfs::errno::of(&error, self.fs.reason())),
            }
        }
    }

    /// The same for what changes a directory.
    fn alone<T>(&self, act: impl Fn(&Fs) -> kmsfs::fs::Result<T>) -> Result<T> {
        let _alone = self.names.write();
        self.done(act)
    }

    fn begin(&self) -> Walk<'_> {
        Walk { direct: self, looked: Vec::new() }
    }

    fn forget(&self, looked: &[u64]) {
        if self.forgetful {
            looked.iter().for_each(|ino| self.fs.forget(*ino, 1));
        }
    }

    fn look_at(entry: &Entry) -> Look {
        let stat = &entry.stat;
        let len = if stat.kind == Kind::Directory { 0 } else { entry.len.0 };
        let mtime = Some((stat.mtime.seconds, stat.mtime.nanoseconds));
        Look { kind: stat.kind, len, nlink: stat.nlink.into(), permissions: stat.permissions, mtime }
    }

    fn change(&self, ino: u64, changes: Changes) -> Result {
        self.done(|fs| fs.change(ino, &changes)).map(drop)
    }
}

impl System for Direct {
    type Handle = Open;

    fn create(&self, path: &[Name]) -> Result<Open> {
        let mut walk = self.begin();
        let (at, name) = walk.parent(path)?;
        let (entry, handle) = self.alone(|fs| fs.create(at, name, creator(0o644)))?;
        walk.looked.push(entry.stat.ino);
        Ok(Open { handle, ino: entry.stat.ino, looked: std::mem::take(&mut walk.looked) })
    }

    fn open(&self, path: &[Name], truncate: bool) -> Result<Open> {
        let mut walk = self.begin();
        let (ino, kind) = walk.walk(path)?;
        match kind {
            Kind::Directory => return Err(libc::EISDIR),
            Kind::Symlink => return Err(libc::ELOOP),
            _ => (),
        }
        let handle = self.done(|fs| fs.open(ino, true, truncate))?;
        Ok(Open { handle, ino, looked: std::mem::take(&mut walk.looked) })
    }

    fn close(&self, file: Open) {
        self.fs.flush(file.handle).expect("flushed");
        self.fs.release(file.handle);
        self.forget(&file.looked);
    }

    fn write(&self, file: &Open, at: u64, bytes: &[u8]) -> Result {
        self.done(|fs| fs.write(file.handle, PlainOffset(at), bytes, false))
    }

    fn read(&self, file: &Open, at: u64, len: usize) -> Result<Vec<u8>> {
        let mut out = Vec::new();
        self.fs.read(file.handle, PlainOffset(at), len, &mut out).expect("read");
        Ok(out)
    }

    fn set_len(&self, file: &Open, len: u64) -> Result {
        self.change(file.ino, Changes { len: Some(PlainOffset(len)), ..Changes::default() })
    }

    fn allocate(&self, file: &Open, how: Allocation, at: u64, len: u64) -> Result {
        let how = match how {
            Allocation::Extend => Allocate::Extend,
            Allocation::Keep => Allocate::Keep,
            Allocation::Punch => Allocate::Punch,
            Allocation::Zero => Allocate::Zero,
            Allocation::ZeroKeep => Allocate::ZeroKeep,
        };
        self.done(|fs| fs.allocate(file.handle, PlainOffset(at), len, how))
    }

    fn seek(&self, file: &Open, at: u64, data: bool) -> Result<u64> {
        let what = if data { Seek::Data } else { Seek::Hole };
        self.done(|fs| fs.seek(file.handle, PlainOffset(at), what)).map(|found| found.0)
    }

    fn copy(&self, from: &Open, at: u64, to: &Open, to_at: u64, len: u64) -> Result {
        // The kernel copies through its page cache.
        let bytes = self.read(from, at, len as usize)?;
        if from.ino == to.ino && to_at + bytes.len() as u64 > at && to_at < at + bytes.len() as u64 {
            return Err(libc::EINVAL);
        }
        if bytes.is_empty() { Ok(()) } else { self.write(to, to_at, &bytes) }
    }

    fn look_open(&self, file: &Open) -> Result<Look> {
        self.done(|fs| fs.attributes(file.ino)).map(|entry| Self::look_at(&entry))
    }

    fn sync(&self, file: &Open, data_only: bool) -> Result {
        self.done(|fs| fs.sync(file.handle, data_only))
    }

    fn make_directory(&self, path: &[Name]) -> Result {
        let mut walk = self.begin();
        let (at, name) = walk.parent(path)?;
        let entry = self.alone(|fs| fs.make_directory(at, name, creator(0o755)))?;
        walk.looked.push(entry.stat.ino);
        Ok(())
    }

    fn make_symlink(&self, path: &[Name], target: &[u8]) -> Result {
        let mut walk = self.begin();
        let (at, name) = walk.parent(path)?;
        let entry = self.alone(|fs| fs.make_symlink(at, name, target, creator(0o777)))?;
        walk.looked.push(entry.stat.ino);
        Ok(())
    }

    fn read_symlink(&self, path: &[Name]) -> Result<Vec<u8>> {
        let mut walk = self.begin();
        match walk.walk(path)? {
            (ino, Kind::Symlink) => self.done(|fs| fs.read_symlink(ino)),
            _ => Err(libc::EINVAL),
        }
    }

    fn remove_directory(&self, path: &[Name]) -> Result {
        let mut walk = self.begin();
        let (at, name) = walk.parent(path)?;
        let (_, kind) = walk.walk(path)?;
        if kind != Kind::Directory {
            return Err(libc::ENOTDIR);
        }
        self.alone(|fs| fs.remove_directory(at, name))
    }

    fn unlink(&self, path: &[Name]) -> Result {
        let mut walk = self.begin();
        let (at, name) = walk.parent(path)?;
        let (_, kind) = walk.walk(path)?;
        if kind == Kind::Directory {
            return Err(libc::EISDIR);
        }
        self.alone(|fs| fs.unlink(at, name))
    }

    fn link(&self, path: &[Name], to: &[Name]) -> Result {
        let mut walk = self.begin();
        let (ino, kind) = walk.walk(path)?;
        let (at, name) = walk.parent(to)?;
        if walk.find(to)?.is_some() {
            return Err(libc::EEXIST);
        }
        if kind == Kind::Directory {
            return Err(libc::EPERM);
        }
        let entry = self.alone(|fs| fs.link(ino, at, name))?;
        walk.looked.push(entry.stat.ino);
        Ok(())
    }

    fn rename(&self, path: &[Name], to: &[Name], mode: RenameMode) -> Result {
        let mut walk = self.begin();
        let ((at, name), (to_at, to_name)) = (walk.parent(path)?, walk.parent(to)?);
        let ((ino, kind), target) = (walk.walk(path)?, walk.find(to)?);
        match (mode, target) {
            (RenameMode::NoReplace, Some(_)) => return Err(libc::EEXIST),
            (RenameMode::Exchange, None) => return Err(libc::ENOENT),
            _ if to.starts_with(path) && to.len() > path.len() => return Err(libc::EINVAL),
            _ if path.starts_with(to) && path.len() > to.len() => {
                return Err(if mode == RenameMode::Exchange { libc::EINVAL } else { libc::ENOTEMPTY });
            }
            (_, Some((other, _))) if other == ino => return Ok(()),
            (RenameMode::Replace, Some((_, other))) => match (kind == Kind::Directory, other == Kind::Directory) {
                (true, false) => return Err(libc::ENOTDIR),
                (false, true) => return Err(libc::EISDIR),
                _ => (),
            },
            _ => (),
        }
        self.alone(|fs| fs.rename(at, name, to_at, to_name, mode))
    }

    fn xattrs(&self, path: &[Name]) -> Result<BTreeMap<String, Vec<u8>>> {
        let mut walk = self.begin();
        let (ino, _) = walk.walk(path)?;
        let names = self.done(|fs| fs.xattr_names(ino))?;
        let value = |name: Vec<u8>| {
            let value = self.done(|fs| fs.xattr(ino, &name))?.expect("it was listed");
            Ok((String::from_utf8(name).expect("UTF-8"), value))
        };
        names.into_iter().map(value).collect()
    }

    fn set_xattr(&self, path: &[Name], name: &str, value: &[u8], how: SetXattr) -> Result {
        let mut walk = self.begin();
        match walk.walk(path)? {
            (_, Kind::Symlink) => Err(libc::EPERM),
            (ino, _) => self.done(|fs| fs.set_xattr(ino, name.as_bytes(), value, how)),
        }
    }

    fn remove_xattr(&self, path: &[Name], name: &str) -> Result {
        let mut walk = self.begin();
        match walk.walk(path)? {
            (_, Kind::Symlink) => Err(libc::EPERM),
            (ino, _) => self.done(|fs| fs.remove_xattr(ino, name.as_bytes())),
        }
    }

    fn set_permissions(&self, path: &[Name], permissions: u32) -> Result {
        let mut walk = self.begin();
        match walk.walk(path)? {
            (_, Kind::Symlink) => Err(libc::ENOENT),
            (ino, _) => self.change(ino, Changes { permissions: Some(permissions), ..Changes::default() }),
        }
    }

    fn set_mtime(&self, path: &[Name], (seconds, nanoseconds): (i64, u32)) -> Result {
        let mut walk = self.begin();
        let (ino, _) = walk.walk(path)?;
        let mtime = Some(SetTime::At(Timestamp { seconds, nanoseconds }));
        self.change(ino, Changes { mtime, ..Changes::default() })
    }

    fn look(&self, path: &[Name]) -> Result<Look> {
        let mut walk = self.begin();
        let (ino, _) = walk.walk(path)?;
        self.done(|fs| fs.attributes(ino)).map(|entry| Self::look_at(&entry))
    }

    fn list(&self, path: &[Name]) -> Result<BTreeMap<String, Kind>> {
        let mut walk = self.begin();
        let (ino, kind) = walk.walk(path)?;
        is_directory(kind)?;
        let handle = self.done(|fs| fs.open_directory(ino))?;
        let (mut found, mut next) = (BTreeMap::new(), 0);
        // A few at a time, as the kernel does, and asked for again while there are more.
        loop {
            let (mut page, mut looked) = (Vec::new(), Vec::new());
            let _shared = self.names.read();
            let listed = self.fs.list(handle, next, self.forgetful, |listed| {
                if page.len() < 4 {
                    page.push((listed.name.clone(), listed.kind, listed.next));
                    looked.extend(listed.entry.as_ref().map(|entry| entry.stat.ino));
                    return true;
                }
                false
            });
            match listed {
                Ok(()) => (),
                Err(Error::NeedKey(need)) => {
                    self.fs.fetch(&need).expect("the key can be had");
                    continue;
                }
                Err(error) => {
                    self.fs.release_directory(handle);
                    return Err(kmsfs::errno::of(&error, self.fs.reason()));
                }
            }
            walk.looked.append(&mut looked);
            let Some((_, _, last)) = page.last() else { break };
            next = *last;
            for (name, kind, _) in page {
                if name != b"." && name != b".." {
                    found.insert(String::from_utf8(name).expect("a name of ours"), kind);
                }
            }
        }
        self.fs.release_directory(handle);
        Ok(found)
    }

    fn sync_all(&self) -> Result {
        self.done(Fs::commit_all)
    }

    fn rekey(&self, steps: u8) -> Result {
        let (stop, progress) = (AtomicBool::new(false), Progress::default());
        let taken = AtomicU8::new(0);
        let pace = |_| stop.store(taken.fetch_add(1, Ordering::Relaxed) + 1 >= steps, Ordering::Relaxed);
        let rekey = Rekey { fs: &self.fs, progress: &progress, stop: &stop, pace: &pace, wait: &|_| () };
        match rekey.run(&Plan::default()) {
            Err(Stopped::Asked) => Ok(()),
            outcome => {
                let outcome = outcome.expect("it comes to its end");
                assert!(outcome.floor_raised, "{outcome:?}");
                Ok(())
            }
        }
    }

    fn again(self) -> Self {
        self.fs.shut_down().expect("all can be committed");
        self.reopened(false)
    }

    fn killed(self, sweep: bool) -> Self {
        self.fs.commit_all().expect("all can be committed");
        self.reopened(sweep)
    }

    fn damaged(&self) -> u64 {
        self.fs.counters.damaged.load(Ordering::Relaxed)
    }
}
