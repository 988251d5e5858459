//! The KEKs of a volume, as its record lists them: which one wraps, which one wrapped, and how the list changes. The record
//! is replaced as a whole each time, so a crash leaves the old list or the new one.

use super::{RECORD, Volume, VolumeError};
use crate::crypto::Secret32;
use crate::crypto::derive::VolumeKeys;
use crate::file::Damage;
use crate::format::header::{Envelope, Header};
use crate::format::volume::{Kek, KekRole, RekeyState, VolumeRecord};
use crate::kms::{ConnectOptions, KekId, Kms, KmsError, KmsErrorKind, Ring, Unwrapped, Wrapped, connector};
use crate::store::replace_file;
use crate::units::{Epoch, KekGeneration, VolumeId};
use std::sync::Arc;

/// By which KEKs everything in a volume is to be wrapped, at least.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Target {
    /// The oldest primary one.
    pub primary: KekGeneration,
    /// The oldest recovery one, if the volume has one.
    pub recovery: Option<KekGeneration>,
}

impl Target {
    /// The newest of a record.
    pub fn newest(record: &VolumeRecord) -> Self {
        let recovery = record.newest_of(KekRole::Recovery).map(|kek| kek.generation);
        Self { primary: record.newest().generation, recovery }
    }

    /// Whether the secret in a header is wrapped by these, or by newer ones.
    pub fn is_met_by(&self, header: &Header) -> bool {
        self.is_met(&header.envelope, header.recovery.as_ref())
    }

    /// The same of a secret's two wraps.
    pub fn is_met(&self, envelope: &Envelope, recovery: Option<&Envelope>) -> bool {
        envelope.kek >= self.primary
            && self.recovery.is_none_or(|oldest| recovery.is_some_and(|recovery| recovery.kek >= oldest))
    }
}

/// Wraps the volume key, and sees that it can be unwrapped again. Whoever uses a volume need not be allowed to unwrap with
/// its recovery KEK: a refusal of that is no fault of it.
///
/// # Errors
/// The KMS's.
pub(super) fn wrap_and_test(
    kms: &dyn Kms,
    role: KekRole,
    volume_key: &Secret32,
    volume: VolumeId,
) -> Result<Wrapped, KmsError> {
    let wrapped = kms.wrap(volume_key, volume)?;
    match kms.unwrap(&wrapped, volume) {
        Ok(unwrapped) if unwrapped.secret.expose() == volume_key.expose() => (),
        Ok(_) => return Err(KmsError::new(KmsErrorKind::Damaged, "the KMS unwraps something else than it wrapped")),
        Err(error) if role == KekRole::Recovery && error.kind == KmsErrorKind::Refused => {
            tracing::warn!("whether the recovery key unwraps could not be tried: {error}");
        }
        Err(error) => return Err(error),
    }
    Ok(wrapped)
}

impl Volume {
    /// From now on the wraps by KEKs of this role are used.
    #[must_use]
    pub fn opened_by(self, role: KekRole) -> Self {
        Self { role, ..self }
    }

    /// Which of the wraps of every secret is used.
    pub fn role(&self) -> KekRole {
        self.role
    }

    /// The KEK that opens the volume, `None` if it has none of the role that is used.
    pub fn opening_kek(&self) -> Option<Kek> {
        self.record().newest_of(self.role).cloned()
    }

    /// The connections to its KEKs; nobody is asked yet. The KEK that opens the volume is reached by the reference
    /// `instead`, if given.
    pub fn ring(&self, options: ConnectOptions, instead: Option<&str>) -> Arc<Ring> {
        let record = self.record();
        let recorded = self.opening_kek().map(|kek| kek.reference);
        let instead = recorded.zip(instead.map(str::to_owned));
        let options = ConnectOptions { mount: Some(record.id.to_string()), ..options };
        let ring = Ring::new(connector(options, instead));
        let (references, primary) = self.references();
        ring.set_keys(references, &primary);
        Arc::new(ring)
    }

    /// Unwraps the volume key with the KEK that opens the volume, and authenticates the record with it.
    ///
    /// # Errors
    /// [`VolumeError::Kms`]: what the KMS said, or that the volume has no recovery KEK; [`VolumeError::Damaged`].
    pub fn unlock(&self, ring: &Ring) -> Result<Unwrapped, VolumeError> {
        let Some(opening) = self.opening_kek() else {
            let error = KmsError::new(KmsErrorKind::Misconfigured, "the volume has no recovery key");
            return Err(error
                .hint("one can be added while the primary key works: kmsfs rewrap --recovery-kek KEK")
                .into());
        };
        let unwrapped = ring.unwrap(&opening.volume_key, self.record().id)?;
        self.authenticate(&unwrapped.secret)?;
        Ok(unwrapped)
    }

