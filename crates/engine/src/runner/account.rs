//! A step's record for the meter.

use sluice_proto::v1::{EngineMetered, EngineMeteredSequence};

use super::sequence::{Fed, Generated, Sequence};

/// What a step did, sequence by sequence.
pub(super) struct Account {
    record: EngineMetered,
    /// Tokens computed, by row: by these the step's time is divided.
    tokens: Vec<u64>,
}

impl Account {
    pub(super) fn new(worker: u64, at: u64, wall: u64, cpu: u64) -> Self {
        Self { record: EngineMetered { worker, at, wall, cpu, ..EngineMetered::default() }, tokens: Vec::new() }
    }

    /// Adds a sequence's part. `position` is the number of tokens that it had generated before.
    pub(super) fn add(&mut self, sequence: &Sequence, fed: Fed, position: u32, generated: Option<&Generated>) {
        let submission = &sequence.submission;
        let told = generated.is_some_and(|generated| generated.told.is_some());
        self.tokens.push(u64::from(fed.first + fed.again) + u64::from(generated.is_some()));
        self.record.sequences.push(EngineMeteredSequence {
            connection: submission.origin.connection,
            sequence: submission.origin.sequence,
            tenant: submission.tenant.clone(),
            request: submission.request.clone(),
            prompt_from: fed.from,
            prompt_tokens: fed.first,
            cached_tokens: 0,
            replayed_tokens: fed.again,
            generated_from: position,
            generated_tokens: u32::from(told),
            wall: 0,
            cpu: 0,
        });
    }

    /// The record, its time divided so that the parts add up.
    pub(super) fn close(mut self) -> EngineMetered {
        let (wall, cpu) = (divide(self.record.wall, &self.tokens), divide(self.record.cpu, &self.tokens));
        for ((row, wall), cpu) in self.record.sequences.iter_mut().zip(wall).zip(cpu) {
            (row.wall, row.cpu) = (wall, cpu);
        }
        self.record
    }
}

/// Divides a whole by weights, to the last unit.
fn divide(whole: u64, weights: &[u64]) -> Vec<u64> {
    let total: u128 = weights.iter().map(|weight| u128::from(*weight)).sum();
    let (mut before, mut given) = (0_u128, 0_u64);
    let part = |weight: &u64| {
        before += u128::from(*weight);
        let until = u64::try_from(u128::from(whole) * before / total.max(1)).unwrap_or(whole);
        let part = until - given;
        given = until;
        part
    };
    weights.iter().map(part).collect()
}

#[cfg(test)]
mod tests {
    use super::divide;

    #[test]
    fn parts_add_up_to_the_whole() {
        assert_eq!(divide(100, &[1, 1, 1]), [33, 33, 34]);
        assert_eq!(divide(7, &[0, 5, 0]), [0, 7, 0]);
        assert_eq!(divide(u64::MAX, &[3, 1]).iter().sum::<u64>(), u64::MAX);
        assert_eq!(divide(5, &[]), [0_u64; 0]);
    }
}
