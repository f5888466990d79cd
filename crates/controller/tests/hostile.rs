//! Malformed input at the controller's door: every method answers with a documented reason, none with INTERNAL, and the
//! server goes on serving.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::time::{Duration, Instant};

use bytes::Bytes;
use prost::Message as _;
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use sluice_controller::{Access, METHODS};
use sluice_proto::v1;
use sluice_proto::v1::job_service_client::JobServiceClient;
use sluice_proto::v1::session_service_client::SessionServiceClient;
use sluice_types::Reason;
use support::{Door, tenant, with};
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::{Code, Request, Status};
use tonic_types::StatusExt as _;

/// Sends bytes as they are, and takes whatever comes.
#[derive(Debug, Clone, Copy, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        bytes::BufMut::put(buffer, item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        let length = bytes::Buf::remaining(buffer);
        Ok(Some(bytes::Buf::copy_to_bytes(buffer, length)))
    }
}

async fn call(door: &Door, method: &str, body: Bytes, with_key: bool) -> Result<Bytes, Status> {
    let mut client = tonic::client::Grpc::new(door.channel.clone());
    client.ready().await.unwrap();
    let path: PathAndQuery = format!("/{method}").parse().unwrap();
    let mut request = Request::new(body);
    if with_key {
        request.metadata_mut().insert("authorization", door.key.clone());
    }
    client.unary(request, path, Raw).await.map(tonic::Response::into_inner)
}

/// A refusal is not INTERNAL or UNKNOWN, and has a reason that is documented.
fn check(method: &str, what: &str, status: &Status) {
    let reason = status.get_error_details().error_info().map(|info| info.reason.clone()).unwrap_or_default();
    let told = format!("{method} on {what}: {:?} {reason:?} {}", status.code(), status.message());
    assert!(!matches!(status.code(), Code::Internal | Code::Unknown), "{told}");
    assert!(reason.parse::<Reason>().is_ok(), "{told}");
}

