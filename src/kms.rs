//! The seam to a key management service: wrap and unwrap 32-byte secrets under a KEK that never leaves it.
//! One file per provider in `kms/`; each only translates its cloud's words. Depends on `units` and `crypto`.
//! Invariant: an error says what the caller can do about it, and a refusal is never confused with silence.

#[cfg(feature = "aws")]
mod aws;
#[cfg(feature = "azure")]
mod azure;
mod backoff;
mod connect;
#[cfg(test)]
pub(crate) mod fake;
#[cfg(feature = "gcp")]
mod gcp;
mod kek;
mod local;
#[cfg(any(feature = "aws", feature = "azure", feature = "gcp", feature = "transit"))]
#[allow(dead_code, reason = "each provider uses its part")]
mod rest;
mod ring;
mod state;
#[cfg(feature = "transit")]
mod transit;
#[cfg(any(feature = "aws", feature = "azure", feature = "gcp", feature = "transit"))]
mod worker;

#[cfg(feature = "aws")]
pub use aws::AwsKms;
#[cfg(feature = "azure")]
pub use azure::AzureKms;
pub use backoff::Backoff;
pub use connect::{
    AwsKeys, AwsOptions, ConnectOptions, Credentials, GcpOptions, SecretId, TransitLogin, TransitOptions, connect,
    connector,
};
#[cfg(feature = "gcp")]
pub use gcp::GcpKms;
pub use kek::{AwsKek, AwsResource, AzureKek, GcpKek, KekRef, TransitKek};
pub use local::{KEY_MALFORMED, KEY_REPLACED, LocalKms};
pub use ring::{Connector, Ring};
pub use state::KeyState;
#[cfg(feature = "transit")]
pub use transit::TransitKms;

use crate::crypto::Secret32;
use crate::units::VolumeId;
use std::fmt;
use std::time::{Duration, SystemTime};

/// The full name of a KEK *including its version*, as its own cloud writes it:
/// `https://NAME.vault.azure.net/keys/KEY/VERSION`, `transit+https://HOST/MOUNT/keys/NAME/VERSION`, a key's ARN at AWS,
/// `projects/…/cryptoKeyVersions/N` at Google; for a raw key `file:PATH#FINGERPRINT`, `credential:NAME#FINGERPRINT`, or
/// `raw:FINGERPRINT` if it has no place.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KekId(pub String);

impl KekId {
    /// What the key is, wherever it is: the fingerprint of a raw key, and the whole id of any other.
    pub fn identity(&self) -> &str {
        local::fingerprint_of(self).unwrap_or(&self.0)
    }

    /// Whether the two name one and the same key.
    pub fn is_same_key(&self, other: &Self) -> bool {
        self.identity() == other.identity()
    }
}

impl fmt::Display for KekId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// How a secret was wrapped. The number is what is written to disk: frozen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum WrapAlgorithm {
    /// RSA-OAEP with SHA-256 and MGF1-SHA-256 (RFC 8017), blob as long as the modulus.
    RsaOaep256 = 1,
    /// The local provider's AES-256-GCM with a 24-byte nonce: nonce ‖ ciphertext ‖ tag, 72 bytes.
    LocalAes256Gcm = 2,
    /// AES-256 key wrap (RFC 3394) by a Managed HSM, 40 bytes.
    Aes256Kw = 3,
    /// A ciphertext of AWS KMS, bound to the volume's id by its encryption context.
    AwsKms = 4,
    /// A ciphertext of Google Cloud KMS, bound to the volume's id by its additional authenticated data.
    GcpKms = 5,
    /// Vault's or OpenBao's Transit engine: how it is bound to its volume, then the ciphertext without its prefix.
    Transit = 6,
}

impl WrapAlgorithm {
    /// The algorithm with this number on disk.
    pub fn from_code(code: u8) -> Option<Self> {
        match code {
            1 => Some(Self::RsaOaep256),
            2 => Some(Self::LocalAes256Gcm),
            3 => Some(Self::Aes256Kw),
            4 => Some(Self::AwsKms),
            5 => Some(Self::GcpKms),
            6 => Some(Self::Transit),
            _ => None,
        }
    }
}

