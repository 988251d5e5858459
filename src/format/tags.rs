//! Tag entries and tag blocks (format.md, "Tag blocks"). An entry holds the nonce and tag of one chunk, or zeros
//! for a hole. Tag blocks form a tree: each holds the MACs of up to 64 others, and the header that of the first,
//! so that the header authenticates every entry of the file at a cost that does not grow with the file.

use super::PAGE;
use crate::crypto::Secret32;
use crate::crypto::cipher::{NonceAndTag, TAG_LEN};
use crate::crypto::xaes::NONCE_LEN;

/// Bytes of one entry.
pub const ENTRY_LEN: usize = NONCE_LEN + TAG_LEN;
/// Entries in the header page.
pub const ENTRIES_PER_HEADER: usize = 64;
/// Entries in a tag block.
pub const ENTRIES_PER_BLOCK: usize = 256;
/// MACs of other tag blocks in a tag block.
pub const CHILDREN_PER_BLOCK: usize = 64;
/// Bytes of a MAC.
pub const MAC_LEN: usize = 32;
/// Bytes of a tag block.
pub const BLOCK_LEN: usize = 3 * PAGE;

const CHILDREN_AT: usize = ENTRIES_PER_BLOCK * ENTRY_LEN;
const _: () = assert!(CHILDREN_AT + CHILDREN_PER_BLOCK * MAC_LEN == BLOCK_LEN);

/// A BLAKE3 MAC.
pub type Mac = [u8; MAC_LEN];

/// The MAC in place of a tag block that does not exist: it has no entries but holes.
pub const NO_BLOCK: Mac = [0; MAC_LEN];

/// A tag block whose MAC was verified, or that was made here.
pub struct TagBlock(Box<[u8; BLOCK_LEN]>);

/// Where a tag block's MAC is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parent {
    /// In the header: the block is the first one.
    Header,
    /// In another block, at this position among its children.
    Block(u64, usize),
}

/// Where the MAC of a block is kept: block 0 in the header, the children of block k are 64k + 1 … 64k + 64.
pub fn parent(block: u64) -> Parent {
    match block.checked_sub(1) {
        None => Parent::Header,
        Some(rest) => Parent::Block(rest / CHILDREN_PER_BLOCK as u64, (rest % CHILDREN_PER_BLOCK as u64) as usize),
    }
}

impl TagBlock {
    /// A block with holes only and without children.
    pub fn empty() -> Self {
        Self(Box::new([0; BLOCK_LEN]))
    }

    /// Takes the bytes that were read for block number `block`, if they are those whose MAC the parent holds.
    ///
    /// # Errors
    /// [`super::Malformed::Mac`] if not.
    pub fn verify(
        key: &Secret32,
        block: u64,
        bytes: Box<[u8; BLOCK_LEN]>,
        expected: &Mac,
    ) -> Result<Self, super::Malformed> {
        let found = Self(bytes);
        // blake3::Hash compares in constant time.
        if blake3::Hash::from(found.mac(key, block)) == blake3::Hash::from(*expected) {
            Ok(found)
        } else {
            Err(super::Malformed::Mac)
        }
    }

    /// The block's MAC, over its bytes and its number. The bytes first: only where they begin at a multiple of 1024 does
    /// BLAKE3 take many of its chunks side by side.
    pub fn mac(&self, key: &Secret32, block: u64) -> Mac {
        *blake3::Hasher::new_keyed(key.expose()).update(&self.0[..]).update(&block.to_le_bytes()).finalize().as_bytes()
    }

    /// Another one with the same bytes.
    #[must_use]
    pub fn copy(&self) -> Self {
        Self(self.0.clone())
    }

    /// The entry with this number, `None` for a hole.
    pub fn entry(&self, number: usize) -> Option<NonceAndTag> {
        decode_entry(&self.0[number * ENTRY_LEN..][..ENTRY_LEN])
    }

