//! Lookup, and reading and changing the attributes of an inode.

use super::keyring::Unlocked;
use super::nodes::{Place, ROOT};
use super::*;
use crate::crypto::cipher::VALUE_OVERHEAD;
use crate::file::{Found, Unverified};
use crate::store::{Inode, SetTime, Space};
use crate::units::StoredOffset;

/// An inode as it is shown.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// Its attributes; `ino` is the number that is shown, `len` that of the store.
    pub stat: Stat,
    /// The length that is shown.
    pub len: PlainOffset,
    /// Distinguishes inodes that had the same number one after the other.
    pub generation: u64,
}

/// What to change of an inode.
#[derive(Clone, Copy, Debug, Default)]
pub struct Changes {
    /// Permission bits, setuid, setgid, sticky.
    pub permissions: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Length.
    pub len: Option<PlainOffset>,
    /// Access time.
    pub atime: Option<SetTime>,
    /// Modification time.
    pub mtime: Option<SetTime>,
}

/// What of a file's setuid and setgid stays when somebody changes its content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keeps {
    /// Both, by privilege.
    All,
    /// Setgid, where the group may not execute the file so that it means something else: for members of the group.
    SetgidAlone,
    /// Neither.
    Nothing,
}

impl Fs {
    /// Looks a name up and counts the lookup.
    ///
    /// # Errors
    /// `ENOENT` if there is none.
    pub fn lookup(&self, parent: u64, name: &[u8]) -> Result<Entry> {
        let keys = self.enter()?;
        let _paths = self.namespace.read();
        let directory = self.nodes.directory(parent)?;
        let stored = self.known_name(&keys, parent, &*directory, name)?;
        let stat = self.settled(&keys, &*directory, parent, &stored.entry)?;
        self.found(&*directory, parent, &stored.entry, stat)
    }

    /// The attributes of an entry. A file that was being written when the machine went down is looked at first: the
    /// kernel is not told of a length that opening the file would take back.
    ///
    /// # Errors
    /// [`Error::NeedKey`] for such a file; the store's.
    pub(super) fn settled(&self, keys: &Unlocked, directory: &dyn StoreDir, parent: u64, entry: &[u8]) -> Result<Stat> {
        let stat = directory.stat(entry)?;
        if self.read_only || !self.is_doubtful(directory, entry, &stat) {
            return Ok(stat);
        }
        self.nodes.remember(&stat, Place { parent, entry: entry.into() });
        let seen = self.obtain_file(keys, stat.ino).and_then(|file| Ok(file.confirm()?));
        self.nodes.forget(stat.ino, 1);
        match seen {
            Err(error @ (Error::NeedKey(_) | Error::Locked(_) | Error::Draining)) => Err(error),
            // Whatever is wrong with it, it can be shown and removed.
            _ => Ok(directory.stat(entry)?),
        }
    }

    /// Whether the length of a file in the store says nothing yet.
    fn is_doubtful(&self, directory: &dyn StoreDir, entry: &[u8], stat: &Stat) -> bool {
        let crashed = self.context.journal.crashed();
        if crashed.is_empty() || stat.kind != Kind::File || self.open_file(stat.ino).is_some() {
            return false;
        }
        match directory.open_file(entry, false).map(|store| Unverified::read(&*store)) {
            Ok(Ok(Found::Header(found))) => {
                let header = found.header();
                crashed.contains(header.batch) || self.context.geometry.stored_len(header.len) != stat.len
            }
            Ok(Ok(Found::Nothing)) => true,
            _ => false,
        }
    }

    /// Notes that the kernel is told of an entry.
    pub(super) fn found(&self, directory: &dyn StoreDir, parent: u64, entry: &[u8], stat: Stat) -> Result<Entry> {
        let len = self.shown_len(directory, entry, &stat)?;
        let open = if stat.kind == Kind::File { self.open_file(stat.ino) } else { None };
        let stat = open.map_or(stat, |file| as_known(stat, &file));
        let generation = self.nodes.remember(&stat, Place { parent, entry: entry.into() });
        Ok(Entry { stat, len, generation })
    }

    /// The kernel forgot an inode this many times.
    pub fn forget(&self, ino: u64, count: u64) {
        if self.nodes.forget(ino, count) {
            self.let_go(ino);
        }
    }

    /// Whether the kernel knows an inode.
    pub fn knows(&self, ino: u64) -> bool {
        self.nodes.knows(ino)
    }

