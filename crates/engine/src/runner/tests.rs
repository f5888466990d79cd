//! The step loop with the simulated engine, in virtual time.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::io;
use std::rc::Rc;

use sluice_proto::v1::{EngineMetered, EngineSampling};

use super::*;
use crate::fair::Class;
use crate::sample::Sampling;
use crate::simulated::{SimulatedEngine, SimulatedVocabulary, VirtualClock};

#[derive(Default, Clone)]
struct Records(Rc<RefCell<Vec<EngineMetered>>>, Rc<RefCell<bool>>);

impl Meter for Records {
    fn append(&mut self, record: EngineMetered) -> io::Result<()> {
        if *self.1.borrow() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.0.borrow_mut().push(record);
        Ok(())
    }
}

struct Bench {
    runner: Runner,
    clock: VirtualClock,
    records: Records,
    replies: Vec<Message>,
}

fn bench_with(change: impl FnOnce(&mut SimulatedEngine, &mut Bounds)) -> Bench {
    let clock = VirtualClock::default();
    let records = Records::default();
    let mut engine = SimulatedEngine::small(clock.clone());
    let mut bounds = Bounds::default();
    change(&mut engine, &mut bounds);
    let cost = CostModel::new(4e6, 4e6, 2e6, 0.5e6);
    let meter = Box::new(records.clone());
    let runner = Runner::new(Box::new(engine), Arc::new(SimulatedVocabulary), meter, cost, bounds, 7);
    Bench { runner, clock, records, replies: Vec::new() }
}

fn bench() -> Bench {
    bench_with(|_, _| ())
}

fn submission(sequence: u64, prompt: &str) -> Submission {
    Submission {
        origin: Origin { connection: 1, sequence },
        tenant: "t".to_owned(),
        weight: 1,
        class: Class::Interactive,
        request: format!("r{sequence}"),
        prompt: prompt.bytes().map(u32::from).collect(),
        generated: Vec::new(),
        max_tokens: 30,
        sampling: Sampling::read(None).unwrap(),
        stop: Vec::new(),
        ignore_end: true,
    }
}

fn seeded(seed: u64) -> Sampling {
    let wanted = EngineSampling { temperature: 1.0, seed, ..EngineSampling::default() };
    Sampling::read(Some(&wanted)).unwrap()
}

impl Bench {
    fn step(&mut self) {
        let replies = self.runner.step(&self.clock);
        self.replies.extend(replies.into_iter().map(|reply| reply.message));
    }

    fn run(&mut self) {
        for _ in 0..5_000 {
            if self.runner.idle() {
                break;
            }
            self.step();
        }
        self.replies.extend(self.runner.replies().into_iter().map(|reply| reply.message));
    }

    fn tokens(&self, sequence: u64) -> Vec<u32> {
        let of = |message: &Message| match message {
            Message::Token(token) if token.sequence == sequence => Some(token.token),
            _ => None,
        };
        self.replies.iter().filter_map(of).collect()
    }

    fn text(&self, sequence: u64) -> String {
        let mut text = Vec::new();
        for message in &self.replies {
            match message {
                Message::Token(token) if token.sequence == sequence => text.extend_from_slice(&token.text),
                Message::Finished(finished) if finished.sequence == sequence => text.extend_from_slice(&finished.text),
                _ => {}
            }
        }
        String::from_utf8(text).unwrap()
    }

    fn finished(&self, sequence: u64) -> EngineFinished {
        let of = |message: &Message| match message {
            Message::Finished(finished) if finished.sequence == sequence => Some(finished.clone()),
            _ => None,
        };
        self.replies.iter().find_map(of).unwrap_or_else(|| panic!("{sequence} is not over"))
    }
}

fn lone(submission: Submission) -> Bench {
    let mut bench = bench();
    bench.runner.submit(submission);
    bench.run();
    bench
}

#[test]
fn a_sequence_is_admitted_generates_and_ends() {
    let bench = lone(submission(1, "hello"));
    assert!(matches!(&bench.replies[0], Message::Admitted(admitted) if admitted.prompt_tokens == 5));
    let positions: Vec<u32> = bench
        .replies
        .iter()
        .filter_map(|message| match message {
            Message::Token(token) => Some(token.position),
            _ => None,
        })
        .collect();
    assert_eq!(positions, (0..30).collect::<Vec<_>>());
    let finished = bench.finished(1);
    assert_eq!((finished.finish(), finished.prompt_tokens, finished.generated_tokens), (EngineFinish::Length, 5, 30));
    assert_eq!(bench.text(1).len(), 30);
}

