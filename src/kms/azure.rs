//! Azure Key Vault and Managed HSM. Wraps here, with the public half of an RSA key that is fetched once, so that
//! files can be created while the vault throttles; an AES key of a Managed HSM wraps there. Unwraps there. Depends on the seam and Microsoft's SDK, which
//! stays on one thread of its own. `client` builds it, `desk` asks, `key` reads what the vault says about a key,
//! `errors` sorts what it refuses.
//! Invariant: a secret is unwrapped by exactly the key version that wrapped it, at the vault that was configured.

mod client;
mod desk;
mod errors;
mod key;

use super::worker::Worker;
use super::{
    AzureKek, ConnectOptions, Facts, KekId, KeyState, Kms, KmsError, KmsErrorKind, Unwrapped, WrapAlgorithm, Wrapped,
};
use crate::crypto::Secret32;
use crate::units::VolumeId;
use azure_security_keyvault_keys::models::EncryptionAlgorithm;
use desk::{Answer, Desk, Question};
use key::{VaultKey, Way, Wrapper};
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use zeroize::Zeroizing;

/// One key of one vault.
pub struct AzureKms {
    kek: AzureKek,
    worker: Worker<Desk>,
    /// The version to wrap with. Held during the call that fetches it: who wraps meanwhile needs it too.
    wrapper: Mutex<Option<Arc<Wrapper>>>,
}

impl AzureKms {
    /// The key with this name. Starts a thread, so a process that forks has to do that first; talks to nobody yet.
    ///
    /// # Errors
    /// [`KmsErrorKind::Misconfigured`] for a CA file that cannot be used, [`KmsErrorKind::Credentials`] when there
    /// is no identity to show.
    pub fn new(kek: AzureKek, options: &ConnectOptions) -> Result<Self, KmsError> {
        let worker = Worker::start("azure", Desk::new(kek.clone(), options)?, options.deadline)?;
        Ok(Self { kek, worker, wrapper: Mutex::new(None) })
    }

    /// What the vault says about the version to wrap with.
    fn ask(&self) -> Result<VaultKey, KmsError> {
        self.ask_for(None)
    }

    fn ask_for(&self, version: Option<String>) -> Result<VaultKey, KmsError> {
        match self.worker.ask(version.map_or(Question::Key, Question::Version))? {
            Answer::Key(key) => Ok(key),
            _ => Err(other_question()),
        }
    }

    fn fetch(&self) -> Result<Arc<Wrapper>, KmsError> {
        let key = self.ask()?;
        Ok(Arc::new(key.wrapper(&self.kek, SystemTime::now())?))
    }

    /// What the vault says of a version. Only its own words count: whatever else answers, or refuses to, shows nothing.
    fn state(&self, version: &str) -> KeyState {
        let not_shown = |error: &KmsError| KeyState::NotShown(error.to_string());
        match self.worker.ask(Question::Version(version.to_owned())) {
            Ok(Answer::Key(key)) => match key.facts() {
                Ok(facts) if facts.enabled == Some(false) => KeyState::Suspended,
                Ok(_) => KeyState::Usable,
                Err(error) => not_shown(&error),
            },
            Ok(_) => KeyState::NotShown("the vault answered another question".to_owned()),
            // Some vaults show a disabled key, and some do not.
            Err(error) if error.code.as_deref() == Some("KeyDisabled") => KeyState::Suspended,
            Err(error) if is_missing(&error) => self.state_of_missing(version),
            Err(error) => not_shown(&error),
        }
    }

    /// What has become of a version that the vault does not have.
    fn state_of_missing(&self, version: &str) -> KeyState {
        let still_missing = || {
            let again = self.worker.ask(Question::Version(version.to_owned()));
            again.err().is_some_and(|error| is_missing(&error))
        };
        match self.worker.ask(Question::Deleted) {
            Ok(Answer::Deleted(deleted)) => deleted.state(),
            Ok(_) => KeyState::NotShown("the vault answered another question".to_owned()),
            // Asked once more: it may have been recovered between the two answers.
            Err(error) if is_missing(&error) && still_missing() => KeyState::Destroyed,
            Err(error) => KeyState::NotShown(format!(
                "the vault has no such key, and does not show whether a deleted one can be brought back: {error}"
            )),
        }
    }

