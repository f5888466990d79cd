//! Who is killed, and when.

use std::time::{Duration, Instant};

use rand::{Rng as _, RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use super::{Plan, Target};
use crate::system::System;
use crate::wait_for;

/// Users of fresh nodes begin here; each node has a range of its own.
const FIRST_UID: u32 = 400_000;
const UIDS: u32 = 10_000;
/// How long a fresh node may take to join.
const JOINS: Duration = Duration::from_secs(60);

/// Kills for as long as the plan says; returns how often.
pub(super) fn kill_for(system: &mut System, plan: &Plan) -> anyhow::Result<u32> {
    let mut dice = ChaCha8Rng::seed_from_u64(plan.seed);
    let mut nodes: Vec<String> = ["a/a1", "a/a2", "b/b1", "b/b2"].map(str::to_owned).to_vec();
    let end = Instant::now() + Duration::from_secs(plan.seconds);
    let mut kills = 0;
    let more = |kills: u32| Instant::now() < end || (plan.target == Target::Nodes && kills < plan.kills);
    while more(kills) {
        std::thread::sleep(Duration::from_millis(dice.random_range(500..=4000)));
        if !more(kills) {
            break;
        }
        let place = usize::try_from(dice.next_u32())? % nodes.len();
        let node = &mut nodes[place];
        match plan.target {
            Target::Nothing => continue,
            Target::Controller => again(system, "controller")?,
            Target::Agents => again(system, &format!("node-{}", &node[2..]))?,
            Target::Nodes => *node = replace(system, node, kills)?,
        }
        kills += 1;
    }
    Ok(kills)
}

fn again(system: &mut System, part: &str) -> anyhow::Result<()> {
    let arguments = system.kill_part(part)?;
    system.respawn(part, &arguments)
}

/// Kills a whole node; a fresh one takes its share of the cores.
fn replace(system: &mut System, node: &str, kills: u32) -> anyhow::Result<String> {
    let arguments = system.kill_node(node)?;
    let (site, _) = node.split_once('/').unwrap_or(("a", ""));
    let name = format!("{site}{}", kills + 10);
    system.add_node(site, &name, &arguments, FIRST_UID + kills * UIDS)?;
    let wanted = format!("sites/{site}/nodes/{name}");
    let cli = system.cli();
    wait_for("a fresh node", JOINS, || {
        let nodes = cli.json(&["nodes", "list"])?;
        let ready = |row: &serde_json::Value| row["name"] == wanted.as_str() && row["state"] == "READY";
        Ok(nodes["items"].as_array().is_some_and(|rows| rows.iter().any(ready)).then_some(()))
    })?;
    Ok(format!("{site}/{name}"))
}
