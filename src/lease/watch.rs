//! When the volume locks and unlocks: a pure state machine, without a thread and without a clock of its own.
//! Whoever drives it does what [`Watch::step`] says and reports how it went. Depends on the kinds of KMS errors.
//!
//! Invariant: from the moment that the KMS refuses, the volume is locked after `revalidate` + [`LOCK_WITHIN`].
//! How the time is spent: a probe begins at most `revalidate` after the last one that *succeeded* began; what it
//! refuses is asked again [`CONFIRM_AFTER`] its beginning; only a success contradicts a refusal, and [`CONFIRMED_BY`]
//! the wait for one ends; what is left is for draining. A KMS that takes most of a deadline to refuse is believed at
//! once, and leaves less time to drain.
//!
//! Where the owner chose that a refusal takes less away ([`OnRevoked`]), the same steps end in a restriction, which ends
//! when the KMS grants again, and in a lock when it is silent for longer than the offline grace.

use super::BootTime;
use crate::kms::KmsErrorKind;
use serde::Serialize;
use std::time::Duration;

/// The promise: after a refusal the volume is locked within `revalidate` and this.
pub const LOCK_WITHIN: Duration = Duration::from_secs(5);
/// A refusal is asked for again so long after the probe that met it began.
pub const CONFIRM_AFTER: Duration = Duration::from_secs(1);
/// So long after that probe began, a refusal that nothing contradicted counts.
pub const CONFIRMED_BY: Duration = Duration::from_secs(2);
/// Kept of [`LOCK_WITHIN`] for wiping and for dropping the kernel's caches.
const WIPING: Duration = Duration::from_secs(1);
/// Draining is not cut shorter than this.
const SHORTEST_DRAIN: Duration = Duration::from_millis(500);
/// While locked, or while the KMS does not answer, it is asked at least this often.
const RETRY: Duration = Duration::from_secs(5);
/// Between a probe without success and the next one, at least.
const BREATH: Duration = Duration::from_millis(500);
/// A suspicion does not start probes more often than this.
const SUSPICION: Duration = Duration::from_secs(1);
/// A probe that takes longer counts as one without an answer, though it may still get one.
const PATIENCE: Duration = Duration::from_secs(5);
/// The shortest `revalidate`.
const SHORTEST_REVALIDATE: Duration = Duration::from_secs(1);

/// How the owner's will and the KMS's silence are weighed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    revalidate: Duration,
    offline_grace: Duration,
    drain: Duration,
    on_revoked: OnRevoked,
}

/// What a confirmed refusal of the KMS does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnRevoked {
    /// The volume locks: nothing can be read any more.
    #[default]
    Lock,
    /// Nothing can be changed any more. What the keys in memory open can still be read.
    ReadOnly,
    /// Nothing new can be opened or made. What is open goes on.
    PreventNew,
}

impl OnRevoked {
    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Lock => "lock",
            Self::ReadOnly => "read-only",
            Self::PreventNew => "prevent-new",
        }
    }
}

impl std::str::FromStr for OnRevoked {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "lock" => Ok(Self::Lock),
            "read-only" => Ok(Self::ReadOnly),
            "prevent-new" => Ok(Self::PreventNew),
            _ => Err("it is lock, read-only or prevent-new".into()),
        }
    }
}

impl Policy {
    /// Ask every `revalidate`, go on for `offline_grace` without an answer, drain for `drain` at most.
    ///
    /// # Errors
    /// If `revalidate` is under one second, in words.
    pub fn new(revalidate: Duration, offline_grace: Duration, drain: Duration) -> Result<Self, String> {
        if revalidate < SHORTEST_REVALIDATE {
            return Err(format!("revalidate is {revalidate:?}, and cannot be under {SHORTEST_REVALIDATE:?}"));
        }
        Ok(Self { revalidate, offline_grace, drain, on_revoked: OnRevoked::Lock })
    }

    /// The same, with this for an answer to a revocation.
    #[must_use]
    pub fn on_revoked(self, on_revoked: OnRevoked) -> Self {
        Self { on_revoked, ..self }
    }

    /// What a confirmed refusal of the KMS does.
    pub fn when_revoked(&self) -> OnRevoked {
        self.on_revoked
    }

    /// How often the KMS is asked.
    pub fn revalidate(&self) -> Duration {
        self.revalidate
    }

