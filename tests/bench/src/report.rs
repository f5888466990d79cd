//! What was measured, as lines for people and JSON for programs.

use std::path::Path;

use serde::Serialize;
use serde_json::Value;

use crate::process;

/// One figure.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Line {
    /// Which promise it belongs to.
    pub(crate) line: &'static str,
    /// What was measured.
    pub(crate) metric: String,
    /// The figure; absent where it was skipped.
    pub(crate) value: Option<f64>,
    /// Its unit.
    pub(crate) unit: &'static str,
    /// The goal in words, where there is one.
    pub(crate) goal: Option<String>,
    /// The figure of the control of the same run, or what the control showed.
    pub(crate) control: Value,
    /// What the control is, why a figure is missing, or under which load it was taken.
    pub(crate) peer: String,
    /// Whether the goal is reached, where there is one.
    pub(crate) holds: Option<bool>,
}

/// All figures of a run, printed as they come.
#[derive(Debug, Default)]
pub(crate) struct Report {
    lines: Vec<Line>,
}

impl Report {
    fn add(&mut self, line: Line) {
        let value = line.value.map_or_else(|| "SKIPPED".to_owned(), |value| number(value, line.unit));
        let goal = line.goal.as_ref().map(|goal| format!("; goal {goal}")).unwrap_or_default();
        let verdict = match line.holds {
            Some(true) => " HOLDS",
            Some(false) => " DOES NOT HOLD",
            None => "",
        };
        let control = line.control.as_str().map(|text| format!("; control: {text}")).unwrap_or_default();
        println!("{}: {value}{goal}{verdict} ({}{control})", line.metric, line.peer);
        self.lines.push(line);
    }

    /// A figure without a goal.
    pub(crate) fn figure(&mut self, metric: impl Into<String>, value: f64, unit: &'static str) {
        self.add(Line { value: Some(value), unit, ..empty(metric.into()) });
    }

    /// A figure that is to be at least, or at most, something.
    pub(crate) fn goal(&mut self, metric: impl Into<String>, value: f64, unit: &'static str, goal: Goal) {
        let (text, holds) = goal.judge(value, unit);
        self.add(Line { value: Some(value), unit, goal: Some(text), holds: Some(holds), ..empty(metric.into()) });
    }

    /// A rate beside the rate of its control.
    pub(crate) fn ratio(&mut self, metric: impl Into<String>, rate: f64, control: f64, least: f64) {
        let value = rate / control;
        self.add(Line {
            value: Some(value),
            unit: "ratio",
            goal: Some(format!("at least {least}")),
            control: control.into(),
            peer: format!("bare loop {control:.0} jobs/s; {}", process::load()),
            holds: Some(value >= least),
            ..empty(metric.into())
        });
    }

    /// A law: a figure with a goal, which holds only if its control does what it must.
    pub(crate) fn law(
        &mut self,
        metric: impl Into<String>,
        value: f64,
        unit: &'static str,
        goal: Goal,
        holds: bool,
        control: String,
    ) {
        let (text, reached) = goal.judge(value, unit);
        self.add(Line {
            value: Some(value),
            unit,
            goal: Some(text),
            holds: Some(reached && holds),
            control: control.into(),
            ..empty(metric.into())
        });
    }

    /// Whether every law and goal so far holds.
    pub(crate) fn holds(&self) -> bool {
        self.lines.iter().all(|line| line.holds != Some(false))
    }

    /// A figure that cannot be taken here.
    pub(crate) fn skipped(&mut self, metric: impl Into<String>, why: impl Into<String>) {
        self.add(Line { peer: why.into(), ..empty(metric.into()) });
    }

    /// Writes all figures to a file.
    pub(crate) fn write(&self, path: &Path) -> anyhow::Result<()> {
        std::fs::write(path, serde_json::to_vec_pretty(&self.lines)?)?;
        Ok(())
    }
}

/// What a figure should be.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Goal {
    AtLeast(f64),
    AtMost(f64),
}

impl Goal {
    /// The goal in words, and whether it is reached.
    fn judge(self, value: f64, unit: &str) -> (String, bool) {
        match self {
            Self::AtLeast(bound) => (format!("at least {}", number(bound, unit)), value >= bound),
            Self::AtMost(bound) => (format!("at most {}", number(bound, unit)), value <= bound),
        }
    }
}

fn empty(metric: String) -> Line {
    let peer = process::load();
    Line { line: "spine-6", metric, value: None, unit: "", goal: None, control: Value::Null, peer, holds: None }
}

fn number(value: f64, unit: &str) -> String {
    match unit {
        "ratio" => format!("{value:.2}"),
        _ if value.abs() >= 1000.0 => format!("{value:.0} {unit}"),
        _ => format!("{value:.2} {unit}"),
    }
}
