//! Hostile clients at the byte channels of rentals: what they take of the controller's memory and of the node's, and
//! what another tenant notices of them.

pub mod attack;
mod node;

use std::time::{Duration, Instant};

use anyhow::Context as _;
use sluice_proto::v1;
use sluice_proto::v1::attach_session_request::Message as Request;
use sluice_proto::v1::session_input::Message as Input;
use sluice_proto::v1::session_output::Message as Output;
use sluice_proto::v1::session_program::Program;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::rents::tenant;
use super::watched;
use crate::client::Client;
use crate::figure::Figure;
use crate::request_id;
use crate::system::{Options, System};
use crate::wait_for;

/// What one hostile connection may take of the controller's memory, and of the node's, in KiB.
const EACH: i64 = 256;
/// How much slower another tenant's echo may be, in per cent of the quiet one.
const SLOWER: i64 = 150;
/// Sandboxes that the hostile tenant rents.
const SANDBOXES: usize = 4;
/// Echoes where nobody looks at their times.
const FEW: usize = 50;
/// Sessions that another tenant opens in the midst of the attack, and how long one may take.
const NEW: usize = 20;
const SOON: Duration = Duration::from_secs(2);
/// Lines that a program writes to each of its two streams, one by one.
const CRUMBS: u64 = 20_000;
/// Between two echoes.
const BEAT: Duration = Duration::from_millis(20);
/// The attack is at its height when memory did not grow for so long, and not before so long.
const CALM: Duration = Duration::from_secs(3);
const BEGINS: Duration = Duration::from_secs(10);
/// How long anything may take before it counts as never.
const PATIENCE: Duration = Duration::from_secs(30);

/// What there is to choose.
#[derive(Debug, Clone, clap::Args)]
pub struct Plan {
    /// Hostile connections, each with a session.
    #[arg(long, default_value_t = 240, value_parser = clap::value_parser!(u64).range(8..=250))]
    pub connections: u64,
    /// Echoes that are timed, before and during the attack.
    #[arg(long, default_value_t = 1000)]
    pub echoes: usize,
    /// Leaves the system's folder to be looked at.
    #[arg(long)]
    pub keep: bool,
}

/// Runs it.
///
/// # Errors
/// The system does not come up, or something never happens.
pub fn run(plan: &Plan) -> anyhow::Result<Vec<Figure>> {
    let system = System::start("channels", Options { sites: 1, no_restart: true, ..Options::default() })?;
    watched(system, plan.keep, |system| figures(system, plan))
}

fn figures(system: &mut System, plan: &Plan) -> anyhow::Result<Vec<Figure>> {
    let (red, blue) = (tenant(system, "red")?, tenant(system, "blue")?);
    let rent = |cli: &crate::Cli, share: &str| -> anyhow::Result<(String, String)> {
        let order = cli.json(&["rent", share, "--memory", "64MiB", "--for", "30m", "-y"])?;
        let id = order["id"].as_str().context("an order's id")?;
        // Its sandbox is there once a command has run in it.
        cli.well(&["exec", id, "--", "true"])?;
        Ok((id.to_owned(), order["legs"][0]["job"].as_str().context("the leg's job")?.to_owned()))
    };
    let (order, quiet_job) = rent(&blue, "300m")?;
    // Fresh ones for each attack: sessions of the one before go on in theirs, and fill them.
    let attack = |system: &System, echoes: usize| -> anyhow::Result<Seen> {
        let hostile = (0..SANDBOXES).map(|_| rent(&red, "50m")).collect::<anyhow::Result<Vec<_>>>()?;
        let jobs: Vec<_> = hostile.iter().map(|(_, job)| job.clone()).collect();
        let seen = attacked(system, plan.connections, echoes, &quiet_job, &jobs)?;
        for (order, _) in &hostile {
            red.well(&["release", order, "-y"])?;
        }
        Ok(seen)
    };
    let crumbs = system.block(crumbs(system, &quiet_job))?;
    let mut usual = None;
    let limited = attack(system, plan.echoes)?;
    let mut without = |limits: &str, echoes: usize| -> anyhow::Result<Seen> {
        let launch = system.kill_part("controller")?;
        system
            .launch("controller", usual.get_or_insert(launch).clone().and(&format!("--channels-without={limits}")))?;
        // Its nodes are connected again once a command runs.
        wait_for("the nodes", PATIENCE, || Ok(blue.well(&["exec", &order, "--", "true"]).is_ok().then_some(())))?;
        attack(system, echoes)
    };
    // What floods take of memory is seen where nothing else holds up those who send them.
    let hoarding = without("memory", FEW)?;
    let free = without("all", plan.echoes)?;
    // A hiccup of the machine in one quiet phase must not decide: all of them count.
    let quiet = [limited.quiet.as_slice(), &hoarding.quiet, &free.quiet].concat();
    let mut figures = told(&limited, hoarding.each, &free, &quiet, plan.connections);
    figures.push(at_the_node(&limited, &hoarding, plan.connections));
    let metric =
        format!("sessions of another tenant, of {NEW} opened during the attack, that were not there in {SOON:?}");
    figures.push(Figure::at_most(&metric, limited.late, 0));
    let metric = format!("bytes missing of {} written line by line to both streams in turn", 4 * CRUMBS);
    figures.push(Figure::at_most(&metric, crumbs, 0));
    Ok(figures)
}

