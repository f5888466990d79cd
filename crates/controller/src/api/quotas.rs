//! Quotas as users see them: what is set, and from the ledger what is used, borrowed and lent.

use std::collections::BTreeMap;

use sluice_ledger::{AccountKey, Cohort, CohortKey, QuotaKey, QuotaLimits, QuotaUse};
use sluice_lifecycle::model::{JobState, Quota, QuotaPolicy};
use sluice_lifecycle::{SetQuota, UserCommand};
use sluice_proto::convert::{self, QuotaStanding};
use sluice_proto::error::refuse_field;
use sluice_proto::v1;
use sluice_store::{JobFilter, MAX_PAGE, Page};
use sluice_types::{Reason, TenantId};
use tonic::Status;

use super::{Api, Mutation, not_found, store_status};
use crate::principal::Principal;

/// Stands for all who use a class at a site without a quota of it. No tenant has this id.
const OTHERS: TenantId = TenantId::from_raw(u64::MAX);

impl Api {
    /// "tenants/{tenant}/quotas/{site}/{class}", with "-" for all sites.
    pub(super) fn quota_key(&self, who: &Principal, field: &str, text: &str) -> Result<QuotaKey, Status> {
        let wrong = || refuse_field(field, "a name of the form tenants/{tenant}/quotas/{site}/{class}");
        let (tenant, rest) = text.split_once("/quotas/").ok_or_else(wrong)?;
        let (site, class) = rest.split_once('/').ok_or_else(wrong)?;
        let tenant = self.tenant(who, field, tenant)?.id;
        let site = match site {
            "-" => None,
            name => Some(self.site(field, &format!("sites/{name}"))?.id),
        };
        Ok(QuotaKey { tenant, site, class: Self::fresh_name(field, class)? })
    }

    /// What a request's etag says; `None` where it says nothing.
    pub(super) fn quota_version(etag: &str) -> Result<Option<u64>, Status> {
        match etag {
            "" => Ok(None),
            text => text.parse().map(Some).map_err(|_| refuse_field("etag", "an etag from a quota that you read")),
        }
    }

    pub(super) async fn put_quota(
        &self,
        who: &Principal,
        method: &'static str,
        message: v1::SetQuotaRequest,
    ) -> Result<v1::Quota, Status> {
        let tenant = self.tenant(who, "tenant", &message.tenant)?.id;
        let class = Self::fresh_name("device_class", &message.device_class)?;
        let site = match message.site.as_str() {
            "" => None,
            name => Some(self.site("site", name)?.id),
        };
        let key = QuotaKey { tenant, site, class };
        let policy = match message.policy() {
            v1::QuotaPolicy::Unspecified | v1::QuotaPolicy::Refuse => QuotaPolicy::Refuse,
            v1::QuotaPolicy::Drain => QuotaPolicy::Drain,
        };
        let limits =
            QuotaLimits { nominal: message.nominal_milli, borrow: message.borrow_milli, lend: message.lend_milli };
        let version = Self::quota_version(&message.etag)?;
        let mutation = Mutation { who, method, request_id: &message.request_id, message: &message };
        let command = UserCommand::SetQuota(SetQuota { key: key.clone(), limits, policy, version });
        self.change_as(mutation, &message.manager, command).await?;
        self.read_quota(&key).await
    }

    pub(super) async fn drop_quota(
        &self,
        who: &Principal,
        method: &'static str,
        message: v1::DeleteQuotaRequest,
    ) -> Result<v1::Quota, Status> {
        let key = self.quota_key(who, "name", &message.name)?;
        let version = Self::quota_version(&message.etag)?;
        let before = self.store.get_quota(&key).await.map_err(store_status)?;
        let mutation = Mutation { who, method, request_id: &message.request_id, message: &message };
        self.change_as(mutation, &message.manager, UserCommand::DeleteQuota(key.clone(), version)).await?;
        // A retry finds nothing any more, and is told so by the name alone.
        let Some(row) = before else {
            let tenant = message.name.split("/quotas/").next().unwrap_or_default().to_owned();
            return Ok(v1::Quota { tenant, name: message.name, deleted: true, ..v1::Quota::default() });
        };
        let row = Quota { deleted: true, ..row };
        let standing = self.standings(std::slice::from_ref(&row)).await?;
        Ok(self.show_quota(&row, standing.first().copied().unwrap_or_default()))
    }

    pub(super) async fn read_quota(&self, key: &QuotaKey) -> Result<v1::Quota, Status> {
        let row = self.store.get_quota(key).await.map_err(store_status)?.ok_or_else(|| not_found("quota"))?;
        let standing = self.standings(std::slice::from_ref(&row)).await?;
        Ok(self.show_quota(&row, standing.first().copied().unwrap_or_default()))
    }

