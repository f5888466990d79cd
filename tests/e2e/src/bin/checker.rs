//! `checker DATA`: judges the system that runs in a data folder, from the evidence kept beside it and on its nodes.

use std::path::PathBuf;
use std::process::ExitCode;

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
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let verdict = runtime.block_on(async {
        let client = Client::new(&arguments.data)?;
        checker::judge(&client, &kept).await
    })?;
    println!("{}", serde_json::to_string(&verdict)?);
    Ok(if verdict.findings.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
