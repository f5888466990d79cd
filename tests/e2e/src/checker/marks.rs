//! Runs of short jobs, rebuilt from the marks that they left.
//!
//! Each attempt appends `start JOB ATTEMPT` and, when it is done, `end JOB ATTEMPT` to the file `marks` in its outputs
//! (append, fsync), and says the same on its log. The log and the outputs of attempts that were lost stay with their
//! node; what landed is downloaded.

use std::collections::BTreeMap;
use std::fs;

use crate::keeper::Kept;

/// What one attempt says of itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Marks {
    /// Starts.
    pub starts: u32,
    /// Ends.
    pub ends: u32,
}

/// Marks by job and attempt.
pub type Runs = BTreeMap<String, BTreeMap<String, Marks>>;

/// The shell script that leaves them: works for a moment in between.
#[must_use]
pub(crate) fn script(seconds: &str) -> String {
    let mark = |what: &str| {
        let line = format!("{what} $SLUICE_JOB $SLUICE_ATTEMPT");
        format!(
            "echo {line}; echo {line} | dd of=$SLUICE_OUTPUTS/marks oflag=append conv=notrunc,fsync status=none || exit 9"
        )
    };
    format!("{}; sleep {seconds}; {}", mark("start"), mark("end"))
}

/// Adds the marks of a text.
pub fn count(runs: &mut Runs, text: &str) {
    for line in text.lines() {
        // A log's lines begin with time, stream and flag.
        let words: Vec<&str> = line.split_whitespace().collect();
        let [.., what, job, attempt] = words.as_slice() else { continue };
        let (starts, ends) = match *what {
            "start" => (1, 0),
            "end" => (0, 1),
            _ => continue,
        };
        let marks = runs.entry((*job).to_owned()).or_default().entry((*attempt).to_owned()).or_default();
        marks.starts += starts;
        marks.ends += ends;
    }
}

/// The marks in outputs and those in logs, of everything that was kept.
#[must_use]
pub fn kept_marks(kept: &Kept) -> (Runs, Runs) {
    let (mut outputs, mut logs) = (Runs::new(), Runs::new());
    for folder in kept.outputs() {
        count(&mut outputs, &fs::read_to_string(folder.join("marks")).unwrap_or_default());
    }
    for log in kept.logs() {
        count(&mut logs, &fs::read_to_string(log).unwrap_or_default());
    }
    (outputs, logs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_counted_per_attempt() {
        let mut runs = Runs::new();
        count(&mut runs, "start j a\nend j a\n2026-01-01T00:00:00Z stdout F start j b\nnoise\n");
        assert_eq!(runs["j"]["a"], Marks { starts: 1, ends: 1 });
        assert_eq!(runs["j"]["b"], Marks { starts: 1, ends: 0 });
    }
}
