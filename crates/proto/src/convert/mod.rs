//! Between the wire and the pure rooms. Everything that comes in is checked here; nothing panics on it.

mod fleet;
mod jobs;
mod money;
mod node;
mod orders;
mod serving;
mod spec;

pub use fleet::{device_class, device_view, node as node_view, site as site_view};
pub use jobs::{JobParts, checkpoint, event, job, migration, state as job_state};
pub use money::{QuotaStanding, balance, budget, price, price_back, prices, quota, transfer, window};
pub use node::{Assignment, assignment, node_report, task_key, task_key_back};
pub use orders::{leg_spec, of_leg, order, order_state};
pub use serving::{endpoint, inference_request, model, replica_bounds, token_price};
pub use spec::{
    SiteNames, blob_ref, isolation, isolation_back, job_spec, job_spec_back, network, network_back, resources_back,
    task_resources,
};

use sluice_lifecycle::Refusal;
use sluice_types::{Nanos, Reason, Timestamp};

/// Wall time on the wire.
#[must_use]
pub fn timestamp(at: Timestamp) -> prost_types::Timestamp {
    let seconds = i64::try_from(at.nanos() / 1_000_000_000).unwrap_or(i64::MAX);
    let nanos = i32::try_from(at.nanos() % 1_000_000_000).unwrap_or(0);
    prost_types::Timestamp { seconds, nanos }
}

/// A duration on the wire.
#[must_use]
pub fn duration(span: Nanos) -> prost_types::Duration {
    let seconds = i64::try_from(span.get() / 1_000_000_000).unwrap_or(i64::MAX);
    let nanos = i32::try_from(span.get() % 1_000_000_000).unwrap_or(0);
    prost_types::Duration { seconds, nanos }
}

/// A duration from the wire: not negative, and within the range of nanoseconds.
///
/// # Errors
/// A [`Refusal`] that names `field`.
pub fn duration_back(field: &str, span: &prost_types::Duration) -> Result<Nanos, Refusal> {
    let wrong = || Refusal::field(field, "a duration is 0 to 292 years, with 0 to 999999999 nanoseconds");
    let seconds = u64::try_from(span.seconds).map_err(|_| wrong())?;
    let nanos = u64::try_from(span.nanos).ok().filter(|nanos| *nanos < 1_000_000_000).ok_or_else(wrong)?;
    seconds.checked_mul(1_000_000_000).and_then(|total| total.checked_add(nanos)).map(Nanos::new).ok_or_else(wrong)
}

/// Parses a text field.
///
/// # Errors
/// A [`Refusal`] that names `field`.
pub fn parse<T: std::str::FromStr>(field: &str, text: &str) -> Result<T, Refusal>
where
    T::Err: std::fmt::Display,
{
    if text.is_empty() {
        return Err(missing(field));
    }
    text.parse().map_err(|error: T::Err| Refusal::field(field, error.to_string()))
}

/// A field that must be set is not.
#[must_use]
pub fn missing(field: &str) -> Refusal {
    Refusal { field: Some(field.to_owned()), ..Refusal::new(Reason::MissingField, format!("{field} is missing")) }
}
