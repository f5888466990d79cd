//! Carries Tenants to the controller, and their money back.

use std::sync::Arc;
use std::time::Duration;

use kube::runtime::controller::Action;
use kube::runtime::reflector::ObjectRef;
use kube::{Api, ResourceExt as _};
use sluice_proto::v1;
use tonic::Code;

use super::convert::{goes_on, has_ended};
use super::decide::DETACHED;
use super::gate::{Refused, Said, said, timed};
use super::identity::request_id;
use super::{Context, Error, jobs, write};
use crate::api::{Standing, Tenant, TenantStatus, conditions};

/// How often money is read where nothing says that it changed.
const LOOK: Duration = Duration::from_secs(10);
const AGAIN: Duration = Duration::from_secs(3);
const PAGE: i32 = 1000;
/// Reasons of a tenant that this object manages: all its namespaces are its own, or one is another's.
const BOUND: &str = "Bound";
const TAKEN: &str = "NamespaceTaken";

/// Looks at one Tenant and does what is next.
pub(crate) async fn reconcile(object: Arc<Tenant>, context: Arc<Context>) -> Result<Action, Error> {
    let uid = object.uid().unwrap_or_default();
    let api: Api<Tenant> = Api::all(context.client.clone());
    let name = object.name_any();
    let deleting = object.metadata.deletion_timestamp.is_some();
    if !write::is_kept(&*object) {
        if deleting {
            return Ok(Action::await_change());
        }
        write::keep(&api, &*object).await?;
    }
    context.tenant_objects.insert(&uid, (ObjectRef::from_obj(&*object), format!("tenants/{name}")));
    let (standing, again) = if deleting {
        match end(&object, &uid, &name, &context).await? {
            None => {
                write::let_go(&api, &*object).await?;
                context.tenant_objects.remove(&uid);
                return Ok(Action::await_change());
            }
            Some(standing) => (standing, AGAIN),
        }
    } else {
        match set(&object, &uid, &name, &context).await? {
            Ok(()) => (bound(&name, &context), LOOK),
            Err(refused) => (Standing::new("Accepted", false, &refused.camel(), refused.message), AGAIN),
        }
    };
    let before = object.status.clone().unwrap_or_default();
    let balance = balance(&name, &context).await?;
    let status = TenantStatus {
        observed_generation: object.metadata.generation,
        conditions: conditions(&[standing], &before.conditions, object.metadata.generation, &write::now()),
        tenant: balance.as_ref().map(|balance| balance.tenant.clone()),
        bound_namespaces: context.namespaces(&name).0,
        balance_credits: balance.as_ref().map(|balance| balance.balance_credits),
        held_credits: balance.as_ref().map(|balance| balance.held_credits),
    };
    write::status(&api, &*object, object.status.as_ref(), &status).await?;
    Ok(Action::requeue(again))
}

/// Which of its namespaces are its own.
fn bound(name: &str, context: &Context) -> Standing {
    let (own, taken) = context.namespaces(name);
    match taken.first() {
        None => Standing::new("Accepted", true, BOUND, format!("{} namespaces", own.len())),
        Some((namespace, other)) => {
            let message = format!("namespace {namespace} belongs to the older tenant {other}");
            Standing::new("Accepted", false, TAKEN, message)
        }
    }
}

async fn balance(name: &str, context: &Context) -> Result<Option<v1::Balance>, Error> {
    let request = v1::GetBalanceRequest { tenant: format!("tenants/{name}") };
    Ok(said(context.gate.money().get_balance(timed(request)).await)?.found()?)
}

/// Whether this generation had its tenant before.
fn was_ours(object: &Tenant) -> bool {
    let Some(status) = object.status.as_ref() else { return false };
    let accepted = status.conditions.iter().find(|condition| condition.type_ == "Accepted");
    let ours = |reason: &str| matches!(reason, BOUND | TAKEN | DETACHED);
    status.observed_generation == object.metadata.generation
        && accepted.is_some_and(|condition| ours(&condition.reason))
}

/// Makes the tenant and its projects where they are missing. Its namespaces act for it from then on, or do not where Sluice
/// refuses that the tenant is this object's.
async fn set(object: &Tenant, uid: &str, name: &str, context: &Context) -> Result<Result<(), Refused>, Error> {
    if let Err(refused) = own(object, uid, name, context).await? {
        context.index(|index| index.answer(object, false));
        return Ok(Err(refused));
    }
    let made = projects(object, uid, &format!("tenants/{name}"), context).await?;
    context.index(|index| index.answer(object, true));
    Ok(made)
}

