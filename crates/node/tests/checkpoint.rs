//! Checkpoints: announced over the protocol, or written by programs that know nothing of Sluice.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::path::Path;
use std::time::Duration;

use sluice_node::supervisor::{
    self, CheckpointMode, CheckpointSignal, Completion, OrderState, Ordered, Outcome, Phase, Resume, ResumeEntry,
    StagedManifest,
};
use sluice_types::{Nanos, Reason};
use support::{Attempt, Node, block_on};

const JOB: &str = include_str!("support/job.py");
const PYTHON: &str = "/usr/bin/python3";

fn python<'a>(node: &'a Node, words: &[&str]) -> Option<Attempt<'a>> {
    if !Path::new(PYTHON).exists() {
        println!("SKIPPED: {PYTHON} is missing");
        return None;
    }
    let mut argv = vec![PYTHON, "job.py"];
    argv.extend(words);
    let attempt = node.attempt_of(&argv);
    std::fs::write(attempt.work().join("job.py"), JOB).unwrap();
    Some(attempt)
}

fn staged(attempt: &Attempt<'_>) -> Vec<StagedManifest> {
    supervisor::read_staged(&attempt.folder).unwrap()
}

/// What the agent does to start the next attempt from a staged checkpoint.
fn resume_of(attempt: &Attempt<'_>, manifest: &StagedManifest, into: &mut Attempt<'_>) {
    let from = attempt.folder.staged_set(manifest.sequence);
    let dir = into.folder.root().join("resume");
    std::fs::create_dir(&dir).unwrap();
    std::os::unix::fs::chown(&dir, Some(into.spec.uid), None).unwrap();
    let entries = manifest.entries.iter().map(|entry| {
        let file = dir.join(&entry.file);
        std::fs::copy(from.join(&entry.file), &file).unwrap();
        std::os::unix::fs::chown(&file, Some(into.spec.uid), None).unwrap();
        let (name, dtype, shape) = (entry.name.clone(), entry.dtype.clone(), entry.shape.clone());
        ResumeEntry { name, dtype, shape, file, offset: entry.offset, length: entry.length }
    });
    let entries = entries.collect();
    into.spec.resume = Some(Resume { step: manifest.step, cursor: manifest.cursor.clone(), dir, entries });
}

#[test]
fn an_ordered_checkpoint_ends_the_task_and_the_next_attempt_goes_on_from_it() {
    let Some(node) = Node::enforced() else { return };
    let Some(mut first) = python(&node, &["train", "100000"]) else { return };
    first.start();
    let status = first.wait_status("steps", |status| status.last_step > Some(3));
    assert!(status.metrics["loss"] > 0.0);
    let number = block_on(first.client().checkpoint()).unwrap();
    let done = |status: &supervisor::Status| {
        status.order.as_ref().is_some_and(|order| matches!(order.state, OrderState::Done { sequence: 1 }))
    };
    let status = first.wait_status("the first order", done);
    assert_eq!(status.order.unwrap().number, number);
    block_on(first.client().checkpoint_and_exit(Duration::from_secs(10))).unwrap();
    let record = first.end();
    assert_eq!((record.outcome, record.ordered), (Outcome::Exited { code: 0 }, Some(Ordered::CheckpointAndExit)));
    let manifests = staged(&first);
    let last = manifests.last().unwrap();
    assert_eq!((manifests.len(), record.order_sequence, record.last_step), (2, Some(2), Some(last.step)));
    assert_eq!((last.generation, &last.cursor["at"]), (first.spec.generation, &serde_json::json!(last.step)));
    let bytes = std::fs::read(first.folder.staged_set(2).join("state.bin")).unwrap();
    assert_eq!(last.entries[0].blake3.as_bytes(), blake3::hash(&bytes).as_bytes());

    let mut second = python(&node, &["train", &(last.step + 5).to_string()]).unwrap();
    resume_of(&first, last, &mut second);
    second.spec.checkpoint.every_steps = Some(2);
    let record = second.run();
    assert_eq!(record.outcome, Outcome::Exited { code: 0 }, "{}", second.logs());
    assert!(second.logs().contains(&format!("resumed at {0} {0}\n", last.step)), "{}", second.logs());
    let steps: Vec<u64> = staged(&second).iter().map(|manifest| manifest.step).collect();
    assert_eq!(steps, [last.step + 2, last.step + 4]);
}

