use super::*;
use KmsErrorKind::{Credentials, Damaged, Misconfigured, Refused, Unreachable};
use proptest::prelude::*;

const ALL: [KmsErrorKind; 5] = [Refused, Unreachable, Damaged, Misconfigured, Credentials];

/// A KMS of which the moment and the kind of its answers are known, a volume that locks as fast as it may, and a
/// clock that only moves to where the watch wants to be called.
struct World {
    watch: Watch,
    now: BootTime,
    /// How the KMS answers now, and how long it takes for it.
    kms: Result<(), KmsErrorKind>,
    latency: Duration,
    /// The answer of the probe under way, as the KMS saw it when it began, and when it arrives.
    under_way: Option<(BootTime, Result<(), KmsErrorKind>)>,
    probes: Vec<f64>,
    locks: Vec<(f64, LockReason, f64)>,
    unlocks: Vec<f64>,
    restricted: Vec<f64>,
    released: Vec<f64>,
    unlock_works: bool,
}

fn at(seconds: f64) -> BootTime {
    BootTime(Duration::from_secs_f64(1000.0 + seconds))
}

fn seconds(moment: BootTime) -> f64 {
    ((moment.0.as_secs_f64() - 1000.0) * 1000.0).round() / 1000.0
}

impl World {
    fn new(revalidate: f64, grace: f64) -> Self {
        let policy =
            Policy::new(Duration::from_secs_f64(revalidate), Duration::from_secs_f64(grace), Duration::from_secs(3))
                .unwrap();
        Self {
            watch: Watch::new(policy, at(0.0), 0.0),
            now: at(0.0),
            kms: Ok(()),
            latency: Duration::from_millis(10),
            under_way: None,
            probes: vec![],
            locks: vec![],
            unlocks: vec![],
            restricted: vec![],
            released: vec![],
            unlock_works: true,
        }
    }

    /// Runs the world until this moment.
    fn run(&mut self, until: f64) {
        let until = at(until);
        loop {
            if let Some((arrives, outcome)) = self.under_way
                && arrives <= self.now
            {
                self.under_way = None;
                self.watch.answer(self.now, outcome);
            }
            match self.watch.step(self.now) {
                Step::Probe => {
                    self.probes.push(seconds(self.now));
                    self.under_way = Some((self.now + self.latency, self.kms));
                }
                Step::Lock { reason, drain } => {
                    // The whole bound is used: the worst case.
                    self.now = self.now + drain;
                    self.locks.push((seconds(self.now), reason, drain.as_secs_f64()));
                    self.watch.locked(self.now);
                }
                Step::Restrict { drain, .. } => {
                    self.now = self.now + drain;
                    self.restricted.push(seconds(self.now));
                }
                Step::Release => self.released.push(seconds(self.now)),
                Step::Unlock => {
                    self.unlocks.push(seconds(self.now));
                    self.watch.unlocked(self.now, self.unlock_works);
                }
                Step::Wait(next) => {
                    let next = self.under_way.map_or(next, |(arrives, _)| next.min(arrives));
                    assert!(next > self.now, "the watch spins at {}", seconds(self.now));
                    if next > until {
                        self.now = self.now.max(until);
                        return;
                    }
                    self.now = next;
                }
            }
        }
    }

    fn restricting(mut self) -> Self {
        self.watch.policy = self.watch.policy.on_revoked(OnRevoked::ReadOnly);
        self
    }

    fn locked_for(&self) -> Option<LockReason> {
        match self.watch.state() {
            State::Locked(reason) => Some(reason),
            _ => None,
        }
    }
}

#[test]
fn while_the_kms_grants_it_is_asked_every_revalidate_and_nothing_else_happens() {
    let mut world = World::new(30.0, 600.0);
    world.run(301.0);
    assert_eq!(world.probes.len(), 10);
    assert!((world.probes[0] - 30.0).abs() < 0.001);
    assert!(world.probes.windows(2).all(|pair| (29.9..=30.0).contains(&(pair[1] - pair[0]))), "{:?}", world.probes);
    assert!(world.locks.is_empty());
}

