//! Making files, directories, symbolic links and nodes. Whatever appears under its name is complete: nothing is ever
//! seen half-made, however the machine goes down.

use super::keyring::Unlocked;
use super::naming::{make_side, parse_dir_id, remove_side};
use super::*;
use crate::crypto::Secret32;
use crate::crypto::derive::Dek;
use crate::crypto::names::{DIR_ID_ENTRY, STAGING_PREFIX, StoredName};
use crate::crypto::random_id;
use crate::file::Keys;
use crate::format::header::Header;
use crate::format::tags::NO_BLOCK;
use crate::journal::Target;
use crate::store::{Inode, RenameMode, staging_name};
use crate::units::{Epoch, FileId, StoredOffset};
use data_encoding::{BASE64URL_NOPAD, HEXLOWER};
use std::io;

/// The longest target that a symbolic link of the backing filesystem can hold.
const MAX_STORED_TARGET: usize = 4095;
/// The length of a symbolic link that only names where its target is: a dot and 32 hexadecimal digits. Shorter than
/// any sealed target.
pub(super) const LONG_TARGET_LEN: usize = 33;
const ACL_DEFAULT: &[u8] = b"system.posix_acl_default";

/// Who makes something, and with which permissions.
#[derive(Clone, Copy, Debug)]
pub struct Creator {
    /// The calling user.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Permission bits, setuid, setgid and sticky, before the umask.
    pub permissions: u32,
    /// Permission bits to leave out, unless the directory has a default ACL.
    pub umask: u32,
}

/// Now, as a header tells when its DEK was made: in seconds since 1970.
pub(super) fn now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |now| now.as_secs())
}

impl Fs {
    /// Creates a regular file and opens it.
    ///
    /// # Errors
    /// `EEXIST` if the name is taken.
    pub fn create(&self, parent: u64, name: &[u8], creator: Creator) -> Result<(Entry, u64)> {
        let keys = self.enter()?;
        self.can_make()?;
        let _paths = self.namespace.read();
        let stored = self.stored_name(&keys, parent, name)?;
        let directory = self.nodes.directory(parent)?;
        let permissions = self.permissions(parent, creator)?;
        let (epoch, (wraps, secret)) = self.newest_key()?;
        if make_side(&*directory, stored.side.as_ref())? {
            self.needs_names(parent);
        }
        let store = directory.create_file(&stored.entry, permissions)?;
        let made = self.own(&*directory, store.inode(), creator, permissions).and_then(|stat| {
            let file_id = FileId(random_id());
            let dek = Dek::derive(&secret, &keys.volume_key, self.context.volume, file_id, epoch);
            let path = [&self.nodes.path(parent)[..], b"/", &stored.entry].concat();
            let path = path.strip_prefix(b"/").unwrap_or(&path).to_vec();
            let target = Target { file: file_id, ino: stat.ino, path };
            let header = self.new_header(file_id, epoch, wraps);
            let context = Arc::clone(&self.context);
            let file = File::create(context, Arc::clone(&store), target, header, Arc::new(Keys::new(dek, epoch)))?;
            file.set_mtime(stat.mtime);
            Ok((stat, Arc::new(file)))
        });
        let (stat, file) = made.inspect_err(|_| {
            // Nobody has seen it. If it cannot be removed either, it is there from now on, without a header.
            if directory.unlink(&stored.entry).is_err() {
                self.half_made.store(true, Ordering::Release);
            }
        })?;
        self.note_fresh(stat.ino, &store);
        let handle = self.register(stat.ino, &file, true);
        let entry = self.found(&*directory, parent, &stored.entry, stat)?;
        Ok((entry, handle))
    }

    /// The epoch of what is new, and an envelope for one file. In this order: a rekey lets nobody have an older envelope
    /// before it raises the epoch, so nobody can get an older one with the newest epoch.
    pub(super) fn newest_key(&self) -> Result<(Epoch, (envelopes::Wraps, Arc<Secret32>))> {
        let epoch = self.volume.record().epoch;
        Ok((epoch, self.envelopes.take(&self.leases, &self.volume)?))
    }

    pub(super) fn new_header(&self, file: FileId, epoch: Epoch, (envelope, recovery): envelopes::Wraps) -> Header {
        Header {
            chunk_size: self.context.geometry.chunk_size(),
            file,
            epoch,
            envelope,
            recovery,
            len: PlainOffset(0),
            generation: 0,
            batch: 0,
            root: NO_BLOCK,
            made: now(),
            resealing: None,
        }
    }

    /// The permissions of something new: without the umask's, unless the directory has a default ACL, which the
    /// backing filesystem then applies.
    fn permissions(&self, parent: u64, creator: Creator) -> Result<u32> {
        let has_acl =
            self.nodes.default_acl(parent, |directory| Ok(directory.inode().xattr(ACL_DEFAULT)?.is_some()))?;
        Ok(if has_acl { creator.permissions } else { creator.permissions & !creator.umask } & 0o7777)
    }

