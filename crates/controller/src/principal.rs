//! Who calls: API keys, and what each may see.

use std::sync::Arc;

use sluice_identity::secret_digest;
use sluice_lifecycle::model::{Key, Role};
use sluice_lifecycle::{Caller, Refusal};
use sluice_proto::error::{refuse, status};
use sluice_types::{Digest, KeyId, ProjectId, Reason, TenantId};
use tonic::{Request, Status};

use crate::authz;
use crate::directory::Directory;
use crate::peer::Peer;

/// The prefix of every key's secret: `sk-<key id>.<43 characters>`.
const PREFIX: &str = "sk-";
/// How managers begin that are objects of Kubernetes.
const KUBERNETES: &str = "kubernetes/";

/// An authenticated caller of an API method.
#[derive(Debug, Clone)]
pub(crate) struct Principal {
    pub(crate) key: Key,
}

/// A key's secret as it is given out.
pub(crate) fn secret_text(id: KeyId, secret: &[u8]) -> String {
    format!("{PREFIX}{id}.{}", hex::encode(secret))
}

/// The id and the secret that a text gives, where it has the form of one.
pub(crate) fn parse_secret(text: &str) -> Option<(KeyId, Vec<u8>)> {
    let (id, secret) = text.strip_prefix(PREFIX)?.split_once('.')?;
    Some((id.parse().ok()?, hex::decode(secret).ok()?))
}

fn unauthenticated() -> Status {
    refuse(Reason::Unauthenticated, "the API key is missing or not known")
}

/// Finds the caller's key, and checks that its role may call `method` at all.
pub(crate) fn authenticate<T>(
    directory: &Arc<Directory>,
    request: &Request<T>,
    method: &'static str,
) -> Result<Principal, Status> {
    let header = request.metadata().get("authorization").ok_or_else(unauthenticated)?;
    let text = header.to_str().ok().and_then(|text| text.strip_prefix("Bearer ")).ok_or_else(unauthenticated)?;
    let (id, secret) = parse_secret(text).ok_or_else(unauthenticated)?;
    let hash = secret_digest(&secret);
    let key = directory.read().keys.get(&id).filter(|key| key.revoked.is_none()).cloned();
    // BLAKE3 outputs of unknown secrets tell a timing attacker nothing about the stored one.
    let key = key.filter(|key| key.hash == hash).ok_or_else(unauthenticated)?;
    if let (Some(peer), Some(tenant)) = (request.extensions().get::<Peer>(), key.tenant) {
        peer.is_of(tenant);
    }
    if !authz::allows(method, key.role) {
        return Err(refuse(Reason::PermissionDenied, "this key's role may not do that"));
    }
    Ok(Principal { key })
}

impl Principal {
    pub(crate) fn is_platform(&self) -> bool {
        self.key.role == Role::PlatformAdmin
    }

    /// Refuses to speak for a manager that is not the caller's to be. Objects of Kubernetes are spoken for by the operator,
    /// whose key is a platform admin's; every other word is free.
    pub(crate) fn speaks_for(&self, manager: &str) -> Result<(), Status> {
        if self.is_platform() || !manager.starts_with(KUBERNETES) {
            return Ok(());
        }
        let message =
            format!("only platform admins speak for managers that begin with {KUBERNETES}: name another, or none");
        Err(refuse(Reason::PermissionDenied, message))
    }

    /// Whether the key still opens doors: asked by answers that take long, before each piece of them.
    pub(crate) fn still(&self, directory: &Directory) -> Result<(), Status> {
        let known = directory.read().keys.get(&self.key.id).is_some_and(|key| key.revoked.is_none());
        if known { Ok(()) } else { Err(unauthenticated()) }
    }

    /// Whether the caller may know of a tenant.
    pub(crate) fn sees_tenant(&self, tenant: TenantId) -> bool {
        self.is_platform() || self.key.tenant == Some(tenant)
    }

    /// Whether the caller may know of a project.
    pub(crate) fn sees_project(&self, tenant: TenantId, project: ProjectId) -> bool {
        self.sees_tenant(tenant) && self.key.project.is_none_or(|own| own == project)
    }

    /// Refuses as if the tenant did not exist.
    pub(crate) fn tenant(&self, tenant: TenantId) -> Result<(), Status> {
        if self.sees_tenant(tenant) { Ok(()) } else { Err(status(&Refusal::not_found("tenant"))) }
    }

    /// Refuses as if the project did not exist.
    pub(crate) fn project(&self, tenant: TenantId, project: ProjectId) -> Result<(), Status> {
        if self.sees_project(tenant, project) { Ok(()) } else { Err(status(&Refusal::not_found("project"))) }
    }

    /// The caller of a mutation: its request id, and what the id was first used for.
    pub(crate) fn caller(&self, request_id: &str, digest: Digest) -> Result<Caller, Status> {
        let id = parse_uuid(request_id)?;
        let key = sluice_lifecycle::model::RequestKey { by: self.key.id, id };
        Ok(Caller { request: Some((key, digest)), ..Caller::of(self.key.id) })
    }
}

/// A UUID in its usual text form (RFC 9562), any version.
fn parse_uuid(text: &str) -> Result<[u8; 16], Status> {
    let wrong =
        || sluice_proto::error::refuse_field("request_id", "a UUID such as 123e4567-e89b-42d3-a456-426614174000");
    if text.is_empty() {
        return Err(status(&sluice_proto::convert::missing("request_id")));
    }
    let bytes = text.as_bytes();
    let dashes = bytes.len() == 36 && [8, 13, 18, 23].iter().all(|place| bytes[*place] == b'-');
    let digits: String = text.chars().filter(|c| *c != '-').collect();
    if !dashes || digits.len() != 32 {
        return Err(wrong());
    }
    hex::decode(digits).ok().and_then(|bytes| bytes.try_into().ok()).ok_or_else(wrong)
}
