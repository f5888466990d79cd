//! Puts a controller together and runs it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use sluice_identity::{Authority, Lifetimes, private_folder, secret_digest, write_private};
use sluice_lifecycle::model::Role;
use sluice_lifecycle::{Caller, Command, Mint, Settings, State, UserCommand};
use sluice_proto::v1;
use sluice_store::{LoadBounds, Store};
use sluice_types::{KeyId, Nanos};
use sluice_vault::{BlobStore, StoreLimits, VaultStats};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tower::layer::util::{Identity as NoLayer, Stack};

use crate::api::{Api, ApiParts, Attachments, ChannelLimits};
use crate::clock::Clock;
use crate::directory::Directory;
use crate::error::ControllerError;
use crate::gateway::{Cluster, Door, GatewayConfig};
use crate::importer::Importer;
use crate::janitor::Janitor;
use crate::link::{BlobSource, Hub, IdentityApi, NodeApi, SiteApi};
use crate::logs::LogStore;
use crate::metrics::ControllerMetrics;
use crate::own_thread::OwnThread;
use crate::peer::Readers;
use crate::planner::{self, PlannerHandle};
use crate::principal::secret_text;
use crate::publish::Publisher;
use crate::secrets::SecretBox;
use crate::spool::Spools;
use crate::tls;
use crate::wire::Reasons;
use crate::writer::{Writer, WriterHandle, WriterParts};

/// Largest message that a client may send: a batch of 1000 specs.
const MAX_MESSAGE: usize = 8 << 20;
/// Pieces of sessions are small.
const MAX_SESSION_MESSAGE: usize = 64 << 10;
/// After the signal to stop, running calls have so long.
const DRAIN: Duration = Duration::from_secs(5);

/// Everything a controller has to be told.
#[derive(Debug, Clone)]
pub struct ControllerConfig {
    /// Keys, uploads and logs.
    pub data: PathBuf,
    /// `sqlite:PATH` or `postgres://…`.
    pub database: String,
    /// Where to listen.
    pub listen: SocketAddr,
    /// Names and addresses that clients use, beside localhost.
    pub names: Vec<String>,
    /// Bounds and times of the state machines.
    pub settings: Settings,
    /// How users' HTTP is served; `None` = not at all.
    pub gateway: Option<GatewayConfig>,
    /// What clients of sessions may cost.
    pub channels: ChannelLimits,
    /// How long certificates live.
    pub lifetimes: Lifetimes,
}

/// A running controller.
pub struct Controller {
    /// Where it listens.
    pub address: SocketAddr,
    writer: WriterHandle,
    planner: PlannerHandle,
    metrics: Arc<ControllerMetrics>,
    directory: Arc<Directory>,
    stop: CancellationToken,
    /// The gateway's: it goes first, because its requests are closed by the writer.
    leave: CancellationToken,
    tasks: Vec<(&'static str, JoinHandle<Result<(), ControllerError>>)>,
}

impl std::fmt::Debug for Controller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Controller").field("address", &self.address).finish_non_exhaustive()
    }
}

/// What all parts of one controller share.
struct Shared {
    directory: Arc<Directory>,
    store: Arc<dyn Store>,
    hub: Arc<Hub>,
    secrets: Arc<SecretBox>,
    authority: Arc<Authority>,
    logs: Arc<LogStore>,
    uploads: BlobStore,
    spools: Arc<Spools>,
    metrics: Arc<ControllerMetrics>,
    clock: Arc<dyn Clock>,
}

