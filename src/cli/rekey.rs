//! `kmsfs rekey`: new data keys for the files of a volume. The mount's process does it, and this one asks how far it is; to a
//! volume that is not mounted this one does it itself.

use super::fsck::stop_on_signals;
use super::offline::{How, Offline};
use super::renewal::{self, End};
use super::rewrap::{bar, mounted};
use super::{Exit, Failure};
use crate::daemon::control::{self, Command, Reply};
use crate::daemon::guard::GuardPlace;
use crate::daemon::{JobState, LeftFile, RekeyStatus};
use crate::lease::KMS_RATE;
use clap::Args;
use std::num::NonZeroU64;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Gives files new data keys, and seals their content again.
#[derive(Args)]
#[command(
    after_help = "Interrupted at any moment, the same command goes on. Without --path and --older-than every file gets a new \
    key, and\nwhen the last one has it, old headers are refused.\n\nExit codes: 0 done, 14 files are left that are damaged, \
    6 files are left whose key the KMS refuses, or it refuses\nthe volume's, 10 a rekey or a rewrap runs on this volume \
    already, 1 the volume locked, 7 and 8 the KMS does not\nanswer, 13 something could not be read or written, 130 cancelled."
)]
pub struct RekeyCommand {
    /// The volume's directory, or where it is mounted
    volume: PathBuf,
    /// Only what is at or below this path: below the mountpoint, or from the root of the volume on
    #[arg(long, value_name = "PATH")]
    path: Option<PathBuf>,
    /// Only files whose key is older than this, for instance 365d
    #[arg(long, value_name = "AGE", value_parser = humantime::parse_duration)]
    older_than: Option<Duration>,
    /// Begin anew: files that an interrupted rekey has done get another key
    #[arg(long)]
    anew: bool,
    /// Seal so much a second at most, for instance 50MiB/s
    #[arg(long, value_name = "RATE", value_parser = super::scrub::rate)]
    rate: Option<NonZeroU64>,
    /// If the volume is not mounted: where its key is now, if not where the volume says
    #[arg(long, value_name = "KEK")]
    present_kek: Option<String>,
    /// If the volume is not mounted, and its mounts have a rollback guard: the same one, so that it knows what is new
    #[arg(long, value_name = "FILE|DIR|kms")]
    rollback_guard: Option<GuardPlace>,
    /// If the volume is not mounted: how often the KMS is asked at most, in calls a second
    #[arg(long, value_name = "CALLS", default_value_t = KMS_RATE, value_parser = clap::value_parser!(u32).range(1..))]
    kms_rate: u32,
    /// End the rekey that runs, whoever began it
    #[arg(long, conflicts_with_all = ["path", "older_than", "anew", "rate", "json", "present_kek", "rollback_guard"])]
    cancel: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Who does it.
enum Worker {
    /// The process of the mount at this place.
    Mount(PathBuf),
    /// This one.
    Here(Box<Offline>),
}

pub fn run(arguments: &RekeyCommand) -> Result<(), Failure> {
    let mounted = mounted(&arguments.volume)?;
    if arguments.cancel {
        let mountpoint = mounted.ok_or_else(|| Failure::new(Exit::Mountpoint, "no rekey runs: it is not mounted"))?;
        return match ask(&mountpoint, Command::RekeyCancel)? {
            Reply::Failed(problem) => Err(problem.into()),
            _ => Ok(()),
        };
    }
    let path = arguments.path.as_deref().map(|path| names(path, mounted.as_deref())).transpose()?;
    let stop = Arc::new(AtomicBool::new(false));
    stop_on_signals(&stop).map_err(|error| Failure::new(Exit::Failure, format!("signals: {error}")))?;
    let worker = match mounted {
        Some(mountpoint) => Worker::Mount(mountpoint),
        None => Worker::Here(Box::new(Offline::open(
            &arguments.volume,
            &How {
                what: "rekey",
                with_recovery_kek: false,
                present_kek: arguments.present_kek.as_deref(),
                kms_rate: arguments.kms_rate,
                rollback_guard: arguments.rollback_guard.clone(),
            },
        )?)),
    };
    let result = wait(arguments, path, &worker, &stop);
    if let Worker::Here(offline) = worker {
        offline.close()?;
    }
    let (status, left) = result?;
    if arguments.json {
        let is_complete = status.state == JobState::Complete && status.left == 0;
        println!("{:#}", renewal::to_json(&status, is_complete, &left));
    } else {
        print(&status, &left);
    }
    let end = End { state: status.state, problem: status.problem, left: (status.left, &left) };
    renewal::outcome("rekey", end, "still have their old key", "every file can be read; the same command goes on")
}

/// The names that a path consists of, from the root of the volume on.
fn names(path: &Path, mountpoint: Option<&Path>) -> Result<Vec<Vec<u8>>, Failure> {
    let below = match mountpoint {
        Some(mountpoint) if path.is_absolute() => path.strip_prefix(mountpoint).map_err(|_| {
            let message = format!("{} is not below {}", path.display(), mountpoint.display());
            Failure::new(Exit::Usage, message)
        })?,
        _ => path,
    };
    let mut names = Vec::new();
    for component in below.components() {
        match component {
            Component::Normal(name) => names.push(name.as_bytes().to_vec()),
            Component::RootDir | Component::CurDir => (),
            Component::ParentDir | Component::Prefix(_) => {
                let message = format!("{}: give a path without ..", path.display());
                return Err(Failure::new(Exit::Usage, message));
            }
        }
    }
    Ok(names)
}

fn ask(mountpoint: &Path, command: Command) -> Result<Reply, Failure> {
    control::ask(mountpoint, command).map(|(reply, _)| reply).map_err(|_| {
        let message = "the mount's process is gone: not every file has its new key";
        Failure::new(Exit::Mountpoint, message).hint("mount the volume again; the same command goes on")
    })
}

impl Worker {
    fn ask(&self, command: Command) -> Result<(RekeyStatus, Vec<LeftFile>), Failure> {
        match self {
            Self::Here(offline) => offline.answer_rekey(command).map_err(Failure::from),
            Self::Mount(mountpoint) => match ask(mountpoint, command)? {
                Reply::Rekey { status, left } => Ok((*status, left)),
                Reply::Failed(problem) => Err(problem.into()),
                other => Err(Failure::new(Exit::Failure, format!("the mount gave an unexpected answer: {other:?}"))),
            },
        }
    }

