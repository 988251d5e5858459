//! A volume without a mount: taken, recovered if it may be written, and unlocked.

use super::plain::Plain;
use crate::crypto::Secret32;
use crate::crypto::derive::VolumeKeys;
use crate::failure::{Exit, Failure};
use crate::fs::Fs;
use crate::fs::volume::{Holder, Holding, Volume, VolumeError};
use crate::journal::{Journal, LOG_LEN, recovery};
use crate::kms::{ConnectOptions, Kms, Ring};
use crate::lease::Leases;
use crate::store::dir::DirStore;
use std::io;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// How many unwrapped envelopes are kept: each is asked for once.
const LEASES: usize = 1 << 16;

/// A volume that is open to this process alone, or to readers alone.
pub struct Opened {
    /// Its tree.
    pub plain: Arc<Plain>,
    /// What whoever relies on its key should know.
    pub warnings: Vec<String>,
    /// The key of [`super::State`].
    pub transfers: Secret32,
    audit: Secret32,
    _holding: Holding,
}

impl Opened {
    /// The key of the audit log; once.
    pub fn audit_key(&self) -> Option<Secret32> {
        Secret32::from_slice(self.audit.expose())
    }

    /// Stores everything, so that the next mount has nothing to recover.
    ///
    /// # Errors
    /// What could not be stored.
    pub fn finish(&self, path: &Path) -> Result<(), Failure> {
        self.plain.fs().shut_down().map_err(|error| {
            Failure::new(Exit::Store, format!("{}: not everything could be stored: {error:?}", path.display()))
        })
    }
}

/// Opens a volume to fill it. What a crash has left is recovered first.
///
/// # Errors
/// Everything that keeps it from being opened, with its exit code.
pub fn import_into(path: &Path, kek: Option<&str>, stop: &AtomicBool) -> Result<Opened, Failure> {
    let volume = Volume::open(path).map_err(|error| Failure::of_volume(path, error))?;
    let holding = hold(path, "kmsfs import", false)?;
    // Nothing is changed before the key is there.
    let opened = unlock(path, volume, holding, kek, false, |volume| {
        let (directory, tree) = (volume.journal()?, volume.tree()?);
        Ok(recovery::open(&*directory, &*tree, LOG_LEN)?.0)
    })?;
    let fs = opened.plain.fs();
    if fs.wants_sweep() {
        // What is not complete since a crash is found before anything is compared with it.
        fs.sweep(stop).map_err(|error| {
            Failure::new(Exit::Store, format!("{}: not every file could be looked at: {error:?}", path.display()))
        })?;
    }
    Ok(opened)
}

/// Opens a volume to read it. Nothing of it is changed, so one that has to be recovered is refused.
///
/// # Errors
/// Everything that keeps it from being opened, with its exit code.
pub fn export_from(path: &Path, kek: Option<&str>) -> Result<Opened, Failure> {
    let volume = Volume::open(path).map_err(|error| Failure::of_volume(path, error))?;
    let holding = hold(path, "kmsfs export", true)?;
    let of_store = |error: io::Error| Failure::of_store(path, &error);
    let (journal, clean) = recovery::read_only(&*volume.journal().map_err(of_store)?).map_err(of_store)?;
    if !clean {
        let message = format!("{} was not unmounted, and has to be recovered first", path.display());
        return Err(Failure::new(Exit::NeedsRecovery, message)
            .hint(format!("mount it once, or: kmsfs fsck --recover {}", path.display())));
    }
    unlock(path, volume, holding, kek, true, |_| Ok(journal))
}

fn hold(path: &Path, who: &str, shared: bool) -> Result<Holding, Failure> {
    match Holding::take(path, &Holder::here(who), shared).map_err(|error| Failure::of_store(path, &error))? {
        Ok(holding) => Ok(holding),
        Err(holder) => {
            let who = holder.map_or_else(|| "by another process".to_owned(), |holder| holder.to_string());
            let message = format!("{} is in use, {who}", path.display());
            let through = if shared { "MOUNTPOINT DIR" } else { "DIR MOUNTPOINT" };
            Err(Failure::new(Exit::AlreadyMounted, message)
                .hint(format!("unmount it first; through the mount, copy with: rsync -aHAXS {through}")))
        }
    }
}

fn unlock(
    path: &Path,
    volume: Volume,
    holding: Holding,
    kek: Option<&str>,
    read_only: bool,
    journal: impl FnOnce(&Volume) -> io::Result<Journal>,
) -> Result<Opened, Failure> {
    crate::crypto::cipher::self_test()
        .map_err(|_| Failure::new(Exit::Failure, "this machine's AES-256-GCM gives wrong answers"))?;
    let of_volume = |error| Failure::of_volume(path, error);
    let record = volume.record();
    let options = ConnectOptions::from_variables(|name| std::env::var(name).ok());
    let ring = volume.ring(options, kek);
    let volume_key = match volume.unlock(&ring) {
        Ok(unwrapped) => unwrapped.secret,
        Err(VolumeError::Kms(error)) => return Err(Failure::of_key(&volume, error)),
        Err(error) => return Err(of_volume(error)),
    };
    if !read_only && volume.adopt_newest_kek(&*ring, &volume_key).map_err(of_volume)? {
        let (references, primary) = volume.references();
        ring.set_keys(references, &primary);
    }
    let kms: Arc<dyn Kms> = Arc::<Ring>::clone(&ring);
    let warnings = kms.warnings();
    let VolumeKeys { transfers, audit_mac: audit, .. } = VolumeKeys::from(&volume_key);
    let leases = Leases::new(kms, record.id, NonZeroUsize::new(LEASES).unwrap_or(NonZeroUsize::MIN));
    let store = DirStore::open(path).map_err(|error| Failure::of_store(path, &error))?;
    let context = volume.context(journal(&volume).map_err(|error| Failure::of_store(path, &error))?);
    let fs = Fs::new(volume, Arc::new(store), context, Arc::new(leases), volume_key, read_only)
        .map_err(|error| Failure::new(Exit::Store, format!("the volume cannot be read: {error:?}")))?;
    let fs = fs.with_ring(ring);
    if !fs.root_is_whole() {
        return Err(Failure::new(Exit::Volume, "the volume is damaged: its root directory has no id"));
    }
    Ok(Opened { plain: Plain::new(fs), warnings, transfers, audit, _holding: holding })
}