impl Controller {
    /// Takes the lead, loads what is stored, checks the books and serves.
    ///
    /// # Errors
    /// [`ControllerError`].
    pub async fn start(config: ControllerConfig, clock: Arc<dyn Clock>) -> Result<Self, ControllerError> {
        let file = |path: &PathBuf, source| ControllerError::File { path: path.clone(), source };
        private_folder(&config.data)?;
        let metrics = Arc::new(ControllerMetrics::default());
        let shared = Shared {
            directory: Arc::new(Directory::default()),
            store: sluice_store::open(&config.database).await?,
            hub: Hub::new(Arc::clone(&metrics)),
            secrets: Arc::new(SecretBox::open(&config.data.join("keys"))?),
            authority: Arc::new(Authority::open(&config.data.join("keys"), config.lifetimes)?),
            logs: Arc::new(LogStore::open(&config.data.join("logs")).map_err(|source| file(&config.data, source))?),
            uploads: open_uploads(&config).await?,
            spools: Spools::open(&config.data.join("spool")).map_err(|source| file(&config.data, source))?,
            metrics,
            clock,
        };
        let listener = TcpListener::bind(config.listen).await;
        let listener =
            listener.map_err(|source| ControllerError::Listen { address: config.listen.to_string(), source })?;
        let address = listener.local_addr().map_err(|source| file(&config.data, source))?;
        Self::run(config, shared, listener, address).await
    }

    async fn run(
        config: ControllerConfig,
        shared: Shared,
        listener: TcpListener,
        address: SocketAddr,
    ) -> Result<Self, ControllerError> {
        let stop = CancellationToken::new();
        let WriterStart { writer, task: writer_task, planner, planning, events } =
            start_writer(&config, &shared, stop.clone()).await?;
        first_admin(&config, &writer).await?;
        let window = config.settings.window;
        let janitor = Janitor {
            directory: Arc::clone(&shared.directory),
            store: Arc::clone(&shared.store),
            uploads: shared.uploads.clone(),
            logs: Arc::clone(&shared.logs),
            clock: Arc::clone(&shared.clock),
        };
        let janitor = tokio::spawn(janitor.run(stop.clone()));
        let leave = CancellationToken::new();
        let gateway = gateway(&config, &shared, &writer, leave.clone(), stop.clone())?;
        let importer = Importer {
            directory: Arc::clone(&shared.directory),
            store: Arc::clone(&shared.store),
            writer: writer.clone(),
            blobs: BlobSource { uploads: shared.uploads.clone(), hub: Arc::clone(&shared.hub) },
            spools: Arc::clone(&shared.spools),
            clock: Arc::clone(&shared.clock),
        };
        let importer = tokio::spawn(importer.run(events.clone(), stop.clone()));
        let server = serve(&config, &shared, &writer, &planner, events, window, listener, stop.clone())?;
        Ok(Self {
            address,
            writer,
            planner,
            metrics: shared.metrics,
            directory: shared.directory,
            stop,
            leave,
            tasks: vec![
                ("the writer", writer_task),
                ("the planner", planning),
                ("the server", server),
                ("the janitor", janitor),
                ("the gateway", gateway),
                ("the importer", importer),
            ],
        })
    }

    /// Figures for `/metrics`.
    #[must_use]
    pub fn metrics(&self) -> Arc<ControllerMetrics> {
        Arc::clone(&self.metrics)
    }

    /// Leases whose slice is not proven to be free, on nodes that are connected.
    #[must_use]
    pub fn busy(&self) -> usize {
        let directory = self.directory.read();
        let ready = directory.nodes.values().filter(|node| node.state == sluice_lifecycle::model::NodeState::Ready);
        ready.filter_map(|node| directory.held.get(&node.id)).map(std::collections::BTreeMap::len).sum()
    }

    /// Stops placing jobs and tells every running one to stop at a checkpoint. Jobs queue again as they stop.
    pub async fn quiesce(&self) {
        self.planner.pause();
        if let Err(refusal) = self.writer.submit(Command::Quiesce).await {
            tracing::warn!(%refusal, "the jobs were not told to stop");
        }
    }

