//! `cargo xtask test`: all that CI runs, in one report.

use std::collections::BTreeSet;
use std::process::Command;
use std::time::Duration;

use anyhow::Context as _;

use crate::run::{self, Outcome, Report};
use crate::{check, lanes, place, verify};

/// `cargo xtask test`
pub(crate) fn command() -> anyhow::Result<()> {
    let mut report = Report::default();
    check::add(&mut report);
    report.part("buf lint", buf);
    // Programs, tests and examples at once: tests start both kinds of programs.
    let mut build = place::cargo();
    report.command("build", build.args(["build", "--quiet", "--all-targets"]).args(place::ALL));
    report.part("python client", python);
    let mut tested = Tested::default();
    report.part("tests, verify --quick", || side_by_side(&mut tested));
    println!();
    for (name, took) in tested.longest() {
        println!("{name:<60} {:>7.1} s", took.as_secs_f64());
    }
    let counts = tested.counts;
    println!("\ncargo test: {} passed, {} failed, {} ignored", counts.passed, counts.failed, counts.ignored);
    println!("verify --quick: {} rows hold, {} do not, {} skipped", tested.hold, tested.fail, tested.skipped);
    for reason in &counts.skipped {
        println!("{reason}");
    }
    report.finish()
}

/// Tests whose bounds are shares of a processor, by folder and target: nothing may run beside them.
const ALONE: [(&str, &str); 1] = [("crates/device", "enforcement")];
/// The tests of whole systems take turns, so they take longest and begin first.
const LONG: &str = "system";
/// How many of the longest parts are told.
const LONGEST: usize = 12;

/// What came of tests and short forms.
#[derive(Default)]
struct Tested {
    counts: Counts,
    hold: usize,
    fail: usize,
    skipped: usize,
    took: Vec<(String, Duration)>,
}

impl Tested {
    /// Those that took longest: whoever waits for the tests knows what for.
    fn longest(&mut self) -> &[(String, Duration)] {
        self.took.sort_by_key(|(_, took)| std::cmp::Reverse(*took));
        &self.took[..self.took.len().min(LONGEST)]
    }
}

/// All test programs and the short forms of all areas. They wait more than they work, so there are more of them at once
/// than processors.
fn side_by_side(tested: &mut Tested) -> anyhow::Result<Outcome> {
    let folder = tempfile::tempdir().context("no temporary folder")?;
    let mut jobs = verify::quick(folder.path())?;
    let shorts: BTreeSet<String> = jobs.iter().map(|job| job.name.clone()).collect();
    jobs.extend(test_programs()?);
    jobs.sort_by_key(|job| !job.name.ends_with(&format!(" {LONG}")));
    let lanes = std::thread::available_parallelism().map_or(1, std::num::NonZero::get) * 2;
    let (all, mut failed) = (jobs.len(), Vec::new());
    lanes::run(jobs, lanes, |done| {
        let short = shorts.contains(&done.name);
        println!("\n== {} ({} of {all}, {:.1} s)", done.name, tested.took.len() + 1, done.took.as_secs_f64());
        let mut inside = false;
        for line in done.said.lines() {
            if short || tested.counts.line(line, &mut inside) {
                println!("{line}");
            }
        }
        if !done.fine {
            println!("FAILED: {}", done.name);
            failed.push(done.name.clone());
        }
        tested.took.push((done.name, done.took));
    });
    (tested.hold, tested.fail, tested.skipped) = verify::counted(folder.path())?;
    Ok(if failed.is_empty() { Outcome::Passed } else { Outcome::Failed(failed.join(", ")) })
}

/// What `cargo test` would run, one after the other.
fn test_programs() -> anyhow::Result<Vec<lanes::Job>> {
    let mut command = place::cargo();
    command.args(["test", "--no-run", "--quiet", "--message-format=json-render-diagnostics"]).args(place::ALL);
    let built = run::output(&mut command)?;
    let mut jobs = Vec::new();
    for message in cargo_metadata::Message::parse_stream(built.as_bytes()) {
        let cargo_metadata::Message::CompilerArtifact(built) = message.context("what cargo says")? else { continue };
        let Some(program) = built.executable.filter(|_| built.profile.test) else { continue };
        let home = built.manifest_path.parent().context("a manifest is in a folder")?;
        let place = home.strip_prefix(place::root()).unwrap_or(home);
        let alone = ALONE.contains(&(place.as_str(), built.target.name.as_str()));
        let mut command = Command::new(program);
        // The output of tests that passed is shown to us, because some of them say there that they were skipped.
        command.args(["--show-output", "--format=pretty"]);
        // As cargo starts it.
        command.current_dir(home).env("CARGO_MANIFEST_DIR", home);
        place::name_programs(&mut command, place::Profile::Debug);
        jobs.push(lanes::Job { name: format!("{place} {}", built.target.name), command, alone });
    }
    anyhow::ensure!(!jobs.is_empty(), "cargo names no test program");
    let mut command = place::cargo();
    command.args(["test", "--quiet", "--doc"]).args(place::ALL).args(["--", "--format=pretty"]);
    jobs.push(lanes::Job { name: "documentation's examples".to_owned(), command, alone: false });
    Ok(jobs)
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
