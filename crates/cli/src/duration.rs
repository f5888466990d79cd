//! Lengths and instants of time as people write and read them. Owns only the text forms; never reads a clock.

use std::time::Duration;

/// The longest length that is accepted: ten years.
const LONGEST: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// Units, longest first, in milliseconds.
const UNITS: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];

/// Why a text is not a length of time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DurationError {
    /// Another form than number and unit.
    #[error("`{0}` is not a length of time such as 90s, 20m or 1h30m")]
    Form(String),
    /// Longer than ten years.
    #[error("`{0}` is longer than ten years")]
    Range(String),
}

/// Reads `90s`, `20m`, `1h30m`, `250ms`: whole numbers with a unit (d, h, m, s, ms), longest unit first.
///
/// # Errors
/// Another form, or a length beyond ten years.
pub fn parse_duration(text: &str) -> Result<Duration, DurationError> {
    let shown: String = text.chars().take(64).collect();
    let form = || DurationError::Form(shown.clone());
    let range = || DurationError::Range(shown.clone());
    let mut rest = text;
    let mut millis: u64 = 0;
    let mut units = UNITS.iter();
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(form)?;
        if digits == 0 {
            return Err(form());
        }
        let (number, tail) = rest.split_at(digits);
        let letters = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(letters);
        // Taking from the iterator keeps the units in falling order and each at most once.
        let (_, size) = units.find(|(name, _)| *name == unit).ok_or_else(form)?;
        let number: u64 = number.parse().map_err(|_| range())?;
        millis = number.checked_mul(*size).and_then(|part| millis.checked_add(part)).ok_or_else(range)?;
        rest = tail;
    }
    if text.is_empty() {
        return Err(form());
    }
    Some(Duration::from_millis(millis)).filter(|span| *span <= LONGEST).ok_or_else(range)
}

/// Prints a length so that [`parse_duration`] reads it back, to the millisecond: `1h30m`, `0s`.
#[must_use]
pub fn print_duration(span: Duration) -> String {
    let mut millis = u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
    let mut text = String::new();
    for (unit, size) in UNITS {
        if millis >= size {
            text.push_str(&format!("{}{unit}", millis / size));
            millis %= size;
        }
    }
    if text.is_empty() { "0s".to_owned() } else { text }
}

/// Prints a length for a table: its two longest units at most, nothing below a second.
#[must_use]
pub(crate) fn print_roughly(span: Duration) -> String {
    let secs = span.as_secs();
    let cut = match secs {
        86_400.. => secs - secs % 3600,
        3600.. => secs - secs % 60,
        _ => secs,
    };
    print_duration(Duration::from_secs(cut))
}

/// To the wire.
#[must_use]
pub(crate) fn to_proto(span: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(span.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(span.subsec_nanos()).unwrap_or(0),
    }
}

/// From the wire; what is negative or absurd counts as nothing.
#[must_use]
pub(crate) fn from_proto(span: &prost_types::Duration) -> Duration {
    let nanos = u32::try_from(span.nanos).unwrap_or(0).min(999_999_999);
    u64::try_from(span.seconds).map_or(Duration::ZERO, |seconds| Duration::new(seconds, nanos))
}

/// The wire's instant; `None` where it is outside the calendar (years -9999 to 9999).
#[must_use]
pub(crate) fn instant(time: &prost_types::Timestamp) -> Option<jiff::Timestamp> {
    jiff::Timestamp::new(time.seconds, time.nanos).ok()
}

/// RFC 3339 in UTC, to the millisecond at most.
#[must_use]
pub(crate) fn print_instant(time: jiff::Timestamp) -> String {
    let millis = jiff::Timestamp::from_millisecond(time.as_millisecond()).unwrap_or(time);
    millis.to_string()
}

/// How long ago, for a table; `0s` for what lies ahead.
#[must_use]
pub(crate) fn print_age(time: jiff::Timestamp, now: jiff::Timestamp) -> String {
    let span = now.duration_since(time);
    print_roughly(Duration::try_from(span).unwrap_or(Duration::ZERO))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_read_and_printed_back() {
        for (text, secs) in [("90s", 90), ("20m", 1200), ("1h30m", 5400), ("2d", 172_800), ("0s", 0), ("1h5s", 3605)] {
            assert_eq!(parse_duration(text), Ok(Duration::from_secs(secs)), "{text}");
        }
        assert_eq!(parse_duration("1s250ms"), Ok(Duration::from_millis(1250)));
        for text in ["1m30s", "20m", "1h30m", "2d", "250ms", "1d1ms"] {
            assert_eq!(print_duration(parse_duration(text).unwrap()), text);
        }
        assert_eq!(print_duration(Duration::ZERO), "0s");
    }

    #[test]
    fn other_forms_are_refused() {
        for bad in ["", "5", "m", "1.5h", "-1s", "30m1h", "1h1h", "1 h", "1w", "1h30", "٣s", "1sm"] {
            assert!(matches!(parse_duration(bad), Err(DurationError::Form(_))), "{bad}");
        }
        for far in ["4000d", "99999999999999999999s", "18446744073709551615d"] {
            assert!(matches!(parse_duration(far), Err(DurationError::Range(_))), "{far}");
        }
    }

    #[test]
    fn tables_show_two_units() {
        for (secs, text) in [(5, "5s"), (65, "1m5s"), (3_661, "1h1m"), (90_061, "1d1h"), (86_400, "1d")] {
            assert_eq!(print_roughly(Duration::from_secs(secs)), text);
        }
    }

    #[test]
    fn absurd_values_of_the_wire_do_no_harm() {
        assert_eq!(from_proto(&prost_types::Duration { seconds: -5, nanos: -1 }), Duration::ZERO);
        let most = from_proto(&prost_types::Duration { seconds: i64::MAX, nanos: i32::MAX });
        assert!(!print_duration(most).is_empty());
        assert_eq!(instant(&prost_types::Timestamp { seconds: i64::MAX, nanos: 0 }), None);
    }
}
