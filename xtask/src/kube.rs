//! `cargo xtask kube up|down`: a Kubernetes control plane to work with, the same that the tests use.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{place, run};

/// Arguments of `kube`.
#[derive(Debug, clap::Args)]
pub(crate) struct KubeArgs {
    /// Start it, or end it and remove its folder
    #[arg(value_enum)]
    what: What,
    /// Where everything of it lives [default: kube/cluster in the user's cache of this project]
    #[arg(long)]
    folder: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum What {
    Up,
    Down,
}

/// `cargo xtask kube`
pub(crate) fn command(arguments: &KubeArgs) -> anyhow::Result<()> {
    let folder = match &arguments.folder {
        Some(folder) => std::path::absolute(folder)?,
        None => place::cache()?.join("kube/cluster"),
    };
    if arguments.what == What::Up {
        build()?;
    }
    set(arguments.what, &folder)
}

/// Starts one that was built, or ends it.
pub(crate) fn set(what: What, folder: &Path) -> anyhow::Result<()> {
    let what = match what {
        What::Up => "up",
        What::Down => "down",
    };
    let mut command = place::cargo();
    command.args(["run", "--quiet", "-p", "sluice-e2e", "--bin", "kube", "--", what]).arg(folder);
    run::step(&format!("kube {what}"), &mut command).map(drop)
}

/// Builds the control plane where the user's cache has none.
pub(crate) fn build() -> anyhow::Result<()> {
    let mut command = Command::new(place::root().join("scripts/kube.sh"));
    run::step("kubernetes", &mut command).map(drop)
}
