//! From a volume's directory to a mount that answers, and to its end.

use super::attach::{self, Attached};
use super::bring_up::{adopt_newest, bring_up, check_fuse, check_identity, take, wait_for_volume_key};
use super::control::{Command, Problem, Reply, Socket};
use super::errand::Errand;
use super::gatekeeper::{Gatekeeper, Parts};
use super::guard::{Guard, Subject};
use super::maintenance::Maintenance;
use super::monitor::{self, Monitor};
use super::rekey::{RekeyOrder, Rekeyer};
use super::rewrap::Rewrapper;
use super::scrub::Scrubber;
use super::trail::{Trail, note_new_kek};
use super::{MountOptions, Service, Status, mountpoint, process};
use crate::audit;
use crate::crypto::Secret32;
use crate::crypto::derive::VolumeKeys;
use crate::failure::{Exit, Failure};
use crate::format::volume::KekRole;
use crate::fs::rewrap::Plan;
use crate::fs::volume::{Holder, Volume};
use crate::fs::{Error, Fs};
use crate::fuse::forget::Forgetter;
use crate::fuse::{Buffers, Kernel};
use crate::journal::recovery;
use crate::kms::{KekRef, Kms, Ring};
use crate::lease::{Canary, Event, Keeper, Leases, LockReason, UnlockError};
use crate::store::dir::{AccessTimes, DirStore};
use crate::tenant::Suspension;
use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;
use std::sync::{Arc, mpsc};
use std::time::Duration;

/// How long an unmount waits for operations that are still under way.
const LAST_OPERATIONS: Duration = Duration::from_secs(5);
/// How many unwrapped envelopes are kept.
const LEASES: usize = 4096;

/// How far a mount has come.
#[derive(Clone, Debug)]
pub enum Stage {
    /// The KMS does not give the key yet, for this reason.
    Waiting(String),
    /// Something that whoever mounts should know, though it goes on.
    Warned(String),
    /// Another process can mount it now: [`super::attach`].
    Offered,
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
    if !options.attached {
        mountpoint::check(&mountpoint, options.flags.nonempty)?;
        if options.tenant.is_some() {
            mountpoint::protect_if_possible(&mountpoint);
        }
    }
    check_fuse()?;
    // Other commands say where it is, from wherever they are called.
    let path = options.volume.canonicalize().unwrap_or_else(|_| options.volume.clone());
    let of_store = |error: std::io::Error| Failure::of_store(&options.volume, &error);
    let access_times = if options.flags.no_atime { AccessTimes::Left } else { AccessTimes::Kept };
    let role = if options.with_recovery_kek { KekRole::Recovery } else { KekRole::Primary };
    let volume = Volume::open_with(&path, access_times)
        .map_err(|error| Failure::of_volume(&options.volume, error))?
        .opened_by(role);
    check_identity(options, &volume)?;
    let (mut holding, unclean) = take(options, &volume, &mountpoint)?;
    // What is recovered looks newer than it was. So where an older version is to be noticed, the volume is compared first,
    // which takes the key.
    let (mut recovered, counter) = match &options.guard {
        None => (Some(bring_up(options, &volume, &holding, unclean)?), 0),
        Some(_) => (None, recovery::committed(&*volume.journal().map_err(of_store)?).map_err(of_store)?),
    };
    let mut trail = Trail::open(options, &volume, recovered.as_mut().and_then(|(_, event)| event.take()));
    let (ring, volume_key) = wait_for_volume_key(options, &volume, &trail, &mut reached)?;
    let kms: Arc<dyn Kms> = Arc::<Ring>::clone(&ring);
    let subject = Subject { volume: &volume, volume_key: &volume_key, kms: &kms, counter, unclean };
    let mut warn = |what: String| {
        tracing::warn!("{what}");
        reached(Stage::Warned(what));
    };
    kms.warnings().into_iter().for_each(&mut warn);
    let guard = match &options.guard {
        Some(guard) => Guard::open(guard, &subject, options.flags.read_only, &trail.recorder(), warn)?,
        None => None,
    };
    let (context, event) = match recovered {
        Some(recovered) => recovered,
        None => bring_up(options, &volume, &holding, unclean)?,
    };
    if let Some(event) = event {
        trail.recovered(event);
    }
    if !options.flags.read_only {
        adopt_newest(options, &volume, &ring, &volume_key, &trail)?;
    }
    if let Some(guard) = &guard {
        guard.remember(&volume)?;
        let _ = context.ledger.set(Arc::clone(guard.ledger()));
    }
    let record = volume.record();
    let opening = volume.opening_kek().unwrap_or_else(|| record.newest().clone());
    let canary = Canary::new(opening.volume_key, &volume_key);
    #[expect(clippy::expect_used, reason = "a constant")]
    let capacity = NonZeroUsize::new(LEASES).expect("not zero");
    let audit_key = VolumeKeys::from(&volume_key).audit_mac;
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
    let attached = match options.attached {
        true => {
            Some(attach::offer(&mountpoint, &path, &options.flags, || reached(Stage::Offered)).map_err(|error| {
                let message = format!("the mount was offered, and nobody made it: {error}");
                Failure::new(Exit::Mountpoint, message)
                    .hint("its unit has to have ExecStartPost=+kmsfs tenant attach TENANT")
            })?)
        }
        false => None,
    };
    let ready = || {
        holding.answers(&Holder::here(mountpoint.display().to_string()));
        reached(Stage::Ready);
    };
    run(options, &mountpoint, (fs, attached), &leases, canary, (trail, audit_key, guard), ready)?;
    drop(holding);
    Ok(())
}

