//! Fuzzes for a while and keeps what it finds in the corpus.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Parser;
use sluice_fuzz::mutate::Mutator;
use sluice_fuzz::{Target, all, find};

/// Feeds mutations of the corpus to decoders
#[derive(Debug, Parser)]
struct Cli {
    /// One target; all of them otherwise
    target: Option<String>,
    /// How long each target is fed
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Write the seeds to the corpus, and do nothing else
    #[arg(long)]
    seeds: bool,
    /// Seed of the mutations
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

fn main() -> anyhow::Result<ExitCode> {
    let cli = Cli::parse();
    if cli.seeds {
        for (target, name, bytes) in sluice_fuzz::seeds::all()? {
            let folder = find(target).with_context(|| format!("there is no target {target}"))?.folder();
            std::fs::create_dir_all(&folder)?;
            std::fs::write(folder.join(name), bytes)?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let targets: Vec<&Target> = match &cli.target {
        None => all().iter().collect(),
        Some(name) => vec![find(name).with_context(|| {
            let names: Vec<_> = all().iter().map(|target| target.name).collect();
            format!("there is no target {name}; there are {}", names.join(", "))
        })?],
    };
    let mut sound = true;
    for target in targets {
        sound &= feed(target, &cli)?;
    }
    Ok(if sound { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Says whether nothing was found.
fn feed(target: &Target, cli: &Cli) -> anyhow::Result<bool> {
    let corpus: Vec<_> = target.corpus()?.into_iter().map(|(_, bytes)| bytes).collect();
    let mut mutator = Mutator::new(cli.seed, &corpus, target.words);
    let (begun, mut tries) = (Instant::now(), 0u64);
    while begun.elapsed() < Duration::from_secs(cli.seconds) {
        let input = mutator.next_input();
        tries += 1;
        if catch_unwind(AssertUnwindSafe(|| (target.run)(&input))).is_err() {
            let name = format!("found-{}", &blake3::hash(&input).to_hex()[..16]);
            let path = target.folder().join(name);
            std::fs::write(&path, &input).with_context(|| format!("keep {}", path.display()))?;
            println!("{}: broken by {}", target.name, path.display());
            return Ok(false);
        }
    }
    println!("{}: {tries} inputs, nothing found", target.name);
    Ok(true)
}
