//! The connection to the controller: TLS, key, deadlines, and retries that cannot do a thing twice.
//!
//! A call is retried with the very same message, so with the same request id, only where the server was not
//! reached or says that it takes no work; the budget of attempts and time is bounded.

use std::time::Duration;

use sluice_proto::v1::endpoint_service_client::EndpointServiceClient;
use sluice_proto::v1::fleet_service_client::FleetServiceClient;
use sluice_proto::v1::job_service_client::JobServiceClient;
use sluice_proto::v1::model_service_client::ModelServiceClient;
use sluice_proto::v1::money_service_client::MoneyServiceClient;
use sluice_proto::v1::order_service_client::OrderServiceClient;
use sluice_proto::v1::session_service_client::SessionServiceClient;
use sluice_proto::v1::tenant_service_client::TenantServiceClient;
use sluice_types::Reason;
use tokio::time::Instant;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Code, Request, Response, Status};
use tonic_types::StatusExt as _;

use crate::context::Connection;
use crate::error::{CliError, reason_of};

/// The name in the controller's certificate, wherever it listens.
pub const SERVER_NAME: &str = "sluice-controller";

/// A unary call is over after this, on both ends.
const DEADLINE: Duration = Duration::from_secs(30);
/// The largest answer that is read.
const LARGEST_ANSWER: usize = 16 << 20;

/// How often and how long a failed call is tried again.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RetryPolicy {
    /// Attempts without any progress between them.
    pub(crate) attempts: u32,
    /// The first pause; each next is twice as long, at most [`Self::longest_pause`].
    pub(crate) first_pause: Duration,
    /// Bound of one pause, also of one that the server asks for.
    pub(crate) longest_pause: Duration,
}

impl RetryPolicy {
    /// For calls that a user waits for: about 10 s.
    const CALL: Self =
        Self { attempts: 7, first_pause: Duration::from_millis(150), longest_pause: Duration::from_secs(5) };
    /// For streams that outlive a restart of the controller: about two minutes without any progress.
    const STREAM: Self =
        Self { attempts: 30, first_pause: Duration::from_millis(200), longest_pause: Duration::from_secs(5) };
    /// For sessions that somebody types into: about ten minutes, which is as long as a session waits for its client.
    const SESSION: Self =
        Self { attempts: 1500, first_pause: Duration::from_millis(50), longest_pause: Duration::from_millis(400) };
}

/// Counts the attempts of one call or stream.
#[derive(Debug)]
pub(crate) struct Backoff {
    policy: RetryPolicy,
    failed: u32,
}

impl Backoff {
    /// Something arrived: the budget is whole again.
    pub(crate) fn progress(&mut self) {
        self.failed = 0;
    }

    /// Sleeps before the next attempt, or gives the failure back where it is not worth one.
    pub(crate) async fn after(&mut self, status: Status) -> Result<(), Status> {
        self.failed += 1;
        if !is_transient(&status) || self.failed >= self.policy.attempts {
            return Err(status);
        }
        let doubled = self.policy.first_pause.saturating_mul(1 << (self.failed - 1).min(10));
        let asked = status.get_details_retry_info().and_then(|info| info.retry_delay).unwrap_or_default();
        let pause = doubled.max(asked).min(self.policy.longest_pause);
        tokio::time::sleep(pause.mul_f64(0.75 + jitter() / 4.0)).await;
        Ok(())
    }
}

/// A number from 0 to 1, so that many clients do not come back at once.
fn jitter() -> f64 {
    let mut byte = [0u8; 1];
    // Without randomness there is no jitter, which costs nothing else.
    let _ = getrandom::fill(&mut byte);
    f64::from(byte[0]) / 255.0
}

/// Whether the call may reach a server that can answer when tried again.
pub(crate) fn is_transient(status: &Status) -> bool {
    let words = format!("{status:?}");
    if words.contains("certificate") || words.contains("InvalidCertificate") {
        return false;
    }
    match status.code() {
        Code::Unavailable => true,
        Code::ResourceExhausted => reason_of(status) == Some(Reason::Overloaded),
        // A connection that broke in the middle of a call is told by these; the server's own have no source.
        Code::Cancelled | Code::Unknown | Code::Internal => {
            let local = ["h2 protocol error", "transport error", "error reading a body", "operation was canceled"];
            std::error::Error::source(status).is_some() || local.iter().any(|text| status.message().starts_with(text))
        }
        _ => false,
    }
}