#[test]
fn a_refusal_is_confirmed_a_second_later_and_locks_within_revalidate_and_five_seconds() {
    for revalidate in [1.0, 2.0, 30.0, 3600.0] {
        let mut world = World::new(revalidate, 600.0);
        world.run(0.001);
        world.kms = Err(Refused);
        world.run(revalidate + 10.0);
        let (when, reason, drain) = world.locks[0];
        assert_eq!(reason, LockReason::Revoked);
        assert!((world.probes[1] - world.probes[0] - 1.0).abs() < 0.02, "{:?}", world.probes);
        assert!(when <= revalidate + 4.0, "revalidate {revalidate}: locked at {when}");
        assert!(drain > 2.5, "only {drain} s to drain");
    }
}

#[test]
fn a_refusal_that_the_second_answer_contradicts_locks_nothing() {
    let mut world = World::new(30.0, 600.0);
    world.kms = Err(Refused);
    world.run(30.5);
    world.kms = Ok(());
    world.run(100.0);
    assert!(world.locks.is_empty());
    assert_eq!(world.watch.state(), State::Unlocked);
}

#[test]
fn after_a_refusal_only_a_success_contradicts_it() {
    for second in ALL {
        let mut world = World::new(30.0, 600.0);
        world.kms = Err(Refused);
        world.run(30.5);
        world.kms = Err(second);
        world.run(36.0);
        assert_eq!(world.locks.first().map(|lock| lock.1), Some(LockReason::Revoked), "{second:?}");
    }
}

#[test]
fn a_refusal_followed_by_a_hanging_kms_locks_in_time() {
    let mut world = World::new(30.0, 600.0);
    world.kms = Err(Refused);
    world.run(30.5);
    world.latency = Duration::from_secs(60);
    world.run(40.0);
    assert!(world.locks[0].0 <= 35.0, "{:?}", world.locks);
}

#[test]
fn a_silent_kms_changes_nothing_within_the_grace_and_locks_at_its_end() {
    for kind in [Unreachable, Damaged, Misconfigured, Credentials] {
        let mut world = World::new(30.0, 600.0);
        world.run(45.0);
        world.kms = Err(kind);
        world.run(629.0);
        assert!(world.locks.is_empty(), "{kind:?}: locked before the grace was over");
        world.run(640.0);
        let (when, reason, drain) = world.locks[0];
        assert_eq!((reason, drain), (LockReason::Unreachable, 3.0), "{kind:?}");
        assert!((when - 3.0 - 630.0).abs() < 0.1, "{kind:?}: the grace counts from the last success: {when}");
    }
}

#[test]
fn the_grace_counts_from_when_the_kms_was_asked_not_from_when_it_answered() {
    let mut world = World::new(30.0, 600.0);
    world.latency = Duration::from_secs(3);
    world.run(45.0);
    let asked = *world.probes.last().unwrap();
    world.kms = Err(Unreachable);
    world.run(700.0);
    assert_eq!(world.locks.first().map(|lock| lock.0), Some(asked + 600.0 + 3.0));
}

#[test]
fn with_no_grace_the_first_silence_locks() {
    let mut world = World::new(30.0, 0.0);
    world.kms = Err(Unreachable);
    world.run(34.0);
    assert_eq!(world.locks.first().map(|lock| (lock.0.round(), lock.1)), Some((33.0, LockReason::Unreachable)));
}

#[test]
fn with_no_grace_a_slow_answer_locks_nothing() {
    let mut world = World::new(5.0, 0.0);
    world.latency = Duration::from_millis(900);
    world.run(300.0);
    assert!(world.locks.is_empty());
}

