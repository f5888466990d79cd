//! Turning a share into the kernel's quota and period.
//!
//! The kernel refuses quotas under 1 ms and periods over 1 s
//! (<https://docs.kernel.org/scheduler/sched-bwc.html>). Measured with two groups of 1 and of 4 spinning threads at
//! 135 and 315 thousandths of one core (30/70), 3 s each: periods of 10, 20, 50 and 100 ms split within 0.2 points; at
//! 5 ms the smaller quota falls under 1 ms and is refused. Over-runs of a tick are carried as debt, so the period does
//! not decide exactness over seconds; it decides how long a throttled thread waits. Hence the shortest period of at
//! least 20 ms that gives a quota of at least 2 ms, and at most 1 s.

use sluice_types::{CoreMilli, MilliGpu};

use crate::DeviceError;

/// A part of one or more cores in millionths of a core: exact for every milli of every milli-core.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct CoreFraction(u64);

impl CoreFraction {
    /// `milli` of a device that is made of `device` milli-cores, and `host` milli-cores beside it.
    #[must_use]
    pub fn of_slice(milli: MilliGpu, device: CoreMilli, host: CoreMilli) -> Self {
        Self(u64::from(milli.get()) * u64::from(device.get()) + u64::from(host.get()) * 1000)
    }

    /// Whole milli-cores.
    #[must_use]
    pub fn of_cores(cores: CoreMilli) -> Self {
        Self(u64::from(cores.get()) * 1000)
    }

    /// In millionths of a core.
    #[must_use]
    pub fn millionths(self) -> u64 {
        self.0
    }

    /// Both together.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }

    /// Weight among siblings: about one per milli-core, within the bounds given.
    pub(crate) fn weight(self, least: u64, most: u64) -> u64 {
        (self.0 / 1000).clamp(least, most)
    }
}

/// A hard cap: so much run time in each period.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CfsQuota {
    /// Microseconds of run time per period.
    pub quota: u64,
    /// Microseconds per period.
    pub period: u64,
}

impl CfsQuota {
    const SHORTEST_PERIOD: u64 = 20_000;
    const LONGEST_PERIOD: u64 = 1_000_000;
    const WANTED_QUOTA: u64 = 2_000;
    const LEAST_QUOTA: u64 = 1_000;

    /// The quota that enforces `share`.
    ///
    /// # Errors
    /// [`DeviceError::NotEnforceable`] under one thousandth of a core, which the kernel cannot hold.
    pub fn for_share(share: CoreFraction) -> Result<Self, DeviceError> {
        let millionths = share.millionths();
        let wanted = (Self::WANTED_QUOTA * 1_000_000).checked_div(millionths).unwrap_or(u64::MAX);
        // Whole milliseconds, so that period times share loses nothing worth counting.
        let period = wanted.div_ceil(1000).saturating_mul(1000).clamp(Self::SHORTEST_PERIOD, Self::LONGEST_PERIOD);
        let quota = period * millionths / 1_000_000;
        if quota < Self::LEAST_QUOTA {
            return Err(DeviceError::NotEnforceable(format!(
                "a share of {millionths} millionths of a core is under the kernel's smallest quota (1000)"
            )));
        }
        Ok(Self { quota, period })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotas_are_exact_and_within_the_kernels_bounds() {
        for device in [100, 333, 450, 900, 1000, 4000] {
            for milli in 1..=1000 {
                let share = CoreFraction::of_slice(MilliGpu::new(milli), CoreMilli::new(device), CoreMilli::ZERO);
                let Ok(cfs) = CfsQuota::for_share(share) else {
                    assert!(share.millionths() < 1000, "{device} {milli}");
                    continue;
                };
                assert!(cfs.quota >= 1000 && (20_000..=1_000_000).contains(&cfs.period));
                let asked = cfs.period * share.millionths();
                assert!(cfs.quota * 1_000_000 <= asked && asked < (cfs.quota + 1) * 1_000_000);
            }
        }
    }

    #[test]
    fn shares_under_the_smallest_quota_are_refused() {
        assert!(CfsQuota::for_share(CoreFraction::default()).is_err());
        assert!(CfsQuota::for_share(CoreFraction(999)).is_err());
        assert_eq!(CfsQuota::for_share(CoreFraction(1000)).unwrap(), CfsQuota { quota: 1000, period: 1_000_000 });
    }
}
