//! Renaming.

use super::naming::{make_side, remove_side};
use super::nodes::Place;
use super::remove::purge;
use super::*;
use crate::crypto::names::{STAGING_PREFIX, StoredName};
use crate::store::{RenameMode, SetTime, staging_name};

/// One end of a rename.
struct End {
    parent: u64,
    directory: Arc<dyn StoreDir>,
    stored: StoredName,
}

impl End {
    fn place(&self) -> Place {
        Place { parent: self.parent, entry: self.stored.entry.as_slice().into() }
    }

    fn is_same(&self, other: &Self) -> bool {
        self.parent == other.parent && self.stored.entry == other.stored.entry
    }
}

impl Fs {
    /// Renames an entry:
    /// 1. a new file that replaces another is made durable first, on btrfs the directory that it comes from too (a crash:
    ///    the old one is there);
    /// 2. the side entry of a long new name is made (a crash: it belongs to nothing);
    /// 3. the entry is renamed (a crash: it has the old name or the new one);
    /// 4. the side entry of a long old name is removed (a crash: it belongs to nothing).
    ///
    /// A directory that replaces an empty one changes places with it, which is then removed: between the two the
    /// empty one has the old name.
    ///
    /// # Errors
    /// Those of `renameat2`.
    pub fn rename(&self, parent: u64, name: &[u8], to_parent: u64, to_name: &[u8], mode: RenameMode) -> Result<()> {
        let keys = self.enter()?;
        self.writable()?;
        let _alone = self.namespace.write();
        let from = self.end(&keys, parent, name)?;
        let to = self.end(&keys, to_parent, to_name)?;
        let stat = from.directory.stat(&from.stored.entry)?;
        let replaced = match to.directory.stat(&to.stored.entry) {
            Ok(replaced) => Some(replaced),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => return Err(error.into()),
        };
        if from.is_same(&to) {
            return if mode == RenameMode::NoReplace { Err(Error::errno(libc::EEXIST)) } else { Ok(()) };
        }
        // btrfs logs the new name at once if what is moved was synced before, and not what leads there.
        self.sync_names(to.parent)?;
        if mode == RenameMode::Exchange {
            self.sync_names(from.parent)?;
        }
        let renamed = match (mode, replaced) {
            (RenameMode::NoReplace, Some(_)) => Err(Error::errno(libc::EEXIST)),
            (RenameMode::Exchange, None) => Err(Error::errno(libc::ENOENT)),
            (RenameMode::Exchange, Some(other)) => self.exchange(&from, &stat, &to, &other),
            (_, None) => self.move_to_free_name(&from, &stat, &to),
            (_, Some(other)) => self.replace(&from, &stat, &to, &other),
        };
        self.note_moved(to.parent, &to.directory, &to.stored.entry);
        if mode == RenameMode::Exchange {
            self.note_moved(from.parent, &from.directory, &from.stored.entry);
        }
        renamed
    }

    fn end(&self, keys: &Entered<'_>, parent: u64, name: &[u8]) -> Result<End> {
        let directory = self.nodes.directory(parent)?;
        let stored = self.known_name(keys, parent, &*directory, name)?;
        Ok(End { parent, directory, stored })
    }

    fn move_to_free_name(&self, from: &End, stat: &Stat, to: &End) -> Result<()> {
        if make_side(&*to.directory, to.stored.side.as_ref())? {
            // btrfs logs the new name at once if the file was synced before, and not what that needs.
            to.directory.sync()?;
        }
        let moved = from.directory.rename(&from.stored.entry, &*to.directory, &to.stored.entry, RenameMode::NoReplace);
        if let Err(error) = moved {
            remove_side(&*to.directory, to.stored.side.as_ref());
            return Err(error.into());
        }
        remove_side(&*from.directory, from.stored.side.as_ref());
        self.nodes.moved(stat.ino, &from.place(), to.place());
        Ok(())
    }

    fn replace(&self, from: &End, stat: &Stat, to: &End, other: &Stat) -> Result<()> {
        match (stat.kind == Kind::Directory, other.kind == Kind::Directory) {
            (true, false) => return Err(Error::errno(libc::ENOTDIR)),
            (false, true) => return Err(Error::errno(libc::EISDIR)),
            _ if stat.ino == other.ino => return Ok(()),
            (true, true) => return self.replace_directory(from, stat, to, other),
            (false, false) => (),
        }
        if stat.kind == Kind::File {
            self.sync_fresh(from, stat.ino)?;
        }
        if !self.store.keeps_order() {
            self.sync_before_replacing(from)?;
        }
        let target = self.long_target_of_last(&*to.directory, &to.stored.entry, other);
        let rest = to.directory.entry(&to.stored.entry).ok();
        from.directory.rename(&from.stored.entry, &*to.directory, &to.stored.entry, RenameMode::Replace)?;
        remove_side(&*from.directory, from.stored.side.as_ref());
        self.gone(other, &to.place(), rest);
        self.nodes.moved(stat.ino, &from.place(), to.place());
        self.remove_long_target(target);
        Ok(())
    }

    fn replace_directory(&self, from: &End, stat: &Stat, to: &End, other: &Stat) -> Result<()> {
        let rest = to.directory.entry(&to.stored.entry).ok();
        if self.volume.record().plain_names {
            from.directory.rename(&from.stored.entry, &*to.directory, &to.stored.entry, RenameMode::Replace)?;
        } else {
            self.check_empty(&*to.directory, &to.stored.entry)?;
            from.directory.rename(&from.stored.entry, &*to.directory, &to.stored.entry, RenameMode::Exchange)?;
            let staged = staging_name(STAGING_PREFIX);
            from.directory.rename(&from.stored.entry, &*from.directory, &staged, RenameMode::NoReplace)?;
            purge(&*from.directory, &staged);
        }
        remove_side(&*from.directory, from.stored.side.as_ref());
        self.gone(other, &to.place(), rest);
        self.nodes.moved(stat.ino, &from.place(), to.place());
        Ok(())
    }

    fn exchange(&self, from: &End, stat: &Stat, to: &End, other: &Stat) -> Result<()> {
        from.directory.rename(&from.stored.entry, &*to.directory, &to.stored.entry, RenameMode::Exchange)?;
        self.nodes.moved(stat.ino, &from.place(), to.place());
        self.nodes.moved(other.ino, &to.place(), from.place());
        Ok(())
    }

    /// Sees to it that a name is durable together with the loss of what it was before. btrfs logs at once that what was
    /// synced lost its name, and that something else got it only if that, or the directory in which it was, is in the log
    /// too, which it is when it was synced and had changed since everything was.
    fn sync_before_replacing(&self, from: &End) -> Result<()> {
        self.sync_names(from.parent)?;
        let inode = from.directory.inode();
        inode.set_times(SetTime::At(inode.stat()?.atime), SetTime::Keep)?;
        Ok(from.directory.sync()?)
    }

    /// Makes a file durable that is not, so that whoever replaces a file by a new one has one of the two after a
    /// crash, as on ext4.
    fn sync_fresh(&self, from: &End, ino: u64) -> Result<()> {
        self.sync_names(from.parent)?;
        if let Some(file) = self.open_file(ino)
            && file.wants_commit()
        {
            file.sync(false)?;
        } else if self.fresh.lock().inos.contains(&ino) {
            from.directory.open_file(&from.stored.entry, false)?.sync(false)?;
        }
        self.fresh.lock().forget(ino);
        Ok(())
    }
}
