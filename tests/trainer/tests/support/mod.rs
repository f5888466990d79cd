//! A supervisor on a thread, and the trainer run under it as a process of its own.

#![allow(dead_code, reason = "each test file uses its part")]

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::thread;

use serde_json::{Value, json};

/// A model that takes a millisecond per step even when the trainer itself is not optimised.
pub(crate) const TINY: &[&str] = &[
    "--d-model",
    "16",
    "--layers",
    "2",
    "--heads",
    "2",
    "--context",
    "16",
    "--batch",
    "4",
    "--lr",
    "0.01",
    "--checkpoint-every",
    "0",
    "--progress-every",
    "0",
];

/// What the supervisor does, by step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    Checkpoint,
    Leave,
    /// Asks for a checkpoint and a leave, and refuses the checkpoint.
    LeaveButRefuse,
    /// Closes the connection, as if the machine died for the trainer.
    HangUp,
}

/// A checkpoint that the supervisor took over.
#[derive(Debug, Clone)]
pub(crate) struct Saved {
    pub(crate) step: u64,
    pub(crate) cursor: Value,
    pub(crate) code: String,
    pub(crate) entries: Vec<Value>,
    pub(crate) folder: PathBuf,
}

impl Saved {
    /// The bytes of every entry by name.
    pub(crate) fn bytes(&self) -> BTreeMap<String, Vec<u8>> {
        let number = |entry: &Value, key: &str| entry[key].as_u64().expect("number") as usize;
        let read = |entry: &Value| {
            let file = fs::read(self.folder.join(entry["file"].as_str().expect("file"))).expect("state");
            let (offset, length) = (number(entry, "offset"), number(entry, "length"));
            (entry["name"].as_str().expect("name").to_owned(), file[offset..offset + length].to_vec())
        };
        self.entries.iter().map(read).collect()
    }

    fn resume(&self) -> Value {
        let absolute = |entry: &Value| {
            let mut entry = entry.clone();
            entry["file"] = json!(self.folder.join(entry["file"].as_str().expect("file")));
            entry
        };
        let entries: Vec<_> = self.entries.iter().map(absolute).collect();
        json!({"step": self.step, "cursor": self.cursor, "entries": entries})
    }
}

/// One line of the step log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Step {
    pub(crate) step: u64,
    pub(crate) loss_bits: String,
    pub(crate) samples: Vec<u64>,
    pub(crate) attempt: String,
}

/// One process that ran to its end.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) output: Output,
    pub(crate) saved: Vec<Saved>,
    pub(crate) steps: Vec<Step>,
    pub(crate) outputs: PathBuf,
}

impl Ran {
    pub(crate) fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.output.stdout).into_owned()
    }

    pub(crate) fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.output.stderr).into_owned()
    }

    /// As itself, after checking that the process ended well.
    pub(crate) fn well(self) -> Self {
        assert!(self.output.status.success(), "{}{}", self.stdout(), self.stderr());
        self
    }

    pub(crate) fn saved_at(&self, step: u64) -> &Saved {
        self.saved.iter().find(|saved| saved.step == step).expect("a checkpoint of the step")
    }

    /// The curve from `first` on.
    pub(crate) fn curve(&self, first: u64) -> Vec<(u64, String)> {
        let later = self.steps.iter().filter(|step| step.step >= first);
        later.map(|step| (step.step, step.loss_bits.clone())).collect()
    }

    pub(crate) fn losses(&self) -> Vec<f32> {
        let bits = |step: &Step| u32::from_str_radix(&step.loss_bits, 16).expect("hex");
        self.steps.iter().map(|step| f32::from_bits(bits(step))).collect()
    }

    pub(crate) fn weights_file(&self) -> Vec<u8> {
        fs::read(self.outputs.join("model.safetensors")).expect("exported weights")
    }
}

/// A folder with a text in which the attempts of one job run.
pub(crate) struct Job {
    folder: tempfile::TempDir,
    attempts: u32,
}

