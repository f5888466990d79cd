//! The agent's side of a supervisor: starting one, and talking to one that may have been started by an earlier agent.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{Child, Command as Program, Stdio};
use std::time::Duration;

use sluice_proto::v1::StartSession;
use tokio::io::{AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

use super::SupervisorError;
use super::control::{Answer, BOUND, Command};
use super::folder::{Folder, short_path};
use super::lines::{Line, read_line};
use super::records::Status;
use super::sessions::{self, SessionReader, SessionWriter};

/// How long an answer may take beside what the command itself waits for.
const PATIENCE: Duration = Duration::from_secs(5);
/// Freezing waits for the kernel.
const LONG_PATIENCE: Duration = Duration::from_secs(15);

/// Starts `program supervise DIR` so that it outlives the caller: own session (it makes one itself), nothing inherited
/// but an error log in the folder. The caller waits for the child some time, or it stays a zombie until the caller
/// ends; [`super::SupervisorIdentity::liveness`] counts zombies as gone.
///
/// # Errors
/// The system's.
pub fn spawn(program: &Path, folder: &Folder) -> Result<Child, SupervisorError> {
    let path = folder.own_log();
    let log = OpenOptions::new().create(true).append(true).mode(0o600).open(&path);
    let log = log.map_err(|source| SupervisorError::file("opening", &path, source))?;
    Program::new(program)
        .arg("supervise")
        .arg(folder.root())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .current_dir("/")
        .spawn()
        .map_err(|source| SupervisorError::file("starting", program, source))
}

/// Talks to the supervisor of one folder. Holds nothing open: each call connects, asks and hangs up.
#[derive(Debug, Clone)]
pub struct SupervisorClient {
    folder: Folder,
}

impl SupervisorClient {
    /// The supervisor of this folder, whether it lives or not.
    #[must_use]
    pub fn new(folder: &Folder) -> Self {
        Self { folder: folder.clone() }
    }

    async fn ask(&self, command: Command, patience: Duration) -> Result<Answer, SupervisorError> {
        let late = |_| SupervisorError::Answer(format!("none within {patience:?}"));
        match tokio::time::timeout(patience, self.exchange(command)).await.map_err(late)?? {
            Answer::Refused { reason, message, .. } => Err(SupervisorError::Refused { reason, message }),
            answer => Ok(answer),
        }
    }

    async fn exchange(&self, command: Command) -> Result<Answer, SupervisorError> {
        self.open(command).await.map(|(answer, ..)| answer)
    }

    /// Asks, and keeps the connection.
    async fn open(
        &self,
        command: Command,
    ) -> Result<(Answer, BufReader<OwnedReadHalf>, OwnedWriteHalf), SupervisorError> {
        let control = self.folder.control();
        let fail = |source| SupervisorError::file("talking to", &control, source);
        let (_open, short) = short_path(self.folder.root()).map_err(fail)?;
        let stream = UnixStream::connect(short.join("control.sock")).await.map_err(fail)?;
        let (from, mut to) = stream.into_split();
        let mut line = serde_json::to_vec(&command).map_err(|error| fail(error.into()))?;
        line.push(b'\n');
        to.write_all(&line).await.map_err(fail)?;
        let mut from = BufReader::new(from);
        match read_line(&mut from, BOUND).await.map_err(fail)? {
            Line::Whole(line) => {
                let answer = serde_json::from_slice(&line);
                Ok((answer.map_err(|error| SupervisorError::Answer(error.to_string()))?, from, to))
            }
            Line::TooLong | Line::End => Err(SupervisorError::Answer("it hung up".to_owned())),
        }
    }

    /// Attaches to a session in the task's sandbox, and opens it where there is none and the start says what. Of the
    /// start, job and rank are not looked at: the folder says whose it is.
    ///
    /// # Errors
    /// As [`SupervisorClient::status`]; refused where the task is no sandbox or does not run, where there is no such
    /// session and none is wanted, and where something of the start is not acceptable.
    pub async fn session(&self, start: &StartSession) -> Result<(SessionReader, SessionWriter), SupervisorError> {
        let command = Command::Session { start: sessions::encode_start(start) };
        let late = |_| SupervisorError::Answer(format!("none within {PATIENCE:?}"));
        match tokio::time::timeout(PATIENCE, self.open(command)).await.map_err(late)?? {
            (Answer::Refused { reason, message, .. }, ..) => Err(SupervisorError::Refused { reason, message }),
            (Answer::Done { .. }, from, to) => Ok(sessions::attach(from, to)),
            (other, ..) => Err(SupervisorError::Answer(format!("{other:?} to `session`"))),
        }
    }

    async fn tell(&self, command: Command, patience: Duration) -> Result<(), SupervisorError> {
        self.ask(command, patience).await.map(|_done| ())
    }

    async fn order(&self, command: Command) -> Result<u64, SupervisorError> {
        match self.ask(command, PATIENCE).await? {
            Answer::Order { order, .. } => Ok(order),
            other => Err(SupervisorError::Answer(format!("{other:?} to an order"))),
        }
    }

    /// Where the task is.
    ///
    /// # Errors
    /// [`SupervisorError::File`] where nobody listens any more (then look for `exit.json`); no usable answer.
    pub async fn status(&self) -> Result<Status, SupervisorError> {
        match self.ask(Command::Status, PATIENCE).await? {
            Answer::Status { status, .. } => Ok(status),
            other => Err(SupervisorError::Answer(format!("{other:?} to `status`"))),
        }
    }

    /// Orders a checkpoint; returns the order's number, under which [`Status::order`] tells what became of it.
    ///
    /// # Errors
    /// As [`SupervisorClient::status`]; refused where checkpoints are disabled or the task is ending.
    pub async fn checkpoint(&self) -> Result<u64, SupervisorError> {
        self.order(Command::Checkpoint).await
    }

    /// Orders a checkpoint with the task's end after it; without one within `deadline` the order has failed and the
    /// task goes on.
    ///
    /// # Errors
    /// As [`SupervisorClient::checkpoint`].
    pub async fn checkpoint_and_exit(&self, deadline: Duration) -> Result<u64, SupervisorError> {
        self.checkpoint_and_exit_from(0, deadline).await
    }

    /// As [`SupervisorClient::checkpoint_and_exit`], at the first step boundary from step `from` on.
    ///
    /// # Errors
    /// As [`SupervisorClient::checkpoint`].
    pub async fn checkpoint_and_exit_from(&self, from: u64, deadline: Duration) -> Result<u64, SupervisorError> {
        self.order(Command::CheckpointAndExit { deadline_ms: millis(deadline), from }).await
    }

    /// Holds the task at its next step boundary, until another order, [`SupervisorClient::resume_normal`] or the end of
    /// `deadline`. Returns the last step that it told before, or resumed from.
    ///
    /// # Errors
    /// As [`SupervisorClient::checkpoint`]; refused where the task does not tell its steps.
    pub async fn hold(&self, deadline: Duration) -> Result<u64, SupervisorError> {
        match self.ask(Command::Hold { deadline_ms: millis(deadline) }, PATIENCE).await? {
            Answer::Held { after, .. } => Ok(after),
            other => Err(SupervisorError::Answer(format!("{other:?} to `hold`"))),
        }
    }

    /// Takes back an order that the task has not acted on yet.
    ///
    /// # Errors
    /// As [`SupervisorClient::status`].
    pub async fn resume_normal(&self) -> Result<(), SupervisorError> {
        self.tell(Command::ResumeNormal, PATIENCE).await
    }

    /// Asks the task's program to end (SIGTERM) and kills everything after the grace. Does not wait for it.
    ///
    /// # Errors
    /// As [`SupervisorClient::status`].
    pub async fn stop(&self, grace: Duration) -> Result<(), SupervisorError> {
        self.tell(Command::Stop { grace_ms: millis(grace) }, PATIENCE).await
    }

    /// Kills everything of the task. Does not wait for it: the end is in `exit.json`.
    ///
    /// # Errors
    /// As [`SupervisorClient::status`].
    pub async fn kill(&self) -> Result<(), SupervisorError> {
        self.tell(Command::Kill, PATIENCE).await
    }

    /// Stops all processes without ending them.
    ///
    /// # Errors
    /// As [`SupervisorClient::status`]; kernel errors.
    pub async fn freeze(&self) -> Result<(), SupervisorError> {
        self.tell(Command::Freeze, LONG_PATIENCE).await
    }

    /// Lets frozen processes go on.
    ///
    /// # Errors
    /// As [`SupervisorClient::status`]; kernel errors.
    pub async fn thaw(&self) -> Result<(), SupervisorError> {
        self.tell(Command::Thaw, LONG_PATIENCE).await
    }
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}
