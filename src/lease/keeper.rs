//! The thread that drives a [`Watch`] with the real KMS, clock and volume. Depends on `leases` and `watch`.
//! Invariant: the thread itself never waits for the KMS: each probe has a short-lived thread of its own, so that a KMS
//! that hangs delays neither an operator's lock nor the end of a grace.

use super::{BootTime, Leases, LockReason, OnRevoked, Policy, State, Step, Watch};
use crate::crypto::{Secret32, wipe_stack};
use crate::kms::{KmsError, KmsErrorKind, Wrapped};
use parking_lot::{Condvar, Mutex};
use std::fmt;
use std::sync::mpsc;
use std::sync::{Arc, Weak};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// A suspend stops the clock that a thread waits by: so it looks at the real one this often.
const LONGEST_WAIT: Duration = Duration::from_secs(1);

/// Derives the digest by which the volume key is recognised. In memory only.
const DIGEST_CONTEXT: &str = "kmsfs 2026 canary digest v1";

/// What the keeper locks and unlocks. Calls come from the keeper's thread, one at a time, which serves no request
/// of the kernel and holds no lock.
pub trait Volume: Send + Sync {
    /// Takes no new opens and writes, flushes what was written for `drain` at most, makes the kernel forget,
    /// wipes every key, and makes the kernel forget again. Everything fails afterwards, in the way of `reason`. A volume
    /// that is locked already takes on the new reason. Comes back at most a second after the drain's bound, whatever
    /// the kernel does: nothing else wipes the volume's own keys. The leases are locked after this, if they are not yet.
    fn drain_and_lock(&self, reason: LockReason, drain: Duration);

    /// Takes away what this says, after flushing what was written for `drain` at most.
    fn restrict(&self, on_revoked: OnRevoked, drain: Duration);

    /// Gives back what [`restrict`](Self::restrict) took away.
    fn release(&self);

    /// Makes everything work again, with this key. The leases are unlocked already.
    ///
    /// # Errors
    /// Why it stays locked, in words. It is tried again later.
    fn unlock(&self, volume_key: Secret32) -> Result<(), String>;
}

/// What is unwrapped to see whether the KMS grants it, and how to see that it is the right thing: the volume key.
#[derive(Clone)]
pub struct Canary {
    wrapped: Wrapped,
    digest: [u8; 32],
}

impl Canary {
    /// The wrapped volume key, and the key itself, of which only a digest is kept.
    pub fn new(wrapped: Wrapped, volume_key: &Secret32) -> Self {
        Self { wrapped, digest: digest(volume_key) }
    }

    /// The volume key, if the KMS grants it now.
    fn probe(&self, leases: &Leases) -> Result<Secret32, KmsError> {
        let key = leases.probe(&self.wrapped)?;
        if digest(&key) == self.digest {
            Ok(key)
        } else {
            Err(KmsError::new(KmsErrorKind::Damaged, "the KMS unwrapped the volume key to something else"))
        }
    }
}

impl fmt::Debug for Canary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Canary").field("kek", &self.wrapped.kek).finish_non_exhaustive()
    }
}

/// What happened, for the audit log and for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The KMS was asked, and this came of it.
    Probed {
        /// What it said.
        outcome: Result<(), KmsError>,
        /// How long it took.
        took: Duration,
    },
    /// The volume is about to drain and lock.
    Locking(LockReason),
    /// The volume is locked and its keys are wiped.
    Locked(LockReason),
    /// The KMS refuses, and this is what the volume does no more.
    Restricted(OnRevoked),
    /// The KMS grants again, and the volume does everything.
    Released,
    /// The volume is unlocked again.
    Unlocked,
    /// The KMS grants the key, but the volume stays locked.
    UnlockFailed(String),
}

/// Why an operator's unlock did not unlock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UnlockError {
    /// The KMS does not give the key.
    Kms(KmsError),
    /// The KMS gives the key, but the volume cannot be unlocked with it.
    Volume(String),
    /// Somebody locked it meanwhile, or it is being unmounted.
    Overtaken,
}

impl fmt::Display for UnlockError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kms(error) => error.fmt(f),
            Self::Volume(error) => f.write_str(error),
            Self::Overtaken => f.write_str("the volume was locked or unmounted meanwhile"),
        }
    }
}

impl std::error::Error for UnlockError {}

