//! Lines that programs and tests of other packages measure: each prints figures of its own or is a named test.

use std::process::Command;

use anyhow::Context as _;
use serde::Deserialize;
use serde_json::Value;

use crate::verify::{Row, Setting};
use crate::{place, run};

/// A figure as those programs print it.
#[derive(Debug, Deserialize)]
struct Figure {
    metric: String,
    value: Value,
    #[serde(default)]
    goal: Option<String>,
    #[serde(default)]
    unit: String,
    #[serde(default)]
    control: Value,
    #[serde(default)]
    peer: Option<String>,
    #[serde(default)]
    holds: Option<bool>,
}

impl Figure {
    /// A figure without a goal is told, not judged.
    fn row(self, of: &str) -> Row {
        let plain = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let row = Row::new(format!("{of}{}", self.metric), self.goal.unwrap_or_default());
        let value = format!("{} {}", plain(&self.value), self.unit).trim().to_owned();
        if self.value.is_null() {
            return row.skipped(self.peer.as_deref().unwrap_or("no figure"));
        }
        let mut row = match self.holds {
            Some(holds) => row.measured(value, "", holds),
            None => row.told(value),
        };
        row.peer = self.peer.unwrap_or_default();
        if !self.control.is_null() {
            row.control = plain(&self.control);
        }
        row
    }
}

/// A program of the end-to-end tests, or none where there is no such program.
fn end_to_end(program: &str, setting: Setting) -> anyhow::Result<Option<Command>> {
    if !place::has_program("sluice-e2e", program)? {
        return Ok(None);
    }
    if !setting.quick {
        // Its own profile does not matter; the programs that it starts are optimised. With the features of the tests, so that no
        // library is built twice.
        run::step("build", place::cargo().args(["build", "--quiet", "--bins"]).args(place::ALL))?;
    }
    let mut command = Command::new(place::target().join("debug").join(program));
    place::name_programs(&mut command, setting.profile());
    if let Ok(text) = place::text() {
        command.env("SLUICE_TEXT", text);
    }
    Ok(Some(command))
}

/// Builds what is measured; the short form runs on what the tests have built.
pub(super) fn build(setting: Setting) -> anyhow::Result<()> {
    if !setting.quick {
        place::build(setting.profile())?;
    }
    Ok(())
}

/// Line 3: kill -9 of the controller, of agents, of whole nodes, while clients submit.
pub(super) fn kills(setting: Setting) -> anyhow::Result<Vec<Row>> {
    build(setting)?;
    let mut rows = Vec::new();
    // The tests of `node` kill its agent.
    let targets: &[&str] = if setting.quick { &["controller", "nodes"] } else { &["controller", "agents", "nodes"] };
    for target in targets.iter().copied() {
        let Some(mut command) = end_to_end("chaos", setting)? else {
            return Ok(vec![Row::new("kills under load", "0 lost, 0 double runs")]);
        };
        command.args(["--target", target, "--seed", &setting.seed.to_string()]);
        if setting.quick {
            command.args(["--jobs", "30", "--seconds", "6", "--kills", "2"]);
        }
        rows.extend(printed(&mut command, &format!("{target} killed: "))?);
    }
    Ok(rows)
}

/// Line 2: training jobs that are moved, and that lose their node, between sites in networks of their own.
pub(super) fn moves(setting: Setting) -> anyhow::Result<Vec<Row>> {
    let short: &[&str] = if setting.quick { &["--planned", "2", "--unplanned", "1"] } else { &[] };
    proof("moves", short, setting)
}

/// Line 4: a partition of a site, and its healing.
pub(super) fn partition(setting: Setting) -> anyhow::Result<Vec<Row>> {
    proof("partition", &[], setting)
}

/// Line 10: budgets, credits and receipts.
pub(super) fn money(setting: Setting) -> anyhow::Result<Vec<Row>> {
    // A busy machine may take some of them to begin.
    let short: &[&str] = if setting.quick { &["--windows", "12"] } else { &[] };
    proof("money", short, setting)
}

/// Line 5, as jobs of the real system see it.
pub(super) fn fractions(setting: Setting) -> anyhow::Result<Vec<Row>> {
    let metric = "jobs of the whole system share a core";
    if setting.quick {
        return Ok(vec![Row::new(metric, "<= 2 points").skipped("the long form only")]);
    }
    proof("fractions", &[], setting)
}

