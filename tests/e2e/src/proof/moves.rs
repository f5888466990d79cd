//! Line 2: training jobs that are moved, and that lose their node, have the curve of an uninterrupted run.

use std::time::Duration;

use anyhow::Context as _;
use nix::sys::signal::Signal;
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use sluice_proto::v1;

use super::bytes::StoreWatch;
use super::outcome::{BEFORE_CUT, Case, EVERY, Outcome, SHAPE, curves, transfers};
use super::sites::{NAMES, Sites, node_of, other};
use super::watch::{bills, phase_of, site_of};
use super::watched;
use crate::checker::{self, Lineage};
use crate::figure::Figure;
use crate::system::System;
use crate::trainer::Trainer;
use crate::wan::Traffic;
use crate::{processes, wait_for};

/// A move begins at or before this step: the rest has to last longer than its preparation, or the job ends where it is.
const LATEST: u64 = 140;
/// How often a job may end before it could be moved, on a machine that others use too.
const TRIES: u32 = 4;
/// While a transfer is to be cut: bytes a second.
const SLOW: u64 = 4_000_000;
/// How long bills may take to be settled at the end.
const SETTLES: Duration = Duration::from_secs(60);

/// How many of each.
#[derive(Debug, Clone, clap::Args)]
pub struct Plan {
    /// Planned moves.
    #[arg(long, default_value_t = 20)]
    pub planned: u32,
    /// Killed nodes.
    #[arg(long, default_value_t = 20)]
    pub unplanned: u32,
    /// Of all random moments.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Leaves the system's folder to be looked at.
    #[arg(long)]
    pub keep: bool,
}

/// Runs a plan. To be called once per process, in the hub.
///
/// # Errors
/// The system does not come up, or a job does not end.
pub fn run(plan: &Plan) -> anyhow::Result<Vec<Figure>> {
    let sites = Sites::start("moves")?;
    let stores = NAMES.map(|site| StoreWatch::start(&sites.system.data.join("sites").join(site)));
    let [a, b] = stores;
    let runs = Runs { trainer: Trainer::new(sites.system.scratch())?, sites, stores: [a?, b?] };
    watched(runs, plan.keep, |runs| runs.figures(plan))
}

struct Runs {
    trainer: Trainer,
    stores: [StoreWatch; 2],
    sites: Sites,
}

impl AsMut<System> for Runs {
    fn as_mut(&mut self) -> &mut System {
        &mut self.sites.system
    }
}

impl Runs {
    fn figures(&mut self, plan: &Plan) -> anyhow::Result<Vec<Figure>> {
        let mut dice = ChaCha8Rng::seed_from_u64(plan.seed);
        let foreign = self.sites.seen()?;
        let mut planned = Vec::new();
        for number in 0..plan.planned {
            let at = dice.random_range(2..=LATEST);
            let case = Case {
                seed: number + 1,
                at,
                frozen: number == 1,
                cut: number == 0,
                vault_dies: number % 2 == 1,
                spoiled: false,
            };
            let outcome = self.planned(case).with_context(|| format!("planned move {number}, {case:?}"))?;
            eprintln!(
                "moved at step {at}: first steps {:?}, {} bytes for {} missing ({:.4}){}",
                outcome.run.firsts,
                outcome.counted.both(),
                outcome.missing,
                outcome.ratio(),
                outcome.differs.as_deref().map(|text| format!(": {text}")).unwrap_or_default()
            );
            planned.push((case, outcome));
        }
        let spoiled = self.planned(Case { seed: 1000, at: EVERY, spoiled: true, ..Case::default() })?;
        let mut lost = Vec::new();
        for number in 0..plan.unplanned {
            let at = dice.random_range(2..=SHAPE.steps - 10);
            let case = Case { seed: 2000 + number, at, vault_dies: number % 2 == 1, ..Case::default() };
            let outcome = self.unplanned(case).with_context(|| format!("killed node {number}, {case:?}"))?;
            eprintln!(
                "node killed at step {at}: first steps {:?}, {} replayed, {} was durable{}",
                outcome.run.firsts,
                outcome.run.replayed,
                outcome.durable,
                outcome.differs.as_deref().map(|text| format!(": {text}")).unwrap_or_default()
            );
            lost.push(outcome);
        }
        let mut all = curves(&planned, &lost, &spoiled);
        all.extend(transfers(&planned));
        let count = |value: usize| i64::try_from(value).unwrap_or(i64::MAX);
        let strange: Vec<_> = foreign.values().flatten().cloned().collect();
        all.push(Figure::exactly("files of others that a host sees", count(strange.len()), 0).peer(&format!(
            "{} hosts, by /proc/PID/root; {}",
            foreign.len(),
            strange.join(", ")
        )));
        all.push(match self.sites.wan.delay {
            Some(delay) => Figure::seen("delay on each site's link", format!("{} ms", delay.as_millis())),
            None => Figure::skipped("delay on each site's link", "this kernel has no netem queueing discipline"),
        });
        all.push(bills(&self.sites.system)?);
        Ok(all)
    }

