//! AES-256 keys, as a Managed HSM has them: made, kept, and used for key wrap (RFC 3394).

use aws_lc_rs::key_wrap::{AES_256, AesKek, KeyWrap};
use std::fmt;
use std::io;
use zeroize::Zeroizing;

const KEY_LEN: usize = 32;
/// Key wrap takes whole halves of an AES block, at least two of them, and adds one.
const HALF_BLOCK: usize = 8;
/// Longer than any key that is wrapped.
const MAX_LEN: usize = 4096;

/// The block is not one that this key can wrap, or has wrapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AesFailure;

/// An AES-256 key.
pub struct AesKey(Zeroizing<[u8; KEY_LEN]>);

impl AesKey {
    /// A fresh key.
    ///
    /// # Errors
    /// Where the operating system has no random bytes.
    pub fn generate() -> io::Result<Self> {
        let mut key = Zeroizing::new([0; KEY_LEN]);
        getrandom::fill(&mut key[..]).map_err(io::Error::other)?;
        Ok(Self(key))
    }

    /// `A256KW`: as long as the plaintext and 8 bytes more.
    ///
    /// # Errors
    /// Where the plaintext is not a multiple of 8 bytes, or shorter than 16.
    pub fn wrap(&self, plaintext: &[u8]) -> Result<Vec<u8>, AesFailure> {
        Self::fits(plaintext.len(), 2)?;
        let mut wrapped = vec![0; plaintext.len() + HALF_BLOCK];
        let len = self.kek()?.wrap(plaintext, &mut wrapped).map_err(|_| AesFailure)?.len();
        wrapped.truncate(len);
        Ok(wrapped)
    }

    /// Undoes it.
    ///
    /// # Errors
    /// Where this key has not wrapped that.
    pub fn unwrap(&self, wrapped: &[u8]) -> Result<Zeroizing<Vec<u8>>, AesFailure> {
        Self::fits(wrapped.len(), 3)?;
        let mut plaintext = Zeroizing::new(vec![0; wrapped.len()]);
        let len = self.kek()?.unwrap(wrapped, &mut plaintext).map_err(|_| AesFailure)?.len();
        plaintext.truncate(len);
        Ok(plaintext)
    }

    fn kek(&self) -> Result<AesKek, AesFailure> {
        AesKek::new(&AES_256, &self.0[..]).map_err(|_| AesFailure)
    }

    fn fits(len: usize, halves: usize) -> Result<(), AesFailure> {
        let fits = len.is_multiple_of(HALF_BLOCK) && (halves * HALF_BLOCK..=MAX_LEN).contains(&len);
        if fits { Ok(()) } else { Err(AesFailure) }
    }
}

impl fmt::Debug for AesKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AesKey(256 bits)")
    }
}

/// How a key is kept in JSON: base64.
pub mod stored {
    use super::{AesKey, KEY_LEN};
    use data_encoding::BASE64;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};
    use std::sync::Arc;
    use zeroize::Zeroizing;

    /// For `#[serde(with)]`.
    pub fn serialize<S: Serializer>(key: &Arc<AesKey>, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&Zeroizing::new(BASE64.encode(&key.0[..])))
    }

    /// For `#[serde(with)]`.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Arc<AesKey>, D::Error> {
        let text = Zeroizing::new(String::deserialize(deserializer)?);
        let bytes = Zeroizing::new(BASE64.decode(text.as_bytes()).map_err(D::Error::custom)?);
        let key: [u8; KEY_LEN] = bytes[..].try_into().map_err(|_| D::Error::custom("not an AES-256 key"))?;
        Ok(Arc::new(AesKey(Zeroizing::new(key))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use data_encoding::HEXLOWER;

    #[test]
    fn a_published_vector_is_wrapped_as_published() {
        // RFC 3394, section 4.6: 256 bits of key data with a 256-bit KEK.
        let bytes = |text: &str| HEXLOWER.decode(text.as_bytes()).unwrap();
        let kek = bytes("000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f");
        let key = AesKey(Zeroizing::new(kek.try_into().unwrap()));
        let data = bytes("00112233445566778899aabbccddeeff000102030405060708090a0b0c0d0e0f");
        let wrapped = key.wrap(&data).unwrap();
        let published = "28c9f404c4b810f4cbccb35cfb87f8263f5786e2d80ed326cbc7f0e71a99f43bfb988b9b7a02dd21";
        assert_eq!(HEXLOWER.encode(&wrapped), published);
        assert_eq!(*key.unwrap(&wrapped).unwrap(), data);
    }

    #[test]
    fn what_was_changed_or_has_no_length_of_a_wrapped_key_is_not_unwrapped() {
        let key = AesKey::generate().unwrap();
        let mut wrapped = key.wrap(&[7; 32]).unwrap();
        wrapped[39] ^= 1;
        assert_eq!(key.unwrap(&wrapped), Err(AesFailure));
        for len in [0, 8, 16, 39, 41, 1 << 20] {
            assert_eq!(key.unwrap(&vec![0; len]), Err(AesFailure), "{len}");
        }
        for len in [0, 8, 31, 33] {
            assert_eq!(key.wrap(&vec![0; len]), Err(AesFailure), "{len}");
        }
        assert_eq!(format!("{key:?}"), "AesKey(256 bits)");
    }
}
