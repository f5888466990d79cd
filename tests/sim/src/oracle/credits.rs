//! Credits: exactly the windows of work that was done again after a loss, and of preparations that the platform wanted
//! or that came before a rental could be worked in.

use std::collections::BTreeMap;

use sluice_types::{AttemptId, JobId, LeaseId};

use super::{Launch, Oracle, Part};

impl Oracle {
    /// From which window on the work of `lease` was done again, if any of it was.
    fn replayed_from(&self, lease: LeaseId, later: &[&Launch]) -> Option<u64> {
        let generation = self.generation_of(lease);
        let resumed = later.iter().filter(|launch| launch.generation > generation);
        let points = resumed.filter_map(|launch| {
            let part = launch.resume.and_then(|(manifest, _)| self.parts.get(&manifest));
            match part {
                None => Some(0),
                Some(part) if part.generation < generation => Some(0),
                Some(part) if part.generation > generation => None,
                // It goes on where it stopped well: nothing is done again because of the platform.
                Some(part) if !self.was_fenced(part.attempt) && self.is_newest(part) => None,
                Some(part) => {
                    let own = self.parts.values().find(|other| other.lease == lease && other.step == part.step);
                    Some(own.map_or(0, |own| own.next_window))
                }
            }
        });
        points.min()
    }

    /// No later state of the same attempt was ever sealed.
    fn is_newest(&self, part: &Part) -> bool {
        !self.parts.values().any(|other| other.lease == part.lease && other.step > part.step)
    }

    /// At the end: credits against replayed windows.
    pub(crate) fn check_credits(&mut self, now: u64) {
        let mut launches: BTreeMap<JobId, Vec<&Launch>> = BTreeMap::new();
        for launch in self.launches.values().filter(|launch| launch.rank == 0) {
            launches.entry(launch.job).or_default().push(launch);
        }
        let mut wrong = Vec::new();
        let mut uncollected = 0;
        for (lease, bill) in &self.bills {
            let later = launches.get(&bill.row.job).map_or(&[][..], Vec::as_slice);
            // What a replica has served is not done again.
            let replica = self.serving.jobs.contains(&bill.row.job);
            let lost = !replica && self.was_lost(bill.key.attempt);
            let from = if lost { self.replayed_from(*lease, later) } else { None };
            let placed_later = self.was_placed_later(bill.row.job, bill.key.attempt);
            let started = bill.row.started;
            for (sequence, window) in &bill.windows {
                let replayed = from.is_some_and(|from| *sequence >= from);
                let free = bill.row.free_preparation || self.rents.contains_key(&bill.row.job);
                let prepared = free && started.is_none_or(|started| window.end <= started);
                let wanted = if replayed || prepared { window.posted } else { 0 };
                uncollected += i64::try_from(window.due - window.posted).unwrap_or(0);
                // Work lost without ever being done again: the system credits it at the loss, which nobody can judge
                // by replays.
                let open = lost && !prepared && (from.is_none() || placed_later) && !replayed;
                if window.credited != wanted && !open {
                    wrong.push(format!(
                        "window {lease}/{sequence} of {}, {}, cost {}: {} credited, {wanted} expected (replayed {from:?}, resumes {:?})",
                        bill.key.attempt, bill.row.job, window.posted, window.credited, later.iter().map(|launch| (launch.attempt, launch.resume.map(|resume| resume.1))).collect::<Vec<_>>()
                    ));
                }
            }
        }
        self.uncollected += uncollected;
        wrong.into_iter().for_each(|what| self.fail(now, what));
    }

    /// A later attempt was placed and never started: what its checkpoint lacks was credited, and not done again by it.
    fn was_placed_later(&self, job: JobId, attempt: AttemptId) -> bool {
        let Some(mine) = self.attempts.get(&attempt) else { return false };
        let launched = |id: &AttemptId| self.launches.values().any(|launch| launch.attempt == *id);
        self.attempts.values().any(|row| row.job == job && row.generation > mine.generation && !launched(&row.id))
    }
}
