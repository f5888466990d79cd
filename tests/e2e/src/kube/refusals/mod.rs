//! What is wrong is refused by the API server itself, with the field and the reason; and who may not, cannot.
//!
//! Each wrong manifest has a control: a copy of its kind without the one rule that refuses it, under a group of its own,
//! which takes it. Where other rules cannot stand without that one they are taken out too, and that is told.

mod cases;
mod controls;
mod people;
mod schema;

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::door::{Door, Refused};
use super::{Cluster, User};
use crate::Figure;
use cases::{Case, Kind};

/// Where wrong manifests are sent.
pub(crate) const NAMESPACE: &str = "team-a";

/// Objects that wrong changes are sent to, in the namespace of a tenant: a quota that covers nothing, and a job that
/// waits for it, whose files are this upload.
pub(crate) fn held_back(tenant: &str, digest: &str, size: u64) -> [Value; 2] {
    let (mut quota, mut job) = (Kind::Quota.good_of(tenant), Kind::Job.good());
    merge(&mut quota, &json!({ "spec": { "nominal": 0, "borrow": 0, "lend": 0 } }));
    let (held, input) = (
        json!({ "digest": digest, "sizeBytes": size }),
        json!({ "digest": digest, "sizeBytes": size, "path": "data/text" }),
    );
    merge(&mut job, &json!({ "spec": { "workDir": held, "inputs": [input] } }));
    [quota, job]
}

/// Sends all wrong changes in earnest to the objects of [`held_back`]. Returns how many.
///
/// # Errors
/// One of them was taken, or refused for anything but its fault.
pub(crate) async fn updates_in_earnest(kubeconfig: &std::path::Path) -> anyhow::Result<usize> {
    let admin = Door::open(kubeconfig).await?;
    let mut sent = 0;
    for case in cases::all().iter().filter(|case| case.update) {
        let one = format!("{}/good?fieldValidation=Strict", path("sluice.dev", case.kind));
        match admin.merge(&one, &case.change).await? {
            Err(refused) if named(case, &refused) => sent += 1,
            other => anyhow::bail!("{:?} {}: {other:?}", case.kind, case.change),
        }
    }
    Ok(sent)
}

/// Sends all wrong manifests of new objects in earnest. Returns how many.
///
/// # Errors
/// One of them was taken.
pub(crate) async fn in_earnest(kubeconfig: &std::path::Path) -> anyhow::Result<usize> {
    let admin = Door::open(kubeconfig).await?;
    let mut sent = 0;
    for case in cases::all().iter().filter(|case| !case.update) {
        let mut object = case.kind.good();
        object["metadata"]["name"] = json!("wrong");
        merge(&mut object, &case.change);
        let answer =
            admin.create(&format!("{}?fieldValidation=Strict", path("sluice.dev", case.kind)), &object).await?;
        anyhow::ensure!(answer.is_err(), "{} was taken", case.change);
        sent += 1;
    }
    Ok(sent)
}

/// How much is shown.
#[derive(Debug, Clone, clap::Args)]
pub struct Plan {
    /// One control in four
    #[arg(long)]
    quick: bool,
}

/// Runs it on a cluster of its own.
///
/// # Errors
/// The cluster does not come up, or answers otherwise than by refusing or taking.
pub fn run(plan: &Plan) -> anyhow::Result<Vec<Figure>> {
    let cluster = Cluster::start("refusals")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(shown(plan, &cluster))
}

async fn shown(plan: &Plan, cluster: &Cluster) -> anyhow::Result<Vec<Figure>> {
    let admin = Door::open(&cluster.kubeconfig(User::Admin)).await?;
    setting(&admin).await?;
    let cases = cases::all();
    let definitions = definitions(&admin).await?;
    let mut figures = vec![refused(&admin, &cases, &definitions).await?, covered(&cases, &definitions)];
    figures.push(strangers(&admin, &definitions).await?);
    let step = if plan.quick { 4 } else { 1 };
    figures.push(controls::run(&admin, &cases, &definitions, step).await?);
    figures.push(tenants_of_others(&admin).await?);
    figures.extend(people::run(cluster, &admin).await?);
    Ok(figures)
}