/// Many at once, of several tenants, of which some generate with seeds.
fn crowd() -> Vec<Submission> {
    (1..=24)
        .map(|number| {
            let mut one = submission(number, &"prompt of some length ".repeat(1 + number as usize % 9));
            one.tenant = format!("t{}", number % 3);
            one.sampling = if number % 2 == 0 { seeded(number) } else { one.sampling };
            one.prompt.push(number as u32);
            one
        })
        .collect()
}

/// Sequences of a crowd whose tokens differ from those of their lone runs.
fn differing(bench: &Bench) -> usize {
    let differs = |one: &Submission| bench.tokens(one.origin.sequence) != lone(one.clone()).tokens(one.origin.sequence);
    crowd().iter().filter(|one| differs(one)).count()
}

#[test]
fn together_they_generate_what_each_does_alone() {
    let mut together = bench();
    crowd().into_iter().for_each(|one| together.runner.submit(one));
    together.run();
    assert_eq!(differing(&together), 0);
    // The control: an engine that mixes sequences up is noticed.
    let mut crossed = bench_with(|engine, _| engine.crossed = true);
    crowd().into_iter().for_each(|one| crossed.runner.submit(one));
    crossed.run();
    assert!(differing(&crossed) > 0);
}

#[test]
fn put_out_and_read_again_they_go_on_as_if_nothing_was() {
    // Cells for a third of them: places are given up and taken again all the time.
    let mut tight = bench_with(|engine, _| *engine = tight_engine(engine));
    crowd().into_iter().for_each(|one| tight.runner.submit(one));
    tight.run();
    assert_eq!(differing(&tight), 0);
    let records = tight.records.0.borrow();
    let replayed: u32 = records.iter().flat_map(|record| &record.sequences).map(|row| row.replayed_tokens).sum();
    assert!(replayed > 0, "nobody was put out: the test shows nothing");
    drop(records);
    metered_once(&tight);
}

fn tight_engine(engine: &SimulatedEngine) -> SimulatedEngine {
    let facts = Facts { context: 256, cells: 400, ..engine.facts() };
    SimulatedEngine::new(facts, CostModel::new(4e6, 4e6, 2e6, 0.5e6), engine.clock())
}

/// The meter has what was told: each prompt once, each place once, and time that adds up.
fn metered_once(bench: &Bench) {
    let mut places = BTreeSet::new();
    let mut prompts: BTreeMap<u64, u32> = BTreeMap::new();
    for record in bench.records.0.borrow().iter() {
        assert_eq!(record.sequences.iter().map(|row| row.wall).sum::<u64>(), record.wall);
        for row in &record.sequences {
            let so_far = prompts.entry(row.sequence).or_insert(0);
            if row.prompt_tokens > 0 {
                assert_eq!(row.prompt_from, *so_far, "a gap, or a token twice");
            }
            *so_far += row.prompt_tokens;
            for place in row.generated_from..row.generated_from + row.generated_tokens {
                assert!(places.insert((row.sequence, place)), "{} twice at {place}", row.sequence);
            }
        }
    }
    let told: BTreeSet<(u64, u32)> = bench
        .replies
        .iter()
        .filter_map(|message| match message {
            Message::Token(token) => Some((token.sequence, token.position)),
            _ => None,
        })
        .collect();
    assert_eq!(places, told);
    for (sequence, tokens) in prompts {
        assert_eq!(bench.finished(sequence).prompt_tokens, tokens);
    }
}

#[test]
fn the_meter_has_what_was_told_each_once() {
    let mut bench = bench();
    crowd().into_iter().for_each(|one| bench.runner.submit(one));
    bench.run();
    metered_once(&bench);
}

