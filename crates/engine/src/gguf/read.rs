//! Bounded reading of GGUF's pieces.

use std::io::Read;

use super::GgufError;

/// All of the header together has at most so many bytes.
const HEADER_BOUND: u64 = 128 << 20;
/// A text of an array, which is a token as a vocabulary has it or a rule of how two become one: what is told to users for
/// one token is no larger.
const TOKEN_BOUND: u64 = 2 << 10;
/// A text that is kept.
const KEPT_BOUND: u64 = 1 << 20;

/// A value, as far as it is kept.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    /// Any of the integer types.
    Integer(i128),
    /// A text.
    Text(String),
    /// So many elements.
    Array(u64),
    /// A number with a fraction, or yes and no: not looked at.
    Other,
}

/// Counts what it reads, and stops at the bound.
pub(super) struct Reader<R> {
    inner: R,
    at: u64,
}

impl<R: Read> Reader<R> {
    pub(super) fn new(inner: R) -> Self {
        Self { inner, at: 0 }
    }

    /// Bytes read so far.
    pub(super) fn at(&self) -> u64 {
        self.at
    }

    fn claim(&mut self, bytes: u64) -> Result<(), GgufError> {
        self.at = self.at.checked_add(bytes).filter(|at| *at <= HEADER_BOUND).ok_or(GgufError::HeaderTooLong)?;
        Ok(())
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], GgufError> {
        self.claim(N as u64)?;
        let mut bytes = [0; N];
        self.inner.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, GgufError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(super) fn u64(&mut self) -> Result<u64, GgufError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn skip(&mut self, bytes: u64) -> Result<(), GgufError> {
        self.claim(bytes)?;
        let skipped = std::io::copy(&mut (&mut self.inner).take(bytes), &mut std::io::sink())?;
        if skipped < bytes { Err(GgufError::Short) } else { Ok(()) }
    }

    /// A text of at most `most` bytes.
    pub(super) fn text(&mut self, most: u64) -> Result<String, GgufError> {
        let length = self.u64()?;
        if length > most {
            return Err(GgufError::Malformed("a text is too long"));
        }
        self.claim(length)?;
        let mut bytes = Vec::new();
        (&mut self.inner).take(length).read_to_end(&mut bytes)?;
        if bytes.len() as u64 != length {
            return Err(GgufError::Short);
        }
        String::from_utf8(bytes).map_err(|_| GgufError::Malformed("a text is not UTF-8"))
    }

    /// A value of a key.
    pub(super) fn value(&mut self) -> Result<Value, GgufError> {
        let kind = self.u32()?;
        match kind {
            8 => Ok(Value::Text(self.text(KEPT_BOUND)?)),
            9 => self.elements(),
            kind => self.number(kind),
        }
    }

    fn number(&mut self, kind: u32) -> Result<Value, GgufError> {
        Ok(match kind {
            0 => Value::Integer(u8::from_le_bytes(self.array()?).into()),
            1 => Value::Integer(i8::from_le_bytes(self.array()?).into()),
            2 => Value::Integer(u16::from_le_bytes(self.array()?).into()),
            3 => Value::Integer(i16::from_le_bytes(self.array()?).into()),
            4 => Value::Integer(self.u32()?.into()),
            5 => Value::Integer(i32::from_le_bytes(self.array()?).into()),
            6 => {
                self.u32()?;
                Value::Other
            }
            7 => match u8::from_le_bytes(self.array()?) {
                0 | 1 => Value::Other,
                _ => return Err(GgufError::Malformed("a truth value is neither")),
            },
            10 => Value::Integer(self.u64()?.into()),
            11 => Value::Integer(i64::from_le_bytes(self.array()?).into()),
            12 => {
                self.u64()?;
                Value::Other
            }
            _ => return Err(GgufError::Malformed("a value has an unknown type")),
        })
    }

    fn elements(&mut self) -> Result<Value, GgufError> {
        let kind = self.u32()?;
        let count = self.u64()?;
        if count > HEADER_BOUND {
            return Err(GgufError::HeaderTooLong);
        }
        let size = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            10..=12 => 8,
            8 => {
                for _ in 0..count {
                    let length = self.u64()?;
                    if length > TOKEN_BOUND {
                        return Err(GgufError::Malformed("a token is too long"));
                    }
                    self.skip(length)?;
                }
                return Ok(Value::Array(count));
            }
            9 => return Err(GgufError::Malformed("an array has arrays")),
            _ => return Err(GgufError::Malformed("an array has elements of an unknown type")),
        };
        self.skip(count * size)?;
        Ok(Value::Array(count))
    }
}