/// Two namespaces of two tenants, and an object of each kind in either.
async fn setting(admin: &Door) -> anyhow::Result<()> {
    for (namespace, tenant) in [("team-a", "acme"), ("team-b", "beta")] {
        let object = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": namespace } });
        made(admin.create("/api/v1/namespaces", &object).await?)?;
        let mut object = Kind::Tenant.good();
        object["metadata"]["name"] = json!(tenant);
        object["spec"]["namespaces"][0]["name"] = json!(namespace);
        made(admin.create("/apis/sluice.dev/v1alpha1/tenants", &object).await?)?;
    }
    for kind in [Kind::Quota, Kind::Job] {
        for (namespace, tenant) in [("team-a", "acme"), ("team-b", "beta")] {
            let list = format!("/apis/sluice.dev/v1alpha1/namespaces/{namespace}/{}", kind.plural());
            made(admin.create(&list, &kind.good_of(tenant)).await?)?;
        }
    }
    Ok(())
}

/// What came of something that has to succeed.
fn made(answer: Result<Value, Refused>) -> anyhow::Result<Value> {
    answer.map_err(|refused| anyhow::anyhow!("{}: {}", refused.code, refused.message))
}

/// The list of objects of a kind.
fn path(group: &str, kind: Kind) -> String {
    let namespace = if kind == Kind::Tenant { "" } else { "namespaces/team-a/" };
    format!("/apis/{group}/v1alpha1/{namespace}{}", kind.plural())
}

/// The definitions as the API server has them.
async fn definitions(admin: &Door) -> anyhow::Result<BTreeMap<Kind, Value>> {
    let mut all = BTreeMap::new();
    for kind in Kind::ALL {
        let name = format!("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{}.sluice.dev", kind.plural());
        all.insert(kind, made(admin.get(&name).await?)?);
    }
    Ok(all)
}

/// Sends a case to the API server, which only checks it.
async fn sent(admin: &Door, group: &str, case: &Case, validation: &str) -> anyhow::Result<Result<Value, Refused>> {
    let path = path(group, case.kind);
    if case.update {
        let path = format!("{path}/good?dryRun=All&fieldValidation={validation}");
        return admin.merge(&path, &case.change).await;
    }
    let mut object = case.kind.good();
    object["metadata"]["name"] = json!("wrong");
    object["apiVersion"] = json!(format!("{group}/v1alpha1"));
    merge(&mut object, &case.change);
    admin.create(&format!("{path}?dryRun=All&fieldValidation={validation}"), &object).await
}

/// Whether the refusal names the field and the reason.
fn named(case: &Case, refused: &Refused) -> bool {
    let field = |cause: &(String, String)| case.field.is_empty() || cause.0 == case.field;
    refused.causes.iter().any(|cause| field(cause) && cause.1.contains(case.why))
}

async fn refused(admin: &Door, cases: &[Case], definitions: &BTreeMap<Kind, Value>) -> anyhow::Result<Figure> {
    let mut faults = Vec::new();
    for case in cases {
        match sent(admin, "sluice.dev", case, "Strict").await? {
            Ok(_) => faults.push(format!("{:?} {} {} was taken", case.kind, case.field, case.change)),
            Err(refused) if !named(case, &refused) => {
                faults.push(format!("{:?} {} \"{}\": {:?}", case.kind, case.field, case.why, refused));
            }
            Err(_) => {}
        }
    }
    tell(&faults);
    // The good ones, so that it is the change that is refused.
    for kind in definitions.keys() {
        let good = Case { change: Value::Null, update: false, field: "", why: "", rule: "", kind: *kind };
        made(sent(admin, "sluice.dev", &good, "Strict").await?)?;
    }
    let refused = cases.len() - faults.len();
    let goal = format!("= {}", cases.len());
    Ok(Figure::new("wrong manifests refused with field and reason", refused, goal, faults.is_empty()))
}

/// Every rule of every schema is the reason of some case.
fn covered(cases: &[Case], definitions: &BTreeMap<Kind, Value>) -> Figure {
    let mut all = 0;
    let mut missing = Vec::new();
    for (kind, definition) in definitions {
        for rule in schema::rules(definition) {
            all += 1;
            if !cases.iter().any(|case| case.kind == *kind && case.rule == rule) {
                missing.push(format!("{kind:?} {rule} has no case"));
            }
        }
    }
    tell(&missing);
    let goal = format!("= {all}");
    Figure::new("rules of the schemas with a case of their own", all - missing.len(), goal, missing.is_empty())
}

