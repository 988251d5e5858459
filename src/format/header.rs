//! A file's header page: who can open the file, how long it is, and what authenticates the rest (format.md,
//! "The header page"). [`Header::parse`] checks the form; only [`Header::verify`] leads to a [`VerifiedPage`],
//! and only that holds sizes and tags to rely on.

use super::tags::{ENTRIES_PER_HEADER, ENTRY_LEN, Mac, decode_entry, encode_entry};
use super::{ChunkSize, Malformed, PAGE, Reader};
use crate::crypto::Secret32;
use crate::crypto::cipher::{NonceAndTag, VALUE_OVERHEAD};
use crate::kms::{MAX_WRAPPED_LEN, WrapAlgorithm};
use crate::units::{Epoch, FileId, KekGeneration, PlainOffset};

const MAGIC: [u8; 8] = *b"kmsfs/F\0";
const VERSION: u16 = 1;
const WRAPS_AT: usize = 128;
const MAC_AT: usize = 1504;
const ENTRIES_AT: usize = 1536;
const _: () = assert!(ENTRIES_AT + ENTRIES_PER_HEADER * ENTRY_LEN == PAGE);
const RESEALING_AT: usize = WRAPS_AT + 2 * MAX_WRAPPED_LEN;
/// Bytes of a sealed DEK: nonce, ciphertext, tag.
pub const SEALED_DEK_LEN: usize = 32 + VALUE_OVERHEAD;
const _: () = assert!(RESEALING_AT + 16 + SEALED_DEK_LEN <= MAC_AT);
/// Some chunks are still sealed by the key before.
const FEATURE_RESEALING: u16 = 1;

/// The bytes of a header page.
pub type Page = Box<[u8; PAGE]>;

/// An envelope as a header carries it: which KEK of the volume wrapped it, how, and the wrapped bytes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Envelope {
    /// The KEK, by its number in the volume record.
    pub kek: KekGeneration,
    /// How it was wrapped.
    pub algorithm: WrapAlgorithm,
    /// The wrapped bytes, 1 to 512.
    pub blob: Vec<u8>,
}

/// What a header says while its file goes from one DEK to the next (format.md, "Rekeying").
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resealing {
    /// The watermark: chunks before this one are sealed by the file's DEK.
    pub from: u64,
    /// Chunks from this one on are too.
    pub to: u64,
    /// The epoch of those between.
    pub epoch: Epoch,
    /// Their DEK, sealed by the file's.
    pub sealed: [u8; SEALED_DEK_LEN],
}

impl Resealing {
    /// Whether the DEK before holds for this chunk.
    pub fn holds(&self, chunk: u64) -> bool {
        (self.from..self.to).contains(&chunk)
    }
}

/// The fields of a header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// The file's chunk size; the same as its volume's.
    pub chunk_size: ChunkSize,
    /// The file's name for life.
    pub file: FileId,
    /// How often it was rekeyed.
    pub epoch: Epoch,
    /// The wrapped envelope.
    pub envelope: Envelope,
    /// The same secret wrapped by a recovery KEK, if the volume has one.
    pub recovery: Option<Envelope>,
    /// The length of the plaintext.
    pub len: PlainOffset,
    /// Counts the versions of this header.
    pub generation: u64,
    /// 0, or the batch of new files with which this header becomes valid (format.md, "New files").
    pub batch: u64,
    /// The MAC of tag block 0.
    pub root: Mac,
    /// When the DEK was made, in seconds since 1970; 0 if that is not known.
    pub made: u64,
    /// Which chunks are sealed by the DEK before, if there are any.
    pub resealing: Option<Box<Resealing>>,
}

