//! The engine with a real model: what it answers in a crowd and after a move is what it answers alone, to the last token. SKIPPED
//! where the model was not fetched (`scripts/setup.sh`).
#![cfg(feature = "llama")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use sluice_engine::clock::HostClock;
use sluice_engine::cost::CostModel;
use sluice_engine::engine::{Engine, Feed, Marks, Vocabulary};
use sluice_engine::fair::Class;
use sluice_engine::inspect::inspect;
use sluice_engine::llama::{LlamaEngine, LlamaModel, LlamaOptions, requantize};
use sluice_engine::meter::{MeterFolder, read_folder};
use sluice_engine::runner::{Bounds, Origin, Runner, Submission};
use sluice_engine::sample::Sampling;
use sluice_proto::v1::{EngineFinish, EngineMessage, EngineSampling, engine_reply::Message};

const TOKENS: u32 = 80;

/// The model as it is fetched.
fn fetched() -> Option<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")))?;
    let path = cache.join("sluice/models/SmolLM2-135M-Instruct.Q4_1.gguf");
    if !path.is_file() {
        eprintln!("SKIPPED: {} is missing; scripts/setup.sh fetches it", path.display());
        return None;
    }
    Some(path)
}

/// The model as Q4_0, which computes four times faster, and its tokens.
fn model() -> Option<&'static (PathBuf, LlamaModel)> {
    static MODEL: OnceLock<Option<(PathBuf, LlamaModel)>> = OnceLock::new();
    let made = || {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("smollm2-q4_0-{}.gguf", std::process::id()));
        requantize(&fetched()?, &path, 2).unwrap();
        let model = LlamaModel::load(&std::fs::File::open(&path).unwrap()).unwrap();
        // Mapped: it stays for as long as this process does.
        std::fs::remove_file(&path).unwrap();
        Some((path, model))
    };
    MODEL.get_or_init(made).as_ref()
}

fn engine(model: &LlamaModel) -> LlamaEngine {
    let options = LlamaOptions { context: 2_048, cache: 1 << 30, slots: 10, threads: 1 };
    LlamaEngine::new(model, &options).unwrap()
}

fn prompt(model: &LlamaModel, text: &str) -> Vec<u32> {
    let message = EngineMessage { role: "user".to_owned(), content: text.to_owned() };
    model.tokenize(&model.render(&[message]).unwrap(), Marks::Read)
}

const QUESTIONS: [&str; 8] = [
    "What is the capital of France?",
    "Write a short poem about rivers.",
    "List three prime numbers and explain why they are prime.",
    "Who wrote Hamlet?",
    "Explain photosynthesis to a child.",
    "Give me a recipe for pancakes with milk, eggs and flour. Be brief, name the amounts, and say how long each side is \
     baked, in which pan, with how much butter, and what goes well with them in the morning, at noon and in the evening. \
     Then say what could go wrong, and how the batter is kept overnight. End with a joke about cooks.",
    "Translate 'good morning' to Spanish.",
    "Name the planets of the solar system in order.",
];

/// A sequence computed alone, token by token, with nothing of the step loop around it.
fn lone(model: &LlamaModel, question: &str, sampling: &Sampling) -> Vec<u32> {
    let mut engine = engine(model);
    let slot = engine.open().unwrap();
    let (mut tokens, mut counts) = (Vec::new(), BTreeMap::new());
    let (mut next, mut position) = (prompt(model, question), 0);
    for place in 0..TOKENS {
        engine.step(&feeds(slot, &next, position, place > 0)).unwrap();
        position += next.len() as u32;
        let token = sampling.choose(engine.logits(next.len() - 1), &counts, place).token;
        *counts.entry(token).or_insert(0) += 1;
        tokens.push(token);
        next = vec![token];
    }
    tokens
}

/// Feeds of tokens to one place, from a position on; the last one's logits are wanted.
fn feeds(slot: u32, tokens: &[u32], from: u32, generated: bool) -> Vec<Feed> {
    let last = tokens.len() - 1;
    let feed = |(index, token): (usize, &u32)| Feed {
        slot,
        token: *token,
        position: from + index as u32,
        logits: index == last,
        generated,
    };
    tokens.iter().enumerate().map(feed).collect()
}

