//! An engine worker as a process: served over a socket, killed, and gone on with by another.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use sluice_engine::client::{Driver, Event, Sequence};
use sluice_engine::meter::read_folder;
use sluice_proto::v1::{EngineChat, EngineClass, EngineFinish, EngineGenerate, EngineMessage, EngineSampling};
use sluice_proto::v1::{EngineFinished, EngineToken, engine_generate::Prompt};
use tokio::net::UnixStream;
use tokio::time::timeout;

const SOON: Duration = Duration::from_secs(60);

/// A worker's process; killed with its owner.
struct Worker {
    child: Child,
    socket: PathBuf,
    said: serde_json::Value,
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Worker {
    fn start(folder: &Path, name: &str, more: &[&str]) -> Self {
        Self::start_with(folder, name, more, &[])
    }

    fn start_with(folder: &Path, name: &str, more: &[&str], environment: &[(&str, &str)]) -> Self {
        let socket = folder.join(format!("{name}.sock"));
        let mut child = Command::new(env!("CARGO_BIN_EXE_sluice"))
            .args(["engine-worker", "--listen", &format!("unix:{}", socket.display())])
            .arg("--meter")
            .arg(folder.join(format!("{name}.meter")))
            .args(more)
            .envs(environment.iter().copied())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let said = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line:?}: {error}"));
        Self { child, socket, said }
    }

    async fn connect(&self) -> Driver {
        Driver::connect(UnixStream::connect(&self.socket).await.unwrap()).await.unwrap().0
    }
}

fn generate(text: &str, max_tokens: u32) -> EngineGenerate {
    EngineGenerate {
        tenant: "t".to_owned(),
        class: EngineClass::Interactive.into(),
        prompt: Some(Prompt::Text(text.to_owned())),
        max_tokens,
        ignore_end: true,
        request: text.chars().take(40).collect(),
        sampling: Some(EngineSampling { temperature: 0.7, seed: 11, ..EngineSampling::default() }),
        ..EngineGenerate::default()
    }
}

/// Reads tokens, taking each at once, until `most` are there or the sequence or its worker is over.
async fn read(sequence: &mut Sequence, most: usize) -> (Vec<EngineToken>, Option<EngineFinished>) {
    let mut tokens = Vec::new();
    while tokens.len() < most {
        match timeout(SOON, sequence.next()).await.unwrap() {
            Some(Event::Token(token)) => {
                sequence.taken(token.position + 1);
                tokens.push(token);
            }
            Some(Event::Finished(finished)) => return (tokens, Some(finished)),
            Some(Event::Admitted(_)) => {}
            None => break,
        }
    }
    (tokens, None)
}

fn ids(tokens: &[EngineToken]) -> Vec<u32> {
    tokens.iter().map(|token| token.token).collect()
}

/// Places by request, as the meters of some workers have them.
fn metered(folders: &[PathBuf]) -> BTreeMap<String, Vec<u32>> {
    let mut places: BTreeMap<String, Vec<u32>> = BTreeMap::new();
    for row in folders.iter().flat_map(|folder| read_folder(folder).unwrap()).flat_map(|record| record.sequences) {
        places.entry(row.request).or_default().extend(row.generated_from..row.generated_from + row.generated_tokens);
    }
    places
}

#[tokio::test]
async fn many_sequences_of_several_drivers_are_served_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let worker = Worker::start(folder.path(), "w", &["--simulated"]);
    assert_eq!(worker.said["model"], "simulated");
    let drivers = [worker.connect().await, worker.connect().await];
    assert_eq!(drivers[0].ready().window, 256);
    let mut sequences: Vec<Sequence> =
        (0..12).map(|index| drivers[index % 2].generate(generate(&format!("text {index}"), 20)).unwrap()).collect();
    let mut told = BTreeMap::new();
    for (index, sequence) in sequences.iter_mut().enumerate() {
        let (tokens, finished) = read(sequence, 100).await;
        let positions: Vec<u32> = tokens.iter().map(|token| token.position).collect();
        assert_eq!(positions, (0..20).collect::<Vec<_>>());
        assert_eq!(finished.unwrap().finish(), EngineFinish::Length);
        told.insert(format!("text {index}"), positions);
    }
    assert_eq!(metered(&[folder.path().join("w.meter")]), told, "metered is what was received");
    assert!(drivers[0].load().borrow().cells_total > 0);
    let refused = drivers[0].generate(EngineGenerate { tenant: String::new(), ..generate("x", 1) }).unwrap();
    let (_, finished) = read(&mut { refused }, 1).await;
    assert_eq!(finished.unwrap().reason, "INVALID");
}

