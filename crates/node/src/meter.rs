//! From samples of what a lease uses to metered windows: half-open, chained, cut where something changes.
//!
//! Pure: instants and readings come in as arguments. A window's bounds are exact (they are what is billed); the evidence
//! inside them is interpolated between samples. Whoever calls works on a copy and keeps it only once the windows that
//! came out are in the journal, so that a full disk leaves the window open and loses no time.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};
use sluice_types::{Bytes, Nanos, NodeInstant};

/// Samples kept of one open window; beyond that every other one is forgotten.
const SAMPLES: usize = 512;
/// Begins of past windows kept, to place a capture that is noticed late.
const REMEMBERED: usize = 256;

/// Where the chain of a lease's windows stands: all that a restart needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Chain {
    /// Number of the open window; the number of windows so far.
    pub(crate) sequence: u64,
    /// Its begin.
    pub(crate) start: NodeInstant,
    /// Processor time at its begin, in nanoseconds since the slice was granted.
    pub(crate) cpu: u64,
    /// Begins of the newest windows by number, the open one last.
    pub(crate) begins: VecDeque<(u64, NodeInstant)>,
    /// No more windows: the task has ended.
    pub(crate) closed: bool,
}

/// One closed window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Window {
    pub(crate) sequence: u64,
    pub(crate) start: NodeInstant,
    pub(crate) end: NodeInstant,
    pub(crate) used_ns: u64,
    pub(crate) memory_byte_seconds: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Sample {
    at: NodeInstant,
    cpu: u64,
    memory: u64,
}

/// The meter of one lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Meter {
    chain: Chain,
    /// In order of time; the first is at the window's begin or, after a restart, the first reading since.
    samples: VecDeque<Sample>,
}

impl Chain {
    /// The chain of a lease accepted now.
    pub(crate) fn begin(at: NodeInstant) -> Self {
        Self { sequence: 0, start: at, cpu: 0, begins: VecDeque::from([(0, at)]), closed: false }
    }

    /// Continues behind a window that was found in the journal but not yet noted here.
    pub(crate) fn continue_behind(&mut self, sequence: u64, end: NodeInstant, used_ns: u64) {
        if sequence < self.sequence {
            return;
        }
        self.cpu = self.cpu.saturating_add(used_ns);
        self.open(sequence + 1, end);
    }

    fn open(&mut self, sequence: u64, start: NodeInstant) {
        (self.sequence, self.start) = (sequence, start);
        self.begins.push_back((sequence, start));
        if self.begins.len() > REMEMBERED {
            self.begins.pop_front();
        }
    }
}

impl Meter {
    /// Meters on from where a chain stands.
    pub(crate) fn new(chain: Chain) -> Self {
        let first = Sample { at: chain.start, cpu: chain.cpu, memory: 0 };
        Self { chain, samples: VecDeque::from([first]) }
    }

    /// Where the chain stands.
    pub(crate) fn chain(&self) -> &Chain {
        &self.chain
    }

    /// A reading of the kernel's counters. Counters that went back (a group made anew) count as standing still.
    pub(crate) fn sample(&mut self, at: NodeInstant, cpu: u64, memory: Bytes) {
        let Some(last) = self.samples.back().copied() else { return };
        if self.chain.closed || at <= last.at {
            return;
        }
        if self.samples.len() == 1 && last.memory == 0 {
            // Nothing is known of memory before the first reading of a window; what is there now is the best guess.
            self.samples[0].memory = memory.get();
        }
        self.samples.push_back(Sample { at, cpu: cpu.max(last.cpu), memory: memory.get() });
        if self.samples.len() > SAMPLES {
            let mut place = 0;
            let newest = self.samples.len() - 1;
            self.samples.retain(|_| {
                place += 1;
                place - 1 == 0 || place - 1 == newest || place % 2 == 0
            });
        }
    }

    /// Closes every window whose full length has passed by `until`.
    pub(crate) fn due(&mut self, until: NodeInstant, length: Nanos) -> Vec<Window> {
        let mut closed = Vec::new();
        while !self.chain.closed && length > Nanos::ZERO && self.chain.start.after(length) <= until {
            closed.push(self.close_at(self.chain.start.after(length)));
        }
        closed
    }

