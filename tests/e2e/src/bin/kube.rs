//! `kube up|down FOLDER`: a Kubernetes control plane for tests; `kube refusals|story|chaos`: what is shown on one. Prints one JSON line
//! per figure.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use sluice_e2e::kube::{self, User, chaos, refusals, story};
use sluice_e2e::{Figure, print};

/// Starts and ends a Kubernetes control plane with Sluice's kinds.
#[derive(Debug, Parser)]
struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Start one that goes on after this program
    Up {
        /// Where everything of it lives
        folder: PathBuf,
    },
    /// End it and remove the folder
    Down {
        /// As for up
        folder: PathBuf,
    },
    /// Wrong manifests, and people who may not
    Refusals(refusals::Plan),
    /// Two tenants, with nothing but kubectl
    Story(story::Plan),
    /// Operator, controller and API server killed while objects change
    Chaos(chaos::Plan),
}

fn main() -> anyhow::Result<ExitCode> {
    if let Err(reason) = kube::binary() {
        println!("SKIPPED: {reason}");
        return Ok(ExitCode::SUCCESS);
    }
    let figures: Vec<Figure> = match Arguments::parse().what {
        What::Up { folder } => {
            let cluster = kube::up(&folder)?;
            println!("export KUBECONFIG={}", cluster.kubeconfig(User::Admin).display());
            if let Ok(program) = kube::binary() {
                println!("alias kubectl='{} kubectl'", program.display());
            }
            Vec::new()
        }
        What::Down { folder } => {
            kube::down(&folder)?;
            Vec::new()
        }
        What::Refusals(plan) => refusals::run(&plan)?,
        What::Story(plan) => whole(|| story::run(&plan))?,
        What::Chaos(plan) => whole(|| chaos::run(&plan))?,
    };
    Ok(if print(&figures)? { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What needs a whole system beside the cluster.
fn whole(run: impl FnOnce() -> anyhow::Result<Vec<Figure>>) -> anyhow::Result<Vec<Figure>> {
    match sluice_e2e::missing() {
        Some(reason) => {
            println!("SKIPPED: {reason}");
            Ok(Vec::new())
        }
        None => run(),
    }
}