    /// The version of ours that wrapped this, and how.
    fn recorded(&self, wrapped: &Wrapped) -> Result<(String, EncryptionAlgorithm), KmsError> {
        let algorithm = match wrapped.algorithm {
            WrapAlgorithm::RsaOaep256 => EncryptionAlgorithm::RsaOaep256,
            WrapAlgorithm::Aes256Kw => EncryptionAlgorithm::A256Kw,
            _ => {
                let message = format!("the secret was wrapped by {}, and with no algorithm of Key Vault", wrapped.kek);
                return Err(KmsError::new(KmsErrorKind::Damaged, message).hint("name the KEK that wrapped it"));
            }
        };
        Ok((self.version_of(&wrapped.kek)?, algorithm))
    }

    /// The version that this id names, if it is of our key.
    fn version_of(&self, kek: &KekId) -> Result<String, KmsError> {
        let other = |what: &str| {
            let message = format!("the secret was wrapped by {kek}, {what}");
            KmsError::new(KmsErrorKind::Damaged, message).hint("name the KEK that wrapped it")
        };
        let recorded = AzureKek::parse(&kek.0).map_err(|_| other("not by a Key Vault key"))?;
        // The host may differ: a private endpoint has another one than the key's id.
        if !recorded.name.eq_ignore_ascii_case(&self.kek.name) {
            return Err(other(&format!("not by {}", self.kek)));
        }
        recorded.version.ok_or_else(|| other("and its version is not recorded"))
    }
}

fn other_question() -> KmsError {
    errors::not_key_vault("it answered another question")
}

impl Kms for AzureKms {
    fn wrap(&self, secret: &Secret32, _volume: VolumeId) -> Result<Wrapped, KmsError> {
        let wrapper = {
            let mut wrapper = self.wrapper.lock();
            match &*wrapper {
                Some(wrapper) => Arc::clone(wrapper),
                None => Arc::clone(wrapper.insert(self.fetch()?)),
            }
        };
        let (algorithm, blob) = match &wrapper.way {
            Way::Here(public) => (WrapAlgorithm::RsaOaep256, public.wrap(secret)?),
            Way::There(version) => {
                let secret = Zeroizing::new(secret.expose().to_vec());
                match self.worker.ask(Question::Wrap { version: version.clone(), secret })? {
                    Answer::Wrapped(blob) => (WrapAlgorithm::Aes256Kw, blob),
                    _ => return Err(other_question()),
                }
            }
        };
        Ok(Wrapped { kek: wrapper.id.clone(), algorithm, blob })
    }

    fn unwrap(&self, wrapped: &Wrapped, _volume: VolumeId) -> Result<Unwrapped, KmsError> {
        let (version, algorithm) = self.recorded(wrapped)?;
        match self.worker.ask(Question::Unwrap { version, algorithm, blob: wrapped.blob.clone() })? {
            Answer::Secret(unwrapped) => Ok(unwrapped),
            _ => Err(other_question()),
        }
    }

    fn current(&self) -> Result<KekId, KmsError> {
        let fetched = self.fetch()?;
        let id = fetched.id.clone();
        *self.wrapper.lock() = Some(fetched);
        Ok(id)
    }

    fn facts(&self) -> Result<Facts, KmsError> {
        self.ask()?.facts()
    }

    fn counter(&self, kek: &KekId, volume: VolumeId) -> Result<Option<u64>, KmsError> {
        let tags = self.ask_for(Some(self.version_of(kek)?))?.tags;
        let Some(value) = tags.get(&tag(volume)) else { return Ok(None) };
        value.parse().map(Some).map_err(|_| {
            let message = format!("the tag {} of {kek} is no number", tag(volume));
            KmsError::new(KmsErrorKind::Misconfigured, message).hint("see who changed it: az keyvault key show")
        })
    }