    /// Ends the open window at `at`, if that lies inside it; `now` bounds it.
    pub(crate) fn cut(&mut self, at: NodeInstant, now: NodeInstant) -> Option<Window> {
        if self.chain.closed || at <= self.chain.start || at > now {
            return None;
        }
        Some(self.close_at(at))
    }

    /// Cuts at the instant of a capture, and returns the number of the first window that begins at or after it.
    pub(crate) fn cut_at_capture(&mut self, captured: NodeInstant, now: NodeInstant) -> (Option<Window>, u64) {
        let captured = captured.min(now);
        let window = self.cut(captured, now);
        let first = self.chain.begins.iter().find(|(_, start)| *start >= captured).map(|(sequence, _)| *sequence);
        (window, first.unwrap_or(self.chain.sequence))
    }

    /// Ends the last window; after this there are no more.
    pub(crate) fn close(&mut self, at: NodeInstant, now: NodeInstant) -> Option<Window> {
        let window = self.cut(at.min(now), now);
        self.chain.closed = true;
        window
    }

    /// Ends metering without a last window: what ran since the last one is not known.
    pub(crate) fn abandon(&mut self) {
        self.chain.closed = true;
    }

    fn close_at(&mut self, end: NodeInstant) -> Window {
        let at_end = self.reading(end);
        let mut memory: u128 = 0;
        let mut before: Option<Sample> = None;
        let inside = self.samples.iter().filter(|sample| sample.at < end).copied();
        for sample in inside.chain([at_end]) {
            if let Some(before) = before {
                let span = u128::from(sample.at.since(before.at).get());
                memory += (u128::from(before.memory) + u128::from(sample.memory)) * span / 2;
            }
            before = Some(sample);
        }
        let window = Window {
            sequence: self.chain.sequence,
            start: self.chain.start,
            end,
            used_ns: at_end.cpu.saturating_sub(self.chain.cpu),
            memory_byte_seconds: u64::try_from(memory / 1_000_000_000).unwrap_or(u64::MAX),
        };
        self.samples.retain(|sample| sample.at > end);
        self.samples.push_front(at_end);
        self.chain.cpu = at_end.cpu.max(self.chain.cpu);
        self.chain.open(window.sequence + 1, end);
        window
    }

