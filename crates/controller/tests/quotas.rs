//! Quotas and managers through the API: what is set is what is read, refusals name everything, and who may do what.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use sluice_proto::v1;
use sluice_proto::v1::fleet_service_client::FleetServiceClient;
use sluice_proto::v1::job_service_client::JobServiceClient;
use sluice_proto::v1::money_service_client::MoneyServiceClient;
use sluice_proto::v1::tenant_service_client::TenantServiceClient;
use support::{Door, tenant, with};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Channel;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

/// A new request id with every call.
fn id(number: u32) -> String {
    format!("123e4567-e89b-42d3-a456-{number:012}")
}

fn set(number: u32, limits: (i64, i64, i64)) -> v1::SetQuotaRequest {
    v1::SetQuotaRequest {
        request_id: id(number),
        tenant: "tenants/acme".to_owned(),
        device_class: "cpu".to_owned(),
        site: "sites/a".to_owned(),
        nominal_milli: limits.0,
        borrow_milli: limits.1,
        lend_milli: limits.2,
        policy: v1::QuotaPolicy::Drain.into(),
        ..Default::default()
    }
}

fn reason(status: &Status) -> String {
    status.get_details_error_info().map(|info| info.reason).unwrap_or_default()
}

struct Fixture {
    door: Door,
    money: MoneyServiceClient<Channel>,
    tenants: TenantServiceClient<Channel>,
    /// The tenant's admin.
    own: MetadataValue<Ascii>,
    project: String,
}

impl Fixture {
    async fn open() -> Self {
        let door = Door::open().await;
        let (project, own) = tenant(&door, "acme").await;
        let create = v1::CreateSiteRequest { request_id: id(900), site_id: "a".to_owned() };
        FleetServiceClient::new(door.channel.clone()).create_site(with(create, &door.key)).await.unwrap();
        let (money, tenants) =
            (MoneyServiceClient::new(door.channel.clone()), TenantServiceClient::new(door.channel.clone()));
        Self { door, money, tenants, own, project }
    }

    async fn set(&mut self, request: v1::SetQuotaRequest) -> Result<v1::Quota, Status> {
        self.money.set_quota(with(request, &self.door.key)).await.map(tonic::Response::into_inner)
    }

    async fn get(&mut self) -> Result<v1::Quota, Status> {
        let get = v1::GetQuotaRequest { name: "tenants/acme/quotas/a/cpu".to_owned() };
        self.money.get_quota(with(get, &self.own)).await.map(tonic::Response::into_inner)
    }
}

#[tokio::test]
async fn a_quota_is_set_read_changed_and_taken_away() {
    let mut at = Fixture::open().await;
    let first = at.set(v1::SetQuotaRequest { etag: "0".to_owned(), ..set(1, (5000, 1000, 2000)) }).await.unwrap();
    assert_eq!((first.name.as_str(), first.site.as_str()), ("tenants/acme/quotas/a/cpu", "sites/a"));
    assert_eq!((first.nominal_milli, first.borrow_milli, first.lend_milli), (5000, 1000, 2000));
    assert_eq!((first.policy(), first.available_milli), (v1::QuotaPolicy::Drain, 5000), "nobody else lends");
    // A retry answers as the first try, and changes nothing.
    let again = at.set(v1::SetQuotaRequest { etag: "0".to_owned(), ..set(1, (5000, 1000, 2000)) }).await.unwrap();
    assert_eq!(again, first);
    assert_eq!(at.get().await.unwrap(), first, "its own admin reads it");
    let stale = at.set(v1::SetQuotaRequest { etag: "0".to_owned(), ..set(2, (1, 0, 0)) }).await.unwrap_err();
    assert_eq!((stale.code(), reason(&stale).as_str()), (Code::Aborted, "ETAG_MISMATCH"));
    let second = at.set(v1::SetQuotaRequest { etag: first.etag.clone(), ..set(3, (4000, 0, 0)) }).await.unwrap();
    assert_ne!(second.etag, first.etag);
    let all = v1::SetQuotaRequest { site: String::new(), ..set(4, (9000, 0, 0)) };
    assert_eq!(at.set(all).await.unwrap().name, "tenants/acme/quotas/-/cpu");
    let list = v1::ListQuotasRequest { tenant: "tenants/acme".to_owned() };
    let quotas = at.money.list_quotas(with(list, &at.own)).await.unwrap().into_inner().quotas;
    let found: Vec<_> = quotas.iter().map(|quota| (quota.name.as_str(), quota.nominal_milli)).collect();
    assert_eq!(found, [("tenants/acme/quotas/-/cpu", 9000), ("tenants/acme/quotas/a/cpu", 4000)]);
    let delete = v1::DeleteQuotaRequest { request_id: id(5), name: second.name.clone(), ..Default::default() };
    for _ in 0..2 {
        assert!(at.money.delete_quota(with(delete.clone(), &at.door.key)).await.unwrap().into_inner().deleted);
    }
    assert_eq!(at.get().await.unwrap_err().code(), Code::NotFound);
    let third = at.set(set(6, (1, 0, 0))).await.unwrap();
    assert_ne!(third.etag, second.etag, "an etag never comes again");
    at.door.close().await;
}

