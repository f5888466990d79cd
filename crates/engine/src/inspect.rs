//! What is said of a model before anybody is served with it. Runs on files of strangers: in a sandbox, with what
//! [`crate::gguf`] refuses never shown to llama.cpp.

use std::fs::File;
use std::path::Path;

use serde::Serialize;

use crate::gguf::{GgufError, ModelHeader, read_header};

/// Why a file cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    /// It cannot be read.
    #[error("cannot read it")]
    Io(#[from] std::io::Error),
    /// It is no model.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// llama.cpp refuses it.
    #[cfg(feature = "llama")]
    #[error(transparent)]
    Engine(#[from] crate::engine::EngineError),
}

/// What a model is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ModelReport {
    /// By its header.
    #[serde(flatten)]
    pub header: ModelHeader,
    /// Bytes of the file.
    pub size: u64,
    /// BLAKE3 of the file.
    pub digest: String,
    /// What its template costs; `None` where conversations cannot be rendered or nothing here can put texts into tokens.
    pub overhead: Option<TemplateOverhead>,
    /// Why conversations cannot be rendered, if they cannot.
    pub template_fault: Option<String>,
}

/// Tokens that a template adds to what is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct TemplateOverhead {
    /// Of a conversation of one empty message.
    pub first: u32,
    /// Of each message more.
    pub message: u32,
}

/// Reads a model's file.
///
/// # Errors
///
/// Where it cannot be served.
pub fn inspect(path: &Path) -> Result<ModelReport, InspectError> {
    let file = File::open(path)?;
    let size = file.metadata()?.len();
    let header = read_header(&file, size)?;
    let mut hasher = blake3::Hasher::new();
    std::io::copy(&mut File::open(path)?, &mut hasher)?;
    let digest = hasher.finalize().to_hex().to_string();
    let (overhead, template_fault) = overhead(path, &header)?;
    Ok(ModelReport { header, size, digest, overhead, template_fault })
}

#[cfg(feature = "llama")]
fn overhead(path: &Path, header: &ModelHeader) -> Result<(Option<TemplateOverhead>, Option<String>), InspectError> {
    use sluice_proto::v1::EngineMessage;

    use crate::engine::{Marks, Vocabulary as _};

    let model = crate::llama::LlamaModel::load_vocabulary(&File::open(path)?)?;
    if u64::from(model.size()) != header.vocabulary {
        return Err(GgufError::Malformed("its vocabulary is not what its header says").into());
    }
    strain(&model)?;
    if let Some(fault) = model.template_fault() {
        return Ok((None, Some(fault.to_owned())));
    }
    let tokens = |roles: &[&str]| {
        let empty = |role: &&str| EngineMessage { role: (*role).to_owned(), content: String::new() };
        let messages: Vec<EngineMessage> = roles.iter().map(empty).collect();
        let rendered = model.render(&messages)?;
        Ok::<_, String>(u32::try_from(model.tokenize(&rendered, Marks::Read).len()).unwrap_or(u32::MAX))
    };
    match (tokens(&["user"]), tokens(&["user", "assistant", "user"])) {
        (Ok(first), Ok(three)) => {
            let answered = three.saturating_sub(first).div_ceil(2);
            // Some templates say more around what the system is told; some have no place for it.
            let told = tokens(&["system", "user"]).map_or(0, |two| two.saturating_sub(first));
            Ok((Some(TemplateOverhead { first, message: answered.max(told) }), None))
        }
        (Err(fault), _) | (_, Err(fault)) => Ok((None, Some(fault))),
    }
}

/// Puts long runs of one character into tokens, with less stack than a worker has: where that cannot be done, the check ends
/// here, and no worker that serves others does. (Regular expressions of the C++ library call themselves for each character.)
#[cfg(feature = "llama")]
fn strain(model: &crate::llama::LlamaModel) -> Result<(), InspectError> {
    use crate::engine::{EngineError, Marks, Vocabulary as _};

    const RUN: usize = 64 << 10;
    const STACK: usize = 1 << 20;
    let model = model.clone();
    let runs = move || {
        for character in ['a', '1', ' ', '!', '\n', '\u{e9}', '\u{3042}', '\u{1f600}'] {
            let text: String = std::iter::repeat_n(character, RUN / character.len_utf8()).collect();
            model.tokenize(&text, Marks::Text);
        }
    };
    let thread = std::thread::Builder::new().stack_size(STACK).spawn(runs)?;
    let fault = |_| EngineError::Load("its vocabulary cannot put long texts into tokens".to_owned());
    Ok(thread.join().map_err(fault)?)
}

#[cfg(not(feature = "llama"))]
#[expect(clippy::unnecessary_wraps, reason = "with an engine it can fail")]
fn overhead(_: &Path, _: &ModelHeader) -> Result<(Option<TemplateOverhead>, Option<String>), InspectError> {
    Ok((None, None))
}
