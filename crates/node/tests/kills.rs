//! Agents that are killed at any instruction start nothing twice, lose nothing and meter without gaps.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod fleet;

use std::time::Duration;

use fleet::{Host, eventually, shell};
use sluice_node::supervisor::{LogRecord, Stream};

#[tokio::test(flavor = "multi_thread")]
async fn jobs_run_once_under_an_agent_that_is_killed_again_and_again() {
    let Some(host) = Host::enforced().await else { return };
    let archive = host.upload(&[("given", "given\n")]).await;
    let mut jobs = Vec::new();
    let mut agent = host.process();
    // Fixed and uneven: kills fall into accepting, fetching, launching, running and storing.
    for (round, pause) in [130u64, 170, 230, 290, 370, 460, 580, 710, 930, 150, 340, 800].into_iter().enumerate() {
        if round < 8 {
            let number = round % 4;
            let mut job = shell(&format!("echo begin; cat given > $SLUICE_OUTPUTS/o; sleep 0.{number}; exit {number}"));
            job.spec().work_dir = Some(archive.clone());
            job.spec().resources.as_mut().unwrap().milli = 100;
            host.controller.want(&job).await;
            jobs.push((job, i32::try_from(number).unwrap()));
        }
        tokio::time::sleep(Duration::from_millis(pause)).await;
        agent.kill().unwrap();
        agent.wait().unwrap();
        agent = host.process();
    }
    for (job, code) in &jobs {
        let ended = host.controller.ended(job).await;
        assert_eq!(ended.exit_code, Some(*code), "{ended:?}");
        assert!(ended.outputs.is_some(), "{ended:?}");
        let log = std::fs::read(host.attempt(job).join("log")).unwrap();
        let lines = log.split(|byte| *byte == b'\n').filter_map(LogRecord::parse);
        let begun = lines.filter(|line| line.stream == Stream::Stdout && line.text == b"begin").count();
        assert_eq!(begun, 1, "started once: {}", String::from_utf8_lossy(&log));
        let windows = host.controller.all_windows(job, &ended).await;
        assert_eq!(windows.last().unwrap().end_ns, ended.ended_ns, "metered to the end");
    }
    for (job, _) in &jobs {
        host.controller.forget(job).await;
    }
    eventually("all forgotten", || jobs.iter().all(|(job, _)| !host.attempt(job).exists()).then_some(())).await;
    agent.kill().unwrap();
    agent.wait().unwrap();
}
