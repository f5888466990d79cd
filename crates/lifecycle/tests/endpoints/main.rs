//! Endpoints have as many replicas as their requests need, and each request is paid for once.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod drains;
#[path = "../support/mod.rs"]
mod support;

use std::collections::BTreeMap;

use proptest::prelude::*;
use sluice_ledger::{AccountKey, TokenPrice};
use sluice_lifecycle::model::{
    BudgetPolicy, EndpointState, InferenceState, JobKind, JobState, ModelInfo, ModelState, ReplicaBounds, StoredFile,
    TaskEnd,
};
use sluice_lifecycle::{
    Command, EndpointChange, ImportModel, ModelFound, NewEndpoint, NodeReport, OpenRequest, Refusal, Rows, Settings,
    Snapshot, State, TaskKey, UserCommand, step,
};
use sluice_types::{
    Bytes, Credits, Digest, EndpointId, JobId, KeyId, ModelId, Nanos, ProjectId, Reason, RequestId, TenantId,
};
use support::{Bench, WINDOW_COST, end, spec};

const FILE: StoredFile = StoredFile { digest: Digest::from_bytes([5; 32]), size: 100_000_000 };

fn import(bench: &mut Bench, name: &str) -> (ModelId, JobId) {
    let upload =
        UserCommand::RecordUpload { project: bench.project, digest: FILE.digest, size: FILE.size, complete: true };
    bench.user(upload).unwrap();
    let wanted = ImportModel {
        project: bench.project,
        name: name.parse().unwrap(),
        file: FILE,
        requantize: String::new(),
        resources: spec(None).resources,
    };
    let model = bench.user(UserCommand::ImportModel(Box::new(wanted))).unwrap().object.parse().unwrap();
    (model, bench.rows.jobs[0].id)
}

fn found() -> ModelFound {
    let info = ModelInfo { architecture: "llama".to_owned(), context: 2048, ..ModelInfo::default() };
    ModelFound { info, file: FILE }
}

/// A model that is ready, without the way there.
fn model(bench: &mut Bench) -> ModelId {
    model_with(bench, found())
}

fn model_with(bench: &mut Bench, found: ModelFound) -> ModelId {
    let (model, job) = import(bench, "smol");
    bench.plan();
    let key = begin(bench, job);
    bench.end(key);
    bench.command(Command::ModelChecked(model, Ok(found))).unwrap();
    model
}

fn wanted(bench: &Bench, model: ModelId, least: u32, most: u32) -> NewEndpoint {
    NewEndpoint {
        project: bench.project,
        name: "chat".parse().unwrap(),
        model,
        replicas: ReplicaBounds { least, most },
        resources: spec(None).resources,
        sites: Vec::new(),
        context: 0,
        sequences: 4,
        public: true,
        price: Some(TokenPrice { prompt: Credits::new(1_000_000), completion: Credits::new(2_000_000) }),
        idle: Nanos::from_secs(60),
    }
}

fn endpoint(bench: &mut Bench, least: u32, most: u32) -> EndpointId {
    let model = model(bench);
    let wanted = wanted(bench, model, least, most);
    bench.user(UserCommand::CreateEndpoint(Box::new(wanted))).unwrap().object.parse().unwrap()
}

fn load(bench: &mut Bench, endpoint: EndpointId, queued: u32, running: u32) {
    bench.command(Command::EndpointLoad { endpoint, queued, running }).unwrap();
}

/// Time passes with the load told each second.
fn loaded(bench: &mut Bench, endpoint: EndpointId, running: u32, seconds: u32) {
    for _ in 0..seconds {
        bench.pass(1);
        load(bench, endpoint, 0, running);
    }
}

fn replicas(bench: &Bench, endpoint: EndpointId) -> Vec<JobId> {
    let jobs = bench.state.replicas(endpoint).filter(|job| job.state != JobState::Cancelling);
    jobs.map(|job| job.id).collect()
}

fn begin(bench: &mut Bench, job: JobId) -> TaskKey {
    let key = bench.task(job);
    let started = bench.clock();
    bench.node_of(key, NodeReport::Running { key, started, step: 0, metrics: BTreeMap::new(), held: None });
    key
}

