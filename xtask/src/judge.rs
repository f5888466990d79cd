//! The judge of training runs: it reads the step logs that the attempts wrote, and nothing that the system says.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::Context as _;
use serde::Deserialize;

/// One executed step.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Step {
    pub(crate) step: u64,
    /// The bits of the f32 loss, in hex.
    pub(crate) loss_bits: String,
    /// Start offsets of the samples in the text.
    pub(crate) samples: Vec<u64>,
    pub(crate) epoch: u64,
    /// The attempt's generation, absent outside Sluice.
    pub(crate) generation: Option<String>,
}

/// The steps that one attempt executed, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Log {
    pub(crate) steps: Vec<Step>,
}

impl Log {
    /// Reads a step log. Half a last line, which a kill may leave, is not a step.
    pub(crate) fn read(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        Self::parse(&text).with_context(|| format!("{} is not a step log", path.display()))
    }

    fn parse(text: &str) -> anyhow::Result<Self> {
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        let steps = whole.lines().map(serde_json::from_str).collect::<Result<Vec<Step>, _>>()?;
        Ok(Self { steps })
    }

    /// The generation of the attempt that wrote it, 0 outside Sluice or where it wrote nothing.
    pub(crate) fn generation(&self) -> u64 {
        let text = self.steps.first().and_then(|step| step.generation.as_deref());
        text.and_then(|text| text.parse().ok()).unwrap_or(0)
    }

    /// First and last step.
    pub(crate) fn ends(&self) -> Option<(u64, u64)> {
        Some((self.steps.first()?.step, self.steps.last()?.step))
    }
}

/// What the step logs of one job say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Judgement {
    /// First and last step of each attempt, in the order of generations.
    pub(crate) attempts: Vec<(u64, u64)>,
    /// Steps executed again by a later attempt.
    pub(crate) replayed: u64,
    /// All that is wrong; nothing for a good run.
    pub(crate) faults: Vec<String>,
}

/// The most faults that are told of one job.
const MOST_FAULTS: usize = 5;

/// Judges the attempts of one job against an uninterrupted run of the same flags.
///
/// Every executed step, replayed ones too, must have the loss and the samples of the uninterrupted run to the bit. Each
/// attempt's steps follow one another; the next attempt begins at most one step after the last one ended. On the final
/// lineage (of each step, the newest attempt that executed it) every step occurs, and no sample twice in an epoch.
pub(crate) fn judge(attempts: &[Log], uninterrupted: &Log) -> Judgement {
    let mut attempts: Vec<&Log> = attempts.iter().filter(|log| !log.steps.is_empty()).collect();
    attempts.sort_by_key(|log| log.generation());
    let wanted: BTreeMap<u64, &Step> = uninterrupted.steps.iter().map(|step| (step.step, step)).collect();
    let mut found =
        Judgement { attempts: attempts.iter().filter_map(|log| log.ends()).collect(), ..Default::default() };
    let mut fault = |text: String| {
        if found.faults.len() < MOST_FAULTS {
            found.faults.push(text);
        }
    };
    let mut lineage: BTreeMap<u64, &Step> = BTreeMap::new();
    let mut next = 1;
    for (place, log) in attempts.iter().enumerate() {
        let number = place + 1;
        if place > 0 && attempts[place - 1].generation() >= log.generation() {
            fault(format!("two logs of generation {}", log.generation()));
        }
        let first = log.steps[0].step;
        if first > next {
            fault(format!("attempt {number} begins at step {first}, but nobody executed step {next}"));
        }
        for (at, step) in log.steps.iter().enumerate() {
            if step.step != first + at as u64 {
                fault(format!("attempt {number}: step {} comes where {} should", step.step, first + at as u64));
            }
            match wanted.get(&step.step) {
                None => fault(format!("step {} is past the end", step.step)),
                Some(known) if known.loss_bits != step.loss_bits => fault(format!(
                    "attempt {number}, step {}: loss {} instead of {}",
                    step.step, step.loss_bits, known.loss_bits
                )),
                Some(known) if known.samples != step.samples => fault(format!("step {}: other samples", step.step)),
                Some(_) => {}
            }
            if lineage.insert(step.step, step).is_some() {
                found.replayed += 1;
            }
        }
        next = lineage.last_key_value().map_or(1, |(last, _)| last + 1);
    }
    for step in wanted.keys().filter(|step| !lineage.contains_key(step)).take(1) {
        fault(format!("step {step} was never executed"));
    }
    let mut seen = BTreeSet::new();
    for step in lineage.values() {
        if let Some(twice) = step.samples.iter().find(|sample| !seen.insert((step.epoch, **sample))) {
            fault(format!("step {}: sample {twice} a second time in epoch {}", step.step, step.epoch));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(generation: u64, steps: std::ops::RangeInclusive<u64>) -> Log {
        let step = |step: u64| Step {
            step,
            loss_bits: format!("{step:08x}"),
            samples: vec![step * 2, step * 2 + 1],
            epoch: 0,
            generation: Some(generation.to_string()),
        };
        Log { steps: steps.map(step).collect() }
    }

    #[test]
    fn good_runs_have_no_faults() {
        let whole = log(0, 1..=9);
        let planned = judge(&[log(2, 6..=9), log(1, 1..=5)], &whole);
        assert_eq!(planned, Judgement { attempts: vec![(1, 5), (6, 9)], replayed: 0, faults: vec![] });
        let lost = judge(&[log(1, 1..=7), log(2, 5..=9), Log { steps: Vec::new() }], &whole);
        assert_eq!(lost, Judgement { attempts: vec![(1, 7), (5, 9)], replayed: 3, faults: vec![] });
    }

    #[test]
    fn each_fault_is_found() {
        let whole = log(0, 1..=9);
        let one = |attempts: &[Log]| judge(attempts, &whole).faults.join("; ");
        assert_eq!(
            one(&[log(1, 1..=4), log(2, 6..=9)]),
            "attempt 2 begins at step 6, but nobody executed step 5; step 5 was never executed"
        );
        assert_eq!(one(&[log(1, 1..=8)]), "step 9 was never executed");
        assert_eq!(one(&[log(1, 1..=5), log(1, 6..=9)]), "two logs of generation 1");
        let mut spoiled = log(1, 1..=9);
        spoiled.steps[3].loss_bits = "ffffffff".to_owned();
        assert_eq!(one(&[spoiled]), "attempt 1, step 4: loss ffffffff instead of 00000004");
        let mut other = log(1, 1..=9);
        other.steps[3].samples = vec![2];
        assert_eq!(one(&[other]), "step 4: other samples; step 4: sample 2 a second time in epoch 0");
        let mut jump = log(1, 1..=9);
        jump.steps.remove(4);
        assert!(one(&[jump]).starts_with("attempt 1: step 6 comes where 5 should"));
    }

    #[test]
    fn half_a_last_line_is_no_step() {
        let line = r#"{"step":1,"loss_bits":"3f","loss":1.0,"samples":[1],"epoch":0,"attempt":null,"generation":null}"#;
        assert_eq!(Log::parse(&format!("{line}\n{{\"st")).expect("a log").steps.len(), 1);
        assert!(Log::parse("{\"st\n").is_err());
    }
}