    fn store(&self, site: &str) -> &StoreWatch {
        &self.stores[usize::from(site != NAMES[0])]
    }

    fn submit(&self, case: &Case) -> anyhow::Result<String> {
        let mut words = case.words();
        if case.spoiled {
            words.push("--flip-bit-after-resume".to_owned());
        }
        let words: Vec<_> = words.iter().map(String::as_str).collect();
        self.trainer.submit_with(&self.sites.system.cli(), case.shape(), &["--max-run-time", "10m"], &words)
    }

    fn compare(&self, case: &Case, job: &str) -> anyhow::Result<(Lineage, Option<String>)> {
        let words = case.words();
        let words: Vec<_> = words.iter().map(String::as_str).collect();
        let reference = self.trainer.uninterrupted_with(case.shape(), &words)?;
        let run = self.sites.system.lineage_of(job)?;
        let differs = run.differs(&reference);
        Ok((run, differs))
    }

    /// A job that its tenant moves to the other site; another one where it ends before that.
    fn planned(&mut self, case: Case) -> anyhow::Result<Outcome> {
        again(case, |case| self.try_planned(case))
    }

    /// Nothing where the job ended before it could be stopped for the move.
    fn try_planned(&mut self, case: Case) -> anyhow::Result<Option<Outcome>> {
        let before = NAMES.map(|site| self.store(site).now());
        let counted = [self.sites.wan.traffic(NAMES[0])?, self.sites.wan.traffic(NAMES[1])?];
        let job = self.submit(&case)?;
        let system = &self.sites.system;
        let running = |job: &v1::Job| job.state() == v1::JobState::Running && job.step >= case.at;
        let ended = |job: &v1::Job| job.state() == v1::JobState::Succeeded;
        let view = system.watch(&job, "the moment of the move", |job| running(job) || ended(job))?;
        if ended(&view) {
            return Ok(None);
        }
        let from = site_of(&view).to_owned();
        let to = other(&from);
        if case.cut {
            self.sites.wan.limit(&from, Some(SLOW))?;
        }
        system.cli().well(&["migrate", &job, "--to", to])?;
        let ships = |job: &v1::Job| ["shipping", "starting", "done"].contains(&phase_of(job));
        if !ships(&system.watch(&job, "the stop at the old site", |job| ships(job) || ended(job))?) {
            self.sites.wan.limit(&from, None)?;
            return Ok(None);
        }
        // The new site's agent stands still, so that it cannot begin before the old site's vault is dead; for less time
        // than a node may be silent.
        let agent = system.pid_of(&format!("node-{}", node_of(to)))?;
        if case.vault_dies {
            processes::signal(agent, Signal::SIGSTOP);
        }
        let handed = if case.cut { self.cut_transfer(&job, &from) } else { Ok(()) }.and_then(|()| {
            self.sites.system.watch(&job, "the hand-over", |job| ["starting", "done"].contains(&phase_of(job)))
        });
        let died = match (&handed, case.vault_dies) {
            (Ok(_), true) => Some(self.sites.system.kill_part(&format!("vault-{from}"))?),
            _ => None,
        };
        let leases = self.sites.system.leases_of(&job);
        let begun = leases.and_then(|leases| checker::read_steps(&self.sites.system.kept(), &leases));
        processes::signal(agent, Signal::SIGCONT);
        handed?;
        let place = usize::from(from != NAMES[0]);
        let (seen, sealed) = (self.store(to).ever(), self.store(&from).ever());
        let counted = self.sites.wan.traffic(&from)?.since(counted[place]);
        // A vault that is killed later counts anew.
        let figures = self.sites.system.metrics(&format!("sites/{to}/vault"))?;
        let resumed = figures.get("sluice_vault_transfers_resumed_total").copied().unwrap_or(0);
        let view = self.sites.system.success(&job)?;
        let vault_was_dead = died.is_some() && begun?.len() <= 1;
        if let Some(launch) = died {
            self.sites.system.launch(&format!("vault-{from}"), launch)?;
            self.sites.system.wait_vault(&from)?;
        }
        let (run, differs) = self.compare(&case, &job)?;
        Ok(Some(Outcome {
            run,
            differs,
            carried: view.migration.map_or(0, |row| row.step),
            vault_was_dead,
            missing: seen.missing(&job, &before[1 - place], &sealed),
            counted,
            whole: seen.whole(&job),
            durable: 0,
            resumed,
        }))
    }

