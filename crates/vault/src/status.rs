//! Errors as gRPC statuses with `google.rpc` details: one documented reason each, the same words through every door.

use std::collections::HashMap;
use std::str::FromStr;

use sluice_types::{Digest, Reason};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::error::{FetchError, StoreError};

/// Where reasons are documented.
const DOMAIN: &str = "sluice";

/// A status with its reason.
pub(crate) fn status(code: Code, reason: Reason, message: impl Into<String>) -> Status {
    let details = ErrorDetails::with_error_info(reason.as_str(), DOMAIN, HashMap::new());
    Status::with_error_details(code, message, details)
}

/// A wrong field.
pub(crate) fn invalid(field: &'static str, rule: &str) -> Status {
    let mut details = ErrorDetails::with_error_info(Reason::InvalidField.as_str(), DOMAIN, HashMap::new());
    details.add_bad_request_violation(field, rule);
    Status::with_error_details(Code::InvalidArgument, format!("{field}: {rule}"), details)
}

/// A list or message over its bound.
pub(crate) fn too_many(field: &'static str, limit: usize) -> Status {
    status(Code::InvalidArgument, Reason::TooLarge, format!("{field}: at most {limit}"))
}

/// Reads a digest from a request.
pub(crate) fn digest(field: &'static str, text: &str) -> Result<Digest, Status> {
    Digest::from_str(text).map_err(|error| invalid(field, &error.to_string()))
}

impl From<StoreError> for Status {
    fn from(error: StoreError) -> Self {
        let (code, reason) = match &error {
            StoreError::NotFound(_) => (Code::NotFound, Reason::NotFound),
            // The digest is not here any more; the code tells why.
            StoreError::Corrupt(_) => (Code::DataLoss, Reason::NotFound),
            StoreError::Mismatch { .. } | StoreError::Truncated { .. } | StoreError::WrongSize { .. } => {
                (Code::InvalidArgument, Reason::InvalidField)
            }
            StoreError::Gap { .. } | StoreError::PastEnd { .. } => (Code::OutOfRange, Reason::InvalidField),
            StoreError::TooLarge { .. } => (Code::ResourceExhausted, Reason::TooLarge),
            StoreError::Missing { .. } => (Code::FailedPrecondition, Reason::WrongState),
            StoreError::Manifest(crate::ManifestError::TooLarge { .. }) => (Code::InvalidArgument, Reason::TooLarge),
            StoreError::Manifest(_) => (Code::InvalidArgument, Reason::InvalidField),
            StoreError::Locked(_) | StoreError::Io { .. } | StoreError::Objects { .. } => {
                tracing::error!(error = %chain(&error), "the store failed");
                (Code::Unavailable, Reason::Unavailable)
            }
        };
        let message = match &error {
            StoreError::Manifest(_) | StoreError::Io { .. } | StoreError::Objects { .. } => chain(&error),
            _ => error.to_string(),
        };
        status(code, reason, message)
    }
}

impl From<FetchError> for Status {
    fn from(error: FetchError) -> Self {
        let message = chain(&error);
        match error {
            FetchError::Nowhere(_) => status(Code::NotFound, Reason::NotFound, message),
            FetchError::Unreachable { .. } => status(Code::Unavailable, Reason::Unavailable, message),
            FetchError::Untrue(_) => status(Code::DataLoss, Reason::NotFound, message),
            FetchError::Manifest { .. } => status(Code::InvalidArgument, Reason::InvalidField, message),
            FetchError::Store(error) => error.into(),
        }
    }
}

/// An error with its causes, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
