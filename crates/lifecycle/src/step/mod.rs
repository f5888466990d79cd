//! One step of the writer: commands in, rows out.
//!
//! A step changes the working set in memory and returns the rows that say so. They must be committed in one
//! transaction before anybody outside learns of them; if that fails the working set is dropped and loaded again.
//! Every command either does all of its changes or, refused, none.

mod blobs;
mod budget;
mod end;
mod endpoints;
mod fleet;
mod jobs;
mod manager;
mod migrate;
mod models;
mod money;
mod orders;
mod people;
mod place;
mod quota;
mod report;
mod requests;
mod seal;
mod tick;
mod windows;

pub use jobs::{draft, draft_view};
pub(crate) use quota::{is_reclaimed, waits_for_lent};

use sluice_ledger::{AccountKey, LedgerError, Transfer};
use sluice_types::{HoldId, Reason, Timestamp, TransferId};

use crate::command::{Answer, Caller, Command, Refusal, UserCommand};
use crate::model::{Request, RequestOutcome};
use crate::state::State;
use crate::{Mint, Rows};

/// Surroundings of a step.
pub(crate) struct Step<'a> {
    pub(crate) state: &'a mut State,
    pub(crate) mint: &'a mut Mint,
    pub(crate) now: Timestamp,
}

/// Carries out `commands` in order. Returns an answer or refusal for each, and the rows to commit.
pub fn step(
    state: &mut State,
    commands: Vec<Command>,
    now: Timestamp,
    mint: &mut Mint,
) -> (Vec<Result<Answer, Refusal>>, Rows) {
    let mut run = Step { state, mint, now };
    let answers = commands.into_iter().map(|command| run.command(command)).collect();
    let rows = state.take_rows(now);
    (answers, rows)
}

