//! Models, endpoints and requests to them.

use sluice_lifecycle::model::{Endpoint, EndpointState, InferenceRequest, InferenceState, Model, ModelState};
use sluice_types::{EndpointId, ModelId, RequestId, Timestamp};

use super::{OnConflict, Stored, Table};
use crate::Result;
use crate::value::{Value, body, id, instant};

static MODELS: Table =
    Table::new("models", 1, &["id", "project", "name", "state", "live", "body"], OnConflict::Replace);
static ENDPOINTS: Table = Table::new("endpoints", 1, &["id", "project", "name", "live", "body"], OnConflict::Replace);
static INFERENCE: Table =
    Table::new("inference", 1, &["id", "endpoint", "project", "live", "closed", "body"], OnConflict::Replace);

/// The word of a model's state in its column.
pub(crate) const fn model_word(state: ModelState) -> &'static str {
    match state {
        ModelState::Importing => "importing",
        ModelState::Ready => "ready",
        ModelState::Failed => "failed",
        ModelState::Deleted => "deleted",
    }
}

impl Stored for Model {
    type Key = ModelId;

    fn table() -> &'static Table {
        &MODELS
    }

    fn key(&self) -> ModelId {
        self.id
    }

    fn put(&self, values: &mut Vec<Value>) -> Result<()> {
        values.extend([
            id(self.id.raw()),
            id(self.project.raw()),
            self.name.as_str().into(),
            model_word(self.state).into(),
            (self.state != ModelState::Deleted).into(),
            body("models", self)?,
        ]);
        Ok(())
    }
}

impl Stored for Endpoint {
    type Key = EndpointId;

    fn table() -> &'static Table {
        &ENDPOINTS
    }

    fn key(&self) -> EndpointId {
        self.id
    }

    fn put(&self, values: &mut Vec<Value>) -> Result<()> {
        values.extend([
            id(self.id.raw()),
            id(self.project.raw()),
            self.name.as_str().into(),
            (self.state != EndpointState::Deleted).into(),
            body("endpoints", self)?,
        ]);
        Ok(())
    }
}

impl Stored for InferenceRequest {
    type Key = RequestId;

    fn table() -> &'static Table {
        &INFERENCE
    }

    fn key(&self) -> RequestId {
        self.id
    }

    fn put(&self, values: &mut Vec<Value>) -> Result<()> {
        values.extend([
            id(self.id.raw()),
            id(self.endpoint.raw()),
            id(self.project.raw()),
            (self.state == InferenceState::Open).into(),
            instant(self.closed.unwrap_or(Timestamp::from_nanos(0))),
            body("inference", self)?,
        ]);
        Ok(())
    }
}
