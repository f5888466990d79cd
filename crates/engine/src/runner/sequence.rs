//! One sequence of a runner.

use std::collections::BTreeMap;

use sluice_proto::v1::EngineFinish;

use crate::engine::{Feed, Slot, Vocabulary};
use crate::fair::Class;
use crate::sample::{Choice, Sampling};
use crate::schedule::{Key, Stage, View};
use crate::text::StopScan;

/// Who opened a sequence: a connection, and its own number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Origin {
    /// The connection.
    pub connection: u64,
    /// The driver's number on it.
    pub sequence: u64,
}

/// What is to be generated; checked and in tokens.
#[derive(Debug, Clone)]
pub struct Submission {
    /// Who opened it.
    pub origin: Origin,
    /// Whose it is.
    pub tenant: String,
    /// The tenant's weight.
    pub weight: u32,
    /// What it is.
    pub class: Class,
    /// The driver's name of what it is of.
    pub request: String,
    /// The prompt, at least one token.
    pub prompt: Vec<u32>,
    /// What earlier workers generated.
    pub generated: Vec<u32>,
    /// Tokens to generate, those included.
    pub max_tokens: u32,
    /// How they are chosen.
    pub sampling: Sampling,
    /// Texts that it ends before.
    pub stop: Vec<Vec<u8>>,
    /// The end-of-text token does not end it.
    pub ignore_end: bool,
}

/// A sequence that is not over.
#[derive(Debug)]
pub(super) struct Sequence {
    pub(super) submission: Submission,
    pub(super) key: Key,
    pub(super) slot: Option<Slot>,
    /// Prompt and generated tokens.
    tokens: Vec<u32>,
    /// How many of them are in the slot's context.
    fed: u32,
    /// How many of the prompt's were ever read.
    read: u32,
    pub(super) admitted: bool,
    scan: StopScan,
    counts: BTreeMap<u32, u32>,
    taken: u32,
    /// Since when it is as far ahead of its reader as it may be; monotonic nanoseconds.
    pub(super) paused_since: Option<u64>,
}

/// What a chosen token means.
#[derive(Debug)]
pub(super) struct Generated {
    /// Its place, and the token with its text; none for the end of the text.
    pub(super) told: Option<(u32, Choice, Vec<u8>)>,
    /// Why the sequence is over, with the text that was held back.
    pub(super) over: Option<(EngineFinish, Vec<u8>)>,
}

/// What a part of a step is for a sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Fed {
    /// Tokens of the prompt that were never read before.
    pub(super) first: u32,
    /// Where those begin.
    pub(super) from: u32,
    /// Tokens that were read again.
    pub(super) again: u32,
}

impl Sequence {
    /// A new sequence, or why it is over before it began: what was generated elsewhere may have ended it.
    pub(super) fn open(
        submission: Submission,
        key: Key,
        vocabulary: &dyn Vocabulary,
        context: u32,
    ) -> (Self, Option<(EngineFinish, Vec<u8>)>) {
        let tokens = [submission.prompt.as_slice(), submission.generated.as_slice()].concat();
        let mut sequence = Self {
            scan: StopScan::new(submission.stop.iter().cloned()),
            taken: count(submission.generated.len()),
            submission,
            key,
            slot: None,
            tokens,
            fed: 0,
            read: 0,
            admitted: false,
            counts: BTreeMap::new(),
            paused_since: None,
        };
        let mut over = None;
        for token in sequence.submission.generated.clone() {
            if sequence.ends(token, vocabulary) {
                over = Some((EngineFinish::Stop, sequence.scan.finish()));
                break;
            }
            *sequence.counts.entry(token).or_insert(0) += 1;
            if sequence.scan.push(&vocabulary.piece(token)).stopped {
                over = Some((EngineFinish::Stop, Vec::new()));
                break;
            }
        }
        let over = over.or_else(|| sequence.full(context));
        (sequence, over)
    }

    fn ends(&self, token: u32, vocabulary: &dyn Vocabulary) -> bool {
        !self.submission.ignore_end && vocabulary.ends(token)
    }

    fn full(&mut self, context: u32) -> Option<(EngineFinish, Vec<u8>)> {
        let full = self.generated() >= self.submission.max_tokens || count(self.tokens.len()) >= context;
        full.then(|| (EngineFinish::Length, self.scan.finish()))
    }

