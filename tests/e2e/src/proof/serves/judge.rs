//! The judge of requests: what clients received beside what was billed, and answers beside those of a lone run. Pure.

use std::collections::{BTreeMap, BTreeSet};

use sluice_proto::v1;

use super::client::{Asked, Got, Mode};

/// Where the lone run's two best logarithms are no further apart, another order of sums may choose the other, because
/// activations are rounded to eight bits: the engine's own bound (crates/engine/tests/llama.rs), declared before anything is
/// run. A model's typical margin is 1 to 10.
pub(in crate::proof) const MARGIN: f64 = 0.5;

/// An answer of a lone run: each token's bytes, and its margin.
pub(super) type Lone = Vec<(String, Option<f64>)>;

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Verdict {
    /// Requests that failed at the client.
    pub(super) failed: i64,
    /// Answers that are another request's, or nobody's.
    pub(super) crossed: i64,
    /// Answers that differ first where the margin is small.
    pub(super) close: i64,
    /// Answers that were not cancelled and are billed otherwise than received.
    pub(super) misbilled: i64,
    /// Cancelled ones that are billed less than was received, or more than one token more.
    pub(super) misbilled_cancels: i64,
    /// How many were cancelled.
    pub(super) cancelled: i64,
    /// Rows that are paid and that no client knows, and rows that are open.
    pub(super) unknown: i64,
    /// Rows that are credited though their client did not leave: a request that was cut, also where its client hid that.
    pub(super) voided: i64,
    /// Rows whose amount is not that of their tokens.
    pub(super) misrated: i64,
    /// What went wrong, in words.
    pub(super) told: Vec<String>,
}

impl Verdict {
    fn say(&mut self, text: String) {
        if self.told.len() < 20 {
            self.told.push(text);
        }
    }
}

/// Judges `got`, what came of `asked`, by the rows of the ledger and the lone answers by prompt.
pub(super) fn judge(
    asked: &[Asked],
    got: &[Got],
    rows: &BTreeMap<String, v1::InferenceRequest>,
    lone: &BTreeMap<String, Lone>,
) -> Verdict {
    let mut verdict = Verdict::default();
    let by_number: BTreeMap<usize, &Asked> = asked.iter().map(|asked| (asked.number, asked)).collect();
    let (mut known, mut left) = (BTreeSet::new(), BTreeSet::new());
    for one in got {
        let Some(asked) = by_number.get(&one.number) else { continue };
        if let Some(id) = &one.id {
            known.insert(id.as_str());
            if one.cancelled {
                left.insert(id.as_str());
            }
        }
        if let Some(error) = &one.error {
            verdict.failed += 1;
            verdict.say(format!("{}: {error} {}", one.number, one.message));
            continue;
        }
        compare(&mut verdict, asked, one, lone);
        bill(&mut verdict, asked, one, rows);
    }
    for row in rows.values() {
        rate(&mut verdict, row);
        if row.state() == v1::InferenceRequestState::Voided && !left.contains(row.id.as_str()) {
            verdict.voided += 1;
            verdict.say(format!("{} is credited: {}", row.id, row.reason));
        }
        let paid = row.state() == v1::InferenceRequestState::Settled && row.completion_tokens > 0;
        if row.state() == v1::InferenceRequestState::Open || (paid && !known.contains(row.id.as_str())) {
            verdict.unknown += 1;
            verdict.say(format!("{} is {} and no client knows it", row.id, row.state().as_str_name()));
        }
    }
    verdict
}

fn compare(verdict: &mut Verdict, asked: &Asked, got: &Got, lone: &BTreeMap<String, Lone>) {
    let Some(lone) = lone.get(&asked.prompt) else { return };
    let most = usize::try_from(asked.max_tokens).unwrap_or(usize::MAX);
    let whole = lone.len().min(most);
    let differs = got.tokens.iter().zip(lone).position(|((token, _), (other, _))| token != other);
    let long_enough = got.cancelled || got.tokens.len() == whole;
    match differs {
        None if long_enough && got.tokens.len() <= whole => {}
        Some(place) if lone.get(place).and_then(|(_, margin)| *margin).is_some_and(|margin| margin < MARGIN) => {
            verdict.close += 1;
        }
        _ => {
            verdict.crossed += 1;
            let text = format!("{}: {} tokens, {differs:?} of {whole}: {:?}", got.number, got.tokens.len(), got.text);
            verdict.say(text);
        }
    }
}

fn bill(verdict: &mut Verdict, asked: &Asked, got: &Got, rows: &BTreeMap<String, v1::InferenceRequest>) {
    let received = got.tokens.len() as u64;
    let row = got.id.as_ref().and_then(|id| rows.get(id));
    verdict.cancelled += i64::from(got.cancelled);
    let Some(row) = row.filter(|row| row.state() == v1::InferenceRequestState::Settled) else {
        verdict.misbilled += 1;
        verdict.say(format!("{}: {:?} has no settled row", got.number, got.id));
        return;
    };
    if got.cancelled {
        if !(received..=received + 1).contains(&row.completion_tokens) {
            verdict.misbilled_cancels += 1;
            verdict.say(format!("{}: cancelled at {received}, billed {}", got.number, row.completion_tokens));
        }
        return;
    }
    let told = got.usage.is_none_or(|usage| usage == (row.prompt_tokens, row.completion_tokens));
    if row.completion_tokens != received || !told || asked.mode == Mode::Cancel && received == 0 {
        verdict.misbilled += 1;
        let text =
            format!("{}: received {received}, told {:?}, billed {}", got.number, got.usage, row.completion_tokens);
        verdict.say(text);
    }
}

