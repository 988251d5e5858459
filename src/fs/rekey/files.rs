//! The files of a rekey, one after the other: an envelope, and then step by step through the content.

use super::super::create::now;
use super::super::renewal::{NotDone, Problem, Work, join};
use super::super::walk::Seen;
use super::super::*;
use super::{Plan, Rekey, Stopped, is_done, size};
use crate::crypto::derive::Dek;
use crate::file::{self, Damage, Found, NewKey, Unverified};
use crate::format::volume::RekeyState;
use crate::kms::Wrapped;
use crate::units::Epoch;
use lru::LruCache;
use std::num::NonZeroUsize;

/// So many files are committed together.
const BATCH: usize = 128;
/// So many envelopes are remembered that files had before: more than a mount holds secrets of.
const REMEMBERED: NonZeroUsize = NonZeroUsize::new(1 << 13).unwrap();
/// A step is this part of a log of the journal: with 16 MiB, 1 MiB.
const STEPS_PER_LOG: u64 = 16;

/// One round over all files.
pub(super) struct Files<'a> {
    rekey: &'a Rekey<'a>,
    plan: &'a Plan,
    target: Epoch,
    /// So much is sealed again, and committed, at a time.
    step: u64,
    work: Work<'a>,
    /// Files of which everything is sealed again, but not committed, and how much that is.
    batch: Vec<Arc<File>>,
    batch_bytes: u64,
    /// The envelope that the last file got.
    envelope: Vec<u8>,
    /// Those that files had before.
    before: LruCache<Wrapped, ()>,
}

impl<'a> Files<'a> {
    pub fn new(rekey: &'a Rekey<'a>, plan: &'a Plan, target: Epoch) -> Self {
        let step = rekey.fs.context.journal.log_len() / STEPS_PER_LOG;
        let work = Work::new(rekey.fs, rekey.stop, rekey.wait, &rekey.progress.unwrapped);
        let batch = Vec::with_capacity(BATCH);
        Self {
            rekey,
            plan,
            target,
            step,
            work,
            batch,
            batch_bytes: 0,
            envelope: Vec::new(),
            before: LruCache::new(REMEMBERED),
        }
    }

    pub fn into_left(self) -> NotDone {
        self.work.found
    }

    /// The envelopes that files had before.
    pub fn take_before(&mut self) -> LruCache<Wrapped, ()> {
        std::mem::replace(&mut self.before, LruCache::new(NonZeroUsize::MIN))
    }

    /// Looks at one file, and gives it a new key if it needs one.
    pub fn look(&mut self, seen: &Seen<'_>) -> Result<(), Stopped> {
        let passed = self.rekey.progress.position.load(Ordering::Relaxed) + size(&seen.stat);
        let looked = self.file(seen);
        self.rekey.progress.position.store(passed, Ordering::Relaxed);
        looked
    }

    fn file(&mut self, seen: &Seen<'_>) -> Result<(), Stopped> {
        let fs = self.rekey.fs;
        let (plan, target) = (self.plan, self.target);
        let Some(store) = self.work.open_unless(|header| !plan.wants(header, target), seen)? else { return Ok(()) };
        let done = self.store(&store, &|| join(&fs.nodes.path(seen.parent), seen.entry));
        self.work.or_left(seen, &*store, done)
    }

    fn store(&mut self, store: &Arc<dyn StoreFile>, path: &dyn Fn() -> Vec<u8>) -> Result<(), Problem> {
        let ino = store.inode().stat()?.ino;
        // Just made, and not with an earlier key.
        if matches!(Unverified::read(&**store), Ok(Found::Nothing)) && self.rekey.fs.open_file(ino).is_some() {
            return Ok(());
        }
        let file = self.work.obtain(ino, store, path)?;
        if self.plan.wants(&file.header(), self.target) {
            return self.renew(&file, store);
        }
        self.work.see_to(&file)
    }

