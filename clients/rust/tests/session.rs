//! The client against a supervisor that follows a script.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::thread::{self, JoinHandle};

use serde_json::{Value, json};
use sluice_checkpoint::{Action, Dtype, Error, MAX_METRICS, Session, Surroundings};
use tempfile::TempDir;

/// A supervisor on a thread: answers each request with the next line of its script and returns the requests. A
/// `checkpoint` that it accepts is first renamed away, as the real one does.
struct Supervisor {
    folder: TempDir,
    requests: JoinHandle<Vec<Value>>,
}

impl Supervisor {
    fn start(script: Vec<String>) -> Self {
        let folder = tempfile::tempdir().expect("folder");
        let stage = folder.path().join("stage");
        fs::create_dir(&stage).expect("stage");
        let listener = UnixListener::bind(folder.path().join("socket")).expect("socket");
        let requests = thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("the client");
            let mut lines = BufReader::new(stream.try_clone().expect("handle")).lines();
            let mut requests = Vec::new();
            for reply in script {
                let Some(Ok(line)) = lines.next() else { break };
                let request: Value = serde_json::from_str(&line).expect("JSON");
                take_over(&stage, &request, &reply);
                requests.push(request);
                stream.write_all(reply.as_bytes()).expect("reply");
            }
            requests
        });
        Self { folder, requests }
    }

    fn surroundings(&self) -> Surroundings {
        let path = |name| Some(self.folder.path().join(name));
        Surroundings { socket: path("socket"), stage: path("stage"), ..Surroundings::default() }
    }

    fn connect(&self) -> Session {
        Session::connect(&self.surroundings()).expect("connected")
    }

    fn stage_is_empty(&self) -> bool {
        fs::read_dir(self.folder.path().join("stage")).expect("stage").next().is_none()
    }

    fn finish(self) -> Vec<Value> {
        self.requests.join().expect("supervisor")
    }
}

fn take_over(stage: &Path, request: &Value, reply: &str) {
    if request["op"] == "checkpoint" && reply.contains("true") {
        let dir = request["dir"].as_str().expect("dir");
        fs::rename(stage.join(dir), stage.with_file_name("taken")).expect("rename");
    }
}

fn line(value: &Value) -> String {
    format!("{value}\n")
}

fn hello() -> String {
    line(&json!({"ok": true, "resume": null}))
}

#[test]
fn outside_sluice_every_step_continues_and_nothing_is_written() {
    let mut session = Session::connect(&Surroundings::default()).expect("detached");
    assert!(session.is_detached());
    assert!(session.resume().is_none());
    assert_eq!(session.step(1, &[("loss", 1.0)]).expect("answer"), Action::Continue);
    let sequence = session.checkpoint(1, &Value::Null, "v", |_| panic!("called")).expect("nothing to do");
    assert_eq!(sequence, None);
}

#[test]
fn steps_and_checkpoints_follow_the_protocol() {
    let supervisor = Supervisor::start(vec![
        hello(),
        line(&json!({"ok": true, "action": "continue"})),
        line(&json!({"ok": true, "action": "checkpoint_and_exit"})),
        line(&json!({"ok": true, "sequence": 4})),
    ]);
    let mut session = supervisor.connect();
    assert_eq!(session.step(1, &[("loss", 2.5), ("bad", f64::NAN)]).expect("answer"), Action::Continue);
    assert_eq!(session.step(2, &[]).expect("answer"), Action::CheckpointAndExit);
    let sequence = session.checkpoint(2, &json!({"next": 3}), "v1", |state| {
        state.tensor_f32("w", &[2, 1], &[1.5, -0.0])?;
        state.tensor("bytes", Dtype::U8, &[2], b"ab")
    });
    assert_eq!(sequence.expect("staged"), Some(4));
    assert!(supervisor.stage_is_empty());
    let state = fs::read(supervisor.folder.path().join("taken/state.bin")).expect("state");
    assert_eq!(state, [&1.5f32.to_le_bytes()[..], &(-0.0f32).to_le_bytes(), b"ab"].concat());
    let requests = supervisor.finish();
    assert_eq!(requests[0], json!({"op": "hello", "protocol": 1}));
    assert_eq!(requests[1], json!({"op": "step", "step": 1, "metrics": {"loss": 2.5}}));
    let announced = json!({"op": "checkpoint", "step": 2, "dir": "step-2-0", "cursor": {"next": 3}, "code": "v1",
    "entries": [
        {"name": "w", "dtype": "f32", "shape": [2, 1], "file": "state.bin", "offset": 0, "length": 8},
        {"name": "bytes", "dtype": "u8", "shape": [2], "file": "state.bin", "offset": 8, "length": 2},
    ]});
    assert_eq!(requests[3], announced);
}

