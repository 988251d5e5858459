//! The unwrapped envelope secrets of one volume: an LRU, one call in flight for one secret, and the counts of it
//! all. Depends on the KMS seam. Lock duty: `state` is never held during a call to the KMS; a flight's own lock
//! is never taken while `state` is held by the same thread, nor the other way round.

use super::BootTime;
use super::breaker::Breaker;
use crate::crypto::Secret32;
use crate::kms::{Kms, KmsError, KmsErrorKind, Wrapped};
use crate::units::VolumeId;
use lru::LruCache;
use parking_lot::{Condvar, Mutex};
use serde::Serialize;
use std::collections::HashMap;
use std::fmt;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How much longer than the call itself somebody waits who joined it.
const WAITERS_SLACK: Duration = Duration::from_millis(500);

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
    /// How long the last finished call took, in microseconds.
    pub last_latency_us: u64,
}

/// The unwrapped secrets of one volume.
pub struct Leases {
    kms: Arc<dyn Kms>,
    volume: VolumeId,
    state: Mutex<State>,
    on_refusal: Mutex<Option<Arc<dyn Fn() + Send + Sync>>>,
}

struct State {
    open: bool,
    held: LruCache<LeaseKey, Arc<Secret32>>,
    /// Calls under way. A lock empties the map: a call that comes back and does not find itself in it is late, and
    /// its secret goes nowhere.
    flights: HashMap<LeaseKey, Arc<Flight>>,
    breaker: Breaker,
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
            stats: LeaseStats::default(),
        };
        Self { kms, volume, state: Mutex::new(state), on_refusal: Mutex::new(None) }
    }

    /// The secret if it is in memory. Never blocks on the KMS.
    pub fn cached(&self, wrapped: &Wrapped) -> Option<Arc<Secret32>> {
        let key = self.key(wrapped);
        let mut state = self.state.lock();
        let secret = state.held.get(&key).cloned()?;
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
            Way::Join(flight) => flight.wait(Instant::now() + self.kms.deadline() + WAITERS_SLACK),
            Way::Lead(flight) => {
                let landing = Landing { leases: self, key, flight };
                let outcome = self.call(wrapped);
                landing.settle(outcome)
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
        state.held.put(key, Arc::clone(&secret));
        Ok(secret)
    }

    /// Unwraps past the cache, the lock and the breaker, to see whether the KMS still grants it.
    ///
    /// # Errors
    /// What the KMS said.
    pub fn probe(&self, wrapped: &Wrapped) -> Result<Secret32, KmsError> {
        self.call(wrapped)
    }

    /// Drops every secret and hands out none until [`Leases::unlock`]. Who waits for one is told at once; an
    /// unwrap under way is not stopped, but what it brings is wiped. Secrets that somebody else still holds
    /// are wiped when the last holder drops them.
    pub fn lock(&self) {
        self.drop_all(|state| state.open = false);
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
        LeaseStats { held: state.held.len(), ..state.stats }
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
        let flights = {
            let mut state = self.state.lock();
            and(&mut state);
            state.held.clear();
            std::mem::take(&mut state.flights)
        };
        for flight in flights.values() {
            flight.land(Err(LeaseError::Locked));
        }
    }

    fn way(&self, key: LeaseKey) -> Result<Way, LeaseError> {
        let mut state = self.state.lock();
        if !state.open {
            return Err(LeaseError::Locked);
        }
        if let Some(secret) = state.held.get(&key).cloned() {
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

    /// One call, counted and timed.
    fn call(&self, wrapped: &Wrapped) -> Result<Secret32, KmsError> {
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
        hasher.update(&(wrapped.kek.0.len() as u64).to_le_bytes()).update(wrapped.kek.0.as_bytes());
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
    fn settle(&self, outcome: Result<Secret32, KmsError>) -> Result<Arc<Secret32>, LeaseError> {
        let refused = matches!(&outcome, Err(error) if error.kind == KmsErrorKind::Refused);
        let result = {
            let mut state = self.leases.state.lock();
            let is_current = state.flights.get(&self.key).is_some_and(|flight| Arc::ptr_eq(flight, &self.flight));
            if !is_current {
                return Err(LeaseError::Locked);
            }
            state.flights.remove(&self.key);
            outcome.map(Arc::new).map_err(LeaseError::Kms).inspect(|secret| {
                state.held.put(self.key, Arc::clone(secret));
            })
        };
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
            let _ = self.settle(Err(no_answer("the call ended without an answer")));
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
        let mut state = self.leases.state.lock();
        state.stats.in_flight -= 1;
        state.stats.last_latency_us = u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX);
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
mod tests {
    use super::*;
    use crate::kms::fake::FakeKms;
    use std::thread;

    const VOLUME: VolumeId = VolumeId([3; 16]);

    fn leases(capacity: usize) -> (Arc<FakeKms>, Arc<Leases>) {
        let kms = Arc::new(FakeKms::default());
        let leases = Leases::new(Arc::clone(&kms) as _, VOLUME, NonZeroUsize::new(capacity).unwrap());
        (kms, Arc::new(leases))
    }

    fn envelope(kms: &FakeKms, byte: u8) -> Wrapped {
        kms.wrap(&Secret32::take(&mut [byte; 32]), VOLUME).unwrap()
    }

    fn wait_for_joined(leases: &Leases, joined: u64) {
        let patience = Instant::now() + crate::kms::fake::PATIENCE;
        while leases.stats().joined < joined {
            assert!(Instant::now() < patience, "only {} joined", leases.stats().joined);
            thread::yield_now();
        }
    }

    #[test]
    fn a_hundred_callers_of_one_envelope_cost_one_unwrap() {
        let (kms, leases) = leases(8);
        let wrapped = envelope(&kms, 1);
        kms.hold();
        let secrets = thread::scope(|scope| {
            let callers: Vec<_> = (0..100).map(|_| scope.spawn(|| leases.fetch(&wrapped))).collect();
            wait_for_joined(&leases, 99);
            kms.let_go();
            callers.into_iter().map(|caller| caller.join().unwrap().unwrap()).collect::<Vec<_>>()
        });
        assert!(secrets.iter().all(|secret| Arc::ptr_eq(secret, &secrets[0])));
        let stats = leases.stats();
        assert_eq!((kms.calls(), stats.calls, stats.misses, stats.joined, stats.held), (1, 1, 100, 99, 1));
    }

    #[test]
    fn different_envelopes_are_unwrapped_in_parallel() {
        let (kms, leases) = leases(8);
        let envelopes: Vec<_> = (0..4).map(|byte| envelope(&kms, byte)).collect();
        kms.hold();
        thread::scope(|scope| {
            let callers: Vec<_> = envelopes.iter().map(|wrapped| scope.spawn(|| leases.fetch(wrapped))).collect();
            kms.wait_for_held(4);
            assert_eq!(leases.stats().in_flight, 4);
            kms.let_go();
            for (byte, caller) in callers.into_iter().enumerate() {
                assert_eq!(caller.join().unwrap().unwrap().expose(), &[byte as u8; 32]);
            }
        });
        assert_eq!(leases.stats().in_flight, 0);
    }

    #[test]
    fn a_held_secret_costs_no_call_and_the_least_used_one_goes_first() {
        let (kms, leases) = leases(2);
        let [a, b, c] = [1, 2, 3].map(|byte| envelope(&kms, byte));
        for wrapped in [&a, &b, &a, &c, &a] {
            leases.fetch(wrapped).unwrap();
        }
        assert_eq!((kms.calls(), leases.stats().hits), (3, 2));
        assert!(leases.cached(&a).is_some() && leases.cached(&b).is_none() && leases.cached(&c).is_some());
    }

    #[test]
    fn the_key_version_and_every_byte_of_the_blob_tell_envelopes_apart() {
        let (kms, leases) = leases(8);
        let wrapped = envelope(&kms, 1);
        leases.fetch(&wrapped).unwrap();
        let mut other = wrapped.clone();
        other.kek.0.push('2');
        assert!(leases.cached(&other).is_none());
        let mut other = wrapped.clone();
        other.blob[31] ^= 1;
        assert!(leases.cached(&other).is_none());
        assert!(leases.cached(&wrapped).is_some());
    }

    #[test]
    fn an_error_reaches_every_waiter_and_is_not_kept() {
        let (kms, leases) = leases(8);
        let wrapped = envelope(&kms, 1);
        kms.answer(Err(KmsErrorKind::Refused));
        kms.hold();
        thread::scope(|scope| {
            let callers: Vec<_> = (0..3).map(|_| scope.spawn(|| leases.fetch(&wrapped))).collect();
            wait_for_joined(&leases, 2);
            kms.let_go();
            for caller in callers {
                let result = caller.join().unwrap();
                assert!(
                    matches!(&result, Err(LeaseError::Kms(error)) if error.kind == KmsErrorKind::Refused),
                    "{result:?}"
                );
            }
        });
        kms.answer(Ok(()));
        assert!(leases.fetch(&wrapped).is_ok());
        assert_eq!((leases.stats().refused, kms.calls()), (1, 2));
    }

    #[test]
    fn an_unwrap_that_returns_after_a_wipe_is_neither_kept_nor_handed_out() {
        for lock in [Leases::lock, Leases::wipe] {
            let (kms, leases) = leases(8);
            let wrapped = envelope(&kms, 1);
            kms.hold();
            thread::scope(|scope| {
                let callers: Vec<_> = (0..2).map(|_| scope.spawn(|| leases.fetch(&wrapped))).collect();
                wait_for_joined(&leases, 1);
                kms.wait_for_held(1);
                lock(&leases);
                kms.let_go();
                for caller in callers {
                    assert_eq!(caller.join().unwrap().unwrap_err(), LeaseError::Locked);
                }
            });
            leases.unlock();
            assert!(leases.cached(&wrapped).is_none());
        }
    }

    #[test]
    fn a_late_unwrap_does_not_answer_those_who_asked_after_the_wipe() {
        let (kms, leases) = leases(8);
        let wrapped = envelope(&kms, 1);
        kms.hold();
        thread::scope(|scope| {
            let early = scope.spawn(|| leases.fetch(&wrapped));
            kms.wait_for_held(1);
            leases.wipe();
            let late = scope.spawn(|| leases.fetch(&wrapped));
            kms.wait_for_held(2);
            kms.let_go();
            assert_eq!(early.join().unwrap().unwrap_err(), LeaseError::Locked);
            assert!(late.join().unwrap().is_ok());
        });
        assert!(leases.cached(&wrapped).is_some());
    }

    #[test]
    fn nothing_is_fetched_or_taken_up_while_locked() {
        let (kms, leases) = leases(8);
        let wrapped = envelope(&kms, 1);
        leases.fetch(&wrapped).unwrap();
        leases.lock();
        assert!(leases.cached(&wrapped).is_none());
        assert_eq!(leases.fetch(&wrapped).unwrap_err(), LeaseError::Locked);
        assert_eq!(leases.insert(&wrapped, Secret32::random()).unwrap_err(), LeaseError::Locked);
        leases.unlock();
        assert!(leases.cached(&wrapped).is_none());
        assert!(leases.fetch(&wrapped).is_ok());
    }

    #[test]
    fn waiters_give_up_at_the_deadline_although_the_call_hangs() {
        let (kms, leases) = leases(8);
        let wrapped = envelope(&kms, 1);
        kms.set_deadline(Duration::from_millis(10));
        kms.hold();
        thread::scope(|scope| {
            let leader = scope.spawn(|| leases.fetch(&wrapped));
            kms.wait_for_held(1);
            let result = leases.fetch(&wrapped);
            assert!(
                matches!(&result, Err(LeaseError::Kms(error)) if error.kind == KmsErrorKind::Unreachable),
                "{result:?}"
            );
            kms.let_go();
            assert!(leader.join().unwrap().is_ok());
        });
    }

    #[test]
    fn a_call_that_panics_leaves_nobody_waiting_and_is_counted() {
        let (kms, leases) = leases(8);
        let wrapped = envelope(&kms, 1);
        kms.panic_on_calls(true);
        kms.hold();
        thread::scope(|scope| {
            let leader = scope.spawn(|| leases.fetch(&wrapped));
            kms.wait_for_held(1);
            let waiter = scope.spawn(|| leases.fetch(&wrapped));
            wait_for_joined(&leases, 1);
            kms.let_go();
            assert!(leader.join().is_err());
            assert!(matches!(waiter.join().unwrap(), Err(LeaseError::Kms(_))));
        });
        kms.panic_on_calls(false);
        assert!(leases.fetch(&wrapped).is_ok());
        assert_eq!((leases.stats().in_flight, leases.stats().unreachable), (0, 1));
    }

    #[test]
    fn a_silent_kms_is_left_alone_until_a_probe_finds_it_back() {
        let (kms, leases) = leases(8);
        let wrapped = envelope(&kms, 1);
        kms.answer(Err(KmsErrorKind::Unreachable));
        for _ in 0..50 {
            assert!(leases.fetch(&wrapped).is_err());
        }
        let stats = leases.stats();
        assert!(kms.calls() < 10, "{} calls", kms.calls());
        assert_eq!(stats.calls + stats.spared, 50);
        kms.answer(Ok(()));
        assert!(leases.probe(&wrapped).is_ok());
        assert!(leases.fetch(&wrapped).is_ok());
    }

    #[test]
    fn a_refused_secret_is_reported_once_for_each_call() {
        use std::sync::atomic::{AtomicU64, Ordering};
        let (kms, leases) = leases(8);
        let told = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&told);
        leases.on_refusal(Some(Arc::new(move || {
            count.fetch_add(1, Ordering::SeqCst);
        })));
        for (outcome, after) in [(KmsErrorKind::Refused, 1), (KmsErrorKind::Unreachable, 1), (KmsErrorKind::Damaged, 1)]
        {
            kms.answer(Err(outcome));
            assert!(leases.fetch(&envelope(&kms, 1)).is_err());
            assert_eq!(told.load(Ordering::SeqCst), after, "{outcome:?}");
        }
    }
}
