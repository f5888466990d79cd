//! A number on every owned thing; whoever receives an effect or a report refuses a lower one.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The fence: grows by one each time ownership changes, never shrinks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Generation(u64);

impl Generation {
    /// Before the first owner.
    pub const ZERO: Self = Self(0);

    /// From a number read back from a row or a message.
    #[must_use]
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The next owner's generation. 2^64 hand-overs do not happen; saturation would fence everybody, which is safe.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}
