//! What can go wrong for a user, as exit codes and as text: what, why, which rule, and what to do next.
//!
//! Every command returns [`CliError`]; only `run` turns it into a process exit. Texts of the server are shown
//! without control characters, because they may carry another user's words.

use std::io;
use std::time::Duration;

use sluice_types::Reason;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::output::{Style, printable};

/// The stable exit codes of user commands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Done.
    Ok,
    /// None of the others.
    Other,
    /// The command line, a file or a field is wrong.
    Usage,
    /// There is no such object, or the caller may not know of it.
    NotFound,
    /// No credentials, or not allowed.
    Denied,
    /// Quota, budget, funds or price.
    Quota,
    /// The server cannot be reached or takes no work.
    Unavailable,
    /// The job ended otherwise than with success.
    JobFailed,
    /// A deadline or `--timeout` passed.
    TimedOut,
    /// Ended by Ctrl-C, as shells report it.
    Interrupted,
    /// What a program in a rental ended with, as if it had run here.
    Program(u8),
}

impl Exit {
    /// The number.
    #[must_use]
    pub const fn code(self) -> u8 {
        match self {
            Self::Ok => 0,
            Self::Other => 1,
            Self::Usage => 2,
            Self::NotFound => 3,
            Self::Denied => 4,
            Self::Quota => 5,
            Self::Unavailable => 6,
            Self::JobFailed => 7,
            Self::TimedOut => 8,
            Self::Interrupted => 130,
            Self::Program(status) => status,
        }
    }
}

impl From<Exit> for std::process::ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

/// Why a command did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The command line, a file or a reference is wrong; nothing was sent.
    #[error("{message}")]
    Usage {
        /// What is wrong.
        message: String,
        /// The field or flag, where there is one.
        field: Option<String>,
        /// What to do next, where it is not obvious.
        next: Option<String>,
    },
    /// The server refused, or could not be asked.
    #[error("cannot {doing}")]
    Refused {
        /// What was asked for, as a verb phrase.
        doing: String,
        /// The answer.
        #[source]
        status: Box<Status>,
    },
    /// A name that leads to nothing.
    #[error("there is no {what}")]
    Missing {
        /// What was looked for.
        what: String,
        /// Where to look.
        next: String,
    },
    /// The job ended otherwise than asked for.
    #[error("{job} ended as {state}")]
    JobFailed {
        /// The job's id.
        job: String,
        /// Its last state.
        state: String,
        /// A documented reason.
        reason: String,
        /// In words.
        message: String,
    },
    /// `--timeout` passed.
    #[error("{what} did not happen within {}", crate::duration::print_duration(*after))]
    TimedOut {
        /// What was waited for.
        what: String,
        /// How long.
        after: Duration,
    },
    /// A file or stream of this host.
    #[error("cannot {doing}")]
    Io {
        /// What was tried, as a verb phrase.
        doing: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The server's answer cannot be used.
    #[error("{0}")]
    Answer(String),
    /// A program in a rental ended with this status; it said itself what there was to say.
    #[error("the program ended with status {0}")]
    Ended(u8),
    /// Asked and not confirmed.
    #[error("not confirmed, nothing was done")]
    Declined,
    /// The reader of stdout went away, which is its right.
    #[error("stdout was closed")]
    Closed,
    /// Ctrl-C; the text says what goes on.
    #[error("{0}")]
    Interrupted(String),
}

impl CliError {
    /// A wrong command line or reference.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::Usage { message: message.into(), field: None, next: None }
    }

    /// A wrong value of a field or flag.
    pub fn field(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Usage { message: message.into(), field: Some(field.into()), next: None }
    }

    /// A failure of this host.
    pub fn io(doing: impl Into<String>, source: io::Error) -> Self {
        Self::Io { doing: doing.into(), source }
    }

    /// A refusal of the server.
    pub fn refused(doing: impl Into<String>, status: Status) -> Self {
        Self::Refused { doing: doing.into(), status: Box::new(status) }
    }

    /// The exit code it stands for.
    #[must_use]
    pub fn exit(&self) -> Exit {
        match self {
            Self::Usage { .. } => Exit::Usage,
            Self::Refused { status, .. } => exit_of(status),
            Self::Missing { .. } => Exit::NotFound,
            Self::JobFailed { .. } => Exit::JobFailed,
            Self::TimedOut { .. } => Exit::TimedOut,
            Self::Io { .. } | Self::Answer(_) | Self::Declined => Exit::Other,
            Self::Closed => Exit::Ok,
            Self::Interrupted(_) => Exit::Interrupted,
            Self::Ended(status) => Exit::Program(*status),
        }
    }

    /// The text for stderr, several lines, ending in a newline.
    #[must_use]
    pub fn render(&self, style: Style) -> String {
        let mut lines = vec![format!("{} {}", style.bad("error:"), printable(&self.headline()))];
        let mut tell = |label: &str, text: &str| {
            if !text.is_empty() {
                lines.push(format!("  {} {}", style.dim(&format!("{label}:")), printable(text)));
            }
        };
        match self {
            Self::Usage { field, next, .. } => {
                tell("field", field.as_deref().unwrap_or_default());
                tell("next", next.as_deref().unwrap_or("See --help of the command."));
            }
            Self::Refused { status, .. } => explain(status, &mut tell),
            Self::Missing { next, .. } => tell("next", next),
            Self::JobFailed { job, reason, message, .. } => {
                tell("why", message);
                tell("reason", &reason_line(reason));
                let remedy = reason.parse::<Reason>().ok().map(Reason::remedy);
                tell("next", &format!("{} Or: sluice describe {job}", remedy.unwrap_or_default()));
            }
            Self::TimedOut { .. } => {
                tell("next", "It may still happen: look with `sluice describe`, or raise --timeout.");
            }
            Self::Io { source, .. } => {
                tell("why", &source.to_string());
                match source.kind() {
                    io::ErrorKind::NotFound => tell("next", "Check the path."),
                    io::ErrorKind::PermissionDenied => tell("next", "Check the permissions of the file."),
                    _ => {}
                }
            }
            Self::Answer(_) => tell("next", "Check that the server and this program have the same version."),
            Self::Declined => tell("next", "Confirm with y, or pass -y."),
            Self::Closed | Self::Interrupted(_) | Self::Ended(_) => {}
        }
        lines.join("\n") + "\n"
    }

    fn headline(&self) -> String {
        match self {
            Self::Refused { doing, status } => format!("cannot {doing}: {}", words_of(status)),
            other => other.to_string(),
        }
    }
}

