//! The files of a rewrap, one after the other: their secrets by the new KEK, and their headers to the disk.

use super::super::envelopes::Wraps;
use super::super::renewal::{NotDone, Problem, Work, join};
use super::super::walk::Seen;
use super::super::*;
use super::{Rewrap, Stopped, Target};
use crate::crypto::Secret32;
use crate::file::{Damage, Found, Keys, Unverified, rewrapped_page};
use crate::format::header::{Envelope, Header};
use crate::format::volume::KekRole;
use crate::kms::{KmsError, KmsErrorKind};
use crate::ledger::Seen as Version;
use lru::LruCache;
use std::num::NonZeroUsize;

/// So many files get their headers with one sync of the journal; all of them together are a small part of a log.
const BATCH: usize = 128;
/// A file that has more to commit than this is committed by itself, in bytes.
const LARGE: usize = 4 << 10;
/// The new wraps of so many secrets are remembered, 40 MB at the most: only a file whose secret was left behind so long
/// ago makes one be wrapped twice.
const REMEMBERED: NonZeroUsize = NonZeroUsize::new(1 << 16).unwrap();

/// One round over all files.
pub(super) struct Files<'a> {
    rewrap: &'a Rewrap<'a>,
    target: Target,
    /// By digest of what a header carries.
    wraps: LruCache<[u8; 16], Wraps>,
    /// Files with new wraps in memory.
    batch: Vec<Arc<File>>,
    work: Work<'a>,
}

impl<'a> Files<'a> {
    pub fn new(rewrap: &'a Rewrap<'a>, target: Target) -> Self {
        let work = Work::new(rewrap.fs, rewrap.stop, rewrap.wait, &rewrap.progress.unwrapped);
        Self { rewrap, target, wraps: LruCache::new(REMEMBERED), batch: Vec::with_capacity(BATCH), work }
    }

    pub fn into_left(self) -> NotDone {
        self.work.found
    }

    /// Looks at one file, and gives it its new header soon if it has an older one.
    pub fn look(&mut self, seen: &Seen<'_>) -> Result<(), Stopped> {
        let fs = self.rewrap.fs;
        let path = || join(&fs.nodes.path(seen.parent), seen.entry);
        let target = self.target;
        let Some(store) = self.work.open_unless(|header| target.is_met_by(header), seen)? else { return Ok(()) };
        let done = self.store(&store, &path);
        self.work.or_left(seen, &*store, done)
    }

    fn store(&mut self, store: &Arc<dyn StoreFile>, path: &dyn Fn() -> Vec<u8>) -> Result<(), Problem> {
        let fs = self.rewrap.fs;
        let ino = store.inode().stat()?.ino;
        match Unverified::read(&**store) {
            Ok(Found::Header(found)) if self.target.is_met_by(found.header()) => return Ok(()),
            // Just made, and not by an older KEK.
            Ok(Found::Nothing) if fs.open_file(ino).is_some() => return Ok(()),
            _ => (),
        }
        let file = self.work.obtain(ino, store, path)?;
        let header = file.header();
        if self.target.is_met_by(&header) {
            return self.work.see_to(&file);
        }
        let (envelope, recovery) = self.new_wraps(&header)?;
        file.set_wraps(envelope, recovery, Arc::clone(store));
        if file.is_fresh() || file.pending_bytes() > LARGE {
            file.sync(false).map_err(|error| self.work.stopped(error.into()))?;
            self.done(1);
            return Ok(());
        }
        self.batch.push(file);
        if self.batch.len() == BATCH { Ok(self.flush()?) } else { Ok(()) }
    }

    /// The secret of a header, wrapped by the KEKs of the target: once for all headers that carry it.
    ///
    /// A KMS that can turn one wrap into another by itself would not help here: the header's own MAC needs the secret.
    fn new_wraps(&mut self, header: &Header) -> Result<Wraps, Problem> {
        let digest = digest(header);
        if let Some(wraps) = self.wraps.get(&digest) {
            return Ok(wraps.clone());
        }
        let fs = self.rewrap.fs;
        let wrapped = fs.volume.wrapped(header).map_err(|damage| Problem::from(&damage))?;
        let secret = self.work.fetch(&wrapped)?;
        let envelope = match &header.envelope {
            present if present.kek >= self.target.primary => present.clone(),
            _ => self.wrap(KekRole::Primary, &secret)?,
        };
        let recovery = match (self.target.recovery, &header.recovery) {
            (Some(oldest), Some(present)) if present.kek >= oldest => Some(present.clone()),
            (Some(_), _) => Some(self.wrap(KekRole::Recovery, &secret)?),
            (None, _) => None,
        };
        let new = Header { envelope, recovery, ..header.clone() };
        if let Ok(wrapped) = fs.volume.wrapped(&new) {
            // Whoever opens one of its files next needs no call for it.
            fs.leases.share(&wrapped, &secret);
        }
        let wraps = (new.envelope, new.recovery);
        self.wraps.put(digest, wraps.clone());
        Ok(wraps)
    }

