//! Generated pages, and the way to the simulator.

use std::ffi::OsString;

use crate::{place, run};

/// Tests that write the page they hold when `SLUICE_BLESS` is set: (package, part of the test's name, page).
const PAGES: [(&str, &str, &str); 1] = [("sluice-controller", "authz", "docs/authorization.md")];

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
    let Some(mut command) = simulator()? else { anyhow::bail!("the simulator has no program yet") };
    run::step("sim", command.args(arguments)).map(drop)
}

/// The simulator's command, up to its own arguments; `None` while it has no program.
pub(crate) fn simulator() -> anyhow::Result<Option<std::process::Command>> {
    let metadata = cargo_metadata::MetadataCommand::new().current_dir(place::root()).no_deps().exec()?;
    let package = metadata.packages.iter().find(|package| package.name.as_str() == "sluice-sim");
    let has_program = package.is_some_and(|package| package.targets.iter().any(cargo_metadata::Target::is_bin));
    let mut command = place::cargo();
    command.args(["run", "--quiet", "--release", "-p", "sluice-sim", "--"]);
    Ok(has_program.then_some(command))
}
