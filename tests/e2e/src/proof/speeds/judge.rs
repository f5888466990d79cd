//! Figures of rounds.

use std::time::Duration;

use anyhow::Context as _;

use super::loads::{Mixed, Queue};
use super::stream::Seen;
use crate::figure::Figure;

/// One stream is at least so fast, over the peer.
const LONE: f64 = 0.97;
/// The longest gap that others see of a long prompt, in ms.
const GAP: i64 = 500;
/// How much later than the peer's the long prompt's first token may come.
const LONG: f64 = 1.6;
/// How long a late tenant waits behind another's queue, in ms.
const LATE: i64 = 1_000;
/// What being fair may cost, over arrival order.
const FAIR: f64 = 0.93;

/// What one server did in a round.
#[derive(Debug, Default)]
pub(super) struct Half {
    /// Tokens a second of each lone stream.
    rates: Vec<f64>,
    /// Milliseconds of a processor for each of their tokens.
    cpu: Vec<f64>,
    prompt: u64,
    pub(super) mixed: Option<Mixed>,
    pub(super) queue: Option<Queue>,
}

impl Half {
    /// Adds a lone stream; `before` and `after` are the group's processor time.
    pub(super) fn lone(&mut self, seen: &Seen, before: Option<u64>, after: Option<u64>) -> anyhow::Result<()> {
        self.rates.push(seen.rate()?);
        self.prompt = seen.prompt_tokens;
        if let (Some(before), Some(after)) = (before, after) {
            self.cpu.push(after.saturating_sub(before) as f64 / 1e6 / seen.tokens.max(1) as f64);
        }
        Ok(())
    }
}

/// All loads once.
#[derive(Debug, Default)]
pub(super) struct Round {
    pub(super) own: Half,
    pub(super) peer: Half,
    /// The peer with smaller pieces of prompts.
    pub(super) small: Option<Mixed>,
    /// Tokens a second of a stream beside another.
    pub(super) disturbed: f64,
    /// The queue and what comes behind it as one tenant's.
    pub(super) arrival: Option<Queue>,
}

/// The middle one, or the mean of the two in the middle.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let (below, above) = (values.get(values.len().saturating_sub(1) / 2), values.get(values.len() / 2));
    match (below, above) {
        (Some(below), Some(above)) => f64::midpoint(*below, *above),
        _ => f64::NAN,
    }
}

fn rounded(value: f64) -> f64 {
    (value * 1_000.0).round() / 1_000.0
}

fn millis(span: Duration) -> f64 {
    span.as_secs_f64() * 1_000.0
}

/// As they are told: whole numbers, in the order of the rounds.
fn list(values: &[f64]) -> String {
    let all: Vec<_> = values.iter().map(|value| format!("{value:.0}")).collect();
    format!("[{}]", all.join(", "))
}

fn of<T: Copy>(
    rounds: &[Round],
    take: impl Fn(&Round) -> Option<T>,
    tell: impl Fn(T) -> f64,
) -> anyhow::Result<Vec<f64>> {
    rounds.iter().map(|round| take(round).map(&tell).context("a load was not measured")).collect()
}

/// The figures of all rounds; what was not measured is told as such.
pub(super) fn figures(rounds: &[Round]) -> Vec<Figure> {
    let all = lone(rounds).and_then(|one| Ok([one, mixed(rounds)?, queue(rounds)?].concat()));
    all.unwrap_or_else(|error| vec![Figure::skipped("speed beside llama.cpp's own server", &format!("{error:#}"))])
}