/// How things stand.
#[derive(Clone, Debug)]
pub struct Status {
    /// The state.
    pub state: State,
    /// Since when it is in this state.
    pub since: BootTime,
    /// When the last probe that the KMS granted began.
    pub last_success: BootTime,
    /// What was wrong with the last probe.
    pub last_error: Option<KmsError>,
}

/// The running thread; dropping it stops it.
pub struct Keeper {
    shared: Arc<Shared>,
    leases: Arc<Leases>,
    thread: Option<JoinHandle<()>>,
}

type Clock = Box<dyn Fn() -> BootTime + Send + Sync>;
type Tell = Box<dyn Fn(Event) + Send>;

struct Shared {
    inbox: Mutex<Inbox>,
    changed: Condvar,
    clock: Clock,
}

struct Inbox {
    mail: Vec<Mail>,
    stop: bool,
    canary: Canary,
    status: Status,
}

enum Mail {
    Suspect,
    Lock(mpsc::Sender<()>),
    Unlock(mpsc::Sender<Result<(), UnlockError>>),
    Idle(mpsc::Sender<()>),
    Wake(mpsc::Sender<Result<(), UnlockError>>),
    Answer { outcome: Result<Secret32, KmsError>, took: Duration },
}

impl Keeper {
    /// Starts the thread for a volume that is unlocked now, with a canary that was unwrapped just now.
    /// `tell` is called from the thread, for every event in order.
    ///
    /// # Errors
    /// If the system has no thread to give.
    pub fn start(
        leases: Arc<Leases>,
        volume: Arc<dyn Volume>,
        canary: Canary,
        policy: Policy,
        tell: impl Fn(Event) + Send + 'static,
    ) -> std::io::Result<Self> {
        Self::start_with(leases, volume, canary, policy, Box::new(tell), Box::new(BootTime::now))
    }

    fn start_with(
        leases: Arc<Leases>,
        volume: Arc<dyn Volume>,
        canary: Canary,
        policy: Policy,
        tell: Tell,
        clock: Clock,
    ) -> std::io::Result<Self> {
        let now = clock();
        let status = Status { state: State::Unlocked, since: now, last_success: now, last_error: None };
        let inbox = Inbox { mail: Vec::new(), stop: false, canary, status };
        let shared = Arc::new(Shared { inbox: Mutex::new(inbox), changed: Condvar::new(), clock });
        let mut seed = [0; 2];
        // Without randomness the volumes are only not spread.
        let _ = getrandom::fill(&mut seed);
        let spread = f64::from(u16::from_le_bytes(seed)) / f64::from(u16::MAX);
        let driver = Driver {
            watch: Watch::new(policy, now, spread),
            shared: Arc::clone(&shared),
            leases: Arc::clone(&leases),
            volume,
            tell,
            granted: None,
            locks: Vec::new(),
            unlocks: Vec::new(),
        };
        let thread = thread::Builder::new().name("kmsfs-keeper".into()).spawn(move || driver.run())?;
        let suspicion = Arc::downgrade(&shared);
        leases.on_refusal(Some(Arc::new(move || {
            if let Some(shared) = suspicion.upgrade() {
                shared.post(Mail::Suspect);
            }
        })));
        Ok(Self { shared, leases, thread: Some(thread) })
    }

    /// Drains and locks by the operator's hand. Comes back when the volume is locked.
    pub fn lock(&self) {
        let (reply, done) = mpsc::channel();
        self.shared.post(Mail::Lock(reply));
        // An error means that the keeper stopped, and with it the volume.
        let _ = done.recv();
    }

    /// Unlocks by the operator's hand, if the KMS grants it. Comes back when that is decided.
    ///
    /// # Errors
    /// Why the volume is still locked.
    pub fn unlock(&self) -> Result<(), UnlockError> {
        let (reply, done) = mpsc::channel();
        self.shared.post(Mail::Unlock(reply));
        done.recv().unwrap_or(Err(UnlockError::Overtaken))
    }

    /// Drains and locks because nobody uses the volume, if it is unlocked. Comes back when that is decided.
    pub fn lock_idle(&self) {
        let (reply, done) = mpsc::channel();
        self.shared.post(Mail::Idle(reply));
        let _ = done.recv();
    }

