//! The command line, as a user has it.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::Context as _;
use serde_json::Value;

/// One finished command.
#[derive(Debug, Clone)]
pub struct Done {
    /// Exit code; -1 where a signal ended it.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Done {
    /// As itself, if it ended with 0.
    ///
    /// # Errors
    /// It did not.
    pub fn well(self) -> anyhow::Result<Self> {
        anyhow::ensure!(self.code == 0, "exit code {}\n{}{}", self.code, self.stdout, self.stderr);
        Ok(self)
    }
}

/// A caller of the command line.
#[derive(Debug, Clone)]
pub struct Cli {
    program: PathBuf,
    data: PathBuf,
    key: Option<PathBuf>,
    tenant: Option<String>,
}

impl Cli {
    /// The admin of the system in `data`.
    #[must_use]
    pub fn new(program: &Path, data: &Path) -> Self {
        Self { program: program.to_owned(), data: data.to_owned(), key: None, tenant: None }
    }

    /// The same with another key, in a file, and another tenant.
    #[must_use]
    pub fn with_key(&self, key: &Path, tenant: &str) -> Self {
        Self { key: Some(key.to_owned()), tenant: Some(tenant.to_owned()), ..self.clone() }
    }

    /// Runs a command to its end.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn run(&self, arguments: &[&str]) -> anyhow::Result<Done> {
        let output = self.command(arguments).stdin(Stdio::null()).output();
        self.done(output)
    }

    /// Runs a command to its end and gives it this to read.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn fed(&self, arguments: &[&str], input: Vec<u8>) -> anyhow::Result<Done> {
        let mut command = self.command(arguments);
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let mut child = child.with_context(|| format!("cannot start {}", self.program.display()))?;
        let mut to = child.stdin.take().context("standard input")?;
        // Beside the reading of what it writes, or both would wait for each other.
        let feeder = std::thread::spawn(move || to.write_all(&input));
        let done = self.done(child.wait_with_output());
        // A program that had enough is no error here.
        let _enough = feeder.join();
        done
    }

    fn done(&self, output: std::io::Result<Output>) -> anyhow::Result<Done> {
        let output = output.with_context(|| format!("cannot start {}", self.program.display()))?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let code = output.status.code().unwrap_or(-1);
        Ok(Done { code, stdout: text(&output.stdout), stderr: text(&output.stderr) })
    }

    /// A command as it would be typed.
    #[must_use]
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        for variable in ["SLUICE_SERVER", "SLUICE_CA", "SLUICE_KEY", "SLUICE_TENANT", "SLUICE_PROJECT", "SLUICE_DATA"] {
            command.env_remove(variable);
        }
        command.arg("--data").arg(&self.data);
        if let Some(key) = &self.key {
            command.arg("--key-file").arg(key);
        }
        if let Some(tenant) = &self.tenant {
            command.args(["--tenant", tenant]);
        }
        command.args(arguments);
        command
    }

    /// Runs a command that must end with 0.
    ///
    /// # Errors
    /// It did not.
    pub fn well(&self, arguments: &[&str]) -> anyhow::Result<Done> {
        let done = self.run(arguments)?;
        done.well().with_context(|| format!("sluice {}", arguments.join(" ")))
    }

    /// Runs a command and reads the JSON that it prints. What follows `--` stays behind `-o json`.
    ///
    /// # Errors
    /// It failed, or printed something else.
    pub fn json(&self, arguments: &[&str]) -> anyhow::Result<Value> {
        let all: Vec<&str> = ["-o", "json"].iter().chain(arguments).copied().collect();
        let done = self.well(&all)?;
        serde_json::from_str(&done.stdout).with_context(|| format!("no JSON: {}", done.stdout))
    }

    /// A job as `get jobs` shows it.
    ///
    /// # Errors
    /// As [`Self::json`].
    pub fn job(&self, job: &str) -> anyhow::Result<Value> {
        let value = self.json(&["get", "jobs", job])?;
        let one = value.get("items").and_then(|items| items.get(0)).cloned();
        Ok(one.unwrap_or(value))
    }

    /// Whether a job has a checkpoint that outlives its site: without one it waits for a site that is lost.
    ///
    /// # Errors
    /// As [`Self::json`].
    pub fn outlives_its_site(&self, job: &str) -> anyhow::Result<bool> {
        let value = self.json(&["checkpoints", job])?;
        // Left out where there are none.
        let rows = value["items"].as_array();
        Ok(rows.is_some_and(|rows| rows.iter().any(|row| row["durable"] == true)))
    }

    /// Submits and returns the job's id.
    ///
    /// # Errors
    /// It was refused.
    pub fn submit(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let all: Vec<&str> = std::iter::once("submit").chain(arguments.iter().copied()).collect();
        let value = self.json(&all)?;
        Ok(value["id"].as_str().context("a job's id")?.to_owned())
    }
}
