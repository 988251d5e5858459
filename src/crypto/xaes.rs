//! The key derivation of XAES-256-GCM (C2SP, "The XAES-256-GCM extended-nonce AEAD"): a 24-byte nonce whose
//! first half makes a key and whose second half is AES-256-GCM's nonce. Random nonces then never run out.

use super::Secret32;
use aes::Aes256;
use aes::cipher::{BlockCipherEncrypt, KeyInit};
use zeroize::Zeroizing;

/// Bytes of an extended nonce.
pub const NONCE_LEN: usize = 24;
/// Bytes of it that derive the key.
pub const PREFIX_LEN: usize = 12;

/// The first half of an extended nonce.
pub type Prefix = [u8; PREFIX_LEN];

/// An XAES-256-GCM key, expanded once: deriving the key for a nonce then costs two AES blocks.
pub struct Root {
    aes: Aes256,
    k1: Zeroizing<[u8; 16]>,
}

impl Root {
    /// Expands a key.
    pub fn new(key: &Secret32) -> Self {
        let aes = Aes256::new(key.expose().into());
        let mut l = aes::Block::default();
        aes.encrypt_block(&mut l);
        // CMAC's subkey K1 (NIST SP 800-38B): L doubled in GF(2^128).
        let doubled = u128::from_be_bytes(l.into());
        let k1 = (doubled << 1) ^ ((doubled >> 127) * 0x87);
        Self { aes, k1: Zeroizing::new(k1.to_be_bytes()) }
    }

    /// The AES-256-GCM key for the nonces that begin with `prefix`.
    pub fn subkey(&self, prefix: &Prefix) -> Zeroizing<[u8; 32]> {
        let mut key = Zeroizing::new([0; 32]);
        for (counter, half) in (1..).zip(key.chunks_exact_mut(16)) {
            let mut block = [0; 16];
            block[..4].copy_from_slice(&[0, counter, b'X', 0]);
            block[4..].copy_from_slice(prefix);
            for (byte, mask) in block.iter_mut().zip(self.k1.iter()) {
                *byte ^= mask;
            }
            let mut block = aes::Block::from(block);
            self.aes.encrypt_block(&mut block);
            half.copy_from_slice(&block);
        }
        key
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aes_gcm::aead::{Aead, KeyInit, Payload};

    /// The test vectors of the specification.
    #[test]
    fn the_published_vectors_hold() {
        for (key, aad, expected) in [
            (1, "", "ce546ef63c9cc60765923609b33a9a1974e96e52daf2fcf7075e2271"),
            (3, "c2sp.org/XAES-256-GCM", "986ec1832593df5443a179437fd083bf3fdb41abd740a21f71eb769d"),
        ] {
            let nonce = b"ABCDEFGHIJKLMNOPQRSTUVWX";
            let root = Root::new(&Secret32::take(&mut [key; 32]));
            let subkey = root.subkey(nonce[..12].try_into().unwrap());
            let gcm = aes_gcm::Aes256Gcm::new((&*subkey).into());
            let gcm_nonce: [u8; 12] = nonce[12..].try_into().unwrap();
            let sealed = gcm.encrypt(&gcm_nonce.into(), Payload { msg: b"XAES-256-GCM", aad: aad.as_bytes() }).unwrap();
            assert_eq!(data_encoding::HEXLOWER.encode(&sealed), expected);
        }
    }
}
