//! The step loop: sequences in, tokens out.
//!
//! Owns the engine and every sequence. Each call of [`Runner::step`] asks [`crate::schedule`] what to compute, computes it, chooses
//! tokens, meters the step and only then hands out what there is to tell. It knows no sockets and no texts that are not tokens
//! yet; [`crate::worker`] is around it, tests and the simulated world drive it directly.

mod account;
mod sequence;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use sluice_proto::v1::{
    EngineAdmitted, EngineFinish, EngineFinished, EngineLoad, EngineLogprob, EngineToken, engine_reply::Message,
};

use self::account::Account;
use self::sequence::{Fed, Generated, Sequence};
pub use self::sequence::{Origin, Submission};
use crate::clock::Clock;
use crate::cost::{CostModel, Shape};
use crate::engine::{Engine, Facts, Feed, Vocabulary};
use crate::fair::{DECODE, Fair, READ};
use crate::meter::Meter;
use crate::schedule::{self, Key, Room, Rules, Step};

/// Bounds of a runner.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bounds {
    /// Places that are kept for tenants that have none.
    pub spare: u32,
    /// Sequences that may be open, waiting ones included.
    pub open: usize,
    /// Tokens that a sequence may be ahead of its reader.
    pub window: u32,
    /// How long a reader may be away at the end of its window, nanoseconds.
    pub patience: u64,
    /// How steps are made.
    pub rules: Rules,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { spare: 2, open: 512, window: 256, patience: 60_000_000_000, rules: Rules::default() }
    }
}

/// Something to tell a driver.
#[derive(Debug, Clone, PartialEq)]
pub struct Reply {
    /// By which connection.
    pub connection: u64,
    /// What.
    pub message: Message,
}

/// The step loop.
pub struct Runner {
    engine: Box<dyn Engine>,
    vocabulary: Arc<dyn Vocabulary>,
    meter: Box<dyn Meter>,
    facts: Facts,
    bounds: Bounds,
    fair: Fair,
    cost: CostModel,
    sequences: BTreeMap<Key, Sequence>,
    keys: BTreeMap<Origin, Key>,
    next: Key,
    worker: u64,
    replies: Vec<Reply>,
    /// Whether the last step computed anything.
    computed: bool,
}

impl Runner {
    /// A runner of this engine. `worker` is the number that its records carry, `cost` the first guess of what steps take.
    #[must_use]
    pub fn new(
        engine: Box<dyn Engine>,
        vocabulary: Arc<dyn Vocabulary>,
        meter: Box<dyn Meter>,
        cost: CostModel,
        bounds: Bounds,
        worker: u64,
    ) -> Self {
        Self {
            facts: engine.facts(),
            engine,
            vocabulary,
            meter,
            bounds,
            fair: Fair::default(),
            cost,
            sequences: BTreeMap::new(),
            keys: BTreeMap::new(),
            next: 1,
            worker,
            replies: Vec::new(),
            computed: false,
        }
    }

    /// Opens a sequence. Whatever becomes of it is told by later steps.
    pub fn submit(&mut self, submission: Submission) {
        let origin = submission.origin;
        let refuse = |reason: &str, message: String| EngineFinished {
            sequence: origin.sequence,
            finish: EngineFinish::Error.into(),
            reason: reason.to_owned(),
            message,
            ..EngineFinished::default()
        };
        let refused = if self.keys.contains_key(&origin) {
            Some(refuse("INVALID", format!("sequence {} is open already; number each anew", origin.sequence)))
        } else if self.sequences.len() >= self.bounds.open {
            let most = self.bounds.open;
            Some(refuse(
                "BUSY",
                format!("{most} sequences are open, the most there may be; try again when some are over"),
            ))
        } else if submission.prompt.is_empty() {
            Some(refuse("INVALID", "the prompt has no tokens".to_owned()))
        } else if submission.prompt.len() + submission.generated.len() > self.facts.context as usize {
            let (tokens, context) = (submission.prompt.len() + submission.generated.len(), self.facts.context);
            Some(refuse("PROMPT_TOO_LONG", format!("the prompt has {tokens} tokens; the context has {context}")))
        } else {
            None
        };
        if let Some(finished) = refused {
            self.replies.push(Reply { connection: origin.connection, message: Message::Finished(finished) });
            return;
        }
        let key = self.next;
        self.next += 1;
        let (sequence, over) = Sequence::open(submission, key, &*self.vocabulary, self.facts.context);
        self.keys.insert(origin, key);
        self.sequences.insert(key, sequence);
        if let Some((finish, text)) = over {
            self.finish(key, finish, text, None);
        }
    }

