//! The clock of leases. `CLOCK_BOOTTIME` goes on during a suspend, which `Instant` does not: a laptop that slept
//! for an hour must not wake up with keys that are an hour old and look fresh. Depends on nothing.

use std::ops::{Add, Sub};
use std::time::Duration;

/// A moment, as the time since the machine was started, suspends included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct BootTime(pub Duration);

impl BootTime {
    /// The present moment of this machine.
    pub fn now() -> Self {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        Self(Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0)))
    }
}

impl Add<Duration> for BootTime {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(duration))
    }
}

impl Sub for BootTime {
    type Output = Duration;

    /// The time from `earlier` to this moment, zero if it comes later.
    fn sub(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_goes_forward_and_never_below_zero() {
        let (early, late) = (BootTime::now(), BootTime::now());
        assert!(late >= early && early > BootTime::default());
        assert_eq!(early - (early + Duration::from_secs(1)), Duration::ZERO);
    }
}
