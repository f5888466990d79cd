//! Integer amounts. No float ever holds money, a share or a quota.

use std::fmt;
use std::iter::Sum;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Why a text or a sum is not an amount.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AmountError {
    /// The text has another form than the one named.
    #[error("`{text}` is not {expected}")]
    Form {
        /// What was given, cut to 64 characters.
        text: String,
        /// What would have been right, with an example.
        expected: &'static str,
    },
    /// The value does not fit its type.
    #[error("the amount is out of range")]
    Range,
}

fn form(text: &str, expected: &'static str) -> AmountError {
    AmountError::Form { text: text.chars().take(64).collect(), expected }
}

/// Money: one unit is 1e-6 of the currency. Signed, because a balance may be owed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Credits(i64);

impl Credits {
    /// No money.
    pub const ZERO: Self = Self(0);
    /// Units in one whole of the currency.
    pub const PER_UNIT: i64 = 1_000_000;

    /// From a number of units (1e-6 of the currency each).
    #[must_use]
    pub const fn new(units: i64) -> Self {
        Self(units)
    }

    /// The number of units.
    #[must_use]
    pub const fn units(self) -> i64 {
        self.0
    }

    /// The sum, or `None` where it leaves the range.
    #[must_use]
    pub fn checked_add(self, other: Self) -> Option<Self> {
        self.0.checked_add(other.0).map(Self)
    }

    /// The difference, or `None` where it leaves the range.
    #[must_use]
    pub fn checked_sub(self, other: Self) -> Option<Self> {
        self.0.checked_sub(other.0).map(Self)
    }

    /// The same amount owed instead of owned.
    #[must_use]
    pub fn negated(self) -> Self {
        Self(self.0.saturating_neg())
    }
}

impl fmt::Display for Credits {
    /// Six decimals of the currency, for example `-0.000150`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let size = self.0.unsigned_abs();
        let sign = if self.0 < 0 { "-" } else { "" };
        write!(f, "{sign}{}.{:06}", size / 1_000_000, size % 1_000_000)
    }
}

impl FromStr for Credits {
    type Err = AmountError;

    /// Reads `12`, `12.5` or `-0.000001`: at most six decimals of the currency.
    fn from_str(text: &str) -> Result<Self, AmountError> {
        let expected = "an amount of money such as 12.50 (at most six decimals)";
        let (sign, digits) = text.strip_prefix('-').map_or((1, text), |rest| (-1, rest));
        let (whole, part) = digits.split_once('.').unwrap_or((digits, ""));
        let plain = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
        if whole.is_empty() || part.len() > 6 || !plain(whole) || !plain(part) || digits.ends_with('.') {
            return Err(form(text, expected));
        }
        let whole: i64 = whole.parse().map_err(|_| AmountError::Range)?;
        let part: i64 = format!("{part:0<6}").parse().map_err(|_| form(text, expected))?;
        whole
            .checked_mul(Self::PER_UNIT)
            .and_then(|units| units.checked_add(part))
            .map(|units| Self(sign * units))
            .ok_or(AmountError::Range)
    }
}

impl Sum for Credits {
    fn sum<I: Iterator<Item = Self>>(iter: I) -> Self {
        Self(iter.fold(0i64, |total, item| total.saturating_add(item.0)))
    }
}

/// A compute share: thousandths of one device. A slice has 1..=1000; a device as a whole has 1000.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MilliGpu(u32);

impl MilliGpu {
    /// Nothing.
    pub const ZERO: Self = Self(0);
    /// A whole device.
    pub const WHOLE: Self = Self(1000);

    /// From thousandths of a device.
    #[must_use]
    pub const fn new(milli: u32) -> Self {
        Self(milli)
    }

    /// Thousandths of a device.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }

    /// The sum; saturates at the type's bound, which no device reaches.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }

    /// What is left, or `None` where `other` is more.
    #[must_use]
    pub fn checked_sub(self, other: Self) -> Option<Self> {
        self.0.checked_sub(other.0).map(Self)
    }
}

impl fmt::Display for MilliGpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}m", self.0)
    }
}

impl FromStr for MilliGpu {
    type Err = AmountError;

    /// Reads Kubernetes' form: `500m` is half a device, `1` a whole one.
    fn from_str(text: &str) -> Result<Self, AmountError> {
        milli(text, "a share such as 500m (half a device) or 1 (a whole one)").map(Self)
    }
}

/// Host processor share: thousandths of one core.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CoreMilli(u32);

impl CoreMilli {
    /// Nothing.
    pub const ZERO: Self = Self(0);

