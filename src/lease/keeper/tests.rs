use super::*;
use crate::kms::Kms;
use crate::kms::fake::{FakeKms, PATIENCE};
use crate::units::VolumeId;
use std::num::NonZeroUsize;
use std::sync::mpsc::Receiver;

const VOLUME: VolumeId = VolumeId([3; 16]);
const KEY: [u8; 32] = [0x77; 32];

/// A volume that notes what was done to it.
#[derive(Default)]
struct FakeVolume {
    did: Mutex<Vec<String>>,
    refuse_unlock: Mutex<bool>,
    panic_on_lock: Mutex<bool>,
}

impl Volume for FakeVolume {
    fn drain_and_lock(&self, reason: LockReason, _drain: Duration) {
        assert!(!*self.panic_on_lock.lock(), "the fake volume panics, as it was told");
        self.did.lock().push(format!("lock {reason:?}"));
    }

    fn restrict(&self, on_revoked: OnRevoked, _drain: Duration) {
        self.did.lock().push(format!("restrict {on_revoked:?}"));
    }

    fn release(&self) {
        self.did.lock().push("release".into());
    }

    fn unlock(&self, volume_key: Secret32) -> Result<(), String> {
        assert_eq!(volume_key.expose(), &KEY);
        if *self.refuse_unlock.lock() {
            return Err("no".into());
        }
        self.did.lock().push("unlock".into());
        Ok(())
    }
}

struct Rig {
    kms: Arc<FakeKms>,
    leases: Arc<Leases>,
    volume: Arc<FakeVolume>,
    envelope: Wrapped,
    now: Arc<Mutex<BootTime>>,
    events: Receiver<Event>,
    keeper: Keeper,
}

impl Rig {
    fn new(revalidate: u64, grace: u64) -> Self {
        let kms = Arc::new(FakeKms::default());
        let leases = Arc::new(Leases::new(Arc::clone(&kms) as _, VOLUME, NonZeroUsize::new(8).unwrap()));
        let volume = Arc::new(FakeVolume::default());
        let key = Secret32::take(&mut KEY.clone());
        let canary = Canary::new(kms.wrap(&key, VOLUME).unwrap(), &key);
        let envelope = kms.wrap(&Secret32::take(&mut [1; 32]), VOLUME).unwrap();
        let [revalidate, grace, drain] = [revalidate, grace, 3].map(Duration::from_secs);
        let now = Arc::new(Mutex::new(BootTime(Duration::from_secs(1000))));
        let (tell, events) = mpsc::channel();
        let clock = Arc::clone(&now);
        let keeper = Keeper::start_with(
            Arc::clone(&leases),
            Arc::clone(&volume) as _,
            canary,
            Policy::new(revalidate, grace, drain).unwrap(),
            Box::new(move |event| drop(tell.send(event))),
            Box::new(move || *clock.lock()),
        );
        Self { kms, leases, volume, envelope, now, events, keeper: keeper.unwrap() }
    }

    fn advance(&self, seconds: u64) {
        {
            let mut now = self.now.lock();
            *now = *now + Duration::from_secs(seconds);
        }
        self.keeper.shared.changed.notify_all();
    }

    /// The next event that is not a probe.
    fn change(&self) -> Event {
        loop {
            match self.events.recv_timeout(PATIENCE).expect("an event") {
                Event::Probed { .. } => {}
                event => return event,
            }
        }
    }

    fn probed(&self) -> Result<(), KmsErrorKind> {
        match self.events.recv_timeout(PATIENCE).expect("an event") {
            Event::Probed { outcome, .. } => outcome.map_err(|error| error.kind),
            event => panic!("{event:?} instead of a probe"),
        }
    }

    fn revoke(&self) {
        self.kms.answer(Err(KmsErrorKind::Refused));
        self.advance(30);
        assert_eq!(self.probed(), Err(KmsErrorKind::Refused));
        self.advance(1);
        assert_eq!(self.change(), Event::Locking(LockReason::Revoked));
        assert_eq!(self.change(), Event::Locked(LockReason::Revoked));
    }
}

#[test]
fn a_revocation_locks_and_wipes_and_a_grant_unlocks() {
    let rig = Rig::new(30, 600);
    rig.leases.fetch(&rig.envelope).unwrap();
    rig.revoke();
    assert_eq!(rig.keeper.status().state, State::Locked(LockReason::Revoked));
    assert!(rig.leases.cached(&rig.envelope).is_none());
    assert_eq!(rig.leases.fetch(&rig.envelope).unwrap_err(), crate::lease::LeaseError::Locked);
    rig.kms.answer(Ok(()));
    rig.advance(5);
    assert_eq!(rig.change(), Event::Unlocked);
    assert!(rig.leases.fetch(&rig.envelope).is_ok());
    assert_eq!(*rig.volume.did.lock(), ["lock Revoked", "unlock"]);
}

#[test]
fn a_refused_file_key_makes_the_keeper_ask_at_once() {
    let rig = Rig::new(3600, 600);
    rig.advance(100);
    rig.kms.answer(Err(KmsErrorKind::Refused));
    assert!(rig.leases.fetch(&rig.envelope).is_err());
    assert_eq!(rig.probed(), Err(KmsErrorKind::Refused));
}

#[test]
fn a_hanging_kms_delays_neither_an_operators_lock_nor_the_end_of_the_grace() {
    let rig = Rig::new(30, 600);
    rig.kms.hold();
    rig.advance(30);
    rig.kms.wait_for_held(1);
    rig.keeper.lock();
    assert_eq!(rig.keeper.status().state, State::Locked(LockReason::Operator));
    rig.kms.let_go();

    let rig = Rig::new(30, 600);
    rig.kms.hold();
    rig.advance(30);
    rig.kms.wait_for_held(1);
    rig.advance(571);
    assert_eq!(rig.change(), Event::Locking(LockReason::Unreachable));
    rig.kms.let_go();
}

