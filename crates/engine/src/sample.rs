//! How the next token is chosen. Pure: the same logits, settings, seed and position give the same token anywhere.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use sluice_proto::v1::EngineSampling;

/// Alternatives that are told with a token at most.
pub const TOP_LOGPROBS_BOUND: u32 = 20;

/// How a sequence's tokens are chosen; within its bounds.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampling {
    temperature: f32,
    top_p: f32,
    top_k: usize,
    seed: u64,
    frequency_penalty: f32,
    presence_penalty: f32,
    top_logprobs: Option<usize>,
}

/// A token that was chosen.
#[derive(Debug, Clone, PartialEq)]
pub struct Choice {
    /// It.
    pub token: u32,
    /// The natural logarithm of its probability by the model itself, where it was asked for.
    pub logprob: Option<f32>,
    /// The most probable ones by the model itself, best first.
    pub top: Vec<(u32, f32)>,
}

impl Sampling {
    /// Reads the settings; none at all = the most probable token, always.
    ///
    /// # Errors
    ///
    /// In words, for what is out of bounds.
    pub fn read(wanted: Option<&EngineSampling>) -> Result<Self, String> {
        let wanted = wanted.cloned().unwrap_or_default();
        let within = |name: &str, value: f32, from: f32, to: f32| match value {
            value if value >= from && value <= to => Ok(value),
            value => Err(format!("{name} is {value}; it must be {from} to {to}")),
        };
        let top_logprobs = match wanted.top_logprobs {
            Some(more) if more > TOP_LOGPROBS_BOUND => {
                return Err(format!("top_logprobs is {more}; it must be at most {TOP_LOGPROBS_BOUND}"));
            }
            fine => fine.map(|count| count as usize),
        };
        Ok(Self {
            temperature: within("temperature", wanted.temperature, 0.0, 100.0)?,
            top_p: within("top_p", wanted.top_p, 0.0, 1.0)?,
            top_k: wanted.top_k as usize,
            seed: wanted.seed,
            frequency_penalty: within("frequency_penalty", wanted.frequency_penalty, -2.0, 2.0)?,
            presence_penalty: within("presence_penalty", wanted.presence_penalty, -2.0, 2.0)?,
            top_logprobs,
        })
    }

    /// Chooses the token at `position` among the generated ones; `counts` says how often each was generated before.
    #[must_use]
    pub fn choose(&self, logits: &[f32], counts: &BTreeMap<u32, u32>, position: u32) -> Choice {
        self.choose_at(logits, counts, uniform(self.seed, position))
    }

    /// The same with a random number, 0 to below 1, that was drawn elsewhere.
    #[must_use]
    pub fn choose_at(&self, logits: &[f32], counts: &BTreeMap<u32, u32>, at: f64) -> Choice {
        let penalised = self.penalised(logits, counts);
        let wanted = penalised.as_deref().unwrap_or(logits);
        let token = if self.temperature == 0.0 { best(wanted) } else { self.draw(wanted, at) };
        let (logprob, top) = self.logprobs(logits, token);
        Choice { token, logprob, top }
    }

    /// OpenAI's penalties: `logit - count * frequency - (count > 0) * presence`.
    fn penalised(&self, logits: &[f32], counts: &BTreeMap<u32, u32>) -> Option<Vec<f32>> {
        if (self.frequency_penalty == 0.0 && self.presence_penalty == 0.0) || counts.is_empty() {
            return None;
        }
        let mut logits = logits.to_vec();
        for (token, count) in counts {
            if let Some(logit) = logits.get_mut(*token as usize) {
                *logit -= *count as f32 * self.frequency_penalty + self.presence_penalty;
            }
        }
        Some(logits)
    }

