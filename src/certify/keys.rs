//! One KEK of a volume: what its KMS says of it, and whether it unwraps anything.

use super::scan::Envelopes;
use crate::audit::clean;
use crate::format::volume::{Kek, KekRole};
use crate::fs::volume::Volume;
use crate::kms::{KeyState, Kms, KmsError, KmsErrorKind, Ring, WrapAlgorithm, Wrapped};
use serde_json::{Value, json};
use std::time::SystemTime;

/// What can be said of the volume's keys, from the worst to the best for whoever wants them gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// A key is given, or in the memory of a mount.
    Readable,
    /// It is not known of every key what has become of it.
    NotShown,
    /// No key is given; whether it still exists is not known of every one.
    Refused,
    /// No key is given, and the owner of one can give it back at any time.
    Suspended,
    /// All keys are deleted, and one of them can be brought back.
    Scheduled,
    /// Each KMS says that there is no such key, deleted or not.
    Destroyed,
}

impl Verdict {
    /// Its name in the certificate.
    pub fn name(self) -> &'static str {
        match self {
            Self::Readable => "readable",
            Self::NotShown => "not-shown",
            Self::Refused => "refused",
            Self::Suspended => "suspended",
            Self::Scheduled => "scheduled-for-destruction",
            Self::Destroyed => "destroyed",
        }
    }

    /// What it says to people.
    pub fn statement(self, until: Option<&str>) -> String {
        let text = match self {
            Self::Readable => "The volume can be read: one of its keys is still given, or is in the memory of a mount.",
            Self::NotShown => {
                "It was not shown what has become of every key of the volume: a service did not say, or did not answer."
            }
            Self::Refused => {
                "No key of the volume was given when this was made. Whether every one of them is gone was not shown."
            }
            Self::Suspended => {
                "No key of the volume was given when this was made. At least one of them exists, and its owner can give \
                 it back at any time: the data can be recovered."
            }
            Self::Scheduled => {
                let until = until.map_or_else(String::new, |until| format!(" until {until}"));
                return format!(
                    "All keys of the volume are deleted. At least one of them can be brought back{until}: the data can \
                     be recovered until then."
                );
            }
            Self::Destroyed => {
                "Each service that held a key of the volume says that it has no such key, neither in use nor deleted and \
                 recoverable. Backups of keys that were made outside of these services cannot be seen from here."
            }
        };
        text.to_owned()
    }
}

/// What came of asking for a secret.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Tried {
    Granted(Box<crate::kms::CallIds>),
    Failed(KmsError),
}

/// What was found out about one KEK.
#[derive(Clone, Debug)]
pub struct KeyEvidence {
    /// Its number.
    pub generation: u32,
    role: KekRole,
    /// Its id, with its version.
    pub id: String,
    algorithm: WrapAlgorithm,
    wrapped_len: usize,
    state: KeyState,
    volume_key: Tried,
    sample: Vec<Tried>,
}

/// Asks for the state of a KEK, for the volume key, and for some of the envelopes.
pub(super) fn examine(kek: &Kek, volume: &Volume, envelopes: &Envelopes, ring: &Ring) -> KeyEvidence {
    let id = &kek.volume_key.kek;
    let evidence = |state, volume_key, sample| KeyEvidence {
        generation: kek.generation.0,
        role: kek.role,
        id: clean(&id.0),
        algorithm: kek.volume_key.algorithm,
        wrapped_len: kek.volume_key.blob.len(),
        state,
        volume_key,
        sample,
    };
    let kms = match ring.at(&kek.reference) {
        Ok(kms) => kms,
        Err(error) => return evidence(KeyState::NotShown(error.to_string()), Tried::Failed(error), Vec::new()),
    };
    let volume_id = volume.record().id;
    let tried = |kms: &dyn Kms, wrapped: &Wrapped| match kms.unwrap(wrapped, volume_id) {
        Ok(unwrapped) => Tried::Granted(Box::new(unwrapped.ids)),
        Err(error) => Tried::Failed(error),
    };
    let volume_key = tried(&*kms, &kek.volume_key);
    if let Tried::Failed(error) = &volume_key
        && error.kind == KmsErrorKind::Unreachable
    {
        // Whoever does not answer is not asked ten times.
        return evidence(KeyState::NotShown(error.to_string()), volume_key, Vec::new());
    }
    let sample = envelopes
        .sample_of(kek.generation)
        .map(|(algorithm, blob)| tried(&*kms, &Wrapped { kek: id.clone(), algorithm, blob: blob.clone() }))
        .collect();
    // After the tries: what it says then was true when they failed, or became true meanwhile.
    evidence(kms.key_state(id), volume_key, sample)
}

impl KeyEvidence {
    /// What can be said of it.
    pub fn verdict(&self) -> Verdict {
        let mut tried = std::iter::once(&self.volume_key).chain(&self.sample);
        if tried.clone().any(|tried| matches!(tried, Tried::Granted(_))) {
            return Verdict::Readable;
        }
        if !tried.all(|tried| matches!(tried, Tried::Failed(error) if error.kind == KmsErrorKind::Refused)) {
            return Verdict::NotShown;
        }
        match &self.state {
            // It is there, and was refused: access was removed, or an operation. Either can be given back.
            KeyState::Usable | KeyState::Suspended => Verdict::Suspended,
            KeyState::Scheduled { .. } => Verdict::Scheduled,
            KeyState::Destroyed => Verdict::Destroyed,
            KeyState::NotShown(_) => Verdict::Refused,
        }
    }