#[test]
fn a_task_that_was_told_to_end_is_not_done_because_the_order_was_taken_back() {
    let Some(node) = Node::enforced() else { return };
    let Some(mut attempt) = python(&node, &["train", "100000", "1"]) else { return };
    attempt.start();
    attempt.wait_status("steps", |status| status.last_step > Some(3));
    block_on(attempt.client().checkpoint_and_exit(Duration::from_secs(60))).unwrap();
    let told = |status: &supervisor::Status| {
        status.order.as_ref().is_some_and(|order| matches!(order.state, OrderState::Told { .. }))
    };
    attempt.wait_status("told", told);
    // It is to write, and will end with status 0 whatever is decided now.
    block_on(attempt.client().resume_normal()).unwrap();
    std::fs::write(attempt.work().join("go"), "").unwrap();
    let record = attempt.end();
    assert_eq!(record.outcome, Outcome::Exited { code: 0 });
    assert_eq!((record.ordered, record.order_sequence), (Some(Ordered::CheckpointAndExit), Some(1)));
}

#[test]
fn a_held_task_waits_at_a_step_until_it_is_told_where_to_stop_or_its_time_is_over() {
    let Some(node) = Node::enforced() else { return };
    let Some(mut attempt) = python(&node, &["train", "100000"]) else { return };
    attempt.start();
    attempt.wait_status("steps", |status| status.last_step > Some(3));
    let after = block_on(attempt.client().hold(Duration::from_millis(700))).unwrap();
    attempt.wait_status("going on", |status| status.last_step > Some(after + 3));

    let after = block_on(attempt.client().hold(Duration::from_secs(60))).unwrap();
    attempt.wait_status("held", |status| status.last_step == Some(after + 1));
    std::thread::sleep(Duration::from_millis(300));
    let held = block_on(attempt.client().status()).unwrap().last_step;
    assert_eq!(held, Some(after + 1), "it went on");
    block_on(attempt.client().checkpoint_and_exit_from(after + 4, Duration::from_secs(10))).unwrap();
    let record = attempt.end();
    let steps: Vec<u64> = staged(&attempt).iter().map(|manifest| manifest.step).collect();
    assert_eq!((record.order_sequence, record.last_step, steps), (Some(1), Some(after + 4), vec![after + 4]));
}

#[test]
fn orders_that_cannot_be_fulfilled_fail_and_the_task_goes_on() {
    let Some(node) = Node::enforced() else { return };
    let Some(mut deaf) = python(&node, &["deaf"]) else { return };
    deaf.start();
    deaf.wait_status("steps", |status| status.last_step.is_some());
    block_on(deaf.client().checkpoint_and_exit(Duration::from_secs(10))).unwrap();
    let failed = |status: &supervisor::Status| {
        status.order.as_ref().is_some_and(|order| matches!(order.state, OrderState::Failed { .. }))
    };
    let status = deaf.wait_status("failing", failed);
    assert_eq!(status.phase, Phase::Running);
    block_on(deaf.client().resume_normal()).unwrap();
    block_on(deaf.client().stop(Duration::from_secs(1))).unwrap();
    deaf.end();

    let mut disabled = node.attempt("sleep 1000");
    disabled.spec.checkpoint.mode = CheckpointMode::Disabled;
    disabled.start();
    disabled.wait_status("running", |status| status.phase == Phase::Running);
    let refused = block_on(disabled.client().checkpoint()).unwrap_err();
    assert_eq!(refused.reason(), Reason::WrongState);
    block_on(disabled.client().kill()).unwrap();
    disabled.end();
}