    /// The counters at an instant: between two samples on the straight line, outside them as at the nearest.
    fn reading(&self, at: NodeInstant) -> Sample {
        let after = self.samples.iter().find(|sample| sample.at >= at);
        let before = self.samples.iter().rev().find(|sample| sample.at <= at);
        match (before, after) {
            (Some(left), Some(right)) if right.at > left.at => {
                let part = |from: u64, to: u64| -> u64 {
                    let (span, way) = (right.at.since(left.at).get(), at.since(left.at).get());
                    let (from, to) = (i128::from(from), i128::from(to));
                    let value = from + (to - from) * i128::from(way) / i128::from(span.max(1));
                    u64::try_from(value).unwrap_or(0)
                };
                Sample { at, cpu: part(left.cpu, right.cpu), memory: part(left.memory, right.memory) }
            }
            (Some(known), _) | (None, Some(known)) => Sample { at, ..*known },
            (None, None) => Sample { at, cpu: self.chain.cpu, memory: 0 },
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(millis: u64) -> NodeInstant {
        NodeInstant::from_nanos(millis * 1_000_000)
    }

    fn meter() -> Meter {
        Meter::new(Chain::begin(at(1000)))
    }

    #[test]
    fn windows_have_exact_bounds_and_interpolated_evidence() {
        let mut meter = meter();
        meter.sample(at(6000), 500, Bytes::new(100));
        meter.sample(at(16_000), 1500, Bytes::new(100));
        let windows = meter.due(at(16_000), Nanos::from_secs(10));
        let wanted = Window { sequence: 0, start: at(1000), end: at(11_000), used_ns: 1000, memory_byte_seconds: 1000 };
        assert_eq!(windows, [wanted]);
        assert_eq!(
            meter.cut(at(16_000), at(16_000)).map(|window| (window.start, window.used_ns)),
            Some((at(11_000), 500))
        );
    }

    #[test]
    fn a_restart_after_a_long_time_yields_full_windows_and_loses_nothing() {
        let mut meter = meter();
        meter.sample(at(36_000), 3500, Bytes::new(7));
        let windows = meter.due(at(36_000), Nanos::from_secs(10));
        assert_eq!(windows.iter().map(|window| window.used_ns).collect::<Vec<_>>(), [1000, 1000, 1000]);
        assert_eq!((meter.chain().sequence, meter.chain().start), (3, at(31_000)));
    }

    #[test]
    fn a_capture_cuts_the_open_window_or_points_behind_the_one_it_fell_into() {
        let mut meter = meter();
        assert_eq!(meter.cut_at_capture(at(4000), at(5000)).1, 1);
        assert_eq!(meter.chain().start, at(4000));
        assert_eq!(meter.due(at(25_000), Nanos::from_secs(10)).len(), 2);
        // Noticed late: the capture fell into window 1, so the first one after it is 2.
        assert_eq!(meter.cut_at_capture(at(5000), at(25_000)), (None, 2));
        assert_eq!(meter.cut_at_capture(at(14_000), at(25_000)), (None, 2));
        // Twice the same instant makes no empty window.
        assert_eq!(meter.cut_at_capture(at(25_000), at(25_000)).1, 4);
        assert_eq!(meter.cut_at_capture(at(25_000), at(25_000)), (None, 4));
    }

    #[test]
    fn the_end_closes_once_and_the_future_is_refused() {
        let mut meter = meter();
        assert_eq!(meter.cut(at(9000), at(8000)), None);
        assert_eq!(meter.close(at(9000), at(8000)).map(|window| window.end), Some(at(8000)));
        assert_eq!(meter.close(at(9000), at(9000)), None);
        assert!(meter.due(at(99_000), Nanos::from_secs(1)).is_empty());
    }

    #[test]
    fn the_chain_continues_behind_what_the_journal_has() {
        let mut chain = Chain::begin(at(0));
        chain.continue_behind(0, at(10), 5);
        chain.continue_behind(1, at(20), 6);
        chain.continue_behind(0, at(10), 5);
        assert_eq!((chain.sequence, chain.start, chain.cpu), (2, at(20), 11));
    }

    #[derive(Debug, Clone)]
    enum Event {
        Sample(u64, u64),
        Due(u64),
        Cut(u64),
        Capture(u64),
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            (0u64..100_000, 0u64..1_000_000).prop_map(|(at, cpu)| Event::Sample(at, cpu)),
            (0u64..100_000).prop_map(Event::Due),
            (0u64..100_000).prop_map(Event::Cut),
            (0u64..100_000).prop_map(Event::Capture),
        ]
    }

    proptest! {
        /// Whatever happens, windows are chained without gap or overlap and the processor time in them adds up.
        #[test]
        fn windows_chain_and_evidence_adds_up(events in prop::collection::vec(event(), 0..200)) {
            let mut meter = Meter::new(Chain::begin(at(0)));
            let (mut windows, mut latest) = (Vec::new(), 0);
            for event in events {
                match event {
                    Event::Sample(time, cpu) => {
                        latest = latest.max(time);
                        meter.sample(at(time), cpu, Bytes::new(1));
                    }
                    Event::Due(time) => windows.extend(meter.due(at(time.min(latest)), Nanos::from_millis(700))),
                    Event::Cut(time) => windows.extend(meter.cut(at(time), at(latest))),
                    Event::Capture(time) => {
                        let captured = at(time.min(latest));
                        let (window, next) = meter.cut_at_capture(captured, at(latest));
                        windows.extend(window);
                        let open = meter.chain();
                        let begins = if next == open.sequence { open.start } else {
                            windows.iter().find(|window: &&Window| window.sequence == next).unwrap().start
                        };
                        prop_assert!(begins >= captured);
                    }
                }
            }
            let mut edge = at(0);
            for (place, window) in (0u64..).zip(&windows) {
                prop_assert!(window.sequence == place && window.start == edge && window.end > window.start);
                edge = window.end;
            }
            prop_assert_eq!(windows.iter().map(|window| window.used_ns).sum::<u64>(), meter.chain().cpu);
        }
    }
}
