//! The transformer: parameters in a fixed order, the forward pass and the loss.
//!
//! Pre-norm blocks with root-mean-square norms, learned positions, causal attention, a feed-forward of four times the
//! width with squared ReLU (So et al.: Primer, 2021; exact arithmetic, and half a step's time saved against GELU), and a
//! head that is not tied to the embedding.

use anyhow::Result;
use candle_core::backprop::GradStore;
use candle_core::{D, Device, Tensor, Var};
use candle_nn::{loss, ops};

use crate::Options;
use crate::corpus::Batch;
use crate::seeded::Seeded;

/// Symbols of the text: bytes.
const VOCABULARY: usize = 256;
/// Keeps a norm from dividing by zero.
const EPSILON: f64 = 1e-5;
/// Added to the attention scores of positions that lie ahead. Finite, so that no infinity enters the arithmetic.
const AHEAD: f32 = -1e9;

/// One tensor of the model with its optimiser state.
#[derive(Debug)]
pub(crate) struct Param {
    pub(crate) name: String,
    pub(crate) var: Var,
    /// Frozen tensors get no gradient and no update.
    pub(crate) frozen: bool,
    /// First moment of the gradient.
    pub(crate) m: Vec<f32>,
    /// Second moment of the gradient.
    pub(crate) v: Vec<f32>,
}

/// All parameters in their one order, which names, checkpoints and updates follow.
#[derive(Debug)]
pub(crate) struct Model {
    pub(crate) params: Vec<Param>,
    shape: ModelShape,
    mask: Tensor,
}

#[derive(Debug, Clone, Copy)]
struct ModelShape {
    width: usize,
    layers: usize,
    heads: usize,
    context: usize,
}

/// Tensors per block.
const PER_BLOCK: usize = 8;

impl Model {
    /// Draws fresh weights.
    pub(crate) fn new(options: &Options) -> Result<Self> {
        let Options { d_model: width, layers, heads, context, seed, .. } = *options;
        let shape = ModelShape { width, layers, heads, context };
        let mut params = Vec::with_capacity(4 + layers * PER_BLOCK);
        for (name, dims) in tensors(shape) {
            params.push(Param::new(name, &dims, seed)?);
        }
        if options.freeze_half {
            let half = params.len() / 2;
            params.iter_mut().take(half).for_each(|param| param.frozen = true);
        }
        let mask: Vec<f32> =
            (0..context * context).map(|at| if at % context > at / context { AHEAD } else { 0.0 }).collect();
        let mask = Tensor::from_vec(mask, (1, 1, context, context), &Device::Cpu)?;
        Ok(Self { params, shape, mask })
    }

    /// The mean loss of `batch` in nats per byte, and its gradients.
    pub(crate) fn loss(&self, batch: &Batch) -> Result<(f32, GradStore)> {
        let ModelShape { width, layers, context, .. } = self.shape;
        let size = batch.offsets.len();
        let inputs = Tensor::from_slice(&batch.inputs, size * context, &Device::Cpu)?;
        let targets = Tensor::from_slice(&batch.targets, size * context, &Device::Cpu)?;
        let mut x = self.weight(0).embedding(&inputs)?.reshape((size, context, width))?;
        x = x.broadcast_add(&self.weight(1))?;
        for layer in 0..layers {
            x = self.block(layer, &x)?;
        }
        let last = 2 + layers * PER_BLOCK;
        let rows = norm(&x, &self.weight(last))?.reshape((size * context, width))?;
        let logits = rows.matmul(&self.weight(last + 1))?;
        let loss = loss::cross_entropy(&logits, &targets)?;
        Ok((loss.to_scalar::<f32>()?, loss.backward()?))
    }

    fn block(&self, layer: usize, x: &Tensor) -> Result<Tensor> {
        let first = 2 + layer * PER_BLOCK;
        let weight = |offset: usize| self.weight(first + offset);
        let x = (x + self.attend(&norm(x, &weight(0))?, [weight(1), weight(2), weight(3), weight(4)])?)?;
        let hidden = project(&norm(&x, &weight(5))?, &weight(6))?.relu()?.sqr()?;
        Ok((x + project(&hidden, &weight(7))?)?)
    }

    fn attend(&self, x: &Tensor, [query, key, value, out]: [Tensor; 4]) -> Result<Tensor> {
        let ModelShape { width, heads, context, .. } = self.shape;
        let size = x.dim(0)?;
        let split = |weight: &Tensor| -> Result<Tensor> {
            let rows = project(x, weight)?.reshape((size, context, heads, width / heads))?;
            Ok(rows.transpose(1, 2)?.contiguous()?)
        };
        let scale = 1.0 / ((width / heads) as f64).sqrt();
        let query = (split(&query)? * scale)?;
        let scores = query.matmul(&split(&key)?.t()?)?.broadcast_add(&self.mask)?;
        let mixed = ops::softmax(&scores, D::Minus1)?.matmul(&split(&value)?)?;
        project(&mixed.transpose(1, 2)?.reshape((size, context, width))?, &out)
    }

    /// The tensor at `index`, outside the gradient graph if it is frozen.
    fn weight(&self, index: usize) -> Tensor {
        let param = &self.params[index];
        if param.frozen { param.var.as_detached_tensor() } else { param.var.as_tensor().clone() }
    }
}

