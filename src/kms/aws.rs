//! AWS KMS. Wraps and unwraps there: each is one signed POST (`sign`, `wire`), with the volume's id as encryption
//! context. `credentials` finds out who to be, with AWS's own crates; `errors` sorts what is refused; `desk` asks.
//!
//! AWS's own client of KMS is not used. A cold release build takes 440 s more processor time with it and its companions;
//! with credentials and signatures alone, and Google's KMS as well, 70 s, and the program is 3.4 MiB longer. Single
//! sign-on takes another 55 s, so it is a feature of its own.
//!
//! A key of AWS has no versions that its users could see: AWS rotates the material behind one ARN, and unwraps what any
//! of it wrapped. So the ARN of the key is the [`KekId`], also where an alias is configured; when the alias points to
//! another key, that is a new version of the KEK.
//! Invariant: a secret is unwrapped by exactly the key that wrapped it, whatever an alias points to by now.

mod credentials;
mod desk;
mod errors;
mod sign;
mod wire;

use super::worker::Worker;
use super::{
    AwsKek, AwsResource, ConnectOptions, Facts, KekId, Kms, KmsError, KmsErrorKind, Unwrapped, WrapAlgorithm, Wrapped,
};
use crate::crypto::Secret32;
use crate::units::VolumeId;
use desk::{Answer, Desk, Question};
use parking_lot::Mutex;
use std::time::{Duration, SystemTime};
use wire::Metadata;
use zeroize::Zeroizing;

/// One key of AWS KMS.
pub struct AwsKms {
    kek: AwsKek,
    worker: Worker<Desk>,
    /// The key to wrap with, once it is known: an alias is looked up once, and then by [`Kms::current`] only.
    newest: Mutex<Option<KekId>>,
}

impl AwsKms {
    /// The key with this ARN. Starts a thread, so a process that forks has to do that first; talks to nobody yet.
    ///
    /// # Errors
    /// [`KmsErrorKind::Misconfigured`] for an endpoint or a CA file that cannot be used.
    pub fn new(kek: AwsKek, options: &ConnectOptions) -> Result<Self, KmsError> {
        let worker = Worker::start("aws", Desk::new(kek.clone(), options)?, options.deadline)?;
        Ok(Self { kek, worker, newest: Mutex::new(None) })
    }

    fn describe(&self) -> Result<(Metadata, Option<SystemTime>), KmsError> {
        match self.worker.ask(Question::Key)? {
            Answer::Key(metadata, time) => Ok((metadata, time)),
            Answer::Wrapped(..) | Answer::Secret(_) => Err(errors::not_aws("it answers another question")),
        }
    }

    /// The key that wrapped this, to be asked in the configured region.
    fn recorded(&self, wrapped: &Wrapped) -> Result<AwsKek, KmsError> {
        let other = |what: &str| {
            let message = format!("the secret was wrapped by {}, {what}", wrapped.kek);
            KmsError::new(KmsErrorKind::Damaged, message).hint("name the KEK that wrapped it")
        };
        if wrapped.algorithm != WrapAlgorithm::AwsKms {
            return Err(other("and not by AWS KMS"));
        }
        let recorded = AwsKek::parse(&wrapped.kek.0).map_err(|_| other("not by a key of AWS KMS"))?;
        match (&recorded.resource, &self.kek.resource) {
            // Replicas of a multi-region key have each other's material.
            (AwsResource::Key(_), AwsResource::Key(_)) if recorded.is_same_key(&self.kek) => Ok(self.kek.clone()),
            (AwsResource::Key(_), AwsResource::Alias(_)) if recorded.region == self.kek.region => Ok(recorded),
            _ => Err(other(&format!("not by {}", self.kek))),
        }
    }
}

impl Kms for AwsKms {
    fn wrap(&self, secret: &Secret32, volume: VolumeId) -> Result<Wrapped, KmsError> {
        // Held during the call: whoever wraps meanwhile has to use the same key.
        let mut newest = self.newest.lock();
        let kek = newest.as_ref().map_or_else(|| self.kek.to_string(), |kek| kek.0.clone());
        if newest.is_some() {
            drop(newest);
            return self.wrap_with(kek, secret, volume);
        }
        let wrapped = self.wrap_with(kek, secret, volume)?;
        *newest = Some(wrapped.kek.clone());
        Ok(wrapped)
    }

    fn unwrap(&self, wrapped: &Wrapped, volume: VolumeId) -> Result<Unwrapped, KmsError> {
        let kek = self.recorded(wrapped)?;
        match self.worker.ask(Question::Unwrap { kek, blob: wrapped.blob.clone(), volume })? {
            Answer::Secret(unwrapped) => Ok(unwrapped),
            Answer::Key(..) | Answer::Wrapped(..) => Err(errors::not_aws("it answers another question")),
        }
    }

    fn current(&self) -> Result<KekId, KmsError> {
        let kek = self.describe()?.0.usable(&self.kek)?;
        *self.newest.lock() = Some(kek.clone());
        Ok(kek)
    }

    fn facts(&self) -> Result<Facts, KmsError> {
        let (metadata, time) = self.describe()?;
        metadata.facts(time)
    }

    fn deadline(&self) -> Duration {
        self.worker.deadline()
    }
}

impl AwsKms {
    fn wrap_with(&self, kek: String, secret: &Secret32, volume: VolumeId) -> Result<Wrapped, KmsError> {
        let secret = Zeroizing::new(*secret.expose());
        match self.worker.ask(Question::Wrap { kek, secret, volume })? {
            Answer::Wrapped(kek, blob) => Ok(Wrapped { kek, algorithm: WrapAlgorithm::AwsKms, blob }),
            Answer::Key(..) | Answer::Secret(_) => Err(errors::not_aws("it answers another question")),
        }
    }
}

impl std::fmt::Debug for AwsKms {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AwsKms").field("kek", &self.kek).finish_non_exhaustive()
    }
}
