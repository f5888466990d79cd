//! Runs simulated days: many seeds on all cores, or one with its trace.

use std::collections::BTreeSet;
use std::ops::Range;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::Instant;

use anyhow::Context;
use clap::{Parser, Subcommand};
use sluice_sim::{Day, Outcome, bugs, run};

/// What a seed fails by that does not replay.
const DIFFERS: &str = "its trace differs when it is run again";

#[derive(Parser)]
#[command(about = "Simulated days of Sluice with faults and a judge")]
struct Options {
    /// Seeds to run, such as 0..500.
    #[arg(long, value_parser = seeds, default_value = "0..20")]
    seeds: Range<u64>,
    /// One seed only.
    #[arg(long)]
    seed: Option<u64>,
    /// Print what happens.
    #[arg(long)]
    trace: bool,
    /// A smaller day.
    #[arg(long)]
    small: bool,
    /// No faults.
    #[arg(long)]
    calm: bool,
    /// Run each seed twice; a seed whose traces differ fails.
    #[arg(long)]
    twice: bool,
    /// Stop at the first seed that fails.
    #[arg(long)]
    first_failure: bool,
    /// Worker threads; 0 = all cores.
    #[arg(long, default_value_t = 0)]
    threads: usize,
    #[command(subcommand)]
    command: Option<Extra>,
}

#[derive(Subcommand)]
enum Extra {
    /// Plants each bug in a copy of the workspace and checks that the judge catches it.
    Bugs {
        /// Seeds that each bug has to be caught within.
        #[arg(long, default_value_t = 80)]
        within: u64,
        /// Only patches whose name contains this.
        #[arg(long, allow_hyphen_values = true)]
        only: Option<String>,
    },
}

fn seeds(text: &str) -> Result<Range<u64>, String> {
    let (from, to) = text.split_once("..").ok_or("FROM..TO")?;
    let number = |text: &str| text.parse::<u64>().map_err(|error| error.to_string());
    Ok(number(from)?..number(to)?)
}

fn main() -> anyhow::Result<ExitCode> {
    let options = Options::parse();
    if let Some(Extra::Bugs { within, only }) = &options.command {
        let (caught, all) = bugs::check(*within, only.as_deref()).context("checking the planted bugs")?;
        println!("{caught}/{all} planted bugs caught");
        println!("figures: bugs={all} caught={caught}");
        return Ok(if caught * 10 >= all * 9 { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    let day = if options.small { Day::SMALL } else { Day::FULL };
    let day = if options.calm { day.calm() } else { day };
    let seeds = options.seed.map_or(options.seeds.clone(), |seed| seed..seed + 1);
    let begin = Instant::now();
    let outcomes = run_all(seeds, day, &options);
    Ok(report(&outcomes, begin, &options))
}

fn threads(options: &Options) -> usize {
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    match options.threads {
        _ if options.trace => 1,
        0 => cores,
        threads => threads,
    }
}

fn run_one(seed: u64, day: Day, options: &Options) -> Outcome {
    let mut outcome = run(seed, day, options.trace);
    if options.twice && outcome.digest != run(seed, day, false).digest {
        outcome.failures.insert(0, DIFFERS.to_owned());
    }
    outcome
}

fn run_all(seeds: Range<u64>, day: Day, options: &Options) -> Vec<Outcome> {
    let threads = threads(options);
    let next = AtomicU64::new(seeds.start);
    let (sender, receiver) = mpsc::channel();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            let (sender, next, end) = (sender.clone(), &next, seeds.end);
            scope.spawn(move || {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end || sender.send(run_one(seed, day, options)).is_err() {
                        return;
                    }
                }
            });
        }
        drop(sender);
        let mut outcomes: Vec<Outcome> = Vec::new();
        for outcome in receiver {
            if !outcome.failures.is_empty() {
                let small = if options.small { " --small" } else { "" };
                let calm = if options.calm { " --calm" } else { "" };
                println!("seed {} fails: {}", outcome.seed, outcome.failures[0]);
                println!("  cargo run -p sluice-sim --release --{small}{calm} --seed {} --trace", outcome.seed);
            }
            let failed = !outcome.failures.is_empty();
            outcomes.push(outcome);
            if failed && options.first_failure {
                next.store(u64::MAX / 2, Ordering::Relaxed);
            }
        }
        outcomes.sort_by_key(|outcome| outcome.seed);
        outcomes
    })
}

/// Time on processors of this process so far, from the kernel's ticks of 10 ms.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat.rsplit_once(") ").map_or("", |(_, rest)| rest).split(' ');
    let ticks: u32 = fields.skip(11).take(2).filter_map(|field| field.parse::<u32>().ok()).sum();
    f64::from(ticks) / 100.0
}

fn report(outcomes: &[Outcome], begin: Instant, options: &Options) -> ExitCode {
    if options.seed.is_some() {
        for outcome in outcomes {
            outcome.failures.iter().take(20).for_each(|failure| println!("{failure}"));
            println!("{outcome:?}");
        }
    }
    let failed = outcomes.iter().filter(|outcome| !outcome.failures.is_empty()).count();
    let sum = |figure: fn(&Outcome) -> u64| outcomes.iter().map(figure).sum::<u64>();
    let least = |figure: fn(&Outcome) -> u64| outcomes.iter().map(figure).min().unwrap_or_default();
    println!(
        "{} seeds in {:.1} s ({:.1} CPU s), {failed} failed: {} jobs ({} succeeded), {} rentals had their time, {} faults, {} crashes, {} commits, \
         {} windows, {} steps ({} replayed)",
        outcomes.len(),
        begin.elapsed().as_secs_f64(),
        cpu_seconds(),
        sum(|outcome| outcome.jobs as u64),
        sum(|outcome| outcome.succeeded as u64),
        sum(|outcome| outcome.expired as u64),
        sum(|outcome| outcome.faults as u64),
        sum(|outcome| outcome.crashes),
        sum(|outcome| outcome.commits),
        sum(|outcome| outcome.windows),
        sum(|outcome| outcome.steps),
        sum(|outcome| outcome.replayed),
    );
    let differ = outcomes.iter().filter(|outcome| outcome.failures.iter().any(|failure| failure == DIFFERS)).count();
    let traces: BTreeSet<_> = outcomes.iter().map(|outcome| outcome.digest).collect();
    println!(
        "figures: seeds={} failed={failed} differ={differ} traces={} threads={} seconds={:.1} cpu_seconds={:.1} \
         least_jobs={} least_faults={} least_hours={} least_rents={} expired={} least_settled={} settled={} \
         voided={} least_replicas={} drained={} resumed={} least_tokens={} tokens={} moved={} put_out={}",
        outcomes.len(),
        traces.len(),
        threads(options),
        begin.elapsed().as_secs_f64(),
        cpu_seconds(),
        least(|outcome| outcome.accepted as u64),
        least(|outcome| outcome.faults as u64),
        least(|outcome| outcome.hours),
        least(|outcome| outcome.rents as u64),
        sum(|outcome| outcome.expired as u64),
        least(|outcome| outcome.settled as u64),
        sum(|outcome| outcome.settled as u64),
        sum(|outcome| outcome.voided as u64),
        least(|outcome| outcome.replicas as u64),
        sum(|outcome| outcome.drained as u64),
        sum(|outcome| outcome.resumed as u64),
        least(|outcome| outcome.tokens),
        sum(|outcome| outcome.tokens),
        sum(|outcome| outcome.moved),
        sum(|outcome| outcome.put_out),
    );
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
