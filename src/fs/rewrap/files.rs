//! The files of a rewrap, one after the other: their secrets by the new KEK, and their headers to the disk.

use super::super::data::Stored;
use super::super::envelopes::Wraps;
use super::super::walk::{Seen, there};
use super::super::*;
use super::{Left, Rewrap, Stopped, Target};
use crate::crypto::Secret32;
use crate::file::{Batched, Damage, Found, Keys, Unverified, rewrapped_page};
use crate::format::header::{Envelope, Header};
use crate::format::volume::KekRole;
use crate::kms::{KmsError, KmsErrorKind, Wrapped};
use crate::lease::LeaseError;
use crate::ledger::Seen as Version;
use lru::LruCache;
use std::io;
use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

/// So many files get their headers with one sync of the journal; all of them together are a small part of a log.
const BATCH: usize = 128;
/// A file that has more to commit than this is committed by itself, in bytes.
const LARGE: usize = 4 << 10;
/// The new wraps of so many secrets are remembered, 40 MB at the most: only a file whose secret was left behind so long
/// ago makes one be wrapped twice.
const REMEMBERED: NonZeroUsize = NonZeroUsize::new(1 << 16).unwrap();
/// So many refused secrets, and files that are left, are remembered.
const MOST: usize = 1000;
/// For how long a KMS may be silent before the rewrap is given up.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two attempts at one that is.
const PAUSE: Duration = Duration::from_millis(500);

/// What could not be done.
#[derive(Default)]
pub(super) struct NotDone {
    pub left: Vec<Left>,
    pub left_count: u64,
    /// By inode number: those with several names count once.
    seen: HashSet<u64>,
}

/// One round over all files.
pub(super) struct Files<'a> {
    rewrap: &'a Rewrap<'a>,
    target: Target,
    /// By digest of what a header carries.
    wraps: LruCache<[u8; 16], Wraps>,
    refused: HashMap<Wrapped, KmsError>,
    /// Files with new wraps in memory.
    batch: Vec<Arc<File>>,
    found: NotDone,
}

/// What keeps one file from being done, or all of them.
enum Problem {
    File(String),
    Refused(String),
    All(Stopped),
}

impl<T: Into<Stopped>> From<T> for Problem {
    fn from(error: T) -> Self {
        Self::All(error.into())
    }
}

impl From<&Damage> for Problem {
    fn from(damage: &Damage) -> Self {
        Self::File(damage.to_string())
    }
}

impl<'a> Files<'a> {
    pub fn new(rewrap: &'a Rewrap<'a>, target: Target) -> Self {
        let (batch, found) = (Vec::with_capacity(BATCH), NotDone::default());
        Self { rewrap, target, wraps: LruCache::new(REMEMBERED), refused: HashMap::new(), batch, found }
    }

    pub fn into_left(self) -> NotDone {
        self.found
    }

    /// Looks at one file, and gives it its new header soon if it has an older one.
    pub fn look(&mut self, seen: &Seen<'_>) -> Result<(), Stopped> {
        let fs = self.rewrap.fs;
        let path = || join(&fs.nodes.path(seen.parent), seen.entry);
        // Most of what is not to be changed needs no more than this.
        if let Ok(read) = seen.directory.open_file(seen.entry, false)
            && let Ok(Found::Header(found)) = Unverified::read(&*read)
            && self.target.is_met_by(found.header())
        {
            return Ok(());
        }
        let store = match there(open_writable(seen.directory, seen.entry)) {
            Ok(Some(store)) => store,
            Ok(None) => return Ok(()),
            Err(Error::Errno(number)) => {
                let error = io::Error::from_raw_os_error(number);
                self.leave(seen.stat.ino, join(b"tree", &path()), error.to_string(), false);
                return Ok(());
            }
            Err(error) => return Err(self.rewrap.stopped(error)),
        };
        match self.store(&store, &path) {
            Ok(()) => Ok(()),
            Err(Problem::All(stopped)) => Err(stopped),
            // Its last name has gone meanwhile.
            Err(_) if store.inode().stat().is_ok_and(|stat| stat.nlink == 0) => Ok(()),
            Err(Problem::File(why)) => {
                self.leave(seen.stat.ino, join(b"tree", &path()), why, false);
                Ok(())
            }
            Err(Problem::Refused(why)) => {
                self.leave(seen.stat.ino, join(b"tree", &path()), why, true);
                Ok(())
            }
        }
    }

    fn leave(&mut self, ino: u64, stored: Vec<u8>, why: String, refused: bool) {
        if !self.found.seen.insert(ino) {
            return;
        }
        self.found.left_count += 1;
        if self.found.left.len() < MOST {
            self.found.left.push(Left { stored, why, refused });
        }
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
        let file = loop {
            match self.obtain(ino, store, path) {
                Err(Error::NeedKey(Need::Unwrap(wrapped))) => self.fetch(&wrapped).map(drop)?,
                Err(Error::NeedKey(Need::Envelope)) => fs.refill().map_err(|error| self.rewrap.stopped(error))?,
                Err(error) => return Err(self.rewrap.stopped(error).into()),
                Ok(file) => break file.map_err(|damage| Problem::from(&damage))?,
            }
        };
        let header = file.header();
        if self.target.is_met_by(&header) {
            return Ok(());
        }
        let (envelope, recovery) = self.new_wraps(&header)?;
        file.set_wraps(envelope, recovery, Arc::clone(store));
        if file.is_fresh() || file.pending_bytes() > LARGE {
            file.sync(false).map_err(|error| self.rewrap.stopped(error.into()))?;
            self.done(1);
            return Ok(());
        }
        self.batch.push(file);
        if self.batch.len() == BATCH { Ok(self.flush()?) } else { Ok(()) }
    }

