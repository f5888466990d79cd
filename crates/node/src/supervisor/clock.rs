//! The two clocks of a supervisor; everything that decides by time takes the instant as an argument.

use nix::time::{ClockId, clock_gettime};
use sluice_types::NodeInstant;

/// Now on the boot-time clock, which counts while the host sleeps and is the same for all processes of the host.
#[must_use]
pub fn boottime() -> NodeInstant {
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME).expect("invariant: Linux has this clock since 2.6.39");
    let nanos = i128::from(now.tv_sec()) * 1_000_000_000 + i128::from(now.tv_nsec());
    NodeInstant::from_nanos(u64::try_from(nanos).unwrap_or(0))
}

/// Now for people: RFC 3339 in UTC with nanoseconds, for log lines.
pub(crate) fn wall() -> String {
    format!("{:.9}", jiff::Timestamp::now())
}
