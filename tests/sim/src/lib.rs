//! A simulated day of Sluice: the real state machines, scheduler and ledger in virtual time, with faults, and a judge.
//!
//! One seed is one run: one agenda of events, one true clock, everything single-threaded and repeatable. The controller
//! (state, world, writer) is the real code over tables in memory, and can crash at any instant, also between a commit and
//! its reply. Nodes, vaults, the network and users are models with their own files. The judge ([`Outcome`]) rebuilds what
//! must be true from those files, and reads the system's rows only as claims to be checked.
//!
//! `cargo run -p sluice-sim --release -- --seeds 0..500` runs many days, `-- --seed N --trace` one with its trace, and
//! `-- bugs` plants each bug of `tests/sim/bugs` in a copy of the workspace and says whether the judge notices. A seed that
//! fails fails again: chance and time come from the seed alone, and [`Outcome::digest`] tells two runs apart.
//!
//! Modules: `agenda`, `dice`, `params` (the frame), `cluster` and `users` (who is there and what they want), `host`,
//! `agent`, `process` (nodes), `worker` (the engine's step loop in each replica), `vault`, `network`, `faults`, `controller`,
//! `gateway`, `requests` and `store` (the system under test), `asks` (what clients ask of endpoints), `sim` (the loop), `trace`
//! (its record), `oracle` (the judge).

mod agenda;
mod agent;
mod asks;
pub mod bugs;
mod cluster;
mod controller;
mod dice;
mod faults;
mod gateway;
mod host;
mod network;
mod oracle;
mod params;
mod process;
mod requests;
mod sim;
mod store;
mod trace;
mod users;
mod vault;
mod worker;

use std::panic::AssertUnwindSafe;

pub use params::Day;

/// What one seed came to.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    /// The seed.
    pub seed: u64,
    /// What the judge holds against the system, with the virtual time of each.
    pub failures: Vec<String>,
    /// Programs of users: jobs and rentals.
    pub jobs: usize,
    /// Of them ended with success.
    pub succeeded: usize,
    /// Of them taken by the system, as its store has it.
    pub accepted: usize,
    /// Rentals that began.
    pub rents: usize,
    /// Of them those whose time was over.
    pub expired: usize,
    /// Requests to endpoints that were settled.
    pub settled: usize,
    /// Requests to endpoints that the platform cut.
    pub voided: usize,
    /// Tokens that clients of endpoints received.
    pub tokens: u64,
    /// Times that an answer went on at another replica behind what was delivered of it.
    pub moved: u64,
    /// Times that a sequence was read again because it had given up its place.
    pub put_out: u64,
    /// Replicas that there were.
    pub replicas: usize,
    /// Attempts that were stopped for want of quota.
    pub drained: usize,
    /// Jobs that resumed by themselves after it.
    pub resumed: usize,
    /// Faults that struck; healing is none.
    pub faults: usize,
    /// Transactions.
    pub commits: u64,
    /// Times that the controller died.
    pub crashes: u64,
    /// Windows billed.
    pub windows: u64,
    /// Steps done, of rank 0.
    pub steps: u64,
    /// Steps done again on the way to a success.
    pub replayed: u64,
    /// Credits that were due and beyond what was held.
    pub uncollected: i64,
    /// Of the whole trace: two runs of a seed have the same.
    pub digest: u64,
    /// Length of the simulated time.
    pub hours: u64,
    /// What was refused.
    pub refused: String,
}

/// Runs one seed.
#[must_use]
pub fn run(seed: u64, day: Day, tracing: bool) -> Outcome {
    let run = std::panic::catch_unwind(AssertUnwindSafe(|| simulate(seed, day, tracing)));
    run.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        Outcome { seed, failures: vec![format!("panic: {}", text.unwrap_or_default())], ..Outcome::default() }
    })
}

fn simulate(seed: u64, day: Day, tracing: bool) -> Outcome {
    let mut sim = sim::Sim::new(seed, day, tracing);
    sim.run();
    let oracle = &sim.oracle;
    let failures = oracle.failures().iter().map(|(at, what)| format!("{} {what}", trace::clock(*at))).collect();
    Outcome {
        seed,
        failures,
        jobs: sim.jobs.len() - process::system_programs().len(),
        accepted: sim.controller.store.jobs.values().filter(|job| !job.spec.kind.uses_model()).count(),
        succeeded: oracle.succeeded,
        rents: oracle.rents_begun(),
        expired: oracle.expired,
        settled: oracle.serving.settled,
        voided: oracle.serving.voided,
        tokens: oracle.engines.tokens,
        moved: oracle.engines.moved,
        put_out: oracle.engines.put_out,
        replicas: oracle.serving.jobs.len(),
        drained: oracle.quotas.stopped,
        resumed: oracle.quotas.resumed,
        faults: sim.fault_count,
        commits: oracle.commits,
        crashes: oracle.crashes,
        windows: oracle.windows,
        steps: oracle.steps,
        replayed: oracle.replayed,
        uncollected: oracle.uncollected,
        digest: sim.trace.digest(),
        hours: sim.now / params::HOUR,
        refused: format!("{:?}", sim.controller.store.counters),
    }
}
