//! Models, endpoints and requests to them.

use serde::Serialize;
use sluice_proto::v1;

use super::{Money, age, filled, milli, short_site, time, word};
use crate::duration;
use crate::output::{Column, View};
use crate::reference::leaf;

/// A model.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ModelView {
    pub(crate) name: String,
    pub(crate) uid: String,
    pub(crate) state: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) message: Option<String>,
    pub(crate) digest: String,
    pub(crate) size_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) source_digest: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) architecture: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) parameters: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) context: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) quantization: Option<String>,
    pub(crate) chats: bool,
    pub(crate) import_job: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) create_time: Option<String>,
}

impl ModelView {
    pub(crate) fn id(&self) -> &str {
        leaf(&self.name)
    }
}

impl From<&v1::Model> for ModelView {
    fn from(model: &v1::Model) -> Self {
        let file = model.file.clone().unwrap_or_default();
        let info = model.info.as_ref();
        Self {
            name: model.name.clone(),
            uid: model.id.clone(),
            state: word(model.state().as_str_name(), "MODEL_STATE_"),
            reason: filled(&model.reason),
            message: filled(&model.message),
            digest: file.digest,
            size_bytes: file.size_bytes,
            source_digest: filled(&model.source_digest),
            architecture: info.and_then(|info| filled(&info.architecture)),
            parameters: info.map(|info| info.parameters),
            context: info.map(|info| info.context),
            quantization: info.and_then(|info| filled(&info.quantization)),
            chats: info.is_some_and(|info| info.chats),
            import_job: model.import_job.clone(),
            create_time: time(model.create_time.as_ref()),
        }
    }
}

impl View for ModelView {
    const KIND: &'static str = "Model";
    const PLURAL: &'static str = "models";
    const COLUMNS: &'static [Column] = &[
        Column::new("NAME"),
        Column::new("STATE"),
        Column::new("ARCHITECTURE"),
        Column::new("PARAMETERS").right(),
        Column::new("QUANTIZATION"),
        Column::new("CONTEXT").right(),
        Column::new("SIZE").right(),
        Column::new("AGE").right(),
        Column::wide("DIGEST"),
        Column::wide("MESSAGE"),
    ];

    fn name(&self) -> String {
        self.name.clone()
    }

    fn cells(&self, now: jiff::Timestamp) -> Vec<String> {
        vec![
            self.id().to_owned(),
            self.state.clone(),
            self.architecture.clone().unwrap_or_default(),
            self.parameters.map(|count| count.to_string()).unwrap_or_default(),
            self.quantization.clone().unwrap_or_default(),
            self.context.map(|tokens| tokens.to_string()).unwrap_or_default(),
            sluice_types::Bytes::new(self.size_bytes).to_string(),
            age(self.create_time.as_deref(), now),
            self.digest.clone(),
            self.message.clone().unwrap_or_default(),
        ]
    }
}

/// A price for a million tokens.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct TokenPriceView {
    pub(crate) prompt: Money,
    pub(crate) completion: Money,
}

impl From<&v1::TokenPrice> for TokenPriceView {
    fn from(price: &v1::TokenPrice) -> Self {
        Self { prompt: Money::new(price.prompt_credits), completion: Money::new(price.completion_credits) }
    }
}

/// An endpoint.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct EndpointView {
    pub(crate) name: String,
    pub(crate) uid: String,
    pub(crate) model: String,
    pub(crate) state: String,
    pub(crate) replicas: ReplicasView,
    pub(crate) class: String,
    pub(crate) share: String,
    pub(crate) memory: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) sites: Vec<String>,
    pub(crate) context: u32,
    pub(crate) sequences: u32,
    pub(crate) public: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) price: Option<TokenPriceView>,
    pub(crate) idle: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) current: Vec<ReplicaView>,
    pub(crate) totals: TotalsView,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) retry_time: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) create_time: Option<String>,
}

/// How many replicas there may be.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct ReplicasView {
    pub(crate) min: u32,
    pub(crate) max: u32,
}

/// A replica.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ReplicaView {
    pub(crate) job: String,
    pub(crate) state: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) message: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) site: Option<String>,
}

/// Sums over requests that are over.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct TotalsView {
    pub(crate) settled: u64,
    pub(crate) voided: u64,
    pub(crate) prompt_tokens: u64,
    pub(crate) cached_tokens: u64,
    pub(crate) completion_tokens: u64,
    pub(crate) earned: Money,
}

impl From<&v1::Endpoint> for EndpointView {
    fn from(row: &v1::Endpoint) -> Self {
        let resources = row.resources.clone().unwrap_or_default();
        let replicas = row.replicas.unwrap_or_default();
        let totals = row.totals.unwrap_or_default();
        let replica = |replica: &v1::Replica| ReplicaView {
            job: replica.job.clone(),
            state: replica.state.to_ascii_uppercase(),
            reason: filled(&replica.reason),
            message: filled(&replica.message),
            site: filled(&replica.site),
        };
        Self {
            name: row.name.clone(),
            uid: row.id.clone(),
            model: row.model.clone(),
            state: word(row.state().as_str_name(), "ENDPOINT_STATE_"),
            replicas: ReplicasView { min: replicas.min, max: replicas.max },
            class: resources.device_class,
            share: milli(resources.milli),
            memory: sluice_types::Bytes::new(resources.memory_bytes).to_string(),
            sites: row.sites.clone(),
            context: row.context,
            sequences: row.sequences,
            public: row.public,
            price: row.price.as_ref().map(TokenPriceView::from),
            idle: duration::print_duration(row.idle.as_ref().map(duration::from_proto).unwrap_or_default()),
            current: row.current.iter().map(replica).collect(),
            totals: TotalsView {
                settled: totals.settled,
                voided: totals.voided,
                prompt_tokens: totals.prompt_tokens,
                cached_tokens: totals.cached_tokens,
                completion_tokens: totals.completion_tokens,
                earned: Money::new(totals.credits),
            },
            retry_time: time(row.retry_time.as_ref()),
            create_time: time(row.create_time.as_ref()),
        }
    }
}

