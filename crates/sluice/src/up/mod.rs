//! `sluice up`: a whole system on one machine, every part a process of its own.
//!
//! The parts end with this process, jobs do not: their supervisors outlive it, and the next `up` in the same folder takes
//! them up again. The first signal stops jobs at a checkpoint and everything cleanly, the second kills the parts.

mod children;
mod layout;
mod say;
mod setup;

use std::time::Duration;

use anyhow::Context as _;
use sluice_cli::Global;

use crate::command::UpArgs;
use crate::process::Signals;
use children::Children;
use layout::Layout;
use say::note;

/// How long the controller may take to stop all jobs, and the other parts after it.
const STOP_CONTROLLER: Duration = Duration::from_secs(35);
const STOP_REST: Duration = Duration::from_secs(12);

/// Starts everything, says where it is, and waits for a signal.
pub(crate) async fn run(arguments: UpArgs, global: &Global) -> anyhow::Result<()> {
    let data = global.data_dir().context("cannot tell where the data folder is")?;
    let layout = Layout::new(&data, &arguments)?;
    let _only = layout.lock()?;
    check_host(&arguments);
    let mut signals = Signals::new()?;
    let mut children = Children::new(&layout, !arguments.no_restart)?;
    let started = start(&layout, &mut children);
    tokio::select! {
        started = started => started?,
        () = signals.next() => {
            children.kill().await;
            anyhow::bail!("stopped while starting");
        }
    }
    layout.print_summary();
    tokio::select! {
        () = signals.next() => {}
        name = children.lost() => note(&format!("{name} ended and is not started again; stopping")),
    }
    note("stopping: jobs stop at a checkpoint; a second signal ends everything at once");
    let clean = async {
        children.stop("controller", STOP_CONTROLLER).await;
        children.stop("", STOP_REST).await;
    };
    tokio::select! {
        () = clean => note("stopped"),
        () = signals.next() => children.kill().await,
    }
    Ok(())
}

async fn start(layout: &Layout, children: &mut Children) -> anyhow::Result<()> {
    children.start("controller", layout.controller_arguments())?;
    let admin = setup::connect(layout, children).await?;
    setup::first_time(layout, &admin).await?;
    for site in &layout.sites {
        setup::join_vault(layout, &admin, site).await?;
        children.start(&format!("vault-{}", site.name), layout.vault_arguments(site))?;
        for node in &site.nodes {
            setup::join_node(layout, &admin, site, node).await?;
            children.start(&format!("node-{}", node.name), layout.node_arguments(node))?;
        }
    }
    layout.write_context()?;
    setup::wait_ready(layout, &admin).await
}

/// Says what is missing before jobs find out.
fn check_host(arguments: &UpArgs) {
    if arguments.advisory {
        note("warning: --advisory: slices are not enforced and jobs are not shut in; every bill says so");
        return;
    }
    if !nix::unistd::geteuid().is_root() {
        note("warning: without root, slices cannot be enforced: run as root, or with --advisory");
    }
    let found =
        std::env::var_os("PATH").is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join("bwrap").exists()));
    if !found {
        note("warning: bubblewrap (bwrap) is not installed, so jobs cannot be shut in: apt-get install bubblewrap");
    }
}
