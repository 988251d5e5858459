//! What giving every file other wraps and giving every file another key have in common: looking at all of them while they
//! are used, opening each with what the KMS unwraps, and what is left at the end. Blocks on the KMS: not for a thread that
//! serves the kernel.

use super::data::Stored;
use super::nodes::Place;
use super::volume::VolumeError;
use super::walk::{Look, Seen, there};
use super::*;
use crate::crypto::Secret32;
use crate::file::{self, Batched, Damage, Found, Unverified};
use crate::format::header::Header;
use crate::kms::{KmsError, KmsErrorKind, Wrapped};
use crate::lease::LeaseError;
use std::io;
use std::time::{Duration, Instant};

/// So many refused secrets, and files that are left, are remembered.
const MOST: usize = 1000;
/// For how long a KMS may be silent before it is given up.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two attempts at one that is.
const PAUSE: Duration = Duration::from_millis(500);
/// How often it is looked whether the sweep of a mount has ended.
const SWEEP_PAUSE: Duration = Duration::from_millis(100);

/// Why it did not come to its end.
#[derive(Debug)]
pub enum Stopped {
    /// It was told to.
    Asked,
    /// The volume locked.
    Locked,
    /// A KMS refuses, or does not answer.
    Kms(KmsError),
    /// The volume, or the store below it.
    Volume(VolumeError),
}

impl From<VolumeError> for Stopped {
    fn from(error: VolumeError) -> Self {
        match error {
            VolumeError::Kms(error) => Self::Kms(error),
            other => Self::Volume(other),
        }
    }
}

impl From<KmsError> for Stopped {
    fn from(error: KmsError) -> Self {
        Self::Kms(error)
    }
}

impl From<io::Error> for Stopped {
    fn from(error: io::Error) -> Self {
        Self::Volume(error.into())
    }
}

/// A file that could not be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Left {
    /// Where it is stored, below the volume's directory.
    pub stored: Vec<u8>,
    /// What is the matter with it.
    pub why: String,
    /// The KMS refuses its KEK.
    pub refused: bool,
}

/// What could not be done.
#[derive(Default)]
pub(super) struct NotDone {
    pub left: Vec<Left>,
    pub left_count: u64,
    /// By inode number: those with several names count once.
    seen: HashSet<u64>,
}

/// What is known to a round over all files.
pub(super) struct Work<'a> {
    pub fs: &'a Fs,
    pub stop: &'a AtomicBool,
    /// Waits for so long, or until it is told to stop.
    pub wait: &'a dyn Fn(Duration),
    /// How many secrets the KMS unwrapped.
    unwrapped: &'a AtomicU64,
    refused: HashMap<Wrapped, KmsError>,
    pub found: NotDone,
}

/// What keeps one file from being done, or all of them.
pub(super) enum Problem {
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

impl<'a> Work<'a> {
    pub fn new(fs: &'a Fs, stop: &'a AtomicBool, wait: &'a dyn Fn(Duration), unwrapped: &'a AtomicU64) -> Self {
        Self { fs, stop, wait, unwrapped, refused: HashMap::new(), found: NotDone::default() }
    }

    pub fn stopped(&self, error: Error) -> Stopped {
        self::stopped(self.stop, error)
    }

    /// Opens a file that the walk has seen, to be changed; none if its header says that it need not be, or if it has gone.
    /// What cannot be opened is left.
    pub fn open_unless(
        &mut self,
        is_done: impl Fn(&Header) -> bool,
        seen: &Seen<'_>,
    ) -> Result<Option<Arc<dyn StoreFile>>, Stopped> {
        // Most of what is not to be changed needs no more than this.
        if let Ok(read) = seen.directory.open_file(seen.entry, false)
            && let Ok(Found::Header(found)) = Unverified::read(&*read)
            && is_done(found.header())
        {
            return Ok(None);
        }
        match there(open_writable(seen.directory, seen.entry)) {
            Err(Error::Errno(number)) => {
                let error = io::Error::from_raw_os_error(number);
                self.leave(seen.stat.ino, self.stored(seen), error.to_string(), false);
                Ok(None)
            }
            opened => opened.map_err(|error| self.stopped(error)),
        }
    }

