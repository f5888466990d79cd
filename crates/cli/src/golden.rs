//! Golden outputs of made-up messages, and the shape of the command line.

use clap::FromArgMatches as _;
use prost_types::Timestamp;
use sluice_proto::v1;

use crate::args::{Global, UserCommand, WaitFor};
use crate::command::describe::{Description, text};
use crate::output::{Format, Rendered, Style, View, Width, document, list, one};
use crate::view::{
    BalanceView, BudgetView, CheckpointView, ClassView, DeviceView, EndpointView, EventView, ExplanationView,
    InferenceRequestView, JobView, KeyView, ModelView, NodeView, OrderView, PriceBookView, ProjectView, QuotaView,
    ReceiptView, SiteView, TransferView, WindowView, cost_line,
};

/// 2026-11-22T10:00:00Z.
const THEN: i64 = 1_795_341_600;

fn at(seconds: i64) -> Option<Timestamp> {
    Some(Timestamp { seconds: THEN + seconds, nanos: 0 })
}

fn how(format: Format) -> Rendered {
    let now = jiff::Timestamp::from_second(THEN + 3_725).unwrap();
    Rendered { format, style: Style::plain(), now }
}

fn all<V: View>(items: &[V]) -> String {
    [Format::Table, Format::Wide, Format::Name, Format::Json].map(|format| list(items, how(format)).unwrap()).join("\n")
}

