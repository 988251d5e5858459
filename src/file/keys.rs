//! The keys of one open file, expanded for use.

use crate::crypto::Secret32;
use crate::crypto::cipher::ChunkCipher;
use crate::crypto::derive::{Dek, FileKeys};
use std::fmt;

/// What a file's DEK is used for, ready to be used.
pub struct Keys {
    pub(super) chunks: ChunkCipher,
    pub(super) header_mac: Secret32,
    pub(super) tags_mac: Secret32,
}

impl From<&Dek> for Keys {
    fn from(dek: &Dek) -> Self {
        let FileKeys { chunks, header_mac, tags_mac } = FileKeys::from(dek);
        Self { chunks: ChunkCipher::new(&chunks), header_mac, tags_mac }
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Keys(redacted)")
    }
}
