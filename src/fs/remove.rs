//! Removing names. Nothing of the content is ever read for it: what is damaged can be removed too.

use super::naming::{is_empty, remove_side};
use super::nodes::Place;
use super::*;
use crate::crypto::names::{DIR_ID_ENTRY, STAGING_PREFIX};
use crate::file::file_id;
use crate::store::{Inode, RenameMode, staging_name};

impl Fs {
    /// Removes a name of anything but a directory:
    /// 1. the entry (a crash before: it is there; after: it is gone);
    /// 2. what belonged to it (a crash before: something that belongs to nothing stays behind).
    ///
    /// # Errors
    /// `ENOENT` if there is none, `EISDIR` for a directory.
    pub fn unlink(&self, parent: u64, name: &[u8]) -> Result<()> {
        let keys = self.enter()?;
        self.writable()?;
        let _paths = self.namespace.read();
        let directory = self.nodes.directory(parent)?;
        let stored = self.known_name(&keys, parent, &*directory, name)?;
        let stat = directory.stat(&stored.entry)?;
        let target = self.long_target_of_last(&*directory, &stored.entry, &stat);
        let rest = directory.entry(&stored.entry).ok();
        directory.unlink(&stored.entry)?;
        remove_side(&*directory, stored.side.as_ref());
        self.gone(&stat, &Place { parent, entry: stored.entry.into() }, rest);
        self.remove_long_target(target);
        Ok(())
    }

    /// The long target that goes with a symbolic link's last name.
    pub(super) fn long_target_of_last(&self, directory: &dyn StoreDir, entry: &[u8], stat: &Stat) -> Option<Vec<u8>> {
        (stat.kind == Kind::Symlink && stat.nlink == 1).then(|| self.long_target(directory, entry, stat)).flatten()
    }

    pub(super) fn remove_long_target(&self, name: Option<Vec<u8>>) {
        if let Some(name) = name {
            let _ = self.volume.links().and_then(|links| links.unlink(&name));
        }
    }

    /// Notes that an inode with these attributes lost this name; `rest` was opened before.
    pub(super) fn gone(&self, stat: &Stat, place: &Place, rest: Option<Box<dyn Inode>>) {
        let last = stat.nlink <= 1 || stat.kind == Kind::Directory;
        if last && stat.kind == Kind::File {
            self.forget_in_ledger(stat.ino, rest.as_deref());
        }
        self.nodes.removed(stat.ino, place, last, rest);
        if last && stat.kind == Kind::File {
            // Its stored file stays: a crash may bring it back, so it is made durable like all of its batch.
            self.fresh.lock().inos.remove(&stat.ino);
            self.removed.store(true, Ordering::Release);
            if !self.nodes.knows(stat.ino) {
                self.let_go(stat.ino);
            }
        }
    }

    /// Nothing more need be known of a file that was removed. Its id is taken as it stands there: whoever can give a file
    /// the id of another one can also let them change places.
    fn forget_in_ledger(&self, ino: u64, rest: Option<&dyn Inode>) {
        let Some(ledger) = self.context.ledger.get() else { return };
        let file = match self.open_file(ino) {
            Some(file) => Some(file.header().file),
            None => rest.and_then(|rest| file_id(&*rest.open_file(false).ok()?).ok().flatten()),
        };
        if let Some(file) = file {
            ledger.forget(file);
        }
    }

    /// Nobody can open a removed file any more: what was not committed of it needs not be.
    pub(super) fn let_go(&self, ino: u64) {
        self.removed.store(true, Ordering::Release);
        let mut files = self.files.lock();
        if files.get(&ino).is_some_and(|open| open.handles == 0) {
            files.remove(&ino);
        }
    }

    /// Removes a directory:
    /// 1. see that it is empty; the kernel keeps others from changing that;
    /// 2. give it a name that nobody sees (a crash before: it is there; after: it is gone);
    /// 3. remove it with what kmsfs keeps in it (a crash: something that nobody sees stays behind).
    ///
    /// # Errors
    /// `ENOTEMPTY` if something is in it.
    pub fn remove_directory(&self, parent: u64, name: &[u8]) -> Result<()> {
        let keys = self.enter()?;
        self.writable()?;
        let _paths = self.namespace.read();
        let directory = self.nodes.directory(parent)?;
        let stored = self.known_name(&keys, parent, &*directory, name)?;
        let stat = directory.stat(&stored.entry)?;
        let rest = directory.entry(&stored.entry).ok();
        if self.volume.record().plain_names {
            directory.remove_dir(&stored.entry)?;
        } else {
            self.check_empty(&*directory, &stored.entry)?;
            let staged = staging_name(STAGING_PREFIX);
            directory.rename(&stored.entry, &*directory, &staged, RenameMode::NoReplace)?;
            remove_side(&*directory, stored.side.as_ref());
            // Before its number can be that of a new one.
            self.needs_no_names(stat.ino);
            purge(&*directory, &staged);
        }
        self.gone(&stat, &Place { parent, entry: stored.entry.into() }, rest);
        Ok(())
    }

    pub(super) fn check_empty(&self, directory: &dyn StoreDir, entry: &[u8]) -> Result<()> {
        let entries = directory.open_dir(entry)?.list()?;
        if is_empty(&entries, self.volume.record().plain_names) { Ok(()) } else { Err(Error::errno(libc::ENOTEMPTY)) }
    }
}

/// Removes something that nobody sees, as far as that goes.
pub(super) fn purge(directory: &dyn StoreDir, name: &[u8]) {
    if directory.unlink(name).is_ok() {
        return;
    }
    if let Ok(below) = directory.open_dir(name) {
        let _ = below.unlink(DIR_ID_ENTRY);
        for entry in below.list().unwrap_or_default() {
            purge(&*below, &entry.name);
        }
    }
    let _ = directory.remove_dir(name);
}
