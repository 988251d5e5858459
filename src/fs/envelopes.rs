//! The envelope that new files get: one wrapped secret for up to N files. The next one is wrapped before the
//! current one is used up, and never on the way of a create.

use super::error::{Error, Need, Result};
use super::volume::{Target, Volume};
use crate::crypto::Secret32;
use crate::format::header::Envelope;
use crate::format::volume::KekRole;
use crate::kms::{Kms, KmsError, Ring, Wrapped};
use crate::lease::{LeaseError, Leases};
use parking_lot::Mutex;
use std::sync::Arc;

/// The current envelope and the next one.
#[derive(Default)]
pub struct Envelopes(Mutex<Pair>);

#[derive(Default)]
struct Pair {
    current: Option<Current>,
    next: Option<Made>,
    /// What both have to be wrapped by, at least.
    target: Target,
}

struct Current {
    made: Made,
    left: u32,
}

/// A secret that was wrapped for new files.
#[derive(Clone)]
struct Made {
    /// As the leases know it.
    wrapped: Wrapped,
    envelope: Envelope,
    recovery: Option<Envelope>,
}

/// The two wraps of a secret, as a header carries them.
pub type Wraps = (Envelope, Option<Envelope>);

impl Envelopes {
    /// The envelope for one new file, and its secret.
    ///
    /// # Errors
    /// [`Error::NeedKey`] if one has to be made, or unwrapped again after a lock.
    pub fn take(&self, leases: &Leases, volume: &Volume) -> Result<(Wraps, Arc<Secret32>)> {
        let mut pair = self.0.lock();
        if pair.current.as_ref().is_none_or(|current| current.left == 0) {
            let made = pair.next.take().ok_or(Error::NeedKey(Need::Envelope))?;
            pair.current = Some(Current { made, left: volume.record().files_per_envelope });
        }
        let current = pair.current.as_mut().ok_or(Error::NeedKey(Need::Envelope))?;
        let made = &current.made;
        let secret =
            leases.cached(&made.wrapped).ok_or_else(|| Error::NeedKey(Need::Unwrap(Box::new(made.wrapped.clone()))))?;
        let wraps = (made.envelope.clone(), made.recovery.clone());
        current.left -= 1;
        Ok((wraps, secret))
    }

    /// Whether the next envelope should be made now.
    pub fn wants_refill(&self) -> bool {
        self.0.lock().next.is_none()
    }

    /// From now on new files get nothing that an older KEK wrapped.
    pub fn require(&self, target: Target) {
        let mut pair = self.0.lock();
        pair.target = target;
        if pair.current.as_ref().is_some_and(|current| !current.made.meets(target)) {
            pair.current = None;
        }
        pair.next.take_if(|made| !made.meets(target));
    }

    /// From now on new files get secrets that are drawn from here on.
    pub fn renew(&self) {
        let mut pair = self.0.lock();
        (pair.current, pair.next) = (None, None);
    }

    /// Makes the next envelope. Asks the KMS where wrapping is not local. Returns whether there is one: there is none if
    /// the KEK was rotated and the volume's record does not know its new version, or if another KEK was taken up meanwhile.
    ///
    /// # Errors
    /// What the KMS said, or that the volume is locked.
    pub fn refill(&self, ring: &Ring, leases: &Leases, volume: &Volume) -> Result<bool, LeaseError> {
        if !self.wants_refill() {
            return Ok(true);
        }
        let secret = Secret32::random();
        let wrapped = ring.wrap(&secret, leases.volume()).map_err(LeaseError::Kms)?;
        let wraps = wraps(&secret, &wrapped, ring, leases, volume).map_err(LeaseError::Kms)?;
        let Some((envelope, recovery)) = wraps else { return Ok(false) };
        leases.insert(&wrapped, secret)?;
        let made = Made { wrapped, envelope, recovery };
        let mut pair = self.0.lock();
        // Whoever raised it meanwhile must not find an older one later.
        let is_new = made.meets(pair.target);
        if is_new {
            pair.next = Some(made);
        }
        Ok(is_new)
    }
}

impl Made {
    fn meets(&self, target: Target) -> bool {
        target.is_met(&self.envelope, self.recovery.as_ref())
    }
}

/// A secret, which the primary KEK has wrapped, as a header carries it, with its second wrap if the volume
/// has a recovery KEK; `None` if the record does not know one of the versions.
fn wraps(
    secret: &Secret32,
    wrapped: &Wrapped,
    ring: &Ring,
    leases: &Leases,
    volume: &Volume,
) -> Result<Option<Wraps>, KmsError> {
    let Some(envelope) = volume.envelope(KekRole::Primary, wrapped) else { return Ok(None) };
    let recovery = match volume.record().newest_of(KekRole::Recovery) {
        Some(recovery) => {
            let second = ring.at(&recovery.reference)?.wrap(secret, leases.volume())?;
            let Some(second) = volume.envelope(KekRole::Recovery, &second) else { return Ok(None) };
            Some(second)
        }
        None => None,
    };
    Ok(Some((envelope, recovery)))
}