    /// Gives something new in a directory to its creator; returns its attributes then.
    fn own(&self, directory: &dyn StoreDir, inode: &dyn Inode, creator: Creator, permissions: u32) -> Result<Stat> {
        let stat = inode.stat()?;
        // In a directory with the setgid bit it has the directory's group already.
        let inherits = stat.gid != creator.gid && directory.inode().stat()?.permissions & 0o2000 != 0;
        let gid = if inherits { stat.gid } else { creator.gid };
        let special = permissions & 0o6000;
        if stat.uid == creator.uid && stat.gid == gid {
            return Ok(stat);
        }
        inode.set_owner(Some(creator.uid), Some(gid))?;
        if special != 0 {
            // A change of owner clears them.
            inode.set_permissions(stat.permissions | special)?;
        }
        Ok(inode.stat()?)
    }

    /// Makes a directory:
    /// 1. make it under another name, with its id (a crash leaves something that nobody sees);
    /// 2. make the side entry of a long name (a crash leaves one that belongs to nothing);
    /// 3. give it its name (a crash before or after: it is not there, or complete).
    ///
    /// All three are changes of metadata, which the backing filesystem keeps in order; a symbolic link's target too.
    ///
    /// # Errors
    /// `EEXIST` if the name is taken.
    pub fn make_directory(&self, parent: u64, name: &[u8], creator: Creator) -> Result<Entry> {
        let keys = self.enter()?;
        self.can_make()?;
        let _paths = self.namespace.read();
        let stored = self.stored_name(&keys, parent, name)?;
        let permissions = self.permissions(parent, creator)?;
        self.make_staged(parent, &stored, |directory, staged| {
            directory.make_dir(staged, permissions & 0o1777)?;
            let made = directory.open_dir(staged)?;
            if !self.volume.record().plain_names {
                made.make_symlink(DIR_ID_ENTRY, HEXLOWER.encode(&random_id()).as_bytes())?;
            }
            self.own(directory, made.inode(), creator, permissions & 0o1777).map(drop)
        })?;
        let made = self.made(parent, &stored)?;
        self.needs_names(made.stat.ino);
        Ok(made)
    }

    /// Makes something under another name, then gives it its own.
    fn make_staged(
        &self,
        parent: u64,
        stored: &StoredName,
        make: impl FnOnce(&dyn StoreDir, &[u8]) -> Result<()>,
    ) -> Result<()> {
        let directory = self.nodes.directory(parent)?;
        let staged = staging_name(STAGING_PREFIX);
        self.staged.lock().insert(staged.clone());
        let made = make(&*directory, &staged).and_then(|()| {
            if make_side(&*directory, stored.side.as_ref())? {
                self.needs_names(parent);
                if !self.store.keeps_order() {
                    // btrfs logs the new name at once if the directory was synced before, and not what that needs.
                    directory.sync()?;
                }
            }
            Ok(directory.rename(&staged, &*directory, &stored.entry, RenameMode::NoReplace)?)
        });
        if made.is_err() {
            // Never seen by anybody; what cannot be removed now goes with the directory.
            super::remove::purge(&*directory, &staged);
        }
        self.staged.lock().remove(&staged);
        made
    }

    /// What was just made. It is there, whatever comes of this.
    fn made(&self, parent: u64, stored: &StoredName) -> Result<Entry> {
        let directory = self.nodes.directory(parent)?;
        let stat = directory.stat(&stored.entry)?;
        self.found(&*directory, parent, &stored.entry, stat)
    }

    /// Makes a FIFO, a socket, a device node, or an empty regular file.
    ///
    /// # Errors
    /// `EEXIST` if the name is taken.
    pub fn make_node(&self, parent: u64, name: &[u8], kind: Kind, rdev: u64, creator: Creator) -> Result<Entry> {
        if kind == Kind::File {
            let (entry, handle) = self.create(parent, name, creator)?;
            self.release(handle);
            return Ok(entry);
        }
        let keys = self.enter()?;
        self.can_make()?;
        let _paths = self.namespace.read();
        let stored = self.stored_name(&keys, parent, name)?;
        let permissions = self.permissions(parent, creator)?;
        self.make_staged(parent, &stored, |directory, staged| {
            directory.make_node(staged, kind, permissions, rdev)?;
            self.own(directory, &*directory.entry(staged)?, creator, permissions).map(drop)
        })?;
        self.made(parent, &stored)
    }

