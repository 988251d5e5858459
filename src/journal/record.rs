//! The records of the log (format.md, "The journal"): pure encoding and decoding.

use super::Target;
use crate::format::tags::BLOCK_LEN;
use crate::units::{FileId, StoredOffset};
use std::ops::{Deref, Range};
use std::sync::Arc;

/// What every record begins with.
pub const MAGIC: [u8; 4] = *b"kJr1";
/// Records begin at multiples of this, so that a search for one after damage has few places to look.
pub const ALIGN: usize = 64;
/// Bytes of a record before its payload.
pub const HEAD_LEN: usize = 64;
const KIND_BATCH: u32 = 1;
const KIND_UPDATE: u32 = 2;
/// Bytes of a batch record.
pub const BATCH_LEN: usize = HEAD_LEN + ALIGN;

/// In the length of a write: it is so many zeros, which are not in the log.
const ZEROS_FLAG: u32 = 1 << 31;
/// Fewer zeros than this stand in the log as they are: the two lengths around them would take as much.
const LEAST_ZEROS: usize = 32;
static ZEROS: [u8; BLOCK_LEN] = [0; BLOCK_LEN];

/// What is put in place by a write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// These bytes.
    Bytes(Arc<[u8]>),
    /// So many zeros, at most as many as a tag block has bytes.
    Zeros(usize),
}

impl Deref for Content {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Zeros(len) => &ZEROS[..*len],
        }
    }
}

impl From<&[u8]> for Content {
    fn from(bytes: &[u8]) -> Self {
        Self::Bytes(Arc::from(bytes))
    }
}

impl Content {
    /// Bytes that it takes in the log.
    fn encoded_len(&self) -> usize {
        12 + if let Self::Bytes(bytes) = self { bytes.len() } else { 0 }
    }
}

/// The writes that put a tag block in place, without the zeros of which a new one mostly consists.
pub fn without_zeros(at: StoredOffset, block: &[u8; BLOCK_LEN]) -> Vec<(StoredOffset, Content)> {
    let mut filled = Vec::<Range<usize>>::new();
    for word in (0..BLOCK_LEN).step_by(8).filter(|word| block[*word..word + 8] != [0; 8]) {
        match filled.last_mut() {
            Some(last) if word - last.end < LEAST_ZEROS => last.end = word + 8,
            _ => filled.push(word..word + 8),
        }
    }
    let (mut writes, mut end) = (Vec::new(), 0);
    for range in filled.into_iter().chain(std::iter::once(BLOCK_LEN..BLOCK_LEN)) {
        let place = |within: usize| StoredOffset(at.0 + within as u64);
        if range.start > end {
            writes.push((place(end), Content::Zeros(range.start - end)));
        }
        if !range.is_empty() {
            writes.push((place(range.start), block[range.clone()].into()));
        }
        end = range.end;
    }
    writes
}

/// One atomic change of one file.
#[derive(Clone, Debug, Default)]
pub struct Update {
    /// The length of the stored file after it.
    pub stored_len: StoredOffset,
    /// What to put in place.
    pub writes: Vec<(StoredOffset, Content)>,
    /// Ranges that hold nothing any more: what earlier records wrote there must not be replayed.
    pub voids: Vec<(StoredOffset, u64)>,
}

/// Where a record stands; part of its checksum, so that an old record is never taken for a new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The log's sequence number.
    pub sequence: u64,
    /// Its position in the log.
    pub position: u64,
    /// Up to where the log was durable when it was appended.
    pub synced: u64,
}

/// A record as it was read.
#[derive(Debug)]
pub enum Record {
    /// Everything of this batch is durable.
    Batch(u64),
    /// A change.
    Update(Target, Update),
}

/// Bytes that an update takes in the log.
pub fn update_len(target: &Target, update: &Update) -> usize {
    let writes: usize = update.writes.iter().map(|(_, content)| content.encoded_len()).sum();
    let payload = 16 + 8 + 8 + 12 + target.path.len() + writes + update.voids.len() * 16;
    (HEAD_LEN + payload).next_multiple_of(ALIGN)
}

/// Appends a batch record.
pub fn encode_batch(batch: u64, place: &Place, log: &mut Vec<u8>) {
    encode(KIND_BATCH, place, log, |log| log.extend_from_slice(&batch.to_le_bytes()));
}

