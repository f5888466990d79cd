//! How long a step will take, learnt from the steps before it. Pure.
//!
//! `time = a + b * decodes + c * reads + d * tokens * cells`: a step has a price of its own (weights are read once), a token of
//! a running sequence and one of a prompt have different ones (small batches compute worse), and each token looks at the cells
//! of its sequence. Fitted by recursive least squares with forgetting, so that it follows a slice that changes and a host that is
//! shared.

/// What a step has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Shape {
    /// Tokens of running sequences.
    pub decodes: u32,
    /// Tokens of prompts.
    pub reads: u32,
    /// Cells that a token looks at, on the average.
    pub cells: u32,
}

const TERMS: usize = 4;
/// Weight of the past against a new step: about the last fifty count.
const FORGET: f64 = 0.98;
/// A step that took so much longer than expected says something about the host, not about steps; it counts as this much.
const OUTLIER: f64 = 4.0;

/// The fitted model. Times are nanoseconds.
#[derive(Debug, Clone)]
pub struct CostModel {
    terms: [f64; TERMS],
    covariance: [[f64; TERMS]; TERMS],
}

impl CostModel {
    /// Starts from a guess: nanoseconds of a step, of a running sequence's token, of a prompt's, and of a token for a
    /// thousand cells. The first steps correct it.
    #[must_use]
    pub fn new(step: f64, decode: f64, read: f64, thousand_cells: f64) -> Self {
        let mut covariance = [[0.0; TERMS]; TERMS];
        for (index, row) in covariance.iter_mut().enumerate() {
            row[index] = 1.0;
        }
        Self { terms: [step, decode, read, thousand_cells], covariance }
    }

    /// How long a step of this shape will take, nanoseconds.
    #[must_use]
    pub fn predict(&self, shape: Shape) -> f64 {
        features(shape).iter().zip(&self.terms).map(|(feature, term)| feature * term.max(0.0)).sum()
    }

    /// A step of this shape took so many nanoseconds.
    pub fn observe(&mut self, shape: Shape, nanos: u64) {
        let expected = self.predict(shape).max(1.0);
        let took = (nanos as f64).clamp(expected / OUTLIER, expected * OUTLIER);
        let x = features(shape);
        let mut px = [0.0; TERMS];
        for (value, row) in px.iter_mut().zip(&self.covariance) {
            *value = row.iter().zip(&x).map(|(a, b)| a * b).sum();
        }
        let scale = FORGET + x.iter().zip(&px).map(|(a, b)| a * b).sum::<f64>();
        let fitted: f64 = x.iter().zip(&self.terms).map(|(a, b)| a * b).sum();
        let error = took - fitted;
        for (term, gain) in self.terms.iter_mut().zip(&px) {
            *term += gain / scale * error;
        }
        for row in 0..TERMS {
            for column in 0..TERMS {
                let next = (self.covariance[row][column] - px[row] * px[column] / scale) / FORGET;
                // What is never exercised would grow without bound by forgetting alone.
                self.covariance[row][column] = next.clamp(-1e3, 1e3);
            }
        }
    }

    /// The most tokens of prompts that can be read beside `decodes` within `target` nanoseconds; between `floor` and `most`.
    #[must_use]
    pub fn reads_within(&self, decodes: u32, cells: u32, target: f64, floor: u32, most: u32) -> u32 {
        let (mut low, mut high) = (floor.min(most), most);
        while low < high {
            let middle = low + (high - low).div_ceil(2);
            if self.predict(Shape { decodes, reads: middle, cells: cells.saturating_add(middle) }) <= target {
                low = middle;
            } else {
                high = middle - 1;
            }
        }
        low
    }
}

/// Scaled to about the same size, so that one covariance serves them all.
fn features(shape: Shape) -> [f64; TERMS] {
    let (decodes, reads) = (f64::from(shape.decodes), f64::from(shape.reads));
    [1.0, decodes, reads, (decodes + reads) * f64::from(shape.cells) / 1_000.0]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 4 ms a step, 3 ms a running token, 2 ms a read one, 0.5 ms a token and thousand cells.
    fn truth(shape: Shape) -> f64 {
        let x = features(shape);
        1e6 * (4.0 * x[0] + 3.0 * x[1] + 2.0 * x[2] + 0.5 * x[3])
    }

    fn shapes() -> impl Iterator<Item = Shape> {
        (0_u32..400).map(|index| Shape {
            decodes: index * 7 % 9,
            reads: if index % 3 == 0 { index * 13 % 257 } else { 0 },
            cells: 100 + index * 31 % 2_000,
        })
    }

    #[test]
    fn it_learns_what_steps_take() {
        let mut model = CostModel::new(1e6, 1e6, 1e6, 0.0);
        for shape in shapes() {
            model.observe(shape, truth(shape) as u64);
        }
        for shape in shapes() {
            let (got, wanted) = (model.predict(shape), truth(shape));
            assert!((got - wanted).abs() / wanted < 0.02, "{shape:?}: {got} for {wanted}");
        }
        // 8 + 4 ms, then 2.5 ms a token at a thousand cells: (200 - 16 - ...) / 2.5.
        let budget = model.reads_within(0, 0, 200e6, 1, 512);
        assert!((88..=98).contains(&budget), "{budget}");
    }

    #[test]
    fn it_follows_a_host_that_became_slower_and_forgets_a_hiccup() {
        let mut model = CostModel::new(4e6, 3e6, 2e6, 0.5e6);
        for shape in shapes() {
            model.observe(shape, (truth(shape) * 3.0) as u64);
        }
        let shape = Shape { decodes: 4, reads: 64, cells: 500 };
        assert!((model.predict(shape) / truth(shape) - 3.0).abs() < 0.1);
        let before = model.predict(shape);
        model.observe(Shape { decodes: 1, reads: 0, cells: 400 }, 30_000_000_000);
        for shape in shapes().take(100) {
            model.observe(shape, (truth(shape) * 3.0) as u64);
        }
        assert!((model.predict(shape) / before - 1.0).abs() < 0.2, "{} {before}", model.predict(shape));
    }

    #[test]
    fn a_budget_stays_within_its_bounds() {
        let model = CostModel::new(4e6, 3e6, 2e6, 0.5e6);
        assert_eq!(model.reads_within(8, 4_000, 1.0, 64, 512), 64);
        assert_eq!(model.reads_within(0, 0, 1e18, 64, 512), 512);
        assert_eq!(model.reads_within(0, 0, 1e18, 64, 10), 10);
    }
}
