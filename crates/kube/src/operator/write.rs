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
        // There is nobody to tell.
        Err(error) if is_gone(&error, object) => Ok(()),
        // Another of its name too is an error: who tries again finds that one.
        other => other.map(drop),
    }
}

/// Whether the API server says that the *object* is not there. One that has just begun says of the whole kind that it is not
/// there (404, without the object's name), and of an object that is given up for that nothing would ever be told again.
fn is_gone<K: Kind>(error: &kube::Error, object: &K) -> bool {
    let kube::Error::Api(told) = error else { return false };
    told.code == 404 && told.details.as_ref().is_some_and(|details| details.name == object.name_any())
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
        Err(error) if is_gone(&error, object) => Ok(()),
        other => other,
    }
}

async fn finalizers<K: Kind>(api: &Api<K>, object: &K, all: Vec<String>) -> Result<(), kube::Error> {
    // With the version that was read: a finalizer that somebody else adds meanwhile is not lost.
    let patch = json!({ "metadata": { "resourceVersion": object.resource_version(), "finalizers": all } });
    let parameters = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
    api.patch(&object.name_any(), &parameters, &Patch::Merge(&patch)).await.map(drop)
}

#[cfg(test)]
mod tests {
    use kube::client::Body;
    use tonic::codegen::http;

    use super::*;
    use crate::api::{GpuJob, GpuJobStatus};

    /// Writes a status, and lets an object go, at an API server that answers everything so.
    async fn tried(code: u16, answer: &'static str) -> [bool; 2] {
        let server = tower::service_fn(move |_: http::Request<Body>| async move {
            let body = Body::from(answer.as_bytes().to_vec());
            http::Response::builder().status(code).header("content-type", "application/json").body(body)
        });
        let spec = json!({ "command": ["/bin/true"], "resources": { "share": "500m" } });
        let mut object = GpuJob::new("train", serde_json::from_value(spec).unwrap());
        object.metadata.namespace = Some("team-a".to_owned());
        object.metadata.finalizers = Some(vec![FINALIZER.to_owned()]);
        let api = api_of(&Client::new(server, "default"), &object);
        let told = status(&api, &object, None, &GpuJobStatus::default()).await;
        [told.is_ok(), let_go(&api, &object).await.is_ok()]
    }

    #[tokio::test]
    async fn an_object_is_given_up_only_where_the_api_server_says_that_it_is_gone() {
        let gone = r#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","reason":"NotFound","code":404,
            "message":"gpujobs.sluice.dev \"train\" not found",
            "details":{"name":"train","group":"sluice.dev","kind":"gpujobs"}}"#;
        assert_eq!(tried(404, gone).await, [true, true]);
        // The kind itself is not served yet.
        let unknown = r#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","reason":"NotFound","code":404,
            "message":"the server could not find the requested resource","details":{}}"#;
        assert_eq!(tried(404, unknown).await, [false, false]);
        assert_eq!(tried(404, "404 page not found").await, [false, false]);
        // Another object of the same name, or the same in a newer version.
        let conflict = r#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","reason":"Conflict","code":409,
            "message":"Precondition failed","details":{"name":"train","group":"sluice.dev","kind":"gpujobs"}}"#;
        assert_eq!(tried(409, conflict).await, [false, false]);
    }
}
