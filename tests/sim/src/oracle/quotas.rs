//! Quotas: what is held is what leases of live attempts take, placements stay within it, a lowered limit stops the newest
//! work that it does not cover and no other, and what was stopped for it resumes when it is covered again.
//!
//! Kept apart from how the system counts: added up from leases anew with every commit that changes an attempt.

use std::collections::{BTreeMap, BTreeSet};

use sluice_ledger::{AccountKey, QuotaKey, QuotaLimits};
use sluice_lifecycle::model::{Attempt, AttemptState, Goal, Job, JobKind, JobState, QuotaPolicy, StopCause};
use sluice_lifecycle::{Answer, Command, Refusal, Rows, SetQuota, UserCommand};
use sluice_types::{AttemptId, DeviceClassName, Generation, JobId, Reason, SiteId, TaskResources, TenantId};

use super::Oracle;
use crate::cluster::DEVICE_MEMORY;
use crate::params::MINUTE;

/// A job is not stopped for want of quota more often than so within this time.
const STOPS_OF_LATE: usize = 4;
const OF_LATE: u64 = 30 * MINUTE;

/// What a live attempt takes.
#[derive(Debug, Clone)]
struct Holder {
    job: JobId,
    tenant: TenantId,
    site: SiteId,
    class: DeviceClassName,
    milli: i64,
    firm: bool,
}

/// Whose, where and of what: `None` = over all sites.
type Place = (TenantId, Option<SiteId>, DeviceClassName);

/// All of it, and what may not borrow.
type Used = BTreeMap<Place, (i64, i64)>;

/// What is known of quotas.
#[derive(Debug, Default)]
pub(crate) struct Quotas {
    limits: BTreeMap<QuotaKey, QuotaLimits>,
    policies: BTreeMap<QuotaKey, QuotaPolicy>,
    live: BTreeMap<AttemptId, Holder>,
    owners: BTreeMap<JobId, Option<AttemptId>>,
    /// Jobs that may not borrow.
    firm: BTreeSet<JobId>,
    /// Attempts that were told to stop, and go on no more.
    leaving: BTreeSet<AttemptId>,
    /// Set in this commit.
    set: Vec<SetQuota>,
    /// How many quotas changed in it.
    moved: usize,
    /// It has a tick, which calls back what is lent, wherever that is.
    ticked: bool,
    /// How many attempts were stopped for want of quota.
    pub(crate) stopped: usize,
    /// How many jobs resumed by themselves after it.
    pub(crate) resumed: usize,
    reclaimed: BTreeSet<JobId>,
    /// What all of them take, since the last commit.
    taken: Used,
    /// When jobs were told to stop for want of quota, of late.
    stops: BTreeMap<JobId, Vec<(u64, Generation)>>,
}

/// What a task takes of a quota on a device of a class, from its definition.
pub(crate) fn taken(wanted: &TaskResources) -> i64 {
    let (mut milli, mut bytes) = (u64::from(wanted.milli.get()), wanted.memory.get());
    if wanted.class.as_str() == "cpu" {
        // A device of the day's cpu hosts has a thousand thousandths of a core.
        milli += u64::from(wanted.host_cores.get());
        bytes += wanted.host_memory.get();
    }
    let share = (u128::from(bytes) * 1000).div_ceil(u128::from(DEVICE_MEMORY)).min(1000);
    i64::try_from(u128::from(milli).max(share)).unwrap_or(i64::MAX)
}

/// What was bought, and what serves others, borrows nothing.
fn is_firm(job: &Job) -> bool {
    matches!(job.spec.kind, JobKind::Rental | JobKind::Replica)
}

impl Quotas {
    fn used(&self, but: &BTreeSet<AttemptId>) -> Used {
        let mut used = Used::new();
        for (id, holder) in self.live.iter().filter(|(id, _)| !but.contains(*id)) {
            let owns = self.owners.get(&holder.job).is_some_and(|owner| *owner == Some(*id));
            for place in [Some(Some(holder.site)), owns.then_some(None)].into_iter().flatten() {
                let sum = used.entry((holder.tenant, place, holder.class.clone())).or_default();
                *sum = (sum.0 + holder.milli, sum.1 + if holder.firm { holder.milli } else { 0 });
            }
        }
        used
    }

