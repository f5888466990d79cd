//! Quotas: set, lowered, called back, and what the ledger holds of them.
//!
//! What is used follows from attempts (`quotas.rs`); after each change of it the ledger's holds are brought to it, one
//! hold for each bound of a quota: all that the tenant holds, what of it may not borrow, and what it draws from the
//! cohort's pool. A line stands at its limit, or at what is held where that is more: then it comes down with it, so that
//! nothing new is held before.

use std::collections::{BTreeMap, BTreeSet};

use sluice_ledger::{AccountKey, Cohort, CohortKey, QuotaKey, QuotaLevel, QuotaLimits, QuotaUse};
use sluice_types::{AttemptId, HoldId, JobId, Reason, SiteId, Timestamp, TransferId};

use super::Step;
use super::people::bounded;
use crate::command::{Answer, Caller, Refusal, SetQuota};
use crate::model::{AttemptState, Goal, Job, JobState, Quota, QuotaPolicy, StopCause, StopOrder};
use crate::quotas::ask;
use crate::state::Happened;

/// A billion whole devices: more is a slip, and the bound keeps every sum in range.
const MAX_MILLI: i64 = 1_000_000_000_000;
const MAX_QUOTAS: usize = 1_000;
/// Jobs that one tick resumes.
const AT_ONCE: usize = 256;
/// Jobs of one tenant that wait for what it lends, and kinds of jobs of it that were suspended, that one tick looks at: a
/// tenant with many takes no look from others. Those of more take turns.
const PER_TENANT: usize = 32;
/// What becomes of a job that is stopped for want of quota.
const RESUMES: &str = "it resumes by itself when it is covered again; platform admins may raise the quota";

