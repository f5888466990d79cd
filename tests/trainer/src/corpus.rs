//! The text and the order in which its samples are seen.
//!
//! The text is cut into windows of `context + 1` bytes that do not overlap. Sample number `i` of the whole run (step
//! `s` takes the `batch` numbers from `(s - 1) * batch`) is window `permutation(epoch)[i % windows]` in epoch
//! `i / windows`, so each window comes exactly once per epoch, also where a batch spans two epochs, and the order is a
//! function of the seed and the step alone.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::seeded::Seeded;

/// Longest text in bytes; it is kept in memory.
const MAX_TEXT: u64 = 1 << 28;

/// A text, cut into windows.
#[derive(Debug)]
pub(crate) struct Corpus {
    text: Vec<u8>,
    window: usize,
    seed: u64,
    digest: String,
    // The order of the epoch that was used last; a cache, never state.
    order: Option<(u64, Vec<usize>)>,
}

/// The samples of one step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Batch {
    /// Epoch of the first sample.
    pub(crate) epoch: u64,
    /// Start offsets in the text, in order.
    pub(crate) offsets: Vec<usize>,
    /// All bytes but the last of each window, one window after another.
    pub(crate) inputs: Vec<u32>,
    /// All bytes but the first of each window.
    pub(crate) targets: Vec<u32>,
}

impl Corpus {
    /// Reads the text in `file`.
    pub(crate) fn open(file: &Path, context: usize, seed: u64) -> Result<Self> {
        let size = fs::metadata(file).with_context(|| format!("cannot read {}", file.display()))?.len();
        ensure!(size <= MAX_TEXT, "{} has {size} bytes; a text may have {MAX_TEXT}", file.display());
        let text = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
        Self::new(text, context, seed).with_context(|| format!("cannot train on {}", file.display()))
    }

    fn new(text: Vec<u8>, context: usize, seed: u64) -> Result<Self> {
        let window = context + 1;
        ensure!(text.len() >= window, "the text has {} bytes, one sample takes {window}", text.len());
        let digest = blake3::hash(&text).to_hex().to_string();
        Ok(Self { text, window, seed, digest, order: None })
    }

    /// BLAKE3 of the text in hex.
    pub(crate) fn digest(&self) -> &str {
        &self.digest
    }

    /// Number of windows, which is the number of samples of an epoch.
    pub(crate) fn windows(&self) -> usize {
        self.text.len() / self.window
    }

    /// The samples of `step` (counted from 1) when each step takes `size`.
    pub(crate) fn batch(&mut self, step: u64, size: usize) -> Batch {
        let windows = self.windows() as u64;
        let first = (step - 1) * size as u64;
        let samples = size * (self.window - 1);
        let mut batch = Batch {
            epoch: first / windows,
            offsets: Vec::with_capacity(size),
            inputs: Vec::with_capacity(samples),
            targets: Vec::with_capacity(samples),
        };
        for number in first..first + size as u64 {
            let start = self.place(number / windows, (number % windows) as usize) * self.window;
            let bytes = &self.text[start..start + self.window];
            batch.offsets.push(start);
            batch.inputs.extend(bytes[..self.window - 1].iter().map(|byte| u32::from(*byte)));
            batch.targets.extend(bytes[1..].iter().map(|byte| u32::from(*byte)));
        }
        batch
    }

    /// The window that comes at `position` of `epoch`.
    fn place(&mut self, epoch: u64, position: usize) -> usize {
        let (windows, seed) = (self.windows(), self.seed);
        if self.order.as_ref().is_none_or(|(of, _)| *of != epoch) {
            self.order = Some((epoch, permutation(seed, epoch, windows)));
        }
        self.order.as_ref().map_or(0, |(_, order)| order[position])
    }
}

/// Fisher and Yates' shuffle of `0..len`.
fn permutation(seed: u64, epoch: u64, len: usize) -> Vec<usize> {
    let mut stream = Seeded::new(seed, &format!("epoch {epoch}"));
    let mut order: Vec<usize> = (0..len).collect();
    for last in (1..len).rev() {
        order.swap(last, stream.below(last as u64 + 1) as usize);
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    fn corpus(len: usize) -> Corpus {
        Corpus::new((0..len).map(|n| (n % 251) as u8).collect(), 9, 5).expect("long enough")
    }

    #[test]
    fn each_window_comes_once_per_epoch_even_across_batches() {
        let mut corpus = corpus(237); // 23 windows, a batch of 4 spans epochs
        let seen: Vec<usize> = (1..=23).flat_map(|step| corpus.batch(step, 4).offsets).collect();
        let mut orders = Vec::new();
        for epoch in seen.chunks(23) {
            let mut sorted = epoch.to_vec();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..23).map(|n| n * 10).collect::<Vec<_>>());
            orders.push(epoch.to_vec());
        }
        assert_eq!(orders.len(), 4);
        assert_ne!(orders[0], orders[1], "each epoch has its own order");
    }

    #[test]
    fn a_batch_depends_on_the_step_alone() {
        let expected = corpus(237).batch(9, 4);
        let mut wandering = corpus(237);
        for step in [9, 1, 22, 9] {
            if step == 9 {
                assert_eq!(wandering.batch(9, 4), expected);
            } else {
                wandering.batch(step, 4);
            }
        }
    }

    #[test]
    fn targets_are_the_inputs_one_byte_on() {
        let batch = corpus(100).batch(1, 2);
        assert_eq!(batch.inputs.len(), 18);
        assert_eq!(batch.inputs[1..9], batch.targets[..8]);
        assert_eq!(batch.offsets.len(), 2);
    }

    #[test]
    fn a_text_shorter_than_a_sample_is_refused() {
        assert!(Corpus::new(vec![0; 9], 9, 1).is_err());
        assert_eq!(Corpus::new(vec![0; 10], 9, 1).expect("one window").windows(), 1);
    }
}
