//! What a mount needs before the kernel can be served: the volume taken and recovered, and its key unwrapped.

use super::trail::Trail;
use super::{MountOptions, Stage, mountpoint};
use crate::audit;
use crate::crypto::Secret32;
use crate::failure::{Exit, Failure};
use crate::file::Context;
use crate::format::volume::KekRole;
use crate::fs::volume::{Holder, Holding, Volume, VolumeError};
use crate::journal::{Journal, LOG_LEN, recovery};
use crate::kms::{Backoff, ConnectOptions, KmsErrorKind, Ring};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A mount that waits for its key asks for it again after so long, and then less and less often.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// How long a mount waits for the one before it, which is unmounted and still stores something, and how often it looks.
const ENDING: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(20);

pub(super) fn check_fuse() -> Result<(), Failure> {
    let hint = "apt-get install fuse3, and modprobe fuse";
    if !std::path::Path::new("/dev/fuse").exists() {
        return Err(Failure::new(Exit::FuseMissing, "this system has no /dev/fuse").hint(hint));
    }
    let helper = || {
        std::env::var_os("PATH")
            .is_some_and(|path| std::env::split_paths(&path).any(|directory| directory.join("fusermount3").exists()))
    };
    if !rustix::process::geteuid().is_root() && !helper() {
        let failure = Failure::new(Exit::FuseMissing, "fusermount3, which mounts for ordinary users, is not installed");
        return Err(failure.hint(hint));
    }
    Ok(())
}

pub(super) fn check_identity(options: &MountOptions, volume: &Volume) -> Result<(), Failure> {
    match options.volume_id {
        Some(expected) if expected != volume.record().id => {
            let message = format!("this is volume {}, not {expected}", volume.record().id);
            Err(Failure::new(Exit::WrongKey, message).hint("somebody may have put another volume in its place"))
        }
        _ => Ok(()),
    }
}

/// Takes the volume; says whether it has to be recovered first. A mount that changes nothing takes it alone for the
/// recovery only.
pub(super) fn take(
    options: &MountOptions,
    volume: &Volume,
    mountpoint: &std::path::Path,
) -> Result<(Holding, bool), Failure> {
    let of_store = |error: std::io::Error| Failure::of_store(&options.volume, &error);
    let clean =
        options.flags.read_only && recovery::read_only(&*volume.journal().map_err(of_store)?).map_err(of_store)?.1;
    Ok((hold(options, volume, mountpoint, clean)?, !clean))
}

/// Opens the journal, after what a crash has left was recovered, if the volume is unclean.
pub(super) fn bring_up(
    options: &MountOptions,
    volume: &Volume,
    holding: &Holding,
    unclean: bool,
) -> Result<(Arc<Context>, Option<audit::Event>), Failure> {
    let of_store = |error: std::io::Error| Failure::of_store(&options.volume, &error);
    if !options.flags.read_only {
        let (journal, recovery) = recover(options, volume)?;
        return Ok((volume.context(journal), recovery));
    }
    let mut event = None;
    if unclean {
        let (journal, recovery) = recover(options, volume)?;
        journal.close().map_err(of_store)?;
        holding.share().map_err(of_store)?;
        event = recovery;
    }
    let journal = recovery::read_only(&*volume.journal().map_err(of_store)?).map_err(of_store)?.0;
    Ok((volume.context(journal), event))
}

fn hold(
    options: &MountOptions,
    volume: &Volume,
    mountpoint: &std::path::Path,
    shared: bool,
) -> Result<Holding, Failure> {
    let holder = Holder::here(mountpoint.display().to_string());
    let begin = Instant::now();
    let is_ending = |other: &Holder| {
        other.answers && other.host == holder.host && mountpoint::is_ending(other.pid, other.mountpoint.as_ref())
    };
    let mut taken = Holding::take(volume.path(), &holder, shared);
    // umount(8) returns before everything is stored. Whoever mounts again at once is not to be told of a mount that
    // nobody can see.
    while let Ok(Err(Some(other))) = &taken
        && is_ending(other)
        && begin.elapsed() < ENDING
    {
        std::thread::sleep(LOOK);
        taken = Holding::take(volume.path(), &holder, shared);
    }
    match taken {
        Ok(Ok(holding)) => Ok(holding),
        Ok(Err(other)) => {
            let who = other.map_or_else(|| "by another process".to_owned(), |other| other.to_string());
            let message = format!("{} is mounted already, {who}", options.volume.display());
            Err(Failure::new(Exit::AlreadyMounted, message)
                .hint("a volume can be mounted once, or several times with -o ro"))
        }
        Err(error) => Err(Failure::of_store(&options.volume, &error)),
    }
}

