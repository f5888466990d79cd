//! What a checkpoint holds, how it is taken up again, and the export of the weights.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use safetensors::tensor::{Dtype, TensorView};
use serde::{Deserialize, Serialize};
use sluice_checkpoint::{Resume, StateWriter};

use crate::model::{Model, Param};

/// The data position. It names everything besides the program that the next loss depends on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Cursor {
    /// The first step that was not executed. It is the optimiser's step count, too: both count from 1.
    pub(crate) next_step: u64,
    pub(crate) seed: u64,
    /// BLAKE3 of the text.
    pub(crate) data: String,
    /// The program's version string. Part of the cursor because a resume does not carry the checkpoint's `code`.
    pub(crate) code: String,
}

/// Hands all tensors to `writer`, in the model's order: weights, first moments, second moments.
pub(crate) fn write(model: &Model, writer: &mut StateWriter) -> Result<()> {
    for param in &model.params {
        writer.tensor_f32(&format!("w.{}", param.name), &shape(param), &param.weights()?)?;
    }
    for param in &model.params {
        writer.tensor_f32(&format!("m.{}", param.name), &shape(param), &param.m)?;
    }
    for param in &model.params {
        writer.tensor_f32(&format!("v.{}", param.name), &shape(param), &param.v)?;
    }
    Ok(())
}

/// Fills `model` from `resume`. `expected` is the cursor this run would have written, whatever its step; returns the
/// first step to execute.
pub(crate) fn read(model: &mut Model, resume: &Resume, expected: &Cursor) -> Result<u64> {
    let found: Cursor = serde_json::from_value(resume.cursor.clone()).context("the cursor is not this program's")?;
    let Cursor { next_step, .. } = found;
    ensure!(next_step == resume.step + 1, "the cursor is at step {next_step}, the checkpoint after {}", resume.step);
    ensure!(found.code == expected.code, "it was written by {:?}, this is {:?}", found.code, expected.code);
    ensure!(found.seed == expected.seed, "it was trained with seed {}, this run has {}", found.seed, expected.seed);
    ensure!(found.data == expected.data, "it was trained on another text ({})", found.data);
    let announced = resume.code.as_ref().is_none_or(|code| *code == expected.code);
    ensure!(announced, "it was announced by {:?}, this is {:?}", resume.code, expected.code);
    ensure!(resume.entries.len() == 3 * model.params.len(), "it has {} entries", resume.entries.len());
    for param in &mut model.params {
        let load = |kind: &str| -> Result<Vec<f32>> {
            let entry = resume.require(&format!("{kind}.{}", param.name))?;
            ensure!(entry.shape == shape(param), "{} has shape {:?}", entry.name, entry.shape);
            Ok(entry.read_f32()?)
        };
        let (weights, m, v) = (load("w")?, load("m")?, load("v")?);
        param.set_weights(weights)?;
        (param.m, param.v) = (m, v);
    }
    Ok(next_step)
}

/// The control of the bit-for-bit claim: flips the highest bit of the fraction of the largest first moment of the last
/// trained tensor. Returns what was done, or `None` when there is nothing to spoil yet.
pub(crate) fn flip_one_bit(model: &mut Model) -> Option<String> {
    let param = model.params.iter_mut().rev().find(|param| !param.frozen)?;
    let (at, largest) = param.m.iter_mut().enumerate().max_by(|(_, a), (_, b)| a.abs().total_cmp(&b.abs()))?;
    *largest = f32::from_bits(largest.to_bits() ^ 1 << 22);
    Some(format!("flipped bit 22 of m.{}[{at}]", param.name))
}

/// Writes the weights to `file` as safetensors, whole or not at all; returns the BLAKE3 of its bytes.
pub(crate) fn export(model: &Model, file: &Path) -> Result<String> {
    let mut bytes = Vec::with_capacity(model.params.len());
    for param in &model.params {
        let weights = param.weights()?;
        bytes.push(weights.iter().flat_map(|weight| weight.to_le_bytes()).collect::<Vec<u8>>());
    }
    let mut views = Vec::with_capacity(bytes.len());
    for (param, bytes) in model.params.iter().zip(&bytes) {
        views.push((param.name.as_str(), TensorView::new(Dtype::F32, param.dims().to_vec(), bytes)?));
    }
    let whole = safetensors::serialize(views, None)?;
    let unfinished = file.with_extension("unfinished");
    let written = fs::write(&unfinished, &whole).and_then(|()| fs::rename(&unfinished, file));
    written.with_context(|| format!("cannot write {}", file.display()))?;
    Ok(blake3::hash(&whole).to_hex().to_string())
}

fn shape(param: &Param) -> Vec<u64> {
    param.dims().iter().map(|dimension| *dimension as u64).collect()
}
