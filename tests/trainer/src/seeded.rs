//! A counter-based generator: value `n` of a stream is a function of (seed, stream, n) alone.
//!
//! The mixing is that of SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014). Written
//! here so that no library update can change a loss curve.

/// One stream of values.
#[derive(Debug, Clone)]
pub(crate) struct Seeded {
    key: u64,
    next: u64,
}

impl Seeded {
    /// The stream called `stream`; streams of one seed are independent of each other.
    pub(crate) fn new(seed: u64, stream: &str) -> Self {
        let mut key = mix(seed.wrapping_add(GOLDEN));
        for byte in stream.bytes() {
            key = mix(key ^ u64::from(byte)).wrapping_add(GOLDEN);
        }
        Self { key, next: 0 }
    }

    /// The next 64 bits.
    pub(crate) fn bits(&mut self) -> u64 {
        self.next += 1;
        mix(self.key.wrapping_add(self.next.wrapping_mul(GOLDEN)))
    }

    /// A value in `0..bound`, each equally likely to within 2^-64 of `bound`.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        let wide = u128::from(self.bits()) * u128::from(bound);
        u64::try_from(wide >> 64).expect("invariant: the upper half of 128 bits fits in 64")
    }

    /// A value in `-1.0..1.0`, exact in 24 bits, so that no rounding mode or math library takes part.
    pub(crate) fn symmetric(&mut self) -> f32 {
        let bits = u32::try_from(self.bits() >> 40).expect("invariant: 24 bits fit in 32");
        bits as f32 / 8_388_608.0 - 1.0
    }
}

/// 2^64 divided by the golden ratio.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mixing_is_splitmix64() {
        // The published first outputs for seed 0.
        let mut stream = Seeded { key: 0, next: 0 };
        assert_eq!(stream.bits(), 0xe220_a839_7b1d_cdaf);
        assert_eq!(stream.bits(), 0x6e78_9e6a_a1b9_65f4);
    }

    #[test]
    fn values_stay_in_range_and_streams_differ() {
        let mut stream = Seeded::new(1, "a");
        for _ in 0..1000 {
            assert!(stream.below(7) < 7);
            assert!((-1.0..1.0).contains(&stream.symmetric()));
        }
        assert_ne!(Seeded::new(1, "a").bits(), Seeded::new(1, "b").bits());
        assert_ne!(Seeded::new(1, "a").bits(), Seeded::new(2, "a").bits());
    }
}
