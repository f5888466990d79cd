//! `cargo xtask demo`: the main job, as README's first command runs it.
//!
//! A training job runs on half a device at one site, moves to the other half-way, and is compared bit for bit with an
//! uninterrupted run. A second one loses its node. Both bills are printed. Then a slice is rented, a
//! model is served and asked, quotas are set with kubectl where it can be had, and the system is left running.

mod chat;
mod quota;
mod rental;

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context as _;

use crate::collect::Collector;
use crate::judge::{Judgement, Log, judge};
use crate::place::{self, Profile, Programs};
use crate::system::{self, Job, Options, System};
use crate::trainer::{Reference, Training, work_folder};

/// How long a returning node may take to deliver its windows.
const FINAL: Duration = Duration::from_secs(15);
const SITES: [&str; 2] = ["a", "b"];

/// Arguments of `demo`.
#[derive(Debug, clap::Args)]
pub(crate) struct DemoArgs {
    /// The data folder; it is kept [default: $SLUICE_DATA, else $XDG_DATA_HOME/sluice, else ~/.local/share/sluice]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Where the controller listens
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:7443")]
    listen: SocketAddr,
    /// Steps of training
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u64).range(40..=100_000))]
    steps: u64,
    /// Use the release programs as they are
    #[arg(long)]
    no_build: bool,
    /// Stop the system at the end instead of leaving it running
    #[arg(long)]
    stop: bool,
    /// The longest that one phase may take before the demo gives up, in seconds
    #[arg(long, default_value_t = 180, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    patience: u64,
    /// Flags of the trainer, such as a smaller model for a slow machine
    #[arg(last = true)]
    trainer: Vec<String>,
}

impl DemoArgs {
    fn patience(&self) -> Duration {
        Duration::from_secs(self.patience)
    }
}

/// Runs the demo.
pub(crate) fn command(arguments: &DemoArgs) -> anyhow::Result<()> {
    let begin = Instant::now();
    if let Some(why) = system::missing() {
        anyhow::bail!("the demo cannot run: {why}");
    }
    let text = place::text()?;
    let programs = if arguments.no_build { Programs::built(Profile::Release) } else { place::build(Profile::Release)? };
    let data = data_folder(arguments)?;
    std::fs::create_dir_all(&data).context("cannot make the data folder")?;
    let data = data.canonicalize().context("cannot use the data folder")?;
    let scratch = data.join("demo");
    if scratch.exists() {
        std::fs::remove_dir_all(&scratch).context("cannot remove what an earlier demo left")?;
    }
    let demo = Demo { arguments, programs, data, scratch };
    let work = work_folder(&demo.scratch, &demo.programs, &text)?;
    demo.make_room()?;
    let fine = demo.show(&work)?;
    println!("\nthe whole demo took {:.0} s", begin.elapsed().as_secs_f64());
    anyhow::ensure!(fine, "the curves differ: this is a bug");
    Ok(())
}

fn data_folder(arguments: &DemoArgs) -> anyhow::Result<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let named = arguments.data.clone().or_else(|| set("SLUICE_DATA"));
    let usual = || set("XDG_DATA_HOME").or_else(|| Some(set("HOME")?.join(".local/share")));
    named.or_else(|| Some(usual()?.join("sluice"))).context("no data folder: pass --data DIR")
}

struct Demo<'a> {
    arguments: &'a DemoArgs,
    programs: Programs,
    data: PathBuf,
    scratch: PathBuf,
}

/// A headline.
fn head(text: &str) {
    println!("\n=== {text}");
}

