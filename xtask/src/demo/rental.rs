//! The part of the demo that rents a slice, works in it and gives it back.

use std::time::{Duration, Instant};

use anyhow::Context as _;

use super::head;
use crate::system::System;

/// How long a released rental may take until its bill is final.
const FINAL: Duration = Duration::from_secs(15);

/// Rents half a device for some minutes, runs a command in it, releases it and prints what it cost.
pub(super) fn show(system: &System) -> anyhow::Result<()> {
    head("half a device is rented, worked in, and given back");
    let begin = Instant::now();
    // What it costs is told by the very words that a user is asked to say yes to.
    println!("$ sluice rent 500m --for 5m --yes");
    let order = system.json(&["rent", "500m", "--for", "5m", "--memory", "128MiB", "--name", "demo", "--yes"])?;
    let id = order["id"].as_str().context("a rental has an id")?;
    let job = order["legs"][0]["job"].as_str().and_then(|job| job.rsplit('/').next()).context("a leg has a job")?;
    println!("{id}, at most {}", order["ceiling"]["text"].as_str().unwrap_or("-"));
    let script = "echo hello from a rented slice, process $$ of uid $(id -u) > note; cat note";
    println!("$ sluice exec {id} -- sh -c '{script}'");
    print!("{}", system.text(&["exec", id, "--", "sh", "-c", script])?);
    println!("{:>6.2} s from the yes to its answer", begin.elapsed().as_secs_f64());
    println!("$ sluice release {id} --yes");
    system.text(&["release", id, "--yes"])?;
    let released = Instant::now();
    while system.json(&["receipt", job])?["final"] != serde_json::Value::Bool(true) {
        anyhow::ensure!(released.elapsed() < FINAL, "the bill of {id} is not final after {FINAL:?}");
        std::thread::sleep(Duration::from_millis(200));
    }
    println!("{}", system.text(&["receipt", job])?.trim_end());
    Ok(())
}