    /// For how long a KMS that does not answer changes nothing.
    pub fn offline_grace(&self) -> Duration {
        self.offline_grace
    }

    /// For how long a lock waits for what was written to be stored.
    pub fn drain(&self) -> Duration {
        self.drain
    }

    fn retry(&self) -> Duration {
        self.revalidate.min(RETRY)
    }
}

impl Default for Policy {
    /// 30 s, 10 min, 3 s; a revocation locks.
    fn default() -> Self {
        let [revalidate, offline_grace, drain] = [30, 600, 3].map(Duration::from_secs);
        Self { revalidate, offline_grace, drain, on_revoked: OnRevoked::Lock }
    }
}

/// Why a volume is locked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LockReason {
    /// The KMS refuses.
    Revoked,
    /// The KMS has not answered for longer than the offline grace.
    Unreachable,
    /// Somebody said so.
    Operator,
    /// Nobody has used it for a while. Whoever does next has it unlocked.
    Idle,
}

impl LockReason {
    /// Whether it is for somebody here to end it, and not for the KMS.
    fn waits(self) -> bool {
        matches!(self, Self::Operator | Self::Idle)
    }
}

/// What may be done with the volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "state", content = "reason", rename_all = "lowercase")]
pub enum State {
    /// Everything.
    Unlocked,
    /// The KMS refuses, and the owner chose that this takes only so much away.
    Restricted(OnRevoked),
    /// No new opens or writes; what was written is being flushed.
    Draining(LockReason),
    /// Nothing.
    Locked(LockReason),
}

/// What has to be done now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing before this moment.
    Wait(BootTime),
    /// Ask the KMS, and report with [`Watch::answer`]. Other steps may come before the answer.
    Probe,
    /// Drain for so long at most, lock, wipe, and report with [`Watch::locked`]. A volume that is locked already only
    /// takes on the new reason.
    Lock {
        /// Why.
        reason: LockReason,
        /// For how long what was written may be flushed.
        drain: Duration,
    },
    /// Take away what this says, after draining for so long at most. Nothing is reported.
    Restrict {
        /// What goes.
        on_revoked: OnRevoked,
        /// For how long what was written may be flushed.
        drain: Duration,
    },
    /// Allow everything again. Nothing is reported.
    Release,
    /// Unlock with the key of the probe that succeeded last, and report with [`Watch::unlocked`].
    Unlock,
}

/// The state of one volume's lease.
#[derive(Clone, Debug)]
pub struct Watch {
    policy: Policy,
    state: State,
    /// When the last probe that succeeded began.
    last_success: BootTime,
    /// When the last probe began that the KMS answered, if only to refuse.
    last_heard: BootTime,
    /// Whether the last probe ended without success.
    failing: bool,
    /// Whether it ended without an answer.
    silent: bool,
    /// When the probe under way began.
    probe: Option<BootTime>,
    next_probe: BootTime,
    /// When the probe began that met a refusal which is not contradicted yet.
    refused: Option<BootTime>,
    suspected: Option<BootTime>,
    /// Something that is decided and not yet begun.
    due: Option<Due>,
    /// When the operator asked to unlock.
    unlock_asked: Option<BootTime>,
    /// The part of `revalidate` (0 to 0.1) that this volume asks early, so that many do not ask together.
    early: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Due {
    Lock(LockReason),
    Unlock,
    Release,
}

impl Watch {
    /// A volume whose key was unwrapped just now. `spread`, from 0 to 1, sets volumes apart from each other.
    pub fn new(policy: Policy, now: BootTime, spread: f64) -> Self {
        let mut watch = Self {
            policy,
            state: State::Unlocked,
            last_success: now,
            last_heard: now,
            failing: false,
            silent: false,
            probe: None,
            next_probe: now,
            refused: None,
            suspected: None,
            due: None,
            unlock_asked: None,
            early: spread.clamp(0.0, 1.0) * 0.1,
        };
        watch.next_probe = now + watch.interval();
        watch
    }

    /// The present state.
    pub fn state(&self) -> State {
        self.state
    }

    /// When the last probe that succeeded began.
    pub fn last_success(&self) -> BootTime {
        self.last_success
    }

    /// Whether the operator asked to unlock and the KMS has not said anything to it yet.
    pub fn awaits_unlock(&self) -> bool {
        self.unlock_asked.is_some() || self.due == Some(Due::Unlock)
    }