/// Roads, line 1: rents through a real terminal.
pub(super) fn rents(setting: Setting) -> anyhow::Result<Vec<Row>> {
    let short: &[&str] = if setting.quick { &["--rents", "4"] } else { &[] };
    proof("rents", short, setting)
}

/// Roads, line 2: models served to the official client.
pub(super) fn serves(setting: Setting) -> anyhow::Result<Vec<Row>> {
    let (seed, short) = (setting.seed.to_string(), ["--requests", "60", "--prompts", "8", "--workers", "6"]);
    let mut flags = vec!["--seed", &seed];
    if setting.quick {
        flags.extend(short);
    }
    proof("serves", &flags, setting)
}

/// Roads, line 3: a served model beside llama.cpp's own server.
pub(super) fn speeds(setting: Setting) -> anyhow::Result<Vec<Row>> {
    let row = Row::new("speed beside llama.cpp's own server", ">= 0.97 of its single stream, and fairer");
    if setting.quick {
        return Ok(vec![row.skipped("the long form only: its peer takes ten minutes to build")]);
    }
    match crate::peer::build() {
        Err(error) => Ok(vec![row.skipped(&format!("llama-server cannot be had here: {error:#}"))]),
        Ok(program) => proof("speeds", &["--peer", &program.display().to_string()], setting),
    }
}

/// Roads, line 4: an endpoint grows and shrinks, and a stream outlives its replica's site.
pub(super) fn scales(setting: Setting) -> anyhow::Result<Vec<Row>> {
    let short: &[&str] = if setting.quick { &["--tokens", "1000"] } else { &[] };
    let mut rows = proof("scales", short, setting)?;
    if setting.quick {
        let row = Row::new("CPU time of a trainer beside a busy endpoint", "within 2 points of its share");
        rows.push(row.skipped("the long form only"));
        return Ok(rows);
    }
    rows.extend(proof("beside", &[], setting)?);
    Ok(rows)
}

/// Roads, line 8: hostile clients at the gateway and at the byte channels of rentals.
pub(super) fn hostile_clients(setting: Setting) -> anyhow::Result<Vec<Row>> {
    let short: &[&str] = if setting.quick { &["--connections", "400", "--requests", "12"] } else { &[] };
    let mut rows = proof("hostile", short, setting)?;
    let metric = "the controller's memory, and other tenants' echoes, under hostile clients";
    if setting.quick {
        rows.push(Row::new(metric, "<= 256 KiB each, <= 1.5 times as slow").skipped("the long form only"));
        return Ok(rows);
    }
    rows.extend(proof("channels", &[], setting)?);
    Ok(rows)
}

/// Roads, line 5: two tenants and their quotas, with nothing but kubectl.
pub(super) fn story(setting: Setting) -> anyhow::Result<Vec<Row>> {
    kubernetes("story", &[], setting)
}

/// Roads, line 6: what is wrong, and who may not, is refused by a real API server.
pub(super) fn refusals(setting: Setting) -> anyhow::Result<Vec<Row>> {
    kubernetes("refusals", if setting.quick { &["--quick"] } else { &[] }, setting)
}

/// Roads, line 7: operator, controller and API server killed while objects change.
pub(super) fn operator_chaos(setting: Setting) -> anyhow::Result<Vec<Row>> {
    let seed = setting.seed.to_string();
    let mut flags = vec!["--seed", &seed];
    if setting.quick {
        flags.extend(["--objects", "40", "--kills", "1"]);
    }
    kubernetes("chaos", &flags, setting)
}

/// What is shown on a Kubernetes of its own. The long form builds one where there is none.
fn kubernetes(what: &str, flags: &[&str], setting: Setting) -> anyhow::Result<Vec<Row>> {
    if !setting.quick {
        crate::kube::build()?;
    }
    build(setting)?;
    let Some(mut command) = end_to_end("kube", setting)? else { return Ok(vec![Row::new(what, "")]) };
    printed(command.arg(what).args(flags), "")
}

fn proof(what: &str, flags: &[&str], setting: Setting) -> anyhow::Result<Vec<Row>> {
    build(setting)?;
    let Some(mut command) = end_to_end("proof", setting)? else { return Ok(vec![Row::new(what, "")]) };
    command.arg(what).args(flags);
    if what == "moves" {
        command.args(["--seed", &setting.seed.to_string()]);
    }
    printed(&mut command, "")
}

