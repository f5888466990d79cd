//! What a checkpoint carries: a run that was cut and resumed in a new process computes the bits of one that was not.

mod support;

use std::fs;

use support::{Job, Order, Saved};

const FLAGS: &[&str] = &["--steps", "30"];

#[test]
fn a_planned_move_continues_bit_for_bit() {
    let mut job = Job::new();
    let whole = job.attempt(FLAGS, None, &[]).well();
    let first = job.attempt(FLAGS, None, &[(11, Order::Leave)]).well();
    let second = job.attempt(FLAGS, Some(first.saved_at(11)), &[(20, Order::Leave)]).well();
    let third = job.attempt(FLAGS, Some(second.saved_at(20)), &[]).well();
    assert!(first.stdout().contains("left at step 11"), "{}", first.stdout());
    assert_eq!(second.steps[0].step, 12);
    assert_eq!(second.steps[0].attempt, "3");
    let joined = [first.curve(1), second.curve(1), third.curve(1)].concat();
    assert_eq!(joined, whole.curve(1));
    assert_eq!(third.weights_file(), whole.weights_file());
}

#[test]
fn a_lost_run_replays_the_same_steps_from_its_newest_checkpoint() {
    let mut job = Job::new();
    let whole = job.attempt(FLAGS, None, &[]).well();
    let lost = job.attempt(&["--steps", "30", "--checkpoint-every", "5"], None, &[(18, Order::HangUp)]);
    assert!(!lost.output.status.success());
    assert!(lost.stderr().contains("lost the supervisor"), "{}", lost.stderr());
    assert_eq!(lost.steps.last().map(|step| step.step), Some(18));
    let newest = lost.saved.last().expect("a checkpoint");
    assert_eq!(newest.step, 15);
    let again = job.attempt(FLAGS, Some(newest), &[]).well();
    assert_eq!(again.curve(1), whole.curve(16));
    assert_eq!(lost.curve(1)[15..], whole.curve(16)[..3], "what was replayed");
}

#[test]
fn one_flipped_bit_in_the_optimiser_changes_the_curve() {
    let mut job = Job::new();
    let whole = job.attempt(FLAGS, None, &[(11, Order::Checkpoint)]).well();
    let flags = ["--steps", "30", "--flip-bit-after-resume"];
    let spoiled = job.attempt(&flags, Some(whole.saved_at(11)), &[]).well();
    // The first loss after a resume is of the resumed weights; the moment shows from the next on.
    assert_eq!(spoiled.curve(12)[0], whole.curve(12)[0]);
    assert_ne!(spoiled.curve(13), whole.curve(13));
    assert!(spoiled.stdout().contains("spoiled on purpose: flipped bit"), "{}", spoiled.stdout());
    // Without a resume the flag does nothing.
    assert_eq!(job.attempt(&flags, None, &[]).well().curve(1), whole.curve(1));
}

#[test]
fn a_flipped_bit_in_any_kind_of_entry_changes_the_curve() {
    let mut job = Job::new();
    let whole = job.attempt(FLAGS, None, &[(11, Order::Checkpoint)]).well();
    for name in ["w.head", "m.blk1.ff.up", "v.blk0.attn.q"] {
        let saved = whole.saved_at(11);
        let entry = saved.entries.iter().find(|entry| entry["name"] == name).expect("listed");
        let at = entry["offset"].as_u64().expect("offset") as usize + 2;
        let file = saved.folder.join("state.bin");
        let sound = fs::read(&file).expect("state");
        let mut spoiled = sound.clone();
        spoiled[at] ^= 0x40;
        fs::write(&file, spoiled).expect("spoiled");
        let ran = job.attempt(FLAGS, Some(saved), &[]).well();
        fs::write(&file, sound).expect("mended");
        assert_ne!(ran.curve(12), whole.curve(12), "{name}");
    }
}

#[test]
fn frozen_halves_resume_bit_for_bit_too() {
    let mut job = Job::new();
    let flags = ["--steps", "20", "--freeze-half"];
    let whole = job.attempt(&flags, None, &[(7, Order::Checkpoint)]).well();
    let resumed = job.attempt(&flags, Some(whole.saved_at(7)), &[]).well();
    assert_eq!(resumed.curve(1), whole.curve(8));
}

#[test]
fn a_checkpoint_of_another_run_is_refused_with_its_reason() {
    let mut job = Job::new();
    let saved = job.attempt(&["--steps", "3", "--checkpoint-every", "3"], None, &[]).well().saved[0].clone();
    let mut refused = |flags: &[&str], saved: &Saved, reason: &str| {
        let ran = job.attempt(flags, Some(saved), &[]);
        assert!(!ran.output.status.success());
        assert!(ran.stderr().contains(reason), "{} lacks {reason}", ran.stderr());
        assert!(ran.steps.is_empty(), "nothing was executed");
    };
    refused(&["--layers", "1"], &saved, "written by");
    refused(&["--lr", "0.02"], &saved, "written by");
    refused(&["--seed", "9"], &saved, "trained with seed 1");
    let mut other = saved.clone();
    other.entries.pop();
    refused(FLAGS, &other, "it has 59 entries");
    let mut other = saved.clone();
    other.step = 2;
    refused(FLAGS, &other, "the cursor is at step 4");
    fs::write(job.text_file(), "another text, long enough for one sample").expect("text");
    let ran = job.attempt(FLAGS, Some(&saved), &[]);
    assert!(ran.stderr().contains("another text"), "{}", ran.stderr());
}

#[test]
fn a_refused_checkpoint_stops_nothing() {
    let mut job = Job::new();
    let ran = job.attempt(FLAGS, None, &[(4, Order::LeaveButRefuse)]).well();
    assert_eq!(ran.steps.len(), 30);
    assert!(ran.saved.is_empty());
    assert!(ran.stderr().contains("no checkpoint of step 4"), "{}", ran.stderr());
}

#[test]
fn a_run_that_left_after_its_last_step_only_exports() {
    let mut job = Job::new();
    let whole = job.attempt(FLAGS, None, &[]).well();
    let left = job.attempt(FLAGS, None, &[(30, Order::Leave)]).well();
    let rest = job.attempt(FLAGS, Some(left.saved_at(30)), &[]).well();
    assert!(rest.steps.is_empty());
    assert_eq!(rest.weights_file(), whole.weights_file());
}