/// A field that nobody knows, at every level.
async fn strangers(admin: &Door, definitions: &BTreeMap<Kind, Value>) -> anyhow::Result<Figure> {
    let (mut all, mut faults, mut ignored) = (0, Vec::new(), 0);
    for (kind, definition) in definitions {
        for level in schema::levels(definition, &kind.good()) {
            all += 1;
            let mut object = kind.good();
            object["metadata"]["name"] = json!("wrong");
            let Some(Value::Object(place)) = object.pointer_mut(&level) else { continue };
            place.insert("surprise".to_owned(), json!(true));
            let words = level.trim_start_matches('/').split('/');
            let dotted = words.fold(String::new(), |path, word| match word.parse::<usize>() {
                Ok(number) => format!("{path}[{number}]"),
                Err(_) if path.is_empty() => word.to_owned(),
                Err(_) => format!("{path}.{word}"),
            });
            let wanted = format!("unknown field \"{dotted}.surprise\"");
            let list = path("sluice.dev", *kind);
            match admin.create(&format!("{list}?dryRun=All&fieldValidation=Strict"), &object).await? {
                Err(refused) if refused.message.contains(&wanted) => {}
                other => faults.push(format!("{wanted}: {other:?}")),
            }
            let loose = admin.create(&format!("{list}?dryRun=All&fieldValidation=Ignore"), &object).await?;
            ignored += usize::from(loose.is_ok());
        }
    }
    tell(&faults);
    let figure =
        Figure::new("unknown fields refused by name", all - faults.len(), format!("= {all}"), faults.is_empty());
    Ok(figure.control(format!("{ignored} of {all} taken without strict validation"), ignored == all))
}

/// A quota that names a tenant which its namespace does not belong to.
async fn tenants_of_others(admin: &Door) -> anyhow::Result<Figure> {
    let quota = |tenant: &str| {
        let mut object = Kind::Quota.good_of(tenant);
        object["metadata"]["name"] = json!("wrong");
        object
    };
    let named = |refused: &Refused| refused.message.contains("spec.tenant: namespace team-a does not belong");
    let list = format!("{}?dryRun=All&fieldValidation=Strict", path("sluice.dev", Kind::Quota));
    let mut right = 0;
    for (tenant, taken) in [("beta", false), ("acme", true)] {
        let answer = admin.create(&list, &quota(tenant)).await?;
        right += i64::from(answer.as_ref().map_or_else(|refused| !taken && named(refused), |_| taken));
    }
    let binding = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings/sluice-quota-tenant";
    let held = made(admin.get(binding).await?)?;
    made(admin.delete(binding).await?)?;
    let mut admitted = false;
    for _ in 0..100 {
        // The API server takes note of it a moment later.
        admitted = admin.create(&list, &quota("beta")).await?.is_ok();
        if admitted {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    let again = json!({ "apiVersion": held["apiVersion"], "kind": held["kind"], "spec": held["spec"],
        "metadata": { "name": held["metadata"]["name"] } });
    made(admin.create("/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings", &again).await?)?;
    for _ in 0..100 {
        // What follows finds the rules as they were.
        if admin.create(&list, &quota("beta")).await?.as_ref().is_err_and(named) {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    let figure = Figure::exactly("quotas of a tenant refused in another's namespace, taken in its own", right, 2);
    Ok(figure.control("without the policy the other's is taken", admitted))
}

/// RFC 7396.
fn merge(object: &mut Value, change: &Value) {
    let Value::Object(changes) = change else {
        if !change.is_null() {
            *object = change.clone();
        }
        return;
    };
    if !object.is_object() {
        *object = json!({});
    }
    for (key, change) in changes {
        if change.is_null() {
            object.as_object_mut().map(|fields| fields.remove(key));
        } else {
            merge(&mut object[key.as_str()], change);
        }
    }
}

fn tell(faults: &[String]) {
    for fault in faults {
        eprintln!("fault: {fault}");
    }
}
