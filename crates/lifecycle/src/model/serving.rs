//! Models, the endpoints that serve them, and requests to endpoints.

use serde::{Deserialize, Serialize};
use sluice_ledger::TokenPrice;
use sluice_types::{
    Bytes, Credits, Digest, EndpointId, HoldId, JobId, KeyId, ModelId, Name, Nanos, ProjectId, Reason, RequestId,
    SiteId, TaskResources, TenantId, Timestamp,
};

use super::BudgetHold;

/// Where a model stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ModelState {
    /// Its import has not ended.
    Importing,
    /// Endpoints can serve it.
    Ready,
    /// It cannot be served.
    Failed,
    /// Deleted: kept as a row so that the change is a row too.
    Deleted,
}

/// An upload of the model's project.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredFile {
    /// BLAKE3.
    pub digest: Digest,
    /// Size in bytes.
    pub size: u64,
}

/// What was found in a model's file.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ModelInfo {
    /// Such as "llama".
    pub architecture: String,
    /// How many there are.
    pub parameters: u64,
    /// Tokens of context that it was trained for; 0 = it does not say.
    pub context: u32,
    /// What a token takes in the memory of a context; 0 = it does not say.
    #[serde(default)]
    pub token: Bytes,
    /// Such as "Q4_0".
    pub quantization: String,
    /// It has a chat template that can be used.
    pub chats: bool,
    /// Tokens that the template adds to a chat of one message.
    pub template_tokens: u32,
    /// Tokens that it adds for each message more.
    pub message_tokens: u32,
}

/// Weights that a project serves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Model {
    /// Its id.
    pub id: ModelId,
    /// Whose.
    pub tenant: TenantId,
    /// Whose.
    pub project: ProjectId,
    /// Its name, unique in the project.
    pub name: Name,
    /// Where it stands.
    pub state: ModelState,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "super::is_default")]
    pub reason: Option<Reason>,
    /// The reason in words.
    #[serde(default, skip_serializing_if = "super::is_default")]
    pub message: String,
    /// The file as it is served; before it is ready, as it was uploaded.
    pub file: StoredFile,
    /// What the file was re-quantised from.
    #[serde(default, skip_serializing_if = "super::is_default")]
    pub source: Option<Digest>,
    /// What it is re-quantised to; empty = it is served as it was uploaded.
    #[serde(default, skip_serializing_if = "super::is_default")]
    pub requantize: String,
    /// What was found in it, once it is ready.
    #[serde(default, skip_serializing_if = "super::is_default")]
    pub info: Option<ModelInfo>,
    /// The job that looks into it.
    pub import: JobId,
    /// Grows with every change.
    pub version: u64,
    /// The key that imported it.
    pub by: KeyId,
    /// When.
    pub created: Timestamp,
}

impl Model {
    /// The upload that is kept for it.
    #[must_use]
    pub fn keeps(&self) -> Option<StoredFile> {
        matches!(self.state, ModelState::Importing | ModelState::Ready).then_some(self.file)
    }
}

/// Where an endpoint stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndpointState {
    /// Takes requests.
    Active,
    /// Takes no more; its replicas end.
    Deleting,
    /// Its replicas have ended.
    Deleted,
}

/// How many replicas there may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaBounds {
    /// At least so many, also without requests.
    pub least: u32,
    /// At most so many.
    pub most: u32,
}

/// Sums over the requests of an endpoint that are over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RequestTotals {
    /// Requests that were settled.
    pub settled: u64,
    /// Requests that were credited whole.
    pub voided: u64,
    /// Tokens of prompts of those that were settled.
    pub prompt_tokens: u64,
    /// Of them found in a cache.
    pub cached_tokens: u64,
    /// Tokens generated for those that were settled.
    pub completion_tokens: u64,
    /// What callers paid.
    pub amount: Credits,
}

