//! What the gRPC library refuses before a method sees it, in the words of the API.
//!
//! A message that is no protobuf, one that is too large, an unknown method: the library answers these by itself, some as
//! INTERNAL and none with a reason. This layer gives them ours. Answers that carry details already are left alone.

use std::task::{Context, Poll};

use futures::future::BoxFuture;
use sluice_proto::error::refuse;
use sluice_types::Reason;
use tonic::codegen::http::{HeaderMap, Request, Response};
use tonic::{Code, Status};
use tower::{Layer, Service};

/// Wraps every service of the server.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Reasons;

/// A service whose refusals all have a reason.
#[derive(Debug, Clone)]
pub(crate) struct WithReasons<S> {
    inner: S,
}

impl<S> Layer<S> for Reasons {
    type Service = WithReasons<S>;

    fn layer(&self, inner: S) -> Self::Service {
        WithReasons { inner }
    }
}

impl<S, A, B> Service<Request<A>> for WithReasons<S>
where
    S: Service<Request<A>, Response = Response<B>>,
    S::Future: Send + 'static,
{
    type Response = Response<B>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<A>) -> Self::Future {
        let answer = self.inner.call(request);
        Box::pin(async move {
            let mut answer = answer.await?;
            give_reason(answer.headers_mut());
            Ok(answer)
        })
    }
}

/// Only refusals without a body have their status in the headers; others come from methods, which give reasons.
fn give_reason(headers: &mut HeaderMap) {
    if headers.contains_key("grpc-status-details-bin") {
        return;
    }
    let Some(status) = Status::from_header_map(headers) else { return };
    let Some(better) = reason_for(&status) else { return };
    if let Ok(written) = headers_of(&better) {
        for name in ["grpc-status", "grpc-message"] {
            headers.remove(name);
        }
        headers.extend(written);
    }
}

fn headers_of(status: &Status) -> Result<HeaderMap, Status> {
    let mut headers = HeaderMap::new();
    status.add_header(&mut headers)?;
    Ok(headers)
}

fn reason_for(status: &Status) -> Option<Status> {
    let message = status.message();
    match status.code() {
        Code::Internal if message.contains("decode") || message.contains("compression") => {
            Some(refuse(Reason::InvalidField, "the message is not the protobuf that this method takes"))
        }
        // The length before a message says more than what follows, or more than is taken.
        Code::Internal if message.contains("EOF") || message.contains("flag") => {
            Some(refuse(Reason::InvalidField, "the message is cut off or damaged"))
        }
        Code::Internal if message.contains("Missing request message") => {
            Some(refuse(Reason::MissingField, "the call has no message"))
        }
        Code::OutOfRange => Some(refuse(Reason::TooLarge, "the message is larger than this method takes")),
        Code::Unimplemented if message.is_empty() => Some(refuse(Reason::NotFound, "there is no such method")),
        Code::Unimplemented => Some(refuse(Reason::InvalidField, message.to_owned())),
        _ => None,
    }
}