    /// Gives a file a new key. One that is between two goes on to the second of them first.
    fn renew(&mut self, file: &Arc<File>, writer: &Arc<dyn StoreFile>) -> Result<(), Problem> {
        let fs = self.rekey.fs;
        file.write_through(Arc::clone(writer));
        loop {
            if self.rekey.stop.load(Ordering::Relaxed) {
                return Err(Stopped::Asked.into());
            }
            let header = file.header();
            if is_done(&header, self.target) {
                break;
            }
            if header.resealing.is_none() {
                self.begin(file)?;
            }
            let stepped = self.work.until_there(|_| {
                let keys = fs.enter()?;
                fs.restore_keys(&keys, file)?;
                Ok(file.rekey_step(self.step))
            })?;
            let stepped = match stepped {
                Ok(stepped) => stepped,
                Err(file::Error::Damaged(damage)) => {
                    // What was done before is kept, and can be read; so can the rest, as far as it could be before.
                    self.work.commit(file)?;
                    return Err(Problem::from(&damage));
                }
                Err(error) => return Err(self.work.stopped(error.into()).into()),
            };
            let progress = self.rekey.progress;
            progress.bytes.fetch_add(stepped.bytes, Ordering::Relaxed);
            if !stepped.done {
                progress.position.fetch_add(stepped.bytes, Ordering::Relaxed);
                self.work.commit(file)?;
            } else if is_done(&file.header(), self.target) {
                progress.rekeyed.fetch_add(1, Ordering::Relaxed);
                self.batch_bytes += file.pending_bytes() as u64;
                self.batch.push(Arc::clone(file));
                if self.batch.len() == BATCH || self.batch_bytes >= self.step {
                    self.flush()?;
                }
            }
            (self.rekey.pace)(stepped.bytes);
        }
        Ok(())
    }

    /// The header of a file gets a new envelope, as a new file would, and a key of the newest epoch.
    fn begin(&mut self, file: &Arc<File>) -> Result<(), Problem> {
        let fs = self.rekey.fs;
        if let Ok(wrapped) = fs.volume.wrapped(&file.header()) {
            self.before.put(wrapped, ());
        }
        let begun = self.work.until_there(|_| {
            let keys = fs.enter()?;
            fs.restore_keys(&keys, file)?;
            let (epoch, ((envelope, recovery), secret)) = fs.newest_key()?;
            let dek = Dek::derive(&secret, &keys.volume_key, fs.context.volume, file.target().file, epoch);
            let blob = envelope.blob.clone();
            let new = NewKey { dek, epoch, envelope, recovery, made: now() };
            Ok(file.begin_rekey(new).map(|()| blob))
        })?;
        let envelope = begun.map_err(|error| match error {
            file::Error::Damaged(damage) => Problem::from(&damage),
            error => self.work.stopped(error.into()).into(),
        })?;
        if envelope != self.envelope {
            self.rekey.progress.wrapped.fetch_add(1, Ordering::Relaxed);
            self.envelope = envelope;
        }
        Ok(())
    }

    /// Commits the files of which everything is sealed again.
    fn flush(&mut self) -> Result<(), Stopped> {
        self.batch_bytes = 0;
        let files = std::mem::take(&mut self.batch);
        self.rekey.fs.commit_together(files).map_err(|error| self.work.stopped(error))
    }

    /// What no name of the tree leads to, after everything else.
    pub fn finish(&mut self) -> Result<(), Stopped> {
        self.flush()?;
        if self.plan.what() != RekeyState::All {
            return Ok(());
        }
        for file in self.work.nameless()? {
            let Ok(store) = file.store().inode().open_file(true) else { continue };
            self.nameless(|files| files.renew(&file, &store))?;
        }
        for (_, rest) in self.rekey.fs.nodes.rests() {
            // Nobody may be able to open it; then nobody needs it.
            let Ok(store) = rest.open_file(true) else { continue };
            self.nameless(|files| files.store(&store, &Vec::new))?;
        }
        self.flush()?;
        self.lost()
    }

    /// Of what cannot be opened any more nothing is said: it ends with those who have it open.
    fn nameless(&mut self, renew: impl FnOnce(&mut Self) -> Result<(), Problem>) -> Result<(), Stopped> {
        match renew(self) {
            Err(Problem::All(stopped)) => Err(stopped),
            Ok(()) | Err(Problem::File(_) | Problem::Refused(_)) => Ok(()),
        }
    }

    /// What crashes left of files may be damaged, so that it cannot be sealed again as a whole; with another floor it could
    /// not be read any more if it was put back. Somebody has to look at it.
    fn lost(&mut self) -> Result<(), Stopped> {
        let Some(lost) = self.rekey.fs.volume.lost_if_any()? else { return Ok(()) };
        for entry in lost.list()? {
            let stat = lost.stat(&entry.name)?;
            if stat.kind != Kind::File || entry.name.contains(&b'.') {
                continue;
            }
            let why = match Unverified::read(&*lost.open_file(&entry.name, false)?) {
                Ok(Found::Header(found)) if is_done(found.header(), self.target) => continue,
                Ok(Found::Header(_)) => "a crash left it; put it back into the tree, or remove it".to_owned(),
                Ok(Found::Nothing) => Damage::NoHeader.to_string(),
                Err(error) => error.to_string(),
            };
            self.work.leave(stat.ino, join(b"lost", &entry.name), why, false);
        }
        Ok(())
    }
}