    /// Sets an entry, or makes it a hole.
    pub fn set_entry(&mut self, number: usize, entry: Option<&NonceAndTag>) {
        encode_entry(entry, &mut self.0[number * ENTRY_LEN..][..ENTRY_LEN]);
    }

    /// The MAC of a child, [`NO_BLOCK`] if there is none.
    pub fn child(&self, position: usize) -> Mac {
        let mut mac = NO_BLOCK;
        mac.copy_from_slice(&self.0[CHILDREN_AT + position * MAC_LEN..][..MAC_LEN]);
        mac
    }

    /// Sets the MAC of a child.
    pub fn set_child(&mut self, position: usize, mac: &Mac) {
        self.0[CHILDREN_AT + position * MAC_LEN..][..MAC_LEN].copy_from_slice(mac);
    }

    /// The bytes as they are stored.
    pub fn bytes(&self) -> &[u8; BLOCK_LEN] {
        &self.0
    }
}

/// The entry in these [`ENTRY_LEN`] bytes, `None` for a hole.
pub fn decode_entry(bytes: &[u8]) -> Option<NonceAndTag> {
    let (nonce, tag) = bytes.split_first_chunk::<NONCE_LEN>()?;
    let (tag, _) = tag.split_first_chunk::<TAG_LEN>()?;
    // A nonce of zeros is never drawn (2⁻¹⁹²), so zeros can mean a hole.
    (*nonce != [0; NONCE_LEN] || *tag != [0; TAG_LEN]).then_some(NonceAndTag { nonce: *nonce, tag: *tag })
}

/// Writes an entry, zeros for a hole, into these [`ENTRY_LEN`] bytes.
pub fn encode_entry(entry: Option<&NonceAndTag>, bytes: &mut [u8]) {
    match entry {
        None => bytes.fill(0),
        Some(entry) => {
            bytes[..NONCE_LEN].copy_from_slice(&entry.nonce);
            bytes[NONCE_LEN..].copy_from_slice(&entry.tag);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> Secret32 {
        Secret32::take(&mut [3; 32])
    }

    #[test]
    fn every_block_but_the_first_has_one_parent_with_a_smaller_number() {
        let mut seen = std::collections::HashSet::new();
        assert_eq!(parent(0), Parent::Header);
        for block in 1..10_000 {
            let Parent::Block(above, position) = parent(block) else { panic!("{block} has the header as parent") };
            assert!(above < block && position < CHILDREN_PER_BLOCK);
            assert!(seen.insert((above, position)));
        }
    }

    #[test]
    fn a_block_verifies_only_at_its_own_number_and_unchanged() {
        let mut block = TagBlock::empty();
        block.set_entry(7, Some(&NonceAndTag { nonce: [1; 24], tag: [2; 16] }));
        block.set_child(3, &[9; 32]);
        let mac = block.mac(&key(), 5);
        let verify = |number, bytes: &[u8; BLOCK_LEN]| TagBlock::verify(&key(), number, Box::new(*bytes), &mac).is_ok();
        assert!(verify(5, block.bytes()));
        assert!(!verify(6, block.bytes()));
        for at in (0..BLOCK_LEN).step_by(97).chain([BLOCK_LEN - 1]) {
            let mut changed = *block.bytes();
            changed[at] ^= 1;
            assert!(!verify(5, &changed), "byte {at}");
        }
    }

    #[test]
    fn entries_and_children_come_back_and_holes_are_none() {
        let entry = NonceAndTag { nonce: [1; 24], tag: [2; 16] };
        let mut block = TagBlock::empty();
        assert_eq!(block.entry(255), None);
        block.set_entry(255, Some(&entry));
        block.set_child(63, &[8; 32]);
        assert_eq!(block.entry(255), Some(entry));
        assert_eq!(block.entry(254), None);
        assert_eq!(block.child(63), [8; 32]);
        assert_eq!(block.child(62), NO_BLOCK);
        block.set_entry(255, None);
        assert_eq!(block.entry(255), None);
    }
}
