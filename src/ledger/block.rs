//! The blocks of a ledger: 512 bytes each, with a MAC of their own (format.md, "The ledger"). No I/O.

use super::{Mark, Stamp};
use crate::crypto::Secret32;
use crate::units::{FileId, VolumeId};

/// The length of a block, which a disk writes at once.
pub const BLOCK: usize = 512;
/// How many entries a block has room for.
pub const ENTRIES: usize = 14;

const HEADER_MAGIC: [u8; 8] = *b"kmsfs/L\0";
const VERSION: u16 = 1;
const MAGIC: [u8; 4] = *b"kLg1";
const ENTRY: usize = 32;
const ENTRIES_AT: usize = 32;
const MAC_AT: usize = BLOCK - 32;
const SUSPECT: u8 = 1;
/// The epoch of an entry that says that a file was removed.
const REMOVED: u32 = u32::MAX;
const _: () = assert!(ENTRIES_AT + ENTRIES * ENTRY == MAC_AT);

/// What the first block says: of which volume the ledger is, and which ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The volume.
    pub volume: VolumeId,
    /// Drawn anew whenever a ledger is written as a whole, so that no block of another one fits in.
    pub ledger: [u8; 16],
}

/// What every other block says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Block {
    /// What the volume was when it was written.
    pub mark: Mark,
    /// How many blocks were durable when it was written.
    pub synced: u64,
    /// Files, and their newest headers; `None` for those that were removed.
    pub entries: Vec<(FileId, Option<Stamp>)>,
}

/// Why a first block is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoHeader {
    /// It is nothing that kmsfs wrote, or not whole.
    Malformed,
    /// A version that is not known.
    Version(u16),
}

impl Identity {
    /// The first block.
    pub fn encode(&self, key: &Secret32) -> [u8; BLOCK] {
        let mut block = [0; BLOCK];
        block[..8].copy_from_slice(&HEADER_MAGIC);
        block[8..10].copy_from_slice(&VERSION.to_le_bytes());
        block[16..32].copy_from_slice(&self.volume.0);
        block[32..48].copy_from_slice(&self.ledger);
        seal(&mut block, self, 0, key);
        block
    }

    /// Reads a first block. Without a key nothing of it is authentic.
    ///
    /// # Errors
    /// [`NoHeader`].
    pub fn decode(block: &[u8; BLOCK]) -> Result<Self, NoHeader> {
        if block[..8] != HEADER_MAGIC {
            return Err(NoHeader::Malformed);
        }
        let version = u16::from_le_bytes([block[8], block[9]]);
        if version != VERSION {
            return Err(NoHeader::Version(version));
        }
        let field = |at: usize| std::array::from_fn(|n| block[at + n]);
        if block[10..16].iter().chain(&block[48..MAC_AT]).any(|byte| *byte != 0) {
            return Err(NoHeader::Malformed);
        }
        Ok(Self { volume: VolumeId(field(16)), ledger: field(32) })
    }
}

impl Block {
    /// The bytes of the block with this number in its ledger.
    pub fn encode(&self, identity: &Identity, number: u64, key: &Secret32) -> [u8; BLOCK] {
        let mut block = [0; BLOCK];
        block[..4].copy_from_slice(&MAGIC);
        block[4] = self.entries.len() as u8;
        block[5] = if self.mark.suspect { SUSPECT } else { 0 };
        block[8..16].copy_from_slice(&self.mark.counter.to_le_bytes());
        block[16..24].copy_from_slice(&self.synced.to_le_bytes());
        block[24..32].copy_from_slice(&self.mark.record.to_le_bytes());
        for ((file, stamp), field) in self.entries.iter().zip(block[ENTRIES_AT..MAC_AT].chunks_exact_mut(ENTRY)) {
            let (epoch, generation, mac) = match stamp {
                Some(stamp) => (stamp.epoch, stamp.generation, stamp.mac),
                None => (REMOVED, 0, [0; 4]),
            };
            field[..16].copy_from_slice(&file.0);
            field[16..20].copy_from_slice(&epoch.to_le_bytes());
            field[20..24].copy_from_slice(&mac);
            field[24..].copy_from_slice(&generation.to_le_bytes());
        }
        seal(&mut block, identity, number, key);
        block
    }

