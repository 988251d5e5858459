//! The guard against rollback: compares a volume, before anything in it is changed, with what its ledger and the KMS
//! know of it, and lets somebody accept what is older. Invariant: what the KMS remembers was durable in the ledger
//! before, and what the ledger knows in the volume; so no crash makes an honest volume look older than it was.

use crate::audit::{self, Event, Recorder};
use crate::crypto::Secret32;
use crate::crypto::derive::VolumeKeys;
use crate::failure::{Exit, Failure};
use crate::format::volume::{KekRole, VolumeRecord};
use crate::fs::volume::Volume;
use crate::kms::{KekId, Kms, KmsError};
use crate::ledger::{Ledger, LedgerError, Mark, Place};
use crate::store::Store;
use crate::store::dir::DirStore;
use crate::units::VolumeId;
use serde::{Deserialize, Serialize};
use std::ffi::OsStr;
use std::fmt;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

/// The ledger of a volume whose counter is in the KMS: in the volume's directory, where only the KMS keeps it from being
/// put back as well.
const IN_VOLUME: &[u8] = b"ledger.kmsfs";

/// Where it is kept what is known of a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GuardPlace {
    /// In this file, or in one for each volume in this directory.
    File(PathBuf),
    /// In the volume, with a counter in the KMS.
    Kms,
}

impl FromStr for GuardPlace {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "" => Err("it is a file, a directory, or 'kms'".into()),
            "kms" => Ok(Self::Kms),
            path => Ok(Self::File(path.into())),
        }
    }
}

impl fmt::Display for GuardPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Kms => f.write_str("kms"),
        }
    }
}

impl GuardPlace {
    /// The file of a volume's ledger.
    ///
    /// # Errors
    /// A place that guards nothing, because it is part of the volume; a directory that is not there.
    pub fn resolve(&self, volume: &Volume) -> Result<Place, Failure> {
        let path = match self {
            Self::Kms => {
                let store = DirStore::open(volume.path()).map_err(|error| Failure::of_store(volume.path(), &error))?;
                return Ok(Place { directory: store.root(), name: IN_VOLUME.to_vec() });
            }
            Self::File(path) if path.is_dir() => path.join(format!("{}.ledger", volume.record().id)),
            Self::File(path) => path.clone(),
        };
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let inside = volume.path().canonicalize().unwrap_or_else(|_| volume.path().to_owned());
        if parent.canonicalize().is_ok_and(|parent| parent.starts_with(&inside)) {
            let message = format!("the rollback guard {} lies in the volume that it is to guard", path.display());
            return Err(Failure::new(Exit::Usage, message)
                .hint("keep it where whoever can write to the volume cannot, for instance in /var/lib/kmsfs"));
        }
        let store = DirStore::open(parent).map_err(|error| unusable(self, &error))?;
        let name = path.file_name().map_or(&b"-"[..], OsStr::as_bytes).to_vec();
        Ok(Place { directory: store.root(), name })
    }
}

/// How a mount is guarded.
#[derive(Clone, Debug)]
pub struct GuardOptions {
    /// Where it is kept what is known.
    pub place: GuardPlace,
    /// What is older is mounted and read nevertheless, and said to be.
    pub warn: bool,
}

/// What a guard knows, as `kmsfs status --json` prints it. Stable: scripts depend on the names.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GuardStatus {
    /// The file or directory that was named, or `kms`.
    pub place: String,
    /// The volume's counter, as far as it is known.
    pub counter: u64,
    /// How many files it knows.
    pub files: u64,
    /// A rollback was seen that nobody accepted.
    pub suspect: bool,
    /// Why it could not be written the last time.
    pub error: Option<String>,
}

/// The guard of one mount.
pub struct Guard {
    place: GuardPlace,
    ledger: Arc<Ledger>,
    kms: Arc<dyn Kms>,
    read_only: bool,
}

/// A volume that is to be compared.
pub struct Subject<'a> {
    /// The volume, which nobody else changes.
    pub volume: &'a Volume,
    /// Its key.
    pub volume_key: &'a Secret32,
    /// Its KMS.
    pub kms: &'a Arc<dyn Kms>,
    /// Its counter, before anything was recovered.
    pub counter: u64,
    /// It will be recovered, which counts on.
    pub unclean: bool,
}

impl Subject<'_> {
    fn mark(&self) -> Mark {
        Mark { counter: self.counter, record: self.volume.record().generation, suspect: false }
    }
}

