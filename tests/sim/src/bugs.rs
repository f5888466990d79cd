//! Planted bugs: each patch of `tests/sim/bugs` breaks one rule of the system, and the judge has to notice.
//!
//! The patches are applied one at a time to a copy of the rooms that the simulator needs and of itself, so that the working
//! tree is never touched.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};

/// What the copy needs.
const ROOMS: [&str; 7] =
    ["crates/types", "crates/ledger", "crates/plan", "crates/lifecycle", "crates/proto", "crates/engine", "tests/sim"];
/// What they are built from beside that.
const PROTOS: &str = "proto";

/// Checks all patches; returns how many were caught, and how many there are. The copy stays in the target folder, so that
/// the next check builds little.
///
/// # Errors
/// Where a patch does not apply, the copy does not build, or the system fails without any of them.
pub fn check(within: u64, only: Option<&str>) -> Result<(usize, usize)> {
    let place = Place::open()?;
    let patches: Vec<_> =
        patches()?.into_iter().filter(|patch| only.is_none_or(|only| name(patch).contains(only))).collect();
    // The control: what is caught below is caught because of the patch.
    let without = place.caught_within(None, within)?;
    ensure!(without.is_none(), "the simulator fails without any planted bug: {}", without.unwrap_or_default());
    let mut caught = 0;
    for patch in &patches {
        let begin = Instant::now();
        let found = place.caught_within(Some(patch), within)?;
        let (name, took) = (name(patch), begin.elapsed().as_secs());
        match found {
            Some(how) => {
                caught += 1;
                println!("caught  {name} ({took} s): {how}");
            }
            None => println!("MISSED  {name} ({took} s)"),
        }
    }
    Ok((caught, patches.len()))
}

/// The names of the patches that do not apply to the working tree any more.
///
/// # Errors
/// Where the tree cannot be read.
pub fn stale() -> Result<Vec<String>> {
    let mut stale = Vec::new();
    for path in patches()? {
        let status = patch(&path, &root()?, &["--dry-run"])?;
        if !status {
            stale.push(name(&path));
        }
    }
    Ok(stale)
}

/// How many there are.
///
/// # Errors
/// Where the folder cannot be read.
pub fn count() -> Result<usize> {
    Ok(patches()?.len())
}

/// The workspace. It is looked for from where this was started: with a target folder that clones share, what the
/// compiler noted may be another one.
fn root() -> Result<PathBuf> {
    let here = std::env::current_dir().context("the current folder")?;
    let root = here.ancestors().find(|folder| folder.join("tests/sim/bugs").is_dir());
    root.map(Path::to_owned).context("started outside of the workspace, so there are no patches to plant")
}

fn patches() -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(root()?.join("tests/sim/bugs")).context("reading the patches")?;
    let mut paths: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.retain(|path| path.extension().is_some_and(|end| end == "patch"));
    paths.sort();
    Ok(paths)
}

fn name(patch: &Path) -> String {
    patch.file_stem().and_then(|name| name.to_str()).unwrap_or_default().to_owned()
}

/// Whether a patch applies.
fn patch(patch: &Path, to: &Path, options: &[&str]) -> Result<bool> {
    let file = File::open(patch).context("opening the patch")?;
    let mut command = Command::new("patch");
    command.args(["-p1", "--quiet", "--force"]).args(options).current_dir(to).stdin(Stdio::from(file));
    Ok(command.stdout(Stdio::null()).status().context("running patch")?.success())
}

/// Where the copy is and is built. One check at a time.
struct Place {
    root: PathBuf,
    copy: PathBuf,
    target: PathBuf,
    _lock: File,
}

impl Place {
    fn open() -> Result<Self> {
        let root = root()?;
        let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
        let folder = target.join("sim-bugs");
        std::fs::create_dir_all(&folder).context("creating the folder of the copy")?;
        let lock = File::create(folder.join("lock")).context("creating the lock")?;
        lock.try_lock().context("another check of the planted bugs runs")?;
        Ok(Self { root, copy: folder.join("copy"), target: folder.join("target"), _lock: lock })
    }

    /// Builds the copy with the patch and runs it; the first failure, if any.
    fn caught_within(&self, bug: Option<&Path>, within: u64) -> Result<Option<String>> {
        lay_out(&self.root, &self.copy)?;
        if let Some(bug) = bug {
            ensure!(patch(bug, &self.copy, &["--no-backup-if-mismatch"])?, "{} does not apply", bug.display());
        }
        // Between debug, whose days are slow, and release, whose builds are.
        let build = Command::new("cargo")
            .args(["build", "--quiet", "--offline", "--release", "-p", "sluice-sim"])
            .env("CARGO_TARGET_DIR", &self.target)
            .env("CARGO_PROFILE_RELEASE_DEBUG", "0")
            .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "1")
            .env("CARGO_INCREMENTAL", "1")
            .env("RUSTFLAGS", "-Awarnings")
            .current_dir(&self.copy)
            .status()
            .context("running cargo")?;
        if !build.success() {
            bail!("the copy with {bug:?} does not build");
        }
        let output = Command::new(self.target.join("release/sluice-sim"))
            .args(["--small", "--first-failure", "--seeds", &format!("0..{within}")])
            .stderr(Stdio::null())
            .output()
            .context("running the copy")?;
        let text = String::from_utf8_lossy(&output.stdout);
        let failure = text.lines().find(|line| line.contains(" fails: "));
        ensure!(output.status.success() == failure.is_none(), "the copy ended with {}", output.status);
        Ok(failure.map(|line| line.chars().take(200).collect()))
    }
}

/// The rooms and the simulator in a workspace of their own.
fn lay_out(root: &Path, copy: &Path) -> Result<()> {
    for room in ROOMS {
        copy_folder(&root.join(room), &copy.join(room))?;
    }
    copy_folder(&root.join(PROTOS), &copy.join(PROTOS))?;
    let manifest = std::fs::read_to_string(root.join("Cargo.toml")).context("reading the workspace's manifest")?;
    let begin = manifest.find("members = [").context("the workspace has members")?;
    let end = begin + manifest[begin..].find(']').context("the members end")? + 1;
    let members: Vec<_> = ROOMS.iter().map(|room| format!("\"{room}\"")).collect();
    let manifest = format!("{}members = [{}]{}", &manifest[..begin], members.join(", "), &manifest[end..]);
    write_if_changed(&copy.join("Cargo.toml"), manifest.as_bytes())?;
    // Cargo takes out of the lock file what the copy does not need, so it is compared with what was copied.
    let lock = std::fs::read(root.join("Cargo.lock")).context("reading the lock file")?;
    let copied = copy.join("Cargo.lock.copied");
    if std::fs::read(&copied).is_ok_and(|old| old == lock) {
        return Ok(());
    }
    write_if_changed(&copy.join("Cargo.lock"), &lock)?;
    write_if_changed(&copied, &lock)
}

fn copy_folder(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to).with_context(|| format!("creating {}", to.display()))?;
    for entry in std::fs::read_dir(to).with_context(|| format!("reading {}", to.display()))? {
        let old = entry?.path();
        if old.is_file() && old.file_name().is_none_or(|name| !from.join(name).exists()) {
            std::fs::remove_file(&old).with_context(|| format!("removing {}", old.display()))?;
        }
    }
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