impl Param {
    fn new(name: String, dims: &[usize], seed: u64) -> Result<Self> {
        let count = dims.iter().product();
        let values = match dims {
            // Norm weights start at one.
            [_] => vec![1.0; count],
            // A variance of 1 / fan-in, and a small one for the tables; uniform, because that is exact arithmetic.
            [rows, _] => {
                let table = name.ends_with("embed") || name.ends_with("position");
                let bound = if table { 0.05 } else { (3.0 / *rows as f32).sqrt() };
                let mut stream = Seeded::new(seed, &name);
                (0..count).map(|_| stream.symmetric() * bound).collect()
            }
            _ => anyhow::bail!("{name} has neither one nor two dimensions"),
        };
        let var = Var::from_vec(values, dims, &Device::Cpu)?;
        Ok(Self { name, var, frozen: false, m: vec![0.0; count], v: vec![0.0; count] })
    }

    /// Dimensions of the tensor.
    pub(crate) fn dims(&self) -> &[usize] {
        self.var.dims()
    }

    /// The weights in row-major order.
    pub(crate) fn weights(&self) -> Result<Vec<f32>> {
        Ok(self.var.flatten_all()?.to_vec1()?)
    }

    /// Replaces the weights, given in row-major order.
    pub(crate) fn set_weights(&self, weights: Vec<f32>) -> Result<()> {
        Ok(self.var.set(&Tensor::from_vec(weights, self.dims(), &Device::Cpu)?)?)
    }
}

/// Names and dimensions in the model's order: two tables, the blocks, the last norm, the head.
fn tensors(shape: ModelShape) -> Vec<(String, Vec<usize>)> {
    let ModelShape { width, layers, context, .. } = shape;
    let mut all = vec![("embed".to_owned(), vec![VOCABULARY, width]), ("position".to_owned(), vec![context, width])];
    for layer in 0..layers {
        let block: [(&str, Vec<usize>); PER_BLOCK] = [
            ("attn.norm", vec![width]),
            ("attn.q", vec![width, width]),
            ("attn.k", vec![width, width]),
            ("attn.v", vec![width, width]),
            ("attn.o", vec![width, width]),
            ("ff.norm", vec![width]),
            ("ff.up", vec![width, 4 * width]),
            ("ff.down", vec![4 * width, width]),
        ];
        all.extend(block.into_iter().map(|(name, dims)| (format!("blk{layer}.{name}"), dims)));
    }
    all.push(("norm".to_owned(), vec![width]));
    all.push(("head".to_owned(), vec![width, VOCABULARY]));
    all
}

fn norm(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let scale = (x.sqr()?.mean_keepdim(D::Minus1)? + EPSILON)?.sqrt()?;
    Ok(x.broadcast_div(&scale)?.broadcast_mul(weight)?)
}

fn project(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let (size, context, width) = x.dims3()?;
    let rows = x.reshape((size * context, width))?.matmul(weight)?;
    Ok(rows.reshape((size, context, weight.dim(1)?))?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    fn tiny(flags: &[&str]) -> Model {
        let tiny = ["t", "--data", "d", "--d-model", "8", "--layers", "1", "--heads", "2", "--context", "4"];
        Model::new(&Options::parse_from(tiny.iter().chain(flags))).expect("a model")
    }

    fn batch() -> Batch {
        let (inputs, targets) = (vec![1, 2, 3, 4, 9, 8, 7, 6], vec![2, 3, 4, 5, 8, 7, 6, 5]);
        Batch { epoch: 0, offsets: vec![0, 5], inputs, targets }
    }

    #[test]
    fn gradients_agree_with_finite_differences() {
        let model = tiny(&[]);
        let (_, grads) = model.loss(&batch()).expect("loss");
        for name in ["embed", "position", "blk0.attn.q", "blk0.attn.norm", "blk0.ff.down", "norm", "head"] {
            let param = model.params.iter().find(|param| param.name == name).expect("named");
            let grad = grads.get(&param.var).expect("gradient").flatten_all().expect("flat");
            let grad = grad.to_vec1::<f32>().expect("values");
            let at = (0..grad.len()).max_by(|a, b| grad[*a].abs().total_cmp(&grad[*b].abs())).expect("some");
            let weights = param.weights().expect("weights");
            let shifted = |by: f32| {
                let mut moved = weights.clone();
                moved[at] += by;
                param.set_weights(moved).expect("set");
                f64::from(model.loss(&batch()).expect("loss").0)
            };
            let slope = (shifted(1e-3) - shifted(-1e-3)) / 2e-3;
            param.set_weights(weights.clone()).expect("set");
            let exact = f64::from(grad[at]);
            assert!((slope - exact).abs() <= 0.01 * exact.abs() + 2e-3, "{name}: {slope} against {exact}");
        }
    }

    #[test]
    fn no_position_sees_what_lies_ahead() {
        // The first window's last byte changes; with targets fixed, only the last position's loss may change. So the
        // loss of the first three positions, found by cutting the context, stays what it was.
        let model = tiny(&[]);
        let x = |last: u32| {
            let ids = Tensor::from_slice(&[1, 2, 3, last], 4, &Device::Cpu).expect("ids");
            let x = model.weight(0).embedding(&ids).expect("rows").reshape((1, 4, 8)).expect("shape");
            let y = model.block(0, &x).expect("block").flatten_all().expect("flat");
            y.to_vec1::<f32>().expect("values")
        };
        let (a, b) = (x(4), x(200));
        assert_eq!(a[..24], b[..24]);
        assert_ne!(a[24..], b[24..]);
    }

    #[test]
    fn frozen_tensors_get_no_gradient() {
        let model = tiny(&["--freeze-half"]);
        let (_, grads) = model.loss(&batch()).expect("loss");
        let frozen = model.params.iter().filter(|param| param.frozen).count();
        assert_eq!(frozen, model.params.len() / 2);
        for param in &model.params {
            assert_eq!(grads.get(&param.var).is_none(), param.frozen, "{}", param.name);
        }
    }
}
