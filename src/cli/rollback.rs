//! `kmsfs rollback accept`: takes what is older than it was seen to be for what it is to be from now on.

use super::{Exit, Failure};
use crate::audit::{self, Event, clean};
use crate::crypto::derive::VolumeKeys;
use crate::daemon::guard::{self, GuardPlace, Subject};
use crate::file::file_id;
use crate::fs::volume::{Holder, Holding, Volume, VolumeError};
use crate::journal::recovery;
use crate::kms::{ConnectOptions, Kms};
use crate::ledger::Ledger;
use crate::store::dir::DirStore;
use crate::store::{Store, StoreFile};
use crate::units::FileId;
use clap::{Args, Subcommand};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

/// What can be done about a rollback.
#[derive(Subcommand)]
pub enum RollbackCommand {
    /// Accept a restored backup, or a restored file: what its guard knew of it before is forgotten, and noted in the audit
    /// log
    Accept(Accept),
}

/// Accepts what is there.
#[derive(Args)]
pub struct Accept {
    /// The volume's directory
    volume: PathBuf,
    /// The guard that refuses it, as the mount names it
    #[arg(long, value_name = "FILE|DIR|kms")]
    rollback_guard: GuardPlace,
    /// Only this file, by the path below the volume's directory that fsck and scrub report (tree/…)
    #[arg(long, value_name = "STORED")]
    file: Option<PathBuf>,
    /// Where the key is now, if not where the volume says: the same key, under another address or path
    #[arg(long)]
    kek: Option<String>,
}

pub fn run(command: &RollbackCommand) -> Result<(), Failure> {
    match command {
        RollbackCommand::Accept(arguments) => accept(arguments),
    }
}

/// 1. the volume is taken, so that nothing in it changes, and its key unwrapped: who may not use the key accepts nothing;
/// 2. the audit log says what is accepted, durably (a crash: nothing is accepted yet, and it is said once more);
/// 3. the guard forgets what it knew, and then the KMS (a crash between: what the KMS remembers is refused still).
fn accept(arguments: &Accept) -> Result<(), Failure> {
    let of_store = |error: io::Error| Failure::of_store(&arguments.volume, &error);
    let volume = Volume::open(&arguments.volume).map_err(|error| Failure::of_volume(&arguments.volume, error))?;
    let holder = Holder::here("kmsfs rollback accept");
    let _holding = Holding::take(volume.path(), &holder, false).map_err(of_store)?.map_err(|other| {
        let who = other.map_or_else(|| "by another process".to_owned(), |other| other.to_string());
        Failure::new(Exit::AlreadyMounted, format!("{} is mounted, {who}", arguments.volume.display()))
            .hint("unmount it first")
    })?;
    let record = volume.record();
    let connect = ConnectOptions::from_variables(|name| std::env::var(name).ok());
    let ring = volume.ring(connect, arguments.kek.as_deref());
    let volume_key = match volume.unlock(&ring) {
        Ok(unwrapped) => unwrapped.secret,
        Err(VolumeError::Kms(error)) => return Err(Failure::of_key(&volume, error)),
        Err(error) => return Err(Failure::of_volume(&arguments.volume, error)),
    };
    let kms: Arc<dyn Kms> = ring;
    let keys = VolumeKeys::from(&volume_key);
    let counter = recovery::committed(&*volume.journal().map_err(of_store)?).map_err(of_store)?;
    let place = arguments.rollback_guard.resolve(&volume)?;
    let ledger = Ledger::open(place, record.id, &keys.ledger_mac);
    let before = ledger.as_ref().ok().map(|ledger| (ledger.mark().counter, ledger.files()));
    let file = match &arguments.file {
        Some(path) => Some(id_of(&volume, path)?),
        None => None,
    };
    let note = |file: Option<FileId>| {
        let event = Event::RollbackAccepted {
            guard: clean(&arguments.rollback_guard.to_string()),
            file: file.map(|file| file.to_string()),
            before,
            now: counter,
        };
        audit::append(volume.path(), record.id, Some(VolumeKeys::from(&volume_key).audit_mac), &[event]).map_err(
            |error| {
                Failure::new(Exit::Store, format!("nothing was accepted: it cannot be noted in the audit log: {error}"))
            },
        )
    };
    let Some(file) = file else {
        note(None)?;
        guard::accept(
            &arguments.rollback_guard,
            &Subject { volume: &volume, volume_key: &volume_key, kms: &kms, counter, unclean: false },
        )?;
        match before {
            Some((known, files)) => println!("accepted at {counter}; the guard was at {known}, and knew {files} files"),
            None => println!("accepted at {counter}"),
        }
        return Ok(());
    };
    let ledger = ledger.map_err(|error| {
        Failure::new(Exit::RolledBack, format!("the rollback guard {}: {error}", arguments.rollback_guard))
            .hint("accept the whole volume: without --file")
    })?;
    note(Some(file))?;
    let was_known = ledger.forget(file);
    ledger.flush(&keys.ledger_mac, ledger.mark().counter).map_err(|error| {
        Failure::new(Exit::Store, format!("the rollback guard {}: {error}", arguments.rollback_guard))
    })?;
    println!("{}", if was_known { "accepted" } else { "the guard knew nothing of that file" });
    Ok(())
}

/// The id of a stored file.
fn id_of(volume: &Volume, path: &Path) -> Result<FileId, Failure> {
    let inside = path.strip_prefix(volume.path()).unwrap_or(path);
    let found = open(volume, inside).and_then(|file| file_id(&*file));
    let wrong = |what: String| {
        Failure::new(Exit::Usage, format!("{}: {what}", path.display()))
            .hint("name it as kmsfs scrub or fsck reports it: by its place in the volume's directory, tree/…")
    };
    found.map_err(|error| wrong(error.to_string()))?.ok_or_else(|| wrong("it has no header".to_owned()))
}

fn open(volume: &Volume, path: &Path) -> io::Result<Arc<dyn StoreFile>> {
    let mut names = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => names.push(name.as_bytes()),
            _ => return Err(io::ErrorKind::InvalidInput.into()),
        }
    }
    let last = names.pop().ok_or(io::ErrorKind::InvalidInput)?;
    let mut directory = DirStore::open(volume.path())?.root();
    for name in names {
        directory = directory.open_dir(name)?;
    }
    directory.open_file(last, false)
}
