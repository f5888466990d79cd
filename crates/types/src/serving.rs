//! How a slice's memory is divided where a model is served on it: by the controller, which says how long contexts are, and
//! by the node and its engine, which make room for them.

use crate::Bytes;

/// A context is a multiple of so many tokens where its memory bounds it: engines round up to them.
pub const CONTEXT_QUANTUM: u32 = 256;

/// Places of an engine beside those of so many sequences: for who comes late, and for what was put out.
#[must_use]
pub const fn spare_places(sequences: u32) -> u32 {
    let quarter = sequences.div_ceil(4);
    if quarter == 0 { 1 } else { quarter }
}

/// What of a slice's memory is for contexts: weights, their copy for the kernels and the rest of the program have the
/// other half.
#[must_use]
pub const fn context_memory(memory: Bytes) -> Bytes {
    Bytes::new(memory.get() / 2)
}

/// Tokens of context that each of so many sequences can have in a slice's memory, where one token takes `token` bytes;
/// 0 = not even one quantum.
#[must_use]
pub fn longest_context(memory: Bytes, sequences: u32, token: Bytes) -> u32 {
    let places = u64::from(sequences) + u64::from(spare_places(sequences));
    let room = context_memory(memory).get() / places.saturating_mul(token.get()).max(1);
    u32::try_from(room).unwrap_or(u32::MAX) / CONTEXT_QUANTUM * CONTEXT_QUANTUM
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contexts_fit_their_memory_and_would_not_if_they_were_longer() {
        // SmolLM2-135M: 30 layers, 3 heads of 64 that are shared, keys and values of two bytes.
        let token = Bytes::new(30 * 3 * 64 * 2 * 2);
        assert_eq!(longest_context(Bytes::mib(1024), 8, token), 2304);
        assert_eq!(longest_context(Bytes::mib(16), 8, token), 0);
        for (memory, sequences) in [(1024, 8), (768, 4), (3072, 1), (20_000, 64)] {
            let context = longest_context(Bytes::mib(memory), sequences, token);
            let takes =
                |context: u32| u64::from(context) * u64::from(sequences + spare_places(sequences)) * token.get();
            let room = context_memory(Bytes::mib(memory)).get();
            assert!(takes(context) <= room && takes(context + CONTEXT_QUANTUM) > room);
        }
        assert_eq!(longest_context(Bytes::new(u64::MAX), 1, Bytes::new(1)), u32::MAX / 256 * 256);
    }
}
