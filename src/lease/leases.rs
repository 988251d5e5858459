//! The unwrapped envelope secrets of one volume: an LRU, one call in flight for one secret, and the counts of it
//! all. Depends on the KMS seam. Lock duty: `state` is never held during a call to the KMS; a flight's own lock
//! is never taken while `state` is held by the same thread, nor the other way round.

mod notes;

use super::BootTime;
use super::breaker::Breaker;
use super::budget::Budget;
use crate::audit::Recorder;
use crate::crypto::Secret32;
use crate::kms::{Kms, KmsError, KmsErrorKind, Unwrapped, Wrapped};
use crate::metrics::{Counts, Histogram};
use crate::units::VolumeId;
use lru::LruCache;
use parking_lot::{Condvar, Mutex};
use serde::Serialize;
use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

use notes::Held;

/// How much longer than the call itself somebody waits who joined it.
const WAITERS_SLACK: Duration = Duration::from_millis(500);
/// The longest that somebody waits for the turn of a call, when the volume's budget is used up.
const LONGEST_TURN: Duration = Duration::from_secs(5);
/// The default of `--kms-rate`, in calls a second: a hundredth of what a Key Vault grants to RSA keys of 2048 bits.
pub const KMS_RATE: u32 = 20;
/// Of so many calls the latencies are remembered.
const LATENCIES: usize = 256;

/// Why there is no lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LeaseError {
    /// The volume is locked, or was locked while the secret was on its way.
    Locked,
    /// The KMS did not give it.
    Kms(KmsError),
}

impl fmt::Display for LeaseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Locked => f.write_str("the volume is locked"),
            Self::Kms(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for LeaseError {}

/// What the leases of one volume have done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct LeaseStats {
    /// Secrets in memory.
    pub held: usize,
    /// Calls to the KMS, finished or not; probes included.
    pub calls: u64,
    /// Calls that have not come back yet.
    pub in_flight: usize,
    /// Secrets that were in memory when asked for.
    pub hits: u64,
    /// Secrets that were not.
    pub misses: u64,
    /// Requests that waited for somebody else's call for the same secret.
    pub joined: u64,
    /// Requests that were turned away because the KMS had not answered the calls before.
    pub spared: u64,
    /// Calls that the KMS refused.
    pub refused: u64,
    /// Calls without a usable answer.
    pub unreachable: u64,
    /// Those of them for which the KMS had too much to do.
    pub throttled: u64,
    /// Calls that found the wrapped bytes wrong.
    pub damaged: u64,
    /// Calls that were wrong themselves.
    pub misconfigured: u64,
    /// Calls for which there was no identity.
    pub credentials: u64,
    /// Calls that had to wait, because the volume had used up its budget.
    pub delayed: u64,
    /// How long the last finished call took, in microseconds.
    pub last_latency_us: u64,
    /// How long half of the last calls took at most, in microseconds.
    pub latency_p50_us: u64,
    /// How long 99 of 100 of the last calls took at most, in microseconds.
    pub latency_p99_us: u64,
}

/// The unwrapped secrets of one volume.
pub struct Leases {
    kms: Arc<dyn Kms>,
    volume: VolumeId,
    state: Mutex<State>,
    on_refusal: Mutex<Option<Arc<dyn Fn() + Send + Sync>>>,
    recorder: Recorder,
    /// How long calls to the KMS took.
    latency: Histogram,
}

struct State {
    open: bool,
    held: LruCache<LeaseKey, Held>,
    /// Calls under way. A lock empties the map: a call that comes back and does not find itself in it is late, and
    /// its secret goes nowhere.
    flights: HashMap<LeaseKey, Arc<Flight>>,
    breaker: Breaker,
    budget: Budget,
    /// In microseconds, the newest last.
    latencies: VecDeque<u64>,
    stats: LeaseStats,
}

/// BLAKE3 of the volume, the KEK with its version, the algorithm and the wrapped bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct LeaseKey([u8; 32]);

/// One call under way and those who wait for it.
#[derive(Default)]
struct Flight {
    result: Mutex<Option<Result<Arc<Secret32>, LeaseError>>>,
    landed: Condvar,
}

impl Flight {
    fn land(&self, result: Result<Arc<Secret32>, LeaseError>) {
        self.result.lock().get_or_insert(result);
        self.landed.notify_all();
    }

    fn wait(&self, until: Instant) -> Result<Arc<Secret32>, LeaseError> {
        let mut result = self.result.lock();
        while result.is_none() {
            if self.landed.wait_until(&mut result, until).timed_out() {
                break;
            }
        }
        result
            .clone()
            .unwrap_or_else(|| Err(LeaseError::Kms(no_answer("the call that asks for this key takes too long"))))
    }
}

