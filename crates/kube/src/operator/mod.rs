//! The operator: watch → index → commands to the controller → status.
//!
//! It is a client of the same gRPC as everybody else, with the key of a platform admin. Objects carry no author, so it never
//! asks who wrote one; it asks whom the object's *namespace* acts for, and only a cluster-scoped Tenant says that
//! ([`index`]). For an object it touches what that object manages (`manager`, kept by the controller) within that tenant,
//! and nothing else. Nothing is read back from status to decide whose money is spent.
//!
//! It keeps no state: [`decide`] goes by the object, the binding and the job as they are now, so it may be killed at any
//! instruction, and what it had sent is sent again under the same request id ([`identity`]).

mod cache;
mod convert;
mod decide;
mod gate;
mod identity;
mod index;
mod jobs;
mod lease;
mod quotas;
mod sweep;
mod tenants;
mod write;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use futures::StreamExt as _;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Namespace;
use kube::runtime::controller::Action;
use kube::runtime::reflector::{ObjectRef, Store};
use kube::runtime::watcher::{self, Event};
use kube::runtime::{Config as RuntimeConfig, Controller as Runtime, WatchStreamExt as _};
use kube::{Api, Client, ResourceExt as _};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::{ReceiverStream, WatchStream};
use tokio_util::sync::CancellationToken;

pub use convert::{Unusable, job_spec, job_status};
pub use decide::{JobSight, JobStep, job_standings, job_step};
pub use gate::{Controller, GateError};
pub use identity::{Cluster, FIELD_MANAGER, FINALIZER, request_id};
pub use index::{Acts, Bound, Index};

use crate::api::{GpuJob, GpuQuota, Tenant};
use cache::Jobs;
use gate::Gate;
use lease::Leadership;

/// Objects that are worked on at once.
const AT_ONCE: u16 = 16;
/// Triggers that wait.
const QUEUE: usize = 1024;
/// After a failure.
const RETRY: Duration = Duration::from_secs(2);
/// How often use and money of tenants whose jobs changed are told.
const TELL: Duration = Duration::from_secs(1);

/// Where the operator works.
#[derive(Clone)]
pub struct Options {
    /// The controller.
    pub controller: Controller,
    /// The namespace of the operator's Lease.
    pub namespace: String,
    /// This process, as the Lease names it.
    pub identity: String,
}