    /// Tokens generated, those of earlier workers included.
    pub(super) fn generated(&self) -> u32 {
        count(self.tokens.len()) - self.prompt()
    }

    /// Tokens of the prompt.
    pub(super) fn prompt(&self) -> u32 {
        count(self.submission.prompt.len())
    }

    fn resumed(&self) -> bool {
        !self.submission.generated.is_empty()
    }

    fn left(&self) -> u32 {
        count(self.tokens.len()) - self.fed
    }

    /// Whether it is as far ahead of its reader as it may be.
    pub(super) fn window_full(&self, window: u32) -> bool {
        self.generated().saturating_sub(self.taken) >= window
    }

    /// The reader has so many.
    pub(super) fn take(&mut self, tokens: u32) {
        self.taken = self.taken.max(tokens.min(self.generated()));
        self.paused_since = None;
    }

    /// As the schedule sees it; `None` where it has no place and wants none.
    pub(super) fn view(&self, window: u32) -> Option<View<'_>> {
        let full = self.window_full(window);
        let stage = match self.slot {
            None if full => return None,
            None => Stage::Waiting { tokens: self.left() },
            Some(_) if full => Stage::Paused,
            Some(_) if self.left() == 1 && self.fed >= self.prompt() => Stage::Running,
            Some(_) => Stage::Reading { left: self.left() },
        };
        let Submission { tenant, weight, class, .. } = &self.submission;
        let (weight, class) = (*weight, *class);
        Some(View { key: self.key, tenant, weight, class, arrived: self.key, stage, cells: self.fed })
    }

    /// Cells of the context that it has.
    pub(super) fn cells(&self) -> u32 {
        self.fed
    }

    /// Tokens still to be read of it.
    pub(super) fn unread(&self) -> u32 {
        if self.left() == 1 && self.slot.is_some() { 0 } else { self.left() }
    }

    /// It has a place from now on.
    pub(super) fn place(&mut self, slot: Slot) {
        (self.slot, self.fed) = (Some(slot), 0);
    }

    /// It has none any more, and must be read again.
    pub(super) fn put_out(&mut self) -> Option<Slot> {
        self.fed = 0;
        self.slot.take()
    }

    /// The next `tokens` of it, for a batch; the last one's logits are wanted where nothing is left behind it.
    pub(super) fn feed(&mut self, tokens: u32, batch: &mut Vec<Feed>) -> Fed {
        let Some(slot) = self.slot else { return Fed::default() };
        let tokens = tokens.min(self.left());
        let (from, to, all, prompt) = (self.fed, self.fed + tokens, count(self.tokens.len()), self.prompt());
        for position in from..to {
            let token = self.tokens[position as usize];
            batch.push(Feed { slot, token, position, logits: position + 1 == all, generated: position >= prompt });
        }
        self.fed = to;
        let unread = if self.resumed() { self.prompt() } else { self.read };
        let first_from = from.max(unread);
        let first = to.min(self.prompt()).saturating_sub(first_from);
        self.read = self.read.max(to.min(self.prompt()));
        // The last token of what was generated is due in any case: it is the one that the next comes behind.
        let due = u32::from(to == all && to > self.prompt());
        Fed { first, from: if first > 0 { first_from } else { 0 }, again: tokens - first - due.min(tokens - first) }
    }

    /// Whether all of it is in the context: the last step's logits say what comes next.
    pub(super) fn is_fed(&self) -> bool {
        self.left() == 0
    }

    /// The next token from the logits behind all of it.
    pub(super) fn generate(&mut self, logits: &[f32], vocabulary: &dyn Vocabulary, context: u32) -> Generated {
        let position = self.generated();
        let choice = self.submission.sampling.choose(logits, &self.counts, position);
        if self.ends(choice.token, vocabulary) {
            return Generated { told: None, over: Some((EngineFinish::Stop, self.scan.finish())) };
        }
        self.tokens.push(choice.token);
        *self.counts.entry(choice.token).or_insert(0) += 1;
        let scanned = self.scan.push(&vocabulary.piece(choice.token));
        let over = if scanned.stopped { Some((EngineFinish::Stop, Vec::new())) } else { self.full(context) };
        Generated { told: Some((position, choice, scanned.shown)), over }
    }
}

fn count(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}
