//! Where things are: the repository, the user's cache, what was built, the text to train on.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Context as _;

use crate::run;

/// The root of the repository.
pub(crate) fn root() -> PathBuf {
    let xtask = std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
    xtask.parent().map(PathBuf::from).unwrap_or_default()
}

/// The user's cache folder of this project.
pub(crate) fn cache() -> anyhow::Result<PathBuf> {
    let named = std::env::var_os("XDG_CACHE_HOME").filter(|path| !path.is_empty()).map(PathBuf::from);
    let base = named.or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")));
    Ok(base.context("neither XDG_CACHE_HOME nor HOME is set")?.join("sluice"))
}

/// Cargo, in the repository.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// Where cargo puts what it builds.
pub(crate) fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// The text that the trainer trains on, which `scripts/setup.sh` puts there.
pub(crate) fn text() -> anyhow::Result<PathBuf> {
    let path = cache()?.join("text/shakespeare.txt");
    anyhow::ensure!(path.is_file(), "{} is missing: run scripts/setup.sh", path.display());
    Ok(path)
}

/// The model that is served, which `scripts/setup.sh` puts there.
pub(crate) fn model() -> anyhow::Result<PathBuf> {
    let path = cache()?.join("models/SmolLM2-135M-Instruct.Q4_1.gguf");
    anyhow::ensure!(path.is_file(), "{} is missing: run scripts/setup.sh", path.display());
    Ok(path)
}

/// How the programs are built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Profile {
    /// As the tests have them anyway; the trainer's arithmetic is optimised here too.
    Debug,
    /// As users get them.
    Release,
}

/// The programs that are started.
#[derive(Debug, Clone)]
pub(crate) struct Programs {
    pub(crate) sluice: PathBuf,
    pub(crate) trainer: PathBuf,
}

impl Programs {
    /// Where they are once built.
    pub(crate) fn built(profile: Profile) -> Self {
        let folder = target().join(match profile {
            Profile::Debug => "debug",
            Profile::Release => "release",
        });
        Self { sluice: folder.join("sluice"), trainer: folder.join("sluice-trainer") }
    }
}

/// Tells end-to-end tests which programs to use, so that they build none again with other features.
pub(crate) fn name_programs(command: &mut Command, profile: Profile) {
    let programs = Programs::built(profile);
    for (name, program) in [("SLUICE_BIN", programs.sluice), ("SLUICE_TRAINER", programs.trainer)] {
        if program.is_file() {
            command.env(name, program);
        }
    }
}

/// Builds the programs.
pub(crate) fn build(profile: Profile) -> anyhow::Result<Programs> {
    let mut command = cargo();
    command.args(["build", "--quiet", "--bins"]);
    match profile {
        // With the features of the tests, so that no library is built twice.
        Profile::Debug => command.args(ALL).args(["--all-targets"]),
        Profile::Release => command.args(["--release", "-p", "sluice", "-p", "sluice-trainer"]),
    };
    run::step("build", &mut command)?;
    Ok(Programs::built(profile))
}

/// Whether a package of the workspace has a program of this name.
pub(crate) fn has_program(package: &str, program: &str) -> anyhow::Result<bool> {
    let metadata =
        cargo_metadata::MetadataCommand::new().current_dir(root()).no_deps().exec().context("cargo metadata")?;
    let found = metadata.packages.iter().find(|found| found.name.as_str() == package);
    Ok(found.is_some_and(|found| found.targets.iter().any(|target| target.is_bin() && target.name == program)))
}

/// Selects all packages, with what only tests have switched on.
pub(crate) const ALL: [&str; 3] = ["--workspace", "--features", "sluice-store/testing"];

/// This very program, to be started again. One that was built anew since it started is called deleted by the kernel; the
/// new one at its place does the same.
pub(crate) fn this_program() -> anyhow::Result<PathBuf> {
    let path = std::env::current_exe().context("where this program is")?;
    let text = path.to_str().and_then(|text| text.strip_suffix(" (deleted)")).map(PathBuf::from);
    Ok(text.unwrap_or(path))
}
