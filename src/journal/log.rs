//! One of the two log files: its header page and its position (format.md, "The journal").

use super::crashed::{Crashed, MAX_RANGES};
use crate::format::PAGE;
use crate::store::{StoreDir, StoreFile};
use crate::units::StoredOffset;
use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Instant;

const MAGIC: [u8; 8] = *b"kmsfs/J\0";
/// Records of version 1 spell out every zero; otherwise they are the same.
const VERSION: u16 = 2;
const OLDEST_VERSION: u16 = 1;
const CHECKSUM_AT: usize = PAGE - 32;
const RANGES_AT: usize = 40;

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
    pub crashed: Crashed,
}

/// A log file in use.
pub(super) struct Log {
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
    /// They are too many to be named.
    pub touched_many: bool,
    /// When the first record of this log was appended, since it began anew.
    pub began: Option<Instant>,
}

impl Log {
    pub fn new(file: Arc<dyn StoreFile>) -> io::Result<Self> {
        let start = PAGE as u64;
        let capacity = file.inode().stat()?.len.0;
        let touched = HashMap::new();
        let (sequence, unapplied, touched_many) = (0, 0, false);
        let began = None;
        Ok(Self { file, sequence, capacity, position: start, synced: start, unapplied, touched, touched_many, began })
    }

    /// Begins the log anew with this header; durable when it returns.
    pub fn recycle(&mut self, state: &State) -> io::Result<()> {
        self.file.write_at(&encode(state), StoredOffset(0))?;
        self.file.sync(true)?;
        self.sequence = state.sequence;
        self.position = PAGE as u64;
        self.synced = self.position;
        self.began = None;
        Ok(())
    }

    /// Makes sure that nothing of the log is ever replayed again; durable when it returns.
    pub fn retire(&mut self) -> io::Result<()> {
        self.file.write_at(&[0; PAGE], StoredOffset(0))?;
        self.file.sync(true)
    }
}

/// Makes a log file: zeros all over, so that later a sync of it moves data only and no metadata.
pub(super) fn create(dir: &dyn StoreDir, name: &[u8], len: u64) -> io::Result<()> {
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

/// The header page of a log.
pub fn encode(state: &State) -> [u8; PAGE] {
    encode_as(VERSION, state)
}

fn encode_as(version: u16, state: &State) -> [u8; PAGE] {
    let mut page = [0; PAGE];
    let ranges = state.crashed.ranges();
    page[..8].copy_from_slice(&MAGIC);
    page[8..10].copy_from_slice(&version.to_le_bytes());
    page[10] = state.clean.into();
    page[16..24].copy_from_slice(&state.sequence.to_le_bytes());
    page[24..32].copy_from_slice(&state.committed_batch.to_le_bytes());
    page[32..36].copy_from_slice(&(ranges.len() as u32).to_le_bytes());
    for ((first, last), field) in ranges.iter().zip(page[RANGES_AT..].chunks_exact_mut(16)) {
        field[..8].copy_from_slice(&first.to_le_bytes());
        field[8..].copy_from_slice(&last.to_le_bytes());
    }
    let checksum = blake3::hash(&page[..CHECKSUM_AT]);
    page[CHECKSUM_AT..].copy_from_slice(checksum.as_bytes());
    page
}

/// The state in a header page, `None` if the page is not whole: a log that is being recycled, or was never used.
///
/// # Errors
/// A page that is whole and says something that this version does not know. It must not count as empty.
pub fn decode(page: &[u8; PAGE]) -> io::Result<Option<State>> {
    let field = |at: usize| page[at..].first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
    if page[..8] != MAGIC || *blake3::hash(&page[..CHECKSUM_AT]).as_bytes() != page[CHECKSUM_AT..] {
        return Ok(None);
    }
    let version = u16::from_le_bytes([page[8], page[9]]);
    if !(OLDEST_VERSION..=VERSION).contains(&version) {
        let message =
            format!("the journal has version {version}, and this program knows {OLDEST_VERSION} to {VERSION} only");
        return Err(io::Error::new(io::ErrorKind::Unsupported, message));
    }
    let count = (field(32) as u32 as usize).min(MAX_RANGES + 1);
    let ranges = (0..count).map(|number| (field(RANGES_AT + number * 16), field(RANGES_AT + number * 16 + 8)));
    let state = Crashed::from_ranges(ranges.collect()).map(|crashed| State {
        sequence: field(16),
        clean: page[10] != 0,
        committed_batch: field(24),
        crashed,
    });
    // Everything that is reserved has to be zero, so there is one page for each state.
    match state {
        Some(state) if encode_as(version, &state) == *page => Ok(Some(state)),
        _ => {
            Err(io::Error::new(io::ErrorKind::Unsupported, "the journal's header says what this program does not know"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_comes_back_and_a_torn_one_is_none() {
        let crashed = Crashed::from_ranges(vec![(3, 4), (7, 8)]).unwrap();
        let state = State { sequence: 7, clean: true, committed_batch: 9, crashed };
        let page = encode(&state);
        assert_eq!(decode(&page).unwrap(), Some(state));
        for at in [0, 8, 10, 16, 40, 511, 512, CHECKSUM_AT, PAGE - 1] {
            let mut torn = page;
            torn[at] ^= 1;
            assert_eq!(decode(&torn).unwrap(), None, "byte {at}");
        }
        assert_eq!(decode(&[0; PAGE]).unwrap(), None);
    }

    #[test]
    fn a_header_of_the_version_before_is_read() {
        let state = State { sequence: 7, ..State::default() };
        assert_eq!(decode(&encode_as(1, &state)).unwrap(), Some(state));
    }

    #[test]
    fn a_whole_header_of_another_version_is_refused_and_not_taken_for_an_empty_log() {
        for (at, what) in [(9, "version 258"), (11, "does not know"), (33, "does not know"), (4000, "does not know")] {
            let mut page = encode(&State { sequence: 7, ..State::default() });
            page[at] ^= 1;
            let checksum = blake3::hash(&page[..CHECKSUM_AT]);
            page[CHECKSUM_AT..].copy_from_slice(checksum.as_bytes());
            let error = decode(&page).unwrap_err();
            assert!(error.to_string().contains(what), "byte {at}: {error}");
        }
    }
}
