//! Carries GpuQuotas to the ledger, and what is used of them back.

use std::sync::Arc;
use std::time::Duration;

use kube::ResourceExt as _;
use kube::runtime::controller::Action;
use kube::runtime::reflector::ObjectRef;
use sluice_proto::v1;
use tonic::Code;

use super::convert::milli;
use super::decide::{DETACHED, not_bound};
use super::gate::{Refused, Said, said, timed};
use super::identity::request_id;
use super::index::Acts;
use super::{Context, Error, write};
use crate::api::{GpuQuota, GpuQuotaStatus, LoweringPolicy, Standing, conditions};

/// How often use is read where nothing says that it changed.
const LOOK: Duration = Duration::from_secs(10);
/// How often it is tried again to lower what is in use.
const AGAIN: Duration = Duration::from_secs(3);
/// A quota as its manifest wants it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Wanted {
    nominal: i64,
    borrow: i64,
    lend: i64,
    policy: v1::QuotaPolicy,
}

impl Wanted {
    fn of(object: &GpuQuota) -> Result<Self, Standing> {
        let spec = &object.spec;
        let read = |field: &str, share| {
            milli(field, share).map_err(|error| Standing::new("Accepted", false, "InvalidField", error.to_string()))
        };
        Ok(Self {
            nominal: read("spec.nominal", &spec.nominal)?,
            borrow: read("spec.borrow", &spec.borrow)?,
            lend: read("spec.lend", &spec.lend)?,
            policy: match spec.policy {
                LoweringPolicy::Refuse => v1::QuotaPolicy::Refuse,
                LoweringPolicy::Drain => v1::QuotaPolicy::Drain,
            },
        })
    }

    fn is(&self, row: &v1::Quota) -> bool {
        let policy = match row.policy() {
            v1::QuotaPolicy::Unspecified => v1::QuotaPolicy::Refuse,
            policy => policy,
        };
        (self.nominal, self.borrow, self.lend, self.policy)
            == (row.nominal_milli, row.borrow_milli, row.lend_milli, policy)
    }
}

fn row_name(object: &GpuQuota, tenant: &str) -> String {
    let site = object.spec.site.as_deref().unwrap_or("-");
    format!("{tenant}/quotas/{site}/{}", object.spec.device_class)
}

/// Looks at one GpuQuota and does what is next.
pub(crate) async fn reconcile(object: Arc<GpuQuota>, context: Arc<Context>) -> Result<Action, Error> {
    let uid = object.uid().unwrap_or_default();
    let api = write::api_of(&context.client, &*object);
    let deleting = object.metadata.deletion_timestamp.is_some();
    if !write::is_kept(&*object) {
        if deleting {
            return Ok(Action::await_change());
        }
        write::keep(&api, &*object).await?;
    }
    let before = object.status.clone().unwrap_or_default();
    let acts = context.acts(&object.namespace().unwrap_or_default());
    if acts == Acts::Unknown && !(deleting && before.tenant.is_some()) {
        // Neither is anything done nor told before it is known.
        return Ok(Action::requeue(AGAIN));
    }
    let bound = acts.bound().map(|bound| bound.tenant_name());
    // What it set once is taken back where it was set, whomever the namespace acts for now.
    let tenant = if deleting { before.tenant.clone().or(bound) } else { bound };
    context.quota_objects.insert(&uid, (ObjectRef::from_obj(&*object), tenant.clone().unwrap_or_default()));
    let former = if deleting { None } else { former(before.tenant.as_deref(), tenant.as_deref()) };
    let outcome = match (leave(&object, &uid, former, &context).await?, &tenant) {
        (Some(refused), _) => refused,
        (None, None) if deleting => Outcome::Gone,
        (None, None) => Outcome::refused(None, not_bound()),
        (None, Some(tenant)) if deleting => remove(&object, &uid, tenant, &context).await?,
        (None, Some(tenant)) => set(&object, &uid, tenant, &context).await?,
    };
    let (row, standing, again) = match outcome {
        Outcome::Gone => {
            write::let_go(&api, &*object).await?;
            context.quota_objects.remove(&uid);
            return Ok(Action::await_change());
        }
        Outcome::Stands { row, standing, again } => (row, standing, again),
    };
    let standings = [standing, enforced(row.as_deref())];
    let share = |milli: i64| format!("{milli}m");
    let status = GpuQuotaStatus {
        observed_generation: object.metadata.generation,
        conditions: conditions(&standings, &before.conditions, object.metadata.generation, &write::now()),
        used: row.as_ref().map(|row| share(row.used_milli)),
        borrowed: row.as_ref().map(|row| share(row.borrowed_milli)),
        // Kept, so that it is known where it was set.
        tenant: tenant.filter(|_| row.is_some()).or(before.tenant),
    };
    write::status(&api, &*object, object.status.as_ref(), &status).await?;
    Ok(Action::requeue(again))
}

