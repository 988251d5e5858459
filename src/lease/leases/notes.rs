//! What the audit log is told of leases: each call to the KMS, and what became of the secrets that it unwrapped.

use super::Leases;
use crate::audit::{self, Call};
use crate::crypto::Secret32;
use crate::kms::{KmsError, Unwrapped, Wrapped};
use std::sync::Arc;
use std::time::Duration;

/// So many ended leases go into one line of the audit log.
const SERVED_TOLD: usize = 64;

/// A secret in memory.
pub(super) struct Held {
    pub(super) secret: Arc<Secret32>,
    /// How many times it was asked for.
    served: u64,
    /// What the audit log calls it, if the KMS unwrapped it.
    digest: Option<Box<str>>,
}

impl Held {
    /// One that nobody asked for yet; `wrapped` if the KMS unwrapped it.
    pub(super) fn new(secret: &Arc<Secret32>, wrapped: Option<&Wrapped>) -> Self {
        let digest = wrapped.map(|wrapped| audit::envelope_digest(wrapped).into());
        Self { secret: Arc::clone(secret), served: 0, digest }
    }

    /// It, for somebody who asked for it.
    pub(super) fn serve(&mut self) -> Arc<Secret32> {
        self.served += 1;
        Arc::clone(&self.secret)
    }

    /// For the audit log, at its end: what it is called there, and how many times it served.
    fn served(self) -> Option<(String, u64)> {
        Some((self.digest?.into(), self.served))
    }
}

impl Leases {
    /// Notes that the KMS was asked whether it still grants the volume key.
    pub(super) fn note_probe(&self, wrapped: &Wrapped, outcome: &Result<Unwrapped, KmsError>) {
        self.recorder.record(match outcome {
            Ok(unwrapped) => audit::Event::Probe { call: Call::from(&unwrapped.ids) },
            Err(error) => audit::Event::denied("volume-key", wrapped, error),
        });
    }

    /// Notes that the KMS was asked for the secret of an envelope.
    pub(super) fn note_unwrap(&self, wrapped: &Wrapped, outcome: &Result<Unwrapped, KmsError>, took: Duration) {
        let envelope = audit::envelope_digest(wrapped);
        self.recorder.record(match outcome {
            Ok(unwrapped) => audit::Event::Unwrap {
                envelope,
                kek: audit::clean(&wrapped.kek.0),
                took_us: u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
                call: Call::from(&unwrapped.ids),
            },
            Err(error) => audit::Event::denied(format!("envelope {envelope}"), wrapped, error),
        });
    }

    /// Notes how many times each secret served that the KMS had unwrapped, and drops the secrets.
    pub(super) fn note_end(&self, why: &'static str, ended: impl Iterator<Item = Held>) {
        let served: Vec<_> = ended.filter_map(Held::served).collect();
        for served in served.chunks(SERVED_TOLD) {
            self.recorder.record(audit::Event::LeasesEnded { why, served: served.to_vec() });
        }
    }
}