impl Step<'_> {
    pub(super) fn set_quota(&mut self, caller: &Caller, wanted: SetQuota) -> Result<Answer, Refusal> {
        let key = wanted.key.clone();
        self.known_tenant(key.tenant)?;
        if key.site.is_some_and(|site| !self.state.sites.contains(&site)) {
            return Err(Refusal::not_found("site"));
        }
        check_limits(&key, &wanted.limits)?;
        let known = self.known_quota(caller, &key, wanted.version)?;
        if known.is_none() {
            bounded(self.state.quotas_of(key.tenant), MAX_QUOTAS, "quotas of one tenant")?;
        }
        let before = self.state.quotas.cohort(&key.cohort()).cloned();
        let mut after = before.clone().unwrap_or_else(|| self.state.quotas.unlimited(&key.cohort()));
        let overdrawn = after.overdrawn();
        // What is on its way out is no reason to stop less: it is counted neither before nor after.
        let staying = self.staying(&key.cohort()).map_or(overdrawn, |cohort| cohort.overdrawn());
        after.set_limits(key.tenant, Some(wanted.limits));
        self.check_lowered(&key, before.as_ref(), &after, overdrawn, wanted.policy)?;
        let manager = match caller.manager.is_empty() {
            true => known.as_ref().map(|row| row.manager.clone()).unwrap_or_default(),
            false => caller.manager.clone(),
        };
        let row = Quota {
            key: key.clone(),
            limits: wanted.limits,
            policy: wanted.policy,
            manager,
            version: self.id(),
            created: known.map_or(self.now, |row| row.created),
            updated: self.now,
            deleted: false,
        };
        self.state.quotas.set(row);
        self.settle_quota(&key, before.is_none());
        if wanted.policy == QuotaPolicy::Drain {
            self.drain_quota(&key, staying);
        }
        self.resume_reclaimed();
        Ok(Answer { object: self.state.quota_name(&key), ..Answer::default() })
    }

    pub(super) fn delete_quota(
        &mut self,
        caller: &Caller,
        key: &QuotaKey,
        version: Option<u64>,
    ) -> Result<Answer, Refusal> {
        let known = self.known_quota(caller, key, version)?.ok_or_else(|| Refusal::not_found("quota"))?;
        let before = self.state.quotas.cohort(&key.cohort()).cloned().unwrap_or_default();
        let (mut after, overdrawn) = (before.clone(), before.overdrawn());
        let staying = self.staying(&key.cohort()).map_or(overdrawn, |cohort| cohort.overdrawn());
        after.set_limits(key.tenant, None);
        if !after.has_no_limits() {
            self.check_lowered(key, Some(&before), &after, overdrawn, known.policy)?;
        }
        let version = self.id();
        let last = self.state.quotas.dissolve(key);
        let row = Quota { version, updated: self.now, deleted: true, ..known };
        self.state.quotas.rows.insert(key.clone(), row.clone());
        if last {
            before.tenants().for_each(|tenant| self.release_quota(&QuotaKey { tenant, ..key.clone() }));
        } else {
            self.settle_quota(key, false);
            if row.policy == QuotaPolicy::Drain {
                self.drain_quota(key, staying);
            }
        }
        self.resume_reclaimed();
        Ok(Answer { object: self.state.quota_name(key), ..Answer::default() })
    }

    /// The row, if the caller may change it and has read it.
    fn known_quota(&self, caller: &Caller, key: &QuotaKey, version: Option<u64>) -> Result<Option<Quota>, Refusal> {
        let known = self.state.quotas.rows.get(key).filter(|row| !row.deleted).cloned();
        if let Some(row) = &known {
            self.check_manager(caller, &row.manager, &self.state.quota_name(key))?;
        }
        if version.is_some_and(|version| version != known.as_ref().map_or(0, |row| row.version)) {
            return Err(Refusal::new(Reason::EtagMismatch, "the quota changed since you read it"));
        }
        Ok(known)
    }

    /// Whether limits may be lowered like this under a policy.
    fn check_lowered(
        &self,
        key: &QuotaKey,
        before: Option<&Cohort>,
        after: &Cohort,
        overdrawn: i64,
        policy: QuotaPolicy,
    ) -> Result<(), Refusal> {
        let tenant = key.tenant;
        let was =
            |excess: fn(&Cohort, sluice_types::TenantId) -> i64| before.map_or(0, |cohort| excess(cohort, tenant));
        let refuse = |level: QuotaLevel, missing: i64, what: String, next: &str| {
            let message = format!("{what}; {next}");
            Err(self.quota_refusal(Reason::QuotaInUse, key, level, missing, message))
        };
        let firm = after.firm_excess(tenant);
        if firm > was(Cohort::firm_excess) {
            let held = after.used(tenant).firm;
            let what = format!("orders and replicas hold {held}m, {firm}m more than the nominal would be");
            return refuse(QuotaLevel::Nominal, firm, what, "they are never stopped: let them end first");
        }
        if policy == QuotaPolicy::Drain {
            return Ok(());
        }
        let next = "wait, stop work, or lower it with the policy `drain`, which suspends the newest at a checkpoint";
        let excess = after.excess(tenant);
        if excess > was(Cohort::excess) {
            let borrow = after.limits(tenant).unwrap_or_default().borrow;
            let level = if borrow == 0 { QuotaLevel::Nominal } else { QuotaLevel::Limit };
            let what = format!("{}m are in use, {excess}m more than it would allow", after.used(tenant).total);
            return refuse(level, excess, what, next);
        }
        if after.overdrawn() > overdrawn {
            let missing = after.overdrawn() - overdrawn;
            return refuse(QuotaLevel::Pool, missing, format!("{missing}m of what would be lent are borrowed"), next);
        }
        Ok(())
    }

    /// A refusal that names the quota, the level, what is missing and who may change it.
    fn quota_refusal(
        &self,
        reason: Reason,
        key: &QuotaKey,
        level: QuotaLevel,
        missing: i64,
        message: String,
    ) -> Refusal {
        let (name, level) = (self.state.quota_name(key), level.as_str());
        let text = format!("{name}, level {level}, which platform admins may change: {message}");
        Refusal::new(reason, text)
            .with("quota", name)
            .with("level", level)
            .with("missing_milli", missing)
            .with("who", "platform admins")
    }

    /// An attempt holds its quota from here on.
    pub(super) fn hold_quota(&mut self, id: AttemptId) {
        let Some((key, held)) = self.state.attempts.get(&id).and_then(|row| self.state.held(row)) else { return };
        self.state.quotas.begin(id, key.clone(), held);
        self.settle_quota(&key, false);
        self.own_quota(id);
    }

    /// An attempt that owns its job counts over all sites.
    pub(super) fn own_quota(&mut self, id: AttemptId) {
        let Some(row) = self.state.attempts.get(&id).filter(|row| self.owns(row.job, id)) else { return };
        let Some((key, held)) = self.state.held(row) else { return };
        let all = QuotaKey { site: None, ..key };
        self.state.quotas.own(all.clone(), held);
        self.settle_quota(&all, false);
    }

    /// An attempt that ends gives its quota back. It still owns its job, if it did.
    pub(super) fn give_back_quota(&mut self, id: AttemptId) {
        let Some(row) = self.state.attempts.get(&id) else { return };
        let Some((key, held)) = self.state.held(row) else { return };
        let owned = self.owns(row.job, id);
        self.state.quotas.end(id, key.clone(), held);
        self.settle_quota(&key, false);
        if owned {
            let all = QuotaKey { site: None, ..key };
            self.state.quotas.disown(all.clone(), held);
            self.settle_quota(&all, false);
        }
    }

    fn owns(&self, job: JobId, attempt: AttemptId) -> bool {
        self.state.jobs.get(&job).is_some_and(|job| job.current == Some(attempt))
    }

    /// Brings the ledger to what is used of a quota; of a cohort that is new, for all its members.
    fn settle_quota(&mut self, key: &QuotaKey, all: bool) {
        let Some(cohort) = self.state.quotas.cohort(&key.cohort()) else { return };
        let tenants: Vec<_> = if all { cohort.tenants().collect() } else { vec![key.tenant] };
        let member = |tenant| (tenant, cohort.limits(tenant).unwrap_or_default(), cohort.used(tenant));
        let members: Vec<_> = tenants.into_iter().map(member).collect();
        let (lendable, pooled) = (cohort.lendable(), cohort.pooled());
        for (tenant, limits, used) in members {
            let class = key.class.clone();
            let entitled = AccountKey::Entitled(tenant, key.site, class.clone());
            self.settle_hold((entitled, AccountKey::Capacity), used.total, limits.most());
            let Some(site) = key.site else { continue };
            let firm = AccountKey::Firm(tenant, site, class.clone());
            self.settle_hold((firm, AccountKey::Capacity), used.firm, limits.nominal);
            let pool = (AccountKey::Pool(site, class.clone()), AccountKey::PoolShare(tenant, site, class));
            // The line is of all members together.
            let others = pooled - used.pooled(&limits);
            self.settle_hold(pool, used.pooled(&limits), (lendable - others).max(0));
        }
    }

    /// Gives back all that is held of a quota whose cohort is no more.
    fn release_quota(&mut self, key: &QuotaKey) {
        let class = key.class.clone();
        self.settle_hold((AccountKey::Entitled(key.tenant, key.site, class.clone()), AccountKey::Capacity), 0, 0);
        let Some(site) = key.site else { return };
        self.settle_hold((AccountKey::Firm(key.tenant, site, class.clone()), AccountKey::Capacity), 0, 0);
        let share = AccountKey::PoolShare(key.tenant, site, class.clone());
        self.settle_hold((AccountKey::Pool(site, class), share), 0, 0);
    }

    /// Brings one hold to `amount`, and the line of what it is taken from to what others hold of it plus the larger of
    /// `limit` and `amount`.
    fn settle_hold(&mut self, sides: (AccountKey, AccountKey), amount: i64, limit: i64) {
        let hold = self.state.quotas.holds.get(&sides).copied();
        let held = hold.and_then(|id| self.state.books.hold(id)).map_or(0, |row| row.remaining);
        let standing = self.state.books.account(&sides.0);
        let line = standing.debits_pending - held + limit.max(amount);
        if line > standing.line {
            self.move_quota_line(&sides.0, line - standing.line);
        }
        let cause = format!("quota/{}", self.id());
        // Refused only where a sum leaves the ledger's range, which the bounds of quotas keep far away.
        let kept = "invariant: a line is raised before it is used, and no more is given back than is held";
        match hold {
            Some(id) if amount > held => self.extend_hold(id, amount - held, cause).expect(kept),
            Some(id) if amount < held => self.reduce_hold(id, held - amount, cause).expect(kept),
            None if amount > 0 => {
                let id = HoldId::from_raw(self.id());
                self.open_hold(id, sides.clone(), amount, cause).expect(kept);
                self.state.quotas.holds.insert(sides.clone(), id);
            }
            _ => {}
        }
        if line < standing.line {
            self.move_quota_line(&sides.0, line - standing.line);
        }
    }

    fn move_quota_line(&mut self, account: &AccountKey, change: i64) {
        let id = TransferId::from_raw(self.id());
        let cause = format!("quota/line/{id}");
        let entry = self.state.books.move_line(id, account.clone(), change, cause, self.now);
        self.record(entry).expect("invariant: a quota's line is never below what is held");
    }

    /// Stops the newest work that a quota does not cover any more, and the newest that borrowed what is not lent any more:
    /// beyond `overdrawn`, which was so before, what is on its way out left aside.
    fn drain_quota(&mut self, key: &QuotaKey, overdrawn: i64) {
        let tenant = key.tenant;
        let excess = |cohort: &Cohort| cohort.excess(tenant);
        self.call_back(key, QuotaLevel::Limit, excess, |_, other| other == tenant);
        let overdrawn = |cohort: &Cohort| cohort.overdrawn() - overdrawn;
        self.call_back(key, QuotaLevel::Pool, overdrawn, |cohort, other| cohort.borrowed(other) > 0);
    }

    /// Stops attempts of a quota's cohort, newest first, of tenants that are `eligible` while it is `over` by something,
    /// both judged as if everything that is on its way out were gone.
    fn call_back(
        &mut self,
        key: &QuotaKey,
        level: QuotaLevel,
        over: impl Fn(&Cohort) -> i64,
        eligible: impl Fn(&Cohort, sluice_types::TenantId) -> bool,
    ) {
        let cohort = key.cohort();
        let Some(mut staying) = self.staying(&cohort) else { return };
        let missing = over(&staying);
        for victim in self.victims(&cohort, &mut staying, |cohort| over(cohort) > 0, eligible) {
            self.suspend_for_quota(victim, key, level, missing);
        }
    }

    fn victims(
        &self,
        key: &CohortKey,
        staying: &mut Cohort,
        over: impl Fn(&Cohort) -> bool,
        eligible: impl Fn(&Cohort, sluice_types::TenantId) -> bool,
    ) -> Vec<AttemptId> {
        let mut victims = Vec::new();
        if !over(staying) {
            return victims;
        }
        for id in self.state.quotas.live(key) {
            let Some((member, held)) = self.counted(key, id) else { continue };
            if held.firm > 0 || self.is_leaving(id) || !eligible(staying, member) {
                continue;
            }
            staying.set_used(member, staying.used(member).minus(held));
            victims.push(id);
            if !over(staying) {
                break;
            }
        }
        victims
    }

    /// A cohort without what is on its way out.
    fn staying(&self, key: &CohortKey) -> Option<Cohort> {
        let mut cohort = self.state.quotas.cohort(key)?.clone();
        for id in self.state.quotas.live(key) {
            if let Some((member, held)) = self.counted(key, id).filter(|_| self.is_leaving(id)) {
                cohort.set_used(member, cohort.used(member).minus(held));
            }
        }
        Some(cohort)
    }

    /// Whose an attempt is and what it holds, if it counts in the cohort.
    fn counted(&self, key: &CohortKey, id: AttemptId) -> Option<(sluice_types::TenantId, QuotaUse)> {
        let row = self.state.attempts.get(&id)?;
        let (held_of, held) = self.state.held(row)?;
        let counts = match key {
            CohortKey::Site(..) => true,
            CohortKey::Tenant(tenant, _) => *tenant == held_of.tenant && self.owns(row.job, id),
        };
        counts.then_some((held_of.tenant, held))
    }

    /// It was told to stop, and nothing makes it go on.
    fn is_leaving(&self, id: AttemptId) -> bool {
        let Some(row) = self.state.attempts.get(&id) else { return true };
        let must = |order: StopOrder| order.must || order.kind == StopCause::SuspendForMoney;
        matches!(row.goal, Goal::Stop | Goal::Release) || row.order.is_some_and(must)
    }

    /// Tells an attempt to stop for want of quota: at a checkpoint, or, where it still prepares or has no checkpoints, as
    /// it is. A move towards the site is given up. What is being stopped for another reason keeps that reason. `cause` is the
    /// quota by which it came so, perhaps another tenant's, and `missing` what its cohort lacked.
    fn suspend_for_quota(&mut self, id: AttemptId, cause: &QuotaKey, level: QuotaLevel, missing: i64) {
        let reason = Reason::QuotaReclaimed;
        let Some(job) = self.state.attempts.get(&id).map(|row| row.job) else { return };
        if !self.owns(job, id) {
            return self.abort_migration(job, reason);
        }
        if self.state.jobs.get(&job).is_some_and(|row| row.state == JobState::Migrating) {
            self.abort_migration(job, reason);
            // Handed over already: it is stopped like any other.
            self.drop_migration(job, reason);
        }
        let Some(row) = self.state.attempts.get(&id).filter(|row| row.state != AttemptState::Ended) else { return };
        let Some(job) = self.state.jobs.get(&job).cloned() else { return };
        let (order, runs) = (row.order, row.state == AttemptState::Running);
        if let Some(order) = order {
            if let Some(row) = self.state.attempts.get_mut(&id) {
                row.order = Some(StopOrder { must: true, ..order });
            }
            return;
        }
        if runs && job.spec.checkpoint.is_some() {
            let deadline = self.now.after(self.state.settings.stop_deadline);
            let order = StopOrder { kind: StopCause::SuspendForQuota, deadline, stop_step: None, must: true };
            self.set_goal(id, Goal::Checkpoint, Some(order));
        } else {
            self.set_goal(id, Goal::Stop, None);
        }
        let own = self.state.quota_name(&QuotaKey { tenant: job.tenant, ..cause.clone() });
        let lacks = match level {
            QuotaLevel::Limit => format!("{missing}m more are in use than it allows"),
            _ => format!("it borrows, and {missing}m are lent no more"),
        };
        let message = format!("{own}, level {}: {lacks}; {RESUMES}", level.as_str());
        let what = Happened::new("Suspending", message.clone(), "controller").because(Some(reason));
        self.set_state(job.id, JobState::Suspending, Some(reason), message, what);
    }

    /// Calls back what tenants lend and want themselves now: for jobs that wait for nothing else.
    pub(super) fn call_back_lent(&mut self) {
        let lent = self.state.marks.lent.iter().filter_map(|id| self.state.jobs.get(id));
        let mut lent: Vec<_> = lent.filter(|job| waits_for_lent(job)).collect();
        lent.sort_by_key(|job| (std::cmp::Reverse(job.spec.priority), job.id));
        let mut waiting: BTreeMap<_, (usize, usize)> = BTreeMap::new();
        lent.iter().for_each(|job| waiting.entry(job.tenant).or_default().1 += 1);
        lent.retain(|job| {
            let (at, of) = waiting.entry(job.tenant).or_default();
            *at += 1;
            in_turn(*at - 1, *of, self.now)
        });
        let wanted: Vec<_> = lent.into_iter().map(|job| self.lent_at(job)).collect();
        let mut cohorts: BTreeMap<CohortKey, Cohort> = BTreeMap::new();
        for sites in wanted {
            for (key, more) in sites {
                if self.call_back_at(&key, more, &mut cohorts) {
                    break;
                }
            }
        }
    }

    /// Calls back what a tenant wants at one site; false, and nobody stops, where that would not be enough. What was called
    /// back before in the same tick is in `cohorts`.
    fn call_back_at(&mut self, key: &QuotaKey, more: QuotaUse, cohorts: &mut BTreeMap<CohortKey, Cohort>) -> bool {
        let cohort = key.cohort();
        let Some(before) = cohorts.get(&cohort).cloned().or_else(|| self.staying(&cohort)) else { return false };
        let is_lent =
            |cohort: &Cohort| cohort.shortage(key.tenant, more, 0).is_some_and(|short| short.level == QuotaLevel::Lent);
        let borrows = |cohort: &Cohort, other| cohort.borrowed(other) > 0;
        let mut staying = before.clone();
        let missing = staying.shortage(key.tenant, more, 0).map_or(0, |short| short.missing);
        let victims = self.victims(&cohort, &mut staying, is_lent, borrows);
        if staying.shortage(key.tenant, more, 0).is_some() {
            // What may not be stopped keeps it, or what came before in line.
            cohorts.insert(cohort, before);
            return false;
        }
        for victim in victims {
            self.suspend_for_quota(victim, key, QuotaLevel::Lent, missing);
        }
        // What the next one in line finds.
        staying.set_used(key.tenant, staying.used(key.tenant).plus(more));
        cohorts.insert(cohort, staying);
        true
    }

    /// The sites that a job could run at where its own quota is lent to others, and what it takes of it there.
    fn lent_at(&self, job: &Job) -> Vec<(QuotaKey, QuotaUse)> {
        let sites = self.state.sites_to_start_at(job).into_iter();
        sites.filter_map(|site| self.lent_to_others(job, site)).collect()
    }

    fn lent_to_others(&self, job: &Job, site: SiteId) -> Option<(QuotaKey, QuotaUse)> {
        let key = QuotaKey { tenant: job.tenant, site: Some(site), class: job.spec.resources.class.clone() };
        let more = ask(job, self.state.least_charge(job, site)?);
        let short = self.state.quotas.cohort(&key.cohort())?.shortage(job.tenant, more, 0)?;
        (short.level == QuotaLevel::Lent).then_some((key, more))
    }

    /// Sites that a job may run at.
    fn quota_sites(&self, job: &Job) -> Vec<SiteId> {
        let allowed = self.state.allowed_sites(job);
        match allowed.is_empty() {
            true => self.state.sites.values().map(|site| site.id).collect(),
            false => allowed,
        }
    }

    /// Jobs that were suspended for want of quota queue again when their quotas cover them, oldest first. They borrow only
    /// where no lender waits for its own. Where one is not covered, none that asks for the same is.
    pub(super) fn resume_reclaimed(&mut self) {
        let reclaimed = self.state.marks.reclaimed.iter().filter_map(|id| self.state.jobs.get(id));
        let reclaimed: Vec<_> = reclaimed.filter(|job| is_reclaimed(job)).collect();
        let mut kinds: BTreeMap<_, BTreeMap<_, usize>> = BTreeMap::new();
        let kind_of = |job: &Job| (job.spec.resources.clone(), job.spec.tasks, self.state.allowed_sites(job));
        for job in &reclaimed {
            let known = kinds.entry(job.tenant).or_default();
            let next = known.len();
            known.entry(kind_of(job)).or_insert(next);
        }
        let mut cohorts: BTreeMap<CohortKey, Cohort> = BTreeMap::new();
        let (mut uncovered, mut covered) = (BTreeSet::new(), Vec::new());
        for job in reclaimed {
            let Some(known) = kinds.get(&job.tenant) else { continue };
            let Some(kind) = known.get(&kind_of(job)).copied() else { continue };
            if uncovered.contains(&(job.tenant, kind)) || !in_turn(kind, known.len(), self.now) {
                continue;
            }
            let mut sites = self.quota_sites(job).into_iter();
            if !sites.any(|site| self.covers_again(job, site, &mut cohorts)) {
                uncovered.insert((job.tenant, kind));
                continue;
            }
            covered.push(job.id);
            if covered.len() == AT_ONCE {
                break;
            }
        }
        for job in covered {
            let message = "its quota covers it again";
            let what = Happened::new("Resumed", message, "controller");
            self.set_state(job, JobState::Pending, None, message.to_owned(), what);
        }
    }

    /// Whether quotas cover a job at a site beside those that were found covered before; then it is counted among them.
    fn covers_again(&self, job: &Job, site: SiteId, cohorts: &mut BTreeMap<CohortKey, Cohort>) -> bool {
        let class = job.spec.resources.class.clone();
        let Some(charge) = self.state.least_charge(job, site) else { return false };
        let more = ask(job, charge);
        let mut found = Vec::new();
        for place in [Some(site), None] {
            let key = QuotaKey { tenant: job.tenant, site: place, class: class.clone() }.cohort();
            let Some(cohort) = cohorts.get(&key).or_else(|| self.state.quotas.cohort(&key)) else { continue };
            if cohort.shortage(job.tenant, more, 0).is_some() {
                return false;
            }
            let mut cohort = cohort.clone();
            cohort.set_used(job.tenant, cohort.used(job.tenant).plus(more));
            if cohort.borrowed(job.tenant) > 0 && self.lenders_wait(&class, site) {
                return false;
            }
            found.push((key, cohort));
        }
        cohorts.extend(found);
        true
    }

    /// Whether somebody waits for what it lends of a class and could have it at this site.
    fn lenders_wait(&self, class: &sluice_types::DeviceClassName, site: SiteId) -> bool {
        let lent = self.state.marks.lent.iter().filter_map(|id| self.state.jobs.get(id));
        let mut lent = lent.filter(|job| waits_for_lent(job) && job.spec.resources.class == *class);
        lent.any(|job| self.state.sites_to_start_at(job).contains(&site) && self.lent_to_others(job, site).is_some())
    }

    /// Quotas of the time before they had sites become rows over all sites.
    pub(super) fn adopt_old_quotas(&mut self) {
        let old = self.state.books.accounts().filter(|account| matches!(account.key, AccountKey::Quota(..)));
        let old: Vec<_> = old.filter(|account| account.balance() > 0).cloned().collect();
        for account in old {
            let AccountKey::Quota(tenant, class) = account.key.clone() else { continue };
            let key = QuotaKey { tenant, site: None, class };
            if self.state.quotas.rows.get(&key).is_none() {
                let limits = QuotaLimits { nominal: account.balance(), ..QuotaLimits::default() };
                let (version, now) = (self.id(), self.now);
                let (manager, policy) = (String::new(), QuotaPolicy::Refuse);
                let row = Quota {
                    key: key.clone(),
                    limits,
                    policy,
                    manager,
                    version,
                    created: now,
                    updated: now,
                    deleted: false,
                };
                self.state.quotas.set(row);
                self.settle_quota(&key, true);
            }
            let free = account.available().max(0);
            let cause = format!("quota/old/{}", self.id());
            self.transfer((account.key, AccountKey::Capacity), free, cause)
                .expect("invariant: what is available can be moved");
        }
    }
}

