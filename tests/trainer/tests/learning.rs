//! What one run computes: the loss falls, every sample is seen once, frozen tensors stay.

mod support;

use std::collections::BTreeSet;
use std::fs;

use safetensors::SafeTensors;
use support::{Job, Order};

#[test]
fn the_loss_falls() {
    let mut job = Job::new();
    let ran = job.attempt(&["--steps", "80"], None, &[]).well();
    let losses = ran.losses();
    let mean = |part: &[f32]| part.iter().sum::<f32>() / part.len() as f32;
    let (start, end) = (mean(&losses[..5]), mean(&losses[75..]));
    assert_eq!(losses.len(), 80);
    assert!(end < 0.6 * start, "from {start} to {end}");
    assert!(ran.stdout().contains("done: 80 steps"), "{}", ran.stdout());
}

#[test]
fn each_sample_comes_once_per_epoch_on_the_lineage_of_a_job_that_moved() {
    let mut job = Job::new();
    let windows = fs::metadata(job.text_file()).expect("text").len() / 17;
    let steps = (windows / 4).to_string();
    let flags = ["--steps", steps.as_str()];
    let first = job.attempt(&flags, None, &[(30, Order::Leave)]).well();
    let second = job.attempt(&flags, Some(first.saved_at(30)), &[]).well();
    let lineage: Vec<u64> = first.steps.iter().chain(&second.steps).flat_map(|step| step.samples.clone()).collect();
    let distinct: BTreeSet<u64> = lineage.iter().copied().collect();
    assert_eq!(lineage.len() as u64, windows / 4 * 4);
    assert_eq!(distinct.len(), lineage.len(), "a sample came twice");
    assert!(distinct.iter().all(|offset| offset % 17 == 0 && offset / 17 < windows));
}

#[test]
fn frozen_tensors_keep_their_bytes_and_all_others_change() {
    let flags = ["--steps", "10", "--freeze-half"];
    let mut job = Job::new();
    let ran = job.attempt(&flags, None, &[(2, Order::Checkpoint), (9, Order::Checkpoint)]).well();
    let (early, late) = (ran.saved_at(2).bytes(), ran.saved_at(9).bytes());
    let changed: BTreeSet<_> = early.keys().filter(|name| early[*name] != late[*name]).collect();
    assert_eq!(early.len(), 3 * 20);
    assert_eq!(changed.len(), 3 * 10);
    for frozen in ["w.embed", "m.position", "v.blk0.attn.q"] {
        assert!(early.contains_key(frozen) && !changed.contains(&frozen.to_owned()), "{frozen}");
    }
    for trained in ["w.blk1.attn.q", "m.norm", "v.head"] {
        assert!(changed.contains(&trained.to_owned()), "{trained}");
    }
}

#[test]
fn the_export_holds_the_last_weights() {
    let mut job = Job::new();
    let ran = job.attempt(&["--steps", "6", "--checkpoint-every", "3"], None, &[]).well();
    assert_eq!(ran.saved.iter().map(|saved| saved.step).collect::<Vec<_>>(), [3, 6]);
    let last = ran.saved_at(6).bytes();
    let file = ran.weights_file();
    let export = SafeTensors::deserialize(&file).expect("safetensors");
    assert_eq!(export.len(), 20);
    for (name, tensor) in export.iter() {
        assert_eq!(tensor.data(), last[&format!("w.{name}")], "{name}");
    }
}

#[test]
fn outside_sluice_it_trains_the_same_curve() {
    let mut job = Job::new();
    let inside = job.attempt(&["--steps", "5"], None, &[]).well();
    let outside = job.command(&["--steps", "5", "--checkpoint-every", "2"]).output().expect("the trainer");
    assert!(outside.status.success(), "{}", String::from_utf8_lossy(&outside.stderr));
    let log = fs::read_to_string(job.text_file().with_file_name("steps.jsonl")).expect("log");
    assert_eq!(log.lines().count(), 5);
    for (line, (_, bits)) in log.lines().zip(inside.curve(1)) {
        assert!(line.contains(&format!("\"loss_bits\":\"{bits}\"")), "{line} against {bits}");
    }
}