/// Seven rows are computed as eight, in the first free place, which must not remember it.
#[test]
fn a_place_that_filled_a_group_up_is_empty_afterwards() {
    let Some((_, model)) = model() else { return };
    let question = prompt(model, QUESTIONS[0]);
    let logits = |crowd: usize| {
        let mut engine = engine(model);
        let slots: Vec<u32> = (0..crowd).map(|_| engine.open().unwrap()).collect();
        for slot in &slots {
            engine.step(&feeds(*slot, &question, 0, false)).unwrap();
        }
        let position = question.len() as u32;
        for step in 0..3 {
            let batch: Vec<_> = slots.iter().flat_map(|slot| feeds(*slot, &[1_000], position + step, true)).collect();
            if !batch.is_empty() {
                engine.step(&batch).unwrap();
            }
        }
        let slot = engine.open().unwrap();
        engine.step(&feeds(slot, &question, 0, false)).unwrap();
        (slot, engine.logits(question.len() - 1).to_vec())
    };
    let ((alone, lone), (behind, crowded)) = (logits(0), logits(7));
    assert_eq!((alone, behind), (0, 7), "the place that was filled");
    assert!(lone == crowded, "another place's past shows in it");
}

fn greedy() -> Sampling {
    Sampling::read(None).unwrap()
}

fn seeded(seed: u64) -> Sampling {
    let wanted = EngineSampling { temperature: 0.8, top_p: 0.95, seed, ..EngineSampling::default() };
    Sampling::read(Some(&wanted)).unwrap()
}

/// Tokens of each sequence, by the step loop.
fn answers(model: &LlamaModel, submissions: Vec<Submission>, meter: &Path) -> BTreeMap<u64, Vec<u32>> {
    let meter = Box::new(MeterFolder::open(meter).unwrap());
    let cost = CostModel::new(4e6, 4e6, 2e6, 0.5e6);
    let vocabulary = Arc::new(model.clone());
    let mut runner = Runner::new(Box::new(engine(model)), vocabulary, meter, cost, Bounds::default(), 1);
    submissions.into_iter().for_each(|submission| runner.submit(submission));
    let clock = HostClock::default();
    let mut answers = BTreeMap::new();
    while !runner.idle() {
        for reply in runner.step(&clock) {
            match reply.message {
                Message::Token(token) => {
                    let tokens: &mut Vec<u32> = answers.entry(token.sequence).or_default();
                    assert_eq!(tokens.len() as u32, token.position - first(token.sequence));
                    tokens.push(token.token);
                }
                Message::Finished(finished) => assert_eq!(finished.finish(), EngineFinish::Length, "{finished:?}"),
                Message::Admitted(_) | Message::Load(_) | Message::Ready(_) => {}
            }
        }
    }
    answers
}

/// Sequences are numbered by their question, plus a thousand for each token that was generated before.
fn first(sequence: u64) -> u32 {
    (sequence / 1_000) as u32
}

fn submission(model: &LlamaModel, index: usize, sampling: Sampling, generated: &[u32]) -> Submission {
    Submission {
        origin: Origin { connection: 1, sequence: index as u64 + 1_000 * generated.len() as u64 },
        tenant: format!("tenant-{}", index % 3),
        weight: 1,
        class: if index % 4 == 3 { Class::Batch } else { Class::Interactive },
        request: format!("q{index}"),
        prompt: prompt(model, QUESTIONS[index]),
        generated: generated.to_vec(),
        max_tokens: TOKENS,
        sampling,
        stop: Vec::new(),
        ignore_end: true,
    }
}

#[test]
fn answers_in_a_crowd_are_those_given_alone() {
    let Some((_, model)) = model() else { return };
    let folder = tempfile::tempdir().unwrap();
    let sampling = |index: usize| if index.is_multiple_of(2) { greedy() } else { seeded(index as u64) };
    let alone: Vec<Vec<u32>> =
        QUESTIONS.iter().enumerate().map(|(index, question)| lone(model, question, &sampling(index))).collect();
    let crowd = (0..QUESTIONS.len()).map(|index| submission(model, index, sampling(index), &[])).collect();
    let answers = answers(model, crowd, folder.path());
    for (index, alone) in alone.iter().enumerate() {
        assert_eq!(answers[&(index as u64)], *alone, "{}", QUESTIONS[index]);
    }
    // The control: two sequences that were crossed are noticed, whichever two.
    for (index, alone) in alone.iter().enumerate() {
        for other in (0..QUESTIONS.len()).filter(|other| *other != index) {
            assert_ne!(answers[&(other as u64)], *alone, "{index} and {other}");
        }
    }
    metered(folder.path(), model, &answers);
}