/// Whether the one at this place of so many of a tenant is looked at: all of them, where they are few, and otherwise a
/// window of them, another each second. Where it begins is strewn by the golden ratio, so that no pace of ticks leaves
/// any out for ever.
fn in_turn(at: usize, of: usize, now: Timestamp) -> bool {
    if of <= PER_TENANT {
        return true;
    }
    let strewn = (now.nanos() / 1_000_000_000).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    let begin = usize::try_from(strewn).unwrap_or(0) % of;
    (at + of - begin) % of < PER_TENANT
}

/// It waits for what its own tenant lends.
pub(crate) fn waits_for_lent(job: &Job) -> bool {
    job.state == JobState::Pending && job.reason == Some(Reason::QuotaLent)
}

/// It was suspended for want of quota.
pub(crate) fn is_reclaimed(job: &Job) -> bool {
    job.state == JobState::Suspended && job.reason == Some(Reason::QuotaReclaimed)
}

fn check_limits(key: &QuotaKey, limits: &QuotaLimits) -> Result<(), Refusal> {
    let sane = |milli: i64| (0..=MAX_MILLI).contains(&milli);
    if !sane(limits.nominal) {
        return Err(Refusal::field("nominal_milli", "a quota is 0 to 10^12 thousandths"));
    }
    if !sane(limits.borrow) {
        return Err(Refusal::field("borrow_milli", "a borrow limit is 0 to 10^12 thousandths"));
    }
    if !(0..=limits.nominal).contains(&limits.lend) {
        return Err(Refusal::field("lend_milli", "a lend limit is 0 to the nominal: nobody lends more than it has"));
    }
    if key.site.is_none() && (limits.borrow, limits.lend) != (0, 0) {
        let field = if limits.borrow != 0 { "borrow_milli" } else { "lend_milli" };
        return Err(Refusal::field(field, "quotas borrow from each other at one site: name it, or leave the limit 0"));
    }
    Ok(())
}
