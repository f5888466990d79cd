//! Budgets: what is left of a period, and the holds of running work that follow it from period to period.

use std::collections::BTreeSet;

use sluice_ledger::{AccountKey, BudgetScope, LedgerError, quote};
use sluice_types::{AttemptId, Credits, HoldId, ProjectId, TenantId};

use super::money::MAX_AMOUNT;
use super::{Step, money_refusal};
use crate::command::{Answer, Refusal};
use crate::model::{AttemptState, Budget, BudgetHold, BudgetPolicy, BudgetShare, StopCause};

impl Step<'_> {
    pub(super) fn set_budget(
        &mut self,
        tenant: TenantId,
        project: Option<ProjectId>,
        amount: Credits,
        period_seconds: u64,
        policy: BudgetPolicy,
    ) -> Result<Answer, Refusal> {
        self.known_tenant(tenant)?;
        let belongs = |id: ProjectId| self.state.projects.get(&id).is_some_and(|row| row.tenant == tenant);
        if project.is_some_and(|id| !belongs(id)) {
            return Err(Refusal::not_found("project"));
        }
        if amount < Credits::ZERO || amount > MAX_AMOUNT {
            return Err(Refusal::field("amount_credits", "a budget is 0 to 10000000 of the currency"));
        }
        if (1..60).contains(&period_seconds) {
            return Err(Refusal::field("period_seconds", "a period is 0 (for ever) or at least 60 seconds"));
        }
        let scope = project.map_or_else(|| tenant.to_string(), |id| id.to_string());
        let budget = Budget { scope: scope.clone(), tenant, project, amount, period_seconds, policy };
        self.adjust_budget(&budget).map_err(|error| money_refusal(&error))?;
        self.state.budgets.insert(scope.clone(), budget);
        self.retell(|_, job| job.tenant == tenant);
        self.cover_running(&BTreeSet::from([tenant]));
        Ok(Answer { object: scope, ..Answer::default() })
    }

    /// Brings what is left in the current period to the budget's amount less what is spent or promised of it.
    fn adjust_budget(&mut self, budget: &Budget) -> Result<(), LedgerError> {
        let scope = budget.ledger_scope();
        let period = budget.period(self.now);
        let (account, grants) = (AccountKey::Budget(scope, period), AccountKey::Grants(scope, period));
        let change = self.missing_of(budget, &account);
        let cause = format!("budget/{scope}/set/{}", self.id());
        let sides = if change >= 0 { (grants, account) } else { (account, grants) };
        self.transfer(sides, change.abs(), cause)
    }

    /// How much more a period's account would have to have; negative where it has too much.
    fn missing_of(&self, budget: &Budget, account: &AccountKey) -> i64 {
        let standing = self.state.books.account(account);
        let used = standing.debits_pending + self.spent_of(account);
        (budget.amount.units() - used).max(0) - standing.available()
    }

    fn spent_of(&self, account: &AccountKey) -> i64 {
        match account {
            AccountKey::Budget(scope, period) => {
                self.state.books.account(&AccountKey::Spent(*scope, *period)).balance()
            }
            _ => 0,
        }
    }

    /// Grants every budget its amount for a period that just began, and moves what runs into that period.
    pub(super) fn grant_budgets(&mut self) {
        let budgets: Vec<_> = self.state.budgets.values().cloned().collect();
        let mut granted: BTreeSet<TenantId> = BTreeSet::new();
        for budget in budgets {
            let (scope, period) = (budget.ledger_scope(), budget.period(self.now));
            let account = AccountKey::Budget(scope, period);
            if self.state.books.knows(&account) {
                continue;
            }
            let cause = format!("budget/{scope}/{period}");
            // A new period's accounts are empty, and no budget is larger than they can hold.
            if self.transfer((AccountKey::Grants(scope, period), account), budget.amount.units(), cause).is_ok() {
                granted.insert(budget.tenant);
            }
        }
        if !granted.is_empty() {
            self.retell(|_, job| granted.contains(&job.tenant));
            self.cover_running(&granted);
        }
    }

    /// Lets budgets that changed bind what runs already.
    fn cover_running(&mut self, tenants: &BTreeSet<TenantId>) {
        let live = self.state.attempts.values().filter(|row| row.state != AttemptState::Ended);
        let covered = |job| self.state.jobs.get(&job).is_some_and(|job| tenants.contains(&job.tenant));
        let live: Vec<_> = live.filter(|row| covered(row.job)).map(|row| row.id).collect();
        live.into_iter().for_each(|attempt| self.renew(attempt));
    }

    /// Whether running jobs are suspended before they overdraw the budget. Funds are never promised further than such a
    /// budget reaches, so what the funds' hold pays is in its hold too; only a budget that was set over work that ran
    /// already holds less, and that work is shown as spent beyond it.
    fn is_strict(&self, scope: BudgetScope) -> bool {
        let budget = self.state.budgets.get(&scope.to_string());
        budget.is_some_and(|row| row.policy == BudgetPolicy::Suspend)
    }

    /// Promises running work its next windows. A job without a run limit holds some windows ahead, one with a limit holds
    /// all of it; budgets hold as much in the period that it is. What cannot be promised any more must not be run: with
    /// two windows left the job is told to stop at a checkpoint. A purchase is never promised more than was agreed; where
    /// it has a run limit, what is missing at its very end is the platform's.
    pub(super) fn renew(&mut self, id: AttemptId) {
        let Some(attempt) = self.state.attempts.get(&id).filter(|row| row.state != AttemptState::Ended) else { return };
        let Some(job) = self.state.jobs.get(&attempt.job) else { return };
        let prepares = self.open_migration(job.id).is_some_and(|row| row.target == Some(id));
        // What stops for another reason costs until it has stopped, and may go on.
        let stops = attempt.order.is_some_and(|order| order.kind == StopCause::SuspendForMoney);
        if stops || !(prepares || job.current == Some(id)) {
            return;
        }
        let (funds, limited) = (attempt.funds, attempt.run_limit.is_some());
        let left = job.spec.max_run_time.map(|limit| limit.minus(job.run_time));
        let agreed = job.purchase.and_then(|purchase| purchase.limit);
        let agreed = agreed.map_or(i64::MAX, |limit| limit.units() - job.net_paid().units());
        let (job, tenant, project) = (job.id, job.tenant, job.project);
        let window = self.state.settings.window;
        let leases = attempt.tasks.iter().filter_map(|task| self.state.leases.get(&task.lease));
        let terms: Vec<_> = leases.map(|row| row.terms).collect();
        let quoted = |span| -> i64 { terms.iter().filter_map(|it| quote(it, span).ok()).map(Credits::units).sum() };
        let cost = quoted(window);
        let full = quoted(self.state.settings.held_ahead());
        self.follow_budgets(id, tenant, project);

        let remaining = self.remaining(funds);
        // Of a run limit's hold, what preparing has cost is missing at its end.
        let ahead = if limited { left.map_or(remaining, quoted) } else { full };
        let aim = ahead.max(remaining);
        let strict = self.budgets_of(id).into_iter().filter(|budget| self.is_strict(budget.scope));
        let reach = strict.map(|budget| self.remaining(budget.hold) + self.room(&budget)).min().unwrap_or(i64::MAX);
        let reach = if limited { reach } else { reach.min(agreed) };
        let own = self.state.books.available(&AccountKey::Funds(tenant)).max(0);
        let target = aim.min(remaining.saturating_add(own)).min(reach);
        let promised = target.min(agreed);
        // Topped up a window at a time at least, not with every window of every task; a run limit's to the unit.
        if promised > remaining && (limited || remaining < ahead - cost) {
            let cause = format!("renew/{job}/{funds}/{}", self.id());
            // Refused only where a sum leaves the ledger's range: then what is held is all there will be.
            let _ = self.extend_hold(funds, promised - remaining, cause);
        }
        self.top_up_budgets(id, self.remaining(funds));
        if target < aim && target < cost.saturating_mul(3) && !prepares {
            self.suspend_for_money(job, id);
        }
    }

    fn budgets_of(&self, id: AttemptId) -> Vec<BudgetHold> {
        self.state.attempts.get(&id).map(|row| row.budgets.clone()).unwrap_or_default()
    }

    fn remaining(&self, hold: HoldId) -> i64 {
        self.state.books.hold(hold).map_or(0, |row| row.remaining)
    }

    /// What a hold's budget could still promise; a period that is over promises nothing more.
    fn room(&self, budget: &BudgetHold) -> i64 {
        let row = self.state.budgets.get(&budget.scope.to_string());
        let current = row.is_some_and(|row| row.period(self.now) == budget.period);
        if current { self.state.books.available(&budget.account()).max(0) } else { 0 }
    }

    /// One hold per budget that covers the job, in the period that it is. The hold of a former period is kept while the
    /// new one cannot promise as much: what was promised pays for the windows until the checkpoint.
    fn follow_budgets(&mut self, id: AttemptId, tenant: TenantId, project: ProjectId) {
        let Some(funds) = self.state.attempts.get(&id).map(|row| row.funds) else { return };
        let promised = self.remaining(funds);
        for key in self.state.budget_accounts(tenant, project, self.now) {
            let AccountKey::Budget(scope, period) = key else { continue };
            let old = self.budgets_of(id).into_iter().find(|budget| budget.scope == scope);
            if old.is_some_and(|old| old.period == period) || !self.state.books.knows(&key) {
                continue;
            }
            let (strict, room) = (self.is_strict(scope), self.state.books.available(&key).max(0));
            if strict && old.is_some() && room < promised {
                continue;
            }
            let hold = HoldId::from_raw(self.id());
            // A budget whose period was changed and changed back is followed twice into the same one.
            let cause = format!("hold/{id}/budget/{scope}/{period}/{}", self.id());
            if self.open_hold(hold, (key, AccountKey::Spent(scope, period)), room.min(promised), cause).is_err() {
                continue;
            }
            if let Some(old) = old {
                self.void_hold(old.hold, format!("roll/{id}/{}", old.hold));
            }
            if let Some(row) = self.state.attempts.get_mut(&id) {
                row.budgets.retain(|budget| budget.scope != scope);
                row.budgets.push(BudgetHold { hold, scope, period });
            }
        }
    }

    /// Lets budgets promise what the funds do, as far as they have it.
    fn top_up_budgets(&mut self, id: AttemptId, promised: i64) {
        for budget in self.budgets_of(id) {
            let more = (promised - self.remaining(budget.hold)).min(self.room(&budget));
            if more > 0 {
                let cause = format!("renew/{id}/{}/{}", budget.hold, self.id());
                // Refused only where a sum leaves the ledger's range: then what is held is all there will be.
                let _ = self.extend_hold(budget.hold, more, cause);
            }
        }
    }

    /// Gives a window's share back to the period it was taken from. A budget that was lowered since, or overspent, does not
    /// get more than its amount leaves.
    pub(super) fn credit_budget(&mut self, share: &BudgetShare, cause: &str) {
        let (scope, period) = (share.scope, share.period);
        let (account, spent) = (AccountKey::Budget(scope, period), AccountKey::Spent(scope, period));
        let grants = AccountKey::Grants(scope, period);
        let parts = [(share.held, account.clone(), ""), (share.over, grants.clone(), "/over")];
        for (amount, to, part) in parts {
            if amount != Credits::ZERO {
                // Only a sum out of the ledger's range is refused; the money itself was credited before.
                let _ = self.transfer((spent.clone(), to), amount.units(), format!("{cause}/{scope}{part}"));
            }
        }
        let Some(budget) = self.state.budgets.get(&scope.to_string()).cloned() else { return };
        let surplus = -self.missing_of(&budget, &account);
        if surplus > 0 {
            let _ = self.transfer((account, grants), surplus, format!("{cause}/{scope}/surplus"));
        }
    }
}
