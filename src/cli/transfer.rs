//! `kmsfs import` and `kmsfs export`: into a volume and out of it, without a mount.

use super::fsck::stop_on_signals;
use super::{Exit, Failure};
use crate::audit::{self, Event, clean};
use crate::check::printable;
use crate::crypto::Secret32;
use crate::daemon::mountpoint;
use crate::kms::KmsErrorKind;
use crate::store::dir::DirStore;
use crate::store::{SetTime, Store, StoreDir};
use crate::transfer::{
    Copy, EXPORT_STATE, Ended, IMPORT_STATE, KeyGone, NoteKind, Opened, Progress, State, StateError, export_from,
    import_into,
};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use std::io::IsTerminal;
use std::num::NonZeroUsize;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// How often the progress is shown.
const SHOWN_EVERY: Duration = Duration::from_millis(200);
/// How many things that are wrong are printed, one by one; JSON has all of them.
const SHOWN: usize = 100;

const EXIT_CODES: &str = "Exit codes: 0 everything was copied and read back, 1 something is listed that could not be copied \
as it is, 14 something is damaged,\n130 interrupted: the same command goes on. 9 the volume is mounted, 6 to 8 and 11 \
the KMS does not give the key,\n13 a disk is full or fails, 15 the volume has to be recovered first.";

/// Options of both.
#[derive(Args)]
struct Common {
    /// Remember how far it is in this file, so that the same command can go on [default: in the volume for an import, in
    /// the directory for an export]
    #[arg(long, value_name = "FILE")]
    state: Option<PathBuf>,
    /// What the audit log calls the other side, instead of its device and inode
    #[arg(long, value_name = "TEXT")]
    label: Option<String>,
    /// How many threads copy, by default as many as there are processors
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
    /// Where the key is now, if not where the volume says: the same key, under another address or path
    #[arg(long)]
    kek: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Encrypts a directory into a volume.
#[derive(Args)]
#[command(after_help = EXIT_CODES)]
pub struct Import {
    /// The directory
    directory: PathBuf,
    /// The volume's directory: an empty volume that is not mounted, or one into which this import was begun
    volume: PathBuf,
    #[command(flatten)]
    common: Common,
}

/// Decrypts a volume into a directory.
#[derive(Args)]
#[command(after_help = EXIT_CODES)]
pub struct Export {
    /// The volume's directory; it is not changed, but for a line in its audit log
    volume: PathBuf,
    /// The directory: empty, not there yet, or one into which this export was begun
    directory: PathBuf,
    #[command(flatten)]
    common: Common,
}

/// Which way it goes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    In,
    Out,
}

impl Way {
    fn name(self) -> &'static str {
        if self == Self::In { "import" } else { "export" }
    }
}

pub fn import(arguments: &Import) -> Result<(), Failure> {
    let (directory, path) = (&arguments.directory, &arguments.volume);
    not_a_mount(path)?;
    apart(directory, path)?;
    let source = DirStore::open(directory).map_err(|error| of_directory(directory, &error))?;
    let stop = stop()?;
    let opened = import_into(path, arguments.common.kek.as_deref(), &stop)?;
    let outcome = fill(arguments, &source.root(), &opened, &stop);
    // Also what was refused has to leave the volume as if it had been unmounted.
    let finished = opened.finish(path);
    outcome.and(finished)
}

fn fill(
    arguments: &Import,
    source: &Arc<dyn StoreDir>,
    opened: &Opened,
    stop: &Arc<AtomicBool>,
) -> Result<(), Failure> {
    let (directory, path) = (&arguments.directory, &arguments.volume);
    let place = arguments.common.state.clone().unwrap_or_else(|| path.join(IMPORT_STATE));
    let root = opened.plain.root();
    if !State::exists(&place) && !is_empty(&*root, path)? {
        let message = format!("{} is not empty, and no import into it was begun", path.display());
        return Err(Failure::new(Exit::Usage, message).hint("import into a new volume, or copy through a mount"));
    }
    let commit = || opened.plain.commit();
    let sides: Sides<'_> = (Arc::clone(source), root, &commit);
    run(Way::In, &arguments.common, (path, directory), opened, &place, sides, stop)
}