/// Mounts, and serves until the end.
fn run(
    options: &MountOptions,
    mountpoint: &std::path::Path,
    (fs, attached): (Arc<Fs>, Option<(OwnedFd, Attached)>),
    leases: &Arc<Leases>,
    canary: Canary,
    (trail, audit_key, guard): (Trail, Secret32, Option<Guard>),
    ready: impl FnOnce(),
) -> Result<(), Failure> {
    let guard = guard.map(Arc::new);
    // What is taken is found out before anything is mounted.
    let metrics = monitor::bind(options)?;
    let buffers = Arc::new(Buffers::default());
    let kernel = Kernel::new(Arc::clone(&fs), Arc::clone(&buffers), options.flags.direct_io);
    let (wash, synced) = (kernel.wash(), kernel.synced());
    let source = options.volume.canonicalize().unwrap_or_else(|_| options.volume.clone());
    let (device, attached) = attached.unzip();
    let session = crate::fuse::mount(kernel, mountpoint, &source, &options.flags, device)
        .map_err(|error| Failure::new(Exit::Mountpoint, format!("the mount failed: {error}")))?;
    let scrubber = Arc::new(Scrubber::new(Arc::clone(&fs)));
    let rewrapper = Arc::new(Rewrapper::new(Arc::clone(&fs)));
    let rekeyer = Arc::new(Rekeyer::new(Arc::clone(&fs)));
    let parts = Arc::new(Parts {
        fs: Arc::clone(&fs),
        buffers,
        wash,
        forgetter: Forgetter::new(session.notifier()),
        synced,
        mountpoint: mountpoint.to_owned(),
        recorder: trail.recorder(),
        scrubber: Arc::clone(&scrubber),
        rewrapper: Arc::clone(&rewrapper),
        rekeyer: Arc::clone(&rekeyer),
    });
    let failed = |what: &str, error: &std::io::Error| Failure::new(Exit::Failure, format!("{what}: {error}"));
    let (end, ended) = mpsc::channel();
    let session_end = end.clone();
    let served = std::thread::Builder::new()
        .name("kmsfs-session".into())
        .spawn(move || {
            // Also if it panics.
            let _end = EndOfSession(session_end);
            session.run()
        })
        .map_err(|error| failed("no thread to serve the kernel", &error))?;
    let gatekeeper = Arc::new(Gatekeeper(Arc::clone(&parts)));
    let keeper = Keeper::start(
        Arc::clone(leases),
        Arc::<Gatekeeper>::clone(&gatekeeper),
        canary,
        options.policy,
        tell(trail.recorder(), options.service),
    )
    .map_err(|error| failed("no thread to ask the KMS", &error))?;
    let keeper = Arc::new(keeper);
    follow_new_keks(&fs, &keeper, trail.recorder(), guard.clone());
    wake_for_users(&fs, &keeper);
    let socket = Socket::bind(mountpoint).map_err(|error| failed("the control socket cannot be made", &error));
    let maintenance = Maintenance::start(parts, options.check_rotation);
    let started = socket.and_then(|socket| {
        let (fs, keeper) = (Arc::clone(&fs), Arc::clone(&keeper));
        let (scrubber, rewrapper, rekeyer) = (Arc::clone(&scrubber), Arc::clone(&rewrapper), Arc::clone(&rekeyer));
        let (policy, place, stopper) = (options.policy, mountpoint.to_owned(), Arc::clone(&gatekeeper));
        let (service, attached) = (options.service, options.attached);
        let (read_only, guard, tenant) = (options.flags.read_only, guard.clone(), options.tenant.clone());
        let status = {
            let (keeper, tenant, labels, place) =
                (Arc::clone(&keeper), tenant.clone(), options.labels.clone(), place.clone());
            let (fs, scrubber) = (Arc::clone(&fs), Arc::clone(&scrubber));
            let (rewrapper, rekeyer) = (Arc::clone(&rewrapper), Arc::clone(&rekeyer));
            move || {
                let jobs = (scrubber.status(), rewrapper.status(), rekeyer.status());
                let status = Status::of(&fs, &keeper, &policy, &place, read_only, jobs, guard.as_deref());
                Status { tenant: tenant.clone(), labels: labels.clone(), ..status }
            }
        };
        let monitor = Arc::new(Monitor::new(fs, place, options.log.clone(), status));
        monitor.serve(metrics).map_err(|error| failed("metrics cannot be served", &error))?;
        socket
            .serve(move |command| {
                if let Command::Stop = command {
                    service.stopping();
                    // What another process mounted, only such a one takes away: whoever asks does it.
                    if attached {
                        stopper.last_drain();
                        return Reply::Done;
                    }
                    return stopper.stop().map_or_else(|error| Reply::Failed(error.into()), |()| Reply::Done);
                }
                if let (Command::Unlock, Some(tenant)) = (&command, &tenant)
                    && let Err(failure) = Suspension::forbids(tenant)
                {
                    return Reply::Failed(failure.into());
                }
                answer(command, &keeper, &scrubber, &rewrapper, &rekeyer, &monitor)
            })
            .map_err(|error| failed("the control socket cannot be served", &error))?;
        end_on_signals(mountpoint.to_owned(), options, Arc::clone(&gatekeeper), end)
            .map_err(|error| failed("signals cannot be handled", &error))?;
        // Whoever suspends writes that down, and then looks for a mount to lock: one of the two sees the other.
        options.tenant.as_ref().map_or(Ok(()), Suspension::forbids)?;
        // Answered by the session's own threads: from here on everybody gets an answer.
        Errand::ask(mountpoint).run().map_err(|error| failed("the mount does not answer", &error))?;
        Ok(socket)
    });
    match started {
        Ok(socket) => {
            trail.mounted(options, mountpoint, &fs, audit_key);
            ready();
            attached.into_iter().for_each(Attached::answers);
            if let Err(error) = options.service.watch(mountpoint.to_owned()) {
                tracing::warn!("no thread to tell the watchdog: {error}");
            }
            if let Err(error) = options.idle.watch(&fs, &keeper, mountpoint.to_owned()) {
                tracing::warn!("no thread to see whether the mount is used: {error}");
            }
            crate::crypto::wipe_stack();
            let session_ended = ended.recv().is_ok_and(|end| end == End::Session);
            options.service.stopping();
            // Of one that goes on, because nobody here can unmount it, the end of the process is the end.
            let ended = if session_ended { served.join() } else { Ok(Ok(())) };
            scrubber.close();
            rewrapper.close();
            rekeyer.close();
            maintenance.stop();
            finish(&fs, &keeper, &trail, guard.as_deref());
            drop(trail);
            drop(socket);
            match ended {
                Ok(Ok(())) => Ok(()),
                Ok(Err(error)) => Err(failed("the kernel could not be served any more", &error)),
                Err(_) => Err(Failure::new(Exit::Failure, "a thread that served the kernel panicked")),
            }
        }
        Err(failure) => {
            // What another process mounted ends with this one.
            if !options.attached && mountpoint::detach(mountpoint).is_ok() {
                let _ = served.join();
            }
            scrubber.close();
            rewrapper.close();
            rekeyer.close();
            maintenance.stop();
            finish(&fs, &keeper, &trail, guard.as_deref());
            Err(failure)
        }
    }
}