/// The documented reason that a status carries.
#[must_use]
pub(crate) fn reason_of(status: &Status) -> Option<Reason> {
    status.get_details_error_info().and_then(|info| info.reason.parse().ok())
}

/// The exit code that stands for a status: by its documented reason, else by its code.
#[must_use]
pub(crate) fn exit_of(status: &Status) -> Exit {
    match reason_of(status) {
        Some(
            Reason::InsufficientFunds
            | Reason::BudgetExhausted
            | Reason::QuotaExceeded
            | Reason::QuotaLent
            | Reason::QuotaInUse
            | Reason::NoPrice
            | Reason::PriceAboveLimit,
        ) => {
            return Exit::Quota;
        }
        Some(Reason::NetworkNotAllowed | Reason::PermissionDenied | Reason::Unauthenticated) => return Exit::Denied,
        Some(
            Reason::Overloaded
            | Reason::Unavailable
            | Reason::NoFreeShare
            | Reason::NoFreeMemory
            | Reason::NoFreeCores
            | Reason::GangDoesNotFit
            | Reason::NodesUnavailable,
        ) => return Exit::Unavailable,
        Some(Reason::TooLarge | Reason::InvalidField | Reason::MissingField) => return Exit::Usage,
        _ => {}
    }
    match status.code() {
        Code::Ok => Exit::Ok,
        Code::InvalidArgument | Code::OutOfRange => Exit::Usage,
        Code::NotFound => Exit::NotFound,
        Code::PermissionDenied | Code::Unauthenticated => Exit::Denied,
        Code::ResourceExhausted => Exit::Quota,
        Code::Unavailable => Exit::Unavailable,
        Code::DeadlineExceeded => Exit::TimedOut,
        _ => Exit::Other,
    }
}

/// The status in words, with the causes below it: a transport failure hides the useful part there.
fn words_of(status: &Status) -> String {
    let mut text = match status.message() {
        "" => format!("{:?}", status.code()),
        message => message.to_owned(),
    };
    let mut cause = std::error::Error::source(status);
    for _ in 0..8 {
        let Some(error) = cause else { break };
        let words = error.to_string();
        if !text.contains(&words) {
            text.push_str(&format!(": {words}"));
        }
        cause = error.source();
    }
    text
}

fn reason_line(reason: &str) -> String {
    match reason.parse::<Reason>() {
        Ok(known) => format!("{known} ({})", known.meaning().trim()),
        Err(()) => reason.to_owned(),
    }
}