    /// Reads a block; `None` if it is not one of this ledger in this place. Without a key nothing of it is authentic.
    pub fn decode(block: &[u8; BLOCK], identity: &Identity, number: u64, key: Option<&Secret32>) -> Option<Self> {
        let count = usize::from(block[4]);
        if block[..4] != MAGIC || count > ENTRIES || block[5] & !SUSPECT != 0 {
            return None;
        }
        if key.is_some_and(|key| !is_sealed(block, identity, number, key)) {
            return None;
        }
        // What is reserved is zero, so that there is one block for each meaning.
        if block[6..8].iter().chain(&block[ENTRIES_AT + count * ENTRY..MAC_AT]).any(|byte| *byte != 0) {
            return None;
        }
        let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|n| block[at + n]));
        let entries = block[ENTRIES_AT..MAC_AT].chunks_exact(ENTRY).take(count).map(|field| {
            let epoch = u32::from_le_bytes(std::array::from_fn(|n| field[16 + n]));
            let generation = u64::from_le_bytes(std::array::from_fn(|n| field[24 + n]));
            let stamp = Stamp { epoch, generation, mac: std::array::from_fn(|n| field[20 + n]) };
            let removed = Stamp { epoch: REMOVED, generation: 0, mac: [0; 4] };
            match (FileId(std::array::from_fn(|n| field[n])), stamp) {
                (file, stamp) if stamp == removed => Some((file, None)),
                (_, Stamp { epoch: REMOVED, .. }) => None,
                (file, stamp) => Some((file, Some(stamp))),
            }
        });
        let entries = entries.collect::<Option<Vec<_>>>()?;
        let mark = Mark { counter: word(8), record: word(24), suspect: block[5] & SUSPECT != 0 };
        Some(Self { mark, synced: word(16), entries })
    }
}

/// Whether a block is what was written with this key in this place.
pub fn is_sealed(block: &[u8; BLOCK], identity: &Identity, number: u64, key: &Secret32) -> bool {
    let found: [u8; 32] = std::array::from_fn(|n| block[MAC_AT + n]);
    // blake3::Hash compares in constant time.
    mac(block, identity, number, key) == blake3::Hash::from(found)
}

fn seal(block: &mut [u8; BLOCK], identity: &Identity, number: u64, key: &Secret32) {
    let mac = mac(block, identity, number, key);
    block[MAC_AT..].copy_from_slice(mac.as_bytes());
}

fn mac(block: &[u8; BLOCK], identity: &Identity, number: u64, key: &Secret32) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new_keyed(key.expose());
    hasher.update(&identity.volume.0).update(&identity.ledger).update(&number.to_le_bytes());
    hasher.update(&block[..MAC_AT]).finalize()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const IDENTITY: Identity = Identity { volume: VolumeId([1; 16]), ledger: [2; 16] };

    fn key() -> Secret32 {
        Secret32::take(&mut [3; 32])
    }

    fn sample() -> Block {
        let stamp = Stamp { epoch: 4, generation: 5, mac: [6; 4] };
        let entries = (0..ENTRIES as u8).map(|n| (FileId([n; 16]), (n != 7).then_some(stamp))).collect();
        Block { mark: Mark { counter: 8, record: 11, suspect: true }, synced: 9, entries }
    }

    #[test]
    fn a_block_comes_back_in_its_own_place_of_its_own_ledger_only() {
        for block in [sample(), Block { synced: 1, ..Block::default() }] {
            let bytes = block.encode(&IDENTITY, 10, &key());
            assert_eq!(Block::decode(&bytes, &IDENTITY, 10, Some(&key())), Some(block.clone()));
            assert_eq!(Block::decode(&bytes, &IDENTITY, 11, None), Some(block));
            assert_eq!(Block::decode(&bytes, &IDENTITY, 11, Some(&key())), None);
            let other = Identity { ledger: [0; 16], ..IDENTITY };
            assert_eq!(Block::decode(&bytes, &other, 10, Some(&key())), None);
            assert_eq!(Block::decode(&bytes, &IDENTITY, 10, Some(&Secret32::take(&mut [0; 32]))), None);
        }
        let first = IDENTITY.encode(&key());
        assert_eq!(Identity::decode(&first), Ok(IDENTITY));
        assert!(is_sealed(&first, &IDENTITY, 0, &key()));
    }

    #[test]
    fn every_byte_of_a_block_is_authenticated() {
        let (block, first) = (sample().encode(&IDENTITY, 10, &key()), IDENTITY.encode(&key()));
        for at in 0..BLOCK {
            let (mut changed, mut header) = (block, first);
            changed[at] ^= 0x10;
            header[at] ^= 0x10;
            assert_eq!(Block::decode(&changed, &IDENTITY, 10, Some(&key())), None, "byte {at}");
            let accepted = Identity::decode(&header).is_ok_and(|identity| is_sealed(&header, &identity, 0, &key()));
            assert!(!accepted, "byte {at} of the first block");
        }
        let mut later = first;
        later[8] = 2;
        assert_eq!(Identity::decode(&later), Err(NoHeader::Version(2)));
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(bytes: [u8; 64], at in 0..8_usize) {
            let mut block = sample().encode(&IDENTITY, 10, &key());
            block[at * 64..][..64].copy_from_slice(&bytes);
            let _ = Block::decode(&block, &IDENTITY, 10, None);
            let _ = Identity::decode(&block);
        }
    }
}