impl Demo<'_> {
    /// Stops the system that an earlier demo left here, and sees that the port is free.
    fn make_room(&self) -> anyhow::Result<()> {
        if let Some(pid) = system::running(&self.data) {
            println!("stopping the system that runs in {} (process {pid})", self.data.display());
            system::stop_running(pid)?;
        }
        let listen = self.arguments.listen;
        TcpListener::bind(listen).with_context(|| format!("{listen} cannot be used; choose another by --listen"))?;
        Ok(())
    }

    fn up(&self, flags: &[&str]) -> anyhow::Result<System> {
        System::start(Options {
            program: self.programs.sluice.clone(),
            data: self.data.clone(),
            listen: self.arguments.listen,
            flags: flags.iter().map(|flag| (*flag).to_owned()).collect(),
        })
    }

    fn show(&self, work: &Path) -> anyhow::Result<bool> {
        head("a system of two sites with two nodes each");
        let training = Training {
            name: "moved".to_owned(),
            steps: self.arguments.steps,
            every: 20,
            milli: 500,
            flags: self.arguments.trainer.clone(),
        };
        // For comparison, the same training without Sluice, at the same time.
        let mut uninterrupted = training.reference(work)?;
        // Quick to see a loss; a killed node stays away, as after a power cut.
        let system = self.up(&["--loss-timeout", "3s", "--window", "2s", "--no-restart"])?;
        println!("data stays in {}", self.data.display());
        let shown = self.jobs(&system, &training, work, &mut uninterrupted);
        let stopped = match &shown {
            Ok(_) => system.stop(),
            Err(_) => {
                system.destroy();
                Ok(())
            }
        };
        let (fine, jobs) = shown?;
        stopped?;
        head("the power comes back: the same system with all its nodes");
        let system = self.up(&[])?;
        let billed = bills(&system, &jobs)
            .and_then(|()| rental::show(&system))
            .and_then(|()| chat::show(&system, &self.scratch, self.arguments.patience()))
            .and_then(|()| quota::show(&system, &self.scratch));
        if self.arguments.stop || billed.is_err() {
            system.stop()?;
        } else {
            self.leave_running(&system);
        }
        billed.map(|()| fine)
    }

    fn jobs(
        &self,
        system: &System,
        training: &Training,
        work: &Path,
        uninterrupted: &mut Reference,
    ) -> anyhow::Result<(bool, [Job; 2])> {
        let mut collector = Collector::start(&self.data, self.scratch.join("steps"))?;
        let moved = moved(system, training, work, self.arguments.patience())?;
        let of_moved = collector.take()?;
        let curve = uninterrupted.wait()?;
        let weights = self.same_weights(system, &moved, uninterrupted)?;
        let second = Training { name: "lost".to_owned(), ..training.clone() };
        let lost = lost(system, &second, work, self.arguments.patience())?;
        let of_lost = collector.take()?;

        head("compared with the uninterrupted run, from the step logs that the jobs wrote");
        let moved_fine = tell("moved", &of_moved, &curve);
        let lost_fine = tell("lost ", &of_lost, &curve);
        println!("moved: trained weights equal to the byte: {}", if weights { "yes" } else { "NO" });
        Ok((moved_fine && lost_fine && weights, [moved, lost]))
    }

    /// Whether the weights that can be downloaded are those of the uninterrupted run.
    fn same_weights(&self, system: &System, job: &Job, uninterrupted: &Reference) -> anyhow::Result<bool> {
        let to = self.scratch.join("model.safetensors");
        let to_text = to.to_str().context("a path that is not text")?;
        system.text(&["cp", &format!("{}:model.safetensors", job.id), to_text])?;
        let read = |path: &Path| std::fs::read(path).with_context(|| format!("cannot read {}", path.display()));
        Ok(read(&to)? == read(&uninterrupted.weights())?)
    }

    fn leave_running(&self, system: &System) {
        let said = system.said();
        println!();
        for line in said.lines().filter(|line| !line.starts_with("next:")) {
            println!("{line}");
        }
        let folder = self.programs.sluice.parent().map(|path| path.display().to_string()).unwrap_or_default();
        let sluice = match &self.arguments.data {
            Some(_) => format!("sluice --data {}", self.data.display()),
            None => "sluice".to_owned(),
        };
        println!("\nthree things to try:");
        println!("  export PATH={folder}:$PATH");
        println!("  {sluice} run --share 500m -- sh -c 'echo hello from $SLUICE_JOB'");
        println!("  {sluice} describe lost     # all that happened to the job whose node was killed");
        println!("  for n in 1 2; do {sluice} submit --name big --site a --tasks 2 --share 1000m -- sleep 60; done");
        println!("      {sluice} why big       # the second one waits: what binds, and what would admit it");
        println!("stop it by: kill {}", system.pid());
    }
}

/// Prints both bills. The dead node is back and delivers what it had metered, so they become final: windows past the
/// checkpoint that was resumed from were replayed elsewhere and are given back.
fn bills(system: &System, jobs: &[Job]) -> anyhow::Result<()> {
    let begin = Instant::now();
    for job in jobs {
        while system.json(&["receipt", &job.id])?["final"] != serde_json::Value::Bool(true) && begin.elapsed() < FINAL {
            std::thread::sleep(Duration::from_millis(200));
        }
        println!("\n{}", system.text(&["receipt", &job.id])?.trim_end());
    }
    Ok(())
}