    /// Ends a sequence; its place is free for the next step.
    pub fn cancel(&mut self, origin: Origin) {
        if let Some(key) = self.keys.get(&origin).copied() {
            self.finish(key, EngineFinish::Cancelled, Vec::new(), None);
        }
    }

    /// A reader has so many tokens of a sequence.
    pub fn taken(&mut self, origin: Origin, tokens: u32) {
        let key = self.keys.get(&origin);
        if let Some(sequence) = key.and_then(|key| self.sequences.get_mut(key)) {
            sequence.take(tokens);
        }
    }

    /// A connection is gone, and its sequences with it.
    pub fn disconnect(&mut self, connection: u64) {
        let of = Origin { connection, sequence: 0 }..=Origin { connection, sequence: u64::MAX };
        let keys: Vec<Key> = self.keys.range(of).map(|(_, key)| *key).collect();
        for key in keys {
            self.finish(key, EngineFinish::Cancelled, Vec::new(), None);
        }
        self.replies.retain(|reply| reply.connection != connection);
    }

    /// Computes with so many threads from the next step on.
    pub fn resize(&mut self, threads: u32) {
        self.engine.resize(threads);
        self.facts = self.engine.facts();
    }

    /// What there is to tell without computing anything.
    pub fn replies(&mut self) -> Vec<Reply> {
        std::mem::take(&mut self.replies)
    }

    /// One step; what it made is returned, and nothing of it was told before it was metered. Does nothing where nothing can be
    /// computed: [`Runner::idle`] says so beforehand.
    pub fn step(&mut self, clock: &dyn Clock) -> Vec<Reply> {
        self.end_slow_readers(clock.monotonic());
        let (step, both) = self.plan();
        self.apply(&step);
        let mut batch = Vec::new();
        let mut parts = Vec::new();
        let decodes = step.decode.iter().map(|key| (*key, 1));
        for (key, tokens) in decodes.chain(step.read.iter().copied()) {
            if let Some(sequence) = self.sequences.get_mut(&key) {
                let fed = sequence.feed(tokens, &mut batch);
                parts.push(Part { key, end: batch.len(), fed });
            }
        }
        self.computed = !batch.is_empty();
        if self.computed {
            let shape = self.shape(&step, &parts);
            self.compute(clock, &batch, &parts, shape, both);
        }
        self.replies()
    }

    /// Whether no step would compute anything: all that is open waits for its reader.
    #[must_use]
    pub fn idle(&self) -> bool {
        self.sequences.values().all(|sequence| sequence.window_full(self.bounds.window))
    }

    /// Whether the last step computed anything. Where it did not although something is open, nothing changes by itself at once.
    #[must_use]
    pub fn computed(&self) -> bool {
        self.computed
    }

    /// How it stands.
    #[must_use]
    pub fn load(&self) -> EngineLoad {
        let placed = self.sequences.values().filter(|sequence| sequence.slot.is_some()).count();
        let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        EngineLoad {
            running: count(placed),
            waiting: count(self.sequences.len() - placed),
            prompt_tokens: self.sequences.values().map(|sequence| u64::from(sequence.unread())).sum(),
            cells: Cells::of(self).used,
            cells_total: self.facts.cells,
        }
    }