/// Places and starts everything that waits.
fn settle(bench: &mut Bench, endpoint: EndpointId) {
    bench.plan();
    for job in replicas(bench, endpoint) {
        if bench.job(job).state == JobState::Starting {
            begin(bench, job);
        }
    }
}

/// The replica's program ends by itself.
fn fail(bench: &mut Bench, job: JobId) {
    let key = bench.task(job);
    let windows = bench.state.lease(key.lease).unwrap().next_window;
    let signalled = TaskEnd { exit_code: None, signal: 9, reason: Some(Reason::Signalled), ..end(false) };
    bench.node_of(key, NodeReport::Ended { key, end: signalled, windows, step: 0 });
}

/// What was told to stop has stopped.
fn let_go(bench: &mut Bench, endpoint: EndpointId) {
    let stopping: Vec<_> =
        bench.state.replicas(endpoint).filter(|job| job.state == JobState::Cancelling).map(|job| job.id).collect();
    for job in stopping {
        let key = bench.task(job);
        bench.end(key);
    }
}

#[test]
fn contexts_are_as_long_as_their_memory_holds() {
    let mut bench = Bench::new();
    let mut found = found();
    (found.info.context, found.info.token) = (8192, Bytes::new(23_040));
    let model = model_with(&mut bench, found);
    let mut create = |name: &str, memory, context| {
        let mut wanted = wanted(&bench, model, 0, 1);
        (wanted.name, wanted.context, wanted.resources.memory) = (name.parse().unwrap(), context, Bytes::mib(memory));
        let made = bench.user(UserCommand::CreateEndpoint(Box::new(wanted)))?;
        Ok::<_, Refusal>(bench.state.endpoint(made.object.parse().unwrap()).unwrap().context)
    };
    // Four sequences and one place more: half of the memory for five contexts.
    assert_eq!(create("short", 512, 0), Ok(2304));
    assert_eq!(create("asked", 512, 2304), Ok(2304));
    assert_eq!(create("trained", 4096, 0), Ok(8192));
    for (memory, context) in [(512, 2305), (512, 8192), (16, 0)] {
        let refused = create("refused", memory, context).unwrap_err();
        assert_eq!(refused.field.as_deref(), Some("context"), "{refused:?}");
    }
}

#[test]
fn the_first_replica_waits_for_nothing_and_the_last_goes_when_idle() {
    let mut bench = Bench::new();
    let endpoint = endpoint(&mut bench, 0, 2);
    bench.pass(100);
    assert_eq!(replicas(&bench, endpoint), [], "no request, no replica, no lease, no bill");
    load(&mut bench, endpoint, 1, 0);
    let first = replicas(&bench, endpoint);
    assert_eq!(first.len(), 1, "the telling itself does it");
    let job = bench.job(first[0]);
    assert_eq!((job.spec.kind, job.endpoint), (JobKind::Replica, Some(endpoint)));
    assert_eq!(job.spec.model.as_ref().unwrap().digest, FILE.digest);
    settle(&mut bench, endpoint);
    assert_eq!(bench.job(first[0]).state, JobState::Running);
    loaded(&mut bench, endpoint, 1, 100);
    load(&mut bench, endpoint, 0, 0);
    bench.pass(59);
    assert_eq!(replicas(&bench, endpoint), first);
    bench.pass(2);
    assert_eq!(replicas(&bench, endpoint), []);
    let_go(&mut bench, endpoint);
    bench.pass(1);
    assert_eq!(bench.state.replicas(endpoint).count(), 0);
    bench.check_world();
}

