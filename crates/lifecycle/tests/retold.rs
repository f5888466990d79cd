//! What the scheduler is told of waiting jobs when something changes that is in no row of theirs, and at what cost.

mod support;

use sluice_lifecycle::model::{BudgetPolicy, JobState};
use sluice_lifecycle::{NodeReport, UserCommand};
use sluice_types::{Digest, JobId, SiteId};
use support::Bench;

/// Fills all eight devices and leaves `waiting` jobs without one.
fn crowded(waiting: usize) -> (Bench, Vec<JobId>) {
    let mut bench = Bench::new();
    let jobs: Vec<_> = (0..8 + waiting).map(|_| bench.submit(Some(60))).collect();
    bench.plan();
    let waits = jobs.into_iter().filter(|id| bench.job(*id).state == JobState::Pending).collect::<Vec<_>>();
    assert_eq!(waits.len(), waiting);
    (bench, waits)
}

#[test]
fn nodes_that_come_and_close_rewrite_no_waiting_job() {
    let (mut bench, _) = crowded(3);
    let node = bench.nodes[0].0;
    bench.hello(node);
    assert!(bench.rows.jobs.is_empty() && bench.rows.nodes.len() == 1, "{:?}", bench.rows.jobs);
    bench.check_world();
    let close = UserCommand::SetNode { node, cordoned: true, draining: None, reason: String::new() };
    bench.user(close).unwrap();
    assert!(bench.rows.jobs.is_empty());
    bench.check_world();
}

#[test]
fn a_budget_or_policy_is_told_to_the_jobs_that_it_covers_without_writing_them() {
    let (mut bench, waits) = crowded(3);
    bench.budget(1000, 3600, BudgetPolicy::AdmissionOnly);
    assert_eq!((bench.rows.jobs.len(), &bench.rows.retold), (0, &waits));
    bench.check_world();
    let sites = vec![bench.sites[1]];
    bench.user(UserCommand::UpdateProject { project: bench.project, networks: Vec::new(), sites }).unwrap();
    assert_eq!((bench.rows.jobs.len(), &bench.rows.retold), (0, &waits));
    bench.check_world();
    // The next period has an account of its own.
    bench.skip(3600);
    bench.check_world();
}

#[test]
fn a_job_whose_site_comes_back_may_start_from_its_checkpoint_there_again() {
    let mut bench = Bench::new();
    let job = bench.run(None);
    let key = bench.task(job);
    let node = bench.state.lease(key.lease).unwrap().device.node;
    let lost = bench.state.node(node).unwrap().site;
    let other = bench.sites.iter().copied().find(|site| *site != lost).unwrap();
    let seal = |bench: &Bench, step, manifest| NodeReport::Sealed {
        key,
        step,
        manifest: Digest::from_bytes([manifest; 32]),
        size: 1,
        captured: bench.clock(),
        next_window: 0,
    };
    // The older checkpoint is at both sites, the newer one only where the job runs.
    bench.node_of(key, seal(&bench, 1, 1));
    let copied = |site: SiteId| sluice_lifecycle::Command::Copied { site, manifest: Digest::from_bytes([1; 32]) };
    bench.command(copied(other)).unwrap();
    bench.check_world();
    bench.silence(node, 20);
    assert_eq!(bench.job(job).state, JobState::Pending);
    bench.check_world();
    bench.hello(node);
    assert_eq!((bench.rows.jobs.len(), bench.rows.retold.as_slice()), (0, [job].as_slice()));
    bench.check_world();
}
