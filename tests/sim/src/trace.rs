//! What happened, printed on demand, and as one number that two runs of a seed must agree on.

use sluice_lifecycle::Rows;

use crate::params::SECOND;

/// FNV-1a over 64-bit words.
const BASIS: u64 = 0xcbf2_9ce4_8422_2325;
const PRIME: u64 = 0x0100_0000_01b3;

/// The trace of one run.
#[derive(Debug)]
pub(crate) struct Trace {
    printing: bool,
    digest: u64,
}

impl Trace {
    pub(crate) fn new(printing: bool) -> Self {
        Self { printing, digest: BASIS }
    }

    /// Of every event's instant and kind and of every row that was committed.
    pub(crate) const fn digest(&self) -> u64 {
        self.digest
    }

    pub(crate) fn line(&self, now: u64, what: impl FnOnce() -> String) {
        if self.printing {
            println!("{} {}", clock(now), what());
        }
    }

    pub(crate) fn word(&mut self, word: u64) {
        self.digest = (self.digest ^ word).wrapping_mul(PRIME);
    }

    fn text(&mut self, text: &str) {
        self.word(text.len() as u64);
        for bytes in text.as_bytes().chunks(8) {
            self.word(bytes.iter().fold(0, |word, byte| word << 8 | u64::from(*byte)));
        }
    }

    fn amount(&mut self, amount: i64) {
        self.word(amount.cast_unsigned());
    }

    pub(crate) fn committed(&mut self, now: u64, rows: &Rows) {
        for event in &rows.events {
            let reason = event.reason.map_or("", |reason| reason.as_str());
            self.line(now, || format!("{} {} {reason} {}", event.job, event.kind, event.message));
            self.word(event.sequence);
            self.word(event.job.raw());
            self.text(&event.kind);
            self.text(&event.message);
        }
        for row in &rows.transfers {
            self.amount(row.amount);
            self.text(&row.cause);
        }
        for row in &rows.windows {
            self.word(row.lease.raw());
            self.word(row.sequence);
            self.amount(row.amount.units());
            self.amount(row.credited.units());
        }
        for row in &rows.leases {
            self.word(row.id.raw());
            self.word(row.next_window);
            self.amount(row.amount.units());
        }
        for row in &rows.attempts {
            self.word(row.id.raw());
            self.word(row.revision);
        }
        for row in &rows.jobs {
            self.word(row.id.raw());
            self.word(row.version);
        }
    }
}

/// Virtual time in words.
pub(crate) fn clock(now: u64) -> String {
    let seconds = now / SECOND;
    let millis = now % SECOND / 1_000_000;
    format!("{:02}:{:02}:{:02}.{millis:03}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}