    /// Breaks the connections of a transfer that is on its way; then the link is fast again.
    fn cut_transfer(&self, job: &str, from: &str) -> anyhow::Result<()> {
        let before = self.sites.wan.traffic(from)?;
        wait_for("the middle of a transfer", SETTLES, || {
            let sent = self.sites.wan.traffic(from)?.since(before).sent;
            Ok((sent >= BEFORE_CUT).then_some(()))
        })?;
        let now = self.sites.system.watch(job, "shipping", |_| true)?;
        anyhow::ensure!(phase_of(&now) == "shipping", "the transfer was over before it was cut");
        self.sites.wan.break_transfers(from)?;
        self.sites.wan.limit(from, None)
    }

    /// A job whose node dies: agent, supervisor and the job itself at once, in half of the cases with the site's vault;
    /// another one where it ends before that.
    fn unplanned(&mut self, case: Case) -> anyhow::Result<Outcome> {
        again(case, |case| self.try_unplanned(case))
    }

    /// Nothing where the job ended before its node did.
    fn try_unplanned(&mut self, case: Case) -> anyhow::Result<Option<Outcome>> {
        let job = self.submit(&case)?;
        let running = |job: &v1::Job| job.state() == v1::JobState::Running && job.step >= case.at;
        let ended = |job: &v1::Job| job.state() == v1::JobState::Succeeded;
        let view = self.sites.system.watch(&job, "the moment of the kill", |job| running(job) || ended(job))?;
        if ended(&view) {
            return Ok(None);
        }
        let from = site_of(&view).to_owned();
        let durable = self.store(other(&from)).now().newest(&job);
        let (vault, node) = (format!("vault-{from}"), node_of(&from));
        let died = if case.vault_dies { Some(self.sites.system.kill_part(&vault)?) } else { None };
        let vault_was_dead = died.is_some();
        let launch = self.sites.system.cut_power(&format!("{from}/{node}"))?;
        let view = self.sites.system.success(&job)?;
        // At a site whose only node is dead nothing ends any more.
        let late = site_of(&view) == from;
        if let Some(launch) = died {
            self.sites.system.launch(&vault, launch)?;
            self.sites.system.wait_vault(&from)?;
        }
        // The power comes back: its journal still has windows to deliver.
        self.sites.system.launch(&format!("node-{node}"), launch)?;
        self.sites.system.wait_node(&from, &node)?;
        if late {
            return Ok(None);
        }
        let (run, differs) = self.compare(&case, &job)?;
        let nothing = Traffic::default();
        Ok(Some(Outcome {
            run,
            differs,
            carried: 0,
            vault_was_dead,
            missing: 0,
            counted: nothing,
            whole: 0,
            durable,
            resumed: 0,
        }))
    }
}

/// Tries other jobs, struck earlier, while they end before what is to happen to them.
fn again(case: Case, mut attempt: impl FnMut(Case) -> anyhow::Result<Option<Outcome>>) -> anyhow::Result<Outcome> {
    for number in 0..TRIES {
        let next = Case { seed: case.seed + number * 10_000, at: case.at / u64::from(number + 1), ..case };
        if let Some(outcome) = attempt(next)? {
            return Ok(outcome);
        }
        eprintln!("the job ended too early; another one");
    }
    anyhow::bail!("{TRIES} jobs ended too early")
}
