//! What the spine must show.

mod explain;
mod fractions;
mod fresh;

use super::{Line, outside, simulation};

/// Its lines, in order.
pub(super) fn lines() -> Vec<Line> {
    let line = |number, title| Line { number, title, run: None, timed: false };
    vec![
        Line {
            run: Some(fresh::rows),
            ..line(1, "the two commands of the README on a fresh Debian 12, and a machine with cgroup v2")
        },
        Line {
            run: Some(outside::moves),
            ..line(2, "moved and lost training jobs have the curve of the uninterrupted run")
        },
        Line {
            run: Some(outside::kills),
            ..line(3, "kill -9 of the controller, of agents and of whole nodes, under load")
        },
        Line { run: Some(outside::partition), ..line(4, "a partition of a site, and its healing") },
        Line { run: Some(fractions::rows), timed: true, ..line(5, "fractions of a device are enforced") },
        Line { run: Some(outside::rates), ..line(6, "durable submit-to-decision rate over gRPC") },
        Line { run: Some(outside::hostile), ..line(7, "malformed input at every door, and hostile jobs") },
        Line { run: Some(explain::rows), ..line(8, "what `why` names is enough and the smallest") },
        Line { run: Some(simulation::days), ..line(9, "simulated days with faults, and planted bugs") },
        Line {
            run: Some(outside::money),
            ..line(10, "a budget stops its job without overdraft; receipts recomputed by a separate checker")
        },
    ]
}
