//! Element types of entries.

/// How the bytes of an entry are to be read. Anything that is not a tensor is an array of [`Dtype::U8`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// IEEE binary64.
    F64,
    /// IEEE binary32.
    F32,
    /// IEEE binary16.
    F16,
    /// The upper half of a binary32.
    Bf16,
    /// Signed, 64 bits.
    I64,
    /// Signed, 32 bits.
    I32,
    /// Signed, 16 bits.
    I16,
    /// Signed, 8 bits.
    I8,
    /// Unsigned, 64 bits.
    U64,
    /// Unsigned, 32 bits.
    U32,
    /// Unsigned, 16 bits.
    U16,
    /// Unsigned, 8 bits; also plain bytes.
    U8,
    /// One byte, 0 or 1.
    Bool,
}

impl Dtype {
    /// The name used on the wire.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::F64 => "f64",
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::I64 => "i64",
            Self::I32 => "i32",
            Self::I16 => "i16",
            Self::I8 => "i8",
            Self::U64 => "u64",
            Self::U32 => "u32",
            Self::U16 => "u16",
            Self::U8 => "u8",
            Self::Bool => "bool",
        }
    }

    /// Size of one element in bytes.
    #[must_use]
    pub fn bytes(self) -> u64 {
        match self {
            Self::F64 | Self::I64 | Self::U64 => 8,
            Self::F32 | Self::I32 | Self::U32 => 4,
            Self::F16 | Self::Bf16 | Self::I16 | Self::U16 => 2,
            Self::I8 | Self::U8 | Self::Bool => 1,
        }
    }

    /// Bytes that a tensor of `shape` takes (an empty shape is a scalar), or `None` when that is beyond 64 bits.
    #[must_use]
    pub fn size_of(self, shape: &[u64]) -> Option<u64> {
        shape.iter().try_fold(self.bytes(), |size, dim| size.checked_mul(*dim))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_products_and_overflow_is_seen() {
        assert_eq!(Dtype::F32.size_of(&[3, 5]), Some(60));
        assert_eq!(Dtype::Bf16.size_of(&[]), Some(2));
        assert_eq!(Dtype::U8.size_of(&[0, 9]), Some(0));
        assert_eq!(Dtype::F64.size_of(&[u64::MAX, 2]), None);
    }
}