#[tokio::test]
async fn damaged_quotas_are_refused_by_field_and_only_platform_admins_set_them() {
    let mut at = Fixture::open().await;
    let base = || set(1, (5000, 0, 0));
    let wrong = [
        ("nominal_milli", set(1, (-1, 0, 0))),
        ("nominal_milli", set(1, (i64::MAX, 0, 0))),
        ("borrow_milli", set(1, (5000, -1, 0))),
        ("lend_milli", set(1, (5000, 0, 5001))),
        ("borrow_milli", v1::SetQuotaRequest { site: String::new(), ..set(1, (5000, 1, 0)) }),
        ("device_class", v1::SetQuotaRequest { device_class: "CPU".to_owned(), ..base() }),
        ("site", v1::SetQuotaRequest { site: "a".to_owned(), ..base() }),
        ("etag", v1::SetQuotaRequest { etag: "x".to_owned(), ..base() }),
        ("manager", v1::SetQuotaRequest { manager: "m".repeat(257), ..base() }),
    ];
    for (field, request) in wrong {
        let refused = at.set(request).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{field}");
        let violations = refused.get_details_bad_request().unwrap().field_violations;
        assert_eq!(violations.first().map(|violation| violation.field.as_str()), Some(field));
    }
    let gone = at.set(v1::SetQuotaRequest { site: "sites/b".to_owned(), ..base() }).await.unwrap_err();
    assert_eq!(gone.code(), Code::NotFound);
    let own = at.money.set_quota(with(base(), &at.own)).await.unwrap_err();
    assert_eq!(own.code(), Code::PermissionDenied);
    assert_eq!(at.get().await.unwrap_err().code(), Code::NotFound, "nothing was set");
    at.door.close().await;
}

#[tokio::test]
async fn what_has_a_manager_is_changed_by_it_or_detached_by_an_admin() {
    let mut at = Fixture::open().await;
    let manager = "kubernetes/6c84fb90".to_owned();
    let managed = at.set(v1::SetQuotaRequest { manager: manager.clone(), ..set(1, (5000, 0, 0)) }).await.unwrap();
    assert_eq!(managed.manager, manager);
    let refused = at.set(set(2, (1, 0, 0))).await.unwrap_err();
    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::FailedPrecondition, "MANAGED_ELSEWHERE"));
    assert!(refused.message().contains(&manager), "{}", refused.message());
    assert_eq!(refused.get_details_error_info().unwrap().metadata["manager"], manager);
    at.set(v1::SetQuotaRequest { manager: manager.clone(), ..set(3, (6000, 0, 0)) }).await.unwrap();

    // A job of a manager, and its own tenant's admin who takes it away.
    let mut jobs = JobServiceClient::new(at.door.channel.clone());
    let detach = |name: &str, number| v1::SetManagerRequest {
        request_id: id(number),
        name: name.to_owned(),
        detach: true,
        ..Default::default()
    };
    let submit = v1::SubmitJobRequest {
        request_id: id(4),
        parent: at.project.clone(),
        spec: Some(support::small_job()),
        validate_only: true,
        manager: manager.clone(),
        ..Default::default()
    };
    // Nothing could run it here, so that it is checked only.
    assert_eq!(reason(&jobs.submit_job(with(submit, &at.door.key)).await.unwrap_err()), "UNKNOWN_CLASS");
    for (name, number) in [(managed.name.as_str(), 5), ("tenants/acme", 6)] {
        let denied = at.tenants.set_manager(with(detach(name, number), &at.own)).await.unwrap_err();
        assert_eq!(denied.code(), Code::PermissionDenied, "{name}");
    }
    let adopt = |current: &str, number| v1::SetManagerRequest {
        request_id: id(number),
        name: "tenants/acme".to_owned(),
        manager: "other".to_owned(),
        current: current.to_owned(),
        ..Default::default()
    };
    at.tenants.set_manager(with(adopt("", 7), &at.door.key)).await.unwrap();
    let get = v1::GetTenantRequest { name: "tenants/acme".to_owned() };
    assert_eq!(at.tenants.get_tenant(with(get, &at.own)).await.unwrap().into_inner().manager, "other");
    let stolen = at.tenants.set_manager(with(adopt("kubernetes/1", 8), &at.door.key)).await.unwrap_err();
    assert_eq!(reason(&stolen), "MANAGED_ELSEWHERE");
    at.tenants.set_manager(with(detach(&managed.name, 9), &at.door.key)).await.unwrap();
    assert_eq!(at.set(set(10, (1, 0, 0))).await.unwrap().manager, "");
    at.door.close().await;
}