fn lone(rounds: &[Round]) -> anyhow::Result<Vec<Figure>> {
    let every = |half: fn(&Round) -> &Vec<f64>| rounds.iter().flat_map(|round| half(round).clone()).collect::<Vec<_>>();
    let (own, peer) = (every(|round| &round.own.rates), every(|round| &round.peer.rates));
    let (cpu, peer_cpu) = (every(|round| &round.own.cpu), every(|round| &round.peer.cpu));
    // Neighbours in time are compared with each other.
    let pairs = own.iter().zip(&peer).map(|(own, peer)| own / peer).collect();
    let ratio = median(pairs);
    let disturbed = median(rounds.iter().map(|round| round.disturbed).collect()) / median(peer.clone());
    let prompts = rounds.iter().map(|round| (round.own.prompt, round.peer.prompt)).collect::<Vec<_>>();
    let (prompt, peer_prompt) = prompts.first().copied().context("a lone stream")?;
    Ok(vec![
        Figure::exactly("tokens of a prompt, beyond those that the peer counts", prompt as i64 - peer_prompt as i64, 0),
        Figure::new(
            "one stream's tokens a second, over the peer's",
            rounded(ratio),
            format!(">= {LONE}"),
            ratio >= LONE,
        )
        .control(format!("{} beside another stream", rounded(disturbed)), disturbed < LONE)
        .peer(&format!(
            "tokens a second, medians of {}: {:.1}, llama-server {:.1}; ms of a processor for a token: {:.2}, {:.2}",
            own.len(),
            median(own.clone()),
            median(peer),
            median(cpu),
            median(peer_cpu)
        )),
    ])
}

fn mixed(rounds: &[Round]) -> anyhow::Result<Vec<Figure>> {
    let gap = |mixed: Mixed| millis(mixed.gap);
    let first = |mixed: Mixed| millis(mixed.first);
    let gaps = of(rounds, |round| round.own.mixed, gap)?;
    let (peers, smalls) = (of(rounds, |round| round.peer.mixed, gap)?, of(rounds, |round| round.small, gap)?);
    let worst = gaps.iter().copied().fold(0.0, f64::max).round() as i64;
    let (firsts, peer_firsts) =
        (of(rounds, |round| round.own.mixed, first)?, of(rounds, |round| round.peer.mixed, first)?);
    let small_firsts = of(rounds, |round| round.small, first)?;
    let ratio = median(firsts.iter().zip(&peer_firsts).map(|(own, peer)| own / peer).collect());
    let tokens = rounds.first().and_then(|round| round.own.mixed).map_or(0, |mixed| mixed.prompt);
    Ok(vec![
        Figure::at_most("ms of the longest gap in three streams while a long prompt is read", worst, GAP)
            .control(format!("llama-server: {}", list(&peers)), peers.iter().all(|gap| *gap > GAP as f64))
            .peer(&format!("all: {}; llama-server -b 128: {}; {tokens} tokens", list(&gaps), list(&smalls))),
        Figure::new(
            "the long prompt's first token, over the peer's",
            rounded(ratio),
            format!("<= {LONG}"),
            ratio <= LONG,
        )
        .peer(&format!(
            "ms: {}; llama-server {}; with -b 128 {}",
            list(&firsts),
            list(&peer_firsts),
            list(&small_firsts)
        )),
    ])
}

fn queue(rounds: &[Round]) -> anyhow::Result<Vec<Figure>> {
    let late = |queue: Queue| millis(queue.late);
    let rate = |queue: Queue| queue.rate;
    let lates = of(rounds, |round| round.own.queue, late)?;
    let worst = lates.iter().copied().fold(0.0, f64::max).round() as i64;
    let (arrivals, peers) = (of(rounds, |round| round.arrival, late)?, of(rounds, |round| round.peer.queue, late)?);
    let rates = of(rounds, |round| round.own.queue, rate)?;
    let (arrival_rates, peer_rates) =
        (of(rounds, |round| round.arrival, rate)?, of(rounds, |round| round.peer.queue, rate)?);
    let over = |others: &[f64]| median(rates.iter().zip(others).map(|(own, other)| own / other).collect());
    let (fair, peer) = (over(&arrival_rates), over(&peer_rates));
    let missed = arrivals.iter().all(|late| *late > LATE as f64);
    Ok(vec![
        Figure::at_most("ms until a late tenant's first token behind another's 24 requests", worst, LATE)
            .control(format!("the same as one tenant's, so by arrival: {}", list(&arrivals)), missed)
            .peer(&format!("all: {}; llama-server: {}", list(&lates), list(&peers))),
        Figure::new(
            "tokens a second of both tenants, over arrival order",
            rounded(fair),
            format!(">= {FAIR}"),
            fair >= FAIR,
        )
        .peer(&format!(
            "{}; by arrival {}; llama-server {}",
            list(&rates),
            list(&arrival_rates),
            list(&peer_rates)
        )),
        Figure::new("the same over llama-server", rounded(peer), format!(">= {FAIR}"), peer >= FAIR),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_is_the_middle() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median(Vec::new()).is_nan());
    }
}
