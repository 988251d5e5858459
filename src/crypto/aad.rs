//! Additional authenticated data: pure encoders with fixed layouts (format.md, "Chunks").

use crate::units::{ChunkIndex, Epoch, FileId, VolumeId};

/// The AAD of one chunk: volume id ‖ file id ‖ epoch (4, little-endian) ‖ index (8, little-endian).
pub fn chunk(volume: VolumeId, file: FileId, epoch: Epoch, index: ChunkIndex) -> [u8; 44] {
    let mut aad = [0; 44];
    aad[..16].copy_from_slice(&volume.0);
    aad[16..32].copy_from_slice(&file.0);
    aad[32..36].copy_from_slice(&epoch.0.to_le_bytes());
    aad[36..].copy_from_slice(&index.0.to_le_bytes());
    aad
}

/// The AAD of a file's previous DEK: volume id ‖ file id ‖ its epoch ‖ the epoch of the DEK that seals it (4 bytes each).
pub fn previous_dek(volume: VolumeId, file: FileId, previous: Epoch, epoch: Epoch) -> [u8; 40] {
    let mut aad = [0; 40];
    aad[..16].copy_from_slice(&volume.0);
    aad[16..32].copy_from_slice(&file.0);
    aad[32..36].copy_from_slice(&previous.0.to_le_bytes());
    aad[36..].copy_from_slice(&epoch.0.to_le_bytes());
    aad
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layout_of_a_chunks_aad_is_frozen() {
        let aad = chunk(VolumeId([1; 16]), FileId([2; 16]), Epoch(3), ChunkIndex(4));
        let expected = [&[1; 16][..], &[2; 16], &[3, 0, 0, 0], &[4, 0, 0, 0, 0, 0, 0, 0]].concat();
        assert_eq!(&aad[..], &expected[..]);
        let aad = previous_dek(VolumeId([1; 16]), FileId([2; 16]), Epoch(3), Epoch(4));
        assert_eq!(&aad[..], &[&[1; 16][..], &[2; 16], &[3, 0, 0, 0], &[4, 0, 0, 0]].concat()[..]);
    }
}
