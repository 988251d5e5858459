//! The Transit engine of Vault and OpenBao: wraps and unwraps there, with the volume's id as associated data, or as the
//! context of a derived key. `desk` asks, `session` keeps the token, `document` reads what the server says about a key,
//! `errors` sorts what it refuses. Depends on the seam and `rest`.
//! Invariant: a secret is unwrapped by exactly the key version that wrapped it, and only for its own volume; nothing
//! that is asked here makes a key.

mod desk;
mod document;
mod errors;
mod session;

use super::worker::Worker;
use super::{
    ConnectOptions, Facts, KekId, KeyState, Kms, KmsError, KmsErrorKind, TransitKek, Unwrapped, WrapAlgorithm, Wrapped,
};
use crate::crypto::Secret32;
use crate::units::VolumeId;
use desk::{Answer, Desk, Question};
use document::{Binding, TransitKey};
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Duration;

/// One key of one Transit engine.
pub struct TransitKms {
    kek: TransitKek,
    worker: Worker<Desk>,
    /// What is known of the key to wrap with. Held during the call that fetches it: who wraps meanwhile needs it too.
    state: Mutex<Option<Arc<TransitKey>>>,
}

impl TransitKms {
    /// The key with this name. Starts a thread, so a process that forks has to do that first; talks to nobody yet.
    ///
    /// # Errors
    /// [`KmsErrorKind::Misconfigured`] for a CA file that cannot be used, [`KmsErrorKind::Credentials`] when there
    /// is no identity to show.
    pub fn new(kek: TransitKek, options: &ConnectOptions) -> Result<Self, KmsError> {
        let worker = Worker::start("transit", Desk::new(kek.clone(), options)?, options.deadline)?;
        Ok(Self { kek, worker, state: Mutex::new(None) })
    }

    fn ask(&self) -> Result<TransitKey, KmsError> {
        match self.worker.ask(Question::Key)? {
            Answer::Key(state) => Ok(state),
            _ => Err(errors::not_transit("it answered another question")),
        }
    }

    fn state(&self) -> Result<Arc<TransitKey>, KmsError> {
        let mut state = self.state.lock();
        match &*state {
            Some(state) => Ok(Arc::clone(state)),
            None => Ok(Arc::clone(state.insert(Arc::new(self.ask()?)))),
        }
    }

    /// Asks something about the version to wrap with. If that has been retired meanwhile, a newer one is looked for,
    /// once.
    fn with_newest(&self, question: impl Fn(u32, Binding) -> Question) -> Result<(u32, Binding, Vec<u8>), KmsError> {
        let try_with = |state: &TransitKey| {
            let (version, binding) = (state.wraps_with(&self.kek)?, state.binding());
            match self.worker.ask(question(version, binding))? {
                Answer::Ciphertext(ciphertext) => Ok((version, binding, ciphertext)),
                _ => Err(errors::not_transit("it answered another question")),
            }
        };
        let state = self.state()?;
        match try_with(&state) {
            Err(error) if error.code.as_deref() == Some(errors::VERSION_RETIRED) && self.kek.version.is_none() => {
                let state = Arc::new(self.ask()?);
                *self.state.lock() = Some(Arc::clone(&state));
                try_with(&state)
            }
            outcome => outcome,
        }
    }

    fn wrapped(&self, (version, binding, ciphertext): (u32, Binding, Vec<u8>)) -> Wrapped {
        let mut blob = vec![binding as u8];
        blob.extend_from_slice(&ciphertext);
        Wrapped { kek: KekId(self.kek.at(version).to_string()), algorithm: WrapAlgorithm::Transit, blob }
    }

    /// The version of ours that wrapped this, and how.
    fn recorded(&self, wrapped: &Wrapped) -> Result<(u32, Binding), KmsError> {
        let other = |what: &str| {
            let message = format!("the secret was wrapped by {}, {what}", wrapped.kek);
            KmsError::new(KmsErrorKind::Damaged, message).hint("name the KEK that wrapped it")
        };
        if wrapped.algorithm != WrapAlgorithm::Transit {
            return Err(other("and not by a Transit engine"));
        }
        let recorded = TransitKek::parse(&wrapped.kek.0).map_err(|_| other("not by a Transit key"))?;
        // The server may have got another name.
        if (&recorded.mount, &recorded.name) != (&self.kek.mount, &self.kek.name) {
            return Err(other(&format!("not by {}", self.kek)));
        }
        let version = recorded.version.ok_or_else(|| other("and its version is not recorded"))?;
        let binding = wrapped.blob.first().and_then(|code| Binding::from_code(*code));
        Ok((version, binding.ok_or_else(|| other("and how it is bound to its volume is not recorded"))?))
    }
}

impl Kms for TransitKms {
    fn wrap(&self, secret: &Secret32, volume: VolumeId) -> Result<Wrapped, KmsError> {
        let wrapped = self.with_newest(|version, binding| Question::wrap(secret, version, binding, volume))?;
        Ok(self.wrapped(wrapped))
    }

