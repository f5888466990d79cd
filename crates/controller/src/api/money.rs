//! `MoneyService`.

use sluice_ledger::{AccountKey, BudgetScope, Transfer};
use sluice_lifecycle::UserCommand;
use sluice_lifecycle::model::{Budget, BudgetPolicy, Window};
use sluice_proto::convert;
use sluice_proto::error::refuse_field;
use sluice_proto::v1;
use sluice_proto::v1::money_service_server::MoneyService;
use sluice_store::{Page, WindowPlace, WindowScope};
use sluice_types::{Credits, LeaseId, PriceVersion, Timestamp, TransferId};
use tonic::{Request, Response, Status};

use super::names::Parent;
use super::{Api, Mutation, not_found, page, refused, store_status};
use crate::principal::Principal;

const MAX_NOTE: usize = 256;
const MAX_BUDGETS: u32 = 1000;
/// Every instant that a row can have.
const ALL_TIME: std::ops::Range<Timestamp> = Timestamp::from_nanos(0)..Timestamp::from_nanos(u64::MAX >> 1);

impl Api {
    async fn balance(&self, tenant: &sluice_lifecycle::model::Tenant) -> Result<Response<v1::Balance>, Status> {
        let key = AccountKey::Funds(tenant.id);
        let rows = self.store.accounts(std::slice::from_ref(&key)).await.map_err(store_status)?;
        let funds = rows.into_iter().next().unwrap_or_else(|| sluice_ledger::Account::empty(key));
        Ok(Response::new(convert::balance(tenant.name.as_str(), &funds)))
    }

    async fn book(&self, version: Option<PriceVersion>) -> Result<Response<v1::PriceBook>, Status> {
        let book = match version {
            Some(version) => self.store.prices(version).await,
            None => self.store.latest_prices().await,
        };
        let book = book.map_err(store_status)?;
        let directory = self.directory.read();
        Ok(Response::new(book.map(|book| convert::prices(&book, &*directory)).unwrap_or_default()))
    }

    async fn show_budget(&self, row: &Budget) -> Result<v1::Budget, Status> {
        let scope = match row.ledger_scope() {
            BudgetScope::Tenant(tenant) => self.directory.read().tenant_path(tenant),
            BudgetScope::Project(project) => self.directory.read().project_path(project),
        };
        let key = AccountKey::Budget(row.ledger_scope(), row.period(self.clock.now()));
        let account = self.store.accounts(&[key]).await.map_err(store_status)?.into_iter().next();
        // Before its first tick a period has no account yet; then all of the amount is left.
        let remaining = account.map_or(row.amount.units(), |account| account.available());
        Ok(convert::budget(row, scope, remaining))
    }
}

#[tonic::async_trait]
impl MoneyService for Api {
    async fn deposit(&self, request: Request<v1::DepositRequest>) -> Result<Response<v1::Balance>, Status> {
        let method = "sluice.v1.MoneyService/Deposit";
        let who = self.who(&request, method)?;
        let message = request.into_inner();
        let tenant = self.tenant(&who, "tenant", &message.tenant)?;
        if message.note.len() > MAX_NOTE {
            return Err(refuse_field("note", format!("at most {MAX_NOTE} bytes")));
        }
        let amount = Credits::new(message.amount_credits);
        let mutation = Mutation { who: &who, method, request_id: &message.request_id, message: &message };
        let command = UserCommand::Deposit { tenant: tenant.id, amount, note: message.note.clone() };
        self.change(mutation, command).await?;
        self.balance(&tenant).await
    }

    async fn set_credit_line(
        &self,
        request: Request<v1::SetCreditLineRequest>,
    ) -> Result<Response<v1::Balance>, Status> {
        let method = "sluice.v1.MoneyService/SetCreditLine";
        let who = self.who(&request, method)?;
        let message = request.into_inner();
        let tenant = self.tenant(&who, "tenant", &message.tenant)?;
        let mutation = Mutation { who: &who, method, request_id: &message.request_id, message: &message };
        let command = UserCommand::SetCreditLine(tenant.id, Credits::new(message.amount_credits));
        self.change_as(mutation, &message.manager, command).await?;
        self.balance(&tenant).await
    }

    async fn get_balance(&self, request: Request<v1::GetBalanceRequest>) -> Result<Response<v1::Balance>, Status> {
        let who = self.who(&request, "sluice.v1.MoneyService/GetBalance")?;
        let tenant = self.tenant(&who, "tenant", &request.into_inner().tenant)?;
        self.balance(&tenant).await
    }