/// What was seen of one attack.
struct Seen {
    quiet: Vec<Duration>,
    loud: Vec<Duration>,
    /// KiB that the controller grew by for each connection.
    each: i64,
    /// The same of the node's agent and supervisors together.
    node_each: i64,
    /// New sessions of another tenant that were not there soon.
    late: i64,
}

/// Times another tenant's echoes before and during an attack.
fn attacked(
    system: &System,
    connections: u64,
    echoes: usize,
    quiet_job: &str,
    sandboxes: &[String],
) -> anyhow::Result<Seen> {
    let key = |name: &str| system.scratch().join(format!("{name}.key"));
    system.block(async {
        let victim = Client::with_key(&system.data, &key("blue"), None)?;
        let mut echo = Echo::open(&victim, quiet_job).await?;
        let quiet = echo.times(echoes).await?;
        let (idle, count) = (memory(system, "VmRSS")?, i64::try_from(connections)?);
        forget_most(system)?;
        // The other tenant's has a supervisor as well.
        let node = node::Watch::start(system, sandboxes.len() + 1)?;
        let attack = attack::Process::start(&system.data, &key("red"), connections, sandboxes)?;
        // Until all of them are there and hold what they can; without limits that has no end.
        settle(system, idle + 4 * EACH * count).await?;
        let loud = echo.times(echoes).await?;
        let most = memory(system, "VmHWM")?;
        anyhow::ensure!(most > idle, "no hostile client came");
        let mut late = 0;
        for _ in 0..NEW {
            let begins = async {
                let mut echo = Echo::open(&victim, quiet_job).await?;
                echo.times(1).await?;
                echo.close().await
            };
            late += i64::from(!matches!(tokio::time::timeout(SOON, begins).await, Ok(Ok(()))));
        }
        let node_each = node.end()? / count;
        attack.end()?;
        echo.close().await?;
        Ok(Seen { quiet, loud, each: (most - idle) / count, node_each, late })
    })
}

/// What is missing of what a program writes in crumbs, up to where its attachment ends.
async fn crumbs(system: &System, job: &str) -> anyhow::Result<i64> {
    let client = Client::with_key(&system.data, &system.scratch().join("blue.key"), None)?;
    let script = format!("i=0; while [ $i -lt {CRUMBS} ]; do echo o; echo e >&2; i=$((i+1)); done");
    let command =
        v1::SessionCommand { command: ["sh", "-c", &script].map(str::to_owned).to_vec(), ..Default::default() };
    let (to, mut from) = open(&client, job, &request_id(), command).await?;
    let mut came = 0;
    while let Ok(Some(said)) = tokio::time::timeout(PATIENCE, from.message()).await.context("no more crumbs")? {
        match said.output.and_then(|output| output.message) {
            Some(Output::Data(data)) => {
                anyhow::ensure!(data.offset == came, "a gap at {came}");
                came += data.data.len() as u64;
                to.send(input(Input::Acknowledged(came))).await?;
            }
            Some(Output::End(_)) => break,
            _ => {}
        }
    }
    // Nobody may listen any more.
    let _closed = to.send(input(Input::Close(true))).await;
    Ok(i64::try_from(4 * CRUMBS - came)?)
}

fn told(limited: &Seen, hoarding: i64, free: &Seen, quiet: &[Duration], count: u64) -> Vec<Figure> {
    let slower = |seen: &Seen| micros(&seen.loud, 99).saturating_mul(100) / micros(quiet, 99).max(1);
    let metric = format!("KiB of the controller's memory for each of {count} hostile connections");
    let without = slower(free);
    vec![
        Figure::at_most(&metric, limited.each, EACH)
            .control(format!("{hoarding} without limits on what waits"), hoarding > EACH),
        Figure::at_most("% of the quiet p99 that another tenant's echo takes", slower(limited), SLOWER)
            .control(format!("{without} % without limits"), without > SLOWER)
            .peer(&format!(
                "{} us, quiet {} us; medians {} and {} us",
                micros(&limited.loud, 99),
                micros(quiet, 99),
                micros(&limited.loud, 50),
                micros(quiet, 50),
            )),
    ]
}

