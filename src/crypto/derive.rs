//! Every key derivation of kmsfs, and every label, in one file. The labels and their outputs are frozen by the
//! tests below: a change of any of them makes existing volumes unreadable (format.md, "Keys").

use super::Secret32;
use crate::units::{Epoch, FileId, VolumeId};
use zeroize::Zeroizing;

const FILE_DEK: &str = "kmsfs v1 2026-11 file DEK";
const FILE_CHUNKS: &str = "kmsfs v1 2026-11 file chunks, XAES-256-GCM";
const FILE_HEADER_MAC: &str = "kmsfs v1 2026-11 file header MAC, BLAKE3 keyed";
const FILE_TAGS_MAC: &str = "kmsfs v1 2026-11 file tag block MAC, BLAKE3 keyed";
const FILE_PREVIOUS: &str = "kmsfs v1 2026-11 file previous DEK, XAES-256-GCM";
const VOLUME_RECORD_MAC: &str = "kmsfs v1 2026-11 volume record MAC, BLAKE3 keyed";
const VOLUME_NAMES: &str = "kmsfs v1 2026-11 volume names, AES-256-SIV";
const VOLUME_LONG_NAMES: &str = "kmsfs v1 2026-11 volume long name hash, BLAKE3 keyed";
const VOLUME_SYMLINKS: &str = "kmsfs v1 2026-11 volume symbolic links, XAES-256-GCM";
const VOLUME_XATTR_NAMES: &str = "kmsfs v1 2026-11 volume xattr names, AES-256-SIV";
const VOLUME_XATTR_VALUES: &str = "kmsfs v1 2026-11 volume xattr values, XAES-256-GCM";
const VOLUME_TRANSFERS: &str = "kmsfs v1 2026-11 volume transfers, BLAKE3 keyed";
const VOLUME_AUDIT_MAC: &str = "kmsfs v1 2026-11 volume audit log MAC, BLAKE3 keyed";
const VOLUME_LEDGER_MAC: &str = "kmsfs v1 2026-11 volume ledger MAC, BLAKE3 keyed";

/// The data-encryption key of one file in one epoch. It is only ever the root of the keys in [`FileKeys`].
#[derive(Debug)]
pub struct Dek(Secret32);

impl Dek {
    /// Derives a file's DEK. The volume key is part of it so that a secret that somebody else wrapped with the
    /// public half of the KEK leads nowhere.
    pub fn derive(envelope: &Secret32, volume_key: &Secret32, volume: VolumeId, file: FileId, epoch: Epoch) -> Self {
        Self(derive(FILE_DEK, &[envelope.expose(), volume_key.expose(), &volume.0, &file.0, &epoch.0.to_le_bytes()]))
    }

    /// The DEK in these bytes, which were unsealed; `None` unless they are 32. They stay the caller's to wipe.
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        Secret32::from_slice(bytes).map(Self)
    }

    /// The bytes, to be sealed by the DEK that comes after this one.
    pub fn expose(&self) -> &[u8; 32] {
        self.0.expose()
    }
}

/// What a DEK is used for: one key for each purpose.
#[derive(Debug)]
pub struct FileKeys {
    /// XAES-256-GCM key of the chunks.
    pub chunks: Secret32,
    /// BLAKE3 key of the header's MAC.
    pub header_mac: Secret32,
    /// BLAKE3 key of the tag blocks' MACs.
    pub tags_mac: Secret32,
    /// XAES-256-GCM key by which the file's DEK before this one is sealed while both are needed.
    pub previous: Secret32,
}

impl From<&Dek> for FileKeys {
    fn from(dek: &Dek) -> Self {
        let key = |label| derive(label, &[dek.0.expose()]);
        Self {
            chunks: key(FILE_CHUNKS),
            header_mac: key(FILE_HEADER_MAC),
            tags_mac: key(FILE_TAGS_MAC),
            previous: key(FILE_PREVIOUS),
        }
    }
}

/// What a volume key is used for, besides being part of every DEK.
#[derive(Debug)]
pub struct VolumeKeys {
    /// BLAKE3 key of the volume record's MAC.
    pub record_mac: Secret32,
    /// AES-256-SIV key of names (both halves).
    pub names: [Secret32; 2],
    /// BLAKE3 key of the hash that stands in for a long name.
    pub long_names: Secret32,
    /// XAES-256-GCM key of symbolic links' targets.
    pub symlinks: Secret32,
    /// AES-256-SIV key of the names of extended attributes (both halves).
    pub xattr_names: [Secret32; 2],
    /// XAES-256-GCM key of the values of extended attributes.
    pub xattr_values: Secret32,
    /// BLAKE3 key of the audit log's checkpoints.
    pub audit_mac: Secret32,
    /// BLAKE3 key of the MACs of the ledger's blocks.
    pub ledger_mac: Secret32,
    /// BLAKE3 key of what the state of an import or export remembers of paths and contents.
    pub transfers: Secret32,
}

