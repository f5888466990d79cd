//! What users do with jobs.

use std::collections::BTreeMap;
use std::sync::Arc;

use sluice_plan::{JobView, Purpose};
use sluice_types::{
    Credits, Generation, JobId, KeyId, Name, Nanos, NetworkMode, ProjectId, Reason, SiteId, TenantId, Timestamp,
};

use super::Step;
use super::people::bounded;
use crate::command::{Answer, Caller, Refusal};
use crate::model::{
    AttemptState, Goal, Job, JobKind, JobSpec, JobState, Migration, MigrationCause, MigrationPhase, Project, StopCause,
    StopOrder,
};
use crate::state::Happened;
use crate::validate;

impl Step<'_> {
    pub(super) fn submit(
        &mut self,
        caller: &Caller,
        project: ProjectId,
        name: Option<Name>,
        spec: Arc<JobSpec>,
    ) -> Result<Answer, Refusal> {
        let tenant = self.check_submit(project, &spec, JobKind::Batch)?;
        let id = JobId::from_raw(self.id());
        let name = match name {
            Some(name) => name,
            None => id.to_string().parse().expect("invariant: an id's text is a name"),
        };
        let mut job = new_job(id, (tenant, project), name, spec, caller.key, self.now);
        job.manager = caller.manager.clone();
        self.state.event(&job, self.now, Happened::new("Submitted", "", &caller.key.to_string()));
        let answer = Answer { object: id.to_string(), job: Some(Box::new(job.clone())), ..Answer::default() };
        self.enlist(job);
        Ok(answer)
    }

    /// Takes a new job into the working set.
    pub(super) fn enlist(&mut self, job: Job) {
        self.state.count_uses(&job);
        self.state.serving.job(&job);
        *self.state.jobs_of.entry(job.tenant).or_default() += 1;
        self.state.jobs.insert(job.id, job);
    }

    /// Everything that a submit depends on. Also used to validate without submitting.
    pub(super) fn check_submit(&self, project: ProjectId, spec: &JobSpec, kind: JobKind) -> Result<TenantId, Refusal> {
        if spec.kind != kind {
            let message =
                "batch jobs are submitted, rentals are ordered; endpoints and models make their jobs themselves";
            return Err(Refusal::field("spec.kind", message));
        }
        let tenant = self.state.check_spec(project, spec)?;
        let count = self.state.jobs_of.get(&tenant).copied().unwrap_or(0);
        bounded(count, self.state.settings.jobs_per_tenant, "jobs of one tenant that wait or run")?;
        Ok(tenant)
    }

    /// Does nothing but check; the answer is what the scheduler would be asked to place.
    pub(super) fn validate(&self, caller: &Caller, project: ProjectId, spec: Arc<JobSpec>) -> Result<Answer, Refusal> {
        self.check_submit(project, &spec, spec.kind)?;
        let row = self.state.projects.get(&project).ok_or_else(|| Refusal::not_found("project"))?;
        let job = draft(row, None, spec, caller.key, self.now);
        Ok(Answer { wanted: self.state.wanted(&job, self.now).map(Box::new), ..Answer::default() })
    }

    pub(super) fn cancel(&mut self, caller: &Caller, id: JobId, version: Option<u64>) -> Result<Answer, Refusal> {
        self.own_job(caller, id, version)?;
        self.stop_job(id, &caller.key.to_string())?;
        Ok(self.job_answer(id))
    }

    /// Ends a job for good.
    pub(super) fn stop_job(&mut self, id: JobId, actor: &str) -> Result<(), Refusal> {
        let job = self.known_job(id, None)?;
        match job.state {
            JobState::Pending | JobState::Suspended => {
                self.finish_job(id, JobState::Cancelled, None, String::new(), actor);
            }
            JobState::Cancelling => {}
            state if state.is_terminal() => return Err(wrong_state("cancel", state)),
            _ => {
                self.drop_migration(id, Reason::WrongState);
                let Some(attempt) = job.current else {
                    // Between two attempts of a move nothing runs, so nobody would ever report an end.
                    self.finish_job(id, JobState::Cancelled, None, String::new(), actor);
                    return Ok(());
                };
                self.set_goal(attempt, Goal::Stop, None);
                self.set_state(id, JobState::Cancelling, None, String::new(), Happened::new("Cancelling", "", actor));
            }
        }
        Ok(())
    }

    pub(super) fn suspend(&mut self, caller: &Caller, id: JobId, version: Option<u64>) -> Result<Answer, Refusal> {
        let job = self.own_job(caller, id, version)?;
        let actor = caller.key.to_string();
        let reason = Some(Reason::SuspendedByUser);
        if job.spec.kind.uses_model() {
            let message = "the job is its endpoint's or its model's: change that instead";
            return Err(Refusal::new(Reason::WrongState, message));
        }
        match job.state {
            JobState::Pending => {
                let what = Happened::new("Suspended", "", &actor).because(reason);
                self.set_state(id, JobState::Suspended, reason, String::new(), what);
            }
            JobState::Running => {
                if job.spec.checkpoint.is_none() {
                    let message = "the job has no checkpoint policy, so suspending it would lose its work; cancel it";
                    return Err(Refusal::new(Reason::WrongState, message));
                }
                let attempt = job.current.expect("invariant: a running job has an attempt");
                self.order(attempt, StopCause::Suspend);
                let what = Happened::new("Suspending", "", &actor).because(reason);
                self.set_state(id, JobState::Suspending, reason, String::new(), what);
            }
            // What would resume by itself stays suspended from here on.
            JobState::Suspended | JobState::Suspending if job.reason == Some(Reason::QuotaReclaimed) => {
                if let Some(row) = job.current.and_then(|id| self.state.attempts.get_mut(&id)) {
                    row.order = row.order.map(|order| StopOrder { kind: StopCause::Suspend, ..order });
                }
                let kind = if job.state == JobState::Suspended { "Suspended" } else { "Suspending" };
                let what = Happened::new(kind, "", &actor).because(reason);
                self.set_state(id, job.state, reason, String::new(), what);
            }
            JobState::Suspended | JobState::Suspending => {}
            state => return Err(wrong_state("suspend", state)),
        }
        Ok(self.job_answer(id))
    }

    pub(super) fn resume(&mut self, caller: &Caller, id: JobId, version: Option<u64>) -> Result<Answer, Refusal> {
        let job = self.own_job(caller, id, version)?;
        match job.state {
            JobState::Suspended => {
                let actor = caller.key.to_string();
                let what = Happened::new("Resumed", "", &actor);
                self.set_state(id, JobState::Pending, None, String::new(), what);
            }
            JobState::Pending | JobState::Starting | JobState::Running => {}
            state => return Err(wrong_state("resume", state)),
        }
        Ok(self.job_answer(id))
    }

    pub(super) fn migrate(
        &mut self,
        caller: &Caller,
        id: JobId,
        to: SiteId,
        version: Option<u64>,
    ) -> Result<Answer, Refusal> {
        let job = self.own_job(caller, id, version)?;
        if !self.state.sites.contains(&to) {
            return Err(Refusal::not_found("site"));
        }
        let allowed = self.state.allowed_sites(&job);
        if !allowed.is_empty() && !allowed.contains(&to) {
            return Err(Refusal::new(Reason::NoAllowedSite, "the job or its project does not allow this site"));
        }
        if job.state != JobState::Running {
            return Err(wrong_state("migrate", job.state));
        }
        let attempt = job.current.and_then(|attempt| self.state.attempts.get(&attempt));
        if attempt.is_some_and(|row| row.order.is_some()) {
            return Err(Refusal::new(Reason::WrongState, "the job is being stopped at a checkpoint; try again"));
        }
        self.start_migration(id, to, MigrationCause::Tenant, &caller.key.to_string())?;
        Ok(self.job_answer(id))
    }

    /// Begins a move of a running job.
    pub(super) fn start_migration(
        &mut self,
        id: JobId,
        to: SiteId,
        cause: MigrationCause,
        actor: &str,
    ) -> Result<(), Refusal> {
        let job = self.known_job(id, None)?;
        if job.spec.checkpoint.is_none() {
            let message = "the job has no checkpoint policy, so it cannot move";
            return Err(Refusal::new(Reason::WrongState, message));
        }
        let source = job.current.and_then(|attempt| self.state.attempts.get(&attempt));
        let source = source.ok_or_else(|| Refusal::new(Reason::WrongState, "the job runs nowhere"))?;
        if source.site == to {
            return Err(Refusal::field("to_site", "the job is at this site already"));
        }
        let (source, from) = (source.id, source.site);
        let migration = Migration {
            id: sluice_types::MigrationId::from_raw(self.id()),
            job: id,
            from,
            to,
            cause,
            phase: MigrationPhase::Placing,
            source,
            target: None,
            checkpoint: None,
            deadline: self.now.after(self.state.settings.prepare_deadline),
            created: self.now,
            ended: None,
            reason: None,
        };
        let key = migration.id;
        self.state.migrations.insert(key, migration);
        if let Some(row) = self.state.jobs.get_mut(&id) {
            row.migration = Some(key);
        }
        let what = Happened::new("Migrating", self.site_name(to), actor);
        self.set_state(id, JobState::Migrating, None, String::new(), what);
        Ok(())
    }

    /// A job in memory, at the version that the caller read.
    fn known_job(&self, id: JobId, version: Option<u64>) -> Result<Job, Refusal> {
        let job = self.state.jobs.get(&id).ok_or_else(|| {
            // Ended jobs leave the working set; the API answers for those it can still read.
            Refusal::new(Reason::WrongState, "the job has ended")
        })?;
        if version.is_some_and(|version| version != job.version) {
            return Err(Refusal::new(Reason::EtagMismatch, "the job changed since you read it"));
        }
        Ok(job.clone())
    }

    /// The same, if the caller may change it.
    fn own_job(&self, caller: &Caller, id: JobId, version: Option<u64>) -> Result<Job, Refusal> {
        let job = self.known_job(id, version)?;
        self.check_own_manager(caller, &job.manager, &id.to_string())?;
        Ok(job)
    }

    fn job_answer(&self, id: JobId) -> Answer {
        let job = self.state.jobs.get(&id).cloned().map(Box::new);
        Answer { object: id.to_string(), job, ..Answer::default() }
    }

    /// Tells an attempt to stop at a checkpoint.
    pub(super) fn order(&mut self, attempt: sluice_types::AttemptId, kind: StopCause) {
        let deadline = self.now.after(self.state.settings.stop_deadline);
        self.set_goal(attempt, Goal::Checkpoint, Some(StopOrder { kind, deadline, stop_step: None, must: false }));
    }

    /// Takes back the order to stop at a checkpoint. A gang that has lost tasks to the order cannot go on without them: the
    /// rest is stopped too, and it queues again.
    pub(super) fn take_back_order(&mut self, attempt: sluice_types::AttemptId) {
        let Some(row) = self.state.attempts.get(&attempt) else { return };
        if row.tasks.iter().filter_map(|task| task.end.as_ref()).any(|end| end.at_checkpoint) {
            let deadline = self.now.after(self.state.settings.stop_deadline);
            self.set_goal(
                attempt,
                Goal::Stop,
                Some(StopOrder { kind: StopCause::Requeue, deadline, stop_step: None, must: false }),
            );
        } else {
            self.set_goal(attempt, Goal::Run, None);
        }
    }

    /// Gives an attempt another goal; ended ones keep theirs.
    pub(super) fn set_goal(&mut self, attempt: sluice_types::AttemptId, goal: Goal, order: Option<StopOrder>) {
        if let Some(row) = self.state.attempts.get_mut(&attempt).filter(|row| row.state != AttemptState::Ended) {
            (row.goal, row.order) = (goal, order);
            row.revision += 1;
            row.tasks.iter_mut().for_each(|task| task.held = None);
        }
    }

    /// Moves a job to another state, with an event.
    pub(super) fn set_state(
        &mut self,
        id: JobId,
        state: JobState,
        reason: Option<Reason>,
        message: String,
        what: Happened<'_>,
    ) {
        let now = self.now;
        let Some(row) = self.state.jobs.get_mut(&id) else { return };
        (row.state, row.reason, row.message) = (state, reason, message);
        row.version += 1;
        if state == JobState::Running {
            row.started.get_or_insert(now);
        }
        if state.is_terminal() {
            row.ended = Some(now);
            self.state.out.ended.insert(id);
        }
        let job = row.clone();
        self.state.event(&job, now, what);
        if state.is_terminal() && job.spec.kind == JobKind::Import {
            self.import_over(&job);
        }
    }

    pub(super) fn site_name(&self, site: SiteId) -> String {
        self.state.sites.get(&site).map_or_else(String::new, |row| row.name.to_string())
    }
}

