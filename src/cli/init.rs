//! `kmsfs init`.

use super::Failure;
use crate::audit::{self, Event, clean};
use crate::format::ChunkSize;
use crate::fs::volume::{self, FILES_PER_ENVELOPE, InitOptions};
use crate::kms::{ConnectOptions, KekRef, connect};
use clap::Args;
use std::path::PathBuf;

/// Makes a volume.
#[derive(Args)]
pub struct Init {
    /// The directory to make: empty, or not there yet
    volume: PathBuf,
    /// The key: https://NAME.vault.azure.net/keys/KEY[/VERSION], transit+https://HOST/MOUNT/keys/NAME[/VERSION]; a raw
    /// key: file:PATH, cmd:COMMAND, fd:NUMBER or credential:NAME
    #[arg(long)]
    kek: String,
    /// Size of the pieces that are encrypted one by one: a power of two from 4K to 1M
    #[arg(long, value_name = "SIZE", default_value_t = ChunkSize::DEFAULT)]
    chunk_size: ChunkSize,
    /// How many files share a wrapped secret; 1 makes every file's first read a line in the KMS's log
    #[arg(long, value_name = "N", default_value_t = FILES_PER_ENVELOPE, value_parser = clap::value_parser!(u32).range(1..))]
    files_per_envelope: u32,
    /// Do not encrypt names
    #[arg(long)]
    plain_names: bool,
}

pub fn run(arguments: &Init) -> Result<(), Failure> {
    let kms = connect(&arguments.kek, &ConnectOptions::from_variables(|name| std::env::var(name).ok()))?;
    kms.warnings().iter().for_each(|warning| eprintln!("warning: {warning}"));
    let reference = arguments.kek.parse::<KekRef>()?.recorded();
    let options = InitOptions {
        chunk_size: arguments.chunk_size,
        files_per_envelope: arguments.files_per_envelope,
        plain_names: arguments.plain_names,
    };
    let record = volume::init(&arguments.volume, &reference, &*kms, options)
        .map_err(|error| Failure::of_volume(&arguments.volume, error))?;
    let event = Event::Init {
        volume: record.id.to_string(),
        kek: clean(&record.newest().volume_key.kek.0),
        chunk_size: record.chunk_size.bytes(),
        files_per_envelope: record.files_per_envelope,
        plain_names: record.plain_names,
    };
    if let Err(error) = audit::append(&arguments.volume, record.id, None, &[event]) {
        eprintln!("warning: the audit log could not be begun: {error}");
    }
    println!("made volume {} in {}", record.id, arguments.volume.display());
    println!("key: {}", record.newest().volume_key.kek);
    println!("mount it: kmsfs mount {} MOUNTPOINT", arguments.volume.display());
    Ok(())
}