/// The meter says what was told.
fn metered(folder: &Path, model: &LlamaModel, answers: &BTreeMap<u64, Vec<u32>>) {
    let mut generated: BTreeMap<u64, u32> = BTreeMap::new();
    let mut read: BTreeMap<u64, u32> = BTreeMap::new();
    for record in read_folder(folder).unwrap() {
        assert!(record.cpu > 0);
        for row in record.sequences {
            assert_eq!(row.generated_from, *generated.get(&row.sequence).unwrap_or(&0));
            *generated.entry(row.sequence).or_default() += row.generated_tokens;
            *read.entry(row.sequence).or_default() += row.prompt_tokens;
        }
    }
    for (sequence, tokens) in answers {
        assert_eq!(generated[sequence] as usize, tokens.len());
        assert_eq!(read[sequence] as usize, prompt(model, QUESTIONS[*sequence as usize]).len());
    }
}

#[test]
fn an_answer_goes_on_behind_what_was_generated_elsewhere() {
    let Some((_, model)) = model() else { return };
    let folder = tempfile::tempdir().unwrap();
    for sampling in [greedy(), seeded(7)] {
        // A long one: what was generated is read again in several pieces.
        let alone = lone(model, QUESTIONS[5], &sampling);
        for cut in [1, 9, 33, 70] {
            let rest = submission(model, 5, sampling.clone(), &alone[..cut]);
            let sequence = rest.origin.sequence;
            let got = answers(model, vec![rest], folder.path()).remove(&sequence).unwrap();
            assert_eq!(got, alone[cut..], "cut at {cut}");
        }
    }
    // The control: with another seed it goes on otherwise.
    let alone = lone(model, QUESTIONS[5], &seeded(7));
    let rest = submission(model, 5, seeded(8), &alone[..9]);
    assert_ne!(answers(model, vec![rest], folder.path())[&9_005], alone[9..]);
}

#[test]
fn what_tokens_spell_is_what_was_said() {
    let Some((_, model)) = model() else { return };
    let text = "Grüße, 世界! 🦀 <|im_end|> and so on";
    let tokens = model.tokenize(text, Marks::Text);
    let bytes: Vec<u8> = tokens.iter().flat_map(|token| model.piece(*token)).collect();
    assert_eq!(String::from_utf8(bytes).unwrap(), text, "marks in a text are text");
    let read = model.tokenize(text, Marks::Read);
    let marks: Vec<u32> = read.iter().copied().filter(|token| model.ends(*token)).collect();
    assert_eq!(marks.len(), 1, "in a rendered conversation they are marks");
    assert!(model.piece(marks[0]).is_empty());
    assert!(model.piece(u32::MAX).is_empty() && !model.ends(u32::MAX));
    let rendered = model.render(&[EngineMessage { role: "user".to_owned(), content: "Hi".to_owned() }]).unwrap();
    assert!(rendered.starts_with("<|im_start|>system\nYou are a helpful AI assistant named SmolLM"), "{rendered}");
    assert!(rendered.ends_with("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"), "{rendered}");
}

#[test]
fn a_model_is_inspected_and_damage_is_refused() {
    let Some(path) = fetched() else { return };
    let report = inspect(&path).unwrap();
    assert_eq!((report.header.architecture.as_str(), report.header.quantisation.as_str()), ("llama", "Q4_1"));
    assert_eq!((report.header.context, report.header.vocabulary), (8_192, 49_152));
    assert_eq!((report.size, report.header.bytes), (98_362_432, 98_362_432));
    assert!(report.header.template && report.template_fault.is_none());
    let overhead = report.overhead.unwrap();
    assert!((20..60).contains(&overhead.first) && (2..10).contains(&overhead.message), "{overhead:?}");
    // Damage in the header either is refused by our reader, or by llama.cpp; it stops nobody.
    let folder = tempfile::tempdir().unwrap();
    let whole = std::fs::read(&path).unwrap();
    let cut = folder.path().join("cut.gguf");
    std::fs::write(&cut, &whole[..whole.len() / 2]).unwrap();
    assert!(inspect(&cut).unwrap_err().to_string().contains("beyond the end of the file"));
}
