//! The hostile clients, in a process of their own that yields to all others: on one machine, what they compute would be
//! taken from those whose times are measured.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::Context as _;
use nix::sys::signal::Signal;
use sluice_proto::v1;
use sluice_proto::v1::session_input::Message as Input;
use sluice_proto::v1::session_output::Message as Output;
use tokio::task::JoinSet;

use super::{BEAT, PATIENCE, data, input, open};
use crate::client::Client;
use crate::request_id;

/// Sessions of one sandbox.
const PER_SANDBOX: usize = 64;
/// Bytes of one piece.
const PIECE: usize = 16 << 10;
/// Between two lies.
const LIE: Duration = Duration::from_millis(50);
/// A window so small that everything waits at the sender.
const NARROW: u32 = 1;

/// What its process is told.
#[derive(Debug, Clone, clap::Args)]
pub struct Plan {
    /// The system's data folder.
    #[arg(long)]
    data: PathBuf,
    /// The file of the hostile tenant's key.
    #[arg(long)]
    key: PathBuf,
    /// Hostile connections.
    #[arg(long)]
    connections: u64,
    /// Jobs of the sandboxes, one after the other filled with sessions.
    jobs: Vec<String>,
}

/// Attacks until the process ends.
///
/// # Errors
/// It cannot begin.
pub fn run(plan: &Plan) -> anyhow::Result<()> {
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let mut attack = JoinSet::new();
        for number in 0..usize::try_from(plan.connections)? {
            let job = plan.jobs.get((number / PER_SANDBOX) % plan.jobs.len().max(1)).context("a sandbox")?.clone();
            let manner = Manner::ALL[number % Manner::ALL.len()];
            let client = Client::with_key(&plan.data, &plan.key, manner.window())?;
            attack.spawn(async move {
                // Whatever it is answered, a hostile client comes again, and to its session: new ones would soon be too many
                // for the sandbox, and refused. That is bounded by the end of the attack.
                let id = request_id();
                loop {
                    let _thrown_out = hostile(manner, &client, &job, &id).await;
                    tokio::time::sleep(BEAT * 10).await;
                }
            });
        }
        let _never = attack.join_next().await;
        Ok(())
    })
}

/// The running attack; it ends with this.
#[derive(Debug)]
pub(super) struct Process(Child);

impl Process {
    pub(super) fn start(data: &Path, key: &Path, connections: u64, jobs: &[String]) -> anyhow::Result<Self> {
        // Not only the last in turn: whoever wakes takes the processor from it at once.
        let mut command = Command::new("chrt");
        command.args(["--idle", "0"]).arg(std::env::current_exe()?).arg("attack");
        command.arg("--data").arg(data).arg("--key").arg(key);
        command.args(["--connections", &connections.to_string()]).args(jobs);
        Ok(Self(command.stdin(Stdio::null()).spawn().context("the hostile clients")?))
    }

    /// Ends it.
    ///
    /// # Errors
    /// It was not running any more.
    pub(super) fn end(mut self) -> anyhow::Result<()> {
        let status = self.0.try_wait()?;
        anyhow::ensure!(status.is_none(), "the hostile clients ended by themselves: {status:?}");
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ended = self.0.kill();
        let _reaped = self.0.wait();
    }
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
    /// The same byte by byte.
    Dripping,
    /// Sends nonsense, and comes back when it is thrown out.
    Nonsense,
}

impl Manner {
    const ALL: [Self; 7] =
        [Self::Deaf, Self::Liar, Self::Flood, Self::Storm, Self::Greedy, Self::Dripping, Self::Nonsense];

    fn window(self) -> Option<u32> {
        (!matches!(self, Self::Greedy)).then_some(NARROW)
    }

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

/// One attachment of a hostile client, until it is thrown out.
async fn hostile(manner: Manner, client: &Client, job: &str, id: &str) -> anyhow::Result<()> {
    let (to, mut from) = open(client, job, id, manner.program()).await?;
    let mut offset = 0_u64;
    for turn in 0_u64.. {
        match manner {
            Manner::Deaf => tokio::time::sleep(PATIENCE).await,
            Manner::Liar => {
                // Slower than the program writes: what it has not written yet is not believed by anybody.
                tokio::time::sleep(LIE).await;
                offset += PIECE as u64;
                to.send(input(Input::Acknowledged(offset))).await?;
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
            Manner::Greedy | Manner::Dripping => {
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
