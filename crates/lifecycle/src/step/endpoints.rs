//! Endpoints: as many replicas as requests need, each a job.
//!
//! How many there should be is a function of the endpoint's row, its replicas and what the gateway tells; time and telling
//! bring it about again and again, so that nothing of it is written down but the replicas themselves.

use std::collections::BTreeMap;
use std::sync::Arc;

use sluice_types::serving::{longest_context, spare_places};
use sluice_types::{Bytes, Credits, EndpointId, JobId, Nanos, NetworkMode, Reason, Timestamp};

use super::Step;
use super::jobs::new_job;
use super::models::first_name;
use super::people::bounded;
use crate::command::{Answer, Caller, EndpointChange, NewEndpoint, Refusal};
use crate::model::{
    AttemptState, Endpoint, EndpointState, Goal, Job, JobKind, JobSpec, JobState, ModelFile, ModelState, ReplicaBounds,
    RequestTotals, RetryPolicy, StopCause, StopOrder, StoredFile,
};
use crate::state::Happened;

const MAX_ENDPOINTS_PER_PROJECT: usize = 1_000;
const MAX_REPLICAS: u32 = 64;
/// Replicas begin before jobs of the same tenant that wait: somebody waits for their answers.
const PRIORITY: i32 = 100;
/// Tokens of context where a model does not say what it was trained for, and nobody else does.
const UNKNOWN_CONTEXT: u32 = 4096;
/// One replica more, when there is too little room for so long.
const OVER: Nanos = Nanos::from_secs(2);
/// A replica that ends by itself sooner than this after its start is not started again at once.
const SHORT: Nanos = Nanos::from_secs(10);
/// How long the first of such replicas waits; each further one in a row twice as long, up to the longest.
const FIRST_WAIT: Nanos = Nanos::from_secs(1);
const LONGEST_WAIT: Nanos = Nanos::from_secs(30);
/// Tries of one replica; then it ends, and another takes its place. All tries of a job are kept in memory while it lives.
const TRIES: u32 = 1_000;
/// A million of the currency for a million tokens: more is a slip.
const MAX_PRICE: Credits = Credits::new(1_000_000 * Credits::PER_UNIT);