#[test]
fn a_sequence_goes_on_behind_what_another_worker_generated() {
    for sampling in [Sampling::read(None).unwrap(), seeded(5)] {
        let mut whole = submission(1, "a beginning");
        (whole.sampling, whole.stop) = (sampling, vec![b"qqq".to_vec()]);
        let alone = lone(whole.clone());
        let tokens = alone.tokens(1);
        for cut in 0..tokens.len() {
            let mut rest = whole.clone();
            rest.generated = tokens[..cut].to_vec();
            let resumed = lone(rest);
            assert_eq!(resumed.tokens(1), tokens[cut..], "behind {cut}");
            assert_eq!(resumed.finished(1).generated_tokens, 30);
            // The prompt was billed where it was read first.
            let records = resumed.records.0.borrow();
            let prompt: u32 = records.iter().flat_map(|record| &record.sequences).map(|row| row.prompt_tokens).sum();
            assert_eq!(prompt, if cut == 0 { 11 } else { 0 });
        }
    }
    // The control: with another seed it goes on otherwise.
    let mut whole = submission(1, "a beginning");
    whole.sampling = seeded(5);
    let tokens = lone(whole.clone()).tokens(1);
    (whole.generated, whole.sampling) = (tokens[..10].to_vec(), seeded(6));
    assert_ne!(lone(whole).tokens(1), tokens[10..]);
}

#[test]
fn what_was_held_back_before_a_move_is_shown_after_it() {
    let mut whole = submission(1, "a beginning");
    let text = lone(whole.clone()).text(1);
    let stop = text[10..14].to_owned();
    whole.stop = vec![stop.clone().into_bytes()];
    let stopped = lone(whole.clone());
    assert_eq!(stopped.text(1), text[..text.find(&stop).unwrap()]);
    assert_eq!(stopped.finished(1).finish(), EngineFinish::Stop);
    // As many tokens as are needed to complete the stop text are told, and no more.
    let tokens = stopped.tokens(1);
    assert_eq!(tokens.len(), text.find(&stop).unwrap() + 4);
    for cut in 0..tokens.len() {
        let mut before = whole.clone();
        before.max_tokens = cut as u32;
        let mut shown = if cut == 0 { String::new() } else { lone(before).text(1) };
        if cut > 0 {
            // What the first worker held back it would not have shown, had it been cut off.
            let mut scan = crate::text::StopScan::new(whole.stop.clone());
            let bytes: Vec<u8> = tokens[..cut].iter().map(|token| *token as u8).collect();
            shown = String::from_utf8(scan.push(&bytes).shown).unwrap();
        }
        let mut rest = whole.clone();
        rest.generated = tokens[..cut].to_vec();
        assert_eq!(shown + &lone(rest).text(1), stopped.text(1), "cut at {cut}");
    }
}

#[test]
fn what_is_over_already_is_told_without_a_step() {
    let mut bench = bench();
    let mut full = submission(1, "x");
    (full.generated, full.max_tokens) = (vec![97, 98], 2);
    let mut stopped = submission(2, "x");
    (stopped.generated, stopped.stop) = (vec![97, 98], vec![b"ab".to_vec()]);
    let mut ended = submission(3, "x");
    (ended.generated, ended.ignore_end) = (vec![97, 256], false);
    [full, stopped, ended].into_iter().for_each(|one| bench.runner.submit(one));
    bench.run();
    let finishes = [1, 2, 3].map(|sequence| bench.finished(sequence).finish());
    assert_eq!(finishes, [EngineFinish::Length, EngineFinish::Stop, EngineFinish::Stop]);
    assert!(bench.records.0.borrow().is_empty());
}

#[test]
fn the_end_of_the_text_ends_it_and_is_no_token_of_it() {
    let mut one = submission(1, "some text");
    (one.ignore_end, one.max_tokens) = (false, 1_000);
    let bench = lone(one);
    let finished = bench.finished(1);
    assert_eq!(finished.finish(), EngineFinish::Stop);
    assert_eq!(finished.generated_tokens as usize, bench.tokens(1).len());
    assert!(!bench.tokens(1).contains(&256));
}

#[test]
fn the_context_ends_it() {
    let mut one = submission(1, &"x".repeat(2_040));
    one.max_tokens = 1_000;
    let bench = lone(one);
    assert_eq!((bench.finished(1).finish(), bench.tokens(1).len()), (EngineFinish::Length, 8));
}

#[test]
fn a_cancelled_one_is_gone_within_a_step() {
    let mut bench = bench();
    for number in 1..=8 {
        bench.runner.submit(submission(number, "text"));
    }
    bench.step();
    bench.step();
    assert_eq!(bench.runner.load().running, 8);
    bench.runner.cancel(Origin { connection: 1, sequence: 3 });
    bench.runner.submit(submission(9, "text"));
    assert_eq!(bench.runner.load().running, 7);
    let before = bench.tokens(3).len();
    bench.step();
    assert_eq!(bench.runner.load().running, 8, "the free place is taken by the next step");
    assert_eq!((bench.tokens(3).len(), bench.finished(3).finish()), (before, EngineFinish::Cancelled));
    bench.runner.cancel(Origin { connection: 1, sequence: 3 });
    bench.runner.cancel(Origin { connection: 2, sequence: 1 });
    bench.run();
    assert_eq!(bench.replies.iter().filter(|message| matches!(message, Message::Finished(_))).count(), 9);
}