    async fn set_prices(&self, request: Request<v1::SetPricesRequest>) -> Result<Response<v1::PriceBook>, Status> {
        let method = "sluice.v1.MoneyService/SetPrices";
        let who = self.who(&request, method)?;
        let message = request.into_inner();
        let prices = {
            let directory = self.directory.read();
            let rows = message.prices.iter().take(1001).map(|row| convert::price(row, &*directory));
            rows.collect::<Result<Vec<_>, _>>().map_err(refused)?
        };
        let mutation = Mutation { who: &who, method, request_id: &message.request_id, message: &message };
        let answer = self.change(mutation, UserCommand::SetPrices(prices)).await?;
        self.book(answer.object.parse().ok()).await
    }

    async fn get_prices(&self, request: Request<v1::GetPricesRequest>) -> Result<Response<v1::PriceBook>, Status> {
        self.who(&request, "sluice.v1.MoneyService/GetPrices")?;
        let message = request.into_inner();
        let version = match message.version.as_str() {
            "" => None,
            text => Some(text.parse().map_err(|_| refuse_field("version", "a version such as prc-…"))?),
        };
        self.book(version).await
    }

    async fn set_quota(&self, request: Request<v1::SetQuotaRequest>) -> Result<Response<v1::Quota>, Status> {
        let method = "sluice.v1.MoneyService/SetQuota";
        let who = self.who(&request, method)?;
        let message = request.into_inner();
        Ok(Response::new(self.put_quota(&who, method, message).await?))
    }

    async fn delete_quota(&self, request: Request<v1::DeleteQuotaRequest>) -> Result<Response<v1::Quota>, Status> {
        let method = "sluice.v1.MoneyService/DeleteQuota";
        let who = self.who(&request, method)?;
        Ok(Response::new(self.drop_quota(&who, method, request.into_inner()).await?))
    }

    async fn get_quota(&self, request: Request<v1::GetQuotaRequest>) -> Result<Response<v1::Quota>, Status> {
        let who = self.who(&request, "sluice.v1.MoneyService/GetQuota")?;
        let key = self.quota_key(&who, "name", &request.into_inner().name)?;
        Ok(Response::new(self.read_quota(&key).await?))
    }

    async fn list_quotas(
        &self,
        request: Request<v1::ListQuotasRequest>,
    ) -> Result<Response<v1::ListQuotasResponse>, Status> {
        let who = self.who(&request, "sluice.v1.MoneyService/ListQuotas")?;
        let tenant = self.tenant(&who, "tenant", &request.into_inner().tenant)?;
        Ok(Response::new(v1::ListQuotasResponse { quotas: self.read_quotas(tenant.id).await? }))
    }

    async fn set_budget(&self, request: Request<v1::SetBudgetRequest>) -> Result<Response<v1::Budget>, Status> {
        let method = "sluice.v1.MoneyService/SetBudget";
        let who = self.who(&request, method)?;
        let message = request.into_inner();
        let (tenant, project) = match message.scope.contains("/projects/") {
            true => {
                let project = self.project(&who, "scope", &message.scope)?;
                (project.tenant, Some(project.id))
            }
            false => (self.tenant(&who, "scope", &message.scope)?.id, None),
        };
        let policy = match message.policy() {
            v1::BudgetPolicy::Unspecified | v1::BudgetPolicy::Suspend => BudgetPolicy::Suspend,
            v1::BudgetPolicy::AdmissionOnly => BudgetPolicy::AdmissionOnly,
        };
        let (amount, period_seconds) = (Credits::new(message.amount_credits), message.period_seconds);
        let mutation = Mutation { who: &who, method, request_id: &message.request_id, message: &message };
        let command = UserCommand::SetBudget { tenant, project, amount, period_seconds, policy };
        let answer = self.change(mutation, command).await?;
        let row = Budget { scope: answer.object, tenant, project, amount, period_seconds, policy };
        Ok(Response::new(self.show_budget(&row).await?))
    }

    async fn list_budgets(
        &self,
        request: Request<v1::ListBudgetsRequest>,
    ) -> Result<Response<v1::ListBudgetsResponse>, Status> {
        let who = self.who(&request, "sluice.v1.MoneyService/ListBudgets")?;
        let tenant = self.tenant(&who, "tenant", &request.into_inner().tenant)?;
        let rows = self.store.budgets_of(tenant.id, Page::first(MAX_BUDGETS)).await.map_err(store_status)?;
        let mut budgets = Vec::with_capacity(rows.len());
        for row in &rows {
            if row.project.is_none_or(|project| who.sees_project(row.tenant, project)) {
                budgets.push(self.show_budget(row).await?);
            }
        }
        Ok(Response::new(v1::ListBudgetsResponse { budgets }))
    }

