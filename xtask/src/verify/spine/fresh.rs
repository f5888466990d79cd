//! Line 1: the README's commands where nothing is installed, and where control groups are of version 2.

use std::process::Command;
use std::time::Instant;

use crate::place;
use crate::run;
use crate::verify::{Row, Setting};

/// What a fresh machine must not have: a run that finds one of them shows nothing.
const ABSENT: &str = "for each in cc bwrap patch nft buf psql; do command -v $each && exit 1; done; exit 0";
/// A model that an emulated processor can train.
const SMALL: &str = "scripts/demo.sh --stop --steps 200 --patience 3600 -- \
                     --d-model 16 --layers 1 --heads 2 --context 16 --batch 2";

/// Measures it: an hour or two, most of it builds from nothing.
pub(super) fn rows(setting: Setting) -> anyhow::Result<Vec<Row>> {
    let fresh = |words: &str| {
        let mut command = Command::new(place::root().join("scripts/fresh.sh"));
        command.args(words.split_whitespace()).current_dir(place::root());
        command
    };
    if setting.quick {
        let why = "builds from nothing on a root and a machine of their own: cargo xtask verify spine 1";
        return Ok(vec![Row::new("the README's commands on a fresh Debian 12", "status 0").skipped(why)]);
    }
    run::step("a fresh root", &mut fresh("new"))?;
    let mut bare = fresh("run bash -c");
    let clean = run::lines(bare.arg(ABSENT), |line| println!("{line}"))?;
    let follow = |what: &str, words: &str| -> anyhow::Result<Row> {
        let (begin, mut second) = (Instant::now(), false);
        let fine = run::lines(&mut fresh(words), |line| {
            println!("{line}");
            second |= line.contains("control groups: cgroup2fs");
        })?;
        let holds = fine && (second || !words.starts_with("machine"));
        let row = Row::new(format!("{what}: `{}`", words.split_once(' ').map_or(words, |(_, rest)| rest)), "status 0");
        let told = if fine { "status 0 after" } else { "FAILED after" };
        Ok(row.measured(format!("{told} {:.0}", begin.elapsed().as_secs_f64()), "s", holds))
    };
    let v2 = "Debian's own kernel, control groups v2";
    Ok(vec![
        follow("a fresh Debian 12", "run scripts/demo.sh --stop")?
            .control(format!("what it installs was there before: {}", !clean), clean),
        follow("a fresh Debian 12", "run scripts/test.sh")?,
        follow(v2, &format!("machine {SMALL}"))?,
        // Shares are enforced by the other interface there.
        follow(v2, "machine cargo xtask verify spine 5 --quick")?,
    ])
}