impl Step<'_> {
    pub(super) fn create_endpoint(&mut self, caller: &Caller, wanted: NewEndpoint) -> Result<Answer, Refusal> {
        let project = wanted.project;
        let row = self.state.projects.get(&project).ok_or_else(|| Refusal::not_found("project"))?;
        let tenant = row.tenant;
        let model = self.state.serving.models.get(&wanted.model).filter(|model| model.project == project);
        let model = model.ok_or_else(|| Refusal { field: Some("model".to_owned()), ..Refusal::not_found("model") })?;
        let (ModelState::Ready, Some(info)) = (model.state, model.info.as_ref()) else {
            return Err(Refusal::new(Reason::WrongState, "the model is not ready: look at its state first"));
        };
        let trained = if info.context == 0 { UNKNOWN_CONTEXT } else { info.context };
        if info.context != 0 && wanted.context > trained {
            return Err(Refusal::field("context", format!("the model was trained for {trained} tokens")));
        }
        let longest = match info.token {
            Bytes::ZERO => u32::MAX,
            token => longest_context(wanted.resources.memory, wanted.sequences, token),
        };
        let context = if wanted.context == 0 { trained.min(longest) } else { wanted.context };
        let file = model.file;
        check_bounds(wanted.replicas)?;
        check_terms(wanted.price, Some(wanted.idle))?;
        if self.state.serving.endpoint_names.contains_key(&(project, wanted.name.clone())) {
            let message = format!("the project has an endpoint {} already", wanted.name);
            return Err(Refusal::new(Reason::AlreadyExists, message));
        }
        let own = self.state.serving.endpoint_names.range((project, first_name())..);
        let own = own.take_while(|((of, _), _)| *of == project).count();
        bounded(own, MAX_ENDPOINTS_PER_PROJECT, "endpoints of one project")?;
        let mut sites = wanted.sites;
        sites.sort();
        sites.dedup();
        let endpoint = Endpoint {
            id: EndpointId::from_raw(self.id()),
            tenant,
            project,
            name: wanted.name,
            model: wanted.model,
            file,
            replicas: wanted.replicas,
            resources: wanted.resources,
            sites,
            context,
            sequences: wanted.sequences,
            public: wanted.public,
            price: wanted.price,
            idle: wanted.idle,
            state: EndpointState::Active,
            short_ends: 0,
            retry_at: None,
            totals: RequestTotals::default(),
            version: 1,
            by: caller.key,
            created: self.now,
        };
        self.check_submit(project, &replica_spec(&endpoint), JobKind::Replica).map_err(of_replica)?;
        if longest < endpoint.context.max(1) {
            let places = u64::from(endpoint.sequences) + u64::from(spare_places(endpoint.sequences));
            let why = format!(
                "{places} places share half of the memory, {}: that is {longest} tokens each; ask for more memory, fewer \
                 sequences or less context",
                endpoint.resources.memory
            );
            return Err(Refusal::field("context", why));
        }
        let id = endpoint.id;
        self.state.serving.endpoint_names.insert((project, endpoint.name.clone()), id);
        self.state.serving.endpoints.insert(id, endpoint);
        self.scale(id);
        Ok(Answer { object: id.to_string(), ..Answer::default() })
    }

    pub(super) fn update_endpoint(
        &mut self,
        id: EndpointId,
        version: Option<u64>,
        change: EndpointChange,
    ) -> Result<Answer, Refusal> {
        let row = self.active_endpoint(id)?;
        if version.is_some_and(|version| version != row.version) {
            return Err(Refusal::new(Reason::EtagMismatch, "the endpoint changed since you read it"));
        }
        change.replicas.map_or(Ok(()), check_bounds)?;
        check_terms(change.price, change.idle)?;
        if let Some(row) = self.state.serving.endpoints.get_mut(&id) {
            row.replicas = change.replicas.unwrap_or(row.replicas);
            row.public = change.public.unwrap_or(row.public);
            row.price = change.price.or(row.price);
            row.idle = change.idle.unwrap_or(row.idle);
            row.version += 1;
        }
        self.scale(id);
        Ok(Answer { object: id.to_string(), ..Answer::default() })
    }

    pub(super) fn delete_endpoint(&mut self, id: EndpointId) -> Result<Answer, Refusal> {
        let row = self.state.serving.endpoints.get(&id).ok_or_else(|| Refusal::not_found("endpoint"))?;
        if row.state == EndpointState::Active
            && let Some(row) = self.state.serving.endpoints.get_mut(&id)
        {
            row.state = EndpointState::Deleting;
            row.version += 1;
        }
        self.scale(id);
        Ok(Answer { object: id.to_string(), ..Answer::default() })
    }

    pub(super) fn active_endpoint(&self, id: EndpointId) -> Result<&Endpoint, Refusal> {
        let row = self.state.serving.endpoints.get(&id).ok_or_else(|| Refusal::not_found("endpoint"))?;
        if row.state == EndpointState::Active {
            return Ok(row);
        }
        Err(Refusal::new(Reason::WrongState, "the endpoint is being deleted"))
    }

    /// The gateway tells what there is to do. The first replica does not wait for the next tick.
    pub(super) fn endpoint_load(&mut self, id: EndpointId, queued: u32, running: u32) -> Result<Answer, Refusal> {
        self.active_endpoint(id)?;
        let load = self.state.serving.loads.entry(id).or_default();
        load.tell(u64::from(queued) + u64::from(running), self.now);
        self.scale(id);
        Ok(Answer::default())
    }

    /// Time's part in it, for all endpoints.
    pub(super) fn scale_all(&mut self) {
        let ids: Vec<_> = self.state.serving.endpoints.values().map(|row| row.id).collect();
        for id in ids {
            let due = self.state.serving.endpoints.get(&id).and_then(|row| row.retry_at);
            if due.is_some_and(|at| at <= self.now) {
                if let Some(row) = self.state.serving.endpoints.get_mut(&id) {
                    row.retry_at = None;
                }
                self.retell(|_, job| job.endpoint == Some(id));
            }
            self.scale(id);
        }
    }

    /// Brings an endpoint to the number of replicas that it should have.
    pub(super) fn scale(&mut self, id: EndpointId) {
        let Some(row) = self.state.serving.endpoints.get(&id).cloned() else { return };
        let replicas: Vec<_> = self.state.replicas(id).map(|job| (job.id, job.state, job.replaces)).collect();
        if row.state == EndpointState::Deleting && replicas.is_empty() {
            if let Some(row) = self.state.serving.endpoints.get_mut(&id) {
                row.state = EndpointState::Deleted;
                row.version += 1;
            }
            return;
        }
        let present: Vec<_> = replicas.into_iter().filter(|(_, state, _)| *state != JobState::Cancelling).collect();
        let leaving = present.iter().filter(|_| row.state == EndpointState::Active);
        let leaving: BTreeMap<_, _> = leaving.filter_map(|(job, ..)| Some((*job, self.leaves(*job)?))).collect();
        // One that begins for another is none more while both are there. Where that one has left, or stays after all, it
        // is one like any other, also when the other's next node is drained.
        let of_its_own = |replaces: &Option<JobId>| replaces.is_none_or(|job| !leaving.contains_key(&job));
        for (job, _, replaces) in present.iter().filter(|(_, _, replaces)| of_its_own(replaces)) {
            if replaces.is_some()
                && let Some(row) = self.state.jobs.get_mut(job)
            {
                row.replaces = None;
            }
        }
        let counted = present.iter().filter(|(_, _, replaces)| of_its_own(replaces));
        let (going, staying): (Vec<_>, Vec<_>) = counted.partition(|(job, ..)| leaving.contains_key(job));
        let have = u32::try_from(going.len() + staying.len()).unwrap_or(u32::MAX);
        let aim = match row.state {
            EndpointState::Active => {
                self.aim(&row, have, staying.iter().any(|(_, state, _)| *state == JobState::Pending))
            }
            EndpointState::Deleting | EndpointState::Deleted => 0,
        };
        // Those that must go anyway go first, then the newest: the oldest have most in their caches.
        let surplus = usize::try_from(have.saturating_sub(aim)).unwrap_or(usize::MAX);
        for (job, ..) in going.iter().rev().chain(staying.iter().rev()).take(surplus) {
            self.let_go(*job);
        }
        for _ in have..aim {
            if !self.start_replica(&row, None) {
                break;
            }
        }
        for (job, by) in leaving {
            let other = present.iter().find(|(_, _, replaces)| *replaces == Some(job));
            self.replace_replica(&row, (job, by), other.map(|(other, state, _)| (*other, *state)));
        }
        // What money stopped waits for money as every job does that has not begun.
        for (job, ..) in present.iter().filter(|(_, state, _)| *state == JobState::Suspended) {
            if self.state.jobs.get(job).is_some_and(|job| job.state == JobState::Suspended) {
                self.queue_again(*job, None, "waits to serve again");
            }
        }
    }

    fn let_go(&mut self, job: JobId) {
        self.stop_job(job, "controller").expect("invariant: a job that has not ended can be stopped");
    }

    /// Until when a replica may serve on whose node is drained; none where it may stay, or was told to stop.
    fn leaves(&self, job: JobId) -> Option<Timestamp> {
        let attempt = self.state.attempts.get(&self.state.jobs.get(&job)?.current?)?;
        let wanted = attempt.state != AttemptState::Ended && attempt.goal == Goal::Run && attempt.order.is_none();
        let leases = attempt.tasks.iter().filter_map(|task| self.state.leases.get(&task.lease));
        let mut nodes = leases.filter_map(|lease| self.state.nodes.get(&lease.device.node));
        nodes.find(|node| wanted && node.draining).map(|node| node.drain_by)
    }

    /// A replica that serves on a drained node serves on until another one serves in its place, at most until its time is
    /// over. Where no other has found a place by then it stops, and takes up whatever place there is.
    fn replace_replica(&mut self, row: &Endpoint, (job, by): (JobId, Timestamp), other: Option<(JobId, JobState)>) {
        if self.leaves(job).is_none() {
            // It was one too many, and so is who would have served for it.
            other.into_iter().for_each(|(other, _)| self.let_go(other));
            return;
        }
        let over = by <= self.now;
        match other {
            Some((_, JobState::Running)) => self.let_go(job),
            Some((_, JobState::Starting)) if over => self.let_go(job),
            Some(_) if !over => {}
            Some((other, _)) => {
                self.let_go(other);
                self.queue_elsewhere(job);
            }
            None => {
                let serves = self.state.jobs.get(&job).is_some_and(|job| job.state == JobState::Running);
                if over || !serves || !self.start_replica(row, Some(job)) {
                    self.queue_elsewhere(job);
                }
            }
        }
    }

    /// A replica has no state to carry over: it stops where it is, and queues again.
    fn queue_elsewhere(&mut self, job: JobId) {
        let Some(attempt) = self.state.jobs.get(&job).and_then(|job| job.current) else { return };
        let deadline = self.now.after(self.state.settings.stop_deadline);
        let order = StopOrder { kind: StopCause::Requeue, deadline, stop_step: None, must: false };
        self.set_goal(attempt, Goal::Stop, Some(order));
    }

    /// How many replicas there should be, of `have` that there are. While one of them waits for a place there is no room
    /// for more.
    fn aim(&mut self, row: &Endpoint, have: u32, waits: bool) -> u32 {
        let now = self.now;
        let load = self.state.serving.loads.entry(row.id).or_default();
        load.look(row.sequences, row.replicas.most.max(have), now);
        let requests = load.requests(now);
        let enough = load.sufficed(row.idle, now).map_or(have, |least| least.min(have));
        let mut aim = enough.clamp(row.replicas.least, row.replicas.most);
        if requests <= u64::from(have) * u64::from(row.sequences) || have >= row.replicas.most {
            load.over = None;
        } else if have == 0 {
            aim = aim.max(1);
        } else {
            let since = *load.over.get_or_insert(now);
            if now.since(since) >= OVER && !waits {
                load.over = Some(now);
                aim = aim.max(have + 1);
            }
        }
        aim
    }

    /// One replica more, where the tenant may have another job.
    fn start_replica(&mut self, row: &Endpoint, replaces: Option<JobId>) -> bool {
        let count = self.state.jobs_of.get(&row.tenant).copied().unwrap_or(0);
        if count >= self.state.settings.jobs_per_tenant {
            return false;
        }
        let id = JobId::from_raw(self.id());
        let owner = (row.tenant, row.project);
        let mut job = new_job(id, owner, row.name.clone(), Arc::new(replica_spec(row)), row.by, self.now);
        (job.endpoint, job.replaces) = (Some(row.id), replaces);
        self.state.event(&job, self.now, Happened::new("Serving", row.id.to_string(), "controller"));
        self.enlist(job);
        true
    }

    /// A replica ended without being told: it is tried again, the later the more often it ends soon after its start.
    pub(super) fn replica_ended(&mut self, job: &Job, reason: Reason, message: &str) {
        let started = job.current.and_then(|id| self.state.attempts.get(&id)).and_then(|row| row.started);
        let short = started.is_none_or(|at| self.now.since(at) < SHORT);
        if let Some(row) = job.endpoint.and_then(|id| self.state.serving.endpoints.get_mut(&id)) {
            row.short_ends = if short { row.short_ends.saturating_add(1) } else { 0 };
            row.retry_at = short.then(|| self.now.after(wait(row.short_ends)));
            // Those that wait for a place wait for this, too.
            let id = row.id;
            self.retell(|_, job| job.endpoint == Some(id));
        }
        if let Some(row) = self.state.jobs.get_mut(&job.id) {
            row.failures += 1;
        }
        if job.attempts >= TRIES {
            return self.finish_job(job.id, JobState::Failed, Some(reason), message.to_owned(), "node");
        }
        self.queue_again(job.id, Some(reason), message);
    }
}

