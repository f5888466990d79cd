//! Where ids come from: the only source, fed with time and a seed from outside.

use sluice_types::Timestamp;

/// Mints ids that grow with time. Steps between two ids of one millisecond are random, so that an id tells nobody how
/// many others were minted beside it.
#[derive(Debug, Clone)]
pub struct Mint {
    last: u64,
    random: u64,
}

impl Mint {
    /// Continues after `last` with steps drawn from `seed`.
    #[must_use]
    pub const fn new(last: u64, seed: u64) -> Self {
        Self { last, random: seed }
    }

    /// The next id, of whichever kind the caller wants.
    pub fn next(&mut self, now: Timestamp) -> u64 {
        // SplitMix64 (Steele, Lea, Flood 2014): small, seedable, good enough for steps.
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let step = (z ^ (z >> 31)) & 0x3f;
        self.last = (self.last + 1 + step).max(now.millis() << 20 | step);
        self.last
    }
}
