//! `kubectl`, as a user of the cluster types it.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use anyhow::Context as _;
use serde_json::Value;

use crate::cli::Done;

/// A caller of kubectl.
#[derive(Debug, Clone)]
pub struct Kubectl {
    pub(super) program: PathBuf,
    pub(super) kubeconfig: PathBuf,
    /// Where kubectl keeps what it learnt of the server's kinds.
    pub(super) home: PathBuf,
}

impl Kubectl {
    /// A command as it would be typed.
    #[must_use]
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.env("HOME", &self.home).env("KUBECONFIG", &self.kubeconfig).env_remove("XDG_CACHE_HOME");
        command.arg("kubectl").args(arguments);
        command
    }

    /// Runs a command to its end.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn run(&self, arguments: &[&str]) -> anyhow::Result<Done> {
        done(self.command(arguments).stdin(Stdio::null()).output())
    }

    /// Runs a command that must succeed.
    ///
    /// # Errors
    /// It did not.
    pub fn well(&self, arguments: &[&str]) -> anyhow::Result<Done> {
        self.run(arguments)?.well().with_context(|| format!("kubectl {}", arguments.join(" ")))
    }

    /// Runs a command with a manifest at its standard input.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn fed(&self, arguments: &[&str], manifest: &str) -> anyhow::Result<Done> {
        let mut command = self.command(arguments);
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let mut child = child.context("cannot start kubectl")?;
        let mut to = child.stdin.take().context("standard input")?;
        // Manifests are smaller than a pipe, so this waits for nobody.
        to.write_all(manifest.as_bytes())?;
        drop(to);
        done(child.wait_with_output())
    }

    /// Runs a command that prints JSON.
    ///
    /// # Errors
    /// It failed, or printed something else.
    pub fn json(&self, arguments: &[&str]) -> anyhow::Result<Value> {
        let done = self.well(&[arguments, &["-o", "json"]].concat())?;
        serde_json::from_str(&done.stdout).with_context(|| format!("no JSON: {}", done.stdout))
    }
}

fn done(output: std::io::Result<Output>) -> anyhow::Result<Done> {
    let output = output.context("cannot start kubectl")?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let code = output.status.code().unwrap_or(-1);
    Ok(Done { code, stdout: text(&output.stdout), stderr: text(&output.stderr) })
}
