//! `kmsfs init`.

use super::{Exit, Failure};
use crate::audit::{self, Event, clean};
use crate::format::ChunkSize;
use crate::format::volume::KekRole;
use crate::fs::volume::{self, FILES_PER_ENVELOPE, InitOptions, RecoveryKek};
use crate::kms::{ConnectOptions, KekRef, connect};
use clap::Args;
use std::path::PathBuf;

/// Makes a volume.
#[derive(Args)]
pub struct Init {
    /// The directory to make: empty, or not there yet
    volume: PathBuf,
    /// The key: https://NAME.vault.azure.net/keys/KEY[/VERSION], transit+https://HOST/MOUNT/keys/NAME[/VERSION],
    /// arn:aws:kms:…, projects/…/cryptoKeys/KEY; a raw key: file:PATH, cmd:COMMAND, fd:NUMBER or credential:NAME
    #[arg(long)]
    kek: String,
    /// A second key that wraps everything too, for the day on which the first one is lost
    #[arg(long, value_name = "KEK")]
    recovery_kek: Option<String>,
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
    let connect_options = ConnectOptions::from_variables(|name| std::env::var(name).ok());
    let kms = connect(&arguments.kek, &connect_options)?;
    let reference = arguments.kek.parse::<KekRef>()?.recorded();
    let recovery = match &arguments.recovery_kek {
        Some(kek) => Some((kek.parse::<KekRef>()?.recorded(), connect(kek, &connect_options)?)),
        None => None,
    };
    let all = std::iter::once(&kms).chain(recovery.as_ref().map(|(_, kms)| kms));
    all.flat_map(|kms| kms.warnings()).for_each(|warning| eprintln!("warning: {warning}"));
    if recovery.as_ref().is_some_and(|(recovery, _)| *recovery == reference) {
        if reference.parse() == Ok(KekRef::Raw) {
            let failure = Failure::new(Exit::Usage, "both keys would be recorded nowhere, and could not be told apart");
            return Err(failure.hint("keep one of them where the volume can record it: file:PATH or credential:NAME"));
        }
        let failure = Failure::new(Exit::Usage, "the recovery key is the key itself");
        return Err(failure.hint("give another one, best of all in another vault or another cloud"));
    }
    let options = InitOptions {
        chunk_size: arguments.chunk_size,
        files_per_envelope: arguments.files_per_envelope,
        plain_names: arguments.plain_names,
    };
    let second = recovery.as_ref().map(|(reference, kms)| RecoveryKek { reference, kms: &**kms });
    let record = volume::init_with_recovery(&arguments.volume, &reference, &*kms, options, second)
        .map_err(|error| Failure::of_volume(&arguments.volume, error))?;
    let event = Event::Init {
        volume: record.id.to_string(),
        kek: clean(&record.newest().volume_key.kek.0),
        chunk_size: record.chunk_size.bytes(),
        files_per_envelope: record.files_per_envelope,
        plain_names: record.plain_names,
        recovery_kek: record.newest_of(KekRole::Recovery).map(|kek| clean(&kek.volume_key.kek.0)),
    };
    if let Err(error) = audit::append(&arguments.volume, record.id, None, &[event]) {
        eprintln!("warning: the audit log could not be begun: {error}");
    }
    println!("made volume {} in {}", record.id, arguments.volume.display());
    println!("key: {}", record.newest().volume_key.kek);
    if let Some(recovery) = record.newest_of(KekRole::Recovery) {
        println!("recovery key: {}", recovery.volume_key.kek);
        println!("see that it opens the volume: kmsfs fsck {} --deep --with-recovery-kek", arguments.volume.display());
    }
    println!("mount it: kmsfs mount {} MOUNTPOINT", arguments.volume.display());
    Ok(())
}
