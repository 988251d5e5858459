//! Where the parts of a stored file lie: pure arithmetic (format.md, "Where things lie").
//!
//! ```text
//! page 0 │ chunk 0 … chunk 63 │ tag block 0 │ chunk 64 … chunk 319 │ tag block 1 │ chunk 320 …
//! ```

use super::PAGE;
use super::tags::{BLOCK_LEN, ENTRIES_PER_BLOCK, ENTRIES_PER_HEADER};
use crate::units::{ChunkIndex, PlainOffset, StoredOffset};
use std::fmt;
use std::str::FromStr;

/// The greatest length of a file as applications see it, in bytes: what keeps every stored offset in an `i64`.
pub const MAX_PLAIN_LEN: u64 = 1 << 60;

/// The length of a volume's chunks: a power of two from 4 KiB to 1 MiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkSize(u8);

impl ChunkSize {
    /// The default, chosen by measurement (performance.md).
    pub const DEFAULT: Self = Self(12);

    /// From the logarithm that is stored; `None` outside 12 to 20.
    pub fn from_log2(log2: u8) -> Option<Self> {
        (12..=20).contains(&log2).then_some(Self(log2))
    }

    /// The logarithm that is stored.
    pub fn log2(self) -> u8 {
        self.0
    }

    /// In bytes.
    pub fn bytes(self) -> u64 {
        1 << self.0
    }
}

impl FromStr for ChunkSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (digits, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
        let factor: u64 = match unit {
            "" | "B" => 1,
            "K" | "k" | "KiB" => 1 << 10,
            "M" | "MiB" => 1 << 20,
            _ => 0,
        };
        digits
            .parse::<u64>()
            .ok()
            .and_then(|number| number.checked_mul(factor))
            .filter(|bytes| bytes.is_power_of_two())
            .and_then(|bytes| u8::try_from(bytes.ilog2()).ok())
            .and_then(Self::from_log2)
            .ok_or_else(|| format!("'{text}' is not a power of two from 4K to 1M"))
    }
}

impl fmt::Display for ChunkSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == 20 { f.write_str("1M") } else { write!(f, "{}K", self.bytes() >> 10) }
    }
}

/// Which tag entries a chunk's entry is among.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryPlace {
    /// Number of the entry in the header page.
    Header(usize),
    /// Tag block, and number of the entry in it.
    Block(u64, usize),
}

/// The geometry of the files of a volume.
#[derive(Clone, Copy, Debug)]
pub struct Geometry {
    chunk_size: ChunkSize,
}

impl Geometry {
    /// For chunks of this size.
    pub fn new(chunk_size: ChunkSize) -> Self {
        Self { chunk_size }
    }

    /// The length of a chunk that is not the last one, in bytes.
    pub fn chunk_len(self) -> u64 {
        self.chunk_size.bytes()
    }

    /// The size as it is written down.
    pub fn chunk_size(self) -> ChunkSize {
        self.chunk_size
    }

    /// The chunk in which a byte of the plaintext lies.
    pub fn chunk_of(self, offset: PlainOffset) -> ChunkIndex {
        ChunkIndex(offset.0 >> self.chunk_size.log2())
    }

    /// Where a chunk begins in the plaintext.
    pub fn chunk_start(self, chunk: ChunkIndex) -> PlainOffset {
        PlainOffset(chunk.0 << self.chunk_size.log2())
    }

    /// How many chunks a plaintext of this length has.
    pub fn chunk_count(self, len: PlainOffset) -> u64 {
        len.0.div_ceil(self.chunk_len())
    }

    /// The length of a chunk in a file of this length: a whole chunk, the rest for the last one, or 0.
    pub fn len_of_chunk(self, chunk: ChunkIndex, len: PlainOffset) -> u64 {
        len.0.saturating_sub(self.chunk_start(chunk).0).min(self.chunk_len())
    }

    /// Where a chunk lies in the stored file.
    pub fn stored_chunk(self, chunk: ChunkIndex) -> StoredOffset {
        let first = PAGE as u64;
        match self.entry_place(chunk) {
            EntryPlace::Header(number) => StoredOffset(first + ((number as u64) << self.chunk_size.log2())),
            EntryPlace::Block(block, number) => StoredOffset(
                self.stored_block(block).0 + BLOCK_LEN as u64 + ((number as u64) << self.chunk_size.log2()),
            ),
        }
    }

    /// Where a tag block lies in the stored file.
    pub fn stored_block(self, block: u64) -> StoredOffset {
        let segment = BLOCK_LEN as u64 + ((ENTRIES_PER_BLOCK as u64) << self.chunk_size.log2());
        let first = PAGE as u64 + ((ENTRIES_PER_HEADER as u64) << self.chunk_size.log2());
        StoredOffset(first + block * segment)
    }

    /// Where the entry of a chunk is kept.
    pub fn entry_place(self, chunk: ChunkIndex) -> EntryPlace {
        match chunk.0.checked_sub(ENTRIES_PER_HEADER as u64) {
            None => EntryPlace::Header(chunk.0 as usize),
            Some(rest) => {
                EntryPlace::Block(rest / ENTRIES_PER_BLOCK as u64, (rest % ENTRIES_PER_BLOCK as u64) as usize)
            }
        }
    }

