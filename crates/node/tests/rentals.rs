//! Sessions over the node's stream: opened, cut off with the stream or the agent, and never in the way of what the
//! controller must hear.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod fleet;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use fleet::{Controller, Host, Job, eventually, rental, shell};
use sluice_proto::v1;
use sluice_proto::v1::session_input::Message as In;
use sluice_proto::v1::session_output::Message as Out;
use sluice_proto::v1::session_program::Program;
use tokio::sync::mpsc::UnboundedReceiver;

static CHANNEL: AtomicU64 = AtomicU64::new(1000);
const PATIENCE: Duration = Duration::from_secs(20);

fn command(script: &str) -> Option<v1::SessionProgram> {
    let command = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
    let command = v1::SessionCommand { command, ..v1::SessionCommand::default() };
    Some(v1::SessionProgram { program: Some(Program::Command(command)) })
}

fn session_id(number: u64) -> String {
    format!("00000000-0000-4000-9000-{number:012x}")
}

/// One attachment through the controller.
struct Talk {
    controller: Controller,
    channel: u64,
    from: UnboundedReceiver<v1::SessionUp>,
    offset: u64,
    out: Vec<u8>,
    opened: Option<v1::SessionOpened>,
    end: Option<v1::SessionEnd>,
    reason: Option<(String, String)>,
}

impl Talk {
    async fn open(host: &Host, job: &Job, id: &str, program: Option<v1::SessionProgram>, offset: u64) -> Self {
        let channel = CHANNEL.fetch_add(1, Ordering::Relaxed);
        let session_id = id.to_owned();
        let start = v1::StartSession { session_id, program, output_offset: offset, ..v1::StartSession::default() };
        let from = host.controller.open_session(job, channel, start).await;
        let controller = host.controller.clone();
        Self { controller, channel, from, offset, out: Vec::new(), opened: None, end: None, reason: None }
    }

    async fn say(&self, message: In) {
        self.controller.say(self.channel, Some(v1::SessionInput { message: Some(message) })).await;
    }

    /// Takes what comes until something is so; `false` where nothing comes for a while.
    async fn until(&mut self, patience: Duration, wanted: impl Fn(&Self) -> bool) -> bool {
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
                Out::Taken(_) | Out::Notice(_) => {}
                Out::End(end) => self.end = Some(end),
            }
        }
        true
    }
}

