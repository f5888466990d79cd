//! `cargo xtask test`: all that CI runs, in one report.

use std::process::Command;

use crate::run::{self, Outcome, Report};
use crate::{check, place, verify};

/// `cargo xtask test`
pub(crate) fn command() -> anyhow::Result<()> {
    let mut report = Report::default();
    check::add(&mut report);
    report.part("buf lint", buf);
    // Programs, tests and examples at once: tests start both kinds of programs.
    let mut build = place::cargo();
    report.command("build", build.args(["build", "--quiet", "--all-targets"]).args(place::ALL));
    let mut counts = Counts::default();
    report.part("cargo test", || cargo_test(&mut counts));
    report.part("python client", python);
    report.part("verify spine --quick", || verify::quick().map(|()| Outcome::Passed));
    println!("\ncargo test: {} passed, {} failed, {} ignored", counts.passed, counts.failed, counts.ignored);
    for reason in &counts.skipped {
        println!("{reason}");
    }
    report.finish()
}

/// Figures of libtest.
#[derive(Debug, Default)]
struct Counts {
    passed: u64,
    failed: u64,
    ignored: u64,
    /// Lines by which tests say that they could not run.
    skipped: Vec<String>,
}

impl Counts {
    /// Takes note of one line of output; true if people should see it.
    fn line(&mut self, line: &str, inside: &mut bool) -> bool {
        if line == "successes:" {
            *inside = true;
        }
        if line == "failures:" {
            *inside = false;
        }
        if let Some(rest) = line.strip_prefix("test result: ") {
            *inside = false;
            for part in rest.split([';', '.']) {
                match part.trim().split_once(' ') {
                    Some((count, "passed")) => self.passed += count.parse().unwrap_or(0),
                    Some((count, "failed")) => self.failed += count.parse().unwrap_or(0),
                    Some((count, "ignored")) => self.ignored += count.parse().unwrap_or(0),
                    _ => {}
                }
            }
        }
        if line.contains("SKIPPED") && self.skipped.iter().all(|known| known != line) {
            self.skipped.push(line.to_owned());
        }
        let dull = line.is_empty() || line.starts_with("test ") && line.ends_with("... ok");
        !*inside && !dull
    }
}

fn cargo_test(counts: &mut Counts) -> anyhow::Result<Outcome> {
    let mut command = place::cargo();
    // The output of tests that passed is shown to us, because some of them say there that they were skipped.
    command.args(["test", "--quiet", "--no-fail-fast"]).args(place::ALL).args([
        "--",
        "--show-output",
        "--format=pretty",
    ]);
    place::name_programs(&mut command, place::Profile::Debug);
    let mut inside = false;
    let fine = run::lines(&mut command, |line| {
        if counts.line(line, &mut inside) {
            println!("{line}");
        }
    })?;
    Ok(if fine { Outcome::Passed } else { Outcome::Failed(format!("{} tests", counts.failed)) })
}

fn buf() -> anyhow::Result<Outcome> {
    let cached = place::cache()?.join("buf/bin/buf");
    let program = if cached.is_file() { cached } else { "buf".into() };
    let known = Command::new(&program).arg("--version").output().is_ok_and(|output| output.status.success());
    if !known {
        return Ok(Outcome::Skipped("buf is not installed (scripts/setup.sh --tests fetches it)".to_owned()));
    }
    run::step("buf lint", Command::new(program).arg("lint").current_dir(place::root().join("proto")))?;
    Ok(Outcome::Passed)
}

fn python() -> anyhow::Result<Outcome> {
    if Command::new("python3").arg("--version").output().is_err() {
        return Ok(Outcome::Skipped("python3 is not installed".to_owned()));
    }
    let mut command = Command::new("python3");
    command.args(["-B", "-m", "unittest", "-q"]).current_dir(place::root().join("clients/python"));
    run::step("python3 -m unittest", &mut command)?;
    Ok(Outcome::Passed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_and_skips_are_counted() {
        let mut counts = Counts::default();
        let mut inside = false;
        let mut shown = Vec::new();
        for line in [
            "running 2 tests",
            "test a ... ok",
            "test b ... FAILED",
            "successes:",
            "---- a stdout ----",
            "SKIPPED: no server",
            "test result: FAILED. 1 passed; 1 failed; 3 ignored; 0 measured; 0 filtered out; finished in 0.1s",
            "test result: ok. 10 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.1s",
        ] {
            if counts.line(line, &mut inside) {
                shown.push(line);
            }
        }
        assert_eq!((counts.passed, counts.failed, counts.ignored), (11, 1, 3));
        assert_eq!(counts.skipped, ["SKIPPED: no server"]);
        assert_eq!(shown.len(), 4, "{shown:?}");
    }
}
