//! RSA keys: made, kept as PKCS#8, and used with OAEP (RFC 8017).

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use aws_lc_rs::rsa::{
    KeyPair, KeySize, OAEP_SHA1_MGF1SHA1, OAEP_SHA256_MGF1SHA256, OaepAlgorithm, OaepPrivateDecryptingKey,
    OaepPublicEncryptingKey, PrivateDecryptingKey,
};
use aws_lc_rs::signature::KeyPair as _;
use std::fmt;
use zeroize::Zeroizing;

/// The key could not be made or used. Which input was wrong is not told, as OAEP demands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RsaFailure;

/// A padding that the vault accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Padding {
    /// `RSA-OAEP-256`: SHA-256 for hash and mask.
    OaepSha256,
    /// `RSA-OAEP`: SHA-1 for both.
    OaepSha1,
}

impl Padding {
    /// The padding with this name in the API (RFC 7518 and Key Vault).
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "RSA-OAEP-256" => Some(Self::OaepSha256),
            "RSA-OAEP" => Some(Self::OaepSha1),
            _ => None,
        }
    }

    fn algorithm(self) -> &'static OaepAlgorithm {
        match self {
            Self::OaepSha256 => &OAEP_SHA256_MGF1SHA256,
            Self::OaepSha1 => &OAEP_SHA1_MGF1SHA1,
        }
    }
}

/// The length of a modulus that the vault makes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Modulus {
    /// 2048 bits.
    #[default]
    Bits2048,
    /// 3072 bits.
    Bits3072,
    /// 4096 bits.
    Bits4096,
}

impl Modulus {
    /// The modulus with so many bits.
    pub fn with_bits(bits: u64) -> Option<Self> {
        match bits {
            2048 => Some(Self::Bits2048),
            3072 => Some(Self::Bits3072),
            4096 => Some(Self::Bits4096),
            _ => None,
        }
    }
}

/// An RSA key pair.
pub struct RsaKey {
    private: OaepPrivateDecryptingKey,
    public: OaepPublicEncryptingKey,
    pkcs8: Zeroizing<Vec<u8>>,
    modulus: Vec<u8>,
    exponent: Vec<u8>,
}

impl RsaKey {
    /// A fresh key. Takes up to seconds for a long modulus.
    ///
    /// # Errors
    /// Where the library cannot make one.
    pub fn generate(modulus: Modulus) -> Result<Self, RsaFailure> {
        let size = match modulus {
            Modulus::Bits2048 => KeySize::Rsa2048,
            Modulus::Bits3072 => KeySize::Rsa3072,
            Modulus::Bits4096 => KeySize::Rsa4096,
        };
        let key = PrivateDecryptingKey::generate(size).map_err(|_| RsaFailure)?;
        let pkcs8: Pkcs8V1Der<'_> = key.as_der().map_err(|_| RsaFailure)?;
        Self::from_pkcs8(pkcs8.as_ref())
    }

    /// The key of a PKCS#8 document.
    ///
    /// # Errors
    /// Where it is not an RSA key of 2048 to 8192 bits.
    pub fn from_pkcs8(pkcs8: &[u8]) -> Result<Self, RsaFailure> {
        let private = PrivateDecryptingKey::from_pkcs8(pkcs8).map_err(|_| RsaFailure)?;
        let pair = KeyPair::from_pkcs8(pkcs8).map_err(|_| RsaFailure)?;
        Ok(Self {
            public: OaepPublicEncryptingKey::new(private.public_key()).map_err(|_| RsaFailure)?,
            private: OaepPrivateDecryptingKey::new(private).map_err(|_| RsaFailure)?,
            pkcs8: Zeroizing::new(pkcs8.to_vec()),
            modulus: pair.public_key().modulus().big_endian_without_leading_zero().to_vec(),
            exponent: pair.public_key().exponent().big_endian_without_leading_zero().to_vec(),
        })
    }

    /// The private key as PKCS#8.
    pub fn pkcs8(&self) -> &[u8] {
        &self.pkcs8
    }

