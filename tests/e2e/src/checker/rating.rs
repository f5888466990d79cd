//! From time to money, a second time.
//!
//! The formula is the design's: billed milli = max(compute milli, ceil(1000 x slice memory / device memory)); amount =
//! wall nanoseconds x (billed milli x class rate + host milli-cores x core rate + host bytes x byte rate), with the
//! remainder carried along the lease. It is computed the other way round than the ledger does: the exact sum over the
//! lease so far, whole units of it, less what the windows before cost.

/// What of a lease is billed, and at which prices (credits per hour of a device, a core, a GiB).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// Billed share in thousandths.
    pub billed: u32,
    /// Host processor in thousandths of a core.
    pub cores: u32,
    /// Host memory in bytes.
    pub memory: u64,
    /// Credits per hour of a whole device.
    pub device_hour: i64,
    /// Credits per hour of a core.
    pub core_hour: i64,
    /// Credits per hour of a GiB.
    pub gib_hour: i64,
}

const HOUR: i128 = 3_600 * 1_000_000_000;
const GIB: i128 = 1024 * 1024 * 1024;
/// Both parts of a price over one denominator.
const DENOMINATOR: i128 = HOUR * 1000 * GIB;

/// The share that is billed.
#[must_use]
pub fn billed_milli(compute: u32, slice_memory: u64, device_memory: u64) -> u32 {
    let (slice, device) = (i128::from(slice_memory) * 1000, i128::from(device_memory.max(1)));
    let share = slice / device + i128::from(slice % device != 0);
    compute.max(u32::try_from(share.min(1000)).unwrap_or(1000))
}

/// The amounts of a lease's windows, given their lengths in nanoseconds in order.
#[must_use]
pub fn rate_all(terms: &Terms, lengths: &[u64]) -> Vec<i64> {
    let (mut time, mut before, mut amounts) = (0u64, 0i128, Vec::with_capacity(lengths.len()));
    for length in lengths {
        time += *length;
        let all = exact_parts(terms, time) / DENOMINATOR;
        amounts.push(i64::try_from(all - before).unwrap_or(i64::MAX));
        before = all;
    }
    amounts
}

/// The most that so much time can cost, rounded up: what is promised, and so held, for a run limit.
#[must_use]
pub fn ceiling(terms: &Terms, nanos: u64) -> i64 {
    let whole = rate_all(terms, &[nanos]).iter().sum::<i64>();
    let exact = exact_parts(terms, nanos) % DENOMINATOR == 0;
    whole + i64::from(!exact)
}

fn exact_parts(terms: &Terms, nanos: u64) -> i128 {
    let shares = i128::from(terms.billed) * i128::from(terms.device_hour)
        + i128::from(terms.cores) * i128::from(terms.core_hour);
    let bytes = i128::from(terms.memory) * i128::from(terms.gib_hour);
    i128::from(nanos) * (shares * GIB + bytes * 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TERMS: Terms = Terms { billed: 500, cores: 0, memory: 0, device_hour: 50_000, core_hour: 0, gib_hour: 0 };

    #[test]
    fn an_hour_of_half_a_device_costs_half_however_it_is_cut() {
        let hour = 3_600_000_000_000;
        assert_eq!(rate_all(&TERMS, &[hour]), [25_000]);
        for cuts in [7, 1000, 99_991] {
            let mut lengths = vec![hour / cuts; usize::try_from(cuts).unwrap()];
            lengths.push(hour % cuts);
            assert_eq!(rate_all(&TERMS, &lengths).iter().sum::<i64>(), 25_000);
        }
    }

    #[test]
    fn a_ceiling_is_rounded_up() {
        assert_eq!(ceiling(&TERMS, 3_600_000_000_000), 25_000);
        assert_eq!(ceiling(&TERMS, 3_600_000_000_001), 25_001);
        assert_eq!(ceiling(&TERMS, 1), 1);
    }

    #[test]
    fn cores_and_memory_are_added() {
        let terms = Terms { cores: 250, memory: 3 << 29, core_hour: 60_000, gib_hour: 6_000, ..TERMS };
        assert_eq!(rate_all(&terms, &[3_600_000_000_000]), [25_000 + 15_000 + 9_000]);
    }

    #[test]
    fn who_takes_the_memory_pays_for_the_device() {
        assert_eq!(billed_milli(100, 1, 1000), 100);
        assert_eq!(billed_milli(100, 501, 1000), 501);
        assert_eq!(billed_milli(100, 5001, 10_000), 501);
        assert_eq!(billed_milli(100, 5000, 1000), 1000);
    }
}