/// What to do for a secret that was asked for.
enum Way {
    Held(Arc<Secret32>),
    Lead(Arc<Flight>),
    Join(Arc<Flight>),
}

impl Leases {
    /// No secrets yet, unlocked; room for `capacity` of them.
    pub fn new(kms: Arc<dyn Kms>, volume: VolumeId, capacity: NonZeroUsize) -> Self {
        let mut seed = [0; 8];
        // Without randomness the pauses of the breaker are still right, only not spread.
        let _ = getrandom::fill(&mut seed);
        let state = State {
            open: true,
            held: LruCache::new(capacity),
            flights: HashMap::new(),
            breaker: Breaker::new(u64::from_le_bytes(seed)),
            budget: Budget::new(KMS_RATE.into(), BootTime::now()),
            latencies: VecDeque::with_capacity(LATENCIES),
            stats: LeaseStats::default(),
        };
        let recorder = Recorder::none();
        let latency = Histogram::default();
        Self { kms, volume, state: Mutex::new(state), on_refusal: Mutex::new(None), recorder, latency }
    }

    /// The same, and what the KMS is asked, and what it says, is noted.
    #[must_use]
    pub fn recorded_by(self, recorder: Recorder) -> Self {
        Self { recorder, ..self }
    }

    /// What notes what happens to this volume.
    pub fn recorder(&self) -> &Recorder {
        &self.recorder
    }

    /// The same, with so many calls a second in the long run; probes come on top.
    #[must_use]
    pub fn with_rate(mut self, calls_per_second: u32) -> Self {
        self.state.get_mut().budget = Budget::new(calls_per_second.max(1).into(), BootTime::now());
        self
    }

    /// The secret if it is in memory. Never blocks on the KMS.
    pub fn cached(&self, wrapped: &Wrapped) -> Option<Arc<Secret32>> {
        let key = self.key(wrapped);
        let mut state = self.state.lock();
        let secret = state.held.get_mut(&key)?.serve();
        state.stats.hits += 1;
        Some(secret)
    }

    /// The secret, unwrapped by the KMS if it is not in memory. Blocks for the KMS's deadline at most; everybody
    /// who asks for the same secret meanwhile waits for the same call.
    ///
    /// # Errors
    /// [`LeaseError::Locked`], also when the volume is locked before the answer is there; what the KMS said.
    pub fn fetch(&self, wrapped: &Wrapped) -> Result<Arc<Secret32>, LeaseError> {
        let key = self.key(wrapped);
        match self.way(key)? {
            Way::Held(secret) => Ok(secret),
            Way::Join(flight) => flight.wait(Instant::now() + LONGEST_TURN + self.kms.deadline() + WAITERS_SLACK),
            Way::Lead(flight) => {
                let landing = Landing { leases: self, key, flight };
                let outcome = self.await_turn(&landing.flight).and_then(|()| {
                    let began = Instant::now();
                    let outcome = self.call(wrapped);
                    self.note_unwrap(wrapped, &outcome, began.elapsed());
                    outcome
                });
                landing.settle(outcome.map(|unwrapped| unwrapped.secret), Some(wrapped))
            }
        }
    }

    /// Takes up a secret that was just made and wrapped.
    ///
    /// # Errors
    /// [`LeaseError::Locked`]; the secret is wiped then.
    pub fn insert(&self, wrapped: &Wrapped, secret: Secret32) -> Result<Arc<Secret32>, LeaseError> {
        let key = self.key(wrapped);
        let mut state = self.state.lock();
        if !state.open {
            return Err(LeaseError::Locked);
        }
        let secret = Arc::new(secret);
        let held = Held::new(&secret, None);
        let evicted = state.held.push(key, held);
        drop(state);
        self.note_end("evicted", evicted.into_iter().map(|(_, held)| held));
        Ok(secret)
    }

    /// Lets a secret that is in memory be found by another wrap of it, too; not if the volume is locked.
    pub fn share(&self, wrapped: &Wrapped, secret: &Arc<Secret32>) {
        let key = self.key(wrapped);
        let mut state = self.state.lock();
        if !state.open || state.held.contains(&key) {
            return;
        }
        let evicted = state.held.push(key, Held::new(secret, None));
        drop(state);
        self.note_end("evicted", evicted.into_iter().map(|(_, held)| held));
    }

    /// Drops a secret that nothing needs any more.
    pub fn forget(&self, wrapped: &Wrapped) {
        let key = self.key(wrapped);
        let held = self.state.lock().held.pop(&key);
        self.note_end("rekeyed", held.into_iter());
    }

