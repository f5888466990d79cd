//! Laws of the world: incremental equals rebuilt, the same input gives the same output, nothing is lost or doubled.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use common::{Dice, Rows, any_job, any_lease, any_node, any_prices, build, funds, small};
use proptest::prelude::*;
use sluice_plan::{Delta, Limits, World, footprint};
use sluice_types::{JobId, LeaseId, NodeId};

fn any_delta(dice: &mut Dice) -> Delta {
    match dice.roll(0, 11) {
        0 | 1 => Delta::Node(any_node_with_id(dice)),
        2 => Delta::NodeGone(NodeId::from_raw(dice.roll(1, 6))),
        3 | 4 => {
            let id = dice.roll(1, 9);
            Delta::Lease(any_lease(dice, id))
        }
        5 => Delta::LeaseGone(LeaseId::from_raw(dice.roll(1, 9))),
        6..=8 => {
            let id = dice.roll(1, 9);
            Delta::Job(any_job(dice, id))
        }
        9 => Delta::JobGone(JobId::from_raw(dice.roll(1, 9))),
        10 => Delta::Account(funds(dice.roll(1, 2), dice.roll(0, 60) as i64)),
        _ => {
            let version = dice.roll(1, 9);
            Delta::Prices(any_prices(dice, version))
        }
    }
}

fn any_node_with_id(dice: &mut Dice) -> sluice_plan::NodeView {
    let id = dice.roll(1, 6);
    any_node(dice, id)
}

fn rebuilt(rows: &Rows, dice: &mut Dice) -> World {
    let mut deltas = rows.deltas();
    dice.shuffle(&mut deltas);
    build(&deltas, World::PATIENCE)
}

fn same_free(rows: &Rows, left: &World, right: &World) {
    for at in rows.devices() {
        assert_eq!(left.free_of(at), right.free_of(at), "{at:?}");
        assert!(left.free_of(at).is_some());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_world_advanced_by_deltas_equals_the_world_built_from_rows(seed: u64, steps in 1usize..120) {
        let mut dice = Dice::new(seed);
        let (mut rows, mut world) = (Rows::default(), World::new());
        for _ in 0..steps {
            let delta = any_delta(&mut dice);
            rows.apply(&delta);
            world.apply(&delta);
        }
        let mut again = rebuilt(&rows, &mut dice);
        prop_assert!(world == again);
        same_free(&rows, &world, &again);
        prop_assert_eq!(world.decide(Limits::NONE), again.decide(Limits::NONE));
    }

    #[test]
    fn decisions_that_are_refused_leave_no_trace(seed: u64, steps in 1usize..80) {
        let mut dice = Dice::new(seed);
        let (mut rows, mut world) = (Rows::default(), World::with_patience(u32::MAX));
        for step in 0..steps {
            let delta = any_delta(&mut dice);
            rows.apply(&delta);
            world.apply(&delta);
            if step % 7 == 0 {
                world.decide(Limits { placements: 2, examined: 6 });
            }
            if step % 5 == 0 {
                let id = JobId::from_raw(dice.roll(1, 9));
                world.explain(id);
            }
        }
        for id in 1..=9 {
            world.reject(JobId::from_raw(id));
        }
        prop_assert_eq!(world.in_flight(), 0);
        let mut again = rebuilt(&rows, &mut dice);
        prop_assert!(world == again);
        same_free(&rows, &world, &again);
        // The round under way is finished, then a whole one compared. Patience was tried, so let it not matter.
        for placement in world.decide(Limits::NONE).placements {
            world.reject(placement.job);
        }
        prop_assert_eq!(world.decide(Limits::NONE).placements, again.decide(Limits::NONE).placements);
    }

    #[test]
    fn the_same_rows_in_any_order_give_the_same_plan(seed: u64) {
        let mut dice = Dice::new(seed);
        let rows = small(&mut dice, 12);
        let mut left = rebuilt(&rows, &mut dice);
        let mut right = rebuilt(&rows, &mut dice);
        for id in 1..=12 {
            prop_assert_eq!(left.explain(JobId::from_raw(id)), right.explain(JobId::from_raw(id)));
        }
        prop_assert_eq!(left.decide(Limits::NONE), right.decide(Limits::NONE));
    }

    #[test]
    fn explaining_changes_nothing(seed: u64) {
        let mut dice = Dice::new(seed);
        let rows = small(&mut dice, 12);
        let (mut asked, mut silent) = (rows.world(1), rows.world(1));
        for _ in 0..4 {
            for id in 1..=12 {
                asked.explain(JobId::from_raw(id));
            }
            same_free(&rows, &asked, &silent);
            let limits = Limits { placements: 3, examined: 9 };
            prop_assert_eq!(asked.decide(limits), silent.decide(limits));
        }
    }

    #[test]
    fn a_round_in_pieces_places_what_a_whole_round_places(seed: u64, placements in 1usize..4, examined in 1usize..9) {
        let mut dice = Dice::new(seed);
        let rows = small(&mut dice, 12);
        let (mut whole, mut pieces) = (rows.world(8), rows.world(8));
        let all = whole.decide(Limits::NONE);
        let mut placed = Vec::new();
        for _ in 0..200 {
            let plan = pieces.decide(Limits { placements, examined });
            prop_assert!(plan.placements.len() <= placements);
            placed.extend(plan.placements);
            if !pieces.has_more() {
                break;
            }
        }
        prop_assert_eq!(placed, all.placements);
    }

    #[test]
    fn every_thousandth_is_free_leased_or_in_flight(seed: u64) {
        let mut dice = Dice::new(seed);
        let mut rows = small(&mut dice, 12);
        rows.leases.clear();
        let mut world = rows.world(8);
        let plan = world.decide(Limits::NONE);
        let (flying, committed) = plan.placements.split_at(plan.placements.len() / 2);
        let jobs = rows.jobs.clone();
        let mut next = 0;
        for placement in committed {
            for delta in rows.commit(placement, &mut next) {
                world.apply(&delta);
            }
        }
        prop_assert_eq!(world.in_flight(), flying.len());
        for at in rows.devices() {
            let device = rows.device(at).unwrap();
            let leased = rows.leases.values().filter(|lease| lease.device == at).map(|lease| &lease.resources);
            let flying = flying.iter().flat_map(|placement| {
                let task = &jobs[&placement.job].resources;
                placement.tasks.iter().filter(|task| task.device == at).map(move |_| task)
            });
            let taken: Vec<_> = leased.chain(flying).map(|task| footprint(task, device)).collect();
            let free = world.free_of(at).unwrap();
            let milli: u32 = taken.iter().map(|part| part.milli.get()).sum();
            let memory: u64 = taken.iter().map(|part| part.memory.get()).sum();
            prop_assert_eq!(free.milli.get() + milli, 1000);
            prop_assert_eq!(free.memory.get() + memory, device.memory.get());
        }
    }
}
