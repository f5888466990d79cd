//! Engines: whatever moved, was lost or ran beside it, a client receives each token of its answer once and in order, and the
//! answer is that of the lone run of its request. What is settled is what was received, and what workers metered is never
//! less; nothing is metered twice for one sequence, and nothing is computed for somebody who is gone.
//!
//! It goes by what clients wrote down and by the records of the workers' meters. The lone run is the plain loop of [`lone`],
//! which shares the model's logits with the engine and nothing of its step loop, its schedule and its sampling.

use std::collections::BTreeMap;
use std::rc::Rc;

use sluice_engine::cost::CostModel;
use sluice_engine::engine::{Engine as _, Facts, Feed};
use sluice_engine::runner::{Origin, Submission};
use sluice_engine::simulated::{SimulatedEngine, VirtualClock};
use sluice_lifecycle::{Answer, Command, Refusal};
use sluice_proto::v1::{EngineFinish, EngineMetered, EngineMeteredSequence, EngineSampling};
use sluice_types::RequestId;

use super::Oracle;
use crate::asks::{Ask, CONTEXT};
use crate::params::{MINUTE, SECOND};
use crate::worker::WINDOW;

/// The model's token that ends a text.
const END: u32 = 256;
/// A sequence that its worker has waits at most so long for something to be computed of it.
const STARVED: u64 = 15 * MINUTE;

/// What a request comes to when nothing else is there.
#[derive(Debug)]
struct Lone {
    tokens: Vec<u32>,
    text: Vec<u8>,
    finish: EngineFinish,
}

/// A request, as its client knows it.
#[derive(Debug)]
struct Asked {
    ask: Rc<Ask>,
    /// Computed when the first token comes.
    lone: Option<Lone>,
    got: u32,
    text: Vec<u8>,
    /// The client was told that it is over.
    over: bool,
    /// The client wants no more.
    left: bool,
    /// The worker that has it, or had it last.
    worker: Option<u64>,
    /// A bit for each token that some worker metered.
    metered: u64,
    /// Tokens of the prompt that workers metered, all together.
    prompt_metered: u64,
}

/// A sequence at a worker, as its meter tells of it.
#[derive(Debug)]
struct Metered {
    request: RequestId,
    /// Tokens of the prompt so far, and of the answer.
    prompt: u32,
    next: u32,
    /// What was generated elsewhere comes with it: its prompt is metered already.
    resumed: bool,
    /// How far its reader is, as the worker was told.
    taken: u32,
    /// When it came, or something was computed of it last.
    since: u64,
}

/// What the judge knows of engines.
#[derive(Debug, Default)]
pub(crate) struct Engines {
    requests: BTreeMap<RequestId, Asked>,
    /// Sequences that are open, by worker.
    sequences: BTreeMap<(u64, Origin), Metered>,
    /// When each worker began, and for how long it has computed.
    workers: BTreeMap<u64, (u64, u64)>,
    pub(crate) tokens: u64,
    pub(crate) moved: u64,
    pub(crate) put_out: u64,
}

impl Engines {
    /// A worker serves.
    pub(crate) fn begins(&mut self, now: u64, worker: u64) {
        self.workers.insert(worker, (now, 0));
    }

    /// A worker's process is gone.
    pub(crate) fn ends(&mut self, worker: u64) {
        self.workers.remove(&worker);
        self.sequences.retain(|(of, _), _| *of != worker);
    }

    /// A request that was let in.
    pub(crate) fn asked(&mut self, request: RequestId, ask: Rc<Ask>) {
        let asked = Asked {
            ask,
            lone: None,
            got: 0,
            text: Vec::new(),
            over: false,
            left: false,
            worker: None,
            metered: 0,
            prompt_metered: 0,
        };
        self.requests.insert(request, asked);
    }

    /// A client hung up.
    pub(crate) fn left(&mut self, request: RequestId) {
        if let Some(asked) = self.requests.get_mut(&request) {
            asked.left = true;
        }
    }

