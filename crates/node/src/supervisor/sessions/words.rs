//! What the supervisor and the sandbox's init say to each other: one JSON object per line.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The init's first line on the connection that it keeps. Taken only from the process that said `started`.
pub(crate) const GREETING: &str = r#"{"op":"host"}"#;
/// Longest line of the init.
pub(super) const REPORT_BOUND: usize = 4 << 10;
/// Longest text in a report that is shown to anybody.
pub(super) const TEXT_BOUND: usize = 1024;

/// To the init.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub(crate) enum Order {
    /// Start a program. Its descriptors come with the line: the terminal, or input, output and errors.
    Open {
        /// The supervisor's number of the session.
        session: u64,
        /// What to start.
        program: Program,
    },
    /// Send a signal to what runs in the foreground of a terminal, or to the session's processes.
    Signal {
        /// Which session.
        session: u64,
        /// The signal's number.
        signal: i32,
    },
    /// Tell it that nobody is there any more, and kill what does not care.
    HangUp {
        /// Which session.
        session: u64,
    },
}

/// From the init: a session's program is gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Report {
    /// Which session.
    pub(crate) session: u64,
    /// How.
    #[serde(flatten)]
    pub(crate) end: Ended,
}

/// How a program ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Ended {
    /// With this status.
    Exited(i32),
    /// By this signal.
    Signalled(u32),
    /// It never began, or nobody knows.
    Failed(String),
}

/// What a session runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Program {
    /// A program of the user.
    Command {
        /// Program and arguments; empty = the user's shell.
        argv: Vec<String>,
        /// Variables beside those of the sandbox.
        env: BTreeMap<String, String>,
        /// Folder below the home folder; empty = that itself.
        work_dir: String,
        /// In a terminal.
        terminal: bool,
    },
    /// A connection to a port of the sandbox's own loopback.
    Connect {
        /// The port.
        port: u16,
    },
    /// A connection to the engine of the sandbox.
    Engine,
    /// An archive on the input is unpacked into this folder below the home folder.
    Unpack {
        /// Empty = the home folder.
        path: String,
    },
    /// A file or folder below the home folder becomes an archive on the output.
    Pack {
        /// Empty = the home folder.
        path: String,
    },
}

impl Program {
    /// Whether it gets a terminal, one descriptor, instead of three pipes.
    pub(crate) fn has_terminal(&self) -> bool {
        matches!(self, Self::Command { terminal: true, .. })
    }

    /// Whether it is ours, so that what it says on its error stream is told with its end.
    pub(crate) fn is_ours(&self) -> bool {
        !matches!(self, Self::Command { .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_are_read_as_they_are_written() {
        for end in [Ended::Exited(3), Ended::Signalled(9), Ended::Failed("no such program".to_owned())] {
            let report = Report { session: 7, end };
            let text = serde_json::to_string(&report).unwrap();
            assert_eq!(serde_json::from_str::<Report>(&text).unwrap(), report, "{text}");
        }
        for junk in
            ["", "{}", r#"{"session":1}"#, r#"{"session":-1,"exited":0}"#, r#"{"session":1,"exited":"0"}"#, "[]"]
        {
            assert!(serde_json::from_str::<Report>(junk).is_err(), "{junk}");
        }
    }
}