    /// Makes a symbolic link. A target that is too long for one, once sealed, lies in the volume's `links`, made
    /// durable before the link that names it.
    ///
    /// # Errors
    /// `EEXIST` if the name is taken.
    pub fn make_symlink(&self, parent: u64, name: &[u8], target: &[u8], creator: Creator) -> Result<Entry> {
        let keys = self.enter()?;
        self.can_make()?;
        let _paths = self.namespace.read();
        let stored = self.stored_name(&keys, parent, name)?;
        let sealed = keys.symlinks.seal(b"", target);
        let encoded = BASE64URL_NOPAD.encode(&sealed).into_bytes();
        let make = |stored_target: &[u8]| {
            self.make_staged(parent, &stored, |directory, staged| {
                directory.make_symlink(staged, stored_target)?;
                self.own(directory, &*directory.entry(staged)?, creator, 0).map(drop)
            })
        };
        let made =
            if encoded.len() <= MAX_STORED_TARGET { make(&encoded) } else { Err(Error::errno(libc::ENAMETOOLONG)) };
        match made {
            // XFS's are shorter still: 1023 bytes.
            Err(Error::Errno(libc::ENAMETOOLONG)) => {
                let side = HEXLOWER.encode(&random_id()).into_bytes();
                self.store_long_target(&side, &sealed)?;
                make(&[b".", &side[..]].concat()).inspect_err(|_| self.remove_long_target(Some(side.clone())))?;
            }
            other => other?,
        }
        self.made(parent, &stored)
    }

    fn store_long_target(&self, name: &[u8], sealed: &[u8]) -> io::Result<()> {
        let links = self.volume.links()?;
        let file = links.create_file(name, 0o600)?;
        file.write_at(sealed, StoredOffset(0))?;
        file.sync(false)?;
        links.sync()
    }

    /// The target of a symbolic link.
    ///
    /// # Errors
    /// [`Error::Damaged`] if it does not authenticate.
    pub fn read_symlink(&self, ino: u64) -> Result<Vec<u8>> {
        let keys = self.enter()?;
        let _paths = self.namespace.read();
        let place = self.nodes.place(ino)?;
        let directory = self.nodes.directory(place.parent)?;
        let target = directory.read_symlink(&place.entry)?;
        self.open_target(&keys, &target)?.ok_or_else(|| {
            // A long target goes right after its link: somebody may have removed both since the link was read.
            if !directory.read_symlink(&place.entry).is_ok_and(|now| now == target) {
                return Error::Stale;
            }
            self.found_damage(|| format!("symbolic link {ino} does not authenticate"));
            Error::Damaged
        })
    }

    /// The target that a stored one stands for, `None` if it does not authenticate.
    pub(super) fn open_target(&self, keys: &Unlocked, stored: &[u8]) -> io::Result<Option<Vec<u8>>> {
        let sealed = match stored.strip_prefix(b".") {
            Some(side) => {
                let file = match self.volume.links()?.open_file(side, false) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                    other => other?,
                };
                let mut sealed = vec![0; 2 * MAX_STORED_TARGET];
                let len = file.read_at(&mut sealed, StoredOffset(0))?;
                sealed.truncate(len);
                Some(sealed)
            }
            None => BASE64URL_NOPAD.decode(stored).ok(),
        };
        Ok(sealed.and_then(|sealed| keys.symlinks.open(b"", &sealed).ok()))
    }

    /// Gives an inode another name.
    ///
    /// # Errors
    /// `EEXIST` if the name is taken.
    pub fn link(&self, ino: u64, parent: u64, name: &[u8]) -> Result<Entry> {
        let keys = self.enter()?;
        self.can_make()?;
        let _paths = self.namespace.read();
        let stored = self.stored_name(&keys, parent, name)?;
        let directory = self.nodes.directory(parent)?;
        let place = self.nodes.place(ino)?;
        let from = self.nodes.directory(place.parent)?;
        // btrfs logs the new name at once if the file was synced before, and not what that needs.
        self.sync_names(parent)?;
        if make_side(&*directory, stored.side.as_ref())? {
            directory.sync()?;
        }
        if let Err(error) = from.link(&place.entry, &*directory, &stored.entry) {
            if error.kind() != io::ErrorKind::AlreadyExists {
                remove_side(&*directory, stored.side.as_ref());
            }
            return Err(error.into());
        }
        self.note_moved(parent, &directory, &stored.entry);
        let stat = directory.stat(&stored.entry)?;
        self.found(&*directory, parent, &stored.entry, stat)
    }

    /// Whether a directory of the store has an id that can be used: for the checks at mount.
    pub fn root_is_whole(&self) -> bool {
        self.volume.record().plain_names
            || self
                .nodes
                .directory(ROOT)
                .is_ok_and(|root| root.read_symlink(DIR_ID_ENTRY).is_ok_and(|id| parse_dir_id(&id).is_some()))
    }
}