/// Price per million, each request rounded up.
fn rate(verdict: &mut Verdict, row: &v1::InferenceRequest) {
    let settled = row.state() == v1::InferenceRequestState::Settled;
    let price = row.price.filter(|_| settled).unwrap_or_default();
    let part = |tokens: u64, price: i64| i128::from(tokens) * i128::from(price);
    let units = part(row.prompt_tokens, price.prompt_credits) + part(row.completion_tokens, price.completion_credits);
    let amount = units / 1_000_000 + i128::from(units % 1_000_000 != 0);
    if i128::from(row.credits) != amount {
        verdict.misrated += 1;
        verdict.say(format!("{}: {} credits, not {amount}", row.id, row.credits));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(number: usize, prompt: &str, mode: Mode) -> Asked {
        let (key, model) = ("red", "one");
        Asked { number, key, model, prompt: prompt.to_owned(), max_tokens: 3, mode, cancel_after: 2, ignore_end: false }
    }

    fn got(number: usize, tokens: &[&str]) -> Got {
        let text = serde_json::json!({
            "number": number, "id": format!("req-{number}"), "at": 0.0, "took": 0.0,
            "tokens": tokens.iter().map(|token| (token, 1.0)).collect::<Vec<_>>(), "usage": [4, tokens.len()],
        });
        serde_json::from_value(text).unwrap()
    }

    fn row(number: usize, completion_tokens: u64) -> (String, v1::InferenceRequest) {
        let price = Some(v1::TokenPrice { prompt_credits: 100, completion_credits: 400_000 });
        let credits = i64::try_from((400 + completion_tokens * 400_000).div_ceil(1_000_000)).unwrap();
        let state = v1::InferenceRequestState::Settled.into();
        let id = format!("req-{number}");
        let row = v1::InferenceRequest {
            id: id.clone(),
            state,
            price,
            prompt_tokens: 4,
            completion_tokens,
            credits,
            ..v1::InferenceRequest::default()
        };
        (id, row)
    }

    fn lone() -> BTreeMap<String, Lone> {
        let lone = |tokens: [&str; 3], margin| tokens.map(|token| (token.to_owned(), Some(margin))).to_vec();
        [("a".to_owned(), lone(["x", "y", "z"], 1.0)), ("b".to_owned(), lone(["u", "v", "w"], 0.001))].into()
    }

    #[test]
    fn what_is_right_is_right_and_every_fault_is_found() {
        let all = [asked(0, "a", Mode::Whole), asked(1, "b", Mode::Stream), asked(2, "a", Mode::Cancel)];
        let mut cut = got(2, &["x", "y"]);
        (cut.cancelled, cut.usage) = (true, None);
        let right = [got(0, &["x", "y", "z"]), got(1, &["u", "v", "w"]), cut];
        let rows: BTreeMap<_, _> = [row(0, 3), row(1, 3), row(2, 3)].into();
        let clean = judge(&all, &right, &rows, &lone());
        assert_eq!(clean, Verdict { cancelled: 1, ..Verdict::default() });

        let mut crossed = right.clone();
        let (first, second) = (crossed[0].tokens.clone(), crossed[1].tokens.clone());
        (crossed[0].tokens, crossed[1].tokens) = (second, first);
        let verdict = judge(&all, &crossed, &rows, &lone());
        assert_eq!((verdict.crossed, verdict.close), (1, 1), "the other's margin is small");

        let mut rows = rows;
        rows.extend([row(0, 2), row(2, 4), row(9, 1)]);
        let verdict = judge(&all, &right, &rows, &lone());
        assert_eq!((verdict.misbilled, verdict.misbilled_cancels, verdict.unknown), (1, 1, 1));
        rows.get_mut("req-1").unwrap().credits += 1;
        assert_eq!(judge(&all, &right, &rows, &lone()).misrated, 1);
        let void = |rows: &mut BTreeMap<String, v1::InferenceRequest>, id: &str| {
            rows.get_mut(id).unwrap().set_state(v1::InferenceRequestState::Voided);
        };
        let mut tried = rows.clone();
        tried.extend([row(0, 3), row(8, 0)]);
        void(&mut tried, "req-8");
        void(&mut tried, "req-2");
        assert_eq!(judge(&all, &right, &tried, &lone()).voided, 1, "2 was left by its client, 8 is an earlier try");
        let mut failed = right.to_vec();
        failed[0].error = Some("APIConnectionError".to_owned());
        assert_eq!(judge(&all, &failed, &rows, &lone()).failed, 1);
    }
}