    /// The modulus, big-endian.
    pub fn modulus(&self) -> &[u8] {
        &self.modulus
    }

    /// The public exponent, big-endian.
    pub fn exponent(&self) -> &[u8] {
        &self.exponent
    }

    /// Encrypts one block with the public half.
    ///
    /// # Errors
    /// Where the plaintext is longer than modulus and padding allow.
    pub fn encrypt(&self, padding: Padding, plaintext: &[u8]) -> Result<Vec<u8>, RsaFailure> {
        let algorithm = padding.algorithm();
        if plaintext.len() > self.public.max_plaintext_size(algorithm) {
            return Err(RsaFailure);
        }
        let mut ciphertext = vec![0; self.public.ciphertext_size()];
        let length = self.public.encrypt(algorithm, plaintext, &mut ciphertext, None).map_err(|_| RsaFailure)?.len();
        ciphertext.truncate(length);
        Ok(ciphertext)
    }

    /// Decrypts one block with the private half.
    ///
    /// # Errors
    /// Where the block was not made for this key and padding.
    pub fn decrypt(&self, padding: Padding, ciphertext: &[u8]) -> Result<Zeroizing<Vec<u8>>, RsaFailure> {
        if ciphertext.len() != self.modulus.len() {
            return Err(RsaFailure);
        }
        let mut plaintext = Zeroizing::new(vec![0; self.private.min_output_size()]);
        let length =
            self.private.decrypt(padding.algorithm(), ciphertext, &mut plaintext, None).map_err(|_| RsaFailure)?.len();
        plaintext.truncate(length);
        Ok(plaintext)
    }
}

impl fmt::Debug for RsaKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RsaKey({} bits)", self.modulus.len() * 8)
    }
}

/// How a key is kept in JSON: base64 of its PKCS#8.
pub mod stored {
    use super::RsaKey;
    use data_encoding::BASE64;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};
    use std::sync::Arc;
    use zeroize::Zeroizing;

    /// For `#[serde(with)]`.
    pub fn serialize<S: Serializer>(key: &Arc<RsaKey>, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&Zeroizing::new(BASE64.encode(key.pkcs8())))
    }

    /// For `#[serde(with)]`.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Arc<RsaKey>, D::Error> {
        let text = Zeroizing::new(String::deserialize(deserializer)?);
        let pkcs8 = Zeroizing::new(BASE64.decode(text.as_bytes()).map_err(D::Error::custom)?);
        RsaKey::from_pkcs8(&pkcs8).map(Arc::new).map_err(|_| D::Error::custom("not an RSA private key"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_padding_wrapped_the_other_does_not_open() -> Result<(), RsaFailure> {
        let key = RsaKey::generate(Modulus::Bits2048)?;
        let wrapped = key.encrypt(Padding::OaepSha256, &[7; 32])?;
        assert_eq!(wrapped.len(), 256);
        assert_eq!(key.decrypt(Padding::OaepSha256, &wrapped)?.as_slice(), [7; 32]);
        assert_eq!(key.decrypt(Padding::OaepSha1, &wrapped), Err(RsaFailure));
        assert_eq!(key.decrypt(Padding::OaepSha256, &wrapped[1..]), Err(RsaFailure));
        Ok(())
    }

    #[test]
    fn the_longest_plaintext_is_the_modulus_less_the_padding() -> Result<(), RsaFailure> {
        let key = RsaKey::generate(Modulus::Bits2048)?;
        assert!(key.encrypt(Padding::OaepSha256, &[1; 190]).is_ok());
        assert_eq!(key.encrypt(Padding::OaepSha256, &[1; 191]), Err(RsaFailure));
        Ok(())
    }

    #[test]
    fn debug_shows_no_key() -> Result<(), RsaFailure> {
        assert_eq!(format!("{:?}", RsaKey::generate(Modulus::Bits2048)?), "RsaKey(2048 bits)");
        Ok(())
    }
}
