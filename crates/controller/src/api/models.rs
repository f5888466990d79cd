//! `ModelService`: models that projects serve.

use sluice_lifecycle::model::{Model, StoredFile};
use sluice_lifecycle::{ImportModel, UserCommand};
use sluice_proto::convert;
use sluice_proto::error::refuse_field;
use sluice_proto::v1;
use sluice_proto::v1::model_service_server::ModelService;
use sluice_types::{Bytes, CoreMilli, MilliGpu, ModelId, TaskResources};
use tonic::{Request, Response, Status};

use super::{Api, Mutation, not_found, page, refused, store_status};
use crate::principal::Principal;

/// Memory of an import beside its file.
const BESIDE: u64 = 512 << 20;

impl Api {
    /// "tenants/{tenant}/projects/{project}/models/{model}".
    pub(super) async fn model(&self, who: &Principal, field: &str, text: &str) -> Result<Model, Status> {
        let wrong = || refuse_field(field, "a name of the form tenants/{tenant}/projects/{project}/models/{model}");
        let (parent, name) = text.rsplit_once("/models/").ok_or_else(wrong)?;
        let project = self.project(who, field, parent)?;
        let name = Self::fresh_name(field, name)?;
        let model = self.store.model_by_name(project.id, &name).await.map_err(store_status)?;
        model.ok_or_else(|| not_found("model"))
    }

    async fn model_answer(&self, object: &str) -> Result<Response<v1::Model>, Status> {
        let id: ModelId = object.parse().map_err(|_| not_found("model"))?;
        let row = self.store.get_model(id).await.map_err(store_status)?.ok_or_else(|| not_found("model"))?;
        Ok(Response::new(self.show_model(&row)))
    }

    fn show_model(&self, row: &Model) -> v1::Model {
        convert::model(row, &self.directory.read().project_path(row.project))
    }
}

/// What an import gets where nothing is said.
fn default_resources(size: u64) -> Result<TaskResources, Status> {
    let class = "cpu".parse().map_err(|_| refuse_field("resources", "name a device class"))?;
    Ok(TaskResources {
        class,
        milli: MilliGpu::new(500),
        memory: Bytes::new(size.saturating_add(BESIDE)),
        host_cores: CoreMilli::ZERO,
        host_memory: Bytes::ZERO,
    })
}

#[tonic::async_trait]
impl ModelService for Api {
    async fn import_model(&self, request: Request<v1::ImportModelRequest>) -> Result<Response<v1::Model>, Status> {
        let method = "sluice.v1.ModelService/ImportModel";
        let who = self.who(&request, method)?;
        let message = request.into_inner();
        let project = self.project(&who, "parent", &message.parent)?;
        let name = Self::fresh_name("model_id", &message.model_id)?;
        let file = message.file.clone().ok_or_else(|| refused(convert::missing("file")))?;
        let file = convert::blob_ref("file", file).map_err(refused)?;
        let resources = match &message.resources {
            None => default_resources(file.size)?,
            Some(wanted) => convert::task_resources(wanted).map_err(super::endpoints::of_resources)?,
        };
        let wanted = ImportModel {
            project: project.id,
            name,
            file: StoredFile { digest: file.digest, size: file.size },
            requantize: message.requantize.clone(),
            resources,
        };
        let mutation = Mutation { who: &who, method, request_id: &message.request_id, message: &message };
        let answer = self.change(mutation, UserCommand::ImportModel(Box::new(wanted))).await?;
        self.model_answer(&answer.object).await
    }

    async fn get_model(&self, request: Request<v1::GetModelRequest>) -> Result<Response<v1::Model>, Status> {
        let who = self.who(&request, "sluice.v1.ModelService/GetModel")?;
        let row = self.model(&who, "name", &request.into_inner().name).await?;
        Ok(Response::new(self.show_model(&row)))
    }

    async fn list_models(
        &self,
        request: Request<v1::ListModelsRequest>,
    ) -> Result<Response<v1::ListModelsResponse>, Status> {
        let who = self.who(&request, "sluice.v1.ModelService/ListModels")?;
        let message = request.into_inner();
        let project = self.project(&who, "parent", &message.parent)?;
        let page = self.page::<ModelId>("models", message.page_size, &message.page_token)?;
        let rows = self.store.list_models(project.id, page).await.map_err(store_status)?;
        let next_page_token = self.next_token("models", page::last(&rows, page.limit, |row| row.id));
        let models = rows.iter().map(|row| self.show_model(row)).collect();
        Ok(Response::new(v1::ListModelsResponse { models, next_page_token }))
    }

    async fn delete_model(&self, request: Request<v1::DeleteModelRequest>) -> Result<Response<v1::Model>, Status> {
        let method = "sluice.v1.ModelService/DeleteModel";
        let who = self.who(&request, method)?;
        let message = request.into_inner();
        let mutation = Mutation { who: &who, method, request_id: &message.request_id, message: &message };
        // A retry finds the name gone, and the request remembered.
        if let Some(object) = self.done_before(&mutation).await? {
            return self.model_answer(&object).await;
        }
        let row = self.model(&who, "name", &message.name).await?;
        let answer = self.change(mutation, UserCommand::DeleteModel(row.id)).await?;
        self.model_answer(&answer.object).await
    }
}
