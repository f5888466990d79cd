//! The official client for Node: a script of calls, as it comes.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::Context as _;

const SCRIPT: &str = include_str!("../../../openai/check.mjs");
const PACKAGE: &str = include_str!("../../../openai/package.json");
const LOCK: &str = include_str!("../../../openai/package-lock.json");

/// A folder that has the client, made once in the cache folder and checked by hash.
///
/// # Errors
/// In words: it cannot be had here.
pub(super) fn client() -> Result<PathBuf, String> {
    let home = std::env::var_os("HOME").ok_or("there is no HOME")?;
    let cache = std::env::var_os("XDG_CACHE_HOME").map_or_else(|| Path::new(&home).join(".cache"), PathBuf::from);
    let folder = cache.join("sluice").join(format!("openai-node-{:08x}", crc32fast::hash(LOCK.as_bytes())));
    if folder.join("complete").exists() {
        return Ok(folder);
    }
    let told = |error: std::io::Error| error.to_string();
    std::fs::create_dir_all(&folder).map_err(told)?;
    for (name, text) in [("package.json", PACKAGE), ("package-lock.json", LOCK)] {
        std::fs::write(folder.join(name), text).map_err(told)?;
    }
    let mut npm = Command::new("npm");
    npm.args(["ci", "--silent", "--ignore-scripts", "--no-audit", "--no-fund"]).current_dir(&folder);
    let done = npm.stdin(Stdio::null()).output().map_err(|error| format!("npm: {error}"))?;
    if !done.status.success() {
        return Err(format!("the client cannot be installed: {}", String::from_utf8_lossy(&done.stderr).trim()));
    }
    std::fs::write(folder.join("complete"), "").map_err(told)?;
    Ok(folder)
}

/// Makes the calls; how many there were, and which went wrong.
pub(super) fn check(folder: &Path, base_url: &str, key: &str, model: &str) -> anyhow::Result<(i64, Vec<String>)> {
    let script = folder.join("check.mjs");
    std::fs::write(&script, SCRIPT)?;
    let mut node = Command::new("node");
    node.arg(&script).current_dir(folder).env("BASE_URL", base_url).env("KEY", key).env("MODEL", model);
    let done = node.stdin(Stdio::null()).output().context("cannot start node")?;
    let text = String::from_utf8_lossy(&done.stdout);
    let value: serde_json::Value =
        serde_json::from_str(text.trim()).with_context(|| String::from_utf8_lossy(&done.stderr).into_owned())?;
    let wrong = value["wrong"].as_array().context("what went wrong")?;
    let wrong = wrong.iter().filter_map(|one| one.as_str().map(str::to_owned)).collect();
    Ok((value["calls"].as_i64().context("how many calls")?, wrong))
}
