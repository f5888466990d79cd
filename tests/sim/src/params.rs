//! How large a simulated day is, and the bounds that the system runs under in it.

use sluice_lifecycle::Settings;
use sluice_types::Nanos;

pub(crate) const MILLI: u64 = 1_000_000;
pub(crate) const SECOND: u64 = 1_000_000_000;
pub(crate) const MINUTE: u64 = 60 * SECOND;
pub(crate) const HOUR: u64 = 60 * MINUTE;

/// When the simulated day begins, in nanoseconds since the Unix epoch.
pub(crate) const EPOCH: u64 = 1_767_225_600 * SECOND;

/// Nodes tell that they are alive this often.
pub(crate) const HEARTBEAT: u64 = 15 * SECOND;
/// The writer is told the time this often.
pub(crate) const TICK: u64 = 5 * SECOND;
/// How long a node tries to seal what an ended task left.
pub(crate) const FINISH: u64 = 10 * MINUTE;

/// One simulated day.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Day {
    /// Jobs that users submit.
    pub jobs: usize,
    /// Rentals that users order.
    pub rents: usize,
    /// Endpoints that users make.
    pub endpoints: usize,
    /// Requests to them.
    pub asks: usize,
    /// Quotas that are changed.
    pub quotas: usize,
    /// Faults that are tried; some meet what is down already.
    pub faults: usize,
    /// Until when users and faults act, in hours.
    pub busy_hours: u64,
    /// How long it lasts at least, in hours.
    pub least_hours: u64,
    /// Until when everything must have settled, in hours.
    pub hours: u64,
    /// Nodes per site.
    pub hosts_per_site: usize,
}

impl Day {
    /// The day of the runner.
    pub const FULL: Self = Self {
        jobs: 210,
        rents: 60,
        endpoints: 8,
        asks: 320,
        quotas: 80,
        faults: 80,
        busy_hours: 20,
        least_hours: 24,
        hours: 36,
        hosts_per_site: 3,
    };
    /// A shorter one, for tests.
    pub const SMALL: Self = Self {
        jobs: 50,
        rents: 14,
        endpoints: 5,
        asks: 110,
        quotas: 28,
        faults: 32,
        busy_hours: 5,
        least_hours: 7,
        hours: 20,
        hosts_per_site: 2,
    };

    /// The same without faults.
    #[must_use]
    pub const fn calm(self) -> Self {
        Self { faults: 0, ..self }
    }
}

pub(crate) fn settings() -> Settings {
    Settings {
        loss_timeout: Nanos::from_secs(45),
        window: Nanos::from_secs(60),
        hold_windows: 6,
        prepare_deadline: Nanos::from_secs(120),
        stop_deadline: Nanos::from_secs(60),
        ship_deadline: Nanos::from_secs(300),
        start_deadline: Nanos::from_secs(300),
        late_windows: Nanos::from_secs(4 * 3600),
        remember: Nanos::from_secs(7 * 24 * 3600),
        jobs_per_tenant: 1000,
        ..Settings::default()
    }
}
