//! How many calls one volume may make, so that one tenant cannot use up a vault that others need: a token bucket.
//! Pure: no clock and no thread of its own.

use super::BootTime;
use std::time::Duration;

/// A pause in the work lets so many seconds' worth of calls be made at once.
const BURST: f64 = 10.0;

/// The calls that are left.
#[derive(Debug)]
pub(super) struct Budget {
    per_second: f64,
    left: f64,
    counted: BootTime,
}

impl Budget {
    /// So many calls a second in the long run, of which there is a full burst now.
    pub(super) fn new(per_second: f64, now: BootTime) -> Self {
        Self { per_second, left: per_second * BURST, counted: now }
    }

    /// Takes one call; otherwise says how long to wait for it. Calls are reserved in the order in which they are asked
    /// for, so whoever waits that long need not ask again.
    pub(super) fn reserve(&mut self, now: BootTime) -> Duration {
        self.left = (self.left + (now - self.counted).as_secs_f64() * self.per_second).min(self.per_second * BURST);
        self.counted = now;
        self.left -= 1.0;
        Duration::from_secs_f64((-self.left / self.per_second).max(0.0))
    }

    /// Gives back a call that was not made.
    pub(super) fn give_back(&mut self) {
        self.left += 1.0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: f64) -> BootTime {
        BootTime(Duration::from_secs_f64(seconds))
    }

    #[test]
    fn a_burst_passes_at_once_and_the_rest_at_the_rate() {
        let mut budget = Budget::new(5.0, at(0.0));
        assert!((0..50).all(|_| budget.reserve(at(0.0)).is_zero()));
        for waiting in 1..=20 {
            let wait = budget.reserve(at(0.0)).as_secs_f64();
            assert!((wait - f64::from(waiting) / 5.0).abs() < 1e-6, "{waiting}: {wait}");
        }
        assert!(budget.reserve(at(4.3)).is_zero(), "everybody's turn has come, and one more");
        assert!(!budget.reserve(at(4.3)).is_zero());
    }

    #[test]
    fn what_was_not_used_is_kept_only_up_to_a_burst_and_what_is_given_back_counts() {
        let mut budget = Budget::new(1.0, at(0.0));
        assert!((0..10).all(|_| budget.reserve(at(1e6)).is_zero()));
        assert!(!budget.reserve(at(1e6)).is_zero());
        budget.give_back();
        budget.give_back();
        assert!(budget.reserve(at(1e6)).is_zero());
    }
}
