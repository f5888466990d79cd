//! Orders and their legs.

use sluice_lifecycle::Refusal;
use sluice_lifecycle::model::{Job, JobSpec, JobState, Order};
use sluice_types::{Nanos, Reason};

use super::spec::{SiteNames, job_spec, job_spec_back};
use super::{duration, duration_back, timestamp};
use crate::v1;

/// Rentals go before jobs of the same tenant that wait: they are bought to begin now.
const PRIORITY: i32 = 100;
/// How often home folders are captured where nobody says it.
const CAPTURE_EVERY: Nanos = Nanos::from_secs(300);

/// What the job of a leg is to be.
///
/// # Errors
/// A [`Refusal`] with the field's path in the order.
pub fn leg_spec(leg: v1::Leg, sites: &impl SiteNames) -> Result<JobSpec, Refusal> {
    let every = match &leg.capture_every {
        None => CAPTURE_EVERY,
        Some(span) => duration_back("legs.capture_every", span)?,
    };
    let policy = v1::CheckpointPolicy {
        capture: Some(v1::checkpoint_policy::Capture::Home(v1::HomeFolder {})),
        every: (every != Nanos::ZERO).then(|| duration(every)),
        ..v1::CheckpointPolicy::default()
    };
    let spec = v1::JobSpec {
        checkpoint: Some(policy),
        tasks: leg.count,
        resources: leg.resources,
        priority: PRIORITY,
        max_run_time: leg.duration,
        network: leg.network,
        sites: leg.sites,
        kind: v1::JobKind::Rental.into(),
        ..v1::JobSpec::default()
    };
    job_spec(spec, sites).map_err(of_leg)
}

/// A refusal of a leg's job in the words of the order.
#[must_use]
pub fn of_leg(refusal: Refusal) -> Refusal {
    let field = refusal.field.map(|field| match field.as_str() {
        "spec.tasks" => "legs.count".to_owned(),
        "spec.max_run_time" => "legs.duration".to_owned(),
        "spec.checkpoint.every" => "legs.capture_every".to_owned(),
        other => other.strip_prefix("spec.").map_or_else(|| other.to_owned(), |rest| format!("legs.{rest}")),
    });
    Refusal { field, ..refusal }
}

/// The job of a leg back as what was asked.
fn leg_back(job: &Job, parent: &str, sites: &impl SiteNames) -> v1::Leg {
    let spec = job_spec_back(&job.spec, sites);
    let home = job.purchase.and_then(|purchase| purchase.home);
    let begins_at = job.purchase.and_then(|purchase| purchase.begins_at);
    v1::Leg {
        home: home.map(|order| format!("{parent}/orders/{order}")).unwrap_or_default(),
        begin_at: begins_at.map(|site| format!("sites/{}", sites.name(site))).unwrap_or_default(),
        capture_every: spec.checkpoint.map(|policy| policy.every.unwrap_or_default()),
        count: spec.tasks,
        resources: spec.resources,
        duration: spec.max_run_time,
        sites: spec.sites,
        network: spec.network,
    }
}

/// Where an order stands: where the job of its leg does.
#[must_use]
pub const fn order_state(job: &Job) -> v1::OrderState {
    let placed_before = job.attempts > 0;
    match job.state {
        JobState::Pending if placed_before => v1::OrderState::Waiting,
        JobState::Pending | JobState::Starting => v1::OrderState::Starting,
        JobState::Running | JobState::Migrating | JobState::Suspending => v1::OrderState::Active,
        JobState::Suspended => v1::OrderState::Waiting,
        JobState::Cancelling => v1::OrderState::Releasing,
        JobState::Succeeded if matches!(job.reason, Some(Reason::RunLimit)) => v1::OrderState::Expired,
        JobState::Succeeded | JobState::Cancelled => v1::OrderState::Released,
        JobState::Failed if placed_before => v1::OrderState::Failed,
        JobState::Failed => v1::OrderState::Refused,
    }
}

/// An order for the wire. `legs` are the rows of its legs' jobs with what the API shows of each.
#[must_use]
pub fn order(row: &Order, parent: &str, legs: &[(Job, v1::Job)], sites: &impl SiteNames) -> v1::Order {
    let spent = |shown: &v1::Job| shown.spent_credits.saturating_sub(shown.credited_credits);
    let sum =
        |amount: &dyn Fn(&v1::Job) -> i64| legs.iter().fold(0i64, |sum, (_, shown)| sum.saturating_add(amount(shown)));
    let first = legs.first();
    let shown = legs.iter().map(|(job, shown)| v1::OrderLeg {
        leg: Some(leg_back(job, parent, sites)),
        job: shown.name.clone(),
        site: shown.site.clone(),
        used: Some(duration(job.run_time)),
    });
    v1::Order {
        name: format!("{parent}/orders/{}", row.id),
        display_name: row.name.to_string(),
        legs: shown.collect(),
        state: first.map_or(v1::OrderState::Unspecified, |(job, _)| order_state(job)).into(),
        reason: first.map(|(_, shown)| shown.reason.clone()).unwrap_or_default(),
        message: first.map(|(_, shown)| shown.message.clone()).unwrap_or_default(),
        ceiling_credits: sum(&|shown| spent(shown).saturating_add(shown.held_credits)),
        spent_credits: sum(&spent),
        hourly_credits: sum(&|shown| shown.hourly_credits),
        create_time: Some(timestamp(row.created)),
        end_time: first.and_then(|(_, shown)| shown.end_time),
    }
}
