//! A volume that is not mounted, opened so that its files can be changed, by this process.

use crate::audit::{self, Audit, Cursor, Limits};
use crate::crypto::Secret32;
use crate::crypto::derive::VolumeKeys;
use crate::daemon::control::{Command, Problem};
use crate::daemon::guard::{Guard, GuardOptions, GuardPlace, Subject};
use crate::daemon::{LeftFile, RekeyOrder, RekeyStatus, Rekeyer, RewrapStatus, Rewrapper};
use crate::failure::{Exit, Failure};
use crate::format::volume::KekRole;
use crate::fs::Fs;
use crate::fs::rewrap::Plan;
use crate::fs::volume::{Holder, Holding, Volume, VolumeError};
use crate::journal::{LOG_LEN, recovery};
use crate::kms::{ConnectOptions, Kms, Ring};
use crate::lease::{Leases, LockReason};
use crate::store::dir::DirStore;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// With what begins what the volume's lock says of this.
const HOLDER: &str = "kmsfs ";
/// How many unwrapped envelopes are kept: each is asked for once.
const LEASES: NonZeroUsize = NonZeroUsize::new(1 << 16).unwrap();
/// For how long the end waits for what is under way.
const LAST_OPERATIONS: Duration = Duration::from_secs(5);

/// How a volume is to be opened.
pub struct How<'a> {
    /// For which command.
    pub what: &'static str,
    /// With its recovery key.
    pub with_recovery_kek: bool,
    /// Where the key that opens it is now, if not where the volume says.
    pub present_kek: Option<&'a str>,
    /// How often the KMS is asked at most, in calls a second.
    pub kms_rate: u32,
    /// The guard that has to know of it.
    pub rollback_guard: Option<GuardPlace>,
}

/// The volume, held and unlocked.
pub struct Offline {
    path: PathBuf,
    fs: Arc<Fs>,
    rewrapper: Rewrapper,
    rekeyer: Rekeyer,
    guard: Option<Arc<Guard>>,
    /// Dropped before the volume is let go of.
    audit: Option<Audit>,
    _holding: Holding,
}

impl Offline {
    /// Takes the volume in a directory, recovers it if it was not unmounted, and unlocks it.
    ///
    /// # Errors
    /// As for a mount.
    pub fn open(path: &Path, how: &How<'_>) -> Result<Self, Failure> {
        crate::daemon::harden();
        crate::crypto::cipher::self_test()
            .map_err(|_| Failure::new(Exit::Failure, "this machine's AES-256-GCM gives wrong answers"))?;
        let of_store = |error: std::io::Error| Failure::of_store(path, &error);
        let of_volume = |error| Failure::of_volume(path, error);
        let role = if how.with_recovery_kek { KekRole::Recovery } else { KekRole::Primary };
        let volume = Volume::open(path).map_err(of_volume)?.opened_by(role);
        let holding = hold(path, how.what)?;
        let (directory, tree) = (volume.journal().map_err(of_store)?, volume.tree().map_err(of_store)?);
        let audit = Audit::open(path, volume.record().id, false, Limits::default())
            .inspect_err(|error| eprintln!("warning: there is no line of this in the audit log: {error}"))
            .ok();
        let recorder = audit.as_ref().map_or_else(audit::Recorder::none, |audit| audit.recorder().clone());
        let ring = volume.ring(ConnectOptions::from_variables(|name| std::env::var(name).ok()), how.present_kek);
        let kms: Arc<dyn Kms> = Arc::<Ring>::clone(&ring);
        // What is recovered looks newer than it was: where an older version is to be noticed, the volume is compared first.
        let counter = recovery::committed(&*directory).map_err(of_store)?;
        let unlocked = unlock(path, &volume, &ring);
        let unclean = !recovery::read_only(&*directory).map_err(of_store)?.1;
        let guard = match (&how.rollback_guard, &unlocked) {
            (Some(place), Ok(volume_key)) => {
                let options = GuardOptions { place: place.clone(), warn: false };
                let subject = Subject { volume: &volume, volume_key, kms: &kms, counter, unclean };
                let warn = |what| eprintln!("warning: {what}");
                Guard::open(&options, &subject, false, &recorder, warn)?
            }
            _ => None,
        };
        if how.rollback_guard.is_none() && had_guard(path) {
            eprintln!(
                "warning: the volume's mounts have had a rollback guard; without --rollback-guard it takes what this makes \
                 for new at the next mount only, and cannot tell it from an older copy until then"
            );
        }
        let (journal, found) = recovery::open(&*directory, &*tree, LOG_LEN).map_err(of_store)?;
        if found.crashed || !found.damaged_at.is_empty() {
            recorder.record(audit::Event::Recovery {
                updates: found.updates,
                files: found.files,
                damaged_at: found.damaged_at.iter().map(ToString::to_string).collect(),
            });
        }
        let context = volume.context(journal);
        let volume_key = match unlocked {
            Ok(volume_key) => volume_key,
            Err(failure) => {
                context.journal.close().map_err(of_store)?;
                return Err(failure);
            }
        };
        if let Some(guard) = &guard {
            guard.remember(&volume)?;
            let _ = context.ledger.set(Arc::clone(guard.ledger()));
        }
        recorder.unlock(VolumeKeys::from(&volume_key).audit_mac);
        let leases = Leases::new(kms, volume.record().id, LEASES).with_rate(how.kms_rate).recorded_by(recorder);
        let store = DirStore::open(path).map_err(of_store)?;
        let fs = Fs::new(volume, Arc::new(store), context, Arc::new(leases), volume_key, false)
            .map_err(|error| Failure::new(Exit::Store, format!("the volume cannot be read: {error:?}")))?;
        let fs = Arc::new(fs.with_ring(ring));
        let guard = guard.map(Arc::new);
        if let Some(guard) = guard.clone() {
            let volume = Arc::downgrade(&fs);
            // With the old key as well as with the new one, while both are there.
            fs.on_new_kek(Some(Arc::new(move |_| {
                let Some(fs) = volume.upgrade() else { return };
                if let Err(error) = guard.remember(fs.volume()) {
                    eprintln!("warning: the new key does not remember what the volume is, until the end: {error}");
                }
            })));
        }
        let (rewrapper, rekeyer) = (Rewrapper::new(Arc::clone(&fs)), Rekeyer::new(Arc::clone(&fs)));
        Ok(Self { path: path.to_owned(), rewrapper, rekeyer, fs, guard, audit, _holding: holding })
    }