pub fn export(arguments: &Export) -> Result<(), Failure> {
    let (directory, path) = (&arguments.directory, &arguments.volume);
    not_a_mount(path)?;
    apart(directory, path)?;
    let opened = export_from(path, arguments.common.kek.as_deref())?;
    match std::fs::create_dir(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(of_directory(directory, &error)),
        _ => (),
    }
    let target = Arc::new(DirStore::open(directory).map_err(|error| of_directory(directory, &error))?);
    let place = arguments.common.state.clone().unwrap_or_else(|| directory.join(EXPORT_STATE));
    if !State::exists(&place) && !is_empty(&*target.root(), directory)? {
        let message = format!("{} is not empty, and no export into it was begun", directory.display());
        return Err(Failure::new(Exit::Usage, message).hint("export into a directory of its own"));
    }
    let source = opened.plain.root();
    if arguments.common.state.is_none() && source.stat(EXPORT_STATE.as_bytes()).is_ok() {
        let message = format!("the volume has a file of the name {EXPORT_STATE}");
        return Err(Failure::new(Exit::Usage, message).hint("say where else to remember how far it is: --state FILE"));
    }
    let root = target.root();
    let stop = stop()?;
    run(Way::Out, &arguments.common, (path, directory), &opened, &place, (source, root, &|| target.sync_all()), &stop)
}

type Sides<'a> = (Arc<dyn StoreDir>, Arc<dyn StoreDir>, &'a (dyn Fn() -> std::io::Result<()> + Sync));

/// Copies, reports, and notes in the audit log that there is plaintext elsewhere.
fn run(
    way: Way,
    common: &Common,
    (path, directory): (&Path, &Path),
    opened: &Opened,
    place: &Path,
    (source, target, commit): Sides<'_>,
    stop: &Arc<AtomicBool>,
) -> Result<(), Failure> {
    opened.warnings.iter().for_each(|warning| eprintln!("warning: {warning}"));
    let label = label(common, directory);
    let volume = opened.plain.fs().volume().record().id;
    let key = Secret32::from_slice(opened.transfers.expose()).unwrap_or_else(Secret32::random);
    let state = State::open(place, way.name(), volume.to_string(), key).map_err(|error| of_state(place, &error))?;
    note(way, path, opened, &label, None);
    let begin = Instant::now();
    let progress = Progress::default();
    let threads = common.threads.or_else(|| std::thread::available_parallelism().ok()).map_or(1, NonZeroUsize::get);
    let reserved = (way == Way::Out && directory.join(EXPORT_STATE) == place).then_some(EXPORT_STATE.as_bytes());
    let roots = (Arc::clone(&source), Arc::clone(&target));
    let copy = Copy { source, target, commit, state: &state, reserved, threads, progress: &progress, stop };
    let ended = shown(&copy, way).map_err(|error| Failure::of_store(directory, &error))?;
    drop(copy);
    note(way, path, opened, &label, Some(&ended));
    if ended.complete && ended.notes.is_empty() {
        state.finish().map_err(|error| Failure::of_store(place, &error))?;
        if reserved.is_some() {
            // Removing it has changed the directory's times.
            let times = roots
                .0
                .inode()
                .stat()
                .and_then(|stat| roots.1.inode().set_times(SetTime::At(stat.atime), SetTime::At(stat.mtime)));
            times.map_err(|error| Failure::of_store(directory, &error))?;
        }
    }
    report(way, common.json, &ended, begin.elapsed());
    judge(way, place, ended)
}