#[test]
fn more_come_under_load_and_go_newest_first() {
    let mut bench = Bench::new();
    let endpoint = endpoint(&mut bench, 0, 3);
    load(&mut bench, endpoint, 9, 0);
    settle(&mut bench, endpoint);
    loaded(&mut bench, endpoint, 9, 1);
    assert_eq!(replicas(&bench, endpoint).len(), 1, "not before two seconds");
    loaded(&mut bench, endpoint, 9, 2);
    assert_eq!(replicas(&bench, endpoint).len(), 2);
    loaded(&mut bench, endpoint, 9, 10);
    assert_eq!(replicas(&bench, endpoint).len(), 2, "while one waits for a place there is no room for more");
    settle(&mut bench, endpoint);
    loaded(&mut bench, endpoint, 9, 3);
    settle(&mut bench, endpoint);
    let all = replicas(&bench, endpoint);
    assert_eq!(all.len(), 3);
    loaded(&mut bench, endpoint, 100, 10);
    assert_eq!(replicas(&bench, endpoint).len(), 3, "never more than the most");
    // Five need two of them.
    loaded(&mut bench, endpoint, 5, 59);
    assert_eq!(replicas(&bench, endpoint).len(), 3);
    loaded(&mut bench, endpoint, 5, 3);
    assert_eq!(replicas(&bench, endpoint), all[..2]);
    // A load that is not told any more counts as none.
    bench.pass(75);
    assert_eq!(replicas(&bench, endpoint), []);
    bench.check_world();
}

#[test]
fn a_peak_within_the_idle_time_keeps_what_it_needed() {
    let mut bench = Bench::new();
    let endpoint = endpoint(&mut bench, 0, 2);
    load(&mut bench, endpoint, 8, 0);
    settle(&mut bench, endpoint);
    loaded(&mut bench, endpoint, 8, 3);
    settle(&mut bench, endpoint);
    for _ in 0..5 {
        loaded(&mut bench, endpoint, 1, 50);
        loaded(&mut bench, endpoint, 8, 1);
        assert_eq!(replicas(&bench, endpoint).len(), 2);
    }
}

#[test]
fn the_least_are_there_without_requests_and_changes_act_at_once() {
    let mut bench = Bench::new();
    let endpoint = endpoint(&mut bench, 1, 3);
    assert_eq!(replicas(&bench, endpoint).len(), 1);
    let change = |least, most| EndpointChange { replicas: Some(ReplicaBounds { least, most }), ..Default::default() };
    bench.user(UserCommand::UpdateEndpoint(endpoint, Some(1), change(3, 3))).unwrap();
    assert_eq!(replicas(&bench, endpoint).len(), 3);
    let stale = bench.user(UserCommand::UpdateEndpoint(endpoint, Some(1), change(1, 1))).unwrap_err();
    assert_eq!(stale.reason, Reason::EtagMismatch);
    bench.user(UserCommand::UpdateEndpoint(endpoint, Some(2), change(0, 1))).unwrap();
    assert_eq!(replicas(&bench, endpoint).len(), 1);
    let wrong = bench.user(UserCommand::UpdateEndpoint(endpoint, None, change(2, 1))).unwrap_err();
    assert_eq!(wrong.field.as_deref(), Some("replicas"));
    let wrong = bench.user(UserCommand::UpdateEndpoint(endpoint, None, change(0, 65))).unwrap_err();
    assert_eq!(wrong.field.as_deref(), Some("replicas"));
}

#[test]
fn a_replica_that_ends_by_itself_is_tried_again_the_later_the_more_often() {
    let mut bench = Bench::new();
    let endpoint = endpoint(&mut bench, 1, 1);
    let job = replicas(&bench, endpoint)[0];
    for wait in [1, 2, 4, 8, 16, 30, 30] {
        settle(&mut bench, endpoint);
        assert_eq!(bench.job(job).state, JobState::Running);
        bench.pass(1);
        fail(&mut bench, job);
        bench.check_world();
        bench.pass(wait - 1);
        bench.plan();
        assert_eq!(bench.job(job).state, JobState::Pending, "waits {wait} s");
        bench.pass(1);
        bench.check_world();
    }
    settle(&mut bench, endpoint);
    bench.pass(10);
    fail(&mut bench, job);
    settle(&mut bench, endpoint);
    assert_eq!(bench.job(job).state, JobState::Running, "one that served for a while comes back at once");
    assert_eq!(replicas(&bench, endpoint), [job]);
}

