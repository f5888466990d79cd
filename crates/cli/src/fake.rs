//! Whole flows against a job service in this process that fails on purpose.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use sluice_proto::v1;
use sluice_proto::v1::job_service_server::{JobService, JobServiceServer};
use tokio_stream::Stream;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, Streaming};

use crate::command::{Invocation, perform};
use crate::connect::Api;
use crate::error::{CliError, Exit};
use crate::golden::{job, parsed};
use crate::output::{Console, Format};
use crate::reference::Scope;

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;
type Script<T> = VecDeque<Vec<Result<T, Status>>>;

fn stream<T: Send + 'static>(items: Vec<Result<T, Status>>) -> Answers<T> {
    Box::pin(tokio_stream::iter(items))
}

/// What it will answer, and what it was asked.
#[derive(Default)]
struct State {
    refuse_submits: usize,
    submits: Vec<v1::SubmitJobRequest>,
    keys: Vec<String>,
    jobs: VecDeque<v1::JobState>,
    logs: Script<v1::StreamLogsResponse>,
    log_offsets: Vec<u64>,
    watches: Script<v1::WatchJobsResponse>,
    watch_tokens: Vec<String>,
    refuse_uploads: usize,
    uploaded: Vec<(v1::UploadBlobHeader, Vec<u8>)>,
    outputs: Script<v1::DownloadOutputsResponse>,
    cancelled: Vec<String>,
}

#[derive(Clone, Default)]
struct Fake(Arc<Mutex<State>>);

impl Fake {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    fn job_now(&self) -> v1::Job {
        let mut state = self.state();
        let now = if state.jobs.len() > 1 { state.jobs.pop_front() } else { state.jobs.front().copied() };
        job(now.unwrap_or(v1::JobState::Running))
    }
}

#[tonic::async_trait]
impl JobService for Fake {
    type WatchJobsStream = Answers<v1::WatchJobsResponse>;
    type StreamLogsStream = Answers<v1::StreamLogsResponse>;
    type DownloadOutputsStream = Answers<v1::DownloadOutputsResponse>;

    async fn submit_job(&self, request: Request<v1::SubmitJobRequest>) -> Result<Response<v1::Job>, Status> {
        let key = request.metadata().get("authorization").map(|v| v.to_str().unwrap().to_owned());
        let deadline = request.metadata().contains_key("grpc-timeout");
        let mut state = self.state();
        state.keys.push(format!("{} {deadline}", key.unwrap_or_default()));
        state.submits.push(request.into_inner());
        if state.submits.len() <= state.refuse_submits {
            return Err(Status::unavailable("starting"));
        }
        Ok(Response::new(job(v1::JobState::Pending)))
    }

    async fn batch_submit_jobs(
        &self,
        _: Request<v1::BatchSubmitJobsRequest>,
    ) -> Result<Response<v1::BatchSubmitJobsResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn get_job(&self, _: Request<v1::GetJobRequest>) -> Result<Response<v1::Job>, Status> {
        Ok(Response::new(self.job_now()))
    }

    async fn list_jobs(&self, request: Request<v1::ListJobsRequest>) -> Result<Response<v1::ListJobsResponse>, Status> {
        let found = request.get_ref().filter == "display_name=train-1";
        let jobs = if found { vec![job(v1::JobState::Running)] } else { vec![] };
        Ok(Response::new(v1::ListJobsResponse { jobs, next_page_token: String::new() }))
    }

    async fn watch_jobs(
        &self,
        request: Request<v1::WatchJobsRequest>,
    ) -> Result<Response<Self::WatchJobsStream>, Status> {
        let mut state = self.state();
        state.watch_tokens.push(request.into_inner().resume_token);
        let next = state.watches.pop_front().ok_or_else(|| Status::failed_precondition("the script is over"))?;
        Ok(Response::new(stream(next)))
    }

    async fn cancel_job(&self, request: Request<v1::CancelJobRequest>) -> Result<Response<v1::Job>, Status> {
        self.state().cancelled.push(request.into_inner().name);
        Ok(Response::new(job(v1::JobState::Cancelling)))
    }

    async fn suspend_job(&self, _: Request<v1::SuspendJobRequest>) -> Result<Response<v1::Job>, Status> {
        Ok(Response::new(job(v1::JobState::Suspending)))
    }

    async fn resume_job(&self, _: Request<v1::ResumeJobRequest>) -> Result<Response<v1::Job>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn migrate_job(&self, _: Request<v1::MigrateJobRequest>) -> Result<Response<v1::Job>, Status> {
        Ok(Response::new(moving("preparing")))
    }

    async fn explain_job(&self, _: Request<v1::ExplainJobRequest>) -> Result<Response<v1::ExplainJobResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn list_events(&self, _: Request<v1::ListEventsRequest>) -> Result<Response<v1::ListEventsResponse>, Status> {
        Ok(Response::new(v1::ListEventsResponse::default()))
    }