    /// A worker was told to open a sequence.
    pub(crate) fn submitted(&mut self, now: u64, worker: u64, submission: &Submission) {
        let Ok(request) = submission.request.parse() else { return };
        let generated = u32::try_from(submission.generated.len()).unwrap_or(u32::MAX);
        let (prompt, resumed, since) = (0, generated > 0, now);
        let sequence = Metered { request, prompt, next: generated, resumed, taken: generated, since };
        self.sequences.insert((worker, submission.origin), sequence);
        let before = self.requests.get_mut(&request).and_then(|asked| asked.worker.replace(worker));
        self.moved += u64::from(generated > 0 && before.is_some_and(|before| before != worker));
    }

    /// A worker was told that nobody wants it any more, or said that it is over.
    pub(crate) fn silenced(&mut self, worker: u64, origin: Origin) {
        self.sequences.remove(&(worker, origin));
    }

    /// A worker was told how far the reader of a sequence is.
    pub(crate) fn taken(&mut self, worker: u64, origin: Origin, tokens: u32) {
        if let Some(sequence) = self.sequences.get_mut(&(worker, origin)) {
            sequence.taken = sequence.taken.max(tokens);
        }
    }

    /// A worker was told that nobody is at a connection any more.
    pub(crate) fn closed(&mut self, worker: u64, connection: u64) {
        self.sequences.retain(|(of, origin), _| *of != worker || origin.connection != connection);
    }
}

impl Oracle {
    /// A client received a token.
    pub(crate) fn got(&mut self, now: u64, request: RequestId, position: u32, token: u32, text: &[u8]) {
        let Some(asked) = self.engines.requests.get_mut(&request) else {
            return self.fail(now, format!("a token of {request}, which nobody asked"));
        };
        let lone = asked.lone.get_or_insert_with(|| lone(&asked.ask));
        let expected = lone.tokens.get(position as usize).copied();
        let what = if position != asked.got {
            Some(format!("token {position} after {} tokens", asked.got))
        } else if asked.over || asked.left {
            Some(format!("token {position}, and had its end"))
        } else if expected != Some(token) {
            Some(format!("{token} as token {position}; its lone run has {expected:?}"))
        } else if asked.metered >> position.min(63) & 1 == 0 {
            Some(format!("token {position}, which no worker has metered"))
        } else if asked.prompt_metered < asked.ask.prompt.len() as u64 {
            Some(format!(
                "a token, and {} of {} of its prompt are metered",
                asked.prompt_metered,
                asked.ask.prompt.len()
            ))
        } else {
            None
        };
        asked.got += 1;
        asked.text.extend_from_slice(text);
        self.engines.tokens += 1;
        if let Some(what) = what {
            self.fail(now, format!("the client of {request} received {what}"));
        }
    }

    /// A client was told that its answer is over, with the rest of its text.
    pub(crate) fn answered(&mut self, now: u64, request: RequestId, finish: EngineFinish, rest: &[u8]) {
        let Some(asked) = self.engines.requests.get_mut(&request) else {
            return self.fail(now, format!("an answer to {request}, which nobody asked"));
        };
        let lone = asked.lone.get_or_insert_with(|| lone(&asked.ask));
        asked.text.extend_from_slice(rest);
        let what = if asked.over || asked.left {
            Some("its end, and had it already".to_owned())
        } else if asked.got as usize != lone.tokens.len() || finish != lone.finish {
            Some(format!(
                "{} tokens and {finish:?}; its lone run {} and {:?}",
                asked.got,
                lone.tokens.len(),
                lone.finish
            ))
        } else if asked.text != lone.text {
            Some(format!("{:?}; its lone run has {:?}", asked.text, lone.text))
        } else {
            None
        };
        asked.over = true;
        if let Some(what) = what {
            self.fail(now, format!("the client of {request} received {what}"));
        }
    }

    /// A worker's meter has one more record, before anything of it is told.
    pub(crate) fn metered(&mut self, now: u64, worker: u64, record: &EngineMetered) {
        let Some((began, computed)) = self.engines.workers.get_mut(&worker) else { return };
        *computed += record.wall;
        let lived = now - *began;
        let mut faults = Vec::new();
        if *computed > lived + SECOND || record.sequences.iter().map(|row| row.wall).sum::<u64>() != record.wall {
            faults.push(format!("worker {worker} has metered {computed} ns in {lived} ns, the last {}", record.wall));
        }
        for row in &record.sequences {
            let what = self.engines.metered(now, worker, row);
            faults.extend(what.err().map(|what| format!("worker {worker} has metered {what} of {}", row.request)));
        }
        faults.into_iter().for_each(|fault| self.fail(now, fault));
    }