    /// The file in a stored file, shared with whoever has it open.
    fn obtain(
        &self,
        ino: u64,
        store: &Arc<dyn StoreFile>,
        path: &dyn Fn() -> Vec<u8>,
    ) -> Result<Result<Arc<File>, Damage>> {
        let fs = self.rewrap.fs;
        let keys = fs.enter()?;
        let open = |file: Arc<File>| fs.restore_keys(&keys, &file).map(|()| Ok(file));
        if let Some(file) = fs.open_file(ino) {
            return open(file);
        }
        let _alone = fs.opening[ino as usize % OPENING].lock();
        if let Some(file) = fs.open_file(ino) {
            return open(file);
        }
        let stat = store.inode().stat()?;
        match fs.open_stored(&keys, ino, path, store)? {
            Stored::Whole(file) => {
                let file = Arc::new(*file);
                file.set_mtime(stat.mtime);
                Ok(Ok(Arc::clone(&fs.files.lock().entry(ino).or_insert_with(|| OpenFile::of(&file)).file)))
            }
            Stored::Unfinished(left) => Ok(Err(left.map_or(Damage::NoHeader, |(_, damage)| damage))),
            Stored::Damaged(damage) => Ok(Err(damage)),
        }
    }

    /// What the KMS unwraps a secret to. One that does not answer is waited for.
    fn fetch(&mut self, wrapped: &Wrapped) -> Result<Arc<Secret32>, Problem> {
        let fs = self.rewrap.fs;
        if let Some(secret) = fs.leases.cached(wrapped) {
            return Ok(secret);
        }
        let problem = |error: &KmsError| {
            let why = format!("{error}; it needs {}", wrapped.kek);
            if error.kind == KmsErrorKind::Refused { Problem::Refused(why) } else { Problem::File(why) }
        };
        if let Some(error) = self.refused.get(wrapped) {
            return Err(problem(error));
        }
        let begin = Instant::now();
        loop {
            let error = match fs.leases.fetch(wrapped) {
                Ok(secret) => {
                    self.rewrap.progress.unwrapped.fetch_add(1, Ordering::Relaxed);
                    return Ok(secret);
                }
                Err(LeaseError::Locked) => return Err(Stopped::Locked.into()),
                Err(LeaseError::Kms(error)) => error,
            };
            match error.kind {
                _ if self.rewrap.stop.load(Ordering::Relaxed) => return Err(Stopped::Asked.into()),
                KmsErrorKind::Refused | KmsErrorKind::Damaged => {
                    let problem = problem(&error);
                    if self.refused.len() < MOST {
                        self.refused.insert(wrapped.clone(), error);
                    }
                    return Err(problem);
                }
                KmsErrorKind::Unreachable if begin.elapsed() < PATIENCE => {
                    (self.rewrap.wait)(error.retry_after.unwrap_or(PAUSE).min(PATIENCE));
                }
                _ => return Err(error.into()),
            }
        }
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
        let secret = self.fetch(&wrapped)?;
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
        if files.is_empty() {
            return Ok(());
        }
        let count = files.len() as u64;
        let committed = (|| {
            // Only one at a time may hold the commits of several files.
            let _one_at_a_time = fs.committing.lock();
            let mut batch = Vec::with_capacity(files.len());
            {
                let keys = fs.enter_draining()?;
                let number = fs.context.journal.batch();
                for file in &files {
                    fs.restore_keys(&keys, file)?;
                    batch.push(file.prepare_batch(number)?);
                }
            }
            Ok(Batched::finish_all(batch)?)
        })();
        drop(files);
        fs.drop_unused();
        committed.map_err(|error| self.rewrap.stopped(error))?;
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
        let mut open: Vec<_> = fs.files.lock().values().map(|open| Arc::clone(&open.file)).collect();
        open.extend(fs.handles.read().values().filter_map(|handle| match handle {
            Handle::File { file, .. } => Some(Arc::clone(file)),
            Handle::Directory { .. } => None,
        }));
        for file in open {
            let header = file.header();
            if self.target.is_met_by(&header) || file.store().inode().stat()?.nlink > 0 {
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
                Err(Problem::File(why)) => self.leave(stat.ino, join(b"lost", &entry.name), why, false),
                Err(Problem::Refused(why)) => self.leave(stat.ino, join(b"lost", &entry.name), why, true),
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
        self.fetch(&wrapped)?;
        let keys: Arc<Keys> = {
            let unlocked = fs.enter().map_err(|error| self.rewrap.stopped(error))?;
            fs.keys_of_envelope(&unlocked, &header, wrapped).map_err(|error| self.rewrap.stopped(error))?
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

/// The path of an entry in a directory.
fn join(directory: &[u8], entry: &[u8]) -> Vec<u8> {
    if directory.is_empty() { entry.to_vec() } else { [directory, b"/", entry].concat() }
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

/// Opens a file for writing its header. One that its owner made read-only is made writable for that moment.
fn open_writable(directory: &dyn StoreDir, entry: &[u8]) -> io::Result<Arc<dyn StoreFile>> {
    match directory.open_file(entry, true) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            let inode = directory.entry(entry)?;
            let permissions = inode.stat()?.permissions;
            inode.set_permissions(permissions | 0o600)?;
            let opened = directory.open_file(entry, true);
            inode.set_permissions(permissions)?;
            opened
        }
        other => other,
    }
}
