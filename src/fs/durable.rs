//! Names that can be read after a crash. What a name needs lies beside the entry: a directory's id, and the full form
//! of a long name. Most filesystems bring changes of directories back in the order in which they were made; btrfs, after
//! `fsync`, brings back the file that was synced and what leads to it, and nothing else. So before anything is synced,
//! the directories above it are in which something was made that a name needs.

use super::*;

/// More directories than this are not synced one by one.
pub(super) const MAX_DIRECTORIES: usize = 32;

impl Fs {
    /// Notes that something was made in a directory that a name needs.
    pub(super) fn needs_names(&self, directory: u64) {
        self.names.lock().insert(directory);
    }

    /// Makes durable what the names of an inode need, the outermost directory first: what is below must not be there
    /// without what is above.
    ///
    /// # Errors
    /// The store's.
    pub(super) fn sync_names(&self, ino: u64) -> Result<()> {
        if self.names.lock().is_empty() {
            return Ok(());
        }
        for directory in self.nodes.above(ino) {
            if self.names.lock().contains(&directory) {
                self.sync_names_in(directory)?;
            }
        }
        Ok(())
    }

    fn sync_names_in(&self, directory: u64) -> Result<()> {
        match self.nodes.directory(directory) {
            Ok(open) => open.sync()?,
            // Gone.
            Err(Error::Errno(libc::ENOENT) | Error::Stale) => (),
            Err(error) => return Err(error),
        }
        self.names.lock().remove(&directory);
        Ok(())
    }

    /// The same for all directories, if they are few. Returns whether they were.
    ///
    /// # Errors
    /// The store's.
    pub(super) fn sync_all_names(&self) -> Result<bool> {
        let mut directories: Vec<u64> = self.names.lock().iter().copied().collect();
        if directories.len() > MAX_DIRECTORIES {
            return Ok(false);
        }
        directories.sort_by_key(|directory| self.nodes.above(*directory).len());
        directories.into_iter().try_for_each(|directory| self.sync_names_in(directory))?;
        Ok(true)
    }
}
