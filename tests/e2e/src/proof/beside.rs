//! Line 4 of the roads: a training job keeps its share of a core beside an endpoint that is asked all the time, by the
//! kernel's processor time of its processes. Its steps are slower there all the same, by what is not sliced (caches and
//! memory bandwidth): that is told, beside a neighbour that does nothing but walk through memory.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context as _;

use super::fractions::{NODE, POINTS, used};
use super::{hostile, serves};
use crate::figure::Figure;
use crate::join::Share;
use crate::system::{Options, System};
use crate::trainer::{Shape, Trainer};
use crate::wait_for;

/// What the trainer is sold of the core, in thousandths of what a node has of it.
const TRAINER: u32 = 300;
/// Steps that no measurement sees the end of; the number is how its processes are found.
const STEPS: u64 = 100_000_000;
const FIRST_UID: u32 = 700_000;
const UIDS: u32 = 10_000;
/// Requests of the endpoint at a time, and tokens of each.
const STREAMS: usize = 3;
const TOKENS: u32 = 64;
/// Start-up is no part of a measurement.
const WARM: Duration = Duration::from_secs(2);
/// How long anything may take before it counts as never.
const PATIENCE: Duration = Duration::from_secs(120);

/// What there is to choose.
#[derive(Debug, Clone, clap::Args)]
pub struct Plan {
    /// Length of each measurement, in seconds.
    #[arg(long, default_value_t = 15)]
    pub seconds: u64,
    /// The model's file.
    #[arg(long, value_name = "FILE")]
    pub model: Option<PathBuf>,
}

/// Runs it.
///
/// # Errors
/// The system does not come up, or something never happens.
pub fn run(plan: &Plan) -> anyhow::Result<Vec<Figure>> {
    let Some(model) = serves::model(plan.model.as_ref()) else {
        let metric = "CPU time of a trainer beside a busy endpoint";
        return Ok(vec![Figure::skipped(metric, "there is no model: scripts/setup.sh --tests fetches one")]);
    };
    let system = System::start("beside", Options { sites: 1, no_restart: true, ..Options::default() })?;
    let owner = serves::tenant(&system, "red")?;
    owner.cli.well(&["model", "import", &model.display().to_string(), "--name", "small", "--requantize", "Q4_0"])?;
    // From here on only nodes that own a part of the last core take jobs.
    system.cli().well(&["nodes", "cordon", "a/a1"])?;
    let trainer = Trainer::new(system.scratch())?;
    let hog = hog_folder(system.scratch())?;
    let mut bench = Bench { system, owner, trainer, hog, span: Duration::from_secs(plan.seconds), nodes: 0, jobs: 0 };
    let enforced = bench.measure(false)?;
    let advisory = bench.measure(true)?;
    let slower = |than: f64| format!("{:.2}", enforced.alone.rate / than.max(f64::MIN_POSITIVE));
    Ok(vec![
        Figure::new(
            "CPU time of a trainer beside a busy endpoint: from its share, in points",
            format!("{:.2}", enforced.busy.off),
            format!("<= {POINTS}"),
            enforced.busy.off <= POINTS,
        )
        .control(format!("limiter off: {:.2}", advisory.busy.off), advisory.busy.off > POINTS)
        .peer("the kernel's processor time of the job's processes"),
        Figure::new(
            "the same alone, in points",
            format!("{:.2}", enforced.alone.off),
            format!("<= {POINTS}"),
            enforced.alone.off <= POINTS,
        ),
        Figure::at_least("answers of the endpoint meanwhile", i64::try_from(enforced.answers)?, 1),
        Figure::seen("times as slow per step beside the busy endpoint as alone", slower(enforced.busy.rate)),
        Figure::seen("times as slow per step beside a neighbour that walks through memory", slower(enforced.hog.rate)),
    ])
}

/// A program that walks through memory, as a job's folder.
fn hog_folder(scratch: &Path) -> anyhow::Result<PathBuf> {
    let folder = scratch.join("hog");
    fs::create_dir_all(&folder)?;
    fs::copy(std::env::current_exe()?, folder.join("hog")).context("the program that walks through memory")?;
    // A smaller upload, where there is a tool for it.
    let _ = std::process::Command::new("strip").arg(folder.join("hog")).output();
    Ok(folder)
}

/// What the trainer had in one measurement.
struct Had {
    /// Points between its processor time and its share.
    off: f64,
    /// Steps a second.
    rate: f64,
}

struct Measured {
    alone: Had,
    busy: Had,
    hog: Had,
    answers: usize,
}

struct Bench {
    system: System,
    owner: serves::Tenant,
    trainer: Trainer,
    hog: PathBuf,
    span: Duration,
    nodes: u32,
    jobs: u64,
}

