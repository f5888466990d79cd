//! A supervisor runs a task and tells truly how it ended.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::time::Duration;

use sluice_device::TaskGroup;
use sluice_node::supervisor::{self, Liveness, Ordered, Outcome, Phase, Resume, SupervisorError};
use sluice_types::{Bytes, Nanos, Reason};
use support::{Node, block_on};

#[test]
fn status_signals_and_start_failures_are_told_apart() {
    let Some(node) = Node::enforced() else { return };
    for (script, outcome) in [
        ("exit 0", Outcome::Exited { code: 0 }),
        ("echo out; echo err >&2; exit 7", Outcome::Exited { code: 7 }),
        ("kill -TERM $$", Outcome::Signalled { signal: 15 }),
        ("kill -KILL $$", Outcome::Signalled { signal: 9 }),
    ] {
        let mut attempt = node.attempt(script);
        let record = attempt.run();
        assert_eq!(record.outcome, outcome, "{script}\n{}\n{}", attempt.logs(), attempt.own_log());
        assert!(record.started_at.is_some() && record.ended_at > record.started_at.unwrap());
        if script.contains("out") {
            assert_eq!(attempt.logs(), "out\nerr\n");
        }
    }
    let mut missing = node.attempt_of(&["/no/such/program"]);
    let Outcome::StartFailed { detail } = missing.run().outcome else { panic!("{}", missing.logs()) };
    assert!(detail.contains("/no/such/program") && detail.contains("No such file"), "{detail}");
    let mut root = node.attempt("exit 0");
    root.spec.uid = 0;
    assert!(matches!(root.run().outcome, Outcome::StartFailed { detail } if detail.contains("root")));
    let mut gone = node.attempt("exit 0");
    gone.spec.work_dir = gone.folder.root().join("nowhere");
    let outcome = gone.run().outcome;
    assert!(matches!(&outcome, Outcome::HostFailed { .. }), "{outcome:?}");
}

#[test]
fn a_task_sees_its_surroundings_and_nothing_of_ours() {
    let Some(node) = Node::enforced() else { return };
    let mut attempt = node.attempt(
        "id -u; id -G; hostname; pwd; cat /run/secrets/token; echo $GREETING $SLUICE_RANK $SLUICE_GENERATION; \
         ls -A / | tr '\\n' ' '; echo x > $SLUICE_OUTPUTS/o && echo y > $SLUICE_STAGE/s && echo z > w && echo t > /tmp/t; \
         grep -c . /proc/mounts > /dev/null; ls /proc | grep -c '^[0-9]'; ulimit -c; env | grep -c LD_PRELOAD",
    );
    let secret = attempt.folder.root().join("token");
    std::fs::write(&secret, "s3cret\n").unwrap();
    attempt.spec.secrets.insert("token".to_owned(), secret);
    attempt.spec.env.insert("GREETING".to_owned(), "hello world".to_owned());
    attempt.spec.env.insert("SLUICE_RANK".to_owned(), "99".to_owned());
    attempt.run();
    let (logs, uid) = (attempt.logs(), attempt.spec.uid);
    let lines: Vec<&str> = logs.lines().collect();
    let (user, group) = (uid.to_string(), uid.to_string());
    assert_eq!(lines[..6], [&user, &group, "test-job", "/work", "s3cret", "hello world 0 3"], "{logs}");
    assert!(!lines[6].contains("root") && !lines[6].contains("sys ") && lines[6].contains("sluice"), "{logs}");
    assert!(attempt.work().join("w").exists() && attempt.folder.outputs().join("o").exists(), "{logs}");
    assert_eq!(lines[lines.len() - 2..], ["0", "0"], "{logs}");
}

#[test]
fn over_the_memory_cap_is_told_as_such() {
    let Some(node) = Node::enforced() else { return };
    // The child dies of it; the parent would go on for ever.
    let mut attempt = node.attempt("dd if=/dev/zero of=/dev/null bs=256M count=1; sleep 1000");
    let record = attempt.run();
    assert_eq!(record.outcome, Outcome::OutOfMemory, "{}", attempt.logs());
    assert!(record.oom_kills >= 1 && record.memory_peak <= Bytes::mib(64));
    assert_eq!(record.outcome.reason(), Some(Reason::OutOfMemory));
}