#[test]
fn a_connection_takes_its_sequences_with_it() {
    let mut bench = bench();
    for connection in [1, 2] {
        let mut one = submission(1, "text");
        one.origin.connection = connection;
        bench.runner.submit(one);
    }
    bench.step();
    bench.runner.disconnect(1);
    assert_eq!(bench.runner.load().running, 1);
    for _ in 0..100 {
        for reply in bench.runner.step(&bench.clock) {
            assert_eq!(reply.connection, 2);
        }
    }
}

#[test]
fn a_slow_reader_pauses_itself_and_nobody_else() {
    let mut bench = bench_with(|_, bounds| bounds.window = 4);
    for number in [1, 2] {
        bench.runner.submit(submission(number, "text"));
    }
    for tokens in 0..40 {
        bench.step();
        bench.runner.taken(Origin { connection: 1, sequence: 2 }, tokens);
    }
    assert_eq!((bench.tokens(1).len(), bench.tokens(2).len()), (4, 30));
    assert!(bench.runner.idle(), "it does not spin");
    bench.runner.taken(Origin { connection: 1, sequence: 1 }, 3);
    bench.run();
    assert_eq!(bench.tokens(1).len(), 7);
    bench.clock.pass(59_000_000_000);
    bench.step();
    assert_eq!(bench.runner.load().running, 1);
    bench.clock.pass(2_000_000_000);
    bench.step();
    assert_eq!(bench.finished(1).reason, "SLOW_READER");
    // What readers claim to have is no more than what there is.
    let mut liar = bench_with(|_, bounds| bounds.window = 4);
    liar.runner.submit(submission(1, "text"));
    liar.runner.taken(Origin { connection: 1, sequence: 1 }, u32::MAX);
    liar.run();
    assert_eq!(liar.tokens(1).len(), 4);
}

#[test]
fn what_cannot_be_metered_is_not_told() {
    let mut bench = bench();
    bench.runner.submit(submission(1, "text"));
    bench.step();
    let told = bench.tokens(1).len();
    *bench.records.1.borrow_mut() = true;
    bench.step();
    assert_eq!(bench.tokens(1).len(), told);
    assert_eq!(bench.finished(1).reason, "METER");
    *bench.records.1.borrow_mut() = false;
    bench.runner.submit(submission(2, "text"));
    bench.run();
    assert_eq!(bench.tokens(2).len(), 30);
}

#[test]
fn a_step_that_fails_ends_its_sequences_and_frees_their_places() {
    let mut bench = bench_with(|engine, _| engine.fail_in = Some(3));
    bench.runner.submit(submission(1, "text"));
    bench.run();
    assert_eq!(bench.finished(1).reason, "ENGINE");
    assert_eq!(bench.runner.load().running, 0);
    bench.runner.submit(submission(2, "text"));
    bench.run();
    assert_eq!(bench.tokens(2).len(), 30);
}

#[test]
fn what_there_is_no_room_for_is_refused() {
    let mut bench = bench_with(|_, bounds| bounds.open = 2);
    for one in [submission(1, ""), submission(2, &"x".repeat(2_049)), submission(3, "x"), submission(3, "x")] {
        bench.runner.submit(one);
    }
    for number in [4, 5] {
        bench.runner.submit(submission(number, "x"));
    }
    bench.replies.extend(bench.runner.replies().into_iter().map(|reply| reply.message));
    let reasons = [1, 2, 3, 5].map(|sequence| bench.finished(sequence).reason);
    assert_eq!(reasons, ["INVALID", "PROMPT_TOO_LONG", "INVALID", "BUSY"]);
}

#[test]
fn the_same_days_give_the_same_steps() {
    let run = || {
        let mut bench = bench();
        crowd().into_iter().for_each(|one| bench.runner.submit(one));
        bench.run();
        (bench.clock.monotonic(), bench.records.0.borrow().clone())
    };
    assert_eq!(run(), run());
}