#[test]
fn the_operator_is_told_why_an_unlock_fails() {
    let rig = Rig::new(30, 600);
    rig.keeper.lock();
    rig.kms.answer(Err(KmsErrorKind::Refused));
    let error = rig.keeper.unlock().unwrap_err();
    assert!(matches!(&error, UnlockError::Kms(error) if error.kind == KmsErrorKind::Refused), "{error:?}");
    rig.kms.answer(Ok(()));
    *rig.volume.refuse_unlock.lock() = true;
    assert_eq!(rig.keeper.unlock(), Err(UnlockError::Volume("no".into())));
    assert_eq!(rig.keeper.status().state, State::Locked(LockReason::Operator));
    assert!(rig.leases.fetch(&rig.envelope).is_err(), "keys are given out although the volume is locked");
    *rig.volume.refuse_unlock.lock() = false;
    assert_eq!(rig.keeper.unlock(), Ok(()));
    assert_eq!(rig.keeper.status().state, State::Unlocked);
}

#[test]
fn locking_twice_and_unlocking_twice_is_fine() {
    let rig = Rig::new(30, 600);
    assert_eq!(rig.keeper.unlock(), Ok(()));
    rig.keeper.lock();
    rig.keeper.lock();
    assert_eq!(rig.keeper.unlock(), Ok(()));
    assert_eq!(*rig.volume.did.lock(), ["lock Operator", "unlock"]);
}

#[test]
fn many_who_lock_and_unlock_at_once_all_get_an_answer() {
    let rig = Rig::new(30, 600);
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| rig.keeper.lock());
            scope.spawn(|| rig.keeper.unlock());
        }
    });
    rig.keeper.lock();
    assert_eq!(rig.keeper.status().state, State::Locked(LockReason::Operator));
}

#[test]
fn another_key_than_the_volumes_is_damage_and_unlocks_nothing() {
    let rig = Rig::new(30, 0);
    let other = rig.kms.wrap(&Secret32::take(&mut [9; 32]), VOLUME).unwrap();
    rig.keeper.set_canary(Canary::new(other, &Secret32::take(&mut KEY.clone())));
    rig.advance(30);
    assert_eq!(rig.probed(), Err(KmsErrorKind::Damaged));
    assert_eq!(rig.change(), Event::Locking(LockReason::Unreachable));
    assert_eq!(rig.change(), Event::Locked(LockReason::Unreachable));
    rig.advance(5);
    assert_eq!(rig.probed(), Err(KmsErrorKind::Damaged));
    assert!(matches!(rig.keeper.status().state, State::Locked(_)));
}

#[test]
fn a_probe_that_panics_is_one_without_an_answer() {
    let rig = Rig::new(30, 600);
    rig.kms.panic_on_calls(true);
    rig.advance(30);
    assert_eq!(rig.probed(), Err(KmsErrorKind::Unreachable));
    rig.kms.panic_on_calls(false);
    rig.advance(5);
    assert_eq!(rig.probed(), Ok(()));
}

#[test]
fn a_volume_that_panics_while_it_locks_gives_out_no_key() {
    let rig = Rig::new(30, 600);
    *rig.volume.panic_on_lock.lock() = true;
    rig.keeper.lock();
    assert!(rig.leases.fetch(&rig.envelope).is_err());
}

#[test]
fn dropping_the_keeper_stops_it_although_a_probe_hangs() {
    let rig = Rig::new(30, 600);
    rig.kms.hold();
    rig.advance(30);
    rig.kms.wait_for_held(1);
    drop(rig.keeper);
    assert!(rig.events.recv_timeout(PATIENCE).is_err(), "the thread still tells events");
    rig.kms.let_go();
}

#[test]
fn an_idle_volume_asks_nothing_until_somebody_wakes_it() {
    let rig = Rig::new(30, 600);
    rig.keeper.lock_idle();
    assert_eq!(rig.keeper.status().state, State::Locked(LockReason::Idle));
    let calls = rig.kms.calls();
    rig.advance(3600);
    rig.advance(3600);
    rig.keeper.lock_idle();
    assert_eq!(rig.kms.calls(), calls);
    assert_eq!(rig.keeper.wake(), Ok(()));
    assert_eq!(rig.keeper.status().state, State::Unlocked);
    // One that is awake is not asked for again, and one that somebody locked stays so.
    let calls = rig.kms.calls();
    assert_eq!(rig.keeper.wake(), Ok(()));
    assert_eq!(rig.kms.calls(), calls);
    rig.keeper.lock();
    assert_eq!(rig.keeper.wake(), Err(UnlockError::Overtaken));
    rig.keeper.lock_idle();
    assert_eq!(rig.keeper.status().state, State::Locked(LockReason::Operator));
}

#[test]
fn an_idle_volume_whose_key_is_refused_is_a_revoked_one() {
    let rig = Rig::new(30, 600);
    rig.keeper.lock_idle();
    rig.kms.answer(Err(KmsErrorKind::Refused));
    assert!(matches!(rig.keeper.wake(), Err(UnlockError::Kms(error)) if error.kind == KmsErrorKind::Refused));
    while rig.change() != Event::Locked(LockReason::Revoked) {}
    rig.kms.answer(Ok(()));
    rig.advance(5);
    while rig.change() != Event::Unlocked {}
}
