//! Opening, reading, writing and closing files.

use super::error::Need;
use super::keyring::Unlocked;
use super::*;
use crate::audit::Event;
use crate::crypto::derive::Dek;
use crate::file::{self, Damage, Found, Keys, Unverified};
use crate::format::header::Header;
use crate::journal::Target;
use crate::kms::Wrapped;
use crate::ledger::Seen;
use crate::store::{Seek, SetTime, Timestamp};
use crate::units::FileId;
use std::sync::atomic::Ordering::Relaxed;

/// What a stored file is found to be.
pub(super) enum Stored {
    /// A file; what is in it is authenticated as it is read.
    Whole(Box<File>),
    /// Nobody was promised anything of it before the machine went down: it counts as empty. If it had a header, its id and
    /// what is wrong with it.
    Unfinished(Option<(FileId, Damage)>),
    /// Not what was written.
    Damaged(Damage),
}

/// How many fresh files are remembered, to be synced one by one.
const MAX_FRESH: usize = 32;

/// What `fallocate` is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allocate {
    /// Reserve space, and extend the file if it ends before.
    Extend,
    /// Reserve space and keep the length.
    Keep,
    /// Make a hole and keep the length.
    Punch,
    /// Let the range read as zeros, and extend the file if it ends before.
    Zero,
    /// Let the range read as zeros, and keep the length.
    ZeroKeep,
}

impl Fs {
    /// Opens a file, for writing too if it `writes`; with `truncate` it is empty then.
    ///
    /// # Errors
    /// [`Error::NeedKey`] if its envelope has to be unwrapped first; [`Error::Damaged`].
    pub fn open(&self, ino: u64, writes: bool, truncate: bool) -> Result<u64> {
        let keys = self.enter()?;
        self.unless_restricted(OnRevoked::PreventNew)?;
        let _paths = self.namespace.read();
        let file = self.obtain_file(&keys, ino)?;
        if truncate {
            self.writable()?;
            file.set_len(PlainOffset(0))?;
            self.modified(&file)?;
        }
        Ok(self.register(ino, &file, writes))
    }

    /// A handle for an open file.
    pub(super) fn register(&self, ino: u64, file: &Arc<File>, writes: bool) -> u64 {
        self.counters.opened.fetch_add(1, Relaxed);
        {
            let mut files = self.files.lock();
            let open = files.entry(ino).or_insert_with(|| OpenFile::of(file));
            open.handles += 1;
            open.writers += usize::from(writes);
        }
        let handle = self.next_handle.fetch_add(1, Relaxed);
        self.handles.write().insert(handle, Handle::File { ino, file: Arc::clone(file), writes });
        handle
    }

    /// The file of an inode if it is in memory.
    pub(super) fn open_file(&self, ino: u64) -> Option<Arc<File>> {
        self.files.lock().get(&ino).map(|open| Arc::clone(&open.file))
    }

    /// The file of an inode, with its key: the one in memory, or read from the store.
    pub(super) fn obtain_file(&self, keys: &Unlocked, ino: u64) -> Result<Arc<File>> {
        if let Some(file) = self.open_file(ino) {
            self.restore_keys(keys, &file)?;
            return Ok(file);
        }
        // One at a time: opening may cut off what a crash has left, which is not for two to do while a third writes.
        let _alone = self.opening[ino as usize % OPENING].lock();
        if let Some(file) = self.open_file(ino) {
            self.restore_keys(keys, &file)?;
            return Ok(file);
        }
        let open = |open: &dyn Fn(bool) -> std::io::Result<Arc<dyn StoreFile>>| match open(!self.read_only) {
            Err(error) if !self.read_only && error.kind() == std::io::ErrorKind::PermissionDenied => open(false),
            other => other,
        };
        let store = match self.nodes.rest(ino) {
            Some(rest) => open(&|writable| rest.open_file(writable))?,
            None => self
                .nodes
                .at_place(ino, |directory, entry| Ok(open(&|writable| directory.open_file(entry, writable))?))?,
        };
        let stat = store.inode().stat()?;
        if stat.ino != ino {
            return Err(Error::Stale);
        }
        let file = Arc::new(self.read_file(keys, ino, store)?);
        file.set_mtime(stat.mtime);
        let mut files = self.files.lock();
        let open = files.entry(ino).or_insert_with(|| OpenFile::of(&file));
        Ok(Arc::clone(&open.file))
    }

