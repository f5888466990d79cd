//! The one place that crosses into C: thin owners of llama.cpp's model and context.
//!
//! Bindings are used as they are, and not the safe wrapper published above them, because that hides what a lease needs: threads
//! that change while a context lives.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString, c_char, c_void};
use std::fs::File;
use std::os::fd::{FromRawFd as _, IntoRawFd as _};
use std::path::Path;
use std::ptr::NonNull;
use std::sync::{Arc, Once};

use llama_cpp_sys_2 as sys;

use crate::engine::{EngineError, Feed};

/// Sets llama.cpp up, once per process: kernels for this host, and its log through ours.
pub(super) fn start() {
    static START: Once = Once::new();
    START.call_once(|| {
        // SAFETY: `log` is a function of the right type that lives for ever and needs no data.
        unsafe {
            sys::llama_log_set(Some(log), std::ptr::null_mut());
            sys::ggml_log_set(Some(log), std::ptr::null_mut());
        }
        super::kernels::choose();
        // SAFETY: called once, before anything else of the library but the choice of its backend.
        unsafe { sys::llama_backend_init() };
    });
}

/// Only what goes wrong: the library tells dozens of lines about each model.
unsafe extern "C" fn log(level: sys::ggml_log_level, text: *const c_char, _: *mut c_void) {
    if text.is_null() {
        return;
    }
    // SAFETY: the library hands over a text that ends with a zero and lives until this returns.
    let text = unsafe { CStr::from_ptr(text) }.to_string_lossy();
    let text = text.trim_end();
    match level {
        sys::GGML_LOG_LEVEL_ERROR => tracing::error!(target: "llama", "{text}"),
        sys::GGML_LOG_LEVEL_WARN => tracing::debug!(target: "llama", "{text}"),
        _ => tracing::trace!(target: "llama", "{text}"),
    }
}

/// The file that was handed over as this descriptor.
pub(super) fn inherited(number: i32) -> std::io::Result<File> {
    use nix::libc;
    // SAFETY: asks about a number, whatever it is.
    if number <= 2 || unsafe { libc::fcntl(number, libc::F_GETFD) } < 0 {
        return Err(std::io::Error::from_raw_os_error(libc::EBADF));
    }
    // SAFETY: the descriptor is open. It was named on the command line, so that nothing else of this process owns it.
    Ok(unsafe { File::from_raw_fd(number) })
}

/// A file as the C library reads it.
struct Stream(NonNull<nix::libc::FILE>);

impl Stream {
    fn open(file: &File) -> std::io::Result<Self> {
        let owned = file.try_clone()?.into_raw_fd();
        // SAFETY: the descriptor is ours and open, and the mode ends with a zero. Where it works, the stream owns it.
        let stream = NonNull::new(unsafe { nix::libc::fdopen(owned, c"rb".as_ptr()) });
        let Some(stream) = stream else {
            let error = std::io::Error::last_os_error();
            // SAFETY: nobody took it.
            drop(unsafe { File::from_raw_fd(owned) });
            return Err(error);
        };
        // SAFETY: the stream was just opened.
        unsafe { nix::libc::rewind(stream.as_ptr()) };
        Ok(Self(stream))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: the stream is open, and nobody uses it after this.
        unsafe { nix::libc::fclose(self.0.as_ptr()) };
    }
}

/// How much of a model is loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// All of it.
    Whole,
    /// What tokens are, without the weights.
    Vocabulary,
}

/// A loaded model. Nothing of it changes after loading.
#[derive(Debug)]
pub(super) struct Model {
    model: NonNull<sys::llama_model>,
    vocab: NonNull<sys::llama_vocab>,
}

// SAFETY: after loading, the library only reads the model and its vocabulary, save that making a context may note its size in
// it; `Context::new` takes the only `Arc` for that long.
unsafe impl Send for Model {}
// SAFETY: as above.
unsafe impl Sync for Model {}

