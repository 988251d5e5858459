//! What the service manager is told, if one started this process and asked for it (`sd_notify(3)`): that the mount is
//! ready, how it is, that it ends; and, as long as the mount answers, that it does.

use super::errand::Errand;
use super::{mountpoint, status::reason_name};
use crate::audit::clean;
use crate::lease::{Event, OnRevoked};
use sd_notify::NotifyState;
use std::path::PathBuf;
use std::time::Duration;

/// By how much a start that waits for the KMS is put off each time that it is told why, in microseconds.
const PATIENCE_US: u32 = 60_000_000;

/// The service manager, or nobody.
#[derive(Clone, Copy, Debug)]
pub struct Service(bool);

impl Service {
    /// The one that started this process, if it is to be told.
    pub fn new(is_told: bool) -> Self {
        Self(is_told)
    }

    fn tell(self, states: &[NotifyState<'_>]) {
        if self.0
            && let Err(error) = sd_notify::notify(states)
        {
            tracing::warn!("the service manager cannot be told: {error}");
        }
    }

    /// The start is over.
    pub fn ready(self, status: &str) {
        self.tell(&[NotifyState::Ready, NotifyState::Status(&clean(status))]);
    }

    /// The KMS does not give the key yet: that is no failure, and no reason to end the start.
    pub fn waiting(self, why: &str) {
        let status = clean(&format!("waiting for the key: {why}"));
        self.tell(&[NotifyState::ExtendTimeoutUsec(PATIENCE_US), NotifyState::Status(&status)]);
    }

    /// How it is, in a line.
    pub fn status(self, status: &str) {
        self.tell(&[NotifyState::Status(&clean(status))]);
    }

    /// The end has begun.
    pub fn stopping(self) {
        self.tell(&[NotifyState::Stopping, NotifyState::Status("storing what is left")]);
    }

    /// The same for what the keeper says.
    pub fn happened(self, event: &Event) {
        let revoked = |on_revoked: &OnRevoked| format!("{} (revoked)", on_revoked.name());
        match event {
            Event::Locking(reason) => self.status(&format!("draining ({})", reason_name(*reason))),
            Event::Locked(reason) => self.status(&format!("locked ({})", reason_name(*reason))),
            Event::Restricted(on_revoked) => self.status(&revoked(on_revoked)),
            Event::Unlocked | Event::Released => self.status("unlocked"),
            Event::UnlockFailed(why) => self.status(&format!("locked: {why}")),
            Event::Probed { .. } => (),
        }
    }

    /// Tells the manager's watchdog again and again that the mount answers: a process of its own asks it, through the
    /// kernel. What answers is alive, also while it is locked. A mount that is not there any more is not asked: its process
    /// waits for whoever still uses it.
    ///
    /// # Errors
    /// If the system has no thread to give.
    pub fn watch(self, mountpoint: PathBuf) -> std::io::Result<()> {
        let Some(timeout) = sd_notify::watchdog_enabled().filter(|_| self.0) else { return Ok(()) };
        let every = (timeout / 3).max(Duration::from_millis(10));
        std::thread::Builder::new().name("kmsfs-watchdog".into()).spawn(move || {
            loop {
                let is_there = || {
                    let mounted = mountpoint::mounted_at(&mountpoint).ok().flatten();
                    mounted.is_some_and(|mounted| mounted.fs_type == mountpoint::FS_TYPE)
                };
                // One that is not answered keeps this thread, and nobody tells the manager.
                let answers = Errand::ask(&mountpoint).run();
                if answers.is_ok() || !is_there() {
                    self.tell(&[NotifyState::Watchdog]);
                } else if let Err(error) = answers {
                    tracing::error!("the mount does not answer: {error}");
                }
                std::thread::sleep(every);
            }
        })?;
        Ok(())
    }
}