/// Copies, and shows how far it is.
fn shown(copy: &Copy<'_>, way: Way) -> std::io::Result<Ended> {
    if !std::io::stderr().is_terminal() {
        return copy.run();
    }
    let bar = ProgressBar::no_length();
    if let Ok(style) = ProgressStyle::with_template("{spinner} {prefix}ed {bytes}, {bytes_per_sec}, {msg}, {elapsed}") {
        bar.set_style(style);
    }
    bar.set_prefix(way.name());
    let (total, counted, over) = (std::sync::atomic::AtomicU64::new(0), AtomicBool::new(false), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let (done, ended) = std::sync::mpsc::channel();
        scope.spawn(move || done.send(copy.run()));
        // How much there is is found out beside it, and not waited for.
        scope.spawn(|| {
            measure(&*copy.source, &over, &total);
            counted.store(true, Relaxed);
        });
        loop {
            match ended.recv_timeout(SHOWN_EVERY) {
                Ok(ended) => {
                    // Whoever still measures need not go on.
                    over.store(true, Relaxed);
                    bar.finish_and_clear();
                    return ended;
                }
                Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => {
                    over.store(true, Relaxed);
                    return Err(std::io::Error::other("a thread that copies panicked"));
                }
                Err(std::sync::mpsc::RecvTimeoutError::Timeout) => (),
            }
            if counted.load(Relaxed) && bar.length().is_none() {
                bar.set_length(total.load(Relaxed));
                let template = "{bar:30} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left, {msg}";
                if let Ok(style) = ProgressStyle::with_template(template) {
                    bar.set_style(style);
                }
            }
            bar.set_position(copy.progress.bytes.load(Relaxed));
            bar.set_message(format!("{} files complete", copy.progress.files.load(Relaxed)));
        }
    })
}

/// Adds up the lengths of all files.
fn measure(directory: &dyn StoreDir, stop: &AtomicBool, total: &std::sync::atomic::AtomicU64) {
    for entry in directory.list().unwrap_or_default() {
        if stop.load(Relaxed) {
            return;
        }
        match directory.stat(&entry.name) {
            Ok(stat) if stat.kind == crate::store::Kind::File => {
                total.fetch_add(stat.len.0, Relaxed);
            }
            Ok(stat) if stat.kind == crate::store::Kind::Directory => {
                if let Ok(below) = directory.open_dir(&entry.name) {
                    measure(&*below, stop, total);
                }
            }
            _ => (),
        }
    }
}

/// Notes in the audit log that it begins, or how it ended.
fn note(way: Way, path: &Path, opened: &Opened, label: &str, ended: Option<&Ended>) {
    let totals = ended.map(|ended| ended.totals).unwrap_or_default();
    let complete = ended.is_some_and(|ended| ended.complete && ended.notes.is_empty());
    let (files, bytes, other) = (totals.files, totals.bytes, clean(label));
    let event = match way {
        Way::In => Event::Import { source: other, files, bytes, complete },
        Way::Out => Event::Export { target: other, files, bytes, complete },
    };
    let id = opened.plain.fs().volume().record().id;
    if let Err(error) = audit::append(path, id, opened.audit_key(), &[event]) {
        eprintln!("warning: it could not be noted in the audit log: {error}");
    }
}

fn label(common: &Common, directory: &Path) -> String {
    common.label.clone().unwrap_or_else(|| match std::fs::metadata(directory) {
        Ok(metadata) => {
            let (major, minor) = (rustix::fs::major(metadata.dev()), rustix::fs::minor(metadata.dev()));
            format!("device {major}:{minor}, inode {}", metadata.ino())
        }
        Err(_) => "unknown".to_owned(),
    })
}

fn report(way: Way, as_json: bool, ended: &Ended, took: Duration) {
    let Ended { totals, notes, complete, failed } = ended;
    if as_json {
        let report = json!({
            "what": way.name(),
            "complete": complete,
            "totals": totals,
            "took_s": took.as_secs_f64(),
            "notes": notes,
            "error": failed.as_ref().map(ToString::to_string),
        });
        println!("{report:#}");
        return;
    }
    println!(
        "{} files ({} of them before), {} further names, {} directories, {} symbolic links, {} others: {}, each read back",
        totals.files,
        totals.kept,
        totals.hard_links,
        totals.directories,
        totals.symlinks,
        totals.others,
        indicatif::HumanBytes(totals.bytes)
    );
    for note in notes.iter().take(SHOWN) {
        eprintln!("{}: {}", printable(&note.path), clean(&note.detail));
    }
    if notes.len() > SHOWN {
        eprintln!("and {} more; --json has all of them", notes.len() - SHOWN);
    }
}

