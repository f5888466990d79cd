//! From measured time to money, in integers.
//!
//! `amount = wall ns × (billed milli × class rate + host milli-cores × core rate + host bytes × byte rate)` with rates
//! in credits per hour of one whole device, core or GiB. All three terms are brought to one denominator, the division
//! happens once, and what it leaves over is carried to the lease's next window under the same price version, so the
//! sum over a lease differs from the exact value by less than one unit at any time.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sluice_types::{Bytes, CoreMilli, Credits, MilliGpu, Nanos};

/// Prices of one class, isolation class and site in one version of the price book.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rate {
    /// Credits per hour of a whole device.
    pub device_hour: Credits,
    /// Credits per hour of one host core.
    pub core_hour: Credits,
    /// Credits per hour of one GiB of host memory.
    pub gib_hour: Credits,
}

/// What of a lease is billed: fixed while the lease lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RatingTerms {
    /// The larger of compute and memory share, see [`billed_milli`].
    pub billed: MilliGpu,
    /// Host processor beside the slice.
    pub host_cores: CoreMilli,
    /// Host memory beside the slice.
    pub host_memory: Bytes,
    /// The prices.
    pub rate: Rate,
}

/// What a division left over, in 1/[`DENOMINATOR`] of a credit unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Remainder(u128);

impl Remainder {
    /// Nothing left over.
    pub const ZERO: Self = Self(0);

    /// The number of 1/[`DENOMINATOR`] parts.
    #[must_use]
    pub const fn parts(self) -> u128 {
        self.0
    }
}

// JSON numbers end at 2^53 for many readers, so a remainder travels as text.
impl Serialize for Remainder {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Remainder {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        let parts = text.parse().map_err(serde::de::Error::custom)?;
        if parts >= DENOMINATOR {
            return Err(serde::de::Error::custom("a remainder is less than a whole"));
        }
        Ok(Self(parts))
    }
}

/// The amount of one window and what is carried to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rated {
    /// Whole units.
    pub amount: Credits,
    /// What is carried.
    pub remainder: Remainder,
}

/// An amount that no ledger could hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the amount leaves the range of the ledger")]
pub struct RatingError;

const NANOS_PER_HOUR: u128 = 3_600_000_000_000;
const GIB: u128 = 1 << 30;
/// Nanoseconds per hour × thousandths per whole × bytes per GiB: about 3.87e24.
const DENOMINATOR: u128 = NANOS_PER_HOUR * 1000 * GIB;

/// `max(compute milli, ceil(1000 × slice memory / device memory))`: who takes most of the memory pays for the device
/// that nobody else can use. Never more than 1000.
#[must_use]
pub fn billed_milli(compute: MilliGpu, slice_memory: Bytes, device_memory: Bytes) -> MilliGpu {
    let device = u128::from(device_memory.get().max(1));
    let share = (1000 * u128::from(slice_memory.get())).div_ceil(device).min(1000);
    compute.max(MilliGpu::new(u32::try_from(share).unwrap_or(1000)))
}

/// Rates one window of `wall` time.
///
/// # Errors
/// [`RatingError`] where the amount leaves the range; no window of a sane price does.
pub fn rate_window(terms: &RatingTerms, wall: Nanos, carried: Remainder) -> Result<Rated, RatingError> {
    let price = |credits: Credits| u128::try_from(credits.units()).map_err(|_| RatingError);
    let device = u128::from(terms.billed.get()).checked_mul(price(terms.rate.device_hour)?).ok_or(RatingError)?;
    let cores = u128::from(terms.host_cores.get()).checked_mul(price(terms.rate.core_hour)?).ok_or(RatingError)?;
    let memory = u128::from(terms.host_memory.get())
        .checked_mul(1000)
        .and_then(|parts| parts.checked_mul(price(terms.rate.gib_hour).ok()?))
        .ok_or(RatingError)?;
    let per_nano = device
        .checked_add(cores)
        .and_then(|sum| sum.checked_mul(GIB))
        .and_then(|sum| sum.checked_add(memory))
        .ok_or(RatingError)?;
    let total = per_nano
        .checked_mul(u128::from(wall.get()))
        .and_then(|parts| parts.checked_add(carried.0))
        .ok_or(RatingError)?;
    let amount = i64::try_from(total / DENOMINATOR).map_err(|_| RatingError)?;
    Ok(Rated { amount: Credits::new(amount), remainder: Remainder(total % DENOMINATOR) })
}

/// The most that `wall` time can cost, whatever windows it is cut into: rounded up.
///
/// # Errors
/// As [`rate_window`].
pub fn quote(terms: &RatingTerms, wall: Nanos) -> Result<Credits, RatingError> {
    let rated = rate_window(terms, wall, Remainder::ZERO)?;
    let up = i64::from(rated.remainder != Remainder::ZERO);
    rated.amount.checked_add(Credits::new(up)).ok_or(RatingError)
}