    async fn list_checkpoints(
        &self,
        _: Request<v1::ListCheckpointsRequest>,
    ) -> Result<Response<v1::ListCheckpointsResponse>, Status> {
        Ok(Response::new(v1::ListCheckpointsResponse::default()))
    }

    async fn stream_logs(
        &self,
        request: Request<v1::StreamLogsRequest>,
    ) -> Result<Response<Self::StreamLogsStream>, Status> {
        let mut state = self.state();
        state.log_offsets.push(request.into_inner().offset);
        let next = state.logs.pop_front().ok_or_else(|| Status::failed_precondition("no log yet"))?;
        Ok(Response::new(stream(next)))
    }

    async fn upload_blob(
        &self,
        request: Request<Streaming<v1::UploadBlobRequest>>,
    ) -> Result<Response<v1::UploadBlobResponse>, Status> {
        use v1::upload_blob_request::Part;
        let mut parts = request.into_inner();
        let Some(Part::Header(header)) = parts.message().await?.and_then(|m| m.part) else {
            return Err(Status::invalid_argument("no header"));
        };
        let refuse = {
            let mut state = self.state();
            let refuse = state.refuse_uploads > 0;
            state.refuse_uploads = state.refuse_uploads.saturating_sub(1);
            refuse
        };
        if refuse {
            return Err(Status::unavailable("starting"));
        }
        let mut data = Vec::new();
        while let Some(part) = parts.message().await? {
            let Some(Part::Data(bytes)) = part.part else { return Err(Status::invalid_argument("two headers")) };
            assert!(bytes.len() <= 256 << 10);
            data.extend_from_slice(&bytes);
        }
        let blob = v1::BlobRef { digest: header.digest.clone(), size_bytes: header.size_bytes, path: String::new() };
        self.state().uploaded.push((header, data));
        Ok(Response::new(v1::UploadBlobResponse { blob: Some(blob), existed: false }))
    }

    async fn download_outputs(
        &self,
        _: Request<v1::DownloadOutputsRequest>,
    ) -> Result<Response<Self::DownloadOutputsStream>, Status> {
        let next = self.state().outputs.pop_front().ok_or_else(|| Status::not_found("no outputs"))?;
        Ok(Response::new(stream(next)))
    }
}

fn moving(phase: &str) -> v1::Job {
    let mut job = job(v1::JobState::Migrating);
    let migration = job.migration.get_or_insert_default();
    (migration.id, migration.phase) = ("mig-2".into(), phase.into());
    job
}

/// Runs one command line against the fake; gives what it printed.
async fn flow(fake: &Fake, line: &[&str]) -> (Result<(), CliError>, Vec<u8>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = format!("http://{}", listener.local_addr().unwrap());
    let service = JobServiceServer::new(fake.clone());
    let serving = tokio::spawn(
        tonic::transport::Server::builder().add_service(service).serve_with_incoming(TcpListenerStream::new(listener)),
    );
    let channel = tonic::transport::Endpoint::from_shared(server).unwrap().connect_lazy();
    let (global, command) = parsed(line).unwrap();
    let (console, printed) = Console::in_memory(global.output);
    let scope = Scope { tenant: Some("acme".into()), project: "default".into() };
    let at = Invocation { api: Api::plain(channel), scope, console };
    let done = perform(&at, command).await;
    serving.abort();
    let printed = printed.lock().unwrap().clone();
    (done, printed)
}

fn log(offset: u64, data: &'static str) -> Result<v1::StreamLogsResponse, Status> {
    Ok(v1::StreamLogsResponse { offset, data: Bytes::from_static(data.as_bytes()) })
}

fn told(job: v1::Job, token: &str) -> Result<v1::WatchJobsResponse, Status> {
    let event = Some(v1::watch_jobs_response::Event::Job(job));
    Ok(v1::WatchJobsResponse { event, resume_token: token.into() })
}

fn resync() -> Result<v1::WatchJobsResponse, Status> {
    let event = Some(v1::watch_jobs_response::Event::Resync(v1::Resync {}));
    Ok(v1::WatchJobsResponse { event, resume_token: "old".into() })
}

#[tokio::test]
async fn a_submit_is_retried_with_the_same_request_id_and_key() {
    let fake = Fake::default();
    fake.state().refuse_submits = 2;
    let (done, printed) = flow(&fake, &["submit", "--name", "x", "--", "true"]).await;
    done.unwrap();
    assert_eq!(printed, b"job-000000000002d\n");
    let state = fake.state();
    assert_eq!(state.submits.len(), 3);
    assert!(state.submits.iter().all(|request| *request == state.submits[0] && request.wait_for_decision));
    assert_eq!(state.submits[0].request_id.len(), 36);
    assert!(state.keys.iter().all(|key| key == "Bearer k true"), "{:?}", state.keys);
}

