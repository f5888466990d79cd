//! Models and endpoints at the door: who sees them, what is refused, and what a retry is answered.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::time::Duration;

use sluice_identity::Lifetimes;
use sluice_ledger::AccountKey;
use sluice_lifecycle::Rows;
use sluice_lifecycle::model::ModelState;
use sluice_proto::v1;
use sluice_proto::v1::endpoint_service_client::EndpointServiceClient;
use sluice_proto::v1::job_service_client::JobServiceClient;
use sluice_proto::v1::model_service_client::ModelServiceClient;
use sluice_proto::v1::money_service_client::MoneyServiceClient;
use sluice_store::LoadBounds;
use sluice_store::testing::Sample;
use sluice_types::{Timestamp, TransferId};
use support::{Door, tenant, with};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Channel;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

type Who = (String, MetadataValue<Ascii>);

fn id(step: u8) -> String {
    format!("123e4567-e89b-42d3-a456-4266141740{step:02}")
}

/// A controller with a host, an owner with a model that is ready and one that is not, and a caller that has asked the owner's
/// endpoint `sold` before the controller started.
async fn world() -> (Door, Who, Who) {
    let door = Door::open().await;
    let (owner, caller) = (tenant(&door, "owner").await, tenant(&door, "caller").await);
    let folder = door.leave().await;
    let store = sluice_store::open(&Door::database(&folder)).await.unwrap();
    let leader = store.acquire_leader("test").await.unwrap();
    let snapshot = store.load(LoadBounds::at(Timestamp::from_nanos(0))).await.unwrap();
    let mut sample = Sample::beyond(snapshot.last_id, snapshot.last_event);
    let named = |name: &str| snapshot.rows.tenants.iter().find(|row| row.name.as_str() == name).unwrap().id;
    let project = |tenant| snapshot.rows.projects.iter().find(|row| row.tenant == tenant).unwrap().id;
    (sample.tenant, sample.project) = (named("owner"), project(named("owner")));
    let (ready, mut raw) = (sample.model_row("ready"), sample.model_row("raw"));
    (raw.state, raw.info) = (ModelState::Importing, None);
    let mut upload = sample.upload_row();
    (upload.digest, upload.size) = (ready.file.digest, ready.file.size);
    let mut sold = sample.endpoint_row(&ready, "sold");
    (sold.sites, sold.retry_at) = (Vec::new(), None);
    let mut request = sample.inference_row(&sold);
    (request.tenant, request.project) = (named("caller"), project(named("caller")));
    request.hold = None;
    let mut paid = |sides, cause: &str| {
        let id = TransferId::from_raw(sample.mint());
        sample.books.transfer(id, sides, 100, cause.to_owned(), sample.now()).unwrap()
    };
    let funds = |name| AccountKey::Funds(named(name));
    let bought = vec![
        paid((AccountKey::Outside, funds("caller")), "deposit/a"),
        paid((funds("caller"), funds("owner")), "settle/b"),
    ];
    let mut rows = Rows {
        sites: vec![sample.site_row("here")],
        nodes: vec![sample.node_row("n1")],
        prices: vec![sample.prices_row()],
        uploads: vec![upload],
        models: vec![ready, raw],
        endpoints: vec![sold],
        inference: vec![request],
        ..Rows::default()
    };
    rows.append(sample.booked(bought));
    store.commit(leader, &rows).await.unwrap();
    store.close().await;
    (Door::open_in(folder, Lifetimes::default()).await, owner, caller)
}

fn endpoints(door: &Door) -> EndpointServiceClient<Channel> {
    EndpointServiceClient::new(door.channel.clone())
}