/// Stores what is left and wipes the keys.
fn finish(fs: &Fs, keeper: &Keeper, trail: &Trail, guard: Option<&Guard>) {
    fs.on_new_kek(None);
    fs.on_wake(None);
    let locked = !fs.is_open();
    // Before a volume locks because nobody uses it, everything is stored, and needs no key any more.
    if fs.is_open() || (fs.reason() == LockReason::Idle && fs.waiting_files() == 0) {
        match fs.shut_down() {
            // The KMS last: what it remembers has to be there.
            Ok(()) => {
                if let Some(Err(error)) = guard.map(|guard| guard.remember(fs.volume())) {
                    tracing::warn!("the KMS does not remember what the volume is now, but what it was: {error}");
                }
            }
            Err(error) => tracing::error!("not everything could be committed; the next mount recovers: {error:?}"),
        }
        fs.close(LockReason::Operator, LAST_OPERATIONS);
    } else {
        tracing::warn!("unmounted while locked; the next mount recovers ({:?})", keeper.status().state);
    }
    trail.unmounted(fs, locked);
}

/// From now on the canary is the volume key as the newest KEK wrapped it, and what is new is noted, by the guard as well.
fn follow_new_keks(fs: &Arc<Fs>, keeper: &Arc<Keeper>, recorder: audit::Recorder, guard: Option<Arc<Guard>>) {
    let (volume, keeper) = (Arc::downgrade(fs), Arc::downgrade(keeper));
    fs.on_new_kek(Some(Arc::new(move |canary| {
        let (Some(fs), Some(keeper)) = (volume.upgrade(), keeper.upgrade()) else { return };
        keeper.set_canary(canary);
        let kek = fs.volume().record().newest().volume_key.kek.clone();
        tracing::info!("new files are wrapped by {kek} from now on");
        note_new_kek(&recorder, fs.volume());
        // With the old key as well as with the new one, while both are there.
        if let Some(Err(error)) = guard.as_ref().map(|guard| guard.remember(fs.volume())) {
            tracing::warn!("the new key does not remember what the volume is, until it is unmounted: {error}");
        }
    })));
}

