//! Whom a namespace acts for, where that changes or Sluice does not accept it.

use std::time::Duration;

use serde_json::{Value, json};
use sluice_proto::v1;

use super::User;
use super::world::World;
use crate::figure::Figure;
use crate::random::request_id;
use crate::wait_for;

/// How long the operator, and the API server with a policy that changed, may take.
const TAKES: Duration = Duration::from_secs(60);
const NAMESPACE: &str = "moves";
/// The namespace's tenant, and who has it then.
const FORMER: &str = "delta";
const LATTER: &str = "epsilon";

fn tenant(name: &str, namespaces: &Value) -> Value {
    json!({ "apiVersion": "sluice.dev/v1alpha1", "kind": "Tenant", "metadata": { "name": name },
        "spec": { "namespaces": namespaces } })
}

fn namespace(name: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name } })
}

/// Waits until the operator says of an object, for this reason, that it is not accepted.
fn refused_for(world: &World, object: &[&str], reason: &str) -> anyhow::Result<()> {
    wait_for("the operator's word", TAKES, || {
        let object = world.kubectl(User::Admin).json(&[&["get"], object].concat())?;
        let conditions = object["status"]["conditions"].as_array().into_iter().flatten();
        let mut accepted = conditions.filter(|condition| condition["type"] == "Accepted");
        Ok(accepted.any(|condition| condition["reason"] == reason).then_some(()))
    })
}

/// A quota that names its tenant, in a namespace that then moves to another, can still go.
pub(super) fn moved(world: &World) -> anyhow::Result<Figure> {
    let kubectl = world.kubectl(User::Admin);
    let bound = json!([{ "name": NAMESPACE }]);
    let setting = json!({ "apiVersion": "v1", "kind": "List", "items": [
        namespace(NAMESPACE), tenant(FORMER, &bound), tenant(LATTER, &json!([])),
    ] });
    kubectl.fed(&["apply", "-f", "-"], &setting.to_string())?.well()?;
    let tenants = [FORMER, LATTER].map(|name| format!("tenant/{name}"));
    let tenants: Vec<&str> = tenants.iter().map(String::as_str).collect();
    kubectl.well(&[&["wait", "--for=condition=Accepted", "--timeout=60s"], tenants.as_slice()].concat())?;
    let quota = json!({ "apiVersion": "sluice.dev/v1alpha1", "kind": "GpuQuota",
        "metadata": { "name": "named", "namespace": NAMESPACE },
        "spec": { "tenant": FORMER, "deviceClass": "moved", "nominal": 1 } });
    kubectl.fed(&["apply", "-f", "-"], &quota.to_string())?.well()?;
    kubectl.well(&["wait", "--for=condition=Accepted", "gq/named", "-n", NAMESPACE, "--timeout=60s"])?;
    for (name, namespaces) in [(FORMER, json!([])), (LATTER, bound)] {
        let change = json!({ "spec": { "namespaces": namespaces } }).to_string();
        kubectl.well(&["patch", "tenant", name, "--type=merge", "-p", &change])?;
    }
    refused_for(world, &["gq", "named", "-n", NAMESPACE], "TenantMismatch")?;
    let kept = policy_over_updates_keeps_it(world)?;
    let gone = kubectl.run(&["delete", "gq/named", "-n", NAMESPACE, "--timeout=60s"])?;
    let rows = rows(world)?;
    kubectl.well(&["delete", "ns", NAMESPACE, "--timeout=60s"])?;
    kubectl.well(&[&["delete", "--timeout=60s"], tenants.as_slice()].concat())?;
    let told = if gone.code == 0 { format!("gone, {rows} rows left") } else { gone.stderr.trim().to_owned() };
    let metric = "a quota that names its tenant, deleted after its namespace moved to another";
    let figure = Figure::new(metric, told, "gone, 0 rows left", gone.code == 0 && rows == 0);
    Ok(figure.control("under a policy that asks updates too, the operator cannot let it go", kept))
}

