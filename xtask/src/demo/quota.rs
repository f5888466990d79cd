//! The part of the demo that sets quotas with kubectl, on a control plane of Kubernetes made for it.
//!
//! That control plane is built from Go modules once. Where there is no Go, or no way to them, this part says so.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::Context as _;

use super::head;
use crate::system::System;
use crate::{kube, place, run};

/// Sets the quotas of two tenants by the checked-in example, shows them through both doors, and takes them away.
pub(super) fn show(system: &System, scratch: &Path) -> anyhow::Result<()> {
    head("quotas of two tenants are set with kubectl");
    let program = match program()? {
        Ok(program) => program,
        Err(why) => {
            println!("SKIPPED: {why}");
            return Ok(());
        }
    };
    let folder = scratch.join("kube");
    kube::set(kube::What::Up, &folder)?;
    let shown = example(system, scratch, &program, &folder);
    let ended = kube::set(kube::What::Down, &folder);
    shown.and(ended)
}

/// The control plane's program, where there is Go or it was built before; else why not.
fn program() -> anyhow::Result<Result<PathBuf, String>> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let has_go = std::env::split_paths(&path).any(|folder| folder.join("go").is_file());
    let mut command = Command::new(place::root().join("scripts/kube.sh"));
    if !has_go {
        command.arg("--cached");
    }
    let output = command.stderr(Stdio::inherit()).output().context("cannot start scripts/kube.sh")?;
    let told = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    Ok(if output.status.success() { Ok(told.into()) } else { Err(told) })
}

fn example(system: &System, scratch: &Path, program: &Path, folder: &Path) -> anyhow::Result<()> {
    let config = folder.join("admin.kubeconfig");
    let mut operator = Operator::start(system, &config, &scratch.join("operator.log"))?;
    let kubectl = |words: &[&str]| -> anyhow::Result<()> {
        println!("$ kubectl {}", words.join(" "));
        let mut command = Command::new(program);
        command.arg("kubectl").args(words).env("KUBECONFIG", &config).current_dir(place::root());
        print!("{}", run::output(&mut command)?);
        Ok(())
    };
    let example = ["-k", "deploy/kubernetes/example"];
    let shown = kubectl(&["apply", example[0], example[1]])
        .and_then(|()| kubectl(&["wait", "--for=condition=Accepted", "gpuquotas", "-A", "--all", "--timeout=60s"]))
        .and_then(|()| kubectl(&["get", "gpuquotas", "-A"]))
        .and_then(|()| {
            println!("$ sluice --tenant acme quota list");
            println!("{}", system.text(&["--tenant", "acme", "quota", "list"])?.trim_end());
            // Where any quota is, who has none may hold nothing: what goes on here should not be kept out.
            kubectl(&["delete", example[0], example[1], "--timeout=60s"])
        });
    operator.end();
    shown
}

/// The operator while it runs.
struct Operator(Child);

impl Operator {
    fn start(system: &System, config: &Path, log: &Path) -> anyhow::Result<Self> {
        let log = File::create(log).context("cannot make the operator's log")?;
        let again = log.try_clone().context("cannot open the operator's log twice")?;
        let mut command = system.command();
        command.arg("operator").env("KUBECONFIG", config).stdin(Stdio::null()).stdout(log).stderr(again);
        Ok(Self(command.spawn().context("cannot start the operator")?))
    }

    fn end(&mut self) {
        // It may have ended by itself; its log says why.
        let _gone = self.0.kill();
        let _status = self.0.wait();
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        self.end();
    }
}
