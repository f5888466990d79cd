//! What is left of objects that are gone: somebody may have taken the finalizer away, or an object came and went while a
//! request for it was under way. Jobs are ended, quotas taken back.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use sluice_proto::v1;

use super::convert::goes_on;
use super::gate::{Said, said, timed};
use super::{Context, Error};

/// How often jobs without an object are looked for. What is known of them costs no call.
const JOBS: Duration = Duration::from_secs(5);
/// How often quotas are: one call for every tenant.
const QUOTAS: Duration = Duration::from_secs(30);
/// How long an object must have been gone.
const ORPHAN: Duration = Duration::from_secs(15);
const PAGE: i32 = 1000;

/// Since when objects are gone that something is left of.
#[derive(Debug, Default)]
struct Missing(BTreeMap<String, Instant>);

impl Missing {
    /// The uids of objects that are gone for long enough, of all that something is left of. `here` are those that are there.
    fn overdue(&mut self, left: &BTreeSet<String>, here: &BTreeSet<String>, now: Instant) -> BTreeSet<String> {
        self.0.retain(|uid, _| left.contains(uid) && !here.contains(uid));
        for uid in left.difference(here) {
            self.0.entry(uid.clone()).or_insert(now);
        }
        let since = self.0.iter().filter(|(_, since)| now.duration_since(**since) >= ORPHAN);
        since.map(|(uid, _)| uid.clone()).collect()
    }
}

/// Ends jobs whose objects are gone. `here` are the uids of all GpuJobs.
pub(super) async fn jobs(context: &Context, here: impl Fn() -> BTreeSet<String>) {
    let mut missing = Missing::default();
    loop {
        tokio::time::sleep(JOBS).await;
        let live = context.jobs.live();
        let left = live.iter().map(|(uid, _)| uid.clone()).collect();
        let overdue = missing.overdue(&left, &here(), Instant::now());
        for (uid, job) in to_end(&live, &overdue) {
            tracing::warn!(job = job.name, "its GpuJob is gone: it is ended");
            if let Err(error) = super::jobs::order("cancel", (uid, 0), job, context).await {
                tracing::info!(%error, "tries again");
            }
        }
    }
}

/// The jobs of overdue objects that nobody has told to end yet.
fn to_end<'a>(
    live: &'a [(String, v1::Job)],
    overdue: &BTreeSet<String>,
) -> impl Iterator<Item = &'a (String, v1::Job)> {
    live.iter().filter(|(uid, job)| overdue.contains(uid) && goes_on(job.state()))
}

/// Takes quotas back whose objects are gone. `here` are the uids of all GpuQuotas.
pub(super) async fn quotas(context: &Context, here: impl Fn() -> BTreeSet<String>) {
    let mut missing = Missing::default();
    loop {
        tokio::time::sleep(QUOTAS).await;
        let rows = match managed(context).await {
            Ok(rows) => rows,
            Err(error) => {
                tracing::info!(%error, "looks for quotas again");
                continue;
            }
        };
        let left = rows.iter().map(|(uid, _)| uid.clone()).collect();
        let overdue = missing.overdue(&left, &here(), Instant::now());
        for (uid, row) in rows.iter().filter(|(uid, _)| overdue.contains(uid)) {
            tracing::warn!(quota = row.name, "its GpuQuota is gone: it is taken back");
            match super::quotas::delete(row, (uid, 0), context).await {
                Ok(Said::Yes(_)) => {}
                Ok(Said::No(refused)) => tracing::info!(refused.reason, refused.message, "tries again"),
                Err(error) => tracing::info!(%error, "tries again"),
            }
        }
    }
}

/// All quotas that objects of this cluster manage, with the uids of those.
async fn managed(context: &Context) -> Result<Vec<(String, v1::Quota)>, Error> {
    let (mut all, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = v1::ListTenantsRequest { page_size: PAGE, page_token };
        let page = said(context.gate.tenants().list_tenants(timed(request)).await)?.found()?.unwrap_or_default();
        for tenant in page.tenants {
            let request = v1::ListQuotasRequest { tenant: tenant.name };
            let rows = said(context.gate.money().list_quotas(timed(request)).await)?.found()?.unwrap_or_default();
            all.extend(rows.quotas.into_iter().filter_map(|row| {
                let uid = context.cluster.object(&row.manager)?.to_owned();
                Some((uid, row))
            }));
        }
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return Ok(all);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_of_an_object_is_swept_when_it_is_gone_for_long() {
        let set = |uids: &[&str]| uids.iter().map(|uid| (*uid).to_owned()).collect::<BTreeSet<_>>();
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        let mut missing = Missing::default();
        let left = set(&["here", "gone", "late"]);
        assert_eq!(missing.overdue(&left, &set(&["here"]), at(0)), set(&[]));
        assert_eq!(missing.overdue(&left, &set(&["here"]), at(14)), set(&[]));
        // One was told late: it is there, and its time begins anew.
        assert_eq!(missing.overdue(&left, &set(&["here", "late"]), at(16)), set(&["gone"]));
        assert_eq!(missing.overdue(&left, &set(&["here"]), at(20)), set(&["gone"]));
        assert_eq!(missing.overdue(&set(&["here"]), &set(&["here"]), at(60)), set(&[]), "nothing is left of them");
    }

    #[test]
    fn a_job_without_an_object_is_told_to_end_once() {
        use v1::JobState as State;
        let job = |uid: &str, state: State| (uid.to_owned(), v1::Job { state: state.into(), ..v1::Job::default() });
        let live = [job("gone", State::Running), job("told", State::Cancelling), job("here", State::Running)];
        let overdue = BTreeSet::from(["gone".to_owned(), "told".to_owned()]);
        assert_eq!(to_end(&live, &overdue).map(|(uid, _)| uid.as_str()).collect::<Vec<_>>(), ["gone"]);
    }
}
