//! `kmsfs rewrap`: everything in a volume wrapped by another key. The mount's process does it, and this one asks how far
//! it is; to a volume that is not mounted this one does it itself.

use super::fsck::stop_on_signals;
use super::offline::{How, Offline};
use super::renewal::{self, End};
use super::{Exit, Failure};
use crate::daemon::control::{self, Command, Reply};
use crate::daemon::guard::GuardPlace;
use crate::daemon::{JobState, LeftFile, RewrapStatus, mountpoint};
use crate::fs::volume::{Holding, Volume};
use crate::kms::KekRef;
use crate::lease::KMS_RATE;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Wraps everything in a volume by another key, or by the newest version of its own.
#[derive(Args)]
#[command(
    after_help = "Interrupted at any moment, the same command goes on; until it says which key is safe to disable, both are \
    needed.\n\nExit codes: 0 nothing needs the old key any more, 14 files are left that are damaged, 6 files are left \
    whose\nkey the KMS refuses, or it refuses the volume's, 10 a rewrap runs on this volume already, 1 the volume locked, \
    7 and 8\nthe KMS does not answer, 13 something could not be read or written, 130 cancelled."
)]
pub struct RewrapCommand {
    /// The volume's directory, or where it is mounted
    volume: PathBuf,
    /// The key that shall wrap everything; by default the newest version of the present one
    #[arg(long, value_name = "KEK")]
    kek: Option<String>,
    /// A recovery key for the volume, in place of the one that it has, if any
    #[arg(long, value_name = "KEK")]
    recovery_kek: Option<String>,
    /// The present key is lost: unwrap with the recovery key. The volume must not be mounted
    #[arg(long, requires = "kek")]
    with_recovery_kek: bool,
    /// If the volume is not mounted: where the present key is now, if not where the volume says
    #[arg(long, value_name = "KEK")]
    present_kek: Option<String>,
    /// If the volume is not mounted, and its mounts have a rollback guard: the same one, so that it knows what is new
    #[arg(long, value_name = "FILE|DIR|kms")]
    rollback_guard: Option<GuardPlace>,
    /// Give so many files a second a new header at most
    #[arg(long, value_name = "FILES")]
    rate: Option<NonZeroU64>,
    /// If the volume is not mounted: how often the KMS is asked at most, in calls a second
    #[arg(long, value_name = "CALLS", default_value_t = KMS_RATE, value_parser = clap::value_parser!(u32).range(1..))]
    kms_rate: u32,
    /// End the rewrap that runs, whoever began it
    #[arg(long, conflicts_with_all = ["kek", "recovery_kek", "rate", "json", "present_kek", "rollback_guard"])]
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

pub fn run(arguments: &RewrapCommand) -> Result<(), Failure> {
    let mounted = mounted(&arguments.volume)?;
    if arguments.cancel {
        let mountpoint = mounted.ok_or_else(|| Failure::new(Exit::Mountpoint, "no rewrap runs: it is not mounted"))?;
        return match ask(&mountpoint, Command::RewrapCancel)? {
            Reply::Failed(problem) => Err(problem.into()),
            _ => Ok(()),
        };
    }
    let stop = Arc::new(AtomicBool::new(false));
    stop_on_signals(&stop).map_err(|error| Failure::new(Exit::Failure, format!("signals: {error}")))?;
    let worker = match mounted {
        Some(mountpoint) if arguments.with_recovery_kek => {
            let message = format!("the volume is mounted at {}", mountpoint.display());
            return Err(Failure::new(Exit::AlreadyMounted, message).hint("unmount it first"));
        }
        Some(mountpoint) => Worker::Mount(mountpoint),
        None => Worker::Here(Box::new(Offline::open(
            &arguments.volume,
            &How {
                what: "rewrap",
                with_recovery_kek: arguments.with_recovery_kek,
                present_kek: arguments.present_kek.as_deref(),
                kms_rate: arguments.kms_rate,
                rollback_guard: arguments.rollback_guard.clone(),
            },
        )?)),
    };
    let result = wait(arguments, &worker, &stop);
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
    renewal::outcome(
        "rewrap",
        end,
        "still need the old key: do not disable it",
        "the same command goes on; until it has come to its end, the old key and the new one are needed",
    )
}

/// Where the volume is mounted, `None` if it is not.
pub(super) fn mounted(volume: &Path) -> Result<Option<PathBuf>, Failure> {
    if let Ok(path) = mountpoint::absolute(volume)
        && control::ask(&path, Command::Status).is_ok()
    {
        return Ok(Some(path));
    }
    let holder = match Volume::open(volume) {
        Ok(volume) => Holding::current(volume.path()).map_err(|error| Failure::of_store(volume.path(), &error))?,
        Err(error) => return Err(Failure::of_volume(volume, error)),
    };
    // Who holds it without answering is another command, or a mount of somebody else.
    Ok(holder.map(|holder| PathBuf::from(holder.mountpoint)).filter(|path| control::ask(path, Command::Status).is_ok()))
}

fn ask(mountpoint: &Path, command: Command) -> Result<Reply, Failure> {
    control::ask(mountpoint, command).map(|(reply, _)| reply).map_err(|_| {
        let message = "the mount's process is gone: not everything is wrapped by the new key";
        Failure::new(Exit::Mountpoint, message).hint("both keys are needed; the same command goes on")
    })
}

impl Worker {
    fn ask(&self, command: Command) -> Result<(RewrapStatus, Vec<LeftFile>), Failure> {
        match self {
            Self::Here(offline) => offline.answer(command).map_err(Failure::from),
            Self::Mount(mountpoint) => match ask(mountpoint, command)? {
                Reply::Rewrap { status, left } => Ok((*status, left)),
                Reply::Failed(problem) => Err(problem.into()),
                other => Err(Failure::new(Exit::Failure, format!("the mount gave an unexpected answer: {other:?}"))),
            },
        }
    }

