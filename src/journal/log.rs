//! One of the two log files: its header page and its position (format.md, "The journal").

use crate::format::PAGE;
use crate::store::{StoreDir, StoreFile};
use crate::units::StoredOffset;
use std::collections::HashMap;
use std::io;
use std::sync::Arc;

const MAGIC: [u8; 8] = *b"kmsfs/J\0";
const VERSION: u16 = 1;
const CHECKSUM_AT: usize = PAGE - 32;
/// How many crashed batches a header has room for; beyond it the oldest stay, because a volume that crashed this
/// often without being checked once has worse problems than a slow lookup.
const MAX_CRASHED: usize = 400;

/// What the header of a log says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// Which of the two logs is newer. 0: the log is empty and was never used.
    pub sequence: u64,
    /// The volume was unmounted and nothing is to be recovered.
    pub clean: bool,
    /// The last batch that was committed when this log began.
    pub committed_batch: u64,
    /// The batches that went down.
    pub crashed_batches: Vec<u64>,
}

/// A log file in use.
pub struct Log {
    pub file: Arc<dyn StoreFile>,
    pub sequence: u64,
    /// Bytes that it has room for.
    pub capacity: u64,
    /// Where the next record goes.
    pub position: u64,
    /// Up to where the log is known to be durable.
    pub synced: u64,
    /// Updates in it that were not yet applied in place.
    pub unapplied: usize,
    /// Files that were changed in place on its behalf, by inode number.
    pub touched: HashMap<u64, Arc<dyn StoreFile>>,
}

impl Log {
    pub fn new(file: Arc<dyn StoreFile>) -> io::Result<Self> {
        let start = PAGE as u64;
        let capacity = file.inode().stat()?.len.0;
        Ok(Self { file, sequence: 0, capacity, position: start, synced: start, unapplied: 0, touched: HashMap::new() })
    }

    /// Begins the log anew with this header; durable when it returns.
    pub fn recycle(&mut self, state: &State) -> io::Result<()> {
        self.file.write_at(&encode(state), StoredOffset(0))?;
        self.file.sync(true)?;
        self.sequence = state.sequence;
        self.position = PAGE as u64;
        self.synced = self.position;
        Ok(())
    }

    /// Makes sure that nothing of the log is ever replayed again; durable when it returns.
    pub fn retire(&mut self) -> io::Result<()> {
        self.file.write_at(&[0; PAGE], StoredOffset(0))?;
        self.file.sync(true)
    }
}

/// Makes a log file: zeros all over, so that later a sync of it moves data only and no metadata.
pub fn create(dir: &dyn StoreDir, name: &[u8], len: u64) -> io::Result<()> {
    let file = dir.create_file(name, 0o600)?;
    let zeros = vec![0; 1 << 20];
    let mut at = 0;
    while at < len {
        let count = (len - at).min(zeros.len() as u64);
        file.write_at(&zeros[..count as usize], StoredOffset(at))?;
        at += count;
    }
    file.sync(false)
}

fn encode(state: &State) -> [u8; PAGE] {
    let mut page = [0; PAGE];
    let crashed = &state.crashed_batches[..state.crashed_batches.len().min(MAX_CRASHED)];
    page[..8].copy_from_slice(&MAGIC);
    page[8..10].copy_from_slice(&VERSION.to_le_bytes());
    page[10] = state.clean.into();
    page[16..24].copy_from_slice(&state.sequence.to_le_bytes());
    page[24..32].copy_from_slice(&state.committed_batch.to_le_bytes());
    page[32..36].copy_from_slice(&(crashed.len() as u32).to_le_bytes());
    for (batch, field) in crashed.iter().zip(page[40..].chunks_exact_mut(8)) {
        field.copy_from_slice(&batch.to_le_bytes());
    }
    let checksum = blake3::hash(&page[..CHECKSUM_AT]);
    page[CHECKSUM_AT..].copy_from_slice(checksum.as_bytes());
    page
}

/// The state in a header page, `None` if the page is not whole: a log that is being recycled, or was never used.
pub fn decode(page: &[u8; PAGE]) -> Option<State> {
    let field = |at: usize| page[at..].first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
    if page[..8] != MAGIC
        || page[8..10] != VERSION.to_le_bytes()
        || *blake3::hash(&page[..CHECKSUM_AT]).as_bytes() != page[CHECKSUM_AT..]
    {
        return None;
    }
    let count = (field(32) as u32 as usize).min(MAX_CRASHED);
    Some(State {
        sequence: field(16),
        clean: page[10] != 0,
        committed_batch: field(24),
        crashed_batches: (0..count).map(|number| field(40 + number * 8)).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_comes_back_and_a_torn_one_is_none() {
        let state = State { sequence: 7, clean: true, committed_batch: 9, crashed_batches: vec![3, 5] };
        let page = encode(&state);
        assert_eq!(decode(&page), Some(state));
        for at in [0, 8, 10, 16, 40, 511, 512, CHECKSUM_AT, PAGE - 1] {
            let mut torn = page;
            torn[at] ^= 1;
            assert_eq!(decode(&torn), None, "byte {at}");
        }
        assert_eq!(decode(&[0; PAGE]), None);
    }
}
