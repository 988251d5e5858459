//! From a volume's directory to a mount that answers, and to its end.

use super::control::{Command, Problem, Reply, Socket};
use super::errand::Errand;
use super::gatekeeper::{Gatekeeper, Parts};
use super::maintenance::Maintenance;
use super::rewrap::Rewrapper;
use super::scrub::Scrubber;
use super::trail::{Trail, note_new_kek};
use super::{MountOptions, Status, mountpoint, process};
use crate::audit;
use crate::crypto::Secret32;
use crate::crypto::derive::VolumeKeys;
use crate::failure::{Exit, Failure};
use crate::file::Context;
use crate::format::volume::KekRole;
use crate::fs::Fs;
use crate::fs::rewrap::Plan;
use crate::fs::volume::{Holder, Holding, Volume, VolumeError};
use crate::fuse::forget::Forgetter;
use crate::fuse::{Buffers, Kernel};
use crate::journal::{Journal, LOG_LEN, recovery};
use crate::kms::{Backoff, ConnectOptions, Kms, KmsErrorKind, Ring};
use crate::lease::{Canary, Event, Keeper, Leases, LockReason, UnlockError};
use crate::store::dir::DirStore;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A mount that waits for its key asks for it again after so long, and then less and less often.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// How long an unmount waits for operations that are still under way.
const LAST_OPERATIONS: Duration = Duration::from_secs(5);
/// How many unwrapped envelopes are kept.
const LEASES: usize = 4096;

/// How far a mount has come.
#[derive(Clone, Debug)]
pub enum Stage {
    /// The KMS does not give the key yet, for this reason.
    Waiting(String),
    /// The mount answers.
    Ready,
}

/// Mounts a volume and serves it until it is unmounted. `reached` is called at each stage.
///
/// # Errors
/// Everything that keeps it from being mounted, each with its exit code; nothing has changed then, but that what a
/// crash had left was recovered.
pub fn serve(options: &MountOptions, mut reached: impl FnMut(Stage)) -> Result<(), Failure> {
    process::harden();
    crate::crypto::cipher::self_test().map_err(|_| {
        Failure::new(Exit::Failure, "this machine's AES-256-GCM gives wrong answers: nothing is touched")
    })?;
    let mountpoint = mountpoint::absolute(&options.mountpoint)?;
    mountpoint::check(&mountpoint, options.flags.nonempty)?;
    check_fuse()?;
    // Other commands say where it is, from wherever they are called.
    let path = options.volume.canonicalize().unwrap_or_else(|_| options.volume.clone());
    let role = if options.with_recovery_kek { KekRole::Recovery } else { KekRole::Primary };
    let volume = Volume::open(&path).map_err(|error| Failure::of_volume(&options.volume, error))?.opened_by(role);
    check_identity(options, &volume)?;
    let (holding, context, recovery) = take(options, &volume, &mountpoint)?;
    let trail = Trail::open(options, &volume, recovery);
    let (ring, volume_key) = wait_for_volume_key(options, &volume, &trail, &mut reached)?;
    if !options.flags.read_only {
        adopt_newest(options, &volume, &ring, &volume_key, &trail)?;
    }
    let record = volume.record();
    let opening = volume.opening_kek().unwrap_or_else(|| record.newest().clone());
    let canary = Canary::new(opening.volume_key, &volume_key);
    #[expect(clippy::expect_used, reason = "a constant")]
    let capacity = NonZeroUsize::new(LEASES).expect("not zero");
    let audit_key = VolumeKeys::from(&volume_key).audit_mac;
    let kms: Arc<dyn Kms> = Arc::<Ring>::clone(&ring);
    let leases = Leases::new(kms, record.id, capacity).with_rate(options.kms_rate).recorded_by(trail.recorder());
    let leases = Arc::new(leases);
    let store = DirStore::open(&options.volume).map_err(|error| Failure::of_store(&options.volume, &error))?;
    let read_only = options.flags.read_only;
    let fs = Fs::new(volume, Arc::new(store), context, Arc::clone(&leases), volume_key, read_only)
        .map_err(|error| Failure::new(Exit::Store, format!("the volume cannot be read: {error:?}")))?;
    let fs = Arc::new(fs.with_ring(ring));
    if !fs.root_is_whole() {
        return Err(Failure::new(Exit::Volume, "the volume is damaged: its root directory has no id"));
    }
    run(options, &mountpoint, fs, &leases, canary, (trail, audit_key), || reached(Stage::Ready))?;
    drop(holding);
    Ok(())
}

