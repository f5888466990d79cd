//! llama.cpp in process.

mod kernels;
mod raw;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use sluice_proto::v1::EngineMessage;

use self::raw::{Context, Model, Part, Size};
use crate::engine::{Engine, EngineError, Facts, Feed, Marks, READ_QUANTUM, Slot, Vocabulary};
use crate::template::ChatTemplate;

/// Tokens of one step at most.
const BATCH: u32 = 512;

/// How a model is loaded.
#[derive(Debug, Clone)]
pub struct LlamaOptions {
    /// Tokens of context that one sequence may have; 0 = as many as the model was trained for. Fewer where `cache` has no room.
    pub context: u32,
    /// Bytes that the contexts of all places may take.
    pub cache: u64,
    /// Places for sequences.
    pub slots: u32,
    /// Threads to compute with.
    pub threads: u32,
}

/// The model's file that was handed over as descriptor `number`: opened anew where that is allowed, so that nobody else moves
/// its place, or else as it is.
///
/// # Errors
///
/// Where it is not open. A descriptor that is taken as it is must belong to nobody else in this process.
pub fn inherited(number: i32) -> std::io::Result<File> {
    File::open(format!("/proc/self/fd/{number}")).or_else(|_| raw::inherited(number))
}

/// A model that was loaded, to be handed to the thread that will compute.
#[derive(Debug, Clone)]
pub struct LlamaModel {
    model: Arc<Model>,
    template: Arc<Result<ChatTemplate, String>>,
    longest: usize,
}

impl LlamaModel {
    /// Maps a model's weights.
    ///
    /// # Errors
    ///
    /// Where the file is no model that can generate text.
    pub fn load(file: &File) -> Result<Self, EngineError> {
        let model = Model::load(file, Part::Whole)?;
        if model.has_encoder() || !model.has_decoder() {
            return Err(EngineError::Load("it does not generate text: only decoders are served".to_owned()));
        }
        Ok(Self::of(model))
    }

    /// Reads what tokens are, and nothing else.
    ///
    /// # Errors
    ///
    /// Where the file is no model.
    pub fn load_vocabulary(file: &File) -> Result<Self, EngineError> {
        Ok(Self::of(Model::load(file, Part::Vocabulary)?))
    }

    fn of(model: Model) -> Self {
        let (bos, eos) = model.marks();
        let text = |token: Option<u32>| {
            let bytes = token.map(|token| model.piece(token, true)).unwrap_or_default();
            String::from_utf8_lossy(&bytes).into_owned()
        };
        let template = match model.template() {
            Some(source) => ChatTemplate::read(source, text(bos), text(eos)),
            None => Err("the model has no chat template: send a text instead of a conversation".to_owned()),
        };
        let longest = (0..model.tokens()).map(|token| model.piece(token, true).len()).max().unwrap_or(0);
        Self { model: Arc::new(model), template: Arc::new(template), longest }
    }

    /// Why conversations cannot be rendered, if they cannot.
    #[must_use]
    pub fn template_fault(&self) -> Option<&str> {
        self.template.as_ref().as_ref().err().map(String::as_str)
    }
}

impl Vocabulary for LlamaModel {
    fn size(&self) -> u32 {
        self.model.tokens()
    }

    fn tokenize(&self, text: &str, marks: Marks) -> Vec<u32> {
        let read = marks == Marks::Read;
        let (bos, _) = self.model.marks();
        let begins = bos.is_some_and(|bos| {
            let mark = self.model.piece(bos, true);
            !mark.is_empty() && text.as_bytes().starts_with(&mark)
        });
        self.model.tokenize(text, !(read && begins), read)
    }

    fn piece(&self, token: u32) -> Vec<u8> {
        self.model.piece(token, false)
    }

    fn longest(&self) -> usize {
        self.longest
    }

    fn ends(&self, token: u32) -> bool {
        self.model.ends(token)
    }

    fn render(&self, messages: &[EngineMessage]) -> Result<String, String> {
        self.template.as_ref().as_ref().map_err(Clone::clone)?.render(messages)
    }
}

/// Tokens that were generated are read again at most so many at once: below the number from which llama.cpp computes attention
/// in tiles, and so as when they came one by one.
const AGAIN: usize = 32;

