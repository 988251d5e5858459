//! The keys of an unlocked volume, expanded for use. Dropping it wipes them.

use crate::crypto::Secret32;
use crate::crypto::cipher::ValueCipher;
use crate::crypto::derive::VolumeKeys;
use crate::crypto::names::NameCipher;

/// The name of the attribute that holds a file's capabilities.
pub(super) const CAPABILITY: &[u8] = b"security.capability";

pub(super) struct Unlocked {
    pub volume_key: Secret32,
    pub names: NameCipher,
    pub symlinks: ValueCipher,
    pub xattr_names: NameCipher,
    pub xattr_values: ValueCipher,
    pub ledger_mac: Secret32,
    /// The stored name of the attribute that the kernel asks for before it first writes to a file.
    pub capability: Vec<u8>,
}

impl From<Secret32> for Unlocked {
    fn from(volume_key: Secret32) -> Self {
        let keys = VolumeKeys::from(&volume_key);
        let xattr_names = NameCipher::for_xattrs(&keys);
        Self {
            capability: xattr_names.seal_full(b"", CAPABILITY),
            names: NameCipher::new(&keys),
            symlinks: ValueCipher::new(&keys.symlinks),
            xattr_names,
            xattr_values: ValueCipher::new(&keys.xattr_values),
            ledger_mac: keys.ledger_mac,
            volume_key,
        }
    }
}