enum Outcome {
    /// The row as it is, what is said of it, and when to look again.
    Stands { row: Option<Box<v1::Quota>>, standing: Standing, again: Duration },
    /// Nothing of the object is left.
    Gone,
}

impl Outcome {
    fn refused(row: Option<v1::Quota>, standing: Standing) -> Self {
        Self::stands(row, standing, AGAIN)
    }

    fn stands(row: Option<v1::Quota>, standing: Standing, again: Duration) -> Self {
        Self::Stands { row: row.map(Box::new), standing, again }
    }

    fn no(row: Option<v1::Quota>, refused: &Refused) -> Self {
        Self::refused(row, Standing::new("Accepted", false, &refused.camel(), refused.message.clone()))
    }
}

async fn read(name: &str, context: &Context) -> Result<Option<v1::Quota>, Error> {
    let request = v1::GetQuotaRequest { name: name.to_owned() };
    Ok(said(context.gate.money().get_quota(timed(request)).await)?.found()?)
}

/// The tenant where the quota was set while its namespace acted for that one, if it acts for another now. A namespace that
/// acts for nobody changes nothing: the row stays, or a slip in a Tenant would lift all its limits.
fn former<'a>(set_at: Option<&'a str>, now: Option<&str>) -> Option<&'a str> {
    set_at.filter(|set_at| now.is_some_and(|now| now != *set_at))
}

/// Takes back what was set for the former tenant of the namespace, before anything is set for another. `None`: it is done.
async fn leave(
    object: &GpuQuota,
    uid: &str,
    former: Option<&str>,
    context: &Context,
) -> Result<Option<Outcome>, Error> {
    let Some(former) = former else { return Ok(None) };
    Ok(match remove(object, uid, former, context).await? {
        Outcome::Gone => None,
        Outcome::Stands { standing, .. } => {
            // Neither its use nor the numbers of the refusal are this namespace's to know.
            let message =
                format!("what it set for {former}, for which its namespace acted before, is not taken back yet");
            Some(Outcome::refused(None, Standing { message, ..standing }))
        }
    })
}

/// What is next for a quota of a tenant.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Next {
    /// The row is as wanted.
    Stands,
    /// Somebody has taken it away from its object: why, and what takes it back.
    Detached(&'static str),
    /// The row is set, where it is still as it was seen: at this etag, and named so in the request's id.
    Set { etag: String, observed: String },
}

fn next(object: &GpuQuota, tenant: &str, row: Option<&v1::Quota>, manager: &str, wanted: &Wanted) -> Next {
    match row {
        Some(row) if row.manager == manager && wanted.is(row) => Next::Stands,
        Some(row) if row.manager.is_empty() && was_ours(object, tenant) => {
            Next::Detached("it was detached in Sluice and is changed there; a change of this spec takes it back")
        }
        None if was_ours(object, tenant) => {
            Next::Detached("it was detached in Sluice and taken away there; a change of this spec sets it again")
        }
        Some(row) => Next::Set { etag: row.etag.clone(), observed: seen(&row.name, &row.etag) },
        None => {
            let etag = "0".to_owned();
            // No row has no version: one that came and went is told from none before it by the object's own.
            let version = object.resource_version().unwrap_or_default();
            let observed = format!("{}@{version}", seen(&row_name(object, tenant), &etag));
            Next::Set { etag, observed }
        }
    }
}

/// A row as it was seen: one of another name is another target, whatever its version.
fn seen(name: &str, etag: &str) -> String {
    format!("{name}@{etag}")
}

