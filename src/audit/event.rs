//! What is worth a line in the audit log, and in which words. No names of files, no secrets.
//! Invariant: a text that comes from elsewhere goes through [`clean`], so a line can neither forge another one nor move
//! the cursor of whoever reads it.

use crate::kms::{CallIds, KmsError, Wrapped};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The longest text in an event, in characters.
const LONGEST: usize = 400;

/// Something that happened. Serialized as the object that the log's line has, `event` first.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// The volume was made.
    Init {
        /// The volume's id.
        volume: String,
        /// The KEK with its version.
        kek: String,
        /// In bytes.
        chunk_size: u64,
        /// At most so many files share a wrapped secret.
        files_per_envelope: u32,
        /// Names are not encrypted.
        plain_names: bool,
        /// The recovery KEK with its version.
        #[serde(skip_serializing_if = "Option::is_none")]
        recovery_kek: Option<String>,
    },
    /// The volume was mounted: the KMS granted its key.
    Mount {
        /// The volume's id.
        volume: String,
        /// The KEK with its version.
        kek: String,
        /// Where.
        mountpoint: String,
        /// The machine's name.
        host: String,
        /// The process that serves it.
        pid: u32,
        /// Which kmsfs.
        version: String,
        /// It had not been unmounted, so a crash was recovered.
        after_crash: bool,
        /// It was opened with its recovery KEK.
        #[serde(skip_serializing_if = "is_false")]
        with_recovery_kek: bool,
        /// How it is mounted.
        settings: Settings,
        /// The call that unwrapped the volume key.
        #[serde(flatten)]
        call: Call,
    },
    /// The settings are not those of the mount before, which are these.
    ConfigurationChange {
        /// What they were.
        before: Settings,
        /// What they are.
        now: Settings,
    },
    /// What a crash had left was replayed from the journal.
    Recovery {
        /// Updates that were replayed.
        updates: u64,
        /// Files that they belong to.
        files: u64,
        /// Where the journal was damaged.
        damaged_at: Vec<String>,
    },
    /// The volume was unmounted.
    Unmount {
        /// It was locked at that time, so what was not stored before the lock is lost.
        locked: bool,
        /// Files whose last changes were not stored.
        files_lost: u64,
        /// Bytes that applications read, without what came from the page cache.
        bytes_read: u64,
        /// Bytes that applications wrote.
        bytes_written: u64,
    },
    /// The KMS grants the key again, or the operator unlocked.
    Unlock,
    /// The KMS grants the key, and the volume stays locked.
    UnlockFailed {
        /// Why.
        reason: String,
    },
    /// The KMS was asked whether it still grants the volume key, and did.
    Probe {
        /// The call.
        #[serde(flatten)]
        call: Call,
    },
    /// The KMS did not give a secret.
    LeaseDenied {
        /// `volume-key`, or `envelope` with the digest of one.
        what: String,
        /// `refused`, `unreachable`, `damaged`, `misconfigured` or `credentials`.
        kind: &'static str,
        /// The service's own code.
        code: Option<String>,
        /// What happened.
        message: String,
        /// The KEK version that was asked.
        kek: String,
        /// The call.
        #[serde(flatten)]
        call: Call,
    },
    /// The volume takes nothing new, and stores what was written.
    Drain {
        /// `revoked`, `unreachable`, `operator` or `idle`.
        reason: &'static str,
        /// For how long at most, in milliseconds.
        bound_ms: u64,
    },
    /// The volume is locked and its keys are wiped.
    Lock {
        /// `revoked`, `unreachable`, `operator` or `idle`.
        reason: &'static str,
        /// How long draining and locking took, in milliseconds.
        took_ms: u64,
        /// Everything that applications had written was stored in time.
        drained: bool,
        /// Files whose last changes could not be stored; they are kept, sealed, until the volume is unlocked.
        files_waiting: u64,
    },
    /// The KMS refuses the key, and what is unlocked is left so, but for this: `--on-revoked`.
    Restricted {
        /// `read-only` or `prevent-new`.
        to: &'static str,
    },
    /// The KMS grants the key again, and everything is allowed.
    Released,
    /// The KMS unwrapped a secret.
    Unwrap {
        /// The secret's digest, see [`envelope_digest`].
        envelope: String,
        /// The KEK version.
        kek: String,
        /// How long it took, in microseconds.
        took_us: u64,
        /// The call.
        #[serde(flatten)]
        call: Call,
    },
    /// Unwrapped secrets were wiped: how many files each of them opened.
    LeasesEnded {
        /// `wiped` (the volume is locked or unmounted) or `evicted` (there was no more room).
        why: &'static str,
        /// For each secret that the KMS had unwrapped, its digest and how many times a file was opened with it.
        served: Vec<(String, u64)>,
    },
    /// Content that does not authenticate.
    FailedDecryption {
        /// The file's id.
        file: String,
        /// The chunk, counted from 0.
        chunk: u64,
    },
    /// Something else that is damaged or was tampered with.
    Damage {
        /// What, without names.
        what: String,
    },
    /// A key was tried: `kmsfs key test --volume`.
    KeyTest {
        /// The KEK with its version.
        kek: String,
        /// It works.
        ok: bool,
        /// What was wrong.
        message: Option<String>,
        /// The call that unwrapped.
        #[serde(flatten)]
        call: Call,
    },
    /// From now on, secrets are wrapped by another version of the KEK.
    KekVersion {
        /// The KEK with its version.
        kek: String,
    },
    /// Everything is going to be wrapped by another KEK, or by the newest version of its own.
    RewrapStarted {
        /// The volume's KEKs at that time, with their versions.
        keks: Vec<String>,
        /// The KEK that was named.
        to: Option<String>,
        /// The recovery KEK that was named.
        recovery: Option<String>,
    },
    /// That has ended.
    RewrapEnded {
        /// `complete`, `cancelled`, `locked`, `unmounted` or `failed`.
        state: &'static str,
        /// Why it failed.
        why: Option<String>,
        /// The KEK with its version.
        kek: String,
        /// Files that got a new header.
        files: u64,
        /// Secrets that the KMS unwrapped.
        unwrapped: u64,
        /// Secrets that were wrapped anew.
        wrapped: u64,
        /// Files that still need an older KEK.
        left: u64,
        /// The KEKs that nothing in the volume needs any more.
        retired: Vec<String>,
    },
    /// Files are going to get new keys.
    RekeyStarted {
        /// Only a part of them: those at or below a path, or with a key of some age.
        part: bool,
        /// The age from which on.
        older_than_s: Option<u64>,
        /// The newest epoch so far.
        epoch: u32,
    },
    /// That has ended.
    RekeyEnded {
        /// `complete`, `cancelled`, `locked`, `unmounted` or `failed`.
        state: &'static str,
        /// Why it failed.
        why: Option<String>,
        /// The epoch of the new keys.
        epoch: u32,
        /// Files that got one.
        files: u64,
        /// Bytes that were sealed again.
        bytes: u64,
        /// Secrets that the KMS unwrapped.
        unwrapped: u64,
        /// New envelopes.
        wrapped: u64,
        /// Files that still have an older key.
        left: u64,
        /// Older keys are refused from now on.
        floor_raised: bool,
    },
    /// The mount has a rollback guard.
    RollbackGuard {
        /// Where what it knows is kept.
        guard: String,
        /// Nothing was known before: the volume is trusted as it is.
        first_use: bool,
        /// The volume's counter.
        counter: u64,
        /// Files that are known.
        files: u64,
    },
    /// The volume, or a file of it, is older than it was seen to be, or nobody can tell.
    Rollback {
        /// In words.
        what: String,
        /// It was refused; else there was a warning only.
        refused: bool,
    },
    /// What is older than it was seen to be is accepted from now on.
    RollbackAccepted {
        /// Where it is kept what is known.
        guard: String,
        /// The file that is accepted, by its id; without one, all of the volume as it is.
        #[serde(skip_serializing_if = "Option::is_none")]
        file: Option<String>,
        /// The counter that the guard had seen, and how many files it knew; without them, it could not tell.
        before: Option<(u64, u64)>,
        /// The volume's counter.
        now: u64,
    },
    /// The volume was checked.
    Check {
        /// `fsck` or `scrub`.
        what: &'static str,
        /// It came to its end.
        complete: bool,
        /// Files that were looked at.
        files: u64,
        /// What was found wrong.
        damaged: u64,
    },
    /// Files that existed in the clear were encrypted into the volume; where they came from, they may exist still.
    Import {
        /// What the operator calls the source, or its device and inode.
        source: String,
        /// Files that are in the volume from there.
        files: u64,
        /// Their bytes.
        bytes: u64,
        /// It came to its end, with nothing left out.
        complete: bool,
    },
    /// Files of the volume were written in the clear to somewhere else.
    Export {
        /// What the operator calls the target, or its device and inode.
        target: String,
        /// Files that were written.
        files: u64,
        /// Their bytes.
        bytes: u64,
        /// It came to its end, with nothing left out.
        complete: bool,
    },
    /// The operator suspended the tenant whose volume it is: it stays locked until it is resumed.
    Suspend {
        /// The tenant.
        tenant: String,
        /// In the operator's words.
        reason: String,
    },
    /// The operator ended that.
    Resume {
        /// The tenant.
        tenant: String,
    },
    /// Authenticates all lines before this one.
    Checkpoint {
        /// See [`super::mac`].
        mac: String,
    },
    /// Events of one kind that were too many to be written one by one.
    Repeated {
        /// The kind.
        of: &'static str,
        /// How many.
        count: u64,
        /// When the first of them happened.
        since: String,
        /// The last of them.
        last: Box<Event>,
    },
    /// Events that could not be written: too many at once, or the disk was full.
    Lost {
        /// How many.
        count: u64,
        /// When the first of them happened.
        since: String,
    },
    /// The last line was not whole, as a crash leaves it, and was cut off.
    Torn {
        /// The file of the log.
        file: String,
        /// How many bytes.
        bytes: u64,
    },
    /// The log cannot be continued where it ended, because something in it is wrong. What is wrong was left as it is.
    Broken {
        /// The file of the log.
        file: String,
        /// What is wrong.
        what: String,
    },
    /// An old file of the log was removed to make room.
    Removed {
        /// The file of the log.
        file: String,
        /// The number of its last line.
        last_seq: u64,
    },
}