    pub(super) async fn read_quotas(&self, tenant: TenantId) -> Result<Vec<v1::Quota>, Status> {
        let rows = self.store.quotas_of(tenant).await.map_err(store_status)?;
        let standings = self.standings(&rows).await?;
        Ok(rows.iter().zip(standings).map(|(row, standing)| self.show_quota(row, standing)).collect())
    }

    fn show_quota(&self, row: &Quota, standing: QuotaStanding) -> v1::Quota {
        let directory = self.directory.read();
        let tenant = directory.tenants.get(&row.key.tenant).map(|row| row.name.to_string()).unwrap_or_default();
        let site = row.key.site.and_then(|site| directory.sites.get(&site)).map(|row| row.name.to_string());
        convert::quota(row, &tenant, site.as_deref(), standing)
    }

    /// What is used of one tenant's quotas, in their order.
    async fn standings(&self, rows: &[Quota]) -> Result<Vec<QuotaStanding>, Status> {
        let Some(first) = rows.first() else { return Ok(Vec::new()) };
        let stopping = self.stopping(first.key.tenant).await?;
        let mut standings = Vec::with_capacity(rows.len());
        for row in rows {
            let cohort = self.cohort(row).await?;
            let tenant = row.key.tenant;
            let used = cohort.used(tenant);
            standings.push(QuotaStanding {
                used: used.total,
                firm: used.firm,
                borrowed: cohort.borrowed(tenant),
                lent: cohort.lent(tenant),
                available: cohort.available(tenant),
                stopping: stopping.get(&row.key).copied().unwrap_or(0),
            });
        }
        Ok(standings)
    }

    /// The quotas of a row's cohort with what is held of them.
    async fn cohort(&self, row: &Quota) -> Result<Cohort, Status> {
        let mut cohort = Cohort::default();
        let mut members = vec![row.clone()];
        if let CohortKey::Site(site, class) = row.key.cohort() {
            members.clear();
            let mut page = Page::first(MAX_PAGE);
            loop {
                let rows = self.store.quotas_at(site, &class, page).await.map_err(store_status)?;
                page.after = rows.last().map(|row| row.key.tenant);
                let last = rows.len() < MAX_PAGE as usize;
                members.extend(rows);
                if last {
                    break;
                }
            }
        }
        for rows in members.chunks(MAX_PAGE as usize) {
            let key = |row: &Quota| AccountKey::Entitled(row.key.tenant, row.key.site, row.key.class.clone());
            let held = self.held_of(rows.iter().map(key).collect()).await?;
            for member in rows {
                cohort.set_limits(member.key.tenant, Some(member.limits));
                let total = held.get(&key(member)).copied().unwrap_or(0);
                cohort.set_used(member.key.tenant, QuotaUse { total, firm: 0 });
            }
        }
        if let CohortKey::Site(site, class) = row.key.cohort() {
            let firm = AccountKey::Firm(row.key.tenant, site, class.clone());
            let pool = AccountKey::Pool(site, class);
            let held = self.held_of(vec![firm.clone(), pool.clone()]).await?;
            let of = |key| held.get(key).copied().unwrap_or(0);
            let total = cohort.used(row.key.tenant).total;
            cohort.set_used(row.key.tenant, QuotaUse { total, firm: of(&firm) });
            let others = (of(&pool) - cohort.pooled()).max(0);
            cohort.set_used(OTHERS, QuotaUse { total: others, firm: 0 });
        }
        Ok(cohort)
    }

    /// What is promised from accounts.
    async fn held_of(&self, keys: Vec<AccountKey>) -> Result<BTreeMap<AccountKey, i64>, Status> {
        let rows = self.store.accounts(&keys).await.map_err(store_status)?;
        Ok(rows.into_iter().map(|row| (row.key, row.debits_pending)).collect())
    }

    /// What of a tenant's use was told to stop for want of quota.
    async fn stopping(&self, tenant: TenantId) -> Result<BTreeMap<QuotaKey, i64>, Status> {
        let filter = JobFilter { tenant: Some(tenant), states: vec![JobState::Suspending], ..JobFilter::default() };
        let jobs = self.store.list_jobs(&filter, Page::first(MAX_PAGE)).await.map_err(store_status)?;
        let jobs: Vec<_> = jobs.into_iter().filter(|job| job.reason == Some(Reason::QuotaReclaimed)).collect();
        let mut stopping = BTreeMap::new();
        if jobs.is_empty() {
            return Ok(stopping);
        }
        let ids: Vec<_> = jobs.iter().filter_map(|job| job.current).collect();
        let attempts = self.store.attempts_by_ids(&ids).await.map_err(store_status)?;
        for attempt in attempts {
            let Some(job) = jobs.iter().find(|job| job.id == attempt.job) else { continue };
            let class = job.spec.resources.class.clone();
            for site in [Some(attempt.site), None] {
                *stopping.entry(QuotaKey { tenant, site, class: class.clone() }).or_insert(0) += attempt.charge;
            }
        }
        Ok(stopping)
    }
}
