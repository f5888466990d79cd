//! The links to nodes and vaults, which dial in.

mod hub;
mod identity;
mod node;
mod relay;
mod vault;

pub(crate) use hub::Hub;
pub(crate) use identity::IdentityApi;
pub(crate) use node::NodeApi;
pub(crate) use relay::{BlobSource, RelayError};
pub(crate) use vault::SiteApi;

use std::pin::Pin;

use futures::Stream;
use sluice_identity::{Subject, peer};
use sluice_proto::error::refuse;
use sluice_types::Reason;
use tonic::{Request, Status};

/// A stream of answers.
pub(crate) type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Whom the connection's certificate speaks for.
fn subject<T>(request: &Request<T>) -> Result<Subject, Status> {
    let certificates = request.peer_certs();
    let subject = certificates.as_ref().and_then(|chain| peer(chain));
    subject.ok_or_else(|| refuse(Reason::Unauthenticated, "a certificate of this cluster is needed here"))
}
