//! The header of a model's file, read without trust: what it is, and whether it can be what it says.
//!
//! Our own reader, because files come from strangers and llama.cpp's takes them for granted. Every count, length and offset has
//! a bound before anything is allocated by it; weights are not looked at. Format: ggml's `docs/gguf.md`, versions 2 and 3.

mod kinds;
mod read;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io::{BufReader, Read};

use serde::Serialize;

use self::read::{Reader, Value};

const KEYS_BOUND: u64 = 4_096;
const TENSORS_BOUND: u64 = 65_536;
const KEY_BOUND: u64 = 256;
const NAME_BOUND: u64 = 128;

/// Why a file is no model.
#[derive(Debug, thiserror::Error)]
pub enum GgufError {
    /// It cannot be read.
    #[error("it cannot be read")]
    Io(#[source] std::io::Error),
    /// It ends in its header.
    #[error("it ends within its header")]
    Short,
    /// It does not begin as GGUF does.
    #[error("it is not a GGUF file")]
    NotGguf,
    /// A version that nobody here knows.
    #[error("it is GGUF of version {0}; versions 2 and 3 are read")]
    Version(u32),
    /// Its header is beyond all bounds.
    #[error("its header is too long")]
    HeaderTooLong,
    /// It contradicts the format.
    #[error("it is malformed: {0}")]
    Malformed(&'static str),
    /// A tensor is not in the file as described.
    #[error("tensor {name}: {why}")]
    Tensor {
        /// Its name.
        name: String,
        /// What is wrong.
        why: &'static str,
    },
}

impl From<std::io::Error> for GgufError {
    fn from(error: std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::UnexpectedEof => Self::Short,
            _ => Self::Io(error),
        }
    }
}

/// What a model is, by its header.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ModelHeader {
    /// Its kind, for example `llama`.
    pub architecture: String,
    /// What it calls itself, if anything.
    pub name: Option<String>,
    /// How many parameters it has.
    pub parameters: u64,
    /// Tokens of context that it was trained for; 0 = it does not say.
    pub context: u64,
    /// Bytes that one token takes in the memory of a context, its keys and values as half-precision numbers; 0 = it does
    /// not say.
    pub token_bytes: u64,
    /// The type that most parameters have, for example `Q4_0`.
    pub quantisation: String,
    /// Parameters by type.
    pub types: BTreeMap<String, u64>,
    /// Tokens in its vocabulary.
    pub vocabulary: u64,
    /// Whether it has a chat template.
    pub template: bool,
    /// How many tensors there are.
    pub tensors: u64,
    /// Bytes that the file must have.
    pub bytes: u64,
}

/// Reads the header of a file of `size` bytes.
///
/// # Errors
///
/// Where it is no model, or not all of it is there.
pub fn read_header(file: impl Read, size: u64) -> Result<ModelHeader, GgufError> {
    let mut reader = Reader::new(BufReader::new(file));
    if &reader.array::<4>()? != b"GGUF" {
        return Err(GgufError::NotGguf);
    }
    match reader.u32()? {
        2 | 3 => {}
        version => return Err(GgufError::Version(version)),
    }
    let (tensors, keys) = (reader.u64()?, reader.u64()?);
    if tensors > TENSORS_BOUND || keys > KEYS_BOUND {
        return Err(GgufError::HeaderTooLong);
    }
    let mut values = BTreeMap::new();
    for _ in 0..keys {
        let key = reader.text(KEY_BOUND)?;
        let value = reader.value()?;
        if values.insert(key, value).is_some() {
            return Err(GgufError::Malformed("a key is there twice"));
        }
    }
    let found = Tensors::read(&mut reader, tensors)?;
    let alignment = match values.get("general.alignment") {
        None => 32,
        Some(value) => integer(value)
            .filter(|alignment| alignment.is_power_of_two() && *alignment <= 1 << 16)
            .ok_or(GgufError::Malformed("general.alignment is no power of two"))?,
    };
    let bytes = found.check(reader.at(), alignment, size)?;
    header(&values, found, tensors, bytes)
}