#[test]
fn one_that_waits_for_a_place_is_held_back_with_the_others() {
    let mut bench = Bench::new();
    let endpoint = endpoint(&mut bench, 1, 2);
    settle(&mut bench, endpoint);
    let first = replicas(&bench, endpoint)[0];
    let two = EndpointChange { replicas: Some(ReplicaBounds { least: 2, most: 2 }), ..EndpointChange::default() };
    bench.user(UserCommand::UpdateEndpoint(endpoint, None, two)).unwrap();
    fail(&mut bench, first);
    bench.check_world();
    bench.plan();
    let states =
        |bench: &Bench| replicas(bench, endpoint).into_iter().map(|job| bench.job(job).state).collect::<Vec<_>>();
    assert_eq!(states(&bench), [JobState::Pending, JobState::Pending]);
    bench.pass(2);
    bench.check_world();
    settle(&mut bench, endpoint);
    assert_eq!(states(&bench), [JobState::Running, JobState::Running]);
}

#[test]
fn one_that_leaves_with_status_0_has_ended_too() {
    let mut bench = Bench::new();
    let endpoint = endpoint(&mut bench, 1, 1);
    settle(&mut bench, endpoint);
    let job = replicas(&bench, endpoint)[0];
    let key = bench.task(job);
    bench.pass(20);
    bench.end(key);
    assert_eq!((bench.job(job).state, bench.job(job).failures), (JobState::Pending, 1));
}

#[test]
fn a_lost_replica_begins_elsewhere_and_what_it_served_stays_paid() {
    let mut bench = Bench::new();
    let endpoint = endpoint(&mut bench, 1, 1);
    settle(&mut bench, endpoint);
    let job = replicas(&bench, endpoint)[0];
    let key = bench.task(job);
    let node = bench.state.lease(key.lease).unwrap().device.node;
    (0..3).for_each(|_| bench.window(key));
    bench.silence(node, 20);
    settle(&mut bench, endpoint);
    assert_ne!(bench.state.lease(bench.task(job).lease).unwrap().device.node, node);
    assert_eq!((bench.job(job).spent.units(), bench.job(job).credited.units()), (3 * WINDOW_COST, 0));
    bench.check_world();
}

#[test]
fn an_endpoint_is_deleted_with_its_replicas_and_then_its_model() {
    let mut bench = Bench::new();
    let endpoint = endpoint(&mut bench, 2, 2);
    settle(&mut bench, endpoint);
    let model = bench.state.endpoint(endpoint).unwrap().model;
    let refused = bench.user(UserCommand::DeleteModel(model)).unwrap_err();
    assert_eq!(refused.reason, Reason::WrongState);
    bench.user(UserCommand::DeleteEndpoint(endpoint)).unwrap();
    assert_eq!(bench.state.endpoint(endpoint).unwrap().state, EndpointState::Deleting);
    assert_eq!(
        bench.command(Command::EndpointLoad { endpoint, queued: 5, running: 0 }).unwrap_err().reason,
        Reason::WrongState
    );
    let held = wanted(&bench, model, 0, 1);
    assert_eq!(bench.user(UserCommand::CreateEndpoint(Box::new(held))).unwrap_err().reason, Reason::AlreadyExists);
    bench.pass(1);
    assert_eq!(replicas(&bench, endpoint), []);
    let_go(&mut bench, endpoint);
    bench.pass(1);
    assert_eq!(bench.state.endpoint(endpoint), None);
    let again = wanted(&bench, model, 0, 1);
    bench.user(UserCommand::CreateEndpoint(Box::new(again))).unwrap();
}

#[test]
fn without_money_replicas_wait_and_with_it_they_come_back() {
    let mut bench = Bench::new();
    let endpoint = endpoint(&mut bench, 1, 1);
    bench.budget(8, 0, BudgetPolicy::Suspend);
    settle(&mut bench, endpoint);
    let job = replicas(&bench, endpoint)[0];
    let key = bench.task(job);
    (0..7).for_each(|_| bench.window(key));
    assert_eq!(bench.job(job).state, JobState::Suspending);
    bench.end(key);
    bench.pass(1);
    bench.plan();
    assert_eq!((bench.job(job).state, bench.job(job).reason), (JobState::Pending, Some(Reason::BudgetExhausted)));
    bench.budget(80, 0, BudgetPolicy::Suspend);
    settle(&mut bench, endpoint);
    assert_eq!(bench.job(job).state, JobState::Running);
    let suspended = bench.user(UserCommand::Suspend(job, None)).unwrap_err();
    assert_eq!(suspended.reason, Reason::WrongState);
}

