//! `kmsfs fsck`: checking a volume that is not mounted.

use super::report::{self, Report};
use super::{Exit, Failure};
use crate::audit::Recorder;
use crate::check::{self, Deep, Findings, Order, Progress, Saved, Severity, Stopped};
use crate::crypto::Secret32;
use crate::daemon::guard::{Guard, GuardOptions, GuardPlace, Subject};
use crate::format::volume::KekRole;
use crate::fs::Fs;
use crate::fs::volume::{Holder, Holding, Volume, VolumeError};
use crate::journal::{LOG_LEN, recovery};
use crate::kms::{ConnectOptions, Kms};
use crate::lease::Leases;
use crate::store::dir::DirStore;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use parking_lot::Mutex;
use std::io::IsTerminal;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

/// How many unwrapped envelopes are kept: each is asked for once.
const LEASES: usize = 1 << 16;
/// How often the progress is shown.
const SHOWN_EVERY: Duration = Duration::from_millis(200);
/// After how many of these the state is saved.
const SAVED_EVERY: u32 = 25;

/// Checks a volume that is not mounted.
#[derive(Args)]
#[command(
    after_help = "Exit codes: 0 nothing is damaged, 14 damage was found, 15 the volume has to be recovered first, \
    9 it is mounted,\n6 to 8 and 11 the KMS does not give the key, 13 something could not be read, 130 interrupted."
)]
pub struct Fsck {
    /// The volume's directory
    volume: PathBuf,
    /// Authenticate every name, header, tag block and chunk; asks the KMS for the keys
    #[arg(long)]
    deep: bool,
    /// Move damaged files and symbolic links out of the volume into this directory, with a report
    #[arg(long, value_name = "DIR")]
    quarantine: Option<PathBuf>,
    /// Recover a volume that was not unmounted, as a mount would, before it is checked
    #[arg(long)]
    recover: bool,
    /// Keep the state of a deep check in this file, so that one that is interrupted can go on
    #[arg(long, value_name = "FILE", requires = "deep")]
    state: Option<PathBuf>,
    /// Compare each file with what this rollback guard knows of it, and the volume's counter; nothing is noted
    #[arg(long, value_name = "FILE|DIR|kms", requires = "deep")]
    rollback_guard: Option<GuardPlace>,
    /// How many threads open files, by default as many as there are processors
    #[arg(long, value_name = "N", requires = "deep")]
    threads: Option<NonZeroUsize>,
    /// Where the key is now, if not where the volume says: the same key, under another address or path
    #[arg(long, requires = "deep")]
    kek: Option<String>,
    /// Open everything with the volume's recovery key: shows whether it could
    #[arg(long, requires = "deep")]
    with_recovery_kek: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub fn run(arguments: &Fsck) -> Result<(), Failure> {
    let of_store = |error: std::io::Error| Failure::of_store(&arguments.volume, &error);
    let volume = Volume::open(&arguments.volume).map_err(|error| Failure::of_volume(&arguments.volume, error))?;
    check_places(arguments, &volume)?;
    let _holding = hold(arguments, &volume)?;
    let mut findings = Findings::default();
    recover(arguments, &volume, &mut findings)?;
    let directory = volume.journal().map_err(of_store)?;
    let inspection = recovery::inspect(&*directory).map_err(of_store)?;
    check::journal(&inspection, &mut findings);
    let context = volume.context(recovery::read_only(&*directory).map_err(of_store)?.0);
    let stop = Arc::new(AtomicBool::new(false));
    stop_on_signals(&stop).map_err(of_store)?;
    let totals = check::structure(&volume, &context, &mut findings, &stop).map_err(of_store)?;
    let mut report = Report {
        volume: arguments.volume.clone(),
        volume_id: volume.record().id.to_string(),
        deep: arguments.deep,
        complete: totals.is_some(),
        totals: totals.unwrap_or_default(),
        files: totals.unwrap_or_default().files,
        bytes: 0,
        findings,
        quarantined: Vec::new(),
    };
    let mut failure = totals.is_none().then(|| interrupted(arguments));
    if arguments.deep && report.complete {
        let stopped = deep(arguments, volume, context, inspection.sequence, &mut report, &stop)?;
        report.complete = stopped.is_none();
        failure = stopped.map(|stopped| of_stopped(arguments, stopped));
    }
    if let Some(into) = &arguments.quarantine
        && report.complete
    {
        let volume = Volume::open(&arguments.volume).map_err(|error| Failure::of_volume(&arguments.volume, error))?;
        match check::quarantine(&volume, &report.findings, into) {
            Ok(moved) => report.quarantined = moved,
            Err(error) => {
                let message = format!("{} could not be moved: {}", error.place.display(), error.error);
                failure = Some(Failure::new(Exit::Store, message).hint("what was moved before is in the report there"));
            }
        }
    }
    report::print(&report, arguments.json);
    match failure {
        Some(failure) => Err(failure),
        None => outcome(&report),
    }
}

fn outcome(report: &Report) -> Result<(), Failure> {
    let damaged = report.findings.count(Severity::Damage);
    let unchecked = report.findings.count(Severity::Unchecked);
    if damaged > 0 {
        let failure = Failure::new(Exit::Damage, format!("damage was found: {damaged}"));
        return Err(match (report.deep, report.quarantined.is_empty()) {
            (false, _) => failure.hint("content is checked by --deep only"),
            (true, true) => failure.hint("--quarantine DIR moves damaged files out of the volume"),
            (true, false) => failure.hint("what was moved away is no part of the volume any more; restore it"),
        });
    }
    if unchecked > 0 {
        let refused = report.findings.iter().any(|finding| finding.kind == check::Kind::Refused);
        let exit = if refused { Exit::KmsRefused } else { Exit::Store };
        return Err(Failure::new(exit, format!("no damage was found, but {unchecked} could not be checked")));
    }
    Ok(())
}

/// The files that are written to must not be among those that are checked.
fn check_places(arguments: &Fsck, volume: &Volume) -> Result<(), Failure> {
    let inside = volume.path().canonicalize().unwrap_or_else(|_| volume.path().to_owned());
    for place in [&arguments.state, &arguments.quarantine].into_iter().flatten() {
        let parent = place.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let place_of = |path: &Path| path.canonicalize().is_ok_and(|path| path.starts_with(&inside));
        if place_of(parent) || place_of(place) {
            let message = format!("{} lies in the volume that is to be checked", place.display());
            return Err(Failure::new(Exit::Usage, message).hint("give a place outside the volume"));
        }
    }
    Ok(())
}

fn hold(arguments: &Fsck, volume: &Volume) -> Result<Option<Holding>, Failure> {
    let taken = if arguments.recover || arguments.quarantine.is_some() {
        let holder = Holder::here("kmsfs fsck");
        Holding::take(volume.path(), &holder, false).map(|taken| taken.map(Some))
    } else {
        Holding::look(volume.path())
    };
    match taken.map_err(|error| Failure::of_store(&arguments.volume, &error))? {
        Ok(holding) => Ok(holding),
        Err(holder) => {
            let who = holder.map_or_else(|| "by another process".to_owned(), |holder| holder.to_string());
            let message = format!("{} is mounted, {who}", arguments.volume.display());
            Err(Failure::new(Exit::AlreadyMounted, message)
                .hint("unmount it first, or check it while it is mounted: kmsfs scrub MOUNTPOINT"))
        }
    }
}

/// Recovers the volume if that is needed and allowed. Nobody can tell damage from what a crash has left before.
fn recover(arguments: &Fsck, volume: &Volume, findings: &mut Findings) -> Result<(), Failure> {
    let of_store = |error: std::io::Error| Failure::of_store(&arguments.volume, &error);
    let directory = volume.journal().map_err(of_store)?;
    if recovery::inspect(&*directory).map_err(of_store)?.clean {
        return Ok(());
    }
    if !arguments.recover {
        let message = format!("{} was not unmounted, and has to be recovered first", arguments.volume.display());
        return Err(Failure::new(Exit::NeedsRecovery, message).hint(
            "mount it once, or let fsck do what a mount would do: --recover. Neither needs more than the journal",
        ));
    }
    let tree = volume.tree().map_err(of_store)?;
    let (journal, found) = recovery::open(&*directory, &*tree, LOG_LEN).map_err(of_store)?;
    check::recovery(&found, findings);
    journal.close().map_err(of_store)
}

/// Authenticates everything; returns why it did not come to its end.
fn deep(
    arguments: &Fsck,
    volume: Volume,
    context: Arc<crate::file::Context>,
    sequence: u64,
    report: &mut Report,
    stop: &AtomicBool,
) -> Result<Option<Stopped>, Failure> {
    crate::crypto::cipher::self_test()
        .map_err(|_| Failure::new(Exit::Failure, "this machine's AES-256-GCM gives wrong answers"))?;
    let of_store = |error: std::io::Error| Failure::of_store(&arguments.volume, &error);
    let of_state = |error: String| {
        let path = arguments.state.as_deref().unwrap_or(Path::new("-"));
        Failure::new(Exit::Usage, format!("the state {} cannot be used: {error}", path.display()))
            .hint("give another file, or remove it if it is not needed")
    };
    let id = report.volume_id.clone();
    let mut saved = match &arguments.state {
        Some(path) => Saved::read(path, &id, sequence).map_err(of_state)?,
        None => None,
    }
    .unwrap_or_else(|| Saved::new(id, sequence));
    let role = if arguments.with_recovery_kek { KekRole::Recovery } else { KekRole::Primary };
    let volume = volume.opened_by(role);
    let connect = ConnectOptions::from_variables(|name| std::env::var(name).ok());
    let ring = volume.ring(connect, arguments.kek.as_deref());
    let volume_key = match volume.unlock(&ring) {
        Ok(unwrapped) => unwrapped.secret,
        Err(VolumeError::Kms(error)) => return Err(Failure::of_key(&volume, error)),
        Err(error) => return Err(Failure::of_volume(&arguments.volume, error)),
    };
    let kms: Arc<dyn Kms> = ring;
    compare(arguments, &volume, &context, &volume_key, &kms)?;
    let leases = Leases::new(kms, volume.record().id, NonZeroUsize::new(LEASES).unwrap_or(NonZeroUsize::MIN));
    let store = DirStore::open(volume.path()).map_err(of_store)?;
    let tree = volume.tree().map_err(of_store)?;
    let fs = Fs::new(volume, Arc::new(store), context, Arc::new(leases), volume_key, true)
        .map_err(|error| Failure::new(Exit::Store, format!("the volume cannot be read: {error:?}")))?;
    report.findings.restore(std::mem::take(&mut saved.findings));
    let findings = Mutex::new(std::mem::take(&mut report.findings));
    let progress = Progress::default();
    progress.files.store(saved.files, Ordering::Relaxed);
    progress.bytes.store(saved.bytes, Ordering::Relaxed);
    progress.position.store(saved.position, Ordering::Relaxed);
    let threads = arguments.threads.or_else(|| std::thread::available_parallelism().ok()).map_or(1, NonZeroUsize::get);
    let order = Order::new(saved.passed.take());
    let check = Deep { fs: &fs, online: false, threads, findings: &findings, progress: &progress, stop, pace: &|_| () };
    let mut save = |last: bool| {
        let Some(path) = &arguments.state else { return Ok(()) };
        saved.passed = order.passed();
        saved.files = progress.files.load(Ordering::Relaxed);
        saved.bytes = progress.bytes.load(Ordering::Relaxed);
        saved.position = progress.position.load(Ordering::Relaxed);
        saved.findings = findings.lock().iter().cloned().collect();
        let written = if last { remove(path) } else { saved.write(path) };
        written.map_err(|error| of_state(error.to_string()))
    };
    let stopped = std::thread::scope(|scope| {
        let (done, ended) = mpsc::channel();
        scope.spawn(|| {
            // Whoever waits is there until then.
            let _ = done.send(check.run(&tree, &order).err());
            drop(done);
        });
        let bar = bar(report.totals.bytes);
        let mut turn = 0;
        loop {
            match ended.recv_timeout(SHOWN_EVERY) {
                Ok(stopped) => break Ok(stopped),
                Err(RecvTimeoutError::Disconnected) => {
                    break Err(Failure::new(Exit::Failure, "a thread of the check panicked"));
                }
                Err(RecvTimeoutError::Timeout) => (),
            }
            turn += 1;
            if turn % SAVED_EVERY == 0
                && let Err(failure) = save(false)
            {
                stop.store(true, Ordering::Relaxed);
                break Err(failure);
            }
            bar.set_position(progress.position.load(Ordering::Relaxed));
            bar.set_message(format!(
                "{} files, {} findings",
                progress.files.load(Ordering::Relaxed),
                findings.lock().len()
            ));
        }
    })?;
    save(stopped.is_none())?;
    report.files = progress.files.load(Ordering::Relaxed);
    report.bytes = progress.bytes.load(Ordering::Relaxed);
    report.findings = findings.into_inner();
    Ok(stopped)
}

/// Compares the volume with its guard, and lets every file be compared that is opened later.
fn compare(
    arguments: &Fsck,
    volume: &Volume,
    context: &crate::file::Context,
    volume_key: &Secret32,
    kms: &Arc<dyn Kms>,
) -> Result<(), Failure> {
    let Some(place) = &arguments.rollback_guard else { return Ok(()) };
    let options = GuardOptions { place: place.clone(), warn: false };
    let subject = Subject { volume, volume_key, kms, counter: context.journal.committed(), unclean: false };
    let warn = |what| eprintln!("warning: {what}");
    if let Some(guard) = Guard::open(&options, &subject, true, &Recorder::none(), warn)? {
        let _ = context.ledger.set(Arc::clone(guard.ledger()));
    }
    Ok(())
}

fn remove(path: &Path) -> std::io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

pub(super) fn bar(bytes: u64) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(bytes);
    let template = "{bar:30} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left, {msg}";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar
}

/// Lets the first signal end the check in order, and the second one at once.
pub(super) fn stop_on_signals(stop: &Arc<AtomicBool>) -> std::io::Result<()> {
    for signal in [libc::SIGINT, libc::SIGTERM] {
        signal_hook::flag::register_conditional_shutdown(signal, Exit::Interrupted as i32, Arc::clone(stop))?;
        signal_hook::flag::register(signal, Arc::clone(stop))?;
    }
    Ok(())
}

fn interrupted(arguments: &Fsck) -> Failure {
    let failure = Failure::new(Exit::Interrupted, "interrupted: not everything was looked at");
    match &arguments.state {
        Some(_) => failure.hint("the same command goes on from here"),
        None => failure.hint("with --deep and --state FILE a check that is interrupted can go on"),
    }
}

fn of_stopped(arguments: &Fsck, stopped: Stopped) -> Failure {
    match stopped {
        Stopped::Asked => interrupted(arguments),
        Stopped::Locked => Failure::new(Exit::Failure, "the keys went away: not everything was looked at"),
        Stopped::Kms(error) => error.into(),
        Stopped::Io(error) => Failure::of_store(&arguments.volume, &error),
    }
}
