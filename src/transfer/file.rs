//! Copying one file, and reading it back.

use super::content::{self, Hash};
use super::copy::{NoteKind, Place, Run, remove_other};
use super::inode::copy_times;
use crate::store::{Kind, Stat, StoreDir, StoreFile};
use crate::units::StoredOffset;
use parking_lot::{Mutex, MutexGuard};
use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

/// What is said of the other names of a file that could not be copied.
const FURTHER_NAME: &str = "it is a further name of a file that could not be copied";
/// How often a file that changes while it is read is read.
const TRIES: usize = 3;

/// A file that was copied, and has to be read back when it is durable.
pub(super) struct Written {
    place: Arc<Place>,
    name: Vec<u8>,
    stat: Stat,
    hash: Hash,
}

/// Files with several names, by the inode number of the source: where the copy has the first of them.
#[derive(Default)]
pub(super) struct Links(Mutex<HashMap<u64, Linked>>);

pub(super) struct Linked {
    directory: Arc<dyn StoreDir>,
    name: Vec<u8>,
    /// The others.
    more: Vec<(Arc<Place>, Vec<u8>)>,
    /// It could not be copied.
    given_up: bool,
}

impl Links {
    /// For whoever finds a name and, if there was none before it, begins with it.
    pub fn lock(&self) -> MutexGuard<'_, HashMap<u64, Linked>> {
        self.0.lock()
    }

    /// Removes the further names of what could not be copied, and returns them.
    fn give_up(&self, ino: u64) -> Vec<(Arc<Place>, Vec<u8>)> {
        let mut links = self.0.lock();
        let Some(linked) = links.get_mut(&ino) else { return Vec::new() };
        linked.given_up = true;
        let more = std::mem::take(&mut linked.more);
        for (place, name) in &more {
            // Noted by who asks.
            let _ = place.target.unlink(name);
        }
        more
    }
}

/// Notes the first name.
pub(super) fn begin(links: &mut HashMap<u64, Linked>, ino: u64, place: &Place, name: &[u8]) {
    let directory = Arc::clone(&place.target);
    links.insert(ino, Linked { directory, name: name.to_vec(), more: Vec::new(), given_up: false });
}

/// Lets a name lead to what was copied under another one, if it was.
pub(super) fn follow(links: &mut HashMap<u64, Linked>, ino: u64, place: &Arc<Place>, name: &[u8]) -> io::Result<bool> {
    let Some(linked) = links.get_mut(&ino) else { return Ok(false) };
    if linked.given_up {
        return Err(io::Error::other(FURTHER_NAME));
    }
    let first = linked.directory.stat(&linked.name)?;
    // Where the copy goes on, it may be there already.
    if !place.target.stat(name).is_ok_and(|there| there.ino == first.ino) {
        remove_other(&*place.target, name)?;
        linked.directory.link(&linked.name, &*place.target, name)?;
    }
    linked.more.push((Arc::clone(place), name.to_vec()));
    Ok(true)
}

