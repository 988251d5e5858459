//! The keys of an unlocked volume, expanded for use. Dropping it wipes them.

use crate::crypto::Secret32;
use crate::crypto::cipher::ValueCipher;
use crate::crypto::derive::VolumeKeys;
use crate::crypto::names::NameCipher;

pub(super) struct Unlocked {
    pub volume_key: Secret32,
    pub names: NameCipher,
    pub symlinks: ValueCipher,
    pub xattr_names: NameCipher,
    pub xattr_values: ValueCipher,
    pub ledger_mac: Secret32,
}

impl From<Secret32> for Unlocked {
    fn from(volume_key: Secret32) -> Self {
        let keys = VolumeKeys::from(&volume_key);
        Self {
            names: NameCipher::new(&keys),
            symlinks: ValueCipher::new(&keys.symlinks),
            xattr_names: NameCipher::for_xattrs(&keys),
            xattr_values: ValueCipher::new(&keys.xattr_values),
            ledger_mac: keys.ledger_mac,
            volume_key,
        }
    }
}
