//! The volume record, `volume.kmsfs`: what a volume is, which KEKs can open it, and the volume key wrapped by
//! each of them (format.md, "The volume record"). Parsing needs no key; [`VolumeRecord::verify`] does.

use super::{ChunkSize, Malformed, Reader};
use crate::crypto::Secret32;
use crate::kms::{KekId, KekRef, MAX_WRAPPED_LEN, WrapAlgorithm, Wrapped};
use crate::units::{Epoch, KekGeneration, VolumeId};

const MAGIC: [u8; 8] = *b"kmsfs/V\0";
const VERSION: u16 = 1;
const MAC_LEN: usize = 32;
/// The most bytes that a record can have; a longer file is not read at all.
pub const MAX_LEN: usize = 64 * 1024;
/// The most KEKs that a record can list.
pub const MAX_KEKS: usize = 64;
/// The longest KEK id, and the longest reference to one, in bytes.
const MAX_KEK_ID_LEN: usize = 1024;

const FEATURE_PLAIN_NAMES: u32 = 1;
/// The newest epoch is beyond the floor, or a rekey is not through: both follow the KEKs.
const FEATURE_EPOCHS: u32 = 2;

/// What rekey has begun and has not come to its end (format.md, "Rekeying").
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RekeyState {
    /// None.
    #[default]
    None,
    /// One of everything.
    All,
    /// One of a part of the tree.
    Part,
}

/// What a KEK is there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KekRole {
    /// Opens the volume.
    Primary,
    /// Kept for the day on which the primary KEK is lost.
    Recovery,
}

impl KekRole {
    /// Its name in output.
    pub fn name(self) -> &'static str {
        match self {
            Self::Primary => "primary",
            Self::Recovery => "recovery",
        }
    }
}

/// One of the volume's KEKs, with the volume key wrapped by it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kek {
    /// Its number; file headers refer to it.
    pub generation: KekGeneration,
    /// What it is there for.
    pub role: KekRole,
    /// How its owner wrote it, with or without a version: what a mount connects to.
    pub reference: String,
    /// The volume key, wrapped, and the KEK's id with its version.
    pub volume_key: Wrapped,
}

/// The volume record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeRecord {
    /// The volume's name for life.
    pub id: VolumeId,
    /// Names in the tree are not encrypted.
    pub plain_names: bool,
    /// The chunk size of all files.
    pub chunk_size: ChunkSize,
    /// At most this many files share an envelope.
    pub files_per_envelope: u32,
    /// Headers wrapped by an older KEK are refused.
    pub kek_floor: KekGeneration,
    /// Headers of an earlier epoch are refused.
    pub epoch_floor: Epoch,
    /// The newest epoch, which new files get.
    pub epoch: Epoch,
    /// The rekey that is not through, to this epoch.
    pub rekey: RekeyState,
    /// Counts the versions of this record.
    pub generation: u64,
    /// The KEKs, by ascending generation; at least one is primary.
    pub keks: Vec<Kek>,
}