#[tokio::test]
async fn a_cancelled_sequence_ends_and_a_dropped_driver_takes_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let worker = Worker::start(folder.path(), "w", &["--simulated"]);
    let driver = worker.connect().await;
    let mut cancelled = driver.generate(generate("long", 2_000)).unwrap();
    read(&mut cancelled, 3).await;
    cancelled.cancel();
    let (_, finished) = read(&mut cancelled, 1_000).await;
    assert_eq!(finished.unwrap().finish(), EngineFinish::Cancelled);
    let other = worker.connect().await;
    let mut left = other.generate(generate("left", 2_000)).unwrap();
    read(&mut left, 1).await;
    drop((left, other));
    let mut load = driver.load();
    let idle = async { load.wait_for(|load| load.running == 0).await.map(|_| ()) };
    timeout(SOON, idle).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_reader_that_takes_nothing_pauses_itself_alone() {
    let folder = tempfile::tempdir().unwrap();
    let worker = Worker::start(folder.path(), "w", &["--simulated", "--window", "8"]);
    let driver = worker.connect().await;
    let mut slow = driver.generate(generate("slow", 50)).unwrap();
    let mut quick = driver.generate(generate("quick", 50)).unwrap();
    let (tokens, finished) = read(&mut quick, 100).await;
    assert_eq!((tokens.len(), finished.unwrap().finish()), (50, EngineFinish::Length));
    let mut seen = 0;
    while let Ok(Some(event)) = timeout(Duration::from_millis(500), slow.next()).await {
        seen += usize::from(matches!(event, Event::Token(_)));
    }
    assert_eq!(seen, 8);
    slow.taken(8);
    let (tokens, finished) = read(&mut slow, 100).await;
    assert_eq!((tokens.len(), finished.unwrap().finish()), (42, EngineFinish::Length));
}

#[tokio::test]
async fn at_most_eight_drivers_are_served() {
    let folder = tempfile::tempdir().unwrap();
    let worker = Worker::start(folder.path(), "w", &["--simulated"]);
    let mut drivers = Vec::new();
    for _ in 0..8 {
        drivers.push(worker.connect().await);
    }
    let ninth = UnixStream::connect(&worker.socket).await.unwrap();
    assert!(Driver::connect(ninth).await.is_err());
    drivers.pop();
    let again = async {
        loop {
            if let Ok(driver) = Driver::connect(UnixStream::connect(&worker.socket).await.unwrap()).await {
                return driver;
            }
        }
    };
    timeout(SOON, again).await.unwrap();
}

/// Tokens that a worker goes ahead of its reader: none is done before the kill.
const AHEAD: usize = 8;

