//! Sessions of rentals through the controller.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use sluice_proto::v1;
use sluice_proto::v1::session_input::Message as In;
use sluice_proto::v1::session_output::Message as Out;
use sluice_proto::v1::session_program::Program;
use tokio::sync::mpsc::UnboundedReceiver;

use super::{Controller, Host, Job, rental};

static CHANNEL: AtomicU64 = AtomicU64::new(1000);
pub const PATIENCE: Duration = Duration::from_secs(20);

pub fn command(script: &str) -> Option<v1::SessionProgram> {
    let command = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
    let command = v1::SessionCommand { command, ..v1::SessionCommand::default() };
    Some(v1::SessionProgram { program: Some(Program::Command(command)) })
}

pub fn session_id(number: u64) -> String {
    format!("00000000-0000-4000-9000-{number:012x}")
}

/// One attachment through the controller.
pub struct Talk {
    controller: Controller,
    pub channel: u64,
    from: UnboundedReceiver<v1::SessionUp>,
    pub offset: u64,
    pub out: Vec<u8>,
    pub opened: Option<v1::SessionOpened>,
    pub end: Option<v1::SessionEnd>,
    pub reason: Option<(String, String)>,
    pub notices: Vec<String>,
}

impl Talk {
    pub async fn open(host: &Host, job: &Job, id: &str, program: Option<v1::SessionProgram>, offset: u64) -> Self {
        let channel = CHANNEL.fetch_add(1, Ordering::Relaxed);
        let session_id = id.to_owned();
        let start = v1::StartSession { session_id, program, output_offset: offset, ..v1::StartSession::default() };
        let from = host.controller.open_session(job, channel, start).await;
        let controller = host.controller.clone();
        Self {
            controller,
            channel,
            from,
            offset,
            out: Vec::new(),
            opened: None,
            end: None,
            reason: None,
            notices: Vec::new(),
        }
    }

    pub async fn say(&self, message: In) {
        self.controller.say(self.channel, Some(v1::SessionInput { message: Some(message) })).await;
    }

    /// Takes what comes until something is so; `false` where nothing comes for a while.
    pub async fn until(&mut self, patience: Duration, wanted: impl Fn(&Self) -> bool) -> bool {
        while !wanted(self) {
            let Ok(Some(up)) = tokio::time::timeout(patience, self.from.recv()).await else { return false };
            if !up.reason.is_empty() {
                self.reason = Some((up.reason, up.message));
                continue;
            }
            match up.output.unwrap().message.unwrap() {
                Out::Opened(opened) => self.opened = Some(opened),
                Out::Data(data) => {
                    assert_eq!(data.offset, self.offset, "nothing lost, nothing repeated");
                    self.offset += data.data.len() as u64;
                    self.out.extend_from_slice(&data.data);
                    self.say(In::Acknowledged(self.offset)).await;
                }
                Out::Taken(_) => {}
                Out::Notice(notice) => self.notices.push(notice),
                Out::End(end) => self.end = Some(end),
            }
        }
        true
    }
}

/// A rental that takes sessions.
pub async fn running(host: &Host) -> Job {
    begun(host, rental()).await
}

/// This rental, once it takes sessions.
pub async fn begun(host: &Host, job: Job) -> Job {
    host.controller.want(&job).await;
    host.controller.running(&job).await;
    let begun = Instant::now();
    loop {
        let mut talk = Talk::open(host, &job, &session_id(1), command("true"), 0).await;
        talk.until(PATIENCE, |talk| talk.end.is_some() || talk.reason.is_some()).await;
        if talk.end.is_some() {
            talk.say(In::Close(true)).await;
            return job;
        }
        assert!(begun.elapsed() < PATIENCE, "{:?}", talk.reason);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// What a shell script says in a rental; it ends well.
pub async fn said(host: &Host, job: &Job, script: &str) -> String {
    static NUMBER: AtomicU64 = AtomicU64::new(0x1_0000);
    let id = session_id(NUMBER.fetch_add(1, Ordering::Relaxed));
    let mut talk = Talk::open(host, job, &id, command(script), 0).await;
    talk.until(Duration::from_secs(60), |talk| talk.end.is_some() || talk.reason.is_some()).await;
    let text = String::from_utf8(talk.out.clone()).unwrap();
    let code = talk.end.as_ref().and_then(|end| end.exit_code);
    assert_eq!(code, Some(0), "{text} {:?} {:?}", talk.end, talk.reason);
    talk.say(In::Close(true)).await;
    text
}
