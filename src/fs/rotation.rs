//! The newest version of a volume's key: noticing it, and using it for what is new. Blocks on the KMS: not for a thread
//! that serves the kernel.

use super::renewal::Stopped;
use super::volume::{Target, VolumeError};
use super::*;
use crate::crypto::Secret32;
use crate::format::volume::KekRole;
use crate::kms::{Kms, KmsError, KmsErrorKind};
use crate::lease::Canary;
use crate::lease::LeaseError;

/// The key was rotated meanwhile as often as this within one attempt to wrap: something else is wrong.
const ATTEMPTS: usize = 3;

/// Called when the volume's record has a new KEK, with the canary that follows it.
pub type Tell = Arc<dyn Fn(Canary) + Send + Sync>;

impl Fs {
    /// Whom to tell, from now on, that the volume has a new KEK.
    pub fn on_new_kek(&self, tell: Option<Tell>) {
        *self.on_new_kek.lock() = tell;
    }

    pub(super) fn tell_of_new_kek(&self) {
        let tell = self.on_new_kek.lock().clone();
        if let (Some(tell), Ok(volume_key)) = (tell, self.copy_of_volume_key()) {
            tell(Canary::new(self.volume.record().newest().volume_key.clone(), &volume_key));
        }
    }

    /// Where the volume's KEKs are asked.
    pub fn ring(&self) -> &Arc<Ring> {
        &self.ring
    }

    /// Asks whether the key has a newer version than the volume knows, and takes it up: what is new is wrapped by it from
    /// then on. Old files stay as they are. Returns whether there was one.
    ///
    /// # Errors
    /// What the KMS said, or the store; or that the volume is locked.
    pub fn check_rotation(&self) -> std::result::Result<bool, VolumeError> {
        if self.read_only || self.volume.role() != KekRole::Primary {
            return Ok(false);
        }
        let newest = self.volume.record().newest().clone();
        if self.ring.facts()?.kek.is_same_key(&newest.volume_key.kek) {
            return Ok(false);
        }
        self.adopt_rotated()
    }

    /// Takes up the newest versions of the volume's keys. What they are called now has to unwrap what is there, too: a
    /// key that took the place of another one is no version of it.
    pub(super) fn adopt_rotated(&self) -> std::result::Result<bool, VolumeError> {
        let volume_key = self.copy_of_volume_key()?;
        let record = self.volume.record();
        let newest = record.newest();
        let kms = self.ring.connect(&newest.reference)?;
        kms.unwrap(&newest.volume_key, record.id)?;
        let mut adopted = self.volume.adopt_newest_kek(&*kms, &volume_key)?;
        // With what it knows to be the newest version: the old connection may still wrap with the one before.
        self.ring.keep(&newest.reference, kms);
        if let Some(recovery) = record.newest_of(KekRole::Recovery) {
            let kms = self.ring.connect(&recovery.reference)?;
            adopted |= self.volume.adopt_newest_recovery_kek(&*kms, &volume_key)?;
            self.ring.keep(&recovery.reference, kms);
        }
        if adopted {
            self.use_newest_keks();
            self.tell_of_new_kek();
        }
        Ok(adopted)
    }

    /// For a moment, and for calls to the KMS: a lock must not have to wait for those, as it would for the gate. What they
    /// take is bounded by their deadlines, and the copy is wiped when it is dropped.
    pub(super) fn copy_of_volume_key(&self) -> std::result::Result<Secret32, VolumeError> {
        let locked = || KmsError::new(KmsErrorKind::Unreachable, "the volume is locked");
        let keys = self.enter().map_err(|_| locked())?;
        Secret32::from_slice(keys.volume_key.expose()).ok_or_else(|| locked().into())
    }

    /// What is new is wrapped by the newest KEKs of the record from now on.
    pub(super) fn use_newest_keks(&self) -> Target {
        let (references, primary) = self.volume.references();
        self.ring.set_keys(references, &primary);
        self.note_record();
        let target = Target::newest(&self.volume.record());
        self.envelopes.require(target);
        target
    }

    /// Tells the ledger of the volume's record, which was replaced.
    pub(super) fn note_record(&self) {
        if let Some(ledger) = self.context.ledger.get() {
            ledger.note_record(self.volume.record().generation);
        }
    }

    /// Makes the next envelope.
    pub(super) fn refill(&self) -> Result<()> {
        self.make_envelope().map_err(|stopped| match stopped {
            Stopped::Kms(error) => error.into(),
            Stopped::Volume(VolumeError::Io(error)) => error.into(),
            Stopped::Volume(_) => Error::Unreachable,
            Stopped::Asked | Stopped::Locked => Error::Draining,
        })
    }

    /// The same, with what was in the way.
    pub(super) fn make_envelope(&self) -> Result<(), Stopped> {
        for _ in 0..ATTEMPTS {
            match self.envelopes.refill(&self.ring, &self.leases, &self.volume) {
                Ok(true) => return Ok(()),
                Ok(false) => self.adopt_rotated().map(drop)?,
                Err(LeaseError::Locked) => return Err(Stopped::Locked),
                Err(LeaseError::Kms(error)) => return Err(error.into()),
            }
        }
        let message = "the key is rotated faster than its new versions can be taken up";
        Err(KmsError::new(KmsErrorKind::Unreachable, message).into())
    }
}
