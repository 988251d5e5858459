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

/// A directory as it was at a moment. A million entries take 60 MB, in blocks so that it never takes twice as much.
#[derive(Default)]
pub(super) struct Listing {
    blocks: Vec<Block>,
    /// Somebody was told that there are names that cannot be read.
    told: bool,
}

/// Up to [`BLOCK`] entries: all but the last have so many.
#[derive(Default)]
struct Block {
    /// One after the other.
    names: Vec<u8>,
    entries: Vec<Stored>,
}

/// How many entries are in a block.
const BLOCK: usize = 1024;

/// An entry as the store listed it.
#[derive(Clone, Copy)]
struct Stored {
    ino: u64,
    /// Where its name ends in those of its block; it begins where the one before it ends.
    end: u32,
    kind: Option<Kind>,
}

impl Listing {
    fn of(directory: &dyn StoreDir) -> std::io::Result<Self> {
        let mut listing = Self::default();
        directory.each(&mut |name, ino, kind| listing.push(name, ino, kind))?;
        Ok(listing)
    }

    fn push(&mut self, name: &[u8], ino: u64, kind: Option<Kind>) {
        let full = self.blocks.last().is_none_or(|block| block.entries.len() == BLOCK);
        if full {
            // What the last one has to spare is as much as half of it.
            if let Some(last) = self.blocks.last_mut() {
                last.names.shrink_to_fit();
            }
            self.blocks.push(Block::default());
        }
        if let Some(block) = self.blocks.last_mut() {
            block.names.extend_from_slice(name);
            block.entries.push(Stored { ino, end: block.names.len() as u32, kind });
        }
    }

    fn get(&self, position: usize) -> Option<DirEntry> {
        let block = self.blocks.get(position / BLOCK)?;
        let entry = block.entries.get(position % BLOCK)?;
        let begin = (position % BLOCK).checked_sub(1).map_or(0, |before| block.entries[before].end);
        let name = block.names[begin as usize..entry.end as usize].to_vec();
        Some(DirEntry { name, ino: entry.ino, kind: entry.kind })
    }
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
            *listing = Some(Listing::of(&*directory)?);
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
            let Some(found) = listing.get((position - 2) as usize) else { break };
            if !self.is_complete(&*directory, &found.name) {
                continue;
            }
            let name = self.shown_name(&keys, naming, &*directory, &found.name, || {
                if !std::mem::replace(&mut listing.told, true) {
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
                Some(_) => Ok(blank(&found)),
            };
            let stat = match stat {
                Ok(stat) => stat,
                Err(Error::Errno(libc::EXDEV)) => {
                    if !std::mem::replace(&mut listing.told, true) {
                        self.found_damage(|| format!("directory {ino} has entries on which something is mounted"));
                    }
                    continue;
                }
                // Gone since the listing was taken.
                Err(_) => continue,
            };
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;
    use crate::store::mem::MemStore;

    #[test]
    fn every_entry_of_a_listing_is_where_it_was_put() {
        let root = MemStore::default().root();
        for i in 0..2 * BLOCK + 1 {
            root.make_symlink(format!("{}{i}", "x".repeat(i % 7)).as_bytes(), b"target").unwrap();
        }
        let listing = Listing::of(&*root).unwrap();
        for (position, entry) in root.list().unwrap().into_iter().enumerate() {
            let found = listing.get(position).unwrap();
            assert_eq!((found.name, found.ino, found.kind), (entry.name, entry.ino, entry.kind));
        }
        assert!(listing.get(2 * BLOCK).is_some() && listing.get(2 * BLOCK + 1).is_none());
    }
}
