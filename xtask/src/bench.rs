//! `cargo xtask bench NAME`: longer measurements, by hand and never in CI.
//!
//! A bench is one line of [`BENCHES`]. One that is more than a program of its room gets a module beside this one.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Context as _;
use serde_json::json;

use crate::{place, run, verify};

/// Arguments of `bench`.
#[derive(Debug, clap::Args)]
pub(crate) struct BenchArgs {
    /// Which; without it, all are listed
    name: Option<String>,
    /// Write command and output here too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// For the bench itself
    #[arg(last = true)]
    arguments: Vec<String>,
}

struct Bench {
    name: &'static str,
    about: &'static str,
    /// Arguments of cargo, up to those of the bench itself.
    cargo: &'static [&'static str],
    /// It takes `--json FILE` itself.
    writes_json: bool,
}

/// All benches.
const BENCHES: [Bench; 4] = [
    Bench {
        name: "engine",
        about: "the engine's step loop beside bare llama.cpp and beside arrival order (-- --model FILE.gguf)",
        cargo: &[
            "run",
            "--release",
            "--quiet",
            "-p",
            "sluice-engine",
            "--features",
            "llama",
            "--example",
            "engine_rate",
            "--",
        ],
        writes_json: true,
    },
    Bench {
        name: "plan",
        about: "decisions of the scheduler: latency by nodes and jobs",
        cargo: &["run", "--release", "--quiet", "-p", "sluice-plan", "--example", "decide_rate", "--"],
        writes_json: false,
    },
    Bench {
        name: "store",
        about: "durable submits per second and start-up, on SQLite and PostgreSQL",
        cargo: &[
            "run",
            "--release",
            "--quiet",
            "-p",
            "sluice-store",
            "--features",
            "testing",
            "--example",
            "commit_rate",
            "--",
        ],
        writes_json: false,
    },
    Bench {
        name: "submit",
        about: "durable submit-to-decision over gRPC, both databases, beside a bare loop",
        cargo: &["run", "--release", "--quiet", "-p", "sluice-bench", "--", "submit"],
        writes_json: true,
    },
];

/// The one that is a line of `verify`: with everything around the engine, and not the engine alone.
const SERVE: &str = "serve";

/// Runs one, or lists all.
pub(crate) fn command(arguments: &BenchArgs) -> anyhow::Result<()> {
    let Some(name) = &arguments.name else {
        for bench in &BENCHES {
            println!("{:<10} {}", bench.name, bench.about);
        }
        println!("{SERVE:<10} a served model beside llama.cpp's own server, over HTTP (`verify roads 3`)");
        return Ok(());
    };
    if name == SERVE {
        return verify::line("roads", 3, arguments.json.clone());
    }
    let bench = BENCHES.iter().find(|bench| bench.name == name).with_context(|| format!("there is no bench {name}"))?;
    let mut command: Command = place::cargo();
    command.args(bench.cargo).args(&arguments.arguments);
    if let (Some(file), true) = (&arguments.json, bench.writes_json) {
        command.arg("--json").arg(file);
        return run::step(name, &mut command).map(drop);
    }
    let mut printed = Vec::new();
    let fine = run::lines(&mut command, |line| {
        println!("{line}");
        printed.push(line.to_owned());
    })?;
    anyhow::ensure!(fine, "{} failed", run::shown(&command));
    if let Some(file) = &arguments.json {
        let document = json!({ "bench": name, "command": run::shown(&command), "output": printed });
        std::fs::write(file, serde_json::to_vec_pretty(&document)?).context("cannot write the JSON file")?;
    }
    Ok(())
}