/// Kills a worker in the middle of several answers and goes on with another, behind what was delivered.
async fn survives(more: &[&str], max_tokens: u32) {
    let window = AHEAD.to_string();
    let more = &[more, &["--window", &window]].concat()[..];
    let folder = tempfile::tempdir().unwrap();
    let whole = {
        let worker = Worker::start(folder.path(), "undisturbed", more);
        let driver = worker.connect().await;
        let mut sequences: Vec<Sequence> =
            (0..3).map(|index| driver.generate(generate(&format!("Once {index}"), max_tokens)).unwrap()).collect();
        let mut whole = Vec::new();
        for sequence in &mut sequences {
            whole.push(read(sequence, 10_000).await.0);
        }
        whole
    };
    let mut worker = Worker::start(folder.path(), "first", more);
    let driver = worker.connect().await;
    let mut sequences: Vec<Sequence> =
        (0..3).map(|index| driver.generate(generate(&format!("Once {index}"), max_tokens)).unwrap()).collect();
    let mut delivered = Vec::new();
    for (index, sequence) in sequences.iter_mut().enumerate() {
        delivered.push(read(sequence, 3 + index).await.0);
    }
    worker.child.kill().unwrap();
    worker.child.wait().unwrap();
    for (sequence, delivered) in sequences.iter_mut().zip(&mut delivered) {
        let (tokens, finished) = read(sequence, 10_000).await;
        delivered.extend(tokens);
        assert!(finished.is_none(), "the worker is gone: nobody told an end");
    }
    let second = Worker::start(folder.path(), "second", more);
    let driver = second.connect().await;
    for (index, (delivered, whole)) in delivered.iter_mut().zip(&whole).enumerate() {
        let generated = ids(delivered);
        assert!((3..max_tokens as usize).contains(&generated.len()), "{}", generated.len());
        let rest = EngineGenerate { generated, ..generate(&format!("Once {index}"), max_tokens) };
        let (tokens, finished) = read(&mut driver.generate(rest).unwrap(), 10_000).await;
        assert_eq!(finished.unwrap().generated_tokens, max_tokens);
        delivered.extend(tokens);
        let positions: Vec<u32> = delivered.iter().map(|token| token.position).collect();
        assert_eq!(positions, (0..max_tokens).collect::<Vec<_>>(), "without gap or repeat");
        if more.contains(&"--simulated") {
            assert_eq!(ids(delivered), ids(whole), "as if nothing had happened");
        }
    }
    let meters = metered(&[folder.path().join("first.meter"), folder.path().join("second.meter")]);
    for (index, delivered) in delivered.iter().enumerate() {
        let places = &meters[&format!("Once {index}")];
        // What the first worker metered and could not deliver any more is computed again: at most what was under way.
        assert!((delivered.len()..=delivered.len() + AHEAD).contains(&places.len()), "{}", places.len());
    }
}

#[tokio::test]
async fn what_a_killed_worker_delivered_is_gone_on_with() {
    survives(&["--simulated"], 60).await;
}

#[cfg(feature = "llama")]
mod with_a_model {
    use std::os::fd::AsRawFd as _;
    use std::process::Output;
    use std::sync::OnceLock;

    use super::*;

    /// SmolLM2-135M as Q4_0: as it is fetched, as Q4_1, it answers greedy questions worse, and four times slower.
    fn model() -> Option<PathBuf> {
        static MODEL: OnceLock<Option<PathBuf>> = OnceLock::new();
        let made = || {
            let anew = Path::new(env!("CARGO_TARGET_TMPDIR")).join("worker-smollm2-q4_0.gguf");
            let done = requantize(&fetched()?, &anew);
            assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
            Some(anew)
        };
        MODEL.get_or_init(made).clone()
    }

    fn requantize(from: &Path, to: &Path) -> Output {
        Command::new(env!("CARGO_BIN_EXE_sluice")).arg("engine-requantize").arg(from).arg(to).output().unwrap()
    }

    fn fetched() -> Option<PathBuf> {
        let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
        let cache = cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")))?;
        let path = cache.join("sluice/models/SmolLM2-135M-Instruct.Q4_1.gguf");
        if !path.is_file() {
            eprintln!("SKIPPED: {} is missing; scripts/setup.sh fetches it", path.display());
            return None;
        }
        Some(path)
    }

    #[tokio::test]
    async fn a_killed_worker_of_a_real_model_is_gone_on_with() {
        let Some(model) = model() else { return };
        survives(&["--model", model.to_str().unwrap(), "--context", "512", "--threads", "1"], 24).await;
    }

