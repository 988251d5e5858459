//! `kmsfs status`: one mount, or all of this user's.

mod table;

use super::lock::ask;
use super::{Exit, Failure};
use crate::daemon::Status;
use crate::daemon::control::{Command, Reply};
use crate::daemon::host;
use clap::Args;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Shows how mounts are doing.
#[derive(Args)]
pub struct StatusCommand {
    /// Where the volume is mounted; without it, all mounts of this user are listed
    mountpoint: Option<PathBuf>,
    /// Print JSON: an object for one mount, else an array
    #[arg(long)]
    json: bool,
    /// Go on, every two seconds; with --json, a line each time
    #[arg(long, short = 'w')]
    watch: bool,
}

/// How often `--watch` looks.
const EVERY: Duration = Duration::from_secs(2);

pub fn run(arguments: &StatusCommand) -> Result<(), Failure> {
    if !arguments.watch {
        print!("{}", text(arguments)?);
        return Ok(());
    }
    loop {
        let text = text(arguments)?;
        // The screen is cleared when there is something to put on it.
        let clear = if std::io::stdout().is_terminal() { "\x1b[H\x1b[2J" } else { "" };
        let mut output = std::io::stdout().lock();
        if write!(output, "{clear}{text}").and_then(|()| output.flush()).is_err() {
            // Nobody reads it any more.
            return Ok(());
        }
        drop(output);
        std::thread::sleep(EVERY);
    }
}

/// What is to be printed.
fn text(arguments: &StatusCommand) -> Result<String, Failure> {
    let Some(mountpoint) = &arguments.mountpoint else {
        let found = host::look();
        if arguments.json {
            let all: Vec<_> = found.iter().map(|(mountpoint, found)| found.to_json(mountpoint)).collect();
            return Ok(to_json(&all, arguments.watch));
        }
        return Ok(table::of(&found, table::has_colours()));
    };
    let status = of(mountpoint)?;
    Ok(if arguments.json { to_json(&status, arguments.watch) } else { one(&status) })
}

fn of(mountpoint: &Path) -> Result<Status, Failure> {
    match ask(mountpoint, Command::Status)? {
        Reply::Status(status) => Ok(*status),
        other => Err(Failure::new(Exit::Failure, format!("the mount gave an unexpected answer: {other:?}"))),
    }
}

/// On one line if there will be more.
fn to_json<T: serde::Serialize>(value: &T, compact: bool) -> String {
    let text = if compact { serde_json::to_string(value) } else { serde_json::to_string_pretty(value) };
    // Strings and numbers cannot fail to be written.
    text.unwrap_or_default() + "\n"
}

fn state(status: &Status) -> String {
    match &status.reason {
        Some(reason) => format!("{} ({reason})", status.state),
        None => status.state.clone(),
    }
}

fn seconds(seconds: f64) -> String {
    humantime::format_duration(Duration::from_secs(seconds as u64)).to_string()
}

/// One mount, a fact on each line.
fn one(status: &Status) -> String {
    let mut out = String::new();
    macro_rules! line {
        ($($words:tt)*) => {{
            out += &format!($($words)*);
            out.push('\n');
        }};
    }
    let rows = [
        ("state", format!("{} for {}", state(status), seconds(status.since_s))),
        ("mountpoint", status.mountpoint.display().to_string()),
        ("volume", format!("{} ({})", status.volume.display(), status.volume_id)),
        (if status.with_recovery_kek { "recovery key" } else { "key" }, status.kek.clone()),
        ("granted", format!("{} ago", seconds(status.last_granted_s))),
        ("lease", format!("{} left", seconds(status.lease_remaining_s))),
        ("process", status.pid.to_string()),
        ("read", format!("{} bytes", status.bytes_read)),
        ("written", format!("{} bytes", status.bytes_written)),
        ("inodes", status.inodes.to_string()),
        ("open files", status.open_files.to_string()),
        ("damage found", status.damaged.to_string()),
        ("KMS calls", status.kms["calls"].to_string()),
    ];
    for (name, value) in rows {
        line!("{name:<13} {value}");
    }
    if let Some(scrub) = &status.scrub {
        let what = format!("{} files, {}", scrub.files, indicatif::HumanBytes(scrub.bytes));
        line!("{:<13} {}: {what}, {} damaged", "scrub", scrub.state.name(), scrub.damaged);
    }
    if let Some(guard) = &status.rollback_guard {
        let suspect = if guard.suspect { ", A ROLLBACK WAS SEEN" } else { "" };
        line!("{:<13} {}: {} files, at {}{suspect}", "guard", guard.place, guard.files, guard.counter);
        if let Some(error) = &guard.error {
            line!("{:<13} it cannot be written: {error}", "");
        }
    }
    if let Some(rewrap) = &status.rewrap {
        let what = format!("{} files, {} of {} looked at", rewrap.rewrapped, rewrap.files, 2 * rewrap.total);
        line!("{:<13} {}: {what}, {} left", "rewrap", rewrap.state.name(), rewrap.left);
        for count in &rewrap.keys {
            let kek = count.kek.as_deref().unwrap_or("none of the volume's");
            let ago = rewrap.ended_s.map(|ended| format!(" ({} ago)", seconds(ended))).unwrap_or_default();
            line!("{:<13} {} files under {kek}{ago}", format!("key {}", count.generation), count.files);
        }
    }
    if let Some(rekey) = &status.rekey {
        let done = indicatif::HumanBytes(rekey.bytes);
        let what = format!("{} files, {done}, {} of {} looked at", rekey.rekeyed, rekey.files, rekey.total);
        println!("{:<13} {}: {what}, {} left", "rekey", rekey.state.name(), rekey.left);
    }
    if let Some(error) = &status.last_error {
        line!("{:<13} {error}", "last error");
    }
    if let Some(audit) = &status.audit {
        line!("{:<13} {} line {}, {}", "audit log", audit.series, audit.seq, audit.head);
        if let Some(error) = &audit.error {
            line!("{:<13} {} events wait: {error}", "", audit.waiting);
        }
        if audit.lost > 0 {
            line!("{:<13} {} events were lost", "", audit.lost);
        }
    }
    out
}