    fn wrap(&self, role: KekRole, secret: &Secret32) -> Result<Envelope, Problem> {
        let fs = self.rewrap.fs;
        let record = fs.volume.record();
        let kek = record.newest_of(role).unwrap_or(record.newest());
        let wrapped = fs.ring.at(&kek.reference)?.wrap(secret, record.id)?;
        self.rewrap.progress.wrapped.fetch_add(1, Ordering::Relaxed);
        fs.volume.envelope(role, &wrapped).ok_or_else(|| {
            let message = format!("the key has a newer version, {}, since the rewrap began", wrapped.kek);
            KmsError::new(KmsErrorKind::Unreachable, message).hint("the same command goes on with it").into()
        })
    }

    /// Commits the files whose new wraps are in memory.
    fn flush(&mut self) -> Result<(), Stopped> {
        let fs = self.rewrap.fs;
        let files = std::mem::take(&mut self.batch);
        let count = files.len() as u64;
        fs.commit_together(files).map_err(|error| self.work.stopped(error))?;
        self.done(count);
        Ok(())
    }

    fn done(&self, count: u64) {
        self.rewrap.progress.rewrapped.fetch_add(count, Ordering::Relaxed);
        (self.rewrap.pace)(count);
    }

    /// What no name of the tree leads to, after everything else.
    pub fn finish(&mut self) -> Result<(), Stopped> {
        self.flush()?;
        let fs = self.rewrap.fs;
        for file in self.work.nameless()? {
            let header = file.header();
            if self.target.is_met_by(&header) {
                continue;
            }
            match self.new_wraps(&header) {
                Ok((envelope, recovery)) => file.set_wraps_in_memory(envelope, recovery),
                Err(Problem::All(stopped)) => return Err(stopped),
                // It cannot be opened any more, and ends with those who have it open.
                Err(Problem::File(_) | Problem::Refused(_)) => (),
            }
        }
        for (_, rest) in fs.nodes.rests() {
            // Nobody may be able to open it; then nobody needs it.
            let Ok(store) = rest.open_file(true) else { continue };
            match self.store(&store, &Vec::new) {
                Err(Problem::All(stopped)) => return Err(stopped),
                Ok(()) | Err(Problem::File(_) | Problem::Refused(_)) => (),
            }
        }
        self.flush()?;
        self.lost()
    }

    /// What crashes left of files, which may be put back: it is replaced by a copy with another header.
    fn lost(&mut self) -> Result<(), Stopped> {
        let fs = self.rewrap.fs;
        let Some(lost) = fs.volume.lost_if_any()? else { return Ok(()) };
        for entry in lost.list()? {
            let stat = lost.stat(&entry.name)?;
            if stat.kind != Kind::File || entry.name.contains(&b'.') {
                continue;
            }
            match self.lost_file(&*lost, &entry.name) {
                Ok(()) => (),
                Err(Problem::All(stopped)) => return Err(stopped),
                Err(Problem::File(why)) => self.work.leave(stat.ino, join(b"lost", &entry.name), why, false),
                Err(Problem::Refused(why)) => self.work.leave(stat.ino, join(b"lost", &entry.name), why, true),
            }
        }
        Ok(())
    }

    fn lost_file(&mut self, lost: &dyn StoreDir, name: &[u8]) -> Result<(), Problem> {
        let fs = self.rewrap.fs;
        let store = lost.open_file(name, false)?;
        let found = match Unverified::read(&*store) {
            Ok(Found::Header(found)) => found,
            Ok(Found::Nothing) => return Err(Problem::from(&Damage::NoHeader)),
            Err(error) => return Err(Problem::File(error.to_string())),
        };
        let header = found.header().clone();
        if self.target.is_met_by(&header) {
            return Ok(());
        }
        let (envelope, recovery) = self.new_wraps(&header)?;
        let wrapped = fs.volume.wrapped(&header).map_err(|damage| Problem::from(&damage))?;
        self.work.fetch(&wrapped)?;
        let keys: Arc<Keys> = {
            let unlocked = fs.enter().map_err(|error| self.work.stopped(error))?;
            fs.keys_of_envelope(&unlocked, &header, wrapped).map_err(|error| self.work.stopped(error))?
        };
        let ledger = fs.context.ledger.get();
        let is_old = ledger.is_some_and(|ledger| ledger.see(header.file, found.stamp(), false) == Version::Old);
        if is_old && ledger.is_some_and(|ledger| !ledger.is_lenient()) {
            // A higher number would make it look newer than it is.
            return Err(Problem::from(&Damage::RolledBack));
        }
        let new =
            rewrapped_page(*found, &keys, envelope, recovery).map_err(|error| Problem::File(error.to_string()))?;
        fs.replace_aside(lost, name, &*store, &new.page[..])?;
        if let Some(ledger) = ledger.filter(|_| !is_old) {
            ledger.note(header.file, new.stamp);
        }
        self.rewrap.progress.rewrapped.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

/// By what the wraps in a header are remembered.
fn digest(header: &Header) -> [u8; 16] {
    let mut hasher = blake3::Hasher::new();
    for envelope in [Some(&header.envelope), header.recovery.as_ref()] {
        let (kek, blob) = envelope.map_or((u32::MAX, &[][..]), |envelope| (envelope.kek.0, &envelope.blob[..]));
        hasher.update(&kek.to_le_bytes()).update(&(blob.len() as u64).to_le_bytes()).update(blob);
    }
    let mut digest = [0; 16];
    digest.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    digest
}
