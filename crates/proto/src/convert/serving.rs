//! Models, endpoints and requests to them.

use sluice_ledger::TokenPrice;
use sluice_lifecycle::model::{
    Endpoint, EndpointState, InferenceRequest, InferenceState, Model, ModelInfo, ModelState, ReplicaBounds,
};
use sluice_types::Credits;

use super::spec::{SiteNames, resources_back};
use super::{duration, timestamp};
use crate::v1;

/// A model for the wire. `parent` is its project's name.
#[must_use]
pub fn model(row: &Model, parent: &str) -> v1::Model {
    let state = match row.state {
        ModelState::Importing => v1::ModelState::Importing,
        ModelState::Ready => v1::ModelState::Ready,
        ModelState::Failed => v1::ModelState::Failed,
        ModelState::Deleted => v1::ModelState::Deleted,
    };
    v1::Model {
        name: format!("{parent}/models/{}", row.name),
        id: row.id.to_string(),
        state: state.into(),
        reason: row.reason.map(|reason| reason.to_string()).unwrap_or_default(),
        message: row.message.clone(),
        file: Some(v1::BlobRef { digest: row.file.digest.to_string(), size_bytes: row.file.size, path: String::new() }),
        source_digest: row.source.map(|source| source.to_string()).unwrap_or_default(),
        requantize: row.requantize.clone(),
        info: row.info.as_ref().map(info),
        import_job: format!("{parent}/jobs/{}", row.import),
        etag: row.version.to_string(),
        create_time: Some(timestamp(row.created)),
    }
}

fn info(info: &ModelInfo) -> v1::ModelInfo {
    v1::ModelInfo {
        architecture: info.architecture.clone(),
        parameters: info.parameters,
        context: info.context,
        quantization: info.quantization.clone(),
        chats: info.chats,
        template_tokens: info.template_tokens,
        message_tokens: info.message_tokens,
    }
}

/// An endpoint for the wire. `parent` is its project's name, `model` that of what it serves.
#[must_use]
pub fn endpoint(
    row: &Endpoint,
    parent: &str,
    model: String,
    current: Vec<v1::Replica>,
    sites: &impl SiteNames,
) -> v1::Endpoint {
    let state = match row.state {
        EndpointState::Active => v1::EndpointState::Active,
        EndpointState::Deleting => v1::EndpointState::Deleting,
        EndpointState::Deleted => v1::EndpointState::Deleted,
    };
    let totals = &row.totals;
    v1::Endpoint {
        name: format!("{parent}/endpoints/{}", row.name),
        id: row.id.to_string(),
        model,
        replicas: Some(v1::Replicas { min: row.replicas.least, max: row.replicas.most }),
        resources: Some(resources_back(&row.resources)),
        sites: row.sites.iter().map(|site| format!("sites/{}", sites.name(*site))).collect(),
        context: row.context,
        sequences: row.sequences,
        public: row.public,
        price: row.price.map(token_price_back),
        idle: Some(duration(row.idle)),
        state: state.into(),
        current,
        totals: Some(v1::RequestTotals {
            settled: totals.settled,
            voided: totals.voided,
            prompt_tokens: totals.prompt_tokens,
            cached_tokens: totals.cached_tokens,
            completion_tokens: totals.completion_tokens,
            credits: totals.amount.units(),
        }),
        retry_time: row.retry_at.map(timestamp),
        etag: row.version.to_string(),
        create_time: Some(timestamp(row.created)),
    }
}

/// A request to an endpoint for the wire. `key` is left out where only the caller may see it.
#[must_use]
pub fn inference_request(row: &InferenceRequest, owner: &str, caller: &str, key: String) -> v1::InferenceRequest {
    let state = match row.state {
        InferenceState::Open => v1::InferenceRequestState::Open,
        InferenceState::Settled => v1::InferenceRequestState::Settled,
        InferenceState::Voided => v1::InferenceRequestState::Voided,
    };
    v1::InferenceRequest {
        id: row.id.to_string(),
        endpoint: row.endpoint.to_string(),
        owner: owner.to_owned(),
        caller: caller.to_owned(),
        key,
        price: row.price.map(token_price_back),
        ceiling_credits: row.ceiling.units(),
        state: state.into(),
        prompt_tokens: row.prompt_tokens,
        completion_tokens: row.completion_tokens,
        cached_tokens: row.cached_tokens,
        credits: row.amount.units(),
        reason: row.reason.map(|reason| reason.to_string()).unwrap_or_default(),
        open_time: Some(timestamp(row.opened)),
        close_time: row.closed.map(timestamp),
    }
}

/// What callers pay, from the wire. Bounds are checked by the writer.
#[must_use]
pub const fn token_price(price: v1::TokenPrice) -> TokenPrice {
    TokenPrice { prompt: Credits::new(price.prompt_credits), completion: Credits::new(price.completion_credits) }
}

const fn token_price_back(price: TokenPrice) -> v1::TokenPrice {
    v1::TokenPrice { prompt_credits: price.prompt.units(), completion_credits: price.completion.units() }
}

/// How many replicas there may be, from the wire. Bounds are checked by the writer.
#[must_use]
pub const fn replica_bounds(replicas: v1::Replicas) -> ReplicaBounds {
    ReplicaBounds { least: replicas.min, most: replicas.max }
}