/// Opens the journal and replays what a crash has left. Needs no key.
fn recover(options: &MountOptions, volume: &Volume) -> Result<(Journal, Option<audit::Event>), Failure> {
    let of_store = |error: std::io::Error| Failure::of_store(&options.volume, &error);
    let (directory, tree) = (volume.journal().map_err(of_store)?, volume.tree().map_err(of_store)?);
    let (journal, found) = recovery::open(&*directory, &*tree, LOG_LEN).map_err(of_store)?;
    if found.crashed {
        tracing::warn!(
            "the volume was not unmounted: {} updates of {} files were replayed",
            found.updates,
            found.files
        );
    }
    for at in &found.damaged_at {
        tracing::error!("the journal is damaged at {at}: changes that were committed there are lost");
    }
    let happened = found.crashed || !found.damaged_at.is_empty();
    let recovery = happened.then(|| audit::Event::Recovery {
        updates: found.updates,
        files: found.files,
        damaged_at: found.damaged_at.iter().map(ToString::to_string).collect(),
    });
    Ok((journal, recovery))
}

/// Unwraps the volume key, with as much patience as the options say: what the KMS refuses it may grant later, and what
/// is away may come back.
pub(super) fn wait_for_volume_key(
    options: &MountOptions,
    volume: &Volume,
    trail: &Trail,
    reached: &mut impl FnMut(Stage),
) -> Result<(Arc<Ring>, Secret32), Failure> {
    let begin = Instant::now();
    let mut pauses = Backoff::seeded(FIRST_PAUSE, LONGEST_PAUSE);
    loop {
        let connect = ConnectOptions::from_variables(|name| std::env::var(name).ok());
        let ring = volume.ring(connect, options.kek.as_deref());
        let error = match volume.unlock(&ring) {
            Ok(unwrapped) => {
                trail.unwrapped(&unwrapped.ids);
                return Ok((ring, unwrapped.secret));
            }
            Err(VolumeError::Kms(error)) => error,
            Err(error) => return Err(Failure::of_volume(&options.volume, error)),
        };
        if let Some(kek) = volume.opening_kek() {
            trail.denied(&kek.volume_key, &error);
        }
        let passes = matches!(error.kind, KmsErrorKind::Refused | KmsErrorKind::Unreachable);
        let left = options.wait.and_then(|wait| wait.checked_sub(begin.elapsed()));
        let Some(left) = left.filter(|_| passes) else { return Err(Failure::of_key(volume, error)) };
        tracing::warn!("waiting for the key: {error}");
        reached(Stage::Waiting(error.to_string()));
        std::thread::sleep(pauses.delay().min(left));
    }
}

/// Takes up the newest version of each of the volume's keys.
pub(super) fn adopt_newest(
    options: &MountOptions,
    volume: &Volume,
    ring: &Ring,
    volume_key: &Secret32,
    trail: &Trail,
) -> Result<(), Failure> {
    let of_volume = |error| Failure::of_volume(&options.volume, error);
    let mut rotated = volume.adopt_newest_kek(ring, volume_key).map_err(of_volume)?;
    if let Some(recovery) = volume.record().newest_of(KekRole::Recovery) {
        // It wraps new files only, and may be out of reach for a while.
        let adopted = ring.at(&recovery.reference).map_err(VolumeError::from);
        match adopted.and_then(|kms| volume.adopt_newest_recovery_kek(&*kms, volume_key)) {
            Ok(adopted) => rotated |= adopted,
            Err(error) => tracing::warn!("new files cannot be made before the recovery key can wrap: {error}"),
        }
    }
    if rotated {
        tracing::info!("the key was rotated: new files are wrapped by its new version");
        let (references, primary) = volume.references();
        ring.set_keys(references, &primary);
        trail.rotated(volume);
    }
    Ok(())
}
