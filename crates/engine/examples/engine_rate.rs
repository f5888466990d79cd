//! `cargo xtask bench engine -- --model FILE`: the step loop beside bare calls of llama.cpp and beside arrival order, in one
//! process and on one thread. Alternating, medians of several rounds; says so where the machine was not quiet.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use sluice_engine::clock::{Clock, HostClock};
use sluice_engine::cost::CostModel;
use sluice_engine::engine::{Engine as _, Feed, Vocabulary as _};
use sluice_engine::fair::Class;
use sluice_engine::llama::{LlamaEngine, LlamaModel, LlamaOptions};
use sluice_engine::meter::MeterFolder;
use sluice_engine::runner::{Bounds, Origin, Runner, Submission};
use sluice_engine::sample::Sampling;
use sluice_engine::schedule::{Order, Rules};
use sluice_proto::v1::engine_reply::Message;

type Failure = Box<dyn std::error::Error>;

/// The longest prompt that arrives beside others.
const LONG: usize = 1_800;
/// A load above this makes figures of no use.
const QUIET: f64 = 1.5;
/// Sequences whose common steps are timed, and steps of each number.
const WIDTHS: std::ops::RangeInclusive<u32> = 1..=16;
const STEPS: u32 = 12;

struct Options {
    model: PathBuf,
    json: Option<PathBuf>,
    rounds: usize,
}

fn options() -> Result<Options, Failure> {
    let mut words = std::env::args().skip(1);
    let (mut model, mut json, mut rounds) = (None, None, 3);
    while let Some(word) = words.next() {
        let value = words.next().ok_or_else(|| format!("{word} wants a value"))?;
        match word.as_str() {
            "--model" => model = Some(PathBuf::from(value)),
            "--json" => json = Some(PathBuf::from(value)),
            "--rounds" => rounds = value.parse()?,
            _ => return Err(format!("unknown argument: {word}").into()),
        }
    }
    Ok(Options { model: model.ok_or("--model FILE is missing")?, json, rounds })
}

fn main() -> Result<(), Failure> {
    let options = options()?;
    let model = LlamaModel::load(&std::fs::File::open(&options.model)?)?;
    let load = load_average();
    if load > QUIET {
        eprintln!("the machine's load is {load}: these figures are not to be compared");
    }
    let (mut bare, mut stream) = (Vec::new(), Vec::new());
    for _ in 0..options.rounds {
        bare.push(bare_stream(&model)?);
        stream.push(one_stream(&model)?);
    }
    let (bare, stream) = (median(bare), median(stream));
    println!("one stream: bare {bare:.1} tok/s, step loop {stream:.1} tok/s, {:.3}", stream / bare);
    let mut report = BTreeMap::from([
        ("load".to_owned(), load),
        ("single_bare_tok_s".to_owned(), bare),
        ("single_tok_s".to_owned(), stream),
        ("single_ratio".to_owned(), stream / bare),
    ]);
    let mut figures: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for _ in 0..options.rounds {
        for (name, rules) in [("fair", Rules::default()), ("arrival", by_arrival())] {
            let mut note = |what: &str, value| figures.entry(format!("{what}_{name}")).or_default().push(value);
            note("eight_tok_s", many_streams(&model, rules, 8)?);
            let (gap, first) = mixed(&model, rules)?;
            note("mixed_gap_s", gap);
            note("mixed_first_s", first);
            let (first, total) = late(&model, rules)?;
            note("late_first_s", first);
            note("late_total_s", total);
        }
    }
    for (name, full) in [("free", false), ("full", true)] {
        let steps = widths(&model, full)?;
        let told: Vec<_> = steps.iter().map(|(width, millis)| format!("{width}: {millis:.1}")).collect();
        println!("ms of a step by its sequences, other places {name}: {}", told.join(", "));
        report.extend(steps.into_iter().map(|(width, millis)| (format!("step_ms_{width}_{name}"), millis)));
    }
    report.extend(figures.into_iter().map(|(name, values)| (name, median(values))));
    for name in ["fair", "arrival"] {
        let of = |what: &str| report.get(&format!("{what}_{name}")).copied().unwrap_or(f64::NAN);
        println!("{name}: 8 streams {:.1} tok/s in all", of("eight_tok_s"));
        let (gap, first) = (of("mixed_gap_s"), of("mixed_first_s"));
        println!(
            "{name}: 3 streams, {LONG} tokens arrive: worst gap {gap:.3} s, first token of the long one {first:.2} s"
        );
        let (first, total) = (of("late_first_s"), of("late_total_s"));
        println!("{name}: late tenant behind 24 requests: worst first token {first:.2} s, all done in {total:.1} s");
    }
    if let Some(file) = options.json {
        std::fs::write(file, serde_json::to_vec_pretty(&report)?)?;
    }
    Ok(())
}

