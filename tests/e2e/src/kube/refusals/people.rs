//! Whoever owns a namespace and is no admin: what they try, through every verb.

use serde_json::{Value, json};

use super::{Cluster, Door, Figure, Kind, User, made, tell};

/// One attempt: what it would be, and the request.
struct Attempt {
    what: &'static str,
    method: &'static str,
    path: String,
    kind: &'static str,
    body: Value,
}

const JSON: &str = "application/json";
const MERGE: &str = "application/merge-patch+json";
const APPLY: &str = "application/apply-patch+yaml";
const PATCH: &str = "application/json-patch+json";

pub(super) async fn run(cluster: &Cluster, admin: &Door) -> anyhow::Result<Vec<Figure>> {
    bind(admin).await?;
    let alice = Door::open(&cluster.kubeconfig(User::Alice)).await?;
    let quinn = Door::open(&cluster.kubeconfig(User::Quotas)).await?;
    settled(&alice).await?;
    Ok(vec![cannot(admin, &alice, &quinn).await?, can(&alice).await?])
}

/// Alice owns team-a and Bob team-b; Quinn keeps quotas. The Lease of an operator is there, though no operator is.
async fn bind(admin: &Door) -> anyhow::Result<()> {
    let user = |user: User| json!([{ "kind": "User", "name": user.name(), "apiGroup": "rbac.authorization.k8s.io" }]);
    let role = |name: &str| json!({ "kind": "ClusterRole", "name": name, "apiGroup": "rbac.authorization.k8s.io" });
    let group = "/apis/rbac.authorization.k8s.io/v1";
    for (namespace, who) in [("team-a", User::Alice), ("team-b", User::Bob)] {
        let object = json!({ "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
            "metadata": { "name": "owner" }, "subjects": user(who), "roleRef": role("admin") });
        made(admin.create(&format!("{group}/namespaces/{namespace}/rolebindings"), &object).await?)?;
    }
    let object = json!({ "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
        "metadata": { "name": "quotas" }, "subjects": user(User::Quotas), "roleRef": role("sluice-quota-admin") });
    made(admin.create(&format!("{group}/clusterrolebindings"), &object).await?)?;
    let object = json!({ "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": { "name": "sluice-operator" }, "spec": { "holderIdentity": "" } });
    made(admin.create("/apis/coordination.k8s.io/v1/namespaces/sluice-system/leases", &object).await?)?;
    Ok(())
}