pub(crate) fn job(state: v1::JobState) -> v1::Job {
    let spec = v1::JobSpec {
        command: vec!["./train".into(), "--steps".into(), "100".into()],
        env: [("SEED".to_owned(), "7".to_owned())].into(),
        work_dir: Some(v1::BlobRef { digest: "ab".repeat(32), size_bytes: 2048, path: String::new() }),
        tasks: 1,
        resources: Some(v1::TaskResources {
            device_class: "cpu".into(),
            milli: 500,
            memory_bytes: 512 << 20,
            host_core_milli: 100,
            host_memory_bytes: 64 << 20,
        }),
        max_run_time: Some(prost_types::Duration { seconds: 1200, nanos: 0 }),
        retry: Some(v1::RetryPolicy { on_failure: 1, on_loss: Some(100) }),
        checkpoint: Some(v1::CheckpointPolicy {
            capture: Some(v1::checkpoint_policy::Capture::StateProvider(v1::StateProvider {})),
            every_steps: 10,
            ..Default::default()
        }),
        labels: [("team".to_owned(), "ml".to_owned())].into(),
        ..Default::default()
    };
    v1::Job {
        name: "tenants/acme/projects/default/jobs/job-000000000002d".into(),
        display_name: "train-1".into(),
        spec: Some(spec),
        state: state.into(),
        etag: "7".into(),
        generation: 2,
        attempts: 2,
        losses: 1,
        site: "sites/site-a".into(),
        tasks: vec![v1::Task {
            node: "sites/site-a/nodes/node-1".into(),
            lease: "lse-000000000003e".into(),
            state: "running".into(),
            ..Default::default()
        }],
        step: 120,
        metrics: [("loss".to_owned(), 2.25)].into(),
        checkpoint: Some(checkpoint()),
        spent_credits: 1_234_567,
        credited_credits: 100,
        held_credits: 5_000_000,
        hourly_credits: 2_500_000,
        create_time: at(0),
        start_time: at(5),
        run_time: Some(prost_types::Duration { seconds: 725, nanos: 500_000_000 }),
        migration: Some(v1::Migration {
            id: "mig-000000000001a".into(),
            from_site: "sites/site-b".into(),
            to_site: "sites/site-a".into(),
            phase: "done".into(),
            cause: "tenant".into(),
            step: 60,
            start_time: at(60),
            end_time: at(63),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn checkpoint() -> v1::Checkpoint {
    v1::Checkpoint {
        id: "ckp-000000000004f".into(),
        generation: 2,
        step: 110,
        manifest: "cd".repeat(32),
        size_bytes: 3_500_000,
        sites: vec![
            v1::CheckpointSite { site: "sites/site-a".into(), state: "sealed".into() },
            v1::CheckpointSite { site: "sites/site-b".into(), state: "copying".into() },
        ],
        create_time: at(600),
        durable: false,
    }
}

fn events() -> Vec<EventView> {
    let event = |sequence, kind: &str, reason: &str, message: &str| {
        EventView::from(&v1::Event {
            sequence,
            time: at(i64::try_from(sequence).unwrap() * 10),
            job: "job-000000000002d".into(),
            kind: kind.into(),
            reason: reason.into(),
            message: message.into(),
            actor: "planner".into(),
        })
    };
    vec![event(1, "Submitted", "", ""), event(2, "Lost", "NODE_LOST", "node-1 \x1b[31mis gone\nfor good")]
}

fn explanation() -> ExplanationView {
    let change = |what: &str, amount, message: &str| v1::Change { what: what.into(), amount, message: message.into() };
    ExplanationView::new(
        "tenants/acme/projects/default/jobs/job-000000000002d",
        &v1::ExplainJobResponse {
            reason: "NO_FREE_SHARE".into(),
            message: "the largest free share of class cpu is 250m".into(),
            changes: vec![
                change("milli", -250, "ask for 250m"),
                change("memory_bytes", -(64 << 20), "ask for less memory"),
                change("funds", 1_500_000, "deposit"),
                change("node", 1, "add a node"),
            ],
            ahead: 3,
            quota: Some(v1::QuotaShortage {
                quota: "tenants/acme/quotas/site-a/cpu".into(),
                level: "pool".into(),
                asked_milli: 500,
                missing_milli: 250,
            }),
        },
    )
}

fn receipt() -> v1::Receipt {
    let lease = |lease: &str, site: &str, amount_credits, gap_ns| v1::ReceiptLease {
        lease: lease.into(),
        attempt: "att-0000000000001".into(),
        site: site.into(),
        node: format!("{site}/nodes/node-1"),
        milli: 500,
        billed_milli: 500,
        price_version: "prc-0000000000001".into(),
        windows: 12,
        billed_ns: 120_000_000_000,
        gap_ns,
        amount_credits,
        refused_windows: 0,
        started_ns: Some(3_600_000_000_000),
    };
    v1::Receipt {
        job: "tenants/acme/projects/default/jobs/job-000000000002d".into(),
        leases: vec![
            lease("lse-000000000003e", "sites/site-a", 1_000_000, 0),
            lease("lse-000000000003f", "sites/site-b", 234_567, 10_000_000_000),
        ],
        credits: vec![v1::CreditLine {
            lease: "lse-000000000003e".into(),
            from_sequence: 10,
            windows: 2,
            amount_credits: 100,
            reason: "NODE_LOST".into(),
        }],
        gross_credits: 1_234_567,
        credited_credits: 100,
        net_credits: 1_234_467,
        held_credits: 0,
        r#final: true,
        checkpoints: 11,
        migrations: 1,
    }
}

#[test]
fn jobs_in_every_form() {
    let mut pending = job(v1::JobState::Pending);
    pending.reason = "NO_FREE_SHARE".into();
    pending.message = "the largest free share is 250m".into();
    (pending.site, pending.tasks, pending.checkpoint, pending.migration) = Default::default();
    let views = [JobView::from(&job(v1::JobState::Running)), JobView::from(&pending)];
    insta::assert_snapshot!("jobs", all(&views));
    insta::assert_snapshot!("job_yaml", one(&views[0], how(Format::Yaml)).unwrap());
    insta::assert_snapshot!("job_cost", cost_line(&views[0]));
    let empty = JobView::from(&v1::Job::default());
    insta::assert_snapshot!("job_empty", one(&empty, how(Format::Wide)).unwrap());
}

#[test]
fn a_description_shows_all_that_is_known() {
    let description = Description {
        job: JobView::from(&job(v1::JobState::Running)),
        checkpoints: vec![CheckpointView::from(&checkpoint())],
        events: events(),
        waits: Some(explanation()),
    };
    insta::assert_snapshot!("describe", text(&description, how(Format::Table)));
    let json = document("JobDescription", &description, Format::Json).unwrap();
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&json["apiVersion"], &json["kind"]), (&"sluice.dev/v1".into(), &"JobDescription".into()));
    assert_eq!(json["job"]["spent"]["credits"], 1_234_567);
    assert_eq!(json["job"]["spent"]["text"], "1.234567");
}

#[test]
fn no_form_lets_the_words_of_others_steer_the_terminal() {
    let nasty = "a\x1b[31mb\u{9b}31mc\u{202e}d\u{2028}e\u{7f}\r\n- f: g\0";
    let event = EventView::from(&v1::Event { message: nasty.into(), kind: nasty.into(), ..Default::default() });
    for format in [Format::Table, Format::Wide, Format::Name, Format::Json, Format::Yaml] {
        let text = list(std::slice::from_ref(&event), how(format)).unwrap();
        assert!(text.chars().all(|c| c == '\n' || !c.is_control()), "{format:?} {text:?}");
        assert!(!text.contains(['\u{202e}', '\u{2028}']), "{format:?} {text:?}");
    }
    let json: serde_json::Value = serde_json::from_str(&list(&[event], how(Format::Json)).unwrap()).unwrap();
    assert_eq!(json["items"][0]["message"], nasty);
}

#[test]
fn checkpoints_events_and_explanations() {
    insta::assert_snapshot!("checkpoints", all(&[CheckpointView::from(&checkpoint())]));
    insta::assert_snapshot!("events", all(&events()));
    insta::assert_snapshot!("why", explanation().text(Style::plain()));
    insta::assert_snapshot!("why_json", document("Explanation", &explanation(), Format::Json).unwrap());
    let never =
        v1::ExplainJobResponse { reason: "NEVER_FITS".into(), message: "too large".into(), ..Default::default() };
    insta::assert_snapshot!("why_never", ExplanationView::new("j", &never).text(Style::plain()));
    let runs = ExplanationView::new("j", &v1::ExplainJobResponse::default());
    assert_eq!(runs.text(Style::plain()), "it does not wait\n");
}

#[test]
fn the_fleet() {
    let site = v1::Site {
        name: "sites/site-a".into(),
        ready_nodes: 2,
        vault_connected: true,
        create_time: at(0),
        ..Default::default()
    };
    let mut node = v1::Node {
        name: "sites/site-a/nodes/node-1".into(),
        last_seen: at(3_720),
        generation: 3,
        ..Default::default()
    };
    node.set_state(v1::NodeState::Ready);
    let lost = v1::Node {
        state: v1::NodeState::Lost.into(),
        cordoned: true,
        advisory: true,
        reason: "NODE_LOST".into(),
        ..node.clone()
    };
    let device = v1::Device {
        name: "sites/site-a/nodes/node-1/devices/0".into(),
        device_class: "cpu".into(),
        memory_bytes: 2 << 30,
        core_milli: 1000,
        leased_milli: 500,
        idle_milli: 400,
        system_milli: 100,
        leased_memory_bytes: 512 << 20,
        health: "healthy".into(),
        ..Default::default()
    };
    let class = v1::DeviceClass { name: "cpu".into(), devices: 4, memory_bytes: 2 << 30, core_milli: 1000 };
    insta::assert_snapshot!("sites", all(&[SiteView::from(&site)]));
    insta::assert_snapshot!("nodes", all(&[NodeView::from(&node), NodeView::from(&lost)]));
    insta::assert_snapshot!("devices", all(&[DeviceView::from(&device)]));
    insta::assert_snapshot!("classes", all(&[ClassView::from(&class)]));
}

#[test]
fn money_in_every_form() {
    let balance = v1::Balance {
        tenant: "tenants/acme".into(),
        balance_credits: -150,
        held_credits: 1_000_000,
        credit_line_credits: 5_000_000,
        available_credits: 3_999_850,
    };
    let price = v1::Price {
        device_class: "cpu".into(),
        site: "sites/site-a".into(),
        device_hour_credits: 1_250_000,
        ..Default::default()
    };
    let book = v1::PriceBook { version: "prc-0000000000001".into(), prices: vec![price], create_time: at(0) };
    let quota = v1::Quota {
        name: "tenants/acme/quotas/site-a/cpu".into(),
        tenant: "tenants/acme".into(),
        site: "sites/site-a".into(),
        device_class: "cpu".into(),
        nominal_milli: 4000,
        borrow_milli: 1000,
        lend_milli: 2000,
        policy: v1::QuotaPolicy::Drain.into(),
        used_milli: 4500,
        borrowed_milli: 500,
        firm_milli: 250,
        stopping_milli: 100,
        available_milli: 500,
        manager: "kubernetes/6c84fb90".into(),
        etag: "17".into(),
        update_time: at(0),
        ..Default::default()
    };
    let all_sites = v1::Quota {
        name: "tenants/acme/quotas/-/cpu".into(),
        tenant: "tenants/acme".into(),
        device_class: "cpu".into(),
        nominal_milli: 9000,
        used_milli: 4500,
        available_milli: 4500,
        etag: "18".into(),
        ..Default::default()
    };
    let budget = v1::Budget {
        scope: "tenants/acme/projects/default".into(),
        amount_credits: 9_000_000,
        period_seconds: 86_400,
        remaining_credits: 1,
        ..Default::default()
    };
    let window = v1::Window {
        lease: "lse-000000000003e".into(),
        sequence: 4,
        job: "tenants/acme/projects/default/jobs/job-000000000002d".into(),
        site: "sites/site-a".into(),
        start_ns: 50_000_000_000,
        end_ns: 60_000_000_000,
        entitled_milli: 500,
        billed_milli: 500,
        used_ns: 4_950_000_000,
        amount_credits: 3_472,
        tariff: "reserved".into(),
        ..Default::default()
    };
    let gap =
        v1::Window { sequence: 5, gap: true, used_ns: 0, amount_credits: 0, start_ns: 9, end_ns: 9, ..window.clone() };
    let transfer = v1::LedgerTransfer {
        id: "trf-0000000000001".into(),
        kind: "post".into(),
        debit: "a".into(),
        credit: "b".into(),
        amount: 3_472,
        cause: "window".into(),
        time: at(0),
        ..Default::default()
    };
    insta::assert_snapshot!("balance", all(&[BalanceView::from(&balance)]));
    insta::assert_snapshot!("prices", all(&PriceBookView::from(&book).prices));
    insta::assert_snapshot!("quotas", all(&[QuotaView::from(&quota), QuotaView::from(&all_sites)]));
    insta::assert_snapshot!("budgets", all(&[BudgetView::from(&budget)]));
    insta::assert_snapshot!("usage", all(&[WindowView::from(&window), WindowView::from(&gap)]));
    insta::assert_snapshot!("transfers", all(&[TransferView::from(&transfer)]));
}

#[test]
fn a_receipt_that_does_not_add_up_says_so() {
    let view = ReceiptView::from(&receipt());
    insta::assert_snapshot!("receipt", view.text(how(Format::Table), Width::Normal));
    insta::assert_snapshot!("receipt_json", document("Receipt", &view, Format::Json).unwrap());
    assert!(view.adds_up());
    let wrong = [
        v1::Receipt { gross_credits: 1_234_568, ..receipt() },
        v1::Receipt { credited_credits: 99, ..receipt() },
        v1::Receipt { net_credits: 1, ..receipt() },
    ];
    for receipt in wrong {
        assert!(ReceiptView::from(&receipt).text(how(Format::Table), Width::Normal).contains("do not sum"));
    }
}

#[test]
fn tenants_projects_and_keys() {
    let mut project = v1::Project {
        name: "tenants/acme/projects/default".into(),
        sites: vec!["sites/site-a".into()],
        create_time: at(0),
        ..Default::default()
    };
    project.allowed_networks.push(v1::NetworkMode::Gang.into());
    let mut key = v1::Key {
        name: "tenants/acme/keys/key-1".into(),
        create_time: at(0),
        revoke_time: at(5),
        ..Default::default()
    };
    key.set_role(v1::Role::TenantAdmin);
    insta::assert_snapshot!("projects", all(&[ProjectView::from(&project)]));
    insta::assert_snapshot!("keys", all(&[KeyView::from(&key)]));
}

/// Parses a command line as the binary does.
pub(crate) fn parsed(line: &[&str]) -> Result<(Global, UserCommand), clap::Error> {
    let matches = crate::command().try_get_matches_from(std::iter::once(&"sluice").chain(line))?;
    Ok((Global::from_arg_matches(&matches)?, UserCommand::from_arg_matches(&matches)?))
}

#[test]
fn models_endpoints_and_requests() {
    let info = v1::ModelInfo {
        architecture: "llama".into(),
        parameters: 134_515_008,
        context: 8192,
        quantization: "Q4_0".into(),
        chats: true,
        template_tokens: 31,
        message_tokens: 5,
    };
    let ready = v1::Model {
        name: "tenants/acme/projects/default/models/smol".into(),
        id: "mdl-0000000000001".into(),
        state: v1::ModelState::Ready.into(),
        file: Some(v1::BlobRef { digest: "ab".repeat(32), size_bytes: 96 << 20, path: String::new() }),
        source_digest: "cd".repeat(32),
        requantize: "Q4_0".into(),
        info: Some(info),
        import_job: "tenants/acme/projects/default/jobs/job-0000000000002".into(),
        create_time: at(0),
        ..Default::default()
    };
    let failed = v1::Model {
        state: v1::ModelState::Failed.into(),
        reason: "NOT_A_MODEL".into(),
        message: "no GGUF".into(),
        info: None,
        source_digest: String::new(),
        ..ready.clone()
    };
    insta::assert_snapshot!("models", all(&[ModelView::from(&ready), ModelView::from(&failed)]));
    let replica = v1::Replica {
        job: "tenants/acme/projects/default/jobs/job-0000000000003".into(),
        state: "running".into(),
        site: "sites/a".into(),
        ..Default::default()
    };
    let endpoint = v1::Endpoint {
        name: "tenants/acme/projects/default/endpoints/chat".into(),
        id: "ept-0000000000001".into(),
        model: ready.name.clone(),
        replicas: Some(v1::Replicas { min: 0, max: 2 }),
        resources: Some(v1::TaskResources {
            device_class: "cpu".into(),
            milli: 500,
            memory_bytes: 1 << 30,
            ..Default::default()
        }),
        context: 8192,
        sequences: 8,
        public: true,
        price: Some(v1::TokenPrice { prompt_credits: 150_000, completion_credits: 600_000 }),
        idle: Some(prost_types::Duration { seconds: 60, nanos: 0 }),
        state: v1::EndpointState::Active.into(),
        current: vec![replica],
        totals: Some(v1::RequestTotals {
            settled: 12,
            voided: 1,
            prompt_tokens: 900,
            cached_tokens: 100,
            completion_tokens: 4000,
            credits: 2535,
        }),
        create_time: at(0),
        ..Default::default()
    };
    let endpoint = EndpointView::from(&endpoint);
    insta::assert_snapshot!("replicas", all(&endpoint.current));
    insta::assert_snapshot!("endpoints", all(&[endpoint]));
    let settled = v1::InferenceRequest {
        id: "req-0000000000001".into(),
        endpoint: "ept-0000000000001".into(),
        owner: "acme".into(),
        caller: "other".into(),
        key: "key-0000000000001".into(),
        price: Some(v1::TokenPrice { prompt_credits: 150_000, completion_credits: 600_000 }),
        ceiling_credits: 400,
        state: v1::InferenceRequestState::Settled.into(),
        prompt_tokens: 75,
        completion_tokens: 333,
        credits: 212,
        open_time: at(0),
        close_time: at(3),
        ..Default::default()
    };
    let voided = v1::InferenceRequest {
        state: v1::InferenceRequestState::Voided.into(),
        reason: "GATEWAY_LOST".into(),
        prompt_tokens: 0,
        completion_tokens: 0,
        credits: 0,
        caller: String::new(),
        key: String::new(),
        ..settled.clone()
    };
    let views = [InferenceRequestView::from(&settled), InferenceRequestView::from(&voided)];
    insta::assert_snapshot!("inference_requests", all(&views));
}

#[test]
fn orders() {
    let leg = v1::Leg {
        count: 2,
        resources: Some(v1::TaskResources {
            device_class: "cpu".into(),
            milli: 500,
            memory_bytes: 512 << 20,
            ..Default::default()
        }),
        duration: Some(prost_types::Duration { seconds: 1200, nanos: 0 }),
        ..Default::default()
    };
    let mut active = v1::Order {
        name: "tenants/acme/projects/default/orders/ord-0000000000002".into(),
        display_name: "desk".into(),
        legs: vec![v1::OrderLeg {
            leg: Some(leg),
            job: "tenants/acme/projects/default/jobs/job-0000000000003".into(),
            site: "sites/a".into(),
            used: Some(prost_types::Duration { seconds: 61, nanos: 0 }),
        }],
        ceiling_credits: 400_000,
        spent_credits: 20_000,
        hourly_credits: 1_200_000,
        create_time: at(3600),
        ..Default::default()
    };
    active.set_state(v1::OrderState::Active);
    let mut refused = v1::Order {
        name: "tenants/acme/projects/default/orders/ord-0000000000001".into(),
        display_name: "ord-0000000000001".into(),
        reason: "NO_FREE_SHARE".into(),
        message: "a task asks for 500m of one device, 100m more than is free on any".into(),
        create_time: at(0),
        end_time: at(1),
        ..Default::default()
    };
    refused.set_state(v1::OrderState::Refused);
    insta::assert_snapshot!("orders", all(&[OrderView::from(&active), OrderView::from(&refused)]));
}

#[test]
fn the_command_line_is_consistent() {
    crate::command().debug_assert();
    for line in [
        &["submit", "--", "./train", "--steps", "100"][..],
        &["submit", "job.yaml", "-s", "500m", "--env", "A=b=c", "--priority", "-5", "-o", "json"],
        &["run", "-f", "job.yaml", "--timeout", "5m", "--", "true"],
        &["list", "-A", "--state", "running", "-w", "-l", "a=b"],
        &["get", "job", "job-1", "-o", "name"],
        &["get", "events", "job-1", "--tenant", "acme"],
        &["logs", "-f", "job-1", "--rank", "2", "--offset", "100"],
        &["cp", "job-1:model", "."],
        &["cancel", "a", "b", "-y", "--wait", "--timeout=10s"],
        &["migrate", "a", "--to", "site-b", "--wait=state=RUNNING"],
        &["nodes", "drain", "site-a/node-1", "-y"],
        &["price", "set", "--class", "cpu", "--device-hour", "1.25", "-y"],
        &["deposit", "acme", "12.50", "--note", "x"],
        &["quota", "set", "acme", "cpu", "2500m"],
        &["quota", "set", "acme", "cpu", "4", "--site", "a", "--borrow", "500m", "--lend", "2", "--policy", "drain"],
        &["quota", "delete", "acme", "cpu", "--site", "a", "-y"],
        &["detach", "tenants/acme/quotas/a/cpu", "-y"],
        &["budget", "set", "acme/default", "10", "--period", "24h", "--policy", "admission-only"],
        &["project", "update", "default", "--allow-network", "gang"],
        &["key", "revoke", "key-1", "--key", "slk_1", "--yes"],
        &["key", "list", "acme", "--tenant", "other"],
        &["secret", "put", "token", "-f", "file"],
        &["token", "create", "--site", "site-a", "--kind", "vault", "--ttl", "2h"],
        &["rent", "500m", "--class", "cpu", "--for", "20m", "--memory", "2GiB", "-y"],
        &["release", "ord-1", "other", "-y"],
        &["shell", "ord-1", "--rank", "1"],
        &["exec", "-i", "ord-1", "--", "sh", "-c", "cat"],
        &["port-forward", "ord-1", "8888", "8080:80", ":22"],
        &["cp", "./x", "ord-1:y"],
        &["get", "rentals"],
        &["completion", "bash"],
        &["describe", "a", "--data", "/d", "--ca", "/c", "--server", "https://h:1", "-q"],
    ] {
        assert!(parsed(line).is_ok(), "{line:?}: {}", parsed(line).unwrap_err());
    }
    for line in [
        &[][..],
        &["submit", "--share", "1.5", "--", "x"],
        &["submit", "a.yaml", "-f", "b.yaml"],
        &["cancel"],
        &["get", "pods"],
        &["deposit", "acme", "-5"],
        &["quota", "set", "acme", "cpu", "4", "--borrow", "500m"],
        &["quota", "set", "acme", "cpu", "4", "--site", "a", "--policy", "evict"],
        &["list", "--limit", "0"],
        &["logs", "a", "--rank", "x"],
        &["migrate", "a"],
        &["suspend", "a", "--wait=state=HAPPY"],
        &["price", "set", "-f", "x", "--class", "cpu"],
        &["run", "--max-run-time", "5", "--", "x"],
        &["describe", "a", "--key", "a b"],
        &["rent"],
        &["rent", "1.5"],
        &["exec", "ord-1"],
        &["port-forward", "ord-1", "0"],
        &["port-forward", "ord-1", "x:80"],
        &["serve"],
        &["serve", "m", "--replicas", "2..1"],
        &["serve", "m", "--replicas", "x"],
        &["serve", "m", "--price-prompt", "0.0000001", "--price-completion", "1"],
        // A price is changed whole: what is not named is not free.
        &["serve", "m", "--price-prompt", "1"],
        &["endpoint", "update", "m", "--price-prompt", "0.2"],
        &["endpoint", "update", "m", "--price-completion", "0.2"],
        &["model", "import"],
        &["endpoint", "update"],
    ] {
        assert!(parsed(line).is_err(), "{line:?}");
    }
}

#[test]
fn a_tenant_named_as_argument_is_not_the_flag() {
    let (global, command) = parsed(&["key", "list", "acme", "--tenant", "other"]).unwrap();
    let UserCommand::Key(crate::KeyCommand::List { tenant, .. }) = command else { panic!("another command") };
    assert_eq!((tenant.tenant.as_deref(), global.tenant.as_deref()), (Some("acme"), Some("other")));
}

#[test]
fn conditions_of_wait() {
    for (text, condition) in [
        ("done", WaitFor::Done),
        ("end", WaitFor::End),
        ("terminal", WaitFor::End),
        ("state=running", WaitFor::State("RUNNING".into())),
        ("SUSPENDED", WaitFor::State("SUSPENDED".into())),
    ] {
        assert_eq!(text.parse(), Ok(condition));
    }
    for bad in ["", "state=", "state=UNSPECIFIED", "happy"] {
        assert!(bad.parse::<WaitFor>().is_err(), "{bad}");
    }
}
