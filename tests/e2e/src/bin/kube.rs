//! `kube up|down FOLDER`: a Kubernetes control plane for tests.

use std::path::PathBuf;

use clap::{Parser, Subcommand};
use sluice_e2e::kube::{self, User};

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
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().what {
        What::Up { folder } => {
            let cluster = kube::up(&folder)?;
            println!("export KUBECONFIG={}", cluster.kubeconfig(User::Admin).display());
            if let Ok(program) = kube::binary() {
                println!("alias kubectl='{} kubectl'", program.display());
            }
        }
        What::Down { folder } => kube::down(&folder)?,
    }
    Ok(())
}
