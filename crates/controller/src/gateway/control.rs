//! What the gateway needs of the controller around it, and nothing else of it.

use std::sync::Arc;

use sluice_types::{AttemptId, EndpointId, KeyId, ProjectId, Reason, RequestId, TenantId};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;

use super::openai::ApiError;

/// Which replica: one attempt of one of an endpoint's jobs.
pub(crate) type ReplicaKey = AttemptId;

/// Who calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Caller {
    /// With which key.
    pub(crate) key: KeyId,
    /// Who pays.
    pub(crate) tenant: TenantId,
    /// The key's project, where it is of one.
    pub(crate) project: Option<ProjectId>,
}

/// An endpoint as one caller sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Served {
    /// Which endpoint.
    pub(crate) endpoint: EndpointId,
    /// What the caller names it by.
    pub(crate) id: String,
    /// Name of its owner.
    pub(crate) owner: String,
    /// When it was made, in seconds since the Unix epoch.
    pub(crate) created: u64,
    /// Tokens of context that one sequence has.
    pub(crate) context: u32,
    /// Whether the model has a template for conversations.
    pub(crate) chats: bool,
    /// Tokens that the template adds at most to a conversation.
    pub(crate) template_tokens: u32,
    /// Tokens that it adds at most to each message.
    pub(crate) message_tokens: u32,
}

/// What a request may take at most, and what is held for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ceiling {
    /// Tokens of the prompt.
    pub(crate) prompt: u32,
    /// Tokens of the answer.
    pub(crate) completion: u32,
}

/// What a request took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    /// Tokens of the prompt.
    pub(crate) prompt: u32,
    /// How many of them were in the engine's cache.
    pub(crate) cached: u32,
    /// Tokens of the answer that are billed.
    pub(crate) completion: u32,
}

/// How much an endpoint has to do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Load {
    /// Requests that wait for a place.
    pub(crate) queued: u32,
    /// Requests that have one.
    pub(crate) running: u32,
}

/// A replica that runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Replica {
    /// Which.
    pub(crate) key: ReplicaKey,
    /// It is on its way out: nothing new goes there.
    pub(crate) leaving: bool,
}

/// Bytes both ways.
pub(crate) trait Duplex: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Duplex for T {}

/// The controller, as far as the gateway needs it.
#[tonic::async_trait]
pub(crate) trait Control: Send + Sync + 'static {
    /// Seconds since the Unix epoch.
    fn now(&self) -> u64;

    /// Random bits.
    fn chance(&self) -> u64;

    /// Whose key it is. `project` is the one that the caller says to be in.
    ///
    /// # Errors
    /// It opens nothing, or not this.
    fn caller(&self, secret: &str, project: Option<&str>) -> Result<Caller, ApiError>;

    /// Whether a caller's key still opens. Asked again and again while its requests run.
    fn still(&self, caller: &Caller) -> bool;

    /// What a caller may use, in order of their names.
    fn served(&self, caller: &Caller) -> Vec<Served>;

    /// The endpoint that a caller means by a name.
    fn find(&self, caller: &Caller, name: &str) -> Option<Served>;

    /// Replicas of an endpoint that run.
    fn replicas(&self, endpoint: EndpointId) -> Vec<Replica>;

    /// Changes whenever another answer of [`Control::replicas`] is possible.
    fn changes(&self) -> watch::Receiver<u64>;

    /// Opens a way to a replica's worker. It outlives the node's agent and the connection to it; what it does not
    /// outlive, it ends with.
    fn connect(&self, replica: ReplicaKey) -> Box<dyn Duplex>;

    /// Holds what a request may cost. Nothing of it is computed before.
    async fn open(&self, caller: &Caller, endpoint: EndpointId, ceiling: Ceiling) -> Result<RequestId, ApiError>;

    /// Bills what a request took. Carried out in the end, whatever is in the way now.
    async fn settle(&self, request: RequestId, usage: Usage);

    /// Credits a request whole, because the platform cut it.
    async fn void(&self, request: RequestId, why: Reason);

    /// Tells how much an endpoint has to do.
    async fn told(&self, endpoint: EndpointId, load: Load);
}

/// Shared by all parts.
pub(crate) type SharedControl = Arc<dyn Control>;