impl VolumeRecord {
    /// Reads a record, and its MAC, which [`verify`](Self::verify) checks once there is a key.
    ///
    /// # Errors
    /// [`Malformed`] if the bytes are not a record of a version that is known, or not in its one encoding.
    pub fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        if bytes.len() > MAX_LEN {
            return Err(Malformed::Length);
        }
        let body = &bytes[..bytes.len().checked_sub(MAC_LEN).ok_or(Malformed::Length)?];
        let mut reader = Reader(body);
        if reader.array()? != MAGIC {
            return Err(Malformed::Magic);
        }
        match reader.u16()? {
            VERSION => (),
            other => return Err(Malformed::Version(other)),
        }
        let chunk_size = ChunkSize::from_log2(reader.u8()?).ok_or(Malformed::Field("chunk size"))?;
        reader.zeros(1, "reserved")?;
        let features = reader.u32()?;
        let unknown = features & !(FEATURE_PLAIN_NAMES | FEATURE_EPOCHS);
        if unknown != 0 {
            return Err(Malformed::Features(unknown));
        }
        let id = VolumeId(reader.array()?);
        let files_per_envelope = reader.u32()?;
        if files_per_envelope == 0 {
            return Err(Malformed::Field("files per envelope"));
        }
        let kek_floor = KekGeneration(reader.u32()?);
        let epoch_floor = Epoch(reader.u32()?);
        let generation = reader.u64()?;
        let count = usize::from(reader.u16()?);
        if count == 0 || count > MAX_KEKS {
            return Err(Malformed::Field("number of KEKs"));
        }
        let keks = (0..count).map(|_| parse_kek(&mut reader)).collect::<Result<Vec<_>, _>>()?;
        let (mut epoch, mut rekey) = (epoch_floor, RekeyState::None);
        if features & FEATURE_EPOCHS != 0 {
            epoch = Epoch(reader.u32()?);
            rekey = match reader.u32()? {
                0 if epoch > epoch_floor => RekeyState::None,
                1 if epoch > epoch_floor => RekeyState::All,
                2 if epoch > epoch_floor => RekeyState::Part,
                _ => return Err(Malformed::Field("epochs")),
            };
        }
        if !reader.0.is_empty() {
            return Err(Malformed::Length);
        }
        let ascending = keks.windows(2).all(|pair| pair[0].generation < pair[1].generation);
        if !ascending || !keks.iter().any(|kek| kek.role == KekRole::Primary) {
            return Err(Malformed::Field("KEKs"));
        }
        Ok(Self {
            id,
            plain_names: features & FEATURE_PLAIN_NAMES != 0,
            chunk_size,
            files_per_envelope,
            kek_floor,
            epoch_floor,
            epoch,
            rekey,
            generation,
            keks,
        })
    }

    /// The record as it is stored, with its MAC.
    pub fn encode(&self, record_mac: &Secret32) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(1024);
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&[self.chunk_size.log2(), 0]);
        let has_epochs = self.epoch != self.epoch_floor;
        let features = if self.plain_names { FEATURE_PLAIN_NAMES } else { 0 };
        bytes.extend_from_slice(&(features | if has_epochs { FEATURE_EPOCHS } else { 0 }).to_le_bytes());
        bytes.extend_from_slice(&self.id.0);
        bytes.extend_from_slice(&self.files_per_envelope.to_le_bytes());
        bytes.extend_from_slice(&self.kek_floor.0.to_le_bytes());
        bytes.extend_from_slice(&self.epoch_floor.0.to_le_bytes());
        bytes.extend_from_slice(&self.generation.to_le_bytes());
        bytes.extend_from_slice(&(self.keks.len() as u16).to_le_bytes());
        for kek in &self.keks {
            let role = match kek.role {
                KekRole::Primary => 0,
                KekRole::Recovery => 1,
            };
            bytes.extend_from_slice(&kek.generation.0.to_le_bytes());
            bytes.extend_from_slice(&[role, kek.volume_key.algorithm as u8]);
            for len in [kek.reference.len(), kek.volume_key.kek.0.len(), kek.volume_key.blob.len()] {
                bytes.extend_from_slice(&(len as u16).to_le_bytes());
            }
            bytes.extend_from_slice(kek.reference.as_bytes());
            bytes.extend_from_slice(kek.volume_key.kek.0.as_bytes());
            bytes.extend_from_slice(&kek.volume_key.blob);
        }
        if has_epochs {
            bytes.extend_from_slice(&self.epoch.0.to_le_bytes());
            let rekey = match self.rekey {
                RekeyState::None => 0_u32,
                RekeyState::All => 1,
                RekeyState::Part => 2,
            };
            bytes.extend_from_slice(&rekey.to_le_bytes());
        }
        let mac = blake3::keyed_hash(record_mac.expose(), &bytes);
        bytes.extend_from_slice(mac.as_bytes());
        bytes
    }

    /// Checks the MAC of the bytes that a record was parsed from.
    ///
    /// # Errors
    /// [`Malformed::Mac`] unless the bytes were written with this volume's key.
    pub fn verify(bytes: &[u8], record_mac: &Secret32) -> Result<(), Malformed> {
        let (body, mac) = bytes.split_last_chunk::<MAC_LEN>().ok_or(Malformed::Length)?;
        // blake3::Hash compares in constant time.
        if blake3::keyed_hash(record_mac.expose(), body) == blake3::Hash::from(*mac) {
            Ok(())
        } else {
            Err(Malformed::Mac)
        }
    }

    /// The KEK with this number.
    pub fn kek(&self, generation: KekGeneration) -> Option<&Kek> {
        self.keks.iter().find(|kek| kek.generation == generation)
    }

    /// The newest KEK of this role.
    pub fn newest_of(&self, role: KekRole) -> Option<&Kek> {
        self.keks.iter().rev().find(|kek| kek.role == role)
    }

    /// The KEK that opens the volume now: the newest primary one.
    pub fn newest(&self) -> &Kek {
        self.keks.iter().rev().find(|kek| kek.role == KekRole::Primary).unwrap_or(&self.keks[0])
    }
}