    /// The gateway gave a request up, because one worker after the other refused it. Each breaks a step or two in its life.
    pub(crate) fn refused(&mut self, now: u64, request: RequestId, why: &str) {
        self.fail(now, format!("{request} is refused again and again: {why}"));
    }

    /// What was settled, after its transaction.
    pub(super) fn check_settled(&mut self, now: u64, commands: &[Command], answers: &[Result<Answer, Refusal>]) {
        for (command, answer) in commands.iter().zip(answers) {
            let fault = match command {
                _ if answer.is_err() => None,
                Command::SettleRequest { id, prompt_tokens, completion_tokens, cached_tokens } => {
                    let told = (*prompt_tokens, *completion_tokens, *cached_tokens);
                    self.engines.settled(*id, told).err().map(|what| format!("{id} is settled for {what}"))
                }
                Command::VoidRequest(id, _) => {
                    let over = self.engines.requests.get(id).is_some_and(|asked| asked.over);
                    over.then(|| format!("{id} is credited, and its client has the whole answer"))
                }
                _ => None,
            };
            fault.into_iter().for_each(|fault| self.fail(now, fault));
        }
    }

    /// What a worker has it works at, in whatever turn.
    pub(super) fn check_starved(&mut self, now: u64) {
        let late = self.engines.sequences.iter().filter(|(_, sequence)| now - sequence.since > STARVED);
        let late: Vec<_> = late.map(|((worker, _), sequence)| (*worker, sequence.request)).collect();
        for (worker, request) in late {
            self.fail(now, format!("worker {worker} has {request} and does nothing for it"));
        }
    }
}

impl Engines {
    /// One row of a record; what is wrong with it.
    fn metered(&mut self, now: u64, worker: u64, row: &EngineMeteredSequence) -> Result<(), String> {
        let origin = Origin { connection: row.connection, sequence: row.sequence };
        let sequence = self.sequences.get_mut(&(worker, origin));
        let sequence = sequence.ok_or_else(|| "something that nobody waits for".to_owned())?;
        sequence.since = now;
        let asked = self.requests.get_mut(&sequence.request).ok_or_else(|| "what nobody asked".to_owned())?;
        if sequence.request.to_string() != row.request || asked.ask.tenant.to_string() != row.tenant {
            return Err(format!("another's tokens, {} of {}", sequence.request, asked.ask.tenant));
        }
        if row.prompt_tokens > 0 {
            if sequence.resumed {
                return Err(format!("{} of a prompt that was metered elsewhere", row.prompt_tokens));
            }
            if row.prompt_from != sequence.prompt {
                return Err(format!("its prompt from {}, having it to {}", row.prompt_from, sequence.prompt));
            }
        }
        sequence.prompt += row.prompt_tokens;
        asked.prompt_metered += u64::from(row.prompt_tokens);
        if sequence.prompt as usize > asked.ask.prompt.len() {
            return Err(format!("{} tokens of a prompt of {}", sequence.prompt, asked.ask.prompt.len()));
        }
        if row.replayed_tokens > 0 && sequence.next > 0 && !sequence.resumed {
            self.put_out += 1;
        }
        if row.generated_tokens > 1 || (row.generated_tokens == 1 && row.generated_from != sequence.next) {
            let (tokens, from) = (row.generated_tokens, row.generated_from);
            return Err(format!("{tokens} tokens from {from}, having it to {}", sequence.next));
        }
        if row.generated_tokens == 1 {
            asked.metered |= 1 << row.generated_from.min(63);
            sequence.next += 1;
        }
        if sequence.next > sequence.taken + WINDOW {
            return Err(format!("tokens to {}, and its reader is at {}", sequence.next, sequence.taken));
        }
        Ok(())
    }