#[test]
fn a_model_that_cannot_be_read_fails_with_its_reason() {
    let mut bench = Bench::new();
    let (model, job) = import(&mut bench, "broken");
    assert_eq!(
        bench.user(UserCommand::CreateEndpoint(Box::new(wanted(&bench, model, 0, 1)))).unwrap_err().reason,
        Reason::WrongState
    );
    bench.plan();
    let key = begin(&mut bench, job);
    let bad =
        TaskEnd { exit_code: Some(1), reason: Some(Reason::ExitStatus), message: "no GGUF".to_owned(), ..end(false) };
    bench.node_of(key, NodeReport::Ended { key, end: bad, windows: 0, step: 0 });
    let row = bench.state.model(model).unwrap().clone();
    assert_eq!(
        (row.state, row.reason, row.message.as_str()),
        (ModelState::Failed, Some(Reason::ExitStatus), "no GGUF")
    );
    assert_eq!(bench.command(Command::ModelChecked(model, Ok(found()))).unwrap_err().reason, Reason::WrongState);
    bench.user(UserCommand::DeleteModel(model)).unwrap();
    import(&mut bench, "broken");
}

#[test]
fn a_models_file_is_kept_while_it_is_named_and_what_is_not_there_is_no_model() {
    let mut bench = Bench::new();
    let model = model(&mut bench);
    bench.skip(30 * 24 * 3600);
    bench.pass(61);
    assert!(bench.state.upload(bench.project, FILE.digest).is_some());
    bench.user(UserCommand::DeleteModel(model)).unwrap();
    bench.skip(8 * 24 * 3600);
    bench.pass(61);
    assert!(bench.state.upload(bench.project, FILE.digest).is_none(), "control: it goes when nothing names it");

    let (model, job) = import(&mut bench, "lost");
    bench.plan();
    let key = begin(&mut bench, job);
    bench.end(key);
    let file = StoredFile { digest: Digest::from_bytes([6; 32]), size: 1 };
    bench.command(Command::ModelChecked(model, Ok(ModelFound { file, ..found() }))).unwrap();
    assert_eq!(bench.state.model(model).unwrap().state, ModelState::Failed);
}

/// Another tenant with so much money.
fn stranger(bench: &mut Bench, credits: i64) -> (TenantId, ProjectId) {
    let tenant = bench.user(UserCommand::CreateTenant("caller".parse().unwrap())).unwrap().object.parse().unwrap();
    let project = bench.user(UserCommand::CreateProject(tenant, "app".parse().unwrap())).unwrap();
    let amount = Credits::new(credits);
    bench.user(UserCommand::Deposit { tenant, amount, note: String::new() }).unwrap();
    (tenant, project.object.parse().unwrap())
}

fn open(
    bench: &mut Bench,
    endpoint: EndpointId,
    who: (TenantId, ProjectId),
    tokens: (u64, u64),
) -> Result<RequestId, Refusal> {
    let (prompt_ceiling, completion_ceiling) = tokens;
    let key = KeyId::from_raw(9);
    let request = OpenRequest { endpoint, tenant: who.0, project: who.1, key, prompt_ceiling, completion_ceiling };
    bench.command(Command::OpenRequest(request)).map(|answer| answer.object.parse().unwrap())
}

fn settled(bench: &mut Bench, id: RequestId, prompt_tokens: u64, completion_tokens: u64) -> Result<(), Refusal> {
    bench.command(Command::SettleRequest { id, prompt_tokens, completion_tokens, cached_tokens: 0 }).map(drop)
}

fn funds(bench: &Bench, tenant: TenantId) -> (i64, i64) {
    let account = bench.state.books().account(&AccountKey::Funds(tenant));
    (account.balance(), account.available())
}