    fn cancel(&self) -> Result<(), Failure> {
        match self {
            Self::Here(offline) => offline.cancel(),
            Self::Mount(mountpoint) => drop(ask(mountpoint, Command::RekeyCancel)?),
        }
        Ok(())
    }
}

/// Begins it and waits for its end.
fn wait(
    arguments: &RekeyCommand,
    path: Option<Vec<Vec<u8>>>,
    worker: &Worker,
    stop: &AtomicBool,
) -> Result<(RekeyStatus, Vec<LeftFile>), Failure> {
    let older_than_s = arguments.older_than.map(|age| age.as_secs());
    let begin = Command::Rekey { path, older_than_s, anew: arguments.anew, rate: arguments.rate };
    let begun = worker.ask(begin)?.0;
    let bar = bar("{bar:30} {percent}%, {binary_bytes_per_sec}, {eta} left, {msg}");
    let mut cancelled = false;
    loop {
        if stop.load(Ordering::Relaxed) && !cancelled {
            worker.cancel()?;
            cancelled = true;
        }
        // Answered when it ends, or after a moment.
        let (status, left) = worker.ask(Command::RekeyProgress { number: begun.number })?;
        if status.state != JobState::Running {
            bar.finish_and_clear();
            return Ok((status, left));
        }
        bar.set_length(status.total_bytes.max(status.position));
        bar.set_position(status.position);
        bar.set_message(format!("{} files of {} have new keys", status.rekeyed, status.total));
    }
}

fn print(status: &RekeyStatus, left: &[LeftFile]) {
    println!(
        "{} files, {}, got new keys in {}; the KMS unwrapped {} secrets, {} new ones were wrapped",
        status.rekeyed,
        indicatif::HumanBytes(status.bytes),
        renewal::took(status.took_s),
        status.unwrapped,
        status.wrapped
    );
    renewal::print_left(status.left, left);
    if status.floor_raised {
        println!("every file has a key of epoch {} or later; what has an older one is refused", status.epoch);
        println!("copies of the volume that were made before are what they were: the old keys open them");
    }
}
