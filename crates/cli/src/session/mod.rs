//! The client's end of a session in a rental: it goes on over any number of broken connections.
//!
//! Both directions are counted in bytes. After a cut the session is attached to again: output is asked for from where it
//! was printed, and input is sent again from where it was taken, so that nothing is lost or repeated.

mod input;
mod terminal;

pub(crate) use terminal::{RawMode, is_terminal, resizes, stdin, terminal_size};

use std::time::Duration;

use bytes::Bytes;
use sluice_proto::v1;
use sluice_proto::v1::attach_session_request::Message as Request;
use sluice_proto::v1::session_input::Message as Input;
use sluice_proto::v1::session_output::Message as Output;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use crate::command::Invocation;
use crate::error::CliError;
use crate::request_id::new_request_id;
use input::{Pending, message};

/// Messages that wait for the connection.
const QUEUE: usize = 64;
/// A cut that is mended sooner is not worth a word.
const SILENT: Duration = Duration::from_secs(1);

/// What a user does while a session runs.
#[derive(Debug)]
pub(crate) enum Typed {
    /// Bytes of input, at most 16 KiB.
    Bytes(Bytes),
    /// Nothing follows.
    End,
    /// The terminal has another size.
    Size(v1::TerminalSize),
    /// A signal for the program, by name.
    Signal(&'static str),
}

/// Where a session's output goes.
pub(crate) trait Screen {
    /// Takes a piece.
    fn show(&mut self, stream: v1::SessionStream, bytes: Bytes) -> impl Future<Output = Result<(), CliError>>;
    /// A word that is not of the program.
    fn say(&mut self, text: &str);
}

/// One session, from its opening to its end.
pub(crate) struct Session<'a> {
    at: &'a Invocation,
    start: v1::StartSession,
    input: Pending,
    /// It was opened: from here on it is attached to, and never opened again.
    opened: bool,
}

/// How one connection ended.
enum Cut {
    /// With the session.
    End(v1::SessionEnd),
    /// Before it.
    Status(Box<Status>),
}

impl<'a> Session<'a> {
    /// A session of a rental's job; nothing is sent yet.
    pub(crate) fn new(
        at: &'a Invocation,
        job: String,
        rank: u32,
        program: v1::session_program::Program,
    ) -> Result<Self, CliError> {
        let start = v1::StartSession {
            job,
            rank,
            session_id: new_request_id()?,
            program: Some(v1::SessionProgram { program: Some(program) }),
            output_offset: 0,
        };
        Ok(Self { at, start, input: Pending::default(), opened: false })
    }

    /// Runs to the session's end.
    pub(crate) async fn run(
        mut self,
        mut typed: mpsc::Receiver<Typed>,
        screen: &mut impl Screen,
    ) -> Result<v1::SessionEnd, CliError> {
        let mut backoff = self.at.api.session_backoff();
        let mut cut_since: Option<tokio::time::Instant> = None;
        loop {
            let before = self.start.output_offset;
            match self.connection(&mut typed, screen).await? {
                Cut::End(end) => return Ok(end),
                Cut::Status(status) => {
                    if self.opened && status.code() == Code::NotFound {
                        let what = "session any more: its sandbox was stopped or is at another place".to_owned();
                        return Err(CliError::Missing { what, next: "Open a new one.".to_owned() });
                    }
                    if self.start.output_offset > before {
                        backoff.progress();
                        cut_since = None;
                    }
                    let since = *cut_since.get_or_insert_with(tokio::time::Instant::now);
                    if since.elapsed() > SILENT {
                        screen.say("the connection is cut; trying again");
                    }
                    let doing = "attach to the session";
                    backoff.after(*status).await.map_err(|status| CliError::refused(doing, status))?;
                }
            }
        }
    }

