//! The agent does what its controller wants, with real supervisors, groups and a real vault, and tells it truly.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod fleet;

use std::time::{Duration, Instant};

use fleet::{Host, eventually, shell};
use sluice_node::supervisor::LogRecord;
use sluice_proto::v1;
use sluice_proto::v1::task_report::State;

fn text(log: &[u8]) -> String {
    let lines = log.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    lines.map(|line| String::from_utf8_lossy(LogRecord::parse(line).unwrap().text).into_owned() + "\n").collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_runs_to_its_end_and_is_told_metered_stored_and_forgotten() {
    let Some(host) = Host::enforced().await else { return };
    let agent = host.agent();
    let mut job = shell(
        "echo hello; cat $SECRET_PATH; cat given; echo out > $SLUICE_OUTPUTS/o; i=0; \
        while [ $i -lt 200000 ]; do i=$((i+1)); done; sleep 1.5; exit 0",
    )
    .secrets(&[("token", "s3cret\n")]);
    job.spec().work_dir = Some(host.upload(&[("given", "from the archive\n")]).await);
    host.controller.want(&job).await;
    let running = host.controller.running(&job).await;
    host.controller.open_log(&job, 7, 0).await;
    let secret = host.attempt(&job).join("secrets/token");
    assert!(secret.exists());
    let ended = host.controller.ended(&job).await;
    assert_eq!((ended.exit_code, ended.reason.as_str(), ended.at_checkpoint), (Some(0), "", false), "{ended:?}");
    assert!(!secret.exists() && !host.attempt(&job).join("work").exists());
    let disk = std::fs::read(host.attempt(&job).join("assignment.pb")).unwrap();
    assert!(!disk.windows(6).any(|window| window == b"s3cret"));

    let windows = host.controller.all_windows(&job, &ended).await;
    assert!(windows.iter().any(|window| window.start_ns == running.started_ns), "cut at the start: {windows:#?}");
    assert_eq!(windows.last().unwrap().end_ns, ended.ended_ns);
    assert!(windows.iter().map(|window| window.used_ns).sum::<u64>() > 10_000_000, "{windows:#?}");
    assert!(windows.iter().any(|window| window.memory_byte_seconds > 0));
    assert!(windows.len() >= 3 && windows.iter().all(|window| !window.advisory));

    let outputs = ended.outputs.unwrap();
    let scratch = host.root.path().join("scratch");
    let into = host.root.path().join("into");
    std::fs::create_dir(&into).unwrap();
    host.vault.unpack_tar(outputs.digest.parse().unwrap(), &into, &scratch, Default::default()).await.unwrap();
    assert_eq!(std::fs::read(into.join("o")).unwrap(), b"out\n");

    eventually("the log's end", || host.controller.channel(7).1).await;
    assert_eq!(text(&host.controller.channel(7).0), "hello\ns3cret\nfrom the archive\n");
    host.controller.forget(&job).await;
    eventually("forgotten", || (!host.attempt(&job).exists()).then_some(())).await;
    host.controller.open_log(&job, 8, 0).await;
    eventually("the log's end", || host.controller.channel(8).1).await;
    assert_eq!(host.controller.channel(8).0, host.controller.channel(7).0, "the log outlives the task's folder");
    assert!(host.controller.read(|book| book.heartbeats >= 2 && book.hellos.len() == 1));
    agent.stop().await;
}

/// Leaves its output open in its supervisor's own sockets, which keep each other's other ends and do not read on because
/// nobody reads the answers. The supervisor then waits for the end of the output, as it would for a large last checkpoint.
const LINGERER: &str = r#"
import os, socket, time
time.sleep(1)
both = [socket.socket(socket.AF_UNIX) for _ in range(2)]
for one in both:
    one.connect(os.environ["SLUICE_SOCKET"])
    one.setblocking(False)
for one in both:
    try:
        while True:
            socket.send_fds(one, [b"{}\n" * 999], [1, 2] + [it.fileno() for it in both])
    except BlockingIOError:
        pass
"#;

#[tokio::test(flavor = "multi_thread")]
async fn no_window_goes_beyond_the_end_while_the_supervisor_is_busy_with_what_is_left() {
    let Some(host) = Host::enforced().await else { return };
    let agent = host.agent();
    let mut job = shell("");
    job.spec().command = ["/usr/bin/python3", "-c", LINGERER].map(str::to_owned).to_vec();
    let begun = Instant::now();
    host.controller.want(&job).await;
    let ended = host.controller.ended(&job).await;
    let windows = host.controller.all_windows(&job, &ended).await;
    assert!(begun.elapsed() > Duration::from_secs(4), "it did not linger");
    let beyond: Vec<_> = windows.iter().filter(|window| window.end_ns > ended.ended_ns).collect();
    assert!(ended.ended_ns > 0 && beyond.is_empty(), "{beyond:#?} behind {}", ended.ended_ns);
    assert_eq!(windows.last().unwrap().end_ns, ended.ended_ns);
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ends_are_told_apart() {
    let Some(host) = Host::enforced().await else { return };
    let mut config = host.config();
    // One of them is never ready.
    config.limits.prepare = Duration::from_secs(5);
    let agent = host.agent_with(config);
    let failing = shell("exit 3");
    let mut missing = shell("true");
    missing.spec().command = vec!["/no/such/program".to_owned()];
    let mut homeless = shell("true");
    let nowhere = sluice_vault::hash_bytes(b"nowhere").to_string();
    homeless.spec().work_dir = Some(v1::BlobRef { digest: nowhere, ..v1::BlobRef::default() });
    let mut large = shell("true");
    large.spec().resources.as_mut().unwrap().milli = 1001;
    let unknown = shell("true").with(v1::Goal::Release);
    for job in [&failing, &missing, &homeless, &large, &unknown] {
        host.controller.want(job).await;
    }
    let told = async |job| {
        let ended = host.controller.ended(job).await;
        host.controller.all_windows(job, &ended).await;
        (ended.exit_code, ended.reason.clone(), ended.message.clone())
    };
    assert_eq!(told(&failing).await, (Some(3), "EXIT_STATUS".to_owned(), String::new()));
    let (_, reason, message) = told(&missing).await;
    assert!(reason == "START_FAILED" && message.contains("/no/such/program"), "{reason}: {message}");
    let (_, reason, message) = told(&homeless).await;
    assert!(reason == "DATA_UNREACHABLE" && message.contains("not ready in time"), "{reason}: {message}");
    let (_, reason, message) = told(&large).await;
    assert!(!reason.is_empty() && !message.is_empty(), "{reason}: {message}");
    let ended = host.controller.ended(&unknown).await;
    assert_eq!((ended.windows, ended.reason.as_str()), (0, "SIGNALLED"));
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_agent_disturbs_no_job_and_loses_no_time() {
    let Some(host) = Host::enforced().await else { return };
    let agent = host.agent();
    let steady = shell("while :; do sleep 0.05; done");
    let brief = shell("while [ ! -e go ]; do sleep 0.05; done; exit 5");
    host.controller.want(&steady).await;
    host.controller.want(&brief).await;
    let started = host.controller.running(&steady).await.started_ns;
    host.controller.running(&brief).await;
    eventually("a window", || (host.controller.windows(&steady).len() > 2).then_some(())).await;
    agent.kill();
    // It ends while nobody looks.
    std::fs::write(host.attempt(&brief).join("work/go"), "").unwrap();
    eventually("the end", || host.attempt(&brief).join("exit.json").exists().then_some(())).await;
    // Not settled: what was sent comes again.
    host.controller.settle_windows(false);
    tokio::time::sleep(Duration::from_millis(2500)).await;
    let again = host.agent();
    eventually("a second hello", || host.controller.read(|book| (book.hellos.len() > 1).then_some(()))).await;
    let ended = host.controller.ended(&brief).await;
    assert_eq!(ended.exit_code, Some(5));
    assert_eq!(host.controller.all_windows(&brief, &ended).await.last().unwrap().end_ns, ended.ended_ns);
    assert_eq!(host.controller.running(&steady).await.started_ns, started, "the same process");
    host.controller.settle_windows(true);
    // The controller knows nothing of it any more, so it has to go.
    let before = host.controller.windows(&steady).len();
    host.controller.forget(&steady).await;
    eventually("gone", || (!host.attempt(&steady).exists()).then_some(())).await;
    let last = eventually("its last window", || {
        let windows = host.controller.windows(&steady);
        (windows.len() > before).then(|| windows.last().cloned()).flatten()
    })
    .await;
    assert!(last.end_ns - started > 3_500_000_000);
    assert!(host.metrics.tasks_adopted.load(std::sync::atomic::Ordering::Relaxed) >= 1);
    again.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_lost_its_supervisor_is_lost_and_its_processes_with_it() {
    let Some(host) = Host::enforced().await else { return };
    let agent = host.agent();
    let job = shell("sleep 60 & wait");
    host.controller.want(&job).await;
    host.controller.running(&job).await;
    let identity = std::fs::read_to_string(host.attempt(&job).join("supervisor.json")).unwrap();
    let identity: serde_json::Value = serde_json::from_str(&identity).unwrap();
    let pid = i32::try_from(identity["pid"].as_i64().unwrap()).unwrap();
    // What was written down for the start is not needed for the end.
    std::fs::write(host.attempt(&job).join("launch.json"), "[").unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
    let ended = host.controller.ended(&job).await;
    assert_eq!(ended.reason, "NODE_LOST");
    host.controller.all_windows(&job, &ended).await;
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn prepare_waits_stop_is_polite_and_release_is_not() {
    let Some(host) = Host::enforced().await else { return };
    let agent = host.agent();
    let polite = shell("trap 'echo bye > $SLUICE_OUTPUTS/bye; exit 9' TERM; : > ready; while :; do sleep 0.05; done");
    let prepared = polite.with(v1::Goal::Prepare);
    host.controller.want(&prepared).await;
    eventually("prepared", || matches!(host.controller.last_state(&prepared), Some(State::Prepared(_))).then_some(()))
        .await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(matches!(host.controller.last_state(&prepared), Some(State::Prepared(_))));
    let run = prepared.with(v1::Goal::Run);
    host.controller.want(&run).await;
    // An older revision changes nothing.
    host.controller.want(&polite.with(v1::Goal::Stop)).await;
    host.controller.running(&run).await;
    let ready = host.attempt(&run).join("work/ready");
    eventually("the trap", || ready.exists().then_some(())).await;
    host.controller.want(&run.with(v1::Goal::Stop)).await;
    let ended = host.controller.ended(&run).await;
    assert!(ended.exit_code == Some(9) && ended.outputs.is_some(), "{ended:?}");

    let stubborn = shell("trap '' TERM; echo x > $SLUICE_OUTPUTS/x; while :; do sleep 0.05; done");
    host.controller.want(&stubborn).await;
    host.controller.running(&stubborn).await;
    host.controller.want(&stubborn.with(v1::Goal::Release)).await;
    let ended = host.controller.ended(&stubborn).await;
    assert!(ended.signal == 9 && ended.outputs.is_none(), "{ended:?}");
    let waiting = shell("true").with(v1::Goal::Prepare);
    host.controller.want(&waiting).await;
    eventually("prepared", || matches!(host.controller.last_state(&waiting), Some(State::Prepared(_))).then_some(()))
        .await;
    host.controller.want(&waiting.with(v1::Goal::Release)).await;
    let ended = host.controller.ended(&waiting).await;
    assert_eq!((ended.reason.as_str(), ended.ended_ns), ("SIGNALLED", 0));
    // After every reconnect the ends are told again, until they are not listed any more.
    let before = host.controller.read(|book| book.reports.len());
    host.controller.hang_up();
    eventually("told again", || host.controller.read(|book| (book.reports.len() >= before + 3).then_some(()))).await;
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_flows_only_as_fast_as_it_is_taken() {
    let Some(host) = Host::enforced().await else { return };
    let agent = host.agent();
    let job = shell("head -c 3000000 /dev/zero | tr '\\0' x | fold -w 1000; echo end");
    host.controller.want(&job).await;
    host.controller.ended(&job).await;
    let log = std::fs::read(host.attempt(&job).join("log")).unwrap();
    assert!(log.len() > 3_000_000);
    host.controller.open_log(&job, 1, 1000).await;
    host.controller.open_log(&shell("true"), 2, 0).await;
    eventually("a refusal", || host.controller.channel(2).1.filter(|reason| reason == "NOT_FOUND")).await;
    eventually("what is sent unasked", || (host.controller.channel(1).0.len() > 900_000).then_some(())).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let (bytes, end) = host.controller.channel(1);
    assert!(bytes.len() <= 1 << 20 && end.is_none(), "{}", bytes.len());
    let whole = eventually("the end", || {
        let (bytes, end) = host.controller.channel(1);
        let (controller, taken) = (host.controller.clone(), bytes.len() as u64);
        tokio::spawn(async move { controller.acknowledge(1, taken).await });
        end.map(|_| bytes)
    })
    .await;
    assert!(whole == log[1000..]);
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_enforcement_everything_says_so() {
    let host = Host::advisory().await;
    let agent = host.agent();
    let job = shell("cat $SECRET_PATH; sleep 1.2; exit 4").secrets(&[("token", "open\n")]);
    host.controller.want(&job).await;
    let ended = host.controller.ended(&job).await;
    assert_eq!(ended.exit_code, Some(4), "{ended:?}");
    let windows = host.controller.all_windows(&job, &ended).await;
    assert!(windows.iter().all(|window| window.advisory));
    assert!(host.controller.read(|book| book.hellos[0].advisory));
    host.controller.open_log(&job, 1, 0).await;
    eventually("the log", || host.controller.channel(1).1).await;
    assert_eq!(text(&host.controller.channel(1).0), "open\n");
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn outputs_for_a_vault_that_fell_silent_hold_up_an_end_no_longer_than_the_limit() {
    let host = Host::advisory().await;
    let mut config = host.config();
    config.limits.finish = Duration::from_secs(2);
    let agent = host.agent_with(config);
    let job = shell("echo out > $SLUICE_OUTPUTS/o");
    host.way.fall_silent_at(0);
    host.controller.want(&job).await;
    let ended = host.controller.ended(&job).await;
    assert!(ended.exit_code == Some(0) && ended.outputs.is_none(), "{ended:?}");
    assert!(ended.message.contains("the outputs were not stored"), "{ended:?}");
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_refused_and_told_as_ended_never_begins() {
    let host = Host::advisory().await;
    let mut config = host.config();
    config.limits.tasks = 1;
    let agent = host.agent_with(config);
    let (first, refused) = (shell("sleep 60"), shell("true"));
    host.controller.want(&first).await;
    host.controller.running(&first).await;
    host.controller.want(&refused).await;
    let ended = host.controller.ended(&refused).await;
    assert!(ended.message.contains("as many tasks as it may"), "{ended:?}");
    host.controller.want(&first.with(v1::Goal::Release)).await;
    host.controller.ended(&first).await;
    host.controller.forget(&first).await;
    eventually("forgotten", || (!host.attempt(&first).exists()).then_some(())).await;
    // There is room a moment after the folder is gone.
    let begun = Instant::now();
    let last = loop {
        // Sent before the end was heard of.
        host.controller.want(&refused).await;
        let last = shell("true");
        host.controller.want(&last).await;
        let last = host.controller.ended(&last).await;
        if !last.message.contains("as many tasks as it may") {
            break last;
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "no room: {last:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert_eq!(last.exit_code, Some(0), "{last:?}");
    assert_eq!(host.controller.ended(&refused).await, ended);
    assert!(!host.attempt(&refused).exists());
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_one_agent_uses_a_folder() {
    let host = Host::advisory().await;
    let agent = host.agent();
    eventually("a hello", || host.controller.read(|book| (!book.hellos.is_empty()).then_some(()))).await;
    let second = Box::pin(sluice_node::run(host.config(), Default::default())).await;
    assert!(matches!(second, Err(sluice_node::NodeError::Locked(_))));
    agent.stop().await;
}