#[test]
fn a_request_is_held_for_and_pays_exactly_what_was_delivered_once() {
    let mut bench = Bench::new();
    let endpoint = endpoint(&mut bench, 0, 1);
    let caller = stranger(&mut bench, 1000);
    let owner = funds(&bench, bench.tenant).0;
    let id = open(&mut bench, endpoint, caller, (100, 50)).unwrap();
    assert_eq!(funds(&bench, caller.0), (1000, 800));
    settled(&mut bench, id, 10, 20).unwrap();
    assert_eq!(funds(&bench, caller.0), (950, 950));
    assert_eq!(funds(&bench, bench.tenant).0, owner + 50, "what callers pay is the owner's");
    let row = bench.rows.inference[0].clone();
    assert_eq!((row.state, row.amount.units(), row.hold), (InferenceState::Settled, 50, None));
    assert_eq!(settled(&mut bench, id, 10, 20).unwrap_err().reason, Reason::WrongState);
    assert_eq!(bench.command(Command::VoidRequest(id, Reason::NodeLost)).unwrap_err().reason, Reason::WrongState);
    assert_eq!(funds(&bench, caller.0), (950, 950));
    // Beyond its ceiling nobody pays.
    let id = open(&mut bench, endpoint, caller, (100, 50)).unwrap();
    settled(&mut bench, id, 1000, 500).unwrap();
    assert_eq!(funds(&bench, caller.0), (750, 750));
    let totals = bench.state.endpoint(endpoint).unwrap().totals;
    assert_eq!((totals.settled, totals.voided, totals.amount.units()), (2, 0, 250));
}

#[test]
fn what_the_platform_cuts_is_credited_whole() {
    let mut bench = Bench::new();
    let endpoint = endpoint(&mut bench, 0, 1);
    let caller = stranger(&mut bench, 1000);
    let id = open(&mut bench, endpoint, caller, (100, 50)).unwrap();
    bench.command(Command::VoidRequest(id, Reason::NodeLost)).unwrap();
    assert_eq!(funds(&bench, caller.0), (1000, 1000));
    let row = bench.rows.inference[0].clone();
    assert_eq!((row.state, row.reason), (InferenceState::Voided, Some(Reason::NodeLost)));
    assert_eq!(settled(&mut bench, id, 1, 1).unwrap_err().reason, Reason::WrongState);
    assert_eq!(bench.state.inference_requests().count(), 0);
}

#[test]
fn own_requests_and_those_without_a_price_cost_nothing_and_are_written_down() {
    let mut bench = Bench::new();
    let endpoint = endpoint(&mut bench, 0, 1);
    let own = (bench.tenant, bench.project);
    let before = funds(&bench, own.0);
    let id = open(&mut bench, endpoint, own, (100, 50)).unwrap();
    assert_eq!(funds(&bench, own.0), before);
    settled(&mut bench, id, 10, 20).unwrap();
    assert_eq!(funds(&bench, own.0), before);
    assert_eq!(bench.rows.inference[0].completion_tokens, 20);
}

#[test]
fn who_may_not_call_or_cannot_pay_opens_nothing() {
    let mut bench = Bench::new();
    let endpoint = endpoint(&mut bench, 0, 1);
    let caller = stranger(&mut bench, 199);
    let poor = open(&mut bench, endpoint, caller, (100, 50)).unwrap_err();
    assert_eq!(poor.reason, Reason::InsufficientFunds);
    assert_eq!((funds(&bench, caller.0), bench.rows.inference.len()), ((199, 199), 0));
    open(&mut bench, endpoint, caller, (99, 50)).unwrap();
    let theirs = (caller.0, bench.project);
    let other = open(&mut bench, endpoint, theirs, (1, 1)).unwrap_err();
    assert_eq!(other.reason, Reason::NotFound, "a project of somebody else");
    let private = EndpointChange { public: Some(false), ..EndpointChange::default() };
    bench.user(UserCommand::UpdateEndpoint(endpoint, None, private)).unwrap();
    assert_eq!(open(&mut bench, endpoint, caller, (1, 1)).unwrap_err().reason, Reason::NotFound);
    let own = (bench.tenant, bench.project);
    open(&mut bench, endpoint, own, (1, 1)).unwrap();
    bench.user(UserCommand::DeleteEndpoint(endpoint)).unwrap();
    assert_eq!(open(&mut bench, endpoint, own, (1, 1)).unwrap_err().reason, Reason::NotFound);
}

