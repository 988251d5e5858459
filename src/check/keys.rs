//! How many files each KEK of a volume has wrapped: a page of each file is read, and no key is needed.

use crate::file::{Found, Unverified};
use crate::store::{Kind, StoreDir};
use crate::units::{Epoch, KekGeneration};
use std::collections::{BTreeMap, HashSet};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

/// What was counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyCounts {
    /// By the number of the KEK in the volume. A file with several names counts once.
    pub files: BTreeMap<KekGeneration, u64>,
    /// Files of which a recovery KEK has wrapped the secret, too.
    pub recovery: BTreeMap<KekGeneration, u64>,
    /// By the epoch of their DEK.
    pub epochs: BTreeMap<Epoch, u64>,
    /// Files that a rekey has begun with, and that are sealed by two DEKs.
    pub between: u64,
    /// Files without a header that can be read.
    pub unreadable: u64,
}

/// Counts the files below a directory. Nothing of what is counted is authenticated: `fsck --deep` does that. `seen` is
/// called for each file.
///
/// # Errors
/// The store's, if a directory cannot be read.
pub fn count_keys(directory: &dyn StoreDir, stop: &AtomicBool, seen: &mut dyn FnMut()) -> io::Result<KeyCounts> {
    let mut counts = KeyCounts::default();
    below(directory, stop, &mut counts, &mut HashSet::new(), seen)?;
    Ok(counts)
}

fn below(
    directory: &dyn StoreDir,
    stop: &AtomicBool,
    counts: &mut KeyCounts,
    linked: &mut HashSet<u64>,
    seen: &mut dyn FnMut(),
) -> io::Result<()> {
    for entry in directory.list()? {
        if stop.load(Ordering::Relaxed) {
            return Ok(());
        }
        let stat = match directory.stat(&entry.name) {
            // A mounted volume changes meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            other => other?,
        };
        match stat.kind {
            Kind::Directory => match directory.open_dir(&entry.name) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => (),
                other => below(&*other?, stop, counts, linked, seen)?,
            },
            Kind::File if stat.nlink == 1 || linked.insert(stat.ino) => {
                seen();
                match directory.open_file(&entry.name, false).map(|store| Unverified::read(&*store)) {
                    Ok(Ok(Found::Header(found))) => {
                        let header = found.header();
                        *counts.files.entry(header.envelope.kek).or_default() += 1;
                        *counts.epochs.entry(header.epoch).or_default() += 1;
                        counts.between += u64::from(header.resealing.is_some());
                        if let Some(recovery) = &header.recovery {
                            *counts.recovery.entry(recovery.kek).or_default() += 1;
                        }
                    }
                    Err(error) if error.kind() == io::ErrorKind::NotFound => (),
                    _ => counts.unreadable += 1,
                }
            }
            _ => (),
        }
    }
    Ok(())
}
