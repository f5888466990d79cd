//! What the other roads must show: renting, serving, quotas by kubectl.

use super::{Line, outside, simulation};

/// Its lines, in order.
pub(super) fn lines() -> Vec<Line> {
    let line = |number, title| Line { number, title, run: None, timed: false };
    vec![
        Line { run: Some(outside::rents), timed: true, ..line(1, "rents by two tenants through a real terminal") },
        Line {
            run: Some(outside::serves),
            timed: true,
            ..line(2, "1,000 requests of the official client to three endpoints, with cancels and kills")
        },
        Line { run: Some(outside::speeds), ..line(3, "speed beside llama.cpp's own server, and from nothing") },
        Line {
            run: Some(outside::scales),
            timed: true,
            ..line(4, "scale from zero and back, and a replica that moves under a stream")
        },
        Line { run: Some(outside::story), ..line(5, "quotas by kubectl against a real API server") },
        Line {
            run: Some(outside::refusals),
            ..line(6, "invalid manifests, and owners of namespaces who are no admins")
        },
        Line {
            run: Some(outside::operator_chaos),
            ..line(7, "operator, controller and API server killed while objects change")
        },
        Line { run: Some(outside::hostile_clients), ..line(8, "hostile clients at the gateway and at byte channels") },
        Line { run: Some(simulation::roads), ..line(9, "simulated days with rents, endpoints and quota changes") },
    ]
}
