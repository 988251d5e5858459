//! `kmsfs scrub`: checking a volume while it is mounted. The mount's process does it; this one asks how far it is.

use super::fsck::{bar, stop_on_signals};
use super::lock::ask;
use super::report::print_finding;
use super::{Exit, Failure};
use crate::check::{Finding, Kind, Severity};
use crate::daemon::control::{Command, Problem, Reply};
use crate::daemon::{JobState, ScrubStatus};
use clap::Args;
use serde_json::json;
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Authenticates everything in a volume while it is mounted.
#[derive(Args)]
#[command(
    after_help = "Exit codes: 0 nothing is damaged, 14 damage was found, 10 a scrub runs on this mount already, 1 the volume \
    locked,\n6 to 8 the KMS does not give a key, 13 something could not be read, 130 cancelled."
)]
pub struct Scrub {
    /// Where the volume is mounted
    mountpoint: PathBuf,
    /// Read so much at most, for instance 50MiB/s; by default as fast as one thread can
    #[arg(long, value_name = "RATE", value_parser = rate)]
    rate: Option<NonZeroU64>,
    /// End the scrub that runs, whoever began it
    #[arg(long, conflicts_with_all = ["rate", "json"])]
    cancel: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub fn run(arguments: &Scrub) -> Result<(), Failure> {
    if arguments.cancel {
        return match ask(&arguments.mountpoint, Command::ScrubCancel)? {
            Reply::Failed(problem) => Err(problem.into()),
            _ => Ok(()),
        };
    }
    let stop = Arc::new(AtomicBool::new(false));
    stop_on_signals(&stop).map_err(|error| Failure::new(Exit::Failure, format!("signals: {error}")))?;
    let (status, findings) = wait(arguments, &stop)?;
    let complete = status.state == JobState::Complete;
    if arguments.json {
        println!("{:#}", to_json(&status, &findings));
    } else {
        findings.iter().for_each(print_finding);
        println!("authenticated: {} files, {}", status.files, indicatif::HumanBytes(status.bytes));
        println!(
            "{} damaged, {} could not be checked, {} notes{}",
            status.damaged,
            status.unchecked,
            status.findings - status.damaged - status.unchecked,
            if complete { "" } else { "; not everything was looked at" }
        );
    }
    outcome(status, &findings)
}

/// Begins it and waits for its end.
fn wait(arguments: &Scrub, stop: &AtomicBool) -> Result<(ScrubStatus, Vec<Finding>), Failure> {
    let begun = scrub(ask(&arguments.mountpoint, Command::Scrub { rate: arguments.rate })?)?.0;
    let bar = bar(0);
    let mut cancelled = false;
    loop {
        if stop.load(Ordering::Relaxed) && !cancelled {
            ask(&arguments.mountpoint, Command::ScrubCancel)?;
            cancelled = true;
        }
        // Answered when it ends, or after a moment.
        let reply = ask(&arguments.mountpoint, Command::ScrubProgress { number: begun.number }).map_err(|_| {
            let message = "the mount's process is gone: not everything was looked at";
            Failure::new(Exit::Mountpoint, message).hint("mount the volume, or check it with kmsfs fsck --deep")
        })?;
        let (status, findings) = scrub(reply)?;
        if status.state != JobState::Running {
            bar.finish_and_clear();
            return Ok((status, findings));
        }
        bar.set_length(status.total.max(status.position));
        bar.set_position(status.position);
        bar.set_message(format!("{} files, {} findings", status.files, status.findings));
    }
}

fn scrub(reply: Reply) -> Result<(ScrubStatus, Vec<Finding>), Failure> {
    match reply {
        Reply::Scrub { status, findings } => Ok((*status, findings)),
        Reply::Failed(problem) => Err(problem.into()),
        other => Err(Failure::new(Exit::Failure, format!("the mount gave an unexpected answer: {other:?}"))),
    }
}

fn outcome(status: ScrubStatus, findings: &[Finding]) -> Result<(), Failure> {
    let incomplete = "not everything was looked at";
    let failure = match status.state {
        JobState::Complete if status.damaged > 0 => {
            let failure = Failure::new(Exit::Damage, format!("damage was found: {}", status.damaged));
            failure.hint("restore what is damaged, or remove it; kmsfs fsck --quarantine moves it out of the volume")
        }
        JobState::Complete if status.unchecked > 0 => {
            let refused = findings.iter().any(|finding| finding.kind == Kind::Refused);
            let message = format!("no damage was found, but {} could not be checked", status.unchecked);
            Failure::new(if refused { Exit::KmsRefused } else { Exit::Store }, message)
        }
        JobState::Complete => return Ok(()),
        JobState::Locked => {
            let failure = Failure::new(Exit::Failure, format!("the volume locked: {incomplete}"));
            failure.hint("scrub it again when it is unlocked; kmsfs status says why it is locked")
        }
        JobState::Unmounted => {
            let failure = Failure::new(Exit::Mountpoint, format!("the volume was unmounted: {incomplete}"));
            failure.hint("mount it, or check it with kmsfs fsck --deep")
        }
        JobState::Cancelled => {
            let failure = Failure::new(Exit::Interrupted, format!("cancelled: {incomplete}"));
            failure.hint("a scrub always begins at the beginning")
        }
        JobState::Running | JobState::Failed => {
            let problem = status.problem.unwrap_or_else(|| Problem::new("other", "the scrub failed"));
            Failure::from(Problem { message: format!("{}: {incomplete}", problem.message), ..problem })
        }
    };
    Err(failure)
}

fn to_json(status: &ScrubStatus, findings: &[Finding]) -> serde_json::Value {
    let notes = findings.iter().filter(|finding| finding.kind.severity() == Severity::Note).count();
    json!({
        "state": status.state,
        "problem": status.problem,
        "complete": status.state == JobState::Complete,
        "files_checked": status.files,
        "bytes_authenticated": status.bytes,
        "damaged": status.damaged,
        "unchecked": status.unchecked,
        "notes": notes,
        "findings": findings.iter().map(Finding::to_json).collect::<Vec<_>>(),
    })
}

/// Bytes a second: a number with or without a unit, with or without `/s`.
pub(super) fn rate(text: &str) -> Result<NonZeroU64, String> {
    let text = text.trim().trim_end_matches("/s").trim_end();
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let factor: u64 = match text[digits.len()..].trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        "kb" => 1000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        other => return Err(format!("{other:?} is no unit; for instance 50MiB/s")),
    };
    let number: u64 = digits.parse().map_err(|_| "not a rate; for instance 50MiB/s".to_owned())?;
    number.checked_mul(factor).and_then(NonZeroU64::new).ok_or_else(|| "from 1 B/s on".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_have_units_or_not() {
        for (text, bytes) in [
            ("50MiB/s", 50 << 20),
            ("50 MiB/s", 50 << 20),
            ("2g", 2 << 30),
            ("10MB/s", 10_000_000),
            ("4K", 4096),
            ("7", 7),
            ("7B/s", 7),
        ] {
            assert_eq!(rate(text).map(NonZeroU64::get), Ok(bytes), "{text}");
        }
        for text in ["", "/s", "0", "fast", "5 furlongs", "-1", "1.5M", "99999999999G"] {
            assert!(rate(text).is_err(), "{text}");
        }
    }
}
