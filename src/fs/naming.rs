//! From a name to an entry of the store and back, in volumes with encrypted and with plain names.

use super::error::{Error, Result};
use super::{Entered, Fs};
use crate::audit::Event;
use crate::crypto::names::{self, NAME_MAX, SideEntry, StoredName};
use crate::crypto::random_id;
use crate::store::{DirEntry, StoreDir};
use crate::units::DirId;
use data_encoding::HEXLOWER;
use std::io;

/// What the shown names of entries begin with whose own names cannot be read: foreign ones, damaged ones, and those
/// of a directory that lost its id. They can be removed, and moved to a name of their own.
const UNREADABLE: &[u8] = b".kmsfs-unreadable-";
/// What follows if the stored name would be too long to follow: its hash.
const HASHED: &[u8] = b"#";

/// How the names in a directory are stored.
#[derive(Clone, Copy)]
pub(super) enum Naming {
    /// As they are.
    Plain,
    /// Encrypted under this id.
    Sealed(DirId),
    /// Encrypted under an id that is not there any more.
    Lost,
}

impl Fs {
    /// The stored form that a new name gets in a directory.
    pub(super) fn stored_name(&self, keys: &Entered<'_>, parent: u64, name: &[u8]) -> Result<StoredName> {
        check(name)?;
        match self.naming(parent)? {
            Naming::Plain => Ok(StoredName { entry: name.to_vec(), side: None }),
            Naming::Sealed(id) => Ok(keys.names.seal(id, name)),
            Naming::Lost => Err(Error::Damaged),
        }
    }

    /// The stored form of a name that may be in a directory: also the escaped one of an entry that cannot be read.
    pub(super) fn known_name(
        &self,
        keys: &Entered<'_>,
        parent: u64,
        directory: &dyn StoreDir,
        name: &[u8],
    ) -> Result<StoredName> {
        if name.starts_with(UNREADABLE) {
            let naming = self.naming(parent)?;
            let is_a_name = self.stored_name(keys, parent, name).is_ok_and(|own| directory.stat(&own.entry).is_ok());
            if !is_a_name && let Some(found) = self.unreadable_entry(keys, naming, directory, name) {
                return Ok(found);
            }
        }
        self.stored_name(keys, parent, name)
    }

    /// How the names in a directory are stored.
    pub(super) fn naming(&self, ino: u64) -> Result<Naming> {
        if self.volume.record().plain_names {
            return Ok(Naming::Plain);
        }
        let id = self.nodes.dir_id(ino, |directory| {
            let id = read_dir_id(directory)?;
            if id.is_none() && !self.read_only && directory.list()?.is_empty() {
                // btrfs can bring a new directory back without what was in it. There is no name that would need the id.
                let id = HEXLOWER.encode(&random_id());
                directory.make_symlink(names::DIR_ID_ENTRY, id.as_bytes())?;
                return Ok(parse_dir_id(id.as_bytes()));
            }
            if id.is_none() {
                self.found_damage(|| format!("directory {ino} has no id"));
            }
            Ok(id)
        })?;
        Ok(id.map_or(Naming::Lost, Naming::Sealed))
    }

    /// The name under which an entry is shown: `None` for what is kmsfs's own, and for what is gone. `unreadable` is
    /// called if that is not its own name.
    pub(super) fn shown_name(
        &self,
        keys: &Entered<'_>,
        naming: Naming,
        directory: &dyn StoreDir,
        entry: &[u8],
        unreadable: impl FnOnce(),
    ) -> Option<Vec<u8>> {
        match self.plain_name(keys, naming, directory, entry) {
            Ok(name) => name,
            Err(_) if directory.stat(entry).is_err() => None,
            Err(_) => {
                unreadable();
                Some(escape(entry))
            }
        }
    }

