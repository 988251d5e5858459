//! `kmsfs info`: what a volume is, without its key and without the KMS. Nothing of it is authenticated.

use super::{Exit, Failure};
use crate::daemon::guard::GuardPlace;
use crate::format::volume::KekRole;
use crate::fs::volume::{Holding, Volume};
use crate::journal::recovery;
use crate::ledger::Ledger;
use clap::Args;
use serde_json::json;
use std::path::PathBuf;

/// Shows what a volume is.
#[derive(Args)]
pub struct Info {
    /// The volume's directory
    volume: PathBuf,
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
    let role = |role| match role {
        KekRole::Primary => "primary",
        KekRole::Recovery => "recovery",
    };
    if arguments.json {
        let keks: Vec<_> = record
            .keks
            .iter()
            .map(|kek| {
                json!({
                    "generation": kek.generation.0,
                    "role": role(kek.role),
                    "reference": kek.reference,
                    "id": kek.volume_key.kek.0,
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
            "keks": keks,
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
    for kek in &record.keks {
        println!("{:<20} {}", format!("key {} ({})", kek.generation.0, role(kek.role)), kek.volume_key.kek);
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
