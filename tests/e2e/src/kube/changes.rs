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
/// A job that is not in its phase after so many looks, over all kills and the jobs before it, never is.
const LOOKS: u32 = 2400;
/// Phases of a job that runs, or has: it may have been stopped again between two looks, or have ended.
const RUNS: [&str; 4] = ["Running", "Suspending", "Suspended", "Succeeded"];
/// Those of one that was stopped. One that ended by itself was not.
const STOPS: [&str; 2] = ["Suspending", "Suspended"];
/// Those that a job never leaves.
const ENDS: [&str; 3] = ["Succeeded", "Failed", "Cancelled"];
/// How many tenants have a job that runs while their quotas are lowered.
const LONG: usize = 4;
/// The name of that job, and of the quota.
pub(super) const LASTS: &str = "lasts";
const SHARED: &str = "cpu";

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
    /// Wait until a job is in one of these phases.
    Await(&'static [&'static str]),
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
        let others = 2 * tenants.len() + tenants.len().min(LONG);
        for number in 0..objects.saturating_sub(others) {
            let Some(tenant) = tenants.get(number % tenants.len()) else { continue };
            let namespace = format!("ns-{tenant}");
            let change = if number % 2 == 0 { quota(number, step) } else { job(number, step) };
            changes.extend(change.map(|(plural, act)| {
                let name = if plural == "gpuquotas" { format!("q{number}") } else { format!("j{number}") };
                Change { namespace, plural, name, act }
            }));
        }
        changes.extend(tenants.iter().enumerate().filter_map(|(number, tenant)| shared(number, tenant, step)));
        // In each step, so that no object is changed before it is made.
        changes.shuffle(&mut random);
        all.extend(changes);
        if step == 0 {
            all.extend(lowered(tenants));
        }
    }
    all
}

/// Whether a tenant lends of the class that jobs run on, and refuses to be lowered below its use; the others borrow what they
/// use, and are drained.
pub(super) const fn lends(number: usize) -> bool {
    number.is_multiple_of(2)
}

/// The quota of the class that all jobs run on: of every tenant, or those without one would run nothing. In the end it covers
/// all that runs, so that how jobs end does not depend on when it was lowered.
fn shared(number: usize, tenant: &str, step: usize) -> Option<Change> {
    let whole = |nominal: &str, borrow: &str, lend: &str, policy: &str| {
        json!({ "apiVersion": "sluice.dev/v1alpha1", "kind": "GpuQuota", "metadata": { "name": SHARED },
            "spec": { "deviceClass": "cpu", "site": "a", "nominal": nominal, "borrow": borrow, "lend": lend,
                "policy": policy } })
    };
    let act = match (step, lends(number)) {
        (0, true) => Act::Create(whole("600m", "0", "300m", "Refuse")),
        (0, false) => Act::Create(whole("0", "300m", "0", "Drain")),
        (2, true) => Act::Merge(json!({ "spec": { "nominal": "700m", "lend": "400m" } })),
        (2, false) => Act::Merge(json!({ "spec": { "nominal": "100m", "borrow": "400m" } })),
        _ => return None,
    };
    Some(Change { namespace: format!("ns-{tenant}"), plural: "gpuquotas", name: SHARED.to_owned(), act })
}

/// What a job that lasts does. A borrower's first attempt ends only by being stopped, however long kills delay the lowering;
/// the attempt after it ends by itself.
fn lasts(number: usize) -> Value {
    if lends(number) {
        return json!(["/bin/sleep", "60"]);
    }
    json!(["/bin/sh", "-c", "[ \"$SLUICE_GENERATION\" = 1 ] && exec sleep 36000; exec sleep 60"])
}

