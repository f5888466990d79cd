//! Line 2: training jobs that are moved, and that lose their node, have the curve of an uninterrupted run.
//!
//! The judge reads the step logs that the attempts wrote ([`crate::collect`]) and asks the system nothing.

use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;

use crate::collect::Collector;
use crate::dice::Dice;
use crate::judge::{Judgement, Log, judge};
use crate::place::{self, Profile, Programs};
use crate::system::{self, Job, Options, System};
use crate::trainer::{Training, work_folder};
use crate::verify::{Row, Setting};

const PATIENCE: Duration = Duration::from_secs(180);
const STEPS: u64 = 240;
const EVERY: u64 = 20;
/// A move begins at or before this step: the rest has to last longer than its preparation, or the job ends where it is.
const LATEST: u64 = 120;

pub(super) fn rows(setting: Setting) -> anyhow::Result<Vec<Row>> {
    let count = if setting.quick { 2 } else { 20 };
    let planned = Row::new(format!("{count} planned moves: curves equal to the bit"), "all");
    let unplanned = Row::new(format!("{count} killed nodes: curves equal to the bit"), "all");
    if let Some(why) = system::missing() {
        return Ok(vec![planned.skipped(&why), unplanned.skipped(&why)]);
    }
    let text = place::text()?;
    let programs = if setting.quick { Programs::built(Profile::Debug) } else { place::build(Profile::Release)? };
    anyhow::ensure!(programs.sluice.is_file(), "the programs are not built: cargo xtask test builds them");
    let folder = tempfile::tempdir().context("no temporary folder")?;
    let work = work_folder(folder.path(), &programs, &text)?;
    let training = Training { name: "train".to_owned(), steps: STEPS, every: EVERY, milli: 1000, flags: Vec::new() };
    let curve = training.reference(&work)?.wait()?;
    let runs = Runs { programs, folder: folder.path(), work, training, curve };

    let mut dice = Dice::new(setting.seed);
    let moved = runs.planned(count, &mut dice)?;
    let spoiled = runs.spoiled()?;
    let lost = runs.unplanned(count, &mut dice)?;
    let faults =
        |all: &[Judgement]| all.iter().flat_map(|one| one.faults.clone()).take(3).collect::<Vec<_>>().join("; ");
    let equal = |all: &[Judgement]| all.iter().filter(|one| one.faults.is_empty() && one.attempts.len() > 1).count();
    let told = |all: &[Judgement]| format!("{} of {} {}", equal(all), all.len(), faults(all)).trim_end().to_owned();
    let follows = moved.iter().filter(|one| one.attempts.windows(2).all(|pair| pair[1].0 == pair[0].1 + 1)).count();
    let worst = lost.iter().map(|(one, _)| one.replayed).max().unwrap_or(0);
    let lag = lost.iter().map(|(_, lag)| *lag).max().unwrap_or(0);
    let within = lost.iter().all(|(one, lag)| one.replayed <= EVERY + lag);
    let lost: Vec<_> = lost.into_iter().map(|(judgement, _)| judgement).collect();
    let control = format!("one bit of the optimiser flipped: {}", faults(std::slice::from_ref(&spoiled)));
    Ok(vec![
        planned
            .measured(told(&moved), "jobs", equal(&moved) == count)
            .control(control.clone(), !spoiled.faults.is_empty())
            .peer("the same training, uninterrupted"),
        Row::new("first step at the new site is the last one at the old site + 1, none replayed", "all").measured(
            format!("{follows} of {count}"),
            "jobs",
            follows == count && moved.iter().all(|one| one.replayed == 0),
        ),
        unplanned
            .measured(told(&lost), "jobs", equal(&lost) == count)
            .control(control, !spoiled.faults.is_empty())
            .peer("the same training, uninterrupted"),
        Row::new(
            "steps replayed after the loss of a node, at most",
            format!("one interval ({EVERY} steps) + replication lag (up to {lag} steps at the moment of the kill)"),
        )
        .measured(worst.to_string(), "steps", within),
        Row::new("bytes on the vault's port against the bytes that were missing", "1.00 to 1.05"),
        Row::new("a transfer that is cut is resumed", "all"),
        Row::new("A's vault is stopped before B starts, in half of the moves", "all"),
        Row::new("each site sees its own disk only (namespaces)", "yes"),
    ])
}

