//! Line 2: training jobs that are moved, and that lose their node, have the curve of an uninterrupted run.

use std::time::Duration;

use anyhow::Context as _;
use nix::sys::signal::Signal;
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use sluice_proto::v1;

use super::bytes::StoreWatch;
use super::sites::{NAMES, Sites, node_of, other};
use super::watch::{bills, phase_of, site_of};
use crate::checker::{self, Lineage};
use crate::figure::Figure;
use crate::trainer::{Shape, Trainer};
use crate::wan::Traffic;
use crate::{processes, wait_for};

const EVERY: u64 = 20;
const SHAPE: Shape = Shape { steps: 360, pause: 15, every: EVERY };
/// A move begins at or before this step: the rest has to last longer than its preparation, or the job ends where it is.
const LATEST: u64 = 160;
/// A state of some megabytes at some milliseconds a step.
const MODEL: [&str; 10] = ["--d-model", "64", "--layers", "2", "--heads", "4", "--context", "16", "--batch", "2"];
/// A state of some tens of megabytes, in large tensors.
const LARGE: [&str; 4] = ["--d-model", "192", "--batch", "1"];
/// While a transfer is to be cut: bytes a second, and how many of them before the cut.
const SLOW: u64 = 4_000_000;
const BEFORE_CUT: u64 = 2_000_000;
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

/// What makes one run different from the others.
#[derive(Debug, Clone, Copy, Default)]
struct Case {
    /// Of the weights and the order of samples: no two runs share a tensor.
    seed: u32,
    /// The step at or behind which it happens.
    at: u64,
    /// Half of the tensors never change.
    frozen: bool,
    /// The transfer is cut on its way.
    cut: bool,
    /// The old site's vault is dead before the job begins at the new one.
    vault_dies: bool,
    /// The control: one bit of the optimiser's state is flipped after the move.
    spoiled: bool,
}

impl Case {
    fn words(&self) -> Vec<String> {
        let mut words: Vec<String> = MODEL.iter().map(|word| (*word).to_owned()).collect();
        if self.cut {
            words.extend(LARGE.map(str::to_owned));
        }
        if self.frozen {
            words.push("--freeze-half".to_owned());
        }
        words.extend(["--seed".to_owned(), self.seed.to_string()]);
        words
    }

    fn shape(&self) -> Shape {
        // One checkpoint, that of the move, is all that is to be sent.
        Shape { every: if self.cut { 0 } else { EVERY }, ..SHAPE }
    }
}

/// What became of one run.
struct Outcome {
    run: Lineage,
    /// What differs from the uninterrupted run.
    differs: Option<String>,
    /// Of a planned move: the step it carried over.
    carried: u64,
    /// The old site's vault was dead, and no step done at the new site.
    vault_was_dead: bool,
    /// Bytes that the new site lacked, that the kernel counted, and that whole copies would have had.
    missing: u64,
    counted: Traffic,
    whole: u64,
    /// Of a loss: the newest step at the other site when the node died.
    durable: u64,
}

impl Outcome {
    fn ratio(&self) -> f64 {
        ratio(self.counted.both(), self.missing)
    }

    /// First steps of the attempts behind the first.
    fn resumed_at(&self) -> Option<u64> {
        self.run.firsts.values().skip(1).last().copied()
    }
}

#[allow(clippy::cast_precision_loss)]
fn ratio(part: u64, of: u64) -> f64 {
    part as f64 / of.max(1) as f64
}

/// Runs a plan. To be called once per process, in the hub.
///
/// # Errors
/// The system does not come up, or a job does not end.
pub fn run(plan: &Plan) -> anyhow::Result<Vec<Figure>> {
    let sites = Sites::start("moves")?;
    let stores = NAMES.map(|site| StoreWatch::start(&sites.system.data.join("sites").join(site)));
    let [a, b] = stores;
    let mut runs = Runs { trainer: Trainer::new(sites.system.scratch())?, sites, stores: [a?, b?] };
    if plan.keep {
        runs.sites.system.keep_folder();
    }
    let figures = runs.figures(plan);
    if !figures.as_ref().is_ok_and(|all| !all.iter().any(Figure::fails)) {
        runs.sites.system.keep_folder();
    }
    figures
}

