//! The secret of a file's envelope wrapped by another KEK: the header changes, and nothing else. The DEK stays, so whoever
//! has the file open notices nothing.

use super::commit::MAC;
use super::{Damage, Error, File, Keys, Unverified};
use crate::format::header::{Envelope, Header, Page};
use crate::ledger::Stamp;
use crate::store::StoreFile;
use std::sync::Arc;

impl File {
    /// Takes other wraps of the same secret. They reach the disk with the next commit, through the journal or, in a
    /// file that was never made durable, with the whole header; then the stored file is written through `writer`.
    pub fn set_wraps(&self, envelope: Envelope, recovery: Option<Envelope>, writer: Arc<dyn StoreFile>) {
        self.write_through(writer);
        self.put_wraps(envelope, recovery, true);
    }

    /// The same for a file that no name leads to any more: it is for those who have it open.
    pub fn set_wraps_in_memory(&self, envelope: Envelope, recovery: Option<Envelope>) {
        self.put_wraps(envelope, recovery, false);
    }

    fn put_wraps(&self, envelope: Envelope, recovery: Option<Envelope>, commit: bool) {
        let mut state = self.state.write();
        let header = state.page.header_mut();
        header.envelope = envelope;
        header.recovery = recovery;
        state.dirty.envelope = true;
        state.changed |= commit;
    }

    /// How many bytes a commit would have to log besides the header, about.
    pub fn pending_bytes(&self) -> usize {
        let state = self.state.read();
        state.pending_bytes + state.dirty.new_blocks.len() * crate::format::tags::BLOCK_LEN
    }
}

/// A header page that was sealed, and which version it is.
pub struct Rewrapped {
    /// As it is to be stored.
    pub page: Page,
    /// What a ledger knows of it.
    pub stamp: Stamp,
}

impl Unverified {
    /// Which version the header says that it is; not authenticated.
    pub fn stamp(&self) -> Stamp {
        stamp_of(&self.header, &self.page)
    }
}

fn stamp_of(header: &Header, page: &Page) -> Stamp {
    let mac = std::array::from_fn(|at| page[MAC.start + at]);
    Stamp { epoch: header.epoch.0, generation: header.generation, mac }
}

/// The header page of a stored file with other wraps of the same secret, for one that is no part of the tree.
///
/// # Errors
/// [`Error::Damaged`] if the page does not authenticate.
pub fn rewrapped_page(
    found: Unverified,
    keys: &Keys,
    envelope: Envelope,
    recovery: Option<Envelope>,
) -> Result<Rewrapped, Error> {
    let mut page = found.header.verify(&keys.header_mac, found.page).map_err(Damage::Header)?;
    let header = page.header_mut();
    header.envelope = envelope;
    header.recovery = recovery;
    header.generation += 1;
    let sealed: Page = Box::new(*page.seal(&keys.header_mac));
    Ok(Rewrapped { stamp: stamp_of(page.header(), &sealed), page: sealed })
}
