//! The redo log: changes of what is already committed go through here, so that a crash leaves the old or the new
//! version and nothing between. Depends on `store`, `units`. Everything in it is ciphertext or public, so recovery
//! needs neither a key nor the KMS. Invariant: a record is applied in place only after it is durable, and a log
//! is recycled only after everything in it was applied and is durable in place.
//!
//! Two log files take turns. `manual/format.md`, "The journal", has the bytes and the order of writes.

mod crashed;
pub mod log;
pub mod record;
pub mod recovery;
mod replay;

use crate::format::PAGE;
use crate::store::{Store, StoreFile};
use crate::units::{FileId, StoredOffset};
pub use crashed::Crashed;
use log::Log;
use parking_lot::{Condvar, Mutex, MutexGuard};
pub use record::{Content, Update, without_zeros};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

/// Bytes of each of the two log files of a new volume.
pub const LOG_LEN: u64 = 16 * 1024 * 1024;
/// How many batches there are at most that are not committed: one that is on its way, and one for new files meanwhile.
const MAX_OPEN_BATCHES: u64 = 2;
/// More files than this are not worth being synced one by one.
const MANY: usize = 128;

/// A position in the history of the log: bytes appended since it was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Lsn(u64);

/// Which file an update belongs to: enough to find it again without a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Its id, which stands in the clear in its header.
    pub file: FileId,
    /// Its inode number in the backing filesystem.
    pub ino: u64,
    /// Where it was when it was opened, below the tree; may be out of date.
    pub path: Vec<u8>,
}

/// How much the log has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Usage {
    /// Bytes that a crash would have replayed.
    pub bytes: u64,
    /// Bytes that there is room for.
    pub capacity: u64,
    /// The age of the oldest of them, in seconds.
    pub oldest_s: f64,
    /// It cannot be written any more: nothing is committed before the next mount.
    pub is_broken: bool,
}

/// The log of one volume.
pub struct Journal {
    inner: Mutex<Inner>,
    progress: Condvar,
    batch: AtomicU64,
    /// Not 0: a write to the log failed, or to what only the log still has, with this error. What was appended may
    /// or may not be there, so nothing more is promised, and nothing may be changed in place: the next mount replays.
    broken: AtomicI32,
    /// What syncs everything at once, if it is known.
    store: OnceLock<Arc<dyn Store>>,
}

struct Inner {
    /// Two; fewer if nothing may be changed and the volume was never mounted otherwise.
    logs: Vec<Log>,
    active: usize,
    /// Appended, not yet written to the active log.
    buffer: Vec<u8>,
    appended: u64,
    durable: u64,
    /// Somebody writes and syncs the log right now, without holding the lock.
    writing: bool,
    /// Somebody syncs the files that a log went to, without holding the lock.
    cleaning: bool,
    committed_batch: u64,
    crashed: Crashed,
}

/// An update that was appended; to be handed back when it has been applied in place.
#[must_use = "an update that is never reported as applied keeps the log from being recycled"]
pub struct Appended {
    lsn: Lsn,
    log: usize,
}

impl Journal {
    fn of(inner: Inner, broken: i32) -> Self {
        let batch = AtomicU64::new(inner.committed_batch + 1);
        let (progress, broken) = (Condvar::new(), AtomicI32::new(broken));
        Self { batch, inner: Mutex::new(inner), progress, broken, store: OnceLock::new() }
    }

    /// Lets the files of a log be synced together, through the store that they are in, when they are many.
    pub fn sync_through(&self, store: &Arc<dyn Store>) {
        self.store.get_or_init(|| Arc::clone(store));
    }

    /// Whether the log can be relied on.
    ///
    /// # Errors
    /// The one with which it broke.
    pub fn check(&self) -> io::Result<()> {
        match self.broken.load(Ordering::Acquire) {
            0 => Ok(()),
            number => Err(io::Error::from_raw_os_error(number)),
        }
    }

    fn break_with(&self, error: &io::Error) {
        self.broken.store(error.raw_os_error().unwrap_or(libc::EIO), Ordering::Release);
        self.progress.notify_all();
    }

    /// How much one of the two logs holds, in bytes.
    pub fn log_len(&self) -> u64 {
        self.inner.lock().logs.iter().map(|log| log.capacity).min().unwrap_or(0)
    }

    /// The batch to which new files belong that are created now (format.md, "New files").
    pub fn batch(&self) -> u64 {
        self.batch.load(Ordering::Acquire)
    }