#[test]
fn whatever_a_task_says_is_answered_with_a_reason_and_never_believed() {
    let Some(node) = Node::enforced() else { return };
    let Some(mut attempt) = python(&node, &["torn"]) else { return };
    let record = attempt.run();
    let logs = attempt.logs();
    assert_eq!(record.outcome, Outcome::Exited { code: 0 }, "{logs}");
    let mut wanted = vec!["INVALID_FIELD"; 7];
    wanted.extend(["TOO_LARGE", "1", "40"]);
    assert_eq!(logs.lines().collect::<Vec<_>>(), wanted);
    let manifests = staged(&attempt);
    assert_eq!(manifests.iter().map(|manifest| manifest.step).collect::<Vec<_>>(), [2]);
}

fn directory(attempt: &mut Attempt<'_>, completion: Completion, signal: Option<CheckpointSignal>) {
    let (path, grace) = ("ckpt".to_owned(), Nanos::from_secs(10));
    attempt.spec.checkpoint.mode = CheckpointMode::Directory { path, completion, signal, grace };
}

#[test]
fn atomic_renames_in_a_watched_directory_are_taken_and_put_back() {
    let Some(node) = Node::enforced() else { return };
    // Counts; writes its count on SIGUSR1; knows nothing of Sluice.
    let script = "mkdir -p ckpt; last=$(ls -d ckpt/step-* 2>/dev/null | tail -1); n=0; \
        [ -n \"$last\" ] && n=$(cat $last/sub/n) && echo resumed $n; \
        trap 'mkdir -p tmp/sub && echo $n > tmp/sub/n && mv tmp ckpt/step-$n && echo saved $n' USR1; : > ready; \
        while :; do n=$((n+1)); sleep 0.05; done";
    let mut first = node.attempt(script);
    directory(&mut first, Completion::AtomicRename("step-*".to_owned()), Some(CheckpointSignal::Sigusr1));
    first.start();
    first.wait_status("running", |status| status.phase == Phase::Running);
    first.wait_file("ready");
    block_on(first.client().checkpoint_and_exit(Duration::from_secs(10))).unwrap();
    let record = first.end();
    let logs = first.logs();
    assert_eq!((record.ordered, record.order_sequence), (Some(Ordered::CheckpointAndExit), Some(1)), "{logs}");
    let manifest = &staged(&first)[0];
    assert!(logs.contains(&format!("saved {}\n", manifest.step)), "{logs}");
    assert_eq!(manifest.entries[0].name, format!("step-{}/sub/n", manifest.step));

    let mut second = node.attempt(script);
    directory(&mut second, Completion::AtomicRename("step-*".to_owned()), Some(CheckpointSignal::Sigusr1));
    resume_of(&first, manifest, &mut second);
    second.start();
    second.wait_status("running", |status| status.log_bytes > 0);
    std::thread::sleep(Duration::from_secs(1));
    block_on(second.client().kill()).unwrap();
    second.end();
    assert_eq!(second.logs(), format!("resumed {}\n", manifest.step));
    assert!(staged(&second).is_empty(), "what was put back is no news");
}

#[test]
fn a_completion_file_marks_a_set_and_sets_without_one_are_left() {
    let Some(node) = Node::enforced() else { return };
    let mut attempt = node.attempt(
        "trap 'echo late > ckpt/checkpoint-9/DONE; exit 0' TERM; \
         mkdir -p ckpt/checkpoint-7 ckpt/checkpoint-9 ckpt/evil; echo a > ckpt/checkpoint-7/model; echo b > ckpt/checkpoint-9/model; \
         ln -s /etc/passwd ckpt/checkpoint-7/link; ln -s /etc/passwd ckpt/evil/DONE; ln -s ../.. ckpt/up; \
         echo x > ckpt/checkpoint-7/DONE; while :; do sleep 0.05; done",
    );
    directory(&mut attempt, Completion::CompletionFile("DONE".to_owned()), Some(CheckpointSignal::Sigterm));
    attempt.start();
    let status = attempt.wait_status("the first set", |status| !status.staged.is_empty());
    assert_eq!((status.staged.len(), status.staged[0].step), (1, 7));
    // The second becomes complete while the program ends.
    block_on(attempt.client().checkpoint_and_exit(Duration::from_secs(10))).unwrap();
    let record = attempt.end();
    assert_eq!((record.outcome, record.order_sequence), (Outcome::Exited { code: 0 }, Some(2)), "{}", attempt.logs());
    let manifests = staged(&attempt);
    let names: Vec<Vec<&str>> =
        manifests.iter().map(|manifest| manifest.entries.iter().map(|entry| entry.name.as_str()).collect()).collect();
    assert_eq!(names, [["checkpoint-7/DONE", "checkpoint-7/model"], ["checkpoint-9/DONE", "checkpoint-9/model"]]);
    assert_eq!(std::fs::read(attempt.folder.staged_set(1).join("f00001")).unwrap(), b"a\n");
    assert!(manifests[1].captured_at <= record.ended_at, "captured behind the end");
}