    /// A tenant's counter of service.
    #[must_use]
    pub fn counter(&self, tenant: &str) -> u64 {
        self.fair.counter(tenant)
    }

    fn plan(&mut self) -> (Step, bool) {
        let window = self.bounds.window;
        let views: Vec<_> = self.sequences.values().filter_map(|sequence| sequence.view(window)).collect();
        let wanting = views.iter().filter(|view| view.stage != schedule::Stage::Paused);
        self.fair.want(wanting.map(|view| (view.tenant, view.weight)));
        let cells = Cells::of(self);
        let room = Room {
            slots: self.facts.slots - cells.slots,
            spare: self.bounds.spare.min(self.facts.slots.saturating_sub(1)),
            cells: self.facts.cells.saturating_sub(cells.used),
            used: cells.used,
            batch: self.facts.batch,
        };
        let step = schedule::plan(&self.fair, &views, room, &self.cost, &self.bounds.rules);
        (step, schedule::both_classes(&views))
    }

    fn apply(&mut self, step: &Step) {
        for key in &step.put_out {
            let slot = self.sequences.get_mut(key).and_then(Sequence::put_out);
            if let Some(slot) = slot {
                self.engine.close(slot);
            }
        }
        for key in &step.admit {
            let Some(sequence) = self.sequences.get_mut(key) else { continue };
            let Some(slot) = self.engine.open() else { continue };
            sequence.place(slot);
            if !std::mem::replace(&mut sequence.admitted, true) {
                let Origin { connection, sequence: number } = sequence.submission.origin;
                let prompt_tokens = sequence.prompt();
                let admitted = EngineAdmitted { sequence: number, prompt_tokens, cached_tokens: 0 };
                self.replies.push(Reply { connection, message: Message::Admitted(admitted) });
            }
        }
    }

    /// What the step has; of contexts, what its tokens look at on the average.
    fn shape(&self, step: &Step, parts: &[Part]) -> Shape {
        let reads = step.read.iter().map(|(_, tokens)| *tokens).sum();
        let decodes = u32::try_from(step.decode.len()).unwrap_or(u32::MAX);
        let (mut tokens, mut looks, mut begin) = (0_u64, 0_u64, 0);
        for part in parts {
            let own = (part.end - begin) as u64;
            let cells = self.sequences.get(&part.key).map_or(0, |sequence| u64::from(sequence.cells()));
            (tokens, looks, begin) = (tokens + own, looks + own * cells, part.end);
        }
        Shape { decodes, reads, cells: u32::try_from(looks / tokens.max(1)).unwrap_or(u32::MAX) }
    }

    fn compute(&mut self, clock: &dyn Clock, batch: &[Feed], parts: &[Part], shape: Shape, both: bool) {
        let (wall, cpu) = (clock.monotonic(), clock.cpu());
        let computed = self.engine.step(batch);
        let wall = clock.monotonic() - wall;
        let cpu = clock.cpu().saturating_sub(cpu);
        if let Err(error) = computed {
            let message = format!("{error}; send it again");
            for part in parts {
                self.finish(part.key, EngineFinish::Error, Vec::new(), Some(("ENGINE", message.clone())));
            }
            return;
        }
        self.cost.observe(shape, wall);
        let mut account = Account::new(self.worker, clock.unix_millis(), wall, cpu);
        let mut made = Vec::with_capacity(parts.len());
        for part in parts {
            let Some(sequence) = self.sequences.get_mut(&part.key) else { continue };
            let position = sequence.generated();
            let generated = sequence
                .is_fed()
                .then(|| sequence.generate(self.engine.logits(part.end - 1), &*self.vocabulary, self.facts.context));
            account.add(sequence, part.fed, position, generated.as_ref());
            let service = u64::from(part.fed.first) * READ + u64::from(generated.is_some()) * DECODE;
            let submission = &sequence.submission;
            self.fair.charge(&submission.tenant, submission.class, service, both);
            made.push((part.key, generated));
        }
        if let Err(error) = self.meter.append(account.close()) {
            tracing::error!(%error, "a step could not be metered: nothing of it is told");
            for part in parts {
                let message = "the step could not be metered; send it again".to_owned();
                self.finish(part.key, EngineFinish::Error, Vec::new(), Some(("METER", message)));
            }
            return;
        }
        let now = clock.monotonic();
        for (key, generated) in made {
            if let Some(generated) = generated {
                self.tell(key, generated, now);
            }
        }
    }