impl Guard {
    /// Compares a volume with what is known of it. `None`: nothing was known, and nothing can be noted, or there was a
    /// warning that it cannot be told; the mount has no guard then. `warn` is called with what has to be said.
    ///
    /// # Errors
    /// [`Exit::RolledBack`] for a volume that is older, or of which the guard cannot tell; else why the guard cannot be
    /// read or written.
    pub fn open(
        options: &GuardOptions,
        subject: &Subject<'_>,
        read_only: bool,
        recorder: &Recorder,
        mut warn: impl FnMut(String),
    ) -> Result<Option<Self>, Failure> {
        let (volume, id) = (subject.volume, subject.volume.record().id);
        let key = VolumeKeys::from(subject.volume_key).ledger_mac;
        let place = options.place.resolve(volume)?;
        let remembered = match options.place {
            GuardPlace::Kms => remembered(subject).or_else(|error| match options.warn {
                true => {
                    warn(format!("the KMS does not give the counter of the volume: {error}"));
                    Ok(None)
                }
                false => Err(error),
            })?,
            GuardPlace::File(_) => None,
        };
        let opened = match Ledger::open(place.clone(), id, &key) {
            Err(LedgerError::OtherVolume(other)) => {
                let message = format!("the rollback guard {} is of the volume {other}, not of {id}", options.place);
                return Err(Failure::new(Exit::WrongKey, message).hint(
                    "name the guard of this volume, or a directory, in which each volume gets a file of its own",
                ));
            }
            Err(LedgerError::Io(error)) => return Err(unusable(&options.place, &error)),
            other => other,
        };
        if let Some(what) = judge(&opened, remembered, subject.mark()) {
            recorder.record(Event::Rollback { what: audit::clean(&what), refused: !options.warn });
            if !options.warn {
                return Err(refused(volume, &options.place, &what));
            }
            warn(what);
        }
        let ledger = match opened {
            Ok(ledger) => {
                if options.warn && judge_known(&ledger, remembered, subject.mark()).is_some() {
                    ledger.suspect();
                    if subject.unclean {
                        // Also by a mount that changes nothing else: when it is recovered, it may look new enough.
                        ledger.flush(&key, subject.counter).map_err(|error| unusable(&options.place, &error))?;
                    }
                }
                ledger
            }
            Err(LedgerError::Missing) if remembered.is_none() => {
                if read_only {
                    warn(format!(
                        "the rollback guard {} knows nothing yet, and a read-only mount notes nothing",
                        options.place
                    ));
                    return Ok(None);
                }
                warn(format!("the rollback guard {} is new: the volume is trusted as it is", options.place));
                let ledger = Ledger::create(place, id, &key, subject.mark());
                recorder.record(Event::RollbackGuard {
                    guard: audit::clean(&options.place.to_string()),
                    first_use: true,
                    counter: subject.counter,
                    files: 0,
                });
                let ledger = ledger.map_err(|error| unusable(&options.place, &error))?;
                return Ok(Some(Self::of(options, ledger, subject, read_only)));
            }
            Err(_) => {
                warn("this mount has no rollback guard".into());
                return Ok(None);
            }
        };
        let ledger = if read_only { ledger.read_only() } else { ledger };
        // One that cannot be written is found now.
        ledger.flush(&key, subject.counter).map_err(|error| unusable(&options.place, &error))?;
        recorder.record(Event::RollbackGuard {
            guard: audit::clean(&options.place.to_string()),
            first_use: false,
            counter: ledger.mark().counter,
            files: ledger.files(),
        });
        Ok(Some(Self::of(options, ledger, subject, read_only)))
    }

    fn of(options: &GuardOptions, ledger: Ledger, subject: &Subject<'_>, read_only: bool) -> Self {
        let ledger = if options.warn { ledger.lenient() } else { ledger };
        let (place, kms) = (options.place.clone(), Arc::clone(subject.kms));
        Self { place, ledger: Arc::new(ledger), kms, read_only }
    }

    /// The ledger.
    pub fn ledger(&self) -> &Arc<Ledger> {
        &self.ledger
    }

    /// Takes up the version of the volume's record, and lets the KMS remember how far the ledger is, which is durable by
    /// now. Of a guard in a file the KMS knows nothing.
    ///
    /// # Errors
    /// The KMS's: above all, that the identity may use the key and not change what is noted of it.
    pub fn remember(&self, volume: &Volume) -> Result<(), KmsError> {
        self.ledger.note_record(volume.record().generation);
        if self.place != GuardPlace::Kms || self.read_only {
            return Ok(());
        }
        let record = volume.record();
        let (kek, counter) = (&record.newest().volume_key.kek, self.ledger.durable_counter());
        self.raise(kek, record.id, counter)?;
        for kek in others(&record) {
            // A record from before the new key would be compared with what the old one remembers.
            if let Err(error) = self.raise(kek, record.id, counter) {
                tracing::info!("{kek} does not remember what the volume is any more: {error}");
            }
        }
        Ok(())
    }

    fn raise(&self, kek: &KekId, volume: VolumeId, counter: u64) -> Result<(), KmsError> {
        // A mount that only warns must not make the KMS forget what it warns of.
        if self.kms.counter(kek, volume)?.is_none_or(|remembered| remembered < counter) {
            self.kms.set_counter(kek, volume, counter)?;
        }
        Ok(())
    }

