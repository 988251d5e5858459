//! Listing directories. A listing is taken when it is first asked for, so that its positions stay what they were
//! while entries come and go; the names in it are those of the store, and are opened as they are given out.

use super::attributes::Entry;
use super::nodes::ROOT;
use super::*;
use crate::crypto::names::STAGING_PREFIX;
use crate::store::DirEntry;

/// An entry that is given out.
#[derive(Debug)]
pub struct Listed {
    /// Its name.
    pub name: Vec<u8>,
    /// Its inode number.
    pub ino: u64,
    /// What it is.
    pub kind: Kind,
    /// Where the next one is asked for.
    pub next: u64,
    /// Its attributes, if asked for; a lookup is counted then.
    pub entry: Option<Entry>,
}

pub(super) struct Listing {
    entries: Vec<DirEntry>,
    unreadable: bool,
}

impl Fs {
    /// Opens a directory.
    ///
    /// # Errors
    /// [`Error::Stale`] if it is gone.
    pub fn open_directory(&self, ino: u64) -> Result<u64> {
        // The root opens in every state: what mounts and unmounts looks at it.
        if ino != ROOT {
            self.enter()?;
        }
        let handle = self.next_handle.fetch_add(1, Ordering::Relaxed);
        self.handles.write().insert(handle, Handle::Directory { ino, listing: Arc::default() });
        Ok(handle)
    }

    /// Gives up a directory's handle.
    pub fn release_directory(&self, handle: u64) {
        self.handles.write().remove(&handle);
    }

    /// Gives out entries from position `from` on, until `take` says that there is no more room. With `attributes`
    /// each but `.` and `..` comes with its own, and counts as looked up if it was taken.
    ///
    /// # Errors
    /// The store's. Entries whose names cannot be read are given out in an escaped form, with one warning.
    pub fn list(&self, handle: u64, from: u64, attributes: bool, mut take: impl FnMut(&Listed) -> bool) -> Result<()> {
        let keys = self.enter()?;
        let _paths = self.namespace.read();
        let (ino, listing) = match self.handles.read().get(&handle) {
            Some(Handle::Directory { ino, listing }) => (*ino, Arc::clone(listing)),
            _ => return Err(Error::errno(libc::EBADF)),
        };
        let mut listing = listing.lock();
        let directory = self.nodes.directory(ino)?;
        if from == 0 || listing.is_none() {
            let mut entries = directory.list()?;
            entries.retain(|entry| self.is_complete(&*directory, &entry.name));
            *listing = Some(Listing { entries, unreadable: false });
        }
        let Some(listing) = listing.as_mut() else { return Ok(()) };
        for (position, name) in [&b"."[..], b".."].into_iter().enumerate().skip(from as usize) {
            let above = if name == b".." { self.nodes.place(ino).map_or(ROOT, |place| place.parent) } else { ino };
            let next = position as u64 + 1;
            if !take(&Listed { name: name.to_vec(), ino: above, kind: Kind::Directory, next, entry: None }) {
                return Ok(());
            }
        }
        let naming = self.naming(ino)?;
        let mut given = 2_u64.saturating_sub(from);
        for position in from.max(2).. {
            let Some(found) = listing.entries.get((position - 2) as usize) else { break };
            let name = self.shown_name(&keys, naming, &*directory, &found.name, || {
                if !std::mem::replace(&mut listing.unreadable, true) {
                    self.found_damage(|| format!("directory {ino} has entries whose names cannot be read"));
                }
            });
            let Some(name) = name else { continue };
            let stat = match found.kind {
                _ if attributes => match self.settled(&keys, &*directory, ino, &found.name) {
                    // What was given out so far is an answer; the rest is asked for again.
                    Err(Error::NeedKey(_)) if given > 0 => return Ok(()),
                    Err(error @ Error::NeedKey(_)) => return Err(error),
                    other => other,
                },
                None => directory.stat(&found.name).map_err(Error::from),
                Some(_) => Ok(blank(found)),
            };
            // Gone since the listing was taken.
            let Ok(stat) = stat else { continue };
            let mut listed = Listed { name, ino: stat.ino, kind: stat.kind, next: position + 1, entry: None };
            if attributes {
                listed.entry = Some(self.found(&*directory, ino, &found.name, stat)?);
            }
            if !take(&listed) {
                if attributes {
                    self.nodes.forget(stat.ino, 1);
                }
                break;
            }
            given += 1;
        }
        Ok(())
    }

    /// Whether an entry that was listed is not just in the making. Where names are plain, one that looks as if it were
    /// may be what a crash left, or anybody's, and is shown.
    fn is_complete(&self, directory: &dyn StoreDir, entry: &[u8]) -> bool {
        // In this order: what was in the making and is not any more has another name, or is gone.
        !entry.starts_with(STAGING_PREFIX) || !self.staged.lock().contains(entry) && directory.stat(entry).is_ok()
    }

    /// Makes the entries of a directory durable.
    ///
    /// # Errors
    /// The store's.
    pub fn sync_directory(&self, ino: u64) -> Result<()> {
        let _keys = self.enter_draining()?;
        self.sync_names(ino)?;
        Ok(self.nodes.directory(ino)?.sync()?)
    }
}

/// As much of an entry's attributes as the listing told.
fn blank(entry: &DirEntry) -> Stat {
    Stat {
        ino: entry.ino,
        kind: entry.kind.unwrap_or(Kind::File),
        permissions: 0,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        len: crate::units::StoredOffset(0),
        blocks: 0,
        atime: Default::default(),
        mtime: Default::default(),
        ctime: Default::default(),
    }
}