    /// The token at `at` (0 to 1) of the distribution that temperature, top_k and top_p leave.
    fn draw(&self, logits: &[f32], at: f64) -> u32 {
        let highest = logits[best(logits) as usize];
        let weigh = |logit: f32| if logit.is_nan() { 0.0 } else { ((logit - highest) / self.temperature).exp() };
        let mut weights: Vec<(u32, f32)> = (0..).zip(logits.iter().map(|logit| weigh(*logit))).collect();
        let all = weights.len();
        if self.top_k > 0 && self.top_k < all {
            front(&mut weights, self.top_k);
            weights.truncate(self.top_k);
        }
        if self.top_p > 0.0 && self.top_p < 1.0 {
            nucleus(&mut weights, self.top_p);
        } else if self.top_k == 0 || self.top_k >= all {
            // Every token takes part: their own order does as well as any.
            return pick(&weights, at);
        }
        pick(&weights, at)
    }

    fn logprobs(&self, logits: &[f32], token: u32) -> (Option<f32>, Vec<(u32, f32)>) {
        let Some(count) = self.top_logprobs else { return (None, Vec::new()) };
        let highest = f64::from(logits[best(logits) as usize]);
        let finite = logits.iter().filter(|logit| !logit.is_nan());
        let sum: f64 = finite.map(|logit| (f64::from(*logit) - highest).exp()).sum();
        let of = |logit: f32| (f64::from(logit) - highest - sum.ln()) as f32;
        let mut ranked: Vec<(u32, f32)> =
            (0..).zip(logits.iter().copied()).filter(|(_, logit)| !logit.is_nan()).collect();
        let count = count.min(ranked.len());
        if count > 0 {
            front(&mut ranked, count);
            ranked.truncate(count);
        } else {
            ranked.clear();
        }
        let top = ranked.into_iter().map(|(token, logit)| (token, of(logit))).collect();
        (logits.get(token as usize).map(|logit| of(*logit)), top)
    }
}

/// Heavier first, then the lower token: a total order, whatever the numbers are.
fn heavier(a: &(u32, f32), b: &(u32, f32)) -> Ordering {
    b.1.total_cmp(&a.1).then(a.0.cmp(&b.0))
}

/// Brings the `count` heaviest to the front, in order. `count` is at least 1.
fn front(weights: &mut [(u32, f32)], count: usize) {
    if count < weights.len() {
        weights.select_nth_unstable_by(count - 1, heavier);
    }
    let count = count.min(weights.len());
    weights[..count].sort_unstable_by(heavier);
}

/// Leaves the fewest heaviest that have `share` of all together, at least one.
fn nucleus(weights: &mut Vec<(u32, f32)>, share: f32) {
    let total: f64 = weights.iter().map(|(_, weight)| f64::from(*weight)).sum();
    let enough = total * f64::from(share);
    // Mostly few are enough, and sorting a whole vocabulary takes longer than a small model's step.
    let mut sorted = 64.min(weights.len());
    loop {
        front(weights, sorted);
        let mut sum = 0.0;
        let reached = weights[..sorted].iter().position(|(_, weight)| {
            sum += f64::from(*weight);
            sum >= enough
        });
        if let Some(last) = reached {
            weights.truncate(last + 1);
            return;
        }
        if sorted == weights.len() {
            return;
        }
        sorted = (sorted * 4).min(weights.len());
    }
}

fn pick(weights: &[(u32, f32)], at: f64) -> u32 {
    let total: f64 = weights.iter().map(|(_, weight)| f64::from(*weight)).sum();
    let mut left = at * total;
    let mut last = weights.first().map_or(0, |(token, _)| *token);
    for (token, weight) in weights.iter().filter(|(_, weight)| *weight > 0.0) {
        last = *token;
        left -= f64::from(*weight);
        if left < 0.0 {
            break;
        }
    }
    last
}

/// The token of the highest logit, the lowest of several.
fn best(logits: &[f32]) -> u32 {
    let mut best = (0, f32::NEG_INFINITY);
    for (token, logit) in (0..).zip(logits) {
        if *logit > best.1 {
            best = (token, *logit);
        }
    }
    best.0
}

