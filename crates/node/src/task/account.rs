//! Metering a task: windows go into the journal first; only then the meter moves on.

use sluice_proto::v1::WindowRecord;
use sluice_types::NodeInstant;

use super::{End, Task};
use crate::home::Phase;
use crate::meter::{Meter, Window};
use crate::supervisor::Outcome;

impl Task {
    /// Closes the windows whose time has passed.
    pub(super) async fn account(&mut self) {
        let Some(now) = self.now().filter(|_| !self.meter.chain().closed) else { return };
        if self.end.is_some() {
            // Nothing is metered behind the end, wherever that is.
            return;
        }
        // What a running task's supervisor has not told yet may still cut the open window.
        if self.record.phase != Phase::Launched {
            self.meter.sample(now, 0, sluice_types::Bytes::ZERO);
        }
        let length = *self.shared.window.borrow();
        // Its supervisor may be busy with what the task left, but nothing runs that could be missed.
        let mute = self.told_end().is_none() && now.since(self.seen_until) > length.plus(length);
        let until = if self.supervised && !mute { self.seen_until } else { now };
        let mut meter = self.meter.clone();
        let windows = meter.due(self.billable(until), length);
        if !windows.is_empty() && self.commit(meter, windows).await {
            self.save().await;
        }
    }

    /// When the task was gone, as far as its supervisor told; its record of the end may take longer.
    fn told_end(&self) -> Option<NodeInstant> {
        self.status.as_ref().and_then(|status| status.ended_at)
    }

    /// An instant, or the task's end where that came before: nothing behind the end is metered.
    fn billable(&self, at: NodeInstant) -> NodeInstant {
        self.told_end().map_or(at, |end| at.min(end))
    }

    /// Cuts the open window at an instant, or does nothing where that is not inside it.
    pub(super) async fn cut_at(&mut self, at: NodeInstant) -> bool {
        let mut meter = self.meter.clone();
        let window = meter.cut(self.billable(at), self.now().unwrap_or(at));
        self.commit(meter, window.into_iter().collect()).await
    }

    /// Cuts the open window now, because something that is billed or credited differently begins.
    pub(super) async fn cut_now(&mut self) {
        let Some(now) = self.now().filter(|_| self.end.is_none()) else { return };
        self.read_usage();
        if self.cut_at(now).await {
            self.save().await;
        }
    }

    /// Cuts at a capture and notes which window is the first behind it. Once per checkpoint.
    pub(super) async fn cut_at_capture(&mut self, sequence: u64, captured: NodeInstant) -> bool {
        if self.record.cuts.contains_key(&sequence) {
            return true;
        }
        let mut meter = self.meter.clone();
        let (window, next) = meter.cut_at_capture(captured, self.now().unwrap_or(captured));
        if !self.commit(meter, window.into_iter().collect()).await {
            return false;
        }
        self.record.cuts.insert(sequence, next);
        self.save().await;
        true
    }

    /// Closes the last window. `false` where the journal could not take it; then it is tried again.
    pub(super) async fn close_meter(&mut self) -> bool {
        if self.meter.chain().closed {
            return true;
        }
        let mut meter = self.meter.clone();
        let window = match (&self.end, self.now()) {
            (Some(End::Exit(exit)), now) => {
                // Found dead after a restart of the agent: since when is not known, so it is not billed.
                let unknown = matches!(exit.outcome, Outcome::SupervisorLost) && self.looked_at.is_none();
                let end = self.billable(exit.ended_at);
                if unknown { Vec::new() } else { self.split_until(&mut meter, end, now.unwrap_or(end)) }
            }
            (_, Some(now)) => self.split_until(&mut meter, now, now),
            (_, None) => Vec::new(),
        };
        meter.abandon();
        if self.commit(meter, window).await {
            self.save().await;
            return true;
        }
        false
    }

    /// Windows of the usual length and a last one: a long one would be refused as a whole if the controller has cut the
    /// lease somewhere inside it.
    fn split_until(&self, meter: &mut Meter, end: NodeInstant, now: NodeInstant) -> Vec<Window> {
        let mut windows = meter.due(end.min(now), *self.shared.window.borrow());
        windows.extend(meter.close(end, now));
        windows
    }

    /// Journals windows; the meter they came from counts only once they are on disk.
    async fn commit(&mut self, meter: Meter, windows: Vec<Window>) -> bool {
        if !windows.is_empty() {
            let advisory = self.shared.is_advisory();
            let mut last_step = self.record.window_step;
            let records = windows.iter().map(|window| WindowRecord {
                journal: 0,
                key: Some(self.record.key.wire()),
                sequence: window.sequence,
                boot_id: self.record.boot.0.clone(),
                start_ns: window.start.nanos(),
                end_ns: window.end.nanos(),
                used_ns: window.used_ns,
                memory_byte_seconds: window.memory_byte_seconds,
                last_step: {
                    last_step = self.steps.last_by(window.end).map_or(last_step, |step| step.max(last_step));
                    last_step
                },
                advisory,
            });
            if self.shared.journal.append(records.collect()).await.is_err() {
                // Logged and counted by the journal. The window stays open and goes on growing.
                return false;
            }
            self.record.window_step = last_step;
        }
        self.meter = meter;
        self.record.chain = self.meter.chain().clone();
        true
    }
}
