//! Line 5: slices of one core as jobs of the real system get them, by the kernel's processor time of their processes.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use nix::unistd::{SysconfVar, sysconf};
use sluice_proto::v1;

use crate::figure::Figure;
use crate::join::Share;
use crate::processes;
use crate::system::{Options, System};

/// What a node has of the core: the rest is kept for the system, as `sluice up` does it.
pub(super) const NODE: u32 = 900;
pub(super) const POINTS: f64 = 2.0;
const FIRST_UID: u32 = 600_000;
const UIDS: u32 = 10_000;
/// Start-up and half-filled periods are no part of a measurement.
const WARM: Duration = Duration::from_secs(1);
/// A job that nobody cancels.
const LONGEST: Duration = Duration::from_secs(120);

/// What there is to choose.
#[derive(Debug, Clone, clap::Args)]
pub struct Plan {
    /// Length of each measurement, in seconds.
    #[arg(long, default_value_t = 10)]
    pub seconds: u64,
}

/// A job that wants all it can get.
#[derive(Debug, Clone, clap::Args)]
pub struct Spin {
    /// Threads that spin; none only waits.
    threads: u32,
    /// Which job it is.
    mark: String,
    /// MiB that each thread walks through, again and again; 0 = it only counts.
    #[arg(default_value_t = 0)]
    mib: usize,
}

/// Spins.
pub fn spin(spin: &Spin) {
    let end = Instant::now() + LONGEST;
    let threads: Vec<_> = (0..spin.threads)
        .map(|_| {
            let mib = spin.mib;
            std::thread::spawn(move || {
                let mut memory = vec![1_u8; mib << 20];
                while Instant::now() < end {
                    // One byte of each line of a cache.
                    memory.iter_mut().step_by(64).for_each(|byte| *byte = byte.wrapping_add(1));
                    for number in 0..100_000u32 {
                        std::hint::black_box(number);
                    }
                }
            })
        })
        .collect();
    while Instant::now() < end {
        std::thread::sleep(WARM);
    }
    threads.into_iter().for_each(|thread| drop(thread.join()));
}

/// Runs it.
///
/// # Errors
/// The system does not come up, or a job does not run.
pub fn run(plan: &Plan) -> anyhow::Result<Vec<Figure>> {
    let options = Options { sites: 1, no_restart: true, ..Options::default() };
    let system = System::start("fractions", options)?;
    system.cli().well(&["nodes", "cordon", "a/a1"])?;
    let work = system.scratch().join("spin");
    fs::create_dir_all(&work)?;
    fs::copy(std::env::current_exe()?, work.join("spin")).context("the program that spins")?;
    // A smaller upload, where there is a tool for it.
    let _ = Command::new("strip").arg(work.join("spin")).output();
    let mut bench = Bench { system, work, span: Duration::from_secs(plan.seconds), nodes: 0, marks: 0 };
    let enforced = bench.measure(false)?;
    let advisory = bench.measure(true)?;
    let pair = |name: &str, of: fn(&Measured) -> f64| {
        let (got, control) = (of(&enforced), of(&advisory));
        Figure::new(format!("{name}, in points"), format!("{got:.2}"), "<= 2", got <= POINTS)
            .control(format!("limiter off: {control:.2}"), control > POINTS)
            .peer("the kernel's processor time of the jobs' processes")
    };
    Ok(vec![
        pair("jobs of 300m and 700m, 1 thread each: furthest from 30/70", |all| all.one),
        pair("jobs of 300m and 700m, 4 threads each: furthest from 30/70", |all| all.four),
        pair("jobs on two nodes that share the core: furthest from 15/35/15/35", |all| all.nodes),
        pair("a job of 300m beside one that does nothing: over its share", |all| all.idle),
    ])
}

/// How far off each measurement was.
struct Measured {
    one: f64,
    four: f64,
    nodes: f64,
    idle: f64,
}

struct Bench {
    system: System,
    work: PathBuf,
    span: Duration,
    nodes: u32,
    marks: u32,
}

