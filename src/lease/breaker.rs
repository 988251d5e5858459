//! Keeps calls from piling up at a KMS that does not answer. Pure: no clock and no thread of its own.
//! Invariant: while the service is silent, one call at a time finds out whether it is back; everybody else is
//! told at once instead of waiting a whole deadline for the same silence.

use super::BootTime;
use crate::kms::Backoff;
use std::time::Duration;

/// So many calls in a row without an answer, and the service is left alone for a while.
const TOLERATED: u32 = 3;
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(16);
/// The longest that a service's own Retry-After is believed.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(60);

/// Whether to call, from how the last calls went.
#[derive(Debug)]
pub(super) struct Breaker {
    silent: u32,
    until: Option<BootTime>,
    trial: bool,
    pauses: Backoff,
}

impl Breaker {
    /// One that lets calls through.
    pub(super) fn new(seed: u64) -> Self {
        Self { silent: 0, until: None, trial: false, pauses: Backoff::new(FIRST_PAUSE, LONGEST_PAUSE, seed) }
    }

    /// Whether a call may be made now; otherwise, how long to leave the service alone. Who was let through owes a
    /// call of [`Breaker::answered`], [`Breaker::was_silent`] or [`Breaker::was_not_made`].
    pub(super) fn admit(&mut self, now: BootTime) -> Result<(), Duration> {
        match self.until {
            None => Ok(()),
            Some(until) if now < until => Err(until - now),
            Some(_) if self.trial => Err(FIRST_PAUSE),
            Some(_) => {
                self.trial = true;
                Ok(())
            }
        }
    }

    /// The service answered, whatever it said.
    pub(super) fn answered(&mut self) {
        self.silent = 0;
        self.until = None;
        self.trial = false;
        self.pauses.reset();
    }

    /// A call that was let through was not made after all.
    pub(super) fn was_not_made(&mut self) {
        self.trial = false;
    }

    /// A call got no usable answer; the service may have said for how long it wants none.
    pub(super) fn was_silent(&mut self, now: BootTime, retry_after: Option<Duration>) {
        self.silent = self.silent.saturating_add(1);
        let already_pausing = self.until.is_some_and(|until| now < until);
        // A hundred calls that were in flight together are one outage, not a hundred.
        if already_pausing || (self.silent < TOLERATED && retry_after.is_none()) {
            return;
        }
        let asked = retry_after.unwrap_or_default().min(LONGEST_RETRY_AFTER);
        self.until = Some(now + self.pauses.delay().max(asked));
        self.trial = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: f64) -> BootTime {
        BootTime(Duration::from_secs_f64(seconds))
    }

    fn tripped() -> Breaker {
        let mut breaker = Breaker::new(1);
        for _ in 0..TOLERATED {
            assert_eq!(breaker.admit(at(0.0)), Ok(()));
            breaker.was_silent(at(0.0), None);
        }
        breaker
    }

    #[test]
    fn a_few_silent_calls_are_tolerated_and_then_nobody_waits() {
        let mut breaker = tripped();
        assert!(breaker.admit(at(0.1)).is_err());
    }

    #[test]
    fn after_the_pause_one_call_tries_and_the_others_still_do_not() {
        let mut breaker = tripped();
        assert_eq!(breaker.admit(at(1.1)), Ok(()));
        assert!(breaker.admit(at(1.1)).is_err());
    }

    #[test]
    fn a_trial_without_an_answer_makes_the_next_pause_longer() {
        let mut breaker = tripped();
        assert_eq!(breaker.admit(at(1.1)), Ok(()));
        breaker.was_silent(at(1.1), None);
        assert!(breaker.admit(at(2.0)).is_err(), "the second pause is at least a second");
        assert_eq!(breaker.admit(at(3.2)), Ok(()));
    }

    #[test]
    fn an_answer_lets_everybody_through_again() {
        let mut breaker = tripped();
        breaker.answered();
        assert_eq!(breaker.admit(at(0.1)), Ok(()));
        breaker.was_silent(at(0.1), None);
        assert_eq!(breaker.admit(at(0.1)), Ok(()), "the count starts anew");
    }

    #[test]
    fn calls_that_were_in_flight_together_count_as_one_outage() {
        let mut breaker = tripped();
        for _ in 0..100 {
            breaker.was_silent(at(0.2), None);
        }
        assert_eq!(breaker.admit(at(1.1)), Ok(()), "a hundred late timeouts made the pause longer");
    }

    #[test]
    fn a_retry_after_is_kept_at_once_but_not_for_ever() {
        let mut breaker = Breaker::new(1);
        breaker.was_silent(at(0.0), Some(Duration::from_secs(7)));
        assert!(breaker.admit(at(6.9)).is_err());
        assert_eq!(breaker.admit(at(7.1)), Ok(()));
        breaker.was_silent(at(7.1), Some(Duration::from_secs(86_400)));
        assert_eq!(breaker.admit(at(70.0)), Ok(()));
    }
}