    /// The tokens of a settlement; what is wrong with them.
    fn settled(&self, id: RequestId, (prompt, completion, cached): (u64, u64, u64)) -> Result<(), String> {
        let asked = self.requests.get(&id).ok_or_else(|| "what nobody was told of".to_owned())?;
        let (got, most) = (u64::from(asked.got), u64::from(asked.ask.max_tokens));
        let real = asked.ask.prompt.len() as u64;
        // An engine that claims more than was reserved is the writer's to notice: no more is paid.
        let lied = prompt > asked.ask.prompt_ceiling;
        if (prompt != real && !lied) || cached > prompt {
            return Err(format!("{prompt} tokens of its prompt, {cached} of them cached; it has {real}"));
        }
        let fine = if asked.left {
            completion == got || (asked.ask.stream && completion == got + 1)
        } else {
            asked.over && (completion == got || (lied && got == most && completion > most))
        };
        let (over, left) = (asked.over, asked.left);
        fine.then_some(()).ok_or_else(|| {
            format!("{completion} tokens; its client has received {got}, its end: {over}, and has left: {left}")
        })
    }
}

/// The lone run of a request: one engine, one sequence, a token at a time.
fn lone(ask: &Ask) -> Lone {
    let facts =
        Facts { context: CONTEXT, cells: CONTEXT + 1, slots: 1, batch: CONTEXT, threads: 1, kernels: String::new() };
    let mut engine = SimulatedEngine::new(facts, CostModel::new(1.0, 0.0, 0.0, 0.0), VirtualClock::default());
    let slot = engine.open().expect("invariant: an empty engine has a place");
    let (mut tokens, mut text) = (Vec::new(), Vec::new());
    let mut batch = Vec::new();
    let feed = |token, position, logits| Feed { slot, token, position, logits, generated: false };
    let last = ask.prompt.len() - 1;
    batch.extend((0..).zip(&ask.prompt).map(|(at, token)| feed(*token, at, at as usize == last)));
    let finish = loop {
        engine.step(&batch).expect("invariant: a prompt and its answer fit");
        let token = choose(engine.logits(batch.len() - 1), &ask.sampling, &tokens);
        if token == END && !ask.ignore_end {
            break EngineFinish::Stop;
        }
        tokens.push(token);
        text.extend(u8::try_from(token));
        // Of several that end here the longest counts.
        let stops = ask.stop.iter().filter(|stop| text.ends_with(stop)).map(Vec::len);
        if let Some(length) = stops.max().filter(|_| token != END) {
            text.truncate(text.len() - length);
            break EngineFinish::Stop;
        }
        let all = ask.prompt.len() + tokens.len();
        if tokens.len() >= ask.max_tokens as usize || all >= CONTEXT as usize {
            break EngineFinish::Length;
        }
        let position = u32::try_from(all - 1).unwrap_or(u32::MAX);
        batch = vec![feed(token, position, true)];
    };
    Lone { tokens, text, finish }
}

/// The token that follows `before`: the best, or by its chance at a temperature, after the penalties for those before.
fn choose(logits: &[f32], sampling: &EngineSampling, before: &[u32]) -> u32 {
    let mut logits = logits.to_vec();
    let mut counts: BTreeMap<u32, u32> = BTreeMap::new();
    before.iter().for_each(|token| *counts.entry(*token).or_default() += 1);
    for (token, count) in counts {
        logits[token as usize] -= count as f32 * sampling.frequency_penalty + sampling.presence_penalty;
    }
    let highest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if sampling.temperature == 0.0 {
        let best = logits.iter().position(|logit| *logit == highest);
        return u32::try_from(best.unwrap_or(0)).unwrap_or(u32::MAX);
    }
    let weights: Vec<f32> = logits.iter().map(|logit| ((logit - highest) / sampling.temperature).exp()).collect();
    let total: f64 = weights.iter().map(|weight| f64::from(*weight)).sum();
    let mut left = chance(sampling.seed, before.len()) * total;
    let mut chosen = 0;
    for (token, weight) in (0..).zip(weights).filter(|(_, weight)| *weight > 0.0) {
        chosen = token;
        left -= f64::from(weight);
        if left < 0.0 {
            break;
        }
    }
    chosen
}

/// A number from 0 to below 1 that a seed and a position have.
fn chance(seed: u64, position: usize) -> f64 {
    let words = [seed.to_le_bytes().as_slice(), &u32::try_from(position).unwrap_or(u32::MAX).to_le_bytes()].concat();
    let hash = blake3::derive_key("sluice engine sampling 1", &words);
    let first = u64::from_le_bytes([hash[0], hash[1], hash[2], hash[3], hash[4], hash[5], hash[6], hash[7]]);
    (first >> 11) as f64 / (1_u64 << 53) as f64
}