    fn cancel(&self) -> Result<(), Failure> {
        match self {
            Self::Here(offline) => offline.cancel(),
            Self::Mount(mountpoint) => drop(ask(mountpoint, Command::RewrapCancel)?),
        }
        Ok(())
    }
}

/// Begins it and waits for its end.
fn wait(
    arguments: &RewrapCommand,
    worker: &Worker,
    stop: &AtomicBool,
) -> Result<(RewrapStatus, Vec<LeftFile>), Failure> {
    let reference =
        |kek: &Option<String>| kek.as_deref().map(|kek| kek.parse::<KekRef>().map(|kek| kek.to_string())).transpose();
    let (kek, recovery_kek) = (reference(&arguments.kek)?, reference(&arguments.recovery_kek)?);
    let begun = worker.ask(Command::Rewrap { kek, recovery_kek, rate: arguments.rate })?.0;
    let bar = bar("{bar:30} {percent}%, {per_sec}, {eta} left, {msg}");
    let mut cancelled = false;
    loop {
        if stop.load(Ordering::Relaxed) && !cancelled {
            worker.cancel()?;
            cancelled = true;
        }
        // Answered when it ends, or after a moment.
        let (status, left) = worker.ask(Command::RewrapProgress { number: begun.number })?;
        if status.state != JobState::Running {
            bar.finish_and_clear();
            return Ok((status, left));
        }
        // Every file is looked at twice.
        bar.set_length((2 * status.total).max(status.files));
        bar.set_position(status.files);
        bar.set_message(format!("{} files rewrapped, {} secrets", status.rewrapped, status.wrapped));
    }
}

/// A bar with this template, on a terminal.
pub(super) fn bar(template: &str) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(0);
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar
}

fn print(status: &RewrapStatus, left: &[LeftFile]) {
    println!(
        "{} files got a new header in {}; the KMS unwrapped {} secrets, {} were wrapped",
        status.rewrapped,
        renewal::took(status.took_s),
        status.unwrapped,
        status.wrapped
    );
    for count in &status.keys {
        println!(
            "{:>10} files under {}",
            count.files,
            count.kek.as_deref().unwrap_or("a key that is not the volume's")
        );
    }
    renewal::print_left(status.left, left);
    if status.state != JobState::Complete || status.left > 0 {
        return;
    }
    println!("everything is wrapped by {}", status.kek);
    for kek in &status.safe_to_disable {
        println!("safe to disable: {kek}");
    }
    if !status.safe_to_disable.is_empty() {
        println!("nothing in the volume needs that any more; copies of the volume that were made before still do");
    }
}
