//! What Transit says about a key, and the ciphertexts that it makes: bytes ↔ types, no I/O.
//! Invariant: nothing is wrapped with a key that would not bind it to its volume.

use super::errors;
use crate::crypto::Secret32;
use crate::kms::{Facts, KekId, KeyState, KmsError, KmsErrorKind, MAX_WRAPPED_LEN, TransitKek};
use data_encoding::BASE64;
use serde::Deserialize;
use std::collections::HashMap;
use std::time::SystemTime;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

/// The kinds of key that take associated data.
const AEADS: [&str; 4] = ["aes256-gcm96", "aes128-gcm96", "chacha20-poly1305", "xchacha20-poly1305"];

/// How a ciphertext is bound to its volume. The number is the first byte of a wrapped secret: frozen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Binding {
    /// The volume's id is the associated data.
    AssociatedData = 1,
    /// The volume's id is the context that the key is derived with.
    Context = 2,
}

impl Binding {
    pub(super) fn from_code(code: u8) -> Option<Self> {
        match code {
            1 => Some(Self::AssociatedData),
            2 => Some(Self::Context),
            _ => None,
        }
    }
}

/// Every reply of the server that is not an error.
#[derive(Deserialize)]
pub(super) struct Envelope<T> {
    /// The server's id of the call, which its audit log also has.
    #[serde(default)]
    pub(super) request_id: String,
    pub(super) data: T,
}

/// The reply to GET keys/NAME.
#[derive(Deserialize)]
pub(super) struct TransitKey {
    #[serde(rename = "type")]
    kind: String,
    latest_version: u32,
    #[serde(default)]
    derived: bool,
    #[serde(default)]
    min_encryption_version: u32,
    #[serde(default)]
    min_decryption_version: u32,
    /// Those below are destroyed.
    #[serde(default)]
    min_available_version: u32,
    /// OpenBao's alone.
    soft_deleted: Option<bool>,
    #[serde(default)]
    supports_encryption: bool,
    #[serde(default)]
    supports_decryption: bool,
    /// For symmetric keys: when each version was made, in seconds since 1970.
    #[serde(default)]
    keys: HashMap<String, serde_json::Value>,
    /// The server's clock when it answered.
    #[serde(skip)]
    pub(super) asked: Option<SystemTime>,
}

/// The reply to an encryption or a rewrap.
#[derive(Deserialize)]
pub(super) struct Ciphertext {
    ciphertext: String,
}

/// The reply to a decryption. Wipes the value, which is the secret in base64.
#[derive(Deserialize, Zeroize, ZeroizeOnDrop)]
pub(super) struct Plaintext {
    plaintext: String,
}

impl TransitKey {
    pub(super) fn is_derived(&self) -> bool {
        self.derived
    }

    pub(super) fn binding(&self) -> Binding {
        if self.derived { Binding::Context } else { Binding::AssociatedData }
    }

    /// What has become of a version. One that may not decrypt is not shown, and can be permitted again.
    pub(super) fn state_of(&self, version: u32) -> KeyState {
        if self.soft_deleted == Some(true) {
            KeyState::Scheduled { until: None, protected: None }
        } else if version < self.min_available_version {
            KeyState::Destroyed
        } else if version < self.min_decryption_version {
            KeyState::Suspended
        } else if version <= self.latest_version {
            KeyState::Usable
        } else {
            KeyState::NotShown(
                "the key has no such version yet: it was made anew, or comes from an old backup".to_owned(),
            )
        }
    }

    /// When a version was made, as the server says it.
    pub(super) fn made(&self, version: u32) -> Option<u64> {
        self.keys.get(&version.to_string())?.as_u64()
    }

    /// The version to wrap with, if the key is one to wrap with.
    pub(super) fn wraps_with(&self, kek: &TransitKek) -> Result<u32, KmsError> {
        if self.soft_deleted == Some(true) {
            return Err(errors::soft_deleted(kek));
        }
        if !AEADS.contains(&self.kind.as_str()) || !self.supports_encryption || !self.supports_decryption {
            let message = format!("{kek} is of type {}, which cannot bind a secret to its volume", self.kind);
            return Err(KmsError::new(KmsErrorKind::Misconfigured, message)
                .hint(format!("make one that can: bao write {}/keys/NAME type=aes256-gcm96", kek.mount)));
        }
        let version = kek.version.unwrap_or(self.latest_version);
        if version > self.latest_version || version < self.min_encryption_version || self.latest_version == 0 {
            let message = format!(
                "version {version} of {}/{} does not wrap: the newest is {}, and the lowest that may wrap {}",
                kek.mount, kek.name, self.latest_version, self.min_encryption_version
            );
            return Err(KmsError::new(KmsErrorKind::Misconfigured, message).hint("name the key without a version"));
        }
        Ok(version)
    }

    pub(super) fn facts(&self, kek: &TransitKek) -> Facts {
        let operations = [("encrypt", self.supports_encryption), ("decrypt", self.supports_decryption)];
        let operations = operations.into_iter().filter(|(_, may)| *may).map(|(name, _)| name.to_owned()).collect();
        let kind = if self.derived { format!("{}, derived", self.kind) } else { self.kind.clone() };
        let id = KekId(kek.at(kek.version.unwrap_or(self.latest_version)).to_string());
        Facts {
            enabled: self.soft_deleted.map(|deleted| !deleted),
            operations: Some(operations),
            service_time: self.asked,
            ..Facts::new(id, kind)
        }
    }
}

