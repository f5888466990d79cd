//! Replicas on a node that is drained: another one begins, the first one goes once it serves or when the deadline is over.

use sluice_lifecycle::UserCommand;
use sluice_lifecycle::model::{Goal, JobState};
use sluice_types::{EndpointId, JobId, Nanos, NodeId};

use super::support::Bench;
use super::{begin, endpoint, fail, let_go, replicas, settle};

/// An endpoint whose only replica serves at a node.
fn serving(bench: &mut Bench) -> (EndpointId, JobId, NodeId) {
    let endpoint = endpoint(bench, 1, 1);
    settle(bench, endpoint);
    let job = replicas(bench, endpoint)[0];
    (endpoint, job, node_of(bench, job))
}

fn drain(bench: &mut Bench, node: NodeId, deadline: Nanos) {
    let reason = "care".to_owned();
    bench.user(UserCommand::SetNode { node, cordoned: true, draining: Some(deadline), reason }).unwrap();
}

fn node_of(bench: &Bench, job: JobId) -> NodeId {
    bench.state.lease(bench.task(job).lease).unwrap().device.node
}

#[test]
fn a_drained_node_hands_its_replicas_over() {
    let mut bench = Bench::new();
    let (endpoint, job, node) = serving(&mut bench);
    let key = bench.task(job);
    bench
        .user(UserCommand::SetNode { node, cordoned: false, draining: Some(Nanos::ZERO), reason: "care".to_owned() })
        .unwrap();
    bench.pass(1);
    let wish = bench.state.wishes(node).remove(0);
    assert_eq!(wish.goal, Goal::Stop);
    bench.end(key);
    settle(&mut bench, endpoint);
    assert_eq!(bench.job(job).state, JobState::Running);
    assert_ne!(bench.state.lease(bench.task(job).lease).unwrap().device.node, node);
    assert_eq!(bench.job(job).failures, 0);
}

#[test]
fn a_replica_on_a_drained_node_serves_until_another_serves_in_its_place() {
    let mut bench = Bench::new();
    let (endpoint, job, node) = serving(&mut bench);
    drain(&mut bench, node, Nanos::from_secs(60));
    // Another one begins at once, and is not one too many; the first serves on.
    let both = replicas(&bench, endpoint);
    let [kept, other] = both[..] else { panic!("{both:?}") };
    assert_eq!((kept, bench.job(other).replaces), (job, Some(job)));
    bench.plan();
    bench.pass(5);
    assert_eq!(replicas(&bench, endpoint), both);
    assert_eq!(bench.state.wishes(node).remove(0).goal, Goal::Run);
    // Once the other serves, it goes, without waiting for a tick.
    begin(&mut bench, other);
    assert_eq!(replicas(&bench, endpoint), [other]);
    assert_eq!((bench.job(job).state, bench.state.wishes(node).remove(0).goal), (JobState::Cancelling, Goal::Stop));
    assert_ne!(node_of(&bench, other), node);
    let_go(&mut bench, endpoint);
    bench.pass(30);
    assert_eq!((replicas(&bench, endpoint), bench.job(other).failures), (vec![other], 0));
    bench.check_world();
}

#[test]
fn behind_the_deadline_of_a_drain_a_replica_stops_where_nothing_else_serves() {
    // The other has a place, and is about to serve: it stays. It has none: the first one takes what comes.
    for placed in [true, false] {
        let mut bench = Bench::new();
        let (endpoint, job, node) = serving(&mut bench);
        drain(&mut bench, node, Nanos::from_secs(3));
        let other = replicas(&bench, endpoint)[1];
        if placed {
            bench.plan();
        }
        bench.pass(1);
        assert_eq!(replicas(&bench, endpoint), [job, other]);
        bench.pass(3);
        assert_eq!(bench.state.wishes(node).remove(0).goal, Goal::Stop);
        assert_eq!(replicas(&bench, endpoint), [if placed { other } else { job }]);
        let key = bench.task(job);
        bench.end(key);
        settle(&mut bench, endpoint);
        let left = replicas(&bench, endpoint)[0];
        assert_eq!((left == other, bench.job(left).state), (placed, JobState::Running));
        assert_ne!(node_of(&bench, left), node);
        assert_eq!(bench.job(left).failures, 0);
        bench.check_world();
    }
}

#[test]
fn a_drain_that_is_taken_back_leaves_the_replica_and_no_second() {
    let mut bench = Bench::new();
    let (endpoint, job, node) = serving(&mut bench);
    drain(&mut bench, node, Nanos::from_secs(60));
    bench.user(UserCommand::SetNode { node, cordoned: false, draining: None, reason: String::new() }).unwrap();
    bench.pass(1);
    assert_eq!(replicas(&bench, endpoint), [job]);
    assert_eq!(bench.job(job).state, JobState::Running);
    // One that nobody needs is not replaced.
    drain(&mut bench, node, Nanos::from_secs(60));
    bench.user(UserCommand::DeleteEndpoint(endpoint)).unwrap();
    assert_eq!(replicas(&bench, endpoint), []);
}

#[test]
fn one_that_began_for_another_that_stayed_is_one_like_any_other() {
    let mut bench = Bench::new();
    let endpoint = endpoint(&mut bench, 1, 3);
    settle(&mut bench, endpoint);
    let job = replicas(&bench, endpoint)[0];
    let node = node_of(&bench, job);
    drain(&mut bench, node, Nanos::from_secs(60));
    let other = replicas(&bench, endpoint)[1];
    // The first one ends by itself, and takes up a place that is not drained.
    fail(&mut bench, job);
    bench.pass(30);
    settle(&mut bench, endpoint);
    assert_eq!(replicas(&bench, endpoint), [job, other]);
    assert_eq!([job, other].map(|job| bench.job(job).state), [JobState::Running; 2]);
    assert_eq!(bench.job(other).replaces, None);
    // Both serve for themselves: whoever is where is drained next serves until another one does.
    let next = node_of(&bench, job);
    assert_ne!(next, node);
    drain(&mut bench, next, Nanos::from_secs(60));
    let named: Vec<_> = replicas(&bench, endpoint).into_iter().filter_map(|job| bench.job(job).replaces).collect();
    let there: Vec<_> = [job, other].into_iter().filter(|job| node_of(&bench, *job) == next).collect();
    assert_eq!(named, there);
    assert_eq!([job, other].map(|job| bench.job(job).state), [JobState::Running; 2]);
    bench.check_world();
}