/// Whether the operator is refused to let the quota go while the policy asks updates as well as creations.
fn policy_over_updates_keeps_it(world: &World) -> anyhow::Result<bool> {
    let asks = |operations: &[&str]| {
        let path = "/spec/matchConstraints/resourceRules/0/operations";
        let change = json!([{ "op": "replace", "path": path, "value": operations }]).to_string();
        let policy = ["patch", "validatingadmissionpolicy", "sluice-quota-tenant", "--type=json", "-p", &change];
        world.kubectl(User::Admin).well(&policy).map(drop)
    };
    let none = "{\"metadata\":{\"finalizers\":null}}";
    // The API server takes note of a policy a moment later.
    let until = |refused: bool| {
        wait_for("the policy", TAKES, || {
            let let_go = ["patch", "gq", "named", "-n", NAMESPACE, "--type=merge", "-p", none, "--dry-run=server"];
            let answer = world.kubectl(User::Operator).run(&let_go)?;
            let by_policy = answer.stderr.contains(&format!("does not belong to tenant {FORMER}"));
            Ok((if refused { by_policy } else { answer.code == 0 }).then_some(()))
        })
    };
    asks(&["CREATE", "UPDATE"])?;
    let kept = until(true);
    asks(&["CREATE"])?;
    until(false)?;
    Ok(kept.is_ok())
}

/// Quotas that either tenant has in Sluice.
fn rows(world: &World) -> anyhow::Result<usize> {
    let client = world.client()?;
    let mut rows = 0;
    for tenant in [FORMER, LATTER] {
        let request = v1::ListQuotasRequest { tenant: format!("tenants/{tenant}") };
        rows += world.system.block(async { client.money().list_quotas(request).await })?.into_inner().quotas.len();
    }
    Ok(rows)
}

/// A Tenant of the name of one that another cluster manages gives its namespaces nothing, though the operator's key may all.
pub(super) fn elsewhere(world: &World) -> anyhow::Result<Figure> {
    const NAME: &str = "theirs";
    let (kubectl, client) = (world.kubectl(User::Admin), world.client()?);
    let full = format!("tenants/{NAME}");
    let make = v1::CreateTenantRequest {
        request_id: request_id(),
        tenant_id: NAME.to_owned(),
        manager: "kubernetes/another-cluster/its-tenant".to_owned(),
        ..v1::CreateTenantRequest::default()
    };
    world.system.block(async { client.tenants().create_tenant(make).await })?;
    // All that a job would need there.
    let project = v1::CreateProjectRequest {
        request_id: request_id(),
        parent: full.clone(),
        project_id: NAME.to_owned(),
        ..v1::CreateProjectRequest::default()
    };
    world.system.block(async { client.tenants().create_project(project).await })?;
    world.deposit(&full, 1_000_000)?;
    let job = json!({ "apiVersion": "sluice.dev/v1alpha1", "kind": "GpuJob",
        "metadata": { "name": "mine", "namespace": NAME },
        "spec": { "command": ["/bin/true"], "resources": { "share": "100m", "memory": "16Mi" } } });
    let setting = json!({ "apiVersion": "v1", "kind": "List", "items": [
        namespace(NAME), tenant(NAME, &json!([{ "name": NAME }])), job,
    ] });
    kubectl.fed(&["apply", "-f", "-"], &setting.to_string())?.well()?;
    refused_for(world, &["tenant", NAME], "ManagedElsewhere")?;
    let told = refused_for(world, &["gj", "mine", "-n", NAME], "NamespaceNotBound").is_ok();
    let jobs = || anyhow::Ok(world.system.block(client.list_jobs_of(&full))?.len());
    let before = jobs()?;
    let detach = v1::SetManagerRequest {
        request_id: request_id(),
        name: full.clone(),
        detach: true,
        ..v1::SetManagerRequest::default()
    };
    world.system.block(async { client.tenants().set_manager(detach).await })?;
    let taken = wait_for("its job", TAKES, || Ok((jobs()? == 1).then_some(()))).is_ok();
    kubectl.well(&["delete", "gj/mine", "-n", NAME, "--timeout=60s"])?;
    kubectl.well(&["delete", "ns", NAME, "--timeout=60s"])?;
    kubectl.well(&["delete", &format!("tenant/{NAME}"), "--timeout=60s"])?;
    let metric = "jobs of a namespace whose Tenant has the name of one that another cluster manages";
    let figure = Figure::new(metric, before, "= 0, and the object says NamespaceNotBound", told && before == 0);
    Ok(figure.control("once nobody manages it, the same object has a job", taken))
}
