//! The scheduler: who gets which slice, and why the others wait.
//!
//! [`World`] is what the scheduler knows. It is advanced only by committed [`Delta`]s and never asks anybody. Law,
//! tested: a world advanced delta by delta equals the world built from the rows at the end. [`World::decide`] returns
//! a [`Plan`]: placements and the verdicts that changed; [`World::explain`] computes on demand the constraint that
//! binds a waiting job and the smallest change that would admit it. There is no IO, clock or randomness: the same
//! world gives the same plan, bit for bit, on every machine.
//!
//! The writer revalidates every placement against the versions that it carries before it commits, so a plan made from
//! an older world can be refused but never oversells.

mod view;

pub use view::{
    Change, ChangeKind, Delta, DeviceView, Explanation, Footprint, JobView, LeaseView, NodeView, Placement, Plan, Purpose,
    TaskPlacement, Verdict, footprint,
};
