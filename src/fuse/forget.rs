//! Making the kernel forget what it knows of a mount. Only for a thread that serves no request and holds no lock: the
//! kernel writes dirty pages out before it forgets them.

use crate::fs::Known;
use fuser::{INodeNo, Notifier};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

/// Tells the kernel to forget.
#[derive(Clone)]
pub struct Forgetter(Notifier);

impl Forgetter {
    /// Speaks to the kernel through this.
    pub fn new(notifier: Notifier) -> Self {
        Self(notifier)
    }

    /// Makes the kernel send what it held back of an inode's content: it does before it forgets it.
    pub fn write_out(&self, ino: u64) {
        let _ = self.0.inval_inode(INodeNo(ino), 0, 0);
    }

    /// Makes the kernel forget the pages of a range. It waits for those that are just being read, or written.
    pub fn forget_pages(&self, ino: u64, offset: u64, len: u64) {
        let signed = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        let _ = self.0.inval_inode(INodeNo(ino), signed(offset), signed(len));
    }

    /// Makes the kernel ask again for the attributes of an inode that somebody has open: with the writeback cache it
    /// does not see by itself how much space a file takes. Takes no lock of the kernel's that a request may hold.
    pub fn forget_attributes(&self, ino: u64) {
        let _ = self.0.inval_inode(INodeNo(ino), -1, 0);
    }

    /// Makes the kernel forget the pages, attributes and names of these inodes.
    pub fn forget(&self, known: &[Known]) {
        for (ino, _) in known {
            // An error says that the kernel does not know it any more.
            let _ = self.0.inval_inode(INodeNo(*ino), 0, 0);
        }
        self.forget_names(known);
    }

    /// Makes the kernel forget these names, and with the last one of an inode that nobody uses the inode itself.
    pub fn forget_names(&self, known: &[Known]) {
        for (parent, name) in known.iter().flat_map(|(_, places)| places) {
            let _ = self.0.inval_entry(INodeNo(*parent), OsStr::from_bytes(name));
        }
    }
}