    /// Ends what [`lock_idle`](Self::lock_idle) did, if the KMS grants it, for somebody who uses the volume. Comes back when
    /// that is decided: within a drain and the deadline of a call to the KMS.
    ///
    /// # Errors
    /// Why the volume is locked. A lock for another reason stays: that is `Overtaken`.
    pub fn wake(&self) -> Result<(), UnlockError> {
        let (reply, done) = mpsc::channel();
        self.shared.post(Mail::Wake(reply));
        done.recv().unwrap_or(Err(UnlockError::Overtaken))
    }

    /// Asks the KMS soon: something looks as if it refused. The leases do this by themselves.
    pub fn suspect(&self) {
        self.shared.post(Mail::Suspect);
    }

    /// How things stand.
    pub fn status(&self) -> Status {
        self.shared.inbox.lock().status.clone()
    }

    /// From now on asks with this canary: the volume key was wrapped anew.
    pub fn set_canary(&self, canary: Canary) {
        self.shared.inbox.lock().canary = canary;
    }
}

impl Drop for Keeper {
    /// Stops the thread; a lock that is under way is finished first. Locks nothing: that is the unmount's part.
    fn drop(&mut self) {
        self.leases.on_refusal(None);
        self.shared.inbox.lock().stop = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl fmt::Debug for Keeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keeper").field("status", &self.status()).finish_non_exhaustive()
    }
}

impl Shared {
    fn post(&self, mail: Mail) {
        self.inbox.lock().mail.push(mail);
        self.changed.notify_all();
    }
}

struct Driver {
    watch: Watch,
    shared: Arc<Shared>,
    leases: Arc<Leases>,
    volume: Arc<dyn Volume>,
    tell: Tell,
    /// The volume key of the probe that succeeded last, between its answer and the unlock that takes it.
    granted: Option<Secret32>,
    locks: Vec<mpsc::Sender<()>>,
    unlocks: Vec<mpsc::Sender<Result<(), UnlockError>>>,
}

impl Driver {
    fn run(mut self) {
        loop {
            let mail = {
                let mut inbox = self.shared.inbox.lock();
                if inbox.stop {
                    return;
                }
                std::mem::take(&mut inbox.mail)
            };
            for letter in mail {
                self.read(letter);
            }
            match self.watch.step(self.now()) {
                Step::Probe => self.probe(),
                Step::Lock { reason, drain } => self.lock(reason, drain),
                Step::Restrict { on_revoked, drain } => {
                    self.volume.restrict(on_revoked, drain);
                    self.publish();
                    (self.tell)(Event::Restricted(on_revoked));
                }
                Step::Release => {
                    self.volume.release();
                    self.publish();
                    (self.tell)(Event::Released);
                }
                Step::Unlock => self.unlock(),
                Step::Wait(until) => {
                    self.granted = None;
                    self.reply();
                    self.publish();
                    self.wait(until);
                }
            }
        }
    }

    fn now(&self) -> BootTime {
        (self.shared.clock)()
    }

    fn read(&mut self, letter: Mail) {
        match letter {
            Mail::Suspect => self.watch.suspect(self.now()),
            Mail::Lock(reply) => {
                self.watch.lock();
                self.locks.push(reply);
                self.refuse_unlocks(&UnlockError::Overtaken);
            }
            Mail::Unlock(reply) => {
                self.watch.unlock(self.now());
                self.unlocks.push(reply);
            }
            Mail::Idle(reply) => {
                self.watch.lock_idle();
                self.locks.push(reply);
            }
            Mail::Wake(reply) => match self.watch.state() {
                State::Draining(LockReason::Idle) | State::Locked(LockReason::Idle) => {
                    self.watch.unlock(self.now());
                    self.unlocks.push(reply);
                }
                State::Unlocked | State::Restricted(_) => {
                    let _ = reply.send(Ok(()));
                }
                State::Draining(_) | State::Locked(_) => {
                    let _ = reply.send(Err(UnlockError::Overtaken));
                }
            },
            Mail::Answer { outcome, took } => self.answer(outcome, took),
        }
    }

    fn answer(&mut self, outcome: Result<Secret32, KmsError>, took: Duration) {
        let (key, outcome) = match outcome {
            Ok(key) => (Some(key), Ok(())),
            Err(error) => (None, Err(error)),
        };
        self.granted = key;
        self.watch.answer(self.now(), outcome.clone().map_err(|error| error.kind));
        let error = outcome.as_ref().err().cloned();
        if let Some(error) = &error
            && !self.watch.awaits_unlock()
        {
            self.refuse_unlocks(&UnlockError::Kms(error.clone()));
        }
        self.shared.inbox.lock().status.last_error = error;
        (self.tell)(Event::Probed { outcome, took });
    }