/// Puts the key into every call.
#[derive(Debug, Clone)]
pub(crate) struct Bearer(Option<MetadataValue<Ascii>>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(value) = &self.0 {
            request.metadata_mut().insert("authorization", value.clone());
        }
        Ok(request)
    }
}

type Authed = InterceptedService<Channel, Bearer>;

/// The controller's services, as one caller.
#[derive(Debug, Clone)]
pub(crate) struct Api {
    channel: Channel,
    bearer: Bearer,
    call: RetryPolicy,
    stream: RetryPolicy,
}

impl Api {
    /// Prepares the connection; the first call opens it.
    pub(crate) fn connect(connection: &Connection) -> Result<Self, CliError> {
        let not_usable = |what: &str, why: String| CliError::field(what, format!("cannot be used: {why}"));
        let tls =
            ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&connection.ca_pem)).domain_name(SERVER_NAME);
        let channel = Endpoint::from_shared(connection.server.clone())
            .map_err(|error| not_usable("--server", error.to_string()))?
            .connect_timeout(Duration::from_secs(5))
            .http2_keep_alive_interval(Duration::from_secs(15))
            .keep_alive_timeout(Duration::from_secs(10))
            .keep_alive_while_idle(true)
            .tcp_nodelay(true)
            .user_agent(concat!("sluice-cli/", env!("CARGO_PKG_VERSION")))
            .map_err(|error| not_usable("user agent", error.to_string()))?
            .tls_config(tls)
            .map_err(|error| not_usable("--ca", format!("{error:?}")))?
            .connect_lazy();
        let bearer = match &connection.key {
            None => None,
            Some(key) => {
                let mut value = MetadataValue::try_from(format!("Bearer {}", key.reveal()))
                    .map_err(|_| CliError::field("--key", "is not printable ASCII"))?;
                value.set_sensitive(true);
                Some(value)
            }
        };
        Ok(Self { channel, bearer: Bearer(bearer), call: RetryPolicy::CALL, stream: RetryPolicy::STREAM })
    }

    /// A plain connection to a server in this process.
    #[cfg(test)]
    pub(crate) fn plain(channel: Channel) -> Self {
        let quick =
            RetryPolicy { attempts: 4, first_pause: Duration::from_millis(1), longest_pause: Duration::from_millis(4) };
        Self { channel, bearer: Bearer(Some(MetadataValue::from_static("Bearer k"))), call: quick, stream: quick }
    }

    fn authed(&self) -> Authed {
        InterceptedService::new(self.channel.clone(), self.bearer.clone())
    }

    pub(crate) fn jobs(&self) -> JobServiceClient<Authed> {
        JobServiceClient::new(self.authed()).max_decoding_message_size(LARGEST_ANSWER)
    }

    pub(crate) fn orders(&self) -> OrderServiceClient<Authed> {
        OrderServiceClient::new(self.authed()).max_decoding_message_size(LARGEST_ANSWER)
    }

    pub(crate) fn models(&self) -> ModelServiceClient<Authed> {
        ModelServiceClient::new(self.authed()).max_decoding_message_size(LARGEST_ANSWER)
    }

    pub(crate) fn endpoints(&self) -> EndpointServiceClient<Authed> {
        EndpointServiceClient::new(self.authed()).max_decoding_message_size(LARGEST_ANSWER)
    }

    pub(crate) fn sessions(&self) -> SessionServiceClient<Authed> {
        SessionServiceClient::new(self.authed())
    }

    pub(crate) fn fleet(&self) -> FleetServiceClient<Authed> {
        FleetServiceClient::new(self.authed()).max_decoding_message_size(LARGEST_ANSWER)
    }

    pub(crate) fn money(&self) -> MoneyServiceClient<Authed> {
        MoneyServiceClient::new(self.authed()).max_decoding_message_size(LARGEST_ANSWER)
    }

    pub(crate) fn tenants(&self) -> TenantServiceClient<Authed> {
        TenantServiceClient::new(self.authed()).max_decoding_message_size(LARGEST_ANSWER)
    }

    /// The budget of one long stream.
    pub(crate) fn stream_backoff(&self) -> Backoff {
        Backoff { policy: self.stream, failed: 0 }
    }

    /// The budget of one session.
    pub(crate) fn session_backoff(&self) -> Backoff {
        Backoff { policy: RetryPolicy::SESSION, failed: 0 }
    }

    /// The budget of one call.
    pub(crate) fn call_backoff(&self) -> Backoff {
        Backoff { policy: self.call, failed: 0 }
    }

    /// One unary call with a deadline, retried with the same message. `doing` completes "cannot …".
    pub(crate) async fn unary<Q: Clone, A>(
        &self,
        doing: &str,
        message: Q,
        send: impl AsyncFn(Request<Q>) -> Result<Response<A>, Status>,
    ) -> Result<A, CliError> {
        let mut backoff = self.call_backoff();
        loop {
            let mut request = Request::new(message.clone());
            request.set_timeout(DEADLINE);
            let begun = Instant::now();
            match send(request).await {
                Ok(answer) => return Ok(answer.into_inner()),
                Err(status) => {
                    let status = tell_deadline(status, begun);
                    backoff.after(status).await.map_err(|status| CliError::refused(doing, status))?;
                }
            }
        }
    }
}

