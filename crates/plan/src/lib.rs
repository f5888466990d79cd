//! The scheduler: who gets which slice, and why the others wait.
//!
//! [`World`] is what the scheduler knows. It is advanced only by committed [`Delta`]s and never asks anybody. Law,
//! tested: a world advanced delta by delta equals the world built from the rows at the end. [`World::decide`] returns
//! a [`Plan`]: placements and the verdicts that changed; [`World::explain`] computes on demand the constraint that
//! binds a waiting job and the smallest change that would admit it. There is no IO, clock or randomness: the same
//! world gives the same plan, bit for bit, on every machine.
//!
//! A placement is *in flight* until the writer's answer arrives as a delta or as [`World::reject`]; meanwhile what it
//! takes is reserved, so that no plan repeats or contradicts one that is not committed yet. Each call of `decide` is
//! bounded by [`Limits`] and goes on where the last one stopped.
//!
//! Modules: `inventory` and `pool` (what is free), `purse` (balances and prices), `want` (jobs by what they want),
//! `terms` and `room` (where and at what price a job could run), `fit` (the search; its `score` is the placement policy),
//! `judge` (why a job waits), `keep` (the starvation rule), `round` (decide), `explain`,
//! `offer` (quotes).
//!
//! The writer revalidates every placement against the versions that it carries before it commits, so a plan made from
//! an older world can be refused but never oversells.

mod cover;
mod explain;
mod fit;
mod hash;
mod inventory;
mod judge;
mod keep;
mod offer;
mod pool;
mod purse;
mod quota;
mod room;
mod round;
mod terms;
mod view;
mod want;
mod world;

pub use offer::Offered;
pub use round::Limits;

pub use view::{
    Change, ChangeKind, Delta, DeviceView, Explanation, Footprint, JobView, LeaseView, NodeView, Placement, Plan,
    Purpose, QuotaShortage, QuotaView, TaskPlacement, Verdict, charge, footprint,
};
pub use world::World;
