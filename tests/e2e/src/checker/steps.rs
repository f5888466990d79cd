//! Runs of the trainer, rebuilt from its step logs.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use anyhow::Context as _;
use serde::Deserialize;
use serde_json::Value;

use crate::keeper::Kept;

/// One executed step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Its number.
    pub step: u64,
    /// The bits of its loss, in hex.
    pub loss_bits: String,
    /// The samples it took.
    pub samples: Vec<u64>,
    /// Of which epoch.
    pub epoch: u64,
    /// The attempt's generation; 0 outside of Sluice.
    pub generation: u64,
    /// Which task of a gang.
    pub rank: u64,
}

#[derive(Deserialize)]
struct Line {
    step: u64,
    loss_bits: String,
    samples: Vec<u64>,
    epoch: u64,
    generation: Value,
    #[serde(default)]
    rank: u64,
}

/// Reads a step log. A last line without an end was cut off and does not count.
///
/// # Errors
/// A whole line is damaged.
pub fn parse(text: &str) -> anyhow::Result<Vec<Step>> {
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    let lines = whole.lines().map(|line| {
        let line: Line = serde_json::from_str(line).with_context(|| format!("the step log's line {line}"))?;
        let generation = line.generation.as_str().and_then(|text| text.parse().ok()).unwrap_or(0);
        let Line { step, loss_bits, samples, epoch, rank, .. } = line;
        Ok(Step { step, loss_bits, samples, epoch, generation, rank })
    });
    lines.collect()
}

/// The steps of each lease that left a step log, by lease.
///
/// # Errors
/// As [`parse`].
pub fn read(kept: &Kept, leases: &[String]) -> anyhow::Result<BTreeMap<String, Vec<Step>>> {
    let mut all = BTreeMap::new();
    for folder in kept.outputs() {
        let lease = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let log = folder.join("steps.jsonl");
        if leases.contains(&lease) && log.exists() {
            all.insert(lease, parse(&fs::read_to_string(log)?)?);
        }
    }
    Ok(all)
}

/// When each step was told, by the lease's log (the trainer prints a line per step), in nanoseconds of the host's
/// boot-time clock, which is the one that journals are in. Empty where there is no such log.
#[must_use]
pub fn times(kept: &Kept, lease: &str) -> BTreeMap<u64, u64> {
    let path = kept.folder().join("logs").join(format!("{lease}.log"));
    let text = fs::read_to_string(path).unwrap_or_default();
    let Some(booted) = booted() else { return BTreeMap::new() };
    let line = |line: &str| {
        let (time, rest) = line.split_once(' ')?;
        let step = rest.split_once(" step ").map(|(_, rest)| rest)?;
        let step = step.chars().take_while(char::is_ascii_digit).collect::<String>().parse().ok()?;
        Some((step, u64::try_from(unix_nanos(time)?.checked_sub(booted)?).ok()?))
    };
    text.lines().filter_map(line).collect()
}

/// The instant of boot in nanoseconds since the Unix epoch.
fn booted() -> Option<i128> {
    use nix::time::{ClockId, clock_gettime};
    let nanos = |clock| clock_gettime(clock).ok().map(|at| i128::from(at.tv_sec()) * NANOS + i128::from(at.tv_nsec()));
    Some(nanos(ClockId::CLOCK_REALTIME)? - nanos(ClockId::CLOCK_BOOTTIME)?)
}

const NANOS: i128 = 1_000_000_000;

/// Nanoseconds since the Unix epoch of `2026-11-23T04:50:04.340671012Z`.
fn unix_nanos(text: &str) -> Option<i128> {
    let (date, time) = text.strip_suffix('Z')?.split_once('T')?;
    let number = |text: Option<&str>| text?.parse::<i128>().ok();
    let mut words = date.split('-');
    let (year, month, day) = (number(words.next())?, number(words.next())?, number(words.next())?);
    let (clock, fraction) = time.split_once('.').unwrap_or((time, "0"));
    let mut words = clock.split(':');
    let (hour, minute, second) = (number(words.next())?, number(words.next())?, number(words.next())?);
    let fraction: i128 = format!("{fraction:0<9}").get(..9)?.parse().ok()?;
    // Days since 1970-01-01 of the civil calendar, with years that begin in March.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 719_469;
    Some((((days * 24 + hour) * 60 + minute) * 60 + second) * NANOS + fraction)
}

/// The one run that several attempts make together.
#[derive(Debug, Clone, Default)]
pub struct Lineage {
    /// Steps that count, in order.
    pub steps: Vec<Step>,
    /// Steps that were executed and had to be executed again.
    pub replayed: u64,
    /// First step of each generation.
    pub firsts: BTreeMap<u64, u64>,
}

impl Lineage {
    /// Number and loss of every step that counts.
    #[must_use]
    pub fn curve(&self) -> Vec<(u64, String)> {
        self.steps.iter().map(|step| (step.step, step.loss_bits.clone())).collect()
    }