    /// What came of a file that the walk has seen, if that ends nothing.
    pub fn or_left(
        &mut self,
        seen: &Seen<'_>,
        store: &dyn StoreFile,
        done: Result<(), Problem>,
    ) -> Result<(), Stopped> {
        match done {
            Ok(()) => Ok(()),
            Err(Problem::All(stopped)) => Err(stopped),
            // Its last name has gone meanwhile.
            Err(_) if store.inode().stat().is_ok_and(|stat| stat.nlink == 0) => Ok(()),
            Err(Problem::File(why)) => {
                self.leave(seen.stat.ino, self.stored(seen), why, false);
                Ok(())
            }
            Err(Problem::Refused(why)) => {
                self.leave(seen.stat.ino, self.stored(seen), why, true);
                Ok(())
            }
        }
    }

    /// Where an entry is stored, below the volume's directory.
    pub fn stored(&self, seen: &Seen<'_>) -> Vec<u8> {
        join(b"tree", &join(&self.fs.nodes.path(seen.parent), seen.entry))
    }

    pub fn leave(&mut self, ino: u64, stored: Vec<u8>, why: String, refused: bool) {
        if !self.found.seen.insert(ino) {
            return;
        }
        self.found.left_count += 1;
        if self.found.left.len() < MOST {
            self.found.left.push(Left { stored, why, refused });
        }
    }

    /// The file in a stored file, with its key, shared with whoever has it open.
    pub fn obtain(
        &mut self,
        ino: u64,
        store: &Arc<dyn StoreFile>,
        path: &dyn Fn() -> Vec<u8>,
    ) -> Result<Arc<File>, Problem> {
        let file = self.until_there(|work| work.obtain_once(ino, store, path))?;
        file.map_err(|damage| Problem::from(&damage))
    }

    /// Calls again when the key is there that was missing.
    pub fn until_there<T>(&mut self, act: impl Fn(&Self) -> super::Result<T>) -> Result<T, Problem> {
        loop {
            match act(self) {
                Err(Error::NeedKey(Need::Unwrap(wrapped))) => self.fetch(&wrapped).map(drop)?,
                Err(Error::NeedKey(Need::Envelope)) => self.make_envelope()?,
                Err(error) => return Err(self.stopped(error).into()),
                Ok(done) => return Ok(done),
            }
        }
    }

    /// Makes the next envelope. A KMS that does not answer is waited for.
    fn make_envelope(&self) -> Result<(), Stopped> {
        let begin = Instant::now();
        loop {
            match self.fs.make_envelope() {
                Err(_) if self.stop.load(Ordering::Relaxed) => return Err(Stopped::Asked),
                Err(Stopped::Kms(error)) if error.kind == KmsErrorKind::Unreachable && begin.elapsed() < PATIENCE => {
                    (self.wait)(error.retry_after.unwrap_or(PAUSE).min(PATIENCE));
                }
                done => return done,
            }
        }
    }

    /// The file in a stored file, shared with whoever has it open.
    fn obtain_once(
        &self,
        ino: u64,
        store: &Arc<dyn StoreFile>,
        path: &dyn Fn() -> Vec<u8>,
    ) -> super::Result<Result<Arc<File>, Damage>> {
        let fs = self.fs;
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
    pub fn fetch(&mut self, wrapped: &Wrapped) -> Result<Arc<Secret32>, Problem> {
        let fs = self.fs;
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
                    self.unwrapped.fetch_add(1, Ordering::Relaxed);
                    return Ok(secret);
                }
                Err(LeaseError::Locked) => return Err(Stopped::Locked.into()),
                Err(LeaseError::Kms(error)) => error,
            };
            match error.kind {
                _ if self.stop.load(Ordering::Relaxed) => return Err(Stopped::Asked.into()),
                KmsErrorKind::Refused | KmsErrorKind::Damaged => {
                    let problem = problem(&error);
                    if self.refused.len() < MOST {
                        self.refused.insert(wrapped.clone(), error);
                    }
                    return Err(problem);
                }
                KmsErrorKind::Unreachable if begin.elapsed() < PATIENCE => {
                    (self.wait)(error.retry_after.unwrap_or(PAUSE).min(PATIENCE));
                }
                _ => return Err(error.into()),
            }
        }
    }

    /// Makes durable what a file has in memory.
    pub fn commit(&self, file: &File) -> Result<(), Problem> {
        file.sync(false).map_err(|error| match error {
            file::Error::Damaged(damage) => Problem::from(&damage),
            error => self.stopped(error.into()).into(),
        })
    }

    /// A file has in memory what its header on the disk has not: one that was stopped may have left it so.
    pub fn see_to(&self, file: &File) -> Result<(), Problem> {
        if file.waits_for_commit() { self.commit(file) } else { Ok(()) }
    }

    /// Open files that no name leads to any more.
    pub fn nameless(&self) -> Result<Vec<Arc<File>>, Stopped> {
        let fs = self.fs;
        let mut open: Vec<_> = fs.files.lock().values().map(|open| Arc::clone(&open.file)).collect();
        open.extend(fs.handles.read().values().filter_map(|handle| match handle {
            Handle::File { file, .. } => Some(Arc::clone(file)),
            Handle::Directory { .. } => None,
        }));
        let mut nameless = Vec::new();
        for file in open {
            if file.store().inode().stat()?.nlink == 0 {
                nameless.push(file);
            }
        }
        Ok(nameless)
    }
}