#[test]
fn a_probe_that_never_comes_back_is_a_silent_kms() {
    let mut world = World::new(30.0, 60.0);
    world.latency = Duration::from_secs(100_000);
    world.run(59.0);
    assert!(world.locks.is_empty());
    world.run(64.0);
    assert_eq!(world.locks.first().map(|lock| lock.1), Some(LockReason::Unreachable));
}

#[test]
fn a_kms_that_comes_back_within_the_grace_starts_it_anew() {
    let mut world = World::new(30.0, 80.0);
    for round in 0..10 {
        world.kms = Err(Unreachable);
        world.run(f64::from(round) * 100.0 + 40.0);
        world.kms = Ok(());
        world.run(f64::from(round) * 100.0 + 100.0);
    }
    assert!(world.locks.is_empty());
}

#[test]
fn a_silent_kms_is_asked_often_enough_to_notice_it_soon_and_not_all_the_time() {
    let mut world = World::new(30.0, 600.0);
    world.kms = Err(Unreachable);
    world.latency = Duration::from_secs(5);
    world.run(300.0);
    assert!((45..=55).contains(&world.probes.len()), "{} probes in 270 s", world.probes.len());
}

#[test]
fn a_refusal_during_an_outage_locks_as_revoked_before_the_grace_is_over() {
    let mut world = World::new(30.0, 600.0);
    world.kms = Err(Unreachable);
    world.run(100.0);
    world.kms = Err(Refused);
    world.run(111.0);
    assert_eq!(world.locks.first().map(|lock| lock.1), Some(LockReason::Revoked));
}

#[test]
fn a_locked_volume_unlocks_by_itself_within_five_seconds_of_the_grant() {
    for (revalidate, kind, grace) in [(30.0, Refused, 600.0), (2.0, Refused, 600.0), (30.0, Unreachable, 0.0)] {
        let mut world = World::new(revalidate, grace);
        world.kms = Err(kind);
        world.run(200.0);
        assert!(world.locked_for().is_some() && world.unlocks.is_empty());
        world.kms = Ok(());
        world.run(230.0);
        assert!((200.0..=200.1 + f64::min(revalidate, 5.0)).contains(&world.unlocks[0]), "{:?}", world.unlocks);
        assert_eq!((world.watch.state(), world.unlocks.len()), (State::Unlocked, 1));
    }
}

#[test]
fn an_unlock_that_fails_is_tried_again_and_the_volume_stays_locked() {
    let mut world = World::new(30.0, 600.0);
    world.kms = Err(Refused);
    world.run(60.0);
    world.kms = Ok(());
    world.unlock_works = false;
    world.run(80.0);
    assert_eq!(world.locked_for(), Some(LockReason::Revoked));
    assert!((3..=5).contains(&world.unlocks.len()), "{:?}", world.unlocks);
}

#[test]
fn a_volume_locked_by_silence_is_revoked_when_the_kms_refuses_and_not_the_other_way_round() {
    let mut world = World::new(30.0, 0.0);
    world.kms = Err(Unreachable);
    world.run(50.0);
    assert_eq!(world.locked_for(), Some(LockReason::Unreachable));
    world.kms = Err(Refused);
    world.run(60.0);
    assert_eq!(world.locked_for(), Some(LockReason::Revoked));
    assert_eq!(world.locks.last().map(|lock| (lock.1, lock.2)), Some((LockReason::Revoked, 0.0)));
    world.kms = Err(Unreachable);
    world.run(80.0);
    assert_eq!((world.locked_for(), world.locks.len()), (Some(LockReason::Revoked), 2));
}

#[test]
fn the_operators_lock_stays_although_the_kms_grants() {
    let mut world = World::new(30.0, 600.0);
    world.run(10.0);
    world.watch.lock();
    world.run(1000.0);
    assert_eq!(world.locks, [(13.0, LockReason::Operator, 3.0)]);
    assert!(world.unlocks.is_empty() && world.probes.is_empty(), "an operator's lock needs no probes");
}