#[test]
fn a_callers_budget_counts_its_requests() {
    let mut bench = Bench::new();
    let endpoint = endpoint(&mut bench, 0, 1);
    let caller = stranger(&mut bench, 100_000);
    let (amount, policy) = (Credits::new(300), BudgetPolicy::Suspend);
    let budget =
        UserCommand::SetBudget { tenant: caller.0, project: Some(caller.1), amount, period_seconds: 0, policy };
    bench.user(budget).unwrap();
    let id = open(&mut bench, endpoint, caller, (100, 50)).unwrap();
    let refused = open(&mut bench, endpoint, caller, (100, 50)).unwrap_err();
    assert_eq!(refused.reason, Reason::BudgetExhausted);
    assert_eq!(funds(&bench, caller.0), (100_000, 99_800), "the hold on the funds went back with it");
    settled(&mut bench, id, 50, 0).unwrap();
    let (account, spent) = bench.budget_now();
    assert_eq!((account.available(), spent), (250, 50));
    open(&mut bench, endpoint, caller, (100, 50)).unwrap();
}

#[test]
fn a_tenant_has_no_more_than_a_thousand_and_some_open() {
    let mut bench = Bench::new();
    let endpoint = endpoint(&mut bench, 0, 1);
    let caller = stranger(&mut bench, 1_000_000);
    for _ in 0..1024 {
        open(&mut bench, endpoint, caller, (1, 1)).unwrap();
    }
    assert_eq!(open(&mut bench, endpoint, caller, (1, 1)).unwrap_err().reason, Reason::Overloaded);
    let own = (bench.tenant, bench.project);
    let id = open(&mut bench, endpoint, own, (1, 1)).unwrap();
    settled(&mut bench, id, 1, 1).unwrap();
    let id = bench.state.inference_requests().next().unwrap().id;
    settled(&mut bench, id, 1, 1).unwrap();
    open(&mut bench, endpoint, caller, (1, 1)).unwrap();
}

/// The controller starts again, with what concerns requests.
fn restart(bench: &mut Bench) {
    let rows = Rows {
        tenants: bench.state.tenants().cloned().collect(),
        projects: bench.state.projects().cloned().collect(),
        models: bench.state.models().cloned().collect(),
        endpoints: bench.state.endpoints().cloned().collect(),
        inference: bench.state.inference_requests().cloned().collect(),
        accounts: bench.state.books().accounts().cloned().collect(),
        holds: bench.state.books().holds().cloned().collect(),
        ..Rows::default()
    };
    let snapshot = Snapshot { rows, last_id: 0, last_event: bench.state.last_event() };
    bench.state = State::load(snapshot, Settings::default(), bench.now);
}

#[test]
fn what_is_open_at_a_start_is_credited_by_the_first_tick() {
    let mut bench = Bench::new();
    let endpoint = endpoint(&mut bench, 0, 1);
    let caller = stranger(&mut bench, 1000);
    let id = open(&mut bench, endpoint, caller, (100, 50)).unwrap();
    restart(&mut bench);
    let mut mint = sluice_lifecycle::Mint::new(u64::MAX >> 8, 1);
    let request = OpenRequest {
        endpoint,
        tenant: caller.0,
        project: caller.1,
        key: KeyId::from_raw(9),
        prompt_ceiling: 100,
        completion_ceiling: 50,
    };
    // A request of the new gateway, before the first tick, is not one of those.
    let commands = vec![Command::OpenRequest(request), Command::Tick];
    let (answers, rows) = step(&mut bench.state, commands, bench.now, &mut mint);
    let new: RequestId = answers[0].as_ref().unwrap().object.parse().unwrap();
    let lost = rows.inference.iter().find(|row| row.id == id).unwrap();
    assert_eq!((lost.state, lost.reason), (InferenceState::Voided, Some(Reason::GatewayLost)));
    assert_eq!(bench.state.inference_request(new).unwrap().state, InferenceState::Open);
    assert_eq!(funds(&bench, caller.0), (1000, 800));
    bench.state.books().audit().unwrap();
}