/// Starts a system in a folder below `at`.
pub(super) fn start(programs: &Programs, at: &Path, flags: &[&str]) -> anyhow::Result<System> {
    let mut all = vec!["--loss-timeout", "3s", "--window", "2s"];
    all.extend(flags);
    System::start(Options {
        program: programs.sluice.clone(),
        data: at.join("data"),
        listen: system::free_port()?,
        flags: all.into_iter().map(str::to_owned).collect(),
    })
}

struct Runs<'a> {
    programs: Programs,
    folder: &'a Path,
    work: std::path::PathBuf,
    training: Training,
    curve: Log,
}

impl Runs<'_> {
    /// Moves at random steps, one job after the other in one system.
    fn planned(&self, count: usize, dice: &mut Dice) -> anyhow::Result<Vec<Judgement>> {
        let folder = self.folder.join("planned");
        self.with_system(&folder, &[], |system, collector| {
            let mut found = Vec::with_capacity(count);
            for _ in 0..count {
                let at = dice.between(2, LATEST);
                self.moved(system, &self.training, at)?;
                found.push(judge(&collector.take()?, &self.curve));
                println!("  moved at step {at}: {:?}", found.last().map(|one| &one.attempts));
            }
            Ok(found)
        })
    }

    /// The control: a bit of the optimiser's state is flipped after the move.
    fn spoiled(&self) -> anyhow::Result<Judgement> {
        let flags = vec!["--flip-bit-after-resume".to_owned()];
        let training = Training { name: "spoiled".to_owned(), flags, ..self.training.clone() };
        self.with_system(&self.folder.join("spoiled"), &[], |system, collector| {
            self.moved(system, &training, LATEST)?;
            Ok(judge(&collector.take()?, &self.curve))
        })
    }

    fn moved(&self, system: &System, training: &Training, at: u64) -> anyhow::Result<Job> {
        let job = system.submit(&training.job_file(&self.work, &["a", "b"])?)?;
        let running = system.watch(&job.id, PATIENCE, |job| job.state == "RUNNING" && job.step >= at)?;
        system.migrate(&job.id, if running.at() == "a" { "b" } else { "a" })?;
        system.wait_success(&job.id, PATIENCE)
    }

    /// Kills whole nodes at random steps, each in a system of its own in which a dead node stays dead. The job's other
    /// node at the site takes no work, so it has to go on at the other site.
    /// With each judgement comes the replication lag at the kill: steps past the newest durable checkpoint, less one
    /// interval.
    fn unplanned(&self, count: usize, dice: &mut Dice) -> anyhow::Result<Vec<(Judgement, u64)>> {
        let mut found = Vec::with_capacity(count);
        for place in 0..count {
            let at = dice.between(2, STEPS - 10);
            let folder = self.folder.join(format!("unplanned-{place}"));
            let judgement = self.with_system(&folder, &["--no-restart"], |system, collector| {
                let job = system.submit(&self.training.job_file(&self.work, &["a", "b"])?)?;
                let running = system.watch(&job.id, PATIENCE, |job| job.state == "RUNNING" && job.node().is_some())?;
                let site = running.at().to_owned();
                for node in 1..=2 {
                    system.text(&["nodes", "cordon", &format!("{site}/{site}{node}")])?;
                }
                let running = system.watch(&job.id, PATIENCE, |job| job.step >= at)?;
                let durable = system.newest_durable(&job.id)?;
                system.kill_node(running.node().context("the job is at no node")?)?;
                let done = system.wait_success(&job.id, PATIENCE)?;
                anyhow::ensure!(done.at() != site, "the job went on at the site that takes no work");
                let judgement = judge(&collector.take()?, &self.curve);
                let last = judgement.attempts.first().map_or(0, |(_, last)| *last);
                Ok((judgement, last.saturating_sub(durable).saturating_sub(EVERY)))
            })?;
            let (found_now, lag) = &judgement;
            println!(
                "  node killed at step {at}: {:?}, {} replayed, replication {lag} steps behind",
                found_now.attempts, found_now.replayed
            );
            found.push(judgement);
        }
        Ok(found)
    }

    fn with_system<T>(
        &self,
        folder: &Path,
        flags: &[&str],
        work: impl FnOnce(&System, &mut Collector) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let system = start(&self.programs, folder, flags)?;
        let result = Collector::start(&folder.join("data"), folder.join("steps"))
            .and_then(|mut collector| work(&system, &mut collector));
        system.destroy();
        let _ = std::fs::remove_dir_all(folder);
        result
    }
}
