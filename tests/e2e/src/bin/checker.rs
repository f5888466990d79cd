//! `checker DATA`: judges the system that runs in a data folder, from the evidence kept beside it and on its nodes.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser;
use sluice_e2e::{Client, Kept, checker};

/// Rebuilds bills and runs from journals and from files that jobs wrote, and compares them with what the API says.
#[derive(Debug, Parser)]
struct Arguments {
    /// The data folder of a running `sluice up`.
    data: PathBuf,
    /// Evidence that was kept while it ran; default: beside the data folder.
    #[arg(long)]
    kept: Option<PathBuf>,
}

fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    let kept = arguments.kept.map_or_else(|| Kept::beside(&arguments.data), |folder| Kept::at(&folder));
    kept.look(&arguments.data);
    let context = std::fs::read_to_string(arguments.data.join("context.json")).context("the system's context")?;
    let context: serde_json::Value = serde_json::from_str(&context)?;
    let server = context["server"].as_str().context("the controller's address")?;
    let port = server.rsplit(':').next().and_then(|port| port.parse().ok()).context("the controller's port")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let verdict = runtime.block_on(async {
        let client = Client::new(&arguments.data, port)?;
        checker::judge(&client, &kept).await
    })?;
    println!("{}", serde_json::to_string(&verdict)?);
    Ok(if verdict.findings.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