/// Mounts, and serves until the end.
fn run(
    options: &MountOptions,
    mountpoint: &std::path::Path,
    fs: Arc<Fs>,
    leases: &Arc<Leases>,
    canary: Canary,
    (trail, audit_key): (Trail, Secret32),
    ready: impl FnOnce(),
) -> Result<(), Failure> {
    let buffers = Arc::new(Buffers::default());
    let kernel = Kernel::new(Arc::clone(&fs), Arc::clone(&buffers), options.flags.direct_io);
    let wash = kernel.wash();
    let source = options.volume.canonicalize().unwrap_or_else(|_| options.volume.clone());
    let session = crate::fuse::mount(kernel, mountpoint, &source, &options.flags)
        .map_err(|error| Failure::new(Exit::Mountpoint, format!("the mount failed: {error}")))?;
    let scrubber = Arc::new(Scrubber::new(Arc::clone(&fs)));
    let rewrapper = Arc::new(Rewrapper::new(Arc::clone(&fs)));
    let parts = Arc::new(Parts {
        fs: Arc::clone(&fs),
        buffers,
        wash,
        forgetter: Forgetter::new(session.notifier()),
        mountpoint: mountpoint.to_owned(),
        recorder: trail.recorder(),
        scrubber: Arc::clone(&scrubber),
        rewrapper: Arc::clone(&rewrapper),
    });
    let failed = |what: &str, error: &std::io::Error| Failure::new(Exit::Failure, format!("{what}: {error}"));
    let served = std::thread::Builder::new()
        .name("kmsfs-session".into())
        .spawn(move || session.run())
        .map_err(|error| failed("no thread to serve the kernel", &error))?;
    let keeper = Keeper::start(
        Arc::clone(leases),
        Arc::new(Gatekeeper(Arc::clone(&parts))),
        canary,
        options.policy,
        tell(trail.recorder()),
    )
    .map_err(|error| failed("no thread to ask the KMS", &error))?;
    let keeper = Arc::new(keeper);
    follow_new_keks(&fs, &keeper, trail.recorder());
    let socket = Socket::bind(mountpoint).map_err(|error| failed("the control socket cannot be made", &error));
    let maintenance = Maintenance::start(parts, options.check_rotation);
    let started = socket.and_then(|socket| {
        let (fs, keeper) = (Arc::clone(&fs), Arc::clone(&keeper));
        let (scrubber, rewrapper) = (Arc::clone(&scrubber), Arc::clone(&rewrapper));
        let (policy, place) = (options.policy, mountpoint.to_owned());
        let read_only = options.flags.read_only;
        socket
            .serve(move |command| {
                answer(command, &keeper, &scrubber, &rewrapper, || {
                    Status::of(&fs, &keeper, &policy, &place, read_only, scrubber.status(), rewrapper.status())
                })
            })
            .map_err(|error| failed("the control socket cannot be served", &error))?;
        end_on_signals(options.mountpoint.clone()).map_err(|error| failed("signals cannot be handled", &error))?;
        // Answered by the session's own threads: from here on everybody gets an answer.
        Errand::ask(mountpoint).run().map_err(|error| failed("the mount does not answer", &error))?;
        Ok(socket)
    });
    match started {
        Ok(socket) => {
            trail.mounted(options, mountpoint, &fs, audit_key);
            ready();
            crate::crypto::wipe_stack();
            let ended = served.join();
            scrubber.close();
            rewrapper.close();
            maintenance.stop();
            finish(&fs, &keeper, &trail);
            drop(trail);
            drop(socket);
            match ended {
                Ok(Ok(())) => Ok(()),
                Ok(Err(error)) => Err(failed("the kernel could not be served any more", &error)),
                Err(_) => Err(Failure::new(Exit::Failure, "a thread that served the kernel panicked")),
            }
        }
        Err(failure) => {
            let _ = mountpoint::detach(mountpoint);
            let _ = served.join();
            scrubber.close();
            rewrapper.close();
            maintenance.stop();
            finish(&fs, &keeper, &trail);
            Err(failure)
        }
    }
}

