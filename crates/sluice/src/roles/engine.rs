//! An engine worker's process, and what is done to a model before any worker has it.

use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::sync::Arc;

use anyhow::Context as _;
use sluice_engine::engine::EngineError;
use sluice_engine::meter::MeterFolder;
use sluice_engine::runner::Bounds;
use sluice_engine::schedule::Rules;
use sluice_engine::simulated::{SimulatedEngine, SimulatedVocabulary};
use sluice_engine::threads::{Granted, granted};
use sluice_engine::worker::{Door, Made, Worker};

use crate::command::EngineWorkerArgs;
use crate::{process, telemetry};

/// Serves one model until a signal.
pub(crate) fn engine_worker(arguments: &EngineWorkerArgs) -> ExitCode {
    let granted = granted();
    wait_passively(granted);
    // The granted cores are for computing: connections share one thread.
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(2).build() {
        Ok(runtime) => runtime,
        Err(error) => return super::failed(&error),
    };
    match runtime.block_on(serve(arguments, granted)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The threads that compute wait for each other at every layer. The library that does it reads once, before `main`, how: so
/// this process starts itself again with what it should read. On whole cores it looks for a moment before it sleeps; where the
/// slice is a fraction, or one of a core that others use, looking would burn what was granted.
fn wait_passively(granted: Granted) {
    const SAID: &str = "OMP_WAIT_POLICY";
    if std::env::var_os(SAID).is_some() {
        return;
    }
    let mut again = Command::new("/proc/self/exe");
    again.args(std::env::args_os().skip(1)).env(SAID, "passive").env("OMP_DYNAMIC", "false");
    if !granted.fractional {
        again.env("GOMP_SPINCOUNT", "20000");
    }
    let error = again.exec();
    tracing::debug!(%error, "computing threads wait as they are");
}

async fn serve(arguments: &EngineWorkerArgs, granted: Granted) -> anyhow::Result<()> {
    telemetry::start();
    process::end_with_parent(arguments.with_parent)?;
    let stop = process::stop_signal()?;
    let threads = match arguments.threads {
        0 => granted.threads,
        wanted => wanted.min(granted.threads),
    };
    let meter = MeterFolder::open(&arguments.meter).context("cannot open the meter's folder")?;
    let spare = sluice_types::serving::spare_places(arguments.sequences);
    let rules = Rules { width: arguments.sequences.saturating_add(spare), ..Rules::default() };
    let bounds = Bounds { spare, window: arguments.window, rules, ..Bounds::default() };
    let slots = arguments.sequences.saturating_add(spare);
    let (digest, make): (_, Box<dyn FnOnce() -> Result<Made, EngineError> + Send>) = if arguments.simulated {
        let make =
            || Ok(Made { engine: Box::new(SimulatedEngine::paced()), vocabulary: Arc::new(SimulatedVocabulary) });
        ("simulated".to_owned(), Box::new(make))
    } else {
        let file = model_file(arguments)?;
        let digest = match &arguments.digest {
            Some(digest) => digest.clone(),
            None => digest_of(&file).context("cannot read the model")?,
        };
        (digest, Box::new(loaded(file, arguments, slots, threads)))
    };
    let worker = Worker::load(make, digest, Box::new(meter), bounds).await?;
    let door = Door::open(&arguments.listen).await.with_context(|| format!("cannot listen at {}", arguments.listen))?;
    let ready = worker.ready();
    let said = serde_json::json!({
        "address": door.address()?, "model": ready.model, "context": ready.context, "sequences": ready.sequences,
        "threads": ready.threads, "window": ready.window, "kernels": ready.kernels,
    });
    // Whoever started this waits for the line.
    let mut out = std::io::stdout().lock();
    writeln!(out, "{said}").and_then(|()| out.flush()).context("cannot say where it listens")?;
    drop(out);
    tokio::select! {
        served = worker.serve(door) => served.context("the worker ended"),
        () = stop.cancelled() => Ok(()),
    }
}

/// The model's file, or the open one that was handed over.
fn model_file(arguments: &EngineWorkerArgs) -> anyhow::Result<File> {
    match (&arguments.model, arguments.model_fd) {
        (Some(path), None) => File::open(path).with_context(|| format!("cannot open {}", path.display())),
        (None, Some(number)) => handed_over(number).with_context(|| format!("descriptor {number} is no open file")),
        _ => anyhow::bail!("give --model PATH or --model-fd NUMBER"),
    }
}

/// Reads at places of its own: a descriptor that others have too is not moved.
fn digest_of(file: &File) -> std::io::Result<String> {
    let mut hasher = blake3::Hasher::new();
    let mut piece = vec![0; 1 << 20];
    let mut at = 0;
    loop {
        let read = file.read_at(&mut piece, at)?;
        if read == 0 {
            return Ok(hasher.finalize().to_hex().to_string());
        }
        hasher.update(&piece[..read]);
        at += read as u64;
    }
}

#[cfg(feature = "llama")]
use sluice_engine::llama::inherited as handed_over;

#[cfg(not(feature = "llama"))]
fn handed_over(number: i32) -> std::io::Result<File> {
    File::open(format!("/proc/self/fd/{number}"))
}

#[cfg(feature = "llama")]
fn loaded(
    model: File,
    arguments: &EngineWorkerArgs,
    slots: u32,
    threads: u32,
) -> impl FnOnce() -> Result<Made, EngineError> + Send + use<> {
    use sluice_engine::llama::{LlamaEngine, LlamaModel, LlamaOptions};
    let (context, cache) = (arguments.context, arguments.cache.get());
    move || {
        let options = LlamaOptions { context, cache, slots, threads };
        let model = LlamaModel::load(&model)?;
        let engine = LlamaEngine::new(&model, &options)?;
        Ok(Made { engine: Box::new(engine), vocabulary: Arc::new(model) })
    }
}

#[cfg(not(feature = "llama"))]
fn loaded(_: File, _: &EngineWorkerArgs, _: u32, _: u32) -> impl FnOnce() -> Result<Made, EngineError> + Send + use<> {
    || Err(EngineError::Load("this program was built without an engine (feature `llama`)".to_owned()))
}

/// Says what a model is, as JSON; a file that is none ends with what is wrong with it.
pub(crate) fn engine_check(model: &Path) -> ExitCode {
    let report = sluice_engine::inspect::inspect(model);
    let said = report.map(|report| serde_json::to_string(&report));
    match said {
        Ok(Ok(line)) => {
            println!("{line}");
            ExitCode::SUCCESS
        }
        Ok(Err(error)) => super::failed(&error),
        Err(error) => super::failed(&error),
    }
}

/// Writes a model anew as Q4_0.
#[cfg(feature = "llama")]
pub(crate) fn engine_requantize(from: &Path, to: &Path) -> ExitCode {
    match sluice_engine::llama::requantize(from, to, granted().threads) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => super::failed(&error),
    }
}

#[cfg(not(feature = "llama"))]
pub(crate) fn engine_requantize(_: &Path, _: &Path) -> ExitCode {
    eprintln!("error: this program was built without an engine (feature `llama`)");
    ExitCode::FAILURE
}