impl Header {
    /// Reads the fields of a header page; nothing of them is authenticated yet.
    ///
    /// # Errors
    /// [`Malformed`] if the page is not a header of a version that is known.
    pub fn parse(page: &[u8; PAGE]) -> Result<Self, Malformed> {
        let mut reader = Reader(page);
        if reader.array()? != MAGIC {
            return Err(Malformed::Magic);
        }
        match reader.u16()? {
            VERSION => (),
            other => return Err(Malformed::Version(other)),
        }
        let features = reader.u16()?;
        if features & !FEATURE_RESEALING != 0 {
            return Err(Malformed::Features((features & !FEATURE_RESEALING).into()));
        }
        let chunk_size = ChunkSize::from_log2(reader.u8()?).ok_or(Malformed::Field("chunk size"))?;
        reader.zeros(3, "reserved")?;
        let file = FileId(reader.array()?);
        let epoch = Epoch(reader.u32()?);
        let slots = [WrapSlot::parse(&mut reader)?, WrapSlot::parse(&mut reader)?];
        let from = reader.u64()?;
        let len = PlainOffset(reader.u64()?);
        if len.0 > super::geometry::MAX_PLAIN_LEN {
            return Err(Malformed::Field("length"));
        }
        let generation = reader.u64()?;
        let batch = reader.u64()?;
        let root = reader.array()?;
        let made = reader.u64()?;
        reader.zeros(4, "reserved")?;
        let [envelope, recovery] = slots.map(|slot| slot.read(&mut reader));
        let envelope = envelope?.ok_or(Malformed::Field("envelope"))?;
        let recovery = recovery?;
        let previous = Epoch(reader.u32()?);
        reader.zeros(4, "reserved")?;
        let to = reader.u64()?;
        let sealed = reader.array()?;
        reader.zeros(MAC_AT - RESEALING_AT - 16 - SEALED_DEK_LEN, "reserved")?;
        let resealing = Resealing { from, to, epoch: previous, sealed };
        let resealing = if features & FEATURE_RESEALING == 0 {
            if resealing != (Resealing { from: 0, to: 0, epoch: Epoch(0), sealed: [0; SEALED_DEK_LEN] }) {
                return Err(Malformed::Field("reserved"));
            }
            None
        } else if from < to && to <= super::geometry::MAX_PLAIN_LEN && previous < epoch {
            Some(Box::new(resealing))
        } else {
            return Err(Malformed::Field("watermark"));
        };
        Ok(Self { chunk_size, file, epoch, envelope, recovery, len, generation, batch, root, made, resealing })
    }

    /// Verifies the MAC of the page that this header was parsed from.
    ///
    /// # Errors
    /// [`Malformed::Mac`] unless this very page was made with this key.
    pub fn verify(self, key: &Secret32, page: Page) -> Result<VerifiedPage, Malformed> {
        let mut expected = [0; 32];
        expected.copy_from_slice(&page[MAC_AT..ENTRIES_AT]);
        // blake3::Hash compares in constant time.
        if blake3::Hash::from(mac(key, &page)) == blake3::Hash::from(expected) {
            Ok(VerifiedPage { header: self, page })
        } else {
            Err(Malformed::Mac)
        }
    }

    fn write_fields(&self, page: &mut [u8; PAGE]) {
        let mut fields = Vec::with_capacity(MAC_AT);
        fields.extend_from_slice(&MAGIC);
        fields.extend_from_slice(&VERSION.to_le_bytes());
        let resealing = self.resealing.as_deref();
        let features = if resealing.is_some() { FEATURE_RESEALING } else { 0 };
        fields.extend_from_slice(&features.to_le_bytes());
        fields.push(self.chunk_size.log2());
        fields.extend_from_slice(&[0; 3]);
        fields.extend_from_slice(&self.file.0);
        fields.extend_from_slice(&self.epoch.0.to_le_bytes());
        for envelope in [Some(&self.envelope), self.recovery.as_ref()] {
            WrapSlot::of(envelope).write(&mut fields);
        }
        fields.extend_from_slice(&resealing.map_or(0, |resealing| resealing.from).to_le_bytes());
        fields.extend_from_slice(&self.len.0.to_le_bytes());
        fields.extend_from_slice(&self.generation.to_le_bytes());
        fields.extend_from_slice(&self.batch.to_le_bytes());
        fields.extend_from_slice(&self.root);
        fields.extend_from_slice(&self.made.to_le_bytes());
        fields.resize(WRAPS_AT, 0);
        for envelope in [Some(&self.envelope), self.recovery.as_ref()] {
            let blob = envelope.map_or(&[][..], |envelope| &envelope.blob);
            fields.extend_from_slice(blob);
            fields.resize(fields.len() + MAX_WRAPPED_LEN - blob.len(), 0);
        }
        if let Some(resealing) = resealing {
            fields.extend_from_slice(&resealing.epoch.0.to_le_bytes());
            fields.extend_from_slice(&[0; 4]);
            fields.extend_from_slice(&resealing.to.to_le_bytes());
            fields.extend_from_slice(&resealing.sealed);
        }
        fields.resize(MAC_AT, 0);
        page[..MAC_AT].copy_from_slice(&fields);
    }
}