impl Bench {
    /// On a node of its own: alone, beside the endpoint, beside the hog.
    fn measure(&mut self, advisory: bool) -> anyhow::Result<Measured> {
        let node = self.join(advisory)?;
        let words = ["serve", "small", "--name", "one", "--replicas", "1..1", "--slice", "600m", "--memory", "768MiB"];
        self.owner.cli.well(&[&words[..], &["--context", "1024", "--sequences", "4"]].concat())?;
        let (address, key) = (self.system.gateway(), self.owner.secret.clone());
        self.system.block(hostile::ask(address, &key, 4)).context("the endpoint's first answer")?;
        let (job, mark) = self.train()?;
        let alone = self.had(&job, &mark)?;
        let (busy, answers) = self.loaded(address, &key, &job, &mark)?;
        self.owner.cli.well(&["endpoint", "delete", "one", "-y"])?;
        let hog = self.owner.cli.submit(&self.hog_words().iter().map(String::as_str).collect::<Vec<_>>())?;
        self.reaches(&hog, "RUNNING")?;
        let beside_hog = self.had(&job, &mark)?;
        for job in [&hog, &job] {
            self.owner.cli.well(&["cancel", "-y", job])?;
            self.reaches(job, "CANCELLED")?;
        }
        self.system.cli().well(&["nodes", "cordon", &format!("a/{node}")])?;
        Ok(Measured { alone, busy, hog: beside_hog, answers })
    }

    fn join(&mut self, advisory: bool) -> anyhow::Result<String> {
        let core = std::thread::available_parallelism().context("how many cores")?.get() - 1;
        let (name, first_uid) = (format!("n{}", self.nodes), FIRST_UID + UIDS * self.nodes);
        self.nodes += 1;
        let share = Share { cores: format!("{core}:{NODE}"), memory: "2GiB".to_owned(), first_uid, advisory };
        self.system.join_node(None, "a", &name, &share)?;
        Ok(name)
    }

    fn hog_words(&self) -> Vec<String> {
        let folder = self.hog.display().to_string();
        let words =
            ["--share", "600m", "--memory", "512MiB", "--workdir", &folder, "--", "./hog", "spin", "1", "hog", "256"];
        words.map(str::to_owned).to_vec()
    }

    /// A training job that is far enough to be measured, and the word that its processes have.
    fn train(&mut self) -> anyhow::Result<(String, String)> {
        let shape = Shape { steps: STEPS + self.jobs, pause: 0, every: 0 };
        self.jobs += 1;
        let share = format!("{TRAINER}m");
        let more = ["--d-model", "64", "--batch", "16", "--context", "32", "--progress-every", "20"];
        let job = self.trainer.submit_with(&self.owner.cli, shape, &["--share", &share], &more)?;
        wait_for("the trainer's first steps", PATIENCE, || Ok((self.steps(&job)? > 0).then_some(())))?;
        Ok((job, shape.steps.to_string()))
    }

    fn reaches(&self, job: &str, state: &str) -> anyhow::Result<()> {
        wait_for(state, PATIENCE, || Ok((self.owner.cli.job(job)?["state"] == state).then_some(())))
    }

    fn steps(&self, job: &str) -> anyhow::Result<u64> {
        let view = self.owner.cli.job(job)?;
        anyhow::ensure!(view["state"] != "FAILED", "the trainer failed: {view:#}");
        Ok(view["step"].as_u64().unwrap_or(0))
    }

    #[allow(clippy::cast_precision_loss)]
    fn had(&self, job: &str, mark: &str) -> anyhow::Result<Had> {
        std::thread::sleep(WARM);
        let (begin, before, first) = (Instant::now(), used(mark), self.steps(job)?);
        std::thread::sleep(self.span);
        let (wall, after, last) = (begin.elapsed().as_secs_f64(), used(mark), self.steps(job)?);
        let share = (after - before) / wall * 1000.0 / f64::from(NODE) * 100.0;
        Ok(Had {
            off: (share - f64::from(TRAINER) / 10.0).abs(),
            rate: last.saturating_sub(first) as f64 / begin.elapsed().as_secs_f64(),
        })
    }

    /// While the endpoint is asked without a pause; also how often it answered.
    fn loaded(&self, address: SocketAddr, key: &str, job: &str, mark: &str) -> anyhow::Result<(Had, usize)> {
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            let asking: Vec<_> = (0..STREAMS)
                .map(|_| {
                    scope.spawn(|| {
                        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                        let mut answers = 0_usize;
                        while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                            runtime.block_on(hostile::ask(address, key, TOKENS))?;
                            answers += 1;
                        }
                        anyhow::Ok(answers)
                    })
                })
                .collect();
            let had = self.had(job, mark);
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
            let mut answers = 0;
            for asking in asking {
                answers += asking.join().map_err(|_| anyhow::anyhow!("a client panicked"))??;
            }
            Ok((had?, answers))
        })
    }
}
