//! The gRPC door, with chosen request ids.

use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use sluice_proto::v1;
use sluice_proto::v1::endpoint_service_client::EndpointServiceClient;
use sluice_proto::v1::fleet_service_client::FleetServiceClient;
use sluice_proto::v1::job_service_client::JobServiceClient;
use sluice_proto::v1::money_service_client::MoneyServiceClient;
use sluice_proto::v1::session_service_client::SessionServiceClient;
use sluice_proto::v1::tenant_service_client::TenantServiceClient;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Request, Status};

const CONTROLLER: &str = "sluice-controller";
const PAGE: i32 = 1000;
const ANSWER: usize = 64 << 20;

/// The project that everything of these tests is in.
pub(crate) const PROJECT: &str = "tenants/default/projects/default";

/// Puts key and deadline into every call.
#[derive(Debug, Clone)]
pub struct Caller(MetadataValue<Ascii>);

impl Interceptor for Caller {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert("authorization", self.0.clone());
        Ok(request)
    }
}

/// A connection as the admin.
pub type Authed = InterceptedService<Channel, Caller>;

/// The controller's services as its admin; connects again by itself.
#[derive(Debug, Clone)]
pub struct Client {
    channel: Channel,
    caller: Caller,
}

impl Client {
    /// Prepares the way to the controller of the system in `data`. To be called inside a runtime.
    ///
    /// # Errors
    /// The system was never up.
    pub fn new(data: &Path) -> anyhow::Result<Self> {
        Self::with_key(data, &data.join("controller/admin.key"), None)
    }

    /// The same for whoever has the key in a file, over a connection of its own; `window` is the bytes of an answer that
    /// may be under way unread.
    ///
    /// # Errors
    /// The system was never up, or there is no such key.
    pub fn with_key(data: &Path, key: &Path, window: Option<u32>) -> anyhow::Result<Self> {
        // Somebody else in this process may have installed it before; there is one provider only.
        let _known = rustls::crypto::ring::default_provider().install_default();
        let folder = data.join("controller");
        let context = std::fs::read_to_string(data.join("context.json")).context("the system's context")?;
        let context: serde_json::Value = serde_json::from_str(&context)?;
        let server = context["server"].as_str().context("the controller's address")?.to_owned();
        let ca = std::fs::read_to_string(folder.join("keys/ca.pem")).context("the system's CA")?;
        let secret = std::fs::read_to_string(key).context("the caller's key")?;
        let tls = ClientTlsConfig::new().domain_name(CONTROLLER).ca_certificate(Certificate::from_pem(ca));
        let endpoint = Endpoint::from_shared(server)?.tls_config(tls)?;
        let endpoint = endpoint.connect_timeout(Duration::from_secs(2)).timeout(Duration::from_secs(10));
        let endpoint = endpoint.initial_stream_window_size(window);
        let mut key: MetadataValue<Ascii> = format!("Bearer {}", secret.trim()).parse()?;
        key.set_sensitive(true);
        Ok(Self { channel: endpoint.connect_lazy(), caller: Caller(key) })
    }

    fn authed(&self) -> Authed {
        InterceptedService::new(self.channel.clone(), self.caller.clone())
    }

    /// Jobs.
    #[must_use]
    pub fn jobs(&self) -> JobServiceClient<Authed> {
        JobServiceClient::new(self.authed()).max_decoding_message_size(ANSWER)
    }

    /// Money.
    #[must_use]
    pub fn money(&self) -> MoneyServiceClient<Authed> {
        MoneyServiceClient::new(self.authed()).max_decoding_message_size(ANSWER)
    }

    /// Sessions in rentals.
    #[must_use]
    pub fn sessions(&self) -> SessionServiceClient<Authed> {
        SessionServiceClient::new(self.authed())
    }

    /// Tenants.
    #[must_use]
    pub fn tenants(&self) -> TenantServiceClient<Authed> {
        TenantServiceClient::new(self.authed())
    }

    /// The fleet.
    #[must_use]
    pub fn fleet(&self) -> FleetServiceClient<Authed> {
        FleetServiceClient::new(self.authed())
    }

    /// All requests of a project, or to an endpoint.
    ///
    /// # Errors
    /// The API's.
    pub async fn list_requests(&self, parent: &str) -> anyhow::Result<Vec<v1::InferenceRequest>> {
        let mut service = EndpointServiceClient::new(self.authed()).max_decoding_message_size(ANSWER);
        let (mut all, mut token) = (Vec::new(), String::new());
        loop {
            let request = v1::ListRequestsRequest { parent: parent.to_owned(), page_size: PAGE, page_token: token };
            let page = service.list_requests(request).await?.into_inner();
            all.extend(page.requests);
            token = page.next_page_token;
            if token.is_empty() {
                return Ok(all);
            }
        }
    }