/// The fixed part of an envelope's slot: KEK generation 4, algorithm 1, reserved 1, length 2.
struct WrapSlot {
    kek: KekGeneration,
    algorithm: u8,
    len: usize,
}

impl WrapSlot {
    fn parse(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        let kek = KekGeneration(reader.u32()?);
        let algorithm = reader.u8()?;
        reader.zeros(1, "reserved")?;
        let len = usize::from(reader.u16()?);
        if len > MAX_WRAPPED_LEN || (len == 0) != (algorithm == 0) || (len == 0 && kek.0 != 0) {
            return Err(Malformed::Field("envelope"));
        }
        Ok(Self { kek, algorithm, len })
    }

    fn of(envelope: Option<&Envelope>) -> Self {
        envelope.map_or(Self { kek: KekGeneration(0), algorithm: 0, len: 0 }, |envelope| Self {
            kek: envelope.kek,
            algorithm: envelope.algorithm as u8,
            len: envelope.blob.len(),
        })
    }

    fn write(&self, fields: &mut Vec<u8>) {
        fields.extend_from_slice(&self.kek.0.to_le_bytes());
        fields.extend_from_slice(&[self.algorithm, 0]);
        fields.extend_from_slice(&(self.len as u16).to_le_bytes());
    }

    fn read(self, reader: &mut Reader<'_>) -> Result<Option<Envelope>, Malformed> {
        let blob = reader.bytes(self.len)?.to_vec();
        reader.zeros(MAX_WRAPPED_LEN - self.len, "envelope")?;
        if self.len == 0 {
            return Ok(None);
        }
        let algorithm = WrapAlgorithm::from_code(self.algorithm).ok_or(Malformed::Field("wrap algorithm"))?;
        Ok(Some(Envelope { kek: self.kek, algorithm, blob }))
    }
}

/// A header page that was made with the file's own key: its fields and entries can be relied on.
pub struct VerifiedPage {
    header: Header,
    page: Page,
}

impl VerifiedPage {
    /// The page of a new file, with holes only.
    pub fn new(header: Header) -> Self {
        Self { header, page: Box::new([0; PAGE]) }
    }

    /// The fields.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The fields, to change them; they reach the bytes with [`seal`](Self::seal).
    pub fn header_mut(&mut self) -> &mut Header {
        &mut self.header
    }

    /// The entry of one of the first 64 chunks, `None` for a hole.
    pub fn entry(&self, number: usize) -> Option<NonceAndTag> {
        decode_entry(&self.page[ENTRIES_AT + number * ENTRY_LEN..][..ENTRY_LEN])
    }

    /// Sets an entry, or makes it a hole.
    pub fn set_entry(&mut self, number: usize, entry: Option<&NonceAndTag>) {
        encode_entry(entry, &mut self.page[ENTRIES_AT + number * ENTRY_LEN..][..ENTRY_LEN]);
    }

    /// The first bytes of the MAC with which the page was sealed last.
    pub fn sealed_mac(&self) -> [u8; 4] {
        std::array::from_fn(|at| self.page[MAC_AT + at])
    }

    /// The page as it is stored, with its MAC.
    pub fn seal(&mut self, key: &Secret32) -> &[u8; PAGE] {
        self.header.write_fields(&mut self.page);
        let mac = mac(key, &self.page);
        self.page[MAC_AT..ENTRIES_AT].copy_from_slice(&mac);
        &self.page
    }
}