    /// What it knows.
    pub fn status(&self) -> GuardStatus {
        GuardStatus {
            place: self.place.to_string(),
            counter: self.ledger.mark().counter,
            files: self.ledger.files(),
            suspect: self.ledger.mark().suspect,
            error: self.ledger.error(),
        }
    }
}

/// The newest version of each other key that opens the volume: there are some while, or after, a rewrap did not come to its
/// end.
fn others(record: &VolumeRecord) -> Vec<&KekId> {
    let mut references = vec![&record.newest().reference];
    let mut others = Vec::new();
    for kek in record.keks.iter().rev().filter(|kek| kek.role == KekRole::Primary) {
        if !references.contains(&&kek.reference) {
            references.push(&kek.reference);
            others.push(&kek.volume_key.kek);
        }
    }
    others
}

/// The counter that the KMS remembers. It is with the version of the key that was the newest at the last mount, which a
/// record that was put back need not know: the newest one of all is asked first.
fn remembered(subject: &Subject<'_>) -> Result<Option<u64>, KmsError> {
    let record = subject.volume.record();
    let newest = subject.kms.counter(&subject.kms.current()?, record.id)?;
    let noted = subject.kms.counter(&record.newest().volume_key.kek, record.id)?;
    if newest.max(noted).is_some() {
        return Ok(newest.max(noted));
    }
    for kek in record.keks.iter().rev().filter(|kek| kek.role == KekRole::Primary).skip(1) {
        // One that is refused was the newest once, and there is one since.
        if let Some(counter) = subject.kms.counter(&kek.volume_key.kek, record.id).unwrap_or_default() {
            return Ok(Some(counter));
        }
    }
    Ok(None)
}

/// What is wrong with a volume that is found like this, in words; `None` if it is no older than it was seen to be.
fn judge(ledger: &Result<Ledger, LedgerError>, remembered: Option<u64>, found: Mark) -> Option<String> {
    match (ledger, remembered) {
        (Ok(ledger), _) => judge_known(ledger, remembered, found),
        (Err(LedgerError::Missing), None) => None,
        (Err(LedgerError::Missing), Some(remembered)) => {
            Some(format!("its ledger is gone, and the KMS remembers that it was at {remembered}"))
        }
        (Err(error), _) => Some(format!("what is known of it cannot be read: {error}")),
    }
}

fn judge_known(ledger: &Ledger, remembered: Option<u64>, found: Mark) -> Option<String> {
    let known = ledger.mark();
    if let Some(remembered) = remembered.filter(|remembered| *remembered > known.counter) {
        let at = known.counter;
        return Some(format!("its ledger is at {at}, and the KMS remembers that it was at {remembered}"));
    }
    if known.counter > found.counter {
        return Some(format!("it is at {}, and was seen at {}", found.counter, known.counter));
    }
    if known.record > found.record {
        return Some(format!("its volume.kmsfs is version {}, and was seen as {}", found.record, known.record));
    }
    known.suspect.then(|| "a rollback was seen before, and was not accepted".to_owned())
}

fn refused(volume: &Volume, guard: &GuardPlace, what: &str) -> Failure {
    let path = volume.path().display();
    Failure::new(Exit::RolledBack, format!("{path} may be older than it was: {what}")).hint(format!(
        "if a backup was restored on purpose: kmsfs rollback accept {path} --rollback-guard {guard}; to look at it first, \
         mount it with -o ro --on-rollback warn"
    ))
}

fn unusable(guard: &GuardPlace, error: &io::Error) -> Failure {
    let failure = Failure::new(Exit::Store, format!("the rollback guard {guard} cannot be used: {error}"));
    match error.kind() {
        io::ErrorKind::NotFound => failure.hint("make its directory first, with mode 0700"),
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            failure.hint("it has to be writable for the user who mounts; a mount with -o ro only reads it")
        }
        _ => failure,
    }
}

/// Accepts a volume as it is: nothing is known of it but its counter then. The caller has the volume alone, and has noted
/// it in the audit log.
///
/// # Errors
/// Why the guard cannot be written, or the KMS does not remember it.
pub fn accept(place: &GuardPlace, subject: &Subject<'_>) -> Result<(), Failure> {
    let record = subject.volume.record();
    let key = VolumeKeys::from(subject.volume_key).ledger_mac;
    Ledger::create(place.resolve(subject.volume)?, record.id, &key, subject.mark())
        .map_err(|error| unusable(place, &error))?;
    if *place == GuardPlace::Kms {
        let primary = record.keks.iter().filter(|kek| kek.role == KekRole::Primary);
        let mut versions: Vec<_> = primary.map(|kek| &kek.volume_key.kek).collect();
        let current = subject.kms.current()?;
        if !versions.contains(&&current) {
            versions.push(&current);
        }
        // Whatever any of them remembers would be found by the next mount.
        for kek in versions {
            if subject.kms.counter(kek, record.id)?.is_some_and(|remembered| remembered > subject.counter) {
                subject.kms.set_counter(kek, record.id, subject.counter)?;
            }
        }
    }
    Ok(())
}
