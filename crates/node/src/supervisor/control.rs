//! The agent's socket: one JSON object per line, one reply each. Both ends are ours; [`super::SupervisorClient`] is
//! the other one.

use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};
use sluice_types::{Nanos, Reason};
use tokio::io::{AsyncWriteExt, BufReader};
use tokio::net::unix::OwnedWriteHalf;
use tokio::net::{UnixListener, UnixStream};

use super::lines::{Line, read_line};
use super::live::{Event, Live};
use super::orders::Stop;
use super::protocol::Refusal;
use super::records::{Ordered, Phase, Status};
use super::sessions;

/// Longest line of this protocol, newline included.
pub(super) const BOUND: usize = 1 << 20;

/// How long the init of a sandbox may take from its task's start until it takes orders.
const INIT_PATIENCE: std::time::Duration = std::time::Duration::from_secs(5);

/// What the agent may say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub(super) enum Command {
    Status,
    Checkpoint,
    /// Holds the task at its next step boundary. Answered with the last step that it told.
    Hold {
        deadline_ms: u64,
    },
    CheckpointAndExit {
        deadline_ms: u64,
        /// Absent from agents before this was known.
        #[serde(default)]
        from: u64,
    },
    ResumeNormal,
    Stop {
        grace_ms: u64,
    },
    Kill,
    Freeze,
    Thaw,
    /// Attaches to a session, which is opened where there is none. Where that is granted, the connection carries frames
    /// of the session from there on ([`super::sessions`]).
    Session {
        /// A `StartSession` as protobuf, in hexadecimal digits.
        start: String,
    },
}

/// What it is answered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub(super) enum Answer {
    Status { ok: bool, status: Status },
    Order { ok: bool, order: u64 },
    Held { ok: bool, after: u64 },
    Refused { ok: bool, reason: Reason, message: String },
    Done { ok: bool },
}

/// Accepts the agent's connections until dropped.
pub(super) async fn serve(live: Live, listener: UnixListener) {
    let mut connections = tokio::task::JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            continue;
        };
        let live = live.clone();
        connections.spawn(async move {
            // An agent that was killed in the middle comes back with a new connection.
            let _broken = talk(live, stream).await;
        });
    }
}

async fn talk(live: Live, stream: UnixStream) -> std::io::Result<()> {
    let (from, mut to) = stream.into_split();
    let mut from = BufReader::new(from);
    while let Line::Whole(line) = read_line(&mut from, BOUND).await? {
        let answer = match serde_json::from_slice(&line) {
            Ok(Command::Session { start }) => {
                live.sessions().ready(INIT_PATIENCE).await;
                match sessions::decode_start(&start).and_then(|start| sessions::grant(&live, start)) {
                    Ok(attachment) => {
                        say(&mut to, &Answer::Done { ok: true }).await?;
                        sessions::converse(attachment, &mut from, &mut to).await;
                        return Ok(());
                    }
                    Err(refusal) => Err(refusal),
                }
            }
            Ok(command) => act(&live, command).await,
            Err(error) => Err(Refusal::field(format!("no command of this protocol: {error}"))),
        };
        let answer = answer.unwrap_or_else(|refusal| Answer::Refused {
            ok: false,
            reason: refusal.reason,
            message: refusal.message,
        });
        say(&mut to, &answer).await?;
    }
    Ok(())
}

async fn say(to: &mut OwnedWriteHalf, answer: &Answer) -> std::io::Result<()> {
    let mut line = serde_json::to_vec(answer)?;
    line.push(b'\n');
    to.write_all(&line).await
}

async fn act(live: &Live, command: Command) -> Result<Answer, Refusal> {
    let done = Answer::Done { ok: true };
    match command {
        Command::Status => Ok(Answer::Status { ok: true, status: live.status() }),
        Command::Checkpoint => live.order(false, Stop::From(0), None).map(|order| Answer::Order { ok: true, order }),
        Command::Hold { deadline_ms } => {
            live.hold(Nanos::from_millis(deadline_ms)).map(|after| Answer::Held { ok: true, after })
        }
        Command::CheckpointAndExit { deadline_ms, from } => live
            .order(true, Stop::From(from), Some(Nanos::from_millis(deadline_ms)))
            .map(|order| Answer::Order { ok: true, order }),
        Command::ResumeNormal => {
            live.core().orders.cancel();
            live.let_go();
            Ok(done)
        }
        Command::Stop { grace_ms } => {
            live.core().ordered.get_or_insert(Ordered::Stop);
            live.ask(Event::Stop { grace: Nanos::from_millis(grace_ms) });
            Ok(done)
        }
        Command::Kill => {
            live.core().ordered = Some(Ordered::Kill);
            // Not done here: the answer must be out before the end of the task ends the supervisor.
            live.ask(Event::Kill);
            Ok(done)
        }
        // Not a question with an answer: dealt with where the connection is.
        Command::Session { .. } => Err(Refusal::field("a session is a connection of its own")),
        Command::Freeze => {
            blocking(live, |live| {
                let _alone = live.stillness();
                live.spec().group.freeze()
            })
            .await?;
            let mut core = live.core();
            if core.phase == Phase::Running {
                core.phase = Phase::Frozen;
            }
            Ok(done)
        }
        Command::Thaw => {
            blocking(live, |live| {
                let _alone = live.stillness();
                live.spec().group.thaw()
            })
            .await?;
            let mut core = live.core();
            if core.phase == Phase::Frozen {
                core.phase = Phase::Running;
            }
            Ok(done)
        }
    }
}

async fn blocking(
    live: &Live,
    work: impl FnOnce(&Live) -> Result<(), sluice_device::DeviceError> + Send + 'static,
) -> Result<(), Refusal> {
    let live = live.clone();
    match tokio::task::spawn_blocking(move || work(&live)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(Refusal::new(error.reason(), super::SupervisorError::from(error).in_one_line())),
        Err(_) => Err(Refusal::new(Reason::Internal, "the command was interrupted")),
    }
}

/// Asks the task's program to end; where there is none that could be asked, says so.
pub(super) fn ask_to_end(live: &Live) -> bool {
    // A frozen program cannot act on a signal.
    let _not_frozen = live.spec().group.thaw();
    live.core().phase = Phase::Stopping;
    live.signal(Signal::SIGTERM)
}
