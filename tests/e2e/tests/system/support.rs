//! What all tests share: their turn, and words for what a job is doing.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde_json::Value;
use sluice_e2e::{Cli, Options, System, checker, wait_for};

/// How long something that takes seconds may take where others use the machine too.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);

/// One system at a time: they would fight for the same cores.
static TURN: Mutex<()> = Mutex::new(());

/// A running system and the turn to use it.
pub(crate) struct Own {
    pub(crate) system: System,
    _turn: MutexGuard<'static, ()>,
}

/// Starts a system; `None`, with the reason printed, where this host cannot run one.
pub(crate) fn start(name: &str, options: Options) -> anyhow::Result<Option<Own>> {
    if let Some(reason) = sluice_e2e::missing() {
        println!("SKIPPED: {reason}");
        return Ok(None);
    }
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(Some(Own { system: System::start(name, options)?, _turn: turn }))
}

/// A system that gives no node up because its parts take long to come back.
pub(crate) fn patient() -> Options {
    Options { loss_timeout: Duration::from_secs(30), ..Options::default() }
}

/// Waits for a state; ends early where another end came.
pub(crate) fn reach(cli: &Cli, job: &str, wanted: &str) -> anyhow::Result<Value> {
    wait_for(&format!("{job} {wanted}"), PATIENCE, || {
        let view = cli.job(job)?;
        let now = view["state"].as_str().unwrap_or_default().to_owned();
        let over = ["SUCCEEDED", "FAILED", "CANCELLED"].contains(&now.as_str());
        anyhow::ensure!(now == wanted || !over, "{job} is {now} instead of {wanted}: {view:#}");
        Ok((now == wanted).then_some(view))
    })
}

/// Waits until a job told a step of at least `step`.
pub(crate) fn reach_step(cli: &Cli, job: &str, step: u64) -> anyhow::Result<Value> {
    wait_for(&format!("step {step} of {job}"), PATIENCE, || {
        let view = cli.job(job)?;
        let over = ["SUCCEEDED", "FAILED", "CANCELLED"].contains(&view["state"].as_str().unwrap_or_default());
        anyhow::ensure!(!over, "{job} ended before step {step}: {view:#}");
        Ok((view["step"].as_u64().unwrap_or(0) >= step).then_some(view))
    })
}

/// Waits for the final receipt.
pub(crate) fn receipt(cli: &Cli, job: &str) -> anyhow::Result<Value> {
    wait_for(&format!("the final receipt of {job}"), PATIENCE, || {
        let receipt = cli.json(&["receipt", job])?;
        Ok((receipt["final"] == true).then_some(receipt))
    })
}

/// Credits of a money value.
pub(crate) fn credits(value: &Value) -> i64 {
    value["credits"].as_i64().unwrap_or(i64::MIN)
}

/// Where a job runs, as SITE/NODE.
pub(crate) fn node_of(view: &Value) -> anyhow::Result<String> {
    let name = view["tasks"][0]["node"].as_str().context("the job's node")?;
    let words: Vec<&str> = name.split('/').collect();
    anyhow::ensure!(words.len() == 4, "{name} is no node");
    Ok(format!("{}/{}", words[1], words[3]))
}

/// As [`judged`], once what is still on its way has come: nobody says when that is of leases that were lost.
pub(crate) fn judged_in_the_end(system: &System) -> anyhow::Result<checker::Verdict> {
    let (end, pause) = (Instant::now() + PATIENCE, Duration::from_secs(1));
    loop {
        match judged(system) {
            Err(_) if Instant::now() < end => std::thread::sleep(pause),
            word => return word,
        }
    }
}

/// The judge's word on everything so far, which must be that all of it holds.
pub(crate) fn judged(system: &System) -> anyhow::Result<checker::Verdict> {
    let client = system.client()?;
    let verdict = system.block(checker::judge(&client, &system.kept()))?;
    verdict.holds()?;
    let alarms = system.alarms();
    anyhow::ensure!(alarms.is_empty(), "{alarms:#?}");
    println!("the checker agrees: {:?}", verdict.figures);
    Ok(verdict)
}

/// The run of a training job, put together from the step logs of all its attempts.
pub(crate) fn run_of(system: &System, job: &str) -> anyhow::Result<checker::Lineage> {
    let receipt = system.cli().json(&["receipt", job])?;
    let leases = receipt["leases"].as_array().context("leases")?;
    let leases: Vec<String> = leases.iter().filter_map(|row| row["lease"].as_str().map(str::to_owned)).collect();
    checker::lineage(checker::read_steps(&system.kept(), &leases)?.values())
}

/// Both curves are the same, bit for bit, from the first step to the last, with the same samples.
pub(crate) fn same_curve(run: &checker::Lineage, reference: &[checker::Step]) -> anyhow::Result<()> {
    if let Some(difference) = run.differs(reference) {
        anyhow::bail!("{difference}");
    }
    println!("{} steps equal to the bit, {} replayed; first steps {:?}", run.steps.len(), run.replayed, run.firsts);
    Ok(())
}