/// Waits until what is aggregated into the role `admin` is there.
async fn settled(alice: &Door) -> anyhow::Result<()> {
    for _ in 0..300 {
        if alice.get("/apis/sluice.dev/v1alpha1/namespaces/team-a/gpujobs").await?.is_ok() {
            return Ok(());
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    anyhow::bail!("the role admin does not contain the reading of jobs")
}

/// Every way to raise a quota, to bind a tenant, to spend or read as somebody else.
fn attempts() -> Vec<Attempt> {
    let ours = "/apis/sluice.dev/v1alpha1";
    let rbac = "/apis/rbac.authorization.k8s.io/v1";
    let mut all = Vec::new();
    let mut attempt = |what, method, path: String, kind, body| all.push(Attempt { what, method, path, kind, body });
    let raised = json!({ "spec": { "nominal": "1000" } });
    let replaced = |kind: Kind, name: &str, tenant: &str| {
        let mut object = kind.good_of(tenant);
        object["metadata"]["name"] = json!(name);
        object
    };
    for (kind, tenant, list, what) in [
        (Kind::Quota, "acme", format!("{ours}/namespaces/team-a/gpuquotas"), "raise its quota"),
        (Kind::Quota, "beta", format!("{ours}/namespaces/team-b/gpuquotas"), "raise another's quota"),
        (Kind::Tenant, "acme", format!("{ours}/tenants"), "bind a tenant"),
    ] {
        let name = if kind == Kind::Tenant { "acme" } else { "good" };
        let one = format!("{list}/{name}");
        let status = json!({ "status": { "observedGeneration": 9 } });
        let mut whole = replaced(kind, name, tenant);
        whole["metadata"]["resourceVersion"] = json!("1");
        let operation = json!([{ "op": "add", "path": "/spec/nominal", "value": "1000" }]);
        attempt(what, "POST", list.clone(), JSON, replaced(kind, "mine", tenant));
        attempt(what, "PUT", one.clone(), JSON, whole.clone());
        attempt(what, "PATCH", one.clone(), MERGE, raised.clone());
        attempt(what, "PATCH", one.clone(), PATCH, operation);
        attempt(what, "PATCH", format!("{one}?fieldManager=me&force=true"), APPLY, replaced(kind, name, tenant));
        attempt(what, "DELETE", one.clone(), JSON, Value::Null);
        attempt(what, "DELETE", list.clone(), JSON, Value::Null);
        attempt(what, "PATCH", format!("{one}/status"), MERGE, status.clone());
        whole["status"] = status["status"].clone();
        attempt(what, "PUT", format!("{one}/status"), JSON, whole);
        attempt(what, "PATCH", one.clone(), MERGE, json!({ "metadata": { "finalizers": ["sluice.dev/settle"] } }));
    }
    let spend = "read another's spend";
    for path in [
        "tenants",
        "tenants/acme",
        "tenants/beta",
        "tenants?watch=true&timeoutSeconds=1",
        "gpujobs",
        "gpuquotas",
        "gpujobs?watch=true&timeoutSeconds=1",
        "namespaces/team-b/gpujobs",
        "namespaces/team-b/gpujobs/good",
        "namespaces/team-b/gpuquotas",
        "namespaces/team-b/gpuquotas/good",
        "namespaces/team-b/gpujobs/good/status",
        "namespaces/team-b/gpuquotas?watch=true&timeoutSeconds=1",
        "gpujobs?fieldSelector=metadata.namespace%3Dteam-b",
    ] {
        attempt(spend, "GET", format!("{ours}/{path}"), JSON, Value::Null);
    }
    attempt(
        "say what its job did",
        "PATCH",
        format!("{ours}/namespaces/team-a/gpujobs/good/status"),
        MERGE,
        json!({ "status": { "job": "tenants/beta/projects/x/jobs/y", "spentCredits": 0 } }),
    );
    attempt(
        "run in another's namespace",
        "POST",
        format!("{ours}/namespaces/team-b/gpujobs"),
        JSON,
        replaced(Kind::Job, "mine", "beta"),
    );
    let binding = |kind: &str, role: &str| {
        json!({ "apiVersion": "rbac.authorization.k8s.io/v1", "kind": kind, "metadata": { "name": "mine" },
            "subjects": [{ "kind": "User", "name": "alice", "apiGroup": "rbac.authorization.k8s.io" }],
            "roleRef": { "kind": "ClusterRole", "name": role, "apiGroup": "rbac.authorization.k8s.io" } })
    };
    let give = "give itself a role";
    for role in ["sluice-quota-admin", "sluice-operator", "cluster-admin"] {
        attempt(give, "POST", format!("{rbac}/namespaces/team-a/rolebindings"), JSON, binding("RoleBinding", role));
        attempt(give, "POST", format!("{rbac}/clusterrolebindings"), JSON, binding("ClusterRoleBinding", role));
    }
    attempt(
        give,
        "POST",
        format!("{rbac}/namespaces/team-a/roles"),
        JSON,
        json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": { "name": "mine" },
        "rules": [{ "apiGroups": ["sluice.dev"], "resources": ["gpuquotas"], "verbs": ["*"] }] }),
    );
    attempt(give, "PATCH", format!("{rbac}/clusterroles/sluice-jobs-edit"), MERGE, json!({ "rules": [] }));
    let operator = "become the operator";
    attempt(
        operator,
        "POST",
        "/api/v1/namespaces/sluice-system/serviceaccounts/sluice-operator/token".to_owned(),
        JSON,
        json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {} }),
    );
    attempt(
        operator,
        "PATCH",
        "/apis/coordination.k8s.io/v1/namespaces/sluice-system/leases/sluice-operator".to_owned(),
        MERGE,
        json!({ "spec": { "holderIdentity": "me" } }),
    );
    let rules = "change the rules";
    attempt(
        rules,
        "DELETE",
        "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/gpuquotas.sluice.dev".to_owned(),
        JSON,
        Value::Null,
    );
    attempt(
        rules,
        "DELETE",
        "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings/sluice-quota-tenant".to_owned(),
        JSON,
        Value::Null,
    );
    let namespace = "move its namespace to another tenant";
    attempt(
        namespace,
        "PATCH",
        "/api/v1/namespaces/team-a".to_owned(),
        MERGE,
        json!({ "metadata": { "labels": { "sluice.dev/tenant": "beta" } } }),
    );
    attempt(
        namespace,
        "POST",
        "/api/v1/namespaces".to_owned(),
        JSON,
        json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "team-c" } }),
    );
    all
}

