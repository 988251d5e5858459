//! What a mount says of itself.

use super::guard::{Guard, GuardStatus};
use super::{RekeyStatus, RewrapStatus, ScrubStatus};
use crate::audit::Recent;
use crate::format::volume::KekRole;
use crate::fs::Fs;
use crate::lease::{BootTime, Keeper, LeaseStats, LockReason, OnRevoked, Policy, State};
use crate::tenant::TenantName;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::Ordering::Relaxed;

/// Of so many calls the latencies are told.
const LATENCIES: usize = 60;

/// The state of a mount, as `kmsfs status --json` prints it. Stable: scripts depend on the names.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    /// `unlocked`, `read-only` or `prevent-new` (revoked, where that does not lock), `draining` or `locked`.
    pub state: String,
    /// `revoked`, `unreachable`, `operator` or `idle`, unless unlocked.
    pub reason: Option<String>,
    /// For how long it has been so, in seconds.
    pub since_s: f64,
    /// The KEK with its version.
    pub kek: String,
    /// What its configuration calls it, for metrics.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// How often the KMS is asked, in seconds.
    pub revalidate_s: f64,
    /// For how long a KMS that does not answer changes nothing, in seconds.
    pub offline_grace_s: f64,
    /// For how much longer keys may be used without another answer of the KMS, in seconds.
    pub lease_remaining_s: f64,
    /// How long ago the KMS last granted the key, in seconds.
    pub last_granted_s: f64,
    /// What was wrong with the last answer of the KMS.
    pub last_error: Option<String>,
    /// The volume's directory.
    pub volume: PathBuf,
    /// The volume's id.
    pub volume_id: String,
    /// Whose it is; `null` unless it was mounted as a tenant's.
    #[serde(default)]
    pub tenant: Option<TenantName>,
    /// Where it is mounted.
    pub mountpoint: PathBuf,
    /// The process that serves it.
    pub pid: u32,
    /// Nothing can be changed.
    pub read_only: bool,
    /// A crash was recovered, and not every file has been looked at since.
    pub recovering: bool,
    /// Inodes that the kernel knows.
    pub inodes: usize,
    /// Files that are open, or wait to be committed.
    pub open_files: usize,
    /// Bytes that applications read, without what came from the page cache.
    pub bytes_read: u64,
    /// Bytes that applications wrote.
    pub bytes_written: u64,
    /// Damage that was found.
    pub damaged: u64,
    /// Files whose last changes could not be stored before a lock.
    pub uncommitted_at_lock: u64,
    /// Calls to the KMS and what came of them.
    pub kms: serde_json::Value,
    /// How long the last calls to the KMS took, 60 at most, in microseconds, the newest last.
    #[serde(default)]
    pub recent_latencies_us: Vec<u64>,
    /// What the audit log was last told, 10 at most, the newest first.
    #[serde(default)]
    pub events: Vec<Recent>,
    /// The last scrub of this mount, or the one that runs; `null` if there was none.
    pub scrub: Option<ScrubStatus>,
    /// The last rewrap of this mount, or the one that runs; `null` if there was none.
    pub rewrap: Option<RewrapStatus>,
    /// The last rekey of this mount, or the one that runs; `null` if there was none.
    pub rekey: Option<RekeyStatus>,
    /// It was opened with its recovery KEK.
    pub with_recovery_kek: bool,
    /// What the guard against rollback knows; `null` if the mount has none.
    pub rollback_guard: Option<GuardStatus>,
    /// The audit log of this mount; `null` if there is none, because nothing can be written to the volume.
    pub audit: Option<crate::audit::Status>,
}

impl Status {
    /// Whether the KMS granted its key the last time that it was asked, and it is unlocked, or will be for whoever uses it.
    pub fn is_granted(&self) -> bool {
        (self.state == "unlocked" || self.is_resting()) && self.last_error.is_none()
    }

    /// Whether it is locked only because nobody uses it.
    pub fn is_resting(&self) -> bool {
        self.reason.as_deref() == Some("idle")
    }

    /// The state of a mount now.
    pub fn of(
        fs: &Fs,
        keeper: &Keeper,
        policy: &Policy,
        mountpoint: &std::path::Path,
        read_only: bool,
        (scrub, rewrap, rekey): (Option<ScrubStatus>, Option<RewrapStatus>, Option<RekeyStatus>),
        guard: Option<&Guard>,
    ) -> Self {
        let lease = keeper.status();
        let now = BootTime::now();
        let ago = |then: BootTime| now.0.saturating_sub(then.0).as_secs_f64();
        let (state, reason) = match lease.state {
            State::Unlocked => ("unlocked", None),
            State::Restricted(OnRevoked::PreventNew) => ("prevent-new", Some(LockReason::Revoked)),
            State::Restricted(_) => ("read-only", Some(LockReason::Revoked)),
            State::Draining(reason) => ("draining", Some(reason)),
            State::Locked(reason) => ("locked", Some(reason)),
        };
        let unlocked = matches!(lease.state, State::Unlocked | State::Restricted(_));
        let bound = (policy.revalidate() + policy.offline_grace()).as_secs_f64();
        let stats: LeaseStats = fs.leases().stats();
        Self {
            state: state.to_owned(),
            reason: reason.map(|reason| reason_name(reason).to_owned()),
            since_s: ago(lease.since),
            kek: fs.volume().opening_kek().map(|kek| kek.volume_key.kek.to_string()).unwrap_or_default(),
            labels: BTreeMap::new(),
            revalidate_s: policy.revalidate().as_secs_f64(),
            offline_grace_s: policy.offline_grace().as_secs_f64(),
            lease_remaining_s: if unlocked { (bound - ago(lease.last_success)).max(0.0) } else { 0.0 },
            last_granted_s: ago(lease.last_success),
            last_error: lease.last_error.map(|error| error.to_string()),
            volume: fs.volume().path().to_owned(),
            volume_id: fs.volume().record().id.to_string(),
            tenant: None,
            mountpoint: mountpoint.to_owned(),
            pid: std::process::id(),
            read_only,
            recovering: fs.wants_sweep(),
            inodes: fs.known_inodes(),
            open_files: fs.open_files(),
            bytes_read: fs.counters.read.load(Relaxed),
            bytes_written: fs.counters.written.load(Relaxed),
            damaged: fs.counters.damaged.load(Relaxed),
            uncommitted_at_lock: fs.counters.lost.load(Relaxed),
            kms: serde_json::to_value(stats).unwrap_or_default(),
            recent_latencies_us: fs.leases().recent_latencies(LATENCIES),
            events: fs.leases().recorder().recent(),
            scrub,
            rewrap,
            rekey,
            with_recovery_kek: fs.volume().role() == KekRole::Recovery,
            rollback_guard: guard.map(Guard::status),
            audit: fs.leases().recorder().status(),
        }
    }
}

/// The word for a reason.
pub(super) fn reason_name(reason: LockReason) -> &'static str {
    match reason {
        LockReason::Revoked => "revoked",
        LockReason::Unreachable => "unreachable",
        LockReason::Operator => "operator",
        LockReason::Idle => "idle",
    }
}