async fn set(object: &GpuQuota, uid: &str, tenant: &str, context: &Context) -> Result<Outcome, Error> {
    if let Some(named) = object.spec.tenant.as_ref().filter(|named| format!("tenants/{named}") != tenant) {
        // The admission policy refuses it before; without the policy, this does.
        let message = format!("spec.tenant: the namespace belongs to {tenant} and not to tenants/{named}");
        return Ok(Outcome::refused(None, Standing::new("Accepted", false, "TenantMismatch", message)));
    }
    let wanted = match Wanted::of(object) {
        Ok(wanted) => wanted,
        Err(standing) => return Ok(Outcome::refused(None, standing)),
    };
    let manager = context.cluster.manager(uid);
    let row = read(&row_name(object, tenant), context).await?;
    let (etag, observed) = match next(object, tenant, row.as_ref(), &manager, &wanted) {
        Next::Stands => {
            let standing = Standing::new("Accepted", true, "Set", row_name(object, tenant));
            return Ok(Outcome::stands(row, standing, LOOK));
        }
        Next::Detached(why) => return Ok(Outcome::refused(row, Standing::new("Accepted", false, DETACHED, why))),
        Next::Set { etag, observed } => (etag, observed),
    };
    let request = v1::SetQuotaRequest {
        request_id: request_id(uid, "set", object.metadata.generation.unwrap_or(0), &observed),
        tenant: tenant.to_owned(),
        device_class: object.spec.device_class.clone(),
        nominal_milli: wanted.nominal,
        site: object.spec.site.as_ref().map(|site| format!("sites/{site}")).unwrap_or_default(),
        borrow_milli: wanted.borrow,
        lend_milli: wanted.lend,
        policy: wanted.policy.into(),
        etag,
        manager,
    };
    Ok(match said(context.gate.money().set_quota(timed(request)).await)? {
        Said::Yes(row) => {
            let standing = Standing::new("Accepted", true, "Set", row.name.clone());
            Outcome::stands(Some(row), standing, AGAIN)
        }
        Said::No(refused) => Outcome::no(row, &refused),
    })
}

/// Whether this generation had its quota of this tenant before.
fn was_ours(object: &GpuQuota, tenant: &str) -> bool {
    let Some(status) = object.status.as_ref() else { return false };
    let accepted = status.conditions.iter().find(|condition| condition.type_ == "Accepted");
    status.observed_generation == object.metadata.generation
        && status.tenant.as_deref() == Some(tenant)
        && accepted.is_some_and(|condition| condition.status == "True" || condition.reason == DETACHED)
}

async fn remove(object: &GpuQuota, uid: &str, tenant: &str, context: &Context) -> Result<Outcome, Error> {
    let name = row_name(object, tenant);
    let manager = context.cluster.manager(uid);
    let Some(row) = read(&name, context).await?.filter(|row| row.manager == manager) else { return Ok(Outcome::Gone) };
    let generation = object.metadata.generation.unwrap_or(0);
    Ok(match delete(&row, (uid, generation), context).await? {
        Said::Yes(_) | Said::No(Refused { code: Code::NotFound, .. }) => Outcome::Gone,
        Said::No(refused) => Outcome::no(Some(row), &refused),
    })
}

/// Deletes a row that the object of this uid manages, where it is still as it was seen.
pub(crate) async fn delete(
    row: &v1::Quota,
    (uid, generation): (&str, i64),
    context: &Context,
) -> Result<Said<v1::Quota>, Error> {
    let request = v1::DeleteQuotaRequest {
        request_id: request_id(uid, "delete", generation, &seen(&row.name, &row.etag)),
        name: row.name.clone(),
        etag: row.etag.clone(),
        manager: context.cluster.manager(uid),
    };
    Ok(said(context.gate.money().delete_quota(timed(request)).await)?)
}

