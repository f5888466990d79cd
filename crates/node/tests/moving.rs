//! A job is stopped at a checkpoint and goes on from it elsewhere, through a real vault.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod fleet;

use std::time::Duration;

use fleet::{Host, Job, eventually};
use sluice_proto::v1;
use sluice_vault::Manifest;

const CLIENT: &str = include_str!("../../../clients/python/sluice_checkpoint.py");

async fn trainer(host: &Host) -> Option<Job> {
    if !std::path::Path::new("/usr/bin/python3").exists() {
        println!("SKIPPED: there is no /usr/bin/python3");
        return None;
    }
    let files = [("train.py", fleet::TRAINER), ("sluice_checkpoint.py", CLIENT)];
    Some(fleet::checkpointing(host.upload(&files).await))
}

async fn steps(host: &Host, job: &Job, from: u64) -> u64 {
    eventually("steps", || match host.controller.last_state(job) {
        Some(v1::task_report::State::Running(running)) if running.step > from => Some(running.step),
        Some(v1::task_report::State::Ended(ended)) => panic!("{ended:?}"),
        _ => None,
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_stops_at_a_checkpoint_and_goes_on_from_it() {
    let Some(host) = Host::enforced().await else { return };
    let Some(job) = trainer(&host).await else { return };
    let agent = host.agent();
    host.controller.want(&job).await;
    steps(&host, &job, 3).await;
    host.controller.want(&job.with(v1::Goal::Checkpoint)).await;
    let ended = host.controller.ended(&job).await;
    assert!(ended.at_checkpoint && ended.exit_code == Some(0) && ended.reason.is_empty(), "{ended:?}");
    let sealed = host.controller.read(|book| book.sealed.clone());
    assert_eq!(sealed.len(), 1);
    let sealed = &sealed[0];
    assert!(sealed.step == ended.step && sealed.step > 3 && sealed.size_bytes == 64, "{sealed:?}");
    let windows = host.controller.all_windows(&job, &ended).await;
    let next = usize::try_from(sealed.next_window).unwrap();
    assert_eq!(windows[next - 1].end_ns, sealed.captured_ns, "a window ends at the capture");
    let Manifest::Task(manifest) = host.vault.manifest(sealed.manifest.parse().unwrap()).await.unwrap() else {
        panic!()
    };
    assert_eq!((manifest.step, manifest.cursor["next"].as_u64()), (sealed.step, Some(sealed.step + 1)));

    // Somewhere else, prepared before it is needed.
    let mut next = trainer(&host).await.unwrap();
    next.assignment.resume_manifest.clone_from(&sealed.manifest);
    next.assignment.resume_step = sealed.step;
    let prepared = next.with(v1::Goal::Prepare);
    host.controller.want(&prepared).await;
    eventually("prepared", || host.controller.last_state(&prepared)).await;
    let run = prepared.with(v1::Goal::Run);
    host.controller.want(&run).await;
    steps(&host, &run, sealed.step + 2).await;
    host.controller.want(&run.with(v1::Goal::Checkpoint)).await;
    let ended = host.controller.ended(&run).await;
    assert!(ended.at_checkpoint, "{ended:?}");
    host.controller.open_log(&run, 1, 0).await;
    eventually("the log", || host.controller.channel(1).1).await;
    let log = String::from_utf8(host.controller.channel(1).0).unwrap();
    assert!(log.contains(&format!("resumed {} {}", sealed.step + 1, sealed.step)), "{log}");
    let second = host.controller.read(|book| book.sealed.last().cloned()).unwrap();
    let Manifest::Task(manifest) = host.vault.manifest(second.manifest.parse().unwrap()).await.unwrap() else {
        panic!()
    };
    assert_eq!(manifest.parent, Some(sealed.manifest.parse().unwrap()));
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_for_a_vault_that_fell_silent_holds_up_an_end_no_longer_than_the_limit() {
    let Some(host) = Host::enforced().await else { return };
    let Some(job) = trainer(&host).await else { return };
    let mut config = host.config();
    config.limits.finish = Duration::from_secs(2);
    let agent = host.agent_with(config);
    host.controller.want(&job).await;
    steps(&host, &job, 3).await;
    host.way.fall_silent_at(0);
    host.controller.want(&job.with(v1::Goal::Checkpoint)).await;
    let ended = host.controller.ended(&job).await;
    assert!(!ended.at_checkpoint && ended.message.contains("checkpoint 1 was not stored"), "{ended:?}");
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn regular_checkpoints_survive_a_killed_agent_in_their_order() {
    let Some(host) = Host::enforced().await else { return };
    let Some(mut job) = trainer(&host).await else { return };
    job.spec().checkpoint.as_mut().unwrap().every_steps = 4;
    let agent = host.agent();
    host.controller.want(&job).await;
    eventually("a checkpoint", || host.controller.read(|book| (!book.sealed.is_empty()).then_some(()))).await;
    agent.kill();
    tokio::time::sleep(Duration::from_millis(1000)).await;
    let agent = host.agent();
    eventually("more", || host.controller.read(|book| (book.sealed.len() > 5).then_some(()))).await;
    let mut told = host.controller.read(|book| book.sealed.clone());
    told.sort_by_key(|sealed| sealed.step);
    told.dedup_by_key(|sealed| sealed.step);
    for pair in told.windows(2) {
        assert_eq!(pair[1].step - pair[0].step, 4, "none is missing");
        assert!(pair[1].next_window > pair[0].next_window);
    }
    let windows = host.controller.windows(&job);
    for sealed in &told {
        let begins = windows.iter().find(|window| window.sequence == sealed.next_window);
        assert!(begins.is_none_or(|window| window.start_ns >= sealed.captured_ns));
    }
    let mut parent = None;
    for sealed in &told {
        let Manifest::Task(manifest) = host.vault.manifest(sealed.manifest.parse().unwrap()).await.unwrap() else {
            panic!()
        };
        assert_eq!(manifest.parent, parent);
        parent = Some(sealed.manifest.parse().unwrap());
    }
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_that_is_taken_back_or_fails_lets_the_job_go_on() {
    let Some(host) = Host::enforced().await else { return };
    let Some(mut job) = trainer(&host).await else { return };
    // It never asks, so it never stops.
    let deaf = fleet::shell("while :; do sleep 0.05; done");
    job.spec().command = deaf.assignment.spec.as_ref().unwrap().command.clone();
    job.assignment.deadline = Some(prost_types::Duration { seconds: 1, nanos: 0 });
    let agent = host.agent();
    host.controller.want(&job).await;
    host.controller.running(&job).await;
    let order = job.with(v1::Goal::Checkpoint);
    host.controller.want(&order).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let back = order.with(v1::Goal::Run);
    host.controller.want(&back).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let again = back.with(v1::Goal::Checkpoint);
    host.controller.want(&again).await;
    tokio::time::sleep(Duration::from_millis(2000)).await;
    host.controller.running(&job).await;
    host.controller.want(&again.with(v1::Goal::Stop)).await;
    let ended = host.controller.ended(&job).await;
    assert!(!ended.at_checkpoint && ended.signal == 15, "{ended:?}");
    agent.stop().await;
}
