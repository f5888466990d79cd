//! `sluice-bench submit`.

use std::time::Duration;

use tokio::runtime::{Builder, Runtime};

use crate::client::Door;
use crate::database::{self, Source};
use crate::load::{self, Call, Length, Outcome};
use crate::report::{Goal, Report};
use crate::{SubmitArgs, bare, judge, kill, many, process, server};

const WARM_UP: Duration = Duration::from_secs(2);
/// Jobs in one batch.
const BATCH: usize = 100;
/// Clients that send batches, one at a time each: more would only wait longer.
const BATCH_CLIENTS: usize = 32;

/// Measures and prints everything that is asked for.
pub(crate) fn run(arguments: &SubmitArgs) -> anyhow::Result<()> {
    let serving = runtime("server")?;
    let calling = runtime("client")?;
    let mut report = Report::default();
    println!(
        "{} nodes x 8 devices, {} clients x {} calls over TLS 1.3 with client certificates and API keys; {}",
        arguments.nodes,
        arguments.clients,
        arguments.in_flight,
        process::load()
    );
    if !arguments.no_sqlite {
        measure(arguments, &Source::Sqlite, (&serving, &calling), &mut report)?;
    }
    match database::postgres(&arguments.postgres)? {
        Ok(source) => measure(arguments, &source, (&serving, &calling), &mut report)?,
        Err(why) => report.skipped("postgres: single submits", why),
    }
    if let Some(path) = &arguments.json {
        report.write(path)?;
    }
    anyhow::ensure!(!arguments.quick || report.holds(), "a law does not hold");
    Ok(())
}

pub(crate) fn runtime(name: &str) -> anyhow::Result<Runtime> {
    Ok(Builder::new_multi_thread().thread_name(name).enable_all().build()?)
}

fn measure(
    arguments: &SubmitArgs,
    source: &Source,
    runtimes: (&Runtime, &Runtime),
    report: &mut Report,
) -> anyhow::Result<()> {
    let kind = source.name();
    if arguments.quick {
        return kill::run(arguments, source, runtimes.1, report);
    }
    let (single, group) =
        phase(arguments, source, runtimes, arguments.clients, arguments.in_flight, Call::Single, report)?;
    let bare = control(arguments, source, runtimes.1, group)?;
    if kind == "sqlite" {
        report.goal(format!("{kind}: single submits"), single.rate(), "jobs/s", Goal::AtLeast(20_000.0));
        report.goal(format!("{kind}: single submits, p99"), single.latency(990), "ms", Goal::AtMost(20.0));
    } else {
        report.figure(format!("{kind}: single submits"), single.rate(), "jobs/s");
        report.figure(format!("{kind}: single submits, p99"), single.latency(990), "ms");
    }
    latencies(report, kind, "single submits", &single);
    report.figure(format!("{kind}: jobs in one commit"), group as f64, "jobs");
    report.ratio(format!("{kind}: single submits beside the bare loop"), single.rate(), bare, 0.5);
    kill::run(arguments, source, runtimes.1, report)?;
    if arguments.batch {
        let clients = BATCH_CLIENTS.min(arguments.clients);
        let (batch, group) = phase(arguments, source, runtimes, clients, 1, Call::Batch(BATCH), report)?;
        let bare = control(arguments, source, runtimes.1, group)?;
        report.figure(format!("{kind}: batches of {BATCH}"), batch.rate(), "jobs/s");
        report.figure(format!("{kind}: batches of {BATCH}, p99"), batch.latency(990), "ms");
        latencies(report, kind, "batches", &batch);
        report.figure(format!("{kind}: batches beside the bare loop"), batch.rate() / bare, "ratio");
    }
    if arguments.many && !source.is_fresh() {
        report.skipped(format!("{kind}: 100,000 jobs"), "the database that was named has other jobs");
    } else if arguments.many {
        many::run(arguments, source, runtimes.1, report)?;
    }
    Ok(())
}

fn latencies(report: &mut Report, kind: &str, what: &str, outcome: &Outcome) {
    report.figure(format!("{kind}: {what}, p50"), outcome.latency(500), "ms");
    report.figure(format!("{kind}: {what}, longest"), outcome.latency(1000), "ms");
    report.goal(format!("{kind}: {what}, placed"), outcome.share_placed(), "%", Goal::AtLeast(100.0));
}

/// One controller on a fresh database under load; what came of it and how many jobs a commit had.
#[allow(clippy::too_many_arguments)]
fn phase(
    arguments: &SubmitArgs,
    source: &Source,
    (serving, calling): (&Runtime, &Runtime),
    clients: usize,
    in_flight: usize,
    call: Call,
    report: &mut Report,
) -> anyhow::Result<(Outcome, usize)> {
    let fresh = calling.block_on(source.fresh(arguments.folder.as_deref()))?;
    calling.block_on(server::furnish(&fresh, arguments.nodes))?;
    let server = server::start(serving, fresh.folder.path(), &fresh.url)?;
    let door = Door::new(server.address, fresh.folder.path())?;
    let clients = calling.block_on(door.enter_all(clients))?;
    let mut looks = Vec::new();
    let look = || {
        looks.push((server.rounds(), process::processor_time()));
        Ok(())
    };
    let length = Length { warm_up: WARM_UP, span: Duration::from_secs(arguments.seconds) };
    let outcome = calling.block_on(load::run(&clients, in_flight, call, length, look))?;
    drop(clients);
    if matches!(call, Call::Single) {
        let strangers = calling.block_on(door.for_strangers()?.enter_all(arguments.clients))?;
        let before = process::processor_time();
        let span = Duration::from_secs(arguments.seconds.div_ceil(2));
        let (calls, took) = calling.block_on(load::carried(&strangers, in_flight, span))?;
        println!(
            "the same calls, refused at the door: {}",
            process::per_job(&before, &process::processor_time(), calls)
        );
        let rate = calls as f64 / took.as_secs_f64();
        report.figure(format!("{}: the same calls refused at the door", source.name()), rate, "calls/s");
    }
    anyhow::ensure!(outcome.cut == 0, "{} calls failed", outcome.cut);
    let [((rounds_before, _), before), ((rounds_after, _), after)] = &looks[..] else {
        anyhow::bail!("the load was not looked at twice");
    };
    println!("{}", process::per_job(before, after, outcome.decided));
    server.stop(serving)?;
    let verdict = judge::judge(&calling.block_on(judge::read(&fresh.url))?, &outcome.told);
    anyhow::ensure!(verdict.holds(), "the database does not have what clients were told: {verdict:?}");
    let rounds = rounds_after.saturating_sub(*rounds_before).max(1);
    let group = usize::try_from(outcome.decided / rounds)?.max(1);
    Ok((outcome, group))
}

/// The rate of the bare loop in groups of the same size on a fresh database of the same kind.
fn control(arguments: &SubmitArgs, source: &Source, calling: &Runtime, group: usize) -> anyhow::Result<f64> {
    let fresh = calling.block_on(source.fresh(arguments.folder.as_deref()))?;
    calling.block_on(server::furnish(&fresh, arguments.nodes))?;
    calling.block_on(bare::rate(&fresh, group, Duration::from_secs(arguments.seconds)))
}