/// There is no node without limits: what bounds a session there is told beside what it takes.
fn at_the_node(limited: &Seen, hoarding: &Seen, count: u64) -> Figure {
    let metric = format!(
        "KiB of private memory of the node's agent and supervisors for each of {count} hostile connections, bounded by \
         the windows of a session"
    );
    Figure::at_most(&metric, limited.node_each, EACH).peer(&format!(
        "the windows: 128 KiB at the supervisor each way, and 256 KiB on the way there at the agent; {} KiB were taken \
         where the controller had no limits on what waits",
        hoarding.node_each
    ))
}

fn micros(times: &[Duration], percent: usize) -> i64 {
    let mut sorted = times.to_vec();
    sorted.sort();
    let at = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
    sorted.get(at).map_or(0, |time| i64::try_from(time.as_micros()).unwrap_or(i64::MAX))
}

/// Memory of the controller in KiB, as the kernel tells it: `VmRSS` is what it has, `VmHWM` the most that it had.
fn memory(system: &System, which: &str) -> anyhow::Result<i64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", system.pid_of("controller")?))?;
    let line = status.lines().find_map(|line| line.strip_prefix(which)?.strip_prefix(':'));
    Ok(line.with_context(|| format!("no {which}"))?.trim().trim_end_matches(" kB").trim().parse()?)
}

/// The most that the controller had counts from now on (proc(5), clear_refs).
fn forget_most(system: &System) -> anyhow::Result<()> {
    Ok(std::fs::write(format!("/proc/{}/clear_refs", system.pid_of("controller")?), "5")?)
}

/// Waits until the controller's memory grows no more, or is `enough`.
async fn settle(system: &System, enough: i64) -> anyhow::Result<()> {
    let (mut most, mut since, begin) = (0, Instant::now(), Instant::now());
    while most < enough && begin.elapsed() < PATIENCE && (since.elapsed() < CALM || begin.elapsed() < BEGINS) {
        let now = memory(system, "VmHWM")?;
        if now > most + 512 {
            (most, since) = (now, Instant::now());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

type Sender = mpsc::Sender<v1::AttachSessionRequest>;

/// Attaches to a session, a new one where it is not known.
async fn open(
    client: &Client,
    job: &str,
    id: &str,
    command: v1::SessionCommand,
) -> anyhow::Result<(Sender, Streaming<v1::AttachSessionResponse>)> {
    let (sender, receiver) = mpsc::channel(16);
    let start = v1::StartSession {
        job: job.to_owned(),
        session_id: id.to_owned(),
        program: Some(v1::SessionProgram { program: Some(Program::Command(command)) }),
        ..Default::default()
    };
    let first = v1::AttachSessionRequest { message: Some(Request::Start(start)) };
    sender.try_send(first).context("an empty queue has room")?;
    let answer = client.sessions().attach_session(ReceiverStream::new(receiver)).await?;
    Ok((sender, answer.into_inner()))
}

fn input(message: Input) -> v1::AttachSessionRequest {
    v1::AttachSessionRequest { message: Some(Request::Input(v1::SessionInput { message: Some(message) })) }
}

fn data(offset: u64, bytes: &[u8]) -> v1::AttachSessionRequest {
    input(Input::Data(v1::SessionData { offset, data: bytes.to_vec().into(), ..Default::default() }))
}

/// A session of another tenant, whose program sends back what it is sent.
struct Echo {
    to: Sender,
    from: Streaming<v1::AttachSessionResponse>,
    sent: u64,
    back: u64,
}

impl Echo {
    async fn open(client: &Client, job: &str) -> anyhow::Result<Self> {
        let command = v1::SessionCommand { command: vec!["cat".to_owned()], ..Default::default() };
        let (to, from) = open(client, job, &request_id(), command).await?;
        Ok(Self { to, from, sent: 0, back: 0 })
    }

    /// How long a line takes there and back, so many times.
    async fn times(&mut self, count: usize) -> anyhow::Result<Vec<Duration>> {
        let mut times = Vec::with_capacity(count);
        for number in 0..count {
            let line = format!("line {number:>8}\n");
            let begin = Instant::now();
            self.to.send(data(self.sent, line.as_bytes())).await?;
            self.sent += line.len() as u64;
            while self.back < self.sent {
                let said = tokio::time::timeout(PATIENCE, self.from.message()).await.context("no echo")??;
                let said = said.context("the session ended")?.output.and_then(|output| output.message);
                if let Some(Output::Data(data)) = said {
                    anyhow::ensure!(data.offset == self.back, "a gap at {}", self.back);
                    self.back += data.data.len() as u64;
                }
            }
            times.push(begin.elapsed());
            self.to.send(input(Input::Acknowledged(self.back))).await?;
            tokio::time::sleep(BEAT).await;
        }
        Ok(times)
    }

    async fn close(self) -> anyhow::Result<()> {
        Ok(self.to.send(input(Input::Close(true))).await?)
    }
}