    /// Every KEK with its version, and how it is reached; and how the one is reached that wraps.
    pub fn references(&self) -> (Vec<(KekId, String)>, String) {
        let record = self.record();
        let references = record.keks.iter().map(|kek| (kek.volume_key.kek.clone(), kek.reference.clone())).collect();
        (references, record.newest().reference.clone())
    }

    /// The envelope, as a header carries it, of a secret that a KEK of this role wrapped for this volume; `None` if the
    /// record does not know the KEK.
    pub(in crate::fs) fn envelope(&self, role: KekRole, wrapped: &Wrapped) -> Option<Envelope> {
        let record = self.record();
        let is_it = |kek: &&Kek| kek.role == role && kek.volume_key.kek.is_same_key(&wrapped.kek);
        let kek = record.keks.iter().rev().find(is_it)?;
        Some(Envelope { kek: kek.generation, algorithm: wrapped.algorithm, blob: wrapped.blob.clone() })
    }

    /// The wrapped secret of a file, as the KEK that opens the volume, or one before it, wrapped it.
    pub(in crate::fs) fn wrapped(&self, header: &Header) -> Result<Wrapped, Damage> {
        let record = self.record();
        // Raised while the volume is mounted, too.
        if header.envelope.kek < record.kek_floor || header.epoch < record.epoch_floor {
            return Err(Damage::Outdated);
        }
        let envelope = match self.role {
            KekRole::Primary => Some(&header.envelope),
            KekRole::Recovery => header.recovery.as_ref(),
        };
        let envelope = envelope.ok_or(Damage::UnknownKek)?;
        let kek = record.kek(envelope.kek).filter(|kek| kek.role == self.role).ok_or(Damage::UnknownKek)?;
        Ok(Wrapped { kek: kek.volume_key.kek.clone(), algorithm: envelope.algorithm, blob: envelope.blob.clone() })
    }

    /// Takes up the version of the KEK that new secrets are wrapped with now, if the record does not know it: the
    /// key was rotated. It is tried before anything is changed.
    ///
    /// # Errors
    /// [`VolumeError`]; then the record is as it was.
    pub fn adopt_newest_kek(&self, kms: &dyn Kms, volume_key: &Secret32) -> Result<bool, VolumeError> {
        let reference = self.record().newest().reference.clone();
        self.adopt(KekRole::Primary, &reference, kms, volume_key, |record, wrapped| {
            record.keks.iter().any(|kek| kek.volume_key.kek.is_same_key(&wrapped.kek))
        })
    }

    /// The same for the recovery KEK; `false` if there is none.
    ///
    /// # Errors
    /// As for [`adopt_newest_kek`](Self::adopt_newest_kek).
    pub fn adopt_newest_recovery_kek(&self, kms: &dyn Kms, volume_key: &Secret32) -> Result<bool, VolumeError> {
        let Some(recovery) = self.record().newest_of(KekRole::Recovery).cloned() else { return Ok(false) };
        self.adopt(KekRole::Recovery, &recovery.reference, kms, volume_key, |record, wrapped| {
            record.keks.iter().any(|kek| kek.volume_key.kek.is_same_key(&wrapped.kek))
        })
    }

    /// Lets this key be the newest of its role, if it, with its present version, is not that already. It is tried before
    /// anything is changed. Returns whether it became the newest.
    ///
    /// # Errors
    /// As for [`adopt_newest_kek`](Self::adopt_newest_kek).
    pub fn add_kek(
        &self,
        role: KekRole,
        reference: &str,
        kms: &dyn Kms,
        volume_key: &Secret32,
    ) -> Result<bool, VolumeError> {
        self.adopt(role, reference, kms, volume_key, |record, wrapped| {
            // Under another name it would have to be asked in another way from then on.
            let is_it = |kek: &Kek| kek.reference == reference && kek.volume_key.kek.is_same_key(&wrapped.kek);
            record.newest_of(role).is_some_and(is_it)
        })
    }