    /// Waits until a part fails, or `stop` was called and all have ended.
    ///
    /// # Errors
    /// What ended the part.
    pub async fn wait(&mut self) -> Result<(), ControllerError> {
        let mut tasks = std::mem::take(&mut self.tasks);
        while !tasks.is_empty() {
            let (ended, place, _) = futures::future::select_all(tasks.iter_mut().map(|(_, task)| task)).await;
            let (name, _) = tasks.remove(place);
            match ended {
                Ok(Ok(())) if self.stop.is_cancelled() => {}
                Ok(Err(error)) => return Err(error),
                Ok(Ok(())) | Err(_) => return Err(ControllerError::Stopped(name)),
            }
        }
        Ok(())
    }

    /// Begins to stop, users' HTTP first; [`Controller::wait`] returns when all parts have.
    pub fn stop(&self) {
        self.leave.cancel();
    }
}

async fn open_uploads(config: &ControllerConfig) -> Result<BlobStore, ControllerError> {
    let folder = config.data.join("uploads");
    std::fs::create_dir_all(&folder).map_err(|source| ControllerError::File { path: folder.clone(), source })?;
    let stats = Arc::new(VaultStats::default());
    // The janitor knows what is named.
    let limits = StoreLimits { unnamed: None, ..StoreLimits::default() };
    let opened = BlobStore::open(&folder, limits, stats, SystemTime::now()).await;
    opened.map_err(|error| ControllerError::Uploads(error.to_string()))
}

/// A running writer with its planner, and the tasks that end when they do.
struct WriterStart {
    writer: WriterHandle,
    task: JoinHandle<Result<(), ControllerError>>,
    planner: PlannerHandle,
    planning: JoinHandle<Result<(), ControllerError>>,
    events: watch::Receiver<u64>,
}

async fn start_writer(
    config: &ControllerConfig,
    shared: &Shared,
    stop: CancellationToken,
) -> Result<WriterStart, ControllerError> {
    let leader = shared.store.acquire_leader("controller").await?;
    let now = shared.clock.now();
    let snapshot = shared.store.load(LoadBounds::at(now)).await?;
    let mut seed = [0; 8];
    getrandom::fill(&mut seed).map_err(|_| ControllerError::Stopped("the source of randomness"))?;
    let mint = Mint::new(snapshot.last_id, u64::from_le_bytes(seed));
    let state = State::load(snapshot, config.settings.clone(), now);
    state.books().audit()?;
    shared.directory.load(&state);
    let (events, watched) = watch::channel(state.last_event());
    let (planner, queue) = planner::prepare();
    let parts = WriterParts {
        state,
        mint,
        store: Arc::clone(&shared.store),
        leader,
        clock: Arc::clone(&shared.clock),
        metrics: Arc::clone(&shared.metrics),
        committer: OwnThread::start("committer")?,
    };
    let (writer, make) = Writer::prepare(parts);
    let publisher = Publisher {
        directory: Arc::clone(&shared.directory),
        planner: planner.clone(),
        hub: Arc::clone(&shared.hub),
        secrets: Arc::clone(&shared.secrets),
        events,
    };
    let ended = planner::run(queue, writer.clone())?;
    let stopping = stop.clone();
    // A planner that is gone places nothing, so the process must end, too.
    let planning = tokio::spawn(async move {
        tokio::select! {
            () = stopping.cancelled() => Ok(()),
            _ = ended => Err(ControllerError::Stopped("the planner")),
        }
    });
    let task = tokio::spawn(make(publisher).run(stop));
    Ok(WriterStart { writer, task, planner, planning, events: watched })
}

/// The first platform admin's key, in a file (0600) of the data folder. Made once; a lost file is made anew for a new
/// key, because the secret of the old one is kept nowhere.
async fn first_admin(config: &ControllerConfig, writer: &WriterHandle) -> Result<(), ControllerError> {
    let path = config.data.join("admin.key");
    if path.exists() {
        return Ok(());
    }
    let mut secret = [0; 32];
    getrandom::fill(&mut secret).map_err(|_| ControllerError::Stopped("the source of randomness"))?;
    let command =
        UserCommand::CreateKey { tenant: None, project: None, role: Role::PlatformAdmin, hash: secret_digest(&secret) };
    let caller = Caller::of(KeyId::from_raw(0));
    let answer = writer.submit(Command::User(caller, command)).await;
    let answer = answer.map_err(|_| ControllerError::Stopped("the writer"))?;
    let id: KeyId = answer.object.parse().map_err(|_| ControllerError::Stopped("the writer"))?;
    write_private(&path, secret_text(id, &secret).as_bytes())?;
    tracing::info!(key = %id, file = %path.display(), "made a platform admin's key");
    Ok(())
}