/// The longest blob that a provider may return, in bytes: RSA-4096, and the room in a file's header.
pub const MAX_WRAPPED_LEN: usize = 512;

/// A secret as the KMS wrapped it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Wrapped {
    /// The KEK, with its version, that has to be asked to unwrap it.
    pub kek: KekId,
    /// How it was wrapped.
    pub algorithm: WrapAlgorithm,
    /// The wrapped bytes, at most [`MAX_WRAPPED_LEN`].
    pub blob: Vec<u8>,
}

/// By which ids a call is known in the service's own log; `None` where the service has no such log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CallIds {
    /// The one that the service gave it.
    pub request: Option<String>,
    /// The one that we gave it.
    pub client_request: Option<String>,
}

/// What an unwrap brought.
#[derive(Debug)]
pub struct Unwrapped {
    /// The secret.
    pub secret: Secret32,
    /// The call that brought it.
    pub ids: CallIds,
}

/// A key management service with one KEK of one volume. Calls block, for [`Kms::deadline`] at the most:
/// never call them on a thread that serves the kernel.
pub trait Kms: Send + Sync {
    /// Wraps a secret under the newest version of the KEK. With an RSA key this may happen locally and
    /// proves nothing about the KMS. `volume` goes into the context where the service binds one.
    ///
    /// # Errors
    /// See [`KmsError`].
    fn wrap(&self, secret: &Secret32, volume: VolumeId) -> Result<Wrapped, KmsError>;

    /// Unwraps with exactly the KEK version that the blob names. Always asks the KMS.
    ///
    /// # Errors
    /// See [`KmsError`].
    fn unwrap(&self, wrapped: &Wrapped, volume: VolumeId) -> Result<Unwrapped, KmsError>;

    /// The same secret wrapped by the newest version of the KEK, without its coming here; `None` where the service
    /// cannot do that, and an unwrap and a wrap have to.
    ///
    /// # Errors
    /// See [`KmsError`].
    fn rewrap(&self, _wrapped: &Wrapped, _volume: VolumeId) -> Result<Option<Wrapped>, KmsError> {
        Ok(None)
    }

    /// The newest version of the KEK, asked of the KMS now.
    ///
    /// # Errors
    /// See [`KmsError`].
    fn current(&self) -> Result<KekId, KmsError>;

    /// What the service says about the newest version of the KEK, asked now. For people, not for decisions:
    /// a key that is called enabled may still refuse to unwrap.
    ///
    /// # Errors
    /// See [`KmsError`].
    fn facts(&self) -> Result<Facts, KmsError>;

    /// The number that [`set_counter`](Self::set_counter) left for this volume with this version of the KEK; `None` if
    /// there is none.
    ///
    /// # Errors
    /// See [`KmsError`]; `Misconfigured` where the service keeps no numbers.
    fn counter(&self, _kek: &KekId, _volume: VolumeId) -> Result<Option<u64>, KmsError> {
        Err(KmsError::no_counter())
    }

    /// Leaves a number for this volume with this version of the KEK. Two at once may undo each other's.
    ///
    /// # Errors
    /// As for [`counter`](Self::counter).
    fn set_counter(&self, _kek: &KekId, _volume: VolumeId, _value: u64) -> Result<(), KmsError> {
        Err(KmsError::no_counter())
    }

    /// What the service says has become of this version of the KEK, asked now, for whoever has to prove it. Without
    /// evidence it is [`KeyState::NotShown`], and so is every failure.
    fn key_state(&self, _key: &KekId) -> KeyState {
        KeyState::NotShown("this kind of key does not say".to_owned())
    }

    /// What whoever relies on this key should know, a line each.
    fn warnings(&self) -> Vec<String> {
        Vec::new()
    }

    /// The volume is locked: wipes what is kept of the KEK itself, where anything is.
    fn forget(&self) {}

    /// The longest that one call may take, its own retries included.
    fn deadline(&self) -> Duration;
}

