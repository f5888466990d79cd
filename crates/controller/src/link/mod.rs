//! The links to nodes and vaults, which dial in.

mod channels;
mod hub;
mod identity;
mod intake;
mod node;
mod relay;
mod sessions;
mod upward;
mod vault;

pub(crate) use hub::Hub;
pub(crate) use identity::IdentityApi;
pub(crate) use node::NodeApi;
pub(crate) use relay::{BlobSource, RelayError};
pub(crate) use sessions::SessionLink;
pub(crate) use vault::SiteApi;

use std::pin::Pin;

use crate::directory::Directory;
use crate::peer::Peer;
use futures::Stream;
use sluice_identity::{Subject, peer, peer_key};
use sluice_proto::error::refuse;
use sluice_types::Reason;
use tonic::{Request, Status};

/// A stream of answers.
pub(crate) type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Whom the connection's certificate speaks for. Its key must be the one that joined last: a host that was set up anew
/// leaves the certificates of its former life without effect.
fn subject<T>(request: &Request<T>, directory: &Directory) -> Result<Subject, Status> {
    let chain = request.extensions().get::<Peer>().map(Peer::chain).unwrap_or_default();
    let (subject, key) = (peer(chain), peer_key(chain));
    let directory = directory.read();
    let current = match subject {
        Some(Subject::Node(id)) => directory.nodes.get(&id).map(|node| node.public_key),
        Some(Subject::Vault(id)) => directory.sites.get(&id).and_then(|site| site.vault_key),
        Some(Subject::Controller) | None => None,
    };
    let subject = subject.filter(|_| current.is_some() && current == key);
    subject.ok_or_else(|| refuse(Reason::Unauthenticated, "a certificate of this cluster is needed here"))
}