/// What an error means that is no fault of a file.
pub(super) fn stopped(stop: &AtomicBool, error: Error) -> Stopped {
    match error {
        _ if stop.load(Ordering::Relaxed) => Stopped::Asked,
        Error::Errno(number) => io::Error::from_raw_os_error(number).into(),
        Error::Damaged | Error::Stale => io::Error::from_raw_os_error(libc::EIO).into(),
        _ => Stopped::Locked,
    }
}

impl Fs {
    /// Every file is looked at once after a crash before anything else is done with all of them.
    pub(super) fn sweep_first(&self, stop: &AtomicBool, wait: &dyn Fn(Duration)) -> Result<(), Stopped> {
        while self.wants_sweep() {
            match self.sweep(stop) {
                _ if stop.load(Ordering::Relaxed) => return Err(Stopped::Asked),
                // The mount's own is under way.
                Err(Error::Errno(libc::EBUSY)) => wait(SWEEP_PAUSE),
                swept => swept.map_err(|error| stopped(stop, error))?,
            }
        }
        Ok(())
    }

    /// Commits some files of which little is to be committed.
    pub(super) fn commit_together(&self, files: Vec<Arc<File>>) -> super::Result<()> {
        if files.is_empty() {
            return Ok(());
        }
        // Only one at a time may hold the commits of several files.
        let one_at_a_time = self.committing.lock();
        let mut batch = Vec::with_capacity(files.len());
        {
            let keys = self.enter_draining()?;
            let number = self.context.journal.batch();
            for file in &files {
                self.restore_keys(&keys, file)?;
                batch.push(file.prepare_batch(number)?);
            }
        }
        Batched::finish_all(batch)?;
        drop((one_at_a_time, files));
        self.drop_unused();
        Ok(())
    }

    /// Walks over all files, or those below a place; what `look` stops with ends it.
    pub(super) fn round(
        &self,
        below: Option<&Place>,
        stop: &AtomicBool,
        look: &mut dyn FnMut(&Seen<'_>) -> Result<(), Stopped>,
    ) -> Result<(), Stopped> {
        let mut why = None;
        let look: Look<'_> = &mut |seen| {
            look(seen).map_err(|stopped| {
                why = Some(stopped);
                Error::Draining
            })
        };
        let walked = self.walk(below, stop, look);
        match (walked, why) {
            (_, Some(stopped)) => Err(stopped),
            (walked, None) => walked.map_err(|error| stopped(stop, error)),
        }
    }
}

/// The path of an entry in a directory.
pub(super) fn join(directory: &[u8], entry: &[u8]) -> Vec<u8> {
    if directory.is_empty() { entry.to_vec() } else { [directory, b"/", entry].concat() }
}

/// Opens a stored file for writing. One that its owner made read-only is made writable for that moment.
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

/// Whoever gives all files something new does it alone: held as long as that goes on.
pub struct Claim(Arc<Fs>);

impl Drop for Claim {
    fn drop(&mut self) {
        *self.0.renewing.lock() = None;
    }
}

impl Fs {
    /// Claims all files for this.
    ///
    /// # Errors
    /// What somebody else does to them.
    pub fn claim(self: &Arc<Self>, what: &'static str) -> std::result::Result<Claim, &'static str> {
        match &mut *self.renewing.lock() {
            Some(other) => Err(other),
            free => {
                *free = Some(what);
                Ok(Claim(Arc::clone(self)))
            }
        }
    }
}
