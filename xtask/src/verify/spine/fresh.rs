//! Line 1: the README's commands where nothing is installed, and where control groups are of version 2.

use std::process::Command;
use std::time::Instant;

use crate::place;
use crate::run;
use crate::verify::{Row, Setting};

/// What a fresh machine must not have: a run that finds one of them shows nothing.
const ABSENT: &str = "for each in cc bwrap patch buf psql; do command -v $each && exit 1; done; exit 0";
/// What the machine says when it starts.
const CGROUP2: &str = "control groups: cgroup2fs";
/// A model that an emulated processor can train.
const SMALL: &str = "scripts/demo.sh --stop --steps 600 --patience 3600 -- \
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
    // Follows a command; what it must say besides ending with status 0.
    let follow = |what: &str, words: &str, says: &[&str]| -> anyhow::Result<Row> {
        let (begin, mut unsaid) = (Instant::now(), says.to_vec());
        let ended = run::lines(&mut fresh(words), |line| {
            println!("{line}");
            unsaid.retain(|words| !line.contains(words));
        })?;
        let row = Row::new(format!("{what}: `{}`", words.split_once(' ').map_or(words, |(_, rest)| rest)), "status 0");
        let told = match (ended, unsaid.first()) {
            (false, _) => "FAILED after".to_owned(),
            (true, Some(words)) => format!("never said \"{words}\", status 0 after"),
            (true, None) => "status 0 after".to_owned(),
        };
        let holds = ended && unsaid.is_empty();
        Ok(row.measured(format!("{told} {:.0}", begin.elapsed().as_secs_f64()), "s", holds))
    };
    // A root of its own for each command: neither finds what the other installed or built.
    let on_a_new_root = |words: &str| -> anyhow::Result<Row> {
        run::step("a fresh root", &mut fresh("new"))?;
        let mut bare = fresh("run bash -c");
        let clean = run::lines(bare.arg(ABSENT), |line| println!("{line}"))?;
        let row = follow("a fresh Debian 12", words, &[])?;
        Ok(row.control(format!("what it installs was there before: {}", !clean), clean))
    };
    let machine = |words: &str, says: &[&str]| {
        follow("Debian's own kernel, control groups v2", &format!("machine {words}"), &[&[CGROUP2], says].concat())
    };
    Ok(vec![
        on_a_new_root("run scripts/test.sh")?,
        // Shares are enforced by the other interface there; the programs are those that the tests have built.
        machine(
            "env CARGO_TARGET_DIR=/root/.cache/sluice/target cargo xtask verify spine 5 --quick",
            &["5 hold, 0 do not"],
        )?,
        on_a_new_root("run scripts/demo.sh --stop")?,
        machine(SMALL, &[])?,
    ])
}