impl From<&Secret32> for VolumeKeys {
    fn from(volume_key: &Secret32) -> Self {
        let key = |label| derive(label, &[volume_key.expose()]);
        Self {
            record_mac: key(VOLUME_RECORD_MAC),
            names: derive_pair(VOLUME_NAMES, volume_key),
            long_names: key(VOLUME_LONG_NAMES),
            symlinks: key(VOLUME_SYMLINKS),
            xattr_names: derive_pair(VOLUME_XATTR_NAMES, volume_key),
            xattr_values: key(VOLUME_XATTR_VALUES),
            audit_mac: key(VOLUME_AUDIT_MAC),
            ledger_mac: key(VOLUME_LEDGER_MAC),
            transfers: key(VOLUME_TRANSFERS),
        }
    }
}

/// BLAKE3's key derivation over the concatenation of parts, each of which has a fixed length.
fn derive(label: &str, parts: &[&[u8]]) -> Secret32 {
    let mut hasher = Zeroizing::new(blake3::Hasher::new_derive_key(label));
    for part in parts {
        hasher.update(part);
    }
    let mut output = [0; 32];
    hasher.finalize_xof().fill(&mut output);
    Secret32::take(&mut output)
}

fn derive_pair(label: &str, key: &Secret32) -> [Secret32; 2] {
    let mut hasher = Zeroizing::new(blake3::Hasher::new_derive_key(label));
    hasher.update(key.expose());
    let mut output = hasher.finalize_xof();
    std::array::from_fn(|_| {
        let mut half = [0; 32];
        output.fill(&mut half);
        Secret32::take(&mut half)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fingerprint(secret: &Secret32) -> String {
        data_encoding::HEXLOWER.encode(&secret.expose()[..8])
    }

    #[test]
    fn every_derivation_is_frozen() {
        let envelope = Secret32::take(&mut [1; 32]);
        let volume_key = Secret32::take(&mut [2; 32]);
        let dek = Dek::derive(&envelope, &volume_key, VolumeId([3; 16]), FileId([4; 16]), Epoch(5));
        let file = FileKeys::from(&dek);
        let volume = VolumeKeys::from(&volume_key);
        let all = [
            &dek.0,
            &file.chunks,
            &file.header_mac,
            &file.tags_mac,
            &file.previous,
            &volume.record_mac,
            &volume.names[0],
            &volume.names[1],
            &volume.long_names,
            &volume.symlinks,
            &volume.xattr_names[0],
            &volume.xattr_names[1],
            &volume.xattr_values,
            &volume.audit_mac,
            &volume.ledger_mac,
            &volume.transfers,
        ];
        let prints: Vec<String> = all.iter().map(|secret| fingerprint(secret)).collect();
        assert_eq!(prints, FROZEN, "a derivation changed: existing volumes could not be read any more");
    }

    const FROZEN: [&str; 16] = [
        "1c719a42a48635b5",
        "3e60fc1f68e617f6",
        "31c3e606763b27cb",
        "ab028e2031500105",
        "ee16c592534112b6",
        "cd60d300ee3cfc83",
        "92b0cfb1f2ead3be",
        "5feaf32a5b2f637f",
        "dcaf10b763aadfd8",
        "2b9002d7da408d4d",
        "9ec08ac0756eba74",
        "5957917e5c7d1d9f",
        "29ada2f0f719eb31",
        "bc9a52f5de197879",
        "decd61fb11b28432",
        "ae4428accddc81e4",
    ];

    #[test]
    fn every_input_changes_the_dek() {
        let key = |envelope, volume_key, volume, file, epoch| {
            let dek = Dek::derive(
                &Secret32::take(&mut [envelope; 32]),
                &Secret32::take(&mut [volume_key; 32]),
                VolumeId([volume; 16]),
                FileId([file; 16]),
                Epoch(epoch),
            );
            *dek.0.expose()
        };
        let all = [
            key(1, 2, 3, 4, 5),
            key(0, 2, 3, 4, 5),
            key(1, 0, 3, 4, 5),
            key(1, 2, 0, 4, 5),
            key(1, 2, 3, 0, 5),
            key(1, 2, 3, 4, 0),
        ];
        let distinct: std::collections::HashSet<_> = all.iter().collect();
        assert_eq!(distinct.len(), 6);
    }
}
