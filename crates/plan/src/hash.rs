//! Hashes that are the same on every machine and in every run.
//!
//! They break ties between equally good devices and speed up look-ups. Nothing ever iterates a [`Lookup`] into a
//! result.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use sluice_types::{DeviceRef, JobId};

/// A map for look-ups only: its order reaches no result.
pub(crate) type Lookup<K, V> = HashMap<K, V, BuildHasherDefault<MixHasher>>;

/// One step of splitmix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014).
#[must_use]
pub(crate) const fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// A device's fixed place on the ring of ties.
#[must_use]
pub(crate) fn ring_of(device: DeviceRef) -> u64 {
    mix(mix(device.node.raw()) ^ u64::from(device.index))
}

/// Where on the ring a job starts to look: the first equally good device from there on is taken. So a tie is decided
/// by (job, device) alone and found by one ordered look-up.
#[must_use]
pub(crate) const fn turn_of(job: JobId) -> u64 {
    mix(job.raw())
}

/// A hasher over [`mix`].
#[derive(Debug, Clone, Default)]
pub(crate) struct MixHasher(u64);

impl Hasher for MixHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0u8; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write_u64(u64::from_le_bytes(word));
        }
    }

    fn write_u64(&mut self, word: u64) {
        self.0 = mix(self.0 ^ word);
    }
}