fn streams(method: &str) -> bool {
    ["WatchJobs", "StreamLogs", "UploadBlob", "DownloadOutputs"].iter().any(|name| method.ends_with(name))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damaged_messages_are_refused_with_a_reason_by_every_method() {
    let door = Door::open().await;
    let mut random = ChaCha8Rng::seed_from_u64(7);
    let users = METHODS.iter().filter(|(_, access)| !matches!(access, Access::Hosts));
    let mut calls = 0;
    for (method, access) in users.filter(|(method, _)| !streams(method)) {
        let mut bodies = vec![
            ("a torn varint", vec![0x0a, 0xff, 0xff, 0xff]),
            ("a length beyond the end", vec![0x0a, 0x7f, b'x']),
            ("text that is not UTF-8", vec![0x0a, 0x02, 0xff, 0xfe, 0x12, 0x02, 0xc3, 0x28, 0x1a, 0x01, 0x80]),
            ("field number 0", vec![0x00, 0x00]),
            ("groups without end", vec![0x0b; 200]),
            ("nothing", Vec::new()),
        ];
        for _ in 0..20 {
            let length = random.random_range(1..200);
            bodies.push(("noise", (0..length).map(|_| random.random()).collect()));
        }
        for (what, body) in bodies {
            if let Err(status) = call(&door, method, body.into(), true).await {
                check(method, what, &status);
            }
            calls += 1;
        }
        if matches!(access, Access::Roles(_)) {
            let status = call(&door, method, Bytes::new(), false).await.unwrap_err();
            assert_eq!(status.code(), Code::Unauthenticated, "{method}");
            check(method, "no key", &status);
        }
    }
    assert!(calls > 1000, "only {calls} calls");
    let status = call(&door, "sluice.v1.JobService/Nothing", Bytes::new(), true).await.unwrap_err();
    check("an unknown method", "nothing", &status);
    let status = call(&door, "sluice.v1.JobService/GetJob", vec![0; 9 << 20].into(), true).await.unwrap_err();
    check("GetJob", "9 MiB", &status);
    door.close().await;
}

fn submit(change: impl FnOnce(&mut v1::JobSpec)) -> v1::SubmitJobRequest {
    let mut spec = v1::JobSpec {
        command: vec!["true".to_owned()],
        resources: Some(v1::TaskResources { device_class: "cpu".to_owned(), milli: 100, ..Default::default() }),
        ..Default::default()
    };
    change(&mut spec);
    v1::SubmitJobRequest {
        request_id: "123e4567-e89b-42d3-a456-426614174000".to_owned(),
        parent: "tenants/t/projects/p".to_owned(),
        spec: Some(spec),
        ..Default::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn absurd_specs_are_refused_by_field() {
    let door = Door::open().await;
    let id = "123e4567-e89b-42d3-a456-42661417400";
    let tenant = v1::CreateTenantRequest { request_id: format!("{id}1"), tenant_id: "t".into(), ..Default::default() };
    call(&door, "sluice.v1.TenantService/CreateTenant", tenant.encode_to_vec().into(), true).await.unwrap();
    let project = v1::CreateProjectRequest {
        request_id: format!("{id}2"),
        parent: "tenants/t".into(),
        project_id: "p".into(),
        validate_only: false,
    };
    call(&door, "sluice.v1.TenantService/CreateProject", project.encode_to_vec().into(), true).await.unwrap();
    let digest = "0".repeat(64);
    let blob = move |path: &str| v1::BlobRef { digest: digest.clone(), size_bytes: 1, path: path.to_owned() };
    type Change = Box<dyn FnOnce(&mut v1::JobSpec)>;
    let cases: Vec<(&str, Change)> = vec![
        ("spec.command", Box::new(|spec| spec.command.clear())),
        ("spec.command", Box::new(|spec| spec.command = vec!["a\0b".into()])),
        ("spec.command", Box::new(|spec| spec.command = vec!["x".repeat(100_000)])),
        ("spec.env", Box::new(|spec| drop(spec.env.insert("A=B".into(), String::new())))),
        ("spec.env", Box::new(|spec| drop(spec.env.insert("SLUICE_JOB".into(), String::new())))),
        ("spec.resources", Box::new(|spec| spec.resources = None)),
        ("spec.resources.milli", Box::new(|spec| spec.resources.as_mut().unwrap().milli = 1001)),
        ("spec.resources.milli", Box::new(|spec| spec.resources.as_mut().unwrap().milli = 0)),
        ("spec.resources.memory_bytes", Box::new(|spec| spec.resources.as_mut().unwrap().memory_bytes = u64::MAX)),
        ("spec.resources.host_core_milli", Box::new(|s| s.resources.as_mut().unwrap().host_core_milli = u32::MAX)),
        ("spec.resources.device_class", Box::new(|s| s.resources.as_mut().unwrap().device_class = "../x".into())),
        ("spec.tasks", Box::new(|spec| spec.tasks = u32::MAX)),
        ("spec.priority", Box::new(|spec| spec.priority = i32::MIN)),
        (
            "spec.max_run_time",
            Box::new(|spec| spec.max_run_time = Some(prost_types::Duration { seconds: -1, nanos: 0 })),
        ),
        (
            "spec.max_run_time",
            Box::new(|spec| spec.max_run_time = Some(prost_types::Duration { seconds: i64::MAX, nanos: i32::MAX })),
        ),
        ("spec.sites", Box::new(|spec| spec.sites = vec!["nowhere".into()])),
        ("spec.work_dir.path", Box::new(move |spec| spec.work_dir = Some(blob("../../etc")))),
        (
            "spec.work_dir.digest",
            Box::new(|spec| spec.work_dir = Some(v1::BlobRef { digest: "x".into(), ..Default::default() })),
        ),
        ("spec.checkpoint.capture", Box::new(|spec| spec.checkpoint = Some(v1::CheckpointPolicy::default()))),
    ];
    for (field, change) in cases {
        let body = submit(change).encode_to_vec();
        let status = call(&door, "sluice.v1.JobService/SubmitJob", body.into(), true).await.unwrap_err();
        check("SubmitJob", field, &status);
        let details = status.get_error_details();
        let named = details.error_info().and_then(|info| info.metadata.get("field").cloned()).unwrap_or_default();
        assert_eq!(named, field, "{}", status.message());
    }
    door.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damaged_uploads_leave_nothing_and_say_why() {
    let door = Door::open().await;
    let mut client = JobServiceClient::new(door.channel.clone());
    let header = |digest: &str, size_bytes| v1::UploadBlobRequest {
        part: Some(v1::upload_blob_request::Part::Header(v1::UploadBlobHeader {
            parent: "tenants/none/projects/none".to_owned(),
            digest: digest.to_owned(),
            size_bytes,
        })),
    };
    let data = |bytes: &'static [u8]| v1::UploadBlobRequest {
        part: Some(v1::upload_blob_request::Part::Data(Bytes::from_static(bytes))),
    };
    let streams = [
        vec![data(b"no header")],
        vec![header("short", 1), data(b"x")],
        vec![header(&"a".repeat(64), u64::MAX)],
        vec![v1::UploadBlobRequest { part: None }],
        Vec::new(),
    ];
    for stream in streams {
        let mut request = Request::new(tokio_stream::iter(stream));
        request.metadata_mut().insert("authorization", door.key.clone());
        let status = client.upload_blob(request).await.unwrap_err();
        check("UploadBlob", "a damaged stream", &status);
    }
    door.close().await;
}

#[tokio::test]
async fn whoever_attaches_again_and_again_is_heard_less_often() {
    let door = Door::open().await;
    let (red, blue) = (tenant(&door, "red").await.1, tenant(&door, "blue").await.1);
    // A connection is that of its first caller's tenant.
    let attached = async |key: &MetadataValue<Ascii>, times: usize| {
        let mut sessions = SessionServiceClient::new(door.connect().await.unwrap());
        let begin = Instant::now();
        for _ in 0..times {
            let first = tokio_stream::iter([v1::AttachSessionRequest { message: None }]);
            let refused = sessions.attach_session(with(first, key)).await.unwrap_err();
            assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
        }
        begin.elapsed()
    };
    // Of 80 a second, half a second's may come at once. A refused one costs what every one does.
    let (again, once) = tokio::join!(attached(&red, 160), attached(&blue, 20));
    assert!(again >= Duration::from_millis(1200), "{again:?}");
    // The control: another tenant is heard meanwhile.
    assert!(once < again / 2, "{once:?} of {again:?}");
    door.close().await;
}