/// Makes the tenant where it is missing, or takes it over where nobody manages it.
async fn own(object: &Tenant, uid: &str, name: &str, context: &Context) -> Result<Result<(), Refused>, Error> {
    let manager = context.cluster.manager(uid);
    let full = format!("tenants/{name}");
    let request = v1::GetTenantRequest { name: full.clone() };
    let generation = object.metadata.generation.unwrap_or(0);
    match said(context.gate.tenants().get_tenant(timed(request)).await)?.found()? {
        Some(row) if row.manager == manager => {}
        Some(row) if row.manager.is_empty() && was_ours(object) => {
            let message =
                "it was detached in Sluice and is changed there; a change of this spec takes it back".to_owned();
            let reason = DETACHED.to_owned();
            return Ok(Err(Refused { code: Code::FailedPrecondition, reason, message }));
        }
        // It was there before: whoever may write Tenants decides about them.
        Some(row) if row.manager.is_empty() => {
            let request = v1::SetManagerRequest {
                request_id: request_id(uid, "adopt", generation, &row.id),
                name: full.clone(),
                manager,
                current: String::new(),
                detach: false,
            };
            if let Said::No(refused) = said(context.gate.tenants().set_manager(timed(request)).await)? {
                return Ok(Err(refused));
            }
        }
        Some(row) => {
            let message = format!("the tenant is managed by {}", row.manager);
            let reason = "MANAGED_ELSEWHERE".to_owned();
            return Ok(Err(Refused { code: Code::FailedPrecondition, reason, message }));
        }
        None => {
            let request = v1::CreateTenantRequest {
                request_id: request_id(uid, "create", 0, name),
                tenant_id: name.to_owned(),
                validate_only: false,
                manager,
            };
            if let Said::No(refused) = said(context.gate.tenants().create_tenant(timed(request)).await)? {
                return Ok(Err(refused));
            }
        }
    }
    Ok(Ok(()))
}

async fn projects(object: &Tenant, uid: &str, parent: &str, context: &Context) -> Result<Result<(), Refused>, Error> {
    let request = v1::ListProjectsRequest { parent: parent.to_owned(), page_size: PAGE, page_token: String::new() };
    // A tenant has at most so many projects.
    let known = match said(context.gate.tenants().list_projects(timed(request)).await)? {
        Said::Yes(page) => page.projects,
        Said::No(refused) => return Ok(Err(refused)),
    };
    let mut wanted: Vec<&str> = object.spec.namespaces.iter().map(|binding| binding.project()).collect();
    wanted.sort_unstable();
    wanted.dedup();
    for project in wanted {
        if known.iter().any(|row| row.name == format!("{parent}/projects/{project}")) {
            continue;
        }
        let request = v1::CreateProjectRequest {
            request_id: request_id(uid, "project", 0, project),
            parent: parent.to_owned(),
            project_id: project.to_owned(),
            validate_only: false,
        };
        match said(context.gate.tenants().create_project(timed(request)).await)? {
            Said::No(refused) if refused.reason != "ALREADY_EXISTS" => return Ok(Err(refused)),
            _ => {}
        }
    }
    Ok(Ok(()))
}

/// Ends what runs for a tenant from this cluster, and waits until nothing of it is owed. `None`: it is so.
async fn end(object: &Tenant, uid: &str, name: &str, context: &Context) -> Result<Option<Standing>, Error> {
    if context.index(|index| index.end(object)) {
        // From here on nothing is submitted for it; what was under way is known when this is had.
        drop(context.submits.write().await);
    }
    let full = format!("tenants/{name}");
    let mut open = 0;
    for (owner, job) in context.jobs.of_tenant(&full) {
        if !has_ended(job.state()) {
            open += 1;
            if goes_on(job.state()) {
                // A refusal is of a version that is not the last any more; the next look orders it again.
                let _refused = jobs::order("cancel", (&owner, 0), &job, context).await?;
            }
        } else if !jobs::is_settled(&job, context).await? {
            open += 1;
        }
    }
    if open > 0 {
        let message = format!("{open} jobs end or wait for their last windows");
        return Ok(Some(Standing::new("Accepted", false, "Settling", message)));
    }
    // The tenant stays, with its history; only nobody here keeps it any more.
    let manager = context.cluster.manager(uid);
    let request = v1::SetManagerRequest {
        request_id: request_id(uid, "release", 0, name),
        name: full,
        manager: String::new(),
        current: manager,
        detach: false,
    };
    Ok(match said(context.gate.tenants().set_manager(timed(request)).await)? {
        Said::No(refused) if !is_nobodys(&refused) => {
            Some(Standing::new("Accepted", false, &refused.camel(), refused.message))
        }
        _ => None,
    })
}