fn enforced(row: Option<&v1::Quota>) -> Standing {
    match row {
        None => Standing::unknown("Enforced", "NotSet", "there is no such quota"),
        Some(row) if row.stopping_milli > 0 => {
            let message = format!("{}m of what is too much is being suspended", row.stopping_milli);
            Standing::new("Enforced", false, "Draining", message)
        }
        Some(row) if row.used_milli > row.nominal_milli.saturating_add(row.borrow_milli) => {
            Standing::new("Enforced", false, "AboveLimits", "more is in use than the limits allow")
        }
        Some(_) => Standing::new("Enforced", true, "WithinLimits", ""),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn mk_quota(change: serde_json::Value) -> GpuQuota {
        let mut spec = json!({ "deviceClass": "cpu", "site": "a", "nominal": "1500m", "borrow": 1, "policy": "Drain" });
        for (name, value) in change.as_object().cloned().unwrap_or_default() {
            spec[name] = value;
        }
        GpuQuota::new("q", serde_json::from_value(spec).unwrap())
    }

    #[test]
    fn a_quota_is_set_until_the_row_is_as_wanted() {
        let wanted = Wanted::of(&mk_quota(json!({}))).unwrap();
        let policy = v1::QuotaPolicy::Drain.into();
        let row = v1::Quota { nominal_milli: 1500, borrow_milli: 1000, policy, ..v1::Quota::default() };
        assert!(wanted.is(&row));
        assert!(!wanted.is(&v1::Quota { lend_milli: 1, ..row.clone() }));
        assert!(!wanted.is(&v1::Quota { policy: v1::QuotaPolicy::Refuse.into(), ..row }));
        assert_eq!(Wanted::of(&mk_quota(json!({ "nominal": -1 }))).unwrap_err().reason, "InvalidField");
    }

    #[test]
    fn rows_are_named_by_tenant_site_and_class() {
        let mut quota = mk_quota(json!({}));
        assert_eq!(row_name(&quota, "tenants/acme"), "tenants/acme/quotas/a/cpu");
        quota.spec.site = None;
        assert_eq!(row_name(&quota, "tenants/acme"), "tenants/acme/quotas/-/cpu");
    }

    fn mk_told(tenant: &str, standing: Standing) -> GpuQuota {
        let mut quota = mk_quota(json!({}));
        quota.metadata.generation = Some(1);
        quota.metadata.resource_version = Some("77".to_owned());
        let conditions = conditions(&[standing], &[], Some(1), &write::now());
        let tenant = Some(tenant.to_owned());
        quota.status =
            Some(GpuQuotaStatus { observed_generation: Some(1), conditions, tenant, ..GpuQuotaStatus::default() });
        quota
    }

    /// What is next for a quota of tenant acme.
    fn next_for(quota: &GpuQuota, row: Option<&v1::Quota>) -> Next {
        next(quota, "tenants/acme", row, "me", &Wanted::of(quota).unwrap())
    }

    fn is_detached(quota: &GpuQuota, row: Option<&v1::Quota>) -> bool {
        matches!(next_for(quota, row), Next::Detached(_))
    }

    #[test]
    fn what_was_detached_stays_so_until_the_spec_changes() {
        let nobodys = v1::Quota { etag: "9".to_owned(), ..v1::Quota::default() };
        // Also where somebody took the row away meanwhile.
        for row in [Some(&nobodys), None] {
            assert!(!is_detached(&mk_quota(json!({})), row), "it was never set");
            for (reason, holds, ours) in [("Set", true, true), (DETACHED, false, true), ("QuotaInUse", false, false)] {
                let mut quota = mk_told("tenants/acme", Standing::new("Accepted", holds, reason, ""));
                assert_eq!(is_detached(&quota, row), ours, "{reason}");
                quota.metadata.generation = Some(2);
                assert!(!is_detached(&quota, row), "{reason}, and then the spec changed");
            }
            let elsewhere = mk_told("tenants/beta", Standing::new("Accepted", true, "Set", ""));
            assert!(!is_detached(&elsewhere, row), "it was set for another tenant");
        }
    }

    #[test]
    fn a_request_names_the_row_that_was_seen() {
        let set = Standing::new("Accepted", false, "QuotaInUse", "");
        let mut quota = mk_told("tenants/acme", set);
        let row = |name: &str| v1::Quota { name: name.to_owned(), etag: "9".to_owned(), ..v1::Quota::default() };
        let observed = |quota: &GpuQuota, tenant: &str, row: Option<&v1::Quota>| match next(
            quota,
            tenant,
            row,
            "me",
            &Wanted::of(quota).unwrap(),
        ) {
            Next::Set { etag, observed } => (etag, observed),
            other => panic!("{other:?}"),
        };
        let (acme, beta) = ("tenants/acme", "tenants/beta");
        assert_eq!(observed(&quota, acme, Some(&row("r"))), ("9".to_owned(), "r@9".to_owned()));
        assert_ne!(observed(&quota, acme, Some(&row("r"))), observed(&quota, beta, Some(&row("s"))));
        let none = observed(&quota, acme, None);
        assert_eq!(none, ("0".to_owned(), "tenants/acme/quotas/a/cpu@0@77".to_owned()));
        assert_eq!(none, observed(&quota, acme, None), "one decision is one request");
        assert_ne!(none, observed(&quota, beta, None));
        quota.metadata.resource_version = Some("78".to_owned());
        assert_ne!(none, observed(&quota, acme, None), "a row came and went");
    }

    #[test]
    fn what_was_set_for_a_former_tenant_is_taken_back_first() {
        for (set_at, now, first) in [
            (None, Some("acme"), None),
            (Some("acme"), Some("acme"), None),
            (Some("acme"), Some("beta"), Some("acme")),
            (Some("acme"), None, None),
        ] {
            assert_eq!(former(set_at, now), first, "{set_at:?} {now:?}");
        }
    }

    #[test]
    fn what_is_above_the_limits_is_told() {
        let row = v1::Quota { nominal_milli: 1000, borrow_milli: 500, used_milli: 1500, ..v1::Quota::default() };
        assert_eq!(enforced(Some(&row)).reason, "WithinLimits");
        assert_eq!(enforced(Some(&v1::Quota { used_milli: 1501, ..row.clone() })).reason, "AboveLimits");
        assert_eq!(enforced(Some(&v1::Quota { stopping_milli: 1, ..row })).reason, "Draining");
        assert_eq!(enforced(None).holds, None);
    }
}