#[tokio::test]
async fn only_platform_admins_speak_for_objects_of_kubernetes() {
    let mut at = Fixture::open().await;
    let mut jobs = JobServiceClient::new(at.door.channel.clone());
    let object = "kubernetes/c1/6c84fb90";
    let (own, admin) = (at.own.clone(), at.door.key.clone());
    let denied = |status: &Status| {
        assert_eq!((status.code(), reason(status).as_str()), (Code::PermissionDenied, "PERMISSION_DENIED"));
        assert!(status.message().contains("kubernetes/"), "{}", status.message());
    };
    let submit = |manager: &str, validate_only, number| v1::SubmitJobRequest {
        request_id: id(number),
        parent: at.project.clone(),
        spec: Some(support::small_job()),
        validate_only,
        manager: manager.to_owned(),
        ..Default::default()
    };
    let batch = v1::BatchSubmitJobsRequest { requests: vec![submit(object, false, 1)] };
    let results = jobs.batch_submit_jobs(with(batch, &own)).await.unwrap().into_inner().results;
    let Some(v1::submit_result::Result::Refusal(refusal)) = &results[0].result else { panic!("{results:?}") };
    assert_eq!(refusal.reason, "PERMISSION_DENIED");
    for validate_only in [true, false] {
        denied(&jobs.submit_job(with(submit(object, validate_only, 2), &own)).await.unwrap_err());
        // The controls: another word of theirs, and the operator's key. Nothing could run it here.
        for (manager, key) in [("terraform/7", &own), ("", &own), (object, &admin)] {
            let refused = jobs.submit_job(with(submit(manager, validate_only, 3), key)).await.unwrap_err();
            assert_eq!(reason(&refused), "UNKNOWN_CLASS", "{manager}");
        }
    }
    let name = format!("{}/jobs/job-0000000000001", at.project);
    let (etag, manager) = (String::new(), object.to_owned());
    let common = |number| (id(number), name.clone(), etag.clone(), manager.clone());
    let (request_id, name, etag, manager) = common(4);
    denied(&jobs.cancel_job(with(v1::CancelJobRequest { request_id, name, etag, manager }, &own)).await.unwrap_err());
    let (request_id, name, etag, manager) = common(5);
    denied(&jobs.suspend_job(with(v1::SuspendJobRequest { request_id, name, etag, manager }, &own)).await.unwrap_err());
    let (request_id, name, etag, manager) = common(6);
    denied(&jobs.resume_job(with(v1::ResumeJobRequest { request_id, name, etag, manager }, &own)).await.unwrap_err());
    let (request_id, name, etag, manager) = common(7);
    let migrate = v1::MigrateJobRequest { request_id, name, etag, manager, to_site: "sites/a".to_owned() };
    denied(&jobs.migrate_job(with(migrate, &own)).await.unwrap_err());
    for (manager, current) in [(object, ""), ("", object)] {
        let hand = |number| v1::SetManagerRequest {
            request_id: id(number),
            name: common(8).1,
            manager: manager.to_owned(),
            current: current.to_owned(),
            detach: false,
        };
        denied(&at.tenants.set_manager(with(hand(8), &own)).await.unwrap_err());
        // The control: who may speak so is told that there is no such job.
        assert_eq!(at.tenants.set_manager(with(hand(9), &admin)).await.unwrap_err().code(), Code::NotFound);
    }
    at.door.close().await;
}