    /// The vault takes all tags of a version at once: what others changed between the two calls is undone.
    fn set_counter(&self, kek: &KekId, volume: VolumeId, value: u64) -> Result<(), KmsError> {
        let version = self.version_of(kek)?;
        let mut tags = self.ask_for(Some(version.clone()))?.tags;
        let value = value.to_string();
        if tags.get(&tag(volume)) != Some(&value) {
            tags.insert(tag(volume), value);
            self.worker.ask(Question::Tag { version, tags })?;
        }
        Ok(())
    }

    fn key_state(&self, key: &KekId) -> KeyState {
        let not_shown = |what: &str| KeyState::NotShown(format!("{key} {what}"));
        let Ok(recorded) = AzureKek::parse(&key.0) else { return not_shown("is no Key Vault key") };
        // A vault that never had the key would say that it is gone.
        if recorded.host() != self.kek.host() {
            return not_shown(&format!("is of another vault than the one that was asked, {}", self.kek.host()));
        }
        match &recorded.version {
            Some(version) if recorded.name.eq_ignore_ascii_case(&self.kek.name) => self.state(version),
            _ => not_shown("is not the key that was asked for"),
        }
    }

    fn deadline(&self) -> Duration {
        self.worker.deadline()
    }
}

/// The name of the tag that holds a volume's counter.
fn tag(volume: VolumeId) -> String {
    format!("kmsfs-{volume}")
}

/// Whether the vault itself says that there is no such key.
fn is_missing(error: &KmsError) -> bool {
    error.kind == KmsErrorKind::Refused && error.code.as_deref() == Some("KeyNotFound")
}

impl std::fmt::Debug for AzureKms {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AzureKms").field("kek", &self.kek).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kms::Credentials;

    const VERSION: &str = "0123456789abcdef0123456789abcdef";

    fn kms() -> AzureKms {
        let options = ConnectOptions {
            credentials: Credentials::DeveloperTools,
            deadline: Duration::from_secs(5),
            ..ConnectOptions::from_variables(|_| None)
        };
        AzureKms::new(AzureKek::parse("https://v.localhost:1/keys/k").unwrap(), &options).unwrap()
    }

    #[test]
    fn what_another_key_wrapped_is_damage_and_the_vault_is_not_asked() {
        let kms = kms();
        let wrapped = |kek: &str, algorithm| Wrapped { kek: KekId(kek.into()), algorithm, blob: vec![0; 256] };
        let rsa = WrapAlgorithm::RsaOaep256;
        for wrapped in [
            wrapped(&format!("https://v.localhost/keys/other/{VERSION}"), rsa),
            wrapped("https://v.localhost/keys/k", rsa),
            wrapped("file:/k#0123456789abcdef", rsa),
            wrapped(&format!("https://v.localhost/keys/k/{VERSION}"), WrapAlgorithm::LocalAes256Gcm),
        ] {
            let error = kms.unwrap(&wrapped, VolumeId([0; 16])).unwrap_err();
            assert_eq!(error.kind, KmsErrorKind::Damaged, "{wrapped:?}");
        }
    }

    #[test]
    fn a_vault_that_never_had_a_key_is_not_believed_when_it_says_that_it_is_gone() {
        let kms = kms();
        for key in [
            format!("https://other.localhost:1/keys/k/{VERSION}"),
            format!("https://v.localhost:1/keys/other/{VERSION}"),
            "https://v.localhost:1/keys/k".to_owned(),
            "file:/k#0123456789abcdef".to_owned(),
            // Nothing listens there.
            format!("https://v.localhost:1/keys/k/{VERSION}"),
        ] {
            assert!(matches!(kms.key_state(&KekId(key.clone())), KeyState::NotShown(_)), "{key}");
        }
    }

    #[test]
    fn a_key_id_with_another_host_is_taken_to_the_configured_vault() {
        let wrapped = Wrapped {
            kek: KekId(format!("https://v.vault.azure.net/keys/K/{VERSION}")),
            algorithm: WrapAlgorithm::RsaOaep256,
            blob: vec![0; 256],
        };
        // Nothing listens on port 1 of loopback: an answer from there, not from Azure.
        let error = kms().unwrap(&wrapped, VolumeId([0; 16])).unwrap_err();
        assert_eq!(error.kind, KmsErrorKind::Unreachable, "{error:?}");
        assert!(error.message.contains("v.localhost"), "{error:?}");
    }
}
