//! Requests to endpoints, as money sees them: reserved before they begin, settled once.
//!
//! A request lives in one gateway only. What is open when a controller starts was in a gateway that is gone: the first tick
//! credits it whole.

use sluice_ledger::{AccountKey, TokenPrice};
use sluice_types::{Credits, HoldId, Reason, RequestId};

use super::people::bounded;
use super::{Step, money_refusal};
use crate::command::{Answer, OpenRequest, Refusal};
use crate::model::{BudgetHold, InferenceRequest, InferenceState, RequestHold};

/// Open requests of one tenant that calls.
const MAX_OPEN: usize = 1024;
/// Tokens of one ceiling: more than any context has.
const MAX_TOKENS: u64 = 1 << 32;

impl Step<'_> {
    pub(super) fn open_request(&mut self, wanted: OpenRequest) -> Result<Answer, Refusal> {
        let endpoint = self.active_endpoint(wanted.endpoint)?;
        let project = self.state.projects.get(&wanted.project).filter(|row| row.tenant == wanted.tenant);
        if project.is_none() {
            return Err(Refusal::not_found("project"));
        }
        let stranger = wanted.tenant != endpoint.tenant;
        if stranger && !endpoint.public {
            return Err(Refusal::not_found("endpoint"));
        }
        if wanted.prompt_ceiling > MAX_TOKENS || wanted.completion_ceiling > MAX_TOKENS {
            return Err(Refusal::field("max_tokens", "more than any context has"));
        }
        let (owner, price) = (endpoint.tenant, endpoint.price.filter(|_| stranger));
        let open = self.state.serving.open.get(&wanted.tenant).copied().unwrap_or(0);
        bounded(open, MAX_OPEN, "requests of one tenant at once")?;
        let ceiling = cost(price, wanted.prompt_ceiling, wanted.completion_ceiling)
            .ok_or_else(|| Refusal::field("max_tokens", "the price of so many tokens is out of range"))?;
        let id = RequestId::from_raw(self.id());
        let hold = match ceiling {
            Credits::ZERO => None,
            _ => Some(self.hold_request(id, &wanted, owner, ceiling)?),
        };
        let row = InferenceRequest {
            id,
            endpoint: wanted.endpoint,
            owner,
            tenant: wanted.tenant,
            project: wanted.project,
            key: wanted.key,
            price,
            prompt_ceiling: wanted.prompt_ceiling,
            completion_ceiling: wanted.completion_ceiling,
            ceiling,
            hold,
            state: InferenceState::Open,
            prompt_tokens: 0,
            completion_tokens: 0,
            cached_tokens: 0,
            amount: Credits::ZERO,
            reason: None,
            opened: self.now,
            closed: None,
        };
        *self.state.serving.open.entry(wanted.tenant).or_default() += 1;
        self.state.serving.requests.insert(id, row);
        Ok(Answer { object: id.to_string(), ..Answer::default() })
    }

    /// Holds the ceiling on the caller's funds and budgets, on all of them or on none.
    fn hold_request(
        &mut self,
        id: RequestId,
        wanted: &OpenRequest,
        owner: sluice_types::TenantId,
        ceiling: Credits,
    ) -> Result<RequestHold, Refusal> {
        let budgets = self.state.budget_accounts(wanted.tenant, wanted.project, self.now);
        if let Some(key) = budgets.iter().find(|key| !self.state.books.knows(key)) {
            // The next tick grants it.
            return Err(Refusal::new(Reason::Unavailable, format!("a period of {key} begins; try again")));
        }
        let mut sides = vec![(AccountKey::Funds(wanted.tenant), AccountKey::Funds(owner), format!("request/{id}"))];
        for key in &budgets {
            if let AccountKey::Budget(scope, period) = key {
                let spent = AccountKey::Spent(*scope, *period);
                sides.push((key.clone(), spent, format!("request/{id}/budget/{scope}")));
            }
        }
        let mut holds: Vec<HoldId> = Vec::with_capacity(sides.len());
        for (debit, credit, cause) in sides {
            let hold = HoldId::from_raw(self.id());
            if let Err(error) = self.open_hold(hold, (debit, credit), ceiling.units(), cause) {
                holds.into_iter().for_each(|hold| self.void_hold(hold, format!("void/{hold}")));
                return Err(money_refusal(&error));
            }
            holds.push(hold);
        }
        let funds = holds.remove(0);
        let budgets = budgets.iter().zip(holds).filter_map(|(key, hold)| match *key {
            AccountKey::Budget(scope, period) => Some(BudgetHold { hold, scope, period }),
            _ => None,
        });
        Ok(RequestHold { funds, budgets: budgets.collect() })
    }

    /// Pays for exactly what was delivered, never for more than was held.
    pub(super) fn settle_request(
        &mut self,
        id: RequestId,
        prompt: u64,
        completion: u64,
        cached: u64,
    ) -> Result<Answer, Refusal> {
        let row = self.open_row(id)?;
        // Beyond what was reserved the platform has erred, not the caller.
        let (billed_prompt, billed_completion) =
            (prompt.min(row.prompt_ceiling), completion.min(row.completion_ceiling));
        let amount = cost(row.price, billed_prompt, billed_completion).unwrap_or(row.ceiling).min(row.ceiling);
        if let Some(hold) = &row.hold {
            let why = "invariant: no more is posted than remains";
            for held in std::iter::once(hold.funds).chain(hold.budgets.iter().map(|budget| budget.hold)) {
                if amount != Credits::ZERO {
                    self.post_hold(held, amount.units(), format!("settle/{id}/{held}")).expect(why);
                }
                self.void_hold(held, format!("void/{held}"));
            }
        }
        if let Some(endpoint) = self.state.serving.endpoints.get_mut(&row.endpoint) {
            let totals = &mut endpoint.totals;
            totals.settled += 1;
            totals.prompt_tokens = totals.prompt_tokens.saturating_add(prompt);
            totals.cached_tokens = totals.cached_tokens.saturating_add(cached);
            totals.completion_tokens = totals.completion_tokens.saturating_add(completion);
            totals.amount = totals.amount.checked_add(amount).unwrap_or(totals.amount);
        }
        if let Some(row) = self.state.serving.requests.get_mut(&id) {
            (row.prompt_tokens, row.completion_tokens, row.cached_tokens) = (prompt, completion, cached);
            row.amount = amount;
        }
        self.close_request(id, InferenceState::Settled, None);
        Ok(Answer { object: id.to_string(), ..Answer::default() })
    }

    pub(super) fn void_request(&mut self, id: RequestId, reason: Reason) -> Result<Answer, Refusal> {
        let row = self.open_row(id)?;
        if let Some(hold) = &row.hold {
            for held in std::iter::once(hold.funds).chain(hold.budgets.iter().map(|budget| budget.hold)) {
                self.void_hold(held, format!("void/{held}"));
            }
        }
        if let Some(endpoint) = self.state.serving.endpoints.get_mut(&row.endpoint) {
            endpoint.totals.voided += 1;
        }
        self.close_request(id, InferenceState::Voided, Some(reason));
        Ok(Answer { object: id.to_string(), ..Answer::default() })
    }

    /// Requests whose gateway ended before this start.
    pub(super) fn void_lost_requests(&mut self) {
        for id in std::mem::take(&mut self.state.serving.lost) {
            // One that is over already was settled by somebody who knew it.
            let _ = self.void_request(id, Reason::GatewayLost);
        }
    }

    fn open_row(&self, id: RequestId) -> Result<InferenceRequest, Refusal> {
        let row = self.state.serving.requests.get(&id).filter(|row| row.state == InferenceState::Open);
        row.cloned().ok_or_else(|| Refusal::new(Reason::WrongState, "the request is over, or never was"))
    }

    fn close_request(&mut self, id: RequestId, state: InferenceState, reason: Option<Reason>) {
        let now = self.now;
        let Some(row) = self.state.serving.requests.get_mut(&id) else { return };
        (row.state, row.reason, row.closed, row.hold) = (state, reason, Some(now), None);
        let tenant = row.tenant;
        if let Some(open) = self.state.serving.open.get_mut(&tenant) {
            *open = open.saturating_sub(1);
        }
    }
}

/// What tokens cost; nothing where there is no price.
fn cost(price: Option<TokenPrice>, prompt: u64, completion: u64) -> Option<Credits> {
    price.map_or(Some(Credits::ZERO), |price| price.cost(prompt, completion).ok())
}