    /// The batches in which the machine or the program went down; their new files are not to be trusted blindly.
    pub fn crashed(&self) -> Crashed {
        self.inner.lock().crashed.clone()
    }

    /// The last batch that was committed: it only ever grows.
    pub fn committed(&self) -> u64 {
        self.inner.lock().committed_batch
    }

    /// Whether headers of this batch are committed: everything they describe is durable.
    pub fn is_committed(&self, batch: u64) -> bool {
        let inner = self.inner.lock();
        batch <= inner.committed_batch && !inner.crashed.contains(batch)
    }

    /// How much there is that a crash would have replayed.
    pub fn usage(&self) -> Usage {
        let inner = self.inner.lock();
        let is_needed = |which: &usize, log: &Log| {
            *which == inner.active || log.unapplied > 0 || log.touched_many || !log.touched.is_empty()
        };
        let needed = || inner.logs.iter().enumerate().filter(|(which, log)| is_needed(which, log)).map(|(_, log)| log);
        Usage {
            bytes: needed().map(|log| log.position - PAGE as u64).sum::<u64>() + inner.buffer.len() as u64,
            capacity: inner.logs.iter().map(|log| log.capacity.saturating_sub(PAGE as u64)).sum(),
            oldest_s: needed()
                .filter_map(|log| log.began)
                .map(|began| began.elapsed().as_secs_f64())
                .fold(0.0, f64::max),
            is_broken: self.check().is_err(),
        }
    }

    /// Begins the next batch and returns the one that ends. If that was not committed the last time, it is the same
    /// again: a crash must not leave more batches than the next mount knows of.
    pub fn begin_batch(&self) -> u64 {
        let ends = self.inner.lock().committed_batch + 1;
        self.batch.store(ends + 1, Ordering::Release);
        ends
    }

    /// Records, durably, that everything of `batch` is durable in place.
    ///
    /// # Errors
    /// The log's own I/O errors.
    pub fn commit_batch(&self, batch: u64) -> io::Result<()> {
        let lsn = {
            let mut inner = self.inner.lock();
            self.make_room(&mut inner, record::BATCH_LEN)?;
            let place = inner.place();
            record::encode_batch(batch, &place, &mut inner.buffer);
            inner.finish_append(record::BATCH_LEN)
        };
        self.sync(lsn)?;
        let mut inner = self.inner.lock();
        inner.committed_batch = inner.committed_batch.max(batch);
        Ok(())
    }

    /// Forgets the batches that went down: every file was checked since.
    pub fn forgive_crashed_batches(&self) -> io::Result<()> {
        let mut inner = self.inner.lock();
        inner.crashed.clear();
        // The list is in the logs' headers: a rotation writes the new one.
        self.rotate(&mut inner)?;
        self.rotate(&mut inner)
    }

    /// Appends an update. It is durable only after [`sync`](Self::sync), and must then be applied in place and
    /// reported with [`applied`](Self::applied). What it relies on in place must be durable already.
    ///
    /// # Errors
    /// The log's own I/O errors; then nothing was appended.
    pub fn append(&self, target: &Target, update: &Update) -> io::Result<Appended> {
        let len = record::update_len(target, update);
        let mut inner = self.inner.lock();
        self.make_room(&mut inner, len)?;
        let place = inner.place();
        record::encode_update(target, update, &place, &mut inner.buffer);
        let lsn = inner.finish_append(len);
        let log = inner.active;
        inner.logs[log].unapplied += 1;
        Ok(Appended { lsn, log })
    }

    /// The same for several, which together take a small part of a log.
    ///
    /// In one piece: a log is not recycled before all that was appended to it is in place, so whoever waits here for room
    /// must not be what the log waits for.
    ///
    /// # Errors
    /// The log's own I/O errors; then nothing was appended.
    pub fn append_all(&self, updates: &[(&Target, &Update)]) -> io::Result<Vec<Appended>> {
        let all = updates.iter().map(|(target, update)| record::update_len(target, update)).sum();
        let mut inner = self.inner.lock();
        self.make_room(&mut inner, all)?;
        let log = inner.active;
        let append = |(target, update): &(&Target, &Update)| {
            let place = inner.place();
            record::encode_update(target, update, &place, &mut inner.buffer);
            let lsn = inner.finish_append(record::update_len(target, update));
            inner.logs[log].unapplied += 1;
            Appended { lsn, log }
        };
        Ok(updates.iter().map(append).collect())
    }