    /// Unwraps past the cache, the lock and the breaker, to see whether the KMS still grants it.
    ///
    /// # Errors
    /// What the KMS said.
    pub fn probe(&self, wrapped: &Wrapped) -> Result<Secret32, KmsError> {
        let outcome = self.call(wrapped);
        self.note_probe(wrapped, &outcome);
        outcome.map(|unwrapped| unwrapped.secret)
    }

    /// Drops every secret and hands out none until [`Leases::unlock`]. Who waits for one is told at once; an
    /// unwrap under way is not stopped, but what it brings is wiped. Secrets that somebody else still holds
    /// are wiped when the last holder drops them.
    pub fn lock(&self) {
        self.drop_all(|state| state.open = false);
        self.kms.forget();
    }

    /// Hands out secrets again.
    pub fn unlock(&self) {
        self.state.lock().open = true;
    }

    /// Drops every secret, as [`Leases::lock`] does, and stays unlocked if it was.
    pub fn wipe(&self) {
        self.drop_all(|_| {});
    }

    /// What was done so far.
    pub fn stats(&self) -> LeaseStats {
        let state = self.state.lock();
        let mut latencies: Vec<_> = state.latencies.iter().copied().collect();
        latencies.sort_unstable();
        let percentile = |part: usize| latencies.get(latencies.len() * part / 100).copied().unwrap_or_default();
        LeaseStats {
            held: state.held.len(),
            latency_p50_us: percentile(50),
            latency_p99_us: percentile(99),
            ..state.stats
        }
    }

    /// How long the last calls took, `count` at most, in microseconds, the newest last.
    pub fn recent_latencies(&self, count: usize) -> Vec<u64> {
        let state = self.state.lock();
        state.latencies.iter().skip(state.latencies.len().saturating_sub(count)).copied().collect()
    }

    /// How long calls to the KMS took so far.
    pub fn latency(&self) -> Counts {
        self.latency.counts()
    }

    /// The KMS behind the leases, for wrapping.
    pub fn kms(&self) -> &Arc<dyn Kms> {
        &self.kms
    }

    /// The volume whose secrets these are.
    pub fn volume(&self) -> VolumeId {
        self.volume
    }

    /// Whom to tell when the KMS refuses a secret that was asked for. Replaces who was told before.
    pub(super) fn on_refusal(&self, tell: Option<Arc<dyn Fn() + Send + Sync>>) {
        *self.on_refusal.lock() = tell;
    }

    fn drop_all(&self, and: impl FnOnce(&mut State)) {
        let (flights, held) = {
            let mut state = self.state.lock();
            and(&mut state);
            let capacity = state.held.cap();
            let held = std::mem::replace(&mut state.held, LruCache::new(capacity));
            (std::mem::take(&mut state.flights), held)
        };
        self.note_end("wiped", held.into_iter().map(|(_, held)| held));
        for flight in flights.values() {
            flight.land(Err(LeaseError::Locked));
        }
    }

    fn way(&self, key: LeaseKey) -> Result<Way, LeaseError> {
        let mut state = self.state.lock();
        if !state.open {
            return Err(LeaseError::Locked);
        }
        if let Some(secret) = state.held.get(&key).map(|held| Arc::clone(&held.secret)) {
            state.stats.hits += 1;
            return Ok(Way::Held(secret));
        }
        state.stats.misses += 1;
        if let Some(flight) = state.flights.get(&key).cloned() {
            state.stats.joined += 1;
            return Ok(Way::Join(flight));
        }
        if let Err(pause) = state.breaker.admit(BootTime::now()) {
            state.stats.spared += 1;
            let error = no_answer("the KMS did not answer the last calls, and is left alone for a moment");
            return Err(LeaseError::Kms(KmsError { retry_after: Some(pause), ..error }));
        }
        let flight = Arc::new(Flight::default());
        state.flights.insert(key, Arc::clone(&flight));
        Ok(Way::Lead(flight))
    }

    /// Waits until the volume's budget allows one more call, or the volume locks, which the call then notices.
    fn await_turn(&self, flight: &Flight) -> Result<(), KmsError> {
        let turn = {
            let mut state = self.state.lock();
            let turn = state.budget.reserve(BootTime::now());
            state.stats.delayed += u64::from(!turn.is_zero());
            if turn > LONGEST_TURN {
                state.budget.give_back();
                state.breaker.was_not_made();
                let error = no_answer("the volume has used up its calls to the KMS for the moment");
                return Err(KmsError { retry_after: Some(turn), ..error });
            }
            turn
        };
        if !turn.is_zero() && flight.wait(Instant::now() + turn).is_err_and(|error| error == LeaseError::Locked) {
            let mut state = self.state.lock();
            state.budget.give_back();
            state.breaker.was_not_made();
            return Err(no_answer("the volume was locked before its turn came"));
        }
        Ok(())
    }

