//! What can go wrong between a task and its supervisor.

use std::io;
use std::path::PathBuf;

/// Why a call failed. [`Error::is_fatal`] tells whether the session can still be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The socket named by `SLUICE_SOCKET` cannot be reached.
    #[error("cannot connect to the supervisor at {path}")]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The supervisor did not answer, or the connection broke.
    #[error("lost the supervisor while {doing}")]
    Lost {
        /// The request in flight.
        doing: &'static str,
        /// Why.
        source: io::Error,
    },
    /// An earlier call lost the supervisor or got an answer that made no sense.
    #[error("the session ended at an earlier error")]
    Ended,
    /// The answer is not what the protocol says.
    #[error("the supervisor's answer to {doing} is malformed: {problem}")]
    Malformed {
        /// The request in flight.
        doing: &'static str,
        /// What is wrong with the answer.
        problem: String,
    },
    /// The supervisor said no; the task may go on.
    #[error("the supervisor refused {doing} ({reason}): {message}")]
    Refused {
        /// The refused request.
        doing: &'static str,
        /// The documented reason, such as `INVALID_FIELD`.
        reason: String,
        /// One sentence for a person.
        message: String,
    },
    /// A bound of the protocol is exceeded; nothing was sent.
    #[error("{what} has {is} {unit}, the protocol allows {most}")]
    TooBig {
        /// The bounded thing.
        what: &'static str,
        /// Its size.
        is: usize,
        /// The bound.
        most: usize,
        /// What both are counted in.
        unit: &'static str,
    },
    /// A tensor given to the writer, or an entry read back, is inconsistent with itself.
    #[error("entry {name:?} is unusable: {problem}")]
    Entry {
        /// The entry's name.
        name: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A file of the stage or of a resumed checkpoint cannot be used.
    #[error("cannot use {path}")]
    File {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The program could not produce its state.
    #[error("the program could not give its state")]
    Program {
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A variable that must accompany `SLUICE_SOCKET` is missing or unreadable.
    #[error("the variable {name} is {problem}")]
    Environment {
        /// The variable.
        name: &'static str,
        /// What is wrong with it.
        problem: &'static str,
    },
}

impl Error {
    /// Wraps the program's own error, for the function given to [`crate::Session::checkpoint`].
    pub fn program(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Program { source: source.into() }
    }

    /// True when the session is over; false when the task may go on and try again at a later step.
    #[must_use]
    pub fn is_fatal(&self) -> bool {
        matches!(self, Self::Connect { .. } | Self::Lost { .. } | Self::Ended | Self::Malformed { .. })
    }
}
