//! `kmsfs status`: one mount, or all of this user's.

use super::lock::ask;
use super::{Exit, Failure};
use crate::daemon::Status;
use crate::daemon::control::{self, Command, Reply};
use clap::Args;
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
}

pub fn run(arguments: &StatusCommand) -> Result<(), Failure> {
    let Some(mountpoint) = &arguments.mountpoint else { return list(arguments.json) };
    let status = of(mountpoint)?;
    if arguments.json {
        println!("{}", to_json(&status));
    } else {
        print_one(&status);
    }
    Ok(())
}

fn of(mountpoint: &Path) -> Result<Status, Failure> {
    match ask(mountpoint, Command::Status)? {
        Reply::Status(status) => Ok(*status),
        other => Err(Failure::new(Exit::Failure, format!("the mount gave an unexpected answer: {other:?}"))),
    }
}

fn list(json: bool) -> Result<(), Failure> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(control::directory()).into_iter().flatten().flatten() {
        // A socket that nobody answers belongs to a process that died.
        if let Ok((Reply::Status(status), _)) = control::ask_socket(&entry.path(), Command::Status) {
            all.push(*status);
        }
    }
    all.sort_by(|a, b| a.mountpoint.cmp(&b.mountpoint));
    if json {
        println!("{}", to_json(&all));
        return Ok(());
    }
    if all.is_empty() {
        println!("nothing is mounted");
        return Ok(());
    }
    println!("{:<34} {:<22} {:>10}  KEY", "MOUNTPOINT", "STATE", "FOR");
    for status in &all {
        let state = state(status);
        println!("{:<34} {state:<22} {:>10}  {}", status.mountpoint.display(), seconds(status.since_s), status.kek);
    }
    Ok(())
}

fn to_json<T: serde::Serialize>(value: &T) -> String {
    // Strings and numbers cannot fail to be written.
    serde_json::to_string_pretty(value).unwrap_or_default()
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

fn print_one(status: &Status) {
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
        println!("{name:<13} {value}");
    }
    if let Some(scrub) = &status.scrub {
        let what = format!("{} files, {}", scrub.files, indicatif::HumanBytes(scrub.bytes));
        println!("{:<13} {}: {what}, {} damaged", "scrub", scrub.state.name(), scrub.damaged);
    }
    if let Some(guard) = &status.rollback_guard {
        let suspect = if guard.suspect { ", A ROLLBACK WAS SEEN" } else { "" };
        println!("{:<13} {}: {} files, at {}{suspect}", "guard", guard.place, guard.files, guard.counter);
        if let Some(error) = &guard.error {
            println!("{:<13} it cannot be written: {error}", "");
        }
    }
    if let Some(rewrap) = &status.rewrap {
        let what = format!("{} files, {} of {} looked at", rewrap.rewrapped, rewrap.files, 2 * rewrap.total);
        println!("{:<13} {}: {what}, {} left", "rewrap", rewrap.state.name(), rewrap.left);
        for count in &rewrap.keys {
            let kek = count.kek.as_deref().unwrap_or("none of the volume's");
            let ago = rewrap.ended_s.map(|ended| format!(" ({} ago)", seconds(ended))).unwrap_or_default();
            println!("{:<13} {} files under {kek}{ago}", format!("key {}", count.generation), count.files);
        }
    }
    if let Some(rekey) = &status.rekey {
        let done = indicatif::HumanBytes(rekey.bytes);
        let what = format!("{} files, {done}, {} of {} looked at", rekey.rekeyed, rekey.files, rekey.total);
        println!("{:<13} {}: {what}, {} left", "rekey", rekey.state.name(), rekey.left);
    }
    if let Some(error) = &status.last_error {
        println!("{:<13} {error}", "last error");
    }
    if let Some(audit) = &status.audit {
        println!("{:<13} {} line {}, {}", "audit log", audit.series, audit.seq, audit.head);
        if let Some(error) = &audit.error {
            println!("{:<13} {} events wait: {error}", "", audit.waiting);
        }
        if audit.lost > 0 {
            println!("{:<13} {} events were lost", "", audit.lost);
        }
    }
}