fn wrong_state(what: &str, state: JobState) -> Refusal {
    Refusal::new(Reason::WrongState, format!("cannot {what} a job that is {}", state.as_str()))
}

pub(super) fn new_job(
    id: JobId,
    (tenant, project): (TenantId, ProjectId),
    name: Name,
    spec: Arc<JobSpec>,
    by: KeyId,
    now: Timestamp,
) -> Job {
    Job {
        id,
        tenant,
        project,
        name,
        spec,
        state: JobState::Pending,
        reason: None,
        message: String::new(),
        version: 1,
        generation: Generation::ZERO,
        last_generation: Generation::ZERO,
        attempts: 0,
        current: None,
        losses: 0,
        failures: 0,
        step: 0,
        metrics: BTreeMap::new(),
        checkpoint: None,
        migration: None,
        spent: Credits::ZERO,
        credited: Credits::ZERO,
        run_time: Nanos::ZERO,
        purchase: None,
        manager: String::new(),
        endpoint: None,
        replaces: None,
        by,
        created: now,
        started: None,
        ended: None,
    }
}

impl crate::State {
    /// Checks a spec against rows and bounds.
    ///
    /// # Errors
    /// A [`Refusal`] that names the field.
    pub(crate) fn check_spec(&self, project: ProjectId, spec: &JobSpec) -> Result<sluice_types::TenantId, Refusal> {
        validate::spec(spec)?;
        let row = self.projects.get(&project).ok_or_else(|| Refusal::not_found("project"))?;
        if spec.network != NetworkMode::Loopback && !row.networks.contains(&spec.network) {
            let message = "the project's policy does not allow this network mode";
            return Err(Refusal {
                field: Some("spec.network".to_owned()),
                ..Refusal::new(Reason::NetworkNotAllowed, message)
            });
        }
        if spec.sites.iter().any(|site| !self.sites.contains(site)) {
            return Err(Refusal::field("spec.sites", "one of the sites does not exist"));
        }
        self.check_uploads(project, spec)?;
        for secret in &spec.secrets {
            if !self.secret_names.get(&project).is_some_and(|own| own.contains_key(&secret.secret)) {
                return Err(Refusal::field("spec.secrets", format!("the project has no secret {}", secret.secret)));
            }
        }
        Ok(row.tenant)
    }
}

/// A job as it would be submitted, for checks that need one.
#[must_use]
pub fn draft(project: &Project, name: Option<Name>, spec: Arc<JobSpec>, by: KeyId, now: Timestamp) -> Job {
    let id = JobId::from_raw(u64::MAX);
    let name = name.unwrap_or_else(|| id.to_string().parse().expect("invariant: an id's text is a name"));
    new_job(id, (project.tenant, project.id), name, spec, by, now)
}

/// What the scheduler would see of a draft, as far as it decides whether the job could ever run.
#[must_use]
pub fn draft_view(job: &Job, project: &Project) -> JobView {
    JobView {
        id: job.id,
        version: job.version,
        tenant: job.tenant,
        project: job.project,
        priority: job.spec.priority,
        purpose: Purpose::Run,
        tasks: job.spec.tasks,
        resources: job.spec.resources.clone(),
        sites: crate::view::common_sites(&job.spec.sites, &project.sites),
        state_at: Vec::new(),
        hold_time: Nanos::from_secs(1),
        budgets: Vec::new(),
        firm: job.spec.kind.is_firm(),
    }
}