fn parse_kek(reader: &mut Reader<'_>) -> Result<Kek, Malformed> {
    let generation = KekGeneration(reader.u32()?);
    let role = match reader.u8()? {
        0 => KekRole::Primary,
        1 => KekRole::Recovery,
        _ => return Err(Malformed::Field("role of a KEK")),
    };
    let algorithm = WrapAlgorithm::from_code(reader.u8()?).ok_or(Malformed::Field("wrap algorithm"))?;
    let reference_len = usize::from(reader.u16()?);
    let id_len = usize::from(reader.u16()?);
    let blob_len = usize::from(reader.u16()?);
    let ids = 1..=MAX_KEK_ID_LEN;
    if !ids.contains(&reference_len) || !ids.contains(&id_len) || !(1..=MAX_WRAPPED_LEN).contains(&blob_len) {
        return Err(Malformed::Field("length of a KEK"));
    }
    let mut text = |len| String::from_utf8(reader.bytes(len)?.to_vec()).map_err(|_| Malformed::Field("KEK id"));
    let (reference, id) = (text(reference_len)?, text(id_len)?);
    if !KekRef::is_recordable(&reference) {
        // Nobody may have a command run, or a descriptor read, by writing to a volume's directory.
        return Err(Malformed::Field("KEK reference"));
    }
    let blob = reader.bytes(blob_len)?.to_vec();
    Ok(Kek { generation, role, reference, volume_key: Wrapped { kek: KekId(id), algorithm, blob } })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key() -> Secret32 {
        Secret32::take(&mut [3; 32])
    }

    fn kek(generation: u32, role: KekRole) -> Kek {
        let volume_key = Wrapped {
            kek: KekId(format!("https://myvault.vault.azure.net/keys/tenant/{generation:032x}")),
            algorithm: WrapAlgorithm::RsaOaep256,
            blob: vec![7; 256],
        };
        let reference = "https://myvault.vault.azure.net/keys/tenant".to_owned();
        Kek { generation: KekGeneration(generation), role, reference, volume_key }
    }

    fn record() -> VolumeRecord {
        VolumeRecord {
            id: VolumeId([1; 16]),
            plain_names: true,
            chunk_size: ChunkSize::DEFAULT,
            files_per_envelope: 256,
            kek_floor: KekGeneration(1),
            epoch_floor: Epoch(2),
            epoch: Epoch(4),
            rekey: RekeyState::Part,
            generation: 3,
            keks: vec![kek(0, KekRole::Primary), kek(4, KekRole::Primary), kek(5, KekRole::Recovery)],
        }
    }

    #[test]
    fn a_record_comes_back_as_it_was_encoded() {
        let bytes = record().encode(&key());
        assert_eq!(VolumeRecord::parse(&bytes), Ok(record()));
        for (epoch, rekey) in [(2, RekeyState::None), (3, RekeyState::None), (3, RekeyState::All)] {
            let record = VolumeRecord { epoch: Epoch(epoch), rekey, ..record() };
            assert_eq!(VolumeRecord::parse(&record.encode(&key())), Ok(record));
        }
        VolumeRecord::verify(&bytes, &key()).unwrap();
        assert_eq!(record().newest().generation, KekGeneration(4));
    }

    #[test]
    fn every_byte_is_authenticated_and_every_length_but_the_right_one_is_refused() {
        let bytes = record().encode(&key());
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            assert_eq!(VolumeRecord::verify(&changed, &key()), Err(Malformed::Mac), "byte {at}");
            assert!(VolumeRecord::parse(&bytes[..at]).is_err(), "length {at}");
        }
        assert!(VolumeRecord::parse(&[&bytes[..], &[0]].concat()).is_err());
    }

    #[test]
    fn a_record_that_names_a_command_or_a_descriptor_is_refused() {
        for reference in ["cmd:touch /tmp/x", "fd:3"] {
            let mut named = record();
            reference.clone_into(&mut named.keks[1].reference);
            let bytes = named.encode(&key());
            assert_eq!(VolumeRecord::parse(&bytes), Err(Malformed::Field("KEK reference")));
        }
    }

    #[test]
    fn an_unknown_feature_is_refused_by_its_bit() {
        let mut bytes = record().encode(&key());
        bytes[12] |= 0x40;
        assert_eq!(VolumeRecord::parse(&bytes), Err(Malformed::Features(0x40)));
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic_and_what_it_accepts_has_one_encoding(
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6)
        ) {
            let mut bytes = record().encode(&key());
            for (at, byte) in changes {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            if let Ok(parsed) = VolumeRecord::parse(&bytes) {
                let body = bytes.len() - MAC_LEN;
                prop_assert_eq!(&parsed.encode(&key())[..body], &bytes[..body]);
            }
        }
    }
}