    /// All jobs of the project.
    ///
    /// # Errors
    /// The API's.
    pub async fn list_jobs(&self) -> anyhow::Result<Vec<v1::Job>> {
        self.list_jobs_of(PROJECT).await
    }

    /// All jobs of a project, a tenant or, as "tenants/-", of everybody.
    ///
    /// # Errors
    /// The API's.
    pub async fn list_jobs_of(&self, parent: &str) -> anyhow::Result<Vec<v1::Job>> {
        let (mut all, mut token) = (Vec::new(), String::new());
        loop {
            let request = v1::ListJobsRequest {
                parent: parent.to_owned(),
                page_size: PAGE,
                page_token: token,
                filter: String::new(),
            };
            let page = self.jobs().list_jobs(request).await?.into_inner();
            all.extend(page.jobs);
            token = page.next_page_token;
            if token.is_empty() {
                return Ok(all);
            }
        }
    }

    /// All metered windows of a tenant, a project or a job.
    ///
    /// # Errors
    /// The API's.
    pub async fn list_usage(&self, parent: &str) -> anyhow::Result<Vec<v1::Window>> {
        let (mut all, mut token) = (Vec::new(), String::new());
        loop {
            let request = v1::ListUsageRequest { parent: parent.to_owned(), page_size: PAGE, page_token: token };
            let page = self.money().list_usage(request).await?.into_inner();
            all.extend(page.windows);
            token = page.next_page_token;
            if token.is_empty() {
                return Ok(all);
            }
        }
    }

    /// All ledger entries of a tenant.
    ///
    /// # Errors
    /// The API's.
    pub async fn list_transfers(&self, tenant: &str) -> anyhow::Result<Vec<v1::LedgerTransfer>> {
        let (mut all, mut token) = (Vec::new(), String::new());
        loop {
            let request = v1::ListTransfersRequest { tenant: tenant.to_owned(), page_size: PAGE, page_token: token };
            let page = self.money().list_transfers(request).await?.into_inner();
            all.extend(page.transfers);
            token = page.next_page_token;
            if token.is_empty() {
                return Ok(all);
            }
        }
    }

    /// Uploads a folder as a tar archive. Returns its digest and size.
    ///
    /// # Errors
    /// The folder's, and the API's.
    pub async fn upload_folder(&self, project: &str, folder: &Path) -> anyhow::Result<(String, u64)> {
        let mut archive = tar::Builder::new(Vec::new());
        archive.append_dir_all("", folder)?;
        let bytes = archive.into_inner()?;
        let (digest, size_bytes) = (blake3::hash(&bytes).to_hex().to_string(), u64::try_from(bytes.len())?);
        let header = v1::UploadBlobHeader { parent: project.to_owned(), digest: digest.clone(), size_bytes };
        let part = |part| v1::UploadBlobRequest { part: Some(part) };
        let mut parts = vec![part(v1::upload_blob_request::Part::Header(header))];
        let chunks = bytes.chunks(256 << 10).map(|chunk| v1::upload_blob_request::Part::Data(chunk.to_vec().into()));
        parts.extend(chunks.map(part));
        let mut request = Request::new(tokio_stream::iter(parts));
        request.set_timeout(Duration::from_secs(120));
        self.jobs().upload_blob(request).await?;
        Ok((digest, size_bytes))
    }

    /// One file of a job's outputs; `None` where there are none.
    ///
    /// # Errors
    /// The API's.
    pub async fn output(&self, job: &str, path: &str) -> anyhow::Result<Option<String>> {
        let request = v1::DownloadOutputsRequest { name: job.to_owned(), rank: 0 };
        let mut stream = match self.jobs().download_outputs(request).await {
            Ok(answer) => answer.into_inner(),
            Err(status) if status.code() == tonic::Code::NotFound => return Ok(None),
            Err(status) => return Err(status.into()),
        };
        let mut bytes = Vec::new();
        while let Some(part) = stream.message().await? {
            bytes.extend_from_slice(&part.data);
        }
        let mut archive = tar::Archive::new(bytes.as_slice());
        for entry in archive.entries()? {
            let mut entry = entry?;
            if entry.path()?.ends_with(path) {
                let mut text = String::new();
                std::io::Read::read_to_string(&mut entry, &mut text)?;
                return Ok(Some(text));
            }
        }
        Ok(None)
    }
}
