//! Names in certificates.

use std::fmt;

use rustls_pki_types::CertificateDer;
use sluice_types::{NodeId, SiteId};
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

/// Whom a certificate speaks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Subject {
    /// The control plane.
    Controller,
    /// A node agent.
    Node(NodeId),
    /// A site's vault.
    Vault(SiteId),
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Controller => f.write_str("spiffe://sluice/controller"),
            Self::Node(id) => write!(f, "spiffe://sluice/node/{id}"),
            Self::Vault(site) => write!(f, "spiffe://sluice/vault/{site}"),
        }
    }
}

impl Subject {
    /// Reads a SPIFFE id of ours.
    #[must_use]
    pub fn parse(uri: &str) -> Option<Self> {
        let path = uri.strip_prefix("spiffe://sluice/")?;
        match path.split_once('/') {
            None => (path == "controller").then_some(Self::Controller),
            Some(("node", id)) => id.parse().ok().map(Self::Node),
            Some(("vault", id)) => id.parse().ok().map(Self::Vault),
            Some(_) => None,
        }
    }
}

/// Whom the peer's certificate speaks for. TLS has verified the chain before; this reads the one URI name of its leaf
/// and takes nothing else for a name.
#[must_use]
pub fn peer(certificates: &[CertificateDer<'_>]) -> Option<Subject> {
    let (rest, leaf) = X509Certificate::from_der(certificates.first()?).ok()?;
    if !rest.is_empty() {
        return None;
    }
    let names = leaf.subject_alternative_name().ok()??;
    let mut uris = names.value.general_names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    let uri = uris.next()?;
    if uris.next().is_some() {
        return None;
    }
    Subject::parse(uri)
}

/// BLAKE3 of the public key in the peer's certificate: the one that joined, or an older one that was replaced since.
#[must_use]
pub fn peer_key(certificates: &[CertificateDer<'_>]) -> Option<sluice_types::Digest> {
    let (_, leaf) = X509Certificate::from_der(certificates.first()?).ok()?;
    Some(crate::secret_digest(leaf.public_key().raw))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_round_trip_and_others_are_no_subject() {
        for subject in
            [Subject::Controller, Subject::Node(NodeId::from_raw(5)), Subject::Vault(SiteId::from_raw(1 << 40))]
        {
            assert_eq!(Subject::parse(&subject.to_string()), Some(subject));
        }
        for other in
            ["", "spiffe://sluice/", "spiffe://other/controller", "spiffe://sluice/node/x", "spiffe://sluice/root/1"]
        {
            assert_eq!(Subject::parse(other), None, "{other}");
        }
    }
}