#[test]
fn a_program_without_a_signal_ends_after_the_next_set_that_it_writes() {
    let Some(node) = Node::enforced() else { return };
    // Signals would end it: it traps none.
    let script =
        "mkdir -p ckpt; n=0; while :; do n=$((n+1)); mkdir tmp; echo $n > tmp/n; mv tmp ckpt/step-$n; sleep 0.4; done";
    let mut attempt = node.attempt(script);
    directory(&mut attempt, Completion::AtomicRename("step-*".to_owned()), None);
    attempt.start();
    let before = attempt.wait_status("a set", |status| !status.staged.is_empty()).staged.len();
    block_on(attempt.client().checkpoint_and_exit(Duration::from_secs(10))).unwrap();
    let record = attempt.end();
    let sets = staged(&attempt);
    assert_eq!(record.ordered, Some(Ordered::CheckpointAndExit));
    let fulfilled = sets.iter().position(|set| Some(set.sequence) == record.order_sequence);
    assert!(fulfilled.is_some_and(|place| place >= before), "{fulfilled:?} of {}, {before} before", sets.len());
}

#[test]
fn a_new_set_is_found_among_more_of_them_than_there_are_descriptors() {
    let Some(node) = Node::enforced() else { return };
    let mut attempt = node.attempt(
        "while [ ! -e go ]; do sleep 0.05; done; mkdir tmp; echo x > tmp/n; mv tmp ckpt/step-new-7; sleep 1000",
    );
    directory(&mut attempt, Completion::AtomicRename("step-*".to_owned()), None);
    let ckpt = attempt.work().join("ckpt");
    (0..90).for_each(|step| std::fs::create_dir_all(ckpt.join(format!("step-{step}"))).unwrap());
    std::os::unix::fs::chown(&ckpt, Some(attempt.spec.uid), None).unwrap();
    let pid = attempt.start();
    attempt.wait_status("running", |status| status.phase == Phase::Running);
    let limit = ["--pid", &pid.to_string(), "--nofile=64:64"].map(str::to_owned);
    assert!(std::process::Command::new("prlimit").args(limit).status().unwrap().success());
    std::fs::write(attempt.work().join("go"), "").unwrap();
    attempt.wait_status("the new set", |status| status.staged.first().is_some_and(|set| set.step == 7));
    block_on(attempt.client().kill()).unwrap();
    attempt.end();
}

#[test]
fn a_second_user_signal_asks_too() {
    let Some(node) = Node::enforced() else { return };
    let script = "mkdir -p ckpt; trap 'mkdir tmp; echo x > tmp/x; mv tmp ckpt/step-5' USR2; echo ready; while :; do sleep 0.05; done";
    let mut attempt = node.attempt(script);
    directory(&mut attempt, Completion::AtomicRename("step-*".to_owned()), Some(CheckpointSignal::Sigusr2));
    attempt.start();
    attempt.wait_status("the trap", |status| status.log_bytes > 0);
    block_on(attempt.client().checkpoint_and_exit(Duration::from_secs(10))).unwrap();
    attempt.end();
    assert_eq!(staged(&attempt).iter().map(|set| set.step).collect::<Vec<_>>(), [5]);
}