    fn read_file(&self, keys: &Unlocked, ino: u64, store: Arc<dyn StoreFile>) -> Result<File> {
        match self.open_stored(keys, ino, &|| self.nodes.path(ino), &store)? {
            Stored::Whole(file) => Ok(*file),
            Stored::Unfinished(left) => self.begin_anew(keys, ino, store, left),
            Stored::Damaged(damage) => Err(self.damaged_file(ino, &damage)),
        }
    }

    /// What a stored file is; nothing of it changes but what a crash had left behind its end.
    pub(super) fn open_stored(
        &self,
        keys: &Unlocked,
        ino: u64,
        path: &dyn Fn() -> Vec<u8>,
        store: &Arc<dyn StoreFile>,
    ) -> Result<Stored> {
        let found = match Unverified::read(&**store) {
            Ok(Found::Header(found)) => found,
            // It was created, and the machine went down before anybody was promised anything of it.
            Ok(Found::Nothing) if self.may_be_half_made() => return Ok(Stored::Unfinished(None)),
            Ok(Found::Nothing) => return Ok(Stored::Damaged(Damage::NoHeader)),
            Err(file::Error::Damaged(damage)) => return Ok(Stored::Damaged(damage)),
            Err(error) => return Err(error.into()),
        };
        let header = found.header().clone();
        let wrapped = match self.volume.wrapped(&header) {
            Ok(wrapped) => wrapped,
            Err(damage) => return Ok(Stored::Damaged(damage)),
        };
        let file_keys = self.keys_of_envelope(keys, &header, wrapped)?;
        let target = Target { file: header.file, ino, path: path() };
        match File::open(Arc::clone(&self.context), Arc::clone(store), target, *found, file_keys) {
            Ok(file) if file.see() == Seen::Old && !self.takes_old(header.file) => {
                Ok(Stored::Damaged(Damage::RolledBack))
            }
            Ok(file) => Ok(Stored::Whole(Box::new(file))),
            Err(file::Error::Damaged(damage)) => {
                let unfinished = header.batch != 0 && self.context.journal.crashed().contains(header.batch);
                Ok(if unfinished { Stored::Unfinished(Some((header.file, damage))) } else { Stored::Damaged(damage) })
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Whether a file that is older than the ledger knows it is opened nevertheless; if so, this is said.
    fn takes_old(&self, file: FileId) -> bool {
        let Some(ledger) = self.context.ledger.get().filter(|ledger| ledger.is_lenient()) else { return false };
        ledger.suspect();
        tracing::warn!("file {file} is older than it was seen to be");
        let what = format!("file {file} is older than it was seen to be");
        self.leases.recorder().record(Event::Rollback { what, refused: false });
        true
    }

    /// Whether a stored file without a header may be one that was being created.
    fn may_be_half_made(&self) -> bool {
        self.half_made.load(Ordering::Acquire) || !self.context.journal.crashed().is_empty()
    }

    /// Lets a file be empty of which, as far as anybody can tell, nothing was ever durable. If it had a header, what is
    /// there is kept.
    fn begin_anew(
        &self,
        keys: &Unlocked,
        ino: u64,
        store: Arc<dyn StoreFile>,
        left: Option<(FileId, Damage)>,
    ) -> Result<File> {
        let (epoch, (wraps, secret)) = self.newest_key()?;
        let file = FileId(crate::crypto::random_id());
        let dek = Dek::derive(&secret, &keys.volume_key, self.context.volume, file, epoch);
        let new = Arc::new(Keys::new(dek, epoch));
        let target = Target { file, ino, path: self.nodes.path(ino) };
        let header = self.new_header(file, epoch, wraps);
        if self.read_only {
            return Ok(File::of_nothing(Arc::clone(&self.context), store, target, header, new));
        }
        match left {
            Some((file, damage)) => {
                tracing::warn!(
                    "file {file} was being written when the machine went down, or was damaged since ({damage}): it is \
                     empty now, and what was in it is kept in the volume's `lost`"
                );
                self.set_aside(file, &*store)?;
            }
            None => tracing::warn!("file {ino} was being created when the machine went down: it is empty now"),
        }
        store.set_len(crate::units::StoredOffset(0))?;
        self.note_fresh(ino, &store);
        Ok(File::create(Arc::clone(&self.context), store, target, header, new)?)
    }

    fn file_keys(&self, keys: &Unlocked, ino: u64, header: &Header) -> Result<Arc<Keys>> {
        let wrapped = self.volume.wrapped(header).map_err(|damage| self.damaged_file(ino, &damage))?;
        self.keys_of_envelope(keys, header, wrapped)
    }

    pub(super) fn keys_of_envelope(&self, keys: &Unlocked, header: &Header, wrapped: Wrapped) -> Result<Arc<Keys>> {
        let Some(secret) = self.leases.cached(&wrapped) else {
            return Err(Error::NeedKey(Need::Unwrap(Box::new(wrapped))));
        };
        let dek = Dek::derive(&secret, &keys.volume_key, self.context.volume, header.file, header.epoch);
        Ok(Arc::new(Keys::of(dek, self.context.volume, header)))
    }

    /// Gives a file its key back after the volume was locked.
    pub(super) fn restore_keys(&self, keys: &Unlocked, file: &File) -> Result<()> {
        // Once more if it got another one while its key was looked for.
        while !file.has_keys() {
            let header = file.header();
            file.restore(self.file_keys(keys, file.target().ino, &header)?);
        }
        Ok(())
    }

    pub(super) fn damaged_file(&self, ino: u64, damage: &Damage) -> Error {
        let file = self.open_file(ino).map(|file| file.header().file);
        match (damage, file) {
            (Damage::Chunk(chunk), Some(file)) => {
                self.counters.damaged.fetch_add(1, Relaxed);
                self.counters.failed_chunks.fetch_add(1, Relaxed);
                tracing::warn!("damage: file {ino}: {damage}");
                if tracing::enabled!(target: NAMES, tracing::Level::WARN) {
                    let path = self.nodes.path(ino);
                    tracing::warn!(target: NAMES, "file {ino} is stored as {}", path.escape_ascii());
                }
                let event = Event::FailedDecryption { file: file.to_string(), chunk: chunk.0 };
                self.leases.recorder().record(event);
            }
            (damage, Some(file)) => self.found_damage(|| format!("file {file}, inode {ino}: {damage}")),
            (damage, None) => self.found_damage(|| format!("inode {ino}: {damage}")),
        }
        Error::Damaged
    }

    pub(super) fn file_error(&self, ino: u64, error: file::Error) -> Error {
        match error {
            file::Error::Damaged(damage) => self.damaged_file(ino, &damage),
            other => other.into(),
        }
    }

    /// Notes a file that is not committed before the next batch.
    pub(super) fn note_fresh(&self, ino: u64, store: &Arc<dyn StoreFile>) {
        let mut fresh = self.fresh.lock();
        fresh.inos.insert(ino);
        if fresh.many || fresh.stores.len() >= MAX_FRESH {
            fresh.many = true;
            fresh.stores.clear();
        } else {
            fresh.stores.insert(ino, Arc::clone(store));
        }
    }

    fn file_handle(&self, handle: u64) -> Result<(u64, Arc<File>)> {
        match self.handles.read().get(&handle) {
            Some(Handle::File { ino, file, .. }) => Ok((*ino, Arc::clone(file))),
            _ => Err(Error::errno(libc::EBADF)),
        }
    }

    /// Reads up to `len` bytes at `offset` to the end of `out`.
    ///
    /// # Errors
    /// [`Error::Damaged`]; nothing is added to `out` then.
    pub fn read(&self, handle: u64, offset: PlainOffset, len: usize, out: &mut Vec<u8>) -> Result<()> {
        let keys = self.enter()?;
        let (ino, file) = self.file_handle(handle)?;
        self.restore_keys(&keys, &file)?;
        let before = out.len();
        file.read(offset, len, out).map_err(|error| self.file_error(ino, error))?;
        if self.closed.load(std::sync::atomic::Ordering::Acquire) {
            // The disk took so long that the volume was locked meanwhile.
            zeroize::Zeroize::zeroize(&mut out[before..]);
            out.truncate(before);
            return Err(Error::Locked(self.reason()));
        }
        self.counters.read.fetch_add((out.len() - before) as u64, Relaxed);
        Ok(())
    }

    /// Writes. `held_back`: the kernel had accepted it before, so it is taken while the volume drains, too.
    ///
    /// # Errors
    /// The store's, [`Error::Damaged`].
    pub fn write(&self, handle: u64, offset: PlainOffset, data: &[u8], held_back: bool) -> Result<()> {
        let keys = if held_back { self.enter_draining()? } else { self.enter()? };
        self.writable()?;
        let (ino, file) = self.file_handle(handle)?;
        self.restore_keys(&keys, &file)?;
        file.write(offset, data).map_err(|error| self.file_error(ino, error))?;
        if !held_back {
            // Else the kernel knows when, and says so later.
            file.set_mtime(Timestamp::now());
        }
        self.counters.written.fetch_add(data.len() as u64, Relaxed);
        Ok(())
    }

    /// What `close` does, and so does the change of the modification time with which the kernel begins it: a file that is not committed yet can be read as it is now, also after the program that serves
    /// it was killed. Changes of a committed one follow with the next batch; durable is all of it only after
    /// [`sync`](Self::sync).
    ///
    /// # Errors
    /// The store's.
    pub fn flush(&self, handle: u64) -> Result<()> {
        let _keys = self.enter_draining()?;
        let (ino, file) = self.file_handle(handle)?;
        if !file.has_keys() {
            // Nothing can have been written since the volume was unlocked.
            return Ok(());
        }
        file.settle().map_err(|error| self.file_error(ino, error))
    }

    /// Makes a file durable, with its attributes unless `data_only`.
    ///
    /// # Errors
    /// The store's.
    pub fn sync(&self, handle: u64, data_only: bool) -> Result<()> {
        let keys = self.enter_draining()?;
        let (ino, file) = self.file_handle(handle)?;
        self.restore_keys(&keys, &file)?;
        self.sync_names(ino)?;
        file.sync(!data_only).map_err(|error| self.file_error(ino, error))?;
        self.fresh.lock().forget(ino);
        Ok(())
    }

    /// Lets what was committed of a file be read from the disk again.
    ///
    /// # Errors
    /// If the handle is none.
    pub fn uncache(&self, handle: u64) -> Result<()> {
        self.file_handle(handle).map(|(_, file)| file.store().uncache())
    }

    /// Gives up a handle.
    pub fn release(&self, handle: u64) {
        let Some(Handle::File { ino, file, writes }) = self.handles.write().remove(&handle) else { return };
        // Its errors were reported by flush; what is not committed is tried again with the next batch.
        let settled = self.enter_draining().is_ok() && (!file.has_keys() || file.settle().is_ok());
        if !self.nodes.knows(ino) {
            self.removed.store(true, Ordering::Release);
        }
        let mut files = self.files.lock();
        if let Some(open) = files.get_mut(&ino) {
            open.handles -= 1;
            open.writers -= usize::from(writes);
            // Until the kernel has forgotten it, a file without a name can still be opened.
            let is_gone = || !self.nodes.knows(ino) && file.store().inode().stat().is_ok_and(|stat| stat.nlink == 0);
            // One in the table, and one here: whoever else has got it is about to use it.
            let unused = open.handles == 0 && Arc::strong_count(&file) <= 2;
            if unused && (settled && !file.waits_for_commit() || is_gone()) {
                files.remove(&ino);
            }
            if let Some(ledger) = self.context.ledger.get()
                && unused
                && is_gone()
            {
                // Commits since it lost its name have made it known once more.
                ledger.forget(file.header().file);
            }
        }
    }

    /// Whether somebody can write to a file, so that the kernel may know of more than it sent.
    pub fn is_written_to(&self, ino: u64) -> bool {
        self.files.lock().get(&ino).is_some_and(|open| open.writers > 0)
    }

    /// The next data or hole.
    ///
    /// # Errors
    /// `ENXIO` if there is none.
    pub fn seek(&self, handle: u64, offset: PlainOffset, what: Seek) -> Result<PlainOffset> {
        let keys = self.enter()?;
        let (ino, file) = self.file_handle(handle)?;
        self.restore_keys(&keys, &file)?;
        let found = file.seek(offset, what).map_err(|error| self.file_error(ino, error))?;
        found.ok_or(Error::errno(libc::ENXIO))
    }

    /// Reserves space, or makes holes.
    ///
    /// # Errors
    /// `ENOSPC`; `EFBIG`.
    pub fn allocate(&self, handle: u64, offset: PlainOffset, len: u64, how: Allocate) -> Result<()> {
        let keys = self.enter()?;
        self.writable()?;
        let (ino, file) = self.file_handle(handle)?;
        self.restore_keys(&keys, &file)?;
        let end = PlainOffset(offset.0.checked_add(len).ok_or(Error::errno(libc::EFBIG))?);
        let act = || {
            if matches!(how, Allocate::Punch | Allocate::Zero | Allocate::ZeroKeep) {
                file.punch(offset, end)?;
            }
            if matches!(how, Allocate::Extend | Allocate::Zero) && file.len() < end {
                file.set_len(end)?;
            }
            if matches!(how, Allocate::Extend | Allocate::Keep) {
                file.reserve(offset, end)?;
            }
            Ok(())
        };
        act().map_err(|error| self.file_error(ino, error))?;
        if how == Allocate::Keep { Ok(()) } else { self.modified(&file) }
    }

    /// A file's content was changed just now, other than by writing.
    pub(super) fn modified(&self, file: &File) -> Result<()> {
        let now = Timestamp::now();
        file.set_mtime(now);
        Ok(file.store().inode().set_times(SetTime::Keep, SetTime::At(now))?)
    }
}
