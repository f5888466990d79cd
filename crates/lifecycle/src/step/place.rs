//! Placements become attempts, leases and holds, if what the plan saw is still so.

use std::collections::BTreeMap;

use sluice_ledger::{AccountKey, QuotaKey, Rate, RatingTerms, Remainder, quote};
use sluice_plan::{Footprint, Placement, Plan, Purpose, Verdict, footprint};
use sluice_types::{AttemptId, BootId, Credits, DeviceRef, HoldId, LeaseId, MilliGpu, Nanos, NodeId, NodeInstant};

use super::Step;
use super::orders::within_limit;
use crate::command::{Answer, Refusal};
use crate::model::{
    Attempt, AttemptState, BudgetHold, Goal, Job, JobState, Lease, LeaseState, MigrationCause, MigrationPhase, Node,
    TaskRow, TaskState,
};
use crate::state::Happened;

/// A placement that passed revalidation.
struct Accepted {
    job: Job,
    purpose: Purpose,
    terms: Vec<RatingTerms>,
    /// Funds, then budgets: account pairs and the amount of each.
    money: Credits,
    budgets: Vec<AccountKey>,
    /// Thousandths of quota.
    charge: i64,
    free_preparation: bool,
}

/// What is taken of the nodes that a plan places on: added up once per node and plan, because thousands of small leases
/// share a node. Within a plan nothing but its own placements changes what is leased.
#[derive(Default)]
struct Loads(BTreeMap<NodeId, Load>);

impl Loads {
    /// The placement came to nothing: its nodes are added up again when they are next asked for.
    fn forget(&mut self, placement: &Placement) {
        for task in &placement.tasks {
            self.0.remove(&task.device.node);
        }
    }
}

/// What is taken of one node.
#[derive(Default)]
struct Load {
    /// Thousandths and bytes by device.
    devices: BTreeMap<u16, (u64, u64)>,
    cores: u64,
    memory: u64,
}

impl Load {
    fn add(&mut self, device: u16, print: &Footprint) {
        let (milli, memory) = self.devices.entry(device).or_default();
        *milli += u64::from(print.milli.get());
        *memory = memory.saturating_add(print.memory.get());
        self.cores += u64::from(print.host_cores.get());
        self.memory = self.memory.saturating_add(print.host_memory.get());
    }
}

