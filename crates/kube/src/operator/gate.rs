//! The controller's door, as the operator goes through it: by API key, as any user.

use std::time::Duration;

use sluice_proto::v1::job_service_client::JobServiceClient;
use sluice_proto::v1::money_service_client::MoneyServiceClient;
use sluice_proto::v1::tenant_service_client::TenantServiceClient;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Code, Request, Status};
use tonic_types::StatusExt as _;

/// The name in the controller's certificate, wherever it listens.
const SERVER_NAME: &str = "sluice-controller";
const DEADLINE: Duration = Duration::from_secs(30);
const LARGEST_ANSWER: usize = 16 << 20;

/// Where the controller is, and who the operator is to it.
#[derive(Clone)]
pub struct Controller {
    /// https://HOST:PORT
    pub server: String,
    /// The authority of its certificate, PEM.
    pub ca_pem: String,
    /// The API key of a platform admin.
    pub key: String,
}

/// Why there is no connection to try.
#[derive(Debug, thiserror::Error)]
pub enum GateError {
    /// The address, or the authority, cannot be used.
    #[error("the controller's address or CA cannot be used")]
    Address(#[from] tonic::transport::Error),
    /// The key cannot be used.
    #[error("the API key is not one word of printable ASCII")]
    Key,
}

/// Puts key and deadline into every call.
#[derive(Debug, Clone)]
pub(crate) struct Caller(MetadataValue<Ascii>);

impl Interceptor for Caller {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert("authorization", self.0.clone());
        Ok(request)
    }
}

/// A client of one service.
type Authed = InterceptedService<Channel, Caller>;

/// The controller's services.
#[derive(Debug, Clone)]
pub(crate) struct Gate {
    channel: Channel,
    caller: Caller,
}

impl Gate {
    /// Prepares the connection; the first call opens it, and it opens again by itself.
    pub(crate) fn new(controller: &Controller) -> Result<Self, GateError> {
        let authority = Certificate::from_pem(&controller.ca_pem);
        let tls = ClientTlsConfig::new().ca_certificate(authority).domain_name(SERVER_NAME);
        let channel = Endpoint::from_shared(controller.server.clone())?
            .connect_timeout(Duration::from_secs(5))
            .http2_keep_alive_interval(Duration::from_secs(15))
            .keep_alive_timeout(Duration::from_secs(10))
            .keep_alive_while_idle(true)
            .user_agent(concat!("sluice-operator/", env!("CARGO_PKG_VERSION")))?
            .tls_config(tls)?
            .connect_lazy();
        let text = format!("Bearer {}", controller.key.trim());
        let mut key: MetadataValue<Ascii> = text.parse().map_err(|_| GateError::Key)?;
        key.set_sensitive(true);
        Ok(Self { channel, caller: Caller(key) })
    }

    fn authed(&self) -> Authed {
        InterceptedService::new(self.channel.clone(), self.caller.clone())
    }

    pub(crate) fn jobs(&self) -> JobServiceClient<Authed> {
        JobServiceClient::new(self.authed()).max_decoding_message_size(LARGEST_ANSWER)
    }

    pub(crate) fn money(&self) -> MoneyServiceClient<Authed> {
        MoneyServiceClient::new(self.authed()).max_decoding_message_size(LARGEST_ANSWER)
    }

    pub(crate) fn tenants(&self) -> TenantServiceClient<Authed> {
        TenantServiceClient::new(self.authed()).max_decoding_message_size(LARGEST_ANSWER)
    }
}

/// A message with the deadline of every call.
pub(crate) fn timed<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(DEADLINE);
    request
}

/// What the controller says to one thing: an answer, no, or nothing for now.
#[derive(Debug)]
pub(crate) enum Said<T> {
    /// Its answer.
    Yes(T),
    /// It refuses, and will until something changes.
    No(Refused),
}

/// A refusal in words, as conditions show it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refused {
    pub(crate) code: Code,
    /// A documented reason, such as QUOTA_IN_USE.
    pub(crate) reason: String,
    pub(crate) message: String,
}

impl Refused {
    /// The reason as a condition has it: `QuotaInUse`.
    pub(crate) fn camel(&self) -> String {
        camel(&self.reason)
    }
}

impl From<Refused> for Status {
    fn from(refused: Refused) -> Self {
        Self::new(refused.code, format!("{}: {}", refused.reason, refused.message))
    }
}