    /// What differs from an uninterrupted run, or occurs twice; nothing where every step has the same loss to the bit and
    /// the same samples, and no sample occurs twice in an epoch.
    #[must_use]
    pub fn differs(&self, from: &[Step]) -> Option<String> {
        if self.steps.len() != from.len() {
            return Some(format!("{} steps instead of {}", self.steps.len(), from.len()));
        }
        let mut seen = BTreeSet::new();
        self.steps.iter().zip(from).find_map(|(own, other)| {
            let same = (own.step, &own.loss_bits, &own.samples) == (other.step, &other.loss_bits, &other.samples);
            let once = own.samples.iter().all(|sample| seen.insert((own.epoch, *sample)));
            match (same, once) {
                (true, true) => None,
                (false, _) => Some(format!("step {}: loss {} instead of {}", own.step, own.loss_bits, other.loss_bits)),
                (true, false) => Some(format!("step {}: a sample for the second time", own.step)),
            }
        })
    }
}

/// Puts the attempts of a job together: each begins where its checkpoint stood, so what an earlier one did behind that
/// is replayed.
///
/// # Errors
/// An attempt executed a step twice or left one out, or a later one began behind what was there.
pub fn lineage<'a>(logs: impl IntoIterator<Item = &'a Vec<Step>>) -> anyhow::Result<Lineage> {
    let mut attempts: BTreeMap<u64, Vec<Step>> = BTreeMap::new();
    for step in logs.into_iter().flatten() {
        attempts.entry(step.generation).or_default().push(step.clone());
    }
    let mut all = Lineage::default();
    for (generation, steps) in attempts {
        let first = steps[0].step;
        for (place, step) in steps.iter().enumerate() {
            let due = first + u64::try_from(place)?;
            anyhow::ensure!(
                step.step == due,
                "generation {generation} executed step {} where {due} was due",
                step.step
            );
        }
        let had = all.steps.last().map_or(0, |step| step.step);
        anyhow::ensure!(first >= 1 && first <= had + 1, "generation {generation} began at step {first} behind {had}");
        all.replayed += had + 1 - first;
        all.steps.retain(|step| step.step < first);
        all.steps.extend(steps);
        all.firsts.insert(generation, first);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(generation: u64, steps: std::ops::RangeInclusive<u64>) -> Vec<Step> {
        let make = |step| {
            let loss_bits = format!("{generation}-{step}");
            Step { step, loss_bits, samples: vec![step], epoch: 0, generation, rank: 0 }
        };
        steps.map(make).collect()
    }

    #[test]
    fn later_attempts_replace_what_they_repeat() {
        let all = lineage(&[run(1, 1..=10), run(3, 8..=12)]).unwrap();
        assert_eq!((all.replayed, all.steps.len()), (3, 12));
        assert_eq!(all.steps[7].generation, 3);
    }

    #[test]
    fn another_bit_and_a_repeated_sample_are_found() {
        let whole = run(1, 1..=9);
        let all = lineage(&[run(1, 1..=9)]).unwrap();
        assert_eq!(all.differs(&whole), None);
        assert!(all.differs(&whole[..8]).is_some());
        let mut other = all.clone();
        other.steps[4].loss_bits.push('0');
        assert!(other.differs(&whole).unwrap().starts_with("step 5: loss"));
        let mut twice = all;
        twice.steps[4].samples = vec![3];
        let mut same = whole;
        same[4].samples = vec![3];
        assert_eq!(twice.differs(&same).unwrap(), "step 5: a sample for the second time");
    }

    #[test]
    fn holes_and_repeats_are_found() {
        assert!(lineage(&[run(1, 1..=10), run(2, 12..=13)]).is_err());
        let mut twice = run(1, 1..=3);
        twice.extend(run(1, 3..=3));
        assert!(lineage(&[twice]).is_err());
    }

    #[test]
    fn log_times_are_read_as_the_calendar_says() {
        assert_eq!(unix_nanos("1970-01-01T00:00:00Z"), Some(0));
        assert_eq!(unix_nanos("2000-03-01T00:00:00.5Z"), Some(951_868_800_500_000_000));
        assert_eq!(unix_nanos("2026-11-23T04:50:04.340671012Z"), Some(1_795_409_404_340_671_012));
        assert_eq!(unix_nanos("noise"), None);
    }

    #[test]
    fn a_torn_last_line_does_not_count() {
        let line = r#"{"step":1,"loss_bits":"40","loss":1.5,"samples":[65],"epoch":0,"attempt":"a","generation":"2"}"#;
        assert_eq!(parse(&format!("{line}\n{}", &line[..20])).unwrap().len(), 1);
        assert!(parse(&format!("{}\n{line}\n", &line[..20])).is_err());
    }
}