/// Stores what is left and wipes the keys.
fn finish(fs: &Fs, keeper: &Keeper, trail: &Trail) {
    fs.on_new_kek(None);
    let locked = !fs.is_open();
    if fs.is_open() {
        if let Err(error) = fs.shut_down() {
            tracing::error!("not everything could be committed; the next mount recovers: {error:?}");
        }
        fs.close(LockReason::Operator, LAST_OPERATIONS);
    } else {
        tracing::warn!("unmounted while locked; the next mount recovers ({:?})", keeper.status().state);
    }
    trail.unmounted(fs, locked);
}

/// Takes up the newest version of each of the volume's keys.
fn adopt_newest(
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

/// From now on the canary is the volume key as the newest KEK wrapped it, and what is new is noted.
fn follow_new_keks(fs: &Arc<Fs>, keeper: &Arc<Keeper>, recorder: audit::Recorder) {
    let (volume, keeper) = (Arc::downgrade(fs), Arc::downgrade(keeper));
    fs.on_new_kek(Some(Arc::new(move |canary| {
        let (Some(fs), Some(keeper)) = (volume.upgrade(), keeper.upgrade()) else { return };
        keeper.set_canary(canary);
        let kek = fs.volume().record().newest().volume_key.kek.clone();
        tracing::info!("new files are wrapped by {kek} from now on");
        note_new_kek(&recorder, fs.volume());
    })));
}

fn check_fuse() -> Result<(), Failure> {
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

fn check_identity(options: &MountOptions, volume: &Volume) -> Result<(), Failure> {
    match options.volume_id {
        Some(expected) if expected != volume.record().id => {
            let message = format!("this is volume {}, not {expected}", volume.record().id);
            Err(Failure::new(Exit::WrongKey, message).hint("somebody may have put another volume in its place"))
        }
        _ => Ok(()),
    }
}

/// Takes the volume, and recovers it if it has to be. A mount that changes nothing takes it alone for the recovery only.
fn take(
    options: &MountOptions,
    volume: &Volume,
    mountpoint: &std::path::Path,
) -> Result<(Holding, Arc<Context>, Option<audit::Event>), Failure> {
    let of_store = |error: std::io::Error| Failure::of_store(&options.volume, &error);
    if !options.flags.read_only {
        let holding = hold(options, volume, mountpoint, false)?;
        let (journal, recovery) = recover(options, volume)?;
        return Ok((holding, volume.context(journal), recovery));
    }
    let read_journal = || recovery::read_only(&*volume.journal()?);
    let (journal, clean) = read_journal().map_err(of_store)?;
    if clean {
        return Ok((hold(options, volume, mountpoint, true)?, volume.context(journal), None));
    }
    let holding = hold(options, volume, mountpoint, false)?;
    let (journal, recovery) = recover(options, volume)?;
    journal.close().map_err(of_store)?;
    holding.share().map_err(of_store)?;
    Ok((holding, volume.context(read_journal().map_err(of_store)?.0), recovery))
}

fn hold(
    options: &MountOptions,
    volume: &Volume,
    mountpoint: &std::path::Path,
    shared: bool,
) -> Result<Holding, Failure> {
    let holder = Holder::here(mountpoint.display().to_string());
    match Holding::take(volume.path(), &holder, shared) {
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
fn wait_for_volume_key(
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

fn answer(
    command: Command,
    keeper: &Keeper,
    scrubber: &Scrubber,
    rewrapper: &Rewrapper,
    status: impl Fn() -> Status,
) -> Reply {
    match command {
        Command::Status => Reply::Status(Box::new(status())),
        Command::Watch => Reply::Done,
        Command::Lock => {
            keeper.lock();
            Reply::Done
        }
        Command::Unlock => match keeper.unlock() {
            Ok(()) => Reply::Done,
            Err(UnlockError::Kms(error)) => Reply::Failed(error.into()),
            Err(other) => Reply::Failed(Problem::new("other", other.to_string())),
        },
        Command::Scrub { rate } => match scrubber.start(rate) {
            Ok(status) => Reply::Scrub { status: Box::new(status), findings: Vec::new() },
            Err(problem) => Reply::Failed(problem),
        },
        Command::ScrubProgress { number } => match scrubber.progress(number) {
            Ok((status, findings)) => Reply::Scrub { status: Box::new(status), findings },
            Err(problem) => Reply::Failed(problem),
        },
        Command::ScrubCancel if scrubber.cancel() => Reply::Done,
        Command::ScrubCancel => Reply::Failed(Problem::new("other", "no scrub runs on this mount")),
        Command::Rewrap { kek, recovery_kek, rate } => match rewrapper.start(Plan { kek, recovery_kek }, rate) {
            Ok(status) => Reply::Rewrap { status: Box::new(status), left: Vec::new() },
            Err(problem) => Reply::Failed(problem),
        },
        Command::RewrapProgress { number } => match rewrapper.progress(number) {
            Ok((status, left)) => Reply::Rewrap { status: Box::new(status), left },
            Err(problem) => Reply::Failed(problem),
        },
        Command::RewrapCancel if rewrapper.cancel() => Reply::Done,
        Command::RewrapCancel => Reply::Failed(Problem::new("other", "no rewrap runs on this mount")),
    }
}

/// What the keeper's events are told to: the log of the process, and the audit log where nobody else does.
fn tell(recorder: audit::Recorder) -> impl Fn(Event) + Send {
    move |event| match event {
        Event::Probed { outcome: Ok(()), took } => tracing::debug!("the KMS granted the key within {took:?}"),
        Event::Probed { outcome: Err(error), took } => {
            tracing::warn!("the KMS did not grant the key ({took:?}): {error}")
        }
        Event::Locking(reason) => tracing::warn!("locking: {reason:?}"),
        Event::Locked(reason) => tracing::warn!("locked: {reason:?}"),
        Event::Restricted(what) => {
            tracing::warn!("the key is revoked: {what:?}");
            recorder.record(audit::Event::Restricted { to: what.name() });
        }
        Event::Released => {
            tracing::warn!("the key is granted again: everything is allowed");
            recorder.record(audit::Event::Released);
        }
        Event::Unlocked => tracing::warn!("unlocked"),
        Event::UnlockFailed(why) => {
            tracing::error!("the KMS grants the key, but the volume stays locked: {why}");
            recorder.record(audit::Event::UnlockFailed { reason: audit::clean(&why) });
        }
    }
}

/// On the first signal to end, the mount is taken away if nobody uses it, and else out of the tree.
fn end_on_signals(mountpoint: std::path::PathBuf) -> std::io::Result<()> {
    let mut signals = signal_hook::iterator::Signals::new([libc::SIGTERM, libc::SIGINT, libc::SIGHUP])?;
    std::thread::Builder::new().name("kmsfs-signals".into()).spawn(move || {
        for _ in signals.forever() {
            if mountpoint::unmount(&mountpoint).is_err() {
                tracing::warn!("still in use: the mount ends when nobody uses it any more");
                let _ = mountpoint::detach(&mountpoint);
            }
        }
    })?;
    Ok(())
}
