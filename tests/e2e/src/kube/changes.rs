//! What is done to objects: the same script for the same seed, so that two runs end alike.

use std::time::Duration;

use rand::SeedableRng as _;
use rand::seq::SliceRandom as _;
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

use super::door::Door;

/// After the API server did not answer, or said that it cannot now.
const PAUSE: Duration = Duration::from_millis(250);
/// An API server that is away for so long does not come back.
const TRIES: u32 = 600;

/// One change of one object.
#[derive(Debug, Clone)]
pub(super) struct Change {
    namespace: String,
    plural: &'static str,
    name: String,
    act: Act,
}

#[derive(Debug, Clone)]
enum Act {
    Create(Value),
    Merge(Value),
    Delete,
    /// Delete, wait until it is gone, and make it again.
    Replace(Value),
}

/// Tenants for so many objects.
pub(super) fn tenants(objects: usize) -> Vec<String> {
    (0..(objects / 50).clamp(2, 20)).map(|number| format!("t{number}")).collect()
}

/// Namespaces and Tenants.
pub(super) fn setting(tenants: &[String]) -> Value {
    let namespaces = tenants.iter().map(
        |tenant| json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": format!("ns-{tenant}") } }),
    );
    let bindings = tenants.iter().map(|tenant| {
        json!({ "apiVersion": "sluice.dev/v1alpha1", "kind": "Tenant", "metadata": { "name": tenant },
            "spec": { "namespaces": [{ "name": format!("ns-{tenant}"), "project": "p" }] } })
    });
    json!({ "apiVersion": "v1", "kind": "List", "items": namespaces.chain(bindings).collect::<Vec<_>>() })
}

/// All changes, in order.
pub(super) fn script(objects: usize, tenants: &[String], seed: u64) -> Vec<Change> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut all = Vec::new();
    for step in 0..3 {
        let mut changes = Vec::new();
        for number in 0..objects.saturating_sub(tenants.len()) {
            let Some(tenant) = tenants.get(number % tenants.len()) else { continue };
            let namespace = format!("ns-{tenant}");
            let change = if number % 2 == 0 { quota(number, step) } else { job(number, step) };
            changes.extend(change.map(|(plural, act)| {
                let name = if plural == "gpuquotas" { format!("q{number}") } else { format!("j{number}") };
                Change { namespace, plural, name, act }
            }));
        }
        // In each step, so that no object is changed before it is made.
        changes.shuffle(&mut random);
        all.extend(changes);
    }
    all
}

fn quota(number: usize, step: usize) -> Option<(&'static str, Act)> {
    let whole = |nominal: usize| {
        json!({ "apiVersion": "sluice.dev/v1alpha1", "kind": "GpuQuota", "metadata": { "name": format!("q{number}") },
            "spec": { "deviceClass": format!("class-{number}"), "nominal": format!("{nominal}m") } })
    };
    let act = match (step, number % 5) {
        (0, _) => Act::Create(whole((number % 7 + 1) * 100)),
        (1, _) => Act::Merge(json!({ "spec": { "nominal": format!("{}m", number * 3 % 11 * 250) } })),
        (_, 0) => Act::Delete,
        (_, 1) => Act::Replace(whole(777)),
        _ => Act::Merge(json!({ "spec": { "nominal": format!("{}m", number * 10), "policy": "Drain" } })),
    };
    Some(("gpuquotas", act))
}

fn job(number: usize, step: usize) -> Option<(&'static str, Act)> {
    let whole = |command: &[&str], suspend: bool| {
        json!({ "apiVersion": "sluice.dev/v1alpha1", "kind": "GpuJob", "metadata": { "name": format!("j{number}") },
            "spec": { "command": command, "suspend": suspend, "resources": { "share": "100m", "memory": "16Mi" } } })
    };
    let act = match (step, number % 5) {
        (0, 0 | 1) => Act::Create(whole(&["/bin/true"], false)),
        (0, 2) => Act::Create(whole(&["/bin/sh", "-c", "exit 3"], false)),
        (0, _) => Act::Create(whole(&["/bin/true"], true)),
        // The last kind stays suspended for ever.
        (1, 3) => Act::Merge(json!({ "spec": { "suspend": false } })),
        (2, 1) => Act::Delete,
        _ => return None,
    };
    Some(("gpujobs", act))
}

/// Does all of it, `pace` apart, whatever happens to the API server.
pub(super) async fn apply(door: &Door, script: Vec<Change>, pace: Duration) -> anyhow::Result<()> {
    for change in script {
        match &change.act {
            Act::Create(object) => create(door, &change, object).await?,
            Act::Merge(patch) => until(&change, &[200], async || door.merge(&change.one(), patch).await).await?,
            Act::Delete => until(&change, &[200, 404], async || door.delete(&change.one()).await).await?,
            Act::Replace(object) => {
                until(&change, &[200, 404], async || door.delete(&change.one()).await).await?;
                until(&change, &[404], async || door.get(&change.one()).await).await?;
                create(door, &change, object).await?;
            }
        }
        tokio::time::sleep(pace).await;
    }
    Ok(())
}

async fn create(door: &Door, change: &Change, object: &Value) -> anyhow::Result<()> {
    // One that is there already was made by the try whose answer was lost.
    until(change, &[200, 409], async || door.create(&change.path(), object).await).await
}

/// Asks until the answer is one of these; 200 is any success.
async fn until(
    change: &Change,
    wanted: &[u16],
    ask: impl AsyncFn() -> anyhow::Result<Result<Value, super::door::Refused>>,
) -> anyhow::Result<()> {
    let mut last = String::new();
    for _ in 0..TRIES {
        let code = match ask().await {
            Ok(Ok(_)) => 200,
            Ok(Err(refused)) => {
                last = refused.message;
                refused.code
            }
            Err(error) => {
                last = format!("{error:#}");
                0
            }
        };
        // An API server that has just begun does not know the whole kind: that is no word about the object.
        let unknown = code == 404 && !last.contains(&format!("\"{}\" not found", change.name));
        if wanted.contains(&code) && !unknown {
            return Ok(());
        }
        // An API server that has just begun refuses what a policy guards until it knows what the policy and its binding
        // rest on.
        let begins = last.contains("failed to configure policy") || last.contains("failed to configure binding");
        anyhow::ensure!(begins || !matches!(code, 400 | 422), "{}/{}: {last}", change.namespace, change.name);
        tokio::time::sleep(PAUSE).await;
    }
    anyhow::bail!("{}/{}: {last}", change.namespace, change.name)
}

impl Change {
    fn path(&self) -> String {
        format!("/apis/sluice.dev/v1alpha1/namespaces/{}/{}", self.namespace, self.plural)
    }

    fn one(&self) -> String {
        format!("{}/{}", self.path(), self.name)
    }
}
