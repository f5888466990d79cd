//! llama.cpp in process.

mod kernels;
mod raw;

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use sluice_proto::v1::EngineMessage;

use self::raw::{Context, Model, Part, Size};
use crate::engine::{Engine, EngineError, Facts, Feed, Marks, Slot, Vocabulary};
use crate::template::ChatTemplate;

/// Tokens of one step at most.
const BATCH: u32 = 512;

/// How a model is loaded.
#[derive(Debug, Clone)]
pub struct LlamaOptions {
    /// Tokens of context that one sequence may have; 0 = as many as the model was trained for.
    pub context: u32,
    /// Tokens of context for all sequences together; 0 = twice the context of one.
    pub cells: u32,
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
        Self { model: Arc::new(model), template: Arc::new(template) }
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

    fn ends(&self, token: u32) -> bool {
        self.model.ends(token)
    }

    fn render(&self, messages: &[EngineMessage]) -> Result<String, String> {
        self.template.as_ref().as_ref().map_err(Clone::clone)?.render(messages)
    }
}

/// The engine.
#[derive(Debug)]
pub struct LlamaEngine {
    context: Context,
    facts: Facts,
    free: Vec<Slot>,
}

impl LlamaEngine {
    /// Makes a context; the thread that does owns it.
    ///
    /// # Errors
    ///
    /// Where there is no memory for it.
    pub fn new(model: &LlamaModel, options: &LlamaOptions) -> Result<Self, EngineError> {
        let trained = model.model.trained_context().max(1);
        let context = if options.context == 0 { trained } else { options.context.min(trained) };
        let cells = if options.cells == 0 { context.saturating_mul(2) } else { options.cells.max(context) };
        let slots = options.slots.max(1);
        let batch = BATCH.max(slots);
        let size = Size { cells, batch, sequences: slots, threads: options.threads.max(1) };
        let made = Context::new(Arc::clone(&model.model), size)?;
        let facts = Facts {
            context,
            cells: made.cells(),
            slots,
            batch,
            threads: size.threads,
            kernels: kernels::name().to_owned(),
        };
        Ok(Self { context: made, facts, free: (0..slots).rev().collect() })
    }
}

impl Engine for LlamaEngine {
    fn facts(&self) -> Facts {
        self.facts.clone()
    }

    fn open(&mut self) -> Option<Slot> {
        self.free.pop()
    }

    fn close(&mut self, slot: Slot) {
        self.context.forget(slot);
        self.free.push(slot);
    }

    fn step(&mut self, batch: &[Feed]) -> Result<(), EngineError> {
        self.context.step(batch)
    }

    fn logits(&self, index: usize) -> &[f32] {
        self.context.logits(index)
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