    /// Waits until everything up to `appended` is durable: one write and one sync for all who wait at that time.
    ///
    /// # Errors
    /// The log's own I/O errors.
    pub fn sync_appended(&self, appended: &Appended) -> io::Result<()> {
        self.sync(appended.lsn)
    }

    fn sync(&self, lsn: Lsn) -> io::Result<()> {
        let mut inner = self.inner.lock();
        loop {
            self.check()?;
            if inner.durable >= lsn.0 {
                return Ok(());
            }
            if inner.writing {
                self.progress.wait(&mut inner);
            } else {
                self.write_out(&mut inner)?;
            }
        }
    }

    /// Tells that an update has been applied to `file` (or that the file is gone).
    pub fn applied(&self, appended: Appended, ino: u64, file: Option<&Arc<dyn StoreFile>>) {
        let mut inner = self.inner.lock();
        let log = &mut inner.logs[appended.log];
        log.unapplied -= 1;
        if let Some(file) = file.filter(|_| !log.touched_many) {
            log.touched.insert(ino, Arc::clone(file));
            if log.touched.len() > MANY && self.store.get().is_some() {
                // Neither kept open nor synced one by one.
                log.touched.clear();
                log.touched_many = true;
            }
        }
        drop(inner);
        self.progress.notify_all();
    }

    /// The files that the logs hold on to, because what was put in place of them may not be durable yet.
    pub fn touched(&self) -> Vec<(u64, Arc<dyn StoreFile>)> {
        let inner = self.inner.lock();
        let touched = inner.logs.iter().flat_map(|log| &log.touched);
        touched.map(|(ino, file)| (*ino, Arc::clone(file))).collect()
    }

    /// Lets go of files of which it is durable that they were removed: recovery does not look for them.
    pub fn let_go(&self, removed: impl Iterator<Item = u64>) {
        let mut gone = Vec::new();
        let mut inner = self.inner.lock();
        for ino in removed {
            gone.extend(inner.logs.iter_mut().filter_map(|log| log.touched.remove(&ino)));
        }
        // Closed without the lock: that is when the backing filesystem frees the space.
        drop(inner);
    }

    /// Tells that an update that is in the log could not be applied in place. The log must then not be recycled: it
    /// takes no more records, and the next mount replays it.
    pub fn not_applied(&self, appended: Appended, error: &io::Error) {
        let Appended { .. } = appended;
        // With the lock, so that nobody who has just looked waits for the news.
        let _inner = self.inner.lock();
        self.break_with(error);
    }

    /// Whether the inactive log waits to be cleaned, or the active one is half full.
    pub fn wants_checkpoint(&self) -> bool {
        let inner = self.inner.lock();
        inner.logs.get(1 - inner.active).is_some_and(|log| log.touched_many || !log.touched.is_empty())
    }

    /// Makes everything durable in place that the inactive log holds, so that the next rotation need not wait.
    ///
    /// # Errors
    /// Those of syncing the files.
    pub fn checkpoint(&self) -> io::Result<()> {
        let mut inner = self.inner.lock();
        let idle = 1 - inner.active;
        self.clean(&mut inner, idle)
    }

    /// Marks the log as cleanly closed, so that the next mount has nothing to recover:
    /// 1. everything is made durable in place (a crash: replayed once more);
    /// 2. the older log becomes a new, clean one (a crash: the newer one's records are replayed, which changes nothing);
    /// 3. the newer one is retired (a crash before: the same. The older one's records must not outlive its own).
    ///
    /// # Errors
    /// Those of the log and of syncing the files.
    pub fn close(&self) -> io::Result<()> {
        let batch = self.begin_batch();
        self.commit_batch(batch)?;
        let mut inner = self.inner.lock();
        for which in [1 - inner.active, inner.active] {
            self.clean(&mut inner, which)?;
        }
        // The other log first: a header that is torn leaves the one that says the same but for `clean`.
        let active = inner.active;
        let state = inner.header_state(true);
        inner.logs[1 - active].recycle(&state)?;
        inner.logs[active].retire()
    }

