//! Whose fault an end is: a job answers for its own failures, a host for what it could not do.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use sluice_lifecycle::model::{JobState, TaskEnd};
use sluice_lifecycle::{Command, NodeReport, UserCommand};
use sluice_types::{JobId, NodeId, Reason};
use support::Bench;

/// The job's task ends before it ran, for this reason; returns the node.
fn fails(bench: &mut Bench, job: JobId, reason: Reason) -> NodeId {
    let key = bench.task(job);
    let node = bench.state.lease(key.lease).unwrap().device.node;
    let end = TaskEnd {
        exit_code: None,
        signal: 0,
        reason: Some(reason),
        message: "no space left on device".to_owned(),
        at_checkpoint: false,
        outputs: None,
        outputs_manifest: None,
    };
    bench.node_of(key, NodeReport::Ended { key, end, windows: 0, step: 0 });
    node
}

#[test]
fn what_the_host_could_not_do_is_a_loss_and_no_failure_of_the_job() {
    let mut bench = Bench::new();
    for reason in [Reason::HostFailed, Reason::NotEnforceable, Reason::NoFreeShare, Reason::DataUnreachable] {
        let job = bench.submit(Some(60));
        bench.plan();
        fails(&mut bench, job, reason);
        let row = bench.job(job);
        assert_eq!((row.state, row.failures, row.losses), (JobState::Pending, 0, 1), "{reason}");
        bench.user(UserCommand::Cancel(job, None)).unwrap();
    }
    // The job's own: its policy allows no retry.
    let job = bench.submit(Some(60));
    bench.plan();
    fails(&mut bench, job, Reason::StartFailed);
    let row = bench.rows.jobs.iter().find(|row| row.id == job).unwrap();
    assert_eq!((row.state, row.failures, row.losses), (JobState::Failed, 1, 0));
}

#[test]
fn a_host_that_fails_one_task_after_the_other_is_closed_until_an_admin_opens_it() {
    let mut bench = Bench::new();
    let job = bench.submit(Some(60));
    let mut seen = std::collections::BTreeMap::<NodeId, u32>::new();
    let closed = |bench: &Bench, node: NodeId| bench.state.node(node).unwrap().cordoned;
    // Both nodes fail it; each is closed with its third failure, and then it waits.
    for _ in 0..6 {
        bench.plan();
        let node = fails(&mut bench, job, Reason::HostFailed);
        let failed = seen.entry(node).or_default();
        *failed += 1;
        assert_eq!(closed(&bench, node), *failed == 3, "after {failed}");
    }
    bench.plan();
    assert_eq!(bench.job(job).reason, Some(Reason::NodesUnavailable));
    let node = *seen.keys().next().unwrap();
    let text = bench.state.node(node).unwrap().reason.clone();
    assert!(text.contains("3 tasks") && text.contains("no space left"), "{text}");
    // Opened again it begins anew.
    let open = UserCommand::SetNode { node, cordoned: false, draining: None, reason: String::new() };
    bench.user(open).unwrap();
    bench.plan();
    assert_eq!(fails(&mut bench, job, Reason::HostFailed), node);
    assert!(!closed(&bench, node));
}

#[test]
fn a_task_that_starts_clears_its_host() {
    let mut bench = Bench::new();
    for _ in 0..6 {
        let job = bench.submit(Some(60));
        bench.plan();
        let node = fails(&mut bench, job, Reason::HostFailed);
        bench.plan();
        let key = bench.task(job);
        let started = bench.clock();
        let metrics = std::collections::BTreeMap::new();
        bench.node_of(key, NodeReport::Running { key, started, step: 0, metrics, held: None });
        bench.end(key);
        assert!(!bench.state.node(node).unwrap().cordoned);
    }
}

#[test]
fn what_a_host_that_could_not_start_it_has_metered_is_credited() {
    for (reason, credited) in [(Reason::HostFailed, 1), (Reason::StartFailed, 0)] {
        let mut bench = Bench::new();
        let job = bench.submit(Some(60));
        bench.plan();
        bench.window(bench.task(job));
        fails(&mut bench, job, reason);
        let rows = &bench.rows.jobs;
        let row = rows.iter().find(|row| row.id == job).unwrap();
        assert_eq!(row.credited.units(), credited * support::WINDOW_COST, "{reason}");
    }
}

#[test]
fn nothing_is_placed_at_a_site_whose_vault_is_away_and_its_checkpoints_wait_for_it() {
    let mut bench = Bench::new();
    for (place, site) in bench.sites.clone().into_iter().enumerate() {
        bench.command(Command::VaultAddress { site, address: format!("vault-{place}:1") }).unwrap();
    }
    let job = bench.run(None);
    let at = |bench: &Bench, job| bench.state.attempt(bench.job(job).current.unwrap()).unwrap().site;
    let away = at(&bench, job);
    let there = *bench.sites.iter().find(|site| **site != away).unwrap();
    // It stops with its checkpoint at the site that is lost for now: there it waits.
    bench.user(UserCommand::Suspend(job, None)).unwrap();
    let key = bench.task(job);
    bench.stop_at_checkpoint(key, 7);
    bench.command(Command::VaultAway { site: away }).unwrap();
    bench.check_world();
    bench.user(UserCommand::Resume(job, None)).unwrap();
    let other = bench.submit(None);
    bench.plan();
    assert_eq!((bench.job(job).current, bench.job(job).reason), (None, Some(Reason::NodesUnavailable)));
    assert_eq!(at(&bench, other), there);
    bench.command(Command::VaultAddress { site: away, address: "vault:1".to_owned() }).unwrap();
    bench.check_world();
    bench.plan();
    assert_eq!(at(&bench, job), away);
}
