//! Which programs are tested, and what this host lacks for it.

use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

use anyhow::Context as _;

/// Why systems cannot be started here; `None` where they can.
#[must_use]
pub fn missing() -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("root is needed".to_owned());
    }
    if !on_path("bwrap") {
        return Some("bubblewrap (bwrap) is not installed".to_owned());
    }
    crate::groups::missing()
}

pub(crate) fn on_path(program: &str) -> bool {
    std::env::var_os("PATH").is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(program).exists()))
}

/// The `sluice` under test: `SLUICE_BIN`, else the one beside this program, built through cargo.
///
/// # Errors
/// It is not there and cannot be built.
pub fn sluice_binary() -> anyhow::Result<PathBuf> {
    static FOUND: OnceLock<PathBuf> = OnceLock::new();
    find("SLUICE_BIN", "sluice", &FOUND)
}

/// The trainer: `SLUICE_TRAINER`, else an optimised one, else the one beside this program, built through cargo.
///
/// # Errors
/// It is not there and cannot be built.
pub fn trainer_binary() -> anyhow::Result<PathBuf> {
    static FOUND: OnceLock<PathBuf> = OnceLock::new();
    let optimised = profile_folder()?.with_file_name("release").join("sluice-trainer");
    if std::env::var_os("SLUICE_TRAINER").is_none() && optimised.exists() {
        return Ok(optimised);
    }
    find("SLUICE_TRAINER", "sluice-trainer", &FOUND)
}

fn find(variable: &str, package: &str, found: &OnceLock<PathBuf>) -> anyhow::Result<PathBuf> {
    if let Some(path) = std::env::var_os(variable) {
        return Ok(PathBuf::from(path));
    }
    if let Some(path) = found.get() {
        return Ok(path.clone());
    }
    let folder = profile_folder()?;
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--quiet", "-p", package]);
    cargo.env("CARGO_TARGET_DIR", folder.parent().context("a folder above the profile's")?);
    if folder.ends_with("release") {
        cargo.arg("--release");
    }
    anyhow::ensure!(cargo.status().context("cannot start cargo")?.success(), "{package} cannot be built");
    Ok(found.get_or_init(|| folder.join(package)).clone())
}

/// The folder of the profile that this program was built with.
fn profile_folder() -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe().context("cannot tell where this program is")?;
    let folder = own.ancestors().skip(1).find(|dir| !dir.ends_with("deps") && !dir.ends_with("examples"));
    Ok(folder.context("a folder above this program")?.to_owned())
}