/// How long a replica waits after so many that ended soon after their start.
fn wait(short_ends: u32) -> Nanos {
    let doubled = FIRST_WAIT.get().checked_shl(short_ends.saturating_sub(1).min(16));
    Nanos::new(doubled.unwrap_or(u64::MAX).min(LONGEST_WAIT.get()))
}

fn check_bounds(replicas: ReplicaBounds) -> Result<(), Refusal> {
    if replicas.least > replicas.most || replicas.most > MAX_REPLICAS {
        return Err(Refusal::field("replicas", format!("at least `min` and at most {MAX_REPLICAS} replicas")));
    }
    Ok(())
}

fn check_terms(price: Option<sluice_ledger::TokenPrice>, idle: Option<Nanos>) -> Result<(), Refusal> {
    let sane = |credits: Credits| (Credits::ZERO..=MAX_PRICE).contains(&credits);
    if price.is_some_and(|price| !sane(price.prompt) || !sane(price.completion)) {
        return Err(Refusal::field("price", "a price is 0 to 1000000 of the currency for a million tokens"));
    }
    let span = Nanos::from_secs(1)..=Nanos::from_secs(366 * 24 * 3600);
    if idle.is_some_and(|idle| !span.contains(&idle)) {
        return Err(Refusal::field("idle", "a replica is kept for 1 second to 366 days"));
    }
    Ok(())
}

fn replica_spec(row: &Endpoint) -> JobSpec {
    let StoredFile { digest, size } = row.file;
    JobSpec {
        kind: JobKind::Replica,
        command: Vec::new(),
        env: BTreeMap::new(),
        work_dir: None,
        inputs: Vec::new(),
        tasks: 1,
        resources: row.resources.clone(),
        priority: PRIORITY,
        max_run_time: None,
        retry: RetryPolicy { on_failure: TRIES, on_loss: TRIES },
        checkpoint: None,
        secrets: Vec::new(),
        network: NetworkMode::Loopback,
        sites: row.sites.clone(),
        labels: BTreeMap::new(),
        model: Some(ModelFile {
            digest,
            size,
            context: row.context,
            sequences: row.sequences,
            requantize: String::new(),
        }),
    }
}

/// A refusal of a replica's job in the words of the endpoint.
fn of_replica(refusal: Refusal) -> Refusal {
    let field = refusal.field.map(|field| {
        let plain = field.strip_prefix("spec.model.").or_else(|| field.strip_prefix("spec."));
        plain.unwrap_or(&field).to_owned()
    });
    Refusal { field, ..refusal }
}
