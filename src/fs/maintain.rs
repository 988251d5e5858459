//! What is made durable without being asked: every few seconds, all that changed, as one batch.

use super::*;
use crate::lease::BootTime;
use std::io;
use std::time::Duration;

/// The longest time that a change stays uncommitted.
pub const INTERVAL: Duration = Duration::from_secs(5);

impl Fs {
    /// Commits everything that changed so far:
    /// 1. the next batch begins: files that are created from here on belong to it. Whoever was creating one finishes
    ///    first, so that no file of the batch that ends is overlooked;
    /// 2. a snapshot is taken of every changed file, and new files get their headers (a crash: they are as they were);
    /// 3. everything in place is made durable (a crash: the same);
    /// 4. the snapshots go to the journal and are put in place (a crash: some files are new, some are old);
    /// 5. the batch is recorded as committed: its new files count (a crash: those are checked when they are opened).
    ///
    /// # Errors
    /// The first of the store's or the journal's; what was not committed is tried again.
    pub fn commit_all(&self) -> Result<()> {
        if self.read_only {
            return Ok(());
        }
        let _one_at_a_time = self.committing.lock();
        let journal = &self.context.journal;
        if self.fresh.lock().is_empty() && self.changed_files().is_empty() {
            self.flush_ledger();
            self.note_commit(self.counters.written.load(Ordering::Relaxed));
            return Ok(self.checkpoint()?);
        }
        let written = self.counters.written.load(Ordering::Relaxed);
        let batch = journal.begin_batch();
        drop(self.namespace.write());
        let fresh = std::mem::take(&mut *self.fresh.lock());
        let files = self.changed_files();
        let result = self.commit_files(batch, &files, &fresh);
        drop(files);
        match result {
            Ok(()) => {
                journal.commit_batch(batch)?;
                self.counters.batches.fetch_add(1, Ordering::Relaxed);
                self.note_commit(written);
                self.flush_ledger();
                self.drop_unused();
                Ok(self.checkpoint()?)
            }
            Err(error) => {
                let mut again = self.fresh.lock();
                again.inos.extend(fresh.inos);
                again.many = true;
                Err(error)
            }
        }
    }

    fn note_commit(&self, written: u64) {
        self.counters.written_then.store(written, Ordering::Relaxed);
        self.counters.committed_ms.store(BootTime::now().0.as_millis() as u64, Ordering::Relaxed);
    }

    /// Bytes at most that were written and are not committed: what single files synced since the last commit of everything
    /// is among them.
    pub fn dirty_bytes(&self) -> u64 {
        let written = self.counters.written.load(Ordering::Relaxed);
        written.saturating_sub(self.counters.written_then.load(Ordering::Relaxed))
    }

    /// For how long changes have waited to be committed; zero if there are none.
    pub fn uncommitted_for(&self) -> Duration {
        if self.read_only || (self.waiting_files() == 0 && self.dirty_bytes() == 0) {
            return Duration::ZERO;
        }
        let then = Duration::from_millis(self.counters.committed_ms.load(Ordering::Relaxed));
        BootTime::now().0.saturating_sub(then)
    }

    /// What the journal has.
    pub fn journal_usage(&self) -> crate::journal::Usage {
        self.context.journal.usage()
    }

    /// Files of which the next batch changes how much space they take and when they were changed, so that the kernel has to
    /// ask again: those that somebody has open, and those that were committed before.
    pub fn told_otherwise(&self) -> Vec<u64> {
        let open = self.files.lock();
        let mut files: Vec<_> =
            open.iter().map(|(ino, open)| (*ino, open.handles > 0, Arc::clone(&open.file))).collect();
        drop(open);
        files.retain(|(_, open, file)| file.wants_commit() && (*open || !file.is_fresh()));
        files.into_iter().map(|(ino, ..)| ino).collect()
    }

    fn changed_files(&self) -> Vec<Arc<File>> {
        // Asked without the table: one that somebody changes answers when the disk does.
        let mut files: Vec<_> = self.files.lock().values().map(|open| Arc::clone(&open.file)).collect();
        files.retain(|file| file.wants_commit());
        files
    }

