//! The API server's own door: requests as they are, and its refusals with their causes.

use std::path::Path;

use ::kube::config::{Config, KubeConfigOptions, Kubeconfig};
use ::kube::{Client, Error};
use anyhow::Context as _;
use serde_json::Value;
use tonic::codegen::http::Request;

/// Why the API server did not do something.
#[derive(Debug, Clone)]
pub(crate) struct Refused {
    /// HTTP status.
    pub(crate) code: u16,
    /// In words.
    pub(crate) message: String,
    /// Fields, and what is wrong with each.
    pub(crate) causes: Vec<(String, String)>,
}

/// A user's connection to the API server.
#[derive(Clone)]
pub(crate) struct Door(Client);

impl Door {
    /// To be called inside a runtime.
    pub(crate) async fn open(kubeconfig: &Path) -> anyhow::Result<Self> {
        // Somebody else in this process may have installed it before; there is one provider only.
        let _known = rustls::crypto::ring::default_provider().install_default();
        let config = Kubeconfig::read_from(kubeconfig)?;
        let config = Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await?;
        Ok(Self(Client::try_from(config)?))
    }

    /// One request; `kind` is the content type of its body.
    pub(crate) async fn ask(
        &self,
        method: &str,
        path: &str,
        kind: &str,
        body: &Value,
    ) -> anyhow::Result<Result<Value, Refused>> {
        self.ask_as(&[], method, path, kind, body).await
    }

    /// The same, in the name of somebody else: headers that say of whom.
    pub(crate) async fn ask_as(
        &self,
        whom: &[(&str, &str)],
        method: &str,
        path: &str,
        kind: &str,
        body: &Value,
    ) -> anyhow::Result<Result<Value, Refused>> {
        let mut request = Request::builder().method(method).uri(path).header("content-type", kind);
        for (header, value) in whom {
            request = request.header(*header, *value);
        }
        let bytes = if body.is_null() { Vec::new() } else { serde_json::to_vec(body)? };
        match self.0.request_text(request.body(bytes)?).await {
            Ok(text) => Ok(Ok(serde_json::from_str(&text).unwrap_or(Value::String(text)))),
            Err(Error::Api(status)) => {
                let causes = status.details.iter().flat_map(|details| &details.causes);
                let causes = causes.map(|cause| (cause.field.clone(), cause.message.clone())).collect();
                Ok(Err(Refused { code: status.code, message: status.message.clone(), causes }))
            }
            Err(other) => Err(other).with_context(|| format!("{method} {path}")),
        }
    }

    /// Makes an object.
    pub(crate) async fn create(&self, path: &str, object: &Value) -> anyhow::Result<Result<Value, Refused>> {
        self.ask("POST", path, "application/json", object).await
    }

    /// Merges a change into an object.
    pub(crate) async fn merge(&self, path: &str, change: &Value) -> anyhow::Result<Result<Value, Refused>> {
        self.ask("PATCH", path, "application/merge-patch+json", change).await
    }

    /// Reads.
    pub(crate) async fn get(&self, path: &str) -> anyhow::Result<Result<Value, Refused>> {
        self.ask("GET", path, "application/json", &Value::Null).await
    }

    /// Deletes.
    pub(crate) async fn delete(&self, path: &str) -> anyhow::Result<Result<Value, Refused>> {
        self.ask("DELETE", path, "application/json", &Value::Null).await
    }
}
