//! Rentals: one that was acknowledged is on disk with its order; one whose time is over had all of it and no more; none costs
//! more than was agreed. That none waits for a first place is a law of `liveness`.

use std::collections::{BTreeMap, BTreeSet};

use sluice_lifecycle::model::{JobKind, JobState};
use sluice_lifecycle::{Answer, Command, Refusal, Rows, UserCommand};
use sluice_types::{JobId, OrderId};

use super::{Launch, Oracle};
use crate::params::SECOND;
use crate::store::Store;
use crate::trace::clock;

/// How much longer or shorter than its time a sandbox may live: clocks of hosts drift by at most 200 millionths.
const DRIFT: u64 = 2 * SECOND;

/// What was bought.
#[derive(Debug, Clone)]
pub(crate) struct Rent {
    /// What it may cost at most, in credits.
    limit: Option<i128>,
    /// For how long, in nanoseconds.
    span: Option<u64>,
}

impl Oracle {
    /// An order that was accepted.
    pub(super) fn heed_order(&mut self, command: &Command, answer: &Result<Answer, Refusal>) {
        if let Command::User(_, UserCommand::CreateOrder { legs, limit, .. }) = command
            && let Ok(answer) = answer
            && let Some(job) = answer.job.as_ref().filter(|_| !answer.replayed)
        {
            let span = legs.first().and_then(|leg| leg.max_run_time).map(sluice_types::Nanos::get);
            self.rents.insert(job.id, Rent { limit: limit.map(|limit| i128::from(limit.units())), span });
        }
    }

    /// The client has heard of it.
    pub(crate) fn ordered(&mut self, order: OrderId) {
        self.orders.insert(order);
    }

    /// Rentals of which a sandbox was started.
    pub(crate) fn rents_begun(&self) -> usize {
        let jobs = self.launches.values().map(|launch| launch.job);
        jobs.filter(|job| self.rents.contains_key(job)).collect::<BTreeSet<_>>().len()
    }

    /// No commit takes more for a rental than was agreed, credits counted.
    pub(super) fn check_prices(&mut self, now: u64, rows: &Rows) {
        let leases = rows.windows.iter().filter_map(|row| self.bills.get(&row.lease));
        let mut jobs: Vec<JobId> = leases.map(|bill| bill.row.job).collect();
        jobs.sort();
        jobs.dedup();
        for job in jobs {
            let Some(limit) = self.rents.get(&job).and_then(|rent| rent.limit) else { continue };
            let windows = self.bills.values().filter(|bill| bill.row.job == job).flat_map(|bill| bill.windows.values());
            let paid: i128 = windows.map(|window| window.posted - window.credited).sum();
            if paid > limit {
                self.fail(now, format!("{job} has cost {paid} and may cost {limit}"));
            }
        }
    }

    /// At the end of the day.
    pub(super) fn check_rents(&mut self, now: u64, store: &Store) {
        for order in self.orders.iter().filter(|order| !store.orders.contains_key(order)).copied().collect::<Vec<_>>() {
            self.fail(now, format!("{order} was acknowledged and is lost"));
        }
        let mut by_job: BTreeMap<JobId, Vec<&Launch>> = BTreeMap::new();
        for launch in self.launches.values().filter(|launch| launch.rank == 0) {
            by_job.entry(launch.job).or_default().push(launch);
        }
        let mut faults = Vec::new();
        for job in store.jobs.values().filter(|job| job.spec.kind == JobKind::Rental) {
            let Some(span) = self.rents.get(&job.id).and_then(|rent| rent.span) else { continue };
            let launches = by_job.get(&job.id).map_or(&[][..], Vec::as_slice);
            let lived = |launch: &Launch| launch.ended.unwrap_or(now) - launch.at;
            if let Some(long) = launches.iter().find(|launch| lived(launch) > span + DRIFT) {
                faults.push(format!("{} lived from {} for {}", long.attempt, clock(long.at), clock(lived(long))));
            }
            let all: u64 = launches.iter().map(|launch| lived(launch)).sum();
            if job.state == JobState::Succeeded {
                self.expired += 1;
                if all + DRIFT < span {
                    faults.push(format!("{} is over after {} of {}", job.id, clock(all), clock(span)));
                }
            }
        }
        faults.into_iter().for_each(|fault| self.fail(now, fault));
    }
}
