//! AdamW (Loshchilov and Hutter: Decoupled weight decay regularization, 2019), written out so that every number it keeps
//! is in the checkpoint: both moments per weight, and the step, which is the training step.

use anyhow::{Context, Result};
use candle_core::backprop::GradStore;

use crate::model::Param;

const BETA1: f32 = 0.9;
const BETA2: f32 = 0.99;
const EPSILON: f32 = 1e-8;
/// Per step and unit of learning rate, on matrices only.
const WEIGHT_DECAY: f32 = 0.01;

/// Updates every tensor that is not frozen. `step` counts from 1.
pub(crate) fn update(params: &mut [Param], grads: &GradStore, lr: f32, step: u64) -> Result<()> {
    let rates = Rates::at(step, lr);
    for param in params.iter_mut().filter(|param| !param.frozen) {
        let grad = grads.get(&param.var).with_context(|| format!("{} got no gradient", param.name))?;
        let grad: Vec<f32> = grad.flatten_all()?.to_vec1()?;
        let mut weights = param.weights()?;
        let decay = if param.dims().len() > 1 { lr * WEIGHT_DECAY } else { 0.0 };
        rates.apply(&mut weights, &mut param.m, &mut param.v, &grad, decay);
        param.set_weights(weights)?;
    }
    Ok(())
}

/// What depends on the step alone.
struct Rates {
    lr: f32,
    correction1: f32,
    correction2: f32,
}

impl Rates {
    fn at(step: u64, lr: f32) -> Self {
        Self { lr, correction1: 1.0 - power(BETA1, step), correction2: 1.0 - power(BETA2, step) }
    }

    fn apply(&self, weights: &mut [f32], m: &mut [f32], v: &mut [f32], grad: &[f32], decay: f32) {
        for (((w, m), v), g) in weights.iter_mut().zip(m).zip(v).zip(grad) {
            *m = BETA1 * *m + (1.0 - BETA1) * g;
            *v = BETA2 * *v + (1.0 - BETA2) * g * g;
            let (mean, square) = (*m / self.correction1, *v / self.correction2);
            *w -= decay * *w + self.lr * mean / (square.sqrt() + EPSILON);
        }
    }
}

/// `base` to the power of `exponent` by repeated squaring: products in a fixed order, where a library's may change.
fn power(base: f32, mut exponent: u64) -> f32 {
    let (mut square, mut product) = (f64::from(base), 1.0f64);
    while exponent > 0 {
        if exponent & 1 == 1 {
            product *= square;
        }
        square *= square;
        exponent >>= 1;
    }
    product as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_update_moves_against_the_gradient_by_the_learning_rate() {
        let (mut w, mut m, mut v) = ([1.0f32, 1.0], [0.0; 2], [0.0; 2]);
        Rates::at(1, 0.1).apply(&mut w, &mut m, &mut v, &[4.0, -0.5], 0.0);
        assert!((w[0] - 0.9).abs() < 1e-4 && (w[1] - 1.1).abs() < 1e-4, "{w:?}");
    }

    #[test]
    fn decay_pulls_towards_zero_without_a_gradient() {
        let (mut w, mut m, mut v) = ([2.0f32], [0.0], [0.0]);
        Rates::at(1, 0.1).apply(&mut w, &mut m, &mut v, &[0.0], 0.5);
        assert!((w[0] - 1.0).abs() < 1e-6, "{w:?}");
    }

    #[test]
    fn powers_agree_with_the_library() {
        for exponent in [0u64, 1, 2, 7, 100] {
            let expected = f64::from(0.9f32).powi(i32::try_from(exponent).expect("small"));
            assert!((f64::from(power(0.9, exponent)) - expected).abs() < 1e-7);
        }
        assert_eq!(power(0.9, u64::MAX), 0.0);
    }
}