    /// What to do now. Whatever is returned, except a wait, counts as begun.
    pub fn step(&mut self, now: BootTime) -> Step {
        match self.state {
            State::Draining(_) => Step::Wait(now + SHORTEST_DRAIN),
            State::Unlocked => {
                let reason = match self.due {
                    Some(Due::Lock(reason)) => Some(reason),
                    _ if self.refused.is_some_and(|since| now >= since + CONFIRMED_BY) => Some(LockReason::Revoked),
                    _ if self.grace_end(now).is_some_and(|end| now >= end) => Some(LockReason::Unreachable),
                    _ => None,
                };
                match reason {
                    Some(LockReason::Revoked) if self.policy.on_revoked != OnRevoked::Lock => self.restrict(),
                    Some(reason) => self.begin_lock(now, reason),
                    None => self.probe_or_wait(now),
                }
            }
            State::Restricted(_) => match self.due.take() {
                Some(Due::Lock(reason)) => self.begin_lock(now, reason),
                Some(Due::Release) => {
                    self.state = State::Unlocked;
                    Step::Release
                }
                _ if self.grace_end(now).is_some_and(|end| now >= end) => self.begin_lock(now, LockReason::Unreachable),
                _ => self.probe_or_wait(now),
            },
            State::Locked(old) => match self.due.take() {
                Some(Due::Unlock) => Step::Unlock,
                Some(Due::Lock(reason)) if reason != old => {
                    self.state = State::Locked(reason);
                    Step::Lock { reason, drain: Duration::ZERO }
                }
                _ => self.probe_or_wait(now),
            },
        }
    }

    /// How the probe under way ended.
    pub fn answer(&mut self, now: BootTime, outcome: Result<(), KmsErrorKind>) {
        let Some(began) = self.probe.take() else { return };
        self.next_probe = match outcome {
            Ok(()) => began + self.interval(),
            Err(_) => (began + self.policy.retry()).max(now + BREATH),
        };
        self.failing = outcome.is_err();
        if outcome.is_ok() {
            self.last_success = began;
        }
        self.silent = !matches!(outcome, Ok(()) | Err(KmsErrorKind::Refused));
        if !self.silent {
            self.last_heard = began;
        }
        match self.state {
            State::Unlocked => self.answered_unlocked(now, began, outcome),
            State::Restricted(_) if outcome.is_ok() => self.due = self.due.or(Some(Due::Release)),
            State::Restricted(_) => {}
            State::Locked(reason) => self.answered_locked(began, reason, outcome),
            State::Draining(_) => {}
        }
        if self.suspected.take_if(|suspected| *suspected <= began).is_none() && self.suspected.is_some() {
            self.next_probe = self.next_probe.min(began + SUSPICION);
        }
    }

    /// The KMS refused a file's key: ask now.
    pub fn suspect(&mut self, now: BootTime) {
        if self.state == State::Unlocked {
            self.suspected = Some(now);
            let last = self.probe.unwrap_or(self.last_success);
            self.next_probe = self.next_probe.min(now.max(last + SUSPICION));
        }
    }

    /// The operator locks. Takes back a wish to unlock.
    pub fn lock(&mut self) {
        self.unlock_asked = None;
        if self.state != State::Locked(LockReason::Operator) {
            self.due = Some(Due::Lock(LockReason::Operator));
        } else {
            self.due = None;
        }
    }

    /// Nobody uses it. Nothing is asked until somebody does, which is [`unlock`](Self::unlock).
    pub fn lock_idle(&mut self) {
        if self.state == State::Unlocked && self.refused.is_none() {
            self.due = self.due.or(Some(Due::Lock(LockReason::Idle)));
        }
    }

    /// The operator unlocks: the next probe decides.
    pub fn unlock(&mut self, now: BootTime) {
        match self.state {
            State::Unlocked => self.due = None,
            State::Restricted(_) => self.next_probe = now,
            State::Draining(_) | State::Locked(_) => {
                self.unlock_asked = Some(now);
                self.next_probe = now;
            }
        }
    }

    /// The volume is locked and wiped.
    pub fn locked(&mut self, now: BootTime) {
        if let State::Draining(reason) | State::Locked(reason) = self.state {
            self.state = State::Locked(reason);
            self.refused = None;
            self.suspected = None;
            self.next_probe =
                if self.unlock_asked.is_some() { now } else { self.next_probe.min(now + self.policy.retry()) };
        }
    }