impl Bench {
    fn measure(&mut self, advisory: bool) -> anyhow::Result<Measured> {
        let node = self.join(NODE, advisory)?;
        let split = |got: &[f64]| {
            let whole: f64 = got.iter().sum();
            (got[0] / whole * 100.0 - 30.0).abs()
        };
        let one = split(&self.share(&[(300, 1), (700, 1)])?);
        let four = split(&self.share(&[(300, 4), (700, 4)])?);
        let idle = self.share(&[(300, 4), (700, 0)])?[0] / f64::from(NODE) * 100.0 - 30.0;
        self.cordon(&node)?;
        // The large ones first: one fits on each node, and then one small one.
        let pair = [self.join(NODE / 2, advisory)?, self.join(NODE / 2, advisory)?];
        let got = self.share(&[(700, 4), (700, 4), (300, 4), (300, 4)])?;
        let whole: f64 = got.iter().sum();
        let off = got.iter().zip([35.0, 35.0, 15.0, 15.0]).map(|(got, wanted)| (got / whole * 100.0 - wanted).abs());
        let nodes = off.fold(0.0, f64::max);
        pair.iter().try_for_each(|node| self.cordon(node))?;
        Ok(Measured { one, four, nodes, idle })
    }

    /// A node that owns so much of the last core, and nothing else.
    fn join(&mut self, milli: u32, advisory: bool) -> anyhow::Result<String> {
        let core = std::thread::available_parallelism().context("how many cores")?.get() - 1;
        let name = format!("n{}", self.nodes);
        let first_uid = FIRST_UID + UIDS * self.nodes;
        self.nodes += 1;
        let share = Share { cores: format!("{core}:{milli}"), memory: "512MiB".to_owned(), first_uid, advisory };
        self.system.join_node(None, "a", &name, &share)?;
        Ok(name)
    }

    fn cordon(&self, node: &str) -> anyhow::Result<()> {
        self.system.cli().well(&["nodes", "cordon", &format!("a/{node}")]).map(drop)
    }

    /// Runs jobs of so many milli and threads at once; what each got, in thousandths of a core.
    fn share(&mut self, loads: &[(u32, u32)]) -> anyhow::Result<Vec<f64>> {
        let (cli, work) = (self.system.cli(), self.work.display().to_string());
        let mut jobs = Vec::new();
        for (milli, threads) in loads {
            let mark = format!("spinner-{}-{}", std::process::id(), self.marks);
            self.marks += 1;
            let (share, threads) = (format!("{milli}m"), threads.to_string());
            let flags = ["--share", &share, "--memory", "64MiB", "--workdir", &work, "--"];
            let job = cli.submit(&[&flags[..], &["./spin", "spin", &threads, &mark]].concat())?;
            let running = |job: &v1::Job| job.state() == v1::JobState::Running;
            self.system.watch(&job, "its start", running)?;
            jobs.push((job, mark));
        }
        std::thread::sleep(WARM);
        let begin = Instant::now();
        let before: Vec<f64> = jobs.iter().map(|(_, mark)| used(mark)).collect();
        std::thread::sleep(self.span);
        let after: Vec<f64> = jobs.iter().map(|(_, mark)| used(mark)).collect();
        let wall = begin.elapsed().as_secs_f64();
        for (job, _) in &jobs {
            cli.well(&["cancel", "-y", job])?;
        }
        for (job, _) in &jobs {
            self.system.watch(job, "its end", |job| job.state() == v1::JobState::Cancelled)?;
        }
        Ok(after.iter().zip(before).map(|(after, before)| (after - before) / wall * 1000.0).collect())
    }
}

/// Processor time of all processes that were started with a word, in seconds.
#[allow(clippy::cast_precision_loss)]
pub(super) fn used(mark: &str) -> f64 {
    let ticks = sysconf(SysconfVar::CLK_TCK).ok().flatten().unwrap_or(100);
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let own = pids.filter(|pid| processes::arguments_of(*pid).is_ok_and(|words| words.iter().any(|word| word == mark)));
    let sum: u64 = own.map(|pid| ticks_of(pid).unwrap_or(0)).sum();
    sum as f64 / ticks as f64
}

/// Its own, in user and in kernel mode.
fn ticks_of(pid: i32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let words: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    Some(words.get(11)?.parse::<u64>().ok()? + words.get(12)?.parse::<u64>().ok()?)
}
