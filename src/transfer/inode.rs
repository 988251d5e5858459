//! An inode of a volume's tree, known until it is dropped; and what is kept of one when it is copied.

use super::plain::{Dir, File, Plain, seen};
use crate::fs::{Changes, ROOT};
use crate::store::{Inode, Kind, SetTime, SetXattr, Stat, StoreFile};
use std::io;
use std::sync::Arc;

/// One inode, looked up once; whoever has a copy of it shares that.
#[derive(Clone)]
pub(super) struct Node(Arc<Known>);

pub(super) struct Known {
    pub tree: Arc<Plain>,
    pub ino: u64,
    /// The directory that it was found in is known as long as this is.
    _above: Option<Arc<Dir>>,
}

impl Node {
    pub fn new(tree: Arc<Plain>, ino: u64, above: Option<Arc<Dir>>) -> Self {
        Self(Arc::new(Known { tree, ino, _above: above }))
    }

    fn change(&self, changes: Changes) -> io::Result<()> {
        self.tree.done(|fs| fs.change(self.ino, &changes)).map(drop)
    }
}

impl std::ops::Deref for Node {
    type Target = Known;

    fn deref(&self) -> &Known {
        &self.0
    }
}

impl Drop for Known {
    fn drop(&mut self) {
        if self.ino != ROOT {
            self.tree.fs.forget(self.ino, 1);
        }
    }
}

impl Inode for Node {
    fn stat(&self) -> io::Result<Stat> {
        Ok(seen(&self.tree.done(|fs| fs.attributes(self.ino))?))
    }

    fn set_permissions(&self, permissions: u32) -> io::Result<()> {
        self.change(Changes { permissions: Some(permissions), ..Changes::default() })
    }

    fn set_owner(&self, uid: Option<u32>, gid: Option<u32>) -> io::Result<()> {
        self.change(Changes { uid, gid, ..Changes::default() })
    }

    fn set_times(&self, atime: SetTime, mtime: SetTime) -> io::Result<()> {
        let kept = |time| if time == SetTime::Keep { None } else { Some(time) };
        self.change(Changes { atime: kept(atime), mtime: kept(mtime), ..Changes::default() })
    }

    fn xattr(&self, name: &[u8]) -> io::Result<Option<Vec<u8>>> {
        self.tree.done(|fs| fs.xattr(self.ino, name))
    }

    fn xattr_names(&self) -> io::Result<Vec<Vec<u8>>> {
        self.tree.done(|fs| fs.xattr_names(self.ino))
    }

    fn set_xattr(&self, name: &[u8], value: &[u8], how: SetXattr) -> io::Result<()> {
        self.tree.done(|fs| fs.set_xattr(self.ino, name, value, how))
    }

    fn remove_xattr(&self, name: &[u8]) -> io::Result<()> {
        self.tree.done(|fs| fs.remove_xattr(self.ino, name))
    }

    fn open_file(&self, writable: bool) -> io::Result<Arc<dyn StoreFile>> {
        File::open(self.clone(), writable)
    }
}

/// Whether the process may give files to others.
pub(super) fn may_give() -> bool {
    rustix::process::geteuid().is_root()
}

/// Attributes that belong to the filesystem that a file is on, not to the file.
const OF_THE_HOST: [&[u8]; 4] = [b"security.selinux", b"security.evm", b"security.ima", b"system.nfs4_acl"];

/// Gives one inode the owner, permissions, extended attributes and ACLs of another, whose attributes are `stat`. What
/// cannot be set is told to `failed`, and the rest goes on.
pub(super) fn copy_attributes(from: &dyn Inode, to: &dyn Inode, stat: &Stat, failed: &mut dyn FnMut(&str, io::Error)) {
    if may_give()
        && let Err(error) = to.set_owner(Some(stat.uid), Some(stat.gid))
    {
        failed("its owner", error);
    }
    // A change of owner takes privileges away.
    if stat.kind != Kind::Symlink
        && let Err(error) = to.set_permissions(stat.permissions)
    {
        failed("its permissions", error);
    }
    let names = match from.xattr_names() {
        Ok(names) => names,
        Err(error) => return failed("its extended attributes", error),
    };
    for name in names.iter().filter(|name| !OF_THE_HOST.contains(&&name[..])) {
        let copied = from.xattr(name).and_then(|value| match value {
            Some(value) => to.set_xattr(name, &value, SetXattr::Any),
            // Removed since they were listed.
            None => Ok(()),
        });
        if let Err(error) = copied {
            failed(&format!("its extended attribute {}", String::from_utf8_lossy(name)), error);
        }
    }
    // Left over from before, where the copy goes on.
    for name in to.xattr_names().unwrap_or_default() {
        if !names.contains(&name)
            && !OF_THE_HOST.contains(&&name[..])
            && let Err(error) = to.remove_xattr(&name)
        {
            failed(&format!("its extended attribute {}", String::from_utf8_lossy(&name)), error);
        }
    }
}

/// Gives one inode the times of another.
pub(super) fn copy_times(to: &dyn Inode, stat: &Stat) -> io::Result<()> {
    to.set_times(SetTime::At(stat.atime), SetTime::At(stat.mtime))
}