impl View for EndpointView {
    const KIND: &'static str = "Endpoint";
    const PLURAL: &'static str = "endpoints";
    const COLUMNS: &'static [Column] = &[
        Column::new("NAME"),
        Column::new("MODEL"),
        Column::new("STATE"),
        Column::new("REPLICAS"),
        Column::new("SHARE").right(),
        Column::new("PUBLIC"),
        Column::new("REQUESTS").right(),
        Column::new("TOKENS").right(),
        Column::new("EARNED").right(),
        Column::new("AGE").right(),
        Column::wide("CLASS"),
        Column::wide("MEMORY").right(),
        Column::wide("SEQUENCES").right(),
        Column::wide("CONTEXT").right(),
        Column::wide("PROMPT/M").right(),
        Column::wide("COMPLETION/M").right(),
    ];

    fn name(&self) -> String {
        self.name.clone()
    }

    fn cells(&self, now: jiff::Timestamp) -> Vec<String> {
        let price = |part: &dyn Fn(&TokenPriceView) -> Money| self.price.map(|price| part(&price).cell());
        vec![
            leaf(&self.name).to_owned(),
            leaf(&self.model).to_owned(),
            self.state.clone(),
            format!("{}..{}", self.replicas.min, self.replicas.max),
            self.share.clone(),
            if self.public { "yes" } else { "no" }.to_owned(),
            self.totals.settled.to_string(),
            self.totals.completion_tokens.to_string(),
            self.totals.earned.cell(),
            age(self.create_time.as_deref(), now),
            self.class.clone(),
            self.memory.clone(),
            self.sequences.to_string(),
            self.context.to_string(),
            price(&|price| price.prompt).unwrap_or_default(),
            price(&|price| price.completion).unwrap_or_default(),
        ]
    }
}

impl View for ReplicaView {
    const KIND: &'static str = "Replica";
    const PLURAL: &'static str = "replicas";
    const COLUMNS: &'static [Column] = &[
        Column::new("JOB"),
        Column::new("STATE"),
        Column::new("SITE"),
        Column::new("REASON"),
        Column::wide("MESSAGE"),
    ];

    fn name(&self) -> String {
        self.job.clone()
    }

    fn cells(&self, _: jiff::Timestamp) -> Vec<String> {
        vec![
            leaf(&self.job).to_owned(),
            self.state.clone(),
            self.site.as_deref().map(short_site).unwrap_or_default(),
            self.reason.clone().unwrap_or_default(),
            self.message.clone().unwrap_or_default(),
        ]
    }
}

/// A request to an endpoint.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct InferenceRequestView {
    pub(crate) id: String,
    pub(crate) endpoint: String,
    pub(crate) owner: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) caller: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) key: Option<String>,
    pub(crate) state: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<String>,
    pub(crate) prompt_tokens: u64,
    pub(crate) cached_tokens: u64,
    pub(crate) completion_tokens: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) price: Option<TokenPriceView>,
    pub(crate) ceiling: Money,
    pub(crate) cost: Money,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) open_time: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) close_time: Option<String>,
}

impl From<&v1::InferenceRequest> for InferenceRequestView {
    fn from(row: &v1::InferenceRequest) -> Self {
        Self {
            id: row.id.clone(),
            endpoint: row.endpoint.clone(),
            owner: row.owner.clone(),
            caller: filled(&row.caller),
            key: filled(&row.key),
            state: word(row.state().as_str_name(), "INFERENCE_REQUEST_STATE_"),
            reason: filled(&row.reason),
            prompt_tokens: row.prompt_tokens,
            cached_tokens: row.cached_tokens,
            completion_tokens: row.completion_tokens,
            price: row.price.as_ref().map(TokenPriceView::from),
            ceiling: Money::new(row.ceiling_credits),
            cost: Money::new(row.credits),
            open_time: time(row.open_time.as_ref()),
            close_time: time(row.close_time.as_ref()),
        }
    }
}

impl View for InferenceRequestView {
    const KIND: &'static str = "InferenceRequest";
    const PLURAL: &'static str = "requests";
    const COLUMNS: &'static [Column] = &[
        Column::new("ID"),
        Column::new("STATE"),
        Column::new("PROMPT").right(),
        Column::new("COMPLETION").right(),
        Column::new("COST").right(),
        Column::new("REASON"),
        Column::new("AGE").right(),
        Column::wide("ENDPOINT"),
        Column::wide("OWNER"),
        Column::wide("CALLER"),
        Column::wide("CACHED").right(),
        Column::wide("KEY"),
    ];

    fn name(&self) -> String {
        self.id.clone()
    }

    fn cells(&self, now: jiff::Timestamp) -> Vec<String> {
        vec![
            self.id.clone(),
            self.state.clone(),
            self.prompt_tokens.to_string(),
            self.completion_tokens.to_string(),
            self.cost.cell(),
            self.reason.clone().unwrap_or_default(),
            age(self.open_time.as_deref(), now),
            self.endpoint.clone(),
            self.owner.clone(),
            self.caller.clone().unwrap_or_default(),
            self.cached_tokens.to_string(),
            self.key.clone().unwrap_or_default(),
        ]
    }
}