/// How a volume is mounted, as far as it matters for who can read it and for how long.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// The policies and options with their values, in words.
    #[serde(flatten)]
    pub values: std::collections::BTreeMap<String, String>,
}

/// The ids of a call to the KMS, where it has such.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Call {
    /// The one that the service gave it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    /// The one that we gave it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_request_id: Option<String>,
}

impl From<&CallIds> for Call {
    fn from(ids: &CallIds) -> Self {
        let text = |id: &Option<String>| id.as_deref().map(clean);
        Self { request_id: text(&ids.request), client_request_id: text(&ids.client_request) }
    }
}

impl Event {
    /// The KMS did not give this.
    pub fn denied(what: impl Into<String>, wrapped: &Wrapped, error: &KmsError) -> Self {
        Self::LeaseDenied {
            what: what.into(),
            kind: error.kind.name(),
            code: error.code.as_deref().map(clean),
            message: clean(&error.message),
            kek: clean(&wrapped.kek.0),
            call: Call::from(&*error.ids),
        }
    }

    /// Its name in the log.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Init { .. } => "init",
            Self::Mount { .. } => "mount",
            Self::ConfigurationChange { .. } => "configuration-change",
            Self::Recovery { .. } => "recovery",
            Self::Unmount { .. } => "unmount",
            Self::Unlock => "unlock",
            Self::UnlockFailed { .. } => "unlock-failed",
            Self::Probe { .. } => "probe",
            Self::LeaseDenied { .. } => "lease-denied",
            Self::Drain { .. } => "drain",
            Self::Lock { .. } => "lock",
            Self::Restricted { .. } => "restricted",
            Self::Released => "released",
            Self::Unwrap { .. } => "unwrap",
            Self::LeasesEnded { .. } => "leases-ended",
            Self::FailedDecryption { .. } => "failed-decryption",
            Self::Damage { .. } => "damage",
            Self::KeyTest { .. } => "key-test",
            Self::KekVersion { .. } => "kek-version",
            Self::RewrapStarted { .. } => "rewrap-started",
            Self::RewrapEnded { .. } => "rewrap-ended",
            Self::RekeyStarted { .. } => "rekey-started",
            Self::RekeyEnded { .. } => "rekey-ended",
            Self::RollbackGuard { .. } => "rollback-guard",
            Self::Rollback { .. } => "rollback",
            Self::RollbackAccepted { .. } => "rollback-accepted",
            Self::Check { .. } => "check",
            Self::Import { .. } => "import",
            Self::Export { .. } => "export",
            Self::Suspend { .. } => "suspend",
            Self::Resume { .. } => "resume",
            Self::Checkpoint { .. } => "checkpoint",
            Self::Repeated { .. } => "repeated",
            Self::Lost { .. } => "lost",
            Self::Torn { .. } => "torn",
            Self::Broken { .. } => "broken",
            Self::Removed { .. } => "removed",
        }
    }

    /// How many of its kind are written one by one within how long; what comes on top is counted. `None`: all of them.
    pub(super) fn limit(&self) -> Option<(u64, Duration)> {
        const MINUTE: Duration = Duration::from_secs(60);
        match self {
            Self::Probe { .. } => Some((1, 10 * MINUTE)),
            Self::LeaseDenied { .. } | Self::FailedDecryption { .. } | Self::Damage { .. } | Self::Rollback { .. } => {
                Some((20, MINUTE))
            }
            Self::UnlockFailed { .. } => Some((5, MINUTE)),
            Self::Unwrap { .. } | Self::LeasesEnded { .. } => Some((2000, MINUTE)),
            _ => None,
        }
    }

    /// Whether the line should be durable at once rather than soon.
    pub(super) fn is_grave(&self) -> bool {
        !matches!(self, Self::Probe { .. } | Self::Unwrap { .. } | Self::LeasesEnded { .. } | Self::Repeated { .. })
    }
}