fn answer(
    command: Command,
    keeper: &Keeper,
    scrubber: &Scrubber,
    rewrapper: &Rewrapper,
    rekeyer: &Rekeyer,
    monitor: &Monitor,
) -> Reply {
    match command {
        Command::Status => Reply::Status(Box::new(monitor.status())),
        Command::Metrics => Reply::Metrics(Box::new(monitor.metrics())),
        Command::Ready => Reply::Ready(monitor.readiness()),
        Command::LogLevel { level } => match monitor.set_log_level(&level) {
            Ok(()) => Reply::Done,
            Err(message) => Reply::Failed(Problem::new("other", message)),
        },
        // The end has been dealt with, where the mount is at hand.
        Command::Watch | Command::Stop => Reply::Done,
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
        // A command would be run, and a descriptor read, by another process than the one that was told of it.
        Command::Rewrap { kek, recovery_kek, .. }
            if [&kek, &recovery_kek].into_iter().flatten().any(|kek| !KekRef::is_recordable(kek)) =>
        {
            let problem = Problem::new("other", "a mount cannot take a key from a command or a file descriptor");
            Reply::Failed(problem.hint("unmount the volume: kmsfs rewrap does it to its directory then"))
        }
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
        Command::Rekey { path, older_than_s, anew, rate } => {
            match rekeyer.start(RekeyOrder { path, older_than_s, anew, rate }) {
                Ok(status) => Reply::Rekey { status: Box::new(status), left: Vec::new() },
                Err(problem) => Reply::Failed(problem),
            }
        }
        Command::RekeyProgress { number } => match rekeyer.progress(number) {
            Ok((status, left)) => Reply::Rekey { status: Box::new(status), left },
            Err(problem) => Reply::Failed(problem),
        },
        Command::RekeyCancel if rekeyer.cancel() => Reply::Done,
        Command::RekeyCancel => Reply::Failed(Problem::new("other", "no rekey runs on this mount")),
    }
}