    /// One call, counted and timed.
    fn call(&self, wrapped: &Wrapped) -> Result<Unwrapped, KmsError> {
        let started = Instant::now();
        {
            let mut state = self.state.lock();
            state.stats.calls += 1;
            state.stats.in_flight += 1;
        }
        let mut call = Call { leases: self, started, error: Some(no_answer("the call panicked")) };
        let outcome = self.kms.unwrap(wrapped, self.volume);
        call.error = outcome.as_ref().err().cloned();
        outcome
    }

    fn key(&self, wrapped: &Wrapped) -> LeaseKey {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.volume.0).update(&[wrapped.algorithm as u8]);
        // What was made under a key that is somewhere else now is found again by where the volume says it is.
        let kek = wrapped.kek.identity();
        hasher.update(&(kek.len() as u64).to_le_bytes()).update(kek.as_bytes());
        hasher.update(&wrapped.blob);
        LeaseKey(*hasher.finalize().as_bytes())
    }
}

impl fmt::Debug for Leases {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leases").field("volume", &self.volume).field("stats", &self.stats()).finish_non_exhaustive()
    }
}

impl LeaseStats {
    fn count(&mut self, error: Option<&KmsError>) {
        let Some(error) = error else { return };
        match error.kind {
            KmsErrorKind::Refused => self.refused += 1,
            KmsErrorKind::Unreachable => self.unreachable += 1,
            KmsErrorKind::Damaged => self.damaged += 1,
            KmsErrorKind::Misconfigured => self.misconfigured += 1,
            KmsErrorKind::Credentials => self.credentials += 1,
        }
        if error.code.as_deref() == Some(crate::kms::THROTTLED) {
            self.throttled += 1;
        }
    }
}

/// Whoever makes the call owes its waiters a result, even if the call panics.
struct Landing<'a> {
    leases: &'a Leases,
    key: LeaseKey,
    flight: Arc<Flight>,
}

impl Landing<'_> {
    fn settle(
        &self,
        outcome: Result<Secret32, KmsError>,
        wrapped: Option<&Wrapped>,
    ) -> Result<Arc<Secret32>, LeaseError> {
        let refused = matches!(&outcome, Err(error) if error.kind == KmsErrorKind::Refused);
        let mut evicted = None;
        let result = {
            let mut state = self.leases.state.lock();
            let is_current = state.flights.get(&self.key).is_some_and(|flight| Arc::ptr_eq(flight, &self.flight));
            if !is_current {
                return Err(LeaseError::Locked);
            }
            state.flights.remove(&self.key);
            outcome.map(Arc::new).map_err(LeaseError::Kms).inspect(|secret| {
                let held = Held::new(secret, wrapped);
                evicted = state.held.push(self.key, held);
            })
        };
        self.leases.note_end("evicted", evicted.into_iter().map(|(_, held)| held));
        self.flight.land(result.clone());
        if refused {
            let tell = self.leases.on_refusal.lock().clone();
            if let Some(tell) = tell {
                tell();
            }
        }
        result
    }
}

impl Drop for Landing<'_> {
    fn drop(&mut self) {
        if self.flight.result.lock().is_none() {
            let _ = self.settle(Err(no_answer("the call ended without an answer")), None);
        }
    }
}

/// A call under way; counted when it is over, even if it panics.
struct Call<'a> {
    leases: &'a Leases,
    started: Instant,
    error: Option<KmsError>,
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        let took = self.started.elapsed();
        self.leases.latency.note(took);
        let mut state = self.leases.state.lock();
        state.stats.in_flight -= 1;
        let latency = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        state.stats.last_latency_us = latency;
        if state.latencies.len() == LATENCIES {
            state.latencies.pop_front();
        }
        state.latencies.push_back(latency);
        state.stats.count(self.error.as_ref());
        match &self.error {
            Some(error) if error.kind == KmsErrorKind::Unreachable => {
                state.breaker.was_silent(BootTime::now(), error.retry_after);
            }
            _ => state.breaker.answered(),
        }
    }
}

fn no_answer(message: &str) -> KmsError {
    KmsError::new(KmsErrorKind::Unreachable, message)
}

#[cfg(test)]
mod tests;
