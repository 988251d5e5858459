//! Encrypted names: AES-256-SIV (RFC 5297) with the parent directory's id as associated data, in base64url.
//! Deterministic, so that a lookup is a lookup in the backing directory; the same name in another directory is
//! another name there. A form that would be longer than a directory entry is replaced by a keyed hash, and kept
//! in full in a side entry (format.md, "Names").

use super::derive::VolumeKeys;
use super::{NotAuthentic, Secret32};
use crate::units::DirId;
use aes_siv::KeyInit;
use aes_siv::siv::Aes256Siv;
use data_encoding::BASE64URL_NOPAD;
use zeroize::Zeroizing;

/// The longest name of a directory entry, in bytes, here and in the backing filesystem (`NAME_MAX`).
pub const NAME_MAX: usize = 255;
/// The longest name whose encrypted form is a directory entry itself, in bytes: (255 · 3/4) − 16.
pub const DIRECT_MAX: usize = 175;

/// What every entry that is not the direct form of a name begins with; base64url has no such letter.
const SPECIAL: u8 = b'.';
const LONG_ENTRY: &[u8] = b".L";
const LONG_NAME: &[u8] = b".N";
/// The entry (a symbolic link) that holds a directory's id.
pub const DIR_ID_ENTRY: &[u8] = b".id";
/// What the entries begin with that are being made and were not yet given their name.
pub const STAGING_PREFIX: &[u8] = b".t";

/// A name as it stands in the backing directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredName {
    /// The name of the entry itself.
    pub entry: Vec<u8>,
    /// For a long name, its side entry: a symbolic link of this name whose target is the whole encrypted form.
    pub side: Option<SideEntry>,
}

/// The side entry of a long name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SideEntry {
    /// Its name.
    pub entry: Vec<u8>,
    /// Its target: the encrypted name in base64url.
    pub target: Vec<u8>,
}

/// What an entry of a backing directory is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry<'a> {
    /// A name's direct form.
    Direct(&'a [u8]),
    /// A long name; its full form is the target of the side entry with this name.
    Long(Vec<u8>),
    /// kmsfs's own: a directory's id, a side entry, something in the making.
    Internal,
    /// Nothing that kmsfs makes.
    Foreign,
}

/// Encrypts and decrypts the names of one volume.
pub struct NameCipher {
    key: Zeroizing<[u8; 64]>,
    long_names: Secret32,
}

impl NameCipher {
    /// The cipher of the names of files.
    pub fn new(keys: &VolumeKeys) -> Self {
        Self::with(&keys.names, &keys.long_names)
    }

    /// The cipher of the names of extended attributes.
    pub fn for_xattrs(keys: &VolumeKeys) -> Self {
        Self::with(&keys.xattr_names, &keys.long_names)
    }

    fn with(pair: &[Secret32; 2], long_names: &Secret32) -> Self {
        let mut key = Zeroizing::new([0; 64]);
        key[..32].copy_from_slice(pair[0].expose());
        key[32..].copy_from_slice(pair[1].expose());
        let mut long = *long_names.expose();
        Self { key, long_names: Secret32::take(&mut long) }
    }

    /// The stored form of a name of 1 to 255 bytes in the directory with this id.
    pub fn seal(&self, directory: DirId, name: &[u8]) -> StoredName {
        let full = self.seal_full(&directory.0, name);
        if name.len() <= DIRECT_MAX {
            return StoredName { entry: full, side: None };
        }
        let hash = BASE64URL_NOPAD.encode(blake3::keyed_hash(self.long_names.expose(), &full).as_bytes());
        StoredName {
            entry: [LONG_ENTRY, hash.as_bytes()].concat(),
            side: Some(SideEntry { entry: [LONG_NAME, hash.as_bytes()].concat(), target: full }),
        }
    }

    /// The name whose encrypted form (direct, or a side entry's target) this is.
    ///
    /// # Errors
    /// [`NotAuthentic`] for anything that is not the one encoding of a name of this directory.
    pub fn open(&self, directory: DirId, full: &[u8]) -> Result<Vec<u8>, NotAuthentic> {
        let name = self.open_full(&directory.0, full)?;
        let acceptable = !name.is_empty()
            && name.len() <= NAME_MAX
            && name != b"."
            && name != b".."
            && !name.iter().any(|byte| matches!(byte, 0 | b'/'));
        if acceptable { Ok(name) } else { Err(NotAuthentic) }
    }

    /// Whether a side entry of this name and target belongs to a long name.
    pub fn side_entry_matches(&self, side: &[u8], target: &[u8]) -> bool {
        let hash = BASE64URL_NOPAD.encode(blake3::keyed_hash(self.long_names.expose(), target).as_bytes());
        side.strip_prefix(LONG_NAME) == Some(hash.as_bytes())
    }

