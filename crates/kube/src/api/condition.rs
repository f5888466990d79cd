//! Conditions of objects, by the conventions of Kubernetes.

pub use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

/// What a condition says, without times.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// For example `Accepted`.
    pub kind: &'static str,
    /// True, false, or not known.
    pub holds: Option<bool>,
    /// One CamelCase word.
    pub reason: String,
    /// In words.
    pub message: String,
}

impl Standing {
    /// A condition that holds or does not.
    #[must_use]
    pub fn new(kind: &'static str, holds: bool, reason: &str, message: impl Into<String>) -> Self {
        Self { kind, holds: Some(holds), reason: reason.to_owned(), message: message.into() }
    }

    /// A condition that nothing is known of.
    #[must_use]
    pub fn unknown(kind: &'static str, reason: &str, message: impl Into<String>) -> Self {
        Self { holds: None, ..Self::new(kind, false, reason, message) }
    }

    fn status(&self) -> &'static str {
        match self.holds {
            Some(true) => "True",
            Some(false) => "False",
            None => "Unknown",
        }
    }
}

/// The conditions to write: those that say what they said before keep their time.
#[must_use]
pub fn conditions(standings: &[Standing], before: &[Condition], generation: Option<i64>, now: &Time) -> Vec<Condition> {
    let made = standings.iter().map(|standing| {
        let known = before.iter().find(|known| known.type_ == standing.kind && known.status == standing.status());
        Condition {
            type_: standing.kind.to_owned(),
            status: standing.status().to_owned(),
            reason: standing.reason.clone(),
            message: standing.message.clone(),
            observed_generation: generation,
            last_transition_time: known.map_or_else(|| now.clone(), |known| known.last_transition_time.clone()),
        }
    });
    made.collect()
}

#[cfg(test)]
mod tests {
    use k8s_openapi::jiff::Timestamp;

    use super::*;

    #[test]
    fn a_condition_keeps_its_time_until_it_changes() {
        let at = |second| Time(Timestamp::from_second(second).unwrap());
        let first = conditions(&[Standing::new("Accepted", true, "Made", "a")], &[], Some(1), &at(1));
        let second = conditions(&[Standing::new("Accepted", true, "Other", "b")], &first, Some(2), &at(2));
        assert_eq!((&second[0].last_transition_time, second[0].reason.as_str()), (&at(1), "Other"));
        let third = conditions(&[Standing::unknown("Accepted", "Gone", "c")], &second, Some(3), &at(3));
        assert_eq!((&third[0].last_transition_time, third[0].status.as_str()), (&at(3), "Unknown"));
    }
}
