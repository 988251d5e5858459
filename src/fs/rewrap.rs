//! Wrapping everything in a volume by another KEK, or by the newest version of its own, while it is in use. Only wrapped
//! secrets change: no data moves, no DEK changes. Blocks on the KMS: not for a thread that serves the kernel.
//!
//! 1. both keys are tried: the old one has to unwrap the volume key, the new one to wrap and to unwrap it (*a crash:
//!    nothing has changed*);
//! 2. the volume's record gets the new KEK, as the newest one. From here on it opens the volume and wraps what is new
//!    (*a crash: both KEKs are in the record, and each file can be opened*);
//! 3. whoever was creating a file with an older envelope has finished: from here on there are no new ones;
//! 4. each older envelope is unwrapped once and wrapped once, and the headers that carry it are replaced through the
//!    journal, some at a time (*a crash: each file has its old header or its new one, and both are valid*);
//! 5. files that no name leads to any more, but that are open, get theirs in memory;
//! 6. every header is read once more. If one is older, because it cannot be unwrapped or written, it ends here: nothing of
//!    the old KEK may go;
//! 7. the record's floor is raised and the older KEKs leave it, in one replacement (*a crash: before, the same command goes
//!    on, and finds nothing to do until here; after, it is done*).
//!
//! However it ends before step 7, the same command goes on from where it was.

mod files;

use super::renewal::stopped;
pub use super::renewal::{Left, Stopped};
use super::volume::Target;
use super::walk::{Seen, there};
use super::*;
use crate::file::{Found, Unverified};
use crate::format::volume::{Kek, KekRole, VolumeRecord};
use crate::kms::{KekRef, Kms, KmsError, KmsErrorKind};
use crate::units::KekGeneration;
use files::Files;
use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

/// What is older after the first round was put there by nobody we know of; it gets so many rounds in all.
const ROUNDS: usize = 3;

/// What is to be done.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// The KEK by which everything shall be wrapped; without it, the newest version of the present one.
    pub kek: Option<String>,
    /// The recovery KEK that the volume shall have; without it, the present one, if it has one.
    pub recovery_kek: Option<String>,
}

/// How far a rewrap is; may be looked at while it runs.
#[derive(Debug, Default)]
pub struct Progress {
    /// Names of files in the tree; 0 until they are counted.
    pub total: AtomicU64,
    /// Names of files that were looked at, in each round.
    pub files: AtomicU64,
    /// Files that got a new header.
    pub rewrapped: AtomicU64,
    /// Secrets that the KMS unwrapped.
    pub unwrapped: AtomicU64,
    /// Secrets that were wrapped anew.
    pub wrapped: AtomicU64,
}

/// What came of a rewrap.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// The KEKs that nothing needs any more.
    pub retired: Vec<Kek>,
    /// The first of the files that are still wrapped by an older one: then nothing was retired.
    pub left: Vec<Left>,
    /// How many there are.
    pub left_count: u64,
    /// How many files each KEK has wrapped, as the last round has found it.
    pub files: BTreeMap<KekGeneration, u64>,
}

/// One rewrap.
pub struct Rewrap<'a> {
    /// The tree.
    pub fs: &'a Fs,
    /// How far it is.
    pub progress: &'a Progress,
    /// Set to end it.
    pub stop: &'a AtomicBool,
    /// Called with each number of files that got a new header; may take its time.
    pub pace: &'a dyn Fn(u64),
    /// Waits for so long, or until it is told to stop.
    pub wait: &'a dyn Fn(Duration),
}