impl Ciphertext {
    /// The bytes behind `vault:vN:`, made by this version.
    pub(super) fn take(&self, version: u32) -> Result<Vec<u8>, KmsError> {
        let wrong = |what: &str| errors::not_transit(&format!("the ciphertext {what}"));
        let (made_by, text) = self
            .ciphertext
            .strip_prefix("vault:v")
            .and_then(|rest| rest.split_once(':'))
            .ok_or_else(|| wrong("does not begin with 'vault:v'"))?;
        if made_by != version.to_string() {
            return Err(wrong("is of another version than the one that was asked for"));
        }
        let bytes = BASE64.decode(text.as_bytes()).map_err(|_| wrong("is not base64"))?;
        match bytes.len() {
            32..MAX_WRAPPED_LEN => Ok(bytes),
            len => Err(wrong(&format!("is {len} bytes long"))),
        }
    }
}

/// A ciphertext as Transit writes it.
pub(super) fn ciphertext(version: u32, bytes: &[u8]) -> String {
    format!("vault:v{version}:{}", BASE64.encode(bytes))
}

impl Plaintext {
    pub(super) fn secret(&self) -> Result<Secret32, KmsError> {
        let bytes = BASE64.decode(self.plaintext.as_bytes()).map(Zeroizing::new);
        let bytes = bytes.map_err(|_| errors::not_transit("the plaintext is not base64"))?;
        Secret32::from_slice(&bytes).ok_or_else(|| {
            let message = format!("the server unwrapped {} bytes instead of 32", bytes.len());
            KmsError::new(KmsErrorKind::Damaged, message)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn kek() -> TransitKek {
        TransitKek::parse("transit+https://h/transit/keys/k").unwrap()
    }

    fn state(change: &str, value: Value) -> TransitKey {
        let mut document = json!({
            "type": "aes256-gcm96", "latest_version": 3, "derived": false, "min_encryption_version": 0,
            "soft_deleted": false, "supports_encryption": true, "supports_decryption": true,
            "keys": { "2": 1_795_828_428_u64, "3": 1_795_828_429_u64 },
        });
        document[change] = value;
        serde_json::from_value(document).unwrap()
    }

    #[test]
    fn a_key_that_binds_nothing_or_does_not_wrap_is_refused() {
        assert_eq!(state("derived", json!(false)).wraps_with(&kek()), Ok(3));
        assert_eq!(state("derived", json!(true)).binding(), Binding::Context);
        assert_eq!(state("derived", json!(false)).made(2), Some(1_795_828_428));
        let error = state("type", json!("rsa-4096")).wraps_with(&kek()).unwrap_err();
        assert!(error.hint.unwrap().contains("type=aes256-gcm96"));
        assert_eq!(state("soft_deleted", json!(true)).wraps_with(&kek()).unwrap_err().kind, KmsErrorKind::Refused);
        let pinned = state("min_encryption_version", json!(3)).wraps_with(&kek().at(2)).unwrap_err();
        assert_eq!(pinned.kind, KmsErrorKind::Misconfigured);
        assert!(state("derived", json!(false)).wraps_with(&kek().at(4)).is_err());
        let facts = state("derived", json!(true)).facts(&kek());
        assert_eq!(
            (facts.kek.0.as_str(), facts.kind.as_str()),
            ("transit+https://h/transit/keys/k/3", "aes256-gcm96, derived")
        );
    }

    #[test]
    fn the_state_of_a_version_is_what_the_server_shows() {
        let plain = || state("derived", json!(false));
        assert_eq!(plain().state_of(3), KeyState::Usable);
        assert!(matches!(plain().state_of(4), KeyState::NotShown(_)));
        assert_eq!(state("min_decryption_version", json!(3)).state_of(2), KeyState::Suspended);
        assert_eq!(state("min_available_version", json!(3)).state_of(2), KeyState::Destroyed);
        assert!(matches!(state("soft_deleted", json!(true)).state_of(3), KeyState::Scheduled { .. }));
    }

    #[test]
    fn a_ciphertext_is_stored_without_its_prefix_and_comes_back_with_it() {
        let bytes = [7; 60];
        let text = ciphertext(3, &bytes);
        assert!(text.starts_with("vault:v3:"));
        assert_eq!(Ciphertext { ciphertext: text.clone() }.take(3).unwrap(), bytes);
        let wrong = [
            "",
            "vault:v3:",
            "vault:v3:!",
            "vault:v33:AAAA",
            &text[1..],
            &ciphertext(3, &[0; 600]),
            &ciphertext(2, &bytes),
        ];
        for text in wrong {
            let error = Ciphertext { ciphertext: text.to_owned() }.take(3).unwrap_err();
            assert_eq!(error.kind, KmsErrorKind::Unreachable, "{text}");
        }
    }

    #[test]
    fn another_length_than_32_bytes_is_damage() {
        let plaintext = |text: &str| Plaintext { plaintext: text.to_owned() }.secret();
        assert_eq!(plaintext(&BASE64.encode(&[9; 32])).unwrap().expose(), &[9; 32]);
        assert_eq!(plaintext(&BASE64.encode(&[9; 31])).unwrap_err().kind, KmsErrorKind::Damaged);
        assert_eq!(plaintext("!").unwrap_err().kind, KmsErrorKind::Unreachable);
    }
}