    /// Until when it can be brought back.
    pub(super) fn until(&self) -> Option<SystemTime> {
        match self.state {
            KeyState::Scheduled { until, .. } => until,
            _ => None,
        }
    }

    /// Whether it is kept for the day on which the others are lost.
    pub(super) fn is_for_recovery(&self) -> bool {
        self.role == KekRole::Recovery
    }

    /// Whether it is a raw key, of which anybody may have a copy.
    pub(super) fn is_raw(&self) -> bool {
        self.algorithm == WrapAlgorithm::LocalAes256Gcm
    }

    /// By SP 800-57 part 1, table 2, from the length of what an RSA key wrapped; a raw key has 256 bits.
    pub(super) fn strength(&self) -> Option<u32> {
        match (self.algorithm, self.wrapped_len) {
            (WrapAlgorithm::LocalAes256Gcm, _) => Some(256),
            (WrapAlgorithm::RsaOaep256, 256..384) => Some(112),
            (WrapAlgorithm::RsaOaep256, 384..) => Some(128),
            _ => None,
        }
    }

    pub(super) fn to_json(&self, envelopes: &Envelopes) -> Value {
        let time = |time: SystemTime| humantime::format_rfc3339_seconds(time).to_string();
        let (detail, protected) = match &self.state {
            KeyState::NotShown(why) => (Some(clean(why)), None),
            KeyState::Scheduled { protected, .. } => (None, *protected),
            _ => (None, None),
        };
        let files = |counts: &std::collections::BTreeMap<u32, u64>| counts.get(&self.generation).copied().unwrap_or(0);
        json!({
            "generation": self.generation,
            "role": if self.is_for_recovery() { "recovery" } else { "primary" },
            "id": self.id,
            "strength_bits": self.strength(),
            "files": files(&envelopes.files),
            "files_for_recovery": files(&envelopes.recovery),
            "verdict": self.verdict().name(),
            "state": self.state.name(),
            "state_detail": detail,
            "recoverable_until": self.until().map(time),
            "purge_protected": protected,
            "volume_key": tried_json(&self.volume_key),
            "envelopes_tried": self.sample.iter().map(tried_json).collect::<Vec<_>>(),
        })
    }
}

fn tried_json(tried: &Tried) -> Value {
    let text = |text: &Option<String>| text.as_deref().map(clean);
    match tried {
        Tried::Granted(ids) => {
            json!({"outcome": "granted", "request_id": text(&ids.request), "client_request_id": text(&ids.client_request)})
        }
        Tried::Failed(error) => json!({
            "outcome": error.kind.name(),
            "code": text(&error.code),
            "message": clean(&error.message),
            "request_id": text(&error.ids.request),
            "client_request_id": text(&error.ids.client_request),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn evidence(state: KeyState, volume_key: Tried, sample: Vec<Tried>) -> KeyEvidence {
        KeyEvidence {
            generation: 0,
            role: KekRole::Primary,
            id: "k".into(),
            algorithm: WrapAlgorithm::RsaOaep256,
            wrapped_len: 384,
            state,
            volume_key,
            sample,
        }
    }

    fn failed(kind: KmsErrorKind) -> Tried {
        Tried::Failed(KmsError::new(kind, "no"))
    }

    #[test]
    fn nothing_but_refusals_and_the_services_own_word_make_a_key_destroyed() {
        let refused = || failed(KmsErrorKind::Refused);
        let destroyed = |volume_key, sample| evidence(KeyState::Destroyed, volume_key, sample).verdict();
        assert_eq!(destroyed(refused(), vec![refused()]), Verdict::Destroyed);
        assert_eq!(destroyed(refused(), vec![Tried::Granted(Box::default())]), Verdict::Readable);
        assert_eq!(destroyed(Tried::Granted(Box::default()), vec![refused()]), Verdict::Readable);
        for kind in
            [KmsErrorKind::Unreachable, KmsErrorKind::Damaged, KmsErrorKind::Misconfigured, KmsErrorKind::Credentials]
        {
            assert_eq!(destroyed(failed(kind), vec![refused()]), Verdict::NotShown, "{kind:?}");
            assert_eq!(destroyed(refused(), vec![failed(kind)]), Verdict::NotShown, "{kind:?}");
        }
        let scheduled = KeyState::Scheduled { until: None, protected: None };
        for (state, verdict) in [
            (KeyState::Usable, Verdict::Suspended),
            (KeyState::Suspended, Verdict::Suspended),
            (scheduled, Verdict::Scheduled),
            (KeyState::NotShown("?".into()), Verdict::Refused),
        ] {
            assert_eq!(evidence(state, refused(), vec![]).verdict(), verdict);
        }
    }

    #[test]
    fn only_the_statement_of_a_destroyed_key_lacks_a_way_back() {
        for verdict in [Verdict::Readable, Verdict::NotShown, Verdict::Refused, Verdict::Suspended, Verdict::Scheduled]
        {
            assert!(!verdict.statement(Some("2027-01-01T00:00:00Z")).contains("destroyed"));
            assert!(!verdict.name().contains("destroyed"), "{verdict:?}");
        }
        assert!(Verdict::Scheduled.statement(Some("2027-01-01T00:00:00Z")).contains("until 2027-01-01"));
    }
}