    fn limits(&self, (tenant, site, class): &Place) -> Option<QuotaLimits> {
        self.limits.get(&QuotaKey { tenant: *tenant, site: *site, class: class.clone() }).copied()
    }

    fn is_cohort(&self, site: SiteId, class: &DeviceClassName) -> bool {
        self.limits.keys().any(|key| key.site == Some(site) && key.class == *class)
    }

    fn lendable(&self, site: SiteId, class: &DeviceClassName) -> i64 {
        let of = self.limits.iter().filter(|(key, _)| key.site == Some(site) && key.class == *class);
        of.map(|(_, limits)| limits.lend).sum()
    }

    fn drawn(&self, used: &Used, place: &Place) -> i64 {
        let limits = self.limits(place).unwrap_or_default();
        (used.get(place).map_or(0, |sum| sum.0) - (limits.nominal - limits.lend)).max(0)
    }

    fn pooled(&self, used: &Used, site: SiteId, class: &DeviceClassName) -> i64 {
        let here = used.keys().filter(|(_, place, known)| *place == Some(site) && known == class);
        here.map(|place| self.drawn(used, place)).sum()
    }

    /// Whether what a job wants at a site is its tenant's own and lent to others; then, whether it would be free if all that is
    /// borrowed there, and may be stopped, were given back.
    pub(crate) fn lent_could_be_given(&self, job: &Job, site: SiteId, milli: i64) -> Option<bool> {
        let class = &job.spec.resources.class;
        let here = (job.tenant, Some(site), class.clone());
        let limits = self.limits(&here)?;
        let mut used = self.taken.clone();
        used.entry(here.clone()).or_default().0 += milli;
        let is_own = used.get(&here).is_some_and(|sum| sum.0 <= limits.nominal);
        if !is_own || self.pooled(&used, site, class) <= self.lendable(site, class) {
            return None;
        }
        for (place, (total, firm)) in used.iter_mut().filter(|((_, at, known), _)| *at == Some(site) && known == class)
        {
            let nominal = self.limits(place).unwrap_or_default().nominal;
            *total = (*total).min(nominal.max(*firm));
        }
        Some(self.pooled(&used, site, class) <= self.lendable(site, class))
    }

    /// Whether a job may take so much more at a site.
    pub(crate) fn cover(&self, job: &Job, site: SiteId, milli: i64) -> bool {
        let (class, firm) = (&job.spec.resources.class, is_firm(job));
        let used = &self.taken;
        let all = (job.tenant, None, class.clone());
        let held = |used: &Used, place: &Place| used.get(place).copied().unwrap_or_default();
        if self.limits(&all).is_some_and(|limits| held(used, &all).0 + milli > limits.nominal) {
            return false;
        }
        if !self.is_cohort(site, class) {
            return true;
        }
        let here = (job.tenant, Some(site), class.clone());
        let Some(limits) = self.limits(&here) else { return false };
        let before = held(used, &here);
        let within =
            before.0 + milli <= limits.nominal + limits.borrow && (!firm || before.1 + milli <= limits.nominal);
        let drawn = self.drawn(used, &here);
        let mut used = used.clone();
        used.entry(here.clone()).or_default().0 += milli;
        within && (self.drawn(&used, &here) == drawn || self.pooled(&used, site, class) <= self.lendable(site, class))
    }
}

impl Oracle {
    /// What was set, by whom it was heard.
    pub(super) fn heed_quota(&mut self, command: &Command, answer: &Result<Answer, Refusal>) {
        self.quotas.ticked |= matches!(command, Command::Tick);
        let Command::User(_, command) = command else { return };
        if answer.as_ref().is_ok_and(|answer| answer.replayed) || answer.is_err() {
            return;
        }
        match command {
            UserCommand::SetQuota(set) => {
                self.quotas.limits.insert(set.key.clone(), set.limits);
                self.quotas.policies.insert(set.key.clone(), set.policy);
                self.quotas.set.push(set.clone());
                self.quotas.moved += 1;
            }
            UserCommand::DeleteQuota(key, _) => {
                self.quotas.limits.remove(key);
                self.quotas.moved += 1;
                // Where others share the class out, it is as if it were set to nothing.
                let policy = self.quotas.policies.remove(key);
                if let (Some(policy), Some(site)) = (policy, key.site)
                    && self.quotas.is_cohort(site, &key.class)
                {
                    let limits = QuotaLimits::default();
                    self.quotas.set.push(SetQuota { key: key.clone(), limits, policy, version: None });
                }
            }
            _ => {}
        }
    }

