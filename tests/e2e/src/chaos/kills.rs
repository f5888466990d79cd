//! Who is killed, and when.

use std::time::{Duration, Instant};

use rand::{Rng as _, RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use super::{Plan, Target};
use crate::join::Share;
use crate::system::System;

/// Users of fresh nodes begin here; each node has a range of its own.
const FIRST_UID: u32 = 400_000;
const UIDS: u32 = 10_000;

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
    let launch = system.kill_part(part)?;
    system.launch(part, launch)
}

/// Kills a whole node; a fresh one takes its share of the cores.
fn replace(system: &mut System, node: &str, kills: u32) -> anyhow::Result<String> {
    let launch = system.kill_node(node)?;
    let (site, _) = node.split_once('/').unwrap_or(("a", ""));
    let name = format!("{site}{}", kills + 10);
    system.join_node(None, site, &name, &Share::of(&launch, FIRST_UID + kills * UIDS)?)?;
    Ok(format!("{site}/{name}"))
}