impl Job {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().expect("folder");
        fs::write(folder.path().join("text"), text(6_000)).expect("text");
        Self { folder, attempts: 0 }
    }

    pub(crate) fn text_file(&self) -> PathBuf {
        self.folder.path().join("text")
    }

    /// Runs one attempt with the tiny model and `flags`, from `resume`, under `orders`.
    pub(crate) fn attempt(&mut self, flags: &[&str], resume: Option<&Saved>, orders: &[(u64, Order)]) -> Ran {
        self.attempts += 1;
        let attempt = self.folder.path().join(format!("attempt-{}", self.attempts));
        for name in ["stage", "outputs", "taken"] {
            fs::create_dir_all(attempt.join(name)).expect("folders");
        }
        let socket = attempt.join("socket");
        let listener = UnixListener::bind(&socket).expect("socket");
        let hello = json!({"ok": true, "resume": resume.map(Saved::resume)});
        let (orders, home) = (orders.iter().copied().collect(), attempt.clone());
        let supervisor = thread::spawn(move || supervise(&listener, &hello, &orders, &home));
        let output = self
            .command(flags)
            .env("SLUICE_SOCKET", &socket)
            .env("SLUICE_STAGE", attempt.join("stage"))
            .env("SLUICE_OUTPUTS", attempt.join("outputs"))
            .env("SLUICE_ATTEMPT", self.attempts.to_string())
            .output()
            .expect("the trainer");
        // A trainer that failed before it connected leaves the supervisor waiting; this ends the wait.
        drop(UnixStream::connect(&socket));
        let saved = supervisor.join().expect("supervisor");
        let outputs = attempt.join("outputs");
        Ran { output, saved, steps: read_log(&outputs.join("steps.jsonl")), outputs }
    }

    /// The trainer with the tiny model and `flags`, outside Sluice.
    pub(crate) fn command(&self, flags: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sluice-trainer"));
        command.env_clear().current_dir(self.folder.path()).args(["--data", "text"]).args(TINY).args(flags);
        command
    }
}

fn supervise(listener: &UnixListener, hello: &Value, orders: &BTreeMap<u64, Order>, home: &Path) -> Vec<Saved> {
    let mut saved = Vec::new();
    let (mut stream, _) = listener.accept().expect("the trainer");
    let lines = BufReader::new(stream.try_clone().expect("handle")).lines();
    for line in lines {
        let Ok(line) = line else { break };
        let request: Value = serde_json::from_str(&line).expect("JSON");
        let step = request["step"].as_u64().unwrap_or_default();
        let order = orders.get(&step);
        let reply = match (request["op"].as_str().expect("op"), order) {
            ("hello", _) => hello.clone(),
            ("step", None) => json!({"ok": true, "action": "continue"}),
            ("step", Some(Order::Checkpoint)) => json!({"ok": true, "action": "checkpoint"}),
            ("step", Some(Order::Leave | Order::LeaveButRefuse)) => {
                json!({"ok": true, "action": "checkpoint_and_exit"})
            }
            ("step", Some(Order::HangUp)) => break,
            ("checkpoint", Some(Order::LeaveButRefuse)) => json!({"ok": false, "reason": "LATE", "message": "no"}),
            ("checkpoint", _) => {
                saved.push(take_over(&request, home));
                json!({"ok": true, "sequence": saved.len()})
            }
            (other, _) => panic!("unknown request {other}"),
        };
        if writeln!(stream, "{reply}").is_err() {
            break;
        }
    }
    saved
}

fn take_over(request: &Value, home: &Path) -> Saved {
    let dir = request["dir"].as_str().expect("dir");
    let folder = home.join("taken").join(dir);
    fs::rename(home.join("stage").join(dir), &folder).expect("rename");
    Saved {
        step: request["step"].as_u64().expect("step"),
        cursor: request["cursor"].clone(),
        code: request["code"].as_str().expect("code").to_owned(),
        entries: request["entries"].as_array().expect("entries").clone(),
        folder,
    }
}

fn read_log(file: &Path) -> Vec<Step> {
    let text = fs::read_to_string(file).unwrap_or_default();
    let parse = |line: &str| {
        let line: Value = serde_json::from_str(line).expect("a whole line");
        Step {
            step: line["step"].as_u64().expect("step"),
            loss_bits: line["loss_bits"].as_str().expect("bits").to_owned(),
            samples: line["samples"].as_array().expect("samples").iter().filter_map(Value::as_u64).collect(),
            attempt: line["attempt"].as_str().expect("attempt").to_owned(),
        }
    };
    text.lines().map(parse).collect()
}

/// A text of words with some order in it, always the same.
fn text(length: usize) -> String {
    const WORDS: [&str; 12] = [
        "the ", "river ", "sluice ", "opens ", "and ", "water ", "falls ", "slowly ", "over ", "stone ", "again, ",
        "so.\n",
    ];
    let mut text = String::new();
    let (mut state, mut word) = (7u32, 0usize);
    while text.len() < length {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        word = (word * 5 + 1 + (state >> 30) as usize) % WORDS.len();
        text.push_str(WORDS[word]);
    }
    text
}