/// Why the operator cannot work.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server.
    #[error("the API server")]
    Kubernetes(#[from] kube::Error),
    /// The way to it.
    #[error("the kubeconfig, or the service account")]
    Config(#[from] kube::config::InferConfigError),
    /// The controller.
    #[error("the controller: {}", .0.message())]
    Controller(Box<tonic::Status>),
    /// The way to the controller.
    #[error("the way to the controller")]
    Gate(#[from] GateError),
}

impl From<tonic::Status> for Error {
    fn from(status: tonic::Status) -> Self {
        Self::Controller(Box::new(status))
    }
}

/// Things by the uid of an object.
pub(crate) struct ByUid<T>(Mutex<BTreeMap<String, T>>);

impl<T> Default for ByUid<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T: Clone> ByUid<T> {
    fn with<R>(&self, act: impl FnOnce(&mut BTreeMap<String, T>) -> R) -> R {
        // Whoever panicked left a whole map.
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn insert(&self, uid: &str, it: T) {
        self.with(|all| all.insert(uid.to_owned(), it));
    }

    pub(crate) fn remove(&self, uid: &str) {
        self.with(|all| all.remove(uid));
    }

    fn get(&self, uid: &str) -> Option<T> {
        self.with(|all| all.get(uid).cloned())
    }

    fn all(&self) -> Vec<T> {
        self.with(|all| all.values().cloned().collect())
    }
}

/// What reconcilers share.
pub(crate) struct Context {
    pub(crate) client: Client,
    pub(crate) gate: Gate,
    pub(crate) cluster: Cluster,
    pub(crate) jobs: Jobs,
    index: RwLock<Index>,
    /// Counts changes of the index: everything is looked at again.
    bindings: watch::Sender<u64>,
    /// Held for reading from the last look at a binding until the job that was submitted for it is known.
    pub(crate) submits: tokio::sync::RwLock<()>,
    pub(crate) job_objects: ByUid<ObjectRef<GpuJob>>,
    /// With the tenant that each is of.
    pub(crate) quota_objects: ByUid<(ObjectRef<GpuQuota>, String)>,
    pub(crate) tenant_objects: ByUid<(ObjectRef<Tenant>, String)>,
}

impl Context {
    /// Nothing is known yet.
    fn new(client: Client, gate: Gate, cluster: Cluster) -> Self {
        Self {
            jobs: Jobs::new(cluster.clone()),
            client,
            gate,
            cluster,
            index: RwLock::default(),
            bindings: watch::Sender::new(0),
            submits: tokio::sync::RwLock::default(),
            job_objects: ByUid::default(),
            quota_objects: ByUid::default(),
            tenant_objects: ByUid::default(),
        }
    }

    /// Whom a namespace acts for.
    pub(crate) fn acts(&self, namespace: &str) -> Acts {
        self.index.read().unwrap_or_else(PoisonError::into_inner).acts(namespace)
    }

    /// The namespaces of a tenant, and those that it names but another has.
    pub(crate) fn namespaces(&self, tenant: &str) -> (Vec<String>, Vec<(String, String)>) {
        self.index.read().unwrap_or_else(PoisonError::into_inner).namespaces(tenant)
    }

    /// Changes the index, and has everything looked at again where that binds otherwise than before. Whether it does.
    pub(crate) fn index(&self, act: impl FnOnce(&mut Index) -> bool) -> bool {
        let changed = act(&mut self.index.write().unwrap_or_else(PoisonError::into_inner));
        if changed {
            self.bindings.send_modify(|count| *count += 1);
        }
        changed
    }
}

fn uids<K: write::Kind>(store: &Store<K>) -> BTreeSet<String> {
    store.state().iter().filter_map(|object| object.uid()).collect()
}

/// Works until `stop`. While another operator holds the Lease, it waits.
///
/// # Errors
/// There is no way to the API server or to the controller that could be tried.
pub async fn run(options: Options, stop: CancellationToken) -> Result<(), Error> {
    let gate = Gate::new(&options.controller)?;
    let client = Client::try_from(kube::Config::infer().await?)?;
    let leadership =
        Leadership::new(Api::<Lease>::namespaced(client.clone(), &options.namespace), options.identity.clone());
    loop {
        let begun = tokio::select! {
            begun = leadership.acquire() => begun,
            () = stop.cancelled() => return Ok(()),
        };
        tracing::info!(identity = options.identity, "holds the Lease: works");
        let done = tokio::select! {
            done = work(client.clone(), gate.clone()) => done,
            () = leadership.hold(begun) => {
                tracing::warn!("lost the Lease: waits for it");
                continue;
            }
            () = stop.cancelled() => {
                leadership.release().await;
                return Ok(());
            }
        };
        if let Err(error) = done {
            tracing::warn!(%error, source = std::error::Error::source(&error).map(ToString::to_string), "begins again");
            leadership.release().await;
            tokio::time::sleep(RETRY).await;
        }
    }
}

/// Works as the one that may. All that it starts ends with it.
async fn work(client: Client, gate: Gate) -> Result<(), Error> {
    let home = Api::<Namespace>::all(client.clone()).get("kube-system").await?;
    let cluster = Cluster::new(&home.uid().unwrap_or_default());
    let context = Arc::new(Context::new(client, gate, cluster));
    let ready = CancellationToken::new();
    tokio::select! {
        () = context.jobs.watch(&context.gate) => {}
        () = follow_tenants(&context, &ready) => {}
        () = async {
            ready.cancelled().await;
            context.jobs.ready().await;
            controllers(&context).await;
        } => {}
    }
    Ok(())
}

/// Keeps the index as the Tenants are.
async fn follow_tenants(context: &Context, ready: &CancellationToken) {
    let api: Api<Tenant> = Api::all(context.client.clone());
    let mut events = std::pin::pin!(watcher::watcher(api, watcher::Config::default()).default_backoff());
    let mut first = Vec::new();
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => take(event, &mut first, context, ready),
            Err(error) => tracing::info!(%error, "the watch of Tenants broke off"),
        }
    }
}

/// Takes one event of the watch of Tenants into the index. `first` is what was told so far of a list.
fn take(event: Event<Tenant>, first: &mut Vec<Tenant>, context: &Context, ready: &CancellationToken) {
    match event {
        Event::Init => first.clear(),
        Event::InitApply(tenant) => first.push(tenant),
        Event::InitDone => {
            context.index(|index| index.reset(&*first));
            first.clear();
            ready.cancel();
        }
        // Most are the operator's own writing of status, which changes nothing here: nobody is woken by it.
        Event::Apply(tenant) => {
            context.index(|index| index.apply(&tenant));
        }
        Event::Delete(tenant) => {
            context.index(|index| index.delete(&tenant));
        }
    }
}

fn on_error<K>(_: Arc<K>, error: &Error, _: Arc<Context>) -> Action {
    let source = std::error::Error::source(error).map(ToString::to_string);
    tracing::info!(%error, source, "tries again");
    Action::requeue(RETRY)
}

/// Runs the three reconcilers and what triggers them.
async fn controllers(context: &Arc<Context>) {
    let rebound = || WatchStream::from_changes(context.bindings.subscribe()).map(drop);
    let many = || RuntimeConfig::default().concurrency(AT_ONCE);
    let (job_changed, job_triggers) = mpsc::channel(QUEUE);
    let (quota_changed, quota_triggers) = mpsc::channel(QUEUE);
    let (tenant_changed, tenant_triggers) = mpsc::channel(QUEUE);
    let all = || watcher::Config::default();
    let jobs = Runtime::new(Api::<GpuJob>::all(context.client.clone()), all())
        .with_config(many())
        .reconcile_all_on(rebound())
        .reconcile_on(ReceiverStream::new(job_triggers));
    let job_store = jobs.store();
    let jobs = jobs.run(jobs::reconcile, on_error, context.clone()).for_each(|_| async {});
    let quotas = Runtime::new(Api::<GpuQuota>::all(context.client.clone()), all())
        .with_config(many())
        .reconcile_all_on(rebound())
        .reconcile_on(ReceiverStream::new(quota_triggers));
    let quota_store = quotas.store();
    let quotas = quotas.run(quotas::reconcile, on_error, context.clone()).for_each(|_| async {});
    let tenants = Runtime::new(Api::<Tenant>::all(context.client.clone()), all())
        .with_config(many())
        .reconcile_all_on(rebound())
        .reconcile_on(ReceiverStream::new(tenant_triggers))
        .run(tenants::reconcile, on_error, context.clone())
        .for_each(|_| async {});
    let touched = Mutex::new(BTreeSet::new());
    let tell = async {
        loop {
            for uid in context.jobs.changes().await {
                if let Some(job) = context.jobs.of(&uid) {
                    let tenant = job.name.splitn(3, '/').take(2).collect::<Vec<_>>().join("/");
                    touched.lock().unwrap_or_else(PoisonError::into_inner).insert(tenant);
                }
                if let Some(object) = context.job_objects.get(&uid) {
                    // Nobody works any more: this ends with them.
                    let _gone = job_changed.send(object).await;
                }
            }
        }
    };
    let tell_tenants = async {
        loop {
            tokio::time::sleep(TELL).await;
            let some = std::mem::take(&mut *touched.lock().unwrap_or_else(PoisonError::into_inner));
            for (object, _) in context.quota_objects.all().into_iter().filter(|(_, tenant)| some.contains(tenant)) {
                let _gone = quota_changed.send(object).await;
            }
            for (object, _) in context.tenant_objects.all().into_iter().filter(|(_, tenant)| some.contains(tenant)) {
                let _gone = tenant_changed.send(object).await;
            }
        }
    };
    let sweep_jobs = async {
        if job_store.wait_until_ready().await.is_ok() {
            sweep::jobs(context, || uids(&job_store)).await;
        }
    };
    let sweep_quotas = async {
        if quota_store.wait_until_ready().await.is_ok() {
            sweep::quotas(context, || uids(&quota_store)).await;
        }
    };
    tokio::select! {
        () = jobs => {}
        () = quotas => {}
        () = tenants => {}
        () = tell => {}
        () = tell_tenants => {}
        () = sweep_jobs => {}
        () = sweep_quotas => {}
    }
}

#[cfg(test)]
impl Context {
    /// Of a cluster "c1" without an API server.
    pub(crate) fn mk(gate: Gate) -> Self {
        use kube::client::Body;
        use tonic::codegen::http;
        let nobody = tower::service_fn(|_: http::Request<Body>| async {
            Err::<http::Response<Body>, _>(std::io::Error::other("there is no API server"))
        });
        Self::new(Client::new(nobody, "default"), gate, Cluster::new("c1"))
    }
}

#[cfg(test)]
mod tests {
    use kube::core::ObjectMeta;

    use super::*;
    use crate::api::{Binding, TenantSpec, TenantStatus};

    #[tokio::test]
    async fn what_the_operator_writes_into_a_tenant_wakes_nobody() {
        let (context, ready) = (Context::mk(Gate::mk("127.0.0.1:1")), CancellationToken::new());
        let (mut woken, mut first) = (context.bindings.subscribe(), Vec::new());
        let mut wakes = |event| {
            take(event, &mut first, &context, &ready);
            let wakes = woken.has_changed().unwrap();
            woken.mark_unchanged();
            wakes
        };
        let binding = |name: &str| Binding { name: name.to_owned(), project: None };
        let mut tenant = Tenant::new("acme", TenantSpec { namespaces: vec![binding("team-a")] });
        let (uid, generation) = (Some("t".to_owned()), Some(1));
        tenant.metadata = ObjectMeta { uid, generation, ..tenant.metadata };
        assert!(!wakes(Event::Init) && !wakes(Event::InitApply(tenant.clone())));
        assert!(wakes(Event::InitDone) && ready.is_cancelled());
        for balance in [Some(7), Some(8)] {
            tenant.status = Some(TenantStatus { balance_credits: balance, ..TenantStatus::default() });
            tenant.metadata.resource_version = balance.map(|version| version.to_string());
            assert!(!wakes(Event::Apply(tenant.clone())));
        }
        tenant.spec.namespaces.push(binding("team-b"));
        tenant.metadata.generation = Some(2);
        assert!(wakes(Event::Apply(tenant.clone())) && !wakes(Event::Apply(tenant.clone())));
        assert!(wakes(Event::Delete(tenant)));
    }
}