    /// The attributes of an inode. Those of the root are given in every state, without its times and length, so that
    /// `df` and `umount` work.
    ///
    /// # Errors
    /// [`Error::Stale`] if it is gone.
    pub fn attributes(&self, ino: u64) -> Result<Entry> {
        let entered = self.enter();
        if ino == ROOT {
            let stat = self.nodes.directory(ROOT)?.inode().stat()?;
            let stat = Stat { ino: ROOT, ..stat };
            return Ok(Entry { stat, len: PlainOffset(stat.len.0), generation: 0 });
        }
        let _keys = entered?;
        let _paths = self.namespace.read();
        self.attributes_of(ino)
    }

    pub(super) fn attributes_of(&self, ino: u64) -> Result<Entry> {
        if let Some(file) = self.open_file(ino) {
            let stat = as_known(file.store().inode().stat()?, &file);
            return Ok(Entry { stat, len: file.len(), generation: 0 });
        }
        if let Some(rest) = self.nodes.rest(ino) {
            let stat = rest.stat()?;
            return Ok(Entry { stat, len: self.len_of_rest(&stat), generation: 0 });
        }
        self.nodes.at_place(ino, |directory, entry| {
            let stat = directory.stat(entry)?;
            if stat.ino != ino {
                return Err(Error::Stale);
            }
            Ok(Entry { stat, len: self.shown_len(directory, entry, &stat)?, generation: 0 })
        })
    }

    /// The length that is shown of what has these attributes and no name.
    fn len_of_rest(&self, stat: &Stat) -> PlainOffset {
        match stat.kind {
            Kind::File => self.context.geometry.plain_len(stat.len).unwrap_or_default(),
            Kind::Symlink => symlink_len(stat.len.0),
            _ => PlainOffset(stat.len.0),
        }
    }

    /// The length that is shown of what has these attributes.
    fn shown_len(&self, directory: &dyn StoreDir, entry: &[u8], stat: &Stat) -> Result<PlainOffset> {
        match stat.kind {
            Kind::File => {
                if let Some(file) = self.open_file(stat.ino) {
                    return Ok(file.len());
                }
                if !self.context.journal.crashed().is_empty() {
                    // What was appended when the machine went down may not have been committed: the header counts.
                    return Ok(self.len_in_header(directory, entry).unwrap_or_default());
                }
                Ok(self.context.geometry.plain_len(stat.len).unwrap_or_default())
            }
            Kind::Symlink => self.shown_symlink_len(directory, entry, stat),
            _ => Ok(PlainOffset(stat.len.0)),
        }
    }

    fn len_in_header(&self, directory: &dyn StoreDir, entry: &[u8]) -> Option<PlainOffset> {
        let store = directory.open_file(entry, false).ok()?;
        match Unverified::read(&*store).ok()? {
            Found::Header(found) => Some(found.header().len),
            Found::Nothing => Some(PlainOffset(0)),
        }
    }

    fn shown_symlink_len(&self, directory: &dyn StoreDir, entry: &[u8], stat: &Stat) -> Result<PlainOffset> {
        let Some(name) = self.long_target(directory, entry, stat) else { return Ok(symlink_len(stat.len.0)) };
        let sealed = match self.volume.links().and_then(|links| links.stat(&name)) {
            Ok(side) => side.len.0,
            // What belongs to it is gone: it can be shown and removed.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => 0,
            Err(error) => return Err(error.into()),
        };
        Ok(PlainOffset(sealed.saturating_sub(VALUE_OVERHEAD as u64)))
    }

    /// What gives access to the inode itself: the open file if there is one, as it may have lost its name.
    pub(super) fn with_inode<T>(&self, ino: u64, act: impl FnOnce(&dyn Inode) -> Result<T>) -> Result<T> {
        if let Some(file) = self.open_file(ino) {
            return act(file.store().inode());
        }
        if let Some(rest) = self.nodes.rest(ino) {
            return act(&*rest);
        }
        if ino == ROOT || self.nodes.kind(ino) == Some(Kind::Directory) {
            return act(self.nodes.directory(ino)?.inode());
        }
        let inode = self.nodes.at_place(ino, |directory, entry| Ok(directory.entry(entry)?))?;
        act(&*inode)
    }