impl Model {
    /// Maps an open file. It is read from its beginning; where it was inherited, nobody else must read by the same descriptor
    /// meanwhile.
    pub(super) fn load(file: &File, part: Part) -> Result<Self, EngineError> {
        start();
        let fail = |why: &str| EngineError::Load(why.to_owned());
        let stream = Stream::open(file).map_err(|error| fail(&format!("its file cannot be read: {error}")))?;
        // SAFETY: a plain function without arguments.
        let mut params = unsafe { sys::llama_model_default_params() };
        params.n_gpu_layers = 0;
        params.load_mode = sys::LLAMA_LOAD_MODE_MMAP;
        params.vocab_only = part == Part::Vocabulary;
        params.check_tensors = false;
        // SAFETY: the stream is open and outlives the call, which maps what it needs for later; the parameters are the
        // library's own.
        let model = unsafe { sys::llama_model_load_from_file_ptr(stream.0.as_ptr().cast(), params) };
        let model = NonNull::new(model).ok_or_else(|| fail("the library refuses it; see its log"))?;
        // SAFETY: the model was just loaded; its vocabulary lives as long as it does.
        let vocab = unsafe { sys::llama_model_get_vocab(model.as_ptr()) };
        let vocab = NonNull::new(vocab.cast_mut()).ok_or_else(|| fail("it has no vocabulary"))?;
        Ok(Self { model, vocab })
    }

    /// Tokens of context that it was trained for.
    pub(super) fn trained_context(&self) -> u32 {
        // SAFETY: the model lives.
        let tokens = unsafe { sys::llama_model_n_ctx_train(self.model.as_ptr()) };
        u32::try_from(tokens).unwrap_or(0)
    }

    /// Bytes that a token takes in the cache: keys and values of all layers, as half-precision numbers, where heads are as
    /// wide as they usually are.
    pub(super) fn cell_bytes(&self) -> u64 {
        let model = self.model.as_ptr();
        // SAFETY: the model lives.
        let (layers, width, heads, shared) = unsafe {
            (
                sys::llama_model_n_layer(model),
                sys::llama_model_n_embd(model),
                sys::llama_model_n_head(model),
                sys::llama_model_n_head_kv(model),
            )
        };
        let of = |number: i32| u64::try_from(number).unwrap_or(0).max(1);
        of(layers) * of(shared) * (of(width) / of(heads)).max(1) * 2 * 2
    }

    pub(super) fn has_encoder(&self) -> bool {
        // SAFETY: the model lives.
        unsafe { sys::llama_model_has_encoder(self.model.as_ptr()) }
    }

    pub(super) fn has_decoder(&self) -> bool {
        // SAFETY: the model lives.
        unsafe { sys::llama_model_has_decoder(self.model.as_ptr()) }
    }

    /// The chat template that it carries.
    pub(super) fn template(&self) -> Option<String> {
        // SAFETY: the model lives; the text, if any, ends with a zero and lives as long.
        unsafe {
            let text = sys::llama_model_chat_template(self.model.as_ptr(), std::ptr::null());
            (!text.is_null()).then(|| CStr::from_ptr(text).to_string_lossy().into_owned())
        }
    }

    pub(super) fn tokens(&self) -> u32 {
        // SAFETY: the vocabulary lives as long as the model.
        let tokens = unsafe { sys::llama_vocab_n_tokens(self.vocab.as_ptr()) };
        u32::try_from(tokens).unwrap_or(0)
    }

    pub(super) fn ends(&self, token: u32) -> bool {
        // The library stops the process at a token that does not exist.
        // SAFETY: the vocabulary lives, and the token is of it.
        token < self.tokens() && unsafe { sys::llama_vocab_is_eog(self.vocab.as_ptr(), token.cast_signed()) }
    }

    /// The marks of beginning and end of text.
    pub(super) fn marks(&self) -> (Option<u32>, Option<u32>) {
        // SAFETY: the vocabulary lives.
        let (bos, eos) =
            unsafe { (sys::llama_vocab_bos(self.vocab.as_ptr()), sys::llama_vocab_eos(self.vocab.as_ptr())) };
        (u32::try_from(bos).ok(), u32::try_from(eos).ok())
    }

