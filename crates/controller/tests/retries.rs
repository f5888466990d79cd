//! What was done once is answered the same again, and what is stored is found among much else.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use prost::Message as _;
use sluice_controller::{Clock, SystemClock};
use sluice_identity::Lifetimes;
use sluice_ledger::{Account, AccountKey, BudgetScope};
use sluice_lifecycle::Rows;
use sluice_lifecycle::model::{Request, RequestKey, RequestOutcome};
use sluice_proto::convert::{self, SiteNames};
use sluice_proto::v1;
use sluice_proto::v1::fleet_service_client::FleetServiceClient;
use sluice_proto::v1::job_service_client::JobServiceClient;
use sluice_proto::v1::money_service_client::MoneyServiceClient;
use sluice_proto::v1::tenant_service_client::TenantServiceClient;
use sluice_types::{Digest, JobId, Nanos, SiteId, Timestamp};
use support::{Door, small_job, tenant, with};
use tonic::Code;

const ID: &str = "123e4567-e89b-42d3-a456-426614174000";

/// No sites.
struct Nowhere;

impl SiteNames for Nowhere {
    fn id(&self, _: &str) -> Option<SiteId> {
        None
    }

    fn name(&self, _: SiteId) -> String {
        String::new()
    }
}

/// The system's clock, set forward by so many seconds.
struct Ahead(AtomicU64);

impl Clock for Ahead {
    fn now(&self) -> Timestamp {
        SystemClock.now().after(Nanos::from_secs(self.0.load(Ordering::Relaxed)))
    }
}

#[tokio::test]
async fn a_retried_submit_is_answered_with_its_job_whatever_became_of_the_fleet() {
    let door = Door::open().await;
    let (parent, key) = tenant(&door, "acme").await;
    let folder = door.leave().await;
    let spec = small_job();
    let message =
        v1::SubmitJobRequest { request_id: ID.to_owned(), parent, spec: Some(spec.clone()), ..Default::default() };

    // A submit that was committed while there were nodes of the class, and whose answer was lost.
    let store = sluice_store::open(&Door::database(&folder)).await.unwrap();
    let owner = store.tenant_by_name(&"acme".parse().unwrap()).await.unwrap().unwrap();
    let project = store.project_by_name(owner.id, &"acme".parse().unwrap()).await.unwrap().unwrap();
    let by = key.to_str().unwrap().strip_prefix("Bearer sk-").unwrap().split_once('.').unwrap().0.parse().unwrap();
    let spec = Arc::new(convert::job_spec(spec, &Nowhere).unwrap());
    let mut job = sluice_lifecycle::draft(&project, None, spec, by, SystemClock.now());
    job.id = JobId::from_raw(7);
    let mut means = blake3::Hasher::new();
    means.update(b"sluice.v1.JobService/SubmitJob\0").update(&message.encode_to_vec());
    let id = hex::decode(ID.replace('-', "")).unwrap().try_into().unwrap();
    let request = Request {
        key: RequestKey { by, id },
        digest: Digest::from_bytes(*means.finalize().as_bytes()),
        outcome: RequestOutcome::Object(job.id.to_string()),
        at: SystemClock.now(),
    };
    let leader = store.acquire_leader("test").await.unwrap();
    let name = job.id.to_string();
    store.commit(leader, &Rows { jobs: vec![job], requests: vec![request], ..Rows::default() }).await.unwrap();
    store.close().await;

    let door = Door::open_in(folder, Lifetimes::default()).await;
    let mut jobs = JobServiceClient::new(door.channel.clone());
    let again = jobs.submit_job(with(message.clone(), &key)).await.unwrap().into_inner();
    assert!(again.name.ends_with(&name), "{}", again.name);
    // The control: what was not done before is refused now.
    let new = v1::SubmitJobRequest { request_id: ID.replace("123e", "456e"), ..message };
    let refused = jobs.submit_job(with(new, &key)).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    door.close().await;
}

#[tokio::test]
async fn a_retried_join_token_ends_when_the_first_answer_said() {
    let clock = Arc::new(Ahead(AtomicU64::new(0)));
    let door = Door::open_at(tempfile::tempdir().unwrap(), Lifetimes::default(), Arc::clone(&clock) as _).await;
    let mut fleet = FleetServiceClient::new(door.channel.clone());
    let create = v1::CreateSiteRequest { request_id: ID.to_owned(), site_id: "a".to_owned() };
    fleet.create_site(with(create, &door.key)).await.unwrap();
    let create = v1::CreateJoinTokenRequest {
        request_id: ID.replace("123e", "456e"),
        site: "sites/a".to_owned(),
        ..Default::default()
    };
    let first = fleet.create_join_token(with(create.clone(), &door.key)).await.unwrap().into_inner();
    clock.0.store(1000, Ordering::Relaxed);
    let again = fleet.create_join_token(with(create, &door.key)).await.unwrap().into_inner();
    assert_eq!(first.token, again.token);
    let later = again.expire_time.unwrap().seconds - first.expire_time.unwrap().seconds;
    assert!(later < 100, "{later} s later");
    door.close().await;
}

#[tokio::test]
async fn quotas_are_listed_beside_any_number_of_periods() {
    let door = Door::open().await;
    tenant(&door, "acme").await;
    let mut money = MoneyServiceClient::new(door.channel.clone());
    let set = v1::SetQuotaRequest {
        request_id: ID.to_owned(),
        tenant: "tenants/acme".to_owned(),
        device_class: "cpu".to_owned(),
        nominal_milli: 5000,
        ..Default::default()
    };
    money.set_quota(with(set, &door.key)).await.unwrap();
    // More periods than any page has rows. The controller has lost the lead by this, and reads all the same.
    let store = sluice_store::open(&Door::database(&door.folder)).await.unwrap();
    let owner = store.tenant_by_name(&"acme".parse().unwrap()).await.unwrap().unwrap().id;
    let budgets = (0..1001).map(|period| Account::empty(AccountKey::Budget(BudgetScope::Tenant(owner), period)));
    let leader = store.acquire_leader("test").await.unwrap();
    store.commit(leader, &Rows { accounts: budgets.collect(), ..Rows::default() }).await.unwrap();
    let list = v1::ListQuotasRequest { tenant: "tenants/acme".to_owned() };
    let quotas = money.list_quotas(with(list, &door.key)).await.unwrap().into_inner().quotas;
    let found: Vec<_> = quotas.iter().map(|quota| (quota.device_class.as_str(), quota.nominal_milli)).collect();
    assert_eq!(found, [("cpu", 5000)]);
    store.close().await;
}

#[tokio::test]
async fn too_many_sites_of_residency_are_refused_and_not_cut() {
    let door = Door::open().await;
    let (parent, _) = tenant(&door, "acme").await;
    let mut fleet = FleetServiceClient::new(door.channel.clone());
    let create = v1::CreateSiteRequest { request_id: ID.to_owned(), site_id: "a".to_owned() };
    fleet.create_site(with(create, &door.key)).await.unwrap();
    let mut tenants = TenantServiceClient::new(door.channel.clone());
    for (count, id) in [(64, "456e"), (65, "789e")] {
        let sites = vec!["sites/a".to_owned(); count];
        let project = v1::Project { name: parent.clone(), sites, ..Default::default() };
        let update = v1::UpdateProjectRequest { request_id: ID.replace("123e", id), project: Some(project) };
        let updated = tenants.update_project(with(update, &door.key)).await.map(|_| ());
        match count {
            64 => updated.unwrap(),
            _ => assert_eq!(updated.unwrap_err().code(), Code::InvalidArgument),
        }
    }
    door.close().await;
}
