//! How long a step will take, learnt from the steps before it. Pure.
//!
//! `time = a + b * decodes + c * reads + d * tokens * cells`: a step has a price of its own (weights are read once), a token of
//! a running sequence and one of a prompt have different ones (small batches compute worse), and each token looks at the cells
//! of its sequence. Fitted by recursive least squares of relative errors, so that it follows a slice that changes and a host
//! that is shared.
//!
//! What is forgotten is forgotten towards what is believed now, known no better than a guess (Gunnarsson, "Combining tracking
//! and regularization in recursive least squares identification", CDC 1996): after hours of one stream the model still believes
//! what prompts cost, and believes the first one that tells otherwise. Forgetting without that, it would know nothing of them,
//! and noise would make it read the first long prompt in one piece.

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
/// What a guess is worth, in steps that tell each term by itself.
const GUESS: f64 = 0.1;
/// The least that a guess counts as, nanoseconds: what is guessed as nothing is not known for sure.
const UNSURE: f64 = 0.1e6;

type Terms = [f64; TERMS];
type Square = [Terms; TERMS];

/// The fitted model. Times are nanoseconds.
#[derive(Debug, Clone)]
pub struct CostModel {
    terms: Terms,
    /// What is known of them: the inverse of their covariance, in units of a step's relative error.
    information: Square,
}

impl CostModel {
    /// Starts from a guess: nanoseconds of a step, of a running sequence's token, of a prompt's, and of a token for a
    /// thousand cells. The first steps correct it.
    #[must_use]
    pub fn new(step: f64, decode: f64, read: f64, thousand_cells: f64) -> Self {
        let terms = [step, decode, read, thousand_cells];
        Self { terms, information: guess(&terms) }
    }

    /// How long a step of this shape will take, nanoseconds.
    #[must_use]
    pub fn predict(&self, shape: Shape) -> f64 {
        dot(&features(shape), &self.terms)
    }

    /// A step of this shape took so many nanoseconds.
    pub fn observe(&mut self, shape: Shape, nanos: u64) {
        let expected = self.predict(shape);
        let took = nanos as f64;
        // Steps are off by a part of their time: a long one must not count for a hundred short ones. And one that took much
        // longer than expected says something about the host, not about steps: it counts the less.
        let scale = took.max(expected).max(1.0);
        let x = features(shape).map(|feature| feature / scale);
        let error = (took - expected) / scale;
        let guess = guess(&self.terms);
        for row in 0..TERMS {
            for column in 0..TERMS {
                let past = FORGET * self.information[row][column] + (1.0 - FORGET) * guess[row][column];
                self.information[row][column] = past + x[row] * x[column];
            }
        }
        let Some(lower) = decompose(&self.information) else {
            // Lost in rounding: the terms stay, as a guess.
            self.information = guess;
            return;
        };
        let gain = solve(&lower, &x);
        for (term, gain) in self.terms.iter_mut().zip(&gain) {
            *term += gain * error;
        }
        self.keep_positive(&lower);
    }

