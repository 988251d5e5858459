//! What a crash left of files that nobody had been promised is not thrown away: whether such a file was only half
//! written when the machine went down, or was whole and its disk has damaged it since, nobody can tell for certain.

use super::*;
use crate::store::{RenameMode, staging_name};
use crate::units::{FileId, StoredOffset};
use std::io;

/// How much is copied at a time, in bytes.
const PIECE: usize = 1 << 20;

impl Fs {
    /// Copies a stored file to the volume's `lost` directory, under its file id, before it is made empty:
    /// 1. the copy is made under another name, and synced (a crash: the copy means nothing, and is made again);
    /// 2. it gets its name, and the directory is synced (a crash before: the same; after: it is replaced by the same).
    ///
    /// A copy, because the inode stays where it is: it may have other names, and be open.
    ///
    /// # Errors
    /// The store's. The file must not be emptied then.
    pub(super) fn set_aside(&self, file: FileId, store: &dyn StoreFile) -> io::Result<()> {
        let lost = self.volume.lost()?;
        let name = file.to_string().into_bytes();
        let making = staging_name(&[&name, &b".new-"[..]].concat());
        publish(&*lost, &making, &name, copy(store, &*lost, &making).and_then(|copy| copy.sync(false)))?;
        self.counters.set_aside.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Replaces what was set aside by a copy with another header page, in the same steps.
    ///
    /// # Errors
    /// The store's; then it is as it was.
    pub(super) fn replace_aside(
        &self,
        lost: &dyn StoreDir,
        name: &[u8],
        store: &dyn StoreFile,
        page: &[u8],
    ) -> io::Result<()> {
        let making = staging_name(&[name, &b".new-"[..]].concat());
        let copied = copy(store, lost, &making)
            .and_then(|copy| copy.write_at(page, StoredOffset(0)).and_then(|()| copy.sync(false)));
        publish(lost, &making, name, copied)
    }
}

/// Gives a copy its name, if it could be made.
fn publish(lost: &dyn StoreDir, making: &[u8], name: &[u8], made: io::Result<()>) -> io::Result<()> {
    let made = made.and_then(|()| lost.rename(making, lost, name, RenameMode::Replace)).and_then(|()| lost.sync());
    if made.is_err() {
        // The first error is what matters; a file in the making means nothing.
        let _ = lost.unlink(making);
    }
    made
}

fn copy(from: &dyn StoreFile, to: &dyn StoreDir, name: &[u8]) -> io::Result<Arc<dyn StoreFile>> {
    let copy = to.create_file(name, 0o600)?;
    let mut piece = vec![0; PIECE];
    let mut at = 0;
    loop {
        let len = from.read_at(&mut piece, StoredOffset(at))?;
        if piece[..len].iter().any(|byte| *byte != 0) {
            copy.write_at(&piece[..len], StoredOffset(at))?;
        }
        at += len as u64;
        if len < PIECE {
            break;
        }
    }
    copy.set_len(StoredOffset(at))?;
    Ok(copy)
}
