//! What a mount says in the audit log of its volume. Whatever is wrong with the log, the mount goes on without it.

use super::MountOptions;
use crate::audit::{Audit, Call, Event, Recorder, Settings, clean};
use crate::crypto::Secret32;
use crate::fs::Fs;
use crate::fs::volume::Volume;
use crate::kms::{CallIds, KmsError, Wrapped};
use parking_lot::Mutex;
use std::path::Path;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

/// The log of one mount, from before the KMS is asked until everything is stored.
pub struct Trail {
    audit: Option<Audit>,
    after_crash: bool,
    /// The call that unwrapped the volume key.
    call: Mutex<Call>,
}

impl Trail {
    /// Opens the log, and notes what was recovered. A mount that shares the volume has a series of its own in it.
    pub fn open(options: &MountOptions, volume: &Volume, recovery: Option<Event>) -> Self {
        let audit = Audit::open(volume.path(), volume.record().id, options.flags.read_only, options.audit)
            .inspect_err(|error| tracing::warn!("there is no audit log of this mount: {error}"))
            .ok();
        let trail = Self { audit, after_crash: recovery.is_some(), call: Mutex::default() };
        if let Some(recovery) = recovery {
            trail.recorder().record(recovery);
        }
        trail
    }

    /// What a crash had left was recovered.
    pub fn recovered(&mut self, recovery: Event) {
        self.after_crash = true;
        self.recorder().record(recovery);
    }

    /// What others say things with.
    pub fn recorder(&self) -> Recorder {
        self.audit.as_ref().map_or_else(Recorder::none, |audit| audit.recorder().clone())
    }

    /// The KMS gave the volume key.
    pub fn unwrapped(&self, ids: &CallIds) {
        *self.call.lock() = Call::from(ids);
    }

    /// It did not give it.
    pub fn denied(&self, wrapped: &Wrapped, error: &KmsError) {
        self.recorder().record(Event::denied("volume-key at mount", wrapped, error));
    }

    /// The record has a new version of the KEK.
    pub fn rotated(&self, volume: &Volume) {
        note_new_kek(&self.recorder(), volume);
    }

    /// The mount answers. From here on the log is authenticated, with this key.
    pub fn mounted(&self, options: &MountOptions, mountpoint: &Path, fs: &Fs, key: Secret32) {
        let Some(audit) = &self.audit else { return };
        let (recorder, record) = (audit.recorder(), fs.volume().record());
        let now = settings(options);
        recorder.record(Event::Mount {
            volume: record.id.to_string(),
            kek: fs.volume().opening_kek().map(|kek| clean(&kek.volume_key.kek.0)).unwrap_or_default(),
            mountpoint: clean(&mountpoint.to_string_lossy()),
            host: clean(&rustix::system::uname().nodename().to_string_lossy()),
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            after_crash: self.after_crash,
            with_recovery_kek: options.with_recovery_kek,
            settings: now.clone(),
            call: self.call.lock().clone(),
        });
        if let Some(before) = audit.found.settings.clone().filter(|before| *before != now) {
            recorder.record(Event::ConfigurationChange { before, now });
        }
        recorder.unlock(key);
    }

    /// Everything that can be stored is.
    pub fn unmounted(&self, fs: &Fs, locked: bool) {
        self.recorder().record(Event::Unmount {
            locked,
            files_lost: fs.waiting_files(),
            bytes_read: fs.counters.read.load(Relaxed),
            bytes_written: fs.counters.written.load(Relaxed),
        });
    }
}

/// The word for what a rollback does to a mount.
fn on_rollback(warn: bool) -> &'static str {
    if warn { "warn" } else { "refuse" }
}

/// What is new is wrapped by another KEK from now on, or by another version of it.
pub(super) fn note_new_kek(recorder: &Recorder, volume: &Volume) {
    recorder.record(Event::KekVersion { kek: clean(&volume.record().newest().volume_key.kek.0) });
}

/// What of the options matters for who can read the volume, and for how long.
fn settings(options: &MountOptions) -> Settings {
    let duration = |duration: Duration| humantime::format_duration(duration).to_string();
    let (policy, flags) = (&options.policy, &options.flags);
    let set = [
        (flags.read_only, "ro"),
        (flags.allow_other, "allow_other"),
        (flags.dev, "dev"),
        (flags.suid, "suid"),
        (flags.direct_io, "direct_io"),
    ];
    let set: Vec<_> = set.into_iter().filter_map(|(is_set, name)| is_set.then_some(name)).collect();
    let keep = options.audit.keep.map_or_else(|| "all".to_owned(), |files| files.to_string());
    let values = [
        ("revalidate", duration(policy.revalidate())),
        ("offline_grace", duration(policy.offline_grace())),
        ("drain", duration(policy.drain())),
        ("on_revoked", policy.when_revoked().name().to_owned()),
        ("kms_rate", options.kms_rate.to_string()),
        ("check_rotation", options.check_rotation.map_or_else(|| "never".to_owned(), duration)),
        ("options", set.join(",")),
        ("idle_lock", options.idle.lock.map(duration).unwrap_or_default()),
        ("kek", options.kek.as_deref().map(kek).unwrap_or_default()),
        ("volume_id", options.volume_id.map(|id| id.to_string()).unwrap_or_default()),
        ("audit_keep", keep),
        ("rollback_guard", options.guard.as_ref().map(|guard| clean(&guard.place.to_string())).unwrap_or_default()),
        ("on_rollback", options.guard.as_ref().map_or("", |guard| on_rollback(guard.warn)).to_owned()),
    ];
    Settings { values: values.into_iter().map(|(name, value)| (name.to_owned(), value)).collect() }
}

/// Where the key is, without the arguments of a command that prints it.
fn kek(reference: &str) -> String {
    match reference.strip_prefix("cmd:") {
        Some(line) => clean(&format!("cmd:{}", line.split_whitespace().next().unwrap_or_default())),
        None => clean(reference),
    }
}
