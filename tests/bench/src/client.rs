//! Connections as users have them: TLS 1.3 with the cluster's authority, a client certificate, an API key.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use rcgen::{CertificateParams, KeyPair};
use sluice_identity::{Authority, CONTROLLER_NAME, Lifetimes, Subject, parse_request};
use sluice_proto::v1;
use sluice_proto::v1::job_service_client::JobServiceClient;
use sluice_types::NodeId;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Request, Status};

use crate::{server, world};

/// The largest answer that is read: a page of 1000 jobs.
const LARGEST_ANSWER: usize = 16 << 20;

/// Puts the key into every call.
#[derive(Debug, Clone)]
pub(crate) struct Bearer(MetadataValue<Ascii>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert("authorization", self.0.clone());
        Ok(request)
    }
}

/// One client; clones share its connection.
pub(crate) type Jobs = JobServiceClient<InterceptedService<Channel, Bearer>>;

/// What all clients of one controller share.
#[derive(Debug, Clone)]
pub(crate) struct Door {
    address: SocketAddr,
    tls: ClientTlsConfig,
    bearer: Bearer,
}

impl Door {
    /// Reads the authority's certificate in the controller's folder and has it sign a client's.
    pub(crate) fn new(address: SocketAddr, data: &Path) -> anyhow::Result<Self> {
        let authority = Authority::open(&data.join("keys"), Lifetimes::default())?;
        let key = KeyPair::generate()?;
        let asked = CertificateParams::default().serialize_request(&key)?;
        let subject = Subject::Node(NodeId::from_raw(u64::MAX));
        let certificate = authority.sign(parse_request(asked.der())?, subject)?;
        let tls = ClientTlsConfig::new()
            .domain_name(CONTROLLER_NAME)
            .ca_certificate(Certificate::from_pem(authority.certificate()))
            .identity(Identity::from_pem(certificate, key.serialize_pem()));
        Ok(Self { address, tls, bearer: Bearer(world::bearer().parse()?) })
    }

    /// The same with a key that nobody has: every call is refused before anything is done.
    pub(crate) fn for_strangers(&self) -> anyhow::Result<Self> {
        let bearer = Bearer(format!("Bearer sk-{}.00", world::KEY).parse()?);
        Ok(Self { bearer, ..self.clone() })
    }

    /// A connection of its own.
    pub(crate) async fn enter(&self) -> anyhow::Result<Jobs> {
        let endpoint = Endpoint::from_shared(format!("https://{}", self.address))?;
        let endpoint = endpoint.connect_timeout(Duration::from_secs(10)).tcp_nodelay(true);
        let channel = endpoint.tls_config(self.tls.clone())?.connect().await.context("no connection")?;
        let jobs = JobServiceClient::with_interceptor(channel, self.bearer.clone());
        Ok(jobs.max_decoding_message_size(LARGEST_ANSWER))
    }

    /// Many connections.
    pub(crate) async fn enter_all(&self, count: usize) -> anyhow::Result<Vec<Jobs>> {
        let mut all = Vec::with_capacity(count);
        for _ in 0..count {
            all.push(self.enter().await?);
        }
        Ok(all)
    }
}

/// A new UUID that begins with the time (RFC 9562, version 7), as the command line client makes them.
pub(crate) fn request_id() -> anyhow::Result<[u8; 16]> {
    let mut bytes = [0_u8; 16];
    getrandom::fill(&mut bytes).context("no randomness")?;
    let millis = server::now().millis();
    bytes[..6].copy_from_slice(&millis.to_be_bytes()[2..]);
    bytes[6] = (bytes[6] & 0x0f) | 0x70;
    bytes[8] = (bytes[8] & 0x3f) | 0x80;
    Ok(bytes)
}

/// The usual text form of a UUID.
pub(crate) fn uuid_text(bytes: [u8; 16]) -> String {
    let text = hex::encode(bytes);
    [&text[..8], &text[8..12], &text[12..16], &text[16..20], &text[20..]].join("-")
}

/// A submit that waits for its decision.
pub(crate) fn submit(number: u64) -> anyhow::Result<v1::SubmitJobRequest> {
    let mib = |count: u64| count << 20;
    let spec = v1::JobSpec {
        command: vec!["python3".to_owned(), "train.py".to_owned(), "--epochs=3".to_owned()],
        env: [("SEED".to_owned(), "17".to_owned())].into(),
        tasks: 1,
        resources: Some(v1::TaskResources {
            device_class: world::CLASS.to_owned(),
            milli: world::milli(number),
            memory_bytes: mib(world::MEMORY_MIB),
            host_core_milli: world::HOST_CORES,
            host_memory_bytes: mib(world::MEMORY_MIB),
        }),
        max_run_time: Some(sluice_proto::convert::duration(sluice_types::Nanos::from_secs(world::RUN_SECONDS))),
        retry: Some(v1::RetryPolicy { on_failure: 0, on_loss: Some(3) }),
        labels: [("team".to_owned(), "vision".to_owned())].into(),
        ..v1::JobSpec::default()
    };
    Ok(v1::SubmitJobRequest {
        request_id: uuid_text(request_id()?),
        parent: world::PARENT.to_owned(),
        spec: Some(spec),
        wait_for_decision: true,
        ..v1::SubmitJobRequest::default()
    })
}
