//! Keeps a flood of events of one kind from filling the log: the first of a time are written, the others counted.
//! Pure: the clock is the caller's.

use super::chain::stamp;
use super::event::Event;
use std::collections::HashMap;
use std::time::{Duration, SystemTime};

/// What was let through and what was held back, for each kind.
#[derive(Default)]
pub(super) struct Limiter(HashMap<&'static str, Window>);

struct Window {
    end: Duration,
    passed: u64,
    held: Option<Held>,
}

struct Held {
    count: u64,
    since: SystemTime,
    last: Event,
}

impl Held {
    fn told(self) -> Event {
        Event::Repeated { of: self.last.name(), count: self.count, since: stamp(self.since), last: Box::new(self.last) }
    }
}

impl Limiter {
    /// Takes an event; what has to be written now, in order. `now` is any clock that does not go backwards.
    pub(super) fn take(&mut self, now: Duration, time: SystemTime, event: Event) -> Vec<Event> {
        let Some((most, window)) = event.limit() else { return vec![event] };
        let current = self.0.entry(event.name()).or_insert(Window { end: now + window, passed: 0, held: None });
        let mut out = Vec::with_capacity(1);
        if now >= current.end {
            out.extend(current.held.take().map(Held::told));
            *current = Window { end: now + window, passed: 0, held: None };
        }
        if current.passed < most {
            current.passed += 1;
            out.push(event);
        } else {
            match &mut current.held {
                Some(held) => (held.count, held.last) = (held.count + 1, event),
                held => *held = Some(Held { count: 1, since: time, last: event }),
            }
        }
        out
    }

    /// What has to be said about times that are over; about all of them if `all`.
    pub(super) fn expired(&mut self, now: Duration, all: bool) -> Vec<Event> {
        let over = self.0.values_mut().filter(|window| all || now >= window.end);
        over.filter_map(|window| window.held.take()).map(Held::told).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn damage(n: u64) -> Event {
        Event::FailedDecryption { file: "f".into(), chunk: n }
    }

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_flood_becomes_the_first_few_and_one_count_with_the_last() {
        let mut limiter = Limiter::default();
        let began = SystemTime::UNIX_EPOCH;
        let written: usize = (0..5000).map(|n| limiter.take(at(1), began, damage(n)).len()).sum();
        assert_eq!(written, 20);
        assert_eq!(limiter.take(at(1), began, Event::Unlock), [Event::Unlock]);
        assert!(limiter.expired(at(60), false).is_empty());
        let told = limiter.expired(at(61), false);
        let since = stamp(began);
        assert_eq!(
            told,
            [Event::Repeated { of: "failed-decryption", count: 4980, since, last: Box::new(damage(4999)) }]
        );
        assert!(limiter.expired(at(61), true).is_empty());
        assert_eq!(limiter.take(at(62), began, damage(1)), [damage(1)]);
    }

    #[test]
    fn what_was_held_back_is_told_before_the_next_of_its_kind() {
        let mut limiter = Limiter::default();
        let probe = || Event::Probe { call: super::super::event::Call::default() };
        let began = SystemTime::UNIX_EPOCH;
        assert_eq!(limiter.take(at(0), began, probe()).len(), 1);
        assert_eq!(limiter.take(at(30), began, probe()).len(), 0);
        let next = limiter.take(at(600), began, probe());
        assert!(matches!(&next[..], [Event::Repeated { count: 1, .. }, Event::Probe { .. }]), "{next:?}");
    }
}