impl Step<'_> {
    pub(super) fn plan(&mut self, plan: Plan) -> Result<Answer, Refusal> {
        let mut rejected = Vec::new();
        let mut loads = Loads::default();
        for placement in plan.placements {
            let mut accepted = self.revalidate(&placement, &mut loads);
            if let Some(accepted) = &mut accepted {
                accepted.money = within_limit(&accepted.job, accepted.money);
            }
            if accepted.as_ref().is_some_and(|accepted| self.refuse_price(&accepted.job, accepted.money)) {
                loads.forget(&placement);
                continue;
            }
            let placed = accepted.is_some_and(|accepted| self.place(&placement, accepted));
            if !placed {
                loads.forget(&placement);
                self.state.count(|counters| &mut counters.rejected_placements);
                rejected.push(placement.job);
            }
        }
        for verdict in plan.verdicts {
            self.verdict(verdict);
        }
        Ok(Answer { rejected, ..Answer::default() })
    }

    /// Why a job waits. Does not change its version: the scheduler's view of it stays valid.
    fn verdict(&mut self, verdict: Verdict) {
        let Some(row) = self.state.jobs.get_quietly(&verdict.job) else { return };
        let waits = row.state == JobState::Pending && row.version == verdict.version;
        if !waits || (row.reason == Some(verdict.reason) && row.message == verdict.message) {
            return;
        }
        if row.purchase.is_some() {
            let job = row.clone();
            if self.refuse_unplaced(&job, verdict.reason, &verdict.message) {
                return;
            }
        }
        let Some(row) = self.state.jobs.get_quietly(&verdict.job) else { return };
        (row.reason, row.message) = (Some(verdict.reason), verdict.message.clone());
        let job = row.clone();
        self.state.jobs.mark(&verdict.job);
        let what = Happened::new("Waiting", verdict.message, "planner").because(Some(verdict.reason));
        self.state.event(&job, self.now, what);
    }

    /// Checks a placement against the rows as they are now: the job's version, every device, the money. `None` where
    /// anything differs; the job simply stays in the queue.
    fn revalidate(&self, placement: &Placement, loads: &mut Loads) -> Option<Accepted> {
        let job = self.state.jobs.get(&placement.job).filter(|job| job.version == placement.version)?;
        let wanted = self.state.wanted(job, self.now)?;
        let tasks = usize::try_from(job.spec.tasks).ok()?;
        if placement.tasks.len() != tasks || !(wanted.sites.is_empty() || wanted.sites.contains(&placement.site)) {
            return None;
        }
        if !wanted.state_at.is_empty() && !wanted.state_at.contains(&placement.site) {
            return None;
        }
        self.check_devices(job, placement, loads)?;
        let terms = self.terms(job, placement)?;
        let quoted = terms.iter().map(|terms| quote(terms, wanted.hold_time).ok()).sum::<Option<Credits>>()?;
        let books = &self.state.books;
        // As the scheduler counts: nothing can always be promised. A period that has no account yet waits for the tick that
        // grants it.
        let available = |key: &AccountKey| quoted.units() <= books.available(key).max(0);
        let budgets = wanted.budgets;
        if !available(&AccountKey::Funds(job.tenant)) || !budgets.iter().all(|key| books.knows(key) && available(key)) {
            return None;
        }
        let charge = self.charge(job, placement)?;
        self.check_quota(job, wanted.purpose, placement, charge)?;
        let platform = |id| self.state.migrations.get(id).is_some_and(|row| row.cause == MigrationCause::Platform);
        let moved = wanted.purpose == Purpose::Migrate && job.migration.as_ref().is_some_and(platform);
        // Nobody can work in a rental before it runs, and its quote is for the time that it was asked for.
        let free = moved || job.purchase.is_some();
        Some(Accepted {
            job: job.clone(),
            purpose: wanted.purpose,
            terms,
            money: quoted,
            budgets,
            charge,
            free_preparation: free,
        })
    }

    /// Every slice fits its device beside all that is leased there already, counting the placement's own tasks, which are
    /// in `loads` after it.
    fn check_devices(&self, job: &Job, placement: &Placement, loads: &mut Loads) -> Option<()> {
        for task in &placement.tasks {
            let node = self.state.nodes.get(&task.device.node)?;
            if !self.state.is_open(node) || node.site != placement.site {
                return None;
            }
            let device = &node.devices.get(usize::from(task.device.index))?.view;
            let right = device.healthy
                && device.class == job.spec.resources.class
                && device.isolation.contains(&task.isolation)
                && device.billed(&job.spec.resources) == task.billed;
            if !right {
                return None;
            }
            let load = loads.0.entry(node.id).or_insert_with(|| self.load(node));
            load.add(task.device.index, &footprint(&job.spec.resources, device));
            let (milli, memory) = load.devices.get(&task.device.index).copied()?;
            let fits = milli <= u64::from(MilliGpu::WHOLE.get())
                && memory <= device.memory.get()
                && load.cores <= u64::from(node.host_cores.get())
                && load.memory <= node.host_memory.get();
            if !fits {
                return None;
            }
        }
        Some(())
    }

    /// What is leased on a node, or not yet proven to be free.
    fn load(&self, node: &Node) -> Load {
        let mut load = Load::default();
        let leases = self.state.leases_on.get(&node.id).into_iter().flatten();
        for lease in leases.filter_map(|id| self.state.leases.get(id)) {
            if !matches!(lease.state, LeaseState::Held | LeaseState::Ending) {
                continue;
            }
            if let Some(device) = node.devices.get(usize::from(lease.device.index)) {
                load.add(lease.device.index, &footprint(&lease.resources, &device.view));
            }
        }
        load
    }

    fn terms(&self, job: &Job, placement: &Placement) -> Option<Vec<RatingTerms>> {
        let book = self.state.prices.as_ref().filter(|book| book.version == placement.price)?;
        let wanted = &job.spec.resources;
        let terms = placement.tasks.iter().map(|task| {
            let rate: Rate = book.rate(&wanted.class, task.isolation, placement.site)?;
            Some(RatingTerms {
                billed: task.billed,
                host_cores: wanted.host_cores,
                host_memory: wanted.host_memory,
                rate,
            })
        });
        terms.collect()
    }

    /// Thousandths of quota that a placement takes.
    fn charge(&self, job: &Job, placement: &Placement) -> Option<i64> {
        let charges = placement.tasks.iter().map(|task| {
            let device = self.state.nodes.get(&task.device.node)?.devices.get(usize::from(task.device.index))?;
            Some(sluice_plan::charge(&job.spec.resources, &device.view))
        });
        charges.sum()
    }

    /// Whether quotas cover a placement: at its site, and over all sites unless the job only moves.
    fn check_quota(&self, job: &Job, purpose: Purpose, placement: &Placement, charge: i64) -> Option<()> {
        let more = crate::quotas::ask(job, charge);
        let places = [Some(placement.site), None].into_iter().take(if purpose == Purpose::Run { 2 } else { 1 });
        let covered = |site| {
            let key = QuotaKey { tenant: job.tenant, site, class: job.spec.resources.class.clone() };
            let cohort = self.state.cohort(&key.cohort());
            cohort.is_none_or(|cohort| cohort.shortage(job.tenant, more, 0).is_none())
        };
        places.into_iter().all(covered).then_some(())
    }

    /// Writes attempt, leases and holds. False, with nothing changed, where the ledger cannot take the holds.
    fn place(&mut self, placement: &Placement, accepted: Accepted) -> bool {
        let job = &accepted.job;
        let id = AttemptId::from_raw(self.id());
        let generation = job.last_generation.next();
        let tasks: Vec<_> = placement
            .tasks
            .iter()
            .map(|task| TaskRow {
                lease: LeaseId::from_raw(self.mint.next(self.now)),
                device: task.device,
                isolation: task.isolation,
                state: TaskState::Assigned,
                held: None,
                end: None,
            })
            .collect();
        let Some((funds, budgets)) = self.hold_all(id, placement, &accepted) else { return false };
        let run = accepted.purpose == Purpose::Run;
        let attempt = Attempt {
            id,
            job: job.id,
            generation,
            site: placement.site,
            state: AttemptState::Assigned,
            goal: if run { Goal::Run } else { Goal::Prepare },
            revision: 1,
            order: None,
            tasks: tasks.clone(),
            resume: self.state.resumable_at(job, placement.site),
            funds,
            budgets,
            charge: accepted.charge,
            quota: None,
            settled: false,
            run_limit: job.spec.max_run_time.map(|limit| limit.minus(job.run_time)),
            created: self.now,
            started: None,
            ended: None,
            reason: None,
        };
        for ((rank, task), terms) in (0u32..).zip(&tasks).zip(&accepted.terms) {
            let lease = self.lease(&attempt, job, placement, rank, task, *terms, accepted.free_preparation);
            self.state.leases_on.entry(task.device.node).or_default().insert(lease.id);
            self.state.leases.insert(lease.id, lease);
        }
        self.state.attempts_of.entry(job.id).or_default().insert(id);
        self.state.attempts.insert(id, attempt);
        if let Some(row) = self.state.jobs.get_mut(&job.id) {
            row.last_generation = generation;
            row.attempts += u32::from(run);
            if run {
                (row.generation, row.current) = (generation, Some(id));
            }
        }
        self.hold_quota(id);
        self.placed(job, id, placement, run);
        true
    }

    fn placed(&mut self, job: &Job, attempt: AttemptId, placement: &Placement, run: bool) {
        let site = self.site_name(placement.site);
        if run {
            self.set_state(job.id, JobState::Starting, None, String::new(), Happened::new("Placed", site, "planner"));
            self.credit_replay(job.id, attempt);
            return;
        }
        let deadline = self.now.after(self.state.settings.prepare_deadline);
        if let Some(row) = job.migration.and_then(|id| self.state.migrations.get_mut(&id)) {
            (row.phase, row.target, row.deadline) = (MigrationPhase::Preparing, Some(attempt), deadline);
        }
        let what = Happened::new("MigrationPreparing", site, "planner");
        self.set_state(job.id, JobState::Migrating, None, String::new(), what);
    }

    /// All holds of money of an attempt, or none. Revalidation saw that the accounts cover them; what can still be refused is a sum
    /// that leaves the ledger's range.
    fn hold_all(
        &mut self,
        attempt: AttemptId,
        placement: &Placement,
        accepted: &Accepted,
    ) -> Option<(HoldId, Vec<BudgetHold>)> {
        let amount = accepted.money.units();
        let sides = (AccountKey::Funds(accepted.job.tenant), AccountKey::Revenue(placement.site));
        let mut wanted = vec![(sides, amount, format!("hold/{attempt}"))];
        for key in &accepted.budgets {
            let AccountKey::Budget(scope, period) = key else { continue };
            let sides = (key.clone(), AccountKey::Spent(*scope, *period));
            wanted.push((sides, amount, format!("hold/{attempt}/budget/{scope}")));
        }
        let mut holds = Vec::with_capacity(wanted.len());
        for (sides, amount, cause) in wanted {
            let hold = HoldId::from_raw(self.id());
            if self.open_hold(hold, sides, amount, cause).is_err() {
                holds.into_iter().for_each(|hold| self.void_hold(hold, format!("void/{hold}")));
                return None;
            }
            holds.push(hold);
        }
        let funds = holds.remove(0);
        let budgets = accepted.budgets.iter().zip(holds).filter_map(|(key, hold)| match *key {
            AccountKey::Budget(scope, period) => Some(BudgetHold { hold, scope, period }),
            _ => None,
        });
        Some((funds, budgets.collect()))
    }

    #[allow(clippy::too_many_arguments)]
    fn lease(
        &self,
        attempt: &Attempt,
        job: &Job,
        placement: &Placement,
        rank: u32,
        task: &TaskRow,
        terms: RatingTerms,
        free_preparation: bool,
    ) -> Lease {
        let device: DeviceRef = task.device;
        Lease {
            id: task.lease,
            attempt: attempt.id,
            job: job.id,
            tenant: job.tenant,
            project: job.project,
            site: placement.site,
            device,
            rank,
            resources: job.spec.resources.clone(),
            terms,
            price: placement.price,
            generation: attempt.generation,
            state: LeaseState::Held,
            boot: BootId::default(),
            cursor: NodeInstant::default(),
            next_window: 0,
            remainder: Remainder::ZERO,
            billed: Nanos::ZERO,
            gaps: Nanos::ZERO,
            amount: Credits::ZERO,
            uncollected: Credits::ZERO,
            credited: Credits::ZERO,
            refused: 0,
            cut: None,
            credit_from: None,
            free_preparation,
            started: None,
            keep_from: 0,
            windows: None,
            created: self.now,
            freed: None,
        }
    }
}
