//! From a name to an entry of the store and back, in volumes with encrypted and with plain names.

use super::error::{Error, Result};
use super::{Entered, Fs};
use crate::crypto::names::{self, NAME_MAX, SideEntry, StoredName};
use crate::store::{DirEntry, StoreDir};
use crate::units::DirId;
use std::io;

impl Fs {
    /// The stored form of a name in a directory.
    pub(super) fn stored_name(&self, keys: &Entered<'_>, parent: u64, name: &[u8]) -> Result<StoredName> {
        if name.len() > NAME_MAX {
            return Err(Error::errno(libc::ENAMETOOLONG));
        }
        if name.is_empty() || name == b"." || name == b".." || name.contains(&b'/') {
            return Err(Error::errno(libc::EINVAL));
        }
        if self.volume.record().plain_names {
            return Ok(StoredName { entry: name.to_vec(), side: None });
        }
        Ok(keys.names.seal(self.dir_id(parent)?, name))
    }

    /// The id of a directory.
    pub(super) fn dir_id(&self, ino: u64) -> Result<DirId> {
        self.nodes.dir_id(ino, |directory| {
            let id = directory.read_symlink(names::DIR_ID_ENTRY).map_err(|error| {
                self.found_damage(|| format!("directory {ino} has no id: {error}"));
                Error::Damaged
            })?;
            parse_dir_id(&id).ok_or_else(|| {
                self.found_damage(|| format!("directory {ino} has an id that is none"));
                Error::Damaged
            })
        })
    }

    /// The name that an entry stands for: `Ok(None)` for what is kmsfs's own.
    pub(super) fn plain_name(
        &self,
        keys: &Entered<'_>,
        id: Option<DirId>,
        directory: &dyn StoreDir,
        entry: &[u8],
    ) -> Result<Option<Vec<u8>>> {
        let Some(id) = id else { return Ok(Some(entry.to_vec())) };
        let open = |full: &[u8]| keys.names.open(id, full).map(Some).map_err(|_| Error::Damaged);
        match names::classify(entry) {
            names::Entry::Internal => Ok(None),
            names::Entry::Foreign => Err(Error::Damaged),
            names::Entry::Direct(full) => open(full),
            names::Entry::Long(side) => {
                let full = directory.read_symlink(&side)?;
                if keys.names.side_entry_matches(&side, &full) { open(&full) } else { Err(Error::Damaged) }
            }
        }
    }

    /// Notes damage: counted, and logged without names.
    pub(super) fn found_damage(&self, what: impl FnOnce() -> String) {
        self.counters.damaged.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        tracing::warn!("damage: {}", what());
    }
}

/// The id in the target of a directory's id entry.
pub(super) fn parse_dir_id(target: &[u8]) -> Option<DirId> {
    std::str::from_utf8(target).ok()?.parse().ok()
}

/// Makes the side entry of a long name. One that is there already is the same: its name is the hash of its target.
pub(super) fn make_side(directory: &dyn StoreDir, side: Option<&SideEntry>) -> io::Result<()> {
    match side.map(|side| directory.make_symlink(&side.entry, &side.target)) {
        Some(Err(error)) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

/// Removes the side entry of a long name that is gone; one that stays behind does no harm.
pub(super) fn remove_side(directory: &dyn StoreDir, side: Option<&SideEntry>) {
    if let Some(side) = side {
        let _ = directory.unlink(&side.entry);
    }
}

/// Whether a directory of the store shows as empty.
pub(super) fn is_empty(entries: &[DirEntry], plain_names: bool) -> bool {
    entries.iter().all(|entry| !plain_names && names::classify(&entry.name) == names::Entry::Internal)
}
