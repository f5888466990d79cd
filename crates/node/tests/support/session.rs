//! A client of a session, as the far end of the controller's stream would be one: it counts, acknowledges and remembers.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use sluice_node::supervisor::{SessionReader, SessionWriter, SupervisorClient, SupervisorError};
use sluice_proto::v1;
use sluice_proto::v1::session_input::Message as In;
use sluice_proto::v1::session_output::Message as Out;
use sluice_proto::v1::session_program::Program;

static COUNT: AtomicU64 = AtomicU64::new(1);

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// Waits until sessions can be opened: a moment after the start.
pub async fn ready(client: &SupervisorClient) {
    let begun = std::time::Instant::now();
    loop {
        match Talk::attach(client, &id(), Some(command(&["true"])), 0).await {
            Ok(mut talk) => {
                assert_eq!(talk.until_end().await.exit_code, Some(0));
                return;
            }
            Err(error) => assert!(begun.elapsed() < PATIENCE, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A UUID that no other session has.
pub fn id() -> String {
    format!("00000000-0000-4000-8000-{:012x}", COUNT.fetch_add(1, Ordering::Relaxed))
}

/// A terminal with the user's shell.
pub fn terminal() -> Program {
    let terminal = Some(v1::TerminalSize { rows: 24, columns: 80 });
    Program::Command(v1::SessionCommand { terminal, ..v1::SessionCommand::default() })
}

/// A command with pipes.
pub fn command(words: &[&str]) -> Program {
    let command = words.iter().map(|word| (*word).to_owned()).collect();
    Program::Command(v1::SessionCommand { command, ..v1::SessionCommand::default() })
}

pub fn shell(script: &str) -> Program {
    command(&["/bin/sh", "-c", script])
}

pub fn copy(direction: v1::CopyDirection, path: &str) -> Program {
    Program::Copy(v1::SessionCopy { direction: direction.into(), path: path.to_owned() })
}

pub fn port(port: u16) -> Program {
    Program::Connection(v1::SessionConnection { port: port.into() })
}

pub fn start(id: &str, program: Option<Program>, output_offset: u64) -> v1::StartSession {
    let program = program.map(|program| v1::SessionProgram { program: Some(program) });
    v1::StartSession { session_id: id.to_owned(), program, output_offset, ..v1::StartSession::default() }
}

/// One attachment and what came of it.
pub struct Talk {
    reader: SessionReader,
    writer: SessionWriter,
    pub opened: Option<v1::SessionOpened>,
    /// Output from `begin` on.
    pub out: Vec<u8>,
    pub err: Vec<u8>,
    pub begin: u64,
    /// Offset behind the last byte.
    pub offset: u64,
    /// Input sent, and taken.
    pub sent: u64,
    pub taken: u64,
    pub notices: Vec<String>,
    pub end: Option<v1::SessionEnd>,
    pub reason: Option<(String, String)>,
    /// Whether output is acknowledged as it comes.
    pub acknowledges: bool,
}

impl Talk {
    pub async fn attach(
        client: &SupervisorClient,
        id: &str,
        program: Option<Program>,
        offset: u64,
    ) -> Result<Self, SupervisorError> {
        let (reader, writer) = client.session(&start(id, program, offset)).await?;
        Ok(Self {
            reader,
            writer,
            opened: None,
            out: Vec::new(),
            err: Vec::new(),
            begin: offset,
            offset,
            sent: 0,
            taken: 0,
            notices: Vec::new(),
            end: None,
            reason: None,
            acknowledges: true,
        })
    }

    pub async fn open(client: &SupervisorClient, program: Program) -> Self {
        let mut talk = Self::attach(client, &id(), Some(program), 0).await.unwrap();
        talk.until("opened", |talk| talk.opened.is_some()).await;
        talk
    }

    /// Takes one message; `false` where the supervisor hung up.
    pub async fn step(&mut self) -> bool {
        let Ok(Some(up)) = self.reader.next().await else { return false };
        if !up.reason.is_empty() {
            self.reason = Some((up.reason, up.message));
            return true;
        }
        match up.output.unwrap().message.unwrap() {
            Out::Opened(opened) => {
                assert!(self.opened.is_none());
                (self.sent, self.taken) = (opened.taken, opened.taken);
                self.opened = Some(opened);
            }
            Out::Data(data) => {
                assert!(self.opened.is_some() && data.data.len() <= 16 << 10 && !data.data.is_empty());
                assert_eq!(data.offset, self.offset, "nothing lost, nothing repeated");
                self.offset += data.data.len() as u64;
                let error = data.stream() == v1::SessionStream::Error;
                if error { &mut self.err } else { &mut self.out }.extend_from_slice(&data.data);
                if self.acknowledges {
                    // It may have hung up after its last word.
                    let _ = self.say(In::Acknowledged(self.offset)).await;
                }
            }
            Out::Taken(taken) => {
                assert!(taken > self.taken && taken <= self.sent);
                self.taken = taken;
            }
            Out::End(end) => {
                assert!(self.end.is_none());
                self.end = Some(end);
            }
            Out::Notice(text) => self.notices.push(text),
        }
        true
    }

    pub async fn until(&mut self, what: &str, wanted: impl Fn(&Self) -> bool) {
        self.until_in(PATIENCE, what, wanted).await;
    }

    /// Until it is over, which may take long.
    pub async fn until_end_of(&mut self, patience: Duration) {
        self.until_in(patience, "the end", |talk| talk.end.is_some()).await;
    }

    async fn until_in(&mut self, patience: Duration, what: &str, wanted: impl Fn(&Self) -> bool) {
        let all = async {
            while !wanted(self) {
                if !self.step().await {
                    panic!("{what}: hung up, {}", self.text());
                }
            }
        };
        if tokio::time::timeout(patience, all).await.is_err() {
            panic!("{what} did not happen: {}", self.text());
        }
    }

    pub async fn until_end(&mut self) -> v1::SessionEnd {
        self.until("the end", |talk| talk.end.is_some()).await;
        self.end.clone().unwrap()
    }

    /// Until it is told why it ends.
    pub async fn until_reason(&mut self) -> (String, String) {
        self.until("a reason", |talk| talk.reason.is_some()).await;
        assert!(!self.step().await, "nothing follows a reason");
        self.reason.clone().unwrap()
    }

    pub async fn say(&mut self, message: In) -> Result<(), SupervisorError> {
        self.writer.send(&v1::SessionInput { message: Some(message) }).await
    }

    pub async fn data(&mut self, offset: u64, data: &[u8]) {
        let data = v1::SessionData { offset, data: data.to_vec().into(), ..v1::SessionData::default() };
        self.say(In::Data(data)).await.unwrap();
    }

    /// Sends input as a client has to: no more under way than may be.
    pub async fn write(&mut self, data: &[u8]) {
        self.until("opened", |talk| talk.opened.is_some()).await;
        for piece in data.chunks(16 << 10) {
            let size = piece.len() as u64;
            self.until("input taken", |talk| talk.sent + size - talk.taken <= 128 << 10 || talk.end.is_some()).await;
            self.data(self.sent, piece).await;
            self.sent += size;
        }
    }

    pub async fn finish(&mut self) {
        self.say(In::End(self.sent)).await.unwrap();
    }

    pub fn text(&self) -> String {
        let (out, err) = (String::from_utf8_lossy(&self.out), String::from_utf8_lossy(&self.err));
        format!("out {out:?} err {err:?} end {:?} reason {:?}", self.end, self.reason)
    }

    /// Until nothing comes any more.
    pub async fn until_over(&mut self) {
        let all = async { while self.step().await {} };
        assert!(tokio::time::timeout(PATIENCE, all).await.is_ok(), "it goes on: {}", self.text());
    }

    pub async fn until_text(&mut self, wanted: &str) {
        let wanted = wanted.to_owned();
        let what = format!("{wanted:?}");
        self.until(&what, |talk| String::from_utf8_lossy(&talk.out).contains(&wanted)).await;
    }
}
