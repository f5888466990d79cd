//! Typed ids: one kind of id cannot be passed for another, and all sort by the time they were minted.
//!
//! An id is a positive 63-bit number (milliseconds since the Unix epoch shifted left by 20, then a sequence with
//! random steps), minted by the writer alone. Its text is `prefix-` and 13 characters of Crockford's base32
//! (<https://www.crockford.com/base32.html>), lower case, fixed width, so text order is mint order too.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
const DIGITS: usize = 13;

/// What each byte is worth as a digit; 255 for those that are none.
const WORTH: [u8; 256] = {
    let mut worth = [u8::MAX; 256];
    let mut place = 0;
    while place < ALPHABET.len() {
        worth[ALPHABET[place] as usize] = place as u8;
        place += 1;
    }
    worth
};

/// Why a text is not an id of the wanted kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// The text does not begin with this kind's prefix.
    #[error("an id of this kind begins with `{0}-`")]
    Prefix(&'static str),
    /// The part after the prefix is not 13 base32 characters of a positive number.
    #[error("the part after the prefix is not 13 characters of 0-9 a-z without i l o u")]
    Digits,
}

/// Longest prefix, dash and digits.
const LONGEST: usize = 4 + 1 + DIGITS;

/// An id's text in a buffer of its own: ids are written by the dozen for every row, so it is made in one piece.
struct Text {
    bytes: [u8; LONGEST],
    length: usize,
}

impl Text {
    fn of(value: u64, prefix: &str) -> Self {
        let mut bytes = [b'-'; LONGEST];
        let length = prefix.len() + 1 + DIGITS;
        bytes[..prefix.len()].copy_from_slice(prefix.as_bytes());
        let mut rest = value;
        for slot in bytes[prefix.len() + 1..length].iter_mut().rev() {
            // Five bits are below 32.
            *slot = ALPHABET[(rest & 31) as usize];
            rest >>= 5;
        }
        Self { bytes, length }
    }

    fn as_str(&self) -> &str {
        str::from_utf8(&self.bytes[..self.length]).expect("invariant: prefix and digits are ASCII")
    }
}

fn decode(text: &str, prefix: &'static str) -> Result<u64, IdError> {
    let digits =
        text.strip_prefix(prefix).and_then(|rest| rest.strip_prefix('-')).ok_or(IdError::Prefix(prefix))?.as_bytes();
    if digits.len() != DIGITS {
        return Err(IdError::Digits);
    }
    let mut value: u64 = 0;
    for (place, digit) in digits.iter().enumerate() {
        let worth = usize::from(WORTH[usize::from(*digit)]);
        if worth > 31 {
            return Err(IdError::Digits);
        }
        // 13 digits carry 65 bits: the first may only use its lowest three, one less for the sign in SQL.
        if place == 0 && worth > 7 {
            return Err(IdError::Digits);
        }
        value = (value << 5) | u64::try_from(worth).map_err(|_| IdError::Digits)?;
    }
    Ok(value)
}

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident = $prefix:literal;)+) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(u64);

        impl $name {
            /// The text before the dash.
            pub const PREFIX: &'static str = $prefix;

            /// Wraps a number minted by the writer or read back from the store.
            #[must_use]
            pub const fn from_raw(raw: u64) -> Self {
                Self(raw & (u64::MAX >> 1))
            }

            /// The number, always below 2^63 so that SQL's signed integers hold it.
            #[must_use]
            pub const fn raw(self) -> u64 {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(Text::of(self.0, $prefix).as_str())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                decode(text, $prefix).map(Self)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(Text::of(self.0, $prefix).as_str())
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_str(crate::text::Parsed::new())
            }
        }
    )+};
}

ids! {
    /// Who pays.
    TenantId = "ten";
    /// A part of a tenant; jobs live in projects.
    ProjectId = "prj";
    /// An API key.
    KeyId = "key";
    /// A named secret of a project.
    SecretId = "sec";
    /// A data centre or cluster.
    SiteId = "site";
    /// One host of a site.
    NodeId = "node";
    /// What a user wants run.
    JobId = "job";
    /// A purchase of capacity.
    OrderId = "ord";
    /// One try to run a job.
    AttemptId = "att";
    /// The right of a holder to a slice for a time.
    LeaseId = "lse";
    /// An immutable manifest of a job's state at a step.
    CheckpointId = "ckp";
    /// One move of a job between sites.
    MigrationId = "mig";
    /// A pending transfer.
    HoldId = "hld";
    /// One immutable entry of the ledger.
    TransferId = "trf";
    /// One edition of the price book.
    PriceVersion = "prc";
    /// Weights that a project serves.
    ModelId = "mdl";
    /// A served model.
    EndpointId = "ept";
    /// One request to an endpoint.
    RequestId = "req";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_round_trips_and_sorts_like_the_number() {
        let ids = [0, 1, 31, 32, 1 << 20, (1 << 62) + 12345, u64::MAX >> 1].map(JobId::from_raw);
        for pair in ids.windows(2) {
            assert!(pair[0].to_string() < pair[1].to_string());
        }
        for id in ids {
            assert_eq!(id.to_string().parse(), Ok(id));
        }
    }

    #[test]
    fn another_kind_or_a_damaged_text_is_refused() {
        let id = JobId::from_raw(77).to_string();
        assert_eq!(id.parse::<AttemptId>(), Err(IdError::Prefix("att")));
        assert_eq!("job-".parse::<JobId>(), Err(IdError::Digits));
        assert_eq!("job-zzzzzzzzzzzzz".parse::<JobId>(), Err(IdError::Digits));
        assert_eq!("job-000000000000u".parse::<JobId>(), Err(IdError::Digits));
    }
}