/// A rental that takes sessions.
async fn running(host: &Host) -> Job {
    let job = rental();
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

const LINES: u32 = 40_000;

#[tokio::test(flavor = "multi_thread")]
async fn a_session_survives_its_stream_and_a_killed_agent_without_losing_or_repeating_a_byte() {
    let Some(host) = Host::enforced().await else { return };
    let mut agent = host.process();
    let job = running(&host).await;
    let (id, mut have) = (session_id(2), Vec::new());
    let script = format!("i=0; while [ $i -lt {LINES} ]; do echo line $i; i=$((i+1)); done; cat; exit 3");
    let mut program = command(&script);
    let wanted: String = (0..LINES).map(|line| format!("line {line}\n")).collect();
    let (mut rounds, mut kills) = (0, 0);
    while have.len() < wanted.len() {
        let mut talk = Talk::open(&host, &job, &id, program.clone(), have.len() as u64).await;
        let take = 30_000 + rounds * 7919 % 50_000;
        talk.until(PATIENCE, |talk| {
            talk.out.len() >= take || talk.offset as usize >= wanted.len() || talk.reason.is_some()
        })
        .await;
        if talk.reason.is_some() && talk.opened.is_none() {
            // The stream is open again before the agent has found everything.
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        }
        assert_eq!(talk.opened.as_ref().map(|opened| opened.created), Some(rounds == 0));
        program = None;
        have.extend_from_slice(&talk.out);
        rounds += 1;
        let hellos = host.controller.read(|book| book.hellos.len());
        match rounds % 3 {
            0 => {
                agent.kill().unwrap();
                agent.wait().unwrap();
                agent = host.process();
                kills += 1;
            }
            1 => host.controller.hang_up(),
            // The client alone goes away.
            _ => {
                host.controller.say(talk.channel, None).await;
                continue;
            }
        }
        eventually("another stream", || host.controller.read(|book| (book.hellos.len() > hellos).then_some(()))).await;
    }
    assert!(kills >= 2 && have == wanted.as_bytes(), "{kills} kills, {} bytes", have.len());
    // Input too: what was taken before the cut is not taken again.
    let mut talk = Talk::open(&host, &job, &id, None, have.len() as u64).await;
    talk.until(PATIENCE, |talk| talk.opened.is_some()).await;
    let data = |offset, data: &'static str| {
        In::Data(v1::SessionData { offset, data: data.as_bytes().into(), ..v1::SessionData::default() })
    };
    talk.say(data(0, "first\n")).await;
    assert!(talk.until(PATIENCE, |talk| talk.out == b"first\n").await);
    let offset = talk.offset;
    agent.kill().unwrap();
    agent.wait().unwrap();
    let hellos = host.controller.read(|book| book.hellos.len());
    agent = host.process();
    eventually("another stream", || host.controller.read(|book| (book.hellos.len() > hellos).then_some(()))).await;
    let mut talk = Talk::open(&host, &job, &id, None, offset).await;
    talk.until(PATIENCE, |talk| talk.opened.is_some()).await;
    assert_eq!(talk.opened.as_ref().map(|opened| opened.taken), Some(6), "{:?}", talk.reason);
    talk.say(data(0, "first\nsecond\n")).await;
    talk.say(In::End(13)).await;
    assert!(talk.until(PATIENCE, |talk| talk.end.is_some()).await);
    assert_eq!((&talk.out[..], talk.end.unwrap().exit_code), (&b"second\n"[..], Some(3)));
    host.controller.want(&job.with(v1::Goal::Stop)).await;
    let ended = host.controller.ended(&job).await;
    assert_eq!((ended.exit_code, ended.reason.as_str()), (Some(0), ""), "{ended:?}");
    agent.kill().unwrap();
    agent.wait().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_sessions_delays_neither_heartbeats_nor_reports() {
    let Some(host) = Host::enforced().await else { return };
    let agent = host.agent();
    let job = running(&host).await;
    let mut floods = Vec::new();
    for number in 0..8 {
        let mut talk = Talk::open(&host, &job, &session_id(100 + number), command("exec yes"), 0).await;
        assert!(talk.until(PATIENCE, |talk| talk.opened.is_some()).await);
        floods.push(tokio::spawn(async move {
            let (begun, mut bytes) = (Instant::now(), 0);
            while begun.elapsed() < Duration::from_secs(6) {
                assert!(talk.until(PATIENCE, |talk| !talk.out.is_empty()).await, "{:?}", talk.reason);
                bytes += talk.out.len();
                talk.out.clear();
            }
            talk.say(In::Close(true)).await;
            bytes
        }));
    }
    let (from, begun) = (host.controller.read(|book| book.beats.len()), Instant::now());
    // In the midst of it a task begins, ends, and is told.
    let other = shell("exit 7");
    host.controller.want(&other).await;
    assert_eq!(host.controller.ended(&other).await.exit_code, Some(7));
    assert!(begun.elapsed() < Duration::from_secs(6), "after the flood");
    let mut bytes = 0;
    for flood in floods {
        bytes += flood.await.unwrap();
    }
    let beats = host.controller.read(|book| book.beats[from..].to_vec());
    let longest = beats.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap();
    assert!(beats.len() >= 5 && longest < Duration::from_millis(2000), "{longest:?} of {}", beats.len());
    assert!(bytes > 8 << 20, "no flood: {bytes}");
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_opened_is_told_with_its_reason() {
    let Some(host) = Host::enforced().await else { return };
    let agent = host.agent();
    let batch = shell("sleep 60");
    host.controller.want(&batch).await;
    host.controller.running(&batch).await;
    let waiting = rental().with(v1::Goal::Prepare);
    host.controller.want(&waiting).await;
    let job = running(&host).await;
    let mut older = job.clone();
    older.assignment.key.as_mut().unwrap().generation += 1;
    for (job, program, reason) in [
        (&rental(), command("true"), "NOT_FOUND"),
        (&older, command("true"), "NOT_FOUND"),
        (&batch, command("true"), "WRONG_STATE"),
        (&waiting, command("true"), "WRONG_STATE"),
        (&job, None, "NOT_FOUND"),
        (&job, Some(v1::SessionProgram { program: None }), "INVALID_FIELD"),
    ] {
        let mut talk = Talk::open(&host, job, &session_id(50), program, 0).await;
        assert!(talk.until(PATIENCE, |talk| talk.reason.is_some()).await, "{reason}");
        let (found, message) = talk.reason.unwrap();
        assert!(found == reason && !message.is_empty(), "{found} {message}, not {reason}");
    }
    host.controller.want(&job.with(v1::Goal::Stop)).await;
    host.controller.ended(&job).await;
    let mut late = Talk::open(&host, &job, &session_id(51), command("true"), 0).await;
    late.until(PATIENCE, |talk| talk.reason.is_some()).await;
    assert_eq!(late.reason.unwrap().0, "WRONG_STATE");
    agent.stop().await;
}
