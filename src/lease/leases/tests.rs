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
    for (outcome, after) in [(KmsErrorKind::Refused, 1), (KmsErrorKind::Unreachable, 1), (KmsErrorKind::Damaged, 1)] {
        kms.answer(Err(outcome));
        assert!(leases.fetch(&envelope(&kms, 1)).is_err());
        assert_eq!(told.load(Ordering::SeqCst), after, "{outcome:?}");
    }
}

#[test]
fn a_volume_that_used_up_its_calls_waits_for_its_turn_and_a_lock_ends_the_wait() {
    let kms = Arc::new(FakeKms::default());
    let leases = Leases::new(Arc::clone(&kms) as _, VOLUME, NonZeroUsize::new(100).unwrap()).with_rate(1);
    let envelopes: Vec<_> = (0..17).map(|byte| envelope(&kms, byte)).collect();
    for envelope in &envelopes[..10] {
        leases.fetch(envelope).unwrap();
    }
    assert_eq!(leases.stats().delayed, 0, "ten seconds' worth may come at once");
    thread::scope(|scope| {
        let waiting: Vec<_> = envelopes[10..15].iter().map(|envelope| scope.spawn(|| leases.fetch(envelope))).collect();
        while leases.stats().delayed < 5 {
            thread::yield_now();
        }
        let error = leases.fetch(&envelopes[15]).unwrap_err();
        let LeaseError::Kms(error) = error else { panic!("{error:?}") };
        assert_eq!(error.kind, KmsErrorKind::Unreachable);
        assert!(error.retry_after.is_some());
        leases.lock();
        for fetch in waiting {
            let result = fetch.join().unwrap();
            assert!(matches!(&result, Ok(_) | Err(LeaseError::Locked)), "{result:?}");
        }
    });
    let made = leases.stats().calls;
    assert!((10..15).contains(&made), "{made}");
    leases.unlock();
    leases.fetch(&envelopes[0]).unwrap();
    assert!(leases.stats().latency_p99_us >= leases.stats().latency_p50_us);
}
