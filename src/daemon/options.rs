//! What a mount can be told.

use super::guard::GuardOptions;
use super::log::Log;
use super::{Idle, Service};
use crate::audit::Limits;
use crate::fuse::flags::Flags;
use crate::http::Address;
use crate::lease::Policy;
use crate::tenant::TenantName;
use crate::units::VolumeId;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

/// Everything that a mount is told.
#[derive(Clone, Debug)]
pub struct MountOptions {
    /// The volume's directory.
    pub volume: PathBuf,
    /// Where it appears.
    pub mountpoint: PathBuf,
    /// Whose volume it is, if that has a configuration.
    pub tenant: Option<TenantName>,
    /// The KEK to ask instead of the one that the volume record names; it has to be the same key.
    pub kek: Option<String>,
    /// How the KMS's answers are weighed.
    pub policy: Policy,
    /// How many keys of files the KMS is asked for at most, in calls a second.
    pub kms_rate: u32,
    /// How often the KMS is asked whether the key has a newer version, if at all.
    pub check_rotation: Option<Duration>,
    /// The volume is opened with its recovery KEK.
    pub with_recovery_kek: bool,
    /// For how long to wait for a KMS that refuses or does not answer, before anything is mounted.
    pub wait: Option<Duration>,
    /// The id that the volume must have.
    pub volume_id: Option<VolumeId>,
    /// The options of `-o`.
    pub flags: Flags,
    /// How much of the audit log is kept.
    pub audit: Limits,
    /// How it is kept from being mounted in an older version, if at all.
    pub guard: Option<GuardOptions>,
    /// What it is to be known by in its metrics, beside its own names.
    pub labels: BTreeMap<String, String>,
    /// What it does when nobody uses it.
    pub idle: Idle,
    /// Where what is counted is served, if this mount has a server of its own.
    pub metrics: Option<Address>,
    /// The log of this process.
    pub log: Option<Log>,
    /// The service manager is told how it is.
    pub service: Service,
    /// Another process mounts it ([`super::attach`]).
    pub attached: bool,
}
