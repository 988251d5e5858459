//! The envelope that new files get: one wrapped secret for up to N files. The next one is wrapped before the
//! current one is used up, and never on the way of a create.

use super::error::{Error, Need, Result};
use super::volume::Volume;
use crate::crypto::Secret32;
use crate::format::header::Envelope;
use crate::kms::Wrapped;
use crate::lease::Leases;
use parking_lot::Mutex;
use std::sync::Arc;

/// The current envelope and the next one.
#[derive(Default)]
pub struct Envelopes(Mutex<Pair>);

#[derive(Default)]
struct Pair {
    current: Option<Current>,
    next: Option<Wrapped>,
}

struct Current {
    wrapped: Wrapped,
    left: u32,
}

impl Envelopes {
    /// The envelope for one new file, and its secret.
    ///
    /// # Errors
    /// [`Error::NeedKey`] if one has to be made, or unwrapped again after a lock.
    pub fn take(&self, leases: &Leases, volume: &Volume) -> Result<(Envelope, Arc<Secret32>)> {
        let mut pair = self.0.lock();
        if pair.current.as_ref().is_none_or(|current| current.left == 0) {
            let wrapped = pair.next.take().ok_or(Error::NeedKey(Need::Envelope))?;
            pair.current = Some(Current { wrapped, left: volume.record().files_per_envelope });
        }
        let current = pair.current.as_mut().ok_or(Error::NeedKey(Need::Envelope))?;
        let secret = leases
            .cached(&current.wrapped)
            .ok_or_else(|| Error::NeedKey(Need::Unwrap(Box::new(current.wrapped.clone()))))?;
        let envelope = volume.envelope(&current.wrapped)?;
        current.left -= 1;
        Ok((envelope, secret))
    }

    /// Whether the next envelope should be made now.
    pub fn wants_refill(&self) -> bool {
        self.0.lock().next.is_none()
    }

    /// Makes the next envelope. Asks the KMS where wrapping is not local.
    ///
    /// # Errors
    /// What the KMS said, or that the volume is locked.
    pub fn refill(&self, leases: &Leases) -> Result<()> {
        if !self.wants_refill() {
            return Ok(());
        }
        let secret = Secret32::random();
        let wrapped = leases.kms().wrap(&secret, leases.volume())?;
        leases.insert(&wrapped, secret)?;
        self.0.lock().next = Some(wrapped);
        Ok(())
    }
}