/// What is usual is not said.
fn is_false(value: &bool) -> bool {
    !value
}

/// By what an envelope is called in the log: the first 16 bytes of BLAKE3 of its wrapped bytes, in hexadecimal.
pub fn envelope_digest(wrapped: &Wrapped) -> String {
    data_encoding::HEXLOWER.encode(&blake3::hash(&wrapped.blob).as_bytes()[..16])
}

/// A text that neither breaks a line nor steers a terminal, and is not too long.
pub fn clean(text: &str) -> String {
    let steers = |c: char| {
        c.is_control()
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
    };
    let mut out = String::with_capacity(text.len().min(LONGEST));
    for c in text.chars().take(LONGEST) {
        if steers(c) { out.extend(c.escape_unicode()) } else { out.push(c) }
    }
    if text.chars().nth(LONGEST).is_some() {
        out.push('…');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kms::KmsErrorKind;

    #[test]
    fn a_text_from_elsewhere_cannot_end_a_line_or_steer_a_terminal() {
        assert_eq!(clean("a\nb\u{1b}[2J\u{202e}c\u{7f}"), "a\\u{a}b\\u{1b}[2J\\u{202e}c\\u{7f}");
        assert_eq!(clean("Grüße"), "Grüße");
        assert_eq!(clean(&"x".repeat(1000)).chars().count(), LONGEST + 1);
    }

    #[test]
    fn the_name_of_an_event_is_the_one_in_its_line() {
        let error = KmsError::new(KmsErrorKind::Refused, "no\n");
        let kek = crate::kms::KekId("file:/k#1".into());
        let wrapped = Wrapped { kek, algorithm: crate::kms::WrapAlgorithm::LocalAes256Gcm, blob: vec![1] };
        let (text, number) = (String::new, 0);
        let all = [
            Event::Unlock,
            Event::denied("volume-key", &wrapped, &error),
            Event::Probe { call: Call::default() },
            Event::LeasesEnded { why: "wiped", served: vec![(envelope_digest(&wrapped), 3)] },
            Event::FailedDecryption { file: text(), chunk: number },
            Event::Repeated { of: "damage", count: 2, since: text(), last: Box::new(Event::Damage { what: text() }) },
            Event::Mount {
                volume: text(),
                kek: text(),
                mountpoint: text(),
                host: text(),
                pid: 1,
                version: text(),
                after_crash: false,
                with_recovery_kek: false,
                settings: Settings::default(),
                call: Call::default(),
            },
            Event::KekVersion { kek: text() },
            Event::RewrapStarted { keks: vec![text()], to: None, recovery: None },
            Event::RekeyStarted { part: true, older_than_s: Some(1), epoch: 1 },
            Event::RekeyEnded {
                state: "complete",
                why: None,
                epoch: 1,
                files: 1,
                bytes: 1,
                unwrapped: 1,
                wrapped: 1,
                left: 0,
                floor_raised: true,
            },
            Event::RewrapEnded {
                state: "complete",
                why: None,
                kek: text(),
                files: 1,
                unwrapped: 1,
                wrapped: 1,
                left: 0,
                retired: vec![text()],
            },
            Event::ConfigurationChange { before: Settings::default(), now: Settings::default() },
        ];
        for event in all {
            let value = serde_json::to_value(&event).unwrap();
            assert_eq!(value["event"], event.name(), "{value}");
        }
    }
}
