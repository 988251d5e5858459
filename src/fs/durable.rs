//! Names that can be read after a crash. What a name needs lies beside the entry: a directory's id, and the full form
//! of a long name. Most filesystems bring changes of directories back in the order in which they were made; btrfs, after
//! `fsync`, brings back the file that was synced and what leads to it, and nothing else. So before anything is synced,
//! the directories above it are in which something was made that a name needs.

use super::*;

/// More directories than this are not synced one by one.
pub(super) const MAX_DIRECTORIES: usize = 32;

/// The directories in which something was made that a name needs, and is not durable yet. Each note has a number of its
/// own: what was made while a directory was being synced is not taken for synced.
#[derive(Default)]
pub(super) struct Names {
    last: u64,
    notes: HashMap<u64, u64>,
}

impl Names {
    /// All directories, and their notes.
    pub fn notes(&self) -> Vec<(u64, u64)> {
        self.notes.iter().map(|(directory, note)| (*directory, *note)).collect()
    }

    /// What was noted so far is durable.
    pub fn done(&mut self, (directory, note): (u64, u64)) {
        if self.notes.get(&directory) == Some(&note) {
            self.notes.remove(&directory);
        }
    }
}

impl Fs {
    /// Notes that something was made in a directory that a name needs.
    pub(super) fn needs_names(&self, directory: u64) {
        let names = &mut *self.names.lock();
        names.last += 1;
        names.notes.insert(directory, names.last);
    }

    /// Makes durable what the names of an inode need, the outermost directory first: what is below must not be there
    /// without what is above.
    ///
    /// # Errors
    /// The store's.
    pub(super) fn sync_names(&self, ino: u64) -> Result<()> {
        if self.names.lock().notes.is_empty() {
            return Ok(());
        }
        for directory in self.nodes.above(ino) {
            let Some(note) = self.names.lock().notes.get(&directory).copied() else { continue };
            if !self.sync_names_in((directory, note))? {
                self.store.sync_all()?;
                self.names.lock().done((directory, note));
            }
        }
        Ok(())
    }

    /// Returns whether that could be done: nobody may know any more, or at this moment, where the directory is.
    fn sync_names_in(&self, noted: (u64, u64)) -> Result<bool> {
        match self.nodes.directory(noted.0) {
            Ok(open) => open.sync()?,
            // Removed.
            Err(Error::Errno(libc::ENOENT)) => (),
            // Forgotten, or just being moved; or its number is that of something else by now.
            Err(Error::Stale | Error::Errno(libc::ENOTDIR | libc::ELOOP)) => return Ok(false),
            Err(error) => return Err(error),
        }
        self.names.lock().done(noted);
        Ok(true)
    }

    /// A directory was removed: no name is in it.
    pub(super) fn needs_no_names(&self, directory: u64) {
        self.names.lock().notes.remove(&directory);
    }

    /// The same for all directories, if they are few and where they are is known. Returns whether that was so; if not,
    /// everything has to be synced.
    ///
    /// # Errors
    /// The store's.
    pub(super) fn sync_all_names(&self) -> Result<bool> {
        let mut noted = self.names.lock().notes();
        if noted.len() > MAX_DIRECTORIES {
            return Ok(false);
        }
        noted.sort_by_key(|(directory, _)| self.nodes.above(*directory).len());
        for noted in noted {
            if !self.sync_names_in(noted)? {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::crash_tests::{OPTIONS, creator, done, make, mount};

    #[test]
    fn what_is_no_directory_any_more_keeps_nothing_from_being_committed() {
        let store = make(OPTIONS);
        let (fs, _) = mount(Arc::new(store.clone()));
        let (file, handle) = done(&fs, || fs.create(ROOT, b"file", creator(0o644))).unwrap();
        let link = done(&fs, || fs.make_symlink(ROOT, b"link", b"target", creator(0o777))).unwrap();
        let gone = done(&fs, || fs.make_directory(ROOT, b"directory", creator(0o755))).unwrap();
        fs.remove_directory(ROOT, b"directory").unwrap();
        assert!(!fs.names.lock().notes.contains_key(&gone.stat.ino));
        // A number is given away again as soon as a directory is removed, or it was forgotten where it is.
        for ino in [file.stat.ino, link.stat.ino, gone.stat.ino, u64::MAX] {
            fs.write(handle, PlainOffset(0), b"content", false).unwrap();
            fs.needs_names(ino);
            fs.commit_all().unwrap();
            assert!(fs.names.lock().notes.is_empty(), "{ino}");
            fs.needs_names(ino);
            fs.sync(handle, true).unwrap();
        }
    }
}