    /// After each commit, when its attempts and leases are known.
    pub(super) fn check_quotas(&mut self, now: u64, rows: &Rows) {
        let (set, changed) = (std::mem::take(&mut self.quotas.set), std::mem::take(&mut self.quotas.moved));
        let ticked = std::mem::take(&mut self.quotas.ticked);
        let moved = changed > 0;
        self.note_reclaimed(now, rows);
        if rows.attempts.is_empty() && rows.jobs.is_empty() && !moved {
            return;
        }
        let before = std::mem::take(&mut self.quotas.taken);
        let owners = self.quotas.owners.clone();
        for job in &rows.jobs {
            self.quotas.owners.insert(job.id, job.current);
            if is_firm(job) {
                self.quotas.firm.insert(job.id);
            }
        }
        let mut placed = Vec::new();
        for attempt in &rows.attempts {
            if attempt.state == AttemptState::Ended {
                self.quotas.live.remove(&attempt.id);
                self.quotas.leaving.remove(&attempt.id);
            } else if !self.quotas.live.contains_key(&attempt.id)
                && let Some(holder) = self.holder(attempt)
            {
                self.quotas.live.insert(attempt.id, holder);
                placed.push(attempt.id);
            }
        }
        let used = self.quotas.used(&BTreeSet::new());
        self.check_held(now, rows, &used, moved);
        let taken_over = rows
            .jobs
            .iter()
            .any(|job| job.current.is_some_and(|id| !placed.contains(&id) && owners.get(&job.id) != Some(&Some(id))));
        if !moved {
            self.check_within(now, &placed, &before, &used, taken_over);
        }
        let (told, left_before) = self.check_stopped(now, rows, &before, &used, changed);
        if let ([only], 1) = (&set[..], changed) {
            let told = if ticked { BTreeSet::new() } else { told };
            let ended = rows.attempts.iter().any(|row| row.state == AttemptState::Ended);
            self.check_drained(now, only, &told, (!ended).then_some(left_before));
        }
        self.quotas.taken = used;
    }

    fn holder(&self, attempt: &Attempt) -> Option<Holder> {
        let leases = attempt.tasks.iter().filter_map(|task| self.bills.get(&task.lease)).map(|bill| &bill.row);
        let first = leases.clone().next()?;
        Some(Holder {
            job: attempt.job,
            tenant: first.tenant,
            site: attempt.site,
            class: first.resources.class.clone(),
            milli: leases.map(|lease| taken(&lease.resources)).sum(),
            firm: self.quotas.firm.contains(&attempt.job),
        })
    }

    /// The ledger holds what is used, and lines stand at the limits, or at what is held where that is more.
    fn check_held(&mut self, now: u64, rows: &Rows, used: &Used, moved: bool) {
        let written = rows.accounts.iter().any(|row| row.key.unit() == sluice_ledger::Unit::Quota);
        if !(written || moved || !rows.attempts.is_empty()) {
            return;
        }
        let keys: Vec<_> = self.quotas.limits.iter().map(|(key, limits)| (key.clone(), *limits)).collect();
        let mut wrong = Vec::new();
        for (key, limits) in keys {
            let place = (key.tenant, key.site, key.class.clone());
            let (total, firm) = used.get(&place).copied().unwrap_or_default();
            let mut wanted = vec![(
                AccountKey::Entitled(key.tenant, key.site, key.class.clone()),
                total,
                limits.nominal + limits.borrow,
            )];
            if let Some(site) = key.site {
                wanted.push((AccountKey::Firm(key.tenant, site, key.class.clone()), firm, limits.nominal));
                let (pooled, lendable) =
                    (self.quotas.pooled(used, site, &key.class), self.quotas.lendable(site, &key.class));
                wanted.push((AccountKey::Pool(site, key.class), pooled, lendable));
            }
            for (account, held, limit) in wanted {
                let told = self.ledger.standing(&account);
                if told != (held.into(), limit.max(held).into()) {
                    wrong.push(format!("{account} holds and allows {told:?}, its leases take {held} of {limit}"));
                }
            }
        }
        wrong.into_iter().for_each(|what| self.fail(now, what));
    }

