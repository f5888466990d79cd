//! Amounts as manifests write them: `2`, `500m`, `512Mi`, `20m` of time.
//!
//! An amount is kept as it was written and read only when it is used: one object with a text that the schema should have
//! refused must not make the whole list of objects unreadable.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use sluice_types::{AmountError, Bytes};

/// Form of a share: whole devices or cores, or thousandths of them.
pub(crate) const SHARE_PATTERN: &str = "^[0-9]{1,12}m?$";
/// Form of a size.
pub(crate) const SIZE_PATTERN: &str = "^[0-9]{1,15}(k|M|G|T|Ki|Mi|Gi|Ti)?$";

/// A number, or a number with a unit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
enum Written {
    Number(i64),
    Text(String),
}

impl fmt::Display for Written {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => write!(f, "{number}"),
            Self::Text(text) => f.write_str(text),
        }
    }
}

fn int_or_string(pattern: &str) -> Schema {
    json_schema!({ "x-kubernetes-int-or-string": true, "pattern": pattern })
}

/// A share of devices or cores: `500m` is a half, `2` are two.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Share(Written);

impl Share {
    /// From thousandths.
    #[must_use]
    pub fn from_milli(milli: u64) -> Self {
        Self(Written::Text(format!("{milli}m")))
    }

    /// Thousandths.
    ///
    /// # Errors
    /// It was written in another form, or is out of range.
    pub fn milli(&self) -> Result<u64, AmountError> {
        let text = self.0.to_string();
        let (digits, factor) = text.strip_suffix('m').map_or((text.as_str(), 1000), |rest| (rest, 1));
        let expected = "a share such as 500m (a half) or 2 (two)";
        if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
            return Err(AmountError::Form { text: text.chars().take(64).collect(), expected });
        }
        let number: u64 = digits.parse().map_err(|_| AmountError::Range)?;
        number.checked_mul(factor).ok_or(AmountError::Range)
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl JsonSchema for Share {
    fn schema_name() -> Cow<'static, str> {
        "Share".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        int_or_string(SHARE_PATTERN)
    }
}

/// A size: `536870912`, `512Mi` or `2G`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Size(Written);

impl Size {
    /// From a text.
    pub(crate) fn text(text: &str) -> Self {
        Self(Written::Text(text.to_owned()))
    }

    /// Bytes.
    ///
    /// # Errors
    /// It was written in another form, or is out of range.
    pub fn bytes(&self) -> Result<Bytes, AmountError> {
        self.0.to_string().parse()
    }
}

impl JsonSchema for Size {
    fn schema_name() -> Cow<'static, str> {
        "Size".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        int_or_string(SIZE_PATTERN)
    }
}

/// A time span: `90s`, `20m`, `1h30m`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Span(String);

impl Span {
    /// The span.
    ///
    /// # Errors
    /// It was written in another form, or is out of range.
    pub fn duration(&self) -> Result<Duration, AmountError> {
        let form = || AmountError::Form {
            text: self.0.chars().take(64).collect(),
            expected: "a time span such as 90s, 20m or 1h30m",
        };
        let mut rest = self.0.as_str();
        let mut total = Duration::ZERO;
        while !rest.is_empty() {
            let cut = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(form)?;
            let (digits, after) = rest.split_at(cut);
            let number: u64 = digits.parse().map_err(|_| form())?;
            // The longer unit first: `ms` begins with `m`.
            let units = [("ms", 1), ("h", 3_600_000), ("m", 60_000), ("s", 1000)];
            let (unit, millis) = units.into_iter().find(|(unit, _)| after.starts_with(unit)).ok_or_else(form)?;
            let part = number.checked_mul(millis).map(Duration::from_millis).ok_or(AmountError::Range)?;
            total = total.checked_add(part).ok_or(AmountError::Range)?;
            rest = after.strip_prefix(unit).unwrap_or_default();
        }
        if self.0.is_empty() { Err(form()) } else { Ok(total) }
    }
}

impl JsonSchema for Span {
    fn schema_name() -> Cow<'static, str> {
        "Span".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "maxLength": 32,
            "pattern": "^([0-9]{1,9}h)?([0-9]{1,9}m)?([0-9]{1,9}s)?([0-9]{1,9}ms)?$",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(json: &str) -> Result<u64, AmountError> {
        serde_json::from_str::<Share>(json).unwrap().milli()
    }

    #[test]
    fn shares_are_numbers_or_texts() {
        assert_eq!(share("2"), Ok(2000));
        assert_eq!(share("\"2\""), Ok(2000));
        assert_eq!(share("\"1500m\""), Ok(1500));
        assert_eq!(Share::from_milli(1500).milli(), Ok(1500));
        for bad in ["-1", "\"\"", "\"m\"", "\"0.5\"", "\"-1m\"", "\"1k\"", "\"99999999999999999999\""] {
            assert!(share(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes_have_units() {
        let size = |json: &str| serde_json::from_str::<Size>(json).unwrap().bytes();
        assert_eq!(size("\"512Mi\""), Ok(Bytes::mib(512)));
        assert_eq!(size("1024"), Ok(Bytes::new(1024)));
        assert!(size("-1").is_err() && size("\"1.5Gi\"").is_err());
    }

    #[test]
    fn spans_add_up() {
        let span = |text: &str| Span(text.to_owned()).duration();
        assert_eq!(span("1h30m"), Ok(Duration::from_secs(5400)));
        assert_eq!(span("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(span("2m5s"), Ok(Duration::from_secs(125)));
        for bad in ["", "5", "m", "-5s", "5d", "1.5h"] {
            assert!(span(bad).is_err(), "{bad}");
        }
    }
}
