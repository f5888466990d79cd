//! Generated pages, and the way to the simulator.

use std::ffi::OsString;

use crate::{place, run};

/// Tests that write the page they hold when `SLUICE_BLESS` is set: (package, part of the test's name, page).
const PAGES: [(&str, &str, &str); 2] = [
    ("sluice-controller", "authz", "docs/authorization.md"),
    ("sluice-kube", "the_checked_in_definitions", "deploy/kubernetes/crds"),
];

/// `cargo xtask gen`
pub(crate) fn command() -> anyhow::Result<()> {
    for (package, test, page) in PAGES {
        let mut command = place::cargo();
        command.args(["test", "--quiet", "-p", package, "--lib", test]).env("SLUICE_BLESS", "1");
        run::step(page, &mut command)?;
    }
    Ok(())
}

/// `cargo xtask sim ARGUMENTS`
pub(crate) fn sim(arguments: &[OsString]) -> anyhow::Result<()> {
    anyhow::ensure!(place::has_program("sluice-sim", "sluice-sim")?, "the simulator has no program yet");
    let mut command = place::cargo();
    command.args(["run", "--quiet", "--release", "-p", "sluice-sim", "--"]).args(arguments);
    run::step("sim", &mut command).map(drop)
}