fn header(
    values: &BTreeMap<String, Value>,
    found: Tensors,
    tensors: u64,
    bytes: u64,
) -> Result<ModelHeader, GgufError> {
    let text = |key: &str| match values.get(key) {
        Some(Value::Text(text)) => Some(text.clone()),
        _ => None,
    };
    let architecture = text("general.architecture").filter(|name| !name.is_empty() && name.len() <= 64);
    let architecture = architecture.ok_or(GgufError::Malformed("general.architecture is missing"))?;
    let vocabulary = match values.get("tokenizer.ggml.tokens") {
        Some(Value::Array(count)) => *count,
        _ => return Err(GgufError::Malformed("it has no vocabulary")),
    };
    let context = values.get(&format!("{architecture}.context_length")).and_then(integer).unwrap_or(0);
    let token_bytes = token_bytes(values, &architecture).unwrap_or(0);
    let most = found.types.iter().max_by_key(|(_, count)| **count).map(|(kind, _)| (*kind).to_owned());
    Ok(ModelHeader {
        architecture,
        name: text("general.name").map(|name| name.chars().take(128).collect()),
        parameters: found.types.values().sum(),
        context,
        token_bytes,
        quantisation: most.unwrap_or_default(),
        types: found.types.into_iter().map(|(kind, count)| (kind.to_owned(), count)).collect(),
        vocabulary,
        template: text("tokenizer.chat_template").is_some(),
        tensors,
        bytes,
    })
}

/// What a token takes in all layers. Where layers have different numbers of heads, which this reader does not look at, as if
/// each had all of them.
fn token_bytes(values: &BTreeMap<String, Value>, architecture: &str) -> Option<u64> {
    let number = |key: &str| values.get(&format!("{architecture}.{key}")).and_then(integer);
    let (layers, heads) = (number("block_count")?, number("attention.head_count")?);
    let shared = number("attention.head_count_kv").unwrap_or(heads);
    let each = number("embedding_length").and_then(|width| width.checked_div(heads));
    let key = number("attention.key_length").or(each)?;
    let value = number("attention.value_length").or(each)?;
    layers.checked_mul(shared)?.checked_mul(key.checked_add(value)?)?.checked_mul(2)
}

fn integer(value: &Value) -> Option<u64> {
    match value {
        Value::Integer(number) => u64::try_from(*number).ok(),
        Value::Text(_) | Value::Array(_) | Value::Other => None,
    }
}

/// Where tensors say that they are.
struct Tensors {
    /// Parameters by type.
    types: BTreeMap<&'static str, u64>,
    /// Name, offset in the data, bytes.
    places: Vec<(String, u64, u64)>,
}

impl Tensors {
    fn read<R: Read>(reader: &mut Reader<R>, count: u64) -> Result<Self, GgufError> {
        let mut found = Self { types: BTreeMap::new(), places: Vec::new() };
        let mut names = std::collections::BTreeSet::new();
        for _ in 0..count {
            let name = reader.text(NAME_BOUND)?;
            let fail = |why| GgufError::Tensor { name: name.clone(), why };
            let dimensions = reader.u32()?;
            if !(1..=4).contains(&dimensions) {
                return Err(fail("it must have 1 to 4 dimensions"));
            }
            let mut row = 0;
            let mut elements = 1_u64;
            for dimension in 0..dimensions {
                let length = reader.u64()?;
                if length == 0 || i64::try_from(length).is_err() {
                    return Err(fail("a dimension is empty or beyond all bounds"));
                }
                row = if dimension == 0 { length } else { row };
                elements = elements.checked_mul(length).ok_or_else(|| fail("it is beyond all bounds"))?;
            }
            let kind = kinds::of(reader.u32()?).ok_or_else(|| fail("its type is unknown"))?;
            let bytes = kind.bytes(row, elements).ok_or_else(|| fail("its rows are no whole blocks of its type"))?;
            let offset = reader.u64()?;
            if !names.insert(name.clone()) {
                return Err(fail("its name is there twice"));
            }
            let total = found.types.entry(kind.name).or_insert(0);
            *total = total.checked_add(elements).ok_or_else(|| fail("it is beyond all bounds"))?;
            found.places.push((name, offset, bytes));
        }
        Ok(found)
    }

    /// Whether all are within the file, where the data begins behind `header` bytes; returns where the last one ends.
    fn check(&self, header: u64, alignment: u64, size: u64) -> Result<u64, GgufError> {
        let data = header.next_multiple_of(alignment);
        let mut end = header;
        for (name, offset, bytes) in &self.places {
            let fail = |why| GgufError::Tensor { name: name.clone(), why };
            if !offset.is_multiple_of(alignment) {
                return Err(fail("its place is not aligned"));
            }
            let last = data.checked_add(*offset).and_then(|begin| begin.checked_add(*bytes));
            let last = last.filter(|last| *last <= size).ok_or_else(|| fail("it is beyond the end of the file"))?;
            end = end.max(last);
        }
        Ok(end)
    }
}