    /// One connection, to its end.
    async fn connection(
        &mut self,
        typed: &mut mpsc::Receiver<Typed>,
        screen: &mut impl Screen,
    ) -> Result<Cut, CliError> {
        let (sender, receiver) = mpsc::channel(QUEUE);
        let start = v1::StartSession {
            // A session that was open and is gone must not be begun anew behind the user's back.
            program: self.start.program.clone().filter(|_| !self.opened),
            ..self.start.clone()
        };
        let first = v1::AttachSessionRequest { message: Some(Request::Start(start)) };
        sender.try_send(first).map_err(|_| CliError::Answer("the session's queue is full".to_owned()))?;
        let mut from = match self.at.api.sessions().attach_session(ReceiverStream::new(receiver)).await {
            Ok(answer) => answer.into_inner(),
            Err(status) => return Ok(Cut::Status(Box::new(status))),
        };
        self.talk(&mut from, &sender, typed, screen).await
    }

    /// Talks until nothing more is heard. What cannot be sent any more is no end: the server may have said all it had to
    /// say and closed its ears, and its last words are still to be read.
    async fn talk(
        &mut self,
        from: &mut Streaming<v1::AttachSessionResponse>,
        to: &mpsc::Sender<v1::AttachSessionRequest>,
        typed: &mut mpsc::Receiver<Typed>,
        screen: &mut impl Screen,
    ) -> Result<Cut, CliError> {
        let mut attached = false;
        let hung_up = || Cut::Status(Box::new(Status::unavailable("the server ended the stream")));
        loop {
            tokio::select! {
                said = from.message() => {
                    let output = match said {
                        Ok(Some(said)) => said.output.and_then(|output| output.message),
                        Ok(None) => return Ok(hung_up()),
                        Err(status) => return Ok(Cut::Status(Box::new(status))),
                    };
                    match output {
                        Some(Output::Opened(opened)) => {
                            (self.opened, attached) = (true, true);
                            self.took(opened.taken)?;
                            for input in self.input.again() {
                                send(to, input).await;
                            }
                        }
                        Some(Output::Taken(taken)) => self.took(taken)?,
                        Some(Output::Data(data)) => {
                            self.show(data, screen).await?;
                            send(to, message(Input::Acknowledged(self.start.output_offset))).await;
                        }
                        Some(Output::Notice(text)) => screen.say(&text),
                        Some(Output::End(end)) => return Ok(Cut::End(end)),
                        None => {}
                    }
                }
                Some(typed) = typed.recv(), if attached && self.input.has_room() => {
                    let input = match typed {
                        Typed::Bytes(bytes) => self.input.add(&bytes),
                        Typed::End => self.input.close(),
                        Typed::Size(size) => message(Input::Resize(size)),
                        Typed::Signal(name) => message(Input::Signal(name.to_owned())),
                    };
                    send(to, input).await;
                }
            }
        }
    }

    fn took(&mut self, taken: u64) -> Result<(), CliError> {
        let wrong = || CliError::Answer("the session says that it took more than was sent".to_owned());
        self.input.took(taken).then_some(()).ok_or_else(wrong)
    }

    /// Shows what is new of a piece.
    async fn show(&mut self, data: v1::SessionData, screen: &mut impl Screen) -> Result<(), CliError> {
        let stream = data.stream();
        let Some(known) = self.start.output_offset.checked_sub(data.offset) else {
            return Err(CliError::Answer("a piece of the session's output is missing".to_owned()));
        };
        let known = usize::try_from(known).unwrap_or(usize::MAX).min(data.data.len());
        let fresh = data.data.slice(known..);
        let size = fresh.len() as u64;
        if size > 0 {
            screen.show(stream, fresh).await?;
            self.start.output_offset = self.start.output_offset.saturating_add(size);
        }
        Ok(())
    }
}

/// Sends where somebody still listens; input that nobody took is kept and sent again.
async fn send(to: &mpsc::Sender<v1::AttachSessionRequest>, input: v1::SessionInput) {
    let _deaf = to.send(v1::AttachSessionRequest { message: Some(Request::Input(input)) }).await;
}

#[cfg(test)]
mod tests;