impl Run<'_> {
    /// Copies a file, or finds that it is complete. Everything that ends here is done with.
    pub fn file(&self, place: &Arc<Place>, name: &[u8], stat: Stat) {
        let path = place.path_of(name);
        match self.begin_file(place, name, &path, stat) {
            Ok(true) => (),
            Ok(false) => self.done(place),
            Err(error) => {
                self.failed_at(&path, error);
                self.done(place);
            }
        }
    }

    /// Says whether it has to be read back.
    fn begin_file(&self, place: &Arc<Place>, name: &[u8], path: &[u8], stat: Stat) -> io::Result<bool> {
        let mut links = (stat.nlink > 1).then(|| self.links.lock());
        if let Some(links) = &mut links
            && follow(links, stat.ino, place, name)?
        {
            self.totals.lock().hard_links += 1;
            return Ok(false);
        }
        if self.is_complete(place, name, path, &stat)? {
            if let Some(links) = &mut links {
                begin(links, stat.ino, place, name);
            }
            self.count(&stat, true);
            self.copy.progress.bytes.fetch_add(stat.len.0, Relaxed);
            return Ok(false);
        }
        remove_other(&*place.target, name)?;
        let target = place.target.create_file(name, 0o600)?;
        if let Some(mut links) = links.take() {
            begin(&mut links, stat.ino, place, name);
        }
        match self.fill(place, name, path, &*target) {
            Ok(Some((stat, hash))) => {
                drop(target);
                self.pool.written(Written { place: Arc::clone(place), name: name.to_vec(), stat, hash });
                Ok(true)
            }
            other => {
                drop(target);
                self.give_up(place, name, &stat);
                other.map(|_| false)
            }
        }
    }

    /// Copies content and attributes. `None` if the file does not hold still, which is noted.
    fn fill(
        &self,
        place: &Place,
        name: &[u8],
        path: &[u8],
        target: &dyn StoreFile,
    ) -> io::Result<Option<(Stat, Hash)>> {
        let Some((stat, hash)) = self.content(place, name, path, target)? else { return Ok(None) };
        let source = place.source.entry(name)?;
        self.attributes(path, &*source, target.inode(), &stat);
        copy_times(target.inode(), &stat)?;
        Ok(Some((stat, hash)))
    }

    /// Whether a file is in the copy already, as it is in the source now.
    fn is_complete(&self, place: &Place, name: &[u8], path: &[u8], stat: &Stat) -> io::Result<bool> {
        let Some((hash, same)) = self.copy.state.known(path, stat) else { return Ok(false) };
        let there = match place.target.stat(name) {
            Ok(there) => there,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        };
        if there.kind != Kind::File || there.len != stat.len {
            return Ok(false);
        }
        if same && there.mtime == stat.mtime {
            return Ok(true);
        }
        // Only its attributes may have changed.
        let (state, stop) = (self.copy.state, self.copy.stop);
        let source = place.source.open_file(name, false)?;
        let copied = place.target.open_file(name, false)?;
        for file in [&source, &copied] {
            if content::read(&**file, stat.len.0, state.key(), stop, |_, _| Ok(()))? != hash {
                return Ok(false);
            }
        }
        drop(copied);
        let to = place.target.entry(name)?;
        self.attributes(path, &*place.source.entry(name)?, &*to, stat);
        copy_times(&*to, stat)?;
        state.add(path, stat, &hash)?;
        Ok(true)
    }

    /// Copies the content. `None` if it does not hold still, which is noted.
    fn content(
        &self,
        place: &Place,
        name: &[u8],
        path: &[u8],
        target: &dyn StoreFile,
    ) -> io::Result<Option<(Stat, Hash)>> {
        let source = place.source.open_file(name, false)?;
        for _ in 0..TRIES {
            let before = source.inode().stat()?;
            let copied = content::read(&*source, before.len.0, self.copy.state.key(), self.copy.stop, |piece, at| {
                target.write_at(piece, at)?;
                self.copy.progress.bytes.fetch_add(piece.len() as u64, Relaxed);
                Ok(())
            });
            let hash = match copied {
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => None,
                other => Some(other?),
            };
            target.set_len(before.len)?;
            let after = source.inode().stat()?;
            let held_still = (before.len, before.mtime, before.ctime) == (after.len, after.mtime, after.ctime);
            if let Some(hash) = hash.filter(|_| held_still) {
                return Ok(Some((before, hash)));
            }
            target.set_len(StoredOffset(0))?;
        }
        self.note(path, NoteKind::Changed, "it changed while it was read, each time: run the command again");
        Ok(None)
    }

    /// Reads back what is durable by now.
    pub fn verify(&self, written: Written) {
        let Written { place, name, stat, hash } = &written;
        let path = place.path_of(name);
        let outcome = (|| {
            let copied = place.target.open_file(name, false)?;
            copied.uncache();
            let found = content::read(&*copied, stat.len.0, self.copy.state.key(), self.copy.stop, |_, _| Ok(()))?;
            if found != *hash || copied.inode().stat()?.len != stat.len {
                self.note(&path, NoteKind::Different, "what was read back is not what was written: it was removed");
                self.give_up(place, name, stat);
                return Ok(());
            }
            drop(copied);
            // Reading has changed the time of the last access.
            copy_times(&*place.target.entry(name)?, stat)?;
            let now = place.source.stat(name)?;
            if (now.len, now.mtime, now.ctime) != (stat.len, stat.mtime, stat.ctime) {
                self.note(&path, NoteKind::Changed, "it changed after it was copied: run the command again");
                return Ok(());
            }
            self.copy.state.add(&path, stat, hash)?;
            self.count(stat, false);
            Ok(())
        })();
        if let Err(error) = outcome {
            self.failed_at(&path, error);
        }
        self.done(place);
    }

    fn count(&self, stat: &Stat, kept: bool) {
        let mut totals = self.totals.lock();
        totals.files += 1;
        totals.kept += u64::from(kept);
        totals.bytes += stat.len.0;
        self.copy.progress.files.fetch_add(1, Relaxed);
    }

    /// Half a file is worse than none.
    fn give_up(&self, place: &Place, name: &[u8], stat: &Stat) {
        if self.copy.stop.load(Relaxed) {
            // It goes on later, and copies it anew.
            return;
        }
        if stat.nlink > 1 {
            for (place, name) in self.links.give_up(stat.ino) {
                self.totals.lock().hard_links -= 1;
                self.note(&place.path_of(&name), NoteKind::Io, FURTHER_NAME);
            }
        }
        let _ = remove_other(&*place.target, name);
    }
}