    #[tokio::test]
    async fn a_question_is_answered_from_an_open_file() {
        let Some(model) = model() else { return };
        let folder = tempfile::tempdir().unwrap();
        let file = std::fs::File::open(model).unwrap();
        // The worker inherits it.
        let flags = nix::fcntl::FdFlag::empty();
        nix::fcntl::fcntl(&file, nix::fcntl::FcntlArg::F_SETFD(flags)).unwrap();
        let number = file.as_raw_fd().to_string();
        let worker = Worker::start(folder.path(), "w", &["--model-fd", &number, "--context", "512", "--threads", "1"]);
        let driver = worker.connect().await;
        assert_eq!((driver.ready().context, driver.ready().threads, driver.ready().model.len()), (512, 1, 64));
        let said = EngineMessage { role: "user".to_owned(), content: "What is the capital of France?".to_owned() };
        let asked = EngineGenerate {
            prompt: Some(Prompt::Chat(EngineChat { messages: vec![said] })),
            sampling: Some(EngineSampling { top_logprobs: Some(2), ..EngineSampling::default() }),
            ignore_end: false,
            ..generate("paris", 40)
        };
        let (tokens, finished) = read(&mut driver.generate(asked).unwrap(), 100).await;
        let finished = finished.unwrap();
        let mut text: Vec<u8> = tokens.iter().flat_map(|token| token.text.to_vec()).collect();
        text.extend_from_slice(&finished.text);
        let text = String::from_utf8(text).unwrap();
        assert!(text.contains("Paris"), "{text}");
        assert_eq!(finished.finish(), EngineFinish::Stop, "{text}");
        assert!(tokens.iter().all(|token| token.logprob.unwrap() <= 0.0 && token.top.len() == 2));
        // What each token is, whatever is shown with it.
        let own: Vec<u8> = tokens.iter().flat_map(|token| token.bytes.to_vec()).collect();
        assert!(own.starts_with(text.as_bytes()), "{}", String::from_utf8_lossy(&own));
    }

    /// One binary has kernels for several generations of processors. Each that this host can run is asked the same.
    #[tokio::test]
    async fn every_set_of_kernels_answers_alike() {
        let Some(model) = model() else { return };
        let folder = tempfile::tempdir().unwrap();
        let mut best = None;
        for wanted in ["", "portable", "haswell", "icelake"] {
            let environment = [("SLUICE_KERNELS", wanted)];
            let environment = if wanted.is_empty() { &[][..] } else { &environment[..] };
            let more = ["--model", model.to_str().unwrap(), "--context", "512", "--threads", "1"];
            let worker = Worker::start_with(folder.path(), &format!("w{wanted}"), &more, environment);
            let driver = worker.connect().await;
            let kernels = driver.ready().kernels.clone();
            let best = best.get_or_insert_with(|| kernels.clone());
            if !wanted.is_empty() && kernels != wanted {
                eprintln!("SKIPPED: this host runs {best} at best, not {wanted}");
                assert_eq!(kernels, "portable", "what cannot run falls back");
                continue;
            }
            let said = EngineMessage { role: "user".to_owned(), content: "What is the capital of France?".to_owned() };
            let asked = EngineGenerate {
                prompt: Some(Prompt::Chat(EngineChat { messages: vec![said] })),
                sampling: None,
                ignore_end: false,
                ..generate("paris", 40)
            };
            let (tokens, finished) = read(&mut driver.generate(asked).unwrap(), 100).await;
            assert_eq!(finished.unwrap().finish(), EngineFinish::Stop);
            let text: Vec<u8> = tokens.iter().flat_map(|token| token.text.to_vec()).collect();
            let text = String::from_utf8(text).unwrap();
            assert!(text.contains("The capital of France is Paris"), "{kernels}: {text}");
        }
    }

    #[test]
    fn a_model_is_checked_and_written_anew() {
        let Some(model) = fetched() else { return };
        let folder = tempfile::tempdir().unwrap();
        let anew = folder.path().join("q4_0.gguf");
        let check =
            |file: &Path| Command::new(env!("CARGO_BIN_EXE_sluice")).arg("engine-check").arg(file).output().unwrap();
        let report = |file: &Path| -> serde_json::Value { serde_json::from_slice(&check(file).stdout).unwrap() };
        assert!(requantize(&model, &anew).status.success());
        let (before, after) = (report(&model), report(&anew));
        assert_eq!((&before["quantisation"], &after["quantisation"]), (&"Q4_1".into(), &"Q4_0".into()));
        for same in ["architecture", "parameters", "context", "vocabulary", "overhead"] {
            assert_eq!(before[same], after[same]);
        }
        assert_ne!(before["digest"], after["digest"]);
        assert_eq!(after["overhead"]["first"], 30);
        std::fs::write(&anew, "no model").unwrap();
        let refused = check(&anew);
        assert!(!refused.status.success());
        assert_eq!(String::from_utf8_lossy(&refused.stderr), "error: it is not a GGUF file\n");
        assert!(!requantize(&anew, &folder.path().join("more.gguf")).status.success());
    }
}
