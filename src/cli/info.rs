//! `kmsfs info`: what a volume is, without its key and without the KMS. Nothing of it is authenticated.

use super::fsck::stop_on_signals;
use super::{Exit, Failure};
use crate::check::{self, KeyCounts};
use crate::daemon::guard::GuardPlace;
use crate::format::volume::{KekRole, RekeyState, VolumeRecord};
use crate::fs::volume::{Holding, Volume};
use crate::journal::recovery;
use crate::ledger::Ledger;
use clap::Args;
use indicatif::ProgressBar;
use serde_json::json;
use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Shows what a volume is.
#[derive(Args)]
pub struct Info {
    /// The volume's directory
    volume: PathBuf,
    /// Count how many files each key, and each version of it, has wrapped: reads a page of every file
    #[arg(long)]
    count: bool,
    /// Also show what this rollback guard knows of it
    #[arg(long, value_name = "FILE|DIR|kms")]
    rollback_guard: Option<GuardPlace>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub fn run(arguments: &Info) -> Result<(), Failure> {
    let volume = Volume::open(&arguments.volume).map_err(|error| Failure::of_volume(&arguments.volume, error))?;
    let record = volume.record();
    let holder = Holding::current(&arguments.volume)
        .map_err(|error| Failure::new(Exit::Store, format!("{}: {error}", arguments.volume.display())))?;
    let counter = volume
        .journal()
        .and_then(|journal| recovery::committed(&*journal))
        .map_err(|error| Failure::of_store(&arguments.volume, &error))?;
    let known = match &arguments.rollback_guard {
        Some(guard) => Some((guard, Ledger::peek(&guard.resolve(&volume)?, record.id))),
        None => None,
    };
    let counts = if arguments.count { Some(count(&volume)?) } else { None };
    let files_of = |generation, role| {
        let counts = counts.as_ref()?;
        let by_role = if role == KekRole::Recovery { &counts.recovery } else { &counts.files };
        Some(by_role.get(&generation).copied().unwrap_or_default())
    };
    if arguments.json {
        let keks: Vec<_> = record
            .keks
            .iter()
            .map(|kek| {
                json!({
                    "generation": kek.generation.0,
                    "role": kek.role.name(),
                    "reference": kek.reference,
                    "id": kek.volume_key.kek.0,
                    "files": files_of(kek.generation, kek.role),
                })
            })
            .collect();
        let info = json!({
            "volume_id": record.id.to_string(),
            "format": 1,
            "chunk_size": record.chunk_size.bytes(),
            "files_per_envelope": record.files_per_envelope,
            "plain_names": record.plain_names,
            "record_generation": record.generation,
            "kek_floor": record.kek_floor.0,
            "epoch_floor": record.epoch_floor.0,
            "epoch": record.epoch.0,
            "rekey": rekey(&record),
            "epochs": counts.as_ref().map(|counts| {
                counts.epochs.iter().map(|(epoch, files)| (epoch.0.to_string(), *files)).collect::<BTreeMap<_, _>>()
            }),
            "files_between_keys": counts.as_ref().map(|counts| counts.between),
            "keks": keks,
            "unreadable_files": counts.as_ref().map(|counts| counts.unreadable),
            "counter": counter,
            "rollback_guard": known.as_ref().map(|(guard, known)| match known {
                Ok((mark, files)) => json!({
                    "place": guard.to_string(), "counter": mark.counter, "files": files, "suspect": mark.suspect,
                }),
                Err(error) => json!({ "place": guard.to_string(), "error": error.to_string() }),
            }),
            "mounted": holder,
        });
        println!("{info:#}");
        return Ok(());
    }
    println!("{:<20} {}", "volume", record.id);
    println!("{:<20} 1", "format");
    println!("{:<20} {}", "chunk size", record.chunk_size);
    println!("{:<20} {}", "files per envelope", record.files_per_envelope);
    println!("{:<20} {}", "names", if record.plain_names { "plain" } else { "encrypted" });
    if let Some(what) = rekey(&record) {
        println!("{:<20} {what}, not through: the same command goes on", "rekey");
    }
    for kek in &record.keks {
        let files = files_of(kek.generation, kek.role).map(|files| format!(", {files} files")).unwrap_or_default();
        println!("{:<20} {}{files}", format!("key {} ({})", kek.generation.0, kek.role.name()), kek.volume_key.kek);
    }
    if let Some(counts) = &counts {
        let known = |generation| record.kek(generation).is_some();
        for (generation, files) in counts.files.iter().filter(|(generation, _)| !known(**generation)) {
            println!("{:<20} none of the volume's, {files} files", format!("key {}", generation.0));
        }
        for (epoch, files) in &counts.epochs {
            println!("{:<20} {files} files", format!("epoch {}", epoch.0));
        }
        if counts.between > 0 {
            println!("{:<20} {} files have two keys: a rekey has begun with them", "between", counts.between);
        }
        if counts.unreadable > 0 {
            println!("{:<20} {} files have no header that can be read: kmsfs fsck", "damaged", counts.unreadable);
        }
    }
    println!("{:<20} {counter}", "counter");
    match known {
        Some((guard, Ok((mark, files)))) => {
            let suspect = if mark.suspect { ", A ROLLBACK WAS SEEN" } else { "" };
            println!("{:<20} {guard}: {files} files, at {}{suspect}", "rollback guard", mark.counter);
        }
        Some((guard, Err(error))) => println!("{:<20} {guard}: {error}", "rollback guard"),
        None => (),
    }
    match holder {
        Some(holder) => println!("{:<20} {holder}", "mounted"),
        None => println!("{:<20} no", "mounted"),
    }
    Ok(())
}

/// The rekey that is not through.
fn rekey(record: &VolumeRecord) -> Option<&'static str> {
    match record.rekey {
        RekeyState::None => None,
        RekeyState::All => Some("all"),
        RekeyState::Part => Some("part"),
    }
}

fn count(volume: &Volume) -> Result<KeyCounts, Failure> {
    let of_store = |error: std::io::Error| Failure::of_store(volume.path(), &error);
    let stop = Arc::new(AtomicBool::new(false));
    stop_on_signals(&stop).map_err(of_store)?;
    let spinner = if std::io::stderr().is_terminal() { ProgressBar::new_spinner() } else { ProgressBar::hidden() };
    spinner.enable_steady_tick(Duration::from_millis(200));
    let counts = check::count_keys(&*volume.tree().map_err(of_store)?, &stop, &mut || {
        spinner.inc(1);
        if spinner.position() % 1000 == 0 {
            spinner.set_message(format!("{} files", spinner.position()));
        }
    });
    spinner.finish_and_clear();
    if stop.load(Ordering::Relaxed) {
        return Err(Failure::new(Exit::Interrupted, "interrupted: not all files were counted"));
    }
    counts.map_err(of_store)
}
