//! How fast something may pass that is nobody's slice.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// What may pass at once after a pause, as time at the rate: enough for a screen full of text or a small file.
const BURST: Duration = Duration::from_millis(500);

/// A pace, by the generic cell rate algorithm (ITU-T I.371): the instant up to which what has passed would have
/// taken at the rate.
#[derive(Debug)]
pub(crate) struct Pace {
    rate: u64,
    paid: Mutex<Instant>,
}

impl Pace {
    /// With so many bytes, or whatever is counted, per second.
    pub(crate) fn new(rate: u64) -> Self {
        Self { rate: rate.max(1), paid: Mutex::new(Instant::now()) }
    }

    /// So many pass; until when the next ones have to wait, if they have to.
    pub(crate) fn pass(&self, count: usize, now: Instant) -> Option<Instant> {
        let cost = Duration::from_nanos((count as u64).saturating_mul(1_000_000_000) / self.rate);
        let mut paid = self.paid.lock().unwrap_or_else(PoisonError::into_inner);
        *paid = (*paid).max(now) + cost;
        let free = *paid - BURST;
        (free > now).then_some(free)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: u64 = 32 << 20;

    #[test]
    fn a_burst_passes_and_what_follows_keeps_the_rate() {
        let pace = Pace::new(RATE);
        let begin = Instant::now();
        let piece = 16 << 10;
        let (mut now, mut passed) = (begin, 0_u64);
        while now < begin + Duration::from_secs(10) {
            passed += piece as u64;
            now = pace.pass(piece, now).unwrap_or(now);
        }
        let burst = RATE / 2;
        let most = 10 * RATE + burst + piece as u64;
        assert!(passed <= most && passed >= 10 * RATE, "{passed} bytes in 10 s");
    }

    #[test]
    fn whoever_says_little_never_waits() {
        let pace = Pace::new(RATE);
        let begin = Instant::now();
        let waits = (0..10_000).filter(|turn| pace.pass(100, begin + Duration::from_micros(*turn)).is_some());
        assert_eq!(waits.count(), 0);
    }
}