/// The MAC over the whole page with zeros in its own place: in one piece, BLAKE3 takes its four chunks side by side.
fn mac(key: &Secret32, page: &[u8; PAGE]) -> Mac {
    let mut page = *page;
    page[MAC_AT..ENTRIES_AT].fill(0);
    *blake3::keyed_hash(key.expose(), &page).as_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key() -> Secret32 {
        Secret32::take(&mut [3; 32])
    }

    fn header() -> Header {
        Header {
            chunk_size: ChunkSize::DEFAULT,
            file: FileId([1; 16]),
            epoch: Epoch(2),
            envelope: Envelope { kek: KekGeneration(3), algorithm: WrapAlgorithm::RsaOaep256, blob: vec![4; 256] },
            recovery: Some(Envelope {
                kek: KekGeneration(5),
                algorithm: WrapAlgorithm::LocalAes256Gcm,
                blob: vec![6; 72],
            }),
            len: PlainOffset(7),
            generation: 8,
            batch: 9,
            root: [10; 32],
            made: 11,
            resealing: None,
        }
    }

    fn in_between() -> Header {
        let resealing = Resealing { from: 12, to: 13, epoch: Epoch(1), sealed: [14; SEALED_DEK_LEN] };
        Header { resealing: Some(Box::new(resealing)), ..header() }
    }

    #[test]
    fn a_header_comes_back_as_it_was_sealed() {
        for header in [header(), Header { recovery: None, made: 0, ..header() }, in_between()] {
            let mut page = VerifiedPage::new(header.clone());
            let entry = NonceAndTag { nonce: [1; 24], tag: [2; 16] };
            page.set_entry(63, Some(&entry));
            let bytes = Box::new(*page.seal(&key()));
            let again = Header::parse(&bytes).unwrap().verify(&key(), bytes).unwrap();
            assert_eq!(again.header(), &header);
            assert_eq!(again.entry(63), Some(entry));
            assert_eq!(again.entry(62), None);
        }
    }

    #[test]
    fn every_byte_of_the_page_is_authenticated() {
        for header in [header(), in_between()] {
            let bytes = *VerifiedPage::new(header).seal(&key());
            for at in 0..PAGE {
                let mut changed = Box::new(bytes);
                changed[at] ^= 0x10;
                let accepted = Header::parse(&changed).is_ok_and(|header| header.verify(&key(), changed).is_ok());
                assert!(!accepted, "byte {at} can be changed unnoticed");
            }
        }
    }

    #[test]
    fn a_page_of_zeros_and_unknown_versions_and_flags_are_refused_by_name() {
        assert_eq!(Header::parse(&[0; PAGE]), Err(Malformed::Magic));
        let mut page = *VerifiedPage::new(header()).seal(&key());
        page[8] = 2;
        assert_eq!(Header::parse(&page), Err(Malformed::Version(2)));
        page[8] = 1;
        page[10] = 4;
        assert_eq!(Header::parse(&page), Err(Malformed::Features(4)));
        // What belongs to the bit, with and without it.
        page[10] = 1;
        assert_eq!(Header::parse(&page), Err(Malformed::Field("watermark")));
        let mut page = *VerifiedPage::new(in_between()).seal(&key());
        page[10] = 0;
        assert_eq!(Header::parse(&page), Err(Malformed::Field("reserved")));
    }

    proptest! {
        #[test]
        fn no_page_makes_the_parser_panic_and_what_it_accepts_it_writes_back(
            changes in prop::collection::vec((0..1504_usize, any::<u8>()), 0..6), between: bool
        ) {
            let header = if between { in_between() } else { header() };
            let mut page = Box::new(*VerifiedPage::new(header).seal(&key()));
            for (at, byte) in changes {
                page[at] = byte;
            }
            if let Ok(header) = Header::parse(&page) {
                let mut written = [0; PAGE];
                header.write_fields(&mut written);
                prop_assert_eq!(&written[..MAC_AT], &page[..MAC_AT]);
            }
        }
    }
}