/// What engines without a schedule of their own do: whoever came first, and prompts as long as a batch.
fn by_arrival() -> Rules {
    Rules { order: Order::Arrival, step: f64::INFINITY, quiet: f64::INFINITY, ..Rules::default() }
}

fn load_average() -> f64 {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().and_then(|first| first.parse().ok()).unwrap_or(f64::NAN)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn engine(model: &LlamaModel) -> Result<LlamaEngine, Failure> {
    let options = LlamaOptions { context: 2_048, cache: 1 << 30, slots: 10, threads: 1 };
    Ok(LlamaEngine::new(model, &options)?)
}

/// Text of so many tokens, different for each number.
fn prompt(model: &LlamaModel, tokens: usize, number: u64) -> Vec<u32> {
    let size = u64::from(model.size());
    let next = |index: usize| {
        let mixed =
            (number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add((index as u64).wrapping_mul(0xbf58_476d));
        u32::try_from(1_000 + (mixed >> 16) % (size - 2_000)).unwrap_or(1_000)
    };
    (0..tokens).map(next).collect()
}

const ANSWER: u32 = 128;

fn bare_stream(model: &LlamaModel) -> Result<f64, Failure> {
    let mut engine = engine(model)?;
    // As the step loop's is: memory is touched once before anything is measured.
    for number in 0..4 {
        let slot = engine.open().ok_or("no slot")?;
        let warm = prompt(model, 224, number);
        let feeds = (0..).zip(&warm).map(|(position, token)| Feed {
            slot,
            token: *token,
            position,
            logits: false,
            generated: false,
        });
        engine.step(&feeds.collect::<Vec<_>>())?;
    }
    (0..4).for_each(|slot| engine.close(slot));
    let slot = engine.open().ok_or("no slot")?;
    let feed = |token, position, logits| Feed { slot, token, position, logits, generated: position >= 64 };
    let prompt = prompt(model, 64, 0);
    let batch: Vec<Feed> = (0..)
        .zip(&prompt)
        .map(|(position, token)| feed(*token, position, position as usize + 1 == prompt.len()))
        .collect();
    engine.step(&batch)?;
    let mut last = best(engine.logits(prompt.len() - 1));
    let start = Instant::now();
    for position in (u32::try_from(prompt.len())?..).take(ANSWER as usize) {
        engine.step(&[feed(last, position, true)])?;
        last = best(engine.logits(0));
    }
    Ok(f64::from(ANSWER) / start.elapsed().as_secs_f64())
}

/// Milliseconds of a step by how many sequences it has, in places side by side, with 100 to 300 tokens of context each. Where
/// the other places are free, they fill groups of rows up; where all are `full`, none does.
fn widths(model: &LlamaModel, full: bool) -> Result<Vec<(u32, f64)>, Failure> {
    const BEFORE: u32 = 100;
    let options = LlamaOptions { context: 512, cache: 1 << 30, slots: *WIDTHS.end(), threads: 1 };
    let mut engine = LlamaEngine::new(model, &options)?;
    let (mut places, mut all) = (Vec::new(), Vec::new());
    for width in WIDTHS {
        while places.len() < if full { *WIDTHS.end() } else { width } as usize {
            let slot = engine.open().ok_or("no slot")?;
            let feed = |(position, token)| Feed { slot, token, position, logits: false, generated: false };
            let before = prompt(model, BEFORE as usize, u64::from(slot));
            engine.step(&(0..).zip(before).map(feed).collect::<Vec<_>>())?;
            places.push((slot, BEFORE));
        }
        let mut times = Vec::new();
        for token in 1_000..1_000 + STEPS {
            let mut batch = Vec::new();
            for (slot, length) in places.iter_mut().take(width as usize) {
                batch.push(Feed { slot: *slot, token, position: *length, logits: true, generated: true });
                *length += 1;
            }
            let start = Instant::now();
            engine.step(&batch)?;
            times.push(start.elapsed().as_secs_f64() * 1e3);
        }
        all.push((width, median(times)));
    }
    Ok(all)
}

fn best(logits: &[f32]) -> u32 {
    let best = (0..).zip(logits).max_by(|a: &(u32, &f32), b| a.1.total_cmp(b.1));
    best.map_or(0, |(token, _)| token)
}

/// A step loop with its clock, and the times at which tokens came.
struct Stand {
    runner: Runner,
    clock: HostClock,
    came: BTreeMap<u64, Vec<f64>>,
    _meter: tempfile::TempDir,
}

impl Stand {
    fn new(model: &LlamaModel, rules: Rules) -> Result<Self, Failure> {
        let folder = tempfile::tempdir()?;
        let meter = Box::new(MeterFolder::open(folder.path())?);
        let bounds = Bounds { rules, window: 4_096, ..Bounds::default() };
        let cost = CostModel::new(4e6, 4e6, 2e6, 0.5e6);
        let mut runner = Runner::new(Box::new(engine(model)?), Arc::new(model.clone()), meter, cost, bounds, 1);
        // The cost model has seen some steps before anything is measured, as in a worker that has served.
        let clock = HostClock::default();
        for number in 0..4 {
            runner.submit(submission(model, 1_000 + number, "warm", 200, 24));
        }
        while !runner.idle() {
            runner.step(&clock);
        }
        Ok(Self { runner, clock, came: BTreeMap::new(), _meter: folder })
    }

    fn now(&self) -> f64 {
        self.clock.monotonic() as f64 / 1e9
    }

    fn step(&mut self) {
        let replies = self.runner.step(&self.clock);
        let now = self.now();
        for reply in replies {
            if let Message::Token(token) = reply.message {
                self.came.entry(token.sequence).or_default().push(now);
            }
        }
    }

    fn tokens(&self, sequence: u64) -> usize {
        self.came.get(&sequence).map_or(0, Vec::len)
    }
}

fn submission(model: &LlamaModel, sequence: u64, tenant: &str, tokens: usize, answer: u32) -> Submission {
    Submission {
        origin: Origin { connection: 1, sequence },
        tenant: tenant.to_owned(),
        weight: 1,
        class: Class::Interactive,
        request: String::new(),
        prompt: prompt(model, tokens, sequence),
        generated: Vec::new(),
        max_tokens: answer,
        sampling: Sampling::read(None).unwrap_or_else(|fault| panic!("{fault}")),
        stop: Vec::new(),
        ignore_end: true,
    }
}

fn one_stream(model: &LlamaModel) -> Result<f64, Failure> {
    let mut stand = Stand::new(model, Rules::default())?;
    stand.runner.submit(submission(model, 0, "a", 64, ANSWER + 1));
    while !stand.runner.idle() {
        stand.step();
    }
    let came = &stand.came[&0];
    Ok(f64::from(ANSWER) / (came[came.len() - 1] - came[0]))
}

fn many_streams(model: &LlamaModel, rules: Rules, streams: u64) -> Result<f64, Failure> {
    let mut stand = Stand::new(model, rules)?;
    for sequence in 0..streams {
        stand.runner.submit(submission(model, sequence, "a", 64, ANSWER));
    }
    while (0..streams).any(|sequence| stand.tokens(sequence) == 0) {
        stand.step();
    }
    let (start, before) = (stand.now(), stand.came.values().map(Vec::len).sum::<usize>());
    while !stand.runner.idle() {
        stand.step();
    }
    let tokens = stand.came.values().map(Vec::len).sum::<usize>() - before;
    Ok(tokens as f64 / (stand.now() - start))
}

/// The worst time between two tokens of three streams while a long prompt arrives, and when its first token came.
fn mixed(model: &LlamaModel, rules: Rules) -> Result<(f64, f64), Failure> {
    let mut stand = Stand::new(model, rules)?;
    for sequence in 0..3 {
        stand.runner.submit(submission(model, sequence, "a", 40, 1_200));
    }
    while (0..3).any(|sequence| stand.tokens(sequence) < 16) {
        stand.step();
    }
    let arrived = stand.now();
    stand.runner.submit(submission(model, 9, "b", LONG, 8));
    while stand.tokens(9) == 0 {
        stand.step();
    }
    let gap = (0..3).flat_map(|sequence| {
        let during = stand.came[&sequence].windows(2).filter(|pair| pair[1] > arrived);
        during.map(|pair| pair[1] - pair[0]).collect::<Vec<_>>()
    });
    Ok((gap.fold(0.0, f64::max), stand.came[&9][0] - arrived))
}

/// One tenant queues 24 requests; another sends one every two seconds: its worst wait for a first token, and the time of all.
fn late(model: &LlamaModel, rules: Rules) -> Result<(f64, f64), Failure> {
    let mut stand = Stand::new(model, rules)?;
    let start = stand.now();
    for sequence in 0..24 {
        stand.runner.submit(submission(model, sequence, "a", 80, 96));
    }
    let mut sent = BTreeMap::new();
    while !stand.runner.idle() || sent.len() < 4 {
        let next = sent.len() as u64;
        if next < 4 && stand.now() - start > 1.0 + 2.0 * next as f64 {
            stand.runner.submit(submission(model, 100 + next, "b", 80, 24));
            sent.insert(100 + next, stand.now());
        }
        stand.step();
    }
    let waits = sent.iter().map(|(sequence, at)| stand.came[sequence][0] - at);
    Ok((waits.fold(0.0, f64::max), stand.now() - start))
}