/// The door for users' HTTP, where there is to be one. It serves until `leave`, and `stop`s the rest when it is done.
fn gateway(
    config: &ControllerConfig,
    shared: &Shared,
    writer: &WriterHandle,
    leave: CancellationToken,
    stop: CancellationToken,
) -> Result<JoinHandle<Result<(), ControllerError>>, ControllerError> {
    let Some(wanted) = config.gateway.clone() else {
        return Ok(tokio::spawn(async move {
            leave.cancelled().await;
            stop.cancel();
            Ok(())
        }));
    };
    let control = Cluster {
        directory: Arc::clone(&shared.directory),
        writer: writer.clone(),
        hub: Arc::clone(&shared.hub),
        clock: Arc::clone(&shared.clock),
    };
    let (authority, clock) = (Arc::clone(&shared.authority), Arc::clone(&shared.clock));
    let tls = tls::config(authority, config.names.clone(), config.lifetimes.controller, clock)?;
    let door = Door { config: wanted, control: Arc::new(control), tls, data: config.data.clone() };
    Ok(tokio::spawn(async move {
        // Also where it breaks: nobody is left to stop the rest.
        let _rest = stop.drop_guard();
        let ended = door.run(leave.clone()).await;
        if leave.is_cancelled() { ended } else { Err(ended.err().unwrap_or(ControllerError::Stopped("the gateway"))) }
    }))
}

#[allow(clippy::too_many_arguments)]
fn serve(
    config: &ControllerConfig,
    shared: &Shared,
    writer: &WriterHandle,
    planner: &PlannerHandle,
    events: watch::Receiver<u64>,
    window: Nanos,
    listener: TcpListener,
    stop: CancellationToken,
) -> Result<JoinHandle<Result<(), ControllerError>>, ControllerError> {
    let blobs = BlobSource { uploads: shared.uploads.clone(), hub: Arc::clone(&shared.hub) };
    let api = Api {
        inner: Arc::new(ApiParts {
            directory: Arc::clone(&shared.directory),
            store: Arc::clone(&shared.store),
            writer: writer.clone(),
            planner: planner.clone(),
            hub: Arc::clone(&shared.hub),
            blobs: blobs.clone(),
            spools: Arc::clone(&shared.spools),
            logs: Arc::clone(&shared.logs),
            attachments: Attachments::new(config.channels),
            secrets: Arc::clone(&shared.secrets),
            authority: Arc::clone(&shared.authority),
            events,
            clock: Arc::clone(&shared.clock),
        }),
    };
    let nodes = NodeApi {
        writer: writer.clone(),
        hub: Arc::clone(&shared.hub),
        directory: Arc::clone(&shared.directory),
        store: Arc::clone(&shared.store),
        logs: Arc::clone(&shared.logs),
        metrics: Arc::clone(&shared.metrics),
        window,
    };
    let sites = SiteApi {
        writer: writer.clone(),
        directory: Arc::clone(&shared.directory),
        hub: Arc::clone(&shared.hub),
        blobs,
        loss_timeout: Duration::from_nanos(config.settings.loss_timeout.get()),
    };
    let hosts = IdentityApi {
        authority: Arc::clone(&shared.authority),
        directory: Arc::clone(&shared.directory),
        writer: writer.clone(),
    };
    let (authority, clock) = (Arc::clone(&shared.authority), Arc::clone(&shared.clock));
    let tls = tls::config(authority, config.names.clone(), config.lifetimes.controller, clock)?;
    let router = routes(api, nodes, sites, hosts)?;
    let readers = Readers::new(config.channels.reads);
    Ok(tokio::spawn(async move {
        let incoming = tls::incoming(listener, tls, readers);
        let served = router.serve_with_incoming_shutdown(incoming, stop.clone().cancelled_owned());
        // Streams of nodes never end by themselves, so the wait for them has an end.
        tokio::select! {
            served = served => served.map_err(ControllerError::from),
            () = async { stop.cancelled().await; tokio::time::sleep(DRAIN).await } => Ok(()),
        }
    }))
}