    /// The volume is unlocked, or could not be although the KMS granted its key: then it is tried again later.
    pub fn unlocked(&mut self, now: BootTime, done: bool) {
        self.unlock_asked = None;
        if done {
            self.state = State::Unlocked;
            self.refused = None;
        } else {
            self.next_probe = now + self.policy.retry();
        }
    }

    fn answered_unlocked(&mut self, now: BootTime, began: BootTime, outcome: Result<(), KmsErrorKind>) {
        match (outcome, self.refused) {
            (Ok(()), _) => self.refused = None,
            (Err(_), Some(_)) => self.due = self.due.or(Some(Due::Lock(LockReason::Revoked))),
            (Err(KmsErrorKind::Refused), None) => {
                self.refused = Some(began);
                self.next_probe = (began + CONFIRM_AFTER).max(now);
            }
            (Err(_), None) => {}
        }
    }

    fn answered_locked(&mut self, began: BootTime, reason: LockReason, outcome: Result<(), KmsErrorKind>) {
        let asked = self.unlock_asked.is_some_and(|asked| asked <= began);
        match outcome {
            Ok(()) if asked || (!reason.waits() && self.unlock_asked.is_none()) => {
                // An operator's lock that came meanwhile stays.
                self.due = self.due.or(Some(Due::Unlock));
            }
            Err(KmsErrorKind::Refused) if matches!(reason, LockReason::Unreachable | LockReason::Idle) => {
                self.due = self.due.or(Some(Due::Lock(LockReason::Revoked)));
            }
            _ => {}
        }
        match self.unlock_asked {
            // A probe that began before the wish says nothing about it.
            Some(_) if !asked => self.next_probe = began,
            _ => self.unlock_asked = None,
        }
    }

    fn begin_lock(&mut self, now: BootTime, reason: LockReason) -> Step {
        let drain = match (reason, self.refused) {
            (LockReason::Revoked, Some(since)) => {
                let left = (since + LOCK_WITHIN) - now;
                self.policy.drain.min(left.saturating_sub(WIPING).max(SHORTEST_DRAIN))
            }
            _ => self.policy.drain,
        };
        self.due = None;
        self.state = State::Draining(reason);
        Step::Lock { reason, drain }
    }

    fn restrict(&mut self) -> Step {
        self.due = None;
        self.refused = None;
        self.suspected = None;
        self.state = State::Restricted(self.policy.on_revoked);
        Step::Restrict { on_revoked: self.policy.on_revoked, drain: self.policy.drain }
    }

    fn probe_or_wait(&mut self, now: BootTime) -> Step {
        let waits = matches!(self.state, State::Locked(reason) if reason.waits());
        let probes = !waits || self.unlock_asked.is_some();
        if probes && self.probe.is_none() && now >= self.next_probe {
            self.probe = Some(now);
            return Step::Probe;
        }
        let confirmed = self.refused.map(|since| since + CONFIRMED_BY);
        let grace = match self.state {
            State::Unlocked | State::Restricted(_) => self.grace_end(now).or(self.probe.map(|began| began + PATIENCE)),
            _ => None,
        };
        let probe = (probes && self.probe.is_none()).then_some(self.next_probe);
        let next = [confirmed, grace, probe].into_iter().flatten().min();
        Step::Wait(next.unwrap_or(now + Duration::from_secs(3600)))
    }

    /// When the keys may no longer be used, if the KMS is silent now. A refusal is no silence: it has its own end.
    fn grace_end(&self, now: BootTime) -> Option<BootTime> {
        if self.refused.is_some() {
            return None;
        }
        let overdue = self.probe.is_some_and(|began| now >= began + PATIENCE);
        // Refused once more says nothing new to a volume that is restricted for it.
        let (last, silent) = match self.state {
            State::Restricted(_) => (self.last_heard, self.silent),
            _ => (self.last_success, self.failing),
        };
        (silent || overdue).then(|| last + self.policy.offline_grace)
    }

    /// From the beginning of one probe to that of the next.
    fn interval(&self) -> Duration {
        self.policy.revalidate.mul_f64(1.0 - self.early)
    }
}

#[cfg(test)]
mod tests;