/// Prints the progress of a job, one line each 20 steps.
struct Progress {
    begin: Instant,
    told: u64,
}

impl Progress {
    fn new() -> Self {
        Self { begin: Instant::now(), told: 0 }
    }

    fn look(&mut self, job: &Job) {
        if job.step >= self.told + 20 || (job.ended() && job.step > self.told) {
            self.told = job.step;
            self.say(&format!(
                "step {:>4}  loss {:.4}  spent {}  at {}",
                job.step,
                job.metrics.get("loss").copied().unwrap_or(f64::NAN),
                job.spent.text,
                job.at()
            ));
        }
    }

    fn say(&self, text: &str) {
        println!("{:>6.1} s  {text}", self.begin.elapsed().as_secs_f64());
    }
}

/// The first job: moved by its owner, half-way.
fn moved(system: &System, training: &Training, work: &Path, patience: Duration) -> anyhow::Result<Job> {
    let (steps, milli) = (training.steps, training.milli);
    head(&format!("a training job of {steps} steps on {milli} thousandths of a device moves half-way"));
    let mut progress = Progress::new();
    let job = system.submit(&training.job_file(work, &SITES)?)?;
    progress.say(&format!("submitted {}", job.id));
    let at_half = system.watch(&job.id, patience, |job| {
        progress.look(job);
        job.step >= steps / 2 && !job.at().is_empty()
    })?;
    let to = if at_half.at() == SITES[0] { SITES[1] } else { SITES[0] };
    progress.say(&format!("move it from site {} to site {to}", at_half.at()));
    system.migrate(&job.id, to)?;
    let mut phase = String::new();
    system.watch(&job.id, patience, |job| {
        let Some(migration) = &job.migration else { return false };
        if migration.phase != phase {
            phase.clone_from(&migration.phase);
            progress.say(&format!("migration: {phase} (step {})", migration.step));
        }
        job.state == "RUNNING" && job.at() == to || migration.phase == "failed" || job.ended()
    })?;
    let job = system.watch(&job.id, patience, |job| {
        progress.look(job);
        job.ended()
    })?;
    anyhow::ensure!(
        phase != "failed",
        "the job was not moved: it ended first, or {}; more --steps give it time",
        job.why()
    );
    finished(&progress, job)
}

/// The second job: its node dies under it.
fn lost(system: &System, training: &Training, work: &Path, patience: Duration) -> anyhow::Result<Job> {
    head("a second one loses its node: agent, supervisors and jobs are killed at once");
    let mut progress = Progress::new();
    let job = system.submit(&training.job_file(work, &SITES)?)?;
    progress.say(&format!("submitted {}", job.id));
    let running = system.watch(&job.id, patience, |job| {
        progress.look(job);
        job.step >= training.steps / 2
    })?;
    let node = running.node().context("the job is at no node")?.to_owned();
    let killed = system.kill_node(&node)?;
    progress.say(&format!("killed node {node} at step {}: {} processes", running.step, killed.processes));
    let (mut waits, mut resumed) = (false, false);
    let job = system.watch(&job.id, patience, |job| {
        if !waits && job.state != "RUNNING" {
            waits = true;
            progress.say("the node is lost");
        }
        if !resumed && job.state == "RUNNING" && job.attempts > 1 {
            resumed = true;
            let place = job.node().unwrap_or("another node");
            progress.say(&format!("runs again on node {place}, from its last durable checkpoint"));
        }
        if resumed || job.ended() {
            progress.look(job);
        }
        job.ended()
    })?;
    finished(&progress, job)
}

fn finished(progress: &Progress, job: Job) -> anyhow::Result<Job> {
    anyhow::ensure!(job.state == "SUCCEEDED", "{}", job.why());
    progress.say(&format!("done: {} spent, {} credited back", job.spent.text, job.credited.text));
    Ok(job)
}

/// Says what the judge found. True if nothing is wrong.
fn tell(name: &str, logs: &[Log], uninterrupted: &Log) -> bool {
    let Judgement { attempts, replayed, faults } = judge(logs, uninterrupted);
    let parts: Vec<_> = attempts.iter().map(|(first, last)| format!("{first}-{last}")).collect();
    let verdict = if faults.is_empty() { "all losses equal to the last bit, each sample once" } else { "DIFFERS" };
    println!("{name}: attempts executed steps {}; {replayed} replayed; {verdict}", parts.join(" and "));
    for fault in &faults {
        println!("       {fault}");
    }
    faults.is_empty() && attempts.len() > 1
}