#[test]
fn a_resume_gives_back_the_same_bits() {
    let files = tempfile::tempdir().expect("folder");
    let file = files.path().join("blob");
    let values = [f32::MIN_POSITIVE / 2.0, -0.0, 3.25];
    let bytes: Vec<u8> = [0u8].into_iter().chain(values.iter().flat_map(|v| v.to_le_bytes())).collect();
    fs::write(&file, bytes).expect("written");
    let entry = |name: &str, shape: &[u64], offset: u64, length: u64| json!({"name": name, "dtype": "f32", "shape": shape, "file": file, "offset": offset, "length": length});
    let entries = [entry("w", &[3], 1, 12), entry("short", &[4], 1, 16), entry("odd", &[2], 1, 12)];
    let absurd = entry("absurd", &[u64::MAX / 4], 8, u64::MAX);
    let supervisor = Supervisor::start(vec![line(&json!({"ok": true, "resume": {
        "step": 7, "cursor": [1, 2], "entries": [entries[0], entries[1], entries[2], absurd]}}))]);
    let session = supervisor.connect();
    let resume = session.resume().expect("a checkpoint");
    assert_eq!((resume.step, &resume.cursor), (7, &json!([1, 2])));
    let read = resume.require("w").and_then(|w| w.read_f32()).expect("readable");
    assert_eq!(read.map_bits(), values.to_vec().map_bits());
    for name in ["short", "odd", "absurd"] {
        let refused = resume.require(name).expect("listed").read_f32();
        assert!(matches!(refused, Err(Error::Entry { .. })), "{name}");
    }
    assert!(matches!(resume.require("none"), Err(Error::Entry { .. })));
}

trait Bits {
    fn map_bits(self) -> Vec<u32>;
}

impl Bits for Vec<f32> {
    fn map_bits(self) -> Vec<u32> {
        self.into_iter().map(f32::to_bits).collect()
    }
}

#[test]
fn a_refusal_leaves_the_session_usable_and_the_stage_clean() {
    let supervisor = Supervisor::start(vec![
        hello(),
        line(&json!({"ok": false, "reason": "INVALID_FIELD", "message": "no"})),
        line(&json!({"ok": true, "action": "checkpoint"})),
    ]);
    let mut session = supervisor.connect();
    let refused = session.checkpoint(1, &Value::Null, "v", |state| state.tensor_f32("w", &[1], &[1.0]));
    assert!(matches!(&refused, Err(error @ Error::Refused { .. }) if !error.is_fatal()));
    assert!(supervisor.stage_is_empty());
    assert_eq!(session.step(2, &[]).expect("answer"), Action::Checkpoint);
}

#[test]
fn bounds_are_kept_before_anything_is_sent() {
    let supervisor = Supervisor::start(vec![hello()]);
    let mut session = supervisor.connect();
    let metrics = [("m", 0.0); MAX_METRICS + 1];
    assert!(matches!(session.step(1, &metrics), Err(Error::TooBig { .. })));
    let cursor = Value::String("x".repeat(64 << 10));
    assert!(matches!(session.checkpoint(1, &cursor, "v", |_| Ok(())), Err(Error::TooBig { .. })));
    let code = "v".repeat(257);
    assert!(matches!(session.checkpoint(1, &Value::Null, &code, |_| Ok(())), Err(Error::TooBig { .. })));
    // Few enough entries, but too long a line: refused before it is sent, and the stage is left clean.
    let many = session.checkpoint(1, &Value::Null, "v", |state| {
        (0..20_000).try_for_each(|n| state.tensor_f32(&format!("tensor.{n}"), &[0], &[]))
    });
    assert!(matches!(&many, Err(error @ Error::TooBig { .. }) if !error.is_fatal()));
    assert!(supervisor.stage_is_empty());
    drop(session);
    assert_eq!(supervisor.finish().len(), 1);
}

#[test]
fn after_a_senseless_or_missing_answer_the_session_is_over() {
    for script in [vec![hello(), "nonsense\n".to_owned()], vec![hello()]] {
        let supervisor = Supervisor::start(script);
        let mut session = supervisor.connect();
        let first = session.step(1, &[]).expect_err("no answer");
        assert!(first.is_fatal());
        assert!(matches!(session.step(2, &[]), Err(Error::Ended)));
        assert!(matches!(session.checkpoint(2, &Value::Null, "v", |_| Ok(())), Err(Error::Ended)));
        assert!(supervisor.stage_is_empty());
    }
}

#[test]
fn a_socket_nobody_serves_and_a_missing_stage_are_named() {
    let folder = tempfile::tempdir().expect("folder");
    let socket = Some(folder.path().join("socket"));
    let mut surroundings = Surroundings { socket, ..Surroundings::default() };
    assert!(matches!(Session::connect(&surroundings), Err(Error::Environment { name: "SLUICE_STAGE", .. })));
    surroundings.stage = Some(folder.path().to_owned());
    assert!(matches!(Session::connect(&surroundings), Err(Error::Connect { .. })));
}

#[test]
fn a_relative_file_in_a_resume_is_refused() {
    let entry = json!({"name": "w", "dtype": "f32", "shape": [1], "file": "../x", "offset": 0, "length": 4});
    let reply = json!({"ok": true, "resume": {"step": 1, "cursor": null, "entries": [entry]}});
    let supervisor = Supervisor::start(vec![line(&reply)]);
    assert!(matches!(Session::connect(&supervisor.surroundings()), Err(Error::Entry { .. })));
}
