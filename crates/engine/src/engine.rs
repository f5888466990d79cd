//! What an engine is: something that computes logits for batches of tokens, and a vocabulary.
//!
//! Who takes part in a batch is not its business: [`crate::runner`] decides, by [`crate::schedule`]. An engine is owned by one
//! thread and knows nothing of tenants, texts or time.

use sluice_proto::v1::EngineMessage;

/// A place for one sequence's context within an engine.
pub type Slot = u32;

/// Tokens of a prompt that are read at once are so many, or a multiple, or the prompt's last: then how they are computed is a
/// function of the prompt alone.
pub const READ_QUANTUM: u32 = 64;

/// One token to compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Feed {
    /// Whose.
    pub slot: Slot,
    /// The token.
    pub token: u32,
    /// Its place in the context, from 0, without gap within a slot.
    pub position: u32,
    /// Whether the logits behind it are wanted.
    pub logits: bool,
    /// Whether it was generated: it is computed as it was then, so that what follows is the same to the last bit.
    pub generated: bool,
}

/// What a loaded engine is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Tokens of context that one sequence may have.
    pub context: u32,
    /// Tokens of context that all sequences may have together.
    pub cells: u32,
    /// Sequences that may be open.
    pub slots: u32,
    /// Tokens that one step may have.
    pub batch: u32,
    /// Threads it computes with.
    pub threads: u32,
    /// Which set of compute kernels it uses.
    pub kernels: String,
}

/// Why an engine did not compute.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EngineError {
    /// The model cannot be used.
    #[error("cannot load the model: {0}")]
    Load(String),
    /// The context has no room for the batch, although its cells were counted.
    #[error("the context has no room for {0} tokens")]
    NoRoom(usize),
    /// The step failed; what its sequences hold is not to be trusted.
    #[error("the step failed with {0}")]
    Step(i32),
}

/// Computes. Not `Send`: the thread that loads it owns it.
pub trait Engine {
    /// What it is.
    fn facts(&self) -> Facts;

    /// Opens an empty sequence, if there is a free slot.
    fn open(&mut self) -> Option<Slot>;

    /// Forgets a sequence; its slot and cells are free at once.
    fn close(&mut self, slot: Slot);

    /// Computes the batch, at most [`Facts::batch`] tokens, a sequence's beside each other. What comes of a sequence is the same
    /// whoever else is in the batch, as long as its prompt comes in multiples of [`READ_QUANTUM`] tokens and a rest.
    ///
    /// # Errors
    ///
    /// Where it was not computed. The sequences of the batch must be closed then.
    fn step(&mut self, batch: &[Feed]) -> Result<(), EngineError>;

    /// The logits behind the token at `index` of the last batch, which had asked for them.
    fn logits(&self, index: usize) -> &[f32];

    /// Computes with so many threads from the next step on.
    fn resize(&mut self, threads: u32);
}

/// The tokens of a model: what can be done beside the thread that computes.
pub trait Vocabulary: Send + Sync {
    /// How many tokens there are.
    fn size(&self) -> u32;

    /// The tokens of a text. Where `marks` is `Read`, the text is a rendered conversation: its marks are read as such, and no
    /// beginning-of-text is added that it would have itself.
    fn tokenize(&self, text: &str, marks: Marks) -> Vec<u32>;

    /// The bytes of a token as users see them; marks have none.
    fn piece(&self, token: u32) -> Vec<u8>;

    /// Bytes of text that a token stands for, at most: a longer text has more tokens than that.
    fn longest(&self) -> usize;

    /// Whether the token ends a text.
    fn ends(&self, token: u32) -> bool;

    /// The prompt of a conversation by the model's own template.
    ///
    /// # Errors
    ///
    /// In words, where the template refuses or there is none.
    fn render(&self, messages: &[EngineMessage]) -> Result<String, String>;
}

/// What the marks of a model (`<|im_start|>` and the like) are in a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Marks {
    /// Read as marks.
    Read,
    /// Text like any other.
    Text,
}