fn routes(
    api: Api,
    nodes: NodeApi,
    sites: SiteApi,
    hosts: IdentityApi,
) -> Result<tonic::transport::server::Router<Stack<Reasons, NoLayer>>, ControllerError> {
    use v1::endpoint_service_server::EndpointServiceServer;
    use v1::fleet_service_server::FleetServiceServer;
    use v1::identity_service_server::IdentityServiceServer;
    use v1::job_service_server::JobServiceServer;
    use v1::model_service_server::ModelServiceServer;
    use v1::money_service_server::MoneyServiceServer;
    use v1::node_service_server::NodeServiceServer;
    use v1::order_service_server::OrderServiceServer;
    use v1::session_service_server::SessionServiceServer;
    use v1::site_service_server::SiteServiceServer;
    use v1::tenant_service_server::TenantServiceServer;
    let (health, health_service) = tonic_health::server::health_reporter();
    tokio::spawn(async move {
        health.set_serving::<JobServiceServer<Api>>().await;
        health.set_serving::<MoneyServiceServer<Api>>().await;
        health.set_serving::<FleetServiceServer<Api>>().await;
        health.set_serving::<TenantServiceServer<Api>>().await;
        health.set_serving::<OrderServiceServer<Api>>().await;
        health.set_serving::<SessionServiceServer<Api>>().await;
        health.set_serving::<ModelServiceServer<Api>>().await;
        health.set_serving::<EndpointServiceServer<Api>>().await;
    });
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(sluice_proto::DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET);
    let reflection = reflection.build_v1().map_err(|_| ControllerError::Stopped("the reflection service"))?;
    Ok(Server::builder()
        .layer(Reasons)
        .http2_keepalive_interval(Some(Duration::from_secs(20)))
        .http2_keepalive_timeout(Some(Duration::from_secs(20)))
        .max_concurrent_streams(Some(4096))
        .initial_connection_window_size(Some(8 << 20))
        .initial_stream_window_size(Some(2 << 20))
        .add_service(JobServiceServer::new(api.clone()).max_decoding_message_size(MAX_MESSAGE))
        .add_service(MoneyServiceServer::new(api.clone()).max_decoding_message_size(MAX_MESSAGE))
        .add_service(FleetServiceServer::new(api.clone()).max_decoding_message_size(MAX_MESSAGE))
        .add_service(TenantServiceServer::new(api.clone()).max_decoding_message_size(MAX_MESSAGE))
        .add_service(OrderServiceServer::new(api.clone()).max_decoding_message_size(MAX_MESSAGE))
        .add_service(ModelServiceServer::new(api.clone()).max_decoding_message_size(MAX_MESSAGE))
        .add_service(EndpointServiceServer::new(api.clone()).max_decoding_message_size(MAX_MESSAGE))
        .add_service(SessionServiceServer::new(api).max_decoding_message_size(MAX_SESSION_MESSAGE))
        .add_service(NodeServiceServer::new(nodes).max_decoding_message_size(MAX_MESSAGE))
        .add_service(SiteServiceServer::new(sites).max_decoding_message_size(MAX_MESSAGE))
        .add_service(IdentityServiceServer::new(hosts).max_decoding_message_size(64 << 10))
        .add_service(health_service)
        .add_service(reflection))
}
