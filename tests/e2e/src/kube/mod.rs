//! A real Kubernetes for tests: etcd, API server and controller manager on the loopback, in a folder of their own.
//!
//! * [`binary`] finds the program that `scripts/kube.sh` built.
//! * [`Cluster`] starts, kills and ends its parts, by process number.
//! * [`Kubectl`] is what its users type.
//! * [`refusals`] shows that what is wrong, and who may not, is refused.
//! * [`story`] has two tenants work with nothing but kubectl, beside a whole system.
//! * [`chaos`] kills operator, controller and API server while objects change.

mod access;
mod bindings;
mod changes;
pub mod chaos;
mod cluster;
mod door;
mod kubectl;
pub mod refusals;
pub mod story;
mod text;
mod updates;
mod versions;
mod world;

pub use cluster::{Cluster, Part, down, up};
pub use kubectl::Kubectl;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::Context as _;
use serde_json::json;

use crate::wait_for;

/// How long the API server may take to enforce a policy: it looks for new kinds only every 30 s where it did so too early.
const ENFORCES: Duration = Duration::from_secs(180);

/// People and programs that the API server knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum User {
    /// May do everything.
    Admin,
    /// The operator: what its ClusterRole says.
    Operator,
    /// An admin of quotas: what the ClusterRole sluice-quota-admin says.
    Quotas,
    /// Somebody who owns a namespace, by the role `admin` that Kubernetes has.
    Alice,
    /// Somebody who owns another one.
    Bob,
}

impl User {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Admin, Self::Operator, Self::Quotas, Self::Alice, Self::Bob];

    /// The name that roles are bound to.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Admin => "admin",
            Self::Operator => "sluice-operator",
            Self::Quotas => "quinn",
            Self::Alice => "alice",
            Self::Bob => "bob",
        }
    }
}

/// The repository.
pub(crate) fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The program with all parts of Kubernetes, or why there is none.
///
/// # Errors
/// In words: what would have to be there.
pub fn binary() -> Result<PathBuf, String> {
    static FOUND: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let find = || {
        if let Some(path) = std::env::var_os("SLUICE_KUBE") {
            return Ok(PathBuf::from(path));
        }
        let output = Command::new(repository().join("scripts/kube.sh")).arg("--cached").output();
        let output = output.map_err(|error| format!("scripts/kube.sh cannot be started: {error}"))?;
        let told = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        if output.status.success() { Ok(PathBuf::from(told)) } else { Err(told) }
    };
    FOUND.get_or_init(find).clone()
}

/// Applies the kinds, roles and policies of `deploy/kubernetes`, and waits until the API server serves and enforces them.
///
/// # Errors
/// They are refused, or not enforced in time.
pub fn install(kubectl: &Kubectl) -> anyhow::Result<()> {
    let folder = repository().join("deploy/kubernetes");
    let folder = folder.to_str().context("a path of text")?;
    kubectl.well(&["apply", "--server-side", "-k", folder])?;
    let kinds = ["crd/tenants.sluice.dev", "crd/gpuquotas.sluice.dev", "crd/gpujobs.sluice.dev"];
    kubectl.well(&[&["wait", "--for=condition=Established", "--timeout=60s"], kinds.as_slice()].concat())?;
    // The operator of tests comes with a token instead of a service account.
    let user = format!("--user={}", User::Operator.name());
    let create = |kind: &str, role: &str, more: &[&str]| -> anyhow::Result<()> {
        let made = kubectl.run(&[&["create", kind, "test-operator", role, &user], more].concat())?;
        anyhow::ensure!(made.code == 0 || made.stderr.contains("AlreadyExists"), "{}", made.stderr);
        Ok(())
    };
    create("clusterrolebinding", "--clusterrole=sluice-operator", &[])?;
    create("rolebinding", "--role=sluice-operator", &["-n", "sluice-system"])?;
    enforced(kubectl)
}

/// Waits until quotas are asked for their tenant. Before that the API server takes each of them, and then, until it knows the
/// kind Tenant itself, none: only a refusal for the right reason tells that both are over.
fn enforced(kubectl: &Kubectl) -> anyhow::Result<()> {
    let name = "nobodys";
    let tenant = json!({ "apiVersion": "sluice.dev/v1alpha1", "kind": "Tenant", "metadata": { "name": name },
        "spec": { "namespaces": [] } });
    kubectl.fed(&["apply", "-f", "-"], &tenant.to_string())?.well()?;
    let quota = json!({ "apiVersion": "sluice.dev/v1alpha1", "kind": "GpuQuota",
        "metadata": { "name": name, "namespace": "sluice-system" },
        "spec": { "tenant": name, "deviceClass": name, "nominal": 1 } });
    let mut last = String::new();
    let refused = wait_for("the policy over quotas", ENFORCES, || {
        let answer = kubectl.fed(&["create", "--dry-run=server", "-f", "-"], &quota.to_string())?;
        last = format!("{}{}", answer.stdout, answer.stderr);
        Ok(last.contains(&format!("does not belong to tenant {name}")).then_some(()))
    });
    refused.with_context(|| last)?;
    kubectl.well(&["delete", &format!("tenant/{name}"), "--timeout=60s"]).map(drop)
}