#[test]
fn memory_that_the_host_has_not_is_not_the_tasks_fault() {
    let Some(node) = Node::enforced() else { return };
    let mut attempt = node.attempt("dd if=/dev/zero of=/dev/null bs=48M count=1; sleep 1000");
    // The group above stands for the host: it is full while the task is under its own cap.
    let (folder, file) = match attempt.group() {
        TaskGroup::V1 { memory, .. } => (memory, "memory.limit_in_bytes"),
        TaskGroup::V2 { path } => (path, "memory.max"),
        TaskGroup::Advisory { .. } => unreachable!("the node enforces"),
    };
    std::fs::write(folder.parent().unwrap().join(file), Bytes::mib(32).get().to_string()).unwrap();
    let record = attempt.run();
    assert!(record.oom_kills >= 1, "{record:?}");
    let Outcome::HostFailed { detail } = record.outcome else { panic!("{:?}", record.outcome) };
    assert!(detail.contains("memory"), "{detail}");
}

#[test]
fn the_run_limit_ends_a_task_that_ignores_being_asked() {
    let Some(node) = Node::enforced() else { return };
    let mut polite = node.attempt("trap 'echo bye; exit 3' TERM; while :; do sleep 0.05; done");
    let limit = Nanos::from_secs(3);
    polite.spec.limits.run = Some(limit);
    let record = polite.run();
    assert_eq!((record.outcome, record.ordered), (Outcome::RunLimit, None));
    assert!(polite.logs().contains("bye"));
    let span = record.ended_at.since(record.started_at.unwrap());
    // Five seconds later it would have been killed.
    assert!(span >= limit && span < Nanos::from_secs(3 + 5), "{span:?}");
}

#[test]
fn stop_asks_first_and_kill_does_not() {
    let Some(node) = Node::enforced() else { return };
    let mut stubborn = node.attempt("trap '' TERM; echo ready; while :; do sleep 0.05; done");
    stubborn.start();
    stubborn.wait_status("running", |status| status.phase == Phase::Running && status.log_bytes > 0);
    block_on(stubborn.client().stop(Duration::from_millis(300))).unwrap();
    let record = stubborn.end();
    assert_eq!((record.outcome, record.ordered), (Outcome::Signalled { signal: 9 }, Some(Ordered::Stop)));

    let mut killed = node.attempt("sleep 1000 & wait");
    killed.start();
    let status = killed.wait_status("running", |status| status.main.is_some());
    assert!(status.child.is_some() && killed.group().processes().unwrap().contains(&status.main.unwrap()));
    block_on(killed.client().kill()).unwrap();
    let record = killed.end();
    assert_eq!((record.outcome, record.ordered), (Outcome::Signalled { signal: 9 }, Some(Ordered::Kill)));
    assert!(killed.group().processes().unwrap().is_empty());
}

#[test]
fn freezing_stops_the_clockwork_and_thawing_starts_it() {
    let Some(node) = Node::enforced() else { return };
    let mut attempt = node.attempt("while :; do :; done");
    attempt.start();
    attempt.wait_status("running", |status| status.phase == Phase::Running);
    block_on(attempt.client().freeze()).unwrap();
    assert_eq!(block_on(attempt.client().status()).unwrap().phase, Phase::Frozen);
    let used = attempt.group().usage().unwrap().cpu_nanos;
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(attempt.group().usage().unwrap().cpu_nanos, used);
    block_on(attempt.client().thaw()).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    assert!(attempt.group().usage().unwrap().cpu_nanos > used);
    block_on(attempt.client().freeze()).unwrap();
    // Also a frozen task can be ended.
    block_on(attempt.client().stop(Duration::from_secs(5))).unwrap();
    assert_eq!(attempt.end().outcome, Outcome::Signalled { signal: 15 });
}

#[test]
fn a_task_is_found_again_and_starts_at_most_once() {
    let Some(node) = Node::enforced() else { return };
    let mut attempt = node.attempt("while :; do sleep 0.05; done");
    let pid = attempt.start();
    attempt.wait_status("running", |status| status.phase == Phase::Running);
    // What a restarted agent finds on disk, without any link to the supervisor.
    let identity = supervisor::read_identity(&attempt.folder).unwrap().unwrap();
    assert_eq!((identity.pid, identity.liveness().unwrap()), (pid, Liveness::Alive));
    let reused = supervisor::SupervisorIdentity { start_ticks: identity.start_ticks + 1, ..identity.clone() };
    assert_eq!(reused.liveness().unwrap(), Liveness::Gone);
    assert!(supervisor::settle(&attempt.folder, attempt.group(), Duration::ZERO).unwrap().is_none(), "it lives");
    assert!(matches!(supervisor::run(attempt.folder.root()), Err(SupervisorError::AlreadyStarted(_))));
    assert_eq!(attempt.wait_status("undisturbed", |_| true).phase, Phase::Running);

    // With the supervisor the task is gone as well, and the loss is settled once.
    attempt.kill_supervisor();
    assert_eq!(identity.liveness().unwrap(), Liveness::Gone);
    let record = supervisor::settle(&attempt.folder, attempt.group(), Duration::from_secs(10)).unwrap().unwrap();
    assert_eq!((&record.outcome, record.outcome.reason()), (&Outcome::SupervisorLost, Some(Reason::NodeLost)));
    assert!(attempt.group().processes().unwrap().is_empty());
    assert!(matches!(supervisor::run(attempt.folder.root()), Err(SupervisorError::AlreadyStarted(_))));
}