fn create((parent, _): &Who, step: u8, name: &str) -> v1::CreateEndpointRequest {
    v1::CreateEndpointRequest {
        request_id: id(step),
        parent: parent.clone(),
        endpoint_id: name.to_owned(),
        model: format!("{parent}/models/ready"),
        replicas: Some(v1::Replicas { min: 0, max: 2 }),
        resources: Some(v1::TaskResources {
            device_class: "cpu".to_owned(),
            milli: 500,
            memory_bytes: 1 << 30,
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn field(status: &Status) -> String {
    let details = status.get_error_details();
    details.error_info().and_then(|info| info.metadata.get("field").cloned()).unwrap_or_default()
}

fn reason(status: &Status) -> String {
    status.get_error_details().error_info().map(|info| info.reason.clone()).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_sees_the_models_and_endpoints_of_another() {
    let (door, owner, caller) = world().await;
    let (mut endpoints, mut models) = (endpoints(&door), ModelServiceClient::new(door.channel.clone()));
    let name = format!("{}/models/ready", owner.0);
    let get = || v1::GetModelRequest { name: name.clone() };
    assert_eq!(models.get_model(with(get(), &owner.1)).await.unwrap().into_inner().info.unwrap().context, 8192);
    let mut refused = vec![models.get_model(with(get(), &caller.1)).await.unwrap_err()];
    let list = v1::ListModelsRequest { parent: owner.0.clone(), ..Default::default() };
    assert_eq!(models.list_models(with(list.clone(), &owner.1)).await.unwrap().into_inner().models.len(), 2);
    refused.push(models.list_models(with(list, &caller.1)).await.unwrap_err());
    let delete = v1::DeleteModelRequest { request_id: id(1), name: name.clone() };
    refused.push(models.delete_model(with(delete, &caller.1)).await.unwrap_err());
    let sold = format!("{}/endpoints/sold", owner.0);
    let get = v1::GetEndpointRequest { name: sold.clone() };
    refused.push(endpoints.get_endpoint(with(get, &caller.1)).await.unwrap_err());
    let delete = v1::DeleteEndpointRequest { request_id: id(2), name: sold.clone() };
    refused.push(endpoints.delete_endpoint(with(delete, &caller.1)).await.unwrap_err());
    let update = v1::UpdateEndpointRequest { request_id: id(3), name: sold.clone(), ..Default::default() };
    refused.push(endpoints.update_endpoint(with(update, &caller.1)).await.unwrap_err());
    let requests = v1::ListRequestsRequest { parent: sold, ..Default::default() };
    refused.push(endpoints.list_requests(with(requests, &caller.1)).await.unwrap_err());
    // Somebody else's model is served by nobody.
    let theirs = v1::CreateEndpointRequest { parent: caller.0.clone(), ..create(&owner, 4, "mine") };
    refused.push(endpoints.create_endpoint(with(theirs, &caller.1)).await.unwrap_err());
    for status in refused {
        assert_eq!(status.code(), Code::NotFound, "{status}");
        assert!(!status.message().contains("ready") && !status.message().contains("sold"), "{status}");
    }
    door.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_seller_does_not_learn_who_bought_and_a_lost_gateways_requests_are_credited() {
    let (door, owner, caller) = world().await;
    let mut endpoints = endpoints(&door);
    let mut list = async |parent: String, who: &Who| {
        let request = v1::ListRequestsRequest { parent, ..Default::default() };
        endpoints.list_requests(with(request, &who.1)).await.unwrap().into_inner().requests
    };
    let sold = format!("{}/endpoints/sold", owner.0);
    let mut rows = list(sold.clone(), &owner).await;
    // Until the first tick is committed.
    for _ in 0..400 {
        if rows[0].state() != v1::InferenceRequestState::Open {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        rows = list(sold.clone(), &owner).await;
    }
    let row = &rows[0];
    assert_eq!((row.state(), row.reason.as_str()), (v1::InferenceRequestState::Voided, "GATEWAY_LOST"));
    assert_eq!((row.owner.as_str(), row.caller.as_str(), row.key.as_str()), ("owner", "", ""));
    let own = list(caller.0.clone(), &caller).await;
    assert_eq!((own[0].id.as_str(), own[0].caller.as_str()), (row.id.as_str(), "caller"));
    assert!(!own[0].key.is_empty());
    assert_eq!(list(owner.0.clone(), &owner).await, [], "the owner made none itself");
    let mut money = MoneyServiceClient::new(door.channel.clone());
    for (who, tenant) in [(&owner, "tenants/owner"), (&caller, "tenants/caller")] {
        let request = v1::ListTransfersRequest { tenant: tenant.to_owned(), ..Default::default() };
        let rows = money.list_transfers(with(request, &who.1)).await.unwrap().into_inner().transfers;
        let row = rows.iter().find(|row| row.cause == "settle/b").unwrap();
        let hidden = [&row.debit, &row.credit].map(|side| side == "funds/-");
        assert_eq!(hidden, [tenant == "tenants/owner", tenant == "tenants/caller"], "{row:?}");
    }
    door.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn absurd_endpoints_and_models_are_refused_by_field() {
    let (door, owner, _) = world().await;
    let mut endpoints = endpoints(&door);
    type Change = fn(&mut v1::CreateEndpointRequest);
    let cases: &[(&str, Change)] = &[
        ("endpoint_id", |r| r.endpoint_id = "A b".to_owned()),
        ("model", |r| r.model = "ready".to_owned()),
        ("replicas", |r| r.replicas = Some(v1::Replicas { min: 3, max: 2 })),
        ("replicas", |r| r.replicas = Some(v1::Replicas { min: 0, max: 65 })),
        ("resources", |r| r.resources = None),
        ("resources", |r| r.resources.as_mut().unwrap().device_class = "quantum".to_owned()),
        ("resources", |r| r.resources.as_mut().unwrap().milli = 1001),
        ("resources", |r| r.resources.as_mut().unwrap().milli = 0),
        ("resources.memory_bytes", |r| r.resources.as_mut().unwrap().memory_bytes = 1),
        ("resources.device_class", |r| r.resources.as_mut().unwrap().device_class = "../x".to_owned()),
        ("sites", |r| r.sites = vec!["nowhere".to_owned()]),
        ("context", |r| r.context = 8193),
        ("context", |r| r.context = 2305),
        ("sequences", |r| r.sequences = 257),
        ("price", |r| r.price = Some(v1::TokenPrice { prompt_credits: -1, completion_credits: 0 })),
        ("price", |r| r.price = Some(v1::TokenPrice { prompt_credits: i64::MAX, completion_credits: 0 })),
        ("idle", |r| r.idle = Some(prost_types::Duration { seconds: 0, nanos: 1 })),
        ("idle", |r| r.idle = Some(prost_types::Duration { seconds: -1, nanos: 0 })),
    ];
    for (name, change) in cases {
        let mut request = create(&owner, 10, "chat");
        change(&mut request);
        let status = endpoints.create_endpoint(with(request, &owner.1)).await.unwrap_err();
        assert_eq!(field(&status), *name, "{status}");
    }
    let raw = v1::CreateEndpointRequest { model: format!("{}/models/raw", owner.0), ..create(&owner, 11, "chat") };
    let status = endpoints.create_endpoint(with(raw, &owner.1)).await.unwrap_err();
    assert_eq!(reason(&status), "WRONG_STATE", "{status}");
    let mut models = ModelServiceClient::new(door.channel.clone());
    type Import = fn(&mut v1::ImportModelRequest);
    let import = |change: Import| {
        let blob = v1::BlobRef { digest: "a".repeat(64), size_bytes: 5, path: String::new() };
        let mut request = v1::ImportModelRequest {
            request_id: id(12),
            parent: owner.0.clone(),
            model_id: "new".to_owned(),
            file: Some(blob),
            ..Default::default()
        };
        change(&mut request);
        request
    };
    let cases: &[(&str, Import)] = &[
        ("file", |_| ()),
        ("file", |r| r.file = None),
        ("file.digest", |r| r.file.as_mut().unwrap().digest = "x".to_owned()),
        ("requantize", |r| r.requantize = "Q1_0".to_owned()),
        ("model_id", |r| r.model_id = String::new()),
    ];
    for (name, change) in cases {
        let status = models.import_model(with(import(*change), &owner.1)).await.unwrap_err();
        assert_eq!(field(&status), *name, "{status}");
    }
    door.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retry_is_answered_as_the_first_try_and_jobs_of_endpoints_are_nobody_elses_to_make() {
    let (door, owner, _) = world().await;
    let mut endpoints = endpoints(&door);
    let made = endpoints.create_endpoint(with(create(&owner, 20, "chat"), &owner.1)).await.unwrap().into_inner();
    assert_eq!((made.state(), made.sequences, made.context), (v1::EndpointState::Active, 8, 2304));
    let again = endpoints.create_endpoint(with(create(&owner, 20, "chat"), &owner.1)).await.unwrap().into_inner();
    assert_eq!(made.id, again.id);
    let taken = endpoints.create_endpoint(with(create(&owner, 21, "chat"), &owner.1)).await.unwrap_err();
    assert_eq!(reason(&taken), "ALREADY_EXISTS");
    let update = v1::UpdateEndpointRequest {
        request_id: id(22),
        name: made.name.clone(),
        etag: made.etag.clone(),
        replicas: Some(v1::Replicas { min: 1, max: 1 }),
        public: Some(true),
        ..Default::default()
    };
    let changed = endpoints.update_endpoint(with(update.clone(), &owner.1)).await.unwrap().into_inner();
    assert!(changed.public && changed.current.len() == 1, "its replica is there at once: {changed:?}");
    let stale = v1::UpdateEndpointRequest { request_id: id(23), ..update };
    assert_eq!(reason(&endpoints.update_endpoint(with(stale, &owner.1)).await.unwrap_err()), "ETAG_MISMATCH");
    let mut jobs = JobServiceClient::new(door.channel.clone());
    let get = v1::GetJobRequest { name: changed.current[0].job.clone() };
    let job = jobs.get_job(with(get, &owner.1)).await.unwrap().into_inner();
    assert_eq!(job.endpoint, made.id);
    let spec = job.spec.unwrap();
    assert_eq!((spec.kind(), spec.model.as_ref().unwrap().sequences), (v1::JobKind::Replica, 8));
    let submit = v1::SubmitJobRequest {
        request_id: id(24),
        parent: owner.0.clone(),
        spec: Some(spec.clone()),
        ..Default::default()
    };
    assert_eq!(field(&jobs.submit_job(with(submit.clone(), &owner.1)).await.unwrap_err()), "spec.kind");
    let batch = v1::JobSpec { kind: v1::JobKind::Batch.into(), command: vec!["true".to_owned()], ..spec };
    let submit = v1::SubmitJobRequest { spec: Some(batch), ..submit };
    assert_eq!(field(&jobs.submit_job(with(submit, &owner.1)).await.unwrap_err()), "spec.model");
    let delete = v1::DeleteEndpointRequest { request_id: id(25), name: made.name.clone() };
    for _ in 0..2 {
        let gone = endpoints.delete_endpoint(with(delete.clone(), &owner.1)).await.unwrap().into_inner();
        assert_ne!(gone.state(), v1::EndpointState::Active);
    }
    door.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_controller_that_stops_tells_users_and_closes_their_requests_first() {
    let (door, owner, _) = world().await;
    let (door, address) = Door::serve_in(door.leave().await).await;
    let body = r#"{"model": "sold", "prompt": "Hi", "max_tokens": 2}"#;
    let key = owner.1.to_str().unwrap();
    let head = format!("POST /v1/completions HTTP/1.1\r\nhost: x\r\nauthorization: {key}\r\n");
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("{head}content-length: {}\r\n\r\n{body}", body.len());
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut endpoints = endpoints(&door);
    let mut own = async || {
        let request = v1::ListRequestsRequest { parent: owner.0.clone(), ..Default::default() };
        endpoints.list_requests(with(request, &owner.1)).await.unwrap().into_inner().requests
    };
    let waits = async {
        while own().await.is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(Duration::from_secs(20), waits).await.unwrap();
    // No replica ever comes.
    let folder = timeout(Duration::from_secs(60), door.leave()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("retry-after"), "{answer}");
    // Closed by itself, and not credited by the next start.
    let door = Door::open_in(folder, Lifetimes::default()).await;
    let request = v1::ListRequestsRequest { parent: owner.0.clone(), ..Default::default() };
    let rows = self::endpoints(&door).list_requests(with(request, &owner.1)).await.unwrap().into_inner().requests;
    assert_eq!((rows[0].state(), rows[0].reason.as_str()), (v1::InferenceRequestState::Voided, "UNAVAILABLE"));
    door.close().await;
}