/// Jobs that last, of lenders and borrowers, and once they run the lowering of all quotas of their class: below what lenders
/// use and lend, and to nothing for borrowers. It goes on when those have been stopped.
fn lowered(tenants: &[String]) -> Vec<Change> {
    let job = |number| {
        json!({ "apiVersion": "sluice.dev/v1alpha1", "kind": "GpuJob", "metadata": { "name": LASTS },
            "spec": { "command": lasts(number), "priority": 100,
                "resources": { "share": "100m", "memory": "16Mi" } } })
    };
    let change = |tenant: &String, plural, name: &str, act| Change {
        namespace: format!("ns-{tenant}"),
        plural,
        name: name.to_owned(),
        act,
    };
    let lasting = || tenants.iter().take(LONG);
    let made = lasting().enumerate();
    let made = made.map(|(number, tenant)| change(tenant, "gpujobs", LASTS, Act::Create(job(number))));
    let run = lasting().map(|tenant| change(tenant, "gpujobs", LASTS, Act::Await(&RUNS)));
    let borrowers = lasting().enumerate().filter(|(number, _)| !lends(*number));
    let stop = borrowers.map(|(_, tenant)| change(tenant, "gpujobs", LASTS, Act::Await(&STOPS)));
    let lowered = tenants.iter().enumerate().map(|(number, tenant)| {
        let to = if lends(number) { json!({ "nominal": "50m", "lend": "0" }) } else { json!({ "borrow": "0" }) };
        change(tenant, "gpuquotas", SHARED, Act::Merge(json!({ "spec": to })))
    });
    made.chain(run).chain(lowered).chain(stop).collect()
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
            Act::Await(phases) => comes_to(door, &change, phases).await?,
        }
        tokio::time::sleep(pace).await;
    }
    Ok(())
}

async fn create(door: &Door, change: &Change, object: &Value) -> anyhow::Result<()> {
    // One that is there already was made by the try whose answer was lost.
    until(change, &[200, 409], async || door.create(&change.path(), object).await).await
}

/// Looks at a job until it is in one of these phases.
async fn comes_to(door: &Door, change: &Change, phases: &[&str]) -> anyhow::Result<()> {
    let mut last = String::new();
    for _ in 0..LOOKS {
        match door.get(&change.one()).await {
            Ok(Ok(job)) => last = job["status"]["phase"].as_str().unwrap_or("no phase").to_owned(),
            Ok(Err(refused)) => last = refused.message,
            Err(error) => last = format!("{error:#}"),
        }
        if phases.contains(&last.as_str()) {
            return Ok(());
        }
        if ENDS.contains(&last.as_str()) {
            break;
        }
        tokio::time::sleep(PAUSE).await;
    }
    anyhow::bail!("{}/{} is in none of {phases:?}: {last}", change.namespace, change.name)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotas_are_lowered_under_jobs_that_run_and_raised_again() {
        let tenants = tenants(40);
        let script = script(40, &tenants, 1);
        assert_eq!(format!("{script:?}"), format!("{:?}", super::script(40, &tenants, 1)));
        let made = script.iter().filter(|change| matches!(change.act, Act::Create(_))).count();
        assert_eq!(made + tenants.len(), 40);
        for tenant in &tenants {
            let place = |name: &str, is: fn(&Act) -> bool| {
                let own = |change: &Change| change.namespace == format!("ns-{tenant}") && change.name == name;
                let places = script.iter().enumerate().filter(|(_, change)| own(change) && is(&change.act));
                places.map(|(place, _)| place).collect::<Vec<_>>()
            };
            let set = place(SHARED, |act| matches!(act, Act::Create(_)));
            let waits = place(LASTS, |act| matches!(act, Act::Await(_)));
            let merged = place(SHARED, |act| matches!(act, Act::Merge(_)));
            assert_eq!((set.len(), merged.len()), (1, 2), "{tenant}");
            assert!(set[0] < waits[0] && waits[0] < merged[0], "{tenant}");
            // A borrower's job has stopped before anything is raised.
            assert!(waits[1..].iter().all(|stops| merged[0] < *stops && *stops < merged[1]), "{tenant}");
            assert_eq!(waits.len(), if tenant == "t0" { 1 } else { 2 });
        }
    }
}