/// The figures that a program prints, one JSON object a line.
fn printed(command: &mut Command, of: &str) -> anyhow::Result<Vec<Row>> {
    let mut rows = Vec::new();
    let name = run::shown(command);
    let ended = run::watched(command, |line| {
        if let Ok(figure) = serde_json::from_str::<Figure>(line) {
            rows.push(figure.row(of));
        } else if let Some(why) = line.strip_prefix("SKIPPED: ") {
            rows.push(Row::new(name.as_str(), "").skipped(why));
        }
    })?;
    if rows.is_empty() {
        // Told here again: a long output is often kept only in part, and this is its end.
        let said = format!("no figure (success: {}); it said last:\n{}", ended.fine, ended.said.join("\n"));
        rows.push(Row::new(name.as_str(), "").measured(said, "", false));
    }
    Ok(rows)
}

/// Line 6: durable submit-to-decision over gRPC.
pub(super) fn rates(setting: Setting) -> anyhow::Result<Vec<Row>> {
    let row = Row::new("durable submit-to-decision over gRPC", "20,000 jobs/s at p99 <= 20 ms");
    if !place::has_program("sluice-bench", "sluice-bench")? {
        return Ok(vec![row]);
    }
    let folder = tempfile::tempdir().context("no temporary folder")?;
    let file = folder.path().join("figures.json");
    let mut command = if setting.quick {
        // As the tests have it built. The laws on a small world, not the rates: all placed, all durable after kill -9.
        let mut command = Command::new(place::target().join("debug/sluice-bench"));
        command.args(["submit", "--quick", "--seconds", "2", "--nodes", "50", "--clients", "16"]);
        command
    } else {
        let mut command = place::cargo();
        command.args(["run", "--quiet", "--release", "-p", "sluice-bench", "--", "submit", "--batch", "--many"]);
        command
    };
    run::step("bench submit", command.arg("--json").arg(&file))?;
    let figures: Vec<Figure> = serde_json::from_slice(&std::fs::read(&file)?).context("figures of the bench")?;
    Ok(figures.into_iter().map(|figure| figure.row("")).collect())
}

/// A test of another package that holds a part of a line.
struct Held {
    metric: &'static str,
    package: &'static str,
    target: &'static str,
    /// Part of the names of its tests.
    name: &'static str,
    /// Part of the name of the test that shows how it fails without the mechanism.
    control: &'static str,
}

fn held(all: &[Held], setting: Setting) -> anyhow::Result<Vec<Row>> {
    let mut rows = Vec::new();
    for held in all {
        let row = Row::new(held.metric, "all tests pass");
        if setting.quick {
            rows.push(row.skipped("cargo test runs it"));
            continue;
        }
        let (fine, told) = tested(held, held.name)?;
        let mut row = row.measured(told, "", fine);
        if !held.control.is_empty() {
            let (fine, told) = tested(held, held.control)?;
            row = row.control(format!("{}: {told}", held.control), fine);
        }
        rows.push(row);
    }
    Ok(rows)
}

/// Whether tests ran and passed, and their result in words.
fn tested(held: &Held, name: &str) -> anyhow::Result<(bool, String)> {
    let mut command = place::cargo();
    command.args(["test", "--quiet", "-p", held.package, "--test", held.target, "--", name]);
    place::name_programs(&mut command, place::Profile::Debug);
    let mut result = String::new();
    let fine = run::lines(&mut command, |line| {
        if let Some(told) = line.strip_prefix("test result: ") {
            result = told.split(';').next().unwrap_or_default().to_owned();
        }
    })?;
    Ok((fine && !result.contains(" 0 passed"), result))
}

/// Line 7: malformed input and hostile jobs.
pub(super) fn hostile(setting: Setting) -> anyhow::Result<Vec<Row>> {
    held(
        &[
            Held {
                metric: "malformed input at every method: a documented reason each",
                package: "sluice-controller",
                target: "hostile",
                name: "",
                control: "",
            },
            Held {
                metric: "every attack of the checked-in list fails",
                package: "sluice-node",
                target: "hostile",
                name: "every_attack_of_the_list_fails",
                control: "without_the_sandbox_the_attacks_succeed",
            },
            Held {
                metric: "a fuzz target per decoder takes its corpus and mutations of it",
                package: "sluice-fuzz",
                target: "corpus",
                name: "every_target_takes_its_corpus_and_mutations_of_it",
                control: "a_planted_mistake_is_found",
            },
            Held {
                metric: "a stranger's digest tells nothing and opens nothing",
                package: "sluice-controller",
                target: "uploads",
                name: "a_digest_tells_nothing_and_opens_nothing",
                control: "",
            },
        ],
        setting,
    )
}
