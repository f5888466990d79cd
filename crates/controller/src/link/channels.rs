//! The log channels of one node's stream: whose log each brings, and which logs are asked for again later.
//!
//! A lease has one open channel or one place among those to be asked for again, never two of either: two channels would
//! bring the same bytes twice.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;

use sluice_lifecycle::TaskKey;
use sluice_types::{LeaseId, Reason};
use tokio::time::Instant;

use super::intake::{LogTarget, Trouble};

/// Log channels open on one stream.
const MAX_CHANNELS: usize = 4096;
/// A log that could not be kept or sent is asked for again after so long.
pub(super) const MEND_AFTER: Duration = Duration::from_secs(5);

pub(super) struct Channels {
    open: HashMap<u64, LogTarget>,
    /// Leases with an open channel, or whose log is to be asked for again.
    logged: HashSet<LeaseId>,
    next: u64,
    /// Logs to be asked for again, and when; the first is the first due.
    again: VecDeque<(Instant, TaskKey)>,
}

impl Channels {
    pub(super) fn new() -> Self {
        Self { open: HashMap::new(), logged: HashSet::new(), next: 1, again: VecDeque::new() }
    }

    /// Whether the lease's log may be asked for now.
    pub(super) fn has_room_for(&self, lease: LeaseId) -> bool {
        !self.logged.contains(&lease) && self.open.len() < MAX_CHANNELS
    }

    /// Opens a channel and returns its number.
    pub(super) fn open(&mut self, target: LogTarget) -> u64 {
        let channel = self.next;
        self.next += 1;
        self.logged.insert(target.key.lease);
        self.open.insert(channel, target);
        channel
    }

    /// Where the pieces of an open channel go.
    pub(super) fn target(&self, channel: u64) -> Option<LogTarget> {
        self.open.get(&channel).copied()
    }

    /// The node ended a channel.
    pub(super) fn ended(&mut self, channel: u64, reason: &str, now: Instant) {
        let Some(target) = self.open.remove(&channel) else { return };
        if reason == Reason::Overloaded.as_str() {
            // It has too many open. Nothing but us would ask again: a task at rest may never report another time.
            self.again.push_back((now + MEND_AFTER, target.key));
        } else {
            // Complete, or the node gave up: another report of the task asks for what is missing.
            self.logged.remove(&target.key.lease);
        }
    }

    /// A piece could not be kept: the log is asked for again from where the file ends, later. Says whether the channel was
    /// open, so that the node must be told.
    pub(super) fn broke(&mut self, trouble: Trouble, now: Instant) -> bool {
        let was_open = self.open.remove(&trouble.channel).is_some();
        // Where the node ended the channel before its last pieces were tried, the lease may have another one by now: that
        // began where the file ended, so it brings what is missing.
        if was_open || self.logged.insert(trouble.key.lease) {
            self.again.push_back((now + MEND_AFTER, trouble.key));
        }
        was_open
    }

    /// When the next log is to be asked for again.
    pub(super) fn due_at(&self) -> Option<Instant> {
        self.again.front().map(|(due, _)| *due)
    }

    /// The next log to be asked for again now.
    pub(super) fn take_due(&mut self, now: Instant) -> Option<TaskKey> {
        if self.due_at()? > now {
            return None;
        }
        let (_, key) = self.again.pop_front()?;
        self.logged.remove(&key.lease);
        Some(key)
    }
}

#[cfg(test)]
mod tests {
    use sluice_types::{AttemptId, Generation, JobId};

    use super::*;

    fn target(lease: u64) -> LogTarget {
        let (attempt, lease) = (AttemptId::from_raw(2), LeaseId::from_raw(lease));
        let key = TaskKey { attempt, lease, generation: Generation::ZERO };
        LogTarget { key, job: JobId::from_raw(1), rank: 0, attempt, begin: 0 }
    }

    fn due(channels: &mut Channels, now: Instant) -> Vec<LeaseId> {
        std::iter::from_fn(|| channels.take_due(now)).map(|key| key.lease).collect()
    }

    #[test]
    fn a_log_that_the_node_had_no_room_for_is_asked_for_again_and_others_are_left_to_reports() {
        let (mut channels, now) = (Channels::new(), Instant::now());
        let [crowded, complete, gone] = [1, 2, 3].map(target);
        let numbers = [crowded, complete, gone].map(|target| channels.open(target));
        for (channel, reason) in numbers.into_iter().zip(["OVERLOADED", "", "NOT_FOUND"]) {
            channels.ended(channel, reason, now);
            assert!(channels.target(channel).is_none());
        }
        assert!(!channels.has_room_for(crowded.key.lease), "a report must not open a second one");
        assert!(channels.has_room_for(complete.key.lease) && channels.has_room_for(gone.key.lease));
        assert_eq!(channels.due_at(), Some(now + MEND_AFTER));
        assert!(due(&mut channels, now).is_empty());
        assert_eq!(due(&mut channels, now + MEND_AFTER), [crowded.key.lease]);
        assert!(channels.has_room_for(crowded.key.lease));
    }

    #[test]
    fn a_piece_that_failed_behind_the_end_of_its_channel_is_asked_for_again() {
        let (mut channels, now) = (Channels::new(), Instant::now());
        let target = target(1);
        let channel = channels.open(target);
        channels.ended(channel, "", now);
        let trouble = Trouble { channel, key: target.key };
        assert!(!channels.broke(trouble, now), "the node knows that it is over");
        assert!(!channels.has_room_for(target.key.lease));
        assert!(!channels.broke(trouble, now));
        assert_eq!(due(&mut channels, now + MEND_AFTER), [target.key.lease], "once");
    }

    #[test]
    fn a_lease_has_one_channel_or_waits_for_one() {
        let (mut channels, now) = (Channels::new(), Instant::now());
        let target = target(1);
        let first = channels.open(target);
        channels.ended(first, "", now);
        let second = channels.open(target);
        // Of the first channel, late.
        assert!(!channels.broke(Trouble { channel: first, key: target.key }, now));
        assert!(channels.target(second).is_some() && channels.due_at().is_none());
        assert!(channels.broke(Trouble { channel: second, key: target.key }, now));
        assert!(channels.target(second).is_none() && !channels.has_room_for(target.key.lease));
        assert_eq!(due(&mut channels, now + MEND_AFTER), [target.key.lease]);
    }
}
