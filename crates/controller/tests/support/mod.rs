//! A controller of a test's own, and an admin at its door.
#![allow(dead_code, clippy::unwrap_used, reason = "each test uses its part; a test fails by panicking")]

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use sluice_controller::{
    ChannelLimits, Clock, Controller, ControllerConfig, GatewayConfig, GatewayLimits, SystemClock,
};
use sluice_identity::{CONTROLLER_NAME, Lifetimes};
use sluice_lifecycle::Settings;
use sluice_proto::v1;
use sluice_proto::v1::tenant_service_client::TenantServiceClient;
use tonic::Request;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};

pub(crate) struct Door {
    pub(crate) controller: Controller,
    pub(crate) channel: Channel,
    pub(crate) key: MetadataValue<Ascii>,
    pub(crate) folder: tempfile::TempDir,
}

impl Door {
    pub(crate) async fn open() -> Self {
        Self::open_in(tempfile::tempdir().unwrap(), Lifetimes::default()).await
    }

    /// A controller in a folder that may be that of an earlier one, at an address of its own.
    pub(crate) async fn open_in(folder: tempfile::TempDir, lifetimes: Lifetimes) -> Self {
        Self::open_at(folder, lifetimes, Arc::new(SystemClock)).await
    }

    /// One that serves users' HTTP, and where.
    pub(crate) async fn serve_in(folder: tempfile::TempDir) -> (Self, SocketAddr) {
        let listen = "127.0.0.1:0".parse().unwrap();
        let gateway = GatewayConfig { listen, limits: GatewayLimits::default() };
        let file = folder.path().join("gateway.addr");
        let door = Self::open_with(folder, Lifetimes::default(), Arc::new(SystemClock), Some(gateway)).await;
        loop {
            if let Some(address) = std::fs::read_to_string(&file).ok().and_then(|text| text.parse().ok()) {
                return (door, address);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// The same by another clock.
    pub(crate) async fn open_at(folder: tempfile::TempDir, lifetimes: Lifetimes, clock: Arc<dyn Clock>) -> Self {
        Self::open_with(folder, lifetimes, clock, None).await
    }

    async fn open_with(
        folder: tempfile::TempDir,
        lifetimes: Lifetimes,
        clock: Arc<dyn Clock>,
        gateway: Option<GatewayConfig>,
    ) -> Self {
        let config = ControllerConfig {
            gateway,
            channels: ChannelLimits::default(),
            data: folder.path().to_owned(),
            database: Self::database(&folder),
            listen: "127.0.0.1:0".parse().unwrap(),
            names: Vec::new(),
            settings: Settings::default(),
            lifetimes,
        };
        // Another test of this binary may have installed it.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let controller = Controller::start(config, clock).await.unwrap();
        let channel = connect(&controller, folder.path()).await.unwrap();
        let secret = std::fs::read_to_string(folder.path().join("admin.key")).unwrap();
        let key = format!("Bearer {secret}").parse().unwrap();
        Self { controller, channel, key, folder }
    }

    /// Another connection to the same controller.
    pub(crate) async fn connect(&self) -> Result<Channel, tonic::transport::Error> {
        connect(&self.controller, self.folder.path()).await
    }

    /// Its database, for rows that take long to come about by themselves.
    pub(crate) fn database(folder: &tempfile::TempDir) -> String {
        format!("sqlite:{}", folder.path().join("sluice.db").display())
    }

    /// Where it is, as hosts are told.
    pub(crate) fn endpoint(&self) -> String {
        format!("https://{}", self.controller.address)
    }

    pub(crate) async fn close(self) {
        self.leave().await;
    }

    /// Stops the controller and leaves its folder.
    pub(crate) async fn leave(mut self) -> tempfile::TempDir {
        self.controller.stop();
        self.controller.wait().await.unwrap();
        self.folder
    }
}

async fn connect(controller: &Controller, folder: &Path) -> Result<Channel, tonic::transport::Error> {
    let ca = std::fs::read(folder.join("keys/ca.pem")).unwrap();
    let tls = ClientTlsConfig::new().domain_name(CONTROLLER_NAME).ca_certificate(Certificate::from_pem(ca));
    let endpoint = Endpoint::from_shared(format!("https://{}", controller.address)).unwrap();
    endpoint.tls_config(tls).unwrap().timeout(Duration::from_secs(20)).connect().await
}

/// A request of the key.
pub(crate) fn with<T>(message: T, key: &MetadataValue<Ascii>) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("authorization", key.clone());
    request
}

/// A tenant with a project of the same name, and a key for it.
pub(crate) async fn tenant(door: &Door, name: &str) -> (String, MetadataValue<Ascii>) {
    let mut tenants = TenantServiceClient::new(door.channel.clone());
    let request_id =
        |step: u8| format!("{}-e89b-42d3-a456-4266141740{step:02}", &blake3::hash(name.as_bytes()).to_hex()[..8]);
    let create =
        v1::CreateTenantRequest { request_id: request_id(1), tenant_id: name.to_owned(), ..Default::default() };
    tenants.create_tenant(with(create, &door.key)).await.unwrap();
    let parent = format!("tenants/{name}");
    let create = v1::CreateProjectRequest {
        request_id: request_id(2),
        parent: parent.clone(),
        project_id: name.to_owned(),
        validate_only: false,
    };
    tenants.create_project(with(create, &door.key)).await.unwrap();
    let create =
        v1::CreateKeyRequest { request_id: request_id(3), parent: parent.clone(), role: v1::Role::TenantAdmin.into() };
    let made = tenants.create_key(with(create, &door.key)).await.unwrap().into_inner();
    (format!("{parent}/projects/{name}"), format!("Bearer {}", made.secret).parse().unwrap())
}

/// A job that asks for a tenth of a core.
pub(crate) fn small_job() -> v1::JobSpec {
    v1::JobSpec {
        command: vec!["true".to_owned()],
        resources: Some(v1::TaskResources {
            device_class: "cpu".to_owned(),
            milli: 100,
            memory_bytes: 1 << 20,
            ..Default::default()
        }),
        ..Default::default()
    }
}