    /// Who was placed is within its quota, and draws from the pool what is lent only.
    fn check_within(&mut self, now: u64, placed: &[AttemptId], before: &Used, used: &Used, taken_over: bool) {
        for id in placed {
            let Some(holder) = self.quotas.live.get(id).cloned() else { continue };
            let owns = self.quotas.owners.get(&holder.job).is_some_and(|owner| *owner == Some(*id));
            let all = (holder.tenant, None, holder.class.clone());
            let held = |place: &Place| used.get(place).copied().unwrap_or_default();
            if let Some(limits) = self.quotas.limits(&all).filter(|_| owns && !taken_over)
                && held(&all).0 > limits.nominal
            {
                self.fail(
                    now,
                    format!("{} holds {:?} over all sites of {}", holder.tenant, held(&all), limits.nominal),
                );
            }
            if !self.quotas.is_cohort(holder.site, &holder.class) {
                continue;
            }
            let here = (holder.tenant, Some(holder.site), holder.class.clone());
            let limits = self.quotas.limits(&here).unwrap_or_default();
            let (total, firm) = held(&here);
            if total > limits.nominal + limits.borrow || (holder.firm && firm > limits.nominal) {
                self.fail(now, format!("{} holds {total}, {firm} of it firm, under {limits:?}", holder.tenant));
            }
            let pooled = self.quotas.pooled(used, holder.site, &holder.class);
            let lendable = self.quotas.lendable(holder.site, &holder.class);
            if self.quotas.drawn(used, &here) > self.quotas.drawn(before, &here) && pooled > lendable {
                self.fail(now, format!("{pooled} thousandths are drawn at {}, {lendable} are lent", holder.site));
            }
        }
    }

    /// Who is stopped for want of quota is a borrower, or beyond a limit, and the newest. Who that is, and what was on its
    /// way out before.
    fn check_stopped(
        &mut self,
        now: u64,
        rows: &Rows,
        before: &Used,
        used: &Used,
        changed: usize,
    ) -> (BTreeSet<AttemptId>, BTreeSet<AttemptId>) {
        let must = |row: &&Attempt| {
            row.state != AttemptState::Ended
                && row.order.is_some_and(|order| order.must || order.kind == StopCause::SuspendForMoney)
        };
        let stops = |row: &&Attempt| row.state != AttemptState::Ended && matches!(row.goal, Goal::Stop | Goal::Release);
        // What has no checkpoints is stopped as it is; its job says why.
        let says = |job: &Job| job.state == JobState::Suspending && job.reason == Some(Reason::QuotaReclaimed);
        let plain: BTreeSet<_> = rows.jobs.iter().filter(|job| says(job)).filter_map(|job| job.current).collect();
        let quota = |row: &&Attempt| match row.order {
            Some(order) => order.kind == StopCause::SuspendForQuota,
            None => plain.contains(&row.id),
        };
        let news: Vec<_> = rows.attempts.iter().filter(|row| must(row) || stops(row)).collect();
        let news: Vec<_> = news.into_iter().filter(|row| !self.quotas.leaving.contains(&row.id)).collect();
        let told: BTreeSet<_> = news.iter().filter(|row| quota(row)).map(|row| row.id).collect();
        let left_before = self.quotas.leaving.clone();
        self.quotas.leaving.extend(news.iter().map(|row| row.id));
        self.quotas.stopped += told.len();
        for id in &told {
            let Some(holder) = self.quotas.live.get(id).cloned() else { continue };
            let nominal = |site| self.quotas.limits(&(holder.tenant, site, holder.class.clone()));
            // A commit is of several commands: what ended in it, or begins in it, counted when this was stopped, or not.
            let total = |site| {
                let place = (holder.tenant, site, holder.class.clone());
                [before, used].map(|used| used.get(&place).map_or(0, |sum| sum.0)).into_iter().fold(0, i64::max)
            };
            let here = Some(holder.site);
            let cohort = self.quotas.is_cohort(holder.site, &holder.class);
            let borrows = cohort && total(here) > nominal(here).unwrap_or_default().nominal;
            let over = nominal(None).is_some_and(|limits| total(None) > limits.nominal);
            // Of several quotas that were set in one commit only the last state is seen here.
            if holder.firm || (changed < 2 && !(borrows || over)) {
                self.fail(now, format!("{id} is stopped for want of quota and borrows nothing"));
            }
            let newer = self.quotas.live.iter().filter(|(other, row)| {
                *other > id
                    && (row.tenant, &row.class, row.firm) == (holder.tenant, &holder.class, false)
                    && (over || row.site == holder.site)
            });
            let stays: Vec<_> = newer.map(|(other, _)| *other).filter(|id| !self.quotas.leaving.contains(id)).collect();
            if !over && !stays.is_empty() {
                self.fail(now, format!("{id} is stopped for want of quota, and newer {stays:?} are not"));
            }
        }
        (told, left_before)
    }

