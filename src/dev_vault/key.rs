//! One key with its versions, and what a version may be used for at a given time.

use super::material::{Algorithm, Material};
use super::names::{KeyName, new_version};
use super::refusal::Refusal;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::io;
use std::time::{SystemTime, UNIX_EPOCH};
use zeroize::Zeroizing;

/// Seconds since 1970, as the API counts time.
pub type Seconds = u64;

/// How long a deleted key can be recovered.
pub const RECOVERABLE_DAYS: u64 = 90;

/// What the API lets a new RSA key do where nothing is said.
const ALL_OPERATIONS: [&str; 6] = ["encrypt", "decrypt", "sign", "verify", "wrapKey", "unwrapKey"];

/// The current time.
pub fn now() -> Seconds {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// A key: its versions, the newest last.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Key {
    /// As it was created.
    pub name: KeyName,
    /// Never empty.
    pub versions: Vec<KeyVersion>,
    /// Set while it is deleted and can be recovered.
    pub deleted: Option<Deletion>,
    /// As the client set it; nothing is rotated by itself.
    pub rotation_policy: Option<Value>,
}

/// When a key was deleted.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Deletion {
    /// When.
    pub at: Seconds,
    /// Until when it can be recovered.
    pub purged_at: Seconds,
}

/// One version of a key.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct KeyVersion {
    /// 32 hexadecimal digits.
    pub id: String,
    /// `RSA`, `RSA-HSM` or `oct-HSM`.
    pub kty: String,
    /// When it was made.
    pub created: Seconds,
    /// When its attributes last changed.
    pub updated: Seconds,
    /// Limits that can change.
    #[serde(flatten)]
    pub limits: Limits,
    /// The client's own labels.
    pub tags: BTreeMap<String, String>,
    /// The key itself.
    #[serde(flatten)]
    pub material: Material,
}

/// What a version is limited to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// A disabled version does nothing.
    pub enabled: bool,
    /// Before this time it wraps nothing.
    pub not_before: Option<Seconds>,
    /// From this time on it wraps nothing, but still unwraps.
    pub expires: Option<Seconds>,
    /// `key_ops`.
    pub operations: Vec<String>,
}

impl Default for Limits {
    fn default() -> Self {
        Self { enabled: true, not_before: None, expires: None, operations: ALL_OPERATIONS.map(String::from).to_vec() }
    }
}

/// A cryptographic operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// `wrapkey`.
    Wrap,
    /// `unwrapkey`.
    Unwrap,
    /// `encrypt`.
    Encrypt,
    /// `decrypt`.
    Decrypt,
}

impl Use {
    /// Its name in `key_ops` and in messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Wrap => "wrapKey",
            Self::Unwrap => "unwrapKey",
            Self::Encrypt => "encrypt",
            Self::Decrypt => "decrypt",
        }
    }

    /// Whether it makes new ciphertext; what exists can be opened after a key's end.
    fn protects(self) -> bool {
        matches!(self, Self::Wrap | Self::Encrypt)
    }
}

impl Key {
    /// The newest version.
    pub fn newest(&self) -> Option<&KeyVersion> {
        self.versions.last()
    }

    /// This version, or the newest where none is named.
    ///
    /// # Errors
    /// 404 where there is no such version.
    pub fn version(&self, id: Option<&str>) -> Result<&KeyVersion, Refusal> {
        match id {
            None => self.newest(),
            Some(id) => self.versions.iter().find(|version| version.id.eq_ignore_ascii_case(id)),
        }
        .ok_or_else(|| Refusal::key_not_found(&format!("{}/{}", self.name, id.unwrap_or_default())))
    }

    /// The same, to change it.
    ///
    /// # Errors
    /// 404 where there is no such version.
    pub fn version_mut(&mut self, id: Option<&str>) -> Result<&mut KeyVersion, Refusal> {
        let id = self.version(id)?.id.clone();
        self.versions.iter_mut().find(|version| version.id == id).ok_or_else(|| Refusal::key_not_found(&id))
    }
}

impl KeyVersion {
    /// A new version with this key.
    ///
    /// # Errors
    /// Where the operating system has no random bytes.
    pub fn new(material: Material, kty: &str, limits: Limits, tags: BTreeMap<String, String>) -> io::Result<Self> {
        let created = now();
        Ok(Self { id: new_version()?, kty: kty.to_owned(), created, updated: created, limits, tags, material })
    }

    /// Runs one operation on one block, if the version allows it at this time.
    ///
    /// # Errors
    /// 403 where it does not, 400 where the block is not one that the key can take.
    pub fn apply(
        &self,
        operation: Use,
        algorithm: Algorithm,
        block: &[u8],
        now: Seconds,
    ) -> Result<Zeroizing<Vec<u8>>, Refusal> {
        self.limits.permit(operation, now)?;
        self.material.apply(operation, algorithm, block)
    }
}

impl Limits {
    fn permit(&self, operation: Use, now: Seconds) -> Result<(), Refusal> {
        let name = operation.name();
        if !self.enabled {
            return Err(Refusal::key_disabled(name));
        }
        if !self.operations.iter().any(|allowed| allowed.eq_ignore_ascii_case(name)) {
            return Err(Refusal::operation_forbidden(name));
        }
        if operation.protects() {
            if self.not_before.is_some_and(|start| now < start) {
                return Err(Refusal::key_not_yet_valid(name));
            }
            if self.expires.is_some_and(|end| end <= now) {
                return Err(Refusal::key_expired(name));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const USES: [Use; 4] = [Use::Wrap, Use::Unwrap, Use::Encrypt, Use::Decrypt];

    fn inner_codes(limits: &Limits) -> [Option<&'static str>; 4] {
        USES.map(|operation| limits.permit(operation, 100).err().and_then(|refusal| refusal.inner))
    }

    #[test]
    fn a_disabled_version_does_nothing() {
        let limits = Limits { enabled: false, ..Limits::default() };
        assert_eq!(inner_codes(&limits), [Some("KeyDisabled"); 4]);
    }

    #[test]
    fn outside_its_time_a_version_opens_and_does_not_protect() {
        let expired = Limits { expires: Some(100), ..Limits::default() };
        assert_eq!(inner_codes(&expired), [Some("KeyExpired"), None, Some("KeyExpired"), None]);
        let early = Limits { not_before: Some(101), ..Limits::default() };
        assert_eq!(inner_codes(&early), [Some("KeyNotYetValid"), None, Some("KeyNotYetValid"), None]);
    }

    #[test]
    fn within_its_time_a_version_does_everything() {
        let limits = Limits { not_before: Some(100), expires: Some(101), ..Limits::default() };
        assert_eq!(inner_codes(&limits), [None; 4]);
    }

    #[test]
    fn an_operation_that_is_not_listed_is_not_permitted() {
        let limits = Limits { operations: vec!["unwrapkey".into()], ..Limits::default() };
        let no = Some("KeyOperationForbidden");
        assert_eq!(inner_codes(&limits), [no, None, no, no]);
    }
}