    /// The name that an entry stands for: `Ok(None)` for what is kmsfs's own.
    pub(super) fn plain_name(
        &self,
        keys: &Entered<'_>,
        naming: Naming,
        directory: &dyn StoreDir,
        entry: &[u8],
    ) -> Result<Option<Vec<u8>>> {
        if matches!(naming, Naming::Plain) {
            return Ok(Some(entry.to_vec()));
        }
        let class = names::classify(entry);
        let Naming::Sealed(id) = naming else {
            return if class == names::Entry::Internal { Ok(None) } else { Err(Error::Damaged) };
        };
        let open = |full: &[u8]| keys.names.open(id, full).map(Some).map_err(|_| Error::Damaged);
        match class {
            names::Entry::Internal => Ok(None),
            names::Entry::Foreign => Err(Error::Damaged),
            names::Entry::Direct(full) => open(full),
            names::Entry::Long(side) => {
                let full = directory.read_symlink(&side)?;
                if keys.names.side_entry_matches(&side, &full) { open(&full) } else { Err(Error::Damaged) }
            }
        }
    }

    /// The entry that is shown under an escaped name.
    fn unreadable_entry(
        &self,
        keys: &Entered<'_>,
        naming: Naming,
        directory: &dyn StoreDir,
        name: &[u8],
    ) -> Option<StoredName> {
        let fits = |entry: &[u8]| {
            escape(entry) == name
                && directory.stat(entry).is_ok()
                && self.plain_name(keys, naming, directory, entry).is_err()
        };
        let stored = name.strip_prefix(UNREADABLE)?;
        let entry = if fits(stored) {
            stored.to_vec()
        } else if stored.starts_with(HASHED) {
            directory.list().ok()?.into_iter().map(|entry| entry.name).find(|entry| fits(entry))?
        } else {
            return None;
        };
        let side = match names::classify(&entry) {
            names::Entry::Long(side) => Some(SideEntry { entry: side, target: Vec::new() }),
            _ => None,
        };
        Some(StoredName { entry, side })
    }

    /// Notes damage: counted, and logged without names.
    pub(super) fn found_damage(&self, what: impl FnOnce() -> String) {
        self.counters.damaged.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let what = what();
        tracing::warn!("damage: {what}");
        self.leases.recorder().record(Event::Damage { what: crate::audit::clean(&what) });
    }
}

fn check(name: &[u8]) -> Result<()> {
    if name.len() > NAME_MAX {
        return Err(Error::errno(libc::ENAMETOOLONG));
    }
    if name.is_empty() || name == b"." || name == b".." || name.contains(&b'/') {
        return Err(Error::errno(libc::EINVAL));
    }
    Ok(())
}

/// The name under which an entry is shown whose own cannot be read.
pub(super) fn escape(entry: &[u8]) -> Vec<u8> {
    if UNREADABLE.len() + entry.len() <= NAME_MAX {
        return [UNREADABLE, entry].concat();
    }
    [UNREADABLE, HASHED, &blake3::hash(entry).to_hex().as_bytes()[..32]].concat()
}

/// The id of a directory of the store, `None` if it has none that is well formed.
///
/// # Errors
/// The store's.
pub fn read_dir_id(directory: &dyn StoreDir) -> io::Result<Option<DirId>> {
    match directory.read_symlink(names::DIR_ID_ENTRY) {
        Ok(target) => Ok(parse_dir_id(&target)),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidInput) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The id in the target of a directory's id entry.
pub(super) fn parse_dir_id(target: &[u8]) -> Option<DirId> {
    std::str::from_utf8(target).ok()?.parse().ok()
}

/// Makes the side entry of a long name; returns whether there was none. One that is there already is the same: its name
/// is the hash of its target.
pub(super) fn make_side(directory: &dyn StoreDir, side: Option<&SideEntry>) -> io::Result<bool> {
    match side.map(|side| directory.make_symlink(&side.entry, &side.target)) {
        Some(Ok(())) => Ok(true),
        Some(Err(error)) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(false),
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