impl Step<'_> {
    fn command(&mut self, command: Command) -> Result<Answer, Refusal> {
        match command {
            Command::User(caller, command) => self.user(&caller, command),
            Command::Node(node, generation, report) => self.report(node, generation, report),
            Command::Join(join) => self.join(join),
            Command::Copied { site, manifest } => self.copied(site, manifest),
            Command::Forgotten { site, manifests } => self.forgotten(site, &manifests),
            Command::VaultAddress { site, address } => self.vault_address(site, address),
            Command::VaultAway { site } => self.vault_away(site),
            Command::ModelChecked(model, found) => self.model_checked(model, found),
            Command::EndpointLoad { endpoint, queued, running } => self.endpoint_load(endpoint, queued, running),
            Command::OpenRequest(request) => self.open_request(request),
            Command::SettleRequest { id, prompt_tokens, completion_tokens, cached_tokens } => {
                self.settle_request(id, prompt_tokens, completion_tokens, cached_tokens)
            }
            Command::VoidRequest(id, reason) => self.void_request(id, reason),
            Command::Plan(plan) => self.plan(plan),
            Command::Tick => self.tick(),
            Command::Quiesce => self.quiesce(),
        }
    }

    /// A remembered request answers again and does nothing; a new one is remembered with its rows.
    fn user(&mut self, caller: &Caller, command: UserCommand) -> Result<Answer, Refusal> {
        if let Some((key, digest)) = &caller.request
            && let Some(known) = self.state.requests.get(key)
        {
            if known.digest != *digest {
                let message = "this request id was used before with another request";
                return Err(Refusal::new(Reason::RequestIdReused, message));
            }
            let object = match &known.outcome {
                RequestOutcome::Object(id) => id.clone(),
                RequestOutcome::Done => String::new(),
            };
            return Ok(Answer { object, replayed: true, ..Answer::default() });
        }
        manager::check_name(&caller.manager)?;
        let answer = self.dispatch(caller, command)?;
        if let Some((key, digest)) = caller.request {
            let outcome = match answer.object.is_empty() {
                true => RequestOutcome::Done,
                false => RequestOutcome::Object(answer.object.clone()),
            };
            let row = Request { key, digest, outcome, at: self.now };
            self.state.requests.insert(key, row.clone());
            self.state.out.requests.push(row);
        }
        Ok(answer)
    }

    fn dispatch(&mut self, caller: &Caller, command: UserCommand) -> Result<Answer, Refusal> {
        match command {
            UserCommand::CreateTenant(name) => self.create_tenant(caller, name),
            UserCommand::CreateProject(tenant, name) => self.create_project(tenant, name),
            UserCommand::UpdateProject { project, networks, sites } => self.update_project(project, networks, sites),
            UserCommand::CreateKey { tenant, project, role, hash } => self.create_key(tenant, project, role, hash),
            UserCommand::RevokeKey(key) => self.revoke_key(key),
            UserCommand::PutSecret { project, name, sealed } => self.put_secret(project, name, sealed),
            UserCommand::DeleteSecret(project, name) => self.delete_secret(project, &name),
            UserCommand::RecordUpload { project, digest, size, complete } => {
                self.record_upload(project, digest, size, complete)
            }
            UserCommand::Deposit { tenant, amount, note } => self.deposit(tenant, amount, &note),
            UserCommand::SetCreditLine(tenant, amount) => self.set_credit_line(tenant, amount),
            UserCommand::SetPrices(prices) => self.set_prices(prices),
            UserCommand::SetQuota(wanted) => self.set_quota(caller, wanted),
            UserCommand::DeleteQuota(key, version) => self.delete_quota(caller, &key, version),
            UserCommand::SetManager { object, manager, detach } => self.set_manager(caller, &object, manager, detach),
            UserCommand::SetBudget { tenant, project, amount, period_seconds, policy } => {
                self.set_budget(tenant, project, amount, period_seconds, policy)
            }
            UserCommand::CreateSite(name) => self.create_site(name),
            UserCommand::CreateJoinToken { hash, site, kind, expires } => {
                self.create_join_token(hash, site, kind, expires)
            }
            UserCommand::SetNode { node, cordoned, draining, reason } => {
                self.set_node(node, cordoned, draining, reason)
            }
            UserCommand::Submit { project, name, spec } => self.submit(caller, project, name, spec),
            UserCommand::Validate(project, spec) => self.validate(caller, project, spec),
            UserCommand::CreateOrder { project, name, legs, limit, home, begins_at } => {
                self.create_order(caller, (project, name), &legs, limit, home.map(|home| *home), begins_at)
            }
            UserCommand::ReleaseOrder(order, legs) => self.release_order(caller, order, &legs),
            UserCommand::ImportModel(model) => self.import_model(caller, *model),
            UserCommand::DeleteModel(model) => self.delete_model(caller, model),
            UserCommand::CreateEndpoint(endpoint) => self.create_endpoint(caller, *endpoint),
            UserCommand::UpdateEndpoint(endpoint, version, change) => self.update_endpoint(endpoint, version, change),
            UserCommand::DeleteEndpoint(endpoint) => self.delete_endpoint(endpoint),
            UserCommand::Cancel(job, version) => self.cancel(caller, job, version),
            UserCommand::Suspend(job, version) => self.suspend(caller, job, version),
            UserCommand::Resume(job, version) => self.resume(caller, job, version),
            UserCommand::Migrate(job, site, version) => self.migrate(caller, job, site, version),
        }
    }

    pub(crate) fn id(&mut self) -> u64 {
        self.mint.next(self.now)
    }

    /// Records a ledger entry that was just made.
    fn record(&mut self, entry: Result<Transfer, LedgerError>) -> Result<(), LedgerError> {
        entry.map(|transfer| self.state.out.transfers.push(transfer))
    }

    pub(crate) fn transfer(
        &mut self,
        sides: (AccountKey, AccountKey),
        amount: i64,
        cause: String,
    ) -> Result<(), LedgerError> {
        let id = TransferId::from_raw(self.id());
        let entry = self.state.books.transfer(id, sides, amount, cause, self.now);
        self.record(entry)
    }

    pub(crate) fn open_hold(
        &mut self,
        hold: HoldId,
        sides: (AccountKey, AccountKey),
        amount: i64,
        cause: String,
    ) -> Result<(), LedgerError> {
        let id = TransferId::from_raw(self.id());
        let entry = self.state.books.open_hold(id, hold, sides, amount, cause, self.now);
        self.record(entry)
    }

    pub(crate) fn extend_hold(&mut self, hold: HoldId, amount: i64, cause: String) -> Result<(), LedgerError> {
        let id = TransferId::from_raw(self.id());
        let entry = self.state.books.extend(id, hold, amount, cause, self.now);
        self.record(entry)
    }

    pub(crate) fn reduce_hold(&mut self, hold: HoldId, amount: i64, cause: String) -> Result<(), LedgerError> {
        let id = TransferId::from_raw(self.id());
        let entry = self.state.books.reduce(id, hold, amount, cause, self.now);
        self.record(entry)
    }

    pub(crate) fn post_hold(&mut self, hold: HoldId, amount: i64, cause: String) -> Result<(), LedgerError> {
        let id = TransferId::from_raw(self.id());
        let entry = self.state.books.post(id, hold, amount, cause, self.now);
        self.record(entry)
    }

    /// Closes a hold that may be closed already.
    pub(crate) fn void_hold(&mut self, hold: HoldId, cause: String) {
        if self.state.books.hold(hold).is_some() {
            let id = TransferId::from_raw(self.id());
            let entry = self.state.books.void(id, hold, cause, self.now);
            self.record(entry).expect("invariant: a known hold can be voided");
        }
    }
}

/// What the ledger refused, in the words of the API.
pub(crate) fn money_refusal(error: &LedgerError) -> Refusal {
    match error {
        LedgerError::Insufficient { account, missing, .. } => {
            let (reason, what) = match account {
                AccountKey::Budget(..) => (Reason::BudgetExhausted, "the budget"),
                _ => (Reason::InsufficientFunds, "the funds"),
            };
            Refusal::new(reason, format!("{what} lacks {missing}"))
        }
        _ => Refusal::field("amount", error.to_string()),
    }
}