/// What a random caller does.
#[derive(Debug, Clone, Copy)]
enum Act {
    Open { who: usize, prompt: u64, completion: u64 },
    Settle { which: usize, prompt: u64, completion: u64 },
    Void { which: usize },
    Restart,
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let tokens = 0..200u64;
    let act = prop_oneof![
        4 => (0..3usize, tokens.clone(), tokens.clone())
            .prop_map(|(who, prompt, completion)| Act::Open { who, prompt, completion }),
        4 => (0..12usize, tokens.clone(), tokens)
            .prop_map(|(which, prompt, completion)| Act::Settle { which, prompt, completion }),
        2 => (0..12usize).prop_map(|which| Act::Void { which }),
        1 => Just(Act::Restart),
    ];
    prop::collection::vec(act, 0..60)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_requests_conserve_money_and_pay_once(acts in acts()) {
        let mut bench = Bench::new();
        let endpoint = endpoint(&mut bench, 0, 1);
        let stranger = stranger(&mut bench, 3000);
        let other = {
            let tenant = bench.user(UserCommand::CreateTenant("second".parse().unwrap())).unwrap().object.parse().unwrap();
            let project = bench.user(UserCommand::CreateProject(tenant, "app".parse().unwrap())).unwrap();
            bench.user(UserCommand::Deposit { tenant, amount: Credits::new(500), note: String::new() }).unwrap();
            (tenant, project.object.parse().unwrap())
        };
        let callers = [stranger, other, (bench.tenant, bench.project)];
        let before = callers.map(|who| funds(&bench, who.0).0);
        // What is expected, kept apart: each request's ceilings and caller, and what each caller has paid.
        let mut known: Vec<(RequestId, usize, u64, u64, bool)> = Vec::new();
        let mut paid = [0i64; 3];
        for act in acts {
            match act {
                Act::Open { who, prompt, completion } => {
                    let ceiling = if who == 2 { 0 } else { i64::try_from(prompt + 2 * completion).unwrap() };
                    let room = funds(&bench, callers[who].0).1 >= ceiling;
                    let opened = open(&mut bench, endpoint, callers[who], (prompt, completion));
                    prop_assert_eq!(opened.is_ok(), room);
                    known.extend(opened.ok().map(|id| (id, who, prompt, completion, true)));
                }
                Act::Settle { which, prompt, completion } => {
                    let Some(row) = known.get_mut(which) else { continue };
                    let done = settled(&mut bench, row.0, prompt, completion);
                    prop_assert_eq!(done.is_ok(), std::mem::take(&mut row.4));
                    if done.is_ok() && row.1 != 2 {
                        paid[row.1] += i64::try_from(prompt.min(row.2) + 2 * completion.min(row.3)).unwrap();
                    }
                }
                Act::Void { which } => {
                    let Some(row) = known.get_mut(which) else { continue };
                    let done = bench.command(Command::VoidRequest(row.0, Reason::NodeLost));
                    prop_assert_eq!(done.is_ok(), std::mem::take(&mut row.4));
                }
                Act::Restart => {
                    restart(&mut bench);
                    bench.command(Command::Tick).unwrap();
                    known.iter_mut().for_each(|row| row.4 = false);
                }
            }
            let held: i64 = known.iter().filter(|row| row.4 && row.1 != 2).map(|row| i64::try_from(row.2 + 2 * row.3).unwrap()).sum();
            for who in 0..2 {
                prop_assert_eq!(funds(&bench, callers[who].0).0, before[who] - paid[who]);
            }
            let promised: i64 = (0..2).map(|who| { let (has, free) = funds(&bench, callers[who].0); has - free }).sum();
            prop_assert_eq!(promised, held, "held for what is open, and for nothing else");
            prop_assert_eq!(funds(&bench, bench.tenant).0, before[2] + paid[0] + paid[1], "what callers pay is the owner's");
        }
        prop_assert_eq!(bench.state.endpoint(endpoint).unwrap().totals.amount.units(), paid[0] + paid[1]);
        prop_assert_eq!(bench.state.inference_requests().count(), known.iter().filter(|row| row.4).count());
    }
}