/// A served model. Its replicas are jobs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// Its id.
    pub id: EndpointId,
    /// Who pays for its slices, and gets what callers pay.
    pub tenant: TenantId,
    /// Whose.
    pub project: ProjectId,
    /// Its name, unique in the project.
    pub name: Name,
    /// What it serves, of the same project.
    pub model: ModelId,
    /// The model's file.
    pub file: StoredFile,
    /// How many replicas there may be.
    pub replicas: ReplicaBounds,
    /// What each replica gets.
    pub resources: TaskResources,
    /// Sites to choose from, sorted; empty = any that the project may use.
    #[serde(default, skip_serializing_if = "super::is_default")]
    pub sites: Vec<SiteId>,
    /// Tokens of context that each sequence may have.
    pub context: u32,
    /// Sequences that each replica has open at once.
    pub sequences: u32,
    /// Other tenants may call it.
    #[serde(default, skip_serializing_if = "super::is_default")]
    pub public: bool,
    /// What callers of other tenants pay; `None` = nothing.
    #[serde(default, skip_serializing_if = "super::is_default")]
    pub price: Option<TokenPrice>,
    /// A replica that was not needed for so long ends.
    pub idle: Nanos,
    /// Where it stands.
    pub state: EndpointState,
    /// Replicas in a row that ended by themselves soon after their start.
    #[serde(default, skip_serializing_if = "super::is_default")]
    pub short_ends: u32,
    /// No replica is started before this. Cleared by the tick that finds it passed.
    #[serde(default, skip_serializing_if = "super::is_default")]
    pub retry_at: Option<Timestamp>,
    /// Of its requests.
    #[serde(default, skip_serializing_if = "super::is_default")]
    pub totals: RequestTotals,
    /// Grows with every change but that of the totals and of what is retried.
    pub version: u64,
    /// The key that made it.
    pub by: KeyId,
    /// When.
    pub created: Timestamp,
}

/// Where a request stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InferenceState {
    /// Under way.
    Open,
    /// Over, and paid for.
    Settled,
    /// Cut by the platform: nothing is paid for it.
    Voided,
}

/// What is held for a request of another tenant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestHold {
    /// On the caller's funds, for the owner's.
    pub funds: HoldId,
    /// On the caller's budgets.
    #[serde(default, skip_serializing_if = "super::is_default")]
    pub budgets: Vec<BudgetHold>,
}

/// A request to an endpoint. Its text is in no row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InferenceRequest {
    /// Its id.
    pub id: RequestId,
    /// To which endpoint.
    pub endpoint: EndpointId,
    /// Whose endpoint.
    pub owner: TenantId,
    /// Who called.
    pub tenant: TenantId,
    /// Which of its projects.
    pub project: ProjectId,
    /// With which key.
    pub key: KeyId,
    /// What it pays; `None` = nothing. The price when it began.
    #[serde(default, skip_serializing_if = "super::is_default")]
    pub price: Option<TokenPrice>,
    /// Tokens that its prompt may have.
    pub prompt_ceiling: u64,
    /// Tokens that may be generated.
    pub completion_ceiling: u64,
    /// The most that it costs: held while it is open.
    pub ceiling: Credits,
    /// What is held, while it is open and costs anything.
    #[serde(default, skip_serializing_if = "super::is_default")]
    pub hold: Option<RequestHold>,
    /// Where it stands.
    pub state: InferenceState,
    /// Tokens of its prompt.
    #[serde(default, skip_serializing_if = "super::is_default")]
    pub prompt_tokens: u64,
    /// Tokens generated.
    #[serde(default, skip_serializing_if = "super::is_default")]
    pub completion_tokens: u64,
    /// Tokens of its prompt that were found in a cache.
    #[serde(default, skip_serializing_if = "super::is_default")]
    pub cached_tokens: u64,
    /// What it cost.
    #[serde(default, skip_serializing_if = "super::is_default")]
    pub amount: Credits,
    /// Why it was voided.
    #[serde(default, skip_serializing_if = "super::is_default")]
    pub reason: Option<Reason>,
    /// When it began.
    pub opened: Timestamp,
    /// When it was over.
    #[serde(default, skip_serializing_if = "super::is_default")]
    pub closed: Option<Timestamp>,
}