/// Whoever uses a volume that locked because nobody did has it unlocked.
fn wake_for_users(fs: &Arc<Fs>, keeper: &Arc<Keeper>) {
    let (volume, keeper) = (Arc::downgrade(fs), Arc::downgrade(keeper));
    fs.on_wake(Some(Arc::new(move || {
        let (Some(fs), Some(keeper)) = (volume.upgrade(), keeper.upgrade()) else { return Err(Error::Draining) };
        keeper.wake().map_err(|error| match error {
            UnlockError::Kms(error) => error.into(),
            UnlockError::Volume(_) | UnlockError::Overtaken => Error::Locked(fs.reason()),
        })
    })));
}

/// What the keeper's events are told to: the log of the process, and the audit log where nobody else does.
fn tell(recorder: audit::Recorder, service: Service) -> impl Fn(Event) + Send {
    move |event| {
        service.happened(&event);
        note(&recorder, event);
    }
}

fn note(recorder: &audit::Recorder, event: Event) {
    match event {
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

/// Why a mount ends.
#[derive(PartialEq, Eq)]
enum End {
    /// It was unmounted.
    Session,
    /// The process was told to, and cannot unmount.
    Told,
}

/// Says that the session has ended, however it did.
struct EndOfSession(mpsc::Sender<End>);

impl Drop for EndOfSession {
    fn drop(&mut self) {
        let _ = self.0.send(End::Session);
    }
}

/// On the first signal to end, the mount is taken away if nobody uses it, and else out of the tree. What another process
/// mounted is stored, and ends with this process.
fn end_on_signals(
    mountpoint: std::path::PathBuf,
    options: &MountOptions,
    gatekeeper: Arc<Gatekeeper>,
    end: mpsc::Sender<End>,
) -> std::io::Result<()> {
    let mut signals = signal_hook::iterator::Signals::new([libc::SIGTERM, libc::SIGINT, libc::SIGHUP])?;
    let (service, attached) = (options.service, options.attached);
    std::thread::Builder::new().name("kmsfs-signals".into()).spawn(move || {
        for _ in signals.forever() {
            service.stopping();
            if attached {
                gatekeeper.last_drain();
                let _ = end.send(End::Told);
            } else if mountpoint::unmount(&mountpoint).is_err() {
                tracing::warn!("still in use: the mount ends when nobody uses it any more");
                let _ = mountpoint::detach(&mountpoint);
            }
        }
    })?;
    Ok(())
}
