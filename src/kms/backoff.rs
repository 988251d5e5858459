//! How long to leave a service alone after it did not answer: 1, 2, 4, 8, 16 s, each with jitter, so that a
//! thousand mounts that lost the same vault do not come back to it in the same moment. Depends on nothing.
//! Invariant: a delay is at least half and at most the whole of its step, and never more than the cap.

use std::time::Duration;

/// The delays between tries, longer each time.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    step: Duration,
    cap: Duration,
    /// State of a xorshift generator; spreads load, protects nothing.
    noise: u64,
}

impl Backoff {
    /// Starts with `first`, doubles up to `cap`. Two that have the same seed give the same delays.
    pub fn new(first: Duration, cap: Duration, seed: u64) -> Self {
        Self { first, step: first, cap, noise: seed | 1 }
    }

    /// The same, with a seed from the operating system's generator.
    pub fn seeded(first: Duration, cap: Duration) -> Self {
        let mut seed = [0; 8];
        // Without randomness the delays are still right, only not spread.
        let _ = getrandom::fill(&mut seed);
        Self::new(first, cap, u64::from_le_bytes(seed))
    }

    /// The next delay.
    pub fn delay(&mut self) -> Duration {
        let step = self.step.min(self.cap);
        self.step = step.saturating_mul(2);
        step.mul_f64(0.5 + 0.5 * self.fraction())
    }

    /// Starts again with the first delay.
    pub fn reset(&mut self) {
        self.step = self.first;
    }

    /// A number in 0..1, another each time.
    fn fraction(&mut self) -> f64 {
        self.noise ^= self.noise << 13;
        self.noise ^= self.noise >> 7;
        self.noise ^= self.noise << 17;
        (self.noise >> 11) as f64 / (1_u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_cap_and_start_again() {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(16), 42);
        for step in [1, 2, 4, 8, 16, 16, 16] {
            let (delay, step) = (backoff.delay(), Duration::from_secs(step));
            assert!(delay >= step / 2 && delay <= step, "{delay:?} of {step:?}");
        }
        backoff.reset();
        assert!(backoff.delay() <= Duration::from_secs(1));
    }

    #[test]
    fn two_seeds_do_not_give_the_same_delays() {
        let delays = |seed| {
            let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(16), seed);
            std::array::from_fn::<_, 4, _>(|_| backoff.delay())
        };
        assert_ne!(delays(3), delays(5));
        assert_eq!(delays(3), delays(3));
    }
}