    /// Nothing takes less than no time. A term that would is none, and the others change as little as what is known of them
    /// allows: steps that were seen stay as predicted.
    fn keep_positive(&mut self, lower: &Square) {
        for _ in 0..TERMS {
            let Some(least) =
                (0..TERMS).filter(|at| self.terms[*at] < 0.0).min_by(|a, b| self.terms[*a].total_cmp(&self.terms[*b]))
            else {
                return;
            };
            let mut unit = [0.0; TERMS];
            unit[least] = 1.0;
            let along = solve(lower, &unit);
            let off = self.terms[least] / along[least];
            for (term, along) in self.terms.iter_mut().zip(&along) {
                *term -= along * off;
            }
            self.terms[least] = 0.0;
        }
        self.terms = self.terms.map(|term| term.max(0.0));
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

/// Scaled to about the same size.
fn features(shape: Shape) -> Terms {
    let (decodes, reads) = (f64::from(shape.decodes), f64::from(shape.reads));
    [1.0, decodes, reads, (decodes + reads) * f64::from(shape.cells) / 1_000.0]
}

/// What is known of terms that were guessed.
fn guess(terms: &Terms) -> Square {
    let mut information = [[0.0; TERMS]; TERMS];
    for (at, term) in terms.iter().enumerate() {
        information[at][at] = GUESS * term.max(UNSURE).powi(-2);
    }
    information
}

fn dot(a: &Terms, b: &Terms) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// The lower triangle of Cholesky's decomposition, where there is one.
fn decompose(square: &Square) -> Option<Square> {
    let mut lower = [[0.0; TERMS]; TERMS];
    for row in 0..TERMS {
        for column in 0..=row {
            let sum: f64 = (0..column).map(|at| lower[row][at] * lower[column][at]).sum();
            let rest = square[row][column] - sum;
            lower[row][column] = if row == column { rest.sqrt() } else { rest / lower[column][column] };
        }
        if !(lower[row][row].is_finite() && lower[row][row] > 0.0) {
            return None;
        }
    }
    Some(lower)
}

/// The `y` for which the decomposed matrix times `y` is `x`.
fn solve(lower: &Square, x: &Terms) -> Terms {
    let mut y = *x;
    for row in 0..TERMS {
        let sum: f64 = (0..row).map(|at| lower[row][at] * y[at]).sum();
        y[row] = (y[row] - sum) / lower[row][row];
    }
    for row in (0..TERMS).rev() {
        let sum: f64 = (row + 1..TERMS).map(|at| lower[at][row] * y[at]).sum();
        y[row] = (y[row] - sum) / lower[row][row];
    }
    y
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

    /// Noise of a shared host: up to a fifth of the time, the same each run.
    fn noise(index: u32) -> f64 {
        0.9 + 0.2 * f64::from(index.wrapping_mul(2_654_435_761) >> 16) / 65_536.0
    }

    #[test]
    fn a_long_time_of_one_stream_does_not_make_it_forget_what_prompts_cost() {
        let mut model = CostModel::new(4e6, 4e6, 2e6, 0.5e6);
        for (index, shape) in (0..).zip(shapes()) {
            model.observe(shape, (truth(shape) * noise(index)) as u64);
        }
        for index in 0..20_000 {
            let shape = Shape { decodes: 1, reads: 0, cells: 64 + index % 256 };
            model.observe(shape, (truth(shape) * noise(index)) as u64);
        }
        // What is never seen is known as well as a guess, not less.
        let known = model.information[2][2] / guess(&model.terms)[2][2];
        assert!((0.99..1.01).contains(&known), "{known} of a guess");
        let mixed = Shape { decodes: 3, reads: 128, cells: 900 };
        let off = model.predict(mixed) / truth(mixed);
        assert!((off - 1.0).abs() < 0.15, "{off}");
        // And the first prompt after it is noisy, too.
        for index in 0..30 {
            let reads = model.reads_within(3, 64 * index, 350e6, 64, 512);
            let shape = Shape { decodes: 3, reads, cells: 64 * index };
            assert!(truth(shape) < 350e6 * 1.25, "step {index}: {reads} tokens take {} ms", truth(shape) / 1e6);
            assert!(truth(shape) > 350e6 * 0.75 || reads == 512, "step {index}: {reads} tokens");
            model.observe(shape, (truth(shape) * noise(index * 31)) as u64);
        }
    }

    #[test]
    fn a_guess_stands_until_such_steps_are_seen() {
        let mut model = CostModel::new(4e6, 3e6, 2e6, 0.5e6);
        for index in 0..20_000 {
            let shape = Shape { decodes: 1, reads: 0, cells: 64 + index % 256 };
            model.observe(shape, (truth(shape) * noise(index)) as u64);
        }
        let mixed = Shape { decodes: 3, reads: 128, cells: 900 };
        assert!((0.7..1.4).contains(&(model.predict(mixed) / truth(mixed))), "{}", model.predict(mixed) / truth(mixed));
    }

    #[test]
    fn nothing_takes_less_than_no_time() {
        // Longer contexts and wider steps were faster, as on a host that gets quieter.
        let mut model = CostModel::new(4e6, 3e6, 2e6, 0.5e6);
        for index in 0..500_u32 {
            let shape = Shape { decodes: 1 + index / 100, reads: index % 64, cells: index * 4 };
            model.observe(shape, u64::from(20_000_000 - index * 30_000));
        }
        assert!(model.terms.iter().all(|term| *term >= 0.0), "{:?}", model.terms);
        let last = Shape { decodes: 5, reads: 32, cells: 2_000 };
        assert!((0.6..1.7).contains(&(model.predict(last) / 5e6)), "{}", model.predict(last) / 5e6);
    }

    #[test]
    fn a_budget_stays_within_its_bounds() {
        let model = CostModel::new(4e6, 3e6, 2e6, 0.5e6);
        assert_eq!(model.reads_within(8, 4_000, 1.0, 64, 512), 64);
        assert_eq!(model.reads_within(0, 0, 1e18, 64, 512), 512);
        assert_eq!(model.reads_within(0, 0, 1e18, 64, 10), 10);
    }
}
