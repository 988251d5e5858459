//! AES-256-GCM with an extended nonce, over chunks and over small values. The only file that names the AEAD
//! that is used for data: aws-lc-rs, two to four times as fast here as `aes-gcm`, which checks it in the tests
//! (performance.md has the figures).

use super::xaes::{NONCE_LEN, PREFIX_LEN, Prefix, Root};
use super::{NotAuthentic, Secret32, random_bytes};
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use lru::LruCache;
use parking_lot::Mutex;
use std::num::NonZeroUsize;
use std::sync::Arc;

/// Bytes of an authentication tag.
pub const TAG_LEN: usize = 16;
/// By how much a sealed small value is longer than its plaintext, in bytes: its nonce and its tag.
pub const VALUE_OVERHEAD: usize = NONCE_LEN + TAG_LEN;

/// How many chunks are sealed under one derived key: far below the 2³² at which random 96-bit nonces collide
/// with probability 2⁻³² (NIST SP 800-38D).
const SEALS_PER_PREFIX: u32 = 1 << 24;
/// How many derived keys an open file keeps, half a KiB each, for chunks that earlier sessions wrote: one for each of them.
const OPENING_KEYS: usize = 32;

/// The extended nonce and the tag of one chunk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NonceAndTag {
    /// The extended nonce.
    pub nonce: [u8; NONCE_LEN],
    /// The authentication tag.
    pub tag: [u8; TAG_LEN],
}

/// Seals and opens the chunks of one file. Shared by the threads that read and write it.
pub struct ChunkCipher {
    root: Root,
    sealing: Mutex<Option<Sealing>>,
    opening: Mutex<LruCache<Prefix, Arc<LessSafeKey>>>,
}

struct Sealing {
    prefix: Prefix,
    key: Arc<LessSafeKey>,
    left: u32,
}

/// Nonces and a key for a batch of chunks: one call to the random generator for all of them.
pub struct Batch {
    prefix: Prefix,
    key: Arc<LessSafeKey>,
    suffixes: Vec<[u8; NONCE_LEN - PREFIX_LEN]>,
}

impl ChunkCipher {
    /// A cipher for the chunks of the file with this key.
    pub fn new(key: &Secret32) -> Self {
        #[expect(clippy::expect_used, reason = "a constant")]
        let capacity = NonZeroUsize::new(OPENING_KEYS).expect("not zero");
        // Most files have one: there is room for it when it comes.
        let mut opening = LruCache::unbounded();
        opening.resize(capacity);
        Self { root: Root::new(key), sealing: Mutex::new(None), opening: Mutex::new(opening) }
    }

    /// Prepares fresh nonces for `count` chunks.
    pub fn batch(&self, count: usize) -> Batch {
        let mut suffixes = vec![[0; NONCE_LEN - PREFIX_LEN]; count];
        random_bytes(suffixes.as_flattened_mut());
        let mut sealing = self.sealing.lock();
        let count = u32::try_from(count).unwrap_or(SEALS_PER_PREFIX);
        if sealing.as_ref().is_none_or(|current| current.left < count) {
            let mut prefix = [0; PREFIX_LEN];
            random_bytes(&mut prefix);
            let key = Arc::new(gcm(&self.root, &prefix));
            self.opening.lock().put(prefix, Arc::clone(&key));
            *sealing = Some(Sealing { prefix, key, left: SEALS_PER_PREFIX });
        }
        #[expect(clippy::expect_used, reason = "set just above")]
        let current = sealing.as_mut().expect("there is a sealing key");
        current.left = current.left.saturating_sub(count);
        Batch { prefix: current.prefix, key: Arc::clone(&current.key), suffixes }
    }