    /// Writes and syncs the buffer. The lock is released meanwhile, so that others can append for the next round.
    fn write_out(&self, inner: &mut MutexGuard<'_, Inner>) -> io::Result<()> {
        let buffer = std::mem::take(&mut inner.buffer);
        let active = inner.active;
        let file = Arc::clone(&inner.logs[active].file);
        let position = inner.logs[active].position;
        inner.logs[active].position += buffer.len() as u64;
        let upto = inner.appended;
        inner.writing = true;
        let result = MutexGuard::unlocked(inner, || {
            file.write_at(&buffer, StoredOffset(position)).and_then(|()| file.sync(true))
        });
        inner.writing = false;
        self.progress.notify_all();
        match result {
            Ok(()) => {
                inner.durable = upto;
                inner.logs[active].synced = position + buffer.len() as u64;
                Ok(())
            }
            Err(error) => {
                self.break_with(&error);
                Err(error)
            }
        }
    }

    fn make_room(&self, inner: &mut MutexGuard<'_, Inner>, len: usize) -> io::Result<()> {
        self.check()?;
        let log = &inner.logs[inner.active];
        if PAGE as u64 + len as u64 > log.capacity {
            // Cannot happen with logs of the length that we make: a file commits long before.
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        if log.position + (inner.buffer.len() + len) as u64 > log.capacity {
            self.rotate(inner)?;
        }
        Ok(())
    }

    /// Makes the other log the active one:
    /// 1. the buffer is written and synced (a crash after it: replayed);
    /// 2. the other log is cleaned (a crash: its records are replayed once more, which changes nothing);
    /// 3. its header is rewritten with the next sequence number and synced (a crash: its old header, whose records
    ///    are applied, or a damaged one, which counts as empty; either way the log of step 1 is complete).
    fn rotate(&self, inner: &mut MutexGuard<'_, Inner>) -> io::Result<()> {
        while inner.writing {
            self.progress.wait(inner);
        }
        self.check()?;
        if !inner.buffer.is_empty() {
            self.write_out(inner)?;
            // The lock was released: somebody else may have begun to write, or even have rotated.
            return if inner.buffer.is_empty() && !inner.writing { self.switch(inner) } else { self.rotate(inner) };
        }
        self.switch(inner)
    }

    fn switch(&self, inner: &mut MutexGuard<'_, Inner>) -> io::Result<()> {
        let from = inner.active;
        let idle = 1 - from;
        self.clean(inner, idle)?;
        if inner.active != from || inner.writing || !inner.buffer.is_empty() {
            // Others went on while the files were synced; if they rotated, there is room now.
            return if inner.active == from { self.rotate(inner) } else { Ok(()) };
        }
        let state = inner.header_state(false);
        inner.logs[idle].recycle(&state)?;
        inner.active = idle;
        Ok(())
    }

    /// Waits until every update of a log is applied, and syncs the files that they went to.
    fn clean(&self, inner: &mut MutexGuard<'_, Inner>, which: usize) -> io::Result<()> {
        while inner.cleaning || inner.logs[which].unapplied > 0 {
            self.check()?;
            self.progress.wait(inner);
        }
        inner.cleaning = true;
        let touched: HashMap<_, _> = std::mem::take(&mut inner.logs[which].touched);
        let many = std::mem::take(&mut inner.logs[which].touched_many);
        let result = MutexGuard::unlocked(inner, || {
            if many && let Some(store) = self.store.get() {
                store.sync_all()?;
            }
            touched.values().try_for_each(|file| file.sync(true))
        });
        inner.cleaning = false;
        self.progress.notify_all();
        // The kernel forgets what it could not write, and the next sync would find nothing wrong: from here on only
        // the log has it, which must not be recycled any more.
        result.inspect_err(|error: &io::Error| self.break_with(error))
    }
}

impl Inner {
    fn of(logs: Vec<Log>, active: usize, state: &log::State) -> Self {
        Self {
            logs,
            active,
            buffer: Vec::new(),
            appended: 0,
            durable: 0,
            writing: false,
            cleaning: false,
            committed_batch: state.committed_batch,
            crashed: state.crashed.clone(),
        }
    }

    fn place(&self) -> record::Place {
        let log = &self.logs[self.active];
        record::Place { sequence: log.sequence, position: log.position + self.buffer.len() as u64, synced: log.synced }
    }

    fn finish_append(&mut self, len: usize) -> Lsn {
        self.appended += len as u64;
        self.logs[self.active].began.get_or_insert_with(Instant::now);
        Lsn(self.appended)
    }

    fn header_state(&self, clean: bool) -> log::State {
        log::State {
            sequence: self.logs.iter().map(|log| log.sequence).max().unwrap_or(0) + 1,
            clean,
            committed_batch: self.committed_batch,
            crashed: self.crashed.clone(),
        }
    }
}

#[cfg(test)]
mod tests;
