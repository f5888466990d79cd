//! Who is who: the cluster's certificate authority, one-time join tokens, and the identities of hosts.
//!
//! Every process of the system has a key that never leaves it and a short-lived certificate for it. Names are SPIFFE
//! ids (<https://github.com/spiffe/spiffe/blob/main/standards/SPIFFE-ID.md>) in the URI subject alternative name:
//! `spiffe://sluice/node/<id>`, `spiffe://sluice/vault/<site id>`, `spiffe://sluice/controller`. A host renews with a
//! certificate request: the signature on it proves that it still has the key that joined, so a host that was switched
//! off for longer than its certificate lived comes back without help, and a stolen request is worth nothing.

mod authority;
mod files;
mod host;
mod subject;
mod token;

pub use authority::{Authority, Lifetimes, Request, parse_request};
pub use files::{private_folder, write_private};
pub use host::{Host, HostKind};
pub use subject::{Subject, peer, peer_key};
pub use token::{JoinToken, secret_digest};

/// The name that clients check the controller's certificate for.
pub const CONTROLLER_NAME: &str = "sluice-controller";
/// The name that clients check a vault's certificate for.
pub const VAULT_NAME: &str = "sluice-vault";

/// What can go wrong with identities.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A file of keys or certificates.
    #[error("cannot use {path}")]
    File {
        /// Which.
        path: std::path::PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A certificate, key or request that is not one.
    #[error("not a usable {what}: {detail}")]
    Form {
        /// What it should have been.
        what: &'static str,
        /// What is wrong.
        detail: String,
    },
    /// The controller refused, or cannot be reached.
    #[error("the controller did not answer as hoped: {}", .0.message())]
    Controller(#[from] Box<tonic::Status>),
    /// No connection.
    #[error("the controller cannot be reached")]
    Transport(#[from] tonic::transport::Error),
}

fn form(what: &'static str, detail: impl ToString) -> IdentityError {
    IdentityError::Form { what, detail: detail.to_string() }
}