    /// Changes attributes, and returns them as they are then.
    ///
    /// # Errors
    /// The store's; changes made before stay.
    pub fn change(&self, ino: u64, changes: &Changes) -> Result<Entry> {
        // Times and lengths that the kernel held back are still accepted while the volume drains.
        let keys = self.enter_draining()?;
        self.writable()?;
        let _paths = self.namespace.read();
        if let Some(len) = changes.len {
            let file = self.obtain_file(&keys, ino)?;
            file.set_len(len)?;
            if changes.mtime.is_none() {
                self.modified(&file)?;
            }
        }
        // Whoever opens it meanwhile would remember the time that it had.
        let _alone = changes.mtime.map(|_| self.opening[ino as usize % OPENING].lock());
        let mut mtime = changes.mtime.unwrap_or(SetTime::Keep);
        let open = if changes.mtime.is_some() { self.open_file(ino) } else { None };
        if let (SetTime::At(moment), Some(file)) = (mtime, &open)
            && changes.len.is_none()
            && file.has_keys()
            // What the kernel does before a file is closed (see `flush`).
            && file.settle_at(moment).map_err(|error| self.file_error(ino, error))?
        {
            mtime = SetTime::Keep;
        }
        self.with_inode(ino, |inode| {
            if changes.uid.is_some() || changes.gid.is_some() {
                inode.set_owner(changes.uid, changes.gid)?;
            }
            if let Some(permissions) = changes.permissions {
                inode.set_permissions(permissions)?;
            }
            // Of a file that it has just removed the kernel sets the time too: nobody will see it.
            let gone = open.is_none() && self.nodes.rest(ino).is_some();
            if (changes.atime.is_some() || mtime != SetTime::Keep) && !gone {
                inode.set_times(changes.atime.unwrap_or(SetTime::Keep), mtime)?;
            }
            Ok(())
        })?;
        if let Some(file) = open {
            file.set_mtime(match changes.mtime {
                Some(SetTime::At(moment)) => moment,
                _ => file.store().inode().stat()?.mtime,
            });
        }
        if ino == ROOT {
            let stat = self.nodes.directory(ROOT)?.inode().stat()?;
            return Ok(Entry { stat: Stat { ino: ROOT, ..stat }, len: PlainOffset(stat.len.0), generation: 0 });
        }
        self.attributes_of(ino)
    }

    /// Takes setuid and setgid away from a file that somebody changes, as far as that caller does not keep them for a file
    /// of this group. Says whether there was anything to take away.
    ///
    /// # Errors
    /// The store's.
    pub fn drop_privileges(&self, ino: u64, keeps: impl FnOnce(u32) -> Keeps) -> Result<bool> {
        let _keys = self.enter_draining()?;
        let _paths = self.namespace.read();
        self.with_inode(ino, |inode| {
            let stat = inode.stat()?;
            if stat.kind != Kind::File || stat.permissions & (libc::S_ISUID | libc::S_ISGID) == 0 {
                return Ok(false);
            }
            let group_executes = stat.permissions & libc::S_IXGRP != 0;
            let dropped = match keeps(stat.gid) {
                Keeps::All => 0,
                Keeps::SetgidAlone if !group_executes => libc::S_ISUID,
                _ => libc::S_ISUID | libc::S_ISGID,
            };
            let drops = stat.permissions & dropped != 0;
            if drops {
                inode.set_permissions(stat.permissions & !dropped)?;
            }
            Ok(drops)
        })
    }

    /// Takes setgid away from something whose ACL was changed by somebody who may not `keep` it for its group.
    ///
    /// # Errors
    /// The store's.
    pub fn drop_setgid(&self, ino: u64, keep: impl FnOnce(u32) -> bool) -> Result<()> {
        let _keys = self.enter_draining()?;
        let _paths = self.namespace.read();
        self.with_inode(ino, |inode| {
            let stat = inode.stat()?;
            if stat.permissions & libc::S_ISGID != 0 && !keep(stat.gid) {
                inode.set_permissions(stat.permissions & !libc::S_ISGID)?;
            }
            Ok(())
        })
    }

    /// The space of the backing filesystem; given in every state.
    ///
    /// # Errors
    /// The store's.
    pub fn space(&self) -> Result<Space> {
        Ok(self.store.space()?)
    }

    /// The name, in the volume's `links`, of the target of a symbolic link that is too long for one.
    pub(super) fn long_target(&self, directory: &dyn StoreDir, entry: &[u8], stat: &Stat) -> Option<Vec<u8>> {
        if stat.len != StoredOffset(create::LONG_TARGET_LEN as u64) {
            return None;
        }
        let target = directory.read_symlink(entry).ok()?;
        target.strip_prefix(b".").map(<[u8]>::to_vec)
    }
}

/// The attributes of an open file as applications know them.
fn as_known(stat: Stat, file: &File) -> Stat {
    Stat { mtime: file.mtime().unwrap_or(stat.mtime), blocks: file.blocks(stat.blocks), ..stat }
}

/// The length of a symbolic link's target whose encoded form has this length.
fn symlink_len(encoded: u64) -> PlainOffset {
    PlainOffset((encoded * 3 / 4).saturating_sub(VALUE_OVERHEAD as u64))
}
