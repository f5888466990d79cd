//! Changes that the API server refuses, sent in earnest to objects that the operator has carried over: they change
//! nothing in Sluice.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use sluice_proto::v1;

use super::world::World;
use super::{User, refusals};
use crate::figure::Figure;
use crate::random::request_id;
use crate::wait_for;

/// How long the operator may take to carry over a right change.
const TAKES: Duration = Duration::from_secs(60);

/// Sends them in the name of a tenant that the namespace of wrong manifests acts for.
pub(super) fn refused(world: &World, tenant: &str) -> anyhow::Result<Figure> {
    let kubectl = world.kubectl(User::Admin);
    let typed = |words: &[&str]| kubectl.well(&[words, &["-n", refusals::NAMESPACE]].concat());
    let full = format!("tenants/{tenant}");
    let (digest, size) = material(world, &full)?;
    // The quota first: nothing of the job's is billed, as nothing covers it.
    for (kind, object) in ["gq/good", "gj/good"].into_iter().zip(refusals::held_back(tenant, &digest, size)) {
        kubectl.fed(&["apply", "-n", refusals::NAMESPACE, "-f", "-"], &object.to_string())?.well()?;
        typed(&["wait", "--for=condition=Accepted", kind, "--timeout=60s"])?;
    }
    let before = rows(world, &full)?;
    let kubeconfig = world.cluster.kubeconfig(User::Admin);
    let sent = world.system.block(refusals::updates_in_earnest(&kubeconfig))?;
    let after = rows(world, &full)?;
    typed(&["patch", "gq", "good", "--type=merge", "-p", "{\"spec\":{\"policy\":\"Refuse\"}}"])?;
    let right = wait_for("a right change", TAKES, || {
        let changed = differ(&after, &rows(world, &full)?);
        Ok((changed > 0).then_some(changed))
    });
    typed(&["delete", "gj/good", "--timeout=60s"])?;
    typed(&["delete", "gq/good", "--timeout=60s"])?;
    let metric = format!(
        "ledger entries and versions of quotas and jobs changed by {sent} wrong changes sent in earnest to what was \
         carried over"
    );
    let figure = Figure::exactly(&metric, i64::try_from(differ(&before, &after))?, 0);
    let control = format!("a right one changes {}", right.as_ref().unwrap_or(&0));
    Ok(figure.control(control, right.is_ok()).peer(&format!("{} versions were there", before.len())))
}

/// What the job needs in its project before it is taken.
fn material(world: &World, tenant: &str) -> anyhow::Result<(String, u64)> {
    let (client, project) = (world.client()?, format!("{tenant}/projects/{}", refusals::NAMESPACE));
    let secret = v1::PutSecretRequest {
        request_id: request_id(),
        parent: project.clone(),
        secret_id: "token".to_owned(),
        value: b"nobody's".to_vec().into(),
    };
    world.system.block(async { client.tenants().put_secret(secret).await })?;
    let folder = world.system.scratch().join("updates");
    fs::create_dir_all(&folder)?;
    fs::write(folder.join("train"), "")?;
    world.system.block(client.upload_folder(&project, &folder))
}

/// What there is of a tenant, each with its version.
fn rows(world: &World, tenant: &str) -> anyhow::Result<BTreeSet<String>> {
    let client = world.client()?;
    let request = v1::ListQuotasRequest { tenant: tenant.to_owned() };
    let quotas = world.system.block(async { client.money().list_quotas(request).await })?.into_inner().quotas;
    let jobs = world.system.block(client.list_jobs_of(tenant))?;
    anyhow::ensure!(!quotas.is_empty() && !jobs.is_empty(), "nothing of {tenant} was carried over");
    let mut all: BTreeSet<_> = quotas.iter().map(|quota| format!("{} {}", quota.name, quota.etag)).collect();
    all.extend(jobs.iter().map(|job| format!("{} {}", job.name, job.etag)));
    all.extend(world.system.block(client.list_transfers(tenant))?.into_iter().map(|transfer| transfer.id));
    Ok(all)
}

fn differ(before: &BTreeSet<String>, after: &BTreeSet<String>) -> usize {
    before.symmetric_difference(after).count()
}