#[test]
fn the_operators_unlock_needs_the_kms() {
    let mut world = World::new(30.0, 600.0);
    world.watch.lock();
    world.run(10.0);
    for kind in ALL {
        world.kms = Err(kind);
        world.watch.unlock(world.now);
        let now = seconds(world.now);
        world.run(now + 10.0);
        assert_eq!(world.locked_for(), Some(LockReason::Operator), "{kind:?}");
        assert!(!world.watch.awaits_unlock(), "{kind:?}: the wish is answered");
    }
    world.kms = Ok(());
    let now = seconds(world.now);
    world.run(now + 100.0);
    assert_eq!(world.locked_for(), Some(LockReason::Operator), "a refused wish is not kept");
    world.watch.unlock(world.now);
    world.run(now + 101.0);
    assert_eq!(world.watch.state(), State::Unlocked);
}

#[test]
fn a_probe_that_began_before_the_operators_wish_does_not_grant_it() {
    let mut world = World::new(30.0, 600.0);
    world.latency = Duration::from_secs(3);
    world.run(30.5);
    assert_eq!(world.probes.len(), 1);
    world.watch.lock();
    world.run(30.6);
    world.kms = Err(Refused);
    world.watch.unlock(world.now);
    world.run(50.0);
    assert_eq!(world.locked_for(), Some(LockReason::Operator));
    assert!(world.unlocks.is_empty());
}

#[test]
fn an_operators_lock_on_a_revoked_volume_outlives_the_grant() {
    let mut world = World::new(30.0, 600.0);
    world.kms = Err(Refused);
    world.run(60.0);
    world.watch.lock();
    world.kms = Ok(());
    world.run(200.0);
    assert_eq!((world.locked_for(), world.unlocks.len()), (Some(LockReason::Operator), 0));
}

#[test]
fn a_suspicion_asks_the_kms_at_once() {
    let mut world = World::new(3600.0, 600.0);
    world.run(100.0);
    world.kms = Err(Refused);
    world.watch.suspect(world.now);
    world.run(110.0);
    assert!(world.locks[0].0 <= 104.1, "{:?}", world.locks);
}

#[test]
fn suspicions_without_ground_cost_one_probe_a_second_and_lock_nothing() {
    let mut world = World::new(30.0, 600.0);
    for tenth in 0..100 {
        world.watch.suspect(world.now);
        world.run(100.0 + f64::from(tenth) / 10.0);
    }
    let asked = world.probes.iter().filter(|when| **when >= 100.0).count();
    assert!((8..=11).contains(&asked), "{asked} probes in 10 s");
    assert!(world.locks.is_empty());
}

#[test]
fn a_suspicion_during_a_probe_asks_once_more() {
    let mut world = World::new(30.0, 600.0);
    world.latency = Duration::from_secs(2);
    world.run(31.0);
    world.kms = Err(Refused);
    world.watch.suspect(world.now);
    world.run(33.0);
    assert_eq!(world.probes.len(), 2, "{:?}", world.probes);
}

#[test]
fn after_a_suspend_a_probe_is_due_at_once_and_silence_locks_without_another_grace() {
    let mut world = World::new(30.0, 600.0);
    world.run(10.0);
    world.now = at(5000.0);
    assert_eq!(world.watch.clone().step(world.now), Step::Probe);
    world.kms = Err(Unreachable);
    world.run(5005.0);
    assert_eq!(world.locks.first().map(|lock| lock.1), Some(LockReason::Unreachable));
}

#[test]
fn revalidate_cannot_be_under_a_second() {
    let policy = |millis| Policy::new(Duration::from_millis(millis), Duration::ZERO, Duration::from_secs(3));
    assert!(policy(999).is_err() && policy(0).is_err());
    assert!(policy(1000).is_ok());
}