/// The engine.
#[derive(Debug)]
pub struct LlamaEngine {
    context: Context,
    facts: Facts,
    free: BTreeSet<Slot>,
    /// Where the logits of the last step are, by the place in its batch.
    places: BTreeMap<usize, Range<usize>>,
    /// They, one behind the other; the room is kept from step to step.
    logits: Vec<f32>,
}

/// No context is shorter, unless it was asked for.
const LEAST_CONTEXT: u32 = 256;

/// Tokens of context that each place can have.
fn fitting(wanted: u32, slots: u32, cache: u64, cell: u64) -> Result<u32, EngineError> {
    let room = cache / (u64::from(slots) * cell).max(1);
    let room = u32::try_from(room).unwrap_or(u32::MAX);
    if room >= wanted {
        return Ok(wanted);
    }
    if room < LEAST_CONTEXT {
        let needs = u64::from(LEAST_CONTEXT) * u64::from(slots) * cell;
        return Err(EngineError::Load(format!(
            "{cache} bytes hold no {LEAST_CONTEXT} tokens for each of {slots} places; {needs} would: ask for more memory or fewer \
             sequences"
        )));
    }
    // The library rounds up to so many.
    let context = room / LEAST_CONTEXT * LEAST_CONTEXT;
    tracing::warn!(wanted, context, cache, "the contexts are shorter than wanted: there is no more room for them");
    Ok(context)
}

impl LlamaEngine {
    /// Makes a context; the thread that does owns it.
    ///
    /// # Errors
    ///
    /// Where there is no memory for it.
    pub fn new(model: &LlamaModel, options: &LlamaOptions) -> Result<Self, EngineError> {
        let trained = model.model.trained_context().max(1);
        let wanted = if options.context == 0 { trained } else { options.context.min(trained) };
        let slots = options.slots.max(1);
        let context = fitting(wanted, slots, options.cache, model.model.cell_bytes())?;
        let batch = BATCH.max(slots);
        let size = Size { context, batch, sequences: slots, threads: options.threads.max(1) };
        let made = Context::new(Arc::clone(&model.model), size)?;
        let facts = Facts {
            context,
            cells: context.saturating_mul(slots),
            slots,
            batch,
            threads: size.threads,
            kernels: kernels::name().to_owned(),
        };
        Ok(Self { context: made, facts, free: (0..slots).collect(), places: BTreeMap::new(), logits: Vec::new() })
    }
}

impl LlamaEngine {
    /// One call of the library. Keeps the logits that are wanted, by their place in the step's batch: the next call overwrites
    /// them. Nobody wants those without a place.
    fn compute(&mut self, feeds: &[(Option<usize>, Feed)]) -> Result<(), EngineError> {
        if feeds.is_empty() {
            return Ok(());
        }
        let batch: Vec<Feed> = feeds.iter().map(|(_, feed)| *feed).collect();
        self.context.step(&batch)?;
        for (place, (index, feed)) in feeds.iter().enumerate() {
            if let Some(index) = index.filter(|_| feed.logits) {
                let from = self.logits.len();
                self.logits.extend_from_slice(self.context.logits(place));
                self.places.insert(index, from..self.logits.len());
            }
        }
        Ok(())
    }
}

/// Cuts a batch into what is computed at once: of a prompt, all up to a multiple of the quantum, and the rest by itself; of what
/// was generated, a few at a time.
fn parts(batch: &[Feed]) -> Vec<Range<usize>> {
    let mut parts = Vec::new();
    let mut start = 0;
    for next in 1..=batch.len() {
        let first = &batch[start];
        let ends = batch.get(next).is_none_or(|feed| {
            let other = feed.slot != first.slot || feed.generated != first.generated;
            let again = feed.generated && next - start >= AGAIN;
            other || again
        });
        if !ends {
            continue;
        }
        let whole = if first.generated { next } else { whole_until(batch, start, next) };
        parts.extend([start..whole, whole..next].into_iter().filter(|part| !part.is_empty()));
        start = next;
    }
    parts
}