    /// Lowered with the policy to drain, limits hold for what is left; and without the oldest that was stopped they would not.
    /// `left_before` is what was on its way out before this commit, where nothing ended in it.
    fn check_drained(
        &mut self,
        now: u64,
        set: &SetQuota,
        told: &BTreeSet<AttemptId>,
        left_before: Option<BTreeSet<AttemptId>>,
    ) {
        if set.policy == QuotaPolicy::Refuse {
            if let Some(id) = told.first() {
                self.fail(now, format!("{id} is stopped by a quota that stops nothing"));
            }
            return;
        }
        let place = (set.key.tenant, set.key.site, set.key.class.clone());
        let left = self.quotas.used(&self.quotas.leaving);
        let (total, firm) = left.get(&place).copied().unwrap_or_default();
        let most = set.limits.nominal + set.limits.borrow;
        // What is never stopped may be more, where it began before the class was shared out there.
        if total > most.max(firm) {
            self.fail(now, format!("{} still means to hold {total} of {most}", set.key.tenant));
        }
        let (Some(site), Some(oldest)) = (set.key.site, told.first()) else { return };
        let Some(mut but) = left_before else { return };
        // What else was told to go in this commit may have been behind the quota.
        but.extend(told.iter().filter(|id| *id != oldest));
        let with = self.quotas.used(&but);
        let over = with.get(&place).map_or(0, |sum| sum.0) > most
            || self.quotas.pooled(&with, site, &set.key.class) > self.quotas.lendable(site, &set.key.class);
        if !over {
            self.fail(now, format!("{oldest} is stopped although the quota would cover it"));
        }
    }

    /// Who is stopped for want of quota and resumes, does not do so again and again: then it is stopped for somebody who
    /// does not take what it leaves.
    fn note_reclaimed(&mut self, now: u64, rows: &Rows) {
        for job in &rows.jobs {
            if job.state == JobState::Suspending && job.reason == Some(Reason::QuotaReclaimed) {
                let stops = self.quotas.stops.entry(job.id).or_default();
                // Each time it is stopped is one generation.
                stops.retain(|(at, generation)| now - at < OF_LATE && *generation != job.generation);
                stops.push((now, job.generation));
                if stops.len() > STOPS_OF_LATE {
                    let times = stops.len();
                    self.fail(now, format!("{} was stopped for want of quota {times} times of late", job.id));
                }
            }
            let reclaimed = job.state == JobState::Suspended && job.reason == Some(Reason::QuotaReclaimed);
            match reclaimed {
                true => drop(self.quotas.reclaimed.insert(job.id)),
                false => {
                    let back = self.quotas.reclaimed.remove(&job.id) && job.message == "its quota covers it again";
                    self.quotas.resumed += usize::from(back);
                }
            }
        }
    }
}