    pub(super) fn tokenize(&self, text: &str, add_marks: bool, read_marks: bool) -> Vec<u32> {
        let Ok(length) = i32::try_from(text.len()) else { return Vec::new() };
        let mut tokens = vec![0_i32; text.len() / 3 + 16];
        loop {
            let room = i32::try_from(tokens.len()).unwrap_or(i32::MAX);
            // SAFETY: text and room are as long as said, and outlive the call.
            let written = unsafe {
                sys::llama_tokenize(
                    self.vocab.as_ptr(),
                    text.as_ptr().cast(),
                    length,
                    tokens.as_mut_ptr(),
                    room,
                    add_marks,
                    read_marks,
                )
            };
            match usize::try_from(written) {
                Ok(written) => {
                    tokens.truncate(written);
                    return tokens.into_iter().filter_map(|token| u32::try_from(token).ok()).collect();
                }
                // Too little room: the number that is needed, negative. More than there are bytes cannot be.
                Err(_) if written.unsigned_abs() as usize > tokens.len() && written != i32::MIN => {
                    tokens.resize(written.unsigned_abs() as usize, 0);
                }
                Err(_) => return Vec::new(),
            }
        }
    }

    /// The bytes of a token; of marks only where `marks`.
    pub(super) fn piece(&self, token: u32, marks: bool) -> Vec<u8> {
        if token >= self.tokens() {
            return Vec::new();
        }
        let mut bytes = vec![0_u8; 64];
        loop {
            let room = i32::try_from(bytes.len()).unwrap_or(i32::MAX);
            // SAFETY: the room is as long as said and outlives the call; the token is of the vocabulary.
            let written = unsafe {
                sys::llama_token_to_piece(
                    self.vocab.as_ptr(),
                    token.cast_signed(),
                    bytes.as_mut_ptr().cast(),
                    room,
                    0,
                    marks,
                )
            };
            match usize::try_from(written) {
                Ok(written) => {
                    bytes.truncate(written);
                    return bytes;
                }
                Err(_) if written.unsigned_abs() as usize > bytes.len() && written != i32::MIN => {
                    bytes.resize(written.unsigned_abs() as usize, 0);
                }
                Err(_) => return Vec::new(),
            }
        }
    }
}

impl Drop for Model {
    fn drop(&mut self) {
        // SAFETY: nobody else has it: contexts hold an `Arc` of it.
        unsafe { sys::llama_model_free(self.model.as_ptr()) };
    }
}

/// How big a context is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Size {
    /// Cells of each sequence.
    pub(super) context: u32,
    /// Tokens of one step.
    pub(super) batch: u32,
    /// Sequences.
    pub(super) sequences: u32,
    /// Threads.
    pub(super) threads: u32,
}

/// A context of a model, and the room for its batches. Not `Send`: one thread owns it.
#[derive(Debug)]
pub(super) struct Context {
    context: NonNull<sys::llama_context>,
    model: Arc<Model>,
    tokens: Vec<i32>,
    positions: Vec<i32>,
    counts: Vec<i32>,
    /// One sequence's number for each token; `pointers` points into it.
    numbers: Vec<i32>,
    pointers: Vec<*mut i32>,
    wanted: Vec<i8>,
}

impl Context {
    pub(super) fn new(model: Arc<Model>, size: Size) -> Result<Self, EngineError> {
        // SAFETY: a plain function without arguments.
        let mut params = unsafe { sys::llama_context_default_params() };
        params.n_ctx = size.context.saturating_mul(size.sequences);
        (params.n_batch, params.n_ubatch) = (size.batch, size.batch);
        params.n_seq_max = size.sequences;
        params.n_outputs_max = size.sequences;
        let threads = i32::try_from(size.threads).unwrap_or(1);
        (params.n_threads, params.n_threads_batch) = (threads, threads);
        params.no_perf = true;
        // Cells of its own for each sequence: where others are in the cache makes no difference to what is computed, and
        // nobody looks at the cells of others.
        params.kv_unified = false;
        // SAFETY: the model lives; the library may note the context's size in it, and nobody else makes a context now, because
        // a process has one.
        let context = unsafe { sys::llama_init_from_model(model.model.as_ptr(), params) };
        let context = NonNull::new(context)
            .ok_or_else(|| EngineError::Load("no room for its context; ask for fewer cells or sequences".to_owned()))?;
        let room = size.batch as usize;
        Ok(Self {
            context,
            model,
            tokens: Vec::with_capacity(room),
            positions: Vec::with_capacity(room),
            counts: Vec::with_capacity(room),
            numbers: Vec::with_capacity(room),
            pointers: Vec::with_capacity(room),
            wanted: Vec::with_capacity(room),
        })
    }