/// Appends an update record.
pub fn encode_update(target: &Target, update: &Update, place: &Place, log: &mut Vec<u8>) {
    encode(KIND_UPDATE, place, log, |log| {
        log.extend_from_slice(&target.file.0);
        log.extend_from_slice(&target.ino.to_le_bytes());
        log.extend_from_slice(&update.stored_len.0.to_le_bytes());
        for count in [target.path.len(), update.writes.len(), update.voids.len()] {
            log.extend_from_slice(&(count as u32).to_le_bytes());
        }
        log.extend_from_slice(&target.path);
        for (offset, len) in &update.voids {
            log.extend_from_slice(&offset.0.to_le_bytes());
            log.extend_from_slice(&len.to_le_bytes());
        }
        for (offset, content) in &update.writes {
            let (flag, bytes) = match content {
                Content::Bytes(bytes) => (0, &bytes[..]),
                Content::Zeros(_) => (ZEROS_FLAG, &[][..]),
            };
            log.extend_from_slice(&offset.0.to_le_bytes());
            log.extend_from_slice(&(content.len() as u32 | flag).to_le_bytes());
            log.extend_from_slice(bytes);
        }
    });
}

/// Head: magic 4, kind 4, payload length 8, sequence 8, position 8, synced 8, checksum 24; then the payload.
fn encode(kind: u32, place: &Place, log: &mut Vec<u8>, payload: impl FnOnce(&mut Vec<u8>)) {
    let start = log.len();
    log.resize(start + HEAD_LEN, 0);
    payload(log);
    let len = log.len() - start - HEAD_LEN;
    let head = &mut log[start..start + HEAD_LEN];
    head[..4].copy_from_slice(&MAGIC);
    head[4..8].copy_from_slice(&kind.to_le_bytes());
    head[8..16].copy_from_slice(&(len as u64).to_le_bytes());
    head[16..24].copy_from_slice(&place.sequence.to_le_bytes());
    head[24..32].copy_from_slice(&place.position.to_le_bytes());
    head[32..40].copy_from_slice(&place.synced.to_le_bytes());
    let checksum = checksum(&log[start..]);
    log[start + 40..start + HEAD_LEN].copy_from_slice(&checksum);
    let end = (log.len() - start).next_multiple_of(ALIGN) + start;
    log.resize(end, 0);
}

fn checksum(record: &[u8]) -> [u8; 24] {
    let hash = blake3::Hasher::new().update(&record[..40]).update(&record[HEAD_LEN..]).finalize();
    let mut short = [0; 24];
    short.copy_from_slice(&hash.as_bytes()[..24]);
    short
}

/// The record at the beginning of `bytes`, where it stands, and how many bytes it takes; `None` if there is no
/// whole record.
pub fn decode(bytes: &[u8]) -> Option<(Record, Place, usize)> {
    let mut head = Fields(bytes.get(..HEAD_LEN)?);
    if head.take(4)? != MAGIC {
        return None;
    }
    let kind = head.u32()?;
    let len = usize::try_from(head.u64()?).ok()?;
    let place = Place { sequence: head.u64()?, position: head.u64()?, synced: head.u64()? };
    let end = HEAD_LEN.checked_add(len)?;
    let record = bytes.get(..end)?;
    if checksum(record) != record[40..HEAD_LEN] {
        return None;
    }
    let mut fields = Fields(&record[HEAD_LEN..]);
    let decoded = match kind {
        KIND_BATCH => Record::Batch(fields.u64()?),
        KIND_UPDATE => decode_update(&mut fields)?,
        _ => return None,
    };
    if !fields.0.is_empty() {
        return None;
    }
    Some((decoded, place, end.next_multiple_of(ALIGN)))
}

fn decode_update(fields: &mut Fields<'_>) -> Option<Record> {
    let file = FileId(fields.take(16)?.try_into().ok()?);
    let ino = fields.u64()?;
    let stored_len = StoredOffset(fields.u64()?);
    let [path, writes, voids] = [fields.u32()?, fields.u32()?, fields.u32()?];
    let path = fields.take(path as usize)?.to_vec();
    let voids = (0..voids).map(|_| Some((StoredOffset(fields.u64()?), fields.u64()?))).collect::<Option<_>>()?;
    let writes = (0..writes)
        .map(|_| {
            let offset = StoredOffset(fields.u64()?);
            let len = fields.u32()?;
            let zeros = (len & !ZEROS_FLAG) as usize;
            let content = match len & ZEROS_FLAG {
                0 => Content::from(fields.take(len as usize)?),
                _ if zeros <= BLOCK_LEN => Content::Zeros(zeros),
                _ => return None,
            };
            Some((offset, content))
        })
        .collect::<Option<_>>()?;
    Some(Record::Update(Target { file, ino, path }, Update { stored_len, writes, voids }))
}

struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(count)?;
        self.0 = tail;
        Some(head)
    }

    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.take(4)?.try_into().ok()?))
    }

    fn u64(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.take(8)?.try_into().ok()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PLACE: Place = Place { sequence: 3, position: 4096, synced: 4096 };

    fn sample() -> (Target, Update) {
        let target = Target { file: FileId([1; 16]), ino: 2, path: b"a/b".to_vec() };
        let update = Update {
            stored_len: StoredOffset(12_345),
            writes: vec![(StoredOffset(0), [7; 4096][..].into()), (StoredOffset(8192), b"end"[..].into())],
            voids: vec![(StoredOffset(4096), 4096)],
        };
        (target, update)
    }

    #[test]
    fn records_come_back_and_take_the_length_that_was_announced() {
        let (target, update) = sample();
        let mut log = Vec::new();
        encode_update(&target, &update, &PLACE, &mut log);
        assert_eq!(log.len(), update_len(&target, &update));
        let (record, place, len) = decode(&log).unwrap();
        assert_eq!((place, len), (PLACE, log.len()));
        let Record::Update(found, changed) = record else { panic!("{record:?}") };
        assert_eq!(found, target);
        assert_eq!(
            (changed.stored_len, changed.writes, changed.voids),
            (update.stored_len, update.writes, update.voids)
        );

        let mut log = Vec::new();
        encode_batch(9, &PLACE, &mut log);
        assert_eq!(log.len(), BATCH_LEN);
        assert!(matches!(decode(&log), Some((Record::Batch(9), PLACE, BATCH_LEN))));
    }

    /// What a file that consists of zeros looks like after an update.
    fn applied(update: &Update, len: usize) -> Vec<u8> {
        let mut file = vec![0xff; len];
        for (offset, bytes) in &update.writes {
            file[offset.0 as usize..][..bytes.len()].copy_from_slice(bytes);
        }
        file
    }

    #[test]
    fn of_a_block_that_is_nearly_empty_the_log_has_what_is_not_zero() {
        let mut block = [0; BLOCK_LEN];
        block[80..120].fill(1);
        block[BLOCK_LEN - 32..].fill(2);
        let (target, mut update) = sample();
        update.writes = without_zeros(StoredOffset(4096), &block);
        let mut log = Vec::new();
        encode_update(&target, &update, &PLACE, &mut log);
        assert_eq!(log.len(), update_len(&target, &update));
        assert!(log.len() < 384, "{} bytes", log.len());
        let Some((Record::Update(_, found), ..)) = decode(&log) else { panic!("no record") };
        assert_eq!(found.writes.len(), 4, "zeros, an entry, zeros, a MAC");
        assert_eq!(applied(&found, 4096 + BLOCK_LEN)[4096..], block);
    }

    #[test]
    fn zeros_beyond_a_block_are_no_record() {
        let (target, mut update) = sample();
        update.writes = without_zeros(StoredOffset(4096), &[0; BLOCK_LEN]);
        let mut log = Vec::new();
        encode(KIND_UPDATE, &PLACE, &mut log, |log| {
            let mut whole = Vec::new();
            encode_update(&target, &update, &PLACE, &mut whole);
            let length_at = HEAD_LEN + 16 + 8 + 8 + 12 + target.path.len() + update.voids.len() * 16 + 8;
            assert_eq!(whole[length_at..length_at + 4], (ZEROS_FLAG | BLOCK_LEN as u32).to_le_bytes());
            log.extend_from_slice(&whole[HEAD_LEN..length_at]);
            log.extend_from_slice(&(ZEROS_FLAG | (BLOCK_LEN as u32 + 1)).to_le_bytes());
        });
        assert!(decode(&log).is_none());
    }

    proptest! {
        #[test]
        fn any_block_comes_back(set in prop::collection::vec((0..BLOCK_LEN, 1..600_usize, any::<u8>()), 0..40)) {
            let mut block = [0; BLOCK_LEN];
            for (at, len, byte) in set {
                block[at..BLOCK_LEN.min(at + len)].fill(byte);
            }
            let (target, mut update) = sample();
            update.writes = without_zeros(StoredOffset(64), &block);
            let mut log = Vec::new();
            encode_update(&target, &update, &PLACE, &mut log);
            prop_assert_eq!(log.len(), update_len(&target, &update));
            let Some((Record::Update(_, found), ..)) = decode(&log) else { panic!("no record") };
            prop_assert_eq!(&applied(&found, 64 + BLOCK_LEN)[64..], &block[..]);
        }

        #[test]
        fn a_changed_record_is_no_record(at: prop::sample::Index, bit in 0..8_u32) {
            let (target, update) = sample();
            let mut log = Vec::new();
            encode_update(&target, &update, &PLACE, &mut log);
            // The padding behind the payload is not part of the record.
            let at = at.index(HEAD_LEN + 16 + 8 + 8 + 12 + 3 + 2 * 12 + 4096 + 3 + 16);
            log[at] ^= 1 << bit;
            prop_assert!(decode(&log).is_none());
        }

        #[test]
        fn no_bytes_make_the_parser_panic(bytes: Vec<u8>) {
            let _ = decode(&bytes);
            let mut head = MAGIC.to_vec();
            head.extend_from_slice(&bytes);
            let _ = decode(&head);
        }
    }
}