/// A server with a certificate of `name`, and the CA that signed it.
async fn secure(fake: &Fake, name: &str) -> (String, String) {
    use tonic::transport::{Identity, Server, ServerTlsConfig};
    let ca_key = rcgen::KeyPair::generate().unwrap();
    let mut ca = rcgen::CertificateParams::new(vec![]).unwrap();
    ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca_pem = ca.self_signed(&ca_key).unwrap().pem();
    let issuer = rcgen::Issuer::new(ca, ca_key);
    let key = rcgen::KeyPair::generate().unwrap();
    let leaf = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
    let identity = Identity::from_pem(leaf.pem(), key.serialize_pem());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = format!("https://{}", listener.local_addr().unwrap());
    let serving = Server::builder()
        .tls_config(ServerTlsConfig::new().identity(identity))
        .unwrap()
        .add_service(JobServiceServer::new(fake.clone()))
        .serve_with_incoming(TcpListenerStream::new(listener));
    tokio::spawn(serving);
    (server, ca_pem)
}

#[tokio::test]
async fn only_the_controller_of_our_ca_is_spoken_to() {
    let fake = Fake::default();
    let (good, good_ca) = secure(&fake, crate::SERVER_NAME).await;
    let (impostor, impostor_ca) = secure(&fake, "another-name").await;
    for (server, ca_pem, exit) in [
        (good.clone(), good_ca.clone(), None),
        (good, impostor_ca.clone(), Some(Exit::Unavailable)),
        (impostor.clone(), good_ca, Some(Exit::Unavailable)),
        (impostor, impostor_ca, Some(Exit::Unavailable)),
    ] {
        let scope = Scope { tenant: Some("acme".into()), project: "default".into() };
        let key = Some("slk_1".parse().unwrap());
        let connection = crate::context::Connection { server, ca_pem, key, scope: scope.clone() };
        let (console, _) = Console::in_memory(Format::Table);
        let at = Invocation { api: Api::connect(&connection).unwrap(), scope, console };
        let done = perform(&at, parsed(&["submit", "--", "true"]).unwrap().1).await;
        assert_eq!(done.err().map(|error| error.exit()), exit);
    }
    assert_eq!(fake.state().keys, ["Bearer slk_1 true"]);
}

#[tokio::test]
async fn the_budget_of_retries_ends() {
    let fake = Fake::default();
    fake.state().refuse_submits = 100;
    let (done, printed) = flow(&fake, &["submit", "--", "true"]).await;
    assert_eq!(done.unwrap_err().exit(), Exit::Unavailable);
    assert_eq!((printed.len(), fake.state().submits.len()), (0, 4));
}

#[tokio::test]
async fn a_working_directory_is_uploaded_once_whole() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("big"), vec![7u8; 700 << 10]).unwrap();
    let fake = Fake::default();
    fake.state().refuse_uploads = 1;
    flow(&fake, &["submit", "--workdir", dir.path().to_str().unwrap(), "--", "./big"]).await.0.unwrap();
    let state = fake.state();
    let (header, data) = &state.uploaded[0];
    assert_eq!((state.uploaded.len(), header.size_bytes), (1, data.len() as u64));
    assert_eq!(header.digest, blake3::hash(data).to_hex().to_string());
    assert_eq!(state.submits[0].spec.as_ref().unwrap().work_dir.as_ref().unwrap().digest, header.digest);
}

#[tokio::test]
async fn a_dry_run_uploads_and_submits_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let fake = Fake::default();
    let (done, printed) =
        flow(&fake, &["submit", "--dry-run", "--workdir", dir.path().to_str().unwrap(), "--", "x"]).await;
    done.unwrap();
    let state = fake.state();
    assert!(state.uploaded.is_empty() && state.submits[0].validate_only);
    assert!(String::from_utf8(printed).unwrap().starts_with("apiVersion: sluice.dev/v1\nkind: Job\n"));
}

#[tokio::test]
async fn a_log_goes_on_at_its_offset_and_prints_each_byte_once() {
    let fake = Fake::default();
    {
        let mut state = fake.state();
        let cut = || Err(Status::unavailable("gone"));
        state.logs =
            [vec![log(0, "hello "), log(6, "wor"), cut()], vec![cut()], vec![log(6, "world"), log(11, "!\n")]].into();
    }
    let (done, printed) = flow(&fake, &["logs", "train-1"]).await;
    done.unwrap();
    assert_eq!(String::from_utf8(printed).unwrap(), "hello world!\n");
    assert_eq!(fake.state().log_offsets, [0, 9, 9]);
}