struct Runs {
    trainer: Trainer,
    stores: [StoreWatch; 2],
    sites: Sites,
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
        let resumed = self.sites.system.metrics("sites/a/vault")?.get("sluice_vault_transfers_resumed_total").copied();
        let resumed = resumed.unwrap_or(0)
            + self
                .sites
                .system
                .metrics("sites/b/vault")?
                .get("sluice_vault_transfers_resumed_total")
                .copied()
                .unwrap_or(0);
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
        all.extend(transfers(&planned, resumed));
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

    /// A job that its tenant moves to the other site.
    fn planned(&mut self, case: Case) -> anyhow::Result<Outcome> {
        let before = NAMES.map(|site| self.store(site).now());
        let counted = [self.sites.wan.traffic(NAMES[0])?, self.sites.wan.traffic(NAMES[1])?];
        let job = self.submit(&case)?;
        let system = &self.sites.system;
        let running = |job: &v1::Job| job.state() == v1::JobState::Running && job.step >= case.at;
        let from = site_of(&system.watch(&job, "the moment of the move", running)?).to_owned();
        let to = other(&from);
        if case.cut {
            self.sites.wan.limit(&from, Some(SLOW))?;
        }
        system.cli().well(&["migrate", &job, "--to", to])?;
        let stops = |job: &v1::Job| ["stopping", "shipping", "starting"].contains(&phase_of(job));
        system.watch(&job, "the stop at the old site", stops)?;
        // The new site's agent stands still, so that it cannot begin before the old site's vault is dead.
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
        let seen = self.store(to).ever();
        let counted = self.sites.wan.traffic(&from)?.since(counted[place]);
        let view = self.sites.system.success(&job)?;
        let vault_was_dead = died.is_some() && begun?.len() <= 1;
        if let Some(launch) = died {
            self.sites.system.launch(&format!("vault-{from}"), launch)?;
            self.sites.system.wait_vault(&from)?;
        }
        let (run, differs) = self.compare(&case, &job)?;
        Ok(Outcome {
            run,
            differs,
            carried: view.migration.map_or(0, |row| row.step),
            vault_was_dead,
            missing: seen.missing(&job, &before[1 - place]),
            counted,
            whole: seen.whole(&job),
            durable: 0,
        })
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

    /// A job whose node dies: agent, supervisor and the job itself at once, in half of the cases with the site's vault.
    fn unplanned(&mut self, case: Case) -> anyhow::Result<Outcome> {
        let job = self.submit(&case)?;
        let running = |job: &v1::Job| job.state() == v1::JobState::Running && job.step >= case.at;
        let from = site_of(&self.sites.system.watch(&job, "the moment of the kill", running)?).to_owned();
        let durable = self.store(other(&from)).now().newest(&job);
        let (vault, node) = (format!("vault-{from}"), node_of(&from));
        let died = if case.vault_dies { Some(self.sites.system.kill_part(&vault)?) } else { None };
        let vault_was_dead = died.is_some();
        let launch = self.sites.system.cut_power(&format!("{from}/{node}"))?;
        let view = self.sites.system.success(&job)?;
        anyhow::ensure!(site_of(&view) != from, "the job ended at the site whose only node is dead");
        if let Some(launch) = died {
            self.sites.system.launch(&vault, launch)?;
            self.sites.system.wait_vault(&from)?;
        }
        // The power comes back: its journal still has windows to deliver.
        self.sites.system.launch(&format!("node-{node}"), launch)?;
        self.sites.system.wait_node(&from, &node)?;
        let (run, differs) = self.compare(&case, &job)?;
        let nothing = Traffic::default();
        Ok(Outcome { run, differs, carried: 0, vault_was_dead, missing: 0, counted: nothing, whole: 0, durable })
    }
}

fn curves(planned: &[(Case, Outcome)], lost: &[Outcome], spoiled: &Outcome) -> Vec<Figure> {
    let moved: Vec<&Outcome> = planned.iter().map(|(_, outcome)| outcome).collect();
    let lost: Vec<&Outcome> = lost.iter().collect();
    let control =
        format!("one bit of the optimiser flipped: {}", spoiled.differs.as_deref().unwrap_or("no difference"));
    let equal = |all: &[&Outcome], metric: &str| {
        let good = all.iter().filter(|one| one.differs.is_none() && one.run.firsts.len() > 1).count();
        let told = format!("{good} of {}", all.len());
        Figure::new(metric, told, "all", good == all.len())
            .control(control.clone(), spoiled.differs.is_some())
            .peer("the same training, uninterrupted")
    };
    let follows = |one: &&&Outcome| one.resumed_at() == Some(one.carried + 1) && one.run.replayed == 0;
    let follow = moved.iter().filter(follows).count();
    let half = i64::try_from(planned.iter().filter(|(case, _)| case.vault_dies).count()).unwrap_or(0);
    let dead = i64::try_from(moved.iter().filter(|one| one.vault_was_dead).count()).unwrap_or(0);
    let mut all = vec![
        equal(&moved, "planned moves: losses equal to the bit, every sample once"),
        Figure::new(
            "first step at the new site is the checkpoint's + 1, none replayed",
            format!("{follow} of {}", moved.len()),
            "all",
            follow == moved.len(),
        ),
        Figure::at_least(
            "moves in which the old site's vault was dead before the first step at the new one",
            dead,
            half,
        ),
        equal(&lost, "killed nodes: losses equal to the bit, every sample once"),
    ];
    // Nothing that was durable elsewhere is done again, so what is done again is at most an interval and the lag.
    let kept = lost.iter().filter(|one| one.resumed_at().is_some_and(|first| first > one.durable)).count();
    let last = |one: &Outcome| one.resumed_at().unwrap_or(1) - 1 + one.run.replayed;
    let lag = lost.iter().map(|one| (last(one) / EVERY * EVERY).saturating_sub(one.durable)).max().unwrap_or(0);
    let within =
        lost.iter().all(|one| one.run.replayed <= EVERY + (last(one) / EVERY * EVERY).saturating_sub(one.durable));
    let worst = lost.iter().map(|one| one.run.replayed).max().unwrap_or(0);
    all.push(Figure::new(
        "steps replayed after the loss of a node, at most",
        worst,
        format!("an interval ({EVERY}) + what was not yet copied at the kill (at most {lag})"),
        within && kept == lost.len(),
    ));
    all
}

fn transfers(planned: &[(Case, Outcome)], resumed: u64) -> Vec<Figure> {
    let ratios = || planned.iter().map(|(_, outcome)| outcome.ratio());
    let (least, most) = (ratios().fold(f64::INFINITY, f64::min), ratios().fold(0.0, f64::max));
    let fits = |ratio: f64| (1.0..=1.05).contains(&ratio);
    let mut all = vec![
        Figure::new(
            "bytes at the old vault's port (nftables counter, both ways) to bytes that were missing",
            format!("{least:.4} to {most:.4}"),
            "1.00 to 1.05",
            ratios().all(fits),
        )
        .peer("sizes of blobs and manifests on the new vault's disk"),
    ];
    for (_, frozen) in planned.iter().filter(|(case, _)| case.frozen) {
        let whole = ratio(frozen.whole, frozen.missing);
        all.push(
            Figure::new(
                "the job with half of its tensors frozen",
                format!("{:.4}", frozen.ratio()),
                "1.00 to 1.05",
                fits(frozen.ratio()),
            )
            .control(format!("whole checkpoints: {whole:.4}"), !fits(whole)),
        );
    }
    for (_, cut) in planned.iter().filter(|(case, _)| case.cut) {
        let again = ratio(cut.counted.both() + BEFORE_CUT, cut.missing);
        all.push(
            Figure::new(
                "the transfer that was cut",
                format!("{:.4}, {resumed} blobs resumed", cut.ratio()),
                "1.00 to 1.05, some resumed",
                fits(cut.ratio()) && resumed > 0,
            )
            .control(format!("begun again: {again:.4}"), !fits(again)),
        );
    }
    all
}