/// Where the last whole quantum of a prompt's part ends, by its place in the prompt.
fn whole_until(batch: &[Feed], start: usize, end: usize) -> usize {
    let rest = (batch[end - 1].position + 1) % READ_QUANTUM;
    end.saturating_sub(rest as usize).max(start)
}

/// What is computed at once: those of one token each, and the others by sequence, in their order.
fn together(batch: &[Feed]) -> (Vec<Range<usize>>, Vec<Range<usize>>) {
    let alone = |part: &Range<usize>| {
        let slot = batch[part.start].slot;
        part.len() == 1 && batch.iter().filter(|feed| feed.slot == slot).count() == 1
    };
    let (mut single, others): (Vec<_>, Vec<_>) = parts(batch).into_iter().partition(alone);
    // The library reads the weights once for neighbours that come in their order, and once for each that does not.
    single.sort_by_key(|part| batch[part.start].slot);
    (single, others)
}

/// The kernels take so many rows at once, at about the price of two by themselves.
const GROUP: usize = 4;

/// Free places that make whole groups of neighbours' rows, where one or two are missing: with them the step is shorter, and with
/// three it is not (docs/measurements/engine.md).
fn fillers(slots: &[Slot], free: &BTreeSet<Slot>) -> BTreeSet<Slot> {
    let mut all = BTreeSet::new();
    for run in slots.chunk_by(|one, next| one + 1 == *next) {
        let missing = run.len().next_multiple_of(GROUP) - run.len();
        if run.len() < GROUP || missing > GROUP / 2 {
            continue;
        }
        let usable = |slot: &Slot| free.contains(slot) && !all.contains(slot);
        // Beside it: neighbours are computed at once.
        let (above, below) = (run[run.len() - 1] + 1.., (0..run[0]).rev());
        let found = above.take_while(usable).chain(below.take_while(usable));
        let found: Vec<_> = found.take(missing).collect();
        if found.len() == missing {
            all.extend(found);
        }
    }
    all
}

impl Engine for LlamaEngine {
    fn facts(&self) -> Facts {
        self.facts.clone()
    }

    fn open(&mut self) -> Option<Slot> {
        // The lowest, so that those in use are neighbours as long as it can be.
        self.free.pop_first()
    }

    fn close(&mut self, slot: Slot) {
        self.context.forget(slot);
        self.free.insert(slot);
    }

    fn step(&mut self, batch: &[Feed]) -> Result<(), EngineError> {
        self.places.clear();
        self.logits.clear();
        let (single, others) = together(batch);
        let feeds = |part: &Range<usize>| {
            let feeds = batch[part.clone()].iter().copied();
            part.clone().map(Some).zip(feeds).collect::<Vec<_>>()
        };
        let mut single: Vec<_> = single.iter().flat_map(feeds).collect();
        let slots: Vec<Slot> = single.iter().map(|(_, feed)| feed.slot).collect();
        let fillers = fillers(&slots, &self.free);
        // Any token does: nobody asks what comes of it. Its logits are computed, because their rows make groups too.
        let filler = |slot: &Slot| Feed { slot: *slot, token: 0, position: 0, logits: true, generated: true };
        single.extend(fillers.iter().map(|slot| (None, filler(slot))));
        single.sort_by_key(|(_, feed)| feed.slot);
        let computed = self.compute(&single);
        fillers.iter().for_each(|slot| self.context.forget(*slot));
        computed?;
        for part in &others {
            self.compute(&feeds(part))?;
        }
        Ok(())
    }

    fn logits(&self, index: usize) -> &[f32] {
        self.places.get(&index).map_or(&[], |place| &self.logits[place.clone()])
    }

    fn resize(&mut self, threads: u32) {
        self.context.resize(threads);
        self.facts.threads = threads.max(1);
    }
}