#[test]
fn a_launch_description_that_nobody_can_read_back_is_an_end_with_that_reason() {
    let Some(node) = Node::enforced() else { return };
    let mut attempt = node.attempt("exit 0");
    // As deep as a checkpoint's manifest could once carry it: in `launch.json` it is one level deeper.
    let cursor = (0..126).fold(serde_json::Value::Null, |inner, _| serde_json::json!([inner]));
    let dir = attempt.folder.root().join("resume");
    attempt.spec.resume = Some(Resume { step: 1, cursor, dir, entries: Vec::new() });
    let record = attempt.run();
    let Outcome::StartFailed { detail } = record.outcome else { panic!("{:?}", record.outcome) };
    assert!(detail.contains("launch.json") && detail.contains("recursion limit"), "{detail}");
    assert!(supervisor::settle(&attempt.folder, attempt.group(), Duration::ZERO).unwrap().is_some());
}

#[test]
fn a_folder_settled_before_its_start_never_starts() {
    let Some(node) = Node::enforced() else { return };
    let attempt = node.attempt("exit 0");
    supervisor::write_json(&attempt.folder.launch(), &attempt.spec).unwrap();
    let record = supervisor::settle(&attempt.folder, attempt.group(), Duration::ZERO).unwrap().unwrap();
    assert!(matches!(record.outcome, Outcome::HostFailed { .. }));
    assert!(matches!(supervisor::run(attempt.folder.root()), Err(SupervisorError::AlreadyStarted(_))));
}

#[test]
fn filling_the_disk_ends_the_task_with_the_reason() {
    let Some(node) = Node::enforced() else { return };
    for (script, word) in [
        ("for i in 1 2 3 4 5 6; do dd if=/dev/zero of=f$i bs=1M count=8 2>/dev/null; done; sleep 30", "work"),
        ("cd $SLUICE_OUTPUTS; i=0; while [ $i -lt 1100 ]; do : > f$i; i=$((i+1)); done; sleep 30", "files"),
        (
            "for i in 3 4 5 6 7 8 9; do eval \"exec $i>g\"; rm g; dd if=/dev/zero bs=1M count=14 >&$i 2>/dev/null; done; sleep 30",
            "removed",
        ),
    ] {
        let mut attempt = node.attempt_on_disk(&["/bin/sh", "-c", script]);
        let outcome = attempt.run().outcome;
        assert!(
            matches!(&outcome, Outcome::DiskLimit { detail } if detail.contains(word)),
            "{outcome:?} {}",
            attempt.logs()
        );
        assert_eq!(outcome.reason(), Some(Reason::DiskLimit));
    }
}

#[test]
fn the_log_is_bounded_and_the_task_goes_on() {
    let Some(node) = Node::enforced() else { return };
    let mut attempt = node.attempt(
        "i=0; while [ $i -lt 3000 ]; do echo 0123456789012345678901234567890123456789; i=$((i+1)); done; exit 4",
    );
    attempt.spec.limits.log = Bytes::new(20_000);
    let record = attempt.run();
    assert_eq!(record.outcome, Outcome::Exited { code: 4 });
    assert!(record.log_bytes < 21_000 && attempt.logs().contains("the log is full at 20000 bytes"));
    assert_eq!(record.log_bytes, std::fs::metadata(attempt.folder.log()).unwrap().len());
}

#[test]
fn advisory_runs_without_groups_or_sandbox_by_explicit_choice() {
    let node = Node::advisory();
    let mut attempt = node.attempt("echo here; exit 5");
    let record = attempt.run();
    assert_eq!(record.outcome, Outcome::Exited { code: 5 }, "{}", attempt.own_log());
    assert_eq!(attempt.logs(), "here\n");
    let mut long = node.attempt("sleep 1000 & sleep 1000");
    long.start();
    long.wait_status("running", |status| status.phase == Phase::Running);
    block_on(long.client().kill()).unwrap();
    assert_eq!(long.end().outcome, Outcome::Signalled { signal: 9 });
}