    fn commit_files(&self, batch: u64, files: &[Arc<File>], fresh: &FreshFiles) -> Result<()> {
        let mut batched = Vec::new();
        let mut failed = None;
        {
            // Only the snapshots need keys: a lock must not have to wait for the disk.
            let keys = self.enter_draining()?;
            for file in files {
                // Without its key, a new file cannot be made whole, so that the batch must not count as committed.
                let prepared = self.restore_keys(&keys, file).and_then(|()| Ok(file.prepare_batch(batch)?));
                match prepared {
                    Ok(prepared) => batched.push(prepared),
                    Err(error) => failed = Some(error),
                }
            }
        }
        if fresh.many || !self.sync_all_names()? {
            let noted = self.names.lock().notes();
            self.store.sync_all()?;
            let mut left = self.names.lock();
            noted.into_iter().for_each(|noted| left.done(noted));
        } else {
            for store in fresh.stores.values() {
                store.sync(false)?;
            }
            for file in files {
                file.store().sync(true)?;
            }
        }
        for prepared in batched {
            if let Err(error) = prepared.finish() {
                failed = Some(error.into());
            }
        }
        failed.map_or(Ok(()), Err)
    }

    /// Writes what is durable by now into the volume's ledger, if it has one. Nothing depends on it: what could not be
    /// written is only not protected yet.
    fn flush_ledger(&self) {
        let (Some(ledger), Ok(keys)) = (self.context.ledger.get(), self.enter_draining()) else { return };
        let committed = self.context.journal.committed();
        ledger.committed(committed);
        if let Err(error) = ledger.flush(&keys.ledger_mac, committed) {
            tracing::error!("the rollback guard cannot be written, and is tried again: {error}");
        }
    }

    /// Files that were removed take space for as long as the journal holds on to them. When it is durable that they are
    /// gone, nothing brings back what it has of them, and it lets go.
    fn let_go_of_removed(&self) -> io::Result<()> {
        if !self.removed.swap(false, Ordering::AcqRel) {
            return Ok(());
        }
        let journal = &self.context.journal;
        let is_removed = |ino: u64, store: &Arc<dyn StoreFile>| {
            self.open_file(ino).is_none() && store.inode().stat().is_ok_and(|stat| stat.nlink == 0)
        };
        let touched = journal.touched();
        let removed: Vec<_> = touched.into_iter().filter(|(ino, store)| is_removed(*ino, store)).collect();
        if removed.is_empty() {
            return Ok(());
        }
        self.store.sync_all().inspect_err(|_| self.removed.store(true, Ordering::Release))?;
        journal.let_go(removed.into_iter().map(|(ino, _)| ino));
        Ok(())
    }

    fn checkpoint(&self) -> io::Result<()> {
        self.let_go_of_removed()?;
        if self.context.journal.wants_checkpoint() { self.context.journal.checkpoint() } else { Ok(()) }
    }

    /// Lets go of files that nobody has open and that have nothing left to be committed.
    pub(super) fn drop_unused(&self) {
        // One that somebody has just obtained has no handle yet.
        let used = |open: &OpenFile| open.handles > 0 || Arc::strong_count(&open.file) > 1;
        self.files.lock().retain(|_, open| used(open) || open.file.waits_for_commit());
    }

    /// Commits everything, names that changed included, and marks the journal as cleanly closed.
    ///
    /// # Errors
    /// As for [`commit_all`](Self::commit_all); the next mount then recovers.
    pub fn shut_down(&self) -> Result<()> {
        self.commit_all()?;
        if !self.read_only {
            self.store.sync_all()?;
        }
        if self.half_made.load(Ordering::Acquire) {
            // The next mount has to look at every file, as after a crash.
            return Ok(());
        }
        if self.read_only || self.files.lock().values().any(|open| open.file.waits_for_commit()) {
            return Ok(());
        }
        self.context.journal.close()?;
        self.flush_ledger();
        Ok(())
    }

    /// Whether the next envelope should be made now, before somebody has to wait for it.
    pub fn wants_envelope(&self) -> bool {
        !self.read_only && self.enter().is_ok() && self.envelopes.wants_refill()
    }
}