    /// SIV and base64url of a name under some context.
    pub fn seal_full(&self, context: &[u8], name: &[u8]) -> Vec<u8> {
        #[expect(clippy::expect_used, reason = "fails for more than 126 headers only")]
        let sealed = Aes256Siv::new((&*self.key).into()).encrypt([context], name).expect("one header");
        BASE64URL_NOPAD.encode(&sealed).into_bytes()
    }

    /// The inverse of [`seal_full`](Self::seal_full).
    ///
    /// # Errors
    /// [`NotAuthentic`] for anything else; base64url is decoded strictly, so a name has one encoding.
    pub fn open_full(&self, context: &[u8], full: &[u8]) -> Result<Vec<u8>, NotAuthentic> {
        let sealed = BASE64URL_NOPAD.decode(full).map_err(|_| NotAuthentic)?;
        Aes256Siv::new((&*self.key).into()).decrypt([context], &sealed).map_err(|_| NotAuthentic)
    }
}

/// What an entry of a backing directory with encrypted names is, by its name alone.
pub fn classify(entry: &[u8]) -> Entry<'_> {
    if entry == DIR_ID_ENTRY || entry.starts_with(LONG_NAME) || entry.starts_with(STAGING_PREFIX) {
        Entry::Internal
    } else if let Some(hash) = entry.strip_prefix(LONG_ENTRY) {
        Entry::Long([LONG_NAME, hash].concat())
    } else if entry.first() == Some(&SPECIAL) {
        Entry::Foreign
    } else {
        Entry::Direct(entry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cipher() -> NameCipher {
        NameCipher::new(&VolumeKeys::from(&Secret32::take(&mut [5; 32])))
    }

    const HERE: DirId = DirId([1; 16]);
    const THERE: DirId = DirId([2; 16]);

    fn name() -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(1_u8..=255, 1..=NAME_MAX)
            .prop_map(|name| name.into_iter().map(|byte| if byte == b'/' { b'_' } else { byte }).collect())
            .prop_filter("a name", |name: &Vec<u8>| name != b"." && name != b"..")
    }

    proptest! {
        #[test]
        fn a_name_of_any_length_comes_back(name in name()) {
            let cipher = cipher();
            let stored = cipher.seal(HERE, &name);
            prop_assert!(stored.entry.len() <= NAME_MAX);
            prop_assert_eq!(stored.side.is_some(), name.len() > DIRECT_MAX);
            let full = stored.side.as_ref().map_or(&stored.entry, |side| &side.target);
            prop_assert_eq!(cipher.open(HERE, full).unwrap(), name.clone());
            prop_assert_eq!(cipher.open(THERE, full), Err(NotAuthentic));
            prop_assert_eq!(cipher.seal(HERE, &name), stored.clone());
            prop_assert_ne!(cipher.seal(THERE, &name).entry, stored.entry);
        }

        #[test]
        fn an_entry_is_classified_as_what_it_was_made_as(name in name()) {
            let stored = cipher().seal(HERE, &name);
            match (classify(&stored.entry), &stored.side) {
                (Entry::Direct(full), None) => prop_assert_eq!(full, &stored.entry[..]),
                (Entry::Long(side), Some(made)) => {
                    prop_assert_eq!(&side, &made.entry);
                    prop_assert!(cipher().side_entry_matches(&side, &made.target));
                }
                other => prop_assert!(false, "{other:?}"),
            }
        }

        #[test]
        fn no_entry_makes_the_parser_panic(entry: Vec<u8>) {
            let _ = classify(&entry);
            let _ = cipher().open(HERE, &entry);
        }
    }

    #[test]
    fn a_second_encoding_of_the_same_bytes_is_refused() {
        let cipher = cipher();
        let full = cipher.seal(HERE, b"ab").entry;
        // 18 bytes leave no spare bits; 17 (a name of one byte) leave four that must be zero.
        let one = cipher.seal(HERE, b"a").entry;
        let mut other = one.clone();
        let last = other.last_mut().unwrap();
        *last = if *last == b'A' { b'B' } else { *last + 1 };
        assert!(cipher.open(HERE, &one).is_ok());
        assert!(cipher.open(HERE, &full).is_ok());
        assert_eq!(cipher.open(HERE, &other), Err(NotAuthentic));
    }

    #[test]
    fn the_encrypted_form_of_a_name_is_frozen() {
        // RFC 5297 has vectors for AES-128-SIV only; this one froze what Aes256Siv gives, so that an update of the
        // crate cannot change it unseen.
        let stored = cipher().seal(HERE, b"name");
        assert_eq!(String::from_utf8(stored.entry).unwrap(), FROZEN_NAME);
    }

    const FROZEN_NAME: &str = "a6SAvMfiSwrrWDYYJHjdJntUDCY";
}
