//! Figures that proofs print, one JSON object a line.

use serde::Serialize;
use serde_json::Value;

/// One figure of a proof.
#[derive(Debug, Clone, Serialize)]
pub struct Figure {
    /// What was measured.
    pub metric: String,
    /// The figure.
    pub value: Value,
    /// What it has to be; empty where it is only told.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub goal: String,
    /// What the same measurement gives without the mechanism.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub control: String,
    /// What it is compared with, or why there is no figure.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub peer: String,
    /// Whether it is what it has to be; none where it is only told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub holds: Option<bool>,
}

impl Figure {
    /// A figure with a goal.
    pub(crate) fn new(
        metric: impl Into<String>,
        value: impl Into<Value>,
        goal: impl Into<String>,
        holds: bool,
    ) -> Self {
        Self { goal: goal.into(), holds: Some(holds), ..Self::seen(metric, value) }
    }

    pub(crate) fn exactly(metric: &str, value: i64, goal: i64) -> Self {
        Self::new(metric, value, format!("= {goal}"), value == goal)
    }

    pub(crate) fn at_least(metric: &str, value: i64, goal: i64) -> Self {
        Self::new(metric, value, format!(">= {goal}"), value >= goal)
    }

    pub(crate) fn at_most(metric: &str, value: i64, goal: i64) -> Self {
        Self::new(metric, value, format!("<= {goal}"), value <= goal)
    }

    /// A figure that is told, not judged.
    pub(crate) fn seen(metric: impl Into<String>, value: impl Into<Value>) -> Self {
        Self {
            metric: metric.into(),
            value: value.into(),
            goal: String::new(),
            control: String::new(),
            peer: String::new(),
            holds: None,
        }
    }

    /// A figure that cannot be had here.
    pub(crate) fn skipped(metric: &str, why: &str) -> Self {
        Self { peer: why.to_owned(), goal: "to be measured".to_owned(), ..Self::seen(metric, Value::Null) }
    }

    /// What the control gave. One that meets the goal too shows that the measurement proves nothing.
    pub(crate) fn control(self, told: impl Into<String>, missed: bool) -> Self {
        let holds = self.holds.map(|holds| holds && missed);
        Self { control: told.into(), holds, ..self }
    }

    pub(crate) fn peer(self, peer: &str) -> Self {
        Self { peer: peer.to_owned(), ..self }
    }

    /// Whether it misses its goal.
    #[must_use]
    pub fn fails(&self) -> bool {
        self.holds == Some(false)
    }
}

/// Prints figures; whether all of them hold.
///
/// # Errors
/// A figure is no JSON.
pub fn print(figures: &[Figure]) -> anyhow::Result<bool> {
    for figure in figures {
        println!("{}", serde_json::to_string(figure)?);
    }
    Ok(!figures.iter().any(Figure::fails))
}
