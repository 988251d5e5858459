//! Extended attributes: names and values are encrypted, under `user.` of the backing filesystem whatever their own
//! namespace is; those of symbolic links and special files, which cannot have any there, under `trusted.`. POSIX ACLs are
//! kept as they are: they say no more than modes and owners, and the backing filesystem then lets new files inherit them.

use super::keyring::CAPABILITY;
use super::*;
use crate::store::{Inode, SetXattr};

const PREFIX: &[u8] = b"user.kmsfs.";
/// The same where `user.` is only for files and directories. Needs the privilege.
const PREFIX_OF_OTHERS: &[u8] = b"trusted.kmsfs.";
const ACLS: [&[u8]; 2] = [b"system.posix_acl_access", b"system.posix_acl_default"];
/// The longest name of an attribute, and of its encrypted form, in bytes (`XATTR_NAME_MAX`).
const NAME_MAX: usize = 255;

impl Fs {
    /// The value of an attribute, `None` if there is none of this name.
    ///
    /// # Errors
    /// [`Error::Damaged`] if it does not authenticate.
    pub fn xattr(&self, ino: u64, name: &[u8]) -> Result<Option<Vec<u8>>> {
        let keys = self.enter()?;
        let _paths = self.namespace.read();
        self.with_inode(ino, |inode| {
            if ACLS.contains(&name) {
                return Ok(inode.xattr(name)?);
            }
            let Some(sealed) = inode.xattr(&self.stored_xattr(&keys, ino, name)?)? else { return Ok(None) };
            keys.xattr_values.open(name, &sealed).map(Some).map_err(|_| {
                self.found_damage(|| format!("an extended attribute of inode {ino} does not authenticate"));
                Error::Damaged
            })
        })
    }

    /// The names of all attributes.
    ///
    /// # Errors
    /// The store's. Names that do not authenticate are left out.
    pub fn xattr_names(&self, ino: u64) -> Result<Vec<Vec<u8>>> {
        let keys = self.enter()?;
        let _paths = self.namespace.read();
        let names = self.with_inode(ino, |inode| Ok(inode.xattr_names()?))?;
        let open = |name: Vec<u8>| match sealed_name(&name) {
            Some(sealed) => keys.xattr_names.open_full(b"", sealed).ok(),
            None => ACLS.contains(&&name[..]).then_some(name),
        };
        Ok(names.into_iter().filter_map(open).collect())
    }

    /// Sets an attribute.
    ///
    /// # Errors
    /// `ENOSPC` or `E2BIG` from the backing filesystem, which may hold less than its own limit because a sealed value is
    /// 40 bytes longer.
    pub fn set_xattr(&self, ino: u64, name: &[u8], value: &[u8], how: SetXattr) -> Result<()> {
        let keys = self.enter()?;
        self.writable()?;
        let _paths = self.namespace.read();
        if ACLS.contains(&name) {
            self.nodes.set_default_acl(ino, None);
            return self.with_inode(ino, |inode| Ok(inode.set_xattr(name, value, how)?));
        }
        let sealed = keys.xattr_values.seal(name, value);
        self.with_inode(ino, |inode| Ok(inode.set_xattr(&self.stored_xattr(&keys, ino, name)?, &sealed, how)?))
    }

    /// Removes an attribute.
    ///
    /// # Errors
    /// `ENODATA` if there is none of this name.
    pub fn remove_xattr(&self, ino: u64, name: &[u8]) -> Result<()> {
        let keys = self.enter()?;
        self.writable()?;
        let _paths = self.namespace.read();
        if ACLS.contains(&name) {
            self.nodes.set_default_acl(ino, None);
            return self.with_inode(ino, |inode| Ok(inode.remove_xattr(name)?));
        }
        self.with_inode(ino, |inode| Ok(inode.remove_xattr(&self.stored_xattr(&keys, ino, name)?)?))
    }

    /// The name by which the backing filesystem knows an attribute.
    fn stored_xattr(&self, keys: &Entered<'_>, ino: u64, name: &[u8]) -> Result<Vec<u8>> {
        let prefix = match self.nodes.kind(ino) {
            None | Some(Kind::File | Kind::Directory) => PREFIX,
            Some(_) => PREFIX_OF_OTHERS,
        };
        let stored = if name == CAPABILITY {
            [prefix, &keys.capability].concat()
        } else {
            [prefix, &keys.xattr_names.seal_full(b"", name)].concat()
        };
        if stored.len() > NAME_MAX { Err(Error::errno(libc::ERANGE)) } else { Ok(stored) }
    }
}

/// How many attributes of an inode of the store are kmsfs's and do not authenticate.
///
/// # Errors
/// The store's.
pub(super) fn damaged(keys: &Entered<'_>, inode: &dyn Inode) -> std::io::Result<usize> {
    let mut count = 0;
    for name in inode.xattr_names()? {
        let Some(sealed) = sealed_name(&name) else { continue };
        // Gone since they were listed: not damaged.
        let Some(value) = inode.xattr(&name)? else { continue };
        let opened = keys.xattr_names.open_full(b"", sealed).and_then(|name| keys.xattr_values.open(&name, &value));
        count += usize::from(opened.is_err());
    }
    Ok(count)
}

/// The encrypted name of an attribute that is kmsfs's.
fn sealed_name(stored: &[u8]) -> Option<&[u8]> {
    stored.strip_prefix(PREFIX).or_else(|| stored.strip_prefix(PREFIX_OF_OTHERS))
}
