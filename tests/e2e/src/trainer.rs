//! The real training job: what it needs, how it is submitted, and the curve that it must give.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context as _;

use crate::binary::trainer_binary;
use crate::checker::Step;
use crate::cli::Cli;

/// A model of about a millisecond per step.
const TINY: &[&str] = &[
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
    "1",
];

/// How long a training job is.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Steps.
    pub steps: u64,
    /// Pause after each, in milliseconds.
    pub pause: u64,
    /// A checkpoint after so many.
    pub every: u64,
}

/// A folder with the trainer and a text, ready to be uploaded.
#[derive(Debug)]
pub struct Trainer {
    folder: PathBuf,
    apart: PathBuf,
}

impl Trainer {
    /// Prepares the folder below `scratch`.
    ///
    /// # Errors
    /// The trainer cannot be built or copied.
    pub fn new(scratch: &Path) -> anyhow::Result<Self> {
        let (folder, apart) = (scratch.join("train"), scratch.join("apart"));
        fs::create_dir_all(&folder)?;
        fs::create_dir_all(&apart)?;
        fs::copy(trainer_binary()?, folder.join("trainer")).context("the trainer")?;
        // A smaller upload, where there is a tool for it.
        let _ = Command::new("strip").arg(folder.join("trainer")).output();
        fs::write(folder.join("text"), text()?)?;
        Ok(Self { folder, apart })
    }

    /// What is uploaded.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// What is run in it, with its pauses.
    #[must_use]
    pub fn command(shape: Shape) -> Vec<String> {
        let mut words = Self::words("./trainer", shape, &[]);
        words.extend(["--pause-ms".to_owned(), shape.pause.to_string()]);
        words
    }

    /// Of flags that are given twice the trainer takes the later one.
    fn words(program: &str, shape: Shape, more: &[&str]) -> Vec<String> {
        let mut words = vec![program.to_owned(), "--data".to_owned(), "text".to_owned()];
        words.extend(TINY.iter().chain(more).map(|word| (*word).to_owned()));
        words.extend(["--steps".to_owned(), shape.steps.to_string()]);
        words
    }

    /// Submits it and returns the job's id. `flags` go to `sluice submit`.
    ///
    /// # Errors
    /// It was refused.
    pub fn submit(&self, cli: &Cli, shape: Shape, flags: &[&str]) -> anyhow::Result<String> {
        self.submit_with(cli, shape, flags, &[])
    }

    /// As [`Self::submit`], with more flags of the trainer.
    ///
    /// # Errors
    /// It was refused.
    pub fn submit_with(&self, cli: &Cli, shape: Shape, flags: &[&str], more: &[&str]) -> anyhow::Result<String> {
        let (folder, every) = (self.folder.display().to_string(), shape.every.to_string());
        let words = Self::words("./trainer", shape, more);
        let pause = shape.pause.to_string();
        let mut all = vec!["--workdir", &folder, "--memory", "256MiB"];
        if !flags.contains(&"--share") {
            all.extend(["--share", "800m"]);
        }
        all.extend(["--checkpoint-every-steps", &every]);
        all.extend(flags);
        all.push("--");
        all.extend(words.iter().map(String::as_str));
        all.extend(["--pause-ms", &pause]);
        cli.submit(&all)
    }

    /// The same steps in one uninterrupted process outside of Sluice.
    ///
    /// # Errors
    /// It failed.
    pub fn uninterrupted(&self, shape: Shape) -> anyhow::Result<Vec<Step>> {
        self.uninterrupted_with(shape, &[])
    }

    /// As [`Self::uninterrupted`], with more flags of the trainer.
    ///
    /// # Errors
    /// It failed.
    pub fn uninterrupted_with(&self, shape: Shape, more: &[&str]) -> anyhow::Result<Vec<Step>> {
        let words = Self::words("./trainer", shape, more);
        let log = self.apart.join(format!("{}.jsonl", shape.steps));
        let _old = fs::remove_file(&log);
        let mut command = Command::new(self.folder.join("trainer"));
        command.current_dir(&self.folder).args(&words[1..]).arg("--log").arg(&log);
        command.arg("--export").arg(self.apart.join("model"));
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("SLUICE_")) {
            command.env_remove(name);
        }
        let output = command.output().context("cannot start the trainer")?;
        anyhow::ensure!(output.status.success(), "the trainer failed: {}", String::from_utf8_lossy(&output.stderr));
        steps_of(&log)
    }
}

/// Reads a step log; a last line that was cut off does not count.
///
/// # Errors
/// It is not there, or a line in the middle is damaged.
pub fn steps_of(log: &Path) -> anyhow::Result<Vec<Step>> {
    let text = fs::read_to_string(log).with_context(|| format!("the step log {}", log.display()))?;
    crate::checker::parse_steps(&text)
}

/// How much of a long text is trained on: it is uploaded.
const MOST_TEXT: usize = 1 << 20;

/// The beginning of the text that `SLUICE_TEXT` names; without it, words by a small generator, the same everywhere.
fn text() -> anyhow::Result<String> {
    if let Some(path) = std::env::var_os("SLUICE_TEXT") {
        let mut text = fs::read_to_string(&path).with_context(|| format!("the text {}", path.display()))?;
        text.truncate(text.floor_char_boundary(MOST_TEXT));
        return Ok(text);
    }
    let words =
        ["the ", "node ", "lease ", "window ", "runs ", "and ", "is ", "paid ", "once, ", "never ", "twice. ", "\n"];
    let mut state = 7u64;
    let mut all = String::new();
    while all.len() < 40_000 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        all.push_str(words[usize::try_from(state >> 33).unwrap_or(0) % words.len()]);
    }
    Ok(all)
}
