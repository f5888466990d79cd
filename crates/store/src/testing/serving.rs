//! Rows of models, endpoints and requests.

use sluice_ledger::TokenPrice;
use sluice_lifecycle::model::{
    BudgetHold, Endpoint, EndpointState, InferenceRequest, InferenceState, Model, ModelInfo, ModelState, ReplicaBounds,
    RequestHold, RequestTotals, StoredFile,
};
use sluice_types::{
    Bytes, CoreMilli, Credits, Digest, EndpointId, HoldId, JobId, KeyId, MilliGpu, ModelId, Nanos, Reason, RequestId,
    TaskResources,
};

use super::Sample;

const FILE: StoredFile = StoredFile { digest: Digest::from_bytes([11; 32]), size: 98_000_000 };

impl Sample {
    /// A model that is ready.
    pub fn model_row(&mut self, named: &str) -> Model {
        let id = ModelId::from_raw(self.mint());
        let info = ModelInfo {
            architecture: "llama".to_owned(),
            parameters: 134_515_008,
            context: 8192,
            token: Bytes::new(23_040),
            quantization: "Q4_0".to_owned(),
            chats: true,
            template_tokens: 31,
            message_tokens: 5,
        };
        Model {
            id,
            tenant: self.tenant,
            project: self.project,
            name: named.parse().expect("a name"),
            state: ModelState::Ready,
            reason: None,
            message: String::new(),
            file: FILE,
            source: Some(Digest::from_bytes([12; 32])),
            requantize: "Q4_0".to_owned(),
            info: Some(info),
            import: JobId::from_raw(self.mint()),
            version: 2,
            by: KeyId::from_raw(4),
            created: self.now(),
        }
    }

    /// An endpoint that serves it.
    pub fn endpoint_row(&mut self, model: &Model, named: &str) -> Endpoint {
        Endpoint {
            id: EndpointId::from_raw(self.mint()),
            tenant: self.tenant,
            project: self.project,
            name: named.parse().expect("a name"),
            model: model.id,
            file: model.file,
            replicas: ReplicaBounds { least: 0, most: 2 },
            resources: TaskResources {
                class: "cpu".parse().expect("a class"),
                milli: MilliGpu::new(500),
                memory: Bytes::mib(1024),
                host_cores: CoreMilli::ZERO,
                host_memory: Bytes::ZERO,
            },
            sites: vec![self.site],
            context: 2048,
            sequences: 8,
            public: true,
            price: Some(TokenPrice { prompt: Credits::new(150_000), completion: Credits::new(600_000) }),
            idle: Nanos::from_secs(60),
            state: EndpointState::Active,
            short_ends: 1,
            retry_at: Some(self.now()),
            totals: RequestTotals { settled: 3, amount: Credits::new(17), ..RequestTotals::default() },
            version: 5,
            by: KeyId::from_raw(4),
            created: self.now(),
        }
    }

    /// An open request to it, with what is held for it.
    pub fn inference_row(&mut self, endpoint: &Endpoint) -> InferenceRequest {
        let budget = BudgetHold {
            hold: HoldId::from_raw(self.mint()),
            scope: sluice_ledger::BudgetScope::Tenant(self.tenant),
            period: 7,
        };
        InferenceRequest {
            id: RequestId::from_raw(self.mint()),
            endpoint: endpoint.id,
            owner: endpoint.tenant,
            tenant: self.tenant,
            project: self.project,
            key: KeyId::from_raw(4),
            price: endpoint.price,
            prompt_ceiling: 2048,
            completion_ceiling: 512,
            ceiling: Credits::new(615),
            hold: Some(RequestHold { funds: HoldId::from_raw(self.mint()), budgets: vec![budget] }),
            state: InferenceState::Open,
            prompt_tokens: 0,
            completion_tokens: 0,
            cached_tokens: 0,
            amount: Credits::ZERO,
            reason: None,
            opened: self.now(),
            closed: None,
        }
    }

    /// The same request, when it was over.
    pub fn voided(&mut self, row: &InferenceRequest) -> InferenceRequest {
        self.mint();
        let closed = Some(self.now());
        let (state, reason) = (InferenceState::Voided, Some(Reason::GatewayLost));
        InferenceRequest { state, reason, closed, hold: None, ..row.clone() }
    }
}
