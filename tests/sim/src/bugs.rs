//! Planted bugs: each patch of `tests/sim/bugs` breaks one rule of the system, and the judge has to notice.
//!
//! The patches are applied one at a time to a copy of the pure rooms and of the simulator, so that the working tree is
//! never touched.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

/// What the copy needs.
const ROOMS: [&str; 5] = ["crates/types", "crates/ledger", "crates/plan", "crates/lifecycle", "tests/sim"];

/// Checks all patches; returns how many were caught, and how many there are.
///
/// # Errors
/// Where a patch does not apply or the copy does not build.
pub fn check(within: u64, only: Option<&str>) -> Result<(usize, usize)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).context("the workspace's folder")?;
    let copy = std::env::temp_dir().join(format!("sluice-sim-bugs-{}", std::process::id()));
    let result = check_in(root, &copy, within, only);
    if copy.exists() {
        std::fs::remove_dir_all(&copy).context("removing the copy")?;
    }
    result
}

fn check_in(root: &Path, copy: &Path, within: u64, only: Option<&str>) -> Result<(usize, usize)> {
    let (mut caught, mut all) = (0, 0);
    ensure!(caught_within(root, copy, None, within.min(10))?.is_none(), "the simulator fails without any planted bug");
    for patch in patches(root)? {
        let name = patch.file_stem().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
        if only.is_some_and(|only| !name.contains(only)) {
            continue;
        }
        all += 1;
        match caught_within(root, copy, Some(&patch), within)? {
            Some(how) => {
                caught += 1;
                println!("caught  {name}: {how}");
            }
            None => println!("MISSED  {name}"),
        }
    }
    Ok((caught, all))
}

fn patches(root: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(root.join("tests/sim/bugs")).context("reading the patches")?;
    let mut paths: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.retain(|path| path.extension().is_some_and(|end| end == "patch"));
    paths.sort();
    Ok(paths)
}

/// Builds a fresh copy with the patch and runs it; the first failure, if any.
fn caught_within(root: &Path, copy: &Path, patch: Option<&Path>, within: u64) -> Result<Option<String>> {
    lay_out(root, copy)?;
    if let Some(patch) = patch {
        let file = std::fs::File::open(patch).context("opening the patch")?;
        let status = Command::new("patch").args(["-p1", "--quiet"]).current_dir(copy).stdin(Stdio::from(file)).status();
        ensure!(status.context("running patch")?.success(), "{} does not apply", patch.display());
    }
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from).join("sim-bugs");
    let build = Command::new("cargo")
        .args(["build", "--quiet", "--offline", "--release", "-p", "sluice-sim"])
        .env("CARGO_TARGET_DIR", &target)
        .env("CARGO_PROFILE_RELEASE_DEBUG", "0")
        .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "1")
        .env("CARGO_INCREMENTAL", "1")
        .env("RUSTFLAGS", "-Awarnings")
        .current_dir(copy)
        .status()
        .context("running cargo")?;
    if !build.success() {
        bail!("the copy with {patch:?} does not build");
    }
    let output = Command::new(target.join("release/sluice-sim"))
        .args(["--small", "--first-failure", "--seeds", &format!("0..{within}")])
        .stderr(Stdio::null())
        .output()
        .context("running the copy")?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().find(|line| line.contains(" fails: ")).map(|line| line.chars().take(200).collect()))
}

/// The pure rooms and the simulator in a workspace of their own.
fn lay_out(root: &Path, copy: &Path) -> Result<()> {
    for room in ROOMS {
        copy_folder(&root.join(room), &copy.join(room))?;
    }
    let manifest = std::fs::read_to_string(root.join("Cargo.toml")).context("reading the workspace's manifest")?;
    let begin = manifest.find("members = [").context("the workspace has members")?;
    let end = begin + manifest[begin..].find(']').context("the members end")? + 1;
    let members: Vec<_> = ROOMS.iter().map(|room| format!("\"{room}\"")).collect();
    let manifest = format!("{}members = [{}]{}", &manifest[..begin], members.join(", "), &manifest[end..]);
    write_if_changed(&copy.join("Cargo.toml"), manifest.as_bytes())?;
    let lock = copy.join("Cargo.lock");
    if !lock.exists() {
        std::fs::copy(root.join("Cargo.lock"), lock).context("copying the lock file")?;
    }
    Ok(())
}

fn copy_folder(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to).with_context(|| format!("creating {}", to.display()))?;
    for entry in std::fs::read_dir(from).with_context(|| format!("reading {}", from.display()))? {
        let entry = entry?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        if source.is_dir() {
            copy_folder(&source, &target)?;
        } else {
            write_if_changed(&target, &std::fs::read(&source)?)?;
        }
    }
    Ok(())
}

/// Unchanged files keep their time, so that only what a patch touches is built again.
fn write_if_changed(path: &Path, bytes: &[u8]) -> Result<()> {
    if std::fs::read(path).is_ok_and(|old| old == bytes) {
        return Ok(());
    }
    std::fs::write(path, bytes).with_context(|| format!("writing {}", path.display()))
}
