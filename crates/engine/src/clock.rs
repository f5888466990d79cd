//! Time, as the step loop sees it.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use nix::time::{ClockId, clock_gettime};

/// What the step loop asks. All but [`Clock::unix_millis`] count from any fixed moment.
pub trait Clock {
    /// Nanoseconds that passed.
    fn monotonic(&self) -> u64;
    /// Nanoseconds of CPU that the process took.
    fn cpu(&self) -> u64;
    /// Unix time, milliseconds.
    fn unix_millis(&self) -> u64;
}

/// The host's.
#[derive(Debug)]
pub struct HostClock {
    start: Instant,
}

impl Default for HostClock {
    fn default() -> Self {
        Self { start: Instant::now() }
    }
}

impl Clock for HostClock {
    fn monotonic(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn cpu(&self) -> u64 {
        let Ok(taken) = clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID) else { return 0 };
        let nanos = i128::from(taken.tv_sec()) * 1_000_000_000 + i128::from(taken.tv_nsec());
        u64::try_from(nanos).unwrap_or(0)
    }

    fn unix_millis(&self) -> u64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }
}
