//! Hostile clients at the byte channels of rentals: what they take of the controller's memory, and what another tenant
//! notices of them.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use sluice_proto::v1;
use sluice_proto::v1::attach_session_request::Message as Request;
use sluice_proto::v1::session_input::Message as Input;
use sluice_proto::v1::session_output::Message as Output;
use sluice_proto::v1::session_program::Program;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::rents::tenant;
use crate::client::Client;
use crate::figure::Figure;
use crate::request_id;
use crate::system::{Options, System};

/// What one hostile connection may take of the controller's memory, in KiB.
const EACH: i64 = 256;
/// How much slower another tenant's echo may be, in per cent of the quiet one.
const SLOWER: i64 = 150;
/// Sessions of one sandbox.
const PER_SANDBOX: usize = 64;
/// Sandboxes that the hostile tenant rents.
const SANDBOXES: usize = 4;
/// Between two echoes.
const BEAT: Duration = Duration::from_millis(20);
/// How long anything may take before it counts as never.
const PATIENCE: Duration = Duration::from_secs(30);
/// Bytes of one piece.
const PIECE: usize = 16 << 10;
/// A window so small that everything waits at the sender.
const NARROW: u32 = 1;

/// What there is to choose.
#[derive(Debug, Clone, clap::Args)]
pub struct Plan {
    /// Hostile connections, each with a session.
    #[arg(long, default_value_t = 240, value_parser = clap::value_parser!(u64).range(8..=250))]
    pub connections: u64,
    /// Echoes that are timed, before and during the attack.
    #[arg(long, default_value_t = 500)]
    pub echoes: usize,
    /// Leaves the system's folder to be looked at.
    #[arg(long)]
    pub keep: bool,
}

/// How a client is hostile.
#[derive(Debug, Clone, Copy)]
enum Manner {
    /// Has a program that writes without end, and never reads.
    Deaf,
    /// The same, and says that it has read everything.
    Liar,
    /// Writes what no program takes, as much as it may.
    Flood,
    /// Never reads, and changes its terminal's size and sends signals all the time.
    Storm,
    /// Reads all that a program without end writes, as fast as it comes.
    Greedy,
    /// Sends nonsense, and comes back when it is thrown out.
    Nonsense,
}

impl Manner {
    const ALL: [Self; 6] = [Self::Deaf, Self::Liar, Self::Flood, Self::Storm, Self::Greedy, Self::Nonsense];

    fn program(self) -> v1::SessionCommand {
        let command: &[&str] = match self {
            Self::Flood | Self::Nonsense => &["sleep", "3600"],
            _ => &["cat", "/dev/zero"],
        };
        let terminal = matches!(self, Self::Storm).then_some(v1::TerminalSize { rows: 24, columns: 80 });
        let command = command.iter().map(|word| (*word).to_owned()).collect();
        v1::SessionCommand { command, terminal, ..Default::default() }
    }
}

/// Runs it.
///
/// # Errors
/// The system does not come up, or something never happens.
pub fn run(plan: &Plan) -> anyhow::Result<Vec<Figure>> {
    let system = System::start("channels", Options { sites: 1, ..Options::default() })?;
    let mut system = system;
    if plan.keep {
        system.keep_folder();
    }
    let figures = figures(&system, plan);
    if !figures.as_ref().is_ok_and(|all| !all.iter().any(Figure::fails)) {
        system.keep_folder();
    }
    figures
}

fn figures(system: &System, plan: &Plan) -> anyhow::Result<Vec<Figure>> {
    let (red, blue) = (tenant(system, "red")?, tenant(system, "blue")?);
    let rent = |cli: &crate::Cli, share: &str| -> anyhow::Result<String> {
        let order = cli.json(&["rent", share, "--memory", "64MiB", "--for", "30m", "-y"])?;
        let id = order["id"].as_str().context("an order's id")?;
        // Its sandbox is there once a command has run in it.
        cli.well(&["exec", id, "--", "true"])?;
        Ok(order["legs"][0]["job"].as_str().context("the leg's job")?.to_owned())
    };
    let quiet_job = rent(&blue, "300m")?;
    let sandboxes = (0..SANDBOXES).map(|_| rent(&red, "50m")).collect::<anyhow::Result<Vec<_>>>()?;
    let key = |name: &str| system.scratch().join(format!("{name}.key"));
    system.block(async {
        let victim = Client::with_key(&system.data, &key("blue"), None)?;
        let mut echo = Echo::open(&victim, &quiet_job).await?;
        let quiet = echo.times(plan.echoes).await?;
        let idle = resident(system)?;
        let mut attack = JoinSet::new();
        let count = usize::try_from(plan.connections)?;
        for number in 0..count {
            let job = sandboxes.get((number / PER_SANDBOX) % SANDBOXES).context("a sandbox")?.clone();
            let client = Client::with_key(&system.data, &key("red"), Some(NARROW))?;
            let manner = Manner::ALL[number % Manner::ALL.len()];
            attack.spawn(async move {
                // Whatever it is answered, a hostile client comes again; that is bounded by the end of the attack.
                loop {
                    let _thrown_out = hostile(manner, &client, &job).await;
                    tokio::time::sleep(BEAT * 10).await;
                }
            });
        }
        // Until all of them are there and hold what they can.
        let mut most = settle(system).await?;
        let loud = echo.times(plan.echoes).await?;
        most = most.max(resident(system)?);
        let attached = most > idle;
        attack.shutdown().await;
        echo.close().await?;
        let each = (most - idle).max(0) / i64::from(u32::try_from(count)?);
        Ok(told(&quiet, &loud, each, count, attached))
    })
}

