//! Errors in OpenAI's form: `{"error": {"message", "type", "param", "code"}}`.

use std::time::Duration;

use axum::body::Body;
use axum::http::header::{CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderValue, Response, StatusCode};

/// An error that a client is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ApiError {
    /// HTTP's status.
    pub(crate) status: StatusCode,
    /// OpenAI's type.
    pub(crate) kind: &'static str,
    /// OpenAI's code.
    pub(crate) code: Option<&'static str>,
    /// The parameter that is wrong.
    pub(crate) param: Option<String>,
    /// What, why, and what to do.
    pub(crate) message: String,
    /// When it may be tried again.
    pub(crate) retry_after: Option<Duration>,
}

impl ApiError {
    fn new(status: StatusCode, kind: &'static str, code: Option<&'static str>, message: impl Into<String>) -> Self {
        Self { status, kind, code, param: None, message: message.into(), retry_after: None }
    }

    /// The request is wrong.
    pub(crate) fn wrong(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", None, message)
    }

    /// A parameter is wrong.
    pub(crate) fn param(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self { param: Some(param.into()), ..Self::wrong(message) }
    }

    /// A parameter that changes the meaning of the request and is not served.
    pub(crate) fn unsupported(param: &str, message: impl Into<String>) -> Self {
        Self { code: Some("unsupported_parameter"), ..Self::param(param, message) }
    }

    /// The prompt is longer than the model's context.
    pub(crate) fn too_long(message: impl Into<String>) -> Self {
        Self { code: Some("context_length_exceeded"), ..Self::param("messages", message) }
    }

    /// The body is larger than its bound.
    pub(crate) fn too_large(message: impl Into<String>) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "invalid_request_error", Some("request_too_large"), message)
    }

    /// An answer that comes whole is larger than its bound, or may be.
    pub(crate) fn not_whole(message: impl Into<String>) -> Self {
        let message = format!("{}; ask for a stream (`stream: true`), or for less", message.into());
        Self { code: Some("answer_too_large"), ..Self::wrong(message) }
    }

    /// The key opens nothing.
    pub(crate) fn unauthenticated() -> Self {
        let message =
            "the API key is missing or not known; pass the key of a tenant's project as `Authorization: Bearer`";
        Self::new(StatusCode::UNAUTHORIZED, "authentication_error", Some("invalid_api_key"), message)
    }

    /// The key may not do this.
    pub(crate) fn forbidden(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "permission_error", None, message)
    }

    /// There is no such endpoint, as far as the caller may know.
    pub(crate) fn no_model(name: &str) -> Self {
        let name: String = name.chars().take(256).collect();
        let message = format!("the model `{name}` does not exist or you may not use it; GET /v1/models lists yours");
        let error = Self::new(StatusCode::NOT_FOUND, "invalid_request_error", Some("model_not_found"), message);
        Self { param: Some("model".to_owned()), ..error }
    }

    /// The endpoint is not there any more.
    pub(crate) fn gone(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "invalid_request_error", Some("model_not_found"), message)
    }

    /// There is no such page.
    pub(crate) fn no_page(path: &str) -> Self {
        let path: String = path.chars().take(256).collect();
        let message = format!("nothing is served at {path}; see GET /v1/models, POST /v1/chat/completions");
        Self::new(StatusCode::NOT_FOUND, "invalid_request_error", Some("unknown_url"), message)
    }

    /// The page has no such method.
    pub(crate) fn no_method() -> Self {
        let message = "the method does not fit the page; models are got, completions are posted";
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "invalid_request_error", Some("method_not_allowed"), message)
    }

    /// A rate limit.
    pub(crate) fn limited(message: impl Into<String>, after: Duration) -> Self {
        let kind = "rate_limit_error";
        let error = Self::new(StatusCode::TOO_MANY_REQUESTS, kind, Some("rate_limit_exceeded"), message);
        Self { retry_after: Some(after), ..error }
    }

    /// There is not enough money.
    pub(crate) fn no_money(message: impl Into<String>) -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, "insufficient_quota", Some("insufficient_quota"), message)
    }

    /// It cannot be now.
    pub(crate) fn unavailable(message: impl Into<String>, after: Duration) -> Self {
        let kind = "server_error";
        let error = Self::new(StatusCode::SERVICE_UNAVAILABLE, kind, Some("service_unavailable"), message);
        Self { retry_after: Some(after), ..error }
    }

    /// The platform failed. What was charged is credited.
    pub(crate) fn failed(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", Some("internal_error"), message)
    }

    /// Its form as JSON.
    pub(super) fn json(&self) -> serde_json::Value {
        serde_json::json!({"error": {
            "message": self.message, "type": self.kind, "param": self.param, "code": self.code,
        }})
    }

    /// As an answer.
    pub(crate) fn response(&self) -> Response<Body> {
        let mut response = Response::new(Body::from(self.json().to_string()));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(after) = self.retry_after {
            let secs = after.as_secs() + u64::from(after.subsec_nanos() > 0);
            headers.insert(RETRY_AFTER, HeaderValue::from(secs.max(1)));
            headers.insert("retry-after-ms", HeaderValue::from(u64::try_from(after.as_millis()).unwrap_or(u64::MAX)));
        }
        response
    }
}