/// The random number, 0 to below 1, of a seed at a position: no state, so that a sequence that goes on elsewhere draws what
/// it would have drawn.
#[must_use]
pub fn uniform(seed: u64, position: u32) -> f64 {
    let mut hasher = blake3::Hasher::new_derive_key("sluice engine sampling 1");
    hasher.update(&seed.to_le_bytes());
    hasher.update(&position.to_le_bytes());
    let mut bytes = [0; 8];
    hasher.finalize_xof().fill(&mut bytes);
    // The 53 bits that a double holds exactly.
    (u64::from_le_bytes(bytes) >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sampling(change: impl FnOnce(&mut EngineSampling)) -> Sampling {
        let mut wanted = EngineSampling { temperature: 1.0, ..EngineSampling::default() };
        change(&mut wanted);
        Sampling::read(Some(&wanted)).unwrap()
    }

    fn drawn(sampling: &Sampling, logits: &[f32], draws: u32) -> BTreeMap<u32, u32> {
        let mut counts = BTreeMap::new();
        for position in 0..draws {
            *counts.entry(sampling.choose(logits, &BTreeMap::new(), position).token).or_insert(0) += 1;
        }
        counts
    }

    #[test]
    fn greedy_takes_the_best_and_the_lowest_of_equals() {
        let greedy = Sampling::read(None).unwrap();
        for (logits, wanted) in
            [(&[0.0, 3.0, 3.0][..], 1), (&[f32::NAN, -1.0][..], 1), (&[f32::NEG_INFINITY, f32::NEG_INFINITY][..], 0)]
        {
            assert_eq!(greedy.choose(logits, &BTreeMap::new(), 0).token, wanted);
        }
    }

    #[test]
    fn draws_follow_the_distribution() {
        // Probabilities 0.5, 0.25, 0.25.
        let logits = [2f32.ln(), 0.0, 0.0];
        let counts = drawn(&sampling(|_| ()), &logits, 20_000);
        for (token, share) in [(0, 0.5), (1, 0.25), (2, 0.25)] {
            let got = f64::from(counts[&token]) / 20_000.0;
            assert!((got - share).abs() < 0.02, "{token}: {got}");
        }
        let colder = drawn(&sampling(|wanted| wanted.temperature = 0.5), &logits, 20_000);
        let got = f64::from(colder[&0]) / 20_000.0;
        assert!((got - 4.0 / 6.0).abs() < 0.02, "{got}");
    }

    #[test]
    fn top_k_and_top_p_leave_the_most_probable() {
        let logits = [0.0, 3.0, 2.0, 1.0];
        let tokens = |sampling: &Sampling| drawn(sampling, &logits, 2_000).into_keys().collect::<Vec<_>>();
        assert_eq!(tokens(&sampling(|wanted| wanted.top_k = 2)), [1, 2]);
        assert_eq!(tokens(&sampling(|wanted| wanted.top_k = 9)), [0, 1, 2, 3]);
        assert_eq!(tokens(&sampling(|wanted| wanted.top_p = 0.6)), [1]);
        assert_eq!(tokens(&sampling(|wanted| wanted.top_p = 0.8)), [1, 2]);
        assert_eq!(tokens(&sampling(|wanted| (wanted.top_k, wanted.top_p) = (3, 0.9))), [1, 2]);
    }

    #[test]
    fn a_nucleus_may_be_nearly_everything() {
        let logits = vec![0.0; 1_000];
        let mut weights: Vec<(u32, f32)> = (0..).zip(logits.iter().map(|_| 1.0)).collect();
        nucleus(&mut weights, 0.9);
        assert!((899..=901).contains(&weights.len()), "{}", weights.len());
    }

    #[test]
    fn penalties_are_openais() {
        let counts = BTreeMap::from([(0, 3)]);
        let greedy = |frequency_penalty, presence_penalty| {
            let wanted = EngineSampling { frequency_penalty, presence_penalty, ..EngineSampling::default() };
            Sampling::read(Some(&wanted)).unwrap().choose(&[1.5, 1.0], &counts, 3).token
        };
        assert_eq!(greedy(0.0, 0.0), 0);
        assert_eq!(greedy(0.1, 0.0), 0);
        assert_eq!(greedy(0.2, 0.0), 1);
        assert_eq!(greedy(0.0, 0.4), 0);
        assert_eq!(greedy(0.0, 0.6), 1);
    }

    #[test]
    fn logarithms_are_the_models_own() {
        let told = sampling(|wanted| (wanted.top_logprobs, wanted.temperature, wanted.top_k) = (Some(2), 0.1, 1));
        let choice = told.choose(&[0.0, 3f32.ln(), f32::NAN], &BTreeMap::new(), 0);
        assert_eq!(choice.token, 1);
        assert!((choice.logprob.unwrap() - 0.75f32.ln()).abs() < 1e-6);
        assert_eq!(choice.top.iter().map(|(token, _)| *token).collect::<Vec<_>>(), [1, 0]);
        let untold = sampling(|_| ()).choose(&[0.0], &BTreeMap::new(), 0);
        assert_eq!((untold.logprob, untold.top), (None, Vec::new()));
        assert!(sampling(|wanted| wanted.top_logprobs = Some(0)).choose(&[0.0], &BTreeMap::new(), 0).top.is_empty());
    }

    #[test]
    fn what_is_out_of_bounds_is_refused_in_words() {
        let refused = |change: fn(&mut EngineSampling)| {
            let mut wanted = EngineSampling::default();
            change(&mut wanted);
            Sampling::read(Some(&wanted)).unwrap_err()
        };
        assert_eq!(refused(|wanted| wanted.temperature = -1.0), "temperature is -1; it must be 0 to 100");
        assert_eq!(refused(|wanted| wanted.temperature = f32::NAN), "temperature is NaN; it must be 0 to 100");
        assert_eq!(refused(|wanted| wanted.top_p = 1.5), "top_p is 1.5; it must be 0 to 1");
        assert_eq!(refused(|wanted| wanted.presence_penalty = 3.0), "presence_penalty is 3; it must be -2 to 2");
        assert_eq!(refused(|wanted| wanted.top_logprobs = Some(21)), "top_logprobs is 21; it must be at most 20");
    }

    #[test]
    fn random_numbers_are_fixed_for_ever() {
        // Sequences that were begun by another version go on by these.
        let first = [uniform(0, 0), uniform(0, 1), uniform(7, 0)];
        assert!(first.iter().all(|number| (0.0..1.0).contains(number)));
        assert_eq!(first.map(|number| format!("{number:.12}")), FIXED);
        let mean = (0..4_096).map(|position| uniform(42, position)).sum::<f64>() / 4_096.0;
        assert!((mean - 0.5).abs() < 0.02, "{mean}");
    }

    const FIXED: [&str; 3] = ["0.888128361341", "0.138134270148", "0.092842585532"];

    proptest! {
        #[test]
        fn any_logits_give_a_token_of_the_vocabulary(
            bits in proptest::collection::vec(any::<u32>(), 1..40),
            temperature in 0f32..3.0,
            top_p in 0f32..=1.0,
            top_k in 0u32..50,
            seed in any::<u64>(),
        ) {
            let logits: Vec<f32> = bits.into_iter().map(f32::from_bits).collect();
            let chosen = sampling(|wanted| {
                (wanted.temperature, wanted.top_p, wanted.top_k, wanted.seed) = (temperature, top_p, top_k, seed);
                wanted.top_logprobs = Some(5);
            });
            let choice = chosen.choose(&logits, &BTreeMap::new(), 3);
            prop_assert!((choice.token as usize) < logits.len());
            prop_assert_eq!(chosen.choose(&logits, &BTreeMap::new(), 3).token, choice.token);
        }
    }
}