proptest! {
    /// The promise, whenever the owner refuses and however slow the KMS is, up to nearly the deadline of a call.
    #[test]
    fn a_refusal_locks_in_time(
        revalidate in 5.0..60.0_f64, latency in 0.0..4.5_f64, when in 0.0..200.0_f64, spread in 0.0..1.0_f64,
    ) {
        let mut world = World::new(revalidate, 600.0);
        world.watch = Watch::new(world.watch.policy, at(0.0), spread);
        world.latency = Duration::from_secs_f64(latency);
        world.run(when);
        world.kms = Err(Refused);
        world.run(when + revalidate + 10.0);
        prop_assert!(world.locks[0].0 <= when + revalidate + 5.0, "refused at {when}, locked at {:?}", world.locks);
    }

    /// Whatever happens, the watch neither spins nor gets stuck: when the KMS grants at last, the volume is unlocked.
    #[test]
    fn whatever_happens_a_grant_unlocks_in_the_end(
        events in proptest::collection::vec((0..9_usize, 0.0..20.0_f64, 0.0..8.0_f64), 1..60), grace in 0.0..60.0_f64,
    ) {
        let mut world = World::new(4.0, grace);
        let mut now = 0.0;
        for (event, wait, latency) in events {
            match event {
                0..=4 => world.kms = Err(ALL[event]),
                5 => world.kms = Ok(()),
                6 => world.watch.lock(),
                7 => world.watch.unlock(world.now),
                _ => world.watch.suspect(world.now),
            }
            world.latency = Duration::from_secs_f64(latency);
            now += wait;
            world.run(now);
        }
        world.kms = Ok(());
        world.latency = Duration::from_millis(10);
        now = seconds(world.now) + 10.0;
        world.run(now);
        world.watch.unlock(world.now);
        world.run(now + 30.0);
        prop_assert_eq!(world.watch.state(), State::Unlocked);
    }
}

#[test]
fn a_policy_that_does_not_lock_restricts_in_the_same_time_and_gives_back_what_it_took() {
    let mut world = World::new(2.0, 600.0).restricting();
    world.run(0.001);
    world.kms = Err(Refused);
    world.run(100.0);
    assert_eq!(world.watch.state(), State::Restricted(OnRevoked::ReadOnly));
    assert!(world.restricted.len() == 1 && world.restricted[0] <= 7.0, "{:?}", world.restricted);
    assert!(world.locks.is_empty());
    let before = world.probes.len();
    world.kms = Ok(());
    world.run(110.0);
    assert_eq!(world.watch.state(), State::Unlocked);
    assert_eq!(world.released.len(), 1);
    assert!(world.probes.len() > before);
    world.kms = Err(Refused);
    world.run(120.0);
    assert_eq!(world.restricted.len(), 2, "the next revocation counts as the first did");
}

#[test]
fn a_restricted_volume_locks_when_the_kms_is_silent_for_longer_than_the_grace() {
    let mut world = World::new(2.0, 60.0).restricting();
    world.run(0.001);
    world.kms = Err(Refused);
    world.run(200.0);
    assert!(world.locks.is_empty(), "refusals are answers");
    world.kms = Err(Unreachable);
    world.run(255.0);
    assert!(world.locks.is_empty(), "the grace begins with the last answer: {:?}", world.locks);
    world.run(270.0);
    assert_eq!(world.locked_for(), Some(LockReason::Unreachable));
    world.kms = Ok(());
    world.run(280.0);
    assert_eq!(world.watch.state(), State::Unlocked);
}

#[test]
fn an_operator_locks_a_restricted_volume_and_the_kms_decides_whether_it_unlocks() {
    let mut world = World::new(2.0, 60.0).restricting();
    world.run(0.001);
    world.kms = Err(Refused);
    world.run(20.0);
    world.watch.lock();
    world.run(30.0);
    assert_eq!(world.locked_for(), Some(LockReason::Operator));
    world.watch.unlock(world.now);
    world.run(40.0);
    assert_eq!(world.locked_for(), Some(LockReason::Operator), "it is still refused");
    world.kms = Ok(());
    world.watch.unlock(world.now);
    world.run(50.0);
    assert_eq!(world.watch.state(), State::Unlocked);
}