    /// Opens one chunk into `plain`, which must be as long as `sealed`. On an error `plain` holds zeros.
    ///
    /// # Errors
    /// [`NotAuthentic`] unless exactly these bytes were sealed with this nonce, tag and AAD.
    pub fn open(&self, entry: &NonceAndTag, aad: &[u8], sealed: &[u8], plain: &mut [u8]) -> Result<(), NotAuthentic> {
        let (prefix, suffix) = split(&entry.nonce);
        let cached = self.opening.lock().get(&prefix).map(Arc::clone);
        let key = cached.unwrap_or_else(|| {
            let key = Arc::new(gcm(&self.root, &prefix));
            self.opening.lock().put(prefix, Arc::clone(&key));
            key
        });
        let nonce = Nonce::assume_unique_for_key(suffix);
        key.open_separate_gather(nonce, Aad::from(aad), sealed, &entry.tag, plain).map_err(|_| {
            plain.fill(0);
            NotAuthentic
        })
    }
}

impl Batch {
    /// Seals `plain` into `sealed`, of the same length, as the batch's chunk number `position`.
    ///
    /// # Panics
    /// If `position` is not below the batch's count, or the lengths differ: both are errors of the caller.
    pub fn seal(&self, position: usize, aad: &[u8], plain: &[u8], sealed: &mut [u8]) -> NonceAndTag {
        let suffix = self.suffixes[position];
        let mut tag = [0; TAG_LEN];
        #[expect(clippy::expect_used, reason = "fails for wrong lengths only, and chunks are at most 1 MiB")]
        self.key
            .seal_out_of_place_scatter(
                Nonce::assume_unique_for_key(suffix),
                Aad::from(aad),
                plain,
                sealed,
                &[],
                &mut tag,
            )
            .expect("the buffers have equal lengths");
        let mut nonce = [0; NONCE_LEN];
        nonce[..PREFIX_LEN].copy_from_slice(&self.prefix);
        nonce[PREFIX_LEN..].copy_from_slice(&suffix);
        NonceAndTag { nonce, tag }
    }
}

/// Seals and opens small values (symbolic links' targets, extended attributes): nonce ‖ ciphertext ‖ tag.
pub struct ValueCipher(Root);

impl ValueCipher {
    /// A cipher for the values of one purpose.
    pub fn new(key: &Secret32) -> Self {
        Self(Root::new(key))
    }

    /// Seals a value under a fresh random nonce.
    ///
    /// # Panics
    /// Never for values that fit into memory.
    pub fn seal(&self, aad: &[u8], value: &[u8]) -> Vec<u8> {
        let mut nonce = [0; NONCE_LEN];
        random_bytes(&mut nonce);
        let (prefix, suffix) = split(&nonce);
        let mut sealed = Vec::with_capacity(value.len() + VALUE_OVERHEAD);
        sealed.extend_from_slice(&nonce);
        sealed.extend_from_slice(value);
        #[expect(clippy::expect_used, reason = "GCM's limit is 64 GiB")]
        let tag = gcm(&self.0, &prefix)
            .seal_in_place_separate_tag(Nonce::assume_unique_for_key(suffix), Aad::from(aad), &mut sealed[NONCE_LEN..])
            .expect("a value is far shorter than GCM's limit");
        sealed.extend_from_slice(tag.as_ref());
        sealed
    }

    /// Opens what [`seal`](Self::seal) returned.
    ///
    /// # Errors
    /// [`NotAuthentic`] for anything else.
    pub fn open(&self, aad: &[u8], sealed: &[u8]) -> Result<Vec<u8>, NotAuthentic> {
        let (nonce, rest) = sealed.split_first_chunk::<NONCE_LEN>().ok_or(NotAuthentic)?;
        let (prefix, suffix) = split(nonce);
        let mut value = rest.to_vec();
        let length = gcm(&self.0, &prefix)
            .open_in_place(Nonce::assume_unique_for_key(suffix), Aad::from(aad), &mut value)
            .map_err(|_| NotAuthentic)?
            .len();
        value.truncate(length);
        Ok(value)
    }
}

fn gcm(root: &Root, prefix: &Prefix) -> LessSafeKey {
    let key = root.subkey(prefix);
    #[expect(clippy::expect_used, reason = "the length is AES-256-GCM's")]
    LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &key[..]).expect("32 bytes"))
}

fn split(nonce: &[u8; NONCE_LEN]) -> (Prefix, [u8; NONCE_LEN - PREFIX_LEN]) {
    let mut prefix = [0; PREFIX_LEN];
    let mut suffix = [0; NONCE_LEN - PREFIX_LEN];
    prefix.copy_from_slice(&nonce[..PREFIX_LEN]);
    suffix.copy_from_slice(&nonce[PREFIX_LEN..]);
    (prefix, suffix)
}

