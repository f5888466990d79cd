//! The flags, and which of them a checkpoint is tied to.

use std::env;
use std::path::PathBuf;

use anyhow::{Result, ensure};
use clap::Parser;

/// Changes whenever the arithmetic changes, so that a checkpoint is never continued by other mathematics.
const ARITHMETIC: u32 = 1;

/// Trains a small byte-level transformer on a text, the same to the last bit on every run.
#[derive(Debug, Clone, Parser)]
#[command(name = "sluice-trainer", version, args_override_self = true)]
pub struct Options {
    /// Text to train on
    #[arg(long, value_name = "FILE")]
    pub data: PathBuf,
    /// Last step to execute
    #[arg(long, default_value_t = 200)]
    pub steps: u64,
    /// Write a checkpoint each N steps, besides those that are asked for; 0 writes only those asked for
    #[arg(long, value_name = "N", default_value_t = 50)]
    pub checkpoint_every: u64,
    /// Seed of the weights and of the order of the samples
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Width of the model
    #[arg(long, default_value_t = 64)]
    pub d_model: usize,
    /// Number of blocks
    #[arg(long, default_value_t = 2)]
    pub layers: usize,
    /// Attention heads; must divide the width
    #[arg(long, default_value_t = 4)]
    pub heads: usize,
    /// Bytes of context
    #[arg(long, default_value_t = 64)]
    pub context: usize,
    /// Samples per step
    #[arg(long, default_value_t = 8)]
    pub batch: usize,
    /// Learning rate
    #[arg(long, default_value_t = 0.003)]
    pub lr: f32,
    /// Train only the second half of the tensors; the bytes of the others never change
    #[arg(long)]
    pub freeze_half: bool,
    /// Step log to append to [default: steps.jsonl in $SLUICE_OUTPUTS or here]
    #[arg(long, value_name = "FILE")]
    pub log: Option<PathBuf>,
    /// Where the trained weights go as safetensors [default: model.safetensors in $SLUICE_OUTPUTS or here]
    #[arg(long, value_name = "FILE")]
    pub export: Option<PathBuf>,
    /// Spoil the optimiser by one bit after a resume: the control that shows that the loss curve would notice
    #[arg(long)]
    pub flip_bit_after_resume: bool,
    /// Sleep this long after each step, to make a long job out of little work
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub pause_ms: u64,
    /// Print a progress line each N steps; 0 prints none
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub progress_every: u64,
}

impl Options {
    /// Checks what clap cannot.
    ///
    /// # Errors
    /// Names the flag and the rule.
    pub(crate) fn check(&self) -> Result<()> {
        let Self { d_model, layers, heads, context, batch, .. } = *self;
        let within = |name: &str, value: usize, most: usize| {
            ensure!((1..=most).contains(&value), "--{name} is {value}; it must be 1 to {most}");
            Ok(())
        };
        within("d-model", d_model, 4096)?;
        within("layers", layers, 128)?;
        within("heads", heads, 256)?;
        within("context", context, 8192)?;
        within("batch", batch, 8192)?;
        ensure!(d_model.is_multiple_of(heads), "--d-model is {d_model}; it must be a multiple of --heads, {heads}");
        ensure!(self.lr.is_finite() && self.lr > 0.0, "--lr is {}; it must be above 0", self.lr);
        Ok(())
    }

    /// The version string of checkpoints: the arithmetic and every flag that the curve depends on. Data, seed and
    /// position are the cursor's.
    pub(crate) fn code(&self) -> String {
        let Self { d_model, layers, heads, context, batch, freeze_half, .. } = self;
        let lr = hex::encode(self.lr.to_bits().to_be_bytes());
        let shape = format!("{d_model} {layers} {heads} {context} {batch} {lr} {freeze_half}");
        let digest = blake3::hash(shape.as_bytes()).to_hex();
        format!("sluice-trainer {} arithmetic {ARITHMETIC} shape {}", env!("CARGO_PKG_VERSION"), &digest[..16])
    }

    pub(crate) fn log_file(&self) -> PathBuf {
        self.log.clone().unwrap_or_else(|| outputs().join("steps.jsonl"))
    }

    pub(crate) fn export_file(&self) -> PathBuf {
        self.export.clone().unwrap_or_else(|| outputs().join("model.safetensors"))
    }
}

fn outputs() -> PathBuf {
    env::var_os("SLUICE_OUTPUTS").filter(|folder| !folder.is_empty()).map_or_else(|| PathBuf::from("."), PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(flags: &[&str]) -> Options {
        Options::try_parse_from(["sluice-trainer", "--data", "text"].iter().chain(flags)).expect("flags")
    }

    #[test]
    fn the_code_follows_the_flags_that_change_the_curve_and_no_others() {
        let code = parse(&[]).code();
        assert_eq!(parse(&["--steps", "9", "--pause-ms", "5", "--flip-bit-after-resume"]).code(), code);
        for other in [&["--lr", "0.002"][..], &["--layers", "3"], &["--batch", "4"], &["--freeze-half"]] {
            assert_ne!(parse(other).code(), code, "{other:?}");
        }
        assert!(code.len() <= sluice_checkpoint::MAX_CODE);
    }

    #[test]
    fn impossible_shapes_are_named() {
        for (flags, named) in [
            (&["--heads", "5"][..], "--d-model"),
            (&["--context", "0"], "--context"),
            (&["--batch", "99999"], "--batch"),
            (&["--lr", "NaN"], "--lr"),
        ] {
            let error = parse(flags).check().expect_err("refused").to_string();
            assert!(error.starts_with(named), "{error}");
        }
        parse(&[]).check().expect("the defaults are good");
    }
}