/// In whose name somebody who may would read: people by name, and whoever is in the group that may everything.
fn names() -> Vec<Vec<(&'static str, &'static str)>> {
    let user = |name| ("impersonate-user", name);
    vec![
        vec![user("admin"), ("impersonate-group", "system:masters")],
        vec![user("quinn")],
        vec![user("sluice-operator")],
        vec![user("system:serviceaccount:sluice-system:sluice-operator")],
    ]
}

async fn cannot(admin: &Door, alice: &Door, quinn: &Door) -> anyhow::Result<Figure> {
    let attempts = attempts();
    let mut faults = Vec::new();
    for Attempt { what, method, path, kind, body } in &attempts {
        match alice.ask(method, path, kind, body).await? {
            Err(refused) if refused.code == 403 => {}
            other => faults.push(format!("{what}: {method} {path}: {other:?}")),
        }
    }
    let tenants = "/apis/sluice.dev/v1alpha1/tenants";
    for whom in names() {
        match alice.ask_as(&whom, "GET", tenants, JSON, &Value::Null).await? {
            Err(refused) if refused.code == 403 => {}
            other => faults.push(format!("as {whom:?}: {other:?}")),
        }
    }
    tell(&faults);
    let empty = nothing_there(admin, &attempts).await?;
    tell(&empty);
    let path = "/apis/sluice.dev/v1alpha1/namespaces/team-a/gpuquotas/good?dryRun=All";
    let allowed = quinn.merge(path, &json!({ "spec": { "nominal": "1000" } })).await?.is_ok();
    let all = attempts.len() + names().len();
    let figure = Figure::new(
        "attempts of a namespace's owner to raise, bind, read or become: forbidden",
        all - faults.len(),
        format!("= {all}"),
        faults.is_empty(),
    );
    let told = format!(
        "for an admin there is something to do in {} of them; whoever has the role sluice-quota-admin raises it",
        all - empty.len()
    );
    Ok(figure.control(told, empty.is_empty() && allowed))
}

/// Attempts that an admin is answered by "forbidden" or "not found", without anything being done. To somebody who may not, the
/// API server says "forbidden" of everything, also of what does not exist: such an attempt shows nothing.
async fn nothing_there(admin: &Door, attempts: &[Attempt]) -> anyhow::Result<Vec<String>> {
    let mut empty = Vec::new();
    for Attempt { what, method, path, kind, body } in attempts {
        let only_checked = match (*method, path.contains('?')) {
            ("GET", _) => path.clone(),
            (_, true) => format!("{path}&dryRun=All"),
            (_, false) => format!("{path}?dryRun=All"),
        };
        match admin.ask(method, &only_checked, kind, body).await? {
            Err(refused) if matches!(refused.code, 403 | 404) => {
                empty.push(format!("control of {what}: {method} {path}: {}", refused.message));
            }
            _ => {}
        }
    }
    for whom in names() {
        let tenants = "/apis/sluice.dev/v1alpha1/tenants";
        if let Err(refused) = admin.ask_as(&whom, "GET", tenants, JSON, &Value::Null).await? {
            empty.push(format!("control of {whom:?}: {}", refused.message));
        }
    }
    Ok(empty)
}

/// What an owner may do, so that it is not everything that is forbidden.
async fn can(alice: &Door) -> anyhow::Result<Figure> {
    let own = "/apis/sluice.dev/v1alpha1/namespaces/team-a";
    let mut object = Kind::Job.good();
    object["metadata"]["name"] = json!("mine");
    let steps = [
        alice.create(&format!("{own}/gpujobs"), &object).await?,
        alice.merge(&format!("{own}/gpujobs/mine"), &json!({ "spec": { "suspend": true } })).await?,
        alice.get(&format!("{own}/gpujobs/mine")).await?,
        alice.get(&format!("{own}/gpuquotas/good")).await?,
        alice.delete(&format!("{own}/gpujobs/mine")).await?,
    ];
    let well = steps.iter().filter(|step| step.is_ok()).count();
    tell(&steps.iter().filter_map(|step| step.as_ref().err().map(|e| e.message.clone())).collect::<Vec<_>>());
    Ok(Figure::exactly("its own jobs, and the sight of its quota", i64::try_from(well)?, 5))
}