impl<T> Said<T> {
    /// What was asked for; `None` where it is not there. That alone tells that it is not: any other refusal is an error.
    ///
    /// # Errors
    /// The refusal, to be tried again.
    pub(crate) fn found(self) -> Result<Option<T>, Status> {
        match self {
            Self::Yes(it) => Ok(Some(it)),
            Self::No(refused) if refused.code == Code::NotFound => Ok(None),
            Self::No(refused) => Err(refused.into()),
        }
    }
}

/// QUOTA_IN_USE → QuotaInUse.
pub(crate) fn camel(reason: &str) -> String {
    let word = |word: &str| {
        let mut letters = word.chars();
        let first = letters.next().map(|letter| letter.to_ascii_uppercase());
        first.into_iter().chain(letters.map(|letter| letter.to_ascii_lowercase())).collect::<String>()
    };
    reason.split('_').map(word).collect()
}

/// Reasons that say nothing of the object: the controller does not answer now, or not to the operator's key, as while the
/// key is being replaced.
const NOT_OF_THE_OBJECT: [&str; 6] =
    ["OVERLOADED", "UNAVAILABLE", "DEADLINE_EXCEEDED", "INTERNAL", "UNAUTHENTICATED", "PERMISSION_DENIED"];

/// Parts refusals from a controller that does not answer the operator now: only the first are told to users.
pub(crate) fn said<T>(answer: Result<tonic::Response<T>, Status>) -> Result<Said<T>, Status> {
    let status = match answer {
        Ok(answer) => return Ok(Said::Yes(answer.into_inner())),
        Err(status) => status,
    };
    let details = status.get_error_details();
    let Some(info) = details.error_info() else { return Err(status) };
    if NOT_OF_THE_OBJECT.contains(&info.reason.as_str()) {
        return Err(status);
    }
    let field = details.bad_request().and_then(|bad| bad.field_violations.first().map(|one| one.field.clone()));
    let message = match field.filter(|field| !field.is_empty()) {
        Some(field) => format!("{field}: {}", status.message()),
        None => status.message().to_owned(),
    };
    Ok(Said::No(Refused { code: status.code(), reason: info.reason.clone(), message }))
}

#[cfg(test)]
impl Gate {
    /// A door at an address, in the clear.
    pub(crate) fn mk(address: &str) -> Self {
        let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
        Self { channel: endpoint.connect_lazy(), caller: Caller(MetadataValue::from_static("Bearer none")) }
    }
}

#[cfg(test)]
mod tests {
    use tonic_types::ErrorDetails;

    use super::*;

    fn answer(code: Code, reason: &str) -> Result<Said<()>, Status> {
        let details = ErrorDetails::with_error_info(reason, "sluice.dev", []);
        said::<()>(Err(Status::with_error_details(code, "why", details)))
    }

    #[test]
    fn refusals_are_told_and_outages_are_waited_for() {
        let Ok(Said::No(refused)) = answer(Code::FailedPrecondition, "QUOTA_IN_USE") else { panic!("a refusal") };
        assert_eq!((refused.camel().as_str(), refused.message.as_str()), ("QuotaInUse", "why"));
        for (code, reason, told) in [
            (Code::FailedPrecondition, "MANAGED_ELSEWHERE", true),
            (Code::PermissionDenied, "NETWORK_NOT_ALLOWED", true),
            (Code::NotFound, "NOT_FOUND", true),
            (Code::ResourceExhausted, "OVERLOADED", false),
            (Code::Unavailable, "UNAVAILABLE", false),
            (Code::DeadlineExceeded, "DEADLINE_EXCEEDED", false),
            (Code::Internal, "INTERNAL", false),
            // Of the operator's key, and so of no object.
            (Code::Unauthenticated, "UNAUTHENTICATED", false),
            (Code::PermissionDenied, "PERMISSION_DENIED", false),
        ] {
            assert_eq!(matches!(answer(code, reason), Ok(Said::No(_))), told, "{reason}");
        }
        assert!(said::<()>(Err(Status::unavailable("gone"))).is_err());
    }

    #[test]
    fn only_what_is_not_found_is_not_there() {
        let found = |code, reason| answer(code, reason).and_then(Said::found);
        assert_eq!(said(Ok(tonic::Response::new(7))).and_then(Said::found).unwrap(), Some(7));
        assert!(matches!(found(Code::NotFound, "NOT_FOUND"), Ok(None)));
        for (code, reason) in [
            (Code::PermissionDenied, "PERMISSION_DENIED"),
            (Code::FailedPrecondition, "WRONG_STATE"),
            (Code::InvalidArgument, "INVALID_FIELD"),
        ] {
            assert_eq!(found(code, reason).unwrap_err().code(), code, "{reason}");
        }
    }
}
