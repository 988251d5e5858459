//! How a raw key wraps: AES-256-GCM under a key of its own for each wrap, and the fingerprint by which a raw key is
//! known. No I/O. Frozen: what is in here is part of the format (format.md, "Wrapped secrets").

use crate::crypto::Secret32;
use crate::kms::{KmsError, KmsErrorKind};
use crate::units::VolumeId;
use aes_gcm::aead::{AeadInOut, KeyInit};
use aes_gcm::{Aes256Gcm, Nonce, Tag};
use data_encoding::HEXLOWER;
use zeroize::{Zeroize, Zeroizing};

/// Derives the key of one wrap from the KEK and the first half of the wrap's nonce. Frozen.
const WRAP_CONTEXT: &str = "kmsfs 2026 local wrap v1";
/// Derives the public fingerprint of a KEK. Frozen.
const FINGERPRINT_CONTEXT: &str = "kmsfs 2026 local kek fingerprint v1";

pub(super) const NONCE_LEN: usize = 24;
const SECRET_LEN: usize = 32;
const TAG_LEN: usize = 16;
/// nonce ‖ ciphertext ‖ tag.
const BLOB_LEN: usize = NONCE_LEN + SECRET_LEN + TAG_LEN;

pub(super) fn seal(
    kek: &Secret32,
    nonce: [u8; NONCE_LEN],
    secret: &Secret32,
    volume: VolumeId,
) -> Result<Vec<u8>, KmsError> {
    let (salt, gcm_nonce) = halves(&nonce);
    let mut blob = Vec::with_capacity(BLOB_LEN);
    blob.extend_from_slice(&nonce);
    let mut bytes = Zeroizing::new(*secret.expose());
    let tag = cipher(kek, salt)
        .encrypt_inout_detached(&gcm_nonce, &volume.0, bytes.as_mut_slice().into())
        .map_err(|_| KmsError::new(KmsErrorKind::Misconfigured, "32 bytes could not be wrapped"))?;
    blob.extend_from_slice(&bytes[..]);
    blob.extend_from_slice(&tag);
    Ok(blob)
}

pub(super) fn open(kek: &Secret32, blob: &[u8], volume: VolumeId) -> Result<Secret32, KmsError> {
    let damaged = |what: &str| KmsError::new(KmsErrorKind::Damaged, format!("the wrapped secret {what}"));
    let blob: &[u8; BLOB_LEN] = blob.try_into().map_err(|_| damaged("is not 72 bytes long"))?;
    let (nonce, rest) = blob.split_at(NONCE_LEN);
    let (ciphertext, tag) = rest.split_at(SECRET_LEN);
    let tag = Tag::try_from(tag).map_err(|_| damaged("has no tag"))?;
    let nonce: &[u8; NONCE_LEN] = nonce.try_into().map_err(|_| damaged("has no nonce"))?;
    let (salt, gcm_nonce) = halves(nonce);
    let mut bytes = Zeroizing::new([0; SECRET_LEN]);
    bytes.copy_from_slice(ciphertext);
    cipher(kek, salt)
        .decrypt_inout_detached(&gcm_nonce, &volume.0, bytes.as_mut_slice().into(), &tag)
        .map_err(|_| damaged("does not verify under this key and volume"))?;
    Ok(Secret32::take(&mut bytes))
}

/// The nonce's first half goes into the derivation of the wrap's key, its second is GCM's own.
fn halves(nonce: &[u8; NONCE_LEN]) -> ([u8; 12], Nonce<aes_gcm::aead::consts::U12>) {
    let (mut salt, mut gcm) = ([0; 12], [0; 12]);
    salt.copy_from_slice(&nonce[..12]);
    gcm.copy_from_slice(&nonce[12..]);
    (salt, gcm.into())
}

fn cipher(kek: &Secret32, salt: [u8; 12]) -> Aes256Gcm {
    let mut hasher = blake3::Hasher::new_derive_key(WRAP_CONTEXT);
    hasher.update(kek.expose()).update(&salt);
    let key = Zeroizing::new(*hasher.finalize().as_bytes());
    hasher.zeroize();
    Aes256Gcm::new((&*key).into())
}

/// 16 hexadecimal digits that tell keys apart and give nothing of them away.
pub(super) fn fingerprint(kek: &Secret32) -> String {
    let mut hasher = blake3::Hasher::new_derive_key(FINGERPRINT_CONTEXT);
    hasher.update(kek.expose());
    let digest = hasher.finalize();
    hasher.zeroize();
    HEXLOWER.encode(&digest.as_bytes()[..8])
}

#[cfg(test)]
mod tests {
    use super::*;
    use data_encoding::BASE64;

    const VOLUME: VolumeId = VolumeId([9; 16]);
    const KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

    fn kek() -> Secret32 {
        Secret32::from_slice(&BASE64.decode(KEY.as_bytes()).unwrap()).unwrap()
    }

    fn secret() -> Secret32 {
        Secret32::take(&mut [0x5A; 32])
    }

    #[test]
    fn the_format_of_a_wrapped_secret_is_frozen() {
        let kek = kek();
        let nonce: [u8; 24] = std::array::from_fn(|i| i as u8);
        let blob = seal(&kek, nonce, &secret(), VOLUME).unwrap();
        assert_eq!(HEXLOWER.encode(&blob), FROZEN_BLOB);
        assert_eq!(fingerprint(&kek), FROZEN_FINGERPRINT);
    }
    const FROZEN_BLOB: &str = concat!(
        "000102030405060708090a0b0c0d0e0f1011121314151617",
        "ea3f38394a2e1539600fb928e1cdae09b0cfe3f439fe080d71601b90ebe33242",
        "9d386c86ad5cdcf8217cce7fe5cef6e4"
    );
    const FROZEN_FINGERPRINT: &str = "4bdf1f1e32b85eb3";

    #[test]
    fn a_second_implementation_unwraps_the_frozen_blob() {
        use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
        let blob = HEXLOWER.decode(FROZEN_BLOB.as_bytes()).unwrap();
        let mut material = BASE64.decode(KEY.as_bytes()).unwrap();
        material.extend_from_slice(&blob[..12]);
        let key =
            LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &blake3::derive_key(WRAP_CONTEXT, &material)).unwrap());
        let nonce = Nonce::try_assume_unique_for_key(&blob[12..24]).unwrap();
        let mut rest = blob[24..].to_vec();
        assert_eq!(key.open_in_place(nonce, Aad::from(VOLUME.0), &mut rest).unwrap(), secret().expose());
    }
}
