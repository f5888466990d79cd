//! The stream to the controller: dialled by the node, opened again whenever it breaks.
//!
//! [`session`] is one stream; nothing of it survives. What must be told is on the board and in the journal, so a new
//! stream simply tells it again.

mod channel;
mod logs;
mod outbox;
mod sandbox;
mod session;

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use sluice_proto::v1::node_service_client::NodeServiceClient;
use tokio::time::sleep;
use tonic::transport::{Channel, Endpoint};

use crate::agent::Agent;
use crate::error::in_one_line;
use crate::metrics::NodeMetrics;
use crate::node_note::NodeNote;

const CONNECT: Duration = Duration::from_secs(5);
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// A full list of assignments may be large.
const MESSAGE_BOUND: usize = 64 << 20;
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
enum StreamError {
    #[error("the controller could not be reached")]
    Dial(#[from] tonic::transport::Error),
    #[error("the controller answered {}: {}", .0.code(), .0.message())]
    Status(Box<tonic::Status>),
    #[error("the controller {0}")]
    Broken(&'static str),
    #[error("this node's devices could not be read")]
    Devices(#[from] sluice_device::DeviceError),
    #[error("the journal could not be read")]
    Journal(#[from] crate::journal::JournalError),
}

impl From<tonic::Status> for StreamError {
    fn from(status: tonic::Status) -> Self {
        Self::Status(Box::new(status))
    }
}

/// Keeps a stream open until the agent stops.
pub(crate) async fn keep_open(agent: Arc<Agent>, mut note: NodeNote) {
    let shared = agent.shared.clone();
    let mut pause = FIRST_PAUSE;
    let controllers = shared.config.controllers.clone();
    for address in controllers.iter().cycle() {
        let mut accepted = false;
        let ended = tokio::select! {
            biased;
            () = shared.stop.cancelled() => return,
            ended = one(&agent, &mut note, address, &mut accepted) => ended,
        };
        NodeMetrics::add(&shared.config.metrics.stream_failures, 1);
        if let Err(error) = ended {
            tracing::warn!(node = %shared.config.name, address, error = in_one_line(&error), "stream ended");
        }
        pause = if accepted { FIRST_PAUSE } else { (pause * 2).min(shared.config.limits.longest_pause) };
        tokio::select! {
            () = shared.stop.cancelled() => return,
            () = sleep(jitter(pause)) => {}
        }
    }
}

async fn one(agent: &Arc<Agent>, note: &mut NodeNote, address: &str, accepted: &mut bool) -> Result<(), StreamError> {
    let bare = address.split_once("://").map_or(address, |(_, rest)| rest);
    let channel = dial(agent, bare).await?;
    let client = NodeServiceClient::new(channel)
        .max_decoding_message_size(MESSAGE_BOUND)
        .max_encoding_message_size(MESSAGE_BOUND);
    session::run(agent, note, client, bare, accepted).await
}

async fn dial(agent: &Agent, bare: &str) -> Result<Channel, tonic::transport::Error> {
    let tls = (agent.shared.config.tls)();
    let scheme = if tls.is_some() { "https" } else { "http" };
    let endpoint = Endpoint::from_shared(format!("{scheme}://{bare}"))?
        .connect_timeout(CONNECT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .keep_alive_while_idle(true);
    match tls {
        Some(tls) => endpoint.tls_config(tls)?.connect().await,
        None => endpoint.connect().await,
    }
}

/// Half to all of a pause, so that the nodes of a site do not come back all at once.
fn jitter(pause: Duration) -> Duration {
    let random = RandomState::new().hash_one(std::process::id());
    let part = u32::try_from(random % 512).unwrap_or(0);
    pause / 2 + pause * part / 1024
}
