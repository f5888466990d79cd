//! Running other programs and saying how it went.

use std::collections::VecDeque;
use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;

/// Runs a command whose output goes where this program's goes; an error if it does not succeed.
pub(crate) fn step(name: &str, command: &mut Command) -> anyhow::Result<Duration> {
    let begin = Instant::now();
    eprintln!("== {name}");
    let status = command.stdin(Stdio::null()).status().with_context(|| format!("{name}: cannot start {command:?}"))?;
    anyhow::ensure!(status.success(), "{name} failed ({status}): {}", shown(command));
    Ok(begin.elapsed())
}

/// A command line to type.
pub(crate) fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}

/// How many lines of what a program says last are kept to be told again.
const LAST_LINES: usize = 12;

/// How a program ended.
pub(crate) struct Ended {
    pub(crate) fine: bool,
    /// The last lines of its stderr.
    pub(crate) said: Vec<String>,
}

/// Runs a command and passes each line of its stdout to `line`. True if it succeeded.
pub(crate) fn lines(command: &mut Command, line: impl FnMut(&str)) -> anyhow::Result<bool> {
    Ok(watched(command, line)?.fine)
}

/// As [`lines`], and keeps what the program says last; its stderr goes where this program's goes.
pub(crate) fn watched(command: &mut Command, mut line: impl FnMut(&str)) -> anyhow::Result<Ended> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {}", shown(command)))?;
    let stdout = child.stdout.take().context("invariant: stdout is piped")?;
    let stderr = child.stderr.take().context("invariant: stderr is piped")?;
    let told = std::thread::spawn(move || {
        let mut last = VecDeque::new();
        for read in BufReader::new(stderr).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&read).into_owned();
            eprintln!("{line}");
            last.push_back(line);
            if last.len() > LAST_LINES {
                last.pop_front();
            }
        }
        last
    });
    for read in BufReader::new(stdout).split(b'\n') {
        line(&String::from_utf8_lossy(&read.context("cannot read what a program prints")?));
    }
    let fine = child.wait().context("cannot wait for a program")?.success();
    let said = told.join().map_err(|_| anyhow::anyhow!("what a program says could not be read"))?;
    Ok(Ended { fine, said: said.into() })
}

/// The whole stdout of a command that succeeds; its stderr is part of the error.
pub(crate) fn output(command: &mut Command) -> anyhow::Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot start {}", shown(command)))?;
    let told = String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(output.status.success(), "{} failed ({}): {}", shown(command), output.status, told.trim());
    String::from_utf8(output.stdout).context("the output is not text")
}

/// What came of one part of a longer run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    Passed,
    Failed(String),
    Skipped(String),
}

/// The parts of a run, in order.
#[derive(Debug, Default)]
pub(crate) struct Report {
    parts: Vec<(String, Outcome, Duration)>,
}

impl Report {
    /// Does one part; a failure is kept for the end, so that one run tells all.
    pub(crate) fn part(&mut self, name: &str, work: impl FnOnce() -> anyhow::Result<Outcome>) {
        let begin = Instant::now();
        eprintln!("== {name}");
        let outcome = work().unwrap_or_else(|error| Outcome::Failed(format!("{error:#}")));
        match &outcome {
            Outcome::Passed => {}
            Outcome::Failed(why) => eprintln!("FAILED: {name}: {why}"),
            Outcome::Skipped(why) => println!("SKIPPED: {name}: {why}"),
        }
        self.parts.push((name.to_owned(), outcome, begin.elapsed()));
    }

    /// Does one part that is a command.
    pub(crate) fn command(&mut self, name: &str, command: &mut Command) {
        self.part(name, || {
            let status = command.stdin(Stdio::null()).status();
            let status = status.with_context(|| format!("cannot start {}", shown(command)))?;
            let failed = || Outcome::Failed(format!("{} ({status})", shown(command)));
            Ok(if status.success() { Outcome::Passed } else { failed() })
        });
    }

    /// Prints the table of parts; an error if one failed.
    pub(crate) fn finish(self) -> anyhow::Result<()> {
        println!();
        for (name, outcome, took) in &self.parts {
            let word = match outcome {
                Outcome::Passed => "passed".to_owned(),
                Outcome::Failed(why) => format!("FAILED: {}", why.lines().next().unwrap_or_default()),
                Outcome::Skipped(why) => format!("SKIPPED: {why}"),
            };
            println!("{name:<28} {:>7.1} s  {word}", took.as_secs_f64());
        }
        let failed = self.parts.iter().filter(|(_, outcome, _)| matches!(outcome, Outcome::Failed(_))).count();
        anyhow::ensure!(failed == 0, "{failed} of {} parts failed", self.parts.len());
        Ok(())
    }
}