    /// What a mount would answer to a command of `rekey`.
    ///
    /// # Errors
    /// The mount's, too.
    pub fn answer_rekey(&self, command: Command) -> Result<(RekeyStatus, Vec<LeftFile>), Problem> {
        match command {
            Command::Rekey { path, older_than_s, anew, rate } => {
                Ok((self.rekeyer.start(RekeyOrder { path, older_than_s, anew, rate })?, Vec::new()))
            }
            Command::RekeyProgress { number } => self.rekeyer.progress(number),
            _ => Err(Problem::new("other", "only a mount does that")),
        }
    }

    /// What a mount would answer to a command of `rewrap`.
    ///
    /// # Errors
    /// The mount's, too.
    pub fn answer(&self, command: Command) -> Result<(RewrapStatus, Vec<LeftFile>), Problem> {
        match command {
            Command::Rewrap { kek, recovery_kek, rate } => {
                Ok((self.rewrapper.start(Plan { kek, recovery_kek }, rate)?, Vec::new()))
            }
            Command::RewrapProgress { number } => self.rewrapper.progress(number),
            _ => Err(Problem::new("other", "only a mount does that")),
        }
    }

    /// Ends what runs.
    pub fn cancel(&self) {
        self.rewrapper.cancel();
        self.rekeyer.cancel();
    }

    /// Stores what is left, and wipes the keys.
    ///
    /// # Errors
    /// The store's: the next mount recovers.
    pub fn close(self) -> Result<(), Failure> {
        self.rewrapper.close();
        self.rekeyer.close();
        self.fs.on_new_kek(None);
        // While what has just been made is not crashed, as far as it can tell, it is clean.
        let stored = if self.fs.wants_sweep() { self.fs.commit_all() } else { self.fs.shut_down() };
        if let Some(guard) = self.guard.filter(|_| stored.is_ok()) {
            // The KMS last: what it remembers has to be there.
            guard.remember(self.fs.volume())?;
        }
        self.fs.close(LockReason::Operator, LAST_OPERATIONS);
        drop(self.audit);
        stored.map_err(|error| Failure::new(Exit::Store, format!("{}: {error:?}", self.path.display())))
    }
}

/// Whether the volume was ever mounted with a rollback guard, as far as its audit log tells.
fn had_guard(path: &Path) -> bool {
    let lines = audit::directory(path).and_then(|directory| audit::tail(&*directory, &mut Cursor::default()));
    let is_guard = |line: audit::Tail| line.read.is_some_and(|read| read.event == "rollback-guard");
    lines.is_ok_and(|lines| lines.into_iter().any(is_guard))
}

fn unlock(path: &Path, volume: &Volume, ring: &Ring) -> Result<Secret32, Failure> {
    match volume.unlock(ring) {
        Ok(unwrapped) => Ok(unwrapped.secret),
        Err(VolumeError::Kms(error)) => Err(Failure::of_key(volume, error)),
        Err(error) => Err(Failure::of_volume(path, error)),
    }
}

fn hold(path: &Path, what: &str) -> Result<Holding, Failure> {
    let of_store = |error: std::io::Error| Failure::of_store(path, &error);
    let holder = match Holding::take(path, &Holder::here(format!("{HOLDER}{what}")), false).map_err(of_store)? {
        Ok(holding) => return Ok(holding),
        Err(holder) => holder,
    };
    let command = holder.as_ref().and_then(|holder| Some((holder, holder.mountpoint.strip_prefix(HOLDER)?)));
    if let Some((other, what)) = command {
        let message = format!("a {what} runs on {} already, by process {}", path.display(), other.pid);
        return Err(Failure::new(Exit::Busy, message).hint("wait for its end"));
    }
    let who = holder.map_or_else(|| "by another process".to_owned(), |holder| holder.to_string());
    let message = format!("{} is mounted, {who}, which does not answer or lets nothing be changed", path.display());
    Err(Failure::new(Exit::AlreadyMounted, message).hint("unmount it, or mount it without -o ro"))
}
