//! Sessions over the node's stream: opened, cut off with the stream or the agent, and never in the way of what the
//! controller must hear.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod fleet;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use fleet::{Host, PATIENCE, Talk, begun, command, eventually, eventually_in, rental, running, session_id, shell};
use sluice_proto::v1;
use sluice_proto::v1::session_input::Message as In;

const LINES: u32 = 40_000;

/// The controller takes a node that is silent for longer to be lost: `loss_timeout`, where its operator sets none.
const LOSS_TIMEOUT: Duration = Duration::from_secs(15);

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
    let (over, bytes) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let mut floods = Vec::new();
    for number in 0..8 {
        let mut talk = Talk::open(&host, &job, &session_id(100 + number), command("exec yes"), 0).await;
        assert!(talk.until(PATIENCE, |talk| talk.opened.is_some()).await);
        let (over, bytes) = (over.clone(), bytes.clone());
        floods.push(tokio::spawn(async move {
            while !over.load(Ordering::Relaxed) {
                assert!(talk.until(PATIENCE, |talk| !talk.out.is_empty()).await, "{:?}", talk.reason);
                bytes.fetch_add(talk.out.len(), Ordering::Relaxed);
                talk.out.clear();
            }
            talk.say(In::Close(true)).await;
        }));
    }
    let (from, begun) = (host.controller.read(|book| book.beats.len()), Instant::now());
    // In the midst of it a task begins, ends, and is told.
    let other = shell("exit 7");
    host.controller.want(&other).await;
    assert_eq!(host.controller.ended(&other).await.exit_code, Some(7));
    let beats = || host.controller.read(|book| book.beats[from..].to_vec());
    let flooded = || bytes.load(Ordering::Relaxed) > 8 << 20;
    eventually_in(Duration::from_secs(120), "a flood", || (beats().len() >= 5 && flooded()).then_some(())).await;
    let heard: Vec<Instant> = [begun].into_iter().chain(beats()).chain([Instant::now()]).collect();
    over.store(true, Ordering::Relaxed);
    for flood in floods {
        flood.await.unwrap();
    }
    let longest = heard.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap();
    assert!(longest < LOSS_TIMEOUT, "{longest:?}");
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

#[tokio::test(flavor = "multi_thread")]
async fn the_sessions_that_one_tenant_may_have_leave_a_node_room_for_others() {
    let Some(host) = Host::enforced().await else { return };
    let agent = host.agent();
    let (mut held, mut number) = (Vec::new(), 1000);
    let small = || {
        let mut job = rental();
        job.spec().resources.as_mut().unwrap().memory_bytes = 96 << 20;
        job
    };
    // As many as the controller lets one tenant attach to.
    for _ in 0..4 {
        let job = begun(&host, small()).await;
        for _ in 0..64 {
            let mut talk = Talk::open(&host, &job, &session_id(number), command("exec sleep 1000"), 0).await;
            assert!(talk.until(PATIENCE, |talk| talk.opened.is_some() || talk.reason.is_some()).await);
            // One may still be forgotten of those that asked whether the rental runs.
            if talk.reason.is_none() {
                held.push(talk);
            }
            number += 1;
        }
    }
    assert!(held.len() > 250, "{}", held.len());
    let other = begun(&host, small()).await;
    for number in 0..10 {
        let mut talk = Talk::open(&host, &other, &session_id(number + 10), command("echo here"), 0).await;
        assert!(talk.until(PATIENCE, |talk| talk.end.is_some() || talk.reason.is_some()).await);
        assert_eq!((&talk.out[..], talk.reason), (&b"here\n"[..], None));
    }
    agent.stop().await;
}