    fn adopt(
        &self,
        role: KekRole,
        reference: &str,
        kms: &dyn Kms,
        volume_key: &Secret32,
        is_known: impl Fn(&VolumeRecord, &Wrapped) -> bool,
    ) -> Result<bool, VolumeError> {
        let _alone = self.changing.lock();
        let old = self.record();
        if is_known(&old, &kms.wrap(volume_key, old.id)?) {
            return Ok(false);
        }
        let wrapped = wrap_and_test(kms, role, volume_key, old.id)?;
        let mut record = (*old).clone();
        let generation = KekGeneration(record.keks.iter().map(|kek| kek.generation.0).max().unwrap_or(0) + 1);
        record.keks.push(Kek { generation, role, reference: reference.to_owned(), volume_key: wrapped });
        self.replace(record, volume_key)?;
        Ok(true)
    }

    /// Everything is wrapped by these KEKs, or by newer ones: headers that older ones wrapped are refused from now on, and
    /// the older ones open the volume no more. Returns those that went.
    ///
    /// # Errors
    /// The store's; then the record is as it was.
    pub fn retire_keks(&self, target: Target, volume_key: &Secret32) -> Result<Vec<Kek>, VolumeError> {
        let _alone = self.changing.lock();
        let old = self.record();
        let stays = |kek: &Kek| match kek.role {
            KekRole::Primary => kek.generation >= target.primary,
            KekRole::Recovery => target.recovery.is_none_or(|oldest| kek.generation >= oldest),
        };
        let (keks, gone): (Vec<_>, Vec<_>) = old.keks.iter().cloned().partition(stays);
        let kek_floor = old.kek_floor.max(target.primary);
        if gone.is_empty() && kek_floor == old.kek_floor {
            return Ok(gone);
        }
        self.replace(VolumeRecord { keks, kek_floor, ..(*old).clone() }, volume_key)?;
        Ok(gone)
    }

    /// Begins, or goes on with, the rekey of everything or of a part: from now on new files get the epoch that is returned.
    /// One that was begun and is not through goes on, unless `anew`; the rekey of everything goes on in each part.
    ///
    /// # Errors
    /// The store's; then the record is as it was. That there is no further epoch.
    pub fn begin_rekey(&self, what: RekeyState, anew: bool, volume_key: &Secret32) -> Result<Epoch, VolumeError> {
        let _alone = self.changing.lock();
        let old = self.record();
        let goes_on = matches!(
            (old.rekey, what),
            (RekeyState::All, RekeyState::All | RekeyState::Part) | (RekeyState::Part, RekeyState::Part)
        );
        if goes_on && !anew {
            return Ok(old.epoch);
        }
        let next = old.epoch.0.checked_add(1).map(Epoch).ok_or_else(|| {
            VolumeError::from(KmsError::new(
                KmsErrorKind::Misconfigured,
                "the volume has had all epochs that there are",
            ))
        })?;
        // What is not through stays so: its files are behind the new epoch as well.
        let rekey = if old.rekey == RekeyState::All || what == RekeyState::None { old.rekey } else { what };
        self.replace(VolumeRecord { epoch: next, rekey, ..(*old).clone() }, volume_key)?;
        Ok(next)
    }

    /// A rekey came to its end. After one of everything, headers of earlier epochs are refused from now on.
    ///
    /// # Errors
    /// The store's; then the record is as it was.
    pub fn end_rekey(&self, what: RekeyState, target: Epoch, volume_key: &Secret32) -> Result<(), VolumeError> {
        let _alone = self.changing.lock();
        let old = self.record();
        match what {
            RekeyState::All => {
                let epoch_floor = old.epoch_floor.max(target);
                self.replace(VolumeRecord { epoch_floor, rekey: RekeyState::None, ..(*old).clone() }, volume_key)
            }
            RekeyState::Part if old.rekey == RekeyState::Part => {
                self.replace(VolumeRecord { rekey: RekeyState::None, ..(*old).clone() }, volume_key)
            }
            _ => Ok(()),
        }
    }

    /// Writes the next version of the record; durable when it returns.
    fn replace(&self, mut record: VolumeRecord, volume_key: &Secret32) -> Result<(), VolumeError> {
        record.generation += 1;
        let bytes = record.encode(&VolumeKeys::from(volume_key).record_mac);
        if VolumeRecord::parse(&bytes).as_ref() != Ok(&record) {
            // Written nevertheless, it could not be read again.
            let message = "the volume's record has no room for one more key, or one more version of its key";
            let error = KmsError::new(KmsErrorKind::Misconfigured, message);
            return Err(error.hint("kmsfs rewrap VOLUME lets it forget the older ones").into());
        }
        replace_file(&*self.root, RECORD, &bytes, 0o600)?;
        *self.record.write() = Arc::new(record);
        Ok(())
    }
}
