//! A volume that is not mounted, opened so that its files can be changed, by this process.

use crate::audit::{self, Audit, Limits};
use crate::crypto::derive::VolumeKeys;
use crate::daemon::control::{Command, Problem};
use crate::daemon::{LeftFile, RewrapStatus, Rewrapper};
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

/// What the volume's lock says of this.
const HOLDER: &str = "kmsfs rewrap";
/// How many unwrapped envelopes are kept: each is asked for once.
const LEASES: NonZeroUsize = NonZeroUsize::new(1 << 16).unwrap();
/// For how long the end waits for what is under way.
const LAST_OPERATIONS: Duration = Duration::from_secs(5);

/// The volume, held and unlocked.
pub struct Offline {
    path: PathBuf,
    fs: Arc<Fs>,
    rewrapper: Rewrapper,
    /// Dropped before the volume is let go of.
    audit: Option<Audit>,
    _holding: Holding,
}

impl Offline {
    /// Takes the volume in a directory, recovers it if it was not unmounted, and unlocks it.
    ///
    /// # Errors
    /// As for a mount.
    pub fn open(path: &Path, with_recovery_kek: bool, kms_rate: u32) -> Result<Self, Failure> {
        crate::daemon::harden();
        crate::crypto::cipher::self_test()
            .map_err(|_| Failure::new(Exit::Failure, "this machine's AES-256-GCM gives wrong answers"))?;
        let of_store = |error: std::io::Error| Failure::of_store(path, &error);
        let of_volume = |error| Failure::of_volume(path, error);
        let role = if with_recovery_kek { KekRole::Recovery } else { KekRole::Primary };
        let volume = Volume::open(path).map_err(of_volume)?.opened_by(role);
        let holding = hold(path)?;
        let (directory, tree) = (volume.journal().map_err(of_store)?, volume.tree().map_err(of_store)?);
        let (journal, found) = recovery::open(&*directory, &*tree, LOG_LEN).map_err(of_store)?;
        let audit = Audit::open(path, volume.record().id, false, Limits::default())
            .inspect_err(|error| eprintln!("warning: there is no line of this in the audit log: {error}"))
            .ok();
        let recorder = audit.as_ref().map_or_else(audit::Recorder::none, |audit| audit.recorder().clone());
        if found.crashed || !found.damaged_at.is_empty() {
            recorder.record(audit::Event::Recovery {
                updates: found.updates,
                files: found.files,
                damaged_at: found.damaged_at.iter().map(ToString::to_string).collect(),
            });
        }
        let context = volume.context(journal);
        let ring = volume.ring(ConnectOptions::from_variables(|name| std::env::var(name).ok()), None);
        let volume_key = match volume.unlock(&ring) {
            Ok(unwrapped) => unwrapped.secret,
            Err(VolumeError::Kms(error)) => {
                context.journal.close().map_err(of_store)?;
                return Err(Failure::of_key(&volume, error));
            }
            Err(error) => return Err(of_volume(error)),
        };
        recorder.unlock(VolumeKeys::from(&volume_key).audit_mac);
        let kms: Arc<dyn Kms> = Arc::<Ring>::clone(&ring);
        let leases = Leases::new(kms, volume.record().id, LEASES).with_rate(kms_rate).recorded_by(recorder);
        let store = DirStore::open(path).map_err(of_store)?;
        let fs = Fs::new(volume, Arc::new(store), context, Arc::new(leases), volume_key, false)
            .map_err(|error| Failure::new(Exit::Store, format!("the volume cannot be read: {error:?}")))?;
        let fs = Arc::new(fs.with_ring(ring));
        Ok(Self { path: path.to_owned(), rewrapper: Rewrapper::new(Arc::clone(&fs)), fs, audit, _holding: holding })
    }

    /// What a mount would answer.
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
    }

    /// Stores what is left, and wipes the keys.
    ///
    /// # Errors
    /// The store's: the next mount recovers.
    pub fn close(self) -> Result<(), Failure> {
        self.rewrapper.close();
        // While what has just been made is not crashed, as far as it can tell, it is clean.
        let stored = if self.fs.wants_sweep() { self.fs.commit_all() } else { self.fs.shut_down() };
        self.fs.close(LockReason::Operator, LAST_OPERATIONS);
        drop(self.audit);
        stored.map_err(|error| Failure::new(Exit::Store, format!("{}: {error:?}", self.path.display())))
    }
}

fn hold(path: &Path) -> Result<Holding, Failure> {
    let of_store = |error: std::io::Error| Failure::of_store(path, &error);
    let holder = match Holding::take(path, &Holder::here(HOLDER), false).map_err(of_store)? {
        Ok(holding) => return Ok(holding),
        Err(holder) => holder,
    };
    if let Some(other) = holder.as_ref().filter(|holder| holder.mountpoint == HOLDER) {
        let message = format!("a rewrap runs on {} already, by process {}", path.display(), other.pid);
        return Err(Failure::new(Exit::Busy, message).hint("wait for its end"));
    }
    let who = holder.map_or_else(|| "by another process".to_owned(), |holder| holder.to_string());
    let message = format!("{} is mounted, {who}, which does not answer or lets nothing be changed", path.display());
    Err(Failure::new(Exit::AlreadyMounted, message).hint("unmount it, or mount it without -o ro"))
}