impl Rewrap<'_> {
    /// Does it.
    ///
    /// # Errors
    /// [`Stopped`]: everything can be read, by both KEKs, and the same goes on later.
    pub fn run(&self, plan: &Plan) -> Result<Outcome, Stopped> {
        let target = self.begin(plan)?;
        self.fs.sweep_first(self.stop, self.wait)?;
        // Whoever had taken an older envelope has finished when this is granted.
        drop(self.fs.namespace.write());
        self.count()?;
        let mut outcome = Outcome::default();
        for _ in 0..ROUNDS {
            let mut files = Files::new(self, target);
            self.round(&mut |seen| files.look(seen))?;
            files.finish()?;
            let found = files.into_left();
            outcome = Outcome { left: found.left, left_count: found.left_count, ..Outcome::default() };
            let older = self.look_once_more(target, &mut outcome)?;
            if older == 0 && outcome.left_count == 0 {
                let volume_key = self.fs.copy_of_volume_key()?;
                outcome.retired = self.fs.volume.retire_keks(target, &volume_key)?;
                self.fs.use_newest_keks();
                return Ok(outcome);
            }
            if older <= outcome.left_count {
                return Ok(outcome);
            }
        }
        outcome.left_count = outcome.left_count.max(1);
        Ok(outcome)
    }

    /// Steps 1 and 2.
    fn begin(&self, plan: &Plan) -> Result<Target, Stopped> {
        let fs = self.fs;
        let volume_key = fs.copy_of_volume_key()?;
        let record = fs.volume.record();
        let opening = fs.volume.opening_kek().unwrap_or_else(|| record.newest().clone());
        fs.ring.unwrap(&opening.volume_key, record.id).map_err(|error| named(error, &opening))?;
        let (reference, kms) = self.reach(&record, plan.kek.as_ref().unwrap_or(&record.newest().reference))?;
        let present = record.newest_of(KekRole::Recovery).map(|kek| &kek.reference);
        let recovery = match plan.recovery_kek.as_ref().or(present) {
            Some(reference) => Some(self.reach(&record, reference)?),
            None => None,
        };
        if recovery.as_ref().is_some_and(|(recovery, _)| *recovery == reference) && is_nowhere(&reference) {
            return Err(not_told_apart().into());
        }
        if let Some((_, recovery)) = &recovery
            && recovery.wrap(&volume_key, record.id)?.kek.is_same_key(&kms.wrap(&volume_key, record.id)?.kek)
        {
            let error = KmsError::new(KmsErrorKind::Misconfigured, "the recovery key would be the key itself");
            return Err(error.hint("give another key, best of all in another vault or another cloud").into());
        }
        let mut added = fs.volume.add_kek(KekRole::Primary, &reference, &*kms, &volume_key)?;
        fs.ring.keep(&reference, kms);
        if let Some((reference, kms)) = recovery {
            added |= fs.volume.add_kek(KekRole::Recovery, &reference, &*kms, &volume_key)?;
            fs.ring.keep(&reference, kms);
        }
        let target = fs.use_newest_keks();
        if added {
            fs.tell_of_new_kek();
        }
        Ok(target)
    }

    /// A new connection to a key, and how the record names it.
    fn reach(&self, record: &VolumeRecord, given: &str) -> Result<(String, Arc<dyn Kms>), Stopped> {
        let kms = self.fs.ring.connect(given)?;
        // What tests have in the place of a KMS has a name of its own.
        let reference = given.parse::<KekRef>().map_or_else(|_| given.to_owned(), |kek| kek.recorded());
        if is_nowhere(&reference) {
            let id = kms.current()?;
            let is_other = |kek: &Kek| kek.reference == reference && !kek.volume_key.kek.is_same_key(&id);
            if record.keks.iter().any(is_other) {
                return Err(not_told_apart().into());
            }
        }
        Ok((reference, kms))
    }

    fn count(&self) -> Result<(), Stopped> {
        let mut count = 0;
        count_files(&*self.fs.volume.tree()?, self.stop, &mut count)?;
        self.progress.total.store(count, Ordering::Relaxed);
        Ok(())
    }

    fn round(&self, look: &mut dyn FnMut(&Seen<'_>) -> Result<(), Stopped>) -> Result<(), Stopped> {
        self.fs.round(None, self.stop, &mut |seen| {
            self.progress.files.fetch_add(1, Ordering::Relaxed);
            look(seen)
        })
    }

    /// Step 6: how many headers are older, and how many files there are of each KEK.
    fn look_once_more(&self, target: Target, outcome: &mut Outcome) -> Result<u64, Stopped> {
        let (mut older, mut linked) = (0, HashSet::new());
        self.round(&mut |seen| {
            if seen.stat.nlink > 1 && !linked.insert(seen.stat.ino) {
                return Ok(());
            }
            let store = match there(seen.directory.open_file(seen.entry, false)) {
                Ok(Some(store)) => store,
                Ok(None) => return Ok(()),
                Err(error) => return Err(stopped(self.stop, error)),
            };
            match Unverified::read(&*store) {
                Ok(Found::Header(found)) => {
                    let header = found.header();
                    *outcome.files.entry(header.envelope.kek).or_default() += 1;
                    older += u64::from(!target.is_met_by(header));
                }
                // Damage has been met before; or it is just being made, or has just gone.
                _ if store.inode().stat().is_ok_and(|stat| stat.nlink == 0) => (),
                _ => older += u64::from(self.fs.open_file(seen.stat.ino).is_none()),
            }
            Ok(())
        })?;
        Ok(older)
    }
}

/// Whether the key has to be given with each command, as the record cannot say where it is.
fn is_nowhere(reference: &str) -> bool {
    reference.parse() == Ok(KekRef::Raw)
}

fn not_told_apart() -> KmsError {
    let message = "the volume would have two keys that are recorded nowhere, and they could not be told apart";
    KmsError::new(KmsErrorKind::Misconfigured, message)
        .hint("keep one of them where the volume can record it: file:PATH or credential:NAME")
}

/// What a KMS said of a KEK, with the version that it is about.
fn named(error: KmsError, kek: &Kek) -> KmsError {
    let id = &kek.volume_key.kek.0;
    let message = match error.message.contains(id) {
        true => error.message,
        false => format!("{}: the volume needs {id}", error.message),
    };
    KmsError { message, ..error }
}

/// How many names of files there are, as far as the directories tell without looking at each.
fn count_files(directory: &dyn StoreDir, stop: &AtomicBool, count: &mut u64) -> io::Result<()> {
    for entry in directory.list()? {
        match entry.kind {
            _ if stop.load(Ordering::Relaxed) => return Ok(()),
            Some(Kind::Directory) => match directory.open_dir(&entry.name) {
                Ok(below) => count_files(&*below, stop, count)?,
                // Removed, or moved, meanwhile.
                Err(_) => continue,
            },
            Some(Kind::File) => *count += 1,
            _ => (),
        }
    }
    Ok(())
}
