//! Events of a job and the answer to `why`.

use serde::Serialize;
use sluice_proto::v1;
use sluice_types::{Bytes, Credits, Reason};

use super::{age, filled, milli, time};
use crate::output::{Column, Style, View, printable};

/// One thing that happened.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct EventView {
    pub(crate) sequence: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) time: Option<String>,
    pub(crate) job: String,
    pub(crate) kind: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<String>,
    pub(crate) message: String,
    pub(crate) actor: String,
}

impl From<&v1::Event> for EventView {
    fn from(event: &v1::Event) -> Self {
        Self {
            sequence: event.sequence,
            time: time(event.time.as_ref()),
            job: event.job.clone(),
            kind: event.kind.clone(),
            reason: filled(&event.reason),
            message: event.message.clone(),
            actor: event.actor.clone(),
        }
    }
}

impl View for EventView {
    const KIND: &'static str = "Event";
    const PLURAL: &'static str = "events";
    const COLUMNS: &'static [Column] = &[
        Column::new("AGE").right(),
        Column::new("EVENT"),
        Column::new("REASON"),
        Column::new("BY"),
        Column::new("MESSAGE"),
        Column::wide("TIME"),
        Column::wide("SEQUENCE").right(),
    ];

    fn name(&self) -> String {
        self.sequence.to_string()
    }

    fn cells(&self, now: jiff::Timestamp) -> Vec<String> {
        vec![
            age(self.time.as_deref(), now),
            self.kind.clone(),
            self.reason.clone().unwrap_or_default(),
            self.actor.clone(),
            self.message.clone(),
            self.time.clone().unwrap_or_default(),
            self.sequence.to_string(),
        ]
    }
}

/// Why a job waits.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ExplanationView {
    pub(crate) job: String,
    pub(crate) waits: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<String>,
    pub(crate) message: String,
    pub(crate) changes: Vec<ChangeView>,
    pub(crate) ahead: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) quota: Option<ShortageView>,
}

/// The quota that binds.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ShortageView {
    pub(crate) quota: String,
    pub(crate) level: String,
    pub(crate) asked_milli: i64,
    pub(crate) missing_milli: i64,
}

impl From<&v1::QuotaShortage> for ShortageView {
    fn from(short: &v1::QuotaShortage) -> Self {
        Self {
            quota: short.quota.clone(),
            level: short.level.clone(),
            asked_milli: short.asked_milli,
            missing_milli: short.missing_milli,
        }
    }
}

/// A change that would admit it.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ChangeView {
    pub(crate) what: String,
    pub(crate) amount: i64,
    pub(crate) message: String,
}

impl ChangeView {
    fn amount_text(&self) -> String {
        let size = |value: i64| Bytes::new(value.unsigned_abs()).to_string();
        let sign = if self.amount < 0 { "-" } else { "" };
        match self.what.as_str() {
            "milli" | "host_core_milli" | "quota" | "borrow" => milli(self.amount),
            "memory_bytes" | "host_memory_bytes" => format!("{sign}{}", size(self.amount)),
            "funds" | "budget" => Credits::new(self.amount).to_string(),
            _ => self.amount.to_string(),
        }
    }
}

impl ExplanationView {
    pub(crate) fn new(job: &str, answer: &v1::ExplainJobResponse) -> Self {
        let change = |c: &v1::Change| ChangeView { what: c.what.clone(), amount: c.amount, message: c.message.clone() };
        Self {
            job: job.to_owned(),
            waits: !answer.reason.is_empty(),
            reason: filled(&answer.reason),
            message: answer.message.clone(),
            changes: answer.changes.iter().map(change).collect(),
            ahead: answer.ahead,
            quota: answer.quota.as_ref().map(ShortageView::from),
        }
    }

    /// For people.
    pub(crate) fn text(&self, style: Style) -> String {
        let Some(reason) = &self.reason else {
            let message = if self.message.is_empty() { "it does not wait" } else { &self.message };
            return format!("{}\n", printable(message));
        };
        let mut text = format!("{}: {}\n", style.warn(&printable(reason)), printable(&self.message));
        let known = reason.parse::<Reason>().ok();
        if let Some(known) = known {
            text.push_str(&format!("  {}\n", known.meaning().trim()));
        }
        if let Some(short) = &self.quota {
            let (asked, missing) = (milli(short.asked_milli), milli(short.missing_milli));
            let line = format!("Quota {}: level {}, asked {asked}, missing {missing}", short.quota, short.level);
            text.push_str(&format!("{}\n", printable(&line)));
        }
        text.push_str(&format!("Ahead of it in your tenant: {}\n", self.ahead));
        if self.changes.is_empty() {
            text.push_str("No single change would admit it");
            text.push_str(&known.map(|known| format!(". {}", known.remedy())).unwrap_or_default());
            text.push('\n');
            return text;
        }
        text.push_str("Any one of these changes would admit it, the smallest first:\n");
        for change in &self.changes {
            let line = format!("  {} {}: {}", change.what, change.amount_text(), change.message);
            text.push_str(&printable(&line));
            text.push('\n');
        }
        text
    }
}
