//! Refusals as gRPC statuses with `google.rpc` details: the one place that maps reasons to codes.

use std::time::Duration;

use sluice_lifecycle::Refusal;
use sluice_types::Reason;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

/// The domain of our reasons in `google.rpc.ErrorInfo`.
pub const DOMAIN: &str = "sluice.dev";

/// The gRPC code that a reason travels under.
#[must_use]
pub const fn code(reason: Reason) -> Code {
    match reason {
        Reason::InvalidField
        | Reason::MissingField
        | Reason::TooLarge
        | Reason::RequestIdReused
        | Reason::InvalidToken
        | Reason::CheckpointNotDeclared => Code::InvalidArgument,
        Reason::Unauthenticated => Code::Unauthenticated,
        Reason::PermissionDenied | Reason::NetworkNotAllowed => Code::PermissionDenied,
        Reason::NotFound => Code::NotFound,
        Reason::AlreadyExists => Code::AlreadyExists,
        Reason::EtagMismatch | Reason::StaleGeneration => Code::Aborted,
        Reason::Overloaded
        | Reason::NoFreeShare
        | Reason::NoFreeMemory
        | Reason::NoFreeCores
        | Reason::GangDoesNotFit
        | Reason::InsufficientFunds
        | Reason::BudgetExhausted
        | Reason::QuotaExceeded
        | Reason::QuotaLent => Code::ResourceExhausted,
        Reason::Unavailable | Reason::GatewayLost => Code::Unavailable,
        Reason::DeadlineExceeded => Code::DeadlineExceeded,
        Reason::Internal => Code::Internal,
        Reason::WrongState
        | Reason::NotAModel
        | Reason::NeverFits
        | Reason::UnknownClass
        | Reason::NoAllowedSite
        | Reason::NodesUnavailable
        | Reason::CheckpointUnreachable
        | Reason::NoPrice
        | Reason::PriceAboveLimit
        | Reason::BehindOthers
        | Reason::SuspendedByUser
        | Reason::SuspendedForMoney
        | Reason::QuotaReclaimed
        | Reason::QuotaInUse
        | Reason::ManagedElsewhere
        | Reason::ExitStatus
        | Reason::Signalled
        | Reason::OutOfMemory
        | Reason::DiskLimit
        | Reason::RunLimit
        | Reason::StartFailed
        | Reason::HostFailed
        | Reason::DataUnreachable
        | Reason::NodeLost
        | Reason::SiteLost
        | Reason::RetriesExhausted
        | Reason::MigrationTimedOut
        | Reason::NotEnforceable => Code::FailedPrecondition,
    }
}

/// A refusal as a status: reason and domain always, field violations and retry delays where they apply.
#[must_use]
pub fn status(refusal: &Refusal) -> Status {
    let mut details = ErrorDetails::new();
    let mut metadata: std::collections::HashMap<String, String> = refusal.details.clone().into_iter().collect();
    if let Some(field) = &refusal.field {
        metadata.insert("field".to_owned(), field.clone());
        details.add_bad_request_violation(field.clone(), refusal.message.clone());
    }
    details.set_error_info(refusal.reason.as_str(), DOMAIN, metadata);
    details.set_localized_message("en", refusal.reason.remedy());
    match refusal.reason {
        Reason::Overloaded | Reason::Unavailable => {
            details.set_retry_info(Some(Duration::from_millis(500)));
        }
        Reason::QuotaExceeded | Reason::QuotaLent | Reason::BudgetExhausted | Reason::InsufficientFunds => {
            details.add_quota_failure_violation(refusal.reason.as_str(), refusal.message.clone());
        }
        Reason::WrongState | Reason::EtagMismatch | Reason::QuotaInUse | Reason::ManagedElsewhere => {
            details.add_precondition_failure_violation(refusal.reason.as_str(), "", refusal.message.clone());
        }
        _ => {}
    }
    Status::with_error_details(code(refusal.reason), refusal.message.clone(), details)
}

/// A status for `reason` in words.
#[must_use]
pub fn refuse(reason: Reason, message: impl Into<String>) -> Status {
    status(&Refusal::new(reason, message))
}

/// A status for one field.
#[must_use]
pub fn refuse_field(field: &str, message: impl Into<String>) -> Status {
    status(&Refusal::field(field, message))
}
