//! Kills while clients submit: the controller, node agents, or whole nodes.
//!
//! Clients submit short jobs with request ids of their own and retry until they have an answer; some ask again later and
//! must get the same job. Meanwhile something is killed every 0.5 to 4 s. When all is quiet the judge looks: every job
//! ran and landed once, the ledger sums, windows are gap-free or marked.

mod clients;
mod judge;
mod kills;

use std::path::PathBuf;
use std::time::Duration;

use crate::figure::Figure;
use crate::system::{Options, System};

/// What is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Target {
    /// The controller; started again at once.
    Controller,
    /// Node agents, in random order; started again at once.
    Agents,
    /// Whole nodes, for good; a fresh one joins after each.
    Nodes,
    /// Nothing: the control.
    Nothing,
}

/// One run.
#[derive(Debug, Clone, clap::Args)]
pub struct Plan {
    /// What is killed.
    #[arg(long, value_enum, default_value_t = Target::Controller)]
    pub target: Target,
    /// Jobs that clients submit.
    #[arg(long, default_value_t = 500)]
    pub jobs: u32,
    /// How long killing goes on, in seconds.
    #[arg(long, default_value_t = 60)]
    pub seconds: u64,
    /// Kills at least, where whole nodes are killed.
    #[arg(long, default_value_t = 10)]
    pub kills: u32,
    /// How long all jobs may take to end after the last kill, in seconds.
    #[arg(long, default_value_t = 300)]
    pub patience: u64,
    /// Makes the same kills again.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Leaves the system's folder to be looked at.
    #[arg(long)]
    pub keep: bool,
    /// Writes the findings here too.
    #[arg(long)]
    pub findings: Option<PathBuf>,
}

/// Runs a plan and returns its figures; what does not hold is told on stderr in words.
///
/// # Errors
/// The system does not come up, or cannot be asked at the end.
pub fn run(plan: &Plan) -> anyhow::Result<Vec<Figure>> {
    let options = Options {
        sites: 2,
        nodes: 2,
        window: Duration::from_secs(1),
        loss_timeout: Duration::from_secs(5),
        no_restart: true,
        ..Options::default()
    };
    let mut system = System::start("chaos", options)?;
    if plan.keep {
        system.keep_folder();
    }
    let client = system.client()?;
    let submitting = system.runtime().spawn(clients::submit_all(client, plan.jobs, Duration::from_secs(plan.seconds)));
    let kills = kills::kill_for(&mut system, plan).inspect_err(|_| system.keep_folder());
    let kills = kills?;
    let submitted = system.block(submitting)??;
    let ended = system.block(judge::wait_for_end(&system.client()?, Duration::from_secs(plan.patience)));
    let judged = ended.and_then(|jobs| judge::figures(&system, plan, &submitted, jobs, kills));
    if judged.is_err() {
        system.keep_folder();
    }
    let (figures, findings) = judged?;
    let text: String = findings.iter().map(|finding| format!("{finding}\n")).collect();
    eprint!("{text}");
    if let Some(file) = &plan.findings {
        std::fs::write(file, text)?;
    }
    if figures.iter().any(Figure::fails) {
        system.keep_folder();
    }
    Ok(figures)
}
