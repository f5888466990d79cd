//! Models: an upload, looked into by a job before anybody serves it.

use std::collections::BTreeMap;
use std::sync::Arc;

use sluice_types::{JobId, ModelId, Nanos, NetworkMode, Reason};

use super::Step;
use super::jobs::new_job;
use super::people::bounded;
use crate::command::{Answer, Caller, ImportModel, ModelFound, Refusal};
use crate::model::{Job, JobKind, JobSpec, JobState, Model, ModelFile, ModelState, RetryPolicy, StoredFile};
use crate::state::Happened;

const MAX_MODELS_PER_PROJECT: usize = 1_000;
/// An import reads its file once, and writes it once at most.
const IMPORT_TIME: Nanos = Nanos::from_secs(3600);

impl Step<'_> {
    pub(super) fn import_model(&mut self, caller: &Caller, wanted: ImportModel) -> Result<Answer, Refusal> {
        let ImportModel { project, name, file, requantize, resources } = wanted;
        let spec = import_spec(file, requantize.clone(), resources);
        let tenant = self.check_submit(project, &spec, JobKind::Import).map_err(of_import)?;
        if self.state.serving.model_names.contains_key(&(project, name.clone())) {
            return Err(Refusal::new(Reason::AlreadyExists, format!("the project has a model {name} already")));
        }
        let own = self.state.serving.model_names.range((project, first_name())..);
        let own = own.take_while(|((of, _), _)| *of == project).count();
        bounded(own, MAX_MODELS_PER_PROJECT, "models of one project")?;
        let id = ModelId::from_raw(self.id());
        let import = JobId::from_raw(self.id());
        let job = new_job(import, (tenant, project), name.clone(), Arc::new(spec), caller.key, self.now);
        self.state.event(&job, self.now, Happened::new("Importing", id.to_string(), &caller.key.to_string()));
        self.enlist(job);
        let model = Model {
            id,
            tenant,
            project,
            name,
            state: ModelState::Importing,
            reason: None,
            message: String::new(),
            file,
            source: None,
            requantize,
            info: None,
            import,
            version: 1,
            by: caller.key,
            created: self.now,
        };
        self.state.keep_upload(project, file.digest);
        self.state.serving.name_model(&model);
        self.state.serving.models.insert(id, model);
        Ok(Answer { object: id.to_string(), ..Answer::default() })
    }

    /// What an import that ended well has found, or why that is nothing.
    pub(super) fn model_checked(&mut self, id: ModelId, found: Result<ModelFound, String>) -> Result<Answer, Refusal> {
        let model = self.state.serving.models.get(&id).ok_or_else(|| Refusal::not_found("model"))?.clone();
        if model.state != ModelState::Importing {
            return Err(Refusal::new(Reason::WrongState, "the model is not being imported"));
        }
        let found = found.and_then(|found| {
            let known = self.state.upload(model.project, found.file.digest);
            let whole = known.is_some_and(|row| row.complete && row.size == found.file.size);
            if whole { Ok(found) } else { Err("the file that was made of it is not there".to_owned()) }
        });
        match found {
            Ok(ModelFound { info, file }) => {
                self.state.keep_upload(model.project, file.digest);
                self.end_import(&model, ModelState::Ready, None, String::new());
                if let Some(row) = self.state.serving.models.get_mut(&id) {
                    row.source = (file.digest != model.file.digest).then_some(model.file.digest);
                    (row.file, row.info) = (file, Some(info));
                }
            }
            Err(message) => self.end_import(&model, ModelState::Failed, Some(Reason::NotAModel), message),
        }
        Ok(Answer { object: id.to_string(), ..Answer::default() })
    }

    /// An import's job ended: if badly, its model has failed.
    pub(super) fn import_over(&mut self, job: &Job) {
        let Some(id) = self.state.serving.imports.get(&job.id).copied() else { return };
        if job.state == JobState::Succeeded {
            return;
        }
        let Some(model) = self.state.serving.models.get(&id).cloned() else { return };
        let reason = if job.state == JobState::Cancelled { Reason::WrongState } else { Reason::NotAModel };
        let message = match (job.state, job.message.is_empty()) {
            (JobState::Cancelled, _) => "its import was cancelled".to_owned(),
            (_, true) => job.reason.map_or("", Reason::meaning).trim().to_owned(),
            (_, false) => job.message.clone(),
        };
        self.end_import(&model, ModelState::Failed, job.reason.or(Some(reason)), message);
    }

    fn end_import(&mut self, model: &Model, state: ModelState, reason: Option<Reason>, message: String) {
        self.state.serving.imports.remove(&model.import);
        self.state.release_upload(model.project, model.file.digest, self.now);
        if let Some(row) = self.state.serving.models.get_mut(&model.id) {
            (row.state, row.reason, row.message) = (state, reason, message);
            row.version += 1;
        }
    }

    pub(super) fn delete_model(&mut self, caller: &Caller, id: ModelId) -> Result<Answer, Refusal> {
        let model = self.state.serving.models.get(&id).ok_or_else(|| Refusal::not_found("model"))?.clone();
        if let Some(endpoint) = self.state.serving.endpoints.values().find(|row| row.model == id) {
            let message = format!("endpoint {} serves it: delete that first", endpoint.name);
            return Err(Refusal::new(Reason::WrongState, message));
        }
        match model.state {
            ModelState::Importing => self.end_import(&model, ModelState::Deleted, None, String::new()),
            _ => {
                if let Some(kept) = model.keeps() {
                    self.state.release_upload(model.project, kept.digest, self.now);
                }
                if let Some(row) = self.state.serving.models.get_mut(&id) {
                    row.state = ModelState::Deleted;
                    row.version += 1;
                }
            }
        }
        self.state.serving.model_names.remove(&(model.project, model.name.clone()));
        if self.state.jobs.get(&model.import).is_some_and(|job| !job.state.is_terminal()) {
            self.stop_job(model.import, &caller.key.to_string())?;
        }
        Ok(Answer { object: id.to_string(), ..Answer::default() })
    }
}

/// The first name there can be, to look through those of one project.
pub(super) fn first_name() -> sluice_types::Name {
    "0".parse().expect("invariant: a digit is a name")
}

fn import_spec(file: StoredFile, requantize: String, resources: sluice_types::TaskResources) -> JobSpec {
    JobSpec {
        kind: JobKind::Import,
        command: Vec::new(),
        env: BTreeMap::new(),
        work_dir: None,
        inputs: Vec::new(),
        tasks: 1,
        resources,
        priority: 0,
        max_run_time: Some(IMPORT_TIME),
        retry: RetryPolicy { on_failure: 0, on_loss: 10 },
        checkpoint: None,
        secrets: Vec::new(),
        network: NetworkMode::Loopback,
        sites: Vec::new(),
        labels: BTreeMap::new(),
        model: Some(ModelFile { digest: file.digest, size: file.size, context: 0, sequences: 0, requantize }),
    }
}

/// A refusal of the import's job in the words of the request.
fn of_import(refusal: Refusal) -> Refusal {
    let field = refusal.field.map(|field| match field.as_str() {
        "spec.model" => "file".to_owned(),
        "spec.model.requantize" => "requantize".to_owned(),
        other => other.strip_prefix("spec.").unwrap_or(other).to_owned(),
    });
    Refusal { field, ..refusal }
}
