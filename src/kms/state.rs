//! What a KMS says has become of a key, for whoever has to prove it. Nothing is decided by it.

use std::time::SystemTime;

/// What a KMS says of one version of a KEK.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyState {
    /// It is there, and not disabled.
    Usable,
    /// It is there and disabled: its owner can enable it at any time.
    Suspended,
    /// It is deleted, and can be brought back.
    Scheduled {
        /// Until when, as far as the KMS says.
        until: Option<SystemTime>,
        /// Nobody can destroy it before its time; `None` where the KMS does not say.
        protected: Option<bool>,
    },
    /// The KMS has neither the key nor a deleted one that could be brought back.
    Destroyed,
    /// The KMS did not say, for this reason. Silence is no evidence.
    NotShown(String),
}

impl KeyState {
    /// The state's name in JSON.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Usable => "usable",
            Self::Suspended => "suspended",
            Self::Scheduled { .. } => "scheduled",
            Self::Destroyed => "destroyed",
            Self::NotShown(_) => "not-shown",
        }
    }
}