/// Whether a refusal says that there is nothing to give back: it was not its manager, or there is no such tenant.
fn is_nobodys(refused: &Refused) -> bool {
    refused.code == Code::NotFound || refused.reason == "MANAGED_ELSEWHERE"
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use k8s_openapi::jiff::Timestamp;

    use super::super::gate::Gate;
    use super::super::index::Acts;
    use super::*;
    use crate::api::{Binding, TenantSpec};

    fn mk_tenant() -> Tenant {
        let binding = Binding { name: "team-a".to_owned(), project: None };
        let mut tenant = Tenant::new("acme", TenantSpec { namespaces: vec![binding] });
        (tenant.metadata.uid, tenant.metadata.generation) = (Some("u".to_owned()), Some(1));
        tenant
    }

    #[test]
    fn a_tenant_that_was_detached_stays_so_until_the_spec_changes() {
        let mut tenant = mk_tenant();
        assert!(!was_ours(&tenant), "it adopts one that was there before it");
        for (reason, ours) in [(BOUND, true), (TAKEN, true), (DETACHED, true), ("ManagedElsewhere", false)] {
            let standing = Standing::new("Accepted", false, reason, "");
            let conditions = conditions(&[standing], &[], Some(1), &write::now());
            tenant.status = Some(TenantStatus { observed_generation: Some(1), conditions, ..TenantStatus::default() });
            assert_eq!(was_ours(&tenant), ours, "{reason}");
            tenant.metadata.generation = Some(2);
            assert!(!was_ours(&tenant), "{reason}, and then the spec changed");
            tenant.metadata.generation = Some(1);
        }
    }

    #[test]
    fn a_tenant_is_let_go_when_it_is_given_back() {
        let refused = |code, reason: &str| Refused { code, reason: reason.to_owned(), message: String::new() };
        assert!(is_nobodys(&refused(Code::NotFound, "NOT_FOUND")));
        assert!(is_nobodys(&refused(Code::FailedPrecondition, "MANAGED_ELSEWHERE")));
        assert!(!is_nobodys(&refused(Code::FailedPrecondition, "WRONG_STATE")));
    }

    #[tokio::test]
    async fn a_tenant_that_ends_waits_for_what_is_being_submitted() {
        let context = Context::mk(Gate::mk("127.0.0.1:1"));
        let mut tenant = mk_tenant();
        context.index(|index| index.apply(&tenant) && index.answer(&tenant, true));
        assert!(context.acts("team-a").bound().is_some());
        tenant.metadata.deletion_timestamp = Some(Time(Timestamp::from_second(9).unwrap()));
        let under_way = context.submits.read().await;
        let mut ends = std::pin::pin!(end(&tenant, "u", "acme", &context));
        let waits = tokio::time::timeout(Duration::from_millis(200), &mut ends).await;
        assert!(waits.is_err(), "it looks for open jobs while one is submitted");
        assert_eq!(context.acts("team-a"), Acts::Nobody, "nothing new is submitted");
        drop(under_way);
        // Nobody answers it here: it goes on, that is all.
        assert!(tokio::time::timeout(Duration::from_secs(20), ends).await.unwrap().is_err());
    }

    #[tokio::test]
    async fn a_tenant_that_ends_orders_nothing_that_ends_already() {
        // An order would find nobody here.
        let context = Context::mk(Gate::mk("127.0.0.1:1"));
        for (state, ordered) in [(v1::JobState::Cancelling, false), (v1::JobState::Running, true)] {
            let (name, manager) = ("tenants/acme/projects/p/jobs/j".to_owned(), "kubernetes/c1/v".to_owned());
            context.jobs.note(&v1::Job { name, manager, state: state.into(), ..v1::Job::default() });
            let told = end(&mk_tenant(), "u", "acme", &context).await;
            assert_eq!(told.is_err(), ordered, "{state:?}");
            if let Ok(standing) = told {
                assert_eq!(standing.map(|standing| standing.reason).as_deref(), Some("Settling"));
            }
        }
    }
}