fn explain(status: &Status, tell: &mut impl FnMut(&str, &str)) {
    let details = status.get_error_details();
    if let Some(info) = details.error_info() {
        tell("reason", &reason_line(&info.reason));
    } else {
        tell("reason", &format!("{:?}", status.code()));
    }
    for violation in details.bad_request().iter().flat_map(|bad| &bad.field_violations) {
        tell("field", &format!("{}: {}", violation.field, violation.description));
    }
    for violation in details.quota_failure().iter().flat_map(|quota| &quota.violations) {
        tell("quota", &format!("{}: {}", violation.subject, violation.description));
    }
    for violation in details.precondition_failure().iter().flat_map(|failed| &failed.violations) {
        tell("rule", &format!("{} {}: {}", violation.r#type, violation.subject, violation.description));
    }
    if let Some(delay) = details.retry_info().and_then(|info| info.retry_delay) {
        tell("retry", &format!("after {}", crate::duration::print_duration(delay)));
    }
    if let Some(request) = details.request_info() {
        tell("request", &request.request_id);
    }
    tell("next", next_of(status));
    for link in details.help().iter().flat_map(|help| &help.links) {
        tell("help", &format!("{} {}", link.description, link.url));
    }
}

fn next_of(status: &Status) -> &'static str {
    if let Some(reason) = reason_of(status) {
        return reason.remedy();
    }
    match status.code() {
        Code::NotFound => Reason::NotFound.remedy(),
        Code::PermissionDenied => Reason::PermissionDenied.remedy(),
        Code::Unauthenticated => Reason::Unauthenticated.remedy(),
        Code::Unavailable => "Check that the server runs (`sluice up`) and that --server and --ca are its own.",
        Code::DeadlineExceeded => "Retry the command; what it asked for may have been done.",
        Code::Unimplemented => "Update the server: it does not know this call.",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic_types::{ErrorDetails, QuotaViolation};

    fn with_reason(code: Code, reason: &str) -> Status {
        Status::with_error_details(code, "no", ErrorDetails::with_error_info(reason, "sluice.dev", []))
    }

    #[test]
    fn exit_codes_follow_the_reason_and_else_the_code() {
        for (code, reason, exit) in [
            (Code::FailedPrecondition, "INSUFFICIENT_FUNDS", Exit::Quota),
            (Code::FailedPrecondition, "BUDGET_EXHAUSTED", Exit::Quota),
            (Code::ResourceExhausted, "QUOTA_EXCEEDED", Exit::Quota),
            (Code::FailedPrecondition, "NO_PRICE", Exit::Quota),
            (Code::ResourceExhausted, "OVERLOADED", Exit::Unavailable),
            (Code::ResourceExhausted, "TOO_LARGE", Exit::Usage),
            (Code::NotFound, "NOT_FOUND", Exit::NotFound),
            (Code::Unauthenticated, "UNAUTHENTICATED", Exit::Denied),
            (Code::FailedPrecondition, "NETWORK_NOT_ALLOWED", Exit::Denied),
            (Code::FailedPrecondition, "WRONG_STATE", Exit::Other),
            (Code::Internal, "INTERNAL", Exit::Other),
            (Code::InvalidArgument, "A_REASON_OF_THE_FUTURE", Exit::Usage),
        ] {
            assert_eq!(exit_of(&with_reason(code, reason)), exit, "{reason}");
        }
        for (code, exit) in [
            (Code::Unavailable, Exit::Unavailable),
            (Code::DeadlineExceeded, Exit::TimedOut),
            (Code::PermissionDenied, Exit::Denied),
            (Code::ResourceExhausted, Exit::Quota),
            (Code::Aborted, Exit::Other),
        ] {
            assert_eq!(exit_of(&Status::new(code, "")), exit, "{code:?}");
        }
        assert_eq!(CliError::Closed.exit(), Exit::Ok);
    }

    #[test]
    fn every_reason_is_rendered_with_its_meaning_and_remedy() {
        for reason in Reason::ALL {
            let text = CliError::refused("x", with_reason(Code::Unknown, reason.as_str())).render(Style::plain());
            assert!(text.contains(reason.as_str()) && text.contains(reason.remedy()), "{text}");
        }
    }

    #[test]
    fn an_error_says_what_why_which_rule_and_what_next() {
        let mut details = ErrorDetails::with_error_info("INVALID_FIELD", "sluice.dev", []);
        details.add_bad_request_violation("spec.resources.milli", "must be 1 to 1000, is 5000");
        details.set_retry_info(Some(Duration::from_secs(2)));
        details.set_request_info("8b6f", "");
        let status = Status::with_error_details(Code::InvalidArgument, "the job is not valid", details);
        insta::assert_snapshot!("error_field", CliError::refused("submit the job", status).render(Style::plain()));

        let mut details = ErrorDetails::with_error_info("QUOTA_EXCEEDED", "sluice.dev", []);
        details.set_quota_failure([QuotaViolation::new("tenants/a", "cpu: 4000m of 4000m are held")]);
        let status = Status::with_error_details(Code::ResourceExhausted, "the quota is used up", details);
        insta::assert_snapshot!("error_quota", CliError::refused("submit the job", status).render(Style::plain()));

        let failed = CliError::JobFailed {
            job: "job-1".into(),
            state: "FAILED".into(),
            reason: "OUT_OF_MEMORY".into(),
            message: "task 0 was killed at 512MiB".into(),
        };
        insta::assert_snapshot!("error_job_failed", failed.render(Style::plain()));
        let io = CliError::io("read job.yaml", io::Error::new(io::ErrorKind::NotFound, "no such file"));
        insta::assert_snapshot!("error_io", io.render(Style::plain()));
        insta::assert_snapshot!(
            "error_usage",
            CliError::field("resources.share", "`x` is not a share").render(Style::plain())
        );
    }

    #[test]
    fn words_of_others_cannot_steer_the_terminal() {
        let status = Status::new(Code::NotFound, "no \x1b]0;owned\x07 job\nnext: rm -rf");
        let text = CliError::refused("get it", status).render(Style::plain());
        assert!(!text.contains('\x1b') && !text.contains('\x07'));
        assert_eq!(text.lines().filter(|line| line.starts_with("next:")).count(), 0);
    }
}