    /// The last chunk whose entry lies in the same page or tag block as that of `chunk`.
    pub fn last_with_same_tags(self, chunk: ChunkIndex) -> ChunkIndex {
        match self.entry_place(chunk) {
            EntryPlace::Header(_) => ChunkIndex(ENTRIES_PER_HEADER as u64 - 1),
            EntryPlace::Block(block, _) => self.last_of_block(block),
        }
    }

    /// The last chunk whose entry lies in a tag block.
    pub fn last_of_block(self, block: u64) -> ChunkIndex {
        let blocks = block.saturating_add(1);
        ChunkIndex(blocks.saturating_mul(ENTRIES_PER_BLOCK as u64).saturating_add(ENTRIES_PER_HEADER as u64 - 1))
    }

    /// How many tag blocks a file of this length has.
    pub fn block_count(self, len: PlainOffset) -> u64 {
        self.chunk_count(len).saturating_sub(ENTRIES_PER_HEADER as u64).div_ceil(ENTRIES_PER_BLOCK as u64)
    }

    /// The length of the stored file for a plaintext of this length.
    pub fn stored_len(self, len: PlainOffset) -> StoredOffset {
        match self.chunk_count(len).checked_sub(1).map(ChunkIndex) {
            None => StoredOffset(PAGE as u64),
            Some(last) => StoredOffset(self.stored_chunk(last).0 + self.len_of_chunk(last, len)),
        }
    }

    /// The length of the plaintext whose stored file has this length, `None` if there is none.
    pub fn plain_len(self, stored: StoredOffset) -> Option<PlainOffset> {
        let data = stored.0.checked_sub(PAGE as u64)?;
        let head = (ENTRIES_PER_HEADER as u64) << self.chunk_size.log2();
        let body = (ENTRIES_PER_BLOCK as u64) << self.chunk_size.log2();
        let plain = match data.checked_sub(head) {
            None | Some(0) => data,
            Some(rest) => {
                let segment = body + BLOCK_LEN as u64;
                let (whole, part) = (rest / segment, rest % segment);
                // A segment exists for the sake of at least one byte of a chunk.
                let part = if part == 0 { 0 } else { part.checked_sub(BLOCK_LEN as u64).filter(|part| *part > 0)? };
                head + whole * body + part
            }
        };
        (plain <= MAX_PLAIN_LEN).then_some(PlainOffset(plain))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn geometry() -> impl Strategy<Value = Geometry> {
        (12_u8..=20).prop_map(|log2| Geometry::new(ChunkSize::from_log2(log2).unwrap()))
    }

    proptest! {
        #[test]
        fn stored_and_plain_length_determine_each_other(geometry in geometry(), len in 0..=MAX_PLAIN_LEN) {
            let stored = geometry.stored_len(PlainOffset(len));
            prop_assert_eq!(geometry.plain_len(stored), Some(PlainOffset(len)));
        }

        #[test]
        fn small_stored_lengths_map_back_or_to_nothing(geometry in geometry(), stored in 0_u64..(1 << 30)) {
            if let Some(plain) = geometry.plain_len(StoredOffset(stored)) {
                prop_assert_eq!(geometry.stored_len(plain), StoredOffset(stored));
            }
        }

        #[test]
        fn parts_lie_one_behind_the_other_without_overlap(geometry in geometry(), chunk in 0_u64..100_000) {
            let here = geometry.stored_chunk(ChunkIndex(chunk)).0;
            let next = geometry.stored_chunk(ChunkIndex(chunk + 1)).0;
            prop_assert_eq!(here % PAGE as u64, 0);
            let gap = next - here - geometry.chunk_len();
            let boundary = matches!(geometry.entry_place(ChunkIndex(chunk + 1)), EntryPlace::Block(_, 0));
            prop_assert_eq!(gap, if boundary { BLOCK_LEN as u64 } else { 0 });
            if let EntryPlace::Block(block, 0) = geometry.entry_place(ChunkIndex(chunk + 1)) {
                prop_assert_eq!(geometry.stored_block(block).0, here + geometry.chunk_len());
            }
        }
    }

    #[test]
    fn the_worked_sizes_of_the_manual_hold() {
        let geometry = Geometry::new(ChunkSize::from_str("4K").unwrap());
        for (plain, stored) in [
            (0, 4096),
            (1, 4097),
            (4096, 8192),
            (4097, 8193),
            (64 * 4096, 266_240),
            (64 * 4096 + 1, 266_240 + 12_288 + 1),
            (320 * 4096, 266_240 + 12_288 + 256 * 4096),
        ] {
            assert_eq!(geometry.stored_len(PlainOffset(plain)), StoredOffset(stored), "{plain}");
        }
    }

    #[test]
    fn chunk_sizes_are_written_and_read_in_one_way() {
        for log2 in 12..=20 {
            let size = ChunkSize::from_log2(log2).unwrap();
            assert_eq!(size.to_string().parse(), Ok(size));
        }
        for wrong in ["", "4", "2K", "5K", "2M", "4KB", "K", "99999999999999999999K", "-4K"] {
            assert!(wrong.parse::<ChunkSize>().is_err(), "{wrong}");
        }
    }
}
