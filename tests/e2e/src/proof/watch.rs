//! Looks at a job, as often as a moment of a move needs it.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use sluice_proto::v1;

use crate::checker;
use crate::client::PROJECT;
use crate::figure::Figure;
use crate::system::System;
use crate::wait_for;

const LOOK: Duration = Duration::from_millis(20);
const PATIENCE: Duration = Duration::from_secs(180);
/// How long bills may take to be settled.
const SETTLES: Duration = Duration::from_secs(60);

/// A job's site by its short name.
pub(super) fn site_of(job: &v1::Job) -> &str {
    job.site.trim_start_matches("sites/")
}

/// The phase of a job's newest migration.
pub(super) fn phase_of(job: &v1::Job) -> &str {
    job.migration.as_ref().map_or("", |migration| migration.phase.as_str())
}

impl System {
    /// Looks at a job until `done` says so. A job that ended without is an error, and so is one that takes minutes.
    pub(super) fn watch(&self, id: &str, what: &str, done: impl Fn(&v1::Job) -> bool) -> anyhow::Result<v1::Job> {
        let client = self.client()?;
        let begin = Instant::now();
        let name = format!("{PROJECT}/jobs/{id}");
        loop {
            let request = v1::GetJobRequest { name: name.clone() };
            let job = self.block(async { client.jobs().get_job(request).await })?.into_inner();
            if done(&job) {
                return Ok(job);
            }
            let state = job.state();
            let over = matches!(state, v1::JobState::Succeeded | v1::JobState::Failed | v1::JobState::Cancelled);
            let told =
                || format!("{id} is {} at step {}: {} {}", state.as_str_name(), job.step, job.reason, job.message);
            anyhow::ensure!(!over && begin.elapsed() < PATIENCE, "{what} did not come: {}", told());
            std::thread::sleep(LOOK);
        }
    }

    /// Waits until a job succeeded.
    pub(super) fn success(&self, id: &str) -> anyhow::Result<v1::Job> {
        self.watch(id, "success", |job| job.state() == v1::JobState::Succeeded)
    }

    /// The run of a training job, from the step logs of all its attempts.
    pub(super) fn lineage_of(&self, id: &str) -> anyhow::Result<checker::Lineage> {
        checker::lineage(checker::read_steps(&self.kept(), &self.leases_of(id)?)?.values())
    }

    /// All leases that a job ever had, in order.
    pub(super) fn leases_of(&self, id: &str) -> anyhow::Result<Vec<String>> {
        let receipt = self.cli().json(&["receipt", id])?;
        let leases = receipt["leases"].as_array().context("leases")?;
        Ok(leases.iter().filter_map(|row| row["lease"].as_str().map(str::to_owned)).collect())
    }
}

/// The separate checker's word on the bills of all jobs, once they are final.
pub(super) fn bills(system: &System) -> anyhow::Result<Figure> {
    let (client, cli) = (system.client()?, system.cli());
    let jobs = system.block(client.list_jobs_of("tenants/-"))?;
    for job in &jobs {
        wait_for(&format!("the final receipt of {}", job.name), SETTLES, || {
            let receipt = cli.json(&["receipt", &job.name])?;
            Ok((receipt["final"] == true).then_some(()))
        })?;
    }
    let verdict = system.block(checker::judge_jobs(&client, &system.kept(), &jobs))?;
    verdict.findings.iter().for_each(|finding| eprintln!("{finding}"));
    eprintln!("{:?}", verdict.figures);
    let faults = i64::try_from(verdict.findings.len()).unwrap_or(i64::MAX);
    let folder = system.scratch().join("less");
    let blind = system.block(checker::judge_blind(&client, &system.kept(), &jobs, &folder))?;
    let metric = format!("faults in {} receipts, recomputed from journals and files of jobs", jobs.len());
    Ok(Figure::exactly(&metric, faults, 0).control(format!("without the journal of one node: {blind}"), blind > 0))
}
