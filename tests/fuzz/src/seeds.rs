//! Valid inputs of every target, from which mutations start. Written to the corpus by `sluice-fuzz --seeds`.

use std::collections::HashMap;

use prost::Message as _;
use sluice_proto::v1;
use sluice_types::{Digest, JobId, Name};

/// Seeds by target and name.
///
/// # Errors
/// An archive cannot be made.
pub fn all() -> anyhow::Result<Vec<(&'static str, &'static str, Vec<u8>)>> {
    let mut seeds = vec![
        ("job-spec", "plain", submit(plain_spec()).encode_to_vec()),
        ("job-spec", "full", submit(full_spec()).encode_to_vec()),
        ("order", "window-by-window", order(None).encode_to_vec()),
        ("order", "twenty-minutes", order(Some(1200)).encode_to_vec()),
        ("node-report", "hello", attach(v1::attach_request::Message::Hello(hello()))),
        ("node-report", "windows", attach(v1::attach_request::Message::Windows(windows()))),
        ("node-report", "task", attach(v1::attach_request::Message::Task(task()))),
        ("assignment", "run", assignment(plain_spec()).encode_to_vec()),
        ("assignment", "resume", assignment(full_spec()).encode_to_vec()),
        ("session-start", "terminal", session_start(true).encode_to_vec()),
        ("session-start", "again", session_start(false).encode_to_vec()),
        ("prices", "two", prices().encode_to_vec()),
        ("journal", "empty", Vec::new()),
        ("journal", "three", journal()),
        ("certificate-request", "empty", vec![0x30, 0x03, 0x02, 0x01, 0x00]),
        ("certificate", "empty", vec![0x30, 0x03, 0x02, 0x01, 0x00]),
        ("archive", "files", tar(&["a.txt", "folder/b.txt"], None)?),
        ("archive", "link", tar(&["a.txt"], Some("a.txt"))?),
        ("archive", "out", tar(&["a.txt"], Some("../../etc/passwd"))?),
        ("outputs", "files", tar(&["a.txt", "folder/b.txt"], None)?),
        ("outputs", "link", tar(&["a.txt"], Some("a.txt"))?),
    ];
    let texts = [
        ("state-provider", "hello", r#"{"op":"hello","protocol":1}"#),
        ("state-provider", "step", r#"{"op":"step","step":7,"metrics":{"loss":1.5}}"#),
        (
            "state-provider",
            "checkpoint",
            r#"{"op":"checkpoint","step":7,"dir":"c7","cursor":{"at":3},"code":"v1","entries":[{"name":"w","dtype":"f32","shape":[2,2],"file":"w","offset":0,"length":16}]}"#,
        ),
        ("home", "files", HOME),
        ("job-file", "train", JOB_FILE),
        ("job-file", "short", "command: [echo, hi]\n"),
        (
            "log-records",
            "lines",
            "2026-01-02T03:04:05.678901234Z stdout F one\n2026-01-02T03:04:05.678901234Z stderr P tw\n2026-01-02T03:04:05.678901234Z stderr F o\n",
        ),
        ("words", "credits", "12.000345"),
        ("words", "share", "500m"),
        ("words", "bytes", "2GiB"),
        ("words", "duration", "1h30m5s"),
        ("words", "path", "models/a/b.bin"),
        ("words", "name", "team-a"),
    ];
    seeds.extend(texts.map(|(target, name, text)| (target, name, text.as_bytes().to_vec())));
    let (job, attempt) = (JobId::from_raw(1).to_string(), sluice_types::AttemptId::from_raw(2).to_string());
    for (name, text) in [("task", MANIFEST), ("group", GROUP)] {
        let text = text.replace("job-1", &job).replace("att-1", &attempt);
        seeds.push(("manifest", name, text.into_bytes()));
    }
    seeds.push(("words", "id", JobId::from_raw(1 << 60).to_string().into_bytes()));
    seeds.push(("words", "digest", Digest::from_bytes([0xab; 32]).to_string().into_bytes()));
    let tenant = sluice_types::TenantId::from_raw(77);
    seeds.push(("words", "account", sluice_ledger::AccountKey::Funds(tenant).to_string().into_bytes()));
    let class: Name = "cpu".parse()?;
    seeds.push(("words", "quota", sluice_ledger::AccountKey::Quota(tenant, class).to_string().into_bytes()));
    Ok(seeds)
}

const MANIFEST: &str = r#"{"kind":"task","version":1,"job":"job-1","attempt":"att-1","generation":1,"rank":0,"world_size":1,"step":7,"parent":null,"cursor":{"at":3},"code":"v1","entries":[{"name":"w","dtype":"f32","shape":[2,2],"digest":"abababababababababababababababababababababababababababababababab","length":16},{"name":"a/b","dtype":"file","shape":[],"digest":"cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd","length":4}],"total":20}"#;
const GROUP: &str = r#"{"kind":"group","version":1,"job":"job-1","attempt":"att-1","generation":1,"world_size":1,"step":7,"members":[{"rank":0,"manifest":"abababababababababababababababababababababababababababababababab","length":20}],"total":20}"#;
const JOB_FILE: &str = "name: train\ncommand: [./train, --steps, \"500\"]\nworkdir: work\nenv: {A: 1, B: yes}\ntasks: 2\n\
resources: {share: 500m, memory: 256MiB}\nsites: [a, b]\nmaxRunTime: 20m\nretry: {onFailure: 1}\n\
checkpoint: {stateProvider: {}, everySteps: 50}\nsecrets: [{secret: wandb}]\nlabels: {team: x}\n";

fn plain_spec() -> v1::JobSpec {
    v1::JobSpec {
        command: vec!["echo".to_owned(), "hi".to_owned()],
        tasks: 1,
        resources: Some(v1::TaskResources {
            device_class: "cpu".to_owned(),
            milli: 500,
            memory_bytes: 1 << 28,
            host_core_milli: 0,
            host_memory_bytes: 0,
        }),
        ..Default::default()
    }
}

fn full_spec() -> v1::JobSpec {
    let blob = |path: &str| v1::BlobRef { digest: "ab".repeat(32), size_bytes: 4096, path: path.to_owned() };
    let directory = v1::WatchedDirectory {
        path: "ckpt".to_owned(),
        completion: Some(v1::watched_directory::Completion::CompletionFile("DONE".to_owned())),
        signal: "USR1".to_owned(),
        grace: Some(prost_types::Duration { seconds: 30, nanos: 5 }),
    };
    v1::JobSpec {
        env: HashMap::from([("A".to_owned(), "1".to_owned())]).into_iter().collect(),
        work_dir: Some(blob("")),
        inputs: vec![blob("data/x")],
        priority: 3,
        max_run_time: Some(prost_types::Duration { seconds: 600, nanos: 0 }),
        retry: Some(v1::RetryPolicy { on_failure: 1, on_loss: Some(5) }),
        checkpoint: Some(v1::CheckpointPolicy {
            capture: Some(v1::checkpoint_policy::Capture::Directory(directory)),
            every_steps: 10,
            every: Some(prost_types::Duration { seconds: 60, nanos: 0 }),
            durable_sites: 2,
        }),
        secrets: vec![v1::SecretRef { secret: "wandb".to_owned(), path_variable: "WANDB".to_owned() }],
        sites: vec!["sites/s3".to_owned(), "sites/s9".to_owned()],
        labels: HashMap::from([("team".to_owned(), "x".to_owned())]).into_iter().collect(),
        ..plain_spec()
    }
}

fn submit(spec: v1::JobSpec) -> v1::SubmitJobRequest {
    v1::SubmitJobRequest { parent: "tenants/t/projects/p".to_owned(), spec: Some(spec), ..Default::default() }
}

fn order(seconds: Option<i64>) -> v1::CreateOrderRequest {
    let leg = v1::Leg {
        count: 2,
        resources: plain_spec().resources,
        duration: seconds.map(|seconds| prost_types::Duration { seconds, nanos: 0 }),
        sites: vec!["sites/s3".to_owned()],
        ..v1::Leg::default()
    };
    v1::CreateOrderRequest { parent: "tenants/t/projects/p".to_owned(), legs: vec![leg], ..Default::default() }
}

/// One of a terminal, or one that comes back to its session.
fn session_start(first: bool) -> v1::StartSession {
    let command = v1::SessionCommand {
        command: vec!["/bin/sh".to_owned(), "-l".to_owned()],
        env: [("TERM".to_owned(), "xterm".to_owned())].into(),
        work_dir: "a/b".to_owned(),
        terminal: Some(v1::TerminalSize { rows: 24, columns: 80 }),
    };
    let program = v1::session_program::Program::Command(command);
    v1::StartSession {
        session_id: "0c62f2e4-0f3b-4d53-9a3e-0123456789ab".to_owned(),
        program: first.then_some(v1::SessionProgram { program: Some(program) }),
        output_offset: if first { 0 } else { 4711 },
        ..v1::StartSession::default()
    }
}

/// A folder with everything that a home may hold.
const HOME: &str = r#"{"version":1,"nodes":[{"in":0,"name":"","mode":488,"time":[1700000000,5],"kind":"folder"},{"in":0,"name":"d","mode":1517,"time":[1700000000,5],"kind":"folder"},{"in":1,"name":"f","mode":420,"time":[1700000000,5],"kind":"file","size":20,"runs":[[0,5,1,0],[10,5,1,5]]},{"in":0,"name":"again","mode":420,"time":[1700000000,5],"kind":"same","file":2},{"in":1,"name":{"hex":"61ff"},"mode":511,"time":[-1,0],"kind":"link","target":"../../etc"}]}"#;

fn key() -> Option<v1::TaskKey> {
    let ids = (sluice_types::AttemptId::from_raw(5), sluice_types::LeaseId::from_raw(6));
    Some(v1::TaskKey { attempt: ids.0.to_string(), lease: ids.1.to_string(), generation: 3 })
}

fn attach(message: v1::attach_request::Message) -> Vec<u8> {
    v1::AttachRequest { message: Some(message) }.encode_to_vec()
}

fn hello() -> v1::Hello {
    let device = v1::DeviceReport {
        index: 0,
        device_class: "cpu".to_owned(),
        memory_bytes: 1 << 30,
        core_milli: 1000,
        uuid: "cpu-0".to_owned(),
        ..Default::default()
    };
    v1::Hello { boot_id: "boot".to_owned(), devices: vec![device], now_ns: 5, ..Default::default() }
}

fn record(journal: u64) -> v1::WindowRecord {
    v1::WindowRecord {
        journal,
        key: key(),
        sequence: journal,
        boot_id: "boot".to_owned(),
        start_ns: journal * 10,
        end_ns: journal * 10 + 10,
        used_ns: 4,
        ..Default::default()
    }
}

fn windows() -> v1::WindowBatch {
    v1::WindowBatch { records: vec![record(1), record(2)] }
}

fn task() -> v1::TaskReport {
    let ended = v1::TaskEnded { exit_code: Some(0), windows: 3, step: 9, ..Default::default() };
    v1::TaskReport { key: key(), state: Some(v1::task_report::State::Ended(ended)) }
}

fn assignment(spec: v1::JobSpec) -> v1::Assignment {
    v1::Assignment {
        key: key(),
        goal: v1::Goal::Run.into(),
        revision: 4,
        job: JobId::from_raw(9).to_string(),
        spec: Some(spec),
        ..Default::default()
    }
}

fn prices() -> v1::SetPricesRequest {
    let price = |site: &str| v1::Price { device_class: "cpu".to_owned(), site: site.to_owned(), ..Default::default() };
    v1::SetPricesRequest { prices: vec![price(""), price("sites/s3")], ..Default::default() }
}

/// Three records as a node writes them: length, CRC-32 of length and payload, payload.
fn journal() -> Vec<u8> {
    let mut bytes = Vec::new();
    for number in 1..=3 {
        let payload = record(number).encode_to_vec();
        let length = u32::try_from(payload.len()).unwrap_or(0).to_le_bytes();
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&length);
        hasher.update(&payload);
        bytes.extend(length);
        bytes.extend(hasher.finalize().to_le_bytes());
        bytes.extend(payload);
    }
    bytes
}

fn tar(files: &[&str], link: Option<&str>) -> anyhow::Result<Vec<u8>> {
    let mut builder = tar::Builder::new(Vec::new());
    for file in files {
        let mut header = tar::Header::new_ustar();
        header.set_size(5);
        header.set_mode(0o644);
        builder.append_data(&mut header, file, &b"hello"[..])?;
    }
    if let Some(target) = link {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        builder.append_link(&mut header, "link", target)?;
    }
    Ok(builder.into_inner()?)
}
