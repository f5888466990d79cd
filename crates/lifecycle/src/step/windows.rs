//! Metered windows become money, once; what the platform caused is credited back.

use sluice_ledger::{AccountKey, rate_window};
use sluice_types::{AttemptId, Credits, JobId, LeaseId, NodeId, Reason};

use super::Step;
use crate::command::WindowReport;
use crate::model::{
    AttemptState, BudgetHold, BudgetShare, Checkpoint, Goal, JobKind, JobState, Lease, StopCause, StopOrder, Window,
};
use crate::state::Happened;

/// What becomes of a journal record.
enum Fate {
    Post,
    Duplicate,
    Conflict,
    PastCut,
    Unknown,
}

impl Step<'_> {
    /// Settles one journal record. Whatever its fate, the node may forget it.
    pub(super) fn window(&mut self, node: NodeId, record: WindowReport) {
        let settled = self.state.nodes.get(&node).map_or(u64::MAX, |row| row.settled_journal);
        if record.journal <= settled {
            self.state.count(|counters| &mut counters.duplicate_windows);
            return;
        }
        match self.fate(node, &record) {
            Fate::Post => self.post(node, &record),
            Fate::Duplicate => self.state.count(|counters| &mut counters.duplicate_windows),
            Fate::Conflict => self.state.count(|counters| &mut counters.conflicting_windows),
            Fate::Unknown => self.state.count(|counters| &mut counters.stale_reports),
            Fate::PastCut => {
                self.state.count(|counters| &mut counters.refused_windows);
                if let Some(row) = self.state.leases.get_mut(&record.key.lease) {
                    row.refused += 1;
                    row.next_window = record.sequence + 1;
                }
            }
        }
        if let Some(row) = self.state.nodes.get_mut(&node) {
            row.settled_journal = record.journal;
        }
        self.settle_lease(record.key.lease);
    }

    fn fate(&self, node: NodeId, record: &WindowReport) -> Fate {
        let Some(lease) = self.state.leases.get(&record.key.lease) else { return Fate::Unknown };
        let right = lease.attempt == record.key.attempt
            && lease.generation == record.key.generation
            && lease.device.node == node;
        if !right {
            return Fate::Unknown;
        }
        if record.sequence < lease.next_window {
            let same = |row: &Window| row.start == record.start && row.end == record.end && row.boot == record.boot;
            let known = self.state.windows.get(&(lease.id, record.sequence));
            return if known.is_none_or(same) { Fate::Duplicate } else { Fate::Conflict };
        }
        let other_boot = !lease.boot.0.is_empty() && lease.boot != record.boot;
        let overlaps = !lease.boot.0.is_empty() && record.start < lease.cursor;
        if record.end <= record.start || other_boot || overlaps {
            return Fate::Conflict;
        }
        if lease.cut.is_some_and(|cut| record.end > cut) {
            return Fate::PastCut;
        }
        Fate::Post
    }

    /// Rates the window, posts it from the attempt's holds and writes its row.
    fn post(&mut self, node: NodeId, record: &WindowReport) {
        let Some(lease) = self.state.leases.get(&record.key.lease).cloned() else { return };
        let wall = record.end.since(record.start);
        let Ok(rated) = rate_window(&lease.terms, wall, lease.remainder) else {
            return self.state.count(|counters| &mut counters.conflicting_windows);
        };
        let (posted, budgets) = self.post_money(&lease, record.sequence, rated.amount);
        let first = lease.boot.0.is_empty();
        let gap = if first { sluice_types::Nanos::ZERO } else { record.start.since(lease.cursor) };
        let uncollected = rated.amount.checked_sub(posted).unwrap_or(Credits::ZERO);
        if let Some(row) = self.state.leases.get_mut(&lease.id) {
            row.boot = record.boot.clone();
            row.cursor = record.end;
            row.next_window = record.sequence + 1;
            row.remainder = rated.remainder;
            row.billed = row.billed.plus(wall);
            row.gaps = row.gaps.plus(gap);
            row.amount = row.amount.checked_add(posted).unwrap_or(row.amount);
            row.uncollected = row.uncollected.checked_add(uncollected).unwrap_or(row.uncollected);
        }
        if let Some(row) = self.state.jobs.get_mut(&lease.job) {
            row.spent = row.spent.checked_add(posted).unwrap_or(row.spent);
            // Not what it waited for its data.
            if lease.rank == 0 && lease.started.is_some_and(|started| record.start >= started) {
                row.run_time = row.run_time.plus(wall);
            }
        }
        let gap_before = gap != sluice_types::Nanos::ZERO || record.sequence > lease.next_window;
        let window = self.window_row(node, &lease, record, (posted, budgets), gap_before);
        self.state.windows.insert((lease.id, record.sequence), window);
        self.credit_at_once(&lease, record);
        self.keep_few_windows(&lease, record.sequence);
        self.renew(lease.attempt);
    }

    /// A replica writes no checkpoints and may live for years, and no loss makes its windows worthless: only the newest are
    /// kept, more than one step ever brings.
    fn keep_few_windows(&mut self, lease: &Lease, sequence: u64) {
        const KEPT: u64 = 2048;
        let replica = self.state.jobs.get(&lease.job).is_some_and(|row| row.spec.kind == JobKind::Replica);
        if replica && sequence >= lease.keep_from + 2 * KEPT {
            let keep_from = sequence - KEPT;
            if let Some(row) = self.state.leases.get_mut(&lease.id) {
                row.keep_from = keep_from;
            }
            self.state.forget_windows(lease.id, keep_from);
        }
    }

    fn window_row(
        &self,
        node: NodeId,
        lease: &Lease,
        record: &WindowReport,
        (amount, budgets): (Credits, Vec<BudgetShare>),
        gap_before: bool,
    ) -> Window {
        Window {
            lease: lease.id,
            sequence: record.sequence,
            attempt: lease.attempt,
            job: lease.job,
            tenant: lease.tenant,
            project: lease.project,
            site: lease.site,
            node,
            boot: record.boot.clone(),
            start: record.start,
            end: record.end,
            used_ns: record.used_ns,
            memory_byte_seconds: record.memory_byte_seconds,
            last_step: record.last_step,
            amount,
            budgets,
            credited: Credits::ZERO,
            gap_before,
            advisory: record.advisory,
            at: self.now,
        }
    }

    /// Posts from the holds, never more than was promised: what is beyond is borne by the platform.
    fn post_money(&mut self, lease: &Lease, sequence: u64, amount: Credits) -> (Credits, Vec<BudgetShare>) {
        let Some(attempt) = self.state.attempts.get(&lease.attempt).cloned() else {
            return (Credits::ZERO, Vec::new());
        };
        let why = "invariant: no more is posted than remains";
        let remaining = |step: &Self, hold| step.state.books.hold(hold).map_or(0, |row| row.remaining);
        let posted = amount.units().min(remaining(self, attempt.funds));
        if posted == 0 {
            return (Credits::ZERO, Vec::new());
        }
        let cause = format!("window/{}/{sequence}", lease.id);
        self.post_hold(attempt.funds, posted, cause.clone()).expect(why);
        let mut shares = Vec::with_capacity(attempt.budgets.len());
        for BudgetHold { hold, scope, period } in attempt.budgets {
            let held = posted.min(remaining(self, hold));
            if held > 0 {
                self.post_hold(hold, held, format!("{cause}/{scope}")).expect(why);
            }
            let mut over = posted - held;
            let sides = (AccountKey::Grants(scope, period), AccountKey::Spent(scope, period));
            if over > 0 && self.transfer(sides, over, format!("{cause}/{scope}/over")).is_err() {
                // Only a sum out of the ledger's range is refused; the budget then shows less than was spent.
                over = 0;
            }
            shares.push(BudgetShare { scope, period, held: Credits::new(held), over: Credits::new(over) });
        }
        (Credits::new(posted), shares)
    }

    /// A window of work that is known to be lost, or of a preparation that the platform wanted.
    fn credit_at_once(&mut self, lease: &Lease, record: &WindowReport) {
        let lost = lease.credit_from.filter(|(from, _)| record.sequence >= *from).map(|(_, reason)| reason);
        let prepares = lease.started.is_some_and(|started| record.end <= started);
        if lost.is_some() || (lease.free_preparation && prepares) {
            self.credit_window(lease.id, record.sequence);
        }
    }

    /// When a task that the platform moved is known to have run, or never will be: what came before is credited. Windows
    /// may be here before that is known, and a task that ended behind a broken stream never tells when it began; of its
    /// windows those count as preparation in which no step was told.
    pub(super) fn credit_preparation(&mut self, id: LeaseId) {
        let Some(lease) = self.state.leases.get(&id).filter(|row| row.free_preparation) else { return };
        let started = lease.started;
        let windows = || self.state.windows.range((id, 0)..=(id, u64::MAX)).map(|(_, window)| window);
        let first = windows().next().map_or(0, |window| window.last_step);
        let prepares = |window: &&Window| match started {
            Some(started) => window.end <= started,
            None => window.last_step == first,
        };
        let before: Vec<_> = windows().filter(prepares).map(|window| window.sequence).collect();
        before.into_iter().for_each(|sequence| self.credit_window(id, sequence));
    }

    /// Credits one window back, once.
    fn credit_window(&mut self, lease: LeaseId, sequence: u64) {
        let Some(window) = self.state.windows.get(&(lease, sequence)).cloned() else { return };
        if window.credited != Credits::ZERO || window.amount == Credits::ZERO {
            return;
        }
        let units = window.amount.units();
        let sides = (AccountKey::Platform, AccountKey::Funds(window.tenant));
        if self.transfer(sides, units, format!("credit/{lease}/{sequence}")).is_err() {
            // Out of the ledger's range: the window stays uncredited and visible as such.
            return;
        }
        for share in window.budgets {
            self.credit_budget(&share, &format!("credit/{lease}/{sequence}"));
        }
        if let Some(row) = self.state.windows.get_mut(&(lease, sequence)) {
            row.credited = window.amount;
        }
        if let Some(row) = self.state.leases.get_mut(&lease) {
            row.credited = row.credited.checked_add(window.amount).unwrap_or(row.credited);
        }
        if let Some(row) = self.state.jobs.get_mut(&window.job) {
            row.credited = row.credited.checked_add(window.amount).unwrap_or(row.credited);
        }
    }

    /// After a loss: credits what no checkpoint holds. Where the newest one cannot be reached and the job resumes from an
    /// older one, the placement credits the rest; credited now it would be too much if the newest comes back in time.
    pub(super) fn credit_losses(&mut self, job: JobId) {
        let Some(row) = self.state.jobs.get(&job) else { return };
        let from = self.state.complete_checkpoints(row).next().cloned();
        self.credit_since(job, from.as_ref());
    }

    /// At the next placement: credits what the checkpoint that it starts from does not hold.
    pub(super) fn credit_replay(&mut self, job: JobId, attempt: AttemptId) {
        let resume = self.state.attempts.get(&attempt).and_then(|row| row.resume);
        let from = resume.and_then(|id| self.state.checkpoints.get(&id)).cloned();
        self.credit_since(job, from.as_ref());
    }

    /// The target of a move that was lost before it had the job: what it prepared is of no use to anybody, and the job may
    /// never be placed again.
    pub(super) fn credit_target(&mut self, id: AttemptId, reason: Reason) {
        let Some(attempt) = self.state.attempts.get(&id).cloned() else { return };
        // A source that handed over was the owner, and what it did was carried on.
        if self.state.jobs.get(&attempt.job).is_none_or(|job| job.generation >= attempt.generation) {
            return;
        }
        attempt.tasks.iter().for_each(|task| self.credit_lease(task.lease, 0, reason));
    }

    /// Every window of a lost attempt after the checkpoint is work that has to be done again.
    fn credit_since(&mut self, job: JobId, from: Option<&Checkpoint>) {
        // What a replica has served is served: none of it is done again.
        if self.state.jobs.get(&job).is_some_and(|row| row.spec.kind == JobKind::Replica) {
            return;
        }
        let attempts: Vec<_> = self.state.attempts_of.get(&job).into_iter().flatten().copied().collect();
        for id in attempts {
            let Some(attempt) = self.state.attempts.get(&id).cloned() else { continue };
            let lost = attempt.reason.is_some_and(Reason::is_infrastructure);
            // An attempt that stopped well, whose last checkpoint cannot be reached: what was behind it is done again.
            let gone =
                attempt.state == AttemptState::Ended && attempt.reason.is_none() && self.left_newer(job, id, from);
            if !(lost || gone) || from.is_some_and(|from| attempt.generation < from.generation) {
                continue;
            }
            let reason = attempt.reason.unwrap_or(Reason::SiteLost);
            for task in &attempt.tasks {
                let part = from.and_then(|from| from.parts.values().find(|part| part.lease == task.lease));
                self.credit_lease(task.lease, part.map_or(0, |part| part.next_window), reason);
            }
        }
    }

    /// Whether an attempt has written a whole checkpoint that is newer than the one to start from.
    fn left_newer(&self, job: JobId, attempt: AttemptId, from: Option<&Checkpoint>) -> bool {
        let ids = self.state.checkpoints_of.get(&job).into_iter().flatten();
        let own = ids.filter_map(|id| self.state.checkpoints.get(id)).filter(|row| row.attempt == attempt);
        let age = |row: &Checkpoint| (row.generation, row.step);
        own.filter(|row| row.is_complete()).any(|row| from.is_none_or(|from| age(row) > age(from)))
    }

    fn credit_lease(&mut self, id: LeaseId, from: u64, reason: Reason) {
        let Some(row) = self.state.leases.get(&id) else { return };
        if row.credit_from.is_some_and(|(known, _)| known <= from) {
            return;
        }
        if let Some(row) = self.state.leases.get_mut(&id) {
            row.credit_from = Some((from, reason));
        }
        let windows: Vec<_> = self.state.windows.range((id, from)..=(id, u64::MAX)).map(|(key, _)| key.1).collect();
        windows.into_iter().for_each(|sequence| self.credit_window(id, sequence));
    }

    /// Tells a job to stop because what comes next cannot be promised: at a checkpoint, or, where it still prepares or has
    /// no checkpoints, as it is.
    pub(super) fn suspend_for_money(&mut self, id: JobId, attempt: AttemptId) {
        if self.state.jobs.get(&id).is_some_and(|job| job.state == JobState::Migrating) {
            self.abort_migration(id, Reason::SuspendedForMoney);
        }
        let Some(job) = self.state.jobs.get(&id) else { return };
        let runs = match job.state {
            JobState::Running | JobState::Suspending => true,
            JobState::Starting => false,
            _ => return,
        };
        let Some(row) = self.state.attempts.get(&attempt).filter(|row| row.goal != Goal::Stop) else { return };
        let reason = Some(Reason::SuspendedForMoney);
        match row.order {
            // It is on its way to a checkpoint already; only that it must not go on without one is new.
            Some(order) => {
                if let Some(row) = self.state.attempts.get_mut(&attempt) {
                    row.order = Some(StopOrder { kind: StopCause::SuspendForMoney, ..order });
                }
            }
            None if runs && job.spec.checkpoint.is_some() => self.order(attempt, StopCause::SuspendForMoney),
            None => self.set_goal(attempt, Goal::Stop, None),
        }
        let message = Reason::SuspendedForMoney.remedy().to_owned();
        let what = Happened::new("Suspending", message.clone(), "controller").because(reason);
        self.set_state(id, JobState::Suspending, reason, message, what);
    }
}
