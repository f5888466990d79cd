//! Tools of the system.

use std::process::{Command, Stdio};

use anyhow::Context as _;

/// A command line.
pub(super) fn command(words: &[&str]) -> Command {
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).stdin(Stdio::null());
    command
}

/// The same in a site's network.
pub(super) fn inside(site: &str, words: &[&str]) -> Command {
    let network = format!("--net={}/{site}", super::NAMES);
    let mut command = command(&["nsenter", &network]);
    command.args(words);
    command
}

/// Runs it; what it says is part of the error.
pub(super) fn succeed(command: &mut Command) -> anyhow::Result<()> {
    output(command).map(drop)
}

/// What it printed.
pub(super) fn output(command: &mut Command) -> anyhow::Result<String> {
    let name = format!("{command:?}");
    let output = command.output().with_context(|| format!("cannot start {name}"))?;
    let told = String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(output.status.success(), "{name}: {}", told.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
