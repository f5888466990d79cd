//! The laws, told from the database alone: every job that a client was told is placed is there with its attempt, lease
//! and hold, and the books balance.

use std::collections::{HashMap, HashSet};

use sluice_ledger::{AccountKey, Books};
use sluice_lifecycle::Rows;
use sluice_lifecycle::model::JobState;
use sluice_store::LoadBounds;
use sluice_types::JobId;

use crate::{server, world};

/// What a database has of jobs that clients were told of.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// Jobs that clients were told of.
    pub(crate) told: usize,
    /// Those that are not there, or not placed.
    pub(crate) lost: usize,
    /// Those without their attempt, lease or hold.
    pub(crate) incomplete: usize,
    /// The books do not balance, or do not hold what the attempts name.
    pub(crate) unbalanced: bool,
}

impl Verdict {
    /// Whether all laws hold.
    pub(crate) const fn holds(&self) -> bool {
        self.told > 0 && self.lost == 0 && self.incomplete == 0 && !self.unbalanced
    }
}

/// Reads a database that nobody writes to any more.
pub(crate) async fn read(url: &str) -> anyhow::Result<Rows> {
    let store = sluice_store::open(url).await?;
    let rows = store.load(LoadBounds::at(server::now())).await?.rows;
    store.close().await;
    Ok(rows)
}

/// Judges `rows` by what clients were told.
pub(crate) fn judge(rows: &Rows, told: &[JobId]) -> Verdict {
    let told: HashSet<_> = told.iter().copied().collect();
    let jobs: HashMap<_, _> = rows.jobs.iter().map(|row| (row.id, row)).collect();
    let attempts: HashMap<_, _> = rows.attempts.iter().map(|row| (row.id, row)).collect();
    let leases: HashSet<_> = rows.leases.iter().map(|row| (row.id, row.attempt)).collect();
    let holds: HashMap<_, _> = rows.holds.iter().map(|row| (row.id, row.remaining)).collect();
    let mut verdict = Verdict { told: told.len(), ..Verdict::default() };
    for id in &told {
        let Some(job) = jobs.get(id).filter(|job| job.state == JobState::Starting) else {
            verdict.lost += 1;
            continue;
        };
        let attempt = job.current.and_then(|id| attempts.get(&id)).filter(|row| row.job == *id);
        let whole = attempt.is_some_and(|row| {
            let leased = row.tasks.iter().all(|task| leases.contains(&(task.lease, row.id)));
            leased && !row.tasks.is_empty() && holds.get(&row.funds).is_some_and(|held| *held > 0)
        });
        verdict.incomplete += usize::from(!whole);
    }
    let promised: i64 = rows.attempts.iter().filter_map(|row| holds.get(&row.funds)).sum();
    let books = Books::from_rows(rows.accounts.clone(), rows.holds.clone());
    let pending = books.account(&AccountKey::Funds(world::TENANT)).debits_pending;
    verdict.unbalanced = books.audit().is_err() || pending != promised;
    verdict
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bare::Rehearsal;

    /// Rows as a controller writes them, and the jobs in them.
    fn placed() -> (Rows, Vec<JobId>) {
        let furnished = world::rows(4, server::now());
        let snapshot = sluice_lifecycle::Snapshot { rows: furnished.clone(), last_id: 1 << 20, last_event: 0 };
        let mut rows = Rehearsal::new(snapshot).group(8).unwrap();
        // As the database would give them back: of each account the newest row.
        let newest: HashMap<_, _> =
            furnished.accounts.into_iter().chain(rows.accounts).map(|row| (row.key.clone(), row)).collect();
        rows.accounts = newest.into_values().collect();
        let newest: HashMap<_, _> = rows.jobs.into_iter().map(|row| (row.id, row)).collect();
        rows.jobs = newest.into_values().collect();
        let told = rows.jobs.iter().map(|row| row.id).collect();
        (rows, told)
    }

    #[test]
    fn whole_rows_hold_and_each_missing_one_is_noticed() {
        let (rows, told) = placed();
        assert_eq!(judge(&rows, &told), Verdict { told: 8, ..Verdict::default() });
        let without = |change: fn(&mut Rows)| {
            let mut rows = rows.clone();
            change(&mut rows);
            judge(&rows, &told)
        };
        assert_eq!(without(|rows| drop(rows.jobs.pop())).lost, 1);
        assert_eq!(without(|rows| rows.jobs[0].state = JobState::Pending).lost, 1);
        assert_eq!(without(|rows| drop(rows.attempts.pop())).incomplete, 1);
        assert_eq!(without(|rows| drop(rows.leases.pop())).incomplete, 1);
        let verdict = without(|rows| drop(rows.holds.pop()));
        assert!(verdict.incomplete == 1 && verdict.unbalanced);
        assert!(without(|rows| rows.accounts[0].debits_posted += 1).unbalanced);
    }
}