/// What a KMS says about a KEK; `None` where it does not say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The KEK with its version.
    pub kek: KekId,
    /// What kind of key it is: `RSA-3072`, `AES-256`.
    pub kind: String,
    /// Whether it is enabled.
    pub enabled: Option<bool>,
    /// From when on it may be used to wrap.
    pub not_before: Option<SystemTime>,
    /// Until when it may be used to wrap. Azure goes on unwrapping after it: expiry does not revoke.
    pub expires: Option<SystemTime>,
    /// What it may be used for, in the service's words.
    pub operations: Option<Vec<String>>,
    /// Whether a deleted key can be brought back, in the service's words: `Recoverable`, `Recoverable+Purgeable` …
    pub recovery_level: Option<String>,
    /// The service's clock when it answered, to the second.
    pub service_time: Option<SystemTime>,
}

impl Facts {
    /// A KEK of which nothing else is said.
    pub fn new(kek: KekId, kind: impl Into<String>) -> Self {
        Self {
            kek,
            kind: kind.into(),
            enabled: None,
            not_before: None,
            expires: None,
            operations: None,
            recovery_level: None,
            service_time: None,
        }
    }
}

/// Which of the five answers a failed call to a KMS amounts to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KmsErrorKind {
    /// The KMS answered, and said no: disabled, deleted, access removed, firewall. This is a revocation.
    Refused,
    /// No usable answer: timeout, DNS, TLS, 5xx, throttled. Says nothing about the key's owner's will.
    Unreachable,
    /// The wrapped bytes are not what this key wrapped: damage, or the wrong key. Never a revocation.
    Damaged,
    /// The request itself is wrong: unknown form of key, key that cannot wrap, bad CA file.
    Misconfigured,
    /// No credentials, or the identity provider refused them before the KMS was asked.
    Credentials,
}

/// The [`KmsError::code`] of a key whose owner does not let it unwrap. To a lease it is a refusal.
pub const OPERATION_FORBIDDEN: &str = "KeyOperationForbidden";

/// The [`KmsError::code`] of a key that wraps nothing more, because its time is over.
pub const KEY_EXPIRED: &str = "KeyExpired";

/// The [`KmsError::code`] of a key whose time has not begun.
pub const KEY_NOT_YET_VALID: &str = "KeyNotYetValid";

impl KmsErrorKind {
    /// The kind's name in logs and in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Unreachable => "unreachable",
            Self::Damaged => "damaged",
            Self::Misconfigured => "misconfigured",
            Self::Credentials => "credentials",
        }
    }
}

/// The [`KmsError::code`] of a service that had too much to do, whatever its own word for it.
pub const THROTTLED: &str = "Throttled";

/// Why a call to a KMS failed, in words for a person and in a kind for the program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KmsError {
    /// What it amounts to.
    pub kind: KmsErrorKind,
    /// The service's own code where it gave one (`KeyDisabled`, `ForbiddenByRbac`, `Throttled` …).
    pub code: Option<String>,
    /// What happened, lower case, without a final full stop, and without secrets.
    pub message: String,
    /// What to do about it, with the exact command where there is one.
    pub hint: Option<String>,
    /// The ids of the call, which the service's own log also has.
    pub ids: Box<CallIds>,
    /// How long the service asked to be left alone.
    pub retry_after: Option<Duration>,
}

impl KmsError {
    /// An error of this kind with a message and nothing else.
    pub fn new(kind: KmsErrorKind, message: impl Into<String>) -> Self {
        Self { kind, code: None, message: message.into(), hint: None, ids: Box::default(), retry_after: None }
    }

    /// The service keeps no numbers.
    pub fn no_counter() -> Self {
        Self::new(KmsErrorKind::Misconfigured, "this KMS keeps no counter, so it cannot guard against rollback")
            .hint("keep it in a file: --rollback-guard FILE")
    }

    /// The same with a hint.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl fmt::Display for KmsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if let Some(code) = &self.code {
            write!(f, " ({code})")?;
        }
        Ok(())
    }
}

impl std::error::Error for KmsError {}