    /// From thousandths of a core.
    #[must_use]
    pub const fn new(milli: u32) -> Self {
        Self(milli)
    }

    /// Thousandths of a core.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl fmt::Display for CoreMilli {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}m", self.0)
    }
}

impl FromStr for CoreMilli {
    type Err = AmountError;

    /// Reads `250m` (a quarter of a core) or `2` (two cores).
    fn from_str(text: &str) -> Result<Self, AmountError> {
        milli(text, "a number of cores such as 250m or 2").map(Self)
    }
}

fn milli(text: &str, expected: &'static str) -> Result<u32, AmountError> {
    let (digits, factor) = text.strip_suffix('m').map_or((text, 1000u32), |rest| (rest, 1));
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(form(text, expected));
    }
    let number: u32 = digits.parse().map_err(|_| AmountError::Range)?;
    number.checked_mul(factor).ok_or(AmountError::Range)
}

/// A size in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Bytes(u64);

impl Bytes {
    /// Nothing.
    pub const ZERO: Self = Self(0);
    /// One binary gigabyte.
    pub const GIB: u64 = 1 << 30;

    /// From a number of bytes.
    #[must_use]
    pub const fn new(bytes: u64) -> Self {
        Self(bytes)
    }

    /// From binary megabytes.
    #[must_use]
    pub const fn mib(count: u64) -> Self {
        Self(count << 20)
    }

    /// The number of bytes.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The sum; saturates at the type's bound.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }

    /// What is left, or `None` where `other` is more.
    #[must_use]
    pub fn checked_sub(self, other: Self) -> Option<Self> {
        self.0.checked_sub(other.0).map(Self)
    }
}

impl fmt::Display for Bytes {
    /// The largest binary unit that loses nothing, for example `512MiB` or `1025B`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (shift, unit) in [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")] {
            if self.0 != 0 && self.0.trailing_zeros() >= shift {
                return write!(f, "{}{unit}", self.0 >> shift);
            }
        }
        write!(f, "{}B", self.0)
    }
}

impl FromStr for Bytes {
    type Err = AmountError;

    /// Reads `1073741824`, `512MiB`, `2Gi`, `10MB`: binary and decimal units, no fractions.
    fn from_str(text: &str) -> Result<Self, AmountError> {
        let cut = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (digits, unit) = text.split_at(cut);
        let factor: u64 = match unit {
            "" | "B" => 1,
            "Ki" | "KiB" => 1 << 10,
            "Mi" | "MiB" => 1 << 20,
            "Gi" | "GiB" => 1 << 30,
            "Ti" | "TiB" => 1 << 40,
            "k" | "kB" | "KB" => 1_000,
            "M" | "MB" => 1_000_000,
            "G" | "GB" => 1_000_000_000,
            "T" | "TB" => 1_000_000_000_000,
            _ => return Err(form(text, "a size such as 512MiB, 2Gi or 10MB")),
        };
        if digits.is_empty() {
            return Err(form(text, "a size such as 512MiB, 2Gi or 10MB"));
        }
        let number: u64 = digits.parse().map_err(|_| AmountError::Range)?;
        number.checked_mul(factor).map(Self).ok_or(AmountError::Range)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credits_read_and_print_to_the_last_unit() {
        for (text, units) in [("12", 12_000_000), ("0.000001", 1), ("-0.000150", -150), ("3.5", 3_500_000)] {
            assert_eq!(text.parse(), Ok(Credits::new(units)));
        }
        assert_eq!(Credits::new(-150).to_string(), "-0.000150");
        for bad in ["", ".5", "5.", "1.0000001", "1e3", "+1", "--1", "٣"] {
            assert!(bad.parse::<Credits>().is_err(), "{bad}");
        }
        assert_eq!("99999999999999".parse::<Credits>(), Err(AmountError::Range));
    }

    #[test]
    fn shares_and_sizes_read_as_kubernetes_quantities() {
        assert_eq!("500m".parse(), Ok(MilliGpu::new(500)));
        assert_eq!("2".parse(), Ok(CoreMilli::new(2000)));
        assert_eq!("512MiB".parse(), Ok(Bytes::mib(512)));
        assert_eq!(Bytes::mib(512).to_string(), "512MiB");
        for bad in ["", "m", "-1m", "0.5", "1.5Gi", "Gi", "12 MiB"] {
            assert!(bad.parse::<MilliGpu>().is_err() && bad.parse::<Bytes>().is_err(), "{bad}");
        }
    }
}