/// Checks the AEAD against a known answer, once, before any data is touched.
///
/// # Errors
/// [`NotAuthentic`] if this machine's implementation of AES-256-GCM is wrong: nothing may be written with it.
pub fn self_test() -> Result<(), NotAuthentic> {
    // C2SP's first XAES-256-GCM vector.
    const SEALED: &[u8] =
        b"ABCDEFGHIJKLMNOPQRSTUVWX\xce\x54\x6e\xf6\x3c\x9c\xc6\x07\x65\x92\x36\x09\xb3\x3a\x9a\x19\x74\xe9\x6e\x52\xda\xf2\xfc\xf7\x07\x5e\x22\x71";
    let cipher = ValueCipher::new(&Secret32::take(&mut [1; 32]));
    if cipher.open(b"", SEALED)? == b"XAES-256-GCM" { Ok(()) } else { Err(NotAuthentic) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aes_gcm::aead::{Aead, KeyInit, Payload};
    use proptest::prelude::*;

    fn cipher() -> ChunkCipher {
        ChunkCipher::new(&Secret32::take(&mut [9; 32]))
    }

    #[test]
    fn the_self_test_passes_here() {
        self_test().unwrap();
    }

    proptest! {
        #[test]
        fn the_second_implementation_opens_what_the_first_sealed(plain: Vec<u8>, aad: [u8; 44]) {
            let mut sealed = vec![0; plain.len()];
            let entry = cipher().batch(1).seal(0, &aad, &plain, &mut sealed);
            let root = Root::new(&Secret32::take(&mut [9; 32]));
            let (prefix, suffix) = split(&entry.nonce);
            let gcm = aes_gcm::Aes256Gcm::new((&*root.subkey(&prefix)).into());
            let message = [&sealed[..], &entry.tag].concat();
            let opened = gcm.decrypt(&suffix.into(), Payload { msg: &message, aad: &aad }).unwrap();
            prop_assert_eq!(opened, plain);
        }

        #[test]
        fn any_flipped_bit_is_refused_and_leaves_zeros(plain in prop::collection::vec(any::<u8>(), 1..5000), at: prop::sample::Index) {
            let cipher = cipher();
            let mut sealed = vec![0; plain.len()];
            let entry = cipher.batch(1).seal(0, b"aad", &plain, &mut sealed);
            let position = at.index(sealed.len() * 8);
            sealed[position / 8] ^= 1 << (position % 8);
            let mut opened = vec![7; plain.len()];
            prop_assert_eq!(cipher.open(&entry, b"aad", &sealed, &mut opened), Err(NotAuthentic));
            prop_assert!(opened.iter().all(|byte| *byte == 0));
        }

        #[test]
        fn a_value_opens_only_with_its_aad(value: Vec<u8>, aad: Vec<u8>, other: Vec<u8>) {
            let cipher = ValueCipher::new(&Secret32::take(&mut [9; 32]));
            let sealed = cipher.seal(&aad, &value);
            prop_assert_eq!(cipher.open(&aad, &sealed).unwrap(), value);
            prop_assert_eq!(cipher.open(&other, &sealed).is_ok(), other == aad);
        }
    }

    #[test]
    fn nonces_differ_and_the_prefix_is_renewed_when_its_budget_is_spent() {
        let cipher = cipher();
        let first = cipher.batch(2);
        assert_ne!(first.suffixes[0], first.suffixes[1]);
        assert_eq!(cipher.batch(1).prefix, first.prefix);
        cipher.sealing.lock().as_mut().unwrap().left = 0;
        assert_ne!(cipher.batch(1).prefix, first.prefix);
    }

    #[test]
    fn a_truncated_value_is_refused() {
        let cipher = ValueCipher::new(&Secret32::take(&mut [9; 32]));
        let sealed = cipher.seal(b"", b"value");
        for length in 0..sealed.len() {
            assert_eq!(cipher.open(b"", &sealed[..length]), Err(NotAuthentic));
        }
    }
}