/// Writes a model anew as Q4_0, which this engine computes several times faster than Q4_1; lossy.
///
/// # Errors
///
/// Where the file is no model or the other cannot be written.
pub fn requantize(from: &Path, to: &Path, threads: u32) -> Result<(), EngineError> {
    raw::requantize(from, to, threads)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(slot: Slot, from: u32, to: u32, prompt: u32) -> impl Iterator<Item = Feed> {
        (from..to).map(move |position| Feed { slot, token: 0, position, logits: false, generated: position >= prompt })
    }

    fn cut(batch: impl Iterator<Item = Feed>) -> Vec<(usize, usize)> {
        parts(&batch.collect::<Vec<_>>()).into_iter().map(|part| (part.start, part.end)).collect()
    }

    #[test]
    fn contexts_are_as_long_as_there_is_room_for() {
        assert_eq!(fitting(8_192, 10, u64::MAX, 23_040), Ok(8_192));
        assert_eq!(fitting(8_192, 10, 512 << 20, 23_040), Ok(2_304));
        assert_eq!(fitting(100, 10, 512 << 20, 23_040), Ok(100));
        let refused = fitting(8_192, 100, 512 << 20, 23_040).unwrap_err();
        assert!(refused.to_string().contains("no 256 tokens for each of 100 places"), "{refused}");
    }

    #[test]
    fn prompts_are_cut_at_their_own_places_whatever_comes_at_once() {
        assert_eq!(cut(run(0, 0, 200, 200)), [(0, 192), (192, 200)]);
        assert_eq!(cut(run(0, 128, 200, 200)), [(0, 64), (64, 72)]);
        assert_eq!(cut(run(0, 0, 128, 200)), [(0, 128)]);
        assert_eq!(cut(run(0, 192, 200, 200)), [(0, 8)]);
        assert_eq!(cut(run(0, 0, 1, 1)), [(0, 1)]);
        assert_eq!(cut(std::iter::empty()), []);
    }

    #[test]
    fn what_was_generated_is_read_again_a_few_at_a_time() {
        assert_eq!(cut(run(0, 64, 150, 100)), [(0, 36), (36, 68), (68, 86)]);
        assert_eq!(cut(run(0, 100, 132, 100)), [(0, 32)]);
    }

    #[test]
    fn neighbours_are_computed_at_once_whoever_came_first() {
        let batch: Vec<_> =
            run(5, 70, 71, 10).chain(run(2, 0, 64, 100)).chain(run(0, 90, 91, 20)).chain(run(3, 9, 10, 3)).collect();
        let (single, others) = together(&batch);
        let slots = |parts: &[Range<usize>]| parts.iter().map(|part| batch[part.start].slot).collect::<Vec<_>>();
        assert_eq!((slots(&single), slots(&others)), (vec![0, 3, 5], vec![2]));
    }

    #[test]
    fn one_or_two_rows_that_are_missing_are_filled_up_beside_their_neighbours() {
        let filled = |slots: &[Slot], free: &[Slot]| {
            fillers(slots, &free.iter().copied().collect()).into_iter().collect::<Vec<_>>()
        };
        let upto = |end: Slot| (0..end).collect::<Vec<_>>();
        assert_eq!(filled(&upto(7), &[7, 8, 9]), [7]);
        assert_eq!(filled(&upto(6), &[6, 7, 8, 9]), [6, 7]);
        assert_eq!(filled(&[1, 2, 3, 4, 5, 6], &[0, 7, 8]), [7, 8]);
        assert_eq!(filled(&[1, 2, 3, 4, 5, 6], &[0, 7]), [0, 7], "above and below");
        // As fast without, or slower with.
        for slots in [1, 2, 3, 4, 5, 8, 9] {
            assert!(filled(&upto(slots), &[9, 10, 11, 12]).is_empty(), "{slots}");
        }
        // Others have the places, or not enough of them are free, or none beside it.
        for free in [&[][..], &[6], &[8, 9]] {
            assert!(filled(&upto(6), free).is_empty(), "{free:?}");
        }
        // No place is filled for two.
        let two = [upto(7), vec![8, 9, 10, 11, 12, 13, 14]].concat();
        assert_eq!(filled(&two, &[7, 15]), [7, 15]);
    }

    #[test]
    fn sequences_are_kept_apart() {
        let batch = run(0, 70, 71, 10).chain(run(1, 90, 91, 20)).chain(run(2, 0, 64, 100)).chain(run(3, 0, 3, 3));
        assert_eq!(cut(batch), [(0, 1), (1, 2), (2, 66), (66, 69)]);
    }
}
