//! What is printed: one struct per object, with the fields of JSON and YAML and the columns of its table.
//!
//! The structs are the output's contract, apart from the wire's: fields are added, never renamed or removed. Money
//! is an object of integer credits (1e-6 of the currency) and text; lengths of time are text such as `1h30m`;
//! instants are RFC 3339; what is not set is left out.

mod explain;
mod fleet;
pub(crate) mod job;
mod money;
mod order;
mod quota;
mod serving;
mod spec;
mod tenants;

pub(crate) use explain::{EventView, ExplanationView};
pub(crate) use fleet::{ClassView, DeviceView, JoinTokenView, NodeView, SiteView};
pub(crate) use job::{CheckpointView, JobView, MigrationView};
pub(crate) use money::{BalanceView, BudgetView, PriceBookView, ReceiptView, TransferView, WindowView, cost_line};
pub(crate) use order::OrderView;
pub(crate) use quota::QuotaView;
pub(crate) use serving::{EndpointView, InferenceRequestView, ModelView};
pub(crate) use tenants::{CreatedKeyView, KeyView, ProjectView, SecretView, TenantView};

use serde::Serialize;
use sluice_types::Credits;

use crate::duration;

/// An amount of money.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) struct Money {
    /// Integer units of 1e-6 of the currency.
    pub(crate) credits: i64,
    /// The same in the currency, all six decimals.
    #[serde(serialize_with = "as_text")]
    text: Credits,
}

fn as_text<S: serde::Serializer>(credits: &Credits, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(credits)
}

impl Money {
    pub(crate) fn new(credits: i64) -> Self {
        Self { credits, text: Credits::new(credits) }
    }

    /// Of an hourly price.
    pub(crate) fn per_second(self) -> Self {
        Self::new(self.credits / 3600)
    }

    /// For tables; nothing for nothing.
    pub(crate) fn cell(self) -> String {
        if self.credits == 0 { "0".to_owned() } else { self.to_string() }
    }
}

impl std::fmt::Display for Money {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(&self.text, f)
    }
}

/// An enum's word without the prefix that protobuf wants.
pub(crate) fn word(name: &str, prefix: &str) -> String {
    match name.strip_prefix(prefix) {
        Some("UNSPECIFIED") | None => "UNKNOWN".to_owned(),
        Some(word) => word.to_owned(),
    }
}

/// An instant of the wire as text.
pub(crate) fn time(time: Option<&prost_types::Timestamp>) -> Option<String> {
    time.and_then(duration::instant).map(duration::print_instant)
}

/// How long ago an instant of JSON is, for tables.
pub(crate) fn age(time: Option<&str>, now: jiff::Timestamp) -> String {
    time.and_then(|text| text.parse().ok()).map(|then| duration::print_age(then, now)).unwrap_or_default()
}

/// Text that is left out when empty.
pub(crate) fn filled(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

/// A site as tables name it.
pub(crate) fn short_site(name: &str) -> String {
    name.strip_prefix("sites/").unwrap_or(name).to_owned()
}

/// A number of thousandths as `500m`.
pub(crate) fn milli(value: impl std::fmt::Display) -> String {
    format!("{value}m")
}
