//! Google Cloud KMS. Wraps and unwraps there: each is one POST (`wire`), with the volume and the version as additional
//! authenticated data, and a CRC32C of every field, both ways. `credentials` finds out who to be (`account`, `token`);
//! `errors` sorts what is refused; `desk` asks.
//!
//! Google's own crate for credentials is not used: it adds 100 s of processor time to a cold release build, for what is
//! three requests here.
//!
//! The version that wrapped is in the reply, and is the [`KekId`]. To unwrap, Google finds it in the blob; that it is the
//! one that is recorded, the additional authenticated data proves.
//! Invariant: all secrets of one provider are wrapped by one version, until [`Kms::current`] asks for the primary one.

mod account;
mod credentials;
mod desk;
mod errors;
mod token;
mod wire;

use super::worker::Worker;
use super::{ConnectOptions, Facts, GcpKek, KekId, Kms, KmsError, KmsErrorKind, Unwrapped, WrapAlgorithm, Wrapped};
use crate::crypto::Secret32;
use crate::units::VolumeId;
use desk::{Answer, Desk, Question};
use parking_lot::Mutex;
use std::time::Duration;
use zeroize::Zeroizing;

/// One key of Google Cloud KMS.
pub struct GcpKms {
    kek: GcpKek,
    worker: Worker<Desk>,
    /// The version to wrap with, once it is known.
    newest: Mutex<Option<GcpKek>>,
}

impl GcpKms {
    /// The key with this name. Starts a thread, so a process that forks has to do that first; talks to nobody yet.
    ///
    /// # Errors
    /// [`KmsErrorKind::Misconfigured`] for an endpoint or a CA file, [`KmsErrorKind::Credentials`] for a credentials
    /// file that cannot be used.
    pub fn new(kek: GcpKek, options: &ConnectOptions) -> Result<Self, KmsError> {
        let worker = Worker::start("gcp", Desk::new(kek.clone(), options)?, options.deadline)?;
        Ok(Self { kek, worker, newest: Mutex::new(None) })
    }

    /// The key that wrapped this, with its version.
    fn recorded(&self, wrapped: &Wrapped) -> Result<GcpKek, KmsError> {
        let other = |what: &str| {
            let message = format!("the secret was wrapped by {}, {what}", wrapped.kek);
            KmsError::new(KmsErrorKind::Damaged, message).hint("name the KEK that wrapped it")
        };
        if wrapped.algorithm != WrapAlgorithm::GcpKms {
            return Err(other("and not by Google Cloud KMS"));
        }
        let recorded = GcpKek::parse(&wrapped.kek.0).map_err(|_| other("not by a key of Google Cloud KMS"))?;
        if !recorded.is_same_key(&self.kek) {
            return Err(other(&format!("not by {}", self.kek)));
        }
        Ok(recorded)
    }

    /// The version that wraps now. Wraps something that nobody keeps: the reply names the version, and no right is needed
    /// but the one to wrap.
    fn primary(&self) -> Result<(KekId, GcpKek), KmsError> {
        let id = self.wrap_with(self.kek.clone(), &Secret32::random(), VolumeId([0; 16]))?.kek;
        let version = GcpKek::parse(&id.0)?;
        Ok((id, version))
    }

    fn wrap_with(&self, kek: GcpKek, secret: &Secret32, volume: VolumeId) -> Result<Wrapped, KmsError> {
        let secret = Zeroizing::new(*secret.expose());
        match self.worker.ask(Question::Wrap { kek, secret, volume })? {
            Answer::Wrapped(kek, blob) => Ok(Wrapped { kek, algorithm: WrapAlgorithm::GcpKms, blob }),
            Answer::Key(_) | Answer::Secret(_) => Err(errors::not_google("it answers another question")),
        }
    }
}

impl Kms for GcpKms {
    /// The first wrap is two calls: which version is the primary one has to be known, as it is bound to the secret.
    fn wrap(&self, secret: &Secret32, volume: VolumeId) -> Result<Wrapped, KmsError> {
        let version = {
            // Held during the call that asks: who wraps meanwhile needs it too.
            let mut newest = self.newest.lock();
            match &*newest {
                Some(version) => version.clone(),
                None => newest.insert(self.primary()?.1).clone(),
            }
        };
        self.wrap_with(version, secret, volume)
    }

    fn unwrap(&self, wrapped: &Wrapped, volume: VolumeId) -> Result<Unwrapped, KmsError> {
        let kek = self.recorded(wrapped)?;
        match self.worker.ask(Question::Unwrap { kek, blob: wrapped.blob.clone(), volume })? {
            Answer::Secret(unwrapped) => Ok(unwrapped),
            Answer::Key(_) | Answer::Wrapped(..) => Err(errors::not_google("it answers another question")),
        }
    }

    fn current(&self) -> Result<KekId, KmsError> {
        let (id, version) = self.primary()?;
        *self.newest.lock() = Some(version);
        Ok(id)
    }

    fn facts(&self) -> Result<Facts, KmsError> {
        match self.worker.ask(Question::Key) {
            Ok(Answer::Key(facts)) => Ok(facts),
            Ok(Answer::Wrapped(..) | Answer::Secret(_)) => Err(errors::not_google("it answers another question")),
            // Who may wrap and unwrap need not be allowed to look: that the key wraps says enough.
            Err(error) if error.kind == KmsErrorKind::Refused && errors::is_about_rights(&error) => {
                Ok(Facts::new(self.current()?, "AES-256"))
            }
            Err(error) => Err(error),
        }
    }

    fn deadline(&self) -> Duration {
        self.worker.deadline()
    }
}

impl std::fmt::Debug for GcpKms {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GcpKms").field("kek", &self.kek).finish_non_exhaustive()
    }
}