fn judge(way: Way, place: &Path, ended: Ended) -> Result<(), Failure> {
    if let Some(error) = ended.failed {
        let key = error.get_ref().and_then(|source| source.downcast_ref::<KeyGone>()).map(|gone| gone.0);
        let failure = match key {
            Some(KmsErrorKind::Refused) => Failure::new(Exit::KmsRefused, error.to_string()),
            Some(_) => Failure::new(Exit::KmsUnreachable, error.to_string()),
            None => Failure::new(Exit::Store, format!("the {} failed: {error}", way.name())),
        };
        return Err(failure.hint("when that is mended, the same command goes on from here"));
    }
    if !ended.complete {
        return Err(Failure::new(Exit::Interrupted, "interrupted: not everything was copied")
            .hint(format!("the same command goes on from here; how far it is is in {}", place.display())));
    }
    let count = |kinds: &[NoteKind]| ended.notes.iter().filter(|note| kinds.contains(&note.kind)).count();
    let damaged = count(&[NoteKind::Damaged, NoteKind::Different]);
    if damaged > 0 {
        return Err(Failure::new(Exit::Damage, format!("{damaged} damaged, and left out or to be looked at"))
            .hint("kmsfs fsck --deep VOLUME says what is damaged in each; everything else was copied"));
    }
    if ended.notes.is_empty() {
        return Ok(());
    }
    let message = format!("{} could not be copied as they are; everything else was", ended.notes.len());
    Err(Failure::new(Exit::Failure, message).hint("run the same command again: it tries those, and keeps the rest"))
}

fn stop() -> Result<Arc<AtomicBool>, Failure> {
    // As many open files as there may be; some directories of the tree are open at a time.
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let most = rustix::process::Rlimit { current: limit.maximum, ..limit };
    let _ = rustix::process::setrlimit(rustix::process::Resource::Nofile, most);
    let stop = Arc::new(AtomicBool::new(false));
    stop_on_signals(&stop)
        .map_err(|error| Failure::new(Exit::Failure, format!("signals cannot be handled: {error}")))?;
    Ok(stop)
}

/// Neither of the two may lie in the other one.
fn apart(directory: &Path, volume: &Path) -> Result<(), Failure> {
    // One that is not there yet will be in its parent.
    let whole = |path: &Path| {
        let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        path.canonicalize().unwrap_or_else(|_| match (path.parent().map(Path::canonicalize), path.file_name()) {
            (Some(Ok(parent)), Some(name)) => parent.join(name),
            _ => path.clone(),
        })
    };
    let (one, other) = (whole(directory), whole(volume));
    if !one.starts_with(&other) && !other.starts_with(&one) {
        return Ok(());
    }
    let message = format!("{} and {} lie in each other", directory.display(), volume.display());
    Err(Failure::new(Exit::Usage, message).hint("give a directory apart from the volume"))
}

/// Copying through a mount is what every other tool does.
fn not_a_mount(path: &Path) -> Result<(), Failure> {
    let mounted = mountpoint::absolute(path).ok().and_then(|path| mountpoint::mounted_at(&path).ok().flatten());
    if mounted.is_none_or(|mounted| mounted.fs_type != mountpoint::FS_TYPE) {
        return Ok(());
    }
    let message = format!("{} is a mountpoint, not a volume's directory", path.display());
    Err(Failure::new(Exit::Usage, message).hint("unmount and give the volume, or copy through the mount: rsync -aHAXS"))
}

fn is_empty(root: &dyn StoreDir, path: &Path) -> Result<bool, Failure> {
    let entries = root.list().map_err(|error| Failure::of_store(path, &error))?;
    // What every freshly made ext4 has.
    Ok(entries.iter().all(|entry| entry.name == b"lost+found"))
}

fn of_directory(path: &Path, error: &std::io::Error) -> Failure {
    Failure::new(Exit::Store, format!("{}: {error}", path.display())).hint("give a directory that can be opened")
}

fn of_state(path: &Path, error: &StateError) -> Failure {
    Failure::new(Exit::Usage, format!("the state {} cannot be used: {error}", path.display()))
        .hint("give another file with --state, or remove it to begin anew, with an empty target")
}