#[tokio::test]
async fn run_follows_to_the_end_and_tells_a_failed_job() {
    for (end, exit) in [(v1::JobState::Succeeded, None), (v1::JobState::Failed, Some(Exit::JobFailed))] {
        let fake = Fake::default();
        {
            let mut state = fake.state();
            state.jobs = [v1::JobState::Running, end].into();
            // Too early, then a part, then what came while the job ended.
            state.logs = [vec![Err(Status::failed_precondition(""))], vec![log(0, "a")], vec![log(1, "b")]].into();
        }
        let (done, printed) = flow(&fake, &["run", "--", "x"]).await;
        assert_eq!(done.err().map(|error| error.exit()), exit);
        assert_eq!(printed, b"ab");
    }
}

#[tokio::test]
async fn a_wait_resumes_by_token_and_starts_again_after_a_resync() {
    let fake = Fake::default();
    {
        let mut state = fake.state();
        let cut = || Err(Status::unavailable("gone"));
        let running = || told(job(v1::JobState::Running), "t1");
        state.watches = [
            vec![running(), cut()],
            vec![resync()],
            vec![told(job(v1::JobState::Running), "t2")],
            vec![told(job(v1::JobState::Succeeded), "t3")],
        ]
        .into();
    }
    flow(&fake, &["submit", "--wait", "--", "x"]).await.0.unwrap();
    assert_eq!(fake.state().watch_tokens, ["", "t1", "", "t2"]);
}

#[tokio::test]
async fn waits_end_by_what_they_are_for() {
    let watch = |jobs: Vec<v1::Job>| {
        let fake = Fake::default();
        fake.state().watches = [jobs.into_iter().map(|job| told(job, "t")).collect()].into();
        fake
    };
    let suspended = watch(vec![job(v1::JobState::Suspending), job(v1::JobState::Suspended)]);
    flow(&suspended, &["suspend", "train-1", "--wait"]).await.0.unwrap();
    let ended = watch(vec![job(v1::JobState::Failed)]);
    let error = flow(&ended, &["suspend", "train-1", "--wait"]).await.0.unwrap_err();
    assert_eq!(error.exit(), Exit::JobFailed);
    let cancelled = watch(vec![job(v1::JobState::Cancelled)]);
    flow(&cancelled, &["cancel", "train-1", "-y", "--wait"]).await.0.unwrap();
    assert_eq!(cancelled.state().cancelled, ["tenants/acme/projects/default/jobs/job-000000000002d"]);
    let moved = watch(vec![job(v1::JobState::Running), moving("shipping"), moving("done")]);
    flow(&moved, &["migrate", "train-1", "--to", "b", "--wait"]).await.0.unwrap();
    let stayed = watch(vec![moving("preparing"), moving("failed")]);
    let error = flow(&stayed, &["migrate", "train-1", "--to", "b", "--wait"]).await.0.unwrap_err();
    assert_eq!(error.exit(), Exit::JobFailed);
    let error = flow(&Fake::default(), &["describe", "absent"]).await.0.unwrap_err();
    assert_eq!(error.exit(), Exit::NotFound);
}

#[tokio::test]
async fn outputs_are_fetched_again_after_a_cut_and_never_short() {
    let mut archive = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(5);
    header.set_mode(0o644);
    archive.append_data(&mut header, "model/w", &b"12345"[..]).unwrap();
    let bytes = archive.into_inner().unwrap();
    let size_bytes = bytes.len() as u64;
    let part = |data: &[u8], size_bytes| Ok(v1::DownloadOutputsResponse { size_bytes, data: data.to_vec().into() });
    let fake = Fake::default();
    fake.state().outputs = [
        vec![part(&bytes[..100], size_bytes), Err(Status::unavailable("gone"))],
        vec![part(&bytes[..100], size_bytes)],
        vec![part(&bytes[..100], size_bytes), part(&bytes[100..], 0)],
    ]
    .into();
    let dir = tempfile::tempdir().unwrap();
    let to = dir.path().join("out");
    flow(&fake, &["cp", "train-1", to.to_str().unwrap()]).await.0.unwrap();
    assert_eq!(std::fs::read(to.join("model/w")).unwrap(), b"12345");
    fake.state().outputs = [vec![part(&bytes, 10)]].into();
    assert!(flow(&fake, &["cp", "train-1", to.to_str().unwrap()]).await.0.is_err());
}

#[tokio::test]
async fn a_json_answer_is_one_document() {
    let (done, printed) = flow(&Fake::default(), &["get", "jobs", "train-1", "-o", "json"]).await;
    done.unwrap();
    let json: serde_json::Value = serde_json::from_slice(&printed).unwrap();
    assert_eq!((&json["kind"], &json["id"]), (&"Job".into(), &"job-000000000002d".into()));
    let (console, _) = Console::in_memory(Format::Json);
    assert!(!console.is_human());
}
