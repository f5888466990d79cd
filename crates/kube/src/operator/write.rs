//! What the operator writes into objects: status by server-side apply under one field manager, and one finalizer.

use std::fmt::Debug;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::core::NamespaceResourceScope;
use kube::{Api, Client, Resource, ResourceExt as _};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use super::identity::{FIELD_MANAGER, FINALIZER};

/// An object of ours.
pub(crate) trait Kind:
    Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Serialize + Send + Sync + 'static
{
}

impl<K> Kind for K where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Serialize + Send + Sync + 'static
{
}

/// The door to one object's neighbours.
pub(crate) fn api_of<K>(client: &Client, object: &K) -> Api<K>
where
    K: Kind + Resource<Scope = NamespaceResourceScope>,
{
    Api::namespaced(client.clone(), &object.namespace().unwrap_or_default())
}

/// Now, as conditions have it: whole seconds.
pub(crate) fn now() -> Time {
    let now = Timestamp::now();
    Time(Timestamp::from_second(now.as_second()).unwrap_or(now))
}

/// Writes a status, where it is another than before.
pub(crate) async fn status<K: Kind, S: Serialize + PartialEq>(
    api: &Api<K>,
    object: &K,
    before: Option<&S>,
    status: &S,
) -> Result<(), kube::Error> {
    if before == Some(status) {
        return Ok(());
    }
    // The uid makes sure that it is this object, and not one of its name that came after it.
    let patch = json!({
        "apiVersion": K::api_version(&()),
        "kind": K::kind(&()),
        "metadata": { "name": object.name_any(), "uid": object.uid() },
        "status": status,
    });
    let parameters = PatchParams::apply(FIELD_MANAGER).force();
    match api.patch_status(&object.name_any(), &parameters, &Patch::Apply(&patch)).await {
        // It is gone, or another: there is nothing to tell.
        Err(kube::Error::Api(told)) if told.code == 404 || told.code == 409 => Ok(()),
        other => other.map(drop),
    }
}

/// Whether the operator keeps an object.
pub(crate) fn is_kept<K: Kind>(object: &K) -> bool {
    object.finalizers().iter().any(|name| name == FINALIZER)
}

/// Keeps an object until it is let go.
pub(crate) async fn keep<K: Kind>(api: &Api<K>, object: &K) -> Result<(), kube::Error> {
    let all = object.finalizers().iter().cloned().chain([FINALIZER.to_owned()]);
    finalizers(api, object, all.collect()).await
}

/// Lets an object go.
pub(crate) async fn let_go<K: Kind>(api: &Api<K>, object: &K) -> Result<(), kube::Error> {
    let others = object.finalizers().iter().filter(|name| *name != FINALIZER).cloned();
    match finalizers(api, object, others.collect()).await {
        Err(kube::Error::Api(told)) if told.code == 404 => Ok(()),
        other => other,
    }
}

async fn finalizers<K: Kind>(api: &Api<K>, object: &K, all: Vec<String>) -> Result<(), kube::Error> {
    // With the version that was read: a finalizer that somebody else adds meanwhile is not lost.
    let patch = json!({ "metadata": { "resourceVersion": object.resource_version(), "finalizers": all } });
    let parameters = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
    api.patch(&object.name_any(), &parameters, &Patch::Merge(&patch)).await.map(drop)
}