fn told(quiet: &[Duration], loud: &[Duration], each: i64, count: usize, attached: bool) -> Vec<Figure> {
    let (before, during) = (micros(quiet, 99), micros(loud, 99));
    vec![
        Figure::new(
            format!("KiB of the controller's memory for each of {count} hostile connections"),
            each,
            format!("<= {EACH}"),
            each <= EACH && attached,
        ),
        Figure::seen("us until another tenant's echo while nobody is hostile, the median", micros(quiet, 50)),
        Figure::seen("us until another tenant's echo while they are, the median", micros(loud, 50)),
        Figure::seen("us until another tenant's echo while nobody is hostile, p99", before),
        Figure::at_most(
            "% of the quiet p99 that another tenant's echo takes",
            during.saturating_mul(100) / before.max(1),
            SLOWER,
        ),
    ]
}

fn micros(times: &[Duration], percent: usize) -> i64 {
    let mut sorted = times.to_vec();
    sorted.sort();
    let at = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
    sorted.get(at).map_or(0, |time| i64::try_from(time.as_micros()).unwrap_or(i64::MAX))
}

/// Resident memory of the controller, in KiB.
fn resident(system: &System) -> anyhow::Result<i64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", system.pid_of("controller")?))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").trim().parse()?)
}

/// Waits until the controller's memory grows no more; returns the most that was seen.
async fn settle(system: &System) -> anyhow::Result<i64> {
    let (mut most, mut since, begin) = (0, Instant::now(), Instant::now());
    while since.elapsed() < Duration::from_secs(3) && begin.elapsed() < PATIENCE {
        let now = resident(system)?;
        if now > most + 512 {
            since = Instant::now();
        }
        most = most.max(now);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(most)
}

type Sender = mpsc::Sender<v1::AttachSessionRequest>;

/// Opens a session.
async fn open(
    client: &Client,
    job: &str,
    command: v1::SessionCommand,
) -> anyhow::Result<(Sender, Streaming<v1::AttachSessionResponse>)> {
    let (sender, receiver) = mpsc::channel(16);
    let start = v1::StartSession {
        job: job.to_owned(),
        session_id: request_id(),
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

/// One attachment of a hostile client, until it is thrown out.
async fn hostile(manner: Manner, client: &Client, job: &str) -> anyhow::Result<()> {
    let (to, mut from) = open(client, job, manner.program()).await?;
    let mut offset = 0_u64;
    for turn in 0_u64.. {
        match manner {
            Manner::Deaf => tokio::time::sleep(PATIENCE).await,
            Manner::Liar => {
                offset += PIECE as u64;
                to.send(input(Input::Acknowledged(offset))).await?;
                tokio::time::sleep(BEAT).await;
            }
            Manner::Flood => {
                to.send(data(offset, &[7; PIECE])).await?;
                offset += PIECE as u64;
            }
            Manner::Storm => {
                let rows = 10 + u32::try_from(turn % 50)?;
                to.send(input(Input::Resize(v1::TerminalSize { rows, columns: 80 }))).await?;
                to.send(input(Input::Signal("USR1".to_owned()))).await?;
                tokio::time::sleep(BEAT).await;
            }
            Manner::Greedy => {
                let said = from.message().await?.context("thrown out")?;
                if let Some(Output::Data(data)) = said.output.and_then(|output| output.message) {
                    let taken = data.offset + data.data.len() as u64;
                    to.send(input(Input::Acknowledged(taken))).await?;
                }
            }
            Manner::Nonsense => {
                let nonsense = [
                    data(u64::MAX, &[1; 100]),
                    data(0, &[1; 10 * PIECE]),
                    input(Input::End(u64::MAX)),
                    v1::AttachSessionRequest { message: None },
                ];
                let which = usize::try_from(turn % nonsense.len() as u64)?;
                to.send(nonsense.into_iter().nth(which).context("one of them")?).await?;
                tokio::time::sleep(BEAT).await;
            }
        }
    }
    Ok(())
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
        let (to, from) = open(client, job, command).await?;
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