/// The transport reports its own deadline as a cancellation.
fn tell_deadline(status: Status, begun: Instant) -> Status {
    if status.code() == Code::Cancelled && begun.elapsed() >= DEADLINE {
        return Status::deadline_exceeded(format!("no answer within {} s", DEADLINE.as_secs()));
    }
    status
}

/// One answer of a paged list and the token of the next.
pub(crate) type Page<T> = (Vec<T>, String);

/// A list cut at a limit.
#[derive(Debug)]
pub(crate) struct Listing<T> {
    /// At most the limit.
    pub(crate) items: Vec<T>,
    /// Whether the server has more.
    pub(crate) more: bool,
}

/// Reads pages until the end or `limit` items.
pub(crate) async fn read_pages<T>(
    limit: usize,
    fetch: impl AsyncFn(i32, String) -> Result<Page<T>, CliError>,
) -> Result<Listing<T>, CliError> {
    let mut items = Vec::new();
    let mut token = String::new();
    loop {
        let size = limit.saturating_sub(items.len()).clamp(1, 1000);
        let (page, next) = fetch(i32::try_from(size).unwrap_or(1000), token.clone()).await?;
        let idle = page.is_empty() && next == token;
        items.extend(page);
        if next.is_empty() || idle || items.len() >= limit {
            let more = !next.is_empty() || items.len() > limit;
            items.truncate(limit);
            return Ok(Listing { items, more });
        }
        token = next;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_another_attempt_can_cure_is_retried() {
        use tonic_types::ErrorDetails;
        let overloaded = ErrorDetails::with_error_info("OVERLOADED", "sluice.dev", []);
        let quota = ErrorDetails::with_error_info("QUOTA_EXCEEDED", "sluice.dev", []);
        for (status, retried) in [
            (Status::unavailable("starting"), true),
            (Status::unavailable("invalid peer certificate: UnknownIssuer"), false),
            (Status::with_error_details(Code::ResourceExhausted, "", overloaded), true),
            (Status::with_error_details(Code::ResourceExhausted, "", quota), false),
            (Status::internal("a bug"), false),
            (Status::unknown("h2 protocol error: broken pipe"), true),
            (Status::cancelled("operation was canceled"), true),
            (Status::deadline_exceeded(""), false),
            (Status::not_found(""), false),
        ] {
            assert_eq!(is_transient(&status), retried, "{status:?}");
        }
    }

    #[tokio::test]
    async fn pages_are_read_to_the_end_or_the_limit() {
        let fetch = async |size: i32, token: String| {
            let begin: i32 = if token.is_empty() { 0 } else { token.parse().unwrap() };
            let end = (begin + size.min(4)).min(10);
            Ok(((begin..end).collect(), if end == 10 { String::new() } else { end.to_string() }))
        };
        let all = read_pages(100, fetch).await.unwrap();
        assert_eq!((all.items, all.more), ((0..10).collect(), false));
        let cut = read_pages(6, fetch).await.unwrap();
        assert_eq!((cut.items, cut.more), ((0..6).collect(), true));
        let stuck = read_pages(6, async |_, _| Ok((Vec::<u8>::new(), String::new()))).await.unwrap();
        assert!(stuck.items.is_empty() && !stuck.more);
    }
}