    /// Starts a probe; its answer comes by mail. A probe that panics, or that no thread could be had for, is one without
    /// an answer.
    fn probe(&mut self) {
        let answer = Answer { shared: Arc::downgrade(&self.shared), began: self.now(), outcome: None };
        let (leases, canary) = (Arc::clone(&self.leases), self.shared.inbox.lock().canary.clone());
        let probe = move || {
            let mut answer = answer;
            answer.outcome = Some(canary.probe(&leases));
            wipe_stack();
        };
        if let Err(error) = thread::Builder::new().name("kmsfs-probe".into()).spawn(probe) {
            tracing::error!(%error, "no thread to ask the KMS with");
        }
    }

    fn lock(&mut self, reason: LockReason, drain: Duration) {
        self.granted = None;
        self.publish();
        (self.tell)(Event::Locking(reason));
        self.volume.drain_and_lock(reason, drain);
        self.leases.lock();
        wipe_stack();
        self.watch.locked(self.now());
        self.publish();
        (self.tell)(Event::Locked(reason));
    }

    fn unlock(&mut self) {
        let result = match self.granted.take() {
            Some(key) => {
                self.leases.unlock();
                self.volume.unlock(key)
            }
            None => Err("the volume key is gone".into()),
        };
        self.watch.unlocked(self.now(), result.is_ok());
        self.publish();
        match result {
            Ok(()) => (self.tell)(Event::Unlocked),
            Err(error) => {
                self.leases.lock();
                self.refuse_unlocks(&UnlockError::Volume(error.clone()));
                (self.tell)(Event::UnlockFailed(error));
            }
        }
    }

    /// Tells those whose wish has come true, or was overtaken by the opposite one.
    fn reply(&mut self) {
        let state = self.watch.state();
        if !matches!(state, State::Draining(_)) {
            for reply in self.locks.drain(..) {
                let _ = reply.send(());
            }
        }
        if state == State::Unlocked {
            for reply in self.unlocks.drain(..) {
                let _ = reply.send(Ok(()));
            }
        }
    }

    fn refuse_unlocks(&mut self, error: &UnlockError) {
        for reply in self.unlocks.drain(..) {
            let _ = reply.send(Err(error.clone()));
        }
    }

    fn publish(&self) {
        let mut inbox = self.shared.inbox.lock();
        if inbox.status.state != self.watch.state() {
            inbox.status.state = self.watch.state();
            inbox.status.since = self.now();
        }
        inbox.status.last_success = self.watch.last_success();
    }

    fn wait(&self, until: BootTime) {
        let wait = (until - self.now()).min(LONGEST_WAIT);
        let mut inbox = self.shared.inbox.lock();
        if inbox.mail.is_empty() && !inbox.stop {
            self.shared.changed.wait_for(&mut inbox, wait);
        }
    }
}

impl Drop for Driver {
    /// A volume without a keeper must not stay unlocked, should the volume's own code panic in here.
    fn drop(&mut self) {
        if thread::panicking() {
            self.leases.lock();
            tracing::error!("the keeper panicked: no key is given out any more");
        }
    }
}

/// The answer that a probe owes.
struct Answer {
    shared: Weak<Shared>,
    began: BootTime,
    outcome: Option<Result<Secret32, KmsError>>,
}

impl Drop for Answer {
    fn drop(&mut self) {
        let Some(shared) = self.shared.upgrade() else { return };
        let took = (shared.clock)() - self.began;
        let lost = || Err(KmsError::new(KmsErrorKind::Unreachable, "the probe ended without an answer"));
        shared.post(Mail::Answer { outcome: self.outcome.take().unwrap_or_else(lost), took });
    }
}

fn digest(key: &Secret32) -> [u8; 32] {
    use zeroize::Zeroize;
    let mut hasher = blake3::Hasher::new_derive_key(DIGEST_CONTEXT);
    hasher.update(key.expose());
    let digest = *hasher.finalize().as_bytes();
    hasher.zeroize();
    digest
}

#[cfg(test)]
mod tests;