    async fn list_usage(
        &self,
        request: Request<v1::ListUsageRequest>,
    ) -> Result<Response<v1::ListUsageResponse>, Status> {
        let who = self.who(&request, "sluice.v1.MoneyService/ListUsage")?;
        let message = request.into_inner();
        let scope = match self.parent(&who, "parent", &message.parent).await? {
            Parent::All => return Err(refuse_field("parent", "one tenant, project or job")),
            Parent::Tenant(tenant) if who.key.project.is_none() => WindowScope::Tenant(tenant.id),
            // A key of one project sees that project's windows only.
            Parent::Tenant(_) => WindowScope::Project(who.key.project.ok_or_else(|| not_found("project"))?),
            Parent::Project(project) => WindowScope::Project(project.id),
            Parent::Job(job) => WindowScope::Job(job.id),
        };
        let limit = page::size(message.page_size)?;
        let after = match message.page_token.as_str() {
            "" => None,
            token => Some(self.open_token::<Place>("usage", token)?.0),
        };
        let rows = self.store.windows_of(scope, ALL_TIME, Page { after, limit }).await.map_err(store_status)?;
        let last = page::last(&rows, limit, |row| Place(WindowPlace::from(row)));
        let next_page_token = self.next_token("usage", last);
        let windows = self.show_windows(&rows).await?;
        Ok(Response::new(v1::ListUsageResponse { windows, next_page_token }))
    }

    async fn get_receipt(&self, request: Request<v1::GetReceiptRequest>) -> Result<Response<v1::Receipt>, Status> {
        let who = self.who(&request, "sluice.v1.MoneyService/GetReceipt")?;
        let message = request.into_inner();
        let job = self.job(&who, "job", &message.job).await?;
        Ok(Response::new(self.receipt(&job, message.job).await?))
    }

    async fn list_transfers(
        &self,
        request: Request<v1::ListTransfersRequest>,
    ) -> Result<Response<v1::ListTransfersResponse>, Status> {
        let who = self.who(&request, "sluice.v1.MoneyService/ListTransfers")?;
        let message = request.into_inner();
        let tenant = self.tenant(&who, "tenant", &message.tenant)?;
        let page = self.page::<TransferId>("transfers", message.page_size, &message.page_token)?;
        let accounts = self.store.accounts_of(tenant.id, Page::first(1000)).await.map_err(store_status)?;
        // Funds first: the store looks at 16 accounts at most, and the rest are permissions, not money.
        let funds = AccountKey::Funds(tenant.id);
        let others = accounts.into_iter().map(|account| account.key).filter(|key| *key != funds).rev().take(15);
        let keys: Vec<_> = std::iter::once(funds.clone()).chain(others).collect();
        let rows = self.store.transfers_of(&keys, page).await.map_err(store_status)?;
        let next_page_token = self.next_token("transfers", page::last(&rows, page.limit, |row| row.id));
        let transfers = rows.iter().map(|row| shown_transfer(&who, row)).collect();
        Ok(Response::new(v1::ListTransfersResponse { transfers, next_page_token }))
    }
}

impl Api {
    /// Windows with their leases' shares and the names of where they were.
    async fn show_windows(&self, rows: &[Window]) -> Result<Vec<v1::Window>, Status> {
        let mut windows = Vec::with_capacity(rows.len());
        let mut lease = None;
        for row in rows {
            if lease.as_ref().is_none_or(|known: &sluice_lifecycle::model::Lease| known.id != row.lease) {
                lease = self.store.get_lease(row.lease).await.map_err(store_status)?;
            }
            let (job, site, node) = {
                let directory = self.directory.read();
                let job = format!("{}/jobs/{}", directory.project_path(row.project), row.job);
                let site = directory.sites.get(&row.site).map(|site| format!("sites/{}", site.name));
                (job, site.unwrap_or_default(), directory.node_path(row.node))
            };
            windows.push(convert::window(row, lease.as_ref(), job, site, node));
        }
        Ok(windows)
    }
}

/// A window's place as the text of a token.
struct Place(WindowPlace);

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}~{}~{}", self.0.at.nanos(), self.0.lease, self.0.sequence)
    }
}

impl std::str::FromStr for Place {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let mut parts = text.split('~');
        let at = parts.next().and_then(|part| part.parse().ok()).ok_or(())?;
        let lease: LeaseId = parts.next().and_then(|part| part.parse().ok()).ok_or(())?;
        let sequence = parts.next().and_then(|part| part.parse().ok()).ok_or(())?;
        Ok(Self(WindowPlace { at: Timestamp::from_nanos(at), lease, sequence }))
    }
}

/// What is paid for requests to an endpoint goes from one tenant to another: neither learns which.
fn shown_transfer(who: &Principal, row: &Transfer) -> v1::LedgerTransfer {
    let mut shown = convert::transfer(row);
    let hidden = |key: &AccountKey| matches!(key, AccountKey::Funds(tenant) if !who.sees_tenant(*tenant));
    if hidden(&row.debit) {
        shown.debit = "funds/-".to_owned();
    }
    if hidden(&row.credit) {
        shown.credit = "funds/-".to_owned();
    }
    shown
}