    fn tell(&mut self, key: Key, generated: Generated, now: u64) {
        let Some(sequence) = self.sequences.get_mut(&key) else { return };
        if let Some((position, choice, text)) = generated.told {
            let Origin { connection, sequence: number } = sequence.submission.origin;
            let alternative = |(token, logprob): (u32, f32)| EngineLogprob {
                token,
                bytes: Bytes::from(self.vocabulary.piece(token)),
                logprob,
            };
            let own = choice.logprob.map(|_| self.vocabulary.piece(choice.token));
            let token = EngineToken {
                bytes: Bytes::from(own.unwrap_or_default()),
                sequence: number,
                position,
                token: choice.token,
                text: Bytes::from(text),
                logprob: choice.logprob,
                top: choice.top.into_iter().map(alternative).collect(),
            };
            self.replies.push(Reply { connection, message: Message::Token(token) });
        }
        if sequence.window_full(self.bounds.window) {
            sequence.paused_since = Some(now);
        }
        if let Some((finish, text)) = generated.over {
            self.finish(key, finish, text, None);
        }
    }

    fn finish(&mut self, key: Key, finish: EngineFinish, text: Vec<u8>, error: Option<(&str, String)>) {
        let Some(mut sequence) = self.sequences.remove(&key) else { return };
        let origin = sequence.submission.origin;
        self.keys.remove(&origin);
        if let Some(slot) = sequence.put_out() {
            self.engine.close(slot);
        }
        let (reason, message) = error.map(|(reason, message)| (reason.to_owned(), message)).unwrap_or_default();
        let finished = EngineFinished {
            sequence: origin.sequence,
            finish: finish.into(),
            text: Bytes::from(text),
            prompt_tokens: sequence.prompt(),
            cached_tokens: 0,
            generated_tokens: sequence.generated(),
            reason,
            message,
        };
        self.replies.push(Reply { connection: origin.connection, message: Message::Finished(finished) });
    }

    /// Ends sequences whose readers were away for too long at the end of their windows; `now` is monotonic nanoseconds.
    pub fn end_slow_readers(&mut self, now: u64) {
        let patience = self.bounds.patience;
        let late =
            |sequence: &&Sequence| sequence.paused_since.is_some_and(|since| now.saturating_sub(since) > patience);
        let keys: Vec<Key> = self.sequences.values().filter(late).map(|sequence| sequence.key).collect();
        for key in keys {
            let message =
                "nothing was taken for too long at the end of the window; take tokens with EngineTaken".to_owned();
            self.finish(key, EngineFinish::Error, Vec::new(), Some(("SLOW_READER", message)));
        }
    }
}

/// A sequence's part of a step's batch.
struct Part {
    key: Key,
    /// Behind its last token in the batch.
    end: usize,
    fed: Fed,
}

/// Cells and places in use.
#[derive(Clone, Copy)]
struct Cells {
    used: u32,
    slots: u32,
}

impl Cells {
    fn of(runner: &Runner) -> Self {
        let placed = runner.sequences.values().filter(|sequence| sequence.slot.is_some());
        placed.fold(Self { used: 0, slots: 0 }, |cells, sequence| Self {
            used: cells.used.saturating_add(sequence.cells()),
            slots: cells.slots + 1,
        })
    }
}