    fn unwrap(&self, wrapped: &Wrapped, volume: VolumeId) -> Result<Unwrapped, KmsError> {
        let (version, binding) = self.recorded(wrapped)?;
        let ciphertext = document::ciphertext(version, &wrapped.blob[1..]);
        // When that version was made, if it has been asked for: a key that was made anew has a younger one.
        let made = self.state.lock().as_ref().and_then(|state| state.made(version));
        match self.worker.ask(Question::Unwrap { ciphertext, version, binding, volume, made })? {
            Answer::Secret(unwrapped) => Ok(unwrapped),
            _ => Err(errors::not_transit("it answered another question")),
        }
    }

    /// Only a derived key can: Transit's `rewrap` takes no associated data.
    fn rewrap(&self, wrapped: &Wrapped, volume: VolumeId) -> Result<Option<Wrapped>, KmsError> {
        let Ok((old, Binding::Context)) = self.recorded(wrapped) else { return Ok(None) };
        if !self.state()?.is_derived() {
            return Ok(None);
        }
        let ciphertext = document::ciphertext(old, &wrapped.blob[1..]);
        let rewrapped =
            self.with_newest(|version, _| Question::Rewrap { ciphertext: ciphertext.clone(), version, volume })?;
        Ok(Some(self.wrapped(rewrapped)))
    }

    fn current(&self) -> Result<KekId, KmsError> {
        let state = self.ask()?;
        let id = self.kek.at(state.wraps_with(&self.kek)?);
        *self.state.lock() = Some(Arc::new(state));
        Ok(KekId(id.to_string()))
    }

    fn facts(&self) -> Result<Facts, KmsError> {
        Ok(self.ask()?.facts(&self.kek))
    }

    fn key_state(&self, key: &KekId) -> KeyState {
        let not_shown = |what: &str| KeyState::NotShown(format!("{key} {what}"));
        let Ok(recorded) = TransitKek::parse(&key.0) else { return not_shown("is no Transit key") };
        // A server that never had the key would say that it is gone.
        if recorded.server != self.kek.server {
            return not_shown(&format!("is of another server than the one that was asked, {}", self.kek.server));
        }
        let Some(version) = recorded.version.filter(|version| recorded == self.kek.at(*version)) else {
            return not_shown("is not the key that was asked for");
        };
        match self.ask() {
            Ok(state) => state.state_of(version),
            // What is not soft-deleted is deleted for good.
            Err(error) if error.code.as_deref() == Some(errors::KEY_NOT_FOUND) => KeyState::Destroyed,
            Err(error) => KeyState::NotShown(error.to_string()),
        }
    }

    fn deadline(&self) -> Duration {
        self.worker.deadline()
    }
}

impl std::fmt::Debug for TransitKms {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TransitKms").field("kek", &self.kek).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_another_key_wrapped_is_damage_and_the_server_is_not_asked() {
        let options = ConnectOptions::from_variables(|name| match name {
            "BAO_TOKEN" => Some("x".to_owned()),
            "BAO_ADDR" => Some("http://127.0.0.1:1".to_owned()),
            _ => None,
        });
        let kek = TransitKek::parse("transit+http://127.0.0.1:1/transit/keys/k").unwrap();
        let kms = TransitKms::new(kek, &options).unwrap();
        let wrapped = |kek: &str, algorithm, code| Wrapped { kek: KekId(kek.into()), algorithm, blob: vec![code; 61] };
        let transit = WrapAlgorithm::Transit;
        for wrapped in [
            wrapped("transit+http://127.0.0.1:1/transit/keys/other/1", transit, 1),
            wrapped("transit+http://127.0.0.1:1/other/keys/k/1", transit, 1),
            wrapped("transit+http://127.0.0.1:1/transit/keys/k", transit, 1),
            wrapped("transit+http://127.0.0.1:1/transit/keys/k/1", transit, 3),
            wrapped("transit+http://127.0.0.1:1/transit/keys/k/1", WrapAlgorithm::RsaOaep256, 1),
            wrapped("file:/k#0123456789abcdef", transit, 1),
            Wrapped { blob: Vec::new(), ..wrapped("transit+http://127.0.0.1:1/transit/keys/k/1", transit, 1) },
        ] {
            let error = kms.unwrap(&wrapped, VolumeId([0; 16])).unwrap_err();
            assert_eq!(error.kind, KmsErrorKind::Damaged, "{wrapped:?}");
        }
        // Nothing listens there: the same key by another name of the server is asked for at the configured one.
        let moved = wrapped("transit+https://bao.example/transit/keys/k/1", transit, 1);
        assert_eq!(kms.unwrap(&moved, VolumeId([0; 16])).unwrap_err().kind, KmsErrorKind::Unreachable);
    }
}