    pub(super) fn resize(&mut self, threads: u32) {
        let threads = i32::try_from(threads.max(1)).unwrap_or(1);
        // SAFETY: the context lives, and no step is under way: this thread owns it.
        unsafe { sys::llama_set_n_threads(self.context.as_ptr(), threads, threads) };
    }

    pub(super) fn forget(&mut self, sequence: u32) {
        // SAFETY: the context lives, and its memory as long as it does. All of a sequence can always be removed.
        unsafe {
            let memory = sys::llama_get_memory(self.context.as_ptr());
            sys::llama_memory_seq_rm(memory, sequence.cast_signed(), -1, -1);
        }
    }

    pub(super) fn step(&mut self, feeds: &[Feed]) -> Result<(), EngineError> {
        self.fill(feeds);
        let count = i32::try_from(feeds.len()).map_err(|_| EngineError::NoRoom(feeds.len()))?;
        let batch = sys::llama_batch {
            n_tokens: count,
            token: self.tokens.as_mut_ptr(),
            embd: std::ptr::null_mut(),
            pos: self.positions.as_mut_ptr(),
            n_seq_id: self.counts.as_mut_ptr(),
            seq_id: self.pointers.as_mut_ptr(),
            logits: self.wanted.as_mut_ptr(),
        };
        // SAFETY: each array has `count` elements and outlives the call, which only reads them; each of `pointers` points at
        // one number of `numbers`. The context lives.
        match unsafe { sys::llama_decode(self.context.as_ptr(), batch) } {
            0 => Ok(()),
            1 => Err(EngineError::NoRoom(feeds.len())),
            code => Err(EngineError::Step(code)),
        }
    }

    fn fill(&mut self, feeds: &[Feed]) {
        self.tokens.clear();
        self.positions.clear();
        self.counts.clear();
        self.numbers.clear();
        self.wanted.clear();
        self.pointers.clear();
        for feed in feeds {
            self.tokens.push(feed.token.cast_signed());
            self.positions.push(feed.position.cast_signed());
            self.counts.push(1);
            self.numbers.push(feed.slot.cast_signed());
            self.wanted.push(i8::from(feed.logits));
        }
        // Only now: `numbers` may have moved while it grew.
        self.pointers.extend(self.numbers.iter_mut().map(std::ptr::from_mut));
    }

    pub(super) fn logits(&self, index: usize) -> &[f32] {
        let index = i32::try_from(index).unwrap_or(i32::MAX);
        // SAFETY: the context lives, and so do the logits until the next step, which needs `&mut self`. They are as many as
        // the model has tokens.
        unsafe {
            let logits = sys::llama_get_logits_ith(self.context.as_ptr(), index);
            if logits.is_null() { &[] } else { std::slice::from_raw_parts(logits, self.model.tokens() as usize) }
        }
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: this thread owns it, and nothing of it is borrowed.
        unsafe { sys::llama_free(self.context.as_ptr()) };
    }
}

/// Writes `from` anew as Q4_0.
pub(super) fn requantize(from: &Path, to: &Path, threads: u32) -> Result<(), EngineError> {
    start();
    let fail = |why: &str| EngineError::Load(why.to_owned());
    let path =
        |path: &Path| CString::new(path.as_os_str().as_encoded_bytes()).map_err(|_| fail("its path has a zero byte"));
    let (from, to) = (path(from)?, path(to)?);
    // SAFETY: a plain function without arguments.
    let mut params = unsafe { sys::llama_model_quantize_default_params() };
    params.nthread = i32::try_from(threads).unwrap_or(1);
    params.ftype = sys::LLAMA_FTYPE_MOSTLY_Q4_0;
    params.allow_requantize = true;
    // SAFETY: the paths end with a zero and outlive the call, as the parameters do.
    match unsafe { sys::llama_model_quantize(from.as_ptr(), to.as_ptr(), &raw const params) } {
        0 => Ok(()),
        code => Err(EngineError::Load(format!("it cannot be quantised anew ({code}); see the log"))),
    }
}
